"""Exact noise predictors and the floors of L_simple, by Bayes' rule on other roads.

Tolerances are float64 rounding, times what the law's own formula makes of it (said at
each); statistical tests say n and their odds.
"""

import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyddpm import Schedule, linear_schedule, q_sample, sample
from tinyddpm.beyond import levels as levels_module
from tinyddpm.beyond.gradients import gradient_images, gradient_ramp
from tinyddpm.beyond.oracle import (
    finite_oracle,
    gaussian_floor,
    gaussian_nll,
    gaussian_oracle,
    gradient_floor,
    gradient_oracle,
)

from ..strategies import normal, schedules, seeds, share, steps

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def schedule_of(alpha_bar) -> Schedule:
    """The schedule with these ᾱ_1 > ... > ᾱ_T."""
    alpha_bar = torch.tensor([1.0, *alpha_bar], dtype=torch.float64)
    return Schedule(1 - alpha_bar[1:] / alpha_bar[:-1])


def snr_schedule(log10_first: float, log10_last: float, T: int) -> Schedule:
    """λ = ᾱ/(1-ᾱ) falling from 10^first to 10^last, evenly in log λ."""
    snr = torch.logspace(log10_first, log10_last, T, dtype=torch.float64)
    return schedule_of((snr / (1 + snr)).tolist())


def all_gradients(height: int, width: int) -> torch.Tensor:
    """The 65,536 one-channel gradients of this size, (65536, 1, H, W)."""
    g = gradient_ramp(height, width)
    a, b = (
        x.reshape(-1, 1, 1, 1) for x in torch.meshgrid(LEVELS, LEVELS, indexing="ij")
    )
    return (1 - g) * a + g * b


def covariance(seed: int, D: int) -> torch.Tensor:
    """A covariance with eigenvalues of about 1e-2 to 1e1."""
    root = normal(seed, (D, D + 2))
    return root @ root.T / D + 0.01 * torch.eye(D, dtype=torch.float64)


@given(st.data(), schedules(), seeds)
def test_gaussian_oracle_is_bayes_by_precisions(data, s, seed):
    """E[x_0|x_t] = (Σ⁻¹ + λI)⁻¹ (Σ⁻¹ m + λ x_t/√ᾱ_t), λ = ᾱ_t/(1-ᾱ_t): a product of two
    Gaussians; ε* = (x_t - √ᾱ_t E[x_0|x_t]) / √(1-ᾱ_t)."""
    t = data.draw(steps(s, 5))
    m, cov, x_t = normal(seed, (2, 3)), covariance(seed, 6), normal(seed + 1, (5, 2, 3))
    eps = gaussian_oracle(s, m, cov)(x_t, t)
    alpha_bar = s.alpha_bar[t]
    for i in range(5):
        a = alpha_bar[i]
        P, eye = cov.inverse(), torch.eye(6, dtype=torch.float64)
        snr = a / (1 - a)
        right = P @ m.flatten() + snr * x_t[i].flatten() / a.sqrt()
        x_0 = torch.linalg.solve(P + snr * eye, right)
        expected = (x_t[i].flatten() - a.sqrt() * x_0) / (1 - a).sqrt()
        # x_t - √ᾱ x_0 is a difference, divided by √(1-ᾱ) >= √MIN_BETA = 1e-3; the
        # condition of P is below 1e4
        torch.testing.assert_close(eps[i].flatten(), expected, rtol=1e-8, atol=1e-8)


@given(seeds)
def test_gaussian_nll_is_that_of_torch(seed):
    """-log N(x_0; m, Σ) as torch.distributions has it (by Cholesky factors)."""
    m, cov, x_0 = normal(seed, (2, 3)), covariance(seed, 6), normal(seed + 1, (7, 2, 3))
    law = torch.distributions.MultivariateNormal(m.flatten(), cov)
    expected = -law.log_prob(x_0.flatten(1))
    torch.testing.assert_close(
        gaussian_nll(m, cov, x_0), expected, rtol=1e-9, atol=1e-9
    )


