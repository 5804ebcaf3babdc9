"""The toy's exact sums: the posterior of two levels, and its quadrature.

Held against the sum over all 65,536 pairs, written out, and against integrals known in
closed form.
"""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tinyddpm.beyond.levels import STEP, _peak, _reach, nodes, posterior

from ..strategies import normal, seeds, share

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1
PAIRS = torch.cartesian_prod(LEVELS, LEVELS)


def gram(size: float, ratio: float, correlation: float) -> torch.Tensor:
    """G with diagonal (size, size ratio)."""
    off = size * correlation * math.sqrt(ratio)
    return torch.tensor([[size, off], [off, size * ratio]], dtype=torch.float64)


# A picture's G has a diagonal from 1 (two pixels) to HW/3 and a correlation of 0 to ½
# (large pictures). Signs and sizes beyond are as good: θ̂ is any Gaussian's mean.
grams = st.builds(gram, st.floats(0.5, 300), st.floats(0.5, 2), st.floats(-0.6, 0.6))


def snr_of(sd: float, G: torch.Tensor) -> float:
    """λ with which a coordinate is known to `sd` levels, if the other is known."""
    return 1 / (float(G.diag().max()) * (sd * STEP) ** 2)


def exponents(y: torch.Tensor, snr: float, G: torch.Tensor) -> torch.Tensor:
    """-λ/2 (θ-θ̂)ᵀG(θ-θ̂), (N, 65536)"""
    d = PAIRS - y[:, None]
    return -snr / 2 * ((d @ G) * d).sum(2)


# From noise of a twentieth of a level, where the sum is one pair, to 100,000 levels,
# where it is all of them.
noises = st.floats(-1.3, 5).map(lambda x: 10**x)


@share(20)
@given(noises, grams, st.sampled_from([0.0, 0.1, 3.0]), seeds)
@example(0.05, gram(1.0, 1.0, 0.0), 0.0, 1)
@example(0.15, gram(2.0, 0.7, 0.6), 0.1, 6)  # summed pair by pair
@example(0.3, gram(2.0, 0.7, 0.4), 0.1, 2)
@example(1.0, gram(5.0, 1.5, 0.3), 0.1, 3)
@example(8.0, gram(1.0, 1.0, -0.5), 0.1, 4)
@example(300.0, gram(3.0, 1.0, 0.5), 3.0, 5)
def test_the_posterior_is_the_sum_over_all_pairs(sd, G, off, seed):
    """E[θ|θ̂] and ln Σ exp(-λ/2 (θ-θ̂)ᵀG(θ-θ̂)), pair by pair.

    Also for a θ̂ far from every θ (off > 0). The exponents there are of size
    λ G (1+off)² and rounded to 1e-16 of it, on either side.
    """
    snr = snr_of(sd, G)
    noise = normal(seed, (4, 2)) @ torch.linalg.cholesky(torch.linalg.inv(G) / snr).T
    theta = PAIRS[
        torch.randint(65536, (4,), generator=torch.Generator().manual_seed(seed))
    ]
    y = theta + noise + off * normal(seed + 1, (4, 2))
    mean, log_p = posterior(y, snr, G)
    w = exponents(y, snr, G)
    error = 1e-13 + 1e-15 * float(w.abs().max())
    torch.testing.assert_close(log_p, w.logsumexp(1), rtol=0, atol=error)
    torch.testing.assert_close(mean, w.softmax(1) @ PAIRS, rtol=0, atol=error)


def test_a_large_batch_is_its_items():
    """More θ̂ than are summed at once give what each gives alone."""
    G = gram(4.0, 1.0, 0.4)
    snr = snr_of(1.0, G)
    y = 0.6 * normal(0, (9000, 2))
    mean, log_p = posterior(y, snr, G)
    for i in (0, 4095, 4096, 8191, 8999):
        one = posterior(y[i : i + 1], snr, G)
        torch.testing.assert_close(mean[i], one[0][0], rtol=0, atol=1e-13)
        torch.testing.assert_close(log_p[i], one[1][0], rtol=0, atol=1e-11)


def test_the_sums_are_taken_where_G_is():
    """Torch's default device, here the one without memory, is not asked."""
    G, y = gram(1.0, 1.0, 0.3), 0.5 * normal(0, (3, 2))
    for sd in (0.1, 2.0):
        here = posterior(y, snr_of(sd, G), G)
        with torch.device("meta"):
            there = posterior(y, snr_of(sd, G), G)
        assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


