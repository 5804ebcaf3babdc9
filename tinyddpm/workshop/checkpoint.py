"""Checkpoints: one file with all that a run needs to go on, and to be sampled from.

The file is what torch.save writes, followed by the BLAKE2b digest of those bytes, so
that no damaged byte goes unseen; torch.load(path, weights_only=True) reads it too.
"""

import hashlib
import io
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from ..beyond.convnext import ConvNeXtBlock, LinearAttention
from ..mlp import MLP
from ..unet import ResBlock, SelfAttention, UNet
from .content import refuse_content
from .files import file_size, write_whole
from .settings import plain

FORMAT = "tinyddpm checkpoint 2"
FIRST = "tinyddpm checkpoint 1"  # had config["clip"] for "max_norm", and no `told`
DIGEST = 32  # bytes
CLASSES: dict[str, type[nn.Module]] = {"MLP": MLP, "UNet": UNet}
ARGUMENTS: dict[str, dict[str, Any]] = {  # of their constructors, as they are kept
    "MLP": {"shape": tuple[int, ...], "width": int, "depth": int, "emb": int},
    "UNet": {
        "in_channels": int,
        "base": int,
        "multipliers": tuple[int, ...],
        "attention_levels": tuple[int, ...],
        "dropout": float,
        "num_classes": int | None,
    },
}
# A UNet's further arguments, which are kept by name where they are not the paper's.
PARTS: dict[str, dict[str, type[nn.Module]]] = {
    "block": {"ResBlock": ResBlock, "ConvNeXtBlock": ConvNeXtBlock},
    "attention": {
        "SelfAttention": SelfAttention,
        "LinearAttention": LinearAttention,
    },
}
THE_PAPERS = ("ResBlock", "SelfAttention")


@dataclass(frozen=True)
class Checkpoint:
    """What the file holds: plain values and tensors, so that no pickle is ever run.

    Attributes:
        step: the gradient steps done.
        config: the run's settings, field by field.
        network: (class name, its constructor's arguments), or None for a network that
            `description` does not know; `rebuild` then cannot make it.
        shape: (C, H, W) of the pictures.
        beta: β_1..β_T, (T,), float64: Schedule(beta) is the run's schedule.
        weights, ema: state_dicts of the network and of its moving average.
        optimiser: Adam's state_dict.
        told: the rows of `state.Record.told`, (n, 13), float64.
        data: a digest of the first batch that the run's data give
            (`draws.CheckedDraw`), or None.
    """

    step: int
    config: dict[str, Any]
    network: tuple[str, dict[str, Any]] | None
    shape: tuple[int, ...]
    beta: Tensor
    weights: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimiser: dict[str, Any]
    told: Tensor
    data: str | None


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Writes the file under a temporary name, to the disk, then renames it.

    Killed, or out of room, at any moment, it leaves the file that was there as it was.

    Raises: nothing is written then.
        FloatingPointError: if a number in it is not finite.
        ValueError: if it holds what `load_checkpoint` would not read.
        OSError: where the file cannot be written.
    """
    path = Path(path)
    _refuse_non_finite(checkpoint)
    buffer = io.BytesIO()
    parts = {
        field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)
    }
    torch.save({"format": FORMAT} | parts, buffer)
    content = buffer.getbuffer()
    try:
        buffer.seek(0)
        _parts(path, buffer, len(content), "meta")
    except ValueError as error:
        raise ValueError(
            f"nothing was written, since it could not be read again: {error}"
        ) from error
    with write_whole(path) as file:
        file.write(content)
        file.write(hashlib.blake2b(content, digest_size=DIGEST).digest())


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads the file, onto the CPU; it takes as much memory as the file is large.

    Raises:
        OSError: where there is no such file.
        ValueError: for a file that is damaged, cut short, or of another format.
    """
    size = file_size(path) - DIGEST
    with open(path, "rb") as file:
        found, left = hashlib.blake2b(digest_size=DIGEST), max(0, size)
        zipped = file.read(2) == b"PK"  # else it is not torch's, however long
        file.seek(0)
        while zipped and (piece := file.read(min(left, 1 << 20))):
            found.update(piece)
            left -= len(piece)
        if not zipped or found.digest() != file.read(DIGEST):
            raise ValueError(
                f"{path} is not a whole checkpoint: it is cut short or damaged (its "
                f"{size + DIGEST:,} bytes do not fit their check sum), or another "
                f"program wrote it; move it away, and start again or go on from a good "
                f"copy"
            )
        file.seek(0)  # torch reads each tensor from the file into its own place
        return Checkpoint(**_parts(Path(path), file, size, "cpu"))


def _parts(path: Path, body: BinaryIO, size: int, device: str) -> dict[str, Any]:
    """What torch.save wrote, if it is a checkpoint; on "meta" no number is read."""
    try:
        saved = torch.load(body, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than numbers and plain values; no code is run from a "
            f"file, so it was not read"
        ) from error
    except Exception as error:  # torch raises several kinds for bytes that are no file
        raise ValueError(f"{path} cannot be read as a checkpoint: {error}") from error
    if not isinstance(saved, dict):
        raise ValueError(f"{path} holds a {type(saved).__name__}, not a checkpoint")
    version = saved.pop("format", None)
    if version == FIRST and isinstance(saved.get("config"), dict):
        saved["config"]["max_norm"] = saved["config"].pop("clip", 1.0)
        saved["data"] = None
        saved["told"] = torch.empty(0, 13, dtype=torch.float64)
    elif version != FORMAT:
        raise ValueError(
            f"{path} is a checkpoint of another version, this one reads "
            f"{FORMAT!r}; use the version of tinyddpm that wrote it"
        )
    refuse_content(path, saved, size)
    return saved


