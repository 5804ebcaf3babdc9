"""Section 4.4: interpolation between two pictures at step t."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from tinyddpm import Schedule, at, interpolate, linear_schedule, q_sample

from ..helpers import (
    RTOL,
    SHAPE,
    WRONG_SHAPES,
    Recorder,
    U,
    point_mass,
    shape_refused,
    some_network,
)
from ..strategies import choices_of_sigma2, dtypes, normal, schedules, seeds

short = schedules(max_T=20)  # the network is called at every step: keep T small


def two_points(s, a, b):
    """The exact predictor for data that are a or b, by how likely x_t makes each."""

    def eps_theta(x_t, t):
        alpha_bar = at(s.alpha_bar, t, x_t)
        gap = [(x_t - alpha_bar.sqrt() * c).flatten(1).square().sum(1) for c in (a, b)]
        odds = (gap[0] - gap[1]) / (2 * (1 - alpha_bar.flatten()))
        w = odds.sigmoid().view(alpha_bar.shape)
        return point_mass(s, (1 - w) * a + w * b)(x_t, t)

    return eps_theta


pairs = st.tuples(st.integers(1, 3), st.integers(1, 4))
lambdas = st.lists(st.floats(0, 1), min_size=1, max_size=4)


@given(short, pairs, lambdas, seeds, choices_of_sigma2, st.booleans(), st.data())
def test_interpolation_mixes_x_t_not_x_0(s, shape, lam, seed, sigma2, clip_x_0, data):
    """Section 4.4: x̄_t = (1-λ) x_t + λ x'_t with x_t, x'_t ~ q(.|x_0), q(.|x'_0).

    Seen by the network at its first call: the two noises are the generator's first two
    draws, each with its picture. The paper prints x_0 and x'_0 in the mixture; mixing
    clean pictures before the noise is a cross-fade. λ as Python's floats keeps them.
    """
    x_0, x_0_prime = normal(seed, shape), normal(seed + 1, shape)
    t = data.draw(st.integers(1, s.T))
    g, replay = (torch.Generator().manual_seed(seed) for _ in range(2))
    network = Recorder()
    result = interpolate(s, network, x_0, x_0_prime, lam, t, g, sigma2, clip_x_0)
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
    g, replay = (torch.Generator().manual_seed(seed) for _ in range(2))
    x_0, x_0_prime = normal(seed, shape), normal(seed + 1, shape)
    interpolate(s, network, x_0, x_0_prime, lam, t, g)
    rows = len(lam) * shape[0]
    assert [v.tolist() for v in network.t] == [[k] * rows for k in range(t, 0, -1)]
    for _ in range(2 + t - 1):  # two noises, and a z for each step but the last
        torch.randn(shape, generator=replay, dtype=torch.float64)
    assert torch.equal(g.get_state(), replay.get_state())


@given(short, pairs, lambdas, seeds, choices_of_sigma2, st.booleans(), st.data())
def test_every_lambda_shares_the_noise(s, shape, lam, seed, sigma2, clip_x_0, data):
    """Section 4.4: λ alone moves the picture: the row for λ is what λ alone would give.

    x_t, x'_t and each z are drawn once, for however many λ.
    """
    x_0, x_0_prime = normal(seed, shape), normal(seed + 1, shape)
    t = data.draw(st.integers(1, s.T))

    def run(lam):
        g = torch.Generator().manual_seed(seed)
        return interpolate(s, some_network, x_0, x_0_prime, lam, t, g, sigma2, clip_x_0)

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
    """Alg. 2's last step gives x̂_0, which `clip_x_0` keeps in [-1, 1] for any network;
    this one points far outside."""
    x_0, t = normal(seed, shape), data.draw(st.integers(1, s.T))

    def run(clip_x_0):
        g = torch.Generator().manual_seed(seed)
        return interpolate(
            s, lambda x, t: x + 1e6, x_0, -x_0, lam, t, g, clip_x_0=clip_x_0
        )

    assert float(run(True).abs().max()) <= 1 + RTOL
    assert float(run(False).abs().max()) > 1


class Placed(TorchFunctionMode):
    """Refuses to make a tensor without saying on which device."""

    def __torch_function__(self, f, types, args=(), kwargs=None):
        if f in (torch.full, torch.randn):
            assert (kwargs or {}).get("device") is not None, f.__name__
        return f(*args, **(kwargs or {}))


def test_all_is_made_where_the_pictures_are():
    """t and every noise of section 4.4 are made on x_0's device, not on the default."""
    x_0, g = normal(0, (2, 3)), torch.Generator().manual_seed(0)
    with Placed():
        interpolate(linear_schedule(30), some_network, x_0, -x_0, [0.5], 3, g)
        with pytest.raises(AssertionError, match="full"):
            torch.full((2,), 3)


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
    with pytest.raises(ValueError, match=rf"^t must lie in 1\.\.1000, got {t}\.\.{t}$"):
        interpolate(linear_schedule(), some_network, x, x, [0.5], t, g)
    assert torch.equal(g.get_state(), before)


@pytest.mark.parametrize("shape", WRONG_SHAPES)
def test_a_shape_that_merely_broadcasts_is_refused(shape):
    """x'_0 has the shape of x_0: each picture has its own partner."""
    x, y = torch.zeros(SHAPE), torch.ones(shape)
    with pytest.raises(ValueError, match=shape_refused("x_0_prime", shape)):
        interpolate(linear_schedule(), some_network, x, y, [0.5], 5)