def test_gaussian_floor_of_the_papers_schedule():
    """For N(0, I) the floor at t is ᾱ_t; its mean over the paper's 1000 steps is
    0.27551, here from the schedule's definition in exact fractions."""
    alpha_bar, total = Fraction(1), Fraction(0)
    for t in range(1, 1001):
        beta = Fraction(1, 10**4) + Fraction(t - 1, 999) * Fraction(199, 10**4)
        alpha_bar = (alpha_bar * (1 - beta)).limit_denominator(10**25)
        total += alpha_bar
    assert round(float(total / 1000), 5) == 0.27551
    floor = gaussian_floor(linear_schedule(), torch.eye(2))
    assert math.isnan(floor[0])
    assert abs(float(floor[1:].mean()) - float(total / 1000)) < 1e-12


@given(schedules(), seeds)
def test_gaussian_floor_is_the_covariance_that_is_left(s, seed):
    """floor_t = λ tr (Σ⁻¹ + λI)⁻¹ / D: the posterior covariance by precisions."""
    cov = covariance(seed, 4)
    t = int(normal(seed, (1,)).abs() * 1000) % s.T + 1
    snr = s.alpha_bar[t] / (1 - s.alpha_bar[t])
    left = (cov.inverse() + snr * torch.eye(4, dtype=torch.float64)).inverse()
    expected = snr * left.trace() / 4
    torch.testing.assert_close(gaussian_floor(s, cov)[t], expected, rtol=1e-8, atol=0)


def test_a_singular_covariance_is_one_of_fewer_dimensions():
    """Σ of rank r leaves r of D dimensions unknown while noise is small against it, and
    rounding below 0 is judged by its size; Σ = 0 is the point mass m."""
    s = linear_schedule(30)
    floor = gaussian_floor(s, 1e8 * gradient_covariance(3, 3))
    # the 7 variances of 0 are rounded to 1e-16 of the largest; ᾱ_1/(1-ᾱ_1) = 300
    torch.testing.assert_close(float(floor[1]), 2 / 9, rtol=1e-4, atol=0)
    m, x_t, t = normal(0, (3,)), normal(1, (4, 3)), torch.tensor([1, 2, 15, 30])
    point = finite_oracle(s, m[None])(x_t, t)
    eps = gaussian_oracle(s, m, torch.zeros(3, 3))(x_t, t)
    torch.testing.assert_close(eps, point, rtol=1e-12, atol=1e-12)


@given(st.data(), schedules(), seeds)
def test_finite_oracle_is_bayes_point_by_point(data, s, seed):
    """E[x_0|x_t] = Σ p_i N(x_t; √ᾱ_t p_i, (1-ᾱ_t) I) / Σ N(...), density by density."""
    t = data.draw(steps(s, 4))
    points, x_t = normal(seed, (9, 1, 2, 2)), 2 * normal(seed + 1, (4, 1, 2, 2))
    eps = finite_oracle(s, points)(x_t, t)
    a = s.alpha_bar[t].view(-1, 1, 1, 1)
    law = torch.distributions.Normal(
        a.sqrt()[:, None] * points, (1 - a).sqrt()[:, None]
    )
    w = law.log_prob(x_t[:, None]).sum((2, 3, 4)).softmax(1)
    expected = (x_t - a.sqrt() * torch.einsum("bn,nchw->bchw", w, points)) / (
        1 - a
    ).sqrt()
    # log densities reach ‖x‖²/β_1 = 1e8 at MIN_BETA and are rounded to 1e-16 of that,
    # which moves a weight by 1e-8; ε* divides by √β_1 = 1e-3
    torch.testing.assert_close(eps, expected, rtol=0, atol=1e-4)
    gentle = (s.alpha_bar[t] < 0.999).view(-1, 1, 1, 1)
    torch.testing.assert_close(eps * gentle, expected * gentle, rtol=0, atol=1e-10)


