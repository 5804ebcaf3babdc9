"""Algorithms 3 and 4: a picture sent and received step by step, as bits.

How to send some x ~ q to one who knows only p, for about KL(q ‖ p), is what the paper
leaves open: it is an argument, a coder on each side. `beyond/random_coding.py` has one.
The receiver must compute the sender's very floats: same machine, version and threads.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .bound import gaussian_kl, log_decoder, sigma2_1
from .data import to_float, to_levels
from .forward import q_posterior
from .sampler import EpsTheta, asked, predict_x_0
from .schedule import Schedule, at, whole

Gaussian = tuple[Tensor, Tensor]  # mean (1, ...) and variance (one number), float64


class Sent(NamedTuple):
    """One step of Algorithm 3."""

    t: int  # T..0
    x_t: Tensor  # what was sent, (1, ...)
    x_0_hat: Tensor  # what it shows of the picture (eq. 15; at t = 0 x_0 itself)
    kl: float  # what theory charges: KL(q ‖ p) in bits, at t = 0 -log2 p_θ(x_0|x_1)
    bits: float  # what it took of the message


def send(
    s: Schedule, eps_theta: EpsTheta, x_0: Tensor, coder: Any, sigma2: str = "beta"
) -> tuple[bytes, list[Sent]]:
    """Algorithm 3: sending x_0

    Args:
        eps_theta: the network, called T times, as `sampler.asked` does.
        x_0: one 8-bit picture in [-1, 1], (1, ...), on the CPU, as is the network.
        coder: its `draw(q, p)` gives x ~ q and writes it for one who knows p;
            `levels(level, log_p)` writes levels by their law; `bits`, `message()`.
        sigma2: σ_t², as `Schedule.sigma2` names it; σ_1² is `bound.sigma2_1`.
    Returns: the message, and its T + 1 steps.
    """
    if len(x_0) != 1:
        raise ValueError(f"send takes one picture, (1, C, H, W), got {len(x_0)}")
    level, steps = to_levels(x_0), list[Sent]()
    x_0 = to_float(level.to(torch.uint8))
    q = s.alpha_bar[-1].sqrt() * x_0.double(), 1 - s.alpha_bar[-1]  # q(x_T|x_0)
    p = torch.zeros_like(q[0]), torch.ones_like(q[1])  # p(x_T)
    for t in range(s.T, 0, -1):  # 1 to 4: send x_t ~ q using p
        before, x_t = coder.bits, coder.draw(q, p).float()
        kl = float(gaussian_kl(*q, *p).sum()) / math.log(2)
        x_0_hat, p = reverse(s, eps_theta, x_t, t, sigma2)
        q = q_posterior(s, x_t.double(), x_0.double(), torch.tensor([t]))
        steps.append(Sent(t, x_t, x_0_hat.float(), kl, coder.bits - before))
    before, log_p = coder.bits, log_levels(x_0_hat, sigma2_1(s, sigma2))
    coder.levels(level.flatten(), log_p)  # 5: send x_0 using p(x_0|x_1)
    kl = -float(log_p.gather(1, level.long().view(-1, 1)).sum()) / math.log(2)
    steps.append(Sent(0, x_0, x_0, kl, coder.bits - before))
    return coder.message(), steps


def receive(
    s: Schedule,
    eps_theta: EpsTheta,
    shape: tuple[int, ...],
    coder: Any,
    sigma2: str = "beta",
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Algorithm 4: receiving x_0, whose shape is known

    Args: as in `send`; coder, of the message: `draw(p)` and `levels(log_p)` read it.
    Yields: as `p_sample_loop`: (t, x_t, x_0_hat) for t = T..1, then (0, x_0, x_0).
    """
    zeros = torch.zeros(whole("shape", shape), dtype=torch.float64)
    p = zeros, zeros.new_ones(())  # p(x_T)
    for t in range(s.T, 0, -1):  # 1 to 4: receive x_t using p
        x_t = coder.draw(p).float()
        x_0_hat, p = reverse(s, eps_theta, x_t, t, sigma2)
        yield t, x_t, x_0_hat.float()
    level = coder.levels(log_levels(x_0_hat, sigma2_1(s, sigma2)))
    x_0 = to_float(level.to(torch.uint8)).view(shape)
    yield 0, x_0, x_0  # 5: return x_0


def reverse(
    s: Schedule, eps_theta: EpsTheta, x_t: Tensor, t: int, sigma2: str
) -> tuple[Tensor, Gaussian]:
    """Eq. 15 and 1: x̂_0 and p_θ(x_{t-1}|x_t), float64, as both sides compute them"""
    step = torch.tensor([t])
    eps_hat = asked(eps_theta)(x_t, step)
    if not eps_hat.isfinite().all():
        raise ValueError(f"eps_theta(x_t, {t}) is not finite, so there is no p to use")
    x_0_hat = predict_x_0(s, x_t.double(), step, eps_hat)
    mu_theta, _ = q_posterior(s, x_t.double(), x_0_hat, step)
    return x_0_hat, (mu_theta, at(s.sigma2(sigma2), step, x_t))


def log_levels(mean: Tensor, variance: float) -> Tensor:
    """Eq. 13 for each of the 256 levels of each number, (D, 256), nats"""
    level = torch.arange(256, dtype=torch.float64)
    return log_decoder(level, mean.view(-1, 1), variance)
