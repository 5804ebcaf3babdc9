"""Laws of the reverse process p_θ: eq. 1, 11, 15, Algorithm 2, section 4.4.

What lives here: laws of `sampler.py`. Exact noise predictors ("oracles") stand in for
a perfect network: ε of x_t is then known, and so is where every step must land.
Tolerances: U and RTOL are explained in `test_schedule.py`.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tinyddpm import (
    Schedule,
    at,
    interpolate,
    linear_schedule,
    p_mean,
    p_sample_loop,
    p_step,
    predict_x_0,
    q_posterior,
    q_sample,
    sample,
)

from ..strategies import (
    choices_of_sigma2,
    dtypes,
    normal,
    schedules,
    seeds,
    shapes,
    share,
    steps,
)
from .test_forward import BROADCASTS
from .test_schedule import RTOL, U, assert_within

short = schedules(max_T=20)  # the network is called at every step: keep T small
LONG = {"dtype": torch.long}


def gaussian(s):
    """The exact predictor for x_0 ~ N(0, I): E[ε | x_t] = √(1-ᾱ_t) x_t."""
    return lambda x_t, t: (1 - at(s.alpha_bar, t, x_t)).sqrt() * x_t


def point_mass(s, c):
    """The exact predictor for data that are always c: eq. 4 solved for ε."""

    def eps_theta(x_t, t):
        alpha_bar = at(s.alpha_bar, t, x_t)
        return (x_t - alpha_bar.sqrt() * c) / (1 - alpha_bar).sqrt()

    return eps_theta


def two_points(s, a, b):
    """The exact predictor for data that are a or b, by how likely x_t makes each."""

    def eps_theta(x_t, t):
        alpha_bar = at(s.alpha_bar, t, x_t)
        gap = [(x_t - alpha_bar.sqrt() * c).flatten(1).square().sum(1) for c in (a, b)]
        odds = (gap[0] - gap[1]) / (2 * (1 - alpha_bar.flatten()))
        w = odds.sigmoid().view(alpha_bar.shape)
        return point_mass(s, (1 - w) * a + w * b)(x_t, t)

    return eps_theta


def some_network(x_t, t):
    """Any function of x_t and t, bounded: what a network might say."""
    return (3 * x_t).sin() + 0.1 * t.view(-1, *[1] * (x_t.ndim - 1)).cos().to(x_t)


class Recorder:
    """Keeps what the network was asked."""

    def __init__(self, eps_theta=some_network):
        self.eps_theta, self.x, self.t = eps_theta, [], []

    def __call__(self, x_t, t):
        self.x.append(x_t.clone())
        self.t.append(t.clone())
        return self.eps_theta(x_t, t)


@given(schedules(), shapes, seeds, st.data())
def test_eq_15_undoes_eq_4(s, shape, seed, data):
    """Eq. 15 with the true ε is x_0: x̂_0(q_sample(x_0, ε), ε) = x_0.

    x_t is rounded once, U (|x_0| + |ε|), and divided by √ᾱ_t.
    """
    x_0, eps = normal(seed, shape), normal(seed + 1, shape)
    t = data.draw(steps(s, shape[0]))
    x_t = q_sample(s, x_0, t, eps)
    size = x_0.abs().max() + eps.abs().max()
    rounding = 8 * U * size / at(s.alpha_bar, t, x_0).sqrt()
    assert_within(predict_x_0(s, x_t, t, eps), x_0, rounding)


@given(schedules(), shapes, seeds, st.data())
def test_eq_11_is_eq_7_after_eq_15(s, shape, seed, data):
    """Eq. 11: μ_θ(x_t, t) = μ̃_t(x_t, x̂_0) for any ε̂.

    Both sides are sums of x_t and ε̂ divided by at most √α_t. On the right x̂_0 is as
    large as 1/√ᾱ_t, but eq. 7 multiplies it by √ᾱ_{t-1}: what is left is 1/√α_t.
    """
    x_t, eps_hat = normal(seed, shape), normal(seed + 1, shape)
    t = data.draw(steps(s, shape[0]))
    x_0_hat = predict_x_0(s, x_t, t, eps_hat)
    mu_tilde, _ = q_posterior(s, x_t, x_0_hat, t)
    size = (x_t.abs().max() + eps_hat.abs().max()) / at(s.alpha, t, x_t).sqrt()
    assert_within(p_mean(s, x_t, t, eps_hat), mu_tilde, RTOL * size)


@given(schedules(), shapes, seeds, choices_of_sigma2, st.booleans(), st.data())
def test_a_step_adds_sigma_times_z(s, shape, seed, sigma2, clip, data):
    """Eq. 1, Alg. 2 line 4: x_{t-1} - μ_θ(x_t, t) = σ_t z with σ_t a root, 0 at t = 1.

    σ² = β_t or β̃_t as chosen; taking the variance for its root is too small by 10.
    """
    x_t, z = normal(seed, shape), normal(seed + 1, shape)
    t = data.draw(steps(s, shape[0]))
    zero = torch.zeros_like(z)
    mean = p_step(s, some_network, x_t, t, zero, sigma2, clip)
    noise = p_step(s, some_network, x_t, t, z, sigma2, clip) - mean
    variance = s.sigma2(sigma2)[t] * (t > 1)
    expected = torch.stack([v.sqrt() * n for v, n in zip(variance, z, strict=True)])
    size = float(mean.abs().max() + z.abs().max())
    torch.testing.assert_close(noise, expected, rtol=4 * U, atol=2 * U * size)


@given(schedules(), shapes, seeds, st.data())
def test_the_mean_of_a_step_is_eq_11(s, shape, seed, data):
    """Alg. 2 line 4 without noise is μ_θ(x_t, t), of one call of the network."""
    x_t = normal(seed, shape)
    t = data.draw(steps(s, shape[0]))
    network = Recorder()
    mean = p_step(s, network, x_t, t, torch.zeros_like(x_t))
    assert torch.equal(mean, p_mean(s, x_t, t, some_network(x_t, t)))
    assert [x.tolist() for x in network.x] == [x_t.tolist()]
    assert [v.tolist() for v in network.t] == [t.tolist()]


@given(schedules(), shapes, seeds, dtypes, choices_of_sigma2, st.booleans())
def test_nothing_depends_on_z_at_the_last_step(s, shape, seed, dtype, sigma2, clip):
    """Alg. 2 line 3: z = 0 at t = 1: x_0 is the same for any z, inf and nan too."""
    x_1 = normal(seed, shape, dtype)
    t = torch.ones(shape[0], **LONG)
    z = normal(seed + 1, shape, dtype)
    without = p_step(s, some_network, x_1, t, torch.zeros_like(z), sigma2, clip)
    for noise in (z, 1e30 * z, z / 0, z * math.nan):
        assert torch.equal(
            p_step(s, some_network, x_1, t, noise, sigma2, clip), without
        )


@given(schedules(), seeds)
def test_unit_gaussian_data_stay_so_at_every_step(s, seed):
    """Section 3.2: x_0 ~ N(0, I), its exact predictor, σ² = β: Var x_t = 1 at every t.

    The step is then x_{t-1} = c x_t + σ z with c² + σ² = 1 for every t >= 2; the last
    adds no noise, so Var x_0 = α_1. One call per coefficient, all t at once.
    """
    t = torch.arange(1, s.T + 1)
    one, zero = torch.ones(s.T).double(), torch.zeros(s.T).double()
    c = p_step(s, gaussian(s), one, t, zero)
    sigma = p_step(s, gaussian(s), zero, t, one)
    variance = c**2 + sigma**2
    expected = torch.ones_like(c)
    expected[0] = s.alpha[1]
    torch.testing.assert_close(variance, expected, rtol=RTOL, atol=0)
    assert float(c.min()) > 0
    assert float(sigma.min()) >= 0
    # Without z the pictures would shrink: c² alone is below 1 (by β_t).
    assert float((c**2 - (1 - 0.5 * s.beta[1:])).max()) <= 0


@given(schedules(), st.floats(-1, 1))
def test_a_point_mass_is_followed_back_at_every_step(s, c):
    """Section 3.2: x_0 = c, its exact predictor, σ² = β̃: q(x_t|c) goes to q(x_{t-1}|c).

    Mean √ᾱ_t c and variance 1-ᾱ_t pushed through the step are those of t-1, down to
    (c, 0) at t = 0.
    """
    t = torch.arange(1, s.T + 1)
    alpha_bar, before = s.alpha_bar[1:], s.alpha_bar[:-1]
    zero, one = torch.zeros(s.T).double(), torch.ones(s.T).double()
    oracle = point_mass(s, c)
    mean = p_step(s, oracle, alpha_bar.sqrt() * c, t, zero, "beta_tilde")
    close = {"rtol": RTOL, "atol": RTOL}
    torch.testing.assert_close(mean, before.sqrt() * c, **close)
    centred = point_mass(s, 0.0)
    a = p_step(s, centred, one, t, zero, "beta_tilde")
    sigma = p_step(s, centred, zero, t, one, "beta_tilde")
    variance = a**2 * (1 - alpha_bar) + sigma**2
    torch.testing.assert_close(variance, 1 - before, **close)


@given(short, shapes, seeds, choices_of_sigma2)
def test_a_point_mass_is_returned_exactly(s, shape, seed, sigma2):
    """Algorithm 2 with the exact predictor of a single x_0 returns it, for every z.

    The last step is c + (x_1 - √ᾱ_1 c) (1 - β_1/(1-ᾱ_1)) / √α_1: β_1 and 1 - ᾱ_1 differ
    by a rounding, RTOL of themselves at most, and x_1 is within 10.
    """
    c = normal(seed, shape).clamp(-1, 1)
    g = torch.Generator().manual_seed(seed + 1)
    x_T = normal(seed + 2, shape)
    *_, (t, x_0, shown) = p_sample_loop(s, point_mass(s, c), x_T, g, sigma2)
    assert t == 0
    torch.testing.assert_close(x_0, c, rtol=0, atol=10 * RTOL)
    assert torch.equal(shown, x_0)


@given(schedules(), shapes, seeds, dtypes, choices_of_sigma2, st.booleans(), st.data())
def test_a_batch_of_mixed_t_is_its_items(s, shape, seed, dtype, sigma2, clip, data):
    """Batch law: x̂_0, μ_θ and x_{t-1} of item b depend on item b alone, bit for bit."""
    x_t, z, e = (normal(seed + i, shape, dtype) for i in range(3))
    t = data.draw(steps(s, shape[0]))
    together = (
        predict_x_0(s, x_t, t, e),
        p_mean(s, x_t, t, e),
        p_step(s, lambda x, t: e, x_t, t, z, sigma2, clip),
    )
    for b in range(shape[0]):
        i = slice(b, b + 1)
        alone = (
            predict_x_0(s, x_t[i], t[i], e[i]),
            p_mean(s, x_t[i], t[i], e[i]),
            p_step(s, lambda x, t, i=i: e[i], x_t[i], t[i], z[i], sigma2, clip),
        )
        for whole, item in zip(together, alone, strict=True):
            assert whole.shape == x_t.shape
            assert whole.dtype == dtype
            assert torch.equal(whole[i], item)


@given(schedules(), shapes, seeds, st.data())
def test_float32_is_float64_rounded_once(s, shape, seed, data):
    """Eq. 11 and 15 in float32 are the float64 results of the same numbers, rounded."""
    x_t, e = normal(seed, shape, torch.float32), normal(seed + 1, shape, torch.float32)
    t = data.draw(steps(s, shape[0]))
    for formula in (predict_x_0, p_mean):
        exact = formula(s, x_t.double(), t, e.double())
        assert torch.equal(formula(s, x_t, t, e), exact.float())


@share(20)
@given(schedules(max_T=100), shapes, seeds, choices_of_sigma2, st.data())
def test_gradients_pass_through_the_reverse_step(s, shape, seed, sigma2, data):
    """Autograd through eq. 1, 11, 15 = finite differences, for x_t, ε̂ and z."""
    x_t, e, z = (normal(seed + i, shape).requires_grad_() for i in range(3))
    # Where ᾱ_t is tiny, x̂_0's slope 1/√ᾱ_t drowns the finite difference.
    last = int((s.alpha_bar > 1e-6).nonzero().max())
    t = data.draw(
        st.lists(st.integers(1, max(last, 1)), min_size=shape[0], max_size=shape[0])
    )
    t = torch.tensor(t)
    check = torch.autograd.gradcheck
    assert check(lambda x, e: p_mean(s, x, t, e), (x_t, e))
    assert check(lambda x, e, z: p_step(s, lambda *_: e, x, t, z, sigma2), (x_t, e, z))
    assert last < 1 or check(lambda x, e: predict_x_0(s, x, t, e), (x_t, e))


@given(schedules(), shapes, seeds, choices_of_sigma2, st.data())
def test_clip_takes_eq_7_of_the_clamped_estimate(s, shape, seed, sigma2, data):
    """clip=True: μ_θ = μ̃_t(x_t, clamp(x̂_0, -1, 1)); with x̂_0 inside it is eq. 11.

    The default is the paper's Algorithm 2, which does not clamp.
    """
    x_t, z = 3 * normal(seed, shape), normal(seed + 1, shape)
    t = data.draw(steps(s, shape[0]))
    zero = torch.zeros_like(z)
    x_0_hat = predict_x_0(s, x_t, t, some_network(x_t, t))
    mu_tilde, _ = q_posterior(s, x_t, x_0_hat.clamp(-1, 1), t)
    assert torch.equal(p_step(s, some_network, x_t, t, zero, sigma2, True), mu_tilde)
    inside = point_mass(s, z.clamp(-0.9, 0.9))
    clipped = p_step(s, inside, x_t, t, z, sigma2, clip=True)
    plain = p_step(s, inside, x_t, t, z, sigma2, clip=False)
    size = float(x_t.abs().max()) / float(s.alpha[t].min().sqrt())
    torch.testing.assert_close(clipped, plain, rtol=0, atol=10 * RTOL * size)
    default = p_step(s, some_network, x_t, t, zero, sigma2)
    assert torch.equal(default, p_mean(s, x_t, t, some_network(x_t, t)))


@given(short, shapes, seeds, dtypes, choices_of_sigma2, st.booleans())
def test_the_loop_is_algorithm_2(s, shape, seed, dtype, sigma2, clip):
    """Alg. 2: T network calls with t = T..1, each x_{t-1} a p_step of x_t with fresh z.

    Replayed: the z are the generator's own draws in turn. The yields are (t, x_t, x̂_0)
    for t = T..1, x̂_0 eq. 15 of that x_t (clamped if clip), then (0, x_0, x_0).
    """
    x = x_T = normal(seed, shape, dtype)
    network = Recorder()
    g, replay = (torch.Generator().manual_seed(seed) for _ in range(2))
    yields = list(p_sample_loop(s, network, x_T, g, sigma2, clip))
    countdown = list(range(s.T, 0, -1))
    assert [t for t, _, _ in yields] == [*countdown, 0]
    assert [t.tolist() for t in network.t] == [[t] * shape[0] for t in countdown]
    assert all(t.dtype == torch.long for t in network.t)
    for t, (step, x_t, x_0_hat) in zip(countdown, yields, strict=False):
        assert step == t
        assert x_t.dtype == dtype
        assert torch.equal(x_t, x)
        batch_t = torch.full(shape[:1], t)
        eps_hat = some_network(x_t, batch_t)
        shown = predict_x_0(s, x_t, batch_t, eps_hat)
        assert torch.equal(x_0_hat, shown.clamp(-1, 1) if clip else shown)
        z = torch.randn(shape, generator=replay, dtype=dtype)
        x = p_step(s, some_network, x_t, batch_t, z, sigma2, clip)
    assert torch.equal(yields[-1][1], x)
    assert torch.equal(yields[-1][2], x)


@given(short, shapes, seeds)
def test_the_loops_defaults_are_the_papers(s, shape, seed):
    """Left unsaid, σ² is β and nothing is clamped: in the step, the loop and sample."""
    x = 5 * normal(seed, shape)

    def run(call, *choice):
        return call(torch.Generator().manual_seed(seed), *choice)

    for call in (
        lambda g, *c: list(p_sample_loop(s, some_network, x, g, *c))[-1][1],
        lambda g, *c: sample(s, some_network, shape, g, *c),
        lambda g, *c: interpolate(s, some_network, x, -x, [0.5], s.T, g, *c),
        lambda g, *c: p_step(
            s, some_network, x, torch.full(shape[:1], s.T), normal(seed, shape), *c
        ),
    ):
        assert torch.equal(run(call), run(call, "beta", False))


@given(short, shapes, seeds, choices_of_sigma2, st.booleans())
def test_sample_is_the_loops_last_picture(s, shape, seed, sigma2, clip):
    """Alg. 2 line 1: x_T ~ N(0, I), the generator's first draw; then the loop; x_0."""
    g, replay = (torch.Generator().manual_seed(seed) for _ in range(2))
    x_0 = sample(s, some_network, shape, g, sigma2, clip)
    x_T = torch.randn(shape, generator=replay)
    loop = list(p_sample_loop(s, some_network, x_T, replay, sigma2, clip))
    assert x_0.dtype == torch.float32
    assert torch.equal(x_0, loop[-1][1])
    assert torch.equal(g.get_state(), replay.get_state())