@given(schedules(), seeds)
def test_one_point_is_a_point_mass(s, seed):
    """One x_0: ε* is eq. 4 solved for ε, at the largest t."""
    point = normal(seed, (1, 3, 2, 2)).clamp(-1, 1)
    eps_theta = finite_oracle(s, point)
    t = torch.arange(1, s.T + 1)[-3:]
    x_t = normal(seed + 1, (len(t), 3, 2, 2))
    a = s.alpha_bar[t].view(-1, 1, 1, 1)
    expected = (x_t - a.sqrt() * point) / (1 - a).sqrt()
    torch.testing.assert_close(eps_theta(x_t, t), expected, rtol=1e-12, atol=1e-12)


def test_samples_of_a_finite_set_land_on_its_points_as_often_as_they_should():
    """Algorithm 2 with ε* of {p, p, q, r}: every sample is a point, half of them p.

    χ² of the three counts, n = 2,000, false alarms 1 in 1,000 (critical value 13.8 with
    2 degrees of freedom; the seed is fixed). A set of {p, q, r} has χ² of about 250.
    """
    p, q, r = torch.tensor([[-1.0, 1.0, 0.2], [1.0, -0.5, 0.0], [0.5, 0.5, -1.0]])
    points = torch.stack([p, p, q, r]).view(4, 3, 1, 1)
    s = linear_schedule(300)
    x_0 = sample(
        s, finite_oracle(s, points), (2000, 3, 1, 1), torch.Generator().manual_seed(0)
    )
    distance = torch.cdist(x_0.flatten(1), torch.stack([p, q, r]))
    nearest, which = distance.min(1)
    assert float(nearest.max()) < 1e-5  # float32
    counts = which.bincount(minlength=3).double()
    expected = torch.tensor([1000.0, 500.0, 500.0], dtype=torch.float64)
    assert float(((counts - expected) ** 2 / expected).sum()) < 13.8


# λ from noise of a twentieth of a level to x_t that is all noise: the window of levels
# is summed pair by pair at first, then by matrices, then it is the whole 256 x 256.
ALL_NOISE = snr_schedule(7, -8, 46)


@share(40)
@given(
    st.sampled_from([(1, 2), (2, 1), (1, 3), (2, 2), (3, 2), (3, 4)]),
    steps(ALL_NOISE, 3),
    st.sampled_from([0.0, 1.0, 30.0]),
    seeds,
)
def test_gradient_oracle_is_the_finite_oracle_of_all_pairs(size, t, off, seed):
    """The sum over 256 x 256 pairs by two numbers = the sum over 65,536 pictures.

    Also for an x_t that no gradient would give (off > 0).
    """
    g = torch.Generator().manual_seed(seed)
    x_0 = gradient_images(3, *size, g, channels=1, dtype=torch.float64)
    eps = normal(seed, x_0.shape)
    x_t = q_sample(ALL_NOISE, x_0, t, eps) + off * normal(seed + 1, x_0.shape)
    ours = gradient_oracle(ALL_NOISE, *size)(x_t, t)
    by_point = finite_oracle(ALL_NOISE, all_gradients(*size))(x_t, t)
    # as above: logits of size λ (1 + off) are rounded to 1e-16 of that, and ε* = ... √λ
    snr = (ALL_NOISE.alpha_bar / (1 - ALL_NOISE.alpha_bar))[t].view(-1, 1, 1, 1)
    error = 1e-14 * (1 + off) * (100 + snr) * (1 + snr.sqrt())
    assert bool(((ours - by_point).abs() < error).all())


def test_channels_rows_and_steps_are_independent():
    """A large batch of mixed t and 3 channels = its channels and steps one by one; the
    answer has the dtype of x_t."""
    s = linear_schedule(100)
    x_t = normal(0, (5000, 3, 2, 2))
    t = torch.arange(5000) % 4 * 33 + 1
    eps_theta = gradient_oracle(s, 2, 2)
    together = eps_theta(x_t, t)
    for step in t.unique().tolist():
        of_step = t == step
        for c in range(3):
            alone = eps_theta(x_t[of_step, c : c + 1], t[of_step])
            torch.testing.assert_close(
                together[of_step, c : c + 1], alone, rtol=0, atol=1e-11
            )
    assert eps_theta(x_t[:2].float(), t[:2]).dtype == torch.float32


