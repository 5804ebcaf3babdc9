"""The equations in torch against `numpy_reference.py`, which goes another road.

Tolerances. u is float64's rounding, 2^-53. In float64, ᾱ_t is a product of t factors,
each rounded: relative error about t u, and the same absolute error in 1-ᾱ_t, so that
`spread(v, t)` = 4 (t + 2) u / (1-ᾱ_{t-1}) bounds the relative error of a coefficient
that holds 1-ᾱ_t or 1-ᾱ_{t-1} (β_1 at t = 1). The result is then rounded once to the
data's dtype: float32 must be as right as float32 can be.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, note
from hypothesis import strategies as st
from torch import Tensor

from tinyddpm import bound, decoder
from tinyddpm.forward import q_posterior, q_sample, q_step
from tinyddpm.sampler import p_mean, predict_x_0
from tinyddpm.schedule import (
    Schedule,
    constant_schedule,
    linear_schedule,
    quadratic_schedule,
)
from tinyddpm.train import weight

from ..strategies import (
    batches,
    choices_of_sigma2,
    dtypes,
    end_points,
    normal,
    schedules,
    seeds,
    shapes,
    share,
    steps,
)
from . import numpy_reference as reference

U = 2.0**-53


def beta_of(s: Schedule) -> np.ndarray:
    return s.beta[1:].numpy()


def spread(v: np.ndarray, t: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Relative error of a coefficient with 1-ᾱ_{t-1} or 1-ᾱ_t in it (see above)."""
    error = 4 * (np.arange(len(v)) + 2) * U / np.maximum(np.roll(v, 1), v[1])
    error[:2] = 12 * U / v[1]
    return reference.beside(error, t, like)


def agree(got: Tensor, want: np.ndarray, error, **context) -> None:
    """|got - want| <= error + one rounding to got's dtype; prints the worst entry."""
    assert got.shape == want.shape
    difference = np.abs(got.double().numpy() - want)
    allowed = error + torch.finfo(got.dtype).eps * np.abs(want)
    worst = np.unravel_index(np.argmax(difference - allowed), want.shape)
    note(
        f"{context}, largest excess at {worst}: torch {got[worst].item()!r}, reference "
        f"{want[worst]!r}, allowed {np.broadcast_to(allowed, want.shape)[worst]:.2e}"
    )
    assert np.all(difference <= allowed)


@st.composite
def cases(draw, count: int = 2, first: int = 1):
    """(schedule, t, `count` batches): every rank 1 to 4, both dtypes, mixed t"""
    s = draw(schedules(min_T=first))
    shape, dtype = draw(shapes), draw(dtypes)
    t = draw(steps(s, shape[0], first))
    return s, t, *[draw(batches(shape, dtype)) for _ in range(count)]


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [x.double().numpy() if x.is_floating_point() else x.numpy() for x in tensors]


@pytest.mark.filterwarnings("ignore:x_T keeps")  # a short schedule is a schedule
@given(end_points())
def test_schedules_are_a_line_a_parabola_and_a_constant(ends):
    """Section 4: β_t on a line, √β_t on a line, β_t = β; by interpolation"""
    T, beta_1, beta_T = ends
    error = 8 * U * max(beta_1, beta_T)
    linear = linear_schedule(T, beta_1, beta_T).beta[1:]
    agree(linear, reference.linear_beta(T, beta_1, beta_T), error, ends=ends)
    quadratic = quadratic_schedule(T, beta_1, beta_T).beta[1:]
    agree(quadratic, reference.quadratic_beta(T, beta_1, beta_T), error, ends=ends)
    assert np.all(constant_schedule(T, beta_1).beta[1:].numpy() == beta_1)


@given(schedules())
def test_alpha_bar_is_eq_2_iterated(s):
    """√ᾱ_t and 1-ᾱ_t are the mean and variance that t steps of eq. 2 make of x_0 = 1"""
    m, v = reference.moments(beta_of(s))
    error = 2 * (np.arange(s.T + 1) + 2) * U
    agree(s.alpha_bar.sqrt(), m, error * m)
    agree(1 - s.alpha_bar, v, error)