@given(short, seeds, st.booleans())
def test_a_generator_is_the_only_randomness(s, seed, clip):
    """Same generator seed, same pictures; torch's global state is not read or moved.

    Without one, torch's own is used.
    """
    x, x_prime = normal(seed, (2, 3)), normal(seed + 1, (2, 3))
    calls = [
        lambda g: sample(s, some_network, (2, 3), g, clip=clip),
        lambda g: list(p_sample_loop(s, some_network, x, g, clip=clip))[-1][1],
        lambda g: interpolate(s, some_network, x, x_prime, [0.3], s.T, g, clip=clip),
    ]
    with torch.random.fork_rng():
        for call in calls:
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            first = call(torch.Generator().manual_seed(seed + 2))
            assert torch.equal(torch.get_rng_state(), before)
            torch.manual_seed(seed + 3)
            assert torch.equal(call(torch.Generator().manual_seed(seed + 2)), first)
            torch.manual_seed(seed + 2)
            assert torch.equal(call(None), first)


class Network(nn.Module):
    """A network with dropout and parts of both modes, as a half-frozen one has."""

    def __init__(self, device="cpu"):
        super().__init__()
        self.linear = nn.Linear(3, 3, device=device)
        self.norm = nn.BatchNorm1d(3, device=device)
        self.frozen = nn.Sequential(nn.Linear(3, 3, device=device), nn.Dropout(0.5))
        self.dropout = nn.Dropout(0.5)
        self.asked = []

    def forward(self, x_t, t):
        self.asked.append([m.training for m in self.modules()])
        return self.dropout(self.frozen(self.norm(self.linear(x_t))))