def test_an_oracle_answers_where_it_is_asked():
    """ε* is on x_t's device, in x_t's dtype, wherever the data were given."""
    s, x_t = linear_schedule(30), torch.zeros(2, 3, device="meta")
    t = torch.ones(2, dtype=torch.long, device="meta")
    for eps_theta in (
        gaussian_oracle(s, torch.zeros(3), torch.eye(3)),
        finite_oracle(s, normal(0, (4, 3))),
    ):
        eps = eps_theta(x_t, t)
        assert (eps.device.type, eps.dtype) == ("meta", torch.float32)


def mean_and_error(v):
    return float(v.mean()), float(v.std() / len(v) ** 0.5)


slow = pytest.mark.slow


@pytest.mark.parametrize("t", [1, 20, *(pytest.param(t, marks=slow) for t in (4, 60))])
def test_the_floor_is_what_the_oracle_loses(t):
    """Eq. 14 with ε* has the mean `gradient_floor` gives, and any other f loses
    E‖f - ε*‖² more: n = 40,000 channels, 5 standard errors (1 in 2 million).

    f is ε* of Gaussian data with the gradients' covariance. The second law is tested on
    the difference, picture by picture, whose standard error is far smaller.
    """
    s, n = linear_schedule(100), 40_000
    g = torch.Generator().manual_seed(t)
    x_0 = gradient_images(n, 3, 3, g, channels=1, dtype=torch.float64)
    eps, steps_t = normal(t, x_0.shape), torch.full((n,), t)
    x_t = q_sample(s, x_0, steps_t, eps)
    best = gradient_oracle(s, 3, 3)(x_t, steps_t)
    other = gaussian_oracle(s, torch.zeros(1, 3, 3), gradient_covariance(3, 3))(
        x_t, steps_t
    )
    loss = (eps - best).square().mean((1, 2, 3))
    mean, error = mean_and_error(loss)
    assert abs(mean - float(gradient_floor(s, 3, 3)[t])) < 5 * error
    more = (eps - other).square().mean((1, 2, 3)) - loss
    mean, error = mean_and_error(more - (other - best).square().mean((1, 2, 3)))
    assert abs(mean) < 5 * error


def gradient_covariance(height: int, width: int) -> torch.Tensor:
    """Cov x_0 = Var(a) ((1-g)(1-g)ᵀ + ggᵀ), Var(a) that of 256 even levels."""
    g = gradient_ramp(height, width).flatten()
    return LEVELS.var(correction=0) * (torch.outer(1 - g, 1 - g) + torch.outer(g, g))


@pytest.mark.parametrize(("height", "width"), [(1, 2), pytest.param(3, 3, marks=slow)])
def test_the_floor_integrates_to_the_entropy(height, width):
    """I-MMSE (Guo, Shamai, Verdú 2005): dI(x_0; x_t)/dλ = ½ E tr Cov(x_0|x_t), and with
    all of λ it is known which of 256² pictures x_0 was: ½ ∫ HW floor d ln λ = 2 ln 256.

    So the floor of every noise is held to the entropy, in nats, that the bound is held
    against. Trapezoid rule in ln λ from noise of 0.06 levels, where the floor is 1e-9;
    twice its nodes change the integral by 1e-7.
    """
    G = float(((1 - gradient_ramp(height, width)) ** 2).sum())
    s = snr_schedule(-math.log10(G * (0.06 * 2 / 255) ** 2), -10, 80)
    floor = gradient_floor(s, height, width)[1:]
    log_snr = (s.alpha_bar[1:] / (1 - s.alpha_bar[1:])).log()
    nats = -height * width / 2 * torch.trapezoid(floor, log_snr)
    assert abs(float(nats) / (2 * math.log(256)) - 1) < 1e-6


