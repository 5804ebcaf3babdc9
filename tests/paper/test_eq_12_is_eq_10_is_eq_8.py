"""Eq. 8, 10 and 12: three forms of L_{t-1}, the KL of a step; and eq. 12's weight."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from tinyddpm import (
    L_tm1,
    linear_schedule,
    p_mean,
    p_step,
    predict_x_0,
    q_posterior,
    q_sample,
    weight,
)

from ..helpers import (
    RTOL,
    SHAPE,
    WRONG_SHAPES,
    U,
    agree,
    assert_within,
    random_pictures,
    shape_refused,
    spread,
)
from ..reference import numpy_reference as reference
from ..strategies import choices_of_sigma2, normal, schedules, seeds, steps


@given(schedules(min_T=2), seeds, choices_of_sigma2, st.data())
def test_eq_12_is_eq_10_is_eq_8_is_the_kl(s, seed, sigma2, data):
    """Weight_t ‖ε-ε̂‖² = ‖μ̃_t(x_t, x_0) - μ_θ(x_t, t)‖² / (2 σ_t²) = KL - C, t >= 2.

    Norms are sums over D. Eq. 8 has μ̃_t of the true x_0 (eq. 7), eq. 10 has eq. 11
    of the true ε, eq. 12 our factor. KL is that of N(μ̃_t, β̃_t I) and N(μ_θ, σ_t² I),
    by torch.distributions and by `L_tm1`, which takes x̂_0 for the network;
    C = D (r - 1 - log r)/2 with r = β̃_t/σ_t² is what no network can change: 0 for β̃.
    """
    x_0, eps, eps_hat = (normal(seed + i, (4, 5)) for i in range(3))
    t = data.draw(steps(s, 4, first=2))
    x_t = q_sample(s, x_0, t, eps)
    mu_tilde, beta_tilde = q_posterior(s, x_t, x_0, t)
    mu_theta, sigma2_t = p_mean(s, x_t, t, eps_hat), s.sigma2(sigma2)[t]
    eq_8 = (mu_tilde - mu_theta).square().sum(1) / (2 * sigma2_t)
    eq_10 = (p_mean(s, x_t, t, eps) - mu_theta).square().sum(1) / (2 * sigma2_t)
    eq_12 = weight(s, t, sigma2) * (eps - eps_hat).square().sum(1)
    q, p = (
        Normal(mu_tilde, beta_tilde.sqrt()),
        Normal(mu_theta, sigma2_t[:, None] ** 0.5),
    )
    r = beta_tilde[:, 0] / sigma2_t
    C = 5 * (r - 1 - r.log()) / 2
    # Each mean of size m has an error of RTOL m, so their difference, in units of
    # √(2 σ²), has e in each of D = 5 places: a square d² is off by 2 d e + e².
    m = torch.stack([x_0, eps, eps_hat]).abs().max() / s.alpha[t].sqrt()
    e = RTOL * m * (5 / (2 * sigma2_t)).sqrt()
    slack = 2 * eq_12.sqrt() * e + e**2 + RTOL * eq_12
    assert_within(eq_8, eq_12, slack)
    assert_within(eq_10, eq_12, slack)
    kl = kl_divergence(q, p).sum(1)
    assert_within(kl - C, eq_12, slack + 64 * U * (kl + C))
    # x̂_0 is as large as 1/√ᾱ_t and known to a rounding of that
    found = L_tm1(s, x_0, t, predict_x_0(s, x_t, t, eps_hat), sigma2)
    assert_within(found - C, eq_12, slack + 64 * U * (kl + C))


@given(schedules(), st.integers(1, 4), choices_of_sigma2, st.data())
def test_the_weight_is_float64_one_for_each_item(s, B, sigma2, data):
    """Eq. 12's factor: (B,), float64, positive; 1/(2 α_1) at t = 1 with σ² = β."""
    if s.T >= 2:
        t = data.draw(steps(s, B, first=2))
        weights = weight(s, t, sigma2)
        assert (weights.dtype, tuple(weights.shape)) == (torch.float64, (B,))
        assert float(weights.min()) > 0
        for b in range(B):
            assert torch.equal(weight(s, t[b : b + 1], sigma2), weights[b : b + 1])
    first = weight(s, torch.ones(B, dtype=torch.long), "beta")
    expected = (1 / (2 * s.alpha[1])).expand(B)
    torch.testing.assert_close(first, expected, rtol=RTOL, atol=0)
    assert torch.equal(weight(s, torch.ones(B, dtype=torch.long)), first)


