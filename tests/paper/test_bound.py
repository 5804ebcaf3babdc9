"""Laws of the variational bound (eq. 3, 5, 8, 12, 16) and of section 4.3's curve.

What lives here: laws of `bound.py`. Where the data and the network are Gaussian and
linear, every term is a polynomial of degree 2 in x_0 and ε, so that expectations are
sums over the nodes of Gauss-Hermite quadrature: exact, without sampling.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tinyddpm.decoder import sigma2_1
from torch import nn

from tinyddpm import Schedule, linear_schedule, p_mean, p_step, predict_x_0, q_sample
from tinyddpm.beyond.gradients import gradient_images
from tinyddpm.beyond.oracle import (
    finite_oracle,
    gaussian_nll,
    gaussian_oracle,
    gradient_oracle,
)
from tinyddpm.bound import (
    L_0,
    L_T,
    L_tm1,
    bits_per_dim,
    gaussian_kl,
    mean_and_error,
    rate_distortion,
)
from tinyddpm.forward import q_posterior, q_step
from tinyddpm.train import weight
from tinyddpm.workshop.pictures import to_float, to_uint8

from ..reference import numpy_reference as reference
from ..strategies import choices_of_sigma2, normal, schedules, seeds, steps

BITS = 1 / math.log(2)
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


def random_pictures(seed, shape):
    """8-bit pictures in [-1, 1], every level possible."""
    g = torch.Generator().manual_seed(seed)
    return to_float(torch.randint(256, shape, generator=g, dtype=torch.uint8))


def log_normal(x, mean, variance):
    return -((x - mean) ** 2 / variance + torch.log(2 * math.pi * variance))[:, 0] / 2


# --- the terms ---------------------------------------------------------------------

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


@given(st.data(), SHORT, choices_of_sigma2, seeds)
def test_the_terms_are_eq_8_eq_10_and_eq_12(data, s, sigma2, seed):
    """Eq. 12 = eq. 10 = eq. 8 = KL(q(x_{t-1}|x_t, x_0) ‖ p_θ(x_{t-1}|x_t)) - C

    with C = D/2 (β̃_t/σ_t² - 1 - ln β̃_t/σ_t²), which is 0 for σ_t² = β̃_t. The error is
    that of the differences of means: roundings of size U |x̂_0| / MIN_BETA.
    """
    t = data.draw(steps(s, 4, first=2))
    x_0, eps, eps_hat = (normal(seed + i, (4, 3, 2)) for i in range(3))
    x_t = q_sample(s, x_0, t, eps)
    found = L_tm1(s, x_0, t, predict_x_0(s, x_t, t, eps_hat), sigma2)

    variance, beta_tilde = s.sigma2(sigma2)[t], s.beta_tilde[t]
    ratio = (beta_tilde / variance).numpy()
    C = torch.from_numpy(6 * (ratio - 1 - np.log(ratio)) / 2)
    mu_theta = p_mean(s, x_t, t, eps_hat)
    mu_tilde, _ = q_posterior(s, x_t, x_0, t)
    eq_8 = (mu_tilde - mu_theta).square().sum((1, 2)) / (2 * variance)
    a, b, rest = (v[t].view(-1, 1, 1) for v in (s.alpha, s.beta, 1 - s.alpha_bar))
    mu = (x_t - b / rest.sqrt() * eps) / a.sqrt()
    eq_10 = (mu - mu_theta).square().sum((1, 2)) / (2 * variance)
    eq_12 = weight(s, t, sigma2) * (eps - eps_hat).square().sum((1, 2))
    close = {"rtol": 1e-6, "atol": 1e-9}
    torch.testing.assert_close(found - C, eq_12, **close)
    torch.testing.assert_close(eq_8, eq_12, **close)
    torch.testing.assert_close(eq_10, eq_12, **close)


@given(st.data(), SHORT, choices_of_sigma2, seeds)
def test_L_tm1_is_the_kl_of_the_two_posteriors(data, s, sigma2, seed):
    """Eq. 5: the KL of eq. 6's Gaussian and of that which Algorithm 2 draws from."""
    t = data.draw(steps(s, 4, first=2))
    x_0, x_t, eps_hat = (normal(seed + i, (4, 3)) for i in range(3))
    mu_tilde, beta_tilde = q_posterior(s, x_t, x_0, t)
    for clip in (False, True):
        x_0_hat = predict_x_0(s, x_t, t, eps_hat)
        x_0_hat = x_0_hat.clamp(-1, 1) if clip else x_0_hat
        step = [
            p_step(s, lambda *_: eps_hat, x_t, t, z, sigma2, clip)
            for z in (torch.zeros_like(x_t), torch.ones_like(x_t))
        ]
        mean, variance = step[0], (step[1] - step[0]) ** 2
        exact = reference.gaussian_kl(
            *(x.numpy() for x in (mu_tilde, beta_tilde, mean, variance))
        ).sum(1)
        found = L_tm1(s, x_0, t, x_0_hat, sigma2)
        # σ_t is read off a difference of numbers of the mean's size: U |μ| / σ_t
        torch.testing.assert_close(found, torch.from_numpy(exact), rtol=1e-6, atol=1e-7)


