"""The variance schedule of sections 2 and 4 and its tables, and those of appendix B."""

import math
import warnings

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tinyddpm import (
    Schedule,
    constant_schedule,
    linear_schedule,
    quadratic_schedule,
)

from ..helpers import RTOL, U, quiet
from ..strategies import MIN_BETA, beta_tables, end_points, schedules

TABLES = ("beta", "alpha", "alpha_bar", "beta_tilde")
inside = st.floats(MIN_BETA, 0.999)


@given(beta_tables())
def test_index_0_means_no_noise_and_t_is_the_papers_t(beta):
    """β_0 = 0, α_0 = ᾱ_0 = 1, β̃_0 = β̃_1 = 0; entry t of the table is the given β_t."""
    s = Schedule(beta)
    assert beta.shape == (s.T,)
    assert (float(s.beta[0]), float(s.alpha[0]), float(s.alpha_bar[0])) == (0, 1, 1)
    assert (float(s.beta_tilde[0]), float(s.beta_tilde[1])) == (0, 0)
    assert torch.equal(s.beta[1:], beta)


@given(schedules())
def test_alpha_bar_is_the_product_of_the_alphas(s):
    """Section 2: α_t = 1 - β_t and ᾱ_t / ᾱ_{t-1} = α_t from t = 1 on: ∏_{s=1}^t."""
    assert torch.equal(s.alpha, 1 - s.beta)
    ratio = s.alpha_bar[1:] / s.alpha_bar[:-1]
    torch.testing.assert_close(ratio, s.alpha[1:], rtol=4 * U, atol=0)


@given(schedules())
def test_alpha_bar_falls_from_1(s):
    """ᾱ_0 = 1 > ᾱ_1 > ... > ᾱ_T > 0: every step takes signal away, none takes all."""
    assert float(s.alpha_bar[0]) == 1
    assert float(s.alpha_bar.diff().max()) < 0
    assert float(s.alpha_bar[-1]) > 0


@given(schedules(min_T=2))
def test_beta_tilde_adds_precisions(s):
    """Eq. 7 by Bayes: 1/β̃_t = 1/(1-ᾱ_{t-1}) + α_t/β_t for t >= 2; 0 <= β̃_t <= β_t."""
    precision = 1 / (1 - s.alpha_bar[1:-1]) + s.alpha[2:] / s.beta[2:]
    torch.testing.assert_close(1 / s.beta_tilde[2:], precision, rtol=RTOL, atol=0)
    assert float(s.beta_tilde.min()) >= 0
    assert float((s.beta_tilde - s.beta).max()) <= 0


@given(schedules())
def test_every_table_is_float64_with_an_entry_for_0_to_T(s):
    """Tables have T + 1 entries in float64, whatever the data's dtype."""
    for name in TABLES:
        table = getattr(s, name)
        assert (table.dtype, tuple(table.shape)) == (torch.float64, (s.T + 1,)), name


@given(st.lists(inside, min_size=1, max_size=20))
def test_the_table_is_copied(numbers):
    """A list is as good as a tensor; writing to the tensor later changes nothing."""
    beta = torch.tensor(numbers, dtype=torch.float64)
    s, of_list = Schedule(beta), Schedule(numbers)
    beta.fill_(0.5)
    assert torch.equal(s.beta, of_list.beta)
    assert s.beta[1:].tolist() == numbers