@given(schedules(min_T=2), choices_of_sigma2, st.data())
def test_weight_is_the_kl_that_an_error_in_eps_costs(s, sigma2, data):
    """Eq. 12: β_t²/(2σ_t² α_t (1-ᾱ_t)) = KL of the two Gaussians eq. 11 and eq. 7 give.

    By NumPy. From t = 2 for σ² = β̃, since β̃_1 = 0.
    """
    t = data.draw(steps(s, 4, first=2 if sigma2 == "beta_tilde" else 1))
    t_, beta = t.numpy(), s.beta[1:].numpy()
    v = reference.moments(beta)[1]
    variance = beta[t_ - 1]
    if sigma2 == "beta_tilde":
        zero = torch.zeros(4).double().numpy()
        _, variance = reference.posterior(beta, zero, zero, t_)
    want = reference.noise_weight(beta, t_, variance)
    error = 4 * spread(v, t_, want) * want
    agree(weight(s, t, sigma2), want, error, t=t_, sigma2=sigma2)


@given(st.data(), schedules(min_T=2, max_T=60), choices_of_sigma2, seeds)
def test_L_tm1_is_the_kl_of_the_two_posteriors(data, s, sigma2, seed):
    """Eq. 5: L_{t-1} is the KL of eq. 6's Gaussian to that which Alg. 2 draws from."""
    t = data.draw(steps(s, 4, first=2))
    x_0, x_t, eps_hat = (normal(seed + i, (4, 3)) for i in range(3))
    mu_tilde, beta_tilde = q_posterior(s, x_t, x_0, t)
    for clip_x_0 in (False, True):
        x_0_hat = predict_x_0(s, x_t, t, eps_hat)
        x_0_hat = x_0_hat.clamp(-1, 1) if clip_x_0 else x_0_hat
        step = [
            p_step(s, x_t, t, eps_hat, z, sigma2, clip_x_0)
            for z in (torch.zeros_like(x_t), torch.ones_like(x_t))
        ]
        mean, variance = step[0], (step[1] - step[0]) ** 2
        exact = reference.gaussian_kl(
            *(x.numpy() for x in (mu_tilde, beta_tilde, mean, variance))
        ).sum(1)
        found = L_tm1(s, x_0, t, x_0_hat, sigma2)
        # σ_t is read off a difference of numbers of the mean's size: U |μ| / σ_t
        torch.testing.assert_close(found, torch.from_numpy(exact), rtol=1e-6, atol=1e-7)


def test_the_weight_has_no_first_step_with_beta_tilde():
    """β̃_1 = 0: eq. 12 would divide by it; at t = 1 the decoder (eq. 13) takes over."""
    with pytest.raises(ValueError, match=r"t must lie in 2\.\.1000, got 1\.\.5"):
        weight(linear_schedule(), torch.tensor([5, 1]), "beta_tilde")


@pytest.mark.parametrize("t", [torch.tensor([0]), torch.tensor([1001]), 5])
def test_a_wrong_t_is_refused(t):
    """The weight of eq. 12 is for t = 1..T, a LongTensor (B,)."""
    with pytest.raises(ValueError, match=r"^t must"):
        weight(linear_schedule(), t)