def test_L_0_takes_its_mean_from_the_last_step():
    """Eq. 13: μ_θ(x_1, 1), the mean of eq. 11, is x̂_0, and its variance σ_1².

    Each number is compared with the quadrature of the density.
    """
    s = linear_schedule(40)
    x_0, t = random_pictures(0, (3, 1, 2, 2)).double(), torch.ones(3).long()
    x_1 = q_sample(s, x_0, t, normal(1, x_0.shape))
    eps_hat = normal(2, x_0.shape)
    mean, v = p_mean(s, x_1, t, eps_hat), to_uint8(x_0)
    for sigma2 in ("beta", "beta_tilde"):
        sigma = math.sqrt(sigma2_1(s, sigma2))
        exact = [
            -sum(
                reference.log_bin_probability(int(level), float(m), sigma)
                for level, m in zip(v[i].flatten(), mean[i].flatten(), strict=True)
            )
            for i in range(3)
        ]
        found = L_0(s, x_0, predict_x_0(s, x_1, t, eps_hat), sigma2)
        torch.testing.assert_close(
            found, torch.tensor(exact, dtype=torch.float64), rtol=1e-9, atol=0
        )


def test_sigma2_is_beta_unless_told():
    """Section 3.2: σ_t² = β_t is the choice of both terms where none is named."""
    s, t = linear_schedule(40), torch.tensor([2, 40])
    x_0, x_0_hat = random_pictures(0, (2, 1, 2, 2)), normal(1, (2, 1, 2, 2))
    assert torch.equal(L_0(s, x_0, x_0_hat), L_0(s, x_0, x_0_hat, "beta"))
    assert torch.equal(L_tm1(s, x_0, t, x_0_hat), L_tm1(s, x_0, t, x_0_hat, "beta"))


def test_the_first_step_has_no_kl():
    """Eq. 5: L_{t-1} is for t > 1; at t = 1 q(x_0|x_1, x_0) is a point, and eq. 13's
    decoder answers for it."""
    s, x_0 = linear_schedule(40), random_pictures(0, (2, 1, 2, 2))
    with pytest.raises(ValueError, match=r"t must lie in 2\.\.40, got 1\.\.2"):
        L_tm1(s, x_0, torch.tensor([1, 2]), x_0)


@pytest.mark.parametrize("shape", [(1, 1, 2, 2), (2, 1, 2, 1), (2, 4), (1,)])
def test_a_shape_that_merely_broadcasts_is_refused(shape):
    """x̂_0 has the shape of x_0: one that broadcasts is of other pictures."""
    s, t = linear_schedule(40), torch.tensor([2, 3])
    x_0 = random_pictures(0, (2, 1, 2, 2))
    wanted = rf"\(2, 1, 2, 2\), got \({str(shape)[1:-1]}\)"
    message = f"^x_0_hat must have the shape of x_0, {wanted}$"
    with pytest.raises(ValueError, match=message):
        L_tm1(s, x_0, t, torch.zeros(shape))
    with pytest.raises(ValueError, match=message):
        L_0(s, x_0, torch.zeros(shape))


# --- the three forms of L ----------------------------------------------------------


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


# --- the bound is a bound ----------------------------------------------------------


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
    total, error = mean_and_error(bound.total)
    assert total - 5 * error > 2 * 8 / (4 * 5)


# --- bits_per_dim ------------------------------------------------------------------


