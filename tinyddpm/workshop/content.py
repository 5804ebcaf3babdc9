"""What a checkpoint file must hold; all of it is checked when the file is read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

KINDS: dict[str, Any] = {
    "step": int,
    "config": dict,
    "network": tuple | list | None,
    "shape": tuple | list,
    "beta": Tensor,
    "weights": dict,
    "ema": dict,
    "optimiser": dict,
    "told": Tensor,
    "data": str | None,
}
MOMENTS = ("exp_avg", "exp_avg_sq")
ADAM = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False}
ADAM |= {"maximize": False, "capturable": False, "differentiable": False}


def refuse_content(path: Path, saved: Any, size: int) -> None:
    """ValueError, in one sentence, unless `saved` is what a run wrote.

    Args:
        path: the file, to be named.
        saved: what the file of `size` bytes holds, without its format.
    """
    for problem in _problems(saved, size):
        raise ValueError(
            f"{path} has the form of a checkpoint, but {problem}; it was not written "
            f"by a run of tinyddpm, or was changed since: go on from a good copy"
        )


def _problems(saved: Any, size: int) -> Iterator[str]:
    if not isinstance(saved, dict):
        yield f"it holds {_named(saved)} in place of its parts"
        return
    missing, unknown = KINDS.keys() - saved.keys(), saved.keys() - KINDS.keys()
    if missing or unknown:
        yield f"it lacks {sorted(missing)} and adds {sorted(map(str, unknown))}"
        return
    for name, kind in KINDS.items():
        if not isinstance(saved[name], kind) or isinstance(saved[name], bool):
            yield f"its {name} is {_named(saved[name])}"
            return
    for name in ("config", "network", "shape"):
        if not _plain(saved[name]):
            yield f"its {name} holds more than plain values"
            return
    if saved["step"] < 0:
        yield f"its step is {saved['step']}"
    for name in ("config", "weights", "ema", "optimiser"):
        if not all(isinstance(key, str) for key in saved[name]):
            yield f"its {name} has names that are not strings"
    network = saved["network"]
    if network is not None and not (
        len(network) == 2
        and isinstance(network[0], str)
        and isinstance(network[1], dict)
        and all(isinstance(key, str) for key in network[1])
    ):
        yield f"its network is {network!r}"
    if not saved["shape"] or not all(type(n) is int and n > 0 for n in saved["shape"]):
        yield f"its shape is {saved['shape']!r}"
    yield from _problems_of_tensors(saved, size)
    yield from _problems_of_adam(saved)


def _problems_of_tensors(saved: dict[str, Any], size: int) -> Iterator[str]:
    beta = saved["beta"]
    row = beta.dtype == torch.float64 and beta.ndim == 1 and len(beta) > 0
    if not row or not _lies_in(beta, size):
        yield f"its beta is {_named(beta)}"
        return
    if beta.device.type != "meta" and not bool(((beta > 0) & (beta < 1)).all()):
        yield "its beta does not lie between 0 and 1"
    told = saved["told"]
    if told.dtype != torch.float64 or told.ndim != 2 or told.shape[1] != 13:
        yield f"its told is {_named(told)}"
    for name in ("weights", "ema"):
        for key, value in saved[name].items():
            fits = isinstance(value, Tensor) and _lies_in(value, size)
            # a network that is not ours may have buffers of whole numbers
            if not fits or not (saved["network"] is None or value.is_floating_point()):
                yield f"its {name}[{key!r}] is {_named(value)}"
    theta, average = saved["weights"], saved["ema"]
    if theta.keys() != average.keys():
        yield "its moving average has other weights than the network"
        return
    for key, value in theta.items():
        if (value.shape, value.dtype) != (average[key].shape, average[key].dtype):
            yield f"its ema[{key!r}] is {_named(average[key])}, not {_named(value)}"


def _problems_of_adam(saved: dict[str, Any]) -> Iterator[str]:
    adam = saved["optimiser"]
    state, groups = adam.get("state"), adam.get("param_groups")
    if set(adam) != {"state", "param_groups"} or not isinstance(state, dict):
        yield "its optimiser is not Adam's state"
        return
    if not (
        isinstance(groups, list)
        and all(
            isinstance(g, dict) and isinstance(g.get("params"), list) for g in groups
        )
        and _plain(groups)
        and all(g.get(name) == value for g in groups for name, value in ADAM.items())
    ):
        yield f"its optimiser's groups are not those of Adam with {ADAM}"
        return
    numbers = [number for g in groups for number in g["params"]]
    if numbers != list(range(len(numbers))) or not state.keys() <= set(numbers):
        yield "its optimiser's parameters are not numbered as Adam numbers them"
        return
    shapes = iter([x.shape for x in saved["weights"].values()])
    for key, kept in state.items():
        fits = (
            isinstance(kept, dict)
            and {"step", *MOMENTS} <= kept.keys()
            and all(isinstance(x, Tensor) for x in kept.values())
            and all(kept[m].is_floating_point() for m in ("step", *MOMENTS))
            and kept["step"].numel() == 1
            and kept["exp_avg"].shape == kept["exp_avg_sq"].shape
        )
        if not fits or kept["exp_avg"].shape not in shapes:  # in the weights' order
            yield f"its optimiser has no moments of parameter {key}"
            return
    if saved["step"] > 0 and not state:
        yield f"its optimiser has no state after step {saved['step']}"


def _plain(value: Any) -> bool:
    """Whether it is made of numbers, strings, None, and rows and dictionaries of them.

    To compare these is always possible; a tensor that equals in part is neither.
    """
    if isinstance(value, dict):
        return all(_plain(x) for x in value.values())
    if isinstance(value, list | tuple):
        return all(_plain(x) for x in value)
    return value is None or isinstance(value, int | float | str)


def _lies_in(x: Tensor, size: int) -> bool:
    """Whether a file of `size` bytes can hold these numbers: strides repeat none."""
    return x.layout is torch.strided and x.numel() * x.element_size() <= size


def _named(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    return f"{value!r:.60}" if isinstance(value, int | str) else type(value).__name__
