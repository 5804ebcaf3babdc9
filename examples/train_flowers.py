"""A folder of photos of any size, resized and cropped at the centre: flowers, say.

    python examples/train_flowers.py --data data/flowers            # 2 cores, minutes
    python examples/train_flowers.py --data data/flowers --full     # for a GPU, 128x128

Residual or ConvNeXt blocks (--convnext), full or linear attention (--linear). Writes
in --out: checkpoint.pt, loss.png, figures.json, and in grid.png samples of the
weights' moving average.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

from tinyddpm import UNet, drawer, fit, linear_schedule, sample, to_uint8
from tinyddpm.beyond.convnext import ConvNeXtBlock, LinearAttention
from tinyddpm.unet import ResBlock, SelfAttention
from tinyddpm.workshop.pictures import grid, save_png
from tinyddpm.workshop.progress import Progress, errors_as_sentences
from tinyddpm.workshop.readers import read_image_folder
from tinyddpm.workshop.scripts import (
    SHORT,
    PictureConfig,
    command_line,
    sampling,
    say_out_of_range,
    settled,
)
from tinyddpm.workshop.settings import pick_device


@dataclass(frozen=True)
class Config(PictureConfig):
    data: Annotated[str, "folder of photos, sub-folders too"] = "data/flowers"
    out: Annotated[str, "folder for what is written"] = "out/flowers"
    size: Annotated[int, "height and width, in pixels"] = 64
    convnext: Annotated[bool, "ConvNeXt blocks, not residual ones"] = False
    linear: Annotated[bool, "linear attention, not full"] = False
    samples: Annotated[int, "pictures in a grid"] = 24


# Time goes with pixels: most channels, and attention, where there are few of them.
# So narrow a network bears twice the rate: L_simple 0.107 at step 120, for 0.127.
NARROW = {"base": 16, "multipliers": (1, 2, 4, 4), "attention": (3,), "lr": 2e-3}
MINUTES = Config(**SHORT | NARROW, steps=1200, batch=8)
FULL = Config(
    size=128, multipliers=(1, 1, 2, 2, 4), attention=(3,),
    steps=50_000, batch=64, lr=1e-4, ema=0.9995,
)  # fmt: skip


def main(argv: list[str]) -> None:
    c, args = command_line(argv, __doc__, MINUTES, {"--full": FULL})
    device, s, out = pick_device(c.device), linear_schedule(c.T), Path(c.out)
    c = settled(c, device, args.resume)
    images, _, folders = read_image_folder(c.data, c.size)
    print(f"{len(images)} photos in {len(folders)} folders, {c.size}x{c.size}")
    draw = drawer(images.to(device), flip=True)
    torch.manual_seed(c.seed)
    net = UNet(
        3, c.base, c.multipliers, c.attention, c.dropout,
        block=ConvNeXtBlock if c.convnext else ResBlock,
        attention=LinearAttention if c.linear else SelfAttention,
    ).to(device)  # fmt: skip

    progress = Progress(out, c, net, calls=(c.T, c.samples))
    ema = fit(s, net, draw, c, progress, out / "checkpoint.pt", args.resume)
    progress.close()

    with sampling(c, ema) as (eps_theta, generator):
        shape = (c.samples, 3, c.size, c.size)
        x_0 = sample(s, eps_theta, shape, generator, clip_x_0=c.clip_x_0)
    say_out_of_range(x_0)
    save_png(out / "grid.png", grid(to_uint8(x_0)))


if __name__ == "__main__":
    with errors_as_sentences():
        main(sys.argv[1:])
