"""Algorithm 2: sampling, line by line, and what it leaves as it found it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tinyddpm import (
    interpolate,
    linear_schedule,
    p_mean,
    p_sample_loop,
    p_step,
    predict_x_0,
    sample,
)
from tinyddpm.sampler import asked

from ..helpers import (
    RTOL,
    SHAPE,
    WRONG_SHAPES,
    Recorder,
    gaussian,
    point_mass,
    shape_refused,
    some_network,
)
from ..strategies import (
    choices_of_sigma2,
    dtypes,
    normal,
    schedules,
    seeds,
    shapes,
    share,
)

short = schedules(max_T=20)  # the network is called at every step: keep T small


@given(short, shapes, seeds, dtypes, choices_of_sigma2, st.booleans())
def test_the_loop_is_algorithm_2(s, shape, seed, dtype, sigma2, clip_x_0):
    """Alg. 2: T network calls with t = T..1, each x_{t-1} a p_step of x_t with fresh z.

    Replayed: the z are the generator's own draws in turn, T - 1 of them, and zeros at
    t = 1. The yields are (t, x_t, x̂_0) for t = T..1, x̂_0 eq. 15 of that x_t (clamped if
    clip_x_0), then (0, x_0, x_0).
    """
    x = x_T = normal(seed, shape, dtype)
    network = Recorder()
    g, replay = (torch.Generator().manual_seed(seed) for _ in range(2))
    yields = list(p_sample_loop(s, network, x_T, g, sigma2, clip_x_0))
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
        assert torch.equal(x_0_hat, shown.clamp(-1, 1) if clip_x_0 else shown)
        z = torch.zeros(shape, dtype=dtype)
        if t > 1:
            z = torch.randn(shape, generator=replay, dtype=dtype)
        x = p_step(s, x_t, batch_t, eps_hat, z, sigma2, clip_x_0)
    assert torch.equal(yields[-1][1], x)
    assert torch.equal(yields[-1][2], x)
    assert torch.equal(g.get_state(), replay.get_state())


@given(short, shapes, seeds, dtypes, choices_of_sigma2)
def test_the_last_step_adds_no_noise(s, shape, seed, dtype, sigma2):
    """Alg. 2 line 3: z = 0 at t = 1, so that x_0 = μ_θ(x_1, 1) (eq. 11)."""
    g = torch.Generator().manual_seed(seed)
    x_T = normal(seed, shape, dtype)
    *_, (t, x_1, _), (_, x_0, _) = p_sample_loop(s, some_network, x_T, g, sigma2)
    assert t == 1
    one = torch.ones(shape[:1], dtype=torch.long)
    assert torch.equal(x_0, p_mean(s, x_1, one, some_network(x_1, one)))


@given(short, shapes, seeds)
def test_the_loops_defaults_are_the_papers(s, shape, seed):
    """Alg. 2, eq. 1, section 4.4: left unsaid, σ² is β and nothing is clamped."""
    x = 5 * normal(seed, shape)
    t = torch.full(shape[:1], s.T)

    def run(call, *choice):
        return call(torch.Generator().manual_seed(seed), *choice)

    for call in (
        lambda g, *c: list(p_sample_loop(s, some_network, x, g, *c))[-1][1],
        lambda g, *c: sample(s, some_network, shape, g, *c),
        lambda g, *c: interpolate(s, some_network, x, -x, [0.5], s.T, g, *c),
        lambda g, *c: p_step(s, x, t, some_network(x, t), normal(seed, shape), *c),
    ):
        assert torch.equal(run(call), run(call, "beta", False))


@given(short, shapes, seeds, choices_of_sigma2, st.booleans())
def test_sample_is_the_loops_last_picture(s, shape, seed, sigma2, clip_x_0):
    """Alg. 2 line 1: x_T ~ N(0, I), the generator's first draw; then the loop; x_0."""
    g, replay = (torch.Generator().manual_seed(seed) for _ in range(2))
    x_0 = sample(s, some_network, shape, g, sigma2, clip_x_0)
    x_T = torch.randn(shape, generator=replay)
    loop = list(p_sample_loop(s, some_network, x_T, replay, sigma2, clip_x_0))
    assert x_0.dtype == torch.float32
    assert torch.equal(x_0, loop[-1][1])
    assert torch.equal(g.get_state(), replay.get_state())


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


def test_unit_gaussian_samples_have_unit_variance():
    """Algorithm 2 with the exact predictor of N(0, I) gives variance 1 - β_1 = α_1.

    Each step but the last keeps variance 1 (eq. 1), and the last adds no noise.
    n = 60,000 numbers, seed fixed; the variance of the sample is within 5 of its
    standard errors √(2/n) (false alarm 6e-7). Power: with σ_t = β_t in place of its
    root it would be 0.11.
    """
    s = linear_schedule(50)
    g = torch.Generator().manual_seed(0)
    x_0 = sample(s, gaussian(s), (60_000, 1), g).double()
    variance = float(x_0.square().mean())
    assert abs(variance / float(s.alpha[1]) - 1) < 5 * (2 / 60_000) ** 0.5


@share(40)
@given(short, seeds, st.booleans())
def test_a_generator_is_the_only_randomness(s, seed, clip_x_0):
    """Same generator seed, same pictures; torch's global state is not read or moved.

    Without one, torch's own is used. For Algorithm 2 and for section 4.4.
    """
    x, x_prime = normal(seed, (2, 3)), normal(seed + 1, (2, 3))
    clip = {"clip_x_0": clip_x_0}
    calls = [
        lambda g: sample(s, some_network, (2, 3), g, **clip),
        lambda g: list(p_sample_loop(s, some_network, x, g, **clip))[-1][1],
        lambda g: interpolate(s, some_network, x, x_prime, [0.3], s.T, g, **clip),
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


def test_a_function_is_asked_as_it_is():
    """`asked` takes any callable, of any number of arguments; no gradients."""
    seen = []

    def eps_theta(x_t, t, c):
        seen.append(torch.is_grad_enabled())
        return x_t + t + c

    x = torch.ones(2, requires_grad=True)
    assert not asked(eps_theta)(x, x, x).requires_grad
    assert seen == [False]


@pytest.mark.parametrize("shape", WRONG_SHAPES)
def test_an_answer_that_merely_broadcasts_is_refused(shape):
    """ε̂ has the shape of x_t in every step of Algorithm 2; the error says both."""
    with pytest.raises(ValueError, match=shape_refused("eps_hat", shape)):
        sample(linear_schedule(), lambda x, t: torch.ones(shape), SHAPE)


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