@given(cases())
def test_q_step_keeps_unit_variance(case):
    """Eq. 2: x_t = a x_{t-1} + b z with b² = β_t and a² + b² = 1, a > 0"""
    s, t, x_tm1, z = case
    one, zero = torch.ones_like(x_tm1).double(), torch.zeros_like(x_tm1).double()
    a, b = q_step(s, one, t, zero).numpy(), q_step(s, zero, t, one).numpy()
    beta = reference.beside(s.beta.numpy(), t.numpy(), a)
    assert np.max(np.abs(b**2 / beta - 1)) <= 4 * U
    assert np.max(np.abs(a**2 + b**2 - 1)) <= 4 * U
    assert a.min() > 0
    x, n = arrays(x_tm1, z)
    agree(q_step(s, x_tm1, t, z), a * x + b * n, 4 * U * (abs(x) + abs(n)), t=t)


@given(cases())
def test_q_sample_is_eq_2_iterated(case):
    """Eq. 4 has the mean and the standard deviation of eq. 2's iteration, at mixed t"""
    s, t, x_0, eps = case
    t_, x, n = arrays(t, x_0, eps)
    m, v = (reference.beside(table, t_, x) for table in reference.moments(beta_of(s)))
    want = m * x + np.sqrt(v) * n
    error = (reference.beside(np.arange(s.T + 1), t_, x) + 4) * U
    # 1-ᾱ has absolute error t u, its root t u / 2√(1-ᾱ)
    allowed = error * (m * abs(x) + abs(n) / np.sqrt(v))
    agree(q_sample(s, x_0, t, eps), want, allowed, t=t_)


@given(schedules(max_T=40))
def test_steps_of_noise_add_up_to_eq_4(s):
    """q_step after q_step: the squares of x_T's responses to z_1..z_T sum to 1-ᾱ_T

    Row 0 starts at x_0 = 1 without noise, row k at x_0 = 0 with z_k = 1 and no other.
    """
    x = torch.eye(s.T + 1, dtype=torch.float64)[:, 0]
    for k in range(1, s.T + 1):
        z = torch.eye(s.T + 1, dtype=torch.float64)[:, k]
        x = q_step(s, x, torch.full((s.T + 1,), k), z)
    error = 4 * (s.T + 2) * U
    assert abs(float(x[0] ** 2 - s.alpha_bar[-1])) <= error
    assert abs(float(x[1:].square().sum() - (1 - s.alpha_bar[-1]))) <= error


@given(cases())
def test_q_posterior_multiplies_gaussians(case):
    """Eq. 7 is Bayes' rule: precisions add, and weigh the two means (t = 1: x_0, 0)"""
    s, t, x_t, x_0 = case
    t_, x, x0 = arrays(t, x_t, x_0)
    mean, variance = reference.posterior(beta_of(s), x, x0, t_)
    error = spread(reference.moments(beta_of(s))[1], t_, x)
    mu_tilde, beta_tilde_t = q_posterior(s, x_t, x_0, t)
    agree(mu_tilde, mean, error * (abs(x) + abs(x0)), t=t_)
    agree(beta_tilde_t, variance, error * variance, t=t_)


inside = st.floats(-3, 3)


