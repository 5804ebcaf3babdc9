"""Laws of `ablations.py`: the score, μ̃-prediction, L as a loss, a learned Σ."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tinyddpm import (
    L_0,
    L_T,
    MLP,
    L_simple,
    L_tm1,
    Schedule,
    UNet,
    at,
    bits_per_dim,
    linear_schedule,
    p_mean,
    predict_x_0,
    q_posterior,
    q_sample,
    sample,
    to_float,
    weight,
)
from tinyddpm.beyond import ablations
from tinyddpm.beyond.ablations import (
    L,
    L_mu,
    L_of_step,
    TwoAnswers,
    bits_per_dim_p_theta,
    fixed_variance,
    learned_variance,
    mu_itself,
    sample_p_theta,
    score,
    unet_256,
)
from tinyddpm.beyond.oracle import gaussian_nll, gaussian_oracle
from tinyddpm.bound import log_decoder

from ..helpers import some_network
from ..strategies import choices_of_sigma2, normal, schedules, seeds, share, steps

short = schedules(min_T=2, max_T=12)


def pictures(seed, shape=(6, 1, 2, 2)):
    """8-bit pictures in [-1, 1], float64, black and white numbers among them."""
    g = torch.Generator().manual_seed(seed)
    v = torch.randint(-60, 316, shape, generator=g).clamp(0, 255).to(torch.uint8)
    return to_float(v, torch.float64)


@given(schedules(), seeds, st.data())
def test_score_is_the_gradient_of_the_log_density(s, seed, data):
    """Section 3.2: -ε*/√(1-ᾱ_t) = ∇ log q(x_t) for Gaussian data, by autograd.

    q(x_t) is N(√ᾱ_t m, ᾱ_t Σ + (1-ᾱ_t) I), whose log density `gaussian_nll` has.
    """
    root = normal(seed + 2, (3, 3))
    m, cov = normal(seed, (3,)), root @ root.T + 0.1 * torch.eye(3).double()
    t, x_t = data.draw(steps(s, 4)), normal(seed + 1, (4, 3))
    found = score(s, t, gaussian_oracle(s, m, cov)(x_t, t))
    for i in range(4):
        a = s.alpha_bar[t[i]]
        x = x_t[i : i + 1].clone().requires_grad_()
        marginal = a * cov + (1 - a) * torch.eye(3).double()
        nll = gaussian_nll(a.sqrt() * m, marginal, x).sum()
        (gradient,) = torch.autograd.grad(-nll, x)
        # the condition of Σ is below 1e3
        torch.testing.assert_close(found[i], gradient[0], rtol=1e-9, atol=1e-9)


@given(schedules(min_T=2), seeds, choices_of_sigma2, st.data())
def test_L_of_step_is_the_papers_bound_term_by_term(s, seed, sigma2, data):
    """Eq. 5: L_{t-1}, and L_0 at t = 1, as `bound.L_tm1` and `bound.L_0` have them.

    Those take x̂_0 (eq. 15), this takes μ_θ: by eq. 11 it is the same.
    """
    x_0, t = pictures(seed), data.draw(steps(s, 6))
    x_t = q_sample(s, x_0, t, normal(seed, x_0.shape))
    found = L_of_step(
        s, x_0, x_t, t, *fixed_variance(s, some_network, sigma2=sigma2)(x_t, t)
    )
    x_0_hat = predict_x_0(s, x_t, t, some_network(x_t, t))
    for i in range(6):
        one = (x_0[i : i + 1], x_0_hat[i : i + 1])
        if t[i] == 1:
            expected = L_0(s, *one, sigma2)
        else:
            expected = L_tm1(s, one[0], t[i : i + 1], one[1], sigma2)
        # μ̃ - μ_θ loses what both have in common: 1e-16 / σ_t of a term (..)²/2σ_t²
        torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-6, atol=1e-8)


@share(40)
@given(short, seeds, choices_of_sigma2)
def test_the_bound_and_samples_of_the_papers_p_theta_are_the_papers(s, seed, sigma2):
    """Eq. 1 with ε-prediction and Σ = σ_t² I: `bits_per_dim` and `sample`, one noise.

    The slack of samples is that of float32, in which both loops keep x_t, and which
    steps of a slope of 3 at most enlarge.
    """
    eps_theta = gaussian_oracle(s, torch.zeros(1, 2, 2), torch.eye(4))
    p_theta, x_0 = fixed_variance(s, eps_theta, sigma2=sigma2), pictures(seed)
    g, same = (torch.Generator().manual_seed(seed) for _ in range(2))
    found = bits_per_dim_p_theta(s, p_theta, x_0, g)
    expected = bits_per_dim(s, eps_theta, x_0, same, sigma2).total
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    found = sample_p_theta(s, p_theta, (5, 1, 2, 2), g)
    expected = sample(s, eps_theta, (5, 1, 2, 2), same, sigma2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@given(schedules(min_T=2), seeds, choices_of_sigma2, st.data())
def test_L_has_the_gradient_of_eq_12(s, seed, sigma2, data):
    """For t > 1 the gradient of L in ε̂ is that of eq. 12's weighted squares, over D.

    And that of L_simple without the weights: L's constant C has none.
    """
    x_0, t = pictures(seed), data.draw(steps(s, 6, first=2))
    eps = normal(seed, x_0.shape)
    x_t = q_sample(s, x_0, t, eps)
    eps_hat = some_network(x_t, t).requires_grad_()
    loss = L(s, fixed_variance(s, lambda x, t: eps_hat, sigma2=sigma2), x_0, t, eps)
    (found,) = torch.autograd.grad(loss, eps_hat)
    of_t = weight(s, t, sigma2).view(-1, 1, 1, 1)
    expected = of_t * 2 * (eps_hat - eps).detach() / eps.numel()
    torch.testing.assert_close(
        found, expected, rtol=1e-6, atol=1e-9 * float(of_t.max())
    )
    plain = L_simple(s, lambda x, t: eps_hat, x_0, t, eps)
    (found,) = torch.autograd.grad(plain, eps_hat)
    torch.testing.assert_close(found * of_t, expected)


@share(40)
@given(seeds)
def test_L_has_a_gradient_through_L_0(seed):
    """Eq. 13 at t = 1: autograd in μ_θ and in Σ_θ equals central differences.

    Black and white numbers included, whose bins reach to infinity.
    """
    s, x_0 = linear_schedule(100), pictures(seed, (3, 1, 1, 2))
    t = torch.ones(3, dtype=torch.long)
    off = normal(seed, x_0.shape).requires_grad_()
    log_variance = (normal(seed + 1, x_0.shape) - 7).requires_grad_()

    def nats(off, log_variance):
        mu = x_0 + off * (log_variance / 2).exp()  # off by some σ_1, which is 0.03
        return L_of_step(s, x_0, torch.zeros_like(x_0), t, mu, log_variance.exp())

    # central differences of 1e-5 err by 1e-10 times a third derivative, and by 1e-11
    assert torch.autograd.gradcheck(
        nats, (off, log_variance), eps=1e-5, rtol=1e-5, atol=1e-6
    )


@given(schedules(min_T=2), seeds, st.data())
def test_mu_prediction_is_another_reading_of_one_network(s, seed, data):
    """Section 3.2: a network that answers eq. 11's μ_θ gives the p_theta of that ε_θ.

    L_mu, "MSE" of Table 2, is then eq. 12 with σ_t² = 1/2: β_t²/(α_t (1-ᾱ_t)) ‖ε - ε̂‖².
    """
    x_0, t = pictures(seed), data.draw(steps(s, 6))
    eps = normal(seed, x_0.shape)
    x_t = q_sample(s, x_0, t, eps)
    by_eps = fixed_variance(s, some_network)
    by_mu = fixed_variance(
        s, lambda x, t: p_mean(s, x, t, some_network(x, t)), mu_itself
    )
    for found, expected in zip(by_mu(x_t, t), by_eps(x_t, t), strict=True):
        assert torch.equal(found, expected)
    beta, alpha, alpha_bar = at([s.beta, s.alpha, s.alpha_bar], t, x_0)
    of_t = beta**2 / (alpha * (1 - alpha_bar))
    expected = (of_t * (eps - some_network(x_t, t)) ** 2).mean()
    found = L_mu(s, by_mu, x_0, t, eps)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-15)


@given(schedules(min_T=2), seeds, st.data())
def test_the_best_learned_variance_is_what_it_must_cover(s, seed, data):
    """Eq. 5 for t > 1 is least in Σ at Σ = β̃_t + (μ̃ - μ_θ)², number by number.

    There its derivative is 0, ½ (1/Σ - (β̃_t + (μ̃ - μ_θ)²)/Σ²), and any other is worse.
    """
    x_0, t = pictures(seed), data.draw(steps(s, 6, first=2))
    x_t = q_sample(s, x_0, t, normal(seed, x_0.shape))
    mu = p_mean(s, x_t, t, some_network(x_t, t))
    mu_tilde, beta_tilde_t = q_posterior(s, x_t, x_0, t)
    best = beta_tilde_t + (mu_tilde - mu) ** 2

    def nats(log_variance):
        p_theta = learned_variance(s, lambda x, t: (mu, log_variance), mu_itself)
        return L_of_step(s, x_0, x_t, t, *p_theta(x_t, t))

    log_variance = best.log().requires_grad_()
    (slope,) = torch.autograd.grad(nats(log_variance).sum(), log_variance)
    assert float(slope.abs().max()) < 1e-9
    other = log_variance.detach() + 0.5 * normal(seed + 3, x_0.shape)
    assert bool((nats(other) > nats(log_variance)).all())


def test_classes_reach_the_network():
    """What follows x_t and t is given to the network as it is; a picture may be alone.

    The losses are the mean of `L_of_step` over D, and of (μ̃ - μ_θ)².
    """
    s, x_0, told = linear_schedule(30), pictures(0)[:1], []
    t, c, eps = torch.tensor([7]), torch.tensor([1]), normal(0, x_0.shape)
    x_t = q_sample(s, x_0, t, eps)

    def net(x_t, t, *c):
        told.append(c)
        return 0.5 * x_t

    def two(x_t, t, *c):
        return net(x_t, t, *c), x_t

    mu, variance = fixed_variance(s, net)(x_t, t, c)
    learned_variance(s, two)(x_t, t, c)
    TwoAnswers(net)(x_t, t, c)
    found = L(s, fixed_variance(s, net), x_0, t, eps, c)
    expected = L_of_step(s, x_0, x_t, t, mu, variance).mean() / 4
    torch.testing.assert_close(found, expected)
    found = L_mu(s, fixed_variance(s, net), x_0, t, eps, c)
    expected = (q_posterior(s, x_t, x_0, t)[0] - mu).square().mean()
    torch.testing.assert_close(found, expected)
    assert told == [(c,)] * 5


def test_the_score_is_rounded_once():
    """ε̂ in float32 gives what it gives in float64, in float32."""
    s, eps_hat, t = linear_schedule(30), normal(0, (2, 3)).float(), torch.tensor([1, 9])
    found = score(s, t, eps_hat)
    assert torch.equal(found, score(s, t, eps_hat.double()).float())


def test_without_a_generator_torchs_own_is_drawn_from():
    """On the CPU, as `sample` does."""
    s = linear_schedule(30)
    eps_theta = gaussian_oracle(s, torch.zeros(2), torch.eye(2))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = sample_p_theta(s, fixed_variance(s, eps_theta), (4, 2))
        torch.manual_seed(0)
        expected = sample(s, eps_theta, (4, 2))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_two_answers_are_the_halves_of_one_network():
    """(x_t, 0) goes in, (first, second) comes out; each reaches every shared weight."""
    torch.manual_seed(0)
    net = MLP((6, 3, 3), 16)
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    both, x_t = TwoAnswers(net), normal(0, (4, 3, 3, 3), torch.float32)
    t = torch.tensor([1, 2, 30, 100])
    first, second = both(x_t, t)
    whole = net(torch.cat([x_t, torch.zeros_like(x_t)], 1), t)
    assert torch.equal(torch.cat([first, second], 1), whole)
    unet = UNet(2, 8, (1,), (), 0.0, num_classes=2)
    first, second = TwoAnswers(unet)(
        torch.zeros(2, 1, 4, 4), t[:2], torch.tensor([0, 1])
    )
    assert first.shape == second.shape == (2, 1, 4, 4)


def test_a_second_answer_of_another_shape_is_refused():
    """One log Σ for each number: a shape that merely broadcasts is a mistake."""
    s, x_t = linear_schedule(30), normal(0, (2, 3))
    p_theta = learned_variance(s, lambda x, t: (x, x[:, :1]))
    shapes = r"the shape of the batch, \(2, 3\), got \(2, 1\)"
    says = rf"^the network's second answer must have {shapes}$"
    with pytest.raises(ValueError, match=says):
        p_theta(x_t, torch.tensor([1, 2]))


def test_mu_itself_refuses_what_p_mean_refuses():
    """t in 1..T and μ_θ of the shape of x_t, as everywhere."""
    s, x_t = linear_schedule(30), normal(0, (2, 3))
    with pytest.raises(ValueError, match="mu_hat must have the shape"):
        mu_itself(s, x_t, torch.tensor([1, 2]), x_t[:, :1])
    with pytest.raises(ValueError, match=r"t must lie in 1\.\.30"):
        mu_itself(s, x_t, torch.tensor([0, 2]), x_t)


def test_the_network_for_256_has_the_papers_114_million_weights():
    """App. B: 114 M parameters for 256x256; attention at level 4, which is 16x16."""
    with torch.device("meta"):
        net = unet_256()
    count = sum(p.numel() for p in net.parameters())
    assert round(count / 1e6) == 114
    assert 256 // 2 ** net.attention_levels[0] == 16
    h = ablations.HYPERPARAMETERS_256
    assert (h.lr, h.batch) == (2e-5, 64)
    assert net.dropout == 0
    assert net.in_channels == 3  # RGB


def test_bits_are_nats_over_D_ln_2():
    """One step t = 1 alone, T = 1: the bound is L_T + L_0 with D ln 2 nats to a bit."""
    s, x_0 = Schedule(torch.tensor([0.5])), pictures(0)[:1]  # one picture alone, too
    perfect = fixed_variance(s, lambda x, t: x_0, mu_itself)
    found = bits_per_dim_p_theta(s, perfect, x_0, torch.Generator().manual_seed(0))
    expected = (L_T(s, x_0) + L_0(s, x_0, x_0)) / (4 * math.log(2))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("variance", [1e-4, 1e-3, 2e-2])
@pytest.mark.parametrize("level", [0, 1, 128, 254, 255])
def test_the_gradient_of_eq_13_is_a_number_at_every_level(level, variance):
    """Training on L: d/dμ ln ∫ N(x; μ, σ²) = (φ(a) - φ(b)) / (σ (Φ(b) - Φ(a))).

    The ends included, where a or b is infinite: then φ is 0 there, and Φ 0 or 1. μ is
    off by up to 3 σ, where Python's erf has digits enough.
    """
    sigma = math.sqrt(variance)
    for off in (-3.0, -0.5, 0.0, 0.1, 3.0):
        mu = torch.tensor(level / 127.5 - 1 + off * sigma).double().requires_grad_()
        log_decoder(torch.tensor(float(level)).double(), mu, variance).backward()
        ends = ((level - 0.5) / 127.5 - 1, (level + 0.5) / 127.5 - 1)
        a, b = ((end - float(mu.detach())) / sigma for end in ends)
        a, b = (-math.inf if level == 0 else a), (math.inf if level == 255 else b)
        phi = [math.exp(-y * y / 2) / math.sqrt(2 * math.pi) for y in (a, b)]
        Phi = [(1 + math.erf(y / math.sqrt(2))) / 2 for y in (a, b)]
        expected = (phi[0] - phi[1]) / (sigma * (Phi[1] - Phi[0]))
        assert float(mu.grad) == pytest.approx(expected, rel=1e-9, abs=1e-9)
