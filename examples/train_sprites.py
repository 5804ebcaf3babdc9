"""Sprites, 16x16 RGB, each drawn for the class asked for.

    python examples/train_sprites.py --data data/sprites_16x16.npy \
        --labels data/sprite_labels.npy                   # 2 cores, minutes
    ... --full                                            # for a GPU

Reads two .npy files: uint8 (N, 16, 16, 3), or another size that divides by 4, and
one-hot labels (N, K). Writes in --out: checkpoint.pt, loss.png, figures.json, and
samples of the weights' moving average, a row for each class and a last one for no
class: grid.png, and reverse.gif, in which they come out of the noise.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from common import ExampleConfig, errors_as_sentences, read_flags, train
from torch import Generator, Tensor

from tinyddpm import linear_schedule, p_sample_loop
from tinyddpm.config import pick_device
from tinyddpm.data import Draw, drawer
from tinyddpm.pictures import grid, save_gif, save_png, to_uint8
from tinyddpm.readers import read_npy_images, read_npy_labels
from tinyddpm.unet import UNet

FRAMES = 50  # of the animation


@dataclass(frozen=True)
class Config(ExampleConfig):
    data: Annotated[str, "the pictures, a .npy file"] = "data/sprites_16x16.npy"
    labels: Annotated[str, "their classes, a .npy file"] = "data/sprite_labels.npy"
    out: Annotated[str, "folder for what is written"] = "out/sprites"
    none: Annotated[float, "share of pictures trained on without their class"] = 0.1
    samples: Annotated[int, "pictures of each class in grid.png"] = 8
    steps: Annotated[int, "gradient steps in all"] = 1200
    batch: Annotated[int, "pictures a step"] = 64
    base: Annotated[int, "width; the paper's is 128"] = 32
    multipliers: Annotated[tuple[int, ...], "widths of the levels, in bases"] = (
        1,
        2,
        2,
    )
    attention: Annotated[tuple[int, ...], "levels with attention, from 0"] = (1, 2)
    dropout: Annotated[float, "in every block"] = 0.1  # few pictures, seen many times

    may_change = (*ExampleConfig.may_change, "labels")


FULL = Config(
    steps=50_000, batch=128, base=128, T=1000, lr=2e-4, lr_end=None, warmup=5000,
    ema=0.9995, log_every=100, save_every=5000, bf16=None,
)  # fmt: skip


def sometimes_without_class(draw: Draw, none: int, share: float) -> Draw:
    """Puts the class `none` in place of that share of the classes drawn."""

    def draw_some(B: int, generator: Generator | None) -> tuple[Tensor, ...]:
        x_0, c = draw(B, generator)
        u = torch.rand(B, generator=generator, device=c.device)
        return x_0, torch.where(u < share, none, c)

    return draw_some


def main(argv: list[str]) -> None:
    c, resume = read_flags(Config(), FULL, __doc__, argv)
    device, s = pick_device(c.device), linear_schedule(c.T)
    for path in (c.data, c.labels):
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"there is no file {path}; give --data and --labels"
            )
    images, labels = read_npy_images(c.data).to(device), read_npy_labels(c.labels)
    none = int(labels.max()) + 1  # the class after the last one
    draw = drawer(images, labels.to(device))
    torch.manual_seed(c.seed)
    net = UNet(
        images.shape[1], c.base, c.multipliers, c.attention, c.dropout, num_classes=none
    ).to(device)
    ema = train(s, net, sometimes_without_class(draw, none, c.none), c, resume)

    classes = torch.arange(none + 1, device=device).repeat_interleave(c.samples)
    generator = Generator(device).manual_seed(c.seed)
    x_T = torch.randn(
        len(classes), *images.shape[1:], generator=generator, device=device
    )
    frames = []
    with torch.autocast(device.type, torch.bfloat16, enabled=bool(c.bf16)):
        loop = p_sample_loop(s, lambda x, t: ema(x, t, classes), x_T, generator)
        for t, x_t, _ in loop:
            if t % max(1, c.T // FRAMES) == 0:
                frames.append(grid(to_uint8(x_t), c.samples, scale=2))
    save_png(Path(c.out) / "grid.png", grid(to_uint8(x_t), c.samples))
    save_gif(Path(c.out) / "reverse.gif", frames)


if __name__ == "__main__":
    with errors_as_sentences():
        main(sys.argv[1:])
