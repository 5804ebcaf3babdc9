"""The variance schedule β_1..β_T and the tables that follow from it (sections 2, 4).

What lives here: the tables β_t, α_t, ᾱ_t, β̃_t, the three schedules that section 4
chose among, the one function that indexes a table with a batch of steps, and what
refuses a wrong t. What does not: any formula with an x in it (`forward.py`,
`sampler.py`).

Index convention. t is the paper's t, 1..T, everywhere. Tables have T + 1 entries, with
β_0 = 0 and α_0 = ᾱ_0 = 1 (x_0 is data without noise), so that ᾱ_{t-1} is
`alpha_bar[t - 1]` for every t. The authors' code, and the weights they published,
count from 0: their index is t - 1.
"""

import warnings
from typing import Any

import torch
from torch import Tensor


class Schedule:
    """Tables of β_t, α_t, ᾱ_t and β̃_t for t = 0..T, float64, never written to.

    Sections 2 and 3:  α_t = 1 - β_t,  ᾱ_t = ∏_{s=1}^t α_s,
    eq. 7:             β̃_t = (1 - ᾱ_{t-1}) / (1 - ᾱ_t) · β_t.

    Attributes:
        T: the number of steps.
        beta, alpha, alpha_bar, beta_tilde: (T + 1,), index 0 is "no noise yet".
    """

    def __init__(self, beta: Tensor) -> None:
        """Takes β_1..β_T as a tensor of shape (T,), T >= 1, each inside (0, 1).

        Raises:
            ValueError: for another shape, or a β_t outside (0, 1) or not finite, or
                tables that float64 cannot hold (ᾱ_T = 0, or 1 - ᾱ_1 = 0).
        """
        beta = torch.as_tensor(beta, dtype=torch.float64)
        if beta.ndim != 1 or len(beta) < 1:
            raise ValueError(
                f"beta must hold beta_1..beta_T, shape (T,) with T >= 1, "
                f"got shape {tuple(beta.shape)}"
            )
        wrong = ~((beta > 0) & (beta < 1))  # also true for nan
        if wrong.any():
            i = int(wrong.nonzero()[0])
            raise ValueError(
                f"every beta_t must lie inside (0, 1), got beta_{i + 1} = "
                f"{float(beta[i])} of T = {len(beta)}"
            )
        self.T = len(beta)
        self.beta = torch.cat([beta.new_zeros(1), beta])
        self.alpha = 1 - self.beta
        self.alpha_bar = self.alpha.cumprod(0)
        if self.alpha_bar[1] == 1 or self.alpha_bar[-1] == 0:
            raise ValueError(
                f"float64 cannot hold this schedule: alpha_bar_1 = "
                f"{float(self.alpha_bar[1])}, alpha_bar_T = "
                f"{float(self.alpha_bar[-1])}; choose a larger beta_1 or a smaller T"
            )
        self.beta_tilde = torch.zeros_like(self.beta)  # β̃_0 and β̃_1 are 0
        one_minus = 1 - self.alpha_bar
        self.beta_tilde[1:] = one_minus[:-1] / one_minus[1:] * beta

    def sigma2(self, choice: str) -> Tensor:
        """σ_t² of section 3.2 as a table (T + 1,): "beta" is β_t, "beta_tilde" is β̃_t.

        The first is the best choice for x_0 ~ N(0, I), the second for a single x_0.
        "fixedlarge" is what the authors' code does under that name for the first: β_t,
        but β̃_2 at t = 1. Only eq. 13 (`decoder.py`), and eq. 12's factor at t = 1, see
        the difference: the last step of Algorithm 2 adds no noise.
        """
        if choice == "beta":
            return self.beta
        if choice == "beta_tilde":
            return self.beta_tilde
        if choice == "fixedlarge" and self.T > 1:
            return torch.cat([self.beta[:1], self.beta_tilde[2:3], self.beta[2:]])
        raise ValueError(
            f"sigma2 must be 'beta', 'beta_tilde' or, for T >= 2, 'fixedlarge', got "
            f"{choice!r} and T = {self.T}"
        )

    def to(self, device: torch.device | str) -> "Schedule":
        """The same schedule with its tables on another device."""
        moved = object.__new__(Schedule)
        moved.T = self.T
        moved.beta = self.beta.to(device)
        moved.alpha = self.alpha.to(device)
        moved.alpha_bar = self.alpha_bar.to(device)
        moved.beta_tilde = self.beta_tilde.to(device)
        return moved

    def __repr__(self) -> str:
        return (
            f"Schedule(T={self.T}, beta_1={float(self.beta[1]):g}, "
            f"beta_T={float(self.beta[-1]):g}, "
            f"alpha_bar_T={float(self.alpha_bar[-1]):.3g})"
        )


def _check_T(T: int) -> None:
    if not isinstance(T, int) or T < 1:
        raise ValueError(f"T must be a whole number of steps >= 1, got {T!r}")


