"""What the tests draw: schedules, steps, shapes, dtypes and batches.

Each limit has its reason beside it. Hypothesis does not seed torch, so random tensors
come from a drawn seed.
"""

import math
import warnings

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from tinyddpm.schedule import (
    Schedule,
    constant_schedule,
    linear_schedule,
    quadratic_schedule,
)

# Below, 1 - ᾱ_1 = β_1 keeps fewer than 10 digits of float64's 16 (it is 1 minus a
# number near 1), and laws could only be held to a loose tolerance.
MIN_BETA = 1e-6
# The largest β_t that published schedules use: α_t = 1 - β_t keeps its digits.
MAX_BETA = 0.999
# -log ᾱ_T at most: √ᾱ_T >= 1e-15, so that x̂_0 = .../√ᾱ_T does not overflow float32.
# The paper's schedule has 10.
MAX_NOISE = 30 * math.log(10)

seeds = st.integers(0, 2**31 - 1)
dtypes = st.sampled_from([torch.float64, torch.float32])
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)
choices_of_sigma2 = st.sampled_from(["beta", "beta_tilde"])


def share(percent: int) -> settings:
    """Settings with this share of the profile's examples (one at least): slow laws."""
    return settings(max_examples=max(1, settings.default.max_examples * percent // 100))


def normal(seed: int, shape: tuple[int, ...], dtype=torch.float64) -> Tensor:
    """N(0, I) of this shape: a function of the seed alone, drawn in float64."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)


def batches(shape: tuple[int, ...], dtype=torch.float64) -> st.SearchStrategy[Tensor]:
    """Tensors of N(0, 1) numbers, the first axis being the batch."""
    return seeds.map(lambda seed: normal(seed, shape, dtype))


def steps(s: Schedule, B: int, first: int = 1) -> st.SearchStrategy[Tensor]:
    """t of shape (B,) in first..T; the two ends often, since errors live there."""
    one = st.one_of(st.sampled_from([first, s.T]), st.integers(first, s.T))
    return st.lists(one, min_size=B, max_size=B).map(torch.tensor)


@st.composite
def beta_tables(draw, min_T: int = 1, max_T: int = 4000) -> Tensor:
    """Arbitrary valid β_1..β_T: a few drawn steps in any order, repeated up to max_T.

    Drawn as -log α_t, since those add up to -log ᾱ_T, and scaled down where their sum
    is above MAX_NOISE.
    """
    cost = st.floats(-math.log1p(-MIN_BETA), -math.log1p(-MAX_BETA))
    pattern = draw(st.lists(cost, min_size=min_T, max_size=min_T + 9))
    times = draw(st.one_of(st.just(1), st.integers(1, max_T // len(pattern))))
    costs = torch.tensor(pattern * times, dtype=torch.float64)
    costs = costs * min(1.0, MAX_NOISE / float(costs.sum()))
    return (-torch.expm1(-costs)).clamp(MIN_BETA, MAX_BETA)


@st.composite
def end_points(draw, min_T: int = 1, max_T: int = 4000) -> tuple[int, float, float]:
    """(T, β_1, β_T), rising or falling, with -log ᾱ_T <= MAX_NOISE."""
    T = draw(st.one_of(st.integers(min_T, 20), st.integers(min_T, max_T)))
    largest = min(MAX_BETA, -math.expm1(-MAX_NOISE / T))
    beta = st.floats(math.log(MIN_BETA), math.log(largest)).map(math.exp)
    return T, draw(beta), draw(beta)


@st.composite
def schedules(draw, min_T: int = 1, max_T: int = 4000) -> Schedule:
    """Arbitrary valid tables and the paper's three schedules, T = 1..thousands."""
    kind = draw(st.sampled_from(["table", "linear", "quadratic", "constant"]))
    if kind == "table":
        return Schedule(draw(beta_tables(min_T, max_T)))
    T, beta_1, beta_T = draw(end_points(min_T, max_T))
    with warnings.catch_warnings():  # signal left in x_T: a valid schedule all the same
        warnings.simplefilter("ignore")
        if kind == "linear":
            return linear_schedule(T, beta_1, beta_T)
        if kind == "quadratic":
            return quadratic_schedule(T, beta_1, beta_T)
        return constant_schedule(T, beta_T)
