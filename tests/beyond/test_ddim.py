"""Laws of `ddim.py`: its step, its loop and its inverse, held against Algorithm 2."""

import math
import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyddpm import (
    Schedule,
    at,
    linear_schedule,
    p_sample_loop,
    p_step,
    predict_x_0,
    q_sample,
)
from tinyddpm.beyond.ddim import (
    ddim_encode,
    ddim_loop,
    ddim_ode_step,
    ddim_sample,
    ddim_step,
    quadratic_steps,
    uniform_steps,
)
from tinyddpm.beyond.oracle import finite_oracle, gaussian_oracle

from ..helpers import U, some_network
from ..strategies import normal, schedules, seeds, shapes, share, steps

short = schedules(min_T=2, max_T=20)
etas = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))


def earlier(t, data):
    """A t' in 0..t-1 for each t, the two ends often."""
    draws = [st.sampled_from([0, i - 1]) | st.integers(0, i - 1) for i in t.tolist()]
    return torch.tensor([data.draw(draw) for draw in draws])


def assert_near(s, t, t_prime, found, expected, *args, more=0.0):
    """Equal but for rounding: 1e-9 of √ᾱ_t'/√ᾱ_t, or of its inverse, times |args|.

    That is what x̂_0 = .../√ᾱ_t makes of them. 1 - ᾱ_t/ᾱ_t' >= 1e-6 (the least β_t that
    is drawn) has lost the digits of 1: it is right to 1e-10 only.
    """
    a, b = (at(s.alpha_bar, i, found, first=0) for i in (t, t_prime))
    size = max([1.0, *(float(y.abs().max()) for y in args)])
    tolerance = 1e-9 * size * torch.maximum(a / b, b / a).sqrt() + more
    assert bool(((found - expected).abs() <= tolerance).all())


@given(schedules(min_T=2), shapes, seeds, etas, st.data())
def test_a_step_is_eq_12_as_printed(s, shape, seed, eta, data):
    """Eq. 12, 16 of DDIM, written out with Python's floats, for any pair t > t'.

    The printed radicand 1 - ᾱ_t' - σ² may round to something below 0, by 4 U at most;
    it is then 0. Its root is off by √(4 U) at most.
    """
    x_t, eps_hat, z = (normal(seed + i, shape) for i in range(3))
    t = data.draw(steps(s, shape[0]))
    t_prime = earlier(t, data)
    found = ddim_step(s, x_t, t, t_prime, eps_hat, z, eta)
    expected = torch.empty_like(found)
    for i in range(shape[0]):
        a, b = float(s.alpha_bar[t[i]]), float(s.alpha_bar[t_prime[i]])
        sigma = eta * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
        x_0_hat = (x_t[i] - math.sqrt(1 - a) * eps_hat[i]) / math.sqrt(a)
        root = math.sqrt(max(0.0, 1 - b - sigma**2))
        expected[i] = math.sqrt(b) * x_0_hat + root * eps_hat[i] + sigma * z[i]
    of_root = math.sqrt(4 * U) * float(eps_hat.abs().max())
    assert_near(s, t, t_prime, found, expected, x_t, eps_hat, z, more=of_root)


@given(schedules(min_T=2), etas, st.data())
def test_no_radicand_is_below_zero(s, eta, data):
    """1-ᾱ_t'-σ² >= 0 and σ² >= 0 for any pair t > t' and any η in [0, 1].

    Together they are 1-ᾱ_t', the variance that eq. 4 gives x_t'.
    """
    t = data.draw(steps(s, 8))
    t_prime = earlier(t, data)
    zero, one = torch.zeros(8, 1).double(), torch.ones(8, 1).double()
    # with ε̂ = 1 and x_t = √(1-ᾱ_t), x̂_0 is 0: what is left is the root itself
    x_t = (1 - at(s.alpha_bar, t, one)).sqrt()
    direction = ddim_step(s, x_t, t, t_prime, one, zero, eta)
    noise = ddim_step(s, zero, t, t_prime, zero, one, eta)
    assert bool((noise >= 0).all())
    whole = 1 - at(s.alpha_bar, t_prime, one, first=0)
    # x̂_0 is 0 but for rounding, which 1/√ᾱ_t enlarges
    assert_near(s, t, t_prime, direction**2 + noise**2, whole)


