"""Eq. 5: the bound as a sum, L_T + Σ_{t>1} L_{t-1} + L_0, and the KL in it."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tinyddpm import L_T, Schedule, bits_per_dim, gaussian_kl, linear_schedule

from ..helpers import (
    BITS,
    constant,
    gaussian,
    random_pictures,
    same_bounds,
    some_network,
    terms_of_constant,
)
from ..reference import numpy_reference as reference
from ..strategies import normal, schedules, seeds

numbers = st.floats(-1e3, 1e3)
variances = st.floats(math.log(1e-12), math.log(1e6)).map(math.exp)


@given(numbers, variances, numbers, variances)
@example(0.0, 1e-12, 0.0, 1e6)  # v_1/v_2 - 1 has no digit of v_1/v_2 left
@example(257.0, math.exp(-16), 257.0, math.exp(-16))  # far out in deviations
def test_kl_of_two_gaussians(mean1, var1, mean2, var2):
    """KL(q ‖ p) = ∫ q (ln q - ln p), which Gauss-Hermite quadrature sums exactly.

    The quadrature cancels numbers as large as the KL itself plus |ln v_1/v_2|. Its
    nodes x = m_1 + σ_1 z are rounded by δ = 2⁻⁵² |x|: ln p feels δ |x - m_2|/v_2.
    """
    arguments = [torch.tensor(x).double() for x in (mean1, var1, mean2, var2)]
    exact = float(reference.gaussian_kl(*(x.numpy() for x in arguments)))
    size = 1 + abs(exact) + abs(math.log(var1)) + abs(math.log(var2))
    sigma1, delta = math.sqrt(var1), 2**-52 * (abs(mean1) + abs(mean2))
    felt = delta * (sigma1 + abs(mean1 - mean2)) / var2
    close = 1e-12 * size + 4 * felt
    assert float(gaussian_kl(*arguments)) == pytest.approx(exact, abs=close)


@given(numbers, variances, st.floats(-8, -2), st.sampled_from([-1, 1]))
def test_kl_of_nearly_equal_gaussians_keeps_its_digits(mean, var, digits, sign):
    """KL(N(m, v(1+d)) ‖ N(m, v)) = d²/4 - d³/6 + d⁴/8 - ...: β̃_t and β_t at large t.

    d is 1e-6 there, where v_1/v_2 - 1 - ln v_1/v_2 would lose all its digits; that of
    d - ln(1+d) is right to a rounding of d.
    """
    m, v = torch.tensor(mean).double(), torch.tensor(var).double()
    v1 = v * (1 + sign * 10**digits)
    d = float((v1 - v) / v)  # what is left of d after rounding
    series = sum((-d) ** k / (2 * k) for k in range(2, 12))
    kl = float(gaussian_kl(m, v1, m, v))
    assert kl >= 0
    assert kl == pytest.approx(series, rel=1e-14, abs=2e-16 * abs(d))


def test_kl_from_a_point_is_infinite():
    """KL(q ‖ p) = ∞ where q is one point: β̃_1 = 0 has no place in eq. 5's sum."""
    zero, one = torch.zeros(()), torch.ones(())
    assert float(gaussian_kl(zero, zero, zero, one)) == math.inf


@given(schedules(), seeds)
def test_L_T_is_the_kl_to_the_prior(s, seed):
    """Eq. 5: L_T = KL(N(√ᾱ_T x_0, 1-ᾱ_T) ‖ N(0, 1)), summed over a picture.

    ᾱ_T can be 1e-30: ½(-ᾱ_T - ln(1-ᾱ_T)) is then far below the quadrature's error.
    """
    x_0, alpha_bar = normal(seed, (3, 2, 5)), float(s.alpha_bar[-1])
    mean, variance = math.sqrt(alpha_bar) * x_0.numpy(), 1 - alpha_bar
    exact = reference.gaussian_kl(mean, variance, 0.0, 1.0).sum((1, 2))
    torch.testing.assert_close(
        L_T(s, x_0), torch.from_numpy(exact), rtol=1e-9, atol=1e-13
    )
    assert bool((L_T(s, x_0) >= 0).all())


