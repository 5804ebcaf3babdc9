"""Laws of the forward process q and of its posterior (eq. 2, 4, 6, 7).

What lives here: laws of `forward.py`. q is Gaussian and linear in its inputs, so its
mean and variance are read off exactly: feed ones for one input and zeros for the
others, and the output is that input's coefficient. No sampling, no tolerance for luck.
Tolerances: U and RTOL are explained in `test_schedule.py`.
"""

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tinyddpm
from tinyddpm import linear_schedule, q_posterior, q_sample, q_step

from ..strategies import dtypes, normal, schedules, seeds, shapes, share, steps
from .test_schedule import RTOL, U


def coefficients(q, s, first=1):
    """(a_t, b_t) for t = first..T, where q(s, x, t, y) = a_t x + b_t y."""
    t = torch.arange(first, s.T + 1)
    one, zero = torch.ones(len(t), dtype=torch.float64), torch.zeros(len(t))
    zero = zero.double()
    return q(s, one, t, zero), q(s, zero, t, one)


def posterior(s, x_t, t, x_0):
    """q_posterior's mean with its arguments in the order `coefficients` gives."""
    return q_posterior(s, x_t, x_0, t)[0]


@given(schedules(), st.sampled_from([q_step, q_sample]))
def test_unit_variance_data_keep_unit_variance(s, q):
    """Eq. 2, 4: a² + b² = 1 for x_t = a x + b ε: b is a root, a² + b = 1 is not it."""
    a, b = coefficients(q, s)
    one = torch.ones_like(a)
    torch.testing.assert_close(a**2 + b**2, one, rtol=0, atol=8 * U)
    assert float(torch.minimum(a, b).min()) > 0


@given(schedules())
def test_one_step_shrinks_by_alpha_and_adds_beta(s):
    """Eq. 2: mean √(1-β_t) x_{t-1}, variance β_t."""
    a, b = coefficients(q_step, s)
    torch.testing.assert_close(a**2, 1 - s.beta[1:], rtol=8 * U, atol=0)
    torch.testing.assert_close(b**2, s.beta[1:], rtol=8 * U, atol=0)


@given(schedules())
def test_steps_compose_to_the_closed_form(s):
    """Eq. 2 iterated is eq. 4: m ← a m, v ← a² v + b² from (1, 0) is (√ᾱ_t, 1-ᾱ_t).

    Every t from 0 to T is compared; each step adds at most 4 roundings.
    """
    a, b = coefficients(q_step, s)
    mean, variance = coefficients(q_sample, s, first=0)
    m, v = 1.0, 0.0
    iterated = [(m, v)]
    for a_t, b_t in zip(a.tolist(), b.tolist(), strict=True):
        m, v = a_t * m, a_t**2 * v + b_t**2
        iterated.append((m, v))
    exact = torch.tensor(iterated, dtype=torch.float64)
    rtol = 8 * s.T * U
    torch.testing.assert_close(mean, exact[:, 0], rtol=rtol, atol=0)
    # 1 - ᾱ_t is a difference: ᾱ_t's T roundings are absolute errors of at most U each.
    torch.testing.assert_close(variance**2, exact[:, 1], rtol=rtol, atol=4 * s.T * U)


@given(schedules())
def test_the_posterior_takes_x_t_back_to_x_tm1(s):
    """Eq. 4 pushed through eq. 6 is eq. 4 at t-1, for mean and variance, every t.

    c_0 + c_t √ᾱ_t = √ᾱ_{t-1} and c_t² (1-ᾱ_t) + β̃_t = 1-ᾱ_{t-1}.
    """
    mean, deviation = coefficients(q_sample, s, first=0)
    c_t, c_0 = coefficients(posterior, s)
    t = torch.arange(1, s.T + 1)
    beta_tilde = q_posterior(s, mean[1:], mean[1:], t)[1]
    close = {"rtol": RTOL, "atol": RTOL}
    torch.testing.assert_close(c_0 + c_t * mean[1:], mean[:-1], **close)
    pushed = (c_t * deviation[1:]) ** 2 + beta_tilde
    torch.testing.assert_close(pushed, deviation[:-1] ** 2, **close)