@given(schedules(min_T=2), shapes, seeds, st.booleans(), st.data())
def test_eta_1_is_a_step_of_algorithm_2(s, shape, seed, clip, data):
    """η = 1 and t' = t - 1: `p_step` with σ_t² = β̃_t, clamped x̂_0 or not."""
    x_t, eps_hat, z = (normal(seed + i, shape) for i in range(3))
    t = data.draw(steps(s, shape[0]))
    found = ddim_step(s, x_t, t, t - 1, eps_hat, z, 1.0, clip)
    expected = p_step(s, x_t, t, eps_hat, z, "beta_tilde", clip)
    tolerance = 1e-8 * float((x_t.abs() + eps_hat.abs() + z.abs()).max())
    tolerance /= float(s.alpha[t].min().sqrt())
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@given(short, seeds)
def test_all_steps_with_eta_1_are_algorithm_2(s, seed):
    """All T steps with η = 1 give Algorithm 2's x_T..x_0, step by step, for one noise.

    The predictor is that of N(0, I), whose steps have slopes below 1: the rounding of
    one step does not grow in the next.
    """
    args = s, gaussian_oracle(s, torch.zeros(3), torch.eye(3)), normal(seed, (4, 3))
    g, same = (torch.Generator().manual_seed(seed) for _ in range(2))
    found = list(ddim_loop(*args, uniform_steps(s.T, s.T), g, eta=1.0))
    expected = list(p_sample_loop(*args, same, "beta_tilde"))
    assert [t for t, _, _ in found] == [t for t, _, _ in expected]
    assert torch.equal(g.get_state(), same.get_state())  # no noise in the last step
    for (_, *of_ddim), (_, *of_p) in zip(found, expected, strict=True):
        torch.testing.assert_close(of_ddim, of_p, rtol=0, atol=1e-7)


@given(short, seeds)
def test_rounding_to_float32_comes_last(s, seed):
    """x_t in float32 gives what the same x_t in float64 does, rounded once."""
    x_t, eps_hat, z = (normal(seed + i, (3, 2), torch.float32) for i in range(3))
    t = torch.full((3,), s.T)
    for step, *noise in (
        (lambda *x: ddim_step(s, x[0], t, t - 1, *x[1:], 0.5, True), eps_hat, z),
        (lambda *x: ddim_ode_step(s, x[0], t, t - 1, *x[1:]), eps_hat),
    ):
        found = step(x_t, *noise)
        assert found.dtype == torch.float32
        expected = step(*(x.double() for x in (x_t, *noise)))
        torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=1e-6)


@given(short, seeds, etas, st.booleans())
def test_a_sample_is_what_the_loop_ends_with(s, seed, eta, clip):
    """`ddim_sample` has the arguments of `ddim_loop`, each in its place."""
    args = s, some_network, normal(seed, (2, 3)), uniform_steps(s.T, 2)
    g, same = (torch.Generator().manual_seed(seed) for _ in range(2))
    *_, (t, x_0, _) = ddim_loop(*args, g, eta, clip)
    assert t == 0
    assert torch.equal(ddim_sample(*args, same, eta, clip), x_0)
    if eta == 0 and not clip:
        assert torch.equal(ddim_sample(*args), x_0)
        assert torch.equal(list(ddim_loop(*args))[-1][1], x_0)


@given(short, shapes, seeds, etas, st.data())
def test_the_last_step_lands_on_x_0_hat(s, shape, seed, eta, data):
    """t' = 0: ᾱ_0 = 1, so x_0 is the last x̂_0 to the last bit, whatever η and z are."""
    x_t, eps_hat, z = (normal(seed + i, shape) for i in range(3))
    t = data.draw(steps(s, shape[0]))
    x_0 = ddim_step(s, x_t, t, torch.zeros_like(t), eps_hat, z, eta)
    assert torch.equal(x_0, predict_x_0(s, x_t, t, eps_hat))
    n = data.draw(st.integers(1, s.T))
    g = torch.Generator().manual_seed(seed)
    for clip in (False, True):
        loop = list(
            ddim_loop(s, some_network, x_t, uniform_steps(s.T, n), g, eta, clip)
        )
        assert [step for step, _, _ in loop] == [*uniform_steps(s.T, n), 0]
        assert torch.equal(loop[-1][1], loop[-2][2])
        assert not clip or float(loop[-1][1].abs().max()) <= 1