@given(
    st.lists(st.floats(1e-3, 0.99), min_size=2, max_size=10),  # for the grid to be fine
    inside,
    inside,
    st.data(),
)
def test_q_posterior_is_bayes_rule_on_a_grid(beta, x_t, x_0, data):
    """Eq. 6: q(x_t|x_{t-1}) q(x_{t-1}|x_0) / ∫ is the density of N(μ̃_t, β̃_t)

    Tolerance: log densities up to 1e4 with 16 digits, as part of the peak density.
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


@given(cases())
def test_predict_x_0_undoes_eq_2(case):
    """Eq. 15: take off the noise that ε stands for, undo the scaling of every step"""
    s, t, x_t, eps = case
    t_, x, n = arrays(t, x_t, eps)
    want = reference.x_0_from_noise(beta_of(s), x, t_, n)
    m, v = (reference.beside(table, t_, x) for table in reference.moments(beta_of(s)))
    error = 2 * (t_.max() + 4) * U * (abs(x) + abs(n) / np.sqrt(v)) / m
    agree(predict_x_0(s, x_t, t, eps), want, error, t=t_)


@given(cases())
def test_p_mean_is_tweedies_formula_and_eq_7_after_eq_15(case):
    """Eq. 11 = (x_t + β_t ∇ log q(x_t|x_0)) / √α_t = μ̃_t(x_t, x̂_0), for any ε

    Tolerance: t + 8 roundings of √ᾱ_t, ᾱ_t and log q; the one of ᾱ_t counts for
    1/(1-ᾱ_t) in the factor β_t/√(1-ᾱ_t) of ε.
    """
    s, t, x_t, eps = case
    t_, x, n = arrays(t, x_t, eps)
    beta = beta_of(s)
    b = reference.beside(beta, t_ - 1, x)
    v = reference.beside(reference.moments(beta)[1], t_, x)
    scale = abs(x) + (1 + n**2) * np.sqrt(v) + abs(n) * b / v**1.5
    error = 4 * (reference.beside(np.arange(s.T + 1), t_, x) + 8) * U * scale
    error = error / np.sqrt(1 - b)
    got = p_mean(s, x_t, t, eps)
    agree(got, reference.mean_from_noise(beta, x, t_, n), error, t=t_)
    x_0 = reference.x_0_from_noise(beta, x, t_, n)
    agree(got, reference.posterior(beta, x, x_0, t_)[0], error, t=t_)


@given(schedules(min_T=2), choices_of_sigma2, st.data())
def test_weight_is_the_kl_that_an_error_in_eps_costs(s, sigma2, data):
    """Eq. 12: β_t²/(2σ_t² α_t (1-ᾱ_t)) = KL of the two Gaussians eq. 11 and eq. 7 give

    From t = 2 for σ² = β̃, since β̃_1 = 0.
    """
    t = data.draw(steps(s, 4, first=2 if sigma2 == "beta_tilde" else 1))
    t_, v = t.numpy(), reference.moments(beta_of(s))[1]
    variance = beta_of(s)[t_ - 1]
    if sigma2 == "beta_tilde":
        zero = np.zeros(4)
        _, variance = reference.posterior(beta_of(s), zero, zero, t_)
    want = reference.noise_weight(beta_of(s), t_, variance)
    error = 4 * spread(v, t_, want) * want
    agree(weight(s, t, sigma2), want, error, t=t_, sigma2=sigma2)


@given(st.integers(0, 255), inside, st.floats(1e-3, 1))
def test_log_decoder_is_the_integral_over_the_bin(level, mean, sigma):
    """Eq. 13: log of the density's integral over x ± 1/255, open at x = ±1, any tail

    σ_1 from a tenth of the paper's. Tolerance: the bin's ends in units of σ carry
    rounding errors of 8 u / σ, which the slope of log p, about |top|, magnifies; a
    narrow bin is a difference of two nearly equal Φ.
    """
    got = decoder.log_decoder(
        *torch.tensor([[level], [mean]], dtype=torch.float64), sigma**2
    )
    want = reference.log_bin_probability(level, mean, sigma)
    top, width = 4 / sigma, 2 / 255 / sigma
    error = 64 * U * (1 + top) * top * (1 + 1 / width)
    agree(got, np.array([want]), error, level=level, mean=mean, sigma=sigma)


@share(10)
@given(inside, st.floats(1e-3, 1))
def test_the_reference_bins_sum_to_one_and_are_differences_of_phi(mean, sigma):
    """Eq. 13's 256 bins cover the line: Σ p = 1; each is Φ(b) - Φ(a) by math.erf"""
    got = [reference.log_bin_probability(k, mean, sigma) for k in range(256)]
    assert abs(math.fsum(map(math.exp, got)) - 1) <= 1e-13
    ends = [-math.inf, *[(k + 0.5) / 127.5 - 1 for k in range(255)], math.inf]
    phi = [math.erf((x - mean) / sigma / math.sqrt(2)) / 2 for x in ends]
    assert max(abs(np.exp(got) - np.diff(phi))) <= 1e-13


@given(seeds)
def test_gaussian_kl_is_its_integral(seed):
    """Eq. 5: KL(q || p) = ∫ q (log q - log p), variances over eight decades

    Tolerance: the integrand's two terms, with a hundred roundings.
    """
    means, logs = normal(seed, (2, 50)), normal(seed + 1, (2, 50)) * 3
    (m_1, m_2), (v_1, v_2) = means.numpy(), logs.exp().numpy()
    want = reference.gaussian_kl(m_1, v_1, m_2, v_2)
    size = 1 + (v_1 + (m_1 - m_2) ** 2) / v_2 + abs(logs).sum(0).numpy()
    got = bound.gaussian_kl(means[0], logs[0].exp(), means[1], logs[1].exp())
    agree(got, want, 100 * U * size)


# Statistics: eq. 2 with fresh noise at every step, N chains of T steps, N(0, 1) data.
N, T = 100_000, 50
LOOK_AT = (1, 10, 50)
CHAIN = constant_schedule(T, 0.1)
Z = 5.0  # a normal statistic is beyond with probability 5.7e-7
KOLMOGOROV = 2.75  # √N D is beyond with probability 2 e^(-2·2.75²) = 5.4e-7