def flags(network):
    return [m.training for m in network.modules()]


@share(50)
@given(seeds, st.lists(st.booleans(), min_size=7, max_size=7))
def test_sampling_changes_no_state(seed, training):
    """Sampling leaves weights, buffers, gradients and every training flag as they were.

    The network is asked in eval mode (no dropout, no running statistics), also where
    only parts of it were in training; between two yields the flags are the caller's.
    """
    s = linear_schedule(4, 0.1, 0.99)
    network = Network()
    for module, flag in zip(network.modules(), training, strict=True):
        module.training = flag
    before = {k: v.clone() for k, v in network.state_dict().items()}
    x = normal(seed, (2, 3), torch.float32)
    g = torch.Generator().manual_seed(seed)
    for _, x_t, x_0_hat in p_sample_loop(s, network, x, g):
        assert flags(network) == training
        assert torch.is_grad_enabled()
        assert not x_t.requires_grad
        assert not x_0_hat.requires_grad
    sample(s, network, (2, 3), g)
    interpolate(s, network, x, -x, torch.tensor([0.2, 0.8]), 3, g)
    assert len(network.asked) == 4 + 4 + 3
    assert not any(any(modes) for modes in network.asked)
    assert flags(network) == training
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert all(p.grad is None for p in network.parameters())
    assert all(p.requires_grad for p in network.parameters())


