"""Eq. 13: the discrete decoder, and L_0, its cost.

Means and variances are drawn as wide as any network could make them; the true value
comes from NumPy's quadrature.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyddpm import (
    L_0,
    Schedule,
    linear_schedule,
    log_decoder,
    p_mean,
    predict_x_0,
    q_sample,
    to_uint8,
)
from tinyddpm.bound import sigma2_1

from ..helpers import SHAPE, WRONG_SHAPES, random_pictures, shape_refused
from ..reference import numpy_reference as reference
from ..strategies import normal

LEVELS = torch.arange(256, dtype=torch.float64)
# σ_1 from a hundredth of a level, where a bin is a step, to five times the range.
sigmas = st.floats(math.log(1e-4), math.log(10)).map(math.exp)
# Means inside and far outside of [-1, 1]; at σ_1 = 1e-4 this is 30,000 σ_1 away.
means = st.one_of(st.floats(-1.1, 1.1), st.floats(-4, 4))


def log_p(mean: float, sigma: float) -> torch.Tensor:
    return log_decoder(LEVELS, torch.tensor(mean, dtype=torch.float64), sigma**2)


@given(means, sigmas)
def test_the_256_bins_sum_to_one(mean, sigma):
    """Eq. 13: the bins tile the line, the two at the ends reaching to infinity.

    Each of the 256 terms is right to some units in its last place, so the sum is too.
    """
    assert abs(float(log_p(mean, sigma).logsumexp(0))) < 1e-12


@given(means, sigmas, st.integers(0, 255))
def test_each_bin_is_the_integral_of_the_density(mean, sigma, level):
    """Eq. 13 against Gauss-Legendre quadrature from the bin's highest point.

    d ln p is about |a| da in the tail, and a = (δ - μ)/σ is right to 3 roundings of a
    number up to 5/σ: hence the absolute part. log_ndtr is right to some 1e-15.
    """
    found = float(log_p(mean, sigma)[level])
    exact = reference.log_bin_probability(level, mean, sigma)
    farthest = (abs(mean) + 2) / sigma
    assert found == pytest.approx(exact, rel=1e-12, abs=1e-12 + 1e-15 * farthest**2)


@given(means, sigmas)
def test_mirrored_pictures_cost_the_same(mean, sigma):
    """Eq. 13 is symmetric: p(v|μ) = p(255 - v|-μ), so both tails are equally exact."""
    there, mirrored = log_p(mean, sigma), log_p(-mean, sigma).flip(0)
    farthest = (abs(mean) + 2) / sigma
    torch.testing.assert_close(
        there, mirrored, rtol=1e-12, atol=1e-12 + 1e-15 * farthest**2
    )


@pytest.mark.parametrize("far", [60.0, 1e3, 1e6, 1e12])
def test_a_picture_the_network_gets_badly_wrong_costs_finitely_much(far):
    """Eq. 13 `far` σ_1 from the mean: about far²/2 nats, on either side, never -inf."""
    sigma = 0.01
    for side in (-1, 1):
        mean = torch.tensor(side * far * sigma, dtype=torch.float64)
        cost = -float(log_decoder(torch.tensor([127.0]).double(), mean, sigma**2))
        assert cost == pytest.approx(far**2 / 2, rel=2 / far + 1e-3)


@pytest.mark.parametrize("far", [60.0, 1e3, 1e5])
@pytest.mark.parametrize("level", [0.0, 127.0, 255.0])
def test_far_out_the_gradient_is_that_of_the_tail(far, level):
    """Eq. 13 `far` σ_1 from x: -ln p is a parabola of slope far/σ_1, up to the bin's
    half width (0.4 σ_1 here) and 1/far; an open end has no tail on its own side.
    """
    sigma, x = 0.01, level / 127.5 - 1
    for side in (-1, 1):
        mean = torch.tensor([x + side * far * sigma]).double().requires_grad_()
        cost = -log_decoder(torch.tensor([level]).double(), mean, sigma**2)
        (slope,) = torch.autograd.grad(cost.sum(), mean)
        inside = (level, side) in ((0.0, -1), (255.0, 1))
        expected = 0.0 if inside else side * far / sigma
        assert float(slope) == pytest.approx(expected, rel=2 / far + 1e-6, abs=1e-12)


@pytest.mark.parametrize(("level", "mean"), [(0.0, -50.0), (255.0, 50.0)])
def test_the_end_bins_reach_to_infinity(level, mean):
    """Eq. 13: δ+(1) = ∞ and δ-(-1) = -∞, so a mean far beyond x = ±1 costs nothing."""
    mean = torch.tensor(mean, dtype=torch.float64)
    level = torch.tensor([level], dtype=torch.float64)
    assert float(log_decoder(level, mean, 1e-4)) == 0.0


def test_L_0_takes_its_mean_from_the_last_step():
    """Eq. 13: μ_θ(x_1, 1), the mean of eq. 11, is x̂_0, and its variance σ_1².

    Each number is compared with the quadrature of the density.
    """
    s = linear_schedule(40)
    x_0, t = random_pictures(0, (3, 1, 2, 2)).double(), torch.ones(3).long()
    x_1 = q_sample(s, x_0, t, normal(1, x_0.shape))
    eps_hat = normal(2, x_0.shape)
    mean, v = p_mean(s, x_1, t, eps_hat), to_uint8(x_0)
    for sigma2 in ("beta", "beta_tilde"):
        sigma = math.sqrt(sigma2_1(s, sigma2))
        exact = [
            -sum(
                reference.log_bin_probability(int(level), float(m), sigma)
                for level, m in zip(v[i].flatten(), mean[i].flatten(), strict=True)
            )
            for i in range(3)
        ]
        found = L_0(s, x_0, predict_x_0(s, x_1, t, eps_hat), sigma2)
        torch.testing.assert_close(
            found, torch.tensor(exact, dtype=torch.float64), rtol=1e-9, atol=0
        )


# The mean lies on x, half a bin beside it, at the far end, or a thousand σ_1 away.
@pytest.mark.parametrize("level", [0, 1, 128, 254, 255])
@pytest.mark.parametrize("off", [0.0, 1 / 255, -1 / 255, 0.02, -2.0, 2.0, 10.0, -10.0])
def test_the_gradient_of_the_decoder(level, off):
    """∂L_0/∂x̂_0 is finite and is the central difference, at the two open ends too.

    Eq. 13's bins are open at x = ±1: one of the two Φ is 0 or 1 whatever the mean.
    h = σ_1/2000 leaves h²/6 of the third derivative (1e-7 of slopes of the size of the
    distance in σ_1, over σ_1) and the rounding of L_0 over h.
    """
    s = linear_schedule(40)
    sigma = math.sqrt(sigma2_1(s))
    x_0 = torch.full((1, 1), level / 127.5 - 1, dtype=torch.float64)
    x_0_hat = (x_0 + off).requires_grad_()
    (slope,) = torch.autograd.grad(L_0(s, x_0, x_0_hat), x_0_hat)
    assert bool(slope.isfinite().all())
    h = sigma / 2000
    ends = [float(L_0(s, x_0, x_0_hat.detach() + d)) for d in (h, -h)]
    difference = (ends[0] - ends[1]) / (2 * h)
    rounding = 2.0**-50 * (1 + abs(ends[0])) / h
    away = (abs(off) + 1 / 255) / sigma
    assert abs(difference - float(slope)) <= 1e-6 * (1 + away) / sigma + rounding
    if 0 < level < 255 and off:  # it falls towards the bin, from either side
        assert float(slope) * off > 0


def test_the_decoders_variance():
    """σ_1² is β_1; with β̃, whose β̃_1 is 0, and in the authors' code always, it is β̃_2,
    which T = 1 has not.
    """
    s = linear_schedule(50)
    assert sigma2_1(s) == float(s.beta[1])
    assert sigma2_1(s, "beta_tilde") == float(s.beta_tilde[2]) > 0
    assert sigma2_1(s, "fixedlarge") == float(s.beta_tilde[2])
    one = Schedule(torch.tensor([0.5]))
    assert sigma2_1(one, "beta") == 0.5
    for choice in ("beta_tilde", "fixedlarge"):
        needs = "for T >= 2, 'fixedlarge' .which eq. 13 takes for 'beta_tilde' too"
        with pytest.raises(ValueError, match=needs):
            sigma2_1(one, choice)
    with pytest.raises(ValueError, match="must be 'beta', 'beta_tilde'"):
        sigma2_1(s, "gamma")


@pytest.mark.parametrize(("choice", "L_0"), [("fixedlarge", 1.97), ("beta", 2.09)])
def test_the_papers_distortion_goes_with_its_decoder(choice, L_0):
    """Section 4.3 prints RMSE 0.95 (0.95136 in table 4) and L_0 = 1.97 bits/dim.

    Errors of that size, taken as Gaussian, cost so many bits with σ_1² = β̃_2, which is
    what the authors' code has; with β_1 they cost 2.09. The mean over errors is a sum
    over a fine grid; real errors are not quite Gaussian, hence 0.01.
    """
    rmse = 0.95136 / 127.5
    error = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    p = torch.exp(-error.square() / 2)
    level = torch.tensor(100.0).double()
    mean = level / 127.5 - 1 + rmse * error
    variance = sigma2_1(linear_schedule(), choice)
    bits = -log_decoder(level, mean, variance) / math.log(2)
    assert abs(float((p * bits).sum() / p.sum()) - L_0) < 0.01


def test_sigma2_is_beta_unless_told():
    """Section 3.2: σ_1² = β_1 is eq. 13's where none is named."""
    s = linear_schedule(40)
    x_0, x_0_hat = random_pictures(0, (2, 1, 2, 2)), normal(1, (2, 1, 2, 2))
    assert torch.equal(L_0(s, x_0, x_0_hat), L_0(s, x_0, x_0_hat, "beta"))


@pytest.mark.parametrize("shape", WRONG_SHAPES)
def test_a_shape_that_merely_broadcasts_is_refused(shape):
    """x̂_0 has the shape of x_0: one that broadcasts is of other pictures."""
    x_0 = random_pictures(0, SHAPE)
    with pytest.raises(ValueError, match=shape_refused("x_0_hat", shape)):
        L_0(linear_schedule(40), x_0, torch.zeros(shape))