def test_an_unknown_sigma2_is_refused():
    """σ_t² has a name that `Schedule.sigma2` knows; another is an error, no default."""
    s, t, x = linear_schedule(), torch.tensor([5]), torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"'beta', 'beta_tilde' or.*got 'learned'"):
        weight(s, t, "learned")
    with pytest.raises(ValueError, match=r"'beta', 'beta_tilde' or.*got 'learned'"):
        L_tm1(s, x, t, x, "learned")


def test_sigma2_is_beta_unless_told():
    """Section 3.2: σ_t² = β_t is the choice of eq. 8 and 12 where none is named."""
    s, t = linear_schedule(40), torch.tensor([2, 40])
    x_0, x_0_hat = random_pictures(0, (2, 1, 2, 2)), normal(1, (2, 1, 2, 2))
    assert torch.equal(L_tm1(s, x_0, t, x_0_hat), L_tm1(s, x_0, t, x_0_hat, "beta"))
    assert torch.equal(weight(s, t), weight(s, t, "beta"))


def test_the_first_step_has_no_kl():
    """Eq. 5: L_{t-1} is for t > 1; at t = 1 q(x_0|x_1, x_0) is a point, and eq. 13's
    decoder answers for it."""
    s, x_0 = linear_schedule(40), random_pictures(0, (2, 1, 2, 2))
    with pytest.raises(ValueError, match=r"t must lie in 2\.\.40, got 1\.\.2"):
        L_tm1(s, x_0, torch.tensor([1, 2]), x_0)


@given(seeds, choices_of_sigma2, st.sampled_from([2, 20, 40]))
def test_the_gradient_of_a_step_is_eq_8s(seed, sigma2, t):
    """∂L_{t-1}/∂x̂_0 = c_0² (x̂_0 - x_0) / σ_t² (eq. 7, 8), and by central differences.

    Pictures have the levels 0 and 255 in them, and x̂_0 lies at, inside and outside
    of them. A central difference is exact for a parabola, but for its rounding.
    """
    s = linear_schedule(40)
    x_0 = torch.tensor([[-1.0, 1.0, -1.0, 1.0, 0.2]], dtype=torch.float64)
    x_0_hat = torch.tensor([[-1.0, 1.0, 1.0, -1.7, 0.0]], dtype=torch.float64)
    x_0_hat = (x_0_hat + 0.1 * normal(seed, (1, 5)).round()).requires_grad_()
    steps_t = torch.tensor([t])
    (slope,) = torch.autograd.grad(L_tm1(s, x_0, steps_t, x_0_hat, sigma2), x_0_hat)
    assert bool(slope.isfinite().all())
    zero, one = torch.zeros(1, 1).double(), torch.ones(1, 1).double()
    c_0 = q_posterior(s, zero, one, steps_t)[0]
    exact = c_0**2 * (x_0_hat.detach() - x_0) / s.sigma2(sigma2)[t]
    torch.testing.assert_close(slope, exact, rtol=RTOL, atol=RTOL * float(exact.max()))
    h = 2.0**-6
    for i in range(5):
        up, down = x_0_hat.detach().clone(), x_0_hat.detach().clone()
        up[0, i], down[0, i] = up[0, i] + h, down[0, i] - h
        ends = [L_tm1(s, x_0, steps_t, x, sigma2) for x in (up, down)]
        difference = float((ends[0] - ends[1]) / (2 * h))
        rounding = 64 * U * float(ends[0] + ends[1]) / h
        assert abs(difference - float(slope[0, i])) <= rounding


@pytest.mark.parametrize("shape", WRONG_SHAPES)
def test_a_shape_that_merely_broadcasts_is_refused(shape):
    """x̂_0 has the shape of x_0: one that broadcasts is of other pictures."""
    s, t, x_0 = linear_schedule(40), torch.tensor([2, 3, 4, 5]), torch.zeros(SHAPE)
    with pytest.raises(ValueError, match=shape_refused("x_0_hat", shape)):
        L_tm1(s, x_0, t, torch.zeros(shape))
