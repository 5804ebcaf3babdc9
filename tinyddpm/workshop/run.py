"""A run of Algorithm 1 that can be killed, resumed, watched, sped up and shared out.

All of it is put around `train.algorithm_1` from outside. On a CPU a run that was killed
and resumed is bit for bit the run that was not, as long as the numbers of threads and
processes stay the same. On a GPU no deterministic kernels are asked for: a sum may
round otherwise each time, and the difference grows with the steps.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn
from torch.optim import Adam

from ..data import Draw
from ..sampler import asked
from ..schedule import Schedule, same_shape
from ..train import EMA, L_simple, algorithm_1, random_seed
from .files import only_run
from .processes import parts, rank, world
from .settings import TrainConfig
from .speed import faster, unwrapped
from .state import Record, State


def fit(
    s: Schedule,
    net: nn.Module,
    draw: Draw,
    config: TrainConfig,
    log: Callable[[Record], None] | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
) -> nn.Module:
    """`train.fit` with a log, checkpoints, micro-batches, several processes and speed

    Args:
        s: the schedule.
        net: ε_θ, (x_t, t) or (x_t, t, c) -> eps_hat; trained in place, on its device.
            It is asked once before anything else, so that data which do not fit it are
            refused before the work. Its training flags stay as they are.
        draw: draw(B, generator) -> (x_0,) or (x_0, c), as `data.drawer` makes it.
        config: config.batch is over all processes of torch.distributed.
        log: gets a `Record` every config.log_every steps and at the end, in process 0.
        checkpoint: the file to save to: at the start, every config.save_every steps,
            at the end, and on SIGINT or SIGTERM.
        resume: go on from that file, if it is there.
    Returns: the moving average of net, the one to sample from.
    Raises:
        ValueError: data outside [-1, 1] or not for this network, a batch that the
            processes cannot share evenly, a checkpoint damaged or of another run.
        FileExistsError: without resume, where a checkpoint is there already.
        FloatingPointError: a loss or weight that is not finite; it was not saved.
        SystemExit: 130 after SIGINT, 143 after SIGTERM, where there is a checkpoint.
    """
    plain, B = unwrapped(net), config.batch
    device = next(plain.parameters()).device
    s, ema = s.to(device), EMA(plain, config.ema)
    optimiser = Adam(plain.parameters(), config.lr, fused=True)
    shares = parts(B, config.micro_batch)
    eps_theta = faster(
        net, config.bf16, config.channels_last, config.compile, dist.is_initialized()
    )
    with (
        rng_left_alone(device),
        only_run(checkpoint) if checkpoint and rank() == 0 else nullcontext(),
        trouble_explained(B, config.micro_batch),
        signals(checkpoint is not None) as caught,
    ):
        shape = first_batch(plain, draw(B, Generator(device)), B)
        state = State(s, plain, ema.net, optimiser, config, shape, checkpoint)
        state.begin(resume)
        eps_theta.train()
        for step, _ in algorithm_1(
            *(s, eps_theta, checked(draw, shape), config, ema, optimiser),
            first=state.step + 1,
            gradient=in_pieces(shares, state, device),
        ):
            state.end_of_step(step, log, caught)
    return ema.net


def in_pieces(
    shares: list[slice], state: State, device: torch.device
) -> Callable[..., Tensor]:
    """`train.gradient` of this process's share of the batch, piece by piece.

    Gradients add up over the pieces, and are averaged over the processes. The loss of
    each picture is kept for `State`.
    """

    def gradient(
        s: Schedule, net: nn.Module, x_0: Tensor, t: Tensor, eps: Tensor, *c: Tensor
    ) -> Tensor:
        answers: list[Tensor] = []

        def eps_theta(*args: Tensor) -> Tensor:
            answers.append(net(*args))
            return answers[-1]

        step, total = state.step + 1, torch.zeros((), device=device)
        seed_masks(state.config.seed, step, device)
        for i in shares:
            loss = L_simple(s, eps_theta, x_0[i], t[i], eps[i], *(y[i] for y in c))
            loss = loss * (len(t[i]) * world() / len(t))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
            eps_hat = answers.pop().detach()
            state.note(step, t[i], (eps[i] - eps_hat).square().flatten(1).mean(1))
        return total

    return gradient


def seed_masks(seed: int, step: int, device: torch.device) -> None:
    """Seeds torch's own generator, which dropout masks come from, for one step.

    All processes draw the same batch, but each its own masks, for other pictures.
    """
    masks = random_seed(seed, step, rank())
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(masks)
    else:
        torch.default_generator.manual_seed(masks)


def checked(draw: Draw, shape: tuple[int, ...]) -> Draw:
    """`draw`, with each batch held to what the first one was."""

    def draw_checked(B: int, generator: Generator | None) -> tuple[Tensor, ...]:
        batch = draw(B, generator)
        x_0 = batch[0]
        if x_0.shape != (B, *shape) or not x_0.is_floating_point():
            raise ValueError(
                f"draw({B}, generator) gave {x_0.dtype} {tuple(x_0.shape)}, expected "
                f"floating point {(B, *shape)}, as in its first batch"
            )
        return batch

    return draw_checked


def first_batch(net: nn.Module, batch: tuple[Tensor, ...], B: int) -> tuple[int, ...]:
    """(C, H, W) of the data, if they lie in [-1, 1] and fit the network."""
    x_0, *c = batch
    if not x_0.is_floating_point() or len(x_0) != B:
        raise ValueError(
            f"draw({B}, generator) must give {B} pictures as floating point, got "
            f"{x_0.dtype} {tuple(x_0.shape)}"
        )
    if not bool((x_0.abs() <= 1).all()):  # also for nan
        raise ValueError(
            f"pictures must lie in [-1, 1], got {float(x_0.min()):g} to "
            f"{float(x_0.max()):g}; to_float scales 8-bit pictures"
        )
    t = torch.ones(1, dtype=torch.long, device=x_0.device)
    eps_hat = asked(net)(x_0[:1], t, *(y[:1] for y in c))
    same_shape("eps_theta(x_t, t)", eps_hat, x_0[:1])
    return tuple(x_0.shape[1:])


@contextmanager
def rng_left_alone(device: torch.device) -> Iterator[None]:
    """The caller's random numbers go on afterwards as if nothing had been drawn."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


