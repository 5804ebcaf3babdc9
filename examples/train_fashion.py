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
from common import ExampleConfig, errors_as_sentences, read_flags, train
from torch import Tensor
from torch.nn.functional import pad

from tinyddpm import linear_schedule, sample
from tinyddpm.config import pick_device
from tinyddpm.data import drawer
from tinyddpm.download import download_fashion_mnist
from tinyddpm.pictures import grid, save_png, to_uint8
from tinyddpm.readers import read_idx_images
from tinyddpm.unet import UNet


@dataclass(frozen=True)
class Config(ExampleConfig):
    data: Annotated[str, "folder of the IDX files"] = "data/fashion"
    out: Annotated[str, "folder for what is written"] = "out/fashion"
    download: Annotated[bool, "fetch the files first, 30 MB"] = False
    steps: Annotated[int, "gradient steps in all"] = 800
    batch: Annotated[int, "pictures a step"] = 64
    base: Annotated[int, "width; the paper's is 128"] = 32
    multipliers: Annotated[tuple[int, ...], "widths of the levels, in bases"] = (
        1,
        2,
        2,
    )
    attention: Annotated[tuple[int, ...], "levels with attention, from 0"] = (2,)
    dropout: Annotated[float, "in every block"] = 0.0  # the run is too short to overfit

    may_change = (*ExampleConfig.may_change, "download")


FULL = Config(
    steps=50_000, batch=128, base=128, multipliers=(1, 2, 2, 2), attention=(1,),
    dropout=0.1, T=1000, lr=2e-4, lr_end=None, warmup=5000, ema=0.9995,
    log_every=100, save_every=5000, bf16=None,
)  # fmt: skip


def read(folder: str) -> Tensor:
    """The training pictures with 2 black pixels around: (N, 1, 32, 32).

    Padded, not resized: interpolated levels would not be 8-bit ones (eq. 13).
    """
    names = ["train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"]
    there = [path for name in names if (path := Path(folder) / name).is_file()]
    if not there:
        raise FileNotFoundError(f"{folder} holds no {' or '.join(names)}; --download?")
    images = read_idx_images(there[0])
    if images.shape[2:] != (28, 28):
        raise ValueError(f"{there[0]} is {tuple(images.shape[2:])}, expected 28x28")
    return pad(images, (2, 2, 2, 2))


def main(argv: list[str]) -> None:
    c, resume = read_flags(Config(), FULL, __doc__, argv)
    device, s = pick_device(c.device), linear_schedule(c.T)
    if c.download:
        download_fashion_mnist(c.data)
    images = read(c.data).to(device)
    torch.manual_seed(c.seed)
    net = UNet(1, c.base, c.multipliers, c.attention, c.dropout).to(device)
    ema = train(s, net, drawer(images), c, resume)
    generator = torch.Generator(device).manual_seed(c.seed)
    with torch.autocast(device.type, torch.bfloat16, enabled=bool(c.bf16)):
        x_0 = sample(s, ema, (c.samples, 1, 32, 32), generator)
    save_png(Path(c.out) / "grid.png", grid(to_uint8(x_0)))


if __name__ == "__main__":
    with errors_as_sentences():
        main(sys.argv[1:])
