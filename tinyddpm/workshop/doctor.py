"""`python -m tinyddpm doctor`: one screen about this machine, measured in seconds.

What it is, how fast it multiplies matrices, what share of that rate a training step of
each network reaches, what the scripts would choose here, and what to change.
"""

import importlib.util
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..mlp import MLP
from ..schedule import linear_schedule
from ..train import L_simple
from ..unet import UNet
from .machine import (
    cpu_name,
    default_precision,
    fastest,
    instruction_sets,
    memory,
    name,
    slow_bf16_ratio,
)
from .settings import pick_device
from .speed import fast_layers

WIDTH = 80  # columns of the screen
STEPS, BATCH = 800_000, 128  # the paper's run (App. B)
GIB = 2**30
# Bytes that training the paper's network takes in float32: weights, gradients, average
# and Adam's two moments; and a picture's activations, as the peak grew from 2 to 8.
FIXED, A_PICTURE = 5 * 4 * 35_746_307, 90 * 2**20


@dataclass(frozen=True)
class Step:
    """A forward and a backward pass of one network, measured.

    Attributes:
        pictures: in a batch.
        seconds: of the two passes. (Adam's update is left out: it takes as long for
            one picture as for many.)
        flops: floating-point operations of the two passes.
    """

    pictures: int
    seconds: float
    flops: float


def doctor(device_name: str = "auto", seconds: float = 6.0) -> str:
    """The screen: at most 24 lines of at most 80 columns, in ASCII.

    Args:
        device_name: as of the flag --device.
        seconds: to measure in, about. More serve a slow machine; importing PyTorch is
            not counted.
    Raises: ValueError for a device that is not there.
    """
    end = time.perf_counter() + seconds
    device = pick_device(device_name)
    with _threads_for(_load()):
        lines, days = _measured(device, end)
    lines += what_to_change(device, days)
    shown = [line[:WIDTH].rstrip() for line in lines[:24]]
    return "\n".join(shown).encode("ascii", "replace").decode("ascii")


def _measured(device: torch.device, end: float) -> tuple[list[str], float]:
    """The lines of figures, got until `end`, and the days of the paper's run."""
    bf16, why = default_precision(device)
    rates = {on: product_rate(device, on) for on in (False, True)}
    products = [f"{name(on)} {rates[on] / 1e9:,.0f} GFLOP/s" for on in rates]
    lines = [
        *_what_it_is(device),
        f"scripts   on {device}, in {name(bf16)}: {why}",
        f"products  of matrices: {', '.join(products)}",
    ]
    if device.type == "cpu":
        lines.append(
            f"          a convolution in bfloat16 takes {slow_bf16_ratio():.2f} times "
            f"as long as in float32"
        )
    lines += ["", _row("forward, backward", "in", "pictures", "ms", "GFLOP/s", "share")]
    networks: list[tuple[str, Callable[[], nn.Module], int, bool, int]] = [
        ("the toy", lambda: MLP((3, 8, 8)), 8, False, 512),
        ("base 32", lambda: UNet(3, 32, (1, 2, 2), (2,)), 32, bf16, 16),
        ("the paper's network", UNet, 32, bf16, BATCH),
    ]
    for i, (title, make, size, on, largest) in enumerate(networks):
        net = fast_layers(make()).to(device)
        left = (end - time.perf_counter()) / (len(networks) - i)
        step = measure(net, (3, size, size), on, largest, left)
        speed = step.flops / step.seconds
        lines.append(
            _row(
                *(title, name(on), str(step.pictures), f"{1e3 * step.seconds:,.1f}"),
                *(f"{speed / 1e9:,.0f}", f"{speed / rates[on]:.0%}"),
            )
        )
    days = step.seconds / step.pictures * BATCH * STEPS / 86400
    lines += [
        "(share: of the rate of products in the same precision)",
        f"The paper's {STEPS:,} steps of {BATCH} pictures would take {days:,.0f} days.",
        "",
    ]
    return lines, days