class Constant(nn.Module):
    """Answers so that x̂_0 is one picture, whatever the noise; keeps what it was asked.

    Every term of the bound is then known without its ε.
    """

    def __init__(self, s, x_0_hat):
        super().__init__()
        self.s, self.x_0_hat, self.asked, self.sizes = s, x_0_hat, [], []
        self.dropout = nn.Dropout(0.5)

    def forward(self, x_t, t):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.asked += t.tolist()
        self.sizes.append(len(t))
        alpha_bar = self.s.alpha_bar[t].view(-1, 1, 1, 1)
        x_0_hat = self.x_0_hat.to(x_t.dtype)
        return self.dropout((x_t - alpha_bar.sqrt() * x_0_hat) / (1 - alpha_bar).sqrt())


def constant(seed=0, N=3, T=12):
    """(schedule, network, pictures, as float64) of a known bound."""
    s = linear_schedule(T, 1e-3, 0.7)
    x_0 = random_pictures(seed, (N, 2, 3, 2)).double()
    return s, Constant(s, normal(seed, (1, 2, 3, 2)) / 3), x_0


def direct(s, net, x_0, sigma2="beta"):
    """Its terms one by one, (N, T + 1) bits/dim: column 1 is L_0, column t L_{t-1}."""
    columns, D = [torch.zeros(len(x_0)).double()], x_0[0].numel()
    x_0_hat = net.x_0_hat.expand_as(x_0)
    columns.append(L_0(s, x_0, x_0_hat, sigma2))
    for step in range(2, s.T + 1):
        t = torch.full((len(x_0),), step)
        columns.append(L_tm1(s, x_0, t, x_0_hat, sigma2))
    return torch.stack(columns, 1) * BITS / D


@pytest.mark.parametrize("sigma2", ["beta", "beta_tilde", "fixedlarge"])
@pytest.mark.parametrize("chunk", [1, 2, 5, 1000])
def test_bits_per_dim_has_each_term_of_each_picture(sigma2, chunk):
    """Eq. 5: L_T, L_{t-1} for t = T..2, L_0 and their sum, for each picture, in
    bits/dim = nats / (D ln 2), in calls of at most `chunk` pictures.
    """
    s, net, x_0 = constant()
    bound = bits_per_dim(s, net, x_0, sigma2=sigma2, chunk=chunk)
    exact = direct(s, net, x_0, sigma2)
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(bound.L_0, exact[:, 1], **close)
    torch.testing.assert_close(bound.L_tm1[:, 2:], exact[:, 2:], **close)
    assert bool((bound.L_tm1[:, :2] == 0).all())
    torch.testing.assert_close(bound.L_T, L_T(s, x_0) * BITS / 12, **close)
    total = bound.L_T + exact.sum(1)
    torch.testing.assert_close(bound.total, total, **close)
    mse = (x_0 - net.x_0_hat).square().mean((1, 2, 3))
    torch.testing.assert_close(bound.mse[:, 1:], mse[:, None].expand(3, 12), **close)
    assert max(net.sizes) <= chunk


def test_a_picture_costs_alone_what_it_costs_in_a_batch():
    """Eq. 5 is of one picture, whose D alone makes nats into bits/dim."""
    s, net, x_0 = constant()
    batch = bits_per_dim(s, net, x_0)
    for i in range(3):
        alone = bits_per_dim(s, net, x_0[i : i + 1])
        for a, b in zip(alone, batch, strict=True):
            torch.testing.assert_close(a[0], b[i], rtol=1e-9, atol=1e-12)


def test_the_network_is_asked_once_for_each_picture_and_step():
    """N T pictures, each t of 1..T N times; calls are full, of 128 pictures unless
    told, and progress is told."""
    s, net, x_0 = constant(N=5, T=12)
    told = []
    bits_per_dim(s, net, x_0, chunk=7, progress=lambda *seen: told.append(seen))
    assert sorted(net.asked) == sorted(list(range(1, 13)) * 5)
    assert net.sizes == [5] + [7] * 7 + [6]
    assert told[-1] == (60, 60)
    assert [seen for seen, _ in told] == np.cumsum(net.sizes).tolist()
    s, net, x_0 = constant(N=30, T=12)
    bits_per_dim(s, net, x_0)
    assert net.sizes == [30, 128, 128, 74]


def test_the_bound_leaves_the_network_and_the_random_state_alone():
    """Dropout is off while asked, training flags are as found; torch's own generator is
    not touched when one is given, and equal seeds give equal bounds.
    """
    s, net, x_0 = constant()
    net.train()
    before = torch.get_rng_state()
    bounds = [
        bits_per_dim(
            s, gradient_like(s), x_0.float(), torch.Generator().manual_seed(3), draws=4
        )
        for _ in range(2)
    ]
    bits_per_dim(s, net, x_0, torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert net.training
    assert net.dropout.training
    for a, b in zip(*bounds, strict=True):
        assert torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))