def test_training_flags_survive_a_network_that_fails():
    """An error inside the network leaves its flags as they were found."""
    network = Network().train()
    with pytest.raises(RuntimeError):
        sample(linear_schedule(), network, (2, 5))
    assert all(flags(network))


class Echo(nn.Module):
    """Predicts x_t itself, wherever its weights are."""

    def __init__(self, *devices):
        super().__init__()
        weights = [torch.zeros(1, device=device) for device in devices]
        self.weights = nn.ParameterList(weights)

    def forward(self, x_t, t):
        return x_t


@pytest.mark.parametrize(
    ("network", "choice", "device"),
    [
        (some_network, {}, "cpu"),
        (Echo(), {}, "cpu"),
        (Echo("cpu", "meta"), {}, "cpu"),
        (Echo("meta", "cpu"), {}, "meta"),
        (Echo("meta"), {"generator": torch.Generator("cpu")}, "cpu"),
        (Echo("meta"), {"device": "cpu"}, "cpu"),
        (some_network, {"device": "meta"}, "meta"),
    ],
)
def test_where_to_sample(network, choice, device):
    """The device said, else the generator's, else the network's weights', else CPU."""
    s = linear_schedule(2, 0.9, 0.99)
    assert sample(s, network, (2, 3), **choice).device.type == device


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
def test_pictures_stay_on_their_gpu():
    """x_0, λ given on the CPU, t and z are brought to where the pictures are."""
    s, x = linear_schedule(4, 0.1, 0.99), torch.ones(2, 3, device="cuda")
    g = torch.Generator("cuda").manual_seed(0)
    assert interpolate(s, some_network, x, -x, [0.5, 1.0], 3, g).is_cuda
    assert sample(s, some_network, (2, 3), g).is_cuda


