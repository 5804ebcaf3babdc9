"""Eq. 6 and 7: the posterior of the forward process is Bayes' rule."""

import math

import numpy as np
import torch
from hypothesis import given, note
from hypothesis import strategies as st

from tinyddpm import Schedule, q_posterior, q_sample

from ..helpers import RTOL, agree, arrays, coefficients, spread
from ..reference import numpy_reference as reference
from ..strategies import batches, dtypes, normal, schedules, seeds, shapes, steps


def posterior_mean(s, x_t, t, x_0):
    return q_posterior(s, x_t, x_0, t)[0]


@given(schedules(), shapes, dtypes, st.data())
def test_the_posterior_multiplies_two_gaussians(s, shape, dtype, data):
    """Eq. 7 is Bayes' rule: precisions add, and weigh the two means (t = 1: x_0, 0).

    By NumPy, at mixed t, in both dtypes; the variance is one number for each picture.
    """
    t = data.draw(steps(s, shape[0]))
    x_t, x_0 = (data.draw(batches(shape, dtype)) for _ in range(2))
    t_, x, x0 = arrays(t, x_t, x_0)
    beta = s.beta[1:].numpy()
    mean, variance = reference.posterior(beta, x, x0, t_)
    error = spread(reference.moments(beta)[1], t_, x)
    mu_tilde, beta_tilde_t = q_posterior(s, x_t, x_0, t)
    agree(mu_tilde, mean, error * (abs(x) + abs(x0)), t=t_)
    agree(beta_tilde_t, variance, error * variance, t=t_)
    assert beta_tilde_t.flatten().tolist() == s.beta_tilde[t].to(dtype).tolist()


inside = st.floats(-3, 3)


@given(
    st.lists(st.floats(1e-3, 0.99), min_size=2, max_size=10),  # for the grid to be fine
    inside,
    inside,
    st.data(),
)
def test_the_posterior_is_bayes_rule(beta, x_t, x_0, data):
    """Eq. 6: q(x_t|x_{t-1}) q(x_{t-1}|x_0) / ∫ is the density of N(μ̃_t, β̃_t) of eq. 7.

    On a grid. Tolerance: log densities up to 1e4 with 16 digits, as part of the peak.
    """
    t = data.draw(st.integers(2, len(beta)))
    x, p = reference.posterior_on_a_grid(np.array(beta), x_t, x_0, t)
    s = Schedule(torch.tensor(beta, dtype=torch.float64))
    pixel = torch.tensor([x_t, x_0], dtype=torch.float64)
    mu, variance = q_posterior(s, pixel[:1], pixel[1:], torch.tensor([t]))
    mu, variance = mu.item(), variance.item()
    want = np.exp(-((x - mu) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
    i = np.argmax(abs(p - want))
    note(f"at x_(t-1) = {x[i]}: grid {p[i]!r}, N(μ̃, β̃) {want[i]!r}, {mu=}, {variance=}")
    assert abs(p[i] - want[i]) <= 1e-10 * want.max()


@given(schedules())
def test_the_posterior_takes_x_t_back_to_x_tm1(s):
    """Eq. 4 pushed through eq. 6 is eq. 4 at t-1, for mean and variance, every t.

    c_0 + c_t √ᾱ_t = √ᾱ_{t-1} and c_t² (1-ᾱ_t) + β̃_t = 1-ᾱ_{t-1}.
    """
    mean, deviation = coefficients(q_sample, s, first=0)
    c_t, c_0 = coefficients(posterior_mean, s)
    t = torch.arange(1, s.T + 1)
    beta_tilde = q_posterior(s, mean[1:], mean[1:], t)[1]
    close = {"rtol": RTOL, "atol": RTOL}
    torch.testing.assert_close(c_0 + c_t * mean[1:], mean[:-1], **close)
    pushed = (c_t * deviation[1:]) ** 2 + beta_tilde
    torch.testing.assert_close(pushed, deviation[:-1] ** 2, **close)


@given(schedules(), seeds, shapes)
def test_the_posterior_of_the_first_step_is_x_0(s, seed, shape):
    """Eq. 7 at t = 1: μ̃_1 = x_0 and β̃_1 = 0, since x_0 is given; x_1 says no more."""
    x_0, x_1 = normal(seed, shape), normal(seed + 1, shape)
    t = torch.ones(shape[0], dtype=torch.long)
    mu_tilde, beta_tilde = q_posterior(s, x_1, x_0, t)
    torch.testing.assert_close(mu_tilde, x_0, rtol=RTOL, atol=0)
    assert set(beta_tilde.flatten().tolist()) == {0.0}