@contextmanager
def signals(on: bool) -> Iterator[list[int]]:
    """Notes SIGINT and SIGTERM in the list it yields; a second one ends the process.

    Not so under torchrun, which sends a signal of its own after the terminal's: with
    several processes every one of them is noted, and the run still saved.
    """
    caught: list[int] = []
    if not on or threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(number: int, _: Any) -> None:
        name = signal.Signals(number).name
        if rank() == 0:  # not print: it may have been interrupted itself
            os.write(2, f"\n{name}: finishing the step and saving\n".encode())
        caught.append(number)
        if world() == 1:
            restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        restore()


def out_of_memory(error: RuntimeError) -> bool:
    """Whether that is it: on a CPU PyTorch has no error of its own for it."""
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
            lower = f"lower --micro-batch (the batch stays {batch}: gradients add up)"
            raise torch.OutOfMemoryError(
                f"out of memory with {now} pictures at a time; give a "
                f"{lower if now > 1 else 'lower --batch'}, or a narrower network. "
                f"PyTorch said: {said}"
            ) from error
        if isinstance(error, dist.DistError) or (world() > 1 and "onnection" in said):
            raise ConnectionError(
                f"process {rank()} lost touch with the {world() - 1} others, so one of "
                f"them has ended; go on from the last checkpoint with --resume "
                f"(torchrun --max-restarts=N does so by itself). PyTorch said: {said}"
            ) from error
        raise
