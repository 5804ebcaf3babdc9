"""The bound as people read it: eq. 5 as a table, and figure 5."""

import math
from pathlib import Path

from torch import Tensor

from ..bound import Bound, rate_distortion
from .files import write_whole


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean over pictures, and its standard error (nan for a single picture)."""
    error = values.std() / len(values) ** 0.5 if len(values) > 1 else math.nan
    return float(values.mean()), float(error)


def table(bound: Bound, every_t: bool = True) -> str:
    """Eq. 5 in the order that Algorithm 3 sends it, the sum over t > 1 by tenths of t.

    After each tenth: the rate by then, and the RMSE of what its receiver sees (on the
    scale 0..255; left out unless `every_t` was asked for). Where t was sampled, a tenth
    of which none was drawn shows a dash: what the others are worth counts for it.
    """
    T = bound.mse.shape[1] - 1
    rate, distortion = rate_distortion(bound)
    lines = [f"{'bits/dim':24}{'mean':>10}{'± s.e.':>10}"]
    if every_t:
        lines[0] += f"{'rate':>12}{'RMSE':>9}"

    def line(name: str, values: Tensor, t: int | None = None) -> None:
        mean, error = mean_and_error(values)
        seen = ""
        if t is not None and every_t:
            seen = f"{rate[t]:12.5f} {distortion[t]:8.3f}"
        lines.append(f"{name:24}{mean:10.5f}{error:10.5f}{seen}")

    line("L_T", bound.L_T, T)
    for tenth in range(9, -1, -1):
        low, high = T * tenth // 10 + 1, T * (tenth + 1) // 10
        low = max(low, 2)  # at t = 1 it is L_0
        if low <= high:
            name, part = f"  t = {high}..{low}", slice(low, high + 1)
            if bound.mse[:, part].isnan().all():  # no t of it was drawn
                lines.append(f"{name:24}{'-':>10}{'-':>10}")
            else:
                line(name, bound.L_tm1[:, part].sum(1), low - 1)
    line("sum of L_{t-1}, t > 1", bound.L_tm1.sum(1))
    line("L_0", bound.L_0, 0)
    line("total, >= -log2 p(x_0)/D", bound.total)
    return "\n".join(lines)


def save_rate_distortion_plot(
    path: str | Path, rate: Tensor, distortion: Tensor
) -> None:
    """Figure 5: distortion and rate against the reverse steps, and each other (a PNG).

    Args:
        rate, distortion: (T + 1,), as `rate_distortion` returns them.
    """
    from matplotlib.figure import Figure

    T = len(rate) - 1
    steps, bits, error = range(1, T + 1), rate.cpu().flip(0)[:-1], distortion.cpu()
    error = error.flip(0)[:-1]  # from t = T, after one step, to t = 1, after T
    figure = Figure(figsize=(12, 3.6), dpi=100, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.plot(steps, error.tolist())
    left.set(xlabel="reverse process steps (T - t + 1)", ylabel="RMSE, 0..255")
    middle.plot(steps, bits.tolist())
    middle.set(xlabel="reverse process steps (T - t + 1)", ylabel="rate, bits/dim")
    right.plot(bits.tolist(), error.tolist(), marker=".")
    right.set(xlabel="rate, bits/dim", ylabel="RMSE, 0..255")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    with write_whole(path) as file:
        figure.savefig(file, format="png")