@pytest.mark.parametrize("draws", [None, 4])
def test_all_is_computed_where_the_pictures_are(draws):
    """What eq. 5 needs beside x_0 is made on x_0's device, and torch's default, here
    the one without memory, is not asked."""
    s, net, x_0 = constant()
    g = torch.Generator()
    here = bits_per_dim(s, net, x_0, g.manual_seed(3), draws=draws)
    with torch.device("meta"):
        there = bits_per_dim(s, net, x_0, g.manual_seed(3), draws=draws)
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))  # nan: not drawn


def gradient_like(s):
    """The exact predictor of N(0, I)."""
    return lambda x, t: (1 - s.alpha_bar[t]).sqrt().view(-1, 1, 1, 1).to(x) * x


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
    """T = 1: there is no t > 1, and the bound is L_T + L_0."""
    s = Schedule(torch.tensor([0.9]))
    x_0 = random_pictures(0, (2, 1, 3, 3))
    bound = bits_per_dim(s, lambda x, t: x, x_0)
    assert bound.L_tm1.shape == (2, 2)
    assert torch.equal(bound.total, bound.L_T + bound.L_0)
    with pytest.raises(ValueError, match="T >= 2"):
        bits_per_dim(s, lambda x, t: x, x_0, sigma2="beta_tilde")
    with pytest.raises(ValueError, match=r"draws must be >= 1.* T = 1"):
        bits_per_dim(s, lambda x, t: x, x_0, draws=1)


