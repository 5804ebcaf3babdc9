"""Training: the losses (eq. 12, 14), Algorithm 1, and the moving average (App. B).

What lives here: what is minimised and the loop that does it. What does not: the
network (`mlp.py`, `unet.py`), the pictures (`data.py`), settings and flags
(`config.py`), what is saved and told (`state.py`, `checkpoint.py`), and what only makes
the loop fast or hard to kill (`runtime.py`).

Randomness is a function of (seed, step) alone, and no state of a random generator is
ever stored: a run that is killed and resumed draws what it would have drawn. On a CPU
it is bit for bit the run that was not killed. On a GPU no deterministic kernels are
asked for: a sum may round otherwise each time, and the difference grows with the steps.
"""

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam

from .data import Draw
from .forward import _same_shape, q_sample
from .sampler import EpsTheta, _evaluating
from .schedule import Schedule, at, check_t
from .workshop.runtime import as_a_run, faster, parts, random_seed, seed_masks, world
from .workshop.settings import TrainConfig
from .workshop.state import Record, State


def squared_error(eps: Tensor, eps_hat: Tensor) -> Tensor:
    """‖ε - ε_θ‖² / D of each picture, (B, ...) and (B, ...) -> (B,)."""
    _same_shape("eps_theta(x_t, t)", eps_hat, "eps", eps)
    return (eps - eps_hat).square().reshape(len(eps), -1).mean(1)


def L_simple(
    s: Schedule, eps_theta: EpsTheta, x_0: Tensor, t: Tensor, eps: Tensor
) -> Tensor:
    """Eq. 14: L_simple = E_{t, x_0, ε} ‖ε - ε_θ(√ᾱ_t x_0 + √(1-ᾱ_t) ε, t)‖²

    The paper's squared norm is a sum over the D numbers of a picture; this is the mean
    over them (and over the batch), smaller by the constant factor D.

    Args:
        s: the schedule.
        eps_theta: the network, called once.
        x_0: data in [-1, 1], (B, ...).
        t: (B,), drawn uniformly from 1..T.
        eps: ε ~ N(0, I), the shape of x_0.
    Returns: a scalar.
    """
    check_t(s, t, x_0)
    return squared_error(eps, eps_theta(q_sample(s, x_0, t, eps), t)).mean()


def weight(s: Schedule, t: Tensor, sigma2: str = "beta") -> Tensor:
    """Eq. 12: β_t² / (2 σ_t² α_t (1-ᾱ_t)), what L_{t-1} weighs ‖ε - ε_θ‖² with

    The norm is the paper's: a sum over D. L_simple drops this factor (eq. 14).

    Args:
        s: the schedule.
        t: (B,), 1..T; from 2 with sigma2 = "beta_tilde", since β̃_1 = 0.
        sigma2: σ_t², as `Schedule.sigma2` names it.
    Returns: (B,), float64, nats.
    """
    like = torch.as_tensor(t).double()  # so that check_t sees a plain number too
    first = 2 if sigma2 == "beta_tilde" else 1
    check_t(s, t, like, first)
    beta, alpha, alpha_bar = (at(x, t, like) for x in (s.beta, s.alpha, s.alpha_bar))
    return beta**2 / (2 * at(s.sigma2(sigma2), t, like) * alpha * (1 - alpha_bar))


class EMA:
    """App. B: θ_ema ← decay θ_ema + (1 - decay) θ, on its own copy of the weights.

    It starts as a copy of the initial weights, as in the authors' code. Buffers are
    copied once: a U-Net and an MLP have none that change.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self.decay = decay
        self._ema: list[Tensor] = list(self.net.parameters())
        self._theta: list[Tensor] = list(net.parameters())

    @torch.no_grad()
    def update(self) -> None:
        """One step; ema + (1 - decay)(θ - ema) is the same with one rounding less."""
        torch._foreach_lerp_(self._ema, self._theta, 1 - self.decay)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear from 0 over `warmup` steps, then constant (or a cosine to `lr_end`)."""
    rate, end = config.lr, config.lr_end
    if end is not None:
        rate = end + (rate - end) * (1 + math.cos(math.pi * step / config.steps)) / 2
    return rate * min(step / max(1, config.warmup), 1.0)