pairs = st.tuples(st.integers(1, 3), st.integers(1, 4))
lambdas = st.lists(st.floats(0, 1), min_size=1, max_size=4)


@given(short, pairs, lambdas, seeds, choices_of_sigma2, st.booleans(), st.data())
def test_interpolation_mixes_x_t_not_x_0(s, shape, lam, seed, sigma2, clip, data):
    """Section 4.4: x̄_t = (1-λ) x_t + λ x'_t with x_t, x'_t ~ q(.|x_0), q(.|x'_0).

    Seen by the network at its first call: the two noises are the generator's first two
    draws, each with its picture. The paper prints x_0 and x'_0 in the mixture; mixing
    clean pictures before the noise is a cross-fade. λ as Python's floats keeps them.
    """
    x_0, x_0_prime = normal(seed, shape), normal(seed + 1, shape)
    t = data.draw(st.integers(1, s.T))
    g, replay = (torch.Generator().manual_seed(seed) for _ in range(2))
    network = Recorder()
    result = interpolate(s, network, x_0, x_0_prime, lam, t, g, sigma2, clip)
    steps = torch.full(shape[:1], t)
    x_t, x_t_prime = (
        q_sample(s, x, steps, torch.randn(shape, generator=replay, dtype=x.dtype))
        for x in (x_0, x_0_prime)
    )
    first = network.x[0].view(len(lam), *shape)
    for x_bar, weight in zip(first, lam, strict=True):
        mixture = (1 - weight) * x_t + weight * x_t_prime
        torch.testing.assert_close(x_bar, mixture, rtol=0, atol=8 * U * 10)
    assert result.shape == (len(lam), *shape)


