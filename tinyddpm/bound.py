"""The variational bound L in bits/dim (eq. 3, 5, 8, 13), rate and distortion (4.3).

By eq. 11, μ_θ(x_t, t) = μ̃_t(x_t, x̂_0): the terms below take x̂_0 (eq. 15) in place of
the network. Each is a sum over the D numbers of a picture, in nats, evaluated in
float64; bits/dim is nats / (D ln 2).

Published figures come from the authors' code, which differs in four ways. It clamps
x̂_0 to [-1, 1] first (`clip_x_0=True`); its σ_1² in eq. 13 is β̃_2 for σ_t² = β_t too
(`sigma2="fixedlarge"`), with which L_0 is 1.97 bits/dim at the paper's RMSE of 0.95,
and 2.09 with β_1; its Φ is a tanh formula, off by up to 2e-4, ours is exact in both
tails; and it floors a level's probability at 1e-12, so that none costs over 40 bits.
"""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from .data import to_levels
from .forward import q_posterior, q_sample
from .sampler import EpsTheta, asked, predict_x_0, randn_like
from .schedule import Schedule, at, same_shape

FAR = 1e30  # σ_1, stands for ∞ in eq. 13: Φ(±FAR) is 0 or 1


class Bound(NamedTuple):
    """Eq. 5 by its terms, in bits/dim for each of N pictures, float64.

    The expectation of `total` is an upper bound of -log2 p_θ(x_0) / D; `total` itself
    is an unbiased estimate of that bound, from one x_t for each term.
    """

    L_T: Tensor  # (N,)
    L_tm1: Tensor  # (N, T + 1), L_tm1[:, t] is L_{t-1} for t = 2..T, else 0
    L_0: Tensor  # (N,)
    total: Tensor  # (N,), their sum
    mse: Tensor  # (N, T + 1), ‖x_0 - x̂_0(x_t)‖² / D, x in [-1, 1]; 0 at t = 0


def gaussian_kl(mean1: Tensor, var1: Tensor, mean2: Tensor, var2: Tensor) -> Tensor:
    """KL(N(m_1, v_1) ‖ N(m_2, v_2)) = ½ (v_1/v_2 - 1 - ln v_1/v_2 + (m_1 - m_2)²/v_2)

    For each number, in nats; the shapes broadcast. It is infinite for var1 = 0.
    """
    r = (var1 - var2) / var2  # near 0 for β̃_t and β_t, where ln(1 + r) would cancel
    near = torch.log1p(r.clamp(min=-0.5))  # clamped: its gradient is nan at -1
    log_ratio = torch.where(r.abs() < 0.5, near, (var1 / var2).log())
    return 0.5 * (r - log_ratio) + (mean1 - mean2).square() * (0.5 / var2)


def L_T(s: Schedule, x_0: Tensor) -> Tensor:
    """Eq. 5: L_T = KL(q(x_T|x_0) ‖ p(x_T)), x_0 (B, ...) -> (B,), nats, float64"""
    alpha_bar = s.alpha_bar[-1].to(x_0.device)
    zero, one = torch.zeros_like(alpha_bar), torch.ones_like(alpha_bar)
    return _sum(gaussian_kl(alpha_bar.sqrt() * x_0.double(), 1 - alpha_bar, zero, one))


def L_tm1(
    s: Schedule, x_0: Tensor, t: Tensor, x_0_hat: Tensor, sigma2: str = "beta"
) -> Tensor:
    """Eq. 5, 8: L_{t-1} = KL(q(x_{t-1}|x_t, x_0) ‖ p_θ(x_{t-1}|x_t)) for t > 1

    = ‖μ̃_t(x_t, x_0) - μ_θ(x_t, t)‖² / (2σ_t²) + C, with μ_θ(x_t, t) = μ̃_t(x_t, x̂_0).
    x_t drops out of the difference, since eq. 7 is linear: any x_t will do, and here it
    is 0. The C of eq. 8 is D times the KL for equal means: 0 if σ_t² is β̃_t.

    Args: x_0 in [-1, 1], (B, ...); t (B,), 2..T; x_0_hat, the network's eq. 15 from
        x_t ~ q(x_t|x_0), the shape of x_0; sigma2, σ_t², as `Schedule.sigma2` names it.
    Returns: (B,), nats, float64.
    """
    sigma2_t = at(s.sigma2(sigma2), t, x_0, first=2, x_0_hat=x_0_hat)
    x_0, x_0_hat = x_0.double(), x_0_hat.double()
    mu_tilde, beta_tilde_t = q_posterior(s, torch.zeros_like(x_0), x_0, t)
    mu_theta, _ = q_posterior(s, torch.zeros_like(x_0), x_0_hat, t)
    return _sum(gaussian_kl(mu_tilde, beta_tilde_t, mu_theta, sigma2_t))


