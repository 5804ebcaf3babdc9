"""Eq. 2 iterated is eq. 4: by algebra, by NumPy, and by chains of real noise."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tinyddpm import Schedule, constant_schedule, q_sample, q_step

from ..helpers import U, agree, arrays, coefficients
from ..reference import numpy_reference as reference
from ..strategies import batches, dtypes, normal, schedules, seeds, shapes, steps


@given(schedules())
def test_one_step_shrinks_by_alpha_and_adds_beta(s):
    """Eq. 2: mean √(1-β_t) x_{t-1}, variance β_t."""
    a, b = coefficients(q_step, s)
    torch.testing.assert_close(a**2, 1 - s.beta[1:], rtol=8 * U, atol=0)
    torch.testing.assert_close(b**2, s.beta[1:], rtol=8 * U, atol=0)


@given(schedules(), st.sampled_from([q_step, q_sample]))
def test_unit_variance_data_keep_unit_variance(s, q):
    """Eq. 2, 4: a² + b² = 1 for x_t = a x + b ε: b is a root, a² + b = 1 is not it."""
    a, b = coefficients(q, s)
    one = torch.ones_like(a)
    torch.testing.assert_close(a**2 + b**2, one, rtol=0, atol=8 * U)
    assert float(torch.minimum(a, b).min()) > 0


@given(schedules())
def test_eq_2_iterated_is_eq_4(s):
    """Eq. 2 iterated is eq. 4: m ← a m, v ← a² v + b² from (1, 0) is (√ᾱ_t, 1-ᾱ_t).

    Every t from 0 to T is compared; each step adds at most 4 roundings.
    """
    a, b = coefficients(q_step, s)
    mean, variance = coefficients(q_sample, s, first=0)
    m, v = 1.0, 0.0
    iterated = [(m, v)]
    for a_t, b_t in zip(a.tolist(), b.tolist(), strict=True):
        m, v = a_t * m, a_t**2 * v + b_t**2
        iterated.append((m, v))
    exact = torch.tensor(iterated, dtype=torch.float64)
    rtol = 8 * s.T * U
    torch.testing.assert_close(mean, exact[:, 0], rtol=rtol, atol=0)
    # 1 - ᾱ_t is a difference: ᾱ_t's T roundings are absolute errors of at most U each.
    torch.testing.assert_close(variance**2, exact[:, 1], rtol=rtol, atol=4 * s.T * U)


@given(schedules(), shapes, dtypes, st.data())
def test_q_sample_is_numpys_iteration(s, shape, dtype, data):
    """Eq. 4 has the mean and the deviation that NumPy's iteration of eq. 2 ends with.

    At mixed t, of pictures of any rank, in both dtypes. 1-ᾱ_t has absolute error t U,
    its root t U / 2√(1-ᾱ_t).
    """
    t = data.draw(steps(s, shape[0], first=0))
    x_0, eps = (data.draw(batches(shape, dtype)) for _ in range(2))
    t_, x, n = arrays(t, x_0, eps)
    tables = reference.moments(s.beta[1:].numpy())
    m, v = (reference.beside(table, t_, x) for table in tables)
    error = (t_.reshape(-1, *[1] * (x.ndim - 1)) + 4) * U
    allowed = error * (m * abs(x) + abs(n) / (v + (v == 0)) ** 0.5)
    agree(q_sample(s, x_0, t, eps), m * x + v**0.5 * n, allowed, t=t_)


@given(schedules(), seeds, shapes, dtypes)
def test_step_0_is_the_data(s, seed, shape, dtype):
    """Eq. 4 at t = 0: ᾱ_0 = 1, so x_0 comes back bit for bit, whatever ε."""
    x_0, eps = normal(seed, shape, dtype), normal(seed + 1, shape, dtype)
    t = torch.zeros(shape[0], dtype=torch.long)
    assert torch.equal(q_sample(s, x_0, t, eps), x_0)


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