@given(short, pairs, lambdas, seeds, st.data())
def test_interpolation_starts_at_t(s, shape, lam, seed, data):
    """Section 4.4: decoded by Alg. 2 from step t: the network is asked t..1, t times.

    Starting at t - 1 with what was diffused to t leaves a step's noise in the picture.
    """
    t = data.draw(st.integers(1, s.T))
    network = Recorder()
    g = torch.Generator().manual_seed(seed)
    x_0, x_0_prime = normal(seed, shape), normal(seed + 1, shape)
    interpolate(s, network, x_0, x_0_prime, lam, t, g)
    rows = len(lam) * shape[0]
    assert [v.tolist() for v in network.t] == [[k] * rows for k in range(t, 0, -1)]


@given(short, pairs, lambdas, seeds, choices_of_sigma2, st.booleans(), st.data())
def test_every_lambda_shares_the_noise(s, shape, lam, seed, sigma2, clip, data):
    """Section 4.4: λ alone moves the picture: the row for λ is what λ alone would give.

    x_t, x'_t and each z are drawn once, for however many λ.
    """
    x_0, x_0_prime = normal(seed, shape), normal(seed + 1, shape)
    t = data.draw(st.integers(1, s.T))

    def run(lam):
        g = torch.Generator().manual_seed(seed)
        return interpolate(s, some_network, x_0, x_0_prime, lam, t, g, sigma2, clip)

    rows = run(lam)
    for row, weight in zip(rows, lam, strict=True):
        assert torch.equal(row, run([weight])[0])


