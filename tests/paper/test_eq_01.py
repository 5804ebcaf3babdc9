"""Eq. 1: a step of the reverse process p_θ, line 4 of Algorithm 2."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyddpm import linear_schedule, p_mean, p_step, predict_x_0, q_posterior

from ..helpers import RTOL, U, gaussian, point_mass, some_network
from ..strategies import choices_of_sigma2, normal, schedules, seeds, shapes, steps


@given(schedules(), shapes, seeds, choices_of_sigma2, st.booleans(), st.data())
def test_a_step_adds_sigma_times_z(s, shape, seed, sigma2, clip_x_0, data):
    """Eq. 1, Alg. 2 line 4: x_{t-1} - μ_θ(x_t, t) = σ_t z, with σ_t the root of σ_t².

    σ² = β_t or β̃_t as chosen, at t = 1 too: that Algorithm 2 adds no noise there is its
    line 3. Taking the variance for its root is too small by 10.
    """
    x_t, eps_hat, z = (normal(seed + i, shape) for i in range(3))
    t = data.draw(steps(s, shape[0]))
    mean = p_step(s, x_t, t, eps_hat, torch.zeros_like(z), sigma2, clip_x_0)
    noise = p_step(s, x_t, t, eps_hat, z, sigma2, clip_x_0) - mean
    variance = s.sigma2(sigma2)[t]
    expected = torch.stack([v.sqrt() * n for v, n in zip(variance, z, strict=True)])
    size = float(mean.abs().max() + z.abs().max())
    torch.testing.assert_close(noise, expected, rtol=4 * U, atol=2 * U * size)


@given(schedules(), shapes, seeds, st.data())
def test_the_mean_of_a_step_is_eq_11(s, shape, seed, data):
    """Eq. 1 without noise is μ_θ(x_t, t) of eq. 11."""
    x_t, eps_hat = normal(seed, shape), normal(seed + 1, shape)
    t = data.draw(steps(s, shape[0]))
    mean = p_step(s, x_t, t, eps_hat, torch.zeros_like(x_t))
    assert torch.equal(mean, p_mean(s, x_t, t, eps_hat))


@given(schedules(), shapes, seeds, choices_of_sigma2, st.data())
def test_clip_takes_eq_7_of_the_clamped_estimate(s, shape, seed, sigma2, data):
    """clip_x_0: μ_θ = μ̃_t(x_t, clamp(x̂_0, -1, 1)) (eq. 7); with x̂_0 inside, eq. 11.

    The default is the paper's eq. 1, which does not clamp.
    """
    x_t, z = 3 * normal(seed, shape), normal(seed + 1, shape)
    t = data.draw(steps(s, shape[0]))
    zero, eps_hat = torch.zeros_like(z), some_network(x_t, t)
    x_0_hat = predict_x_0(s, x_t, t, eps_hat)
    mu_tilde, _ = q_posterior(s, x_t, x_0_hat.clamp(-1, 1), t)
    assert torch.equal(p_step(s, x_t, t, eps_hat, zero, sigma2, True), mu_tilde)
    inside = point_mass(s, z.clamp(-0.9, 0.9))(x_t, t)
    clipped = p_step(s, x_t, t, inside, z, sigma2, clip_x_0=True)
    plain = p_step(s, x_t, t, inside, z, sigma2, clip_x_0=False)
    size = float(x_t.abs().max()) / float(s.alpha[t].min().sqrt())
    torch.testing.assert_close(clipped, plain, rtol=0, atol=10 * RTOL * size)
    default = p_step(s, x_t, t, eps_hat, zero, sigma2)
    assert torch.equal(default, p_mean(s, x_t, t, eps_hat))


@given(schedules())
def test_unit_gaussian_data_stay_so_at_every_step(s):
    """Section 3.2: x_0 ~ N(0, I), its exact predictor, σ² = β: Var x_t = 1 at every t.

    Eq. 1 is then x_{t-1} = c x_t + σ z with c² + σ² = 1. One call per coefficient, all
    t at once.
    """
    t = torch.arange(1, s.T + 1)
    one, zero = torch.ones(s.T).double(), torch.zeros(s.T).double()
    oracle = gaussian(s)
    c = p_step(s, one, t, oracle(one, t), zero)
    sigma = p_step(s, zero, t, oracle(zero, t), one)
    torch.testing.assert_close(c**2 + sigma**2, one, rtol=RTOL, atol=0)
    assert float(c.min()) > 0
    assert float(sigma.min()) > 0
    # Without z the pictures would shrink: c² alone is below 1 (by β_t).
    assert float((c**2 - (1 - 0.5 * s.beta[1:])).max()) <= 0


@given(schedules(), st.floats(-1, 1))
def test_a_point_mass_is_followed_back_at_every_step(s, c):
    """Section 3.2: x_0 = c, its exact predictor, σ² = β̃: q(x_t|c) goes to q(x_{t-1}|c).

    Mean √ᾱ_t c and variance 1-ᾱ_t pushed through eq. 1 are those of t-1, down to (c, 0)
    at t = 0.
    """
    t = torch.arange(1, s.T + 1)
    alpha_bar, before = s.alpha_bar[1:], s.alpha_bar[:-1]
    zero, one = torch.zeros(s.T).double(), torch.ones(s.T).double()

    def step(c, x_t, z):
        return p_step(s, x_t, t, point_mass(s, c)(x_t, t), z, "beta_tilde")

    mean = step(c, alpha_bar.sqrt() * c, zero)
    close = {"rtol": RTOL, "atol": RTOL}
    torch.testing.assert_close(mean, before.sqrt() * c, **close)
    a, sigma = step(0.0, one, zero), step(0.0, zero, one)
    variance = a**2 * (1 - alpha_bar) + sigma**2
    torch.testing.assert_close(variance, 1 - before, **close)


def test_an_unknown_sigma2_is_refused():
    """σ_t² has a name that `Schedule.sigma2` knows; another is an error, no default."""
    s, x, t = linear_schedule(), torch.zeros(1, 2), torch.tensor([5])
    with pytest.raises(ValueError, match=r"'beta', 'beta_tilde' or.*got 'learned'"):
        p_step(s, x, t, x, x, "learned")
