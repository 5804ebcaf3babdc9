"""Table 2 of the paper on the toy: six ways to train the reverse process.

    python examples/table_2.py             # 2 cores, about ten minutes
    python examples/table_2.py --steps 300 --seeds 1

What the network predicts (μ̃ or ε), the loss (L or a plain mean of squares) and the
variance (learned or β_t) change from row to row; data, network, Algorithm 1 and its
settings do not. Prints, for each row, the mean over the seeds and its standard error:
the bound of eq. 5, how many samples run away, how far the others lie outside the plane
of the gradients, and Kolmogorov's distance of their colours from uniform ones; beside
them what the exact predictor reaches. Writes in --out: samples.png, a row of pictures
for each row of the table, and figures.json.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.optim import Adam

from tinyddpm import MLP, L_simple, Schedule, linear_schedule, to_float, to_uint8
from tinyddpm.beyond.ablations import (
    L,
    L_mu,
    PTheta,
    TwoAnswers,
    bits_per_dim_p_theta,
    fixed_variance,
    learned_variance,
    mu_itself,
    sample_p_theta,
)
from tinyddpm.beyond.gradients import gradient_drawer, held_against_the_law
from tinyddpm.beyond.oracle import gradient_oracle
from tinyddpm.train import EMA, Hyperparameters, algorithm_1
from tinyddpm.workshop.files import write_whole
from tinyddpm.workshop.pictures import save_strip
from tinyddpm.workshop.progress import errors_as_sentences

SIZE, T, WIDTH = 5, 100, 64
SAMPLED, BOUNDED, SHOWN = 1000, 256, 11  # pictures
FAR = 2.0  # a sample with a number beyond it has run away: pictures end at 1
MEASURES = {  # and the digits that are printed
    "bits_per_dim": 3,
    "run_away_per_cent": 1,
    "rms_outside_the_plane": 2,
    "kolmogorov_distance": 3,
}


class Row(NamedTuple):
    """One row of Table 2: what is predicted, the objective, p_theta, and the loss."""

    predicts: str
    objective: str
    p_theta: Callable[[Schedule, Any], PTheta]
    loss: Callable[..., Tensor] | None  # of p_theta; None is L_simple, of the network

    def gradient(self, s: Schedule, net: nn.Module, *batch: Tensor) -> Tensor:
        """Line 5 of Algorithm 1 with this row's loss in place of L_simple."""
        if self.loss is None:
            loss = L_simple(s, net, *batch)
        else:
            loss = self.loss(s, self.p_theta(s, net), *batch)
        loss.backward()
        return loss.detach()


def mu_learned(s: Schedule, net: nn.Module) -> PTheta:
    return learned_variance(s, net, mu_itself)


def mu_fixed(s: Schedule, net: nn.Module) -> PTheta:
    return fixed_variance(s, net, mu_itself)


ROWS = (
    Row("μ̃", "L, learned diagonal Σ", mu_learned, L),
    Row("μ̃", "L, fixed isotropic Σ", mu_fixed, L),
    Row("μ̃", "‖μ̃ - μ_θ‖²", mu_fixed, L_mu),
    Row("ε", "L, learned diagonal Σ", learned_variance, L),
    Row("ε", "L, fixed isotropic Σ", fixed_variance, L),
    Row("ε", "‖ε - ε_θ‖² (L_simple)", fixed_variance, None),
)


def draw(B: int, generator: Generator | None) -> tuple[Tensor, ...]:
    """Gradients on the 256 levels, which eq. 13 needs."""
    return (to_float(to_uint8(gradient_drawer(SIZE, SIZE)(B, generator)[0])),)


def trained(row: Row, s: Schedule, h: Hyperparameters) -> nn.Module:
    """The moving average of a network that took all steps of Algorithm 1."""
    torch.manual_seed(h.seed)
    learned = "learned" in row.objective
    net = MLP((6 if learned else 3, SIZE, SIZE), WIDTH)
    net = TwoAnswers(net) if learned else net
    ema, optimiser = EMA(net, h.ema), Adam(net.parameters(), h.lr, fused=True)
    for _ in algorithm_1(s, net, draw, h, ema, optimiser, gradient=row.gradient):
        pass
    return ema.net


def measured(
    s: Schedule, p_theta: PTheta, seed: int
) -> tuple[dict[str, float], Tensor]:
    """The three measures, on pictures and noise that are the same for every row."""
    g = Generator().manual_seed(1_000_000 + seed)
    bits = bits_per_dim_p_theta(s, p_theta, *draw(BOUNDED, g), g)
    made = sample_p_theta(s, p_theta, (SAMPLED, 3, SIZE, SIZE), g)
    kept = made[(made.abs() <= FAR).flatten(1).all(1)]  # neither far nor nan
    law = held_against_the_law(kept) if len(kept) else dict.fromkeys(MEASURES, math.nan)
    found = law | {
        "bits_per_dim": float(bits.mean()),
        "run_away_per_cent": 100 * (1 - len(kept) / SAMPLED),
    }
    return {name: found[name] for name in MEASURES}, made.nan_to_num()


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """The mean over the seeds, and its standard error."""
    x = torch.tensor(values, dtype=torch.float64)
    return float(x.mean()), float(x.std() / len(x) ** 0.5) if len(x) > 1 else math.nan