@given(pairs, seeds, choices_of_sigma2)
def test_interpolation_ends_at_its_two_pictures(shape, seed, sigma2):
    """λ = 0 gives x_0 and λ = 1 gives x'_0 where the data are those two pictures.

    t is low enough for x_t to show which of the two it came from: the pictures are
    at least 2/0.004 = 500 deviations apart.
    """
    s = Schedule([1e-6, 5e-6, 1e-5])  # √(1-ᾱ_3) = 0.004
    x_0 = normal(seed, shape).sign()
    ends = interpolate(
        s,
        two_points(s, x_0.repeat(2, 1), -x_0.repeat(2, 1)),
        x_0,
        -x_0,
        [0.0, 1.0],
        s.T,
        torch.Generator().manual_seed(seed),
        sigma2,
    )
    torch.testing.assert_close(ends, torch.stack([x_0, -x_0]), rtol=0, atol=1e-9)


@given(short, pairs, dtypes, seeds)
def test_interpolation_keeps_the_pictures_dtype(s, shape, dtype, seed):
    """λ is cast to x_0's dtype: a λ in float64 does not make the network compute so."""
    x_0, network = normal(seed, shape, dtype), Recorder()
    g = torch.Generator().manual_seed(seed)
    lam = torch.tensor([0.25, 1.0], dtype=torch.float64)
    assert interpolate(s, network, x_0, -x_0, lam, s.T, g).dtype == dtype
    assert {x.dtype for x in network.x} == {dtype}


@given(short, pairs, lambdas, seeds, st.data())
def test_interpolation_clips_where_it_is_told_to(s, shape, lam, seed, data):
    """Alg. 2's last step gives x̂_0, which `clip` keeps in [-1, 1] for any network; this
    one points far outside."""
    x_0, t = normal(seed, shape), data.draw(st.integers(1, s.T))

    def run(clip):
        g = torch.Generator().manual_seed(seed)
        return interpolate(s, lambda x, t: x + 1e6, x_0, -x_0, lam, t, g, clip=clip)

    assert float(run(True).abs().max()) <= 1 + RTOL
    assert float(run(False).abs().max()) > 1


