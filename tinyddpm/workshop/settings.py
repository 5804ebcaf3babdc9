"""The settings of a run as one frozen dataclass, and flags made from its fields.

A field is annotated `Annotated[type, "meaning (source)"]`; the flag takes its name, its
type, its default and its help from there. Each script has a subclass of its own.
"""

import argparse
import dataclasses
import math
import os
import types
import typing
from typing import Annotated, Any, ClassVar, TypeVar

import torch

from ..train import Hyperparameters

C = TypeVar("C")


@dataclasses.dataclass(frozen=True)
class TrainConfig(Hyperparameters):
    """The settings of a run: Algorithm 1's, and those of what is around it.

    Numbers of other libraries' types become plain ones, so that a checkpoint can hold
    them. Raises: ValueError that names the setting.
    """

    log_every: Annotated[int, "steps between looks at the loss"] = 100
    save_every: Annotated[int, "steps between checkpoints"] = 5_000
    micro_batch: Annotated[int | None, "so many at a time; if not given, all"] = None
    bf16: Annotated[bool | None, "compute in bfloat16; if not given, where fast"] = None
    channels_last: Annotated[bool | None, "channels innermost in memory"] = None
    compile: Annotated[bool | None, "torch.compile; if not given, on a GPU"] = None

    # What a resumed run may set anew: the run is then the same to rounding, but for the
    # dropout masks, which micro-batches and a compiled network draw in another order.
    # All else must be as in the checkpoint.
    may_change: ClassVar[tuple[str, ...]] = (
        *("steps", "log_every", "save_every", "lr", "max_norm"),
        *("micro_batch", "channels_last", "compile"),
    )

    def __post_init__(self) -> None:
        make_plain(self)
        for name in ("steps", "batch", "log_every", "save_every", "micro_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("warmup", "lr", "lr_end"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {value}")
        if not self.max_norm > 0:
            raise ValueError(
                f"max_norm must be above 0 (inf clips nothing), got {self.max_norm}"
            )
        if not 0 <= self.seed < 2**62:
            raise ValueError(f"seed must lie in 0..2^62 - 1, got {self.seed}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema}")
        if self.save_every % self.log_every:
            raise ValueError(
                f"save_every must be a multiple of log_every, at which the loss is "
                f"looked at, got {self.save_every} and {self.log_every}"
            )

    def fixed(self) -> dict[str, Any]:
        """The settings that a resumed run must share with its checkpoint."""
        free = set(self.may_change) - ({"steps"} if self.lr_end is not None else set())
        every = dataclasses.asdict(self)
        return {name: value for name, value in every.items() if name not in free}


def make_plain(config: Any) -> None:
    """Makes each field of the frozen dataclass a plain value of its annotated type.

    Raises: ValueError that names the field, as `plain` does.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = plain(field.name, hints[field.name], getattr(config, field.name))
        object.__setattr__(config, field.name, value)


def plain(name: str, kind: Any, value: Any) -> Any:
    """The same value as Python's own int, float, bool, str or tuple of them.

    NumPy's and torch's numbers become Python's, and a whole float becomes an int where
    one is expected. ValueError, with the setting's name, for what is not of that kind.
    """
    try:
        return _plain(kind, value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        wanted = str(kind if typing.get_args(kind) else kind.__name__)
        raise ValueError(
            f"{name} must be of type {wanted}, got {value!r} of type "
            f"{type(value).__name__}"
        ) from None


def _plain(kind: Any, value: Any) -> Any:
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        (kind,) = (k for k in typing.get_args(kind) if k is not types.NoneType)
    if kind is str and isinstance(value, str | os.PathLike):
        return str(value)
    if isinstance(value, str | bytes | complex):
        raise TypeError
    if typing.get_origin(kind) is tuple:
        return tuple(_plain(typing.get_args(kind)[0], item) for item in value)
    if (kind is bool and value in (0, 1)) or (kind is int and value == int(value)):
        return kind(value)
    if kind in (str, bool, int):
        raise TypeError
    return float(value) if kind is float else value


def flags(config: Any, description: str) -> argparse.ArgumentParser:
    """A parser with one --flag for each field of the dataclass instance `config`.

    Underscores become hyphens, bool and bool | None become --flag / --no-flag, a tuple
    takes its numbers one after the other. The defaults are the instance's values.
    """
    parser = argparse.ArgumentParser(
        description=description,
        usage="%(prog)s [flags]",  # all of them would hide an error's own line
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        kind, meaning = typing.get_args(hints[field.name])
        default = getattr(config, field.name)
        settings: dict[str, Any] = {
            "help": f"{meaning}{_shown(default)}".replace("%", "%%"),
            "default": default,
        }
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", **settings, **_parsing(kind)
        )
    if any(field.name == "max_norm" for field in dataclasses.fields(config)):
        parser.add_argument("--clip", action=Renamed, new="--max-norm")
    return parser


class Renamed(argparse.Action):
    """A flag of an earlier version: it says its new name, and does nothing else."""

    def __init__(self, option_strings: list[str], dest: str, new: str) -> None:
        super().__init__(option_strings, dest, nargs="?", help=argparse.SUPPRESS)
        self.new = new

    def __call__(
        self, parser: argparse.ArgumentParser, _: Any, __: Any, flag: str | None = None
    ) -> None:
        parser.error(f"{flag} is now called {self.new}")


def from_flags(config_class: type[C], args: argparse.Namespace) -> C:
    """The dataclass filled from what its parser read; other flags are left alone."""
    names = [field.name for field in dataclasses.fields(config_class)]  # type: ignore[arg-type]
    values = {name: getattr(args, name) for name in names}
    return config_class(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    )


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is the GPU if there is one, else the CPU.

    Raises:
        ValueError: for a name that torch does not know, or CUDA asked for and absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"--device must be auto, cpu, cuda or cuda:<number>, got {name!r}"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"--device {name} was asked for, but PyTorch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices here; install a CUDA build of "
            f"PyTorch and its driver, or give --device cpu"
        )
    return device


def _parsing(kind: Any) -> dict[str, Any]:
    """How argparse reads a field of this type; X | None is read as an X."""
    options = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        (kind,) = (option for option in options if option is not types.NoneType)
    if typing.get_origin(kind) is tuple:
        return {"nargs": "*"} | _parsing(typing.get_args(kind)[0])
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    return {"type": kind, "metavar": kind.__name__.upper()}


def _shown(default: Any) -> str:
    """The end of a flag's help; None is what the help itself speaks of."""
    if isinstance(default, tuple):
        default = " ".join(map(str, default)) or None
    return "" if default is None else f"; default: {default}"