@pytest.mark.parametrize("T", [21, 100, 1000, 4000])
def test_tables_are_right_to_float32s_last_digit(T):
    """Each coefficient of eq. 4 and 7 is within float32's half unit (2^-24) of exact.

    Exact: β_t by Python's floats, ᾱ_t = exp(Σ log(1-β_s)) with an exact sum. A table
    made in float32 has 1 - ᾱ_1 wrong by 1.7e-4.
    """
    first, last = 1e-4 * 1000 / T, 0.02 * 1000 / T
    beta = [first + (t - 1) / (T - 1) * (last - first) for t in range(1, T + 1)]
    log = [0.0]
    for b in beta:
        log.append(math.fsum((log[-1], math.log1p(-b))))
    alpha_bar = torch.tensor([math.exp(x) for x in log], dtype=torch.float64)
    noise = torch.tensor([-math.expm1(x) for x in log], dtype=torch.float64)
    exact = torch.tensor([0.0, *beta], dtype=torch.float64)
    s = linear_schedule(T)
    close = {"rtol": 2.0**-24, "atol": 0}
    torch.testing.assert_close(s.beta, exact, **close)
    torch.testing.assert_close(s.alpha_bar, alpha_bar, **close)
    torch.testing.assert_close(1 - s.alpha_bar, noise, **close)
    beta_tilde = noise[:-1] / noise[1:] * exact[1:]
    torch.testing.assert_close(s.beta_tilde[1:], beta_tilde, **close)


@given(end_points(min_T=2))
def test_linear_schedule_is_a_straight_line(case):
    """Section 4: β_t = β_1 + (t-1)/(T-1) (β_T - β_1): both ends met, equal steps."""
    T, beta_1, beta_T = case
    s = quiet(linear_schedule, T, beta_1, beta_T)
    assert s.T == T
    line = [beta_1 + (t - 1) / (T - 1) * (beta_T - beta_1) for t in range(1, T + 1)]
    exact = torch.tensor(line, dtype=torch.float64)
    # Four roundings, each of at most U times the larger end.
    atol = 4 * U * max(beta_1, beta_T)
    torch.testing.assert_close(s.beta[1:], exact, rtol=0, atol=atol)
    assert (float(s.beta[1]), float(s.beta[T])) == (beta_1, beta_T)


@given(end_points(min_T=2))
def test_quadratic_schedule_is_a_straight_line_of_roots(case):
    """App. B, the authors' code: √β_t = √β_1 + (t-1)/(T-1) (√β_T - √β_1)."""
    T, beta_1, beta_T = case
    s = quiet(quadratic_schedule, T, beta_1, beta_T)
    assert s.T == T
    a, b = math.sqrt(beta_1), math.sqrt(beta_T)
    line = [a + (t - 1) / (T - 1) * (b - a) for t in range(1, T + 1)]
    exact = torch.tensor(line, dtype=torch.float64)
    torch.testing.assert_close(s.beta[1:].sqrt(), exact, rtol=0, atol=6 * U * max(a, b))


@given(end_points())
def test_constant_schedule_is_constant(case):
    """App. B: β_t = β for every t."""
    T, beta, _ = case
    s = quiet(constant_schedule, T, beta)
    assert s.T == T
    assert set(s.beta[1:].tolist()) == {beta}


def test_the_papers_schedule():
    """Section 4: T = 1000, β from 1e-4 to 0.02, so that L_T is about 1e-5 bits/dim.

    L_T = KL(N(√ᾱ x, 1-ᾱ) ‖ N(0, 1)) at x² = 0.3, the mean over CIFAR-10's pixels.
    """
    s = linear_schedule()
    assert (s.T, float(s.beta[1]), float(s.beta[1000])) == (1000, 1e-4, 0.02)
    assert (quadratic_schedule().T, constant_schedule().T) == (1000, 1000)
    kept = float(s.alpha_bar[-1])
    nats = (kept * 0.3 - kept - math.log1p(-kept)) / 2
    assert 0.5e-5 < nats / math.log(2) < 1.5e-5


@given(st.integers(21, 4000))
@example(21)
def test_default_end_points_keep_the_noise_of_T_steps(T):
    """End points scaled by 1000/T: T (β_1 + β_T) / 2 stays the paper's 10.05.

    The linear schedule's ᾱ_T is then at most exp(-10.05), since log(1-β) <= -β, and the
    constant one takes the linear one's β_T.
    """
    linear, constant = quiet(linear_schedule, T), quiet(constant_schedule, T)
    ends = linear.beta[[1, T]]
    expected = torch.tensor([0.1 / T, 20 / T], dtype=torch.float64)
    torch.testing.assert_close(ends, expected, rtol=4 * U, atol=0)
    assert float(linear.alpha_bar[-1]) <= math.exp(-10.05)
    quadratic_ends = quiet(quadratic_schedule, T).beta[[1, T]]
    torch.testing.assert_close(quadratic_ends, expected, rtol=8 * U, atol=0)
    assert set(constant.beta[1:].tolist()) == {float(ends[1])}