def test_limits_of_the_floor():
    """Little noise, but wide against a level: 2/HW, for 2 of HW dimensions are unknown.
    Less than that: 0. Much noise: λ Var(x_0). And nowhere above the floor of Gaussian
    data with the same covariance, which are the hardest of all."""
    s = snr_schedule(3, -10, 40)
    snr = s.alpha_bar / (1 - s.alpha_bar)
    cov = gradient_covariance(4, 5)
    floor = gradient_floor(s, 4, 5)
    prior = snr[-1] * cov.trace() / 20
    torch.testing.assert_close(floor[-1], prior, rtol=1e-8, atol=0)
    gaussian = gaussian_floor(s, cov)
    assert bool((floor[1:] <= gaussian[1:] * (1 + 1e-10)).all())
    # at λ = 1000 noise is 1.6 levels wide; the ends of the range take 1.3 % off
    assert 0.98 < float(floor[1]) / (2 / 20) < 1
    finest = gradient_floor(snr_schedule(9, 8.9, 2), 4, 5)
    assert float(finest[1:].abs().max()) < 1e-8


def test_the_quadrature_has_converged(monkeypatch):
    """Nodes 1.5 times as dense, with no use made of the levels' repetition, change the
    floor by less than 1e-10 of itself."""

    def dense(snr, G):
        sd = 1 / (snr * float(G.diag().max())) ** 0.5 / levels_module.STEP
        reach = levels_module._reach(snr, G)
        n = math.ceil((255 + 2 * reach) / (0.5 * min(sd, sd**2)))
        axis = torch.linspace(-reach, 255 + reach, n, dtype=torch.float64)
        return axis * levels_module.STEP - 1, torch.ones(n, dtype=torch.float64)

    s = schedule_of([0.9993, 0.998, 0.95, 0.3, 1e-5])
    floor = gradient_floor(s, 2, 3)
    monkeypatch.setattr("tinyddpm.beyond.oracle.nodes", dense)
    torch.testing.assert_close(
        gradient_floor(s, 2, 3)[1:], floor[1:], rtol=1e-10, atol=0
    )


def test_samples_with_the_gradient_oracle_are_gradients():
    """Algorithm 2 with ε* ends in the plane of the gradients: the last step gives
    E[x_0|x_1], a mean of gradients; and at the corners stand values in [-1, 1]."""
    s = linear_schedule(50)
    x_0 = sample(
        s, gradient_oracle(s, 3, 4), (64, 3, 3, 4), torch.Generator().manual_seed(3)
    )
    g = gradient_ramp(3, 4).float()
    a, b = x_0[..., :1, :1], x_0[..., -1:, -1:]
    torch.testing.assert_close(x_0, (1 - g) * a + g * b, rtol=0, atol=1e-5)
    assert float(x_0.abs().max()) < 1 + 1e-5
    corners = torch.cat([a.flatten(), b.flatten()])
    for low, high in pairwise([-1.01, -0.5, 0.0, 0.5, 1.01]):  # 384 colours, all parts
        assert int(((corners >= low) & (corners < high)).sum()) > 50


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: gaussian_oracle(s, torch.zeros(3), torch.eye(4)), r"\(3, 3\)"),
        (
            lambda s: gaussian_oracle(
                s, torch.zeros(2), torch.tensor([[1.0, 2], [0, 1]])
            ),
            "symmetric",
        ),
        (lambda s: gaussian_floor(s, -torch.eye(2)), "negative eigenvalues, got -1"),
        (
            lambda s: gaussian_nll(torch.zeros(2), torch.ones(2, 2), torch.zeros(1, 2)),
            r"^a singular covariance has no density, so no -log p\(x_0\)$",
        ),
        (lambda s: finite_oracle(s, torch.zeros(0, 3)), r"N >= 1"),
        (lambda s: gradient_oracle(s, 1, 1), "at least 2 pixels"),
        (
            lambda s: gradient_oracle(s, 3, 3)(
                torch.zeros(2, 3, 3, 4), torch.ones(2).long()
            ),
            r"\(3, 3, 3\), got x_t of shape \(2, 3, 3, 4\)",
        ),
        (
            lambda s: gradient_oracle(s, 3, 3)(torch.zeros(2, 9), torch.ones(2).long()),
            r"\(B, C, H, W\)",
        ),
        (
            lambda s: finite_oracle(s, torch.zeros(1, 2))(
                torch.zeros(2, 2), torch.tensor([0, 1])
            ),
            r"1\.\.30, got 0\.\.1",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    """What was given and what was expected, in the error."""
    with pytest.raises(ValueError, match=message):
        call(linear_schedule(30))