@given(schedules(min_T=2), seeds, st.data())
def test_standard_normal_data_turn_by_an_angle(s, seed, data):
    """x_0 ~ N(0, I), η = 0: x_t' = cos(φ_t - φ_t') x_t, where cos φ_t = √ᾱ_t.

    ε*(x_t) = √(1-ᾱ_t) x_t = sin φ_t x_t and x̂_0 = cos φ_t x_t, so eq. 12 is the cosine
    of a difference. N(0, I) stays N(0, I) up to the square of the step's angle.
    """
    t = data.draw(steps(s, 6))
    t_prime, x_t = earlier(t, data), normal(seed, (6, 4))
    eps_hat = gaussian_oracle(s, torch.zeros(4), torch.eye(4))(x_t, t)
    found = ddim_step(s, x_t, t, t_prime, eps_hat, torch.zeros_like(x_t))
    phi = [at(s.alpha_bar, i, x_t, first=0).sqrt().acos() for i in (t, t_prime)]
    # acos of a number near 1 has half its digits
    torch.testing.assert_close(found, (phi[0] - phi[1]).cos() * x_t, rtol=0, atol=1e-7)


def test_standard_normal_data_stay_so_as_steps_grow():
    """x_0 ~ N(0, I), η = 0: every x_t of the loop is N(0, I), to an error of order 1/S.

    By the law above x_t = ∏ cos(Δφ) x_T, and 1 - ∏ cos² Δφ is about Σ Δφ², at most π/2
    times the largest Δφ. Doubling S halves it: here between 1.8 and 2.2 times.
    """
    s = linear_schedule(1000)
    eps_theta = gaussian_oracle(s, torch.zeros(1), torch.eye(1))
    x_T, lost = torch.ones(1, 1, dtype=torch.float64), []
    for n in (125, 250, 500):
        phi = s.alpha_bar[[*uniform_steps(s.T, n), 0]].sqrt().acos()
        bound = math.pi / 2 * float(-phi.diff().min())
        path = [
            float(x) for _, x, _ in ddim_loop(s, eps_theta, x_T, uniform_steps(1000, n))
        ]
        assert all(1 - bound <= x**2 <= 1 for x in path)
        lost.append(1 - path[-1] ** 2)
    assert all(1.8 < more / less < 2.2 for more, less in pairwise(lost))


@given(schedules(min_T=2), shapes, seeds, st.data())
def test_the_ode_step_is_eq_12_without_noise_and_undoes_itself(s, shape, seed, data):
    """Eq. 13 = eq. 12 for η = 0 and t' < t; for one ε̂, from t to t' and back is x_t."""
    x_t, eps_hat = normal(seed, shape), normal(seed + 1, shape)
    t = data.draw(steps(s, shape[0]))
    t_prime = earlier(t, data)
    there = ddim_ode_step(s, x_t, t, t_prime, eps_hat)
    printed = ddim_step(s, x_t, t, t_prime, eps_hat, torch.zeros_like(x_t))
    assert_near(s, t, t_prime, there, printed, x_t, eps_hat)
    back = ddim_ode_step(s, there, t_prime, t, eps_hat)
    assert_near(s, t, t_prime, back, x_t, x_t, eps_hat)


@given(schedules(), shapes, seeds, st.data())
def test_the_ode_step_takes_the_true_noise_from_eq_4_to_eq_4(s, shape, seed, data):
    """x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε goes to √ᾱ_t' x_0 + √(1-ᾱ_t') ε, for any t, t'."""
    x_0, eps = normal(seed, shape), normal(seed + 1, shape)
    t, t_prime = (data.draw(steps(s, shape[0], first=0)) for _ in range(2))
    found = ddim_ode_step(s, q_sample(s, x_0, t, eps), t, t_prime, eps)
    expected = q_sample(s, x_0, t_prime, eps)
    assert_near(s, t, t_prime, found, expected, x_0, eps)


