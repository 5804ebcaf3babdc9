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
from common import ExampleConfig, errors_as_sentences, read_flags, train

from tinyddpm import linear_schedule, sample
from tinyddpm.config import pick_device
from tinyddpm.convnext import ConvNeXtBlock, LinearAttention
from tinyddpm.data import drawer
from tinyddpm.pictures import grid, save_png, to_uint8
from tinyddpm.readers import read_image_folder
from tinyddpm.unet import ResBlock, SelfAttention, UNet

BLOCKS = {"residual": ResBlock, "convnext": ConvNeXtBlock}
ATTENTIONS = {"full": SelfAttention, "linear": LinearAttention}


@dataclass(frozen=True)
class Config(ExampleConfig):
    data: Annotated[str, "folder of photos, sub-folders too"] = "data/flowers"
    out: Annotated[str, "folder for what is written"] = "out/flowers"
    size: Annotated[int, "height and width, in pixels"] = 64
    block: Annotated[Literal["residual", "convnext"], "of the network"] = "residual"
    attention: Annotated[Literal["full", "linear"], "of the network"] = "full"
    levels: Annotated[tuple[int, ...], "which have attention, from 0"] = (3,)
    samples: Annotated[int, "pictures in grid.png"] = 16
    steps: Annotated[int, "gradient steps in all"] = 600
    batch: Annotated[int, "pictures a step"] = 16
    base: Annotated[int, "width; the paper's is 128"] = 32
    multipliers: Annotated[tuple[int, ...], "widths, in bases"] = (1, 2, 2, 4)
    dropout: Annotated[float, "in every block"] = 0.0  # the run is too short to overfit


FULL = Config(
    size=128, steps=50_000, batch=64, base=128, multipliers=(1, 1, 2, 2, 4),
    levels=(3,), dropout=0.1, T=1000, lr=1e-4, lr_end=None, warmup=5000, ema=0.9995,
    log_every=100, save_every=5000, bf16=None,
)  # fmt: skip


def main(argv: list[str]) -> None:
    c, resume = read_flags(Config(), FULL, __doc__, argv)
    device, s = pick_device(c.device), linear_schedule(c.T)
    images, _, classes = read_image_folder(c.data, c.size)
    print(f"{len(images)} photos in {len(classes)} folders, {c.size}x{c.size}")
    torch.manual_seed(c.seed)
    net = UNet(
        3, c.base, c.multipliers, c.levels, c.dropout,
        block=BLOCKS[c.block], attention=ATTENTIONS[c.attention],
    ).to(device)  # fmt: skip
    ema = train(s, net, drawer(images.to(device), flip=True), c, resume)
    generator = torch.Generator(device).manual_seed(c.seed)
    with torch.autocast(device.type, torch.bfloat16, enabled=bool(c.bf16)):
        x_0 = sample(s, ema, (c.samples, 3, c.size, c.size), generator)
    save_png(Path(c.out) / "grid.png", grid(to_uint8(x_0), columns=4))


if __name__ == "__main__":
    with errors_as_sentences():
        main(sys.argv[1:])
