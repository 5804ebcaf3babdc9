"""The variance schedule β_1..β_T and the tables that follow from it (sections 2 and 4).

t is the paper's t, 1..T, everywhere. Tables have T + 1 entries, with β_0 = 0 and
α_0 = ᾱ_0 = 1 (x_0 has no noise), so that ᾱ_{t-1} is `alpha_bar[t - 1]` for every t. The
authors' code, and the weights they published, count from 0: their index is t - 1.
"""

import operator
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Schedule:
    """Tables beta, alpha, alpha_bar, beta_tilde for t = 0..T, (T + 1,), float64.

    Sections 2 and 3:  α_t = 1 - β_t,  ᾱ_t = ∏_{s=1}^t α_s,
    eq. 7:             β̃_t = (1 - ᾱ_{t-1}) / (1 - ᾱ_t) · β_t.
    """

    def __init__(self, beta: Tensor) -> None:
        """Takes β_1..β_T as a tensor of shape (T,), T >= 1, each inside (0, 1).

        ValueError for anything else, or where float64 rounds ᾱ_T or 1 - ᾱ_1 to 0.
        """
        beta = torch.as_tensor(beta, dtype=torch.float64)
        if beta.ndim != 1 or len(beta) < 1:
            given = f"got shape {tuple(beta.shape)}"
            raise ValueError(f"beta must be beta_1..beta_T, (T,) with T >= 1, {given}")
        wrong = (~((beta > 0) & (beta < 1))).nonzero().flatten()  # nan is wrong too
        if len(wrong):
            given = f"beta_{int(wrong[0]) + 1} = {float(beta[wrong[0]])}"
            raise ValueError(f"every beta_t must lie inside (0, 1), got {given}")
        self.T = len(beta)
        self.beta = torch.cat([beta.new_zeros(1), beta])
        self.alpha = 1 - self.beta
        self.alpha_bar = self.alpha.cumprod(0)
        one_minus = 1 - self.alpha_bar
        self.beta_tilde = torch.zeros_like(self.beta)  # β̃_0 and β̃_1 are 0
        self.beta_tilde[1:] = one_minus[:-1] / one_minus[1:] * beta
        first, last = self.alpha_bar[[1, -1]].tolist()
        if first == 1 or last == 0:
            ends = f"alpha_bar_1 = {first}, alpha_bar_T = {last}"
            how = "choose a larger beta_1 or a smaller T"
            raise ValueError(f"float64 cannot hold this schedule: {ends}; {how}")

    def sigma2(self, choice: str) -> Tensor:
        """σ_t² of section 3.2 as a table (T + 1,): "beta" is β_t, "beta_tilde" is β̃_t.

        The first is the best choice for x_0 ~ N(0, I), the second for a single x_0.
        "fixedlarge", from the authors' code, is β_t but β̃_2 at t = 1: that matters only
        in eq. 13, and in eq. 12 at t = 1, since Algorithm 2 adds no noise there.
        """
        if choice == "beta":
            return self.beta
        if choice == "beta_tilde":
            return self.beta_tilde
        if choice == "fixedlarge" and self.T > 1:
            return torch.cat([self.beta[:1], self.beta_tilde[2:3], self.beta[2:]])
        raise ValueError(
            f"sigma2 must be 'beta', 'beta_tilde' or, for T >= 2, 'fixedlarge' (which "
            f"eq. 13 takes for 'beta_tilde' too), got {choice!r} and T = {self.T}"
        )

    def to(self, device: torch.device | str) -> "Schedule":
        """The same schedule with its tables on another device."""
        moved = object.__new__(Schedule)
        moved.T = self.T
        for name in ("beta", "alpha", "alpha_bar", "beta_tilde"):
            setattr(moved, name, getattr(self, name).to(device))
        return moved

    def __repr__(self) -> str:
        ends = f"beta_1={self.beta[1]:g}, beta_T={self.beta[-1]:g}"
        return f"Schedule(T={self.T}, {ends}, alpha_bar_T={self.alpha_bar[-1]:.3g})"


def linear_schedule(
    T: int = 1000, beta_1: float | None = None, beta_T: float | None = None
) -> Schedule:
    """Section 4: β_t = β_1 + (t - 1)/(T - 1) · (β_T - β_1), 1e-4 to 0.02 at T = 1000.

    For another T the paper's end points are scaled by 1000/T, unless both are given.
    Warns when x_T keeps more than a tenth of the amplitude of x_0.
    """
    T, beta_1, beta_T = _end_points(T, beta_1, beta_T)
    beta = torch.linspace(beta_1, beta_T, T, dtype=torch.float64)
    return _warn_if_signal_is_left(Schedule(beta))


def quadratic_schedule(
    T: int = 1000, beta_1: float | None = None, beta_T: float | None = None
) -> Schedule:
    """App. B: √β_t linear in t (the authors' code); otherwise as `linear_schedule`"""
    T, beta_1, beta_T = _end_points(T, beta_1, beta_T)
    root = torch.linspace(beta_1**0.5, beta_T**0.5, T, dtype=torch.float64)
    return _warn_if_signal_is_left(Schedule(root**2))


def constant_schedule(T: int = 1000, beta: float | None = None) -> Schedule:
    """App. B: β_t = β for every t; by default `linear_schedule`'s β_T for this T"""
    T, _, beta = _end_points(T, beta, beta)
    beta_t = torch.full((T,), beta, dtype=torch.float64)
    return _warn_if_signal_is_left(Schedule(beta_t))