def test_encode_then_decode_returns_the_picture_to_first_order():
    """The round trip x_0 -> x_T -> x_0 with an exact predictor: its error is O(1/S).

    Both ways are Euler's method, of order one: twice the steps, half the error. A
    factor between 1.7 and 2.3 allows for the next order, which is 1/S of the first.
    """
    s = linear_schedule(1000)
    mean = torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64)
    eps_theta = gaussian_oracle(
        s, mean, torch.diag(torch.tensor([0.5, 0.2, 1.0])).double()
    )
    x_0, errors = mean + 0.5 * normal(0, (50, 3)), []
    for n in (125, 250, 500, 1000):
        every = uniform_steps(s.T, n)
        x_T = ddim_encode(s, eps_theta, x_0, every)
        back = ddim_sample(s, eps_theta, x_T, every)
        errors.append(float((back - x_0).square().mean().sqrt()))
    assert all(1.7 < a / b < 2.3 for a, b in pairwise(errors))
    assert errors[-1] < 0.02


def test_encoding_asks_the_network_for_the_rising_steps():
    """x_0 goes up τ_1, ..., τ_S; asked are 1 (for 0), τ_1, ..., τ_{S-1}.

    The first step is from t = 0, where x_0 has no noise.
    """
    asked = []

    def eps_theta(x_t, t):
        asked.append(set(t.tolist()))
        return x_t

    ddim_encode(linear_schedule(100), eps_theta, normal(0, (2, 3)), [90, 40, 10])
    assert asked == [{1}, {10}, {40}]
    s, x_0, t = linear_schedule(100), normal(0, (2, 3)), torch.tensor([40, 40])
    found = ddim_encode(s, eps_theta, x_0, [40])
    assert torch.equal(found, ddim_ode_step(s, x_0, 0 * t, t, x_0))


def test_few_steps_land_on_the_data():
    """x_0 uniform on two points, exact predictor, η = 0: 10 steps of 1000 end on them.

    The x̂_0 of the last step is a mean of the two weighted by their odds, at t = 100,
    where noise has variance 1-ᾱ_100 = 0.1 against points ±1 in each of 12 numbers.
    """
    s, points = linear_schedule(1000), torch.tensor([[1.0] * 12, [-1.0] * 12])
    x_T = normal(3, (400, 12))
    x_0 = ddim_sample(s, finite_oracle(s, points), x_T, uniform_steps(1000, 10))
    torch.testing.assert_close(x_0.abs(), torch.ones_like(x_0), rtol=0, atol=1e-6)
    # each point has half of the samples: 200 ± 4 standard deviations of 10
    assert 160 < int((x_0[:, 0] > 0).sum()) < 240


@given(st.integers(1, 4000), st.data())
def test_sub_sequences_fall_from_T_and_have_n_members(T, data):
    """Uniform and quadratic: n different steps, T first, 1 at least; all for n = T.

    They are whole. The n uniform ones are T/n apart to a rounding; of the quadratic
    ones, which are further apart the larger they are, the i-th is T (i/n)², rounded up.
    """
    n = data.draw(st.integers(1, T))
    for choose in (uniform_steps, quadratic_steps):
        found = choose(T, n)
        assert len(set(found)) == n
        assert found == sorted(found, reverse=True)
        assert found[0] == T
        assert found[-1] >= 1
        assert {type(t) for t in found} == {int}
        assert choose(T, T) == list(range(T, 0, -1))
    gaps = [a - b for a, b in pairwise(uniform_steps(T, n))]
    assert all(abs(gap - T / n) <= 1 for gap in gaps)
    for i, t in zip(range(n, 0, -1), found, strict=True):
        assert t == i or 0 <= t * n**2 - T * i**2 < n**2
    if 4 * n**2 <= T:  # far enough apart for whole numbers
        gaps = [a - b for a, b in pairwise(found)]
        assert all(a >= b for a, b in pairwise(gaps))


