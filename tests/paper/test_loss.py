"""Laws of the two losses (eq. 12, 14).

What lives here: laws of `L_simple` and `weight`. Tolerances: U and RTOL are explained
in `test_schedule.py`.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from tinyddpm import (
    L_simple,
    linear_schedule,
    p_mean,
    q_posterior,
    q_sample,
    weight,
)
from tinyddpm.train import squared_error

from ..strategies import (
    choices_of_sigma2,
    dtypes,
    normal,
    schedules,
    seeds,
    shapes,
    steps,
)
from .test_forward import BROADCASTS
from .test_sampler import Recorder, gaussian, point_mass, some_network
from .test_schedule import RTOL, U, assert_within


@given(schedules(), shapes, seeds, st.data())
def test_the_exact_answer_costs_nothing(s, shape, seed, data):
    """Eq. 14: with one x_0 the exact predictor's loss is 0: the target is ε itself.

    ε is the whole noise of x_t (eq. 4), which eq. 4 solved for ε gives back, to the
    rounding of x_t divided by √(1-ᾱ_t). The last step's noise would not be met.
    """
    x_0, eps = normal(seed, shape), normal(seed + 1, shape)
    t = data.draw(steps(s, shape[0]))
    loss = float(L_simple(s, point_mass(s, x_0), x_0, t, eps))
    size = float(x_0.abs().max() + eps.abs().max())
    rounding = 4 * U * size / float((1 - s.alpha_bar[t]).min().sqrt())
    assert 0 <= loss <= rounding**2


@given(schedules(), shapes, seeds, st.data())
def test_the_loss_is_the_mean_square_of_the_error(s, shape, seed, data):
    """Eq. 14: ‖ε - ε̂‖² as a mean over all numbers: an error d costs the mean of d².

    Squares, not magnitudes: the constant that does best is the mean, not the median.
    """
    x_0, eps, d = (normal(seed + i, shape) for i in range(3))
    t = data.draw(steps(s, shape[0]))
    loss = L_simple(s, lambda x_t, t: eps + d, x_0, t, eps)
    mean_square = math.fsum(v * v for v in d.flatten().tolist()) / d.numel()
    # eps + d - eps is d to a rounding of eps + d.
    atol = 8 * U * float((eps.abs() + d.abs()).max() ** 2)
    torch.testing.assert_close(float(loss), mean_square, rtol=RTOL, atol=atol)
    assert loss.shape == ()


@given(shapes, seeds, dtypes)
def test_each_pictures_error_is_a_mean_of_its_own(shape, seed, dtype):
    """Eq. 14 before its E: entry b is ‖ε_b - ε̂_b‖² / D, whatever the other pictures."""
    eps, eps_hat = normal(seed, shape, dtype), normal(seed + 1, shape, dtype)
    errors = squared_error(eps, eps_hat)
    assert (errors.dtype, tuple(errors.shape)) == (dtype, shape[:1])
    for b in range(shape[0]):
        d = (eps[b] - eps_hat[b]).flatten().tolist()
        mean = math.fsum(v * v for v in d) / len(d)
        rtol = len(d) * float(torch.finfo(dtype).eps)
        torch.testing.assert_close(float(errors[b]), mean, rtol=rtol, atol=0)


@given(schedules(), shapes, seeds, st.data())
def test_the_network_is_asked_once_about_x_t_and_t(s, shape, seed, data):
    """Eq. 14: the argument of ε_θ is eq. 4's x_t and the paper's t, unshifted."""
    x_0, eps = normal(seed, shape), normal(seed + 1, shape)
    t = data.draw(steps(s, shape[0]))
    network = Recorder()
    L_simple(s, network, x_0, t, eps)
    assert [x.tolist() for x in network.x] == [q_sample(s, x_0, t, eps).tolist()]
    assert [v.tolist() for v in network.t] == [t.tolist()]


@given(schedules())
def test_the_floor_of_unit_gaussian_data_is_alpha_bar(s):
    """Eq. 14: for x_0 ~ N(0, I) no predictor does better than E = ᾱ_t at step t.

    E is over x_0 and ε of a square, so any points with the moments of N(0, I) up to
    order two give it exactly: the four sign pairs.
    """
    x_0, eps = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1]], dtype=torch.float64)
    for step in {1, (s.T + 1) // 2, s.T}:
        t = torch.full((4,), step)
        loss = L_simple(s, gaussian(s), x_0, t, eps)
        torch.testing.assert_close(loss, s.alpha_bar[step], rtol=RTOL, atol=4 * U)


@given(schedules(), shapes, seeds, st.data())
def test_a_batch_costs_the_mean_of_its_items(s, shape, seed, data):
    """Batch law: L_simple of a batch of mixed t is the mean of its items' L_simple."""
    x_0, eps = normal(seed, shape), normal(seed + 1, shape)
    t = data.draw(steps(s, shape[0]))
    items = [
        float(L_simple(s, some_network, x_0[i], t[i], eps[i]))
        for i in (slice(b, b + 1) for b in range(shape[0]))
    ]
    loss = float(L_simple(s, some_network, x_0, t, eps))
    mean = math.fsum(items) / len(items)
    torch.testing.assert_close(loss, mean, rtol=64 * U, atol=0)


