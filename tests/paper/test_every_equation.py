"""What eq. 2, 4, 7, 15, 11 and 1 have in common: laws of all six formulas at once."""

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tinyddpm
from tinyddpm import (
    linear_schedule,
    p_mean,
    p_step,
    predict_x_0,
    q_posterior,
    q_sample,
    q_step,
)

from ..helpers import SHAPE, WRONG_SHAPES, U, shape_refused
from ..strategies import dtypes, normal, schedules, seeds, shapes, share, steps


def posterior_mean(s, x_t, t, x_0):
    """Eq. 7's mean with its arguments in the order of the others."""
    return q_posterior(s, x_t, x_0, t)[0]


# name -> (formula, what it takes beside x and t)
EQUATIONS = {
    "q_step": (q_step, ["z"]),
    "q_sample": (q_sample, ["eps"]),
    "q_posterior": (posterior_mean, ["x_0"]),
    "predict_x_0": (predict_x_0, ["eps_hat"]),
    "p_mean": (p_mean, ["eps_hat"]),
    "p_step": (p_step, ["eps_hat", "z"]),
}
every_equation = pytest.mark.parametrize("name", EQUATIONS)


def drawn(data, name, s, shape, dtype, seed):
    """(formula, x, mixed t, the other tensors), random."""
    formula, others = EQUATIONS[name]
    x, *y = (normal(seed + i, shape, dtype) for i in range(1 + len(others)))
    return formula, x, data.draw(steps(s, shape[0], int(name != "q_sample"))), y


@every_equation
@share(40)
@given(schedules(), shapes, dtypes, seeds, st.data())
def test_a_batch_of_mixed_t_is_its_items(name, s, shape, dtype, seed, data):
    """Batch law: item b depends on x[b], t[b], ε[b] alone, for any rank, bit for bit.

    Ones and zeros hide a wrong axis; random numbers do not.
    """
    q, x, t, y = drawn(data, name, s, shape, dtype, seed)
    together = q(s, x, t, *y)
    assert isinstance(together, torch.Tensor)
    assert (together.shape, together.dtype) == (x.shape, dtype)
    for b in range(shape[0]):
        i = slice(b, b + 1)
        assert torch.equal(together[i], q(s, x[i], t[i], *(v[i] for v in y)))


@every_equation
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_empty_batch_stays_empty(name, dtype):
    """B = 0: nothing to compute is no error, and nothing comes out."""
    formula, others = EQUATIONS[name]
    x, t = torch.zeros(0, 3, 2, dtype=dtype), torch.zeros(0, dtype=torch.long)
    made = formula(linear_schedule(), x, t, *[x for _ in others])
    assert (made.shape, made.dtype) == (x.shape, dtype)


@every_equation
@share(40)
@given(schedules(), shapes, seeds, st.data())
def test_each_formula_is_linear(name, s, shape, seed, data):
    """All are Gaussian with a linear mean: f(x, ε) = f(x, 0) + f(0, ε), no cross term.

    Rounding: a few units of the largest term, which x̂_0 divides by √ᾱ_t.
    """
    q, x, t, y = drawn(data, name, s, shape, torch.float64, seed)
    zeros = [torch.zeros_like(x) for _ in y]
    parts = [q(s, x, t, *zeros)]
    for i in range(len(y)):
        parts.append(q(s, zeros[0], t, *zeros[:i], y[i], *zeros[i + 1 :]))
    size = sum(part.abs().max() for part in parts)
    close = {"rtol": 0, "atol": 8 * U * float(size)}
    torch.testing.assert_close(q(s, x, t, *y), sum(parts), **close)


@every_equation
@share(40)
@given(schedules(), shapes, seeds, st.data())
def test_float32_is_float64_rounded_once(name, s, shape, seed, data):
    """Right to float32's last digit: the float64 result of the same numbers, rounded.

    In float32 arithmetic 1 - ᾱ_1 = 1e-4 would be wrong in its fifth digit. Eq. 1 adds
    its noise to a mean that is rounded already: that rounding, of 2⁻²⁴ of the mean, may
    bring another one of each of the two results.
    """
    q, x, t, y = drawn(data, name, s, shape, torch.float32, seed)
    exact = q(s, x.double(), t, *(v.double() for v in y))
    assert exact.dtype == torch.float64
    if name == "p_step":
        mean = p_mean(s, x.double(), t, y[0].double()).abs().max()
        atol = 2.0**-24 * float(mean + 2 * exact.abs().max()) * (1 + 2.0**-20)
        torch.testing.assert_close(q(s, x, t, *y), exact.float(), rtol=0, atol=atol)
    else:
        assert torch.equal(q(s, x, t, *y), exact.float())