@given(schedules(min_T=2))
def test_the_posterior_is_bayes_rule(s):
    """Eq. 6, 7: q(x_{t-1}|x_t, x_0) ∝ q(x_t|x_{t-1}) q(x_{t-1}|x_0), t >= 2.

    Two Gaussians in x_{t-1} multiply: precisions add to 1/β̃_t, and μ̃_t/β̃_t is
    √α_t/β_t x_t + √ᾱ_{t-1}/(1-ᾱ_{t-1}) x_0. The likelihood is read off q_step, the
    prior off q_sample.
    """
    a, b = (c[1:] for c in coefficients(q_step, s))
    mean, deviation = (c[:-1] for c in coefficients(q_sample, s))
    c_t, c_0 = (c[1:] for c in coefficients(posterior, s))
    t = torch.arange(2, s.T + 1)
    beta_tilde = q_posterior(s, mean, mean, t)[1]
    close = {"rtol": RTOL, "atol": 0}
    precision = a**2 / b**2 + 1 / deviation**2
    torch.testing.assert_close(1 / beta_tilde, precision, **close)
    torch.testing.assert_close(c_t / beta_tilde, a / b**2, **close)
    torch.testing.assert_close(c_0 / beta_tilde, mean / deviation**2, **close)


@given(schedules(), seeds, shapes)
def test_the_posterior_of_the_first_step_is_x_0(s, seed, shape):
    """Eq. 7 at t = 1: μ̃_1 = x_0 and β̃_1 = 0, since x_0 is given; x_1 says no more."""
    x_0, x_1 = normal(seed, shape), normal(seed + 1, shape)
    t = torch.ones(shape[0], dtype=torch.long)
    mu_tilde, beta_tilde = q_posterior(s, x_1, x_0, t)
    torch.testing.assert_close(mu_tilde, x_0, rtol=RTOL, atol=0)
    assert set(beta_tilde.flatten().tolist()) == {0.0}


@given(schedules(), seeds, shapes, dtypes)
def test_step_0_is_the_data(s, seed, shape, dtype):
    """Eq. 4 at t = 0: ᾱ_0 = 1, so x_0 comes back bit for bit, whatever ε."""
    x_0, eps = normal(seed, shape, dtype), normal(seed + 1, shape, dtype)
    t = torch.zeros(shape[0], dtype=torch.long)
    assert torch.equal(q_sample(s, x_0, t, eps), x_0)


def drawn_call(data, s, shape, dtype, seed):
    """(function, its arguments) for one of the three, with mixed t."""
    x, y = normal(seed, shape, dtype), normal(seed + 1, shape, dtype)
    q = data.draw(st.sampled_from([q_step, q_sample, posterior]))
    return q, x, data.draw(steps(s, shape[0], first=0 if q is q_sample else 1)), y


@given(schedules(), shapes, dtypes, seeds, st.data())
def test_a_batch_of_mixed_t_is_its_items(s, shape, dtype, seed, data):
    """Batch law: item b depends on x[b], t[b], ε[b] alone, for any rank, bit for bit.

    Ones and zeros hide a wrong axis; random numbers do not.
    """
    q, x, t, y = drawn_call(data, s, shape, dtype, seed)
    together = q(s, x, t, y)
    assert isinstance(together, torch.Tensor)
    assert together.shape == x.shape
    for b in range(shape[0]):
        i = slice(b, b + 1)
        assert torch.equal(together[i], q(s, x[i], t[i], y[i]))
    if q is posterior:
        beta_tilde = q_posterior(s, x, y, t)[1]
        assert tuple(beta_tilde.shape) == (shape[0],) + (1,) * (len(shape) - 1)
        assert beta_tilde.flatten().tolist() == s.beta_tilde[t].to(dtype).tolist()


@given(schedules(), shapes, dtypes, seeds, st.data())
def test_each_formula_is_linear(s, shape, dtype, seed, data):
    """q is Gaussian with a linear mean: q(x, ε) = q(x, 0) + q(0, ε), no cross term."""
    q, x, t, y = drawn_call(data, s, shape, torch.float64, seed)
    zero = torch.zeros_like(x)
    sum_of_parts = q(s, x, t, zero) + q(s, zero, t, y)
    largest = 10 * float(x.abs().max() + y.abs().max())
    torch.testing.assert_close(q(s, x, t, y), sum_of_parts, rtol=0, atol=U * largest)