def log_decoder(level: Tensor, mean: Tensor, variance: float | Tensor) -> Tensor:
    """Eq. 13: ln ∫_{δ-(x)}^{δ+(x)} N(x; μ, σ_1²) dx for each number

    δ±(x) = x ± 1/255, but ∞ and -∞ at the ends x = 1 and x = -1.
    A bin right of the mean is mirrored to its left, where ln Φ keeps its digits however
    far out; then ln(Φ(b) - Φ(a)) = ln Φ(b) + ln(1 - exp(ln Φ(a) - ln Φ(b))).

    Args: level, v of x = v/127.5 - 1, 0..255, float64; mean, μ on the scale of x,
        float64; variance, σ_1². The shapes broadcast.
    Returns: nats, <= 0; finite out to 1e12 σ_1, with a correct gradient out to 1e5 σ_1.
    """
    low, high = (level - 0.5) / 127.5 - 1, (level + 0.5) / 127.5 - 1
    a = ((low - mean) / variance**0.5).masked_fill(level == 0, -FAR)
    b = ((high - mean) / variance**0.5).masked_fill(level == 255, FAR)
    right = a > -b
    a, b = torch.where(right, -b, a), torch.where(right, -a, b)
    log_a: Tensor = torch.special.log_ndtr(a)
    log_b: Tensor = torch.special.log_ndtr(b)
    return log_b + torch.log(-torch.expm1(log_a - log_b))


def sigma2_1(s: Schedule, sigma2: str = "beta") -> float:
    """σ_1² of eq. 13: β_1, or β̃_2 for "beta_tilde" and "fixedlarge"

    β̃_1 = 0 is no decoder: a mean off by half a level would cost infinitely many bits.
    The authors' code takes β̃_2 in its place, and so do we; it needs T >= 2.
    """
    return float(s.sigma2("fixedlarge" if sigma2 == "beta_tilde" else sigma2)[1])


def L_0(s: Schedule, x_0: Tensor, x_0_hat: Tensor, sigma2: str = "beta") -> Tensor:
    """Eq. 5, 13: L_0 = -log p_θ(x_0|x_1), where μ_θ(x_1, 1) is x̂_0 itself

    Args: x_0, 8-bit pictures in [-1, 1], (B, ...); x_0_hat, the network's eq. 15 from
        x_1, the shape of x_0; sigma2, σ_1², as `sigma2_1` reads it.
    Returns: (B,), nats, float64.
    """
    same_shape("x_0_hat", x_0_hat, x_0)
    return -_sum(log_decoder(to_levels(x_0), x_0_hat.double(), sigma2_1(s, sigma2)))


@torch.no_grad()
def bits_per_dim(
    s: Schedule,
    eps_theta: EpsTheta,
    x_0: Tensor,
    generator: Generator | None = None,
    sigma2: str = "beta",
    clip_x_0: bool = False,
) -> Bound:
    """Eq. 5: L = L_T + Σ_{t>1} L_{t-1} + L_0 of each picture, from one x_t for each t

    For many pictures, or a sample of the t, see `beyond/estimate.py`.

    Args:
        eps_theta: the network, called with all N pictures at each t = T..1 (`asked`).
        x_0: 8-bit pictures in [-1, 1], (N, ...).
        generator: source of every ε, on x_0's device; None is torch's own.
        sigma2: σ_t², as `Schedule.sigma2` names it; σ_1² is `sigma2_1`.
        clip_x_0: clamp x̂_0 to [-1, 1]; this can only lower L_{t-1}, as x_0 is inside.
    """
    if len(x_0) == 0:
        raise ValueError("the bound needs at least one picture, got none")
    s, eps_theta, D = s.to(x_0.device), asked(eps_theta), x_0[0].numel()
    at_T = L_T(s, x_0)
    at_tm1 = to_levels(x_0).new_zeros(len(x_0), s.T + 1)
    mse = torch.zeros_like(at_tm1)
    for step in range(s.T, 0, -1):
        t = torch.full(x_0.shape[:1], step, device=x_0.device)
        x_t = q_sample(s, x_0, t, randn_like(x_0, generator))
        x_0_hat = predict_x_0(s, x_t.double(), t, eps_theta(x_t, t))
        x_0_hat = x_0_hat.clamp(-1, 1) if clip_x_0 else x_0_hat
        mse[:, step] = _sum((x_0 - x_0_hat).square()) / D
        if step > 1:
            at_tm1[:, step] = L_tm1(s, x_0, t, x_0_hat, sigma2)
    at_0 = L_0(s, x_0, x_0_hat, sigma2)  # from the last x_t, x_1
    L, bits = at_T + at_tm1.sum(1) + at_0, D * math.log(2)
    return Bound(at_T / bits, at_tm1 / bits, at_0 / bits, L / bits, mse)


def rate_distortion(bound: Bound) -> tuple[Tensor, Tensor]:
    """Section 4.3, figure 5, table 4: what has been paid for x_t, and what it shows

    rate[t] = L_T + Σ_{s>t} L_{s-1}, bits/dim; distortion[t] = 127.5 √E‖x_0 - x̂_0‖²/D,
    the root mean square error on the scale 0..255. x_t is held after T - t + 1 reverse
    steps of table 4. At t = 0 the rate is the whole bound and the error 0.
    Returns: rate and distortion, (T + 1,) each, means over the pictures (not nan).
    """
    sent = bound.L_tm1.mean(0)
    sent[1] = bound.L_0.mean()
    later = sent.flip(0).cumsum(0).flip(0) - sent  # Σ_{s>t}
    return bound.L_T.mean() + later, 127.5 * bound.mse.nanmean(0).sqrt()


def _sum(nats: Tensor) -> Tensor:
    """The sum over a picture's D numbers, (B, ...) -> (B,)."""
    return nats.reshape(len(nats), -1).sum(1)
