"""Sprites, 16x16 RGB, each drawn for the class asked for.

    python examples/train_sprites.py                      # 2 cores, minutes
    python examples/train_sprites.py --full               # for a GPU

Reads two .npy files: uint8 (N, 16, 16, 3), or another size that divides by 4, and
one-hot labels (N, K). Writes in --out: checkpoint.pt, loss.png, figures.json, and
samples of the weights' moving average, a row for each class and a last one for no
class: grid.png, and reverse.gif, in which they come out of the noise.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch

from tinyddpm import UNet, drawer, fit, linear_schedule, p_sample_loop, to_uint8
from tinyddpm.beyond.guidance import sometimes_without_class
from tinyddpm.workshop.pictures import grid, save_gif, save_png
from tinyddpm.workshop.progress import Progress, errors_as_sentences
from tinyddpm.workshop.readers import read_npy_images, read_npy_labels
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
    data: Annotated[str, "the pictures, a .npy file"] = "data/sprites_16x16.npy"
    labels: Annotated[str, "their classes, a .npy file"] = "data/sprite_labels.npy"
    out: Annotated[str, "folder for what is written"] = "out/sprites"
    samples: Annotated[int, "pictures of each class"] = 8

    may_change = (*PictureConfig.may_change, "labels")


# Levels of 16, 8 and 4 pixels a side: attention is cheap at the lower two.
NET = {"multipliers": (1, 2, 2), "attention": (1, 2)}
MINUTES = Config(**SHORT | NET, steps=1500, batch=32)
FULL = Config(**NET, steps=50_000, ema=0.9995)  # else App. B's, for CIFAR-10
FRAMES = 50  # of the animation


def main(argv: list[str]) -> None:
    c, args = command_line(argv, __doc__, MINUTES, {"--full": FULL})
    device, s, out = pick_device(c.device), linear_schedule(c.T), Path(c.out)
    c = settled(c, device, args.resume)
    images, labels = read_npy_images(c.data), read_npy_labels(c.labels)
    none = int(labels.max()) + 1  # the class after the last one
    draw = drawer(images.to(device), labels.to(device))
    draw = sometimes_without_class(draw, none)
    torch.manual_seed(c.seed)
    colours, *size = images.shape[1:]
    net = UNet(colours, c.base, c.multipliers, c.attention, c.dropout, none).to(device)

    progress = Progress(out, c, net)
    ema = fit(s, net, draw, c, progress, out / "checkpoint.pt", args.resume)
    progress.close()

    classes = torch.arange(none + 1, device=device).repeat_interleave(c.samples)
    with sampling(c, ema) as (eps_theta, g):
        x_T = torch.randn(len(classes), colours, *size, generator=g, device=device)
        of_class = partial(eps_theta, c=classes)  # a function of x_t and t alone
        loop = p_sample_loop(s, of_class, x_T, g, clip_x_0=c.clip_x_0)
        every = max(1, s.T // FRAMES)
        frames = [x_t for t, x_t, _ in loop if t % every == 0]
    say_out_of_range(frames[-1])
    frames = [to_uint8(x_t) for x_t in frames]
    save_png(out / "grid.png", grid(frames[-1], c.samples))
    save_gif(out / "reverse.gif", [grid(v, c.samples, scale=2) for v in frames])


if __name__ == "__main__":
    with errors_as_sentences():
        main(sys.argv[1:])
