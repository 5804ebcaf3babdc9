"""Laws of `improved.py`: two schedules, fewer steps, a learned Σ and L_hybrid."""

import math
import re
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import Adam

from tinyddpm import (
    EMA,
    MLP,
    L_simple,
    Schedule,
    bits_per_dim,
    linear_schedule,
    p_mean,
    p_sample_loop,
    q_sample,
    sample,
    to_float,
    to_uint8,
)
from tinyddpm.beyond.ablations import (
    L_of_step,
    TwoAnswers,
    bits_per_dim_p_theta,
    sample_p_theta,
)
from tinyddpm.beyond.ddim import ddim_loop, uniform_steps
from tinyddpm.beyond.gradients import gradient_drawer
from tinyddpm.beyond.improved import (
    L_hybrid,
    cosine_schedule,
    interpolated_variance,
    sigmoid_schedule,
    strided,
)
from tinyddpm.beyond.oracle import gaussian_oracle
from tinyddpm.train import Hyperparameters, algorithm_1

from ..helpers import U
from ..second_device import ELSEWHERE, SecondDevice
from ..strategies import normal, schedules, seeds, share, steps

short = schedules(min_T=2, max_T=12)


def pictures(seed, shape=(6, 1, 2, 2)):
    """8-bit pictures in [-1, 1], float64."""
    g = torch.Generator().manual_seed(seed)
    v = torch.randint(256, shape, generator=g).to(torch.uint8)
    return to_float(v, torch.float64)


def some_steps(s, data):
    """Falling steps of s, no stride of which leaves less than 1e-9 of ᾱ.

    float64 cannot hold a β_i = 1 - ᾱ_{τ_i}/ᾱ_{τ_{i-1}} closer to 1 than 1e-16.
    """
    chosen = sorted(data.draw(st.sets(st.integers(1, s.T), min_size=1)), reverse=True)
    kept = s.alpha_bar[[0, *reversed(chosen)]]
    assume(float((kept[1:] / kept[:-1]).min()) > 1e-9)
    return chosen