@share(40)
@given(short, shapes, seeds, st.data())
def test_eta_0_uses_no_noise_and_one_call_a_step(s, shape, seed, data):
    """η = 0 is a function of x_T alone, and asks the network once for each step.

    They may be any that fall and lie in 1..T.
    """
    chosen = data.draw(st.sets(st.integers(1, s.T), min_size=1))
    chosen, asked = sorted(chosen, reverse=True), []

    def eps_theta(x_t, t):
        asked.extend(set(t.tolist()))
        return some_network(x_t, t)

    x_T, g = normal(seed, shape), torch.Generator().manual_seed(seed)
    before = g.get_state()
    first = ddim_sample(s, eps_theta, x_T, chosen, g)
    assert asked == chosen
    assert torch.equal(g.get_state(), before)
    assert torch.equal(ddim_sample(s, eps_theta, x_T, chosen), first)


FALL = "steps must fall and lie in 100..1, got "
ETA = (
    "eta must lie in [0, 1] (0 is deterministic, 1 has the noise of Algorithm 2), got "
)
REFUSED = {
    "steps above T": ({"steps": [101, 5]}, FALL + "[101, 5]"),
    "a step 0": ({"steps": [5, 0]}, FALL + "[5, 0]"),
    "rising steps": ({"steps": [5, 6]}, FALL + "[5, 6]"),
    "a step twice": ({"steps": [5, 5]}, FALL + "[5, 5]"),
    "no steps": ({"steps": []}, FALL + "[]"),
    "8 steps, all shown": (
        {"steps": range(8)},
        FALL + "[0, 1, 2, 3, 4, 5, 6, 7]",
    ),
    "9 steps, 8 shown": (
        {"steps": range(9)},
        FALL + "[0, 1, 2, 3, 4, 5, 6, 7]...",
    ),
    "eta above 1": ({"eta": 1.5}, ETA + "1.5"),
    "eta below 0": ({"eta": -0.1}, ETA + "-0.1"),
    "eta no number": ({"eta": math.nan}, ETA + "nan"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_before_the_network_is_asked(case):
    """Steps that do not fall in 1..T, η outside [0, 1]: a sentence, and no call."""

    def eps_theta(x_t, t):
        raise AssertionError("asked")

    given_, says = REFUSED[case]
    args = {"steps": [100, 50], "eta": 0.0} | given_
    says = f"^{re.escape(says)}$"
    with pytest.raises(ValueError, match=says):
        ddim_sample(linear_schedule(100), eps_theta, normal(0, (2, 3)), **args)
    if "steps" in given_:
        with pytest.raises(ValueError, match=says):
            ddim_encode(
                linear_schedule(100), eps_theta, normal(0, (2, 3)), args["steps"]
            )


@pytest.mark.parametrize("choose", [uniform_steps, quadratic_steps])
@pytest.mark.parametrize("n", [0, 101, 2.5])
def test_more_steps_than_there_are_is_a_sentence(choose, n):
    """n of T steps: a whole number in 1..T."""
    says = rf"^of T = 100 steps, 1\.\.100 can be taken, got {n}$"
    with pytest.raises(ValueError, match=says):
        choose(100, n)


def test_a_step_leads_down():
    """t' < t: eq. 12's σ² would be negative else. Only its η = 0 form leads up."""
    s, x = Schedule(torch.full((9,), 0.1)), normal(0, (1, 2))
    t = torch.tensor([4])
    for t_prime in (t, t + 1):
        with pytest.raises(ValueError, match=r"^t - t_prime must lie in 1\.\.9, got"):
            ddim_step(s, x, t, t_prime, x, x)


@pytest.mark.parametrize("name", ["eps_hat", "z"])
def test_noise_of_another_shape_is_refused(name):
    """Each picture has its own ε̂ and z: a shape that merely broadcasts is a mistake."""
    s, x, t = linear_schedule(100), normal(0, (2, 3)), torch.tensor([5, 6])
    noise = {"eps_hat": x, "z": x} | {name: x[:1]}
    says = rf"^{name} must have the shape of the batch, \(2, 3\), got \(1, 3\)$"
    with pytest.raises(ValueError, match=says):
        ddim_step(s, x, t, t - 1, **noise)
    if name == "eps_hat":
        with pytest.raises(ValueError, match=says):
            ddim_ode_step(s, x, t, t - 1, noise[name])
