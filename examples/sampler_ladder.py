"""Samplers with 5 to all of 1000 steps on the toy, where distances are exact.

    python examples/sampler_ladder.py             # 2 cores, about ten minutes
    python examples/sampler_ladder.py --exact     # the exact predictor, to 100 steps

Algorithm 2 with σ² = β and β̃ on a strided schedule (Nichol & Dhariwal 2021), which with
all steps is Algorithm 2 itself, and DDIM with η = 0 (Song et al. 2020) on uniform and
quadratic steps, all of one network. Prints how far samples lie outside the plane of the
gradients, Kolmogorov's distance of their colours from uniform ones, and the bound,
where the sampler has one. Writes ladder.png and ladder.json in --out.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from tinyddpm import MLP, Schedule, bits_per_dim, linear_schedule, sample
from tinyddpm.beyond.ddim import ddim_sample, quadratic_steps, uniform_steps
from tinyddpm.beyond.gradients import (
    gradient_drawer,
    gradient_images,
    held_against_the_law,
)
from tinyddpm.beyond.improved import strided
from tinyddpm.beyond.oracle import gradient_oracle
from tinyddpm.data import to_float, to_uint8
from tinyddpm.sampler import EpsTheta
from tinyddpm.train import Hyperparameters, fit
from tinyddpm.workshop.files import write_whole
from tinyddpm.workshop.progress import errors_as_sentences

SIZE, T = 8, 1000
STEPS = (5, 10, 20, 50, 100, T)
SAMPLED, BOUNDED = 500, 64  # pictures
SHAPE = (SAMPLED, 3, SIZE, SIZE)


def ancestral(sigma2: str) -> Callable[..., Tensor]:
    """Algorithm 2 on the strided schedule."""

    def draw(s: Schedule, eps_theta: EpsTheta, n: int, g: Generator) -> Tensor:
        return sample(*strided(s, eps_theta, uniform_steps(T, n)), SHAPE, g, sigma2)

    return draw


def ddim(choose: Callable[[int, int], list[int]]) -> Callable[..., Tensor]:
    """DDIM with η = 0."""

    def draw(s: Schedule, eps_theta: EpsTheta, n: int, g: Generator) -> Tensor:
        x_T = torch.randn(SHAPE, generator=g)
        return ddim_sample(s, eps_theta, x_T, choose(T, n))

    return draw


# the name, how samples are drawn, and the σ² of its bound
SAMPLERS = (
    ("strided, β", ancestral("beta"), "beta"),
    ("strided, β̃", ancestral("beta_tilde"), "beta_tilde"),
    ("DDIM, uniform", ddim(uniform_steps), None),
    ("DDIM, quadratic", ddim(quadratic_steps), None),
)


def trained(s: Schedule, steps: int) -> EpsTheta:
    """The toy's network after Algorithm 1."""
    torch.manual_seed(0)
    h = Hyperparameters(steps, batch=256, lr=2e-3, lr_end=0.0, warmup=100, ema=0.99)
    return fit(s, MLP((3, SIZE, SIZE)), gradient_drawer(SIZE, SIZE), h)


def rung(
    s: Schedule, eps_theta: EpsTheta, sampler: tuple[str, Any, str | None], n: int
) -> dict[str, Any]:
    """One line of the table: a sampler with n steps, from the x_T of all others."""
    name, draw, sigma2 = sampler
    began = time.perf_counter()
    x_0 = draw(s, eps_theta, n, Generator().manual_seed(1))
    seconds = time.perf_counter() - began
    law = held_against_the_law(x_0)
    bits = None
    if sigma2 is not None:
        g = Generator().manual_seed(2)
        pictures = to_float(to_uint8(gradient_images(BOUNDED, SIZE, SIZE, g)))
        fewer, at_tau = strided(s, eps_theta, uniform_steps(T, n))
        bits = float(bits_per_dim(fewer, at_tau, pictures, g, sigma2).total.mean())
    return {
        "sampler": name,
        "steps": n,
        "rms_outside_the_plane": law["rms_outside_the_plane"],
        "kolmogorov_distance": law["kolmogorov_distance"],
        "bits_per_dim": bits,
        "seconds": seconds,
    }


def save_plot(path: Path, rungs: list[dict[str, Any]]) -> None:
    """The three measures against the number of steps, a curve for each sampler."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), dpi=100, layout="constrained")
    labels = {
        "rms_outside_the_plane": "RMS outside the plane, of 255 levels",
        "kolmogorov_distance": "Kolmogorov's distance of the colours",
        "bits_per_dim": "bound, bits/dim",
    }
    for axes, (measure, label) in zip(
        figure.subplots(1, 3), labels.items(), strict=True
    ):
        for name, _, _ in SAMPLERS:
            points = [
                (r["steps"], r[measure])
                for r in rungs
                if r["sampler"] == name and r[measure] is not None
            ]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", label=name)
        axes.set(xlabel="steps", ylabel=label, xscale="log", yscale="log")
        axes.grid(alpha=0.3, which="both")
        if measure == "kolmogorov_distance":
            axes.legend()
    with write_whole(path) as file:
        figure.savefig(file, format="png")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=int, default=2000, help="gradient steps")
    parser.add_argument("--exact", action="store_true", help="the exact predictor")
    parser.add_argument(
        "--out", default="out/ladder", help="folder for what is written"
    )
    args = parser.parse_args(argv)
    if args.train < 1:
        raise ValueError(f"--train must be at least 1, got {args.train}")
    out, s = Path(args.out), linear_schedule(T)
    out.mkdir(parents=True, exist_ok=True)
    exact = gradient_oracle(s, SIZE, SIZE)
    eps_theta = exact if args.exact else trained(s, args.train)

    heads = ("steps", "outside, of 255", "Kolmogorov D", "bits/dim", "seconds")
    print(f"{'sampler':16}" + "".join(f"{head:>17}" for head in heads))
    rungs = []
    for sampler in SAMPLERS:
        for n in STEPS[:-1] if args.exact or "quadratic" in sampler[0] else STEPS:
            r = rung(s, eps_theta, sampler, n)
            bits = "-" if r["bits_per_dim"] is None else f"{r['bits_per_dim']:.3f}"
            print(
                f"{r['sampler']:16}{n:17}{r['rms_outside_the_plane']:17.2f}"
                f"{r['kolmogorov_distance']:17.4f}{bits:>17}{r['seconds']:17.1f}",
                flush=True,
            )
            rungs.append(r)
    print(
        f"{SAMPLED} samples {SIZE}x{SIZE}, colours known to D = "
        f"{1.36 / (6 * SAMPLED) ** 0.5:.3f} at 95 %; bound of {BOUNDED} pictures, "
        f"entropy {16 / SIZE**2:.3f}; {torch.get_num_threads()} threads"
    )
    save_plot(out / "ladder.png", rungs)
    with write_whole(out / "ladder.json") as file:
        settings = vars(args) | {"T": T, "size": SIZE}
        text = json.dumps({"settings": settings, "rungs": rungs}, indent=1)
        file.write(text.encode())


if __name__ == "__main__":
    with errors_as_sentences():
        main(sys.argv[1:])
