"""Eq. 15: x̂_0, the picture that x_t and a noise stand for."""

from hypothesis import given
from hypothesis import strategies as st

from tinyddpm import at, predict_x_0, q_sample

from ..helpers import U, agree, arrays, assert_within
from ..reference import numpy_reference as reference
from ..strategies import batches, dtypes, normal, schedules, seeds, shapes, steps


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


@given(schedules(), shapes, dtypes, st.data())
def test_eq_15_undoes_eq_2_step_by_step(s, shape, dtype, data):
    """Eq. 15: take off the noise that ε stands for, undo the scaling of every step."""
    t = data.draw(steps(s, shape[0]))
    x_t, eps = (data.draw(batches(shape, dtype)) for _ in range(2))
    t_, x, n = arrays(t, x_t, eps)
    beta = s.beta[1:].numpy()
    m, v = (reference.beside(table, t_, x) for table in reference.moments(beta))
    error = 2 * (t_.max() + 4) * U * (abs(x) + abs(n) / v**0.5) / m
    want = reference.x_0_from_noise(beta, x, t_, n)
    agree(predict_x_0(s, x_t, t, eps), want, error, t=t_)