@given(end_points(), st.sampled_from([linear_schedule, quadratic_schedule]))
@example((100, 1e-4, 0.02), linear_schedule)
@example((2, 0.841, 0.9371069182389937), linear_schedule)  # √ᾱ_T is 0.1 itself
def test_a_schedule_that_leaves_signal_warns(case, make):
    """p(x_T) = N(0, I) needs ᾱ_T near 0: √ᾱ_T > 0.1 warns with the figure, at the call.

    The paper's end points at T = 100 keep 60 % of the amplitude.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        s = make(*case)
        kept = math.sqrt(float(s.alpha_bar[-1]))
        one = constant_schedule(case[0], case[2])
    assert len(caught) == (kept > 0.1) + (float(one.alpha_bar[-1]) > 0.01)
    if kept > 0.1:
        assert f"keeps {kept:.0%} of the amplitude" in str(caught[0].message)
        assert f"√ᾱ_T = {kept:.2f}" in str(caught[0].message)
    for warning in caught:
        assert warning.filename == __file__


def test_the_warning_names_the_figure_for_a_hundred_of_the_papers_steps():
    """The common trap, T lowered and β kept: 60 % of x_0 is left in x_T."""
    with pytest.warns(UserWarning, match="keeps 60% of the amplitude of x_0"):
        linear_schedule(T=100, beta_1=1e-4, beta_T=0.02)


@given(
    st.lists(inside, min_size=1, max_size=8),
    st.data(),
    st.sampled_from([0.0, 1.0, -0.1, 1.5, 2.0, math.inf, -math.inf, math.nan]),
)
def test_a_beta_outside_0_1_is_refused_by_its_t(numbers, data, bad):
    """Eq. 2 is a law for 0 < β_t < 1 only; the error names the first wrong t."""
    i = data.draw(st.integers(0, len(numbers) - 1))
    beta = torch.tensor(numbers, dtype=torch.float64)
    beta[i] = bad
    with pytest.raises(ValueError, match=rf", got beta_{i + 1} = {bad}$"):
        Schedule(beta)


@pytest.mark.parametrize("shape", [(), (0,), (3, 1), (1, 3)])
def test_a_table_that_is_not_a_row_is_refused(shape):
    """β_1..β_T is a row of T >= 1 numbers; the error names the shape given."""
    with pytest.raises(ValueError, match=rf"got shape \({str(shape)[1:-1]}\)"):
        Schedule(torch.full(shape, 0.5))


@pytest.mark.parametrize(
    ("beta", "first", "last"), [([1e-17, 0.5], 1.0, 0.5), ([0.5] * 1075, 0.5, 0.0)]
)
def test_a_schedule_float64_cannot_hold_is_refused(beta, first, last):
    """ᾱ_1 = 1 (no noise) or ᾱ_T = 0 (no signal) would divide by 0 in eq. 11 and 15.

    The error says which, and what to do.
    """
    ends = f"alpha_bar_1 = {first}, alpha_bar_T = {last}"
    message = f"cannot hold.+{ends}; choose a larger beta_1 or a smaller T$"
    with pytest.raises(ValueError, match=message):
        Schedule(torch.tensor(beta, dtype=torch.float64))


@pytest.mark.parametrize("beta", [[2.0**-53, 0.5], [0.5] * 1074])
def test_a_schedule_float64_can_just_hold_is_taken(beta):
    """The limits are float64's own: 1 - 2^-53 is below 1 and 2^-1074 above 0."""
    s = Schedule(torch.tensor(beta, dtype=torch.float64))
    assert 0 < float(s.alpha_bar[-1]) < float(s.alpha_bar[1]) < 1


SCHEDULES = [linear_schedule, quadratic_schedule, constant_schedule]