@every_equation
@share(20)
@given(schedules(), shapes, dtypes, seeds, st.data())
def test_nothing_given_is_written_to(name, s, shape, dtype, seed, data):
    """The functions are pure: inputs and tables are as before, and twice is once."""
    q, x, t, y = drawn(data, name, s, shape, dtype, seed)
    given_ = (x, t, *y, s.beta, s.alpha, s.alpha_bar, s.beta_tilde)
    before = [v.clone() for v in given_]
    once = q(s, x, t, *y)
    assert torch.equal(q(s, x, t, *y), once)
    assert all(map(torch.equal, before, given_))


@every_equation
@share(10)
@given(schedules(max_T=100), shapes, seeds, st.data())
def test_gradients_pass_through_to_every_input(name, s, shape, seed, data):
    """Autograd through eq. 1, 2, 4, 7, 11, 15 = finite differences, for x, ε and z.

    A step inside torch.inference_mode, or a detach, would cut the graph. Where ᾱ_t is
    tiny, x̂_0's slope 1/√ᾱ_t drowns the finite difference: those t are left out.
    """
    q, x, t, y = drawn(data, name, s, shape, torch.float64, seed)
    t = t.clamp(max=max(1, int((s.alpha_bar > 1e-6).nonzero().max())))
    if name == "predict_x_0" and float(s.alpha_bar[t].min()) < 1e-6:
        return
    inputs = [v.requires_grad_() for v in (x, *y)]
    assert torch.autograd.gradcheck(lambda x, *y: q(s, x, t, *y), inputs)


def test_q_is_known_without_a_network():
    """Eq. 2, 4, 6: the forward process q is fixed: nothing named q_ asks an ε_θ."""
    names = [name for name in tinyddpm.__all__ if name.startswith("q_")]
    assert names == ["q_posterior", "q_sample", "q_step"]
    for name in names:
        parameters = inspect.signature(getattr(tinyddpm, name)).parameters
        assert not {"eps_theta", "eps_hat"} & set(parameters)


@every_equation
@pytest.mark.parametrize("shape", WRONG_SHAPES)
def test_a_shape_that_merely_broadcasts_is_refused(name, shape):
    """Noise shared between pictures or channels is another law; the shapes are said."""
    formula, others = EQUATIONS[name]
    s, x, t = linear_schedule(), torch.zeros(SHAPE), torch.ones(4).long()
    for wrong in others:
        y = [torch.ones(shape) if other == wrong else x for other in others]
        with pytest.raises(ValueError, match=shape_refused(wrong, shape)):
            formula(s, x, t, *y)


@every_equation
@pytest.mark.parametrize(
    "t",
    [
        torch.tensor([1, 2, 3, 1001]),
        torch.tensor([-1, 2, 3, 4]),
        torch.ones(4),
        torch.ones(1).long(),
        torch.tensor(1),
    ],
)
def test_a_wrong_t_is_refused(name, t):
    """t outside 1..T (0..T in eq. 4), of another dtype or shape: an error, no wrap."""
    formula, others = EQUATIONS[name]
    x = torch.zeros(SHAPE)
    with pytest.raises(ValueError, match=r"^t must"):
        formula(linear_schedule(), x, t, *[x for _ in others])


@pytest.mark.parametrize("name", [name for name in EQUATIONS if name != "q_sample"])
def test_step_0_has_no_step_before_it(name):
    """Eq. 1, 2, 6, 11 lead from or to x_{t-1}: t = 0 would read ᾱ_{-1}; eq. 15 has no
    noise to take off."""
    formula, others = EQUATIONS[name]
    x = torch.zeros(SHAPE)
    with pytest.raises(ValueError, match=r"t must lie in 1\.\.1000, got 0\.\.0"):
        formula(linear_schedule(), x, torch.zeros(4).long(), *[x for _ in others])
