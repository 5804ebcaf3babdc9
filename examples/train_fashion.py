"""Fashion-MNIST: clothes, 28x28, padded to 32x32, one channel.

    python examples/train_fashion.py --download           # 2 cores, minutes
    python examples/train_fashion.py --download --full    # for a GPU

Reads train-images-idx3-ubyte, gzipped or not. Writes in --out: checkpoint.pt, loss.png,
figures.json, and in grid.png samples of the weights' moving average.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from tinyddpm import linear_schedule, sample
from tinyddpm.config import TrainConfig, flags, from_flags, pick_device
from tinyddpm.data import drawer
from tinyddpm.download import download_fashion_mnist
from tinyddpm.pictures import grid, save_png, to_uint8
from tinyddpm.progress import Progress, errors_as_sentences
from tinyddpm.readers import read_idx_images
from tinyddpm.runtime import autocast
from tinyddpm.train import fit
from tinyddpm.unet import UNet


@dataclass(frozen=True)
class Config(TrainConfig):
    data: Annotated[str, "folder of the IDX files"] = "data/fashion"
    out: Annotated[str, "folder for what is written"] = "out/fashion"
    device: Annotated[str, "auto, cpu, cuda or cuda:<number>"] = "auto"
    samples: Annotated[int, "pictures in grid.png"] = 64
    T: Annotated[int, "steps; a sample takes as many network calls"] = 250
    base: Annotated[int, "width; the paper's is 128"] = 32
    multipliers: Annotated[tuple[int, ...], "widths of the levels, in bases"] = (
        1,
        2,
        2,
    )
    attention: Annotated[tuple[int, ...], "levels with attention, from 0"] = (2,)
    dropout: Annotated[float, "in every block"] = 0.0  # the run is too short to overfit
    steps: Annotated[int, "gradient steps in all"] = 1000
    batch: Annotated[int, "pictures a step"] = 32
    lr: Annotated[float, "Adam's learning rate"] = 1e-3  # a narrow net bears more
    lr_end: Annotated[float | None, "cosine to this at the end"] = 5e-5
    warmup: Annotated[int, "steps of linear warm-up"] = 50
    ema: Annotated[float, "decay of the moving average"] = 0.99  # of about 100 steps
    log_every: Annotated[int, "steps between looks at the loss"] = 20
    save_every: Annotated[int, "steps between checkpoints"] = 200
    bf16: Annotated[bool | None, "network in bfloat16"] = True

    may_change = (*TrainConfig.may_change, "out", "device", "samples")


FULL = Config(
    T=1000, base=128, multipliers=(1, 2, 2, 2), attention=(1,), dropout=0.1,
    steps=50_000, batch=128, lr=2e-4, lr_end=None, warmup=5000, ema=0.9995,
    log_every=100, save_every=5000, bf16=None,
)  # fmt: skip


def main(argv: list[str]) -> None:
    parser = flags(FULL if "--full" in argv else Config(), __doc__ or "")
    parser.add_argument("--full", action="store_true", help="defaults for a GPU")
    parser.add_argument("--download", action="store_true", help="fetch the files first")
    parser.add_argument("--resume", action="store_true", help="go on from --out")
    args = parser.parse_args(argv)
    c = from_flags(Config, args)
    device, s, out = pick_device(c.device), linear_schedule(c.T), Path(c.out)
    if args.download:
        download_fashion_mnist(c.data)
    draw = drawer(read(Path(c.data)).to(device))
    torch.manual_seed(c.seed)
    net = UNet(1, c.base, c.multipliers, c.attention, c.dropout).to(device)

    progress = Progress(out, c, net, args.resume)
    ema = fit(s, net, draw, c, progress, out / "checkpoint.pt", args.resume)
    progress.close()

    generator = Generator(device).manual_seed(c.seed)
    with autocast(device, c.bf16):
        x_0 = sample(s, ema, (c.samples, 1, 32, 32), generator)
    save_png(out / "grid.png", grid(to_uint8(x_0)))


def read(folder: Path) -> Tensor:
    """The training pictures with 2 black pixels around: (N, 1, 32, 32).

    Padded, not resized: interpolated levels would not be 8-bit ones (eq. 13).
    """
    names = ["train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"]
    there = [folder / name for name in names if (folder / name).is_file()]
    if not there:
        raise FileNotFoundError(
            f"{folder} holds no {' or '.join(names)}; give --data, or --download"
        )
    images = read_idx_images(there[0])
    if images.shape[2:] != (28, 28):
        raise ValueError(f"{there[0]} is {tuple(images.shape[2:])}, expected 28x28")
    return pad(images, (2, 2, 2, 2))


if __name__ == "__main__":
    with errors_as_sentences():
        main(sys.argv[1:])