def rebuild(checkpoint: Checkpoint, weights: str = "ema") -> nn.Module:
    """The network of a checkpoint, on the CPU, with dropout off.

    Args:
        weights: "ema", the moving average (App. B samples from it), or "weights".
    """
    if weights not in ("ema", "weights"):
        raise ValueError(f"weights must be 'ema' or 'weights', got {weights!r}")
    if checkpoint.network is None:
        raise ValueError(
            "this checkpoint does not say how its network is made: that is known of an "
            "MLP, and of a UNet with blocks and attention of tinyddpm; make the "
            "network in Python and load `checkpoint.ema` into it"
        )
    name, arguments = checkpoint.network
    if name not in CLASSES:
        raise ValueError(f"networks to rebuild are {sorted(CLASSES)}, not {name!r}")
    found = getattr(checkpoint, weights)
    try:
        parts = {n: PARTS[n][arguments[n]] for n in PARTS.keys() & arguments.keys()}
        whole = arguments | parts
        _refuse_huge(arguments, sum(x.numel() for x in found.values()))
        with torch.device("meta"):  # names and shapes, before there is memory for them
            CLASSES[name](**whole).load_state_dict(found, assign=True)
        net = CLASSES[name](**whole)
        net.load_state_dict(found)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"the weights of this checkpoint are not those of {name}(**{arguments}), "
            f"which it says they are: {' '.join(str(error).split())}"
        ) from error
    return net.eval()


def _refuse_huge(arguments: dict[str, Any], most: int) -> None:
    """ValueError for a network with more layers or channels than there are weights."""
    for name, value in arguments.items():
        for number in value if isinstance(value, tuple | list) else (value,):
            if isinstance(number, int) and number > most:
                raise ValueError(f"{name} is {value}, for {most:,} weights")


def description(net: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """What `Checkpoint.network` keeps: the class and its constructor's arguments.

    None for a class that is not ours, and for a U-Net of blocks that are not ours.
    """
    name, parts = type(net).__name__, {}
    if type(net) is UNet:
        found = {"block": type(net.middle1), "attention": type(net.middle_attention)}
        parts = {n: part.__name__ for n, part in found.items()}
        if any(PARTS[n].get(parts[n]) is not part for n, part in found.items()):
            return None
    elif type(net) is not MLP:
        return None
    kinds = ARGUMENTS[name].items()
    kept = {n: plain(f"{name}'s {n}", kind, getattr(net, n)) for n, kind in kinds}
    return name, kept | {n: x for n, x in parts.items() if x not in THE_PAPERS}


def refuse_another_run(
    path: Path, found: Checkpoint, now: Checkpoint, fixed: set[str]
) -> None:
    """ValueError, naming what differs, unless `now` may go on from `found`.

    Args:
        found, now: what the file holds, and the run that would go on from it.
        fixed: the names of the settings that must agree.
    """
    old, new = found.config, now.config
    differ = [
        f"{name} (there {old.get(name)}, here {new.get(name)})"
        for name in sorted(fixed | (old.keys() - new.keys()))
        if old.get(name) != new.get(name)
    ]
    differ += [
        f"the {part} (there {getattr(found, part)}, here {getattr(now, part)})"
        for part in ("network", "shape")
        if getattr(found, part) != getattr(now, part)
    ]
    kinds = [(x.data or ":").split(":")[0] for x in (found, now)]
    alike = kinds[0] == kinds[1] and old.get("batch") == new.get("batch")
    if alike and found.shape == now.shape and found.data != now.data:
        differ.append(
            "the data: a first batch drawn from them does not hold the same pictures"
        )
    if not torch.equal(found.beta, now.beta):
        differ.append("the schedule's beta")
    sizes = [{k: v.shape for k, v in x.weights.items()} for x in (found, now)]
    if sizes[0] != sizes[1]:
        differ.append("the names or shapes of the weights")
    if differ:
        raise ValueError(
            f"{path} is of another run, which differs in {', '.join(differ)}; go on "
            f"with the settings it has, or give another folder"
        )


def _refuse_non_finite(checkpoint: Checkpoint) -> None:
    states = {
        "weights": checkpoint.weights,
        "ema": checkpoint.ema,
        "optimiser": checkpoint.optimiser["state"],
    }
    for part, state in states.items():
        for name, tensor in _tensors(state):
            if not bool(tensor.isfinite().all()):
                raise FloatingPointError(
                    f"after step {checkpoint.step} {part}{name} holds a number that is "
                    f"not finite, so nothing was saved; go on from the last good "
                    f"checkpoint with a lower learning rate"
                )


def _tensors(state: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested dictionaries, with the way to it, "[a][b]"."""
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, dict):
        for key, value in state.items():
            yield from _tensors(value, f"{name}[{key}]")