@given(schedules(), shapes, seeds, st.data())
def test_the_gradient_pulls_the_prediction_to_eps(s, shape, seed, data):
    """∂L_simple/∂ε̂ = 2 (ε̂ - ε) / (number of numbers): through the network, not ε."""
    x_0, eps, guess = (normal(seed + i, shape) for i in range(3))
    guess.requires_grad_()
    t = data.draw(steps(s, shape[0]))
    L_simple(s, lambda x_t, t: guess, x_0, t, eps).backward()
    slope = 2 * (guess.detach() - eps) / eps.numel()
    torch.testing.assert_close(guess.grad, slope, rtol=8 * U, atol=0)


@given(schedules(min_T=2), seeds, choices_of_sigma2, st.data())
def test_eq_12_is_eq_10_is_eq_8_is_the_kl(s, seed, sigma2, data):
    """weight_t ‖ε-ε̂‖² = ‖μ̃_t(x_t, x_0) - μ_θ(x_t, t)‖² / (2 σ_t²) = KL - C, t >= 2.

    Norms are sums over D. Eq. 8 has μ̃_t of the true x_0 (eq. 7), eq. 10 has eq. 11
    of the true ε, eq. 12 our factor. KL is that of N(μ̃_t, β̃_t I) and N(μ_θ, σ_t² I);
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


def test_the_weight_has_no_first_step_with_beta_tilde():
    """β̃_1 = 0: eq. 12 would divide by it; at t = 1 the decoder (eq. 13) takes over."""
    with pytest.raises(ValueError, match=r"t must lie in 2\.\.1000, got 1\.\.5"):
        weight(linear_schedule(), torch.tensor([5, 1]), "beta_tilde")


WRONG_T = [
    torch.tensor([0, 2, 3, 4]),
    torch.tensor([1, 2, 3, 1001]),
    torch.ones(4),
    torch.ones(4, 1, dtype=torch.long),
    torch.tensor(1),
    5,
]


@pytest.mark.parametrize("t", WRONG_T)
def test_a_wrong_t_is_refused(t):
    """t outside 1..T, of another dtype or shape: an error from both functions.

    t = 0 would train on clean pictures, which eq. 14 never asks for.
    """
    s, x = linear_schedule(), torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"^t must"):
        L_simple(s, some_network, x, t, x)
    with pytest.raises(ValueError, match=r"^t must"):
        weight(s, t)


SHAPE = (4, 3, 2, 2)


@pytest.mark.parametrize("shape", [*BROADCASTS, (5, 3, 2, 2), (4, 3, 2), (4, 3, 4)])
def test_a_shape_that_merely_broadcasts_is_refused(shape):
    """ε and ε̂ have x_0's shape: one that broadcasts would be a loss of other pairs."""
    s, x, t = linear_schedule(), torch.zeros(SHAPE), torch.ones(4, dtype=torch.long)
    y = torch.ones(shape)
    wanted = rf"\({str(SHAPE)[1:-1]}\), got \({str(shape)[1:-1]}\)"
    for name, of, call in [
        ("eps", "x_0", lambda: L_simple(s, some_network, x, t, y)),
        (r"eps_theta\(x_t, t\)", "eps", lambda: squared_error(x, y)),
        (r"eps_theta\(x_t, t\)", "eps", lambda: L_simple(s, lambda *_: y, x, t, x)),
    ]:
        message = f"^{name} must have the shape of {of}, {wanted}$"
        with pytest.raises(ValueError, match=message):
            call()


def test_an_unknown_sigma2_is_refused():
    """σ_t² has a name that `Schedule.sigma2` knows; another is an error, no default."""
    with pytest.raises(ValueError, match=r"'beta', 'beta_tilde' or.*got 'learned'"):
        weight(linear_schedule(), torch.tensor([5]), "learned")
