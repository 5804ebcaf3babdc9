"""Eq. 3, 5 and 16: three forms of the bound L, and that it is a bound.

Where the data and the network are Gaussian and linear, every term is a polynomial of
degree 2 in x_0 and ε, so that expectations are sums over the nodes of Gauss-Hermite
quadrature: exact, without sampling.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyddpm import (
    L_0,
    L_T,
    L_tm1,
    Schedule,
    bits_per_dim,
    linear_schedule,
    p_mean,
    predict_x_0,
    q_sample,
    q_step,
    to_float,
    to_uint8,
)
from tinyddpm.beyond.gradients import gradient_images
from tinyddpm.beyond.oracle import (
    finite_oracle,
    gaussian_nll,
    gaussian_oracle,
    gradient_oracle,
)
from tinyddpm.bound import sigma2_1

from ..helpers import BITS
from ..reference import numpy_reference as reference
from ..strategies import choices_of_sigma2, normal, schedules, seeds

SHORT = schedules(min_T=2, max_T=60)


def nodes(n):
    """z_i and w_i with Σ w_i f(z_i) = E f(z), z ~ N(0, 1), for degree < 2n."""
    z, w = np.polynomial.hermite_e.hermegauss(n)
    return torch.from_numpy(z), torch.from_numpy(w / w.sum())


def gaussian_grid(mean, variance, n=3):
    """(x, ε, weight), (n², 1) each: x ~ N(mean, variance) and ε ~ N(0, 1) beside it."""
    z, w = nodes(n)
    x = mean + math.sqrt(variance) * z.repeat_interleave(n)
    return x[:, None], z.repeat(n)[:, None], torch.outer(w, w).flatten()


def log_normal(x, mean, variance):
    return -((x - mean) ** 2 / variance + torch.log(2 * math.pi * variance))[:, 0] / 2


def linear_network(a, b):
    """ε_θ(x, t) = a_t x + b_t, right for no data in particular."""
    return lambda x, t: a[t][:, None] * x + b[t][:, None]


def eq_5(s, eps_theta, mean, variance, sigma2):
    """L by terms, the library's; -ln p(x_0|x_1) as a density, x_0 being continuous."""
    x_0, eps, w = gaussian_grid(mean, variance)
    total = float(w @ L_T(s, x_0))
    for step in range(1, s.T + 1):
        t = torch.full((len(x_0),), step)
        x_t = q_sample(s, x_0, t, eps)
        x_0_hat = predict_x_0(s, x_t, t, eps_theta(x_t, t))
        if step > 1:
            nats = L_tm1(s, x_0, t, x_0_hat, sigma2)
        else:
            var = torch.tensor(sigma2_1(s, sigma2)).double()
            nats = -log_normal(x_0, x_0_hat, var)
        total += float(w @ nats)
    return total


def reverse_mean_and_variance(s, eps_theta, x_t, step, sigma2):
    """p_θ(x_{t-1}|x_t) by eq. 11, with the decoder's variance at t = 1."""
    t = torch.full((len(x_t),), step)
    variance = s.sigma2(sigma2)[step] if step > 1 else sigma2_1(s, sigma2)
    return p_mean(s, x_t, t, eps_theta(x_t, t)), torch.as_tensor(variance).double()


def eq_3(s, eps_theta, mean, variance, sigma2):
    """L = E_q[-ln p(x_T) - Σ_t ln p_θ(x_{t-1}|x_t) / q(x_t|x_{t-1})]."""
    total, m, v = 0.0, mean, variance
    for step in range(1, s.T + 1):
        x, z, w = gaussian_grid(m, v)
        t, beta = torch.full((len(x),), step), s.beta[step]
        x_t = q_step(s, x, t, z)
        mu, sigma2_t = reverse_mean_and_variance(s, eps_theta, x_t, step, sigma2)
        p = log_normal(x, mu, sigma2_t)
        q = log_normal(x_t, (1 - beta).sqrt() * x, beta)
        total -= float(w @ (p - q))
        a = float(1 - beta)
        m, v = math.sqrt(a) * m, a * v + float(beta)
    x, _, w = gaussian_grid(m, v)
    return total - float(w @ log_normal(x, torch.zeros(()), torch.ones(())))


def eq_16(s, eps_theta, mean, variance, sigma2):
    """L = KL(q(x_T) ‖ p(x_T)) + E_q Σ_t KL(q(x_{t-1}|x_t) ‖ p_θ(x_{t-1}|x_t)) + H(x_0)

    q(x_{t-1}|x_t), which does not know x_0, by multiplying Gaussians.
    """
    total, m, v = math.log(2 * math.pi * math.e * variance) / 2, mean, variance
    for step in range(1, s.T + 1):
        a, beta = float(s.alpha[step]), float(s.beta[step])
        x_t, _, w = gaussian_grid(math.sqrt(a) * m, a * v + beta)
        precision = 1 / v + a / beta
        back = (m / v + math.sqrt(a) * x_t / beta) / precision
        mu, sigma2_t = reverse_mean_and_variance(s, eps_theta, x_t, step, sigma2)
        kl = reference.gaussian_kl(
            back.numpy(), 1 / precision, mu.numpy(), float(sigma2_t)
        )
        total += float(w @ torch.from_numpy(kl)[:, 0])
        m, v = math.sqrt(a) * m, a * v + beta
    return total + float(reference.gaussian_kl(np.array(m), v, np.array(0.0), 1.0))


