"""The state of a run of Algorithm 1: what is kept, resumed, looked at and told."""

import contextlib
import dataclasses
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..schedule import Schedule
from .checkpoint import (
    Checkpoint,
    description,
    load_checkpoint,
    refuse_another_run,
    save_checkpoint,
)
from .draws import CheckedDraw
from .processes import any_process, gather, rank, wait_for_all
from .settings import TrainConfig


def by_tenth(T: int, t: Tensor, values: Tensor) -> list[float]:
    """The mean of `values` over the steps t of each tenth of 1..T, nan where none is.

    The loss is hardest at small t and easy at large t, so that its mean alone says
    little. A table over t = 1..T, say of the lowest loss possible, goes in too.

    Args:
        t, values: the same shape.
    """
    tenth = (t - 1) * 10 // T
    return [float(values[tenth == i].double().mean()) for i in range(10)]


class Record(NamedTuple):
    """What `fit` tells about the steps since it last did.

    Attributes:
        step: the gradient steps done.
        loss: L_simple, the mean over those steps.
        by_tenth: the same by tenths of t (see `by_tenth`).
        ema: the moving average as a network; to sample from it changes nothing.
        saved: whether a checkpoint was just made of this step, if there is a file.
        told: a row for each time that `fit` told something, of the whole run, also of
            the part before it was resumed: [step, seconds, loss, *by_tenth].
    """

    step: int
    loss: float
    by_tenth: list[float]
    ema: nn.Module
    saved: bool
    told: list[list[float]]


