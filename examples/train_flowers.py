"""A folder of photos of any size, resized and cropped at the centre: flowers, say.

    python examples/train_flowers.py --data data/flowers            # 2 cores, minutes
    python examples/train_flowers.py --data data/flowers --full     # for a GPU, 128x128

Residual or ConvNeXt blocks (--block), full or linear attention (--attention). Writes
in --out: checkpoint.pt, loss.png, figures.json, and in grid.png samples of the
weights' moving average.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Generator

from tinyddpm import linear_schedule, sample
from tinyddpm.config import TrainConfig, flags, from_flags, pick_device
from tinyddpm.convnext import ConvNeXtBlock, LinearAttention
from tinyddpm.data import drawer
from tinyddpm.pictures import grid, save_png, to_uint8
from tinyddpm.progress import Progress, errors_as_sentences
from tinyddpm.readers import read_image_folder
from tinyddpm.runtime import autocast
from tinyddpm.train import fit
from tinyddpm.unet import ResBlock, SelfAttention, UNet

BLOCKS = {"residual": ResBlock, "convnext": ConvNeXtBlock}
ATTENTIONS = {"full": SelfAttention, "linear": LinearAttention}


@dataclass(frozen=True)
class Config(TrainConfig):
    data: Annotated[str, "folder of photos, sub-folders too"] = "data/flowers"
    out: Annotated[str, "folder for what is written"] = "out/flowers"
    device: Annotated[str, "auto, cpu, cuda or cuda:<number>"] = "auto"
    size: Annotated[int, "height and width, in pixels"] = 64
    samples: Annotated[int, "pictures in grid.png"] = 16
    T: Annotated[int, "steps; a sample takes as many network calls"] = 250
    block: Annotated[Literal["residual", "convnext"], "of the network"] = "residual"
    attention: Annotated[Literal["full", "linear"], "of the network"] = "full"
    base: Annotated[int, "width; the paper's is 128"] = 32
    multipliers: Annotated[tuple[int, ...], "widths, in bases"] = (1, 2, 2, 4)
    levels: Annotated[tuple[int, ...], "which have attention, from 0"] = (3,)
    dropout: Annotated[float, "in every block"] = 0.0  # the run is too short to overfit
    steps: Annotated[int, "gradient steps in all"] = 800
    batch: Annotated[int, "pictures a step"] = 8
    lr: Annotated[float, "Adam's learning rate"] = 1e-3  # a narrow net bears more
    lr_end: Annotated[float | None, "cosine to this at the end"] = 5e-5
    warmup: Annotated[int, "steps of linear warm-up"] = 50
    ema: Annotated[float, "decay of the moving average"] = 0.99  # of about 100 steps
    log_every: Annotated[int, "steps between looks at the loss"] = 20
    save_every: Annotated[int, "steps between checkpoints"] = 200
    bf16: Annotated[bool | None, "network in bfloat16"] = True

    may_change = (*TrainConfig.may_change, "out", "device", "samples")


FULL = Config(
    size=128, T=1000, base=128, multipliers=(1, 1, 2, 2, 4), levels=(3,), dropout=0.1,
    steps=50_000, batch=64, lr=1e-4, lr_end=None, warmup=5000, ema=0.9995,
    log_every=100, save_every=5000, bf16=None,
)  # fmt: skip


def main(argv: list[str]) -> None:
    parser = flags(FULL if "--full" in argv else Config(), __doc__ or "")
    parser.add_argument("--full", action="store_true", help="defaults for a GPU")
    parser.add_argument("--resume", action="store_true", help="go on from --out")
    args = parser.parse_args(argv)
    c = from_flags(Config, args)
    device, s, out = pick_device(c.device), linear_schedule(c.T), Path(c.out)
    images, _, folders = read_image_folder(c.data, c.size)
    print(f"{len(images)} photos in {len(folders)} folders, {c.size}x{c.size}")
    draw = drawer(images.to(device), flip=True)
    torch.manual_seed(c.seed)
    net = UNet(
        3, c.base, c.multipliers, c.levels, c.dropout,
        block=BLOCKS[c.block], attention=ATTENTIONS[c.attention],
    ).to(device)  # fmt: skip

    progress = Progress(out, c, net, args.resume)
    ema = fit(s, net, draw, c, progress, out / "checkpoint.pt", args.resume)
    progress.close()

    generator = Generator(device).manual_seed(c.seed)
    with autocast(device, c.bf16):
        x_0 = sample(s, ema, (c.samples, 3, c.size, c.size), generator)
    save_png(out / "grid.png", grid(to_uint8(x_0), columns=4))


if __name__ == "__main__":
    with errors_as_sentences():
        main(sys.argv[1:])