@given(SHORT, st.floats(-2, 2), st.floats(0.01, 4), choices_of_sigma2, seeds)
def test_the_three_forms_of_L_agree(s, mean, variance, sigma2, seed):
    """Eq. 3 = eq. 5 = eq. 16 for Gaussian data and any linear network (App. A).

    All three are exact expectations. They cancel numbers of the size of their terms,
    each right to U / MIN_BETA: 1e-7 of the sum leaves room for 60 steps.
    """
    a, b = normal(seed, (2, s.T + 1))
    a = a * (1 - s.alpha_bar).sqrt()  # the size of the best one, so that L is too
    eps_theta = linear_network(a, b)
    arguments = (s, eps_theta, mean, variance, sigma2)
    forms = [form(*arguments) for form in (eq_3, eq_5, eq_16)]
    assert forms[0] == pytest.approx(forms[1], rel=1e-7, abs=1e-7)
    assert forms[2] == pytest.approx(forms[1], rel=1e-7, abs=1e-7)


def same_noise_in(T):
    """T steps that together add what the paper's 1000 add: ᾱ sampled from one curve."""
    u = torch.linspace(0, 1, T + 1, dtype=torch.float64)
    so_far = 0.1 * u + 19.9 * u**2 / 2  # ∫ of the paper's 1000 β_t
    return Schedule(-torch.expm1(-so_far.diff()))


@pytest.mark.parametrize(("mean", "variance"), [(0.3, 0.25), (-1.0, 0.01)])
def test_the_gaussian_oracles_bound_approaches_the_nll(mean, variance):
    """L >= E[-log p(x_0)], and L - that falls as 1/T, for the exact predictor, σ² = β.

    x_0 is continuous, so -ln p_θ(x_0|x_1) is a density, not eq. 13's bins, and
    E[-log p(x_0)] the entropy of the Gaussian. Tripling T must divide the gap by 3;
    2.4 is left for the terms in 1/T².
    """
    m, cov = torch.tensor([mean]).double(), torch.tensor([[variance]]).double()
    x_0, _, w = gaussian_grid(mean, variance)
    nll = float(w @ gaussian_nll(m, cov, x_0))
    gaps = []
    for T in (10, 30, 100, 300, 1000):
        s = same_noise_in(T)
        gaps.append(eq_5(s, gaussian_oracle(s, m, cov), mean, variance, "beta") - nll)
    assert min(gaps) > 0
    ratios = [big / small for big, small in pairwise(gaps)]
    assert min(ratios[1:]) > 2.4, gaps
    assert gaps[-1] < gaps[0] / 50


@given(SHORT)
def test_the_bound_of_unit_gaussian_data_is_their_nll(s):
    """Section 3.2: σ_t² = β_t is right for x_0 ~ N(0, 1), so every step's KL in
    eq. 16 is 0 with the exact predictor, and L = H(x_0), whatever the schedule.
    """
    oracle = gaussian_oracle(s, torch.zeros(1), torch.eye(1))
    entropy = math.log(2 * math.pi * math.e) / 2
    assert eq_5(s, oracle, 0.0, 1.0, "beta") == pytest.approx(entropy, rel=1e-7)


@pytest.mark.parametrize("sigma2", ["beta", "beta_tilde"])
def test_the_bound_of_discrete_data_approaches_their_entropy(sigma2):
    """L >= H(x_0), eq. 13's bins and all, and nears it with fine steps and small σ_1.

    One number with 3 levels of probability ½, ¼, ¼: H = 1.5 bits. The expectation is
    a sum over levels and 80 Gauss-Hermite nodes of ε; the exact predictor is smooth at
    the noise that matters. A network that is not exact must pay more.
    """
    points = to_float(torch.tensor([[40], [40], [41], [200]]).byte(), torch.float64)
    z, w = nodes(80)
    x_0, eps = points.repeat_interleave(80, 0), z.repeat(4)[:, None]
    w = w.repeat(4) / 4

    def L(s, eps_theta):
        nats = L_T(s, x_0)
        for step in range(1, s.T + 1):
            t = torch.full((len(x_0),), step)
            x_t = q_sample(s, x_0, t, eps)
            x_0_hat = predict_x_0(s, x_t, t, eps_theta(x_t, t))
            if step > 1:
                nats = nats + L_tm1(s, x_0, t, x_0_hat, sigma2)
            else:
                nats = nats + L_0(s, x_0, x_0_hat, sigma2)
        return float(w @ nats) * BITS

    totals, worse = [], []
    for T in (100, 400):
        alpha_bar = torch.sigmoid(torch.linspace(16, -12, T).double())
        before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
        s = Schedule(1 - alpha_bar / before)
        oracle = finite_oracle(s, points)
        totals.append(L(s, oracle))
        worse.append(L(s, lambda x, t, e=oracle: 0.98 * e(x, t)))
    assert 1.5 < totals[1] < totals[0]
    assert totals[1] - 1.5 < (totals[0] - 1.5) / 3
    assert all(a > b for a, b in zip(worse, totals, strict=True))


def test_the_gradients_cost_at_least_their_entropy():
    """L >= H(x_0): 2 log2(256) bits a channel, the two corner colours, / (H W) a dim.

    The pictures are rounded to the grid; their corners keep a and b, so the entropy is
    that of the colours. 64 pictures; the bound must lie 5 standard errors above.
    """
    s, g = linear_schedule(40), torch.Generator().manual_seed(0)
    x_0 = to_float(to_uint8(gradient_images(64, 4, 5, g)))
    bound = bits_per_dim(s, gradient_oracle(s, 4, 5), x_0, g)
    error = float(bound.total.std()) / 8
    assert float(bound.total.mean()) - 5 * error > 2 * 8 / (4 * 5)
