"""Laws of the discrete decoder, eq. 13.

What lives here: laws of `decoder.py`. Means and variances are drawn as wide as any
network could make them; the true value comes from `numpy_reference.py`'s quadrature.
"""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tinyddpm.decoder import log_decoder, sigma2_1, to_levels

from tinyddpm import Schedule, linear_schedule
from tinyddpm.workshop.pictures import to_float

from ..reference import numpy_reference as reference

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


@pytest.mark.parametrize(("level", "mean"), [(0.0, -50.0), (255.0, 50.0)])
def test_the_end_bins_reach_to_infinity(level, mean):
    """Eq. 13: δ+(1) = ∞ and δ-(-1) = -∞, so a mean far beyond x = ±1 costs nothing."""
    mean = torch.tensor(mean, dtype=torch.float64)
    level = torch.tensor([level], dtype=torch.float64)
    assert float(log_decoder(level, mean, 1e-4)) == 0.0


def test_levels_are_read_from_every_float_that_stands_for_one():
    """Section 3.3: x = v/127.5 - 1 gives v back, for all 256 levels and both dtypes."""
    v = torch.arange(256, dtype=torch.uint8)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(to_levels(to_float(v, dtype)), LEVELS)


@pytest.mark.parametrize("x", [0.0, 1 + 2 / 255, -1.01, 0.5, math.nan, math.inf])
def test_pictures_off_the_grid_are_refused(x):
    """Eq. 13 needs 8-bit data: what lies between the levels or beyond is an error that
    names it."""
    picture = to_float(torch.full((1, 1, 2, 2), 7, dtype=torch.uint8))
    picture[0, 0, 1, 1] = x
    given = re.escape(str(float(picture[0, 0, 1, 1])))
    with pytest.raises(ValueError, match=rf"8-bit pictures.* got x = {given}; .*uint8"):
        to_levels(picture)


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
    needs = (
        r"^sigma2 = 'beta_tilde' needs T >= 2: .* beta_tilde_2, since beta_tilde_1 = 0"
    )
    with pytest.raises(ValueError, match=needs + "; with T = 1 use sigma2 = 'beta'$"):
        sigma2_1(one, "beta_tilde")
    with pytest.raises(ValueError, match="for T >= 2, 'fixedlarge', got 'fixedlarge'"):
        sigma2_1(one, "fixedlarge")
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
