"""Two numbers on the 256 levels, seen through Gaussian noise: the toy's exact sums.

The posterior of a gradient's two colours is a sum over all 256 x 256 pairs of levels,
and a quadrature averages it over what may be seen; `oracle.py` needs both.
"""

import math

import torch
from torch import Tensor

STEP = 2 / 255  # from one of the 256 levels v/127.5 - 1 to the next


def posterior(theta_hat: Tensor, snr: float, G: Tensor) -> tuple[Tensor, Tensor]:
    """E[θ|θ̂] and log p(θ̂) + const for θ = (a, b) uniform on the 256 x 256 pairs

    p(θ̂|θ) ∝ exp(-λ/2 (θ-θ̂)ᵀG(θ-θ̂)). Written with d = θ - c and r = θ̂ - c about the
    middle c of a window of levels, the exponent is

        λ (Gr)_a d_a - λ/2 G_aa d_a²  +  the same of b  -  λ G_ab d_a d_b  -  λ/2 rᵀGr.

    The first two parts give f and g for each item, the third one matrix K for all, and
    the sum over pairs is f K gᵀ. What lies outside the window weighs less than exp(-36)
    of what is in it, float64's last digit.

    Args:
        theta_hat: θ̂, (N, 2).
        snr: λ = ᾱ_t/(1-ᾱ_t).
        G: (2, 2), positive definite.
    Returns: (N, 2) and (N,).
    """
    levels = min(2 * _reach(snr, G) + 1, 256)
    half = STEP * (levels - 1) / 2
    d = STEP * torch.arange(levels, dtype=G.dtype, device=G.device) - half
    log_K = -snr * G[0, 1] * torch.outer(d, d)
    means, log_ps = [], []
    for y in torch.split(theta_hat, 4096):  # bounds the memory
        first = ((_peak(y, G) + 1) / STEP).round() - levels // 2
        c = first.clamp(0, 256 - levels) * STEP - 1 + half
        r = y - c
        log_fg = snr * ((r @ G)[:, :, None] * d - G.diag()[:, None] / 2 * d**2)
        of_a, of_b, log_Z = _marginals(log_fg[:, 0], log_fg[:, 1], log_K)
        means.append(c + torch.stack([of_a @ d, of_b @ d], 1))
        log_ps.append(log_Z - snr / 2 * ((r @ G) * r).sum(1))
    return torch.cat(means), torch.cat(log_ps)


def _marginals(
    log_f: Tensor, log_g: Tensor, log_K: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The law of each index under w_ij = f_i K_ij g_j, and log Σ w, for each item

    With the largest f and g scaled to 1, Σ w stays above exp(-max |log K|), which is
    safe in float64 to 300. Beyond that the noise is finer than half a level, the window
    small, and the sum is taken pair by pair.
    """
    if float(log_K.abs().max()) > 300:
        log_w = log_f[:, :, None] + log_K + log_g[:, None, :]
        log_Z = log_w.logsumexp((1, 2))
        w = (log_w - log_Z[:, None, None]).exp()
        return w.sum(2), w.sum(1), log_Z
    top_f, top_g = log_f.amax(1, keepdim=True), log_g.amax(1, keepdim=True)
    f, g, K = (log_f - top_f).exp(), (log_g - top_g).exp(), log_K.exp()
    of_a, of_b = f * (g @ K.T), g * (f @ K)
    Z = of_a.sum(1, keepdim=True)
    return of_a / Z, of_b / Z, (Z.log() + top_f + top_g)[:, 0]


def _peak(theta_hat: Tensor, G: Tensor) -> Tensor:
    """The point of [-1, 1]² nearest to θ̂ in the metric G, where θ is likeliest

    The way from there to θ̂ leaves the square through that point, so one coordinate
    that θ̂ has outside is at its bound: try either and take the better.
    """
    bound = theta_hat.clamp(-1, 1)
    other = (theta_hat - (bound - theta_hat).flip(1) * G[0, 1] / G.diag()).clamp(-1, 1)
    a_at_bound = torch.stack([bound[:, 0], other[:, 1]], 1)
    b_at_bound = torch.stack([other[:, 0], bound[:, 1]], 1)
    far_a, far_b = (
        ((x - theta_hat) @ G * (x - theta_hat)).sum(1, keepdim=True)
        for x in (a_at_bound, b_at_bound)
    )
    return torch.where(far_a <= far_b, a_at_bound, b_at_bound)


def _reach(snr: float, G: Tensor) -> int:
    """Levels to look at on either side: 8.5 standard deviations of θ̂, as exp(-8.5²/2)

    is float64's last digit, and 2 for rounding to a level.
    """
    sd = float((torch.linalg.inv(G).diag().max() / snr).sqrt())
    return math.ceil(8.5 * sd / STEP) + 2


def nodes(snr: float, G: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the trapezoid rule along one coordinate of θ̂

    They lie 3/4 of sd apart, the standard deviation of a when b is known. Where that is
    finer than a level, E[θ|θ̂] turns from one level to the next within sd²/STEP, and
    they lie 3/4 of that apart, but not below 1/32 level, where next to nothing is left
    to be uncertain of. The middle of the range, out of reach of its ends, repeats
    itself from level to level: one period there stands for all.
    """
    sd = 1 / (snr * float(G.diag().max())) ** 0.5 / STEP  # in levels
    spacing, reach = max(1 / 32, 0.75 * min(sd, sd**2)), _reach(snr, G)
    level = torch.arange(-reach, 256 + reach, max(1, math.floor(spacing)))
    weight = torch.ones_like(level)
    if spacing < 2 and reach < 128:
        weight[level == reach] = 256 - 2 * reach
        kept = (level <= reach) | (level >= 256 - reach)
        level, weight = level[kept], weight[kept]
    parts = math.ceil(1 / spacing)
    inside = torch.arange(parts, dtype=torch.float64) / parts
    axis = (level[:, None] + inside).flatten() * STEP - 1
    return axis, weight.repeat_interleave(parts)
