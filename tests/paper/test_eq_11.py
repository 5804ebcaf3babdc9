"""Eq. 11: the mean of the reverse step, μ_θ."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyddpm import at, p_mean, predict_x_0, q_posterior

from ..helpers import RTOL, U, agree, arrays, assert_within
from ..reference import numpy_reference as reference
from ..strategies import batches, dtypes, normal, schedules, seeds, shapes, steps


@given(schedules(), shapes, seeds, st.data())
def test_eq_11_is_eq_7_after_eq_15(s, shape, seed, data):
    """Eq. 11: μ_θ(x_t, t) = μ̃_t(x_t, x̂_0) for any ε̂.

    Both sides are sums of x_t and ε̂ divided by at most √α_t. On the right x̂_0 is as
    large as 1/√ᾱ_t, but eq. 7 multiplies it by √ᾱ_{t-1}: what is left is 1/√α_t.
    """
    x_t, eps_hat = normal(seed, shape), normal(seed + 1, shape)
    t = data.draw(steps(s, shape[0]))
    x_0_hat = predict_x_0(s, x_t, t, eps_hat)
    mu_tilde, _ = q_posterior(s, x_t, x_0_hat, t)
    size = (x_t.abs().max() + eps_hat.abs().max()) / at(s.alpha, t, x_t).sqrt()
    assert_within(p_mean(s, x_t, t, eps_hat), mu_tilde, RTOL * size)


@given(schedules(), shapes, dtypes, st.data())
def test_eq_11_is_tweedies_formula(s, shape, dtype, data):
    """Eq. 11 = (x_t + β_t ∇ log q(x_t|x_0)) / √α_t, with the score by differences.

    Tolerance: t + 8 roundings of √ᾱ_t, ᾱ_t and log q; the one of ᾱ_t counts for
    1/(1-ᾱ_t) in the factor β_t/√(1-ᾱ_t) of ε.
    """
    t = data.draw(steps(s, shape[0]))
    x_t, eps = (data.draw(batches(shape, dtype)) for _ in range(2))
    t_, x, n = arrays(t, x_t, eps)
    beta = s.beta[1:].numpy()
    b = reference.beside(beta, t_ - 1, x)
    v = reference.beside(reference.moments(beta)[1], t_, x)
    scale = abs(x) + (1 + n**2) * v**0.5 + abs(n) * b / v**1.5
    roundings = 4 * (t_.reshape(-1, *[1] * (x.ndim - 1)) + 8) * U
    error = roundings * scale / (1 - b) ** 0.5
    want = reference.mean_from_noise(beta, x, t_, n)
    agree(p_mean(s, x_t, t, eps), want, error, t=t_)


@given(schedules())
def test_at_the_last_step_the_mean_is_the_picture(s):
    """Eq. 11 at t = 1 is eq. 15: μ_θ(x_1, 1) = x̂_0, since 1-ᾱ_1 = β_1."""
    x_1, eps_hat, t = normal(0, (2, 3)), normal(1, (2, 3)), torch.ones(2).long()
    size = (x_1.abs().max() + eps_hat.abs().max()) / s.alpha[1].sqrt()
    x_0_hat = predict_x_0(s, x_1, t, eps_hat)
    assert_within(p_mean(s, x_1, t, eps_hat), x_0_hat, RTOL * size)
