"""What ends a run before its time: a signal, too little memory, a process that died."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from .processes import rank, world


@contextmanager
def signals(on: bool) -> Iterator[list[int]]:
    """Notes signals that ask the run to end in the list it yields.

    These are SIGINT and SIGTERM, and SIGHUP and SIGUSR1, which batch systems send,
    unless the caller handles them. A second one ends the process at once, but not
    under torchrun, which sends a signal of its own after the terminal's: with several
    processes all signals are noted, and the run is still saved.
    """
    caught: list[int] = []
    if not on or threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(number: int, _: Any) -> None:
        name = signal.Signals(number).name
        if rank() == 0:  # not print: it may have been interrupted itself
            with contextlib.suppress(OSError):  # nobody may be there to read it
                os.write(2, f"\n{name}: finishing the step and saving\n".encode())
        caught.append(number)
        if world() == 1:
            restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    others = [getattr(signal, name, None) for name in ("SIGHUP", "SIGUSR1")]
    free = [n for n in others if n and signal.getsignal(n) == signal.SIG_DFL]
    numbers = [signal.SIGINT, signal.SIGTERM, *free]
    before = {n: signal.signal(n, note) for n in numbers}
    try:
        yield caught
    finally:
        restore()


def out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out: on a CPU PyTorch raises a plain RuntimeError for it."""
    return isinstance(error, torch.OutOfMemoryError) or "alloc_cpu" in str(error)


@contextmanager
def trouble_explained(batch: int, micro_batch: int | None) -> Iterator[None]:
    """Out of memory: which flag to lower. Another process gone: how to go on."""
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        if out_of_memory(error):
            now = min(micro_batch or batch, batch // world())
            pictures, lower = "one picture", "--batch"
            if now > 1:
                pictures = f"{now} pictures"
                lower = f"--micro-batch (the batch stays {batch}: gradients add up)"
            raise torch.OutOfMemoryError(
                f"out of memory with {pictures} at a time; give a lower {lower}, or a "
                f"narrower network. PyTorch said: {said}"
            ) from error
        if isinstance(error, dist.DistError) or (world() > 1 and "onnection" in said):
            raise ConnectionError(
                f"process {rank()} lost touch with the {world() - 1} others, so one of "
                f"them has ended; go on from the last checkpoint with --resume "
                f"(torchrun --max-restarts=N does so by itself). PyTorch said: {said}"
            ) from error
        raise