class State:
    """What changes while Algorithm 1 runs, and the file that it is kept in."""

    def __init__(
        self,
        s: Schedule,
        net: nn.Module,
        ema: nn.Module,
        optimiser: torch.optim.Optimizer,
        config: TrainConfig,
        data: CheckedDraw,
        path: str | Path | None,
    ) -> None:
        self.s, self.net, self.ema, self.optimiser = s, net, ema, optimiser
        self.config, self.data = config, data
        self.path = None if path is None else Path(path)
        self.step, self.saved = 0, -1  # steps done; the last one saved
        self.unread: list[tuple[int, Tensor, Tensor]] = []  # (step, t, loss)
        self.told: list[list[float]] = []  # as in Record
        self.began = time.perf_counter()

    def begin(self, resume: bool, log: Callable[[Record], None] | None) -> None:
        """Goes on from the checkpoint, or saves step 0, so that a folder that cannot
        be written, or a disk too small, shows before any work is done.

        Where the checkpoint is of the last step, `log` gets the last record again.
        """
        if self.path is None:
            return
        exists = self.path.exists()
        if exists and not resume:
            raise FileExistsError(
                f"{self.path} is there already and is not overwritten; go on from it "
                f"with --resume, or give another folder"
            )
        if exists:
            self._restore(load_checkpoint(self.path))
            tell(f"going on from step {self.step} of {self.config.steps}")
        elif resume:
            tell(f"there is no {self.path} to go on from: starting at step 0")
        steps = gather(torch.tensor([self.step]))  # before the file looked for is made
        if bool((steps != self.step).any()):
            raise ValueError(
                f"the processes found {self.path} at different steps, {steps.tolist()} "
                f"(0 where there is none); give a folder that they all share"
            )
        if not exists:
            self._refuse_small_disk()
            self._save()
            wait_for_all()
            if any_process(not self.path.exists()):
                raise ValueError(
                    f"not every process sees {self.path}, which process 0 has just "
                    f"written; give a folder that all machines share"
                )
        elif self.step == self.config.steps and self.told and log and rank() == 0:
            _, _, loss, *tenths = self.told[-1]
            log(Record(self.step, loss, tenths, self.ema, True, self.told))

    def _refuse_small_disk(self) -> None:
        """OSError where the disk cannot hold a later checkpoint beside the one before:
        the weights, their average and Adam's two moments, twice."""
        assert self.path is not None
        folder = self.path.resolve().parent
        while not folder.exists():
            folder = folder.parent
        theta = sum(p.numel() * p.element_size() for p in self.net.parameters())
        need, free = 2 * 4 * theta, shutil.disk_usage(folder).free
        if free < need:
            raise OSError(
                f"{folder} has {free / 2**20:,.0f} MiB free, but two checkpoints of "
                f"this network need {need / 2**20:,.0f}; make room, or give another "
                f"folder"
            )

    def note(self, step: int, t: Tensor, loss: Tensor) -> None:
        """Keeps the loss of each picture on the device: to look would make it wait."""
        self.unread.append((step, t, loss.detach()))

    def end_of_step(
        self, step: int, log: Callable[[Record], None] | None, caught: list[int]
    ) -> None:
        """Looks, saves and tells when it is time, and leaves if a signal came.

        Several processes must leave at the same step, so they agree on it after each.
        """
        self.step, last = step, step == self.config.steps
        stop = any_process(bool(caught))
        if not (stop or last or step % self.config.log_every == 0):
            return
        loss, tenths = self._look()
        seconds = time.perf_counter() - self.began
        self.told.append([float(step), seconds, loss, *tenths])
        saves = stop or last or step % self.config.save_every == 0
        if saves:
            self._save()
        if log is not None and rank() == 0:
            log(Record(step, loss, tenths, self.ema, saves, self.told))
        if stop and not last:
            wait_for_all()
            tell(f"stopped after step {step}; {self._where()}")
            raise SystemExit(128 + (caught or [15])[0])

    def _look(self) -> tuple[float, list[float]]:
        """Fetches the losses since the last look; stops if one is not finite."""
        self.data.refuse_outside()
        steps = self.unread
        t = gather(torch.cat([t for _, t, _ in steps])).cpu()
        loss = gather(torch.cat([loss for _, _, loss in steps])).cpu()
        self.unread = []
        if not bool(loss.isfinite().all()):
            of_process = [step for step, t, _ in steps for _ in t]
            step, i = min(
                (of_process[i % len(of_process)], i)
                for i in (~loss.isfinite()).nonzero().flatten().tolist()
            )
            raise FloatingPointError(
                f"the loss is not finite at step {step}, t = {int(t[i])}; nothing of "
                f"it was saved; {self._where()}"
            )
        finite = torch.stack([p.isfinite().all() for p in self.net.parameters()])
        if not bool(finite.all()):
            raise FloatingPointError(
                f"the weights are not finite after step {self.step}, though the losses "
                f"up to it were; nothing of it was saved; {self._where()}"
            )
        return float(loss.double().mean()), by_tenth(self.s.T, t, loss)

    def _where(self) -> str:
        if self.saved < 0:
            return "there is no checkpoint"
        return f"the last good checkpoint is {self.path}, of step {self.saved}"

    def _snapshot(self) -> Checkpoint:
        return Checkpoint(
            step=self.step,
            config=dataclasses.asdict(self.config),
            network=description(self.net),
            shape=self.data.shape,
            data=self.data.digest,
            beta=self.s.beta[1:].cpu(),
            weights=self.net.state_dict(),
            ema=self.ema.state_dict(),
            optimiser=self.optimiser.state_dict(),
            told=torch.tensor(self.told, dtype=torch.float64).view(-1, 13),
        )

    def _save(self) -> None:
        if self.path is None:
            return
        try:
            if rank() == 0:
                save_checkpoint(self.path, self._snapshot())
        except OSError as error:
            then = (
                f"{self._where()}; make room, and go on with --resume"
                if self.saved >= 0
                else "give a folder that can be written and has room"
            )
            raise OSError(
                f"the checkpoint of step {self.step} could not be written ({error}); "
                f"{then}"
            ) from error
        self.saved = self.step

    def _restore(self, found: Checkpoint) -> None:
        assert self.path is not None
        refuse_another_run(self.path, found, self._snapshot(), set(self.config.fixed()))
        if found.step > self.config.steps:
            raise ValueError(
                f"{self.path} is of step {found.step}, past the {self.config.steps} "
                f"steps asked for; give --steps {found.step} or more"
            )
        for name in ("lr", "max_norm"):
            old, new = found.config.get(name), getattr(self.config, name)
            if old != new:
                tell(f"{name} was {old} so far, and is {new} from here on")
        self.net.load_state_dict(found.weights)
        self.ema.load_state_dict(found.ema)
        self.optimiser.load_state_dict(found.optimiser)
        for p, kept in self.optimiser.state.items():  # fused Adam goes by p's layout
            for name in ("exp_avg", "exp_avg_sq"):
                kept[name] = torch.empty_like(p).copy_(kept[name])
        self.step = self.saved = found.step
        self.told = found.told.tolist()
        self.began -= self.told[-1][1] if self.told else 0.0


def tell(what: str) -> None:
    """A line on stderr, from process 0; a run goes on if nobody can read it."""
    if rank() == 0:
        with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed
            print(what, file=sys.stderr)