def fit(
    s: Schedule,
    net: nn.Module,
    draw: Draw,
    config: TrainConfig,
    log: Callable[[Record], None] | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
) -> nn.Module:
    """Algorithm 1: repeat a gradient step on ‖ε - ε_θ(√ᾱ_t x_0 + √(1-ᾱ_t) ε, t)‖²

    Args:
        s: the schedule.
        net: ε_θ, (x_t, t) or (x_t, t, c) -> eps_hat; trained in place, on its device.
            It is asked once in eval mode before anything else: does it fit the data?
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
    B, device = config.batch, next(net.parameters()).device
    s, pieces = s.to(device), parts(B, config.micro_batch)
    scale = world() / B  # a process's sum times this, averaged over all, is the mean
    eps_theta = faster(net, config.bf16, config.channels_last, config.compile)
    ema = EMA(net, config.ema)
    optimiser = Adam(net.parameters(), config.lr, fused=True)
    catch = checkpoint is not None
    with as_a_run(device, B, config.micro_batch, catch) as caught:
        shape = _first_batch(net, draw(B, Generator(device)), B)
        state = State(s, net, ema.net, optimiser, config, shape, checkpoint)
        state.begin(resume)
        net.train()
        for step, x_t, t, eps, c in _lines_2_to_4(s, draw, config, state):
            for i in pieces:  # this process's share of the batch
                eps_hat = eps_theta(x_t[i], t[i], *(y[i] for y in c))
                loss = squared_error(eps[i], eps_hat)
                torch.autograd.backward(loss.sum() * scale)
                state.note(step, t[i], loss)
            clip_grad_norm_(net.parameters(), config.clip)
            optimiser.param_groups[0]["lr"] = learning_rate(config, step)
            optimiser.step()
            optimiser.zero_grad()
            ema.update()
            state.end_of_step(step, log, caught)
    return ema.net


def _lines_2_to_4(
    s: Schedule, draw: Draw, config: TrainConfig, state: State
) -> Iterator[tuple[int, Tensor, Tensor, Tensor, list[Tensor]]]:
    """Algorithm 1, lines 2 to 4, and x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε, for each step to do.

    Small pictures are drawn for several steps at once: the calls would cost a toy more
    than the numbers do. Which steps share a draw depends on B and D alone, so that a
    run that is resumed sees what it would have seen.

    Yields: step, x_t (B, ...), t (B,), eps (B, ...), and [c] or [] from `draw`.
    """
    B, device, last = config.batch, s.beta.device, config.steps
    together = max(1, 2**16 // (B * math.prod(state.shape)))  # 2^16: fits the cache
    generator, n = Generator(device), B * together
    for block in range(state.step // together, -(-last // together)):
        generator.manual_seed(random_seed(config.seed, block))
        x_0, *c = draw(n, generator)  # x_0 ~ q(x_0)
        t = torch.randint(1, s.T + 1, (n,), generator=generator, device=device)
        eps = torch.empty_like(x_0).normal_(generator=generator)
        x_t = q_sample(s, x_0, t, eps)
        for k in range(together):
            step, i = block * together + k + 1, slice(k * B, (k + 1) * B)
            if state.step < step <= last:  # else done before, or too many
                seed_masks(config.seed, step, device)
                yield step, x_t[i], t[i], eps[i], [y[i] for y in c]


def _first_batch(net: nn.Module, batch: tuple[Tensor, ...], B: int) -> tuple[int, ...]:
    """(C, H, W), or a refusal: data that are off, or do not fit the network, are so
    from the first batch on, and are told before anything is written."""
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
    with _evaluating(net), torch.no_grad():
        t = torch.ones(1, dtype=torch.long, device=x_0.device)
        eps_hat = net(x_0[:1], t, *(y[:1] for y in c))
    _same_shape("eps_theta(x_t, t)", eps_hat, "x_t", x_0[:1])
    return tuple(x_0.shape[1:])
