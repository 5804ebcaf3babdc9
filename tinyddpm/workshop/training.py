"""`python -m tinyddpm train PATH`: Algorithm 1 on anybody's pictures, then a grid.

    python -m tinyddpm train PHOTOS --size 64 64           # a folder of photos
    python -m tinyddpm train train-images-idx3-ubyte.gz    # MNIST's format
    python -m tinyddpm train sprites.npy --labels classes.npy
    python -m tinyddpm train data --preset paper           # hours, on a GPU

PATH is a folder of photos (sub-folders are classes), an IDX file or a folder of MNIST's
files, a .npy file (N, H, W, C), or CIFAR-10's binary version. In --out: checkpoint.pt,
figures.json, loss.png, and grid.png, samples of the moving average of the weights, a
row for each class where there are classes.
"""

import argparse
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from torch import nn

from ..beyond.guidance import sometimes_without_class
from ..data import drawer, to_uint8
from ..sampler import sample
from ..schedule import linear_schedule
from ..unet import UNet
from .datasets import Pictures, hold_out, padded, read_pictures
from .pictures import grid, save_png
from .progress import Progress
from .run import fit
from .scripts import (
    SHORT,
    PictureConfig,
    command_line,
    sampling,
    say_out_of_range,
    settled,
)
from .settings import pick_device


@dataclass(frozen=True)
class Config(PictureConfig):
    """Settings beside those that all scripts on pictures share."""

    out: Annotated[str, "folder for what is written"] = "out/train"
    size: Annotated[tuple[int, ...], "H W, which photos need"] = ()
    grey: Annotated[bool, "read photos in grey"] = False
    labels: Annotated[str | None, "a file of classes, for .npy and IDX"] = None
    names: Annotated[tuple[str, ...], "of the classes; else the sub-folders'"] = ()
    classes: Annotated[bool, "learn the classes, where there are some"] = True
    flip: Annotated[bool, "mirror each picture with probability 1/2"] = False
    held_out: Annotated[int, "pictures not to train on, for examples/score.py"] = 0

    may_change = (*PictureConfig.may_change, "labels", "names")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.size) not in (0, 2) or any(n < 1 for n in self.size):
            raise ValueError(f"size must be H W, two numbers >= 1, got {self.size}")


SMALL = Config(**SHORT, steps=2000, batch=16, multipliers=(1, 2, 2), attention=(2,))
PAPER = Config(flip=True)
PRESETS = {"small": SMALL, "paper": PAPER}


def main(argv: list[str]) -> None:
    """Reads the pictures, trains, and draws a grid."""
    if argv and not argv[0].startswith("-"):
        argv = ["--data", *argv]
    preset = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    preset.add_argument("--preset", choices=list(PRESETS), default="small")
    chosen, argv = preset.parse_known_args(argv)
    c, args = command_line(argv, __doc__, PRESETS[chosen.preset], {})
    device, s, out = pick_device(c.device), linear_schedule(c.T), Path(c.out)
    c = settled(c, device, args.resume)
    found = read(c)
    images, labels, classes = found
    _, C, H, W = images.shape
    if C not in (1, 3):
        raise ValueError(f"a grid shows pictures with 1 or 3 channels, got {C}")
    of = f", in classes {', '.join(classes)}" if classes else ""
    print(f"{len(images):,} pictures {C}x{H}x{W}{of}")
    c = c if c.names else replace(c, names=tuple(classes))
    none = len(classes) if c.classes and labels is not None else None
    draw = drawer(images.to(device), None, c.flip)
    if none is not None and labels is not None:
        draw = drawer(images.to(device), labels.to(device), c.flip)
        draw = sometimes_without_class(draw, none)
    torch.manual_seed(c.seed)
    net = UNet(C, c.base, c.multipliers, c.attention, c.dropout, none).to(device)
    progress = Progress(out, c, net, calls=(c.T, c.samples))
    ema = fit(s, net, draw, c, progress, out / "checkpoint.pt", args.resume)
    progress.close()
    save_grid(c, ema, (C, H, W), none)
    print(f"samples: {out / 'grid.png'}")


def read(c: Config) -> Pictures:
    """The pictures to train on, with black around them where the network needs it."""
    size = (c.size[0], c.size[1]) if c.size else None
    found = read_pictures(c.data, c.labels, size, 1 if c.grey else 3)
    factor = 2 ** (len(c.multipliers) - 1)
    H, W = (-(-n // factor) * factor for n in found.images.shape[2:])
    if tuple(found.images.shape[2:]) != (H, W):
        print(f"black pixels are put around each picture, to {H}x{W}")
    found = found._replace(images=padded(found.images, (H, W), c.data))
    if c.held_out == 0:
        return found
    kept, _ = hold_out(c.held_out, len(found.images))
    labels = None if found.labels is None else found.labels[kept]
    return found._replace(images=found.images[kept], labels=labels)


def save_grid(
    c: Config, ema: nn.Module, shape: tuple[int, ...], none: int | None
) -> None:
    """grid.png: samples, a row for each class and a last one for none."""
    s = linear_schedule(c.T)
    with sampling(c, ema) as (net, generator):
        if none is None:
            x_0 = sample(s, net, (c.samples, *shape), generator, clip_x_0=c.clip_x_0)
            columns = 8
        else:
            columns = max(1, c.samples // (none + 1))
            of = torch.arange(none + 1, device=generator.device)
            of_class = partial(net, c=of.repeat_interleave(columns))
            size = (columns * (none + 1), *shape)
            x_0 = sample(s, of_class, size, generator, clip_x_0=c.clip_x_0)
    say_out_of_range(x_0)
    save_png(Path(c.out) / "grid.png", grid(to_uint8(x_0), columns))
