"""The discrete decoder p_θ(x_0|x_1) of section 3.3, eq. 13: from densities to levels.

What lives here: the probability of each of the 256 levels of a number under a Gaussian.
What does not: the terms of the bound before it (`bound.py`), and sending it
(`coding.py`).

Differences from the authors' code. There Φ is a tanh formula, off by up to 2e-4, and a
bin's probability is floored at 1e-12, so that no number costs more than 40 bits however
wrong the mean is. Here Φ is exact in both tails, and nothing is floored. And there σ_1²
is β̃_2 for σ_t² = β_t too, 0.55 of β_1: `sigma2="fixedlarge"` does so. It is worth 0.12
bits/dim at the paper's RMSE of 0.95: L_0 is then the paper's 1.97, with β_1 it is 2.09.
"""

import math

import torch
from torch import Tensor

from .schedule import Schedule


def sigma2_1(s: Schedule, sigma2: str = "beta") -> float:
    """σ_1² of eq. 13: β_1, or β̃_2 for "beta_tilde" and "fixedlarge"

    β̃_1 = 0 is no decoder: a mean off by half a level would cost infinitely many bits.
    The authors' code takes β̃_2 in its place, and so do we.
    """
    if sigma2 != "beta_tilde":
        return float(s.sigma2(sigma2)[1])
    if s.T == 1:
        raise ValueError(
            "sigma2 = 'beta_tilde' needs T >= 2: the decoder's variance is beta_tilde_2"
            ", since beta_tilde_1 = 0; with T = 1 use sigma2 = 'beta'"
        )
    return float(s.beta_tilde[2])


def log_decoder(level: Tensor, mean: Tensor, variance: float) -> Tensor:
    """Eq. 13: ln ∫_{δ-(x)}^{δ+(x)} N(x; μ, σ_1²) dx for each number

    δ±(x) = x ± 1/255, but ∞ and -∞ at the ends x = 1 and x = -1.
    A bin right of the mean is mirrored to its left, where ln Φ keeps its digits however
    far out; then ln(Φ(b) - Φ(a)) = ln Φ(b) + ln(1 - exp(ln Φ(a) - ln Φ(b))).

    Args:
        level: v of x = v/127.5 - 1, 0..255, float64.
        mean: μ on the scale of x, float64; the shapes broadcast.
        variance: σ_1².
    Returns: nats, <= 0; finite out to 1e12 σ_1.
    """
    sigma = math.sqrt(variance)
    low = ((level - 0.5) / 127.5 - 1).masked_fill(level == 0, -math.inf)
    high = ((level + 0.5) / 127.5 - 1).masked_fill(level == 255, math.inf)
    a, b = (low - mean) / sigma, (high - mean) / sigma
    right = a > -b
    a, b = torch.where(right, -b, a), torch.where(right, -a, b)
    log_a: Tensor = torch.special.log_ndtr(a)
    log_b: Tensor = torch.special.log_ndtr(b)
    return log_b + torch.log(-torch.expm1(log_a - log_b))


def to_levels(x_0: Tensor) -> Tensor:
    """The level v = 0..255 of each number of pictures in [-1, 1], as float64.

    Raises: ValueError off the grid v/127.5 - 1, where eq. 13 means nothing.
    """
    scaled = (x_0.double() + 1) * 127.5
    level = scaled.round()
    right = ((scaled - level).abs() < 1e-3) & (level >= 0) & (level <= 255)
    if not right.all():
        raise ValueError(
            f"eq. 13 needs 8-bit pictures, x = v/127.5 - 1 with v in 0..255, got x = "
            f"{float(x_0[~right][0])}; round them first: to_float(to_uint8(x_0))"
        )
    return level