def alarms(x: list[Tensor], s: Schedule) -> set[str]:
    """Which laws of eq. 4 the chains x_0, ..., x_T (each (N,), x_0 ~ N(0, 1)) break

    r = (x_t - √ᾱ_t x_0)/√(1-ᾱ_t) is N(0, 1) and independent of x_0. For each t:
    mean: √N mean(r) and √N mean(r x_0), both N(0, 1);
    variance: √(N/2) (mean(r²) - 1), N(0, 1) for large N;
    normality: Kolmogorov-Smirnov's √N sup |F_N - Φ|;
    for each pair s < t, covariance: x_s and x_t have unit variance and correlation
    ρ = √(ᾱ_t/ᾱ_s): √(N - 3) (artanh(sample correlation) - artanh ρ), N(0, 1) (Fisher).
    """
    n, found = len(x[0]), set()

    def look(name: str, statistic: Tensor, limit: float = Z) -> None:
        if not abs(float(statistic)) <= limit:  # nan is an alarm too
            found.add(name)

    for t in LOOK_AT:
        alpha_bar = s.alpha_bar[t]
        r = (x[t] - alpha_bar.sqrt() * x[0]) / (1 - alpha_bar).sqrt()
        look("mean", r.mean() * n**0.5)
        look("mean", (r * x[0]).mean() * n**0.5)
        look("variance", (r.square().mean() - 1) * (n / 2) ** 0.5)
        phi, rank = torch.special.ndtr(r.sort().values), torch.arange(n + 1) / n
        gap = torch.maximum(rank[1:] - phi, phi - rank[:-1]).max()
        look("normality", gap * n**0.5, KOLMOGOROV)
        for earlier in (0, *[k for k in LOOK_AT if k < t]):
            rho = (alpha_bar / s.alpha_bar[earlier]).sqrt()
            sample = torch.corrcoef(torch.stack([x[earlier], x[t]]))[0, 1]
            look("covariance", (sample.atanh() - rho.atanh()) * (n - 3) ** 0.5)
    return found


def chain(step) -> list[Tensor]:
    """x_0 ~ N(0, 1) and x_t = step(t, x_{t-1}, z, x_0), t = 1..T, z fresh at each."""
    g = torch.Generator().manual_seed(200611239)
    x = [torch.randn(N, generator=g, dtype=torch.float64)]
    for t in range(1, T + 1):
        z = torch.randn(N, generator=g, dtype=torch.float64)
        x.append(step(torch.full((N,), t), x[-1], z, x[0]))
    return x


def test_fifty_noisy_steps_have_the_law_of_eq_4():
    """Eq. 2 run with fresh noise is eq. 4: mean, variance, covariance, normality

    N = 100,000 chains, T = 50, β = 0.1, fixed seed; the statistics are in `alarms`: 18
    of them at 5.7e-7 (5 sigma; Kolmogorov-Smirnov at 2.75), so that a correct program
    is called wrong with probability 1e-5. The next test shows what it takes to pass.
    """
    assert alarms(chain(lambda t, x, z, x_0: q_step(CHAIN, x, t, z)), CHAIN) == set()


def one_step(scale: float, sigma: float):
    return lambda t, x, z, x_0: scale * x + sigma * z


BETA, ALPHA_BAR = 0.1, CHAIN.alpha_bar
WRONG = {
    "noise of standard deviation β": (one_step(0.9**0.5, BETA), {"variance"}),
    "mean scaled by 1 - β": (one_step(1 - BETA, BETA**0.5), {"mean", "covariance"}),
    "β 5 % too large": (one_step(0.895**0.5, 0.105**0.5), {"variance", "covariance"}),
    "eq. 4 with 1-ᾱ for its root": (
        lambda t, x, z, x_0: ALPHA_BAR[t].sqrt() * x_0 + (1 - ALPHA_BAR[t]) * z,
        {"variance"},
    ),
    "every step independent given x_0": (
        lambda t, x, z, x_0: q_sample(CHAIN, x_0, t, z),
        {"covariance"},
    ),
    "uniform noise of variance 1": (
        lambda t, x, z, x_0: q_step(
            CHAIN, x, t, (torch.special.ndtr(z) * 2 - 1) * 3**0.5
        ),
        {"normality"},
    ),
    "noise of mean 0.02": (
        lambda t, x, z, x_0: q_step(CHAIN, x, t, z + 0.02),
        {"mean"},
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_statistics_find_what_is_wrong(name):
    """Power: each mistake sets off the statistic that is there for it (same n, seed)"""
    step, expected = WRONG[name]
    assert expected <= alarms(chain(step), CHAIN)