def _end_points(
    T: int, beta_1: float | None, beta_T: float | None
) -> tuple[float, float]:
    """The given end points, or the paper's 1e-4 and 0.02 scaled by 1000 / T.

    ᾱ_T is about exp(-T (β_1 + β_T) / 2), so scaling by 1000 / T keeps the noise that
    T steps add the same. Below T = 20 that asks for β_T >= 1: give both then.
    """
    _check_T(T)
    if beta_1 is None and beta_T is None:
        if T <= 20:
            raise ValueError(
                f"the paper's end points scaled to T = {T} give beta_T = {20 / T:g}, "
                f"which is not below 1; give beta_1 and beta_T, or T > 20"
            )
        return 1e-4 * 1000 / T, 0.02 * 1000 / T
    if beta_1 is None or beta_T is None:
        raise ValueError("give both beta_1 and beta_T, or neither")
    return beta_1, beta_T


def _warn_if_signal_is_left(s: Schedule) -> Schedule:
    """L_T is not small if x_T still holds x_0: p(x_T) = N(0, I) is then wrong."""
    left = float(s.alpha_bar[-1].sqrt())
    if left > 0.1:
        warnings.warn(
            f"x_T keeps {left:.0%} of the amplitude of x_0 (√ᾱ_T = {left:.2f}), so "
            f"N(0, I) is the wrong start for sampling; use more steps or larger beta "
            f"(without end points they are scaled to T = {s.T})",
            stacklevel=3,
        )
    return s


def linear_schedule(
    T: int = 1000, beta_1: float | None = None, beta_T: float | None = None
) -> Schedule:
    """Section 4: β_t = β_1 + (t - 1)/(T - 1) · (β_T - β_1), 1e-4 to 0.02 at T = 1000.

    For another T the paper's end points are scaled by 1000/T, unless both are given.
    Warns when x_T keeps more than a tenth of the amplitude of x_0.
    """
    beta_1, beta_T = _end_points(T, beta_1, beta_T)
    beta = torch.linspace(beta_1, beta_T, T, dtype=torch.float64)
    return _warn_if_signal_is_left(Schedule(beta))


def quadratic_schedule(
    T: int = 1000, beta_1: float | None = None, beta_T: float | None = None
) -> Schedule:
    """√β_t linear in t: β_t = (√β_1 + (t - 1)/(T - 1) · (√β_T - √β_1))².

    The paper chose among constant, linear and quadratic schedules (section 4); this
    form is the one of the authors' code. End points as in `linear_schedule`.
    """
    beta_1, beta_T = _end_points(T, beta_1, beta_T)
    if not (beta_1 > 0 and beta_T > 0):
        raise ValueError(
            f"beta_1 and beta_T must lie inside (0, 1), got {beta_1} and {beta_T}"
        )
    root = torch.linspace(beta_1**0.5, beta_T**0.5, T, dtype=torch.float64)
    return _warn_if_signal_is_left(Schedule(root**2))


def constant_schedule(T: int = 1000, beta: float | None = None) -> Schedule:
    """β_t = β for every t; by default `linear_schedule`'s β_T for this T."""
    _check_T(T)
    if beta is None:
        beta = _end_points(T, None, None)[1]
    table = torch.full((T,), beta, dtype=torch.float64)
    return _warn_if_signal_is_left(Schedule(table))


def check_index(name: str, index: Any, x: Tensor) -> None:
    """Refuses t, or a class c, unless it is a LongTensor of shape (B,) beside x."""
    if not isinstance(index, Tensor) or index.dtype != torch.long:
        given = index.dtype if isinstance(index, Tensor) else type(index).__name__
        raise ValueError(f"{name} must be a LongTensor of shape (B,), got {given}")
    if x.ndim < 1 or index.shape != x.shape[:1]:
        raise ValueError(
            f"{name} must have shape (B,), one number for each of the B items of a "
            f"batch of shape {tuple(x.shape)}, got {tuple(index.shape)}"
        )


def check_t(s: Schedule, t: Any, x: Tensor, first: int = 1) -> None:
    """Refuses t unless it is a LongTensor of shape (B,), in first..T, beside x.

    On a GPU, and where this is compiled, to look at the values would make the host
    wait, or break the graph. There the kernel is told to stop below `first`; above T
    `at` stops it. (Compiled, `at` alone would read -1 as T.)
    """
    if not x.is_floating_point():
        raise ValueError(
            f"pictures must be floating point, got {x.dtype}; to_float scales 8-bit "
            f"pictures to [-1, 1]"
        )
    check_index("t", t, x)
    if t.device.type != "cpu" or torch.compiler.is_compiling():
        message = f"t must lie in {first}..{s.T}, got one below {first}"
        torch._assert_async((t >= first).all(), message)
    elif len(t) > 0:
        low, high = int(t.min()), int(t.max())
        if low < first or high > s.T:
            raise ValueError(f"t must lie in {first}..{s.T}, got {low}..{high}")


def at(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """table[t] shaped (B, 1, ..., 1) to multiply `like` (B, ...); stays float64.

    Each formula is evaluated in float64 and rounded once, at its end, to the data's
    dtype: in float32, 1 - ᾱ_1 = 1e-4 would already be wrong in its fourth digit.
    index_select refuses -1, which plain indexing would read as T.
    """
    entries = table.to(t.device).index_select(0, t)
    return entries.view(-1, *[1] * (like.ndim - 1))