BAD_LAMBDA = [[-0.01], [1.01], [0.5, 2.0], [math.nan], [[0.5]], 0.5, []]


@pytest.mark.parametrize("lam", BAD_LAMBDA)
def test_a_lambda_outside_0_1_is_refused(lam):
    """λ is a row of weights of a mixture, each in [0, 1]."""
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"row of numbers in \[0, 1\], got"):
        interpolate(linear_schedule(), some_network, x, x, lam, 5)


@pytest.mark.parametrize("t", [0, -1, 1001])
def test_interpolating_outside_1_to_T_is_refused(t):
    """Section 4.4 diffuses to a step of the chain, 1..T, and draws nothing before."""
    x, g = torch.zeros(2, 3), torch.Generator().manual_seed(0)
    before = g.get_state()
    with pytest.raises(ValueError, match=rf"t must lie in 1\.\.1000, got {t}"):
        interpolate(linear_schedule(), some_network, x, x, [0.5], t, g)
    assert torch.equal(g.get_state(), before)


SHAPE = (4, 3, 2, 2)
WRONG_SHAPES = [*BROADCASTS, (5, 3, 2, 2), (4, 3, 2), (4, 3, 4)]


@pytest.mark.parametrize("shape", WRONG_SHAPES)
def test_a_shape_that_merely_broadcasts_is_refused(shape):
    """ε̂, z and x'_0 have the shape of what they belong to; the error says both."""
    s, x, t = linear_schedule(), torch.zeros(SHAPE), torch.ones(4, **LONG)
    y = torch.ones(shape)
    wanted = rf"\({str(SHAPE)[1:-1]}\), got \({str(shape)[1:-1]}\)"
    for name, of, call in [
        ("eps_hat", "x_t", lambda: predict_x_0(s, x, t, y)),
        ("eps_hat", "x_t", lambda: p_mean(s, x, t, y)),
        ("eps_hat", "x_t", lambda: p_step(s, lambda x, t: y, x, t, x)),
        ("eps_hat", "x_t", lambda: p_step(s, lambda x, t: y, x, t, x, "beta", True)),
        ("eps_hat", "x_t", lambda: sample(s, lambda x, t: y, SHAPE)),
        ("z", "x_t", lambda: p_step(s, some_network, x, t, y)),
        ("x_0_prime", "x_0", lambda: interpolate(s, some_network, x, y, [0.5], 5)),
    ]:
        message = f"^{name} must have the shape of {of}, {wanted}$"
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    "t",
    [
        torch.tensor([0, 2, 3, 4]),
        torch.tensor([1, 2, 3, 1001]),
        torch.ones(4),
        torch.ones(1, **LONG),
        torch.tensor(1),
    ],
)
def test_a_wrong_t_is_refused(t):
    """t outside 1..T, of another dtype or shape: refused by all three formulas."""
    s, x = linear_schedule(), torch.zeros(SHAPE)
    for call in (
        lambda: predict_x_0(s, x, t, x),
        lambda: p_mean(s, x, t, x),
        lambda: p_step(s, some_network, x, t, x),
    ):
        with pytest.raises(ValueError, match=r"^t must"):
            call()


def test_an_unknown_sigma2_is_refused():
    """σ_t² has a name that `Schedule.sigma2` knows; another is an error, no default."""
    with pytest.raises(ValueError, match=r"'beta', 'beta_tilde' or.*got 'learned'"):
        sample(linear_schedule(), some_network, (1, 2), sigma2="learned")


def test_fixedlarge_samples_as_beta_does():
    """The authors' σ_1² matters to eq. 13 alone: Algorithm 2 adds no noise at t = 1."""
    s = linear_schedule(30)
    large, beta = (
        sample(s, some_network, (2, 3), torch.Generator().manual_seed(0), sigma2)
        for sigma2 in ("fixedlarge", "beta")
    )
    assert torch.equal(large, beta)
