"""`python -m tinyddpm train PATH`: Algorithm 1 on anybody's pictures, then a grid.

    python -m tinyddpm train PHOTOS --preset photos        # a folder of photos, 64x64
    python -m tinyddpm train train-images-idx3-ubyte.gz    # MNIST's format
    python -m tinyddpm train data --download fashion-mnist --minutes 20
    python -m tinyddpm train sprites.npy --labels classes.npy
    python -m tinyddpm train data --preset paper           # hours, on a GPU

PATH is a folder of photos (sub-folders are classes), an IDX file or a folder of MNIST's
files, a .npy file (N, H, W, C), or CIFAR-10's binary version. In --out: checkpoint.pt,
figures.json, loss.png, and grid.png, samples of the moving average of the weights, a
row for each class where there are classes.

The presets are defaults, which any flag beside them changes:

    small    minutes on a CPU, for pictures of about 32x32
    photos   the same for photos, at 64x64, mirrored half the time
    paper    appendix B's run on CIFAR-10: hours on a GPU
    256      appendix B's network and rates for 256x256: days on several GPUs
"""

import argparse
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn

from ..beyond.convnext import ConvNeXtBlock, LinearAttention
from ..beyond.guidance import sometimes_without_class
from ..data import Draw, drawer, to_uint8
from ..sampler import sample
from ..schedule import linear_schedule
from ..unet import ResBlock, SelfAttention, UNet
from .checkpoint import load_checkpoint
from .datasets import Pictures, hold_out, padded, read_pictures
from .download import download_cifar10, download_fashion_mnist
from .pictures import grid, save_png
from .progress import Progress
from .run import fit, seconds_a_step
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
    convnext: Annotated[bool, "ConvNeXt blocks, not the paper's"] = False
    linear: Annotated[bool, "linear attention, not the paper's"] = False

    may_change = (*PictureConfig.may_change, "labels", "names")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.size) not in (0, 2) or any(n < 1 for n in self.size):
            raise ValueError(f"size must be H W, two numbers >= 1, got {self.size}")
        if self.held_out < 0:
            raise ValueError(f"held_out must be at least 0, got {self.held_out}")


def ema_of(steps: int) -> float:
    """The decay for a short run: an average over about an eighth of its steps."""
    return max(0.0, min(1 - 8 / steps, 0.9995))


SMALL = Config(
    **SHORT,
    steps=2000,
    ema=ema_of(2000),
    batch=16,
    multipliers=(1, 2, 2),
    attention=(2,),
)
# Time goes with pixels: most channels, and attention, where there are few of them.
# So narrow a network bears a higher rate.
NARROW = {"base": 16, "multipliers": (1, 2, 4, 4), "attention": (3,), "lr": 2e-3}
PHOTOS = Config(
    **SHORT | NARROW, steps=1200, ema=ema_of(1200), batch=8,
    size=(64, 64), flip=True, samples=24,
)  # fmt: skip
PAPER = Config(flip=True)
LARGE = Config(  # App. B for CelebA-HQ; LSUN's runs have 1.2 and 2.4 million steps
    size=(256, 256), multipliers=(1, 1, 2, 2, 4, 4), attention=(4,), dropout=0.0,
    steps=500_000, batch=64, lr=2e-5, flip=True, samples=16,
)  # fmt: skip
PRESETS = {"small": SMALL, "photos": PHOTOS, "paper": PAPER, "256": LARGE}
PROG = "python -m tinyddpm train"
CHOSEN = ("steps", "ema", "warmup")  # by --minutes
A_YEAR = 525_600  # minutes
DOWNLOADS = {"fashion-mnist": download_fashion_mnist, "cifar-10": download_cifar10}
MORE: dict[str, dict[str, Any]] = {
    "--preset": {"choices": list(PRESETS), "default": "small", "help": "see above"},
    "--minutes": {
        "type": float,
        "help": "in place of --steps: as many as take so long on this machine, and an "
        "ema and a warmup that fit",
    },
    "--download": {"choices": list(DOWNLOADS), "help": "fetch it first, into PATH"},
}