def at(
    table: Tensor | Sequence[Tensor],
    t: Tensor,
    like: Tensor,
    first: int = 1,
    **others: Tensor,
) -> Tensor:
    """table[t], shaped (B, 1, ..., 1) to multiply `like` (B, ...); stays float64.

    The only place that indexes a table, and the door of every equation. Formulas are
    evaluated in float64 and rounded once, at their end, to the data's dtype: in float32
    1 - ᾱ_1 = 1e-4 would already be wrong in its fifth significant digit.

    Args: table (T + 1,), or a list of tables, whose entries are stacked; t (B,), long,
        first..T; like, floating point; others, which must have its shape.
    """
    tables = [table] if isinstance(table, Tensor) else table
    if not isinstance(like, Tensor) or not like.is_floating_point():
        given = like.dtype if isinstance(like, Tensor) else type(like)
        how = "to_float scales 8-bit pictures to [-1, 1]"
        raise ValueError(f"pictures must be floating point, got {given}; {how}")
    check_index("t", t, like)
    check_range("t", t, first, len(tables[0]) - 1)
    for name, other in others.items():
        same_shape(name, other, like)
    shape = (-1, *[1] * (like.ndim - 1))
    # index_select refuses -1, which plain indexing would read as T
    found = [x.to(t.device).index_select(0, t).view(shape) for x in tables]
    return found[0] if isinstance(table, Tensor) else torch.stack(found)


def whole(names: str, given: Any, least: int = 1) -> list[int]:
    """The numbers as Python's own int; ValueError unless each is whole and >= least."""
    try:
        found = [operator.index(x) for x in given]
        if min(found, default=0) >= least:  # there may be none where 0 would do
            return found
    except TypeError:  # a float, a string, a tensor of floats; no list of numbers
        pass
    shown = str(given).strip("[]")
    raise ValueError(f"{names} must be whole and at least {least}, got {shown}")


def same_shape(name: str, given: Tensor, like: Tensor) -> None:
    """A shape that merely broadcasts would silently share noise between pictures."""
    if not isinstance(given, Tensor) or given.shape != like.shape:
        found = tuple(given.shape) if isinstance(given, Tensor) else type(given)
        shapes = f"{tuple(like.shape)}, got {found}"
        raise ValueError(f"{name} must have the shape of the batch, {shapes}")


def check_index(name: str, index: Any, x: Tensor) -> None:
    """Refuses t, or a class c, unless it is a LongTensor (B,) beside x (B, ...)."""
    if not isinstance(index, Tensor) or index.dtype != torch.long:
        given = index.dtype if isinstance(index, Tensor) else type(index).__name__
        raise ValueError(f"{name} must be a LongTensor of shape (B,), got {given}")
    if x.ndim < 1 or index.shape != x.shape[:1]:
        batch = f"one number for each of the B items of a batch {tuple(x.shape)}"
        raise ValueError(f"{name} must be (B,), {batch}, got {tuple(index.shape)}")


def check_range(name: str, index: Tensor, first: int, last: int) -> None:
    """Refuses t, or a class c, outside first..last.

    Looking at the values would make the host wait for a GPU, or break a compiled graph.
    There the kernel itself aborts below `first`, and the look-up above the table.
    """
    if index.device.type != "cpu" or torch.compiler.is_compiling():
        message = f"{name} must lie in {first}..{last}, got one below {first}"
        torch._assert_async((index >= first).all(), message)
    elif len(index):
        low, high = int(index.min()), int(index.max())
        if low < first or high > last:
            raise ValueError(f"{name} must lie in {first}..{last}, got {low}..{high}")


def _end_points(
    T: int, beta_1: float | None, beta_T: float | None
) -> tuple[int, float, float]:
    """T and the given end points, or the paper's 1e-4 and 0.02 scaled by 1000 / T.

    To first order in β, ᾱ_T is exp(-T (β_1 + β_T) / 2): T steps add the same noise.
    """
    (T,) = whole("T", [T])
    if beta_1 is None and beta_T is None:
        if T <= 20:
            raise ValueError(
                f"the paper's end points scaled to T = {T} give beta_T = {20 / T:g}, "
                f"which is not below 1; give beta_1 and beta_T, or T > 20"
            )
        return T, 1e-4 * 1000 / T, 0.02 * 1000 / T
    if beta_1 is None or beta_T is None:
        raise ValueError("give both beta_1 and beta_T, or neither")
    if not all(hasattr(x, "__float__") and 0 < x < 1 for x in (beta_1, beta_T)):
        raise ValueError(f"beta must lie inside (0, 1), got {beta_1} and {beta_T}")
    return T, float(beta_1), float(beta_T)


def _warn_if_signal_is_left(s: Schedule) -> Schedule:
    """L_T is not small if x_T still holds x_0: p(x_T) = N(0, I) is then wrong."""
    left = float(s.alpha_bar[-1].sqrt())
    if left > 0.1:
        warnings.warn(
            f"x_T keeps {left:.0%} of the amplitude of x_0 (√ᾱ_T = {left:.2f}), so "
            f"N(0, I) is the wrong start for sampling; use more steps or larger beta "
            f"(end points that are not given are scaled to T = {s.T})",
            stacklevel=3,
        )
    return s
