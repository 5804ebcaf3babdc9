"""The corners where mistakes live are among what the tests draw, and often enough.

A law over all schedules proves little about T = 1 if hypothesis never draws it. An
empty batch is no corner of these: it has tests of its own.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tinyddpm import Schedule

from .strategies import MAX_BETA, MIN_BETA, dtypes, schedules, shapes, steps


class Batch(NamedTuple):
    """What the laws of all equations draw."""

    s: Schedule
    shape: tuple[int, ...]
    dtype: torch.dtype
    t: Tensor


@st.composite
def batches(draw) -> Batch:
    s, shape, dtype = draw(schedules()), draw(shapes), draw(dtypes)
    return Batch(s, shape, dtype, draw(steps(s, shape[0])))


# corner -> whether it is one, and the least share of the examples
CORNERS: dict[str, tuple[Callable[[Batch], bool], float]] = {
    "T = 1": (lambda x: x.s.T == 1, 0.04),
    "T = 2": (lambda x: x.s.T == 2, 0.02),
    "T > 500": (lambda x: x.s.T > 500, 0.15),
    "beta near 0": (lambda x: bool(x.s.beta[1:].min() < 2 * MIN_BETA), 0.05),
    "beta near 1": (lambda x: bool(x.s.beta.max() > 0.9 * MAX_BETA), 0.05),
    "beta of many sizes": (
        lambda x: bool(x.s.beta[1:].max() > 10 * x.s.beta[1:].min()),
        0.15,
    ),
    "x_T is noise": (lambda x: bool(x.s.alpha_bar[-1] < 1e-6), 0.1),
    "x_T is signal": (lambda x: bool(x.s.alpha_bar[-1] > 0.01), 0.3),
    "one picture": (lambda x: x.shape[0] == 1, 0.2),
    "several pictures": (lambda x: x.shape[0] > 1, 0.2),
    "numbers": (lambda x: len(x.shape) == 1, 0.2),
    "four axes": (lambda x: len(x.shape) == 4, 0.1),
    "float64": (lambda x: x.dtype == torch.float64, 0.3),
    "float32": (lambda x: x.dtype == torch.float32, 0.3),
    "t = 1": (lambda x: 1 in x.t, 0.3),
    "t = T > 1": (lambda x: x.s.T > 1 and x.s.T in x.t, 0.15),
    "1 < t < T": (lambda x: bool(((x.t > 1) & (x.t < x.s.T)).any()), 0.15),
    "mixed t": (lambda x: len(x.t.unique()) > 1, 0.15),
}


@pytest.fixture(scope="module")
def examples() -> list[Batch]:
    """Always the same ones, whatever the profile."""
    found = []

    @settings(
        max_examples=150,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(batches())
    def keep(x: Batch) -> None:
        found.append(x)

    keep()
    return found


@pytest.mark.parametrize("corner", CORNERS)
def test_a_corner_is_drawn(examples, corner):
    """Its share of 150 examples is at least the one that stands beside it."""
    is_one, least = CORNERS[corner]
    share = sum(map(is_one, examples)) / len(examples)
    print(f"{corner}: {share:.0%}")
    assert share >= least