@contextmanager
def _threads_for(load: float) -> Iterator[None]:
    """One thread where other work keeps all processors busy.

    Several would wait for each other most of the time, ten times as long as they work.
    """
    before = torch.get_num_threads()
    if load > _processors():
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _load() -> float:
    """How many processes have wanted to run in the last minute; 0 on Windows."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _row(network: str, *cells: str) -> str:
    widths = (10, 10, 11, 10, 7)
    return f"{network:20}" + "".join(
        f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)
    )


def _what_it_is(device: torch.device) -> list[str]:
    sets = instruction_sets()
    gpu = "none that PyTorch sees"
    if torch.cuda.is_available():
        gpu = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    room = _room(device)
    size = "unknown" if room is None else "{:.1f} GiB free of {:.1f} GiB".format(
        *(bytes_ / GIB for bytes_ in room)
    )  # fmt: skip
    return [
        f"torch     {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}",
        f"CPU       {cpu_name()}",
        f"          {', '.join(sets) if sets else 'instruction sets not known'}; "
        f"threads: {torch.get_num_threads()} on {_processors()} processors",
        f"GPU       {gpu}",
        f"memory    {size}",
    ]


def _room(device: torch.device) -> tuple[int, int] | None:
    """Bytes free and in all, of the GPU or of the machine."""
    return torch.cuda.mem_get_info(device) if device.type == "cuda" else memory()


def _processors() -> int:
    """How many this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def product_rate(device: torch.device, bf16: bool) -> float:
    """Floating-point operations a second in the product of two square matrices.

    Their size doubles from 256 as long as a product takes less than 20 ms (or 2 on a
    GPU, which needs larger ones); the best rate of all sizes counts.
    """
    dtype = torch.bfloat16 if bf16 else torch.float32
    rate, n, largest = 0.0, 256, 2048 if device.type == "cpu" else 8192
    while n <= largest:
        a = torch.ones(n, n, dtype=dtype, device=device)

        def product(a: Tensor = a) -> None:
            torch.mm(a, a)
            _wait(device)

        seconds = fastest(product, 4, 0.1)
        rate = max(rate, 2 * n**3 / seconds)
        if seconds > (0.02 if device.type == "cpu" else 0.002):
            break
        n *= 2
    return rate


def measure(
    net: nn.Module, shape: tuple[int, ...], bf16: bool, largest: int, seconds: float
) -> Step:
    """Forward and backward pass of `net`, on up to `largest` pictures of `shape`.

    On as many as `seconds` leave time for. On a GPU the network is not compiled, as
    the scripts' is.
    """
    device, s = next(net.parameters()).device, linear_schedule(1000)

    def time_of(B: int) -> float:
        x_0 = torch.zeros(B, *shape, device=device)
        eps, t = torch.ones_like(x_0), torch.ones(B, dtype=torch.long, device=device)
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = L_simple(s, net, x_0, t, eps)
        loss.backward()  # type: ignore[no-untyped-call]
        _wait(device)
        return time.perf_counter() - began

    with FlopCounterMode(display=False) as counter:
        time_of(
            1
        )  # counted, a product and its sum as two; and what runs first prepares
    end = time.perf_counter() + seconds
    B, least = 1, time_of(1)
    while largest > B and time.perf_counter() + 2 * 4 * least < end:
        B = min(largest, 4 * B)
        time_of(B)
        least = time_of(B)
    while time.perf_counter() + least < end:  # other work can only add to the time
        least = min(least, time_of(B))
        if least < seconds / 100:
            end = min(end, time.perf_counter() + seconds / 4)
    return Step(B, least, B * counter.get_total_flops())


def what_to_change(device: torch.device, days: float) -> list[str]:
    """Lines that each name something to do; one that says so if there is nothing.

    Args:
        days: that the paper's run would take.
    """
    said = []
    load, threads, processors = _load(), torch.get_num_threads(), _processors()
    if load > processors:
        said.append(
            f"- Other work slows this machine: load {load:.1f} on {processors} "
            f"processors; ask again later."
        )
    if threads < processors // 2:
        said.append(
            f"- PyTorch uses {threads} of {processors} processors: is OMP_NUM_THREADS "
            f"set?"
        )
    if not torch.cuda.is_available() and shutil.which("nvidia-smi"):
        said.append(
            "- There is an NVIDIA driver: a CUDA build of PyTorch may use the GPU."
        )
    needs = {"matplotlib": "matplotlib", "pillow": "PIL", "tqdm": "tqdm"}
    missing = [of for of in needs if importlib.util.find_spec(needs[of]) is None]
    if missing:
        said.append(
            f"- The scripts need {', '.join(missing)}: pip install '.[scripts]'."
        )
    room = _room(device)
    if room is not None and room[0] < FIXED + BATCH * A_PICTURE:
        fits = max(1, int((0.8 * room[0] - FIXED) / A_PICTURE))
        said.append(
            f"- The paper's batch needs {(FIXED + BATCH * A_PICTURE) / GIB:.0f} GiB: "
            f"give --micro-batch {2 ** (fits.bit_length() - 1)} (the batch stays)."
        )
    if days > 30:
        said.append(
            "- Leave the paper's run to a GPU: the scripts' short settings suit this."
        )
    return said or ["Nothing needs to change."]


def _wait(device: torch.device) -> None:
    """Returns when what was asked of a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