def main(argv: list[str]) -> None:
    """Reads the pictures, trains, and draws a grid."""
    if argv and not argv[0].startswith("-"):
        argv = ["--data", *argv]
    c, args = flags(argv)
    device, s, out = pick_device(c.device), linear_schedule(c.T), Path(c.out)
    if args.download:
        DOWNLOADS[args.download](c.data)
    images, labels, classes = read(c)
    _, C, H, W = images.shape
    if c.names and len(c.names) != len(classes):
        raise ValueError(
            f"--names gives {len(c.names)} names, and there are {len(classes)} classes"
        )
    c = replace(c, names=c.names or tuple(classes))
    of = f", in classes {', '.join(c.names)}" if c.classes and c.names else ""
    print(f"{len(images):,} pictures {C}x{H}x{W}{of}")
    none = len(classes) if c.classes and labels is not None else None
    draw = drawer_of(c, images, labels, none, device)
    net = network(c, C, none).to(device)
    c = settled(c, device, args.resume)
    if args.minutes is not None and not kept(c):
        seconds = seconds_a_step(s, net, draw, c)
        c = replace(c, **chosen(c, args, steps_in(args.minutes, seconds)))
        print(
            f"about {seconds:.2g} s a step here: {c.steps:,} "
            f"step{'s' * (c.steps > 1)} in {args.minutes:g} minutes"
        )
    progress = Progress(out, c, net, calls=(c.T, c.samples))
    ema = fit(s, net, draw, c, progress, out / "checkpoint.pt", args.resume)
    progress.close()
    save_grid(c, ema, (C, H, W), none)
    print(f"samples: {out / 'grid.png'}")


def flags(argv: list[str]) -> tuple[Config, argparse.Namespace]:
    """The settings that `argv` asks for, and the flags beside them.

    What --minutes chooses, a resumed run has as its checkpoint has it, unless it is
    given here.
    """
    first = argparse.ArgumentParser(
        PROG, "%(prog)s PATH [flags]", add_help=False, allow_abbrev=False
    )
    for name in ("preset", *CHOSEN):
        first.add_argument(f"--{name}")  # read again, and checked, below
    asked, _ = first.parse_known_args(argv)
    preset = PRESETS.get(asked.preset or "small", SMALL)
    c, args = command_line(argv, __doc__, preset, {}, MORE, prog=PROG)
    args.left = [name for name in CHOSEN if getattr(asked, name) is None]
    if args.minutes is not None:
        if not 0 < args.minutes <= A_YEAR:
            wanted = f"above 0 and at most {A_YEAR:,}, a year"
            raise ValueError(f"--minutes must be {wanted}, got {args.minutes:g}")
        if "steps" not in args.left:
            raise ValueError("give --steps or --minutes, which chooses them, not both")
    if args.resume:
        c = replace(c, **{k: v for k, v in kept(c).items() if k in args.left})
    return c, args


def kept(c: Config) -> dict[str, Any]:
    """The settings of the run in --out; none where there is no run."""
    path = Path(c.out) / "checkpoint.pt"
    return load_checkpoint(path).config if path.exists() else {}


def chosen(c: Config, args: argparse.Namespace, steps: int) -> dict[str, Any]:
    """The settings that go with a number of steps, but for those that are given."""
    settings = {
        "steps": steps,
        "ema": ema_of(steps),
        "warmup": min(c.warmup, steps // 20),
    }
    return {name: settings[name] for name in args.left}


def steps_in(minutes: float, seconds: float) -> int:
    """How many steps of so many seconds fit in; beyond 100, to two digits."""
    steps = max(1, int(minutes * 60 / seconds))
    unit = int(10 ** max(0, len(str(steps)) - 2))
    return steps // unit * unit


def read(c: Config) -> Pictures:
    """The pictures to train on, with black around them where the network needs it."""
    size = (c.size[0], c.size[1]) if c.size else None
    try:
        found = read_pictures(c.data, c.labels, size, 1 if c.grey else 3)
    except FileNotFoundError as error:
        if error.filename != c.data:
            raise
        where = "give the PATH of your pictures, before all flags"
        raise FileNotFoundError(f"there is no {c.data}; {where}") from error
    factor = 2 ** (len(c.multipliers) - 1)
    H, W = (-(-n // factor) * factor for n in found.images.shape[2:])
    if tuple(found.images.shape[2:]) != (H, W):
        print(f"black pixels are put around each picture, to {H}x{W}")
    found = found._replace(images=padded(found.images, (H, W), c.data))
    if c.held_out == 0:
        return found
    left, _ = hold_out(c.held_out, len(found.images))
    labels = None if found.labels is None else found.labels[left]
    return found._replace(images=found.images[left], labels=labels)


def drawer_of(
    c: Config,
    images: torch.Tensor,
    labels: torch.Tensor | None,
    none: int | None,
    device: torch.device,
) -> Draw:
    """Draws pictures; with their classes, some replaced by `none`, if that is given."""
    if none is None or labels is None:
        return drawer(images.to(device), None, c.flip)
    draw = drawer(images.to(device), labels.to(device), c.flip)
    return sometimes_without_class(draw, none)


def network(c: Config, channels: int, none: int | None) -> UNet:
    """The U-Net, as the seed makes it, with classes if `none` is their number."""
    torch.manual_seed(c.seed)
    return UNet(
        channels, c.base, c.multipliers, c.attention, c.dropout, none,
        block=ConvNeXtBlock if c.convnext else ResBlock,
        attention=LinearAttention if c.linear else SelfAttention,
    )  # fmt: skip


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