def test_clipping_never_makes_a_kl_larger():
    """Clamping x̂_0 to [-1, 1], where x_0 is, brings it nearer, so each L_{t-1} falls
    (eq. 8: μ̃ - μ_θ = c_0 (x_0 - x̂_0)); where x̂_0 is inside anyway nothing changes. The
    paper does not say so: unless told, nothing is clamped.
    """
    s, net, x_0 = constant()
    net.x_0_hat = 3 * net.x_0_hat
    assert float(net.x_0_hat.abs().max()) > 1 > float(net.x_0_hat.abs().min())
    plain, clipped = bits_per_dim(s, net, x_0), bits_per_dim(s, net, x_0, clip=True)
    assert bool((clipped.L_tm1[:, 2:] < plain.L_tm1[:, 2:]).all())
    net.x_0_hat = net.x_0_hat.clamp(-1, 1)
    inside = [bits_per_dim(s, net, x_0, clip=clip) for clip in (False, True)]
    for a, b, c in zip(*inside, clipped, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(a, c, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("draws", [1, 4, 30])
def test_sampled_t_is_unbiased_and_knows_its_error(draws):
    """E over t of Σ L_{t-1} / (draws P(t)) is Σ_t L_{t-1}, column by column too.

    4,000 copies of one picture and a network whose terms are known: the estimate is
    within 5 of its standard errors (false alarm 6e-7, and as much for each column).
    Power: one of them is below 2 % of the sum.
    """
    s, net, x_0 = constant(N=1)
    exact = direct(s, net, x_0)[0]
    g = torch.Generator().manual_seed(1)
    bound = bits_per_dim(s, net, x_0.expand(4000, -1, -1, -1), g, draws=draws)
    total, error = mean_and_error(bound.L_tm1.sum(1))
    aim = float(exact[2:].sum())
    assert abs(total - aim) <= 5 * error
    assert error < 0.02 * aim
    column = bound.L_tm1.mean(0)
    spread = bound.L_tm1.std(0) / 4000**0.5
    assert bool(((column - exact).abs() <= 5 * spread)[2:].all())
    assert bool((column[2:] > 0).all())
    # Of the `draws` parts, P(t) draws lie in t whole: the others are at its two ends.
    P = 1 / torch.arange(2, s.T + 1).double()
    hits = draws * P / P.sum()
    drawn = bound.L_tm1[:, 2:] / exact[2:] * hits
    torch.testing.assert_close(drawn, drawn.round(), rtol=0, atol=1e-6)
    assert float((drawn - hits).abs().max()) < 2
    off = (x_0 - net.x_0_hat).square().mean().double()
    mse = torch.where(drawn > 0.5, off, torch.nan)  # nan where t was not drawn
    torch.testing.assert_close(bound.mse[:, 2:], mse, equal_nan=True)
    torch.testing.assert_close(bound.L_0, exact[1].expand(4000))  # never sampled
    assert len(net.asked) == 4000 * (draws + 1)


def test_t_is_drawn_as_the_terms_fall():
    """Table 4: most of the rate is in the last steps. With the exact predictor of the
    gradients, t drawn as 1/t has less than a quarter of the deviation of uniform t.

    n = 2,000 pictures, one t each; uniform t by hand from the terms of every t of 100
    of them. The ratio is 5.5, known to some per cent: four is far out of its error.
    """
    s, g = linear_schedule(200), torch.Generator().manual_seed(0)
    x_0 = to_float(to_uint8(gradient_images(2000, 3, 3, g)))
    oracle = gradient_oracle(s, 3, 3)
    terms = bits_per_dim(s, oracle, x_0[:100], g).L_tm1
    uniform = (199 * terms[:, 2:]).std()
    sampled = bits_per_dim(s, oracle, x_0, g, draws=1).L_tm1.sum(1)
    assert float(sampled.std()) < float(uniform) / 4


def test_mean_and_error_of_known_numbers():
    """The standard error of a mean is s/√n with s² = Σ (x - x̄)²/(n - 1)."""
    mean, error = mean_and_error(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert mean == 3.0
    assert error == pytest.approx(math.sqrt(14 / 3 / 4))
    assert mean_and_error(torch.tensor([1.0, 3.0])) == (2.0, pytest.approx(1.0))
    assert math.isnan(mean_and_error(torch.tensor([1.0]))[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_0": torch.zeros(2, 1, 2, 2)}, "8-bit pictures"),
        ({"x_0": torch.zeros(0, 1, 2, 2)}, "need a picture"),
        ({"chunk": 0}, "chunk >= 1"),
        ({"draws": 0}, r"draws must be >= 1, of t = 2\.\.T, got 0"),
        ({"sigma2": "learned"}, "'beta', 'beta_tilde' or"),
    ],
)
def test_bad_input_is_refused(change, message):
    """Errors are sentences that name what was given and what was expected."""
    s = linear_schedule(10, 1e-2, 0.8)
    arguments = {"x_0": random_pictures(0, (2, 1, 2, 2)), **change}
    with pytest.raises(ValueError, match=message):
        bits_per_dim(s, lambda x, t: x, **arguments)


# --- rate and distortion -----------------------------------------------------------


def test_rate_and_distortion_are_sums_and_errors_of_the_bound():
    """Section 4.3: a holder of x_t has paid L_T + Σ_{s>t} L_{s-1} and errs by
    127.5 √E‖x_0 - x̂_0‖²/D; T - t + 1 reverse steps in, as table 4 counts.
    """
    s, net, x_0 = constant(N=4)
    bound = bits_per_dim(s, net, x_0)
    rate, distortion = rate_distortion(bound)
    assert rate.shape == distortion.shape == (s.T + 1,)
    assert float(rate[0]) == pytest.approx(float(bound.total.mean()))
    assert float(rate[s.T]) == pytest.approx(float(bound.L_T.mean()))
    for t in range(s.T + 1):
        paid = float(bound.L_T.mean() + bound.L_tm1[:, t + 1 :].mean(0).sum())
        paid += float(bound.L_0.mean()) if t == 0 else 0.0
        assert float(rate[t]) == pytest.approx(paid, rel=1e-12)
    off = (x_0 - net.x_0_hat).square().mean().sqrt()
    assert float(distortion[0]) == 0
    torch.testing.assert_close(distortion[1:], (127.5 * off).expand(s.T))


def test_a_sampled_bound_shows_the_distortion_it_saw():
    """Where t was drawn the error is that of the whole bound; where it was not, nan."""
    s, net, x_0 = constant(N=4)
    whole = bits_per_dim(s, net, x_0)
    some = bits_per_dim(s, net, x_0, torch.Generator().manual_seed(0), draws=2)
    drawn = ~some.mse.isnan()
    assert set(drawn[:, 1:].sum(1).tolist()) <= {2, 3}  # t = 1, and one or two others
    assert bool(drawn[:, :2].all())
    torch.testing.assert_close(some.mse[drawn], whole.mse[drawn])
    _, distortion = rate_distortion(some)
    assert torch.equal(distortion.isnan(), ~drawn.any(0))
    both = drawn.all(0)
    torch.testing.assert_close(distortion[both], rate_distortion(whole)[1][both])