@given(st.integers(1, 4000))
def test_the_cosine_schedule_is_eq_17(T):
    """Eq. 17: ᾱ_t = f(t)/f(0), f(t) = cos²((t/T + s)/(1 + s) π/2), s = 0.008.

    By Python's floats, for every t whose β_t is below the cap of 0.999; at the last
    t, where f is 0, the cap holds.
    """
    s = cosine_schedule(T)
    f = [math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(T + 1)]
    beta = [1 - f[t] / f[t - 1] for t in range(1, T + 1)]
    assert s.T == T
    assert float(s.beta[T]) == 0.999
    for t in {1, (T + 1) // 2, T - 1} - {0, T}:
        if max(beta[:t]) < 0.999:
            assert float(s.alpha_bar[t]) == pytest.approx(f[t] / f[0], rel=1e-9)


@given(st.integers(2, 4000), st.floats(0.2, 3))
def test_the_sigmoid_schedule_runs_from_1_to_0(T, tau):
    """ᾱ_t is the logistic curve between -3/τ and 3/τ, turned and stretched to 1..0.

    It is symmetric: ᾱ_t + ᾱ_{T-t} = 1.
    """
    s = sigmoid_schedule(T, tau=tau)

    def curve(u):
        return 1 / (1 + math.exp(-u))

    first, last = curve(-3 / tau), curve(3 / tau)
    for t in {0, 1, T // 2, T - 1} - {T}:
        expected = (last - curve((6 * t / T - 3) / tau)) / (last - first)
        assert float(s.alpha_bar[t]) == pytest.approx(expected, rel=1e-6)
        if t:
            both = float(s.alpha_bar[t] + s.alpha_bar[T - t])
            assert both == pytest.approx(1, abs=1e-6)
    assert float(s.beta[T]) == 0.999


@given(st.integers(2, 200), st.floats(0.2, 3))
def test_tau_divides_the_ends(T, tau):
    """σ(u/τ), u from b to e, is σ(u) from b/τ to e/τ: τ = 1, which is the default."""
    by_tau = sigmoid_schedule(T, -2.0, 1.0, tau)
    by_ends = sigmoid_schedule(T, -2.0 / tau, 1.0 / tau)
    torch.testing.assert_close(
        by_tau.alpha_bar, by_ends.alpha_bar, rtol=1e-9, atol=1e-12
    )


def test_the_cosine_schedule_keeps_more_of_the_picture_in_the_middle():
    """Figure 5 of the paper: at T/2 the linear schedule has destroyed far more."""
    half = [float(s.alpha_bar[500]) for s in (cosine_schedule(), linear_schedule())]
    assert half[0] == pytest.approx(0.5, abs=0.02)
    assert half[1] < 0.1
    # compared where each has as many steps as the paper
    assert cosine_schedule().T == sigmoid_schedule().T == linear_schedule().T


@given(schedules(min_T=2), st.data())
def test_a_strided_schedule_is_the_same_diffusion(s, data):
    """Eq. 19: ᾱ_i of the new schedule is ᾱ_{τ_i} of the old, so α_i = ∏ α_t.

    The product is over the steps that one stride takes together. α_i = 1 - β_i has lost
    the digits of 1: it is right to U/α_i only, which adds up over the strides.
    """
    chosen = some_steps(s, data)
    fewer, _ = strided(s, lambda x_t, t: x_t, chosen)
    kept = [0, *reversed(chosen)]
    loss = 1e-12 + 2 * U * float((1 / fewer.alpha).sum())
    torch.testing.assert_close(fewer.alpha_bar, s.alpha_bar[kept], rtol=loss, atol=0)
    for i, (first, last) in enumerate(pairwise(kept), start=1):
        product = s.alpha[first + 1 : last + 1].prod()
        torch.testing.assert_close(fewer.alpha[i], product, rtol=loss, atol=0)


def test_a_strided_schedule_is_where_the_schedule_is():
    """Its tables are on the device of those that it is made from."""
    with SecondDevice():
        fewer, _ = strided(linear_schedule(30).to(ELSEWHERE), abs, [30, 1])
        assert fewer.alpha_bar.device == ELSEWHERE


@given(schedules(min_T=2))
def test_all_steps_are_the_schedule_itself(s):
    """Eq. 19 with all T steps: the same β_t, ᾱ_t and β̃_t.

    1 - ᾱ_t/ᾱ_{t-1} loses the digits of 1 before a β_t, which is 1e-6 at least.
    """
    same, _ = strided(s, lambda x_t, t: x_t, range(s.T, 0, -1))
    for name in ("beta", "alpha_bar", "beta_tilde"):
        found, expected = getattr(same, name), getattr(s, name)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-15)


@share(40)
@given(schedules(min_T=2, max_T=40), seeds, st.data())
def test_strided_sampling_is_ddim_with_eta_1(s, seed, data):
    """Eq. 19 with σ² = β̃ and DDIM's eq. 12 with η = 1 are one sampler, for any steps.

    Both are the posterior of x_τ' given x̂_0 and x_τ, for the same noise and network,
    which is asked at τ and not at the step's number.
    """
    chosen = some_steps(s, data)
    eps_theta, x_T = (
        gaussian_oracle(s, torch.zeros(3), torch.eye(3)),
        normal(seed, (4, 3)),
    )
    g, same = (torch.Generator().manual_seed(seed) for _ in range(2))
    fewer, at_tau = strided(s, eps_theta, chosen)
    found = [x for _, x, _ in p_sample_loop(fewer, at_tau, x_T, g, "beta_tilde")]
    expected = [x for _, x, _ in ddim_loop(s, eps_theta, x_T, chosen, same, eta=1.0)]
    # the exact predictor of N(0, I) has slopes below 1, which let no rounding grow
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


def test_the_bound_of_fewer_steps_is_higher_but_still_a_bound():
    """Eq. 5 of 1000, 100 and 10 strided steps, for Gaussian data of a deviation of 0.2.

    Never below the entropy ½ log2(2πe v / bin²); each step of eq. 1 is Gaussian, which
    a longer one of eq. 2 backwards is less, so that the bound rises as steps are left
    out.
    """
    s = linear_schedule(1000)
    eps_theta = gaussian_oracle(s, torch.zeros(1, 2, 2), 0.04 * torch.eye(4))
    g = torch.Generator().manual_seed(0)
    x_0 = to_float(to_uint8(0.2 * normal(0, (500, 1, 2, 2), torch.float32)))
    entropy = (
        math.log(0.2 * math.sqrt(2 * math.pi * math.e)) - math.log(2 / 255)
    ) / math.log(2)
    totals = []
    for n in (1000, 100, 10):
        pair = strided(s, eps_theta, uniform_steps(1000, n))
        totals.append(float(bits_per_dim(*pair, x_0, g).total.mean()))
    # 2,000 numbers: their mean -log p is good to 4 √(1/2 / 2000) / ln 2 = 0.09 bits
    assert entropy - 0.1 < totals[0] < totals[1] < totals[2]


@given(schedules(min_T=2), seeds, st.data())
def test_the_variance_interpolates_between_beta_and_beta_tilde(s, seed, data):
    """Eq. 15: v = 1 is β_t, v = 0 is β̃_t (β̃_2 at t = 1), and log Σ is linear in v."""
    t, x_t = data.draw(steps(s, 5)), normal(seed, (5, 3))
    eps_hat, some = normal(seed + 1, (5, 3)), normal(seed + 2, (5, 3))

    def variance(v):
        return interpolated_variance(s, lambda x, t: (eps_hat, v))(x_t, t)[1]

    one, zero = variance(torch.ones_like(some)), variance(torch.zeros_like(some))
    tilde = s.beta_tilde.clone()
    tilde[1] = tilde[2]
    for found, expected in ((one, s.beta[t]), (zero, tilde[t])):
        expected = expected[:, None].expand_as(found)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    mixed = some * one.log() + (1 - some) * zero.log()
    torch.testing.assert_close(variance(some).log(), mixed, rtol=1e-9, atol=1e-9)


@given(short, seeds)
def test_v_1_is_the_papers_process_and_its_strided_one(s, seed):
    """v = 1: bound and samples are those of σ² = β, on a strided schedule too (eq. 19).

    Samples to float32's digits, in which x_t is kept.
    """
    eps_theta = gaussian_oracle(s, torch.zeros(1, 2, 2), torch.eye(4))
    x_0 = pictures(seed)

    def net(x_t, t):
        return eps_theta(x_t, t), torch.ones_like(x_t)

    chosen = list(range(s.T, 0, -2))
    if len(chosen) < 2:
        chosen = [2, 1]
    g, same = (torch.Generator().manual_seed(seed) for _ in range(2))
    fewer, both = strided(s, net, chosen)
    pair = strided(s, eps_theta, chosen)
    p_theta = interpolated_variance(fewer, both)
    found = bits_per_dim_p_theta(fewer, p_theta, x_0, g)
    expected = bits_per_dim(*pair, x_0, same).total
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    found = sample_p_theta(fewer, p_theta, (5, 1, 2, 2), g)
    expected = sample(*pair, (5, 1, 2, 2), same)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@given(schedules(min_T=2), seeds, st.data())
def test_L_hybrid_teaches_the_mean_by_L_simple_alone(s, seed, data):
    """Eq. 16: ∂/∂ε̂ is that of L_simple, ∂/∂v that of λ T L_{t-1}/D; both are in it."""
    x_0, t = pictures(seed), data.draw(steps(s, 6))
    eps, lam = normal(seed, x_0.shape), 0.1
    x_t = q_sample(s, x_0, t, eps)
    eps_hat = normal(seed + 1, x_0.shape).requires_grad_()
    v = normal(seed + 2, x_0.shape).sigmoid().requires_grad_()
    loss = L_hybrid(s, lambda x, t: (eps_hat, v), x_0, t, eps, lam=lam)
    of_mean, of_v = torch.autograd.grad(loss, (eps_hat, v))
    simple = L_simple(s, lambda x, t: eps_hat, x_0, t, eps)
    (expected,) = torch.autograd.grad(simple, eps_hat)
    assert torch.equal(of_mean, expected)
    _, variance = interpolated_variance(s, lambda x, t: (eps_hat, v))(x_t, t)
    mu = p_mean(s, x_t, t, eps_hat).detach()
    vlb = s.T * L_of_step(s, x_0, x_t, t, mu, variance).mean() / 4
    (expected,) = torch.autograd.grad(lam * vlb, v)
    torch.testing.assert_close(of_v, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(loss, simple + lam * vlb, rtol=1e-9, atol=0)


def test_lambda_is_the_papers_and_a_picture_may_be_alone():
    """Section 3.1: λ = 0.001, so small that L_vlb does not drown L_simple."""
    s, x_0, t = linear_schedule(30), pictures(0)[:1], torch.tensor([7])
    eps, v = normal(0, x_0.shape), normal(1, x_0.shape).sigmoid()
    x_t = q_sample(s, x_0, t, eps)
    p_theta = interpolated_variance(s, lambda x, t: (x, v))
    vlb = s.T * L_of_step(s, x_0, x_t, t, *p_theta(x_t, t)).mean() / 4
    expected = (eps - x_t).square().mean() + 0.001 * vlb
    found = L_hybrid(s, lambda x, t: (x, v), x_0, t, eps)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_classes_reach_the_network():
    """What follows x_t and t is given to the network as it is."""
    s, x_0 = linear_schedule(30), pictures(0)
    t, c, told = torch.arange(1, 7), torch.arange(6), []

    def net(x_t, t, *c):
        told.append(c)
        return x_t, x_t

    strided(s, net, range(30, 0, -2))[1](x_0, t, c)
    interpolated_variance(s, net)(x_0, t, c)
    L_hybrid(s, net, x_0, t, x_0, c)
    assert told == [(c,)] * 3


def gradients_8_bit(height: int, width: int):
    """The toy's pictures rounded to the 256 levels, which eq. 13 needs."""
    draw = gradient_drawer(height, width)

    def draw_8_bit(B: int, g: torch.Generator | None) -> tuple[Tensor, ...]:
        return (to_float(to_uint8(draw(B, g)[0])),)

    return draw_8_bit


def learned_and_fixed(seed: int, T: int) -> tuple[float, float, float]:
    """Bits/dim after training on L_hybrid: with the learned Σ, with β_t, with β̃_t.

    One network each seed, so the three have one ε_θ and differ in Σ alone; and one
    noise, since each bound has a generator of the same seed.
    """
    torch.manual_seed(seed)
    s, net = linear_schedule(T), TwoAnswers(MLP((6, 5, 5)))
    draw, ema = gradients_8_bit(5, 5), EMA(net, 0.99)
    h = Hyperparameters(
        steps=800, batch=128, lr=2e-3, lr_end=0.0, warmup=100, seed=seed
    )
    optimiser = Adam(net.parameters(), h.lr)

    def gradient(*batch) -> Tensor:
        loss = L_hybrid(*batch)
        loss.backward()
        return loss.detach()

    for _ in algorithm_1(s, net, draw, h, ema, optimiser, gradient=gradient):
        pass
    (x_0,) = draw(256, torch.Generator().manual_seed(1000 + seed))

    def noise():
        return torch.Generator().manual_seed(2000 + seed)

    learned = bits_per_dim_p_theta(s, interpolated_variance(s, ema.net), x_0, noise())
    fixed = [
        bits_per_dim(s, lambda x, t: ema.net(x, t)[0], x_0, noise(), sigma2).total
        for sigma2 in ("beta", "beta_tilde")
    ]
    return tuple(float(bits.mean()) for bits in (learned, *fixed))


@pytest.mark.slow
def test_a_learned_variance_lowers_the_bound_below_both_fixed_ones():
    """Section 3.1: trained on L_hybrid, the toy's bound is below that of β_t and β̃_t.

    T = 40, where β_t and β̃_t differ; in each of three seeds, for one ε_θ and one noise.
    """
    for seed in range(3):
        learned, beta, beta_tilde = learned_and_fixed(seed, T=40)
        print(f"seed {seed}: learned {learned:.4f}, β {beta:.4f}, β̃ {beta_tilde:.4f}")
        assert learned < min(beta, beta_tilde)


ENDS = "start must be below end, and tau above 0; got start = {}, end = {}, tau = {}"
REFUSED = {
    "steps above T": (
        lambda s: strided(s, abs, [31]),
        "steps must fall and lie in 30..1, got [31]",
    ),
    "no steps": (
        lambda s: strided(s, abs, []),
        "steps must fall and lie in 30..1, got []",
    ),
    "T = 1": (
        lambda s: interpolated_variance(Schedule(torch.tensor([0.5])), abs),
        "a learned variance needs T >= 2, got T = 1",
    ),
    "T = 0": (lambda s: cosine_schedule(0), "T must be whole and at least 1, got 0"),
    "half a step": (
        lambda s: sigmoid_schedule(2.5),
        "T must be whole and at least 1, got 2.5",
    ),
    "an end before the start": (
        lambda s: sigmoid_schedule(30, start=1.0, end=0.0),
        ENDS.format(1.0, 0.0, 1.0),
    ),
    "an end at the start": (
        lambda s: sigmoid_schedule(30, start=1.0, end=1.0),
        ENDS.format(1.0, 1.0, 1.0),
    ),
    "no temperature": (
        lambda s: sigmoid_schedule(30, tau=0.0),
        ENDS.format(-3.0, 3.0, 0.0),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_a_sentence(case):
    """What cannot be meant is refused with what was given, before any work."""
    call, says = REFUSED[case]
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        call(linear_schedule(30))


@pytest.mark.parametrize("name", ["eps_theta(x_t, t)", "v"])
def test_answers_of_other_shapes_are_refused(name):
    """ε_θ and v have the shape of the batch: none is broadcast in silence."""
    s, x_0 = linear_schedule(30), pictures(0)
    t, eps = torch.arange(1, 7), normal(1, x_0.shape)

    def net(x, t):
        return (x, x[:, :, :1]) if name == "v" else (x[:, :, :1], x)

    shapes = "(6, 1, 2, 2), got (6, 1, 1, 2)"
    says = re.escape(f"{name} must have the shape of the batch, {shapes}")
    with pytest.raises(ValueError, match=f"^{says}$"):
        L_hybrid(s, net, x_0, t, eps)