@pytest.mark.parametrize("sigma2", ["beta", "beta_tilde", "fixedlarge"])
def test_bits_per_dim_has_each_term_of_each_picture(sigma2):
    """Eq. 5: L_T, L_{t-1} for t = T..2, L_0 and their sum, for each picture, in
    bits/dim = nats / (D ln 2).
    """
    s, net, x_0 = constant()
    bound = bits_per_dim(s, net, x_0, sigma2=sigma2)
    exact = terms_of_constant(s, net, x_0, sigma2)
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(bound.L_0, exact[:, 1], **close)
    torch.testing.assert_close(bound.L_tm1[:, 2:], exact[:, 2:], **close)
    assert bool((bound.L_tm1[:, :2] == 0).all())
    torch.testing.assert_close(bound.L_T, L_T(s, x_0) * BITS / 12, **close)
    total = bound.L_T + exact.sum(1)
    torch.testing.assert_close(bound.total, total, **close)
    mse = (x_0 - net.x_0_hat).square().mean((1, 2, 3))
    torch.testing.assert_close(bound.mse[:, 1:], mse[:, None].expand(3, 12), **close)
    assert bool((bound.mse[:, 0] == 0).all())


def test_the_sum_runs_from_T_to_1():
    """Eq. 5: the network is asked once for each t = T..1, for all pictures at once."""
    s, net, x_0 = constant(N=5, T=12)
    bits_per_dim(s, net, x_0)
    assert net.asked == [[t] * 5 for t in range(12, 0, -1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_x_t_is_drawn_by_eq_4(dtype):
    """x_t ~ q(x_t|x_0) (eq. 4), each ε the generator's next draw."""
    s, seen = linear_schedule(12, 1e-2, 0.8), []
    x_0 = random_pictures(0, (2, 1, 2, 2)).to(dtype)

    def eps_theta(x_t, t):
        seen.append(x_t)
        return some_network(x_t, t)

    bits_per_dim(s, eps_theta, x_0, torch.Generator().manual_seed(1))
    replay = torch.Generator().manual_seed(1)
    for t, x_t in zip(range(12, 0, -1), seen, strict=True):
        eps = torch.randn(x_0.shape, generator=replay, dtype=dtype)
        a = s.alpha_bar[t]
        exact = (a.sqrt() * x_0 + (1 - a).sqrt() * eps).to(dtype)
        torch.testing.assert_close(x_t, exact)


def test_a_picture_costs_alone_what_it_costs_in_a_batch():
    """Eq. 5 is of one picture, whose D alone makes nats into bits/dim."""
    s, net, x_0 = constant()
    batch = bits_per_dim(s, net, x_0)
    for i in range(3):
        alone = bits_per_dim(s, net, x_0[i : i + 1])
        for a, b in zip(alone, batch, strict=True):
            torch.testing.assert_close(a[0], b[i], rtol=1e-9, atol=1e-12)


def test_the_bound_leaves_the_network_and_the_random_state_alone():
    """Dropout is off while asked, training flags are as found; torch's own generator is
    not touched when one is given, and equal seeds give equal bounds.
    """
    s, net, x_0 = constant()
    net.train()
    before = torch.get_rng_state()
    first, second = (
        bits_per_dim(s, gaussian(s), x_0.float(), torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    bits_per_dim(s, net, x_0, torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert net.training
    assert net.dropout.training
    assert same_bounds(first, second)


def test_all_is_computed_where_the_pictures_are():
    """What eq. 5 needs beside x_0 is made on x_0's device, and torch's default, here
    the one without memory, is not asked."""
    s, net, x_0 = constant()
    g = torch.Generator()
    here = bits_per_dim(s, net, x_0, g.manual_seed(3))
    with torch.device("meta"):
        there = bits_per_dim(s, net, x_0, g.manual_seed(3))
    assert same_bounds(here, there)


@given(schedules(max_T=30), st.sampled_from([-3.0, 0.0, 0.7, 30.0]), seeds)
def test_no_term_is_negative_and_none_is_infinite(s, scale, seed):
    """Eq. 5: KLs are >= 0, and eq. 13 is a probability; however bad the network."""
    x_0 = random_pictures(seed, (2, 1, 2, 2))
    g = torch.Generator().manual_seed(seed)
    bound = bits_per_dim(s, lambda x, t: scale * x, x_0, g)
    for part in bound:
        assert bool((part >= 0).all())
        assert bool(part.isfinite().all())


def test_one_step_is_L_T_and_L_0():
    """T = 1: there is no t > 1, and the bound of eq. 5 is L_T + L_0."""
    s = Schedule(torch.tensor([0.9]))
    x_0 = random_pictures(0, (2, 1, 3, 3))
    bound = bits_per_dim(s, lambda x, t: x, x_0)
    assert bound.L_tm1.shape == (2, 2)
    torch.testing.assert_close(bound.total, bound.L_T + bound.L_0)
    with pytest.raises(ValueError, match="T >= 2"):
        bits_per_dim(s, lambda x, t: x, x_0, sigma2="beta_tilde")


def test_clipping_never_makes_a_kl_larger():
    """Clamping x̂_0 to [-1, 1], where x_0 is, brings it nearer, so each L_{t-1} falls
    (eq. 8: μ̃ - μ_θ = c_0 (x_0 - x̂_0)); where x̂_0 is inside anyway nothing changes. The
    paper does not say so: unless told, nothing is clamped.
    """
    s, net, x_0 = constant()
    net.x_0_hat = 3 * net.x_0_hat
    assert float(net.x_0_hat.abs().max()) > 1 > float(net.x_0_hat.abs().min())
    plain, clipped = bits_per_dim(s, net, x_0), bits_per_dim(s, net, x_0, clip_x_0=True)
    assert bool((clipped.L_tm1[:, 2:] < plain.L_tm1[:, 2:]).all())
    net.x_0_hat = net.x_0_hat.clamp(-1, 1)
    inside = [bits_per_dim(s, net, x_0, clip_x_0=clip) for clip in (False, True)]
    for a, b, c in zip(*inside, clipped, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(a, c, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_0": torch.zeros(2, 1, 2, 2)}, "8-bit pictures"),
        ({"x_0": torch.zeros(0, 1, 2, 2)}, "^the bound needs at least .+, got none$"),
        ({"sigma2": "learned"}, "'beta', 'beta_tilde' or"),
    ],
)
def test_bad_input_is_refused(change, message):
    """Errors are sentences that name what was given and what was expected."""
    s = linear_schedule(10, 1e-2, 0.8)
    arguments = {"x_0": random_pictures(0, (2, 1, 2, 2)), **change}
    with pytest.raises(ValueError, match=message):
        bits_per_dim(s, lambda x, t: x, **arguments)


@pytest.mark.parametrize("v_1", [1e-300, 1e-20, 0.4, 1.0, 1e20])
def test_the_gradient_of_the_kl_is_finite_for_any_ratio_of_the_variances(v_1):
    """∂KL/∂v_1 = ½ (1/v_2 - 1/v_1), where v_1/v_2 - 1 rounds to -1 too."""
    var1 = torch.tensor(v_1, dtype=torch.float64, requires_grad=True)
    zero, var2 = torch.zeros((), dtype=torch.float64), torch.tensor(2.0).double()
    gaussian_kl(zero, var1, zero, var2).backward()
    expected = 0.5 * (1 / 2 - 1 / v_1)
    assert float(var1.grad) == pytest.approx(expected, rel=1e-14)
