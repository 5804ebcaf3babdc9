"""What the scripts that train a U-Net on pictures share: settings, flags, samples."""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from torch import Generator, Tensor, nn

from .checkpoint import load_checkpoint
from .drawing import out_of_range
from .interrupts import out_of_memory
from .machine import choose_precision
from .processes import refuse_several
from .settings import TrainConfig, flags, from_flags
from .speed import faster
from .state import tell


@dataclass(frozen=True)
class PictureConfig(TrainConfig):
    """Settings beside Algorithm 1's. The defaults are the paper's, for CIFAR-10."""

    data: Annotated[str, "where the pictures are"] = "data"
    out: Annotated[str, "folder for what is written"] = "out"
    device: Annotated[str, "auto, cpu, cuda or cuda:<number>"] = "auto"
    T: Annotated[int, "steps of the forward process (section 4)"] = 1000
    base: Annotated[int, "channels at full size (App. B)"] = 128
    multipliers: Annotated[tuple[int, ...], "channels in bases (App. B)"] = (1, 2, 2, 2)
    attention: Annotated[tuple[int, ...], "levels with it, 0 is full size"] = (1,)
    dropout: Annotated[float, "in every block (App. B)"] = 0.1
    samples: Annotated[int, "pictures in a grid"] = 64
    clip_x_0: Annotated[bool, "clamp x̂_0 in samples (authors' code)"] = False

    may_change = (
        *TrainConfig.may_change,
        "data",
        "out",
        "device",
        "samples",
        "clip_x_0",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")
        if self.T <= 20:
            raise ValueError(
                f"T must be above 20, got {self.T}: the paper's end points are scaled "
                f"by 1000/T, and beta_T would not be below 1"
            )


# Minutes on two cores in place of hours on a GPU. Each preset adds what its data ask.
SHORT: dict[str, Any] = {
    "T": 250,  # a sample takes as many calls of the network
    "base": 32,
    "dropout": 0.0,  # too short a run to overfit
    "lr": 1.5e-3,  # a narrow network bears more than App. B's 2e-4,
    "lr_end": 2e-5,  # and settles where the rate falls
    "warmup": 100,
    "log_every": 20,
    "save_every": 200,
    "clip_x_0": True,  # not in Algorithm 2: else many samples run away to one colour
}

Config = TypeVar("Config", bound=PictureConfig)


def command_line(
    argv: list[str],
    description: str | None,
    config: Config,
    presets: Mapping[str, Config],
    more: Mapping[str, dict[str, Any]] | None = None,
    together: bool = False,
    prog: str | None = None,
) -> tuple[Config, argparse.Namespace]:
    """The settings that `argv` asks for, and the flags beside them.

    Args:
        config: the defaults.
        presets: other defaults, by the flag that asks for them.
        more: further flags, as argparse takes them; --resume is always one.
        together: whether the script can be started by torchrun.
        prog: what is typed to start it, where that is not the file's name.
    """
    if not together:
        refuse_several()
    asked = [preset for flag, preset in presets.items() if flag in argv]
    parser = flags(asked[0] if asked else config, description or "")
    if prog:
        parser.prog, parser.usage = prog, "%(prog)s PATH [flags]"
    for flag in presets:
        parser.add_argument(flag, action="store_true", help="other defaults, see above")
    parser.add_argument("--resume", action="store_true", help="go on from --out")
    for flag, settings in (more or {}).items():
        parser.add_argument(flag, **settings)
    args = parser.parse_args(argv)
    return from_flags(type(config), args), args


def settled(c: Config, device: torch.device, resume: bool) -> Config:
    """The same settings, with the precision that this machine is fast in.

    A run that is resumed keeps its own, on whatever machine. What is chosen is told.
    """
    path, kept = Path(c.out) / "checkpoint.pt", None
    if resume and path.exists():
        kept = load_checkpoint(path).config.get("bf16")
        if kept is None:  # of an earlier version, which left it open
            return c
    bf16, sentence = choose_precision(device, c.bf16, kept)
    tell(sentence)
    return replace(c, bf16=bf16)


@contextmanager
def sampling(c: PictureConfig, ema: nn.Module) -> Iterator[tuple[nn.Module, Generator]]:
    """What a grid of samples is drawn with: the network made faster, and a generator.

    The network computes in bfloat16 if training did; it is not compiled, since that
    takes longer than a grid. The generator's seed is the run's.

    Raises: MemoryError where the samples do not fit into memory.
    """
    device = next(ema.parameters()).device
    try:
        yield (
            faster(ema, c.bf16, compiled=False),
            Generator(device).manual_seed(c.seed),
        )
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise MemoryError(
            f"out of memory while drawing samples; lower --samples, now {c.samples}, "
            f"and go on with --resume. PyTorch said: {error}"
        ) from error


def say_out_of_range(x_0: Tensor) -> None:
    """Tells of samples (B, C, H, W) that left [-1, 1], since a grid clamps them."""
    beyond = x_0.abs().flatten(1).amax(1) - 1
    if outside := int((beyond > 0.5).sum()):
        tell(out_of_range(outside, len(x_0), float(beyond.max())))