@given(grams, seeds)
def test_the_peak_is_the_nearest_point_of_the_square(G, seed):
    """(p-θ̂)ᵀG(p-θ̂) is 0 where θ̂ is inside [-1, 1]², else the least that any of the
    four sides has: along a side it is a parabola, least at its foot or at an end."""
    y = 2 * normal(seed, (50, 2))
    p = _peak(y, G)
    assert float(p.abs().max()) <= 1

    def distance(x):
        return (((x - y) @ G) * (x - y)).sum(1)

    least = torch.where((y.abs() <= 1).all(1), 0.0, torch.inf)
    for k in (0, 1):
        for bound in (-1.0, 1.0):
            side = torch.full_like(y, bound)
            foot = y[:, 1 - k] - (bound - y[:, k]) * G[0, 1] / G[1 - k, 1 - k]
            side[:, 1 - k] = foot.clamp(-1, 1)
            least = torch.minimum(least, distance(side))
    size = float(G.max()) * (y - p).square().sum(1)
    assert bool(((distance(p) - least).abs() <= 1e-13 * size).all())


@given(noises, grams)
def test_the_reach_is_eight_and_a_half_deviations(sd, G):
    """ln of the Gaussian at 8.5 σ is -36, float64's last digit; a level more on either
    side for rounding, one for where the noise ends between two, and none in vain: the
    cost goes by the square. σ² of θ̂_a is G_bb / (λ det G)."""
    snr = snr_of(sd, G)
    det = float(G[0, 0] * G[1, 1] - G[0, 1] ** 2)
    sigma = math.sqrt(float(G.diag().max()) / (snr * det)) / STEP
    beyond = _reach(snr, G) - 8.5 * sigma
    assert 2 - 1e-9 * sigma <= beyond < 3 + 1e-9 * sigma


@given(noises, st.builds(gram, st.just(1.0), st.just(1.0), st.floats(-0.99, 0.99)))
@example(0.4, gram(1.0, 1.0, 0.0))  # nine nodes a level
@example(8 / 3, gram(1.0, 1.0, 0.0))  # nodes two levels apart
@example(3.5, gram(1.0, 1.0, 0.0))
@example(2.2, gram(1.0, 1.0, 0.9888))  # a reach of 128 levels
def test_the_nodes_stand_for_the_whole_range(sd, G):
    """The trapezoid rule from the reach below the lowest level to that above the
    highest: each node stands for one or more, all as far apart as the first two, and
    not twice as near as 3/4 of the width that the integrand has to show."""
    snr = snr_of(sd, G)
    axis, weight = nodes(snr, G)
    levels = (axis + 1) / STEP
    h = float(levels[1] - levels[0])
    needed = max(1 / 32, 0.75 * min(sd, sd**2)) * (1 + 1e-9)
    assert needed / 2 < h <= needed
    assert float(levels[0]) == pytest.approx(-_reach(snr, G))
    assert int(weight.min()) >= 1
    assert -1e-6 < h * float(weight.sum()) - (256 + 2 * _reach(snr, G)) < h


@share(10)
@given(st.floats(math.log10(0.05), 3).map(lambda x: 10**x), grams)
@example(0.05, gram(1.0, 1.0, 0.0))
@example(0.4, gram(3.0, 1.0, 0.4))
@example(8 / 3, gram(1.0, 1.0, 0.0))  # nodes two levels apart
@example(3.5, gram(4.0, 0.6, 0.4))
@example(30.0, gram(1.0, 1.0, -0.3))
def test_the_nodes_integrate_the_density_of_what_is_seen(sd, G):
    """∫ Σ_θ exp(-λ/2 (θ-θ̂)ᵀG(θ-θ̂)) dθ̂ = 65536 · 2π / (λ √det G): each pair's Gaussian.

    Nodes 3/4 of a deviation apart leave exp(-2π²/0.75²) = 6e-16 of it.
    """
    snr = snr_of(sd, G)
    axis, weight = nodes(snr, G)
    h = float(axis[1] - axis[0])
    _, log_p = posterior(torch.cartesian_prod(axis, axis), snr, G)
    integral = h**2 * (torch.outer(weight, weight).flatten() * log_p.exp()).sum()
    exact = 65536 * 2 * math.pi / (snr * float(torch.linalg.det(G)) ** 0.5)
    assert float(integral) == pytest.approx(exact, rel=1e-11)