def line(name: str, objective: str, seeds: list[dict[str, float]], more: str) -> str:
    """A row of the table that is printed."""
    text = f"{name:<4}{objective:<26}"
    for measure, digits in MEASURES.items():
        mean, error = mean_and_error([found[measure] for found in seeds])
        cell = f"{mean:.{digits}f}" + (
            f" ± {error:.{digits}f}" if error == error else ""
        )
        text += f"{cell if math.isfinite(mean) else 'unstable':>18}"
    return text + f"{more:>10}"


def verdict(table: list[list[dict[str, float]]]) -> list[str]:
    """Which of the paper's findings appear here, and whether its ordering does.

    A measure is lower where it is by more than twice the error of the difference.
    Samples are judged by how far they lie outside the plane, but where over 1 % run
    away they are worse than where fewer do: unstable.
    """

    def lower(a: int, b: int, measure: str) -> bool:
        (x, dx), (y, dy) = (
            mean_and_error([found[measure] for found in table[i]]) for i in (a, b)
        )
        if not (math.isfinite(x) and math.isfinite(y)):
            return math.isfinite(x) and not math.isfinite(y)
        gap = 0.0 if math.isnan(dx + dy) else 2 * math.hypot(dx, dy)
        return x < y - gap

    def unstable(a: int) -> bool:
        return mean_and_error([x["run_away_per_cent"] for x in table[a]])[0] > 1

    def better(a: int, b: int) -> bool:
        if unstable(a) or unstable(b):
            return not unstable(a)
        return lower(a, b, "rms_outside_the_plane")

    findings = {
        "L_simple has the best samples of all": all(better(5, i) for i in range(5)),
        "L has a lower bound than L_simple": lower(4, 5, "bits_per_dim"),
        "a learned Σ makes μ̃'s samples worse": better(1, 0),
        "a learned Σ makes ε's samples worse": better(4, 3),
        "plain squares make μ̃'s samples worse": better(1, 2),
        "μ̃ and ε are alike on L": not better(1, 4) and not better(4, 1),
    }
    said = [f"  {'yes' if true else 'no':4}{text}" for text, true in findings.items()]
    ordering = "appears" if all(findings.values()) else "does not appear as a whole"
    return ["what the paper found, and the toy:", *said, f"its ordering {ordering}"]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1500, help="of each training")
    parser.add_argument("--batch", type=int, default=128, help="pictures a step")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row")
    parser.add_argument(
        "--out", default="out/table_2", help="folder for what is written"
    )
    args = parser.parse_args(argv)
    if min(args.steps, args.batch, args.seeds) < 1:
        raise ValueError("--steps, --batch and --seeds must be at least 1")
    out, s = Path(args.out), linear_schedule(T)
    out.mkdir(parents=True, exist_ok=True)

    heads = ("bits/dim", "run away, %", "outside, of 255", "Kolmogorov D")
    print(" " * 30 + "".join(f"{head:>18}" for head in heads) + f"{'seconds':>10}")
    exact = fixed_variance(s, gradient_oracle(s, SIZE, SIZE))
    floors = [measured(s, exact, seed) for seed in range(args.seeds)]
    print(line("", "the exact predictor", [found for found, _ in floors], ""))
    table, strips = [], [("the exact predictor", floors[0][1])]
    for row in ROWS:
        began, found = time.perf_counter(), []
        for seed in range(args.seeds):
            h = Hyperparameters(
                *(args.steps, args.batch, 2e-3, 100, 0.0), ema=0.99, seed=seed
            )
            net = trained(row, s, h)
            figures, made = measured(s, row.p_theta(s, net), seed)
            found.append(figures)
            strips += [(f"{row.predicts}, {row.objective}", made)] if not seed else []
        seconds = f"{(time.perf_counter() - began) / args.seeds:.0f}"
        print(line(row.predicts, row.objective, found, seconds), flush=True)
        table.append(found)
    entropy = 2 * 8 / SIZE**2
    print(f"the data's entropy: {entropy:.3f} bits/dim; {args.seeds} seeds, ± 1 s.e.")
    print("\n".join(verdict(table)))

    blank = [""] * SHOWN
    save_strip(
        out / "samples.png", [(name, blank, to_uint8(x[:SHOWN])) for name, x in strips]
    )
    figures = {
        "settings": vars(args) | {"T": T, "size": SIZE},
        "exact": [found for found, _ in floors],
        "rows": [
            {"predicts": row.predicts, "objective": row.objective, "seeds": found}
            for row, found in zip(ROWS, table, strict=True)
        ],
    }
    with write_whole(out / "figures.json") as file:
        file.write(json.dumps(figures, indent=1, ensure_ascii=False).encode())


if __name__ == "__main__":
    with errors_as_sentences():
        main(sys.argv[1:])
