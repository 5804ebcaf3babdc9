"""Eq. 14: L_simple, the loss that Algorithm 1 descends."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyddpm import L_simple, linear_schedule, q_sample

from ..helpers import (
    RTOL,
    SHAPE,
    WRONG_SHAPES,
    Recorder,
    U,
    gaussian,
    point_mass,
    shape_refused,
    some_network,
)
from ..strategies import normal, schedules, seeds, shapes, steps


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


@given(schedules(), shapes, seeds, st.data())
def test_what_else_is_given_goes_to_the_network(s, shape, seed, data):
    """L_simple(..., c) asks ε_θ(x_t, t, c): eq. 14 for data with classes."""
    x_0, eps = normal(seed, shape), normal(seed + 1, shape)
    t, c = data.draw(steps(s, shape[0])), torch.arange(shape[0])
    got = []

    def eps_theta(x_t, t, *others):
        got.append(others)
        return some_network(x_t, t)

    loss = L_simple(s, eps_theta, x_0, t, eps, c)
    assert torch.equal(loss, L_simple(s, some_network, x_0, t, eps))
    assert got == [(c,)]


@pytest.mark.parametrize(
    "t",
    [
        torch.tensor([0, 2, 3, 4]),
        torch.tensor([1, 2, 3, 1001]),
        torch.ones(4),
        torch.ones(4, 1, dtype=torch.long),
        torch.tensor(1),
        5,
    ],
)
def test_a_wrong_t_is_refused(t):
    """t outside 1..T, of another dtype or shape, is an error.

    t = 0, where x_t is the clean picture, is one that eq. 14 never asks for.
    """
    s, x = linear_schedule(), torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"^t must"):
        L_simple(s, some_network, x, t, x)


@pytest.mark.parametrize("shape", WRONG_SHAPES)
def test_a_shape_that_merely_broadcasts_is_refused(shape):
    """ε and ε̂ have x_0's shape: one that broadcasts would be a loss of other pairs."""
    s, x, t = linear_schedule(), torch.zeros(SHAPE), torch.ones(4, dtype=torch.long)
    y = torch.ones(shape)
    with pytest.raises(ValueError, match=shape_refused("eps", shape)):
        L_simple(s, some_network, x, t, y)
    with pytest.raises(ValueError, match=shape_refused(r"eps_theta\(x_t, t\)", shape)):
        L_simple(s, lambda *_: y, x, t, x)
