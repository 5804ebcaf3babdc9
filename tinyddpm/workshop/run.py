"""A run of Algorithm 1 that can be killed, resumed, watched, sped up and shared out.

All of it is put around `train.algorithm_1` from outside. On a CPU a run that was killed
and resumed is bit for bit the run that was not, as long as the numbers of threads and
processes stay the same. On a GPU no deterministic kernels are asked for: a sum may
round otherwise each time, and the difference grows with the steps.
"""

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn
from torch.optim import Adam

from ..data import Draw
from ..schedule import Schedule
from ..train import EMA, algorithm_1, gradient, random_seed
from .draws import CheckedDraw
from .files import only_run
from .interrupts import signals, trouble_explained
from .processes import parts, rank, world
from .settings import TrainConfig
from .speed import FastDropout, faster, unwrapped
from .state import Record, State, tell


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
            It is asked once before anything else, so that data that it cannot take are
            refused before the work. Its training flags stay as they are. One that
            torch.compile or DataParallel wraps is taken out, and trains on one device:
            see config.compile, and torchrun for several GPUs.
        draw: draw(B, generator) -> (x_0,) or (x_0, c), as `data.drawer` makes it.
        config: config.batch is over all processes of torch.distributed.
        log: gets a `Record` every config.log_every steps and at the end, in process 0.
        checkpoint: the file to save to: at the start, every config.save_every steps,
            at the end, and on SIGINT, SIGTERM and what batch systems send.
        resume: go on from that file, if it is there.
    Returns: the moving average of net, the one to sample from. Killed and resumed, it
        is bit for bit the same on a CPU, if the numbers of threads and processes are:
        sums of floats round otherwise when they are split otherwise.
    Raises:
        ValueError: data outside [-1, 1] or not for this network, a batch that the
            processes cannot share evenly, a checkpoint damaged or of another run.
        FileExistsError: without resume, where a checkpoint is there already.
        FloatingPointError: a loss or weight that is not finite; it was not saved.
        SystemExit: 128 + its number after a signal, where there is a checkpoint.
    """
    plain, B = unwrapped(net), config.batch
    device = next(plain.parameters()).device
    if any(isinstance(module, nn.DataParallel) for module in net.modules()):
        tell(
            f"the network is trained without its DataParallel wrapper, on {device} "
            f"alone; to train on several GPUs, start the script with torchrun"
        )
    s, shares = s.to(device), parts(B, config.micro_batch)
    eps_theta = faster(
        net, config.bf16, config.channels_last, config.compile, dist.is_initialized()
    )
    ema = EMA(plain, config.ema)  # after the weights have their order in memory
    optimiser = Adam(plain.parameters(), config.lr, fused=True)
    with (
        rng_left_alone(device),
        trouble_explained(B, config.micro_batch),
        signals(checkpoint is not None) as caught,
        ExitStack() as stack,
    ):
        data = CheckedDraw(draw, plain, B)
        if not data.below_0:
            tell(
                "no pixel of the first batch is below 0; pictures must be scaled to "
                "[-1, 1], not to [0, 1]"
            )
        say_what_is_short(config)
        if checkpoint is not None and rank() == 0:
            stack.enter_context(only_run(checkpoint))
        state = State(s, plain, ema.net, optimiser, config, data, checkpoint)
        state.begin(resume, log)
        eps_theta.train()
        masks = Generator()
        for module in eps_theta.modules():
            if isinstance(module, FastDropout):
                module.generator = masks
        for step, _ in algorithm_1(
            *(s, eps_theta, data, config, ema, optimiser),
            first=state.step + 1,
            gradient=in_pieces(shares, state, device, masks),
        ):
            state.end_of_step(step, log, caught)
    return ema.net


class TimeIsUpError(Exception):
    """Ends the steps that are only timed."""


def seconds_a_step(
    s: Schedule, net: nn.Module, draw: Draw, config: TrainConfig, seconds: float = 4.0
) -> float:
    """What a step of `fit` takes on this machine: the median of some, after a warm-up.

    They are steps of the run itself, at least three and at most 200, for `seconds`, but
    of a copy of the network: the run that follows is the one that would have been.

    Args: as in `fit`.
    """
    ends = [time.perf_counter()]

    def look(_: Record) -> None:
        ends.append(time.perf_counter())
        if len(ends) > 5 and ends[-1] - ends[2] > seconds:
            raise TimeIsUpError

    timed = dataclasses.replace(
        config, steps=200, log_every=1, save_every=1, warmup=0, ema=0.0
    )
    with suppress(TimeIsUpError):
        fit(s, copy.deepcopy(unwrapped(net)), draw, timed, look)
    return statistics.median(end - start for start, end in pairwise(ends[2:]))


def in_pieces(
    shares: list[slice], state: State, device: torch.device, masks: Generator
) -> Callable[..., Tensor]:
    """`train.gradient` of this process's share of the batch, piece by piece.

    Gradients add up over the pieces, and are averaged over the processes. The loss of
    each picture is kept for `State`.
    """

    def in_shares(
        s: Schedule, net: nn.Module, x_0: Tensor, t: Tensor, eps: Tensor, *c: Tensor
    ) -> Tensor:
        answers: list[Tensor] = []

        def eps_theta(*args: Tensor) -> Tensor:
            answers.append(net(*args))
            return answers[-1]

        step, total = state.step + 1, torch.zeros((), device=device)
        seed_masks(state.config.seed, step, device, masks)
        for i in shares:
            share = len(t[i]) * world() / len(t)
            batch = x_0[i], t[i], eps[i], *(y[i] for y in c)
            total += gradient(s, eps_theta, *batch, share=share)
            eps_hat = answers.pop().detach()
            state.note(
                step,
                t[i],
                (eps[i] - eps_hat).square().reshape(len(eps_hat), -1).mean(1),
            )
        return total

    return in_shares


def seed_masks(seed: int, step: int, device: torch.device, own: Generator) -> None:
    """Seeds what dropout masks come from for one step: torch's generator, and `own`,
    which `FastDropout` has on a CPU, so that other threads change nothing there.

    All processes draw the same batch, but each its own masks, for other pictures.
    """
    masks = random_seed(seed, step, rank())
    own.manual_seed(masks)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(masks)
    else:
        torch.default_generator.manual_seed(masks)


def say_what_is_short(config: TrainConfig) -> None:
    """Tells of settings that are made for a longer run than this one."""
    left = config.ema**config.steps
    if left > 0.05:
        tell(
            f"after {config.steps} steps the moving average will still hold {left:.0%} "
            f"of the initial weights; for so short a run give an ema of about "
            f"{max(0.0, 1 - 5 / config.steps):.4g} instead of {config.ema:g}"
        )
    if config.warmup >= config.steps:
        tell(
            f"the learning rate is warmed up over {config.warmup} steps, but the run "
            f"has {config.steps}; for so short a run give a warmup of about "
            f"{config.steps // 20}"
        )


@contextmanager
def rng_left_alone(device: torch.device) -> Iterator[None]:
    """The caller's random numbers go on afterwards as if nothing had been drawn."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