@pytest.mark.parametrize("make", SCHEDULES)
@pytest.mark.parametrize("T", [0, -1, 2.0, "10", None])
def test_T_below_1_or_not_whole_is_refused(make, T):
    """T is a number of steps; the error names what was given, with ends or without."""
    ends = (0.5,) if make is constant_schedule else (0.5, 0.5)
    for arguments in (), ends:
        with pytest.raises(ValueError, match=f"T must be whole .+ 1, got {T!r}"):
            make(T, *arguments)


@pytest.mark.parametrize("make", SCHEDULES)
@pytest.mark.parametrize("T", [1, 2, 19, 20])
def test_the_scaled_end_points_need_T_above_20(make, T):
    """β_T = 20/T is not below 1 for T <= 20: refused with the figure, not clamped."""
    with pytest.raises(ValueError, match=rf"T = {T} give beta_T = {20 / T:g}"):
        make(T)


@pytest.mark.parametrize("make", [linear_schedule, quadratic_schedule])
@pytest.mark.parametrize("ends", [(0.1, None), (None, 0.1)])
def test_one_end_point_alone_is_refused(make, ends):
    """A given end and a scaled one do not belong together."""
    with pytest.raises(ValueError, match=r"^give both beta_1 and beta_T, or neither$"):
        make(100, *ends)


@pytest.mark.parametrize("make", SCHEDULES)
@pytest.mark.parametrize("bad", [0.0, -0.5, 1.0, 2.0, math.nan])
@pytest.mark.parametrize("first", [True, False])
def test_an_end_point_outside_0_1_is_refused(make, bad, first):
    """As for the table: β_1 and β_T lie inside (0, 1), also where a square hides it."""
    ends = (bad, 0.5) if first else (0.5, bad)
    message = r"^beta must lie inside \(0, 1\), got "
    with pytest.raises(ValueError, match=message):
        make(50, *(ends if make is not constant_schedule else [bad]))


@pytest.mark.parametrize("make", SCHEDULES[:2])
def test_one_step_is_a_schedule(make):
    """T = 1: the one step is β_1."""
    s = make(1, 0.995, 0.995)
    assert s.T == 1
    torch.testing.assert_close(float(s.beta[1]), 0.995, rtol=4 * U, atol=0)


@given(schedules(max_T=50))
@example(linear_schedule(2, 0.9, 0.99))
def test_sigma2_names_its_choices(s):
    """Section 3.2: σ_t² = β_t or β̃_t; the authors' "fixedlarge" is β_t but for σ_1² =
    β̃_2, which T = 1 has not; another name is refused.
    """
    assert torch.equal(s.sigma2("beta"), s.beta)
    assert torch.equal(s.sigma2("beta_tilde"), s.beta_tilde)
    for name in ("fixed", "fixedlarge") if s.T == 1 else ("fixed",):
        with pytest.raises(ValueError, match=f"'beta_tilde' or.*got '{name}' and T ="):
            s.sigma2(name)
    if s.T > 1:
        authors = s.sigma2("fixedlarge")
        assert float(authors[1]) == float(s.beta_tilde[2])
        assert authors[2:].tolist() == s.beta[2:].tolist()


@given(schedules(max_T=50))
def test_to_moves_every_table_and_leaves_the_schedule(s):
    """A schedule on a device has all its tables there; the original stays."""
    there, here = s.to("meta"), s.to("cpu")
    assert there.T == here.T == s.T
    for name in TABLES:
        assert getattr(there, name).device.type == "meta"
        assert getattr(s, name).device.type == "cpu"
        assert torch.equal(getattr(here, name), getattr(s, name))


@given(end_points(min_T=2))
def test_repr_shows_T_and_both_ends(case):
    """What a log needs to tell one schedule from another, and what is left in x_T."""
    s = quiet(linear_schedule, *case)
    T, beta_1, beta_T = case
    ends = f"T={T}, beta_1={beta_1:g}, beta_T={beta_T:g}"
    assert repr(s) == f"Schedule({ends}, alpha_bar_T={float(s.alpha_bar[-1]):.3g})"