@given(schedules(), shapes, seeds, st.data())
def test_float32_is_float64_rounded_once(s, shape, seed, data):
    """Right to float32's last digit: the float64 result of the same numbers, rounded.

    In float32 arithmetic 1 - ᾱ_1 = 1e-4 would be wrong in its fourth digit.
    """
    q, x, t, y = drawn_call(data, s, shape, torch.float32, seed)
    exact = q(s, x.double(), t, y.double())
    assert exact.dtype == torch.float64
    assert torch.equal(q(s, x, t, y), exact.float())
    t = t.clamp(min=1)
    beta_tilde = q_posterior(s, x, y, t)[1]
    assert torch.equal(beta_tilde.flatten(), s.beta_tilde[t].float())


@given(schedules(), shapes, dtypes, seeds, st.data())
def test_nothing_given_is_written_to(s, shape, dtype, seed, data):
    """The functions are pure: inputs and tables are as before, and twice is once."""
    q, x, t, y = drawn_call(data, s, shape, dtype, seed)
    before = [v.clone() for v in (x, t, y, s.beta, s.alpha, s.alpha_bar, s.beta_tilde)]
    once = q(s, x, t, y)
    assert torch.equal(q(s, x, t, y), once)
    after = (x, t, y, s.beta, s.alpha, s.alpha_bar, s.beta_tilde)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old, new)


@share(20)
@given(schedules(), shapes, seeds, st.data())
def test_gradients_pass_through_to_both_inputs(s, shape, seed, data):
    """Autograd through eq. 2, 4, 7 = finite differences, for x and for ε.

    A step inside torch.inference_mode, or a detach, would cut the graph.
    """
    q, x, t, y = drawn_call(data, s, shape, torch.float64, seed)
    x.requires_grad_()
    y.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: q(s, x, t, y), (x, y))


def test_q_is_known_without_a_network():
    """Eq. 2, 4, 6: the forward process q is fixed: nothing named q_ asks an ε_θ."""
    names = [name for name in tinyddpm.__all__ if name.startswith("q_")]
    assert names == ["q_posterior", "q_sample", "q_step"]
    for name in names:
        parameters = inspect.signature(getattr(tinyddpm, name)).parameters
        assert not {"eps_theta", "eps_hat"} & set(parameters)


SHAPE = (4, 3, 2, 2)
BROADCASTS = [(1,), (4,), (1, 3, 2, 2), (4, 1, 2, 2), (4, 3, 1, 1), (1, 1, 1, 1), ()]


@pytest.mark.parametrize(
    ("q", "name", "of"),
    [
        (q_step, "z", "x_tm1"),
        (q_sample, "eps", "x_0"),
        (posterior, "x_0", "x_t"),
    ],
)
@pytest.mark.parametrize("shape", [*BROADCASTS, (5, 3, 2, 2), (4, 3, 2), (4, 3, 4)])
def test_a_shape_that_merely_broadcasts_is_refused(q, name, of, shape):
    """Noise shared between pictures or channels is another law; the shapes are said."""
    given, wanted = str(shape)[1:-1], str(SHAPE)[1:-1]
    message = rf"{name} must have the shape of {of}, \({wanted}\), got \({given}\)"
    with pytest.raises(ValueError, match=message):
        q(
            linear_schedule(),
            torch.zeros(SHAPE),
            torch.ones(4).long(),
            torch.ones(shape),
        )


@pytest.mark.parametrize("q", [q_step, q_sample, posterior])
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
def test_a_wrong_t_is_refused(q, t):
    """t outside 1..T (0..T in eq. 4), of another dtype or shape: an error, no wrap."""
    x = torch.zeros(SHAPE)
    with pytest.raises(ValueError, match="t must"):
        q(linear_schedule(), x, t, x)


@pytest.mark.parametrize("q", [q_step, posterior])
def test_step_0_has_no_step_before_it(q):
    """Eq. 2 and 6 lead from or to x_{t-1}: t = 0 would read ᾱ_{-1}."""
    x = torch.zeros(SHAPE)
    with pytest.raises(ValueError, match=r"t must lie in 1\.\.1000, got 0\.\.0"):
        q(linear_schedule(), x, torch.zeros(4).long(), x)
