"""Samplers with 5 to all of the steps, on the toy or on a network of your own.

    python examples/sampler_ladder.py             # 2 cores, minutes
    python examples/sampler_ladder.py --exact     # the exact predictor, to 100 steps
    python examples/sampler_ladder.py --checkpoint out/train/checkpoint.pt \
        --data train-images-idx3-ubyte.gz --held-out 2000 --clip-x-0

Algorithm 2 with σ² = β and β̃ on a strided schedule (Nichol & Dhariwal 2021), which with
all steps is Algorithm 2 itself, and DDIM with η = 0 (Song et al. 2020) on uniform and
quadratic steps, all of one network. On the toy, where distances are exact, it prints
how far samples lie outside the plane of the gradients, Kolmogorov's distance of their
colours from uniform ones, and the bound, where the sampler has one. With --checkpoint
it prints the Fréchet distance of samples from held-out pictures that `score.py` takes,
beside that of as many real ones. Writes ladder.png and ladder.json in --out.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import score
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
from tinyddpm.workshop.checkpoint import load_checkpoint, rebuild
from tinyddpm.workshop.files import write_whole
from tinyddpm.workshop.machine import precision_to_sample
from tinyddpm.workshop.progress import errors_as_sentences
from tinyddpm.workshop.settings import pick_device
from tinyddpm.workshop.speed import faster

SIZE, T = 8, 1000
STEPS = (5, 10, 20, 50, 100)  # and all
SAMPLED, BOUNDED = 500, 64  # pictures
SHAPE = (SAMPLED, 3, SIZE, SIZE)


Draw = Callable[[Schedule, EpsTheta, int, tuple[int, ...], Generator, bool], Tensor]


def ancestral(sigma2: str) -> Draw:
    """Algorithm 2 on the strided schedule."""
    return lambda s, eps_theta, n, shape, g, clip_x_0: sample(
        *strided(s, eps_theta, uniform_steps(s.T, n)), shape, g, sigma2, clip_x_0
    )


def ddim(choose: Callable[[int, int], list[int]]) -> Draw:
    """DDIM with η = 0."""
    return lambda s, eps_theta, n, shape, g, clip_x_0: ddim_sample(
        s, eps_theta, torch.randn(shape, generator=g, device=g.device),
        choose(s.T, n), clip_x_0=clip_x_0,
    )  # fmt: skip


# the name, how samples are drawn, and the σ² of its bound
SAMPLERS: tuple[tuple[str, Draw, str | None], ...] = (
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
    s: Schedule, eps_theta: EpsTheta, sampler: tuple[str, Draw, str | None], n: int
) -> dict[str, Any]:
    """One line of the table: a sampler with n steps, from the x_T of all others."""
    name, draw, sigma2 = sampler
    began = time.perf_counter()
    x_0 = draw(s, eps_theta, n, SHAPE, Generator().manual_seed(1), False)
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


def rungs_of(steps: tuple[int, ...], all_of_them: int | None) -> Iterator[Any]:
    """(a sampler, its number of steps) for each line of a table."""
    for sampler in SAMPLERS:
        for n in steps:
            if all_of_them is None or n < all_of_them:
                yield sampler, n
        if all_of_them is not None and "quadratic" not in sampler[0]:  # the same then
            yield sampler, all_of_them


def of_the_toy(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The lines of the toy's table, printed as they come."""
    s = linear_schedule(T)
    exact = gradient_oracle(s, SIZE, SIZE)
    eps_theta = exact if args.exact else trained(s, args.train)
    heads = ("steps", "outside, of 255", "Kolmogorov D", "bits/dim", "seconds")
    print(f"{'sampler':16}" + "".join(f"{head:>17}" for head in heads))
    rungs = []
    for sampler, n in rungs_of(STEPS, None if args.exact else T):
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
    return rungs


def of_a_checkpoint(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The same for a checkpoint: the distance of `score.py`, and of real pictures."""
    device, checkpoint = pick_device(args.device), load_checkpoint(args.checkpoint)
    score.held_out_in_training(args, checkpoint.config)
    s, net = Schedule(checkpoint.beta).to(device), rebuild(checkpoint).to(device)
    (v, c), (held, _) = score.read(args, checkpoint.shape, device)
    n = min(args.samples, len(held) // 2)
    if n < 2:
        raise ValueError(f"{len(held)} held-out pictures are too few; 4 at least")
    bf16, why = precision_to_sample(device, None, checkpoint.config.get("bf16"))
    print(f"{n} samples and as many real pictures, each from {n} others; {why}")
    classes = None
    if getattr(net, "num_classes", None):
        classes = torch.arange(n, device=device) % net.num_classes
    eps_theta, seen = faster(net, bf16, compiled=False), score.learn(v, c, args.seed)
    heads = ("steps", "distance", "in floors", "seconds")
    print(f"{'sampler':16}" + "".join(f"{head:>17}" for head in heads))
    rungs = []
    for (name, draw, _), steps in rungs_of(STEPS, s.T):
        g, parts, began = (
            Generator(device).manual_seed(args.seed),
            [],
            time.perf_counter(),
        )
        for i in torch.arange(n, device=device).split(args.chunk):
            of_class = (
                eps_theta if classes is None else partial(eps_theta, c=classes[i])
            )
            shape = (len(i), *checkpoint.shape)
            x_0 = draw(s, of_class, steps, shape, g, args.clip_x_0)
            parts.append(to_uint8(x_0))
        seconds = time.perf_counter() - began
        found = score.compare(torch.cat(parts), held, seen, n)
        mean, floor = (sum(x) / len(x) for x in (found["samples"], found["real"]))
        print(f"{name:16}{steps:17}{mean:17.3f}{mean / floor:17.2f}{seconds:17.1f}")
        rungs.append(
            {
                "sampler": name,
                "steps": steps,
                "distance": mean,
                "floor": floor,
                "seconds": seconds,
            }
        )
    return rungs


LABELS = {
    "rms_outside_the_plane": "RMS outside the plane, of 255 levels",
    "kolmogorov_distance": "Kolmogorov's distance of the colours",
    "bits_per_dim": "bound, bits/dim",
    "distance": "Fréchet distance from held-out pictures",
}


def save_plot(path: Path, rungs: list[dict[str, Any]]) -> None:
    """Each measure against the number of steps, a curve for each sampler."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    steps = sorted({r["steps"] for r in rungs})
    labels = {key: text for key, text in LABELS.items() if key in rungs[0]}
    size = (12, 4) if len(labels) > 1 else (6, 4)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    of_all = figure.subplots(1, len(labels), squeeze=False)[0]
    for axes, (measure, label) in zip(of_all, labels.items(), strict=True):
        for name, _, _ in SAMPLERS:
            points = [
                (r["steps"], r[measure])
                for r in rungs
                if r["sampler"] == name and r[measure] is not None
            ]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", label=name)
        axes.set(xlabel="steps", ylabel=label, xscale="log", yscale="log")
        axes.set_xticks(steps, [str(n) for n in steps])
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3, which="both")
        if measure == "distance":
            floor = rungs[0]["floor"]
            axes.axhline(floor, color="black", linestyle="--", label="real pictures")
        if measure in ("kolmogorov_distance", "distance"):
            axes.legend()
    with write_whole(path) as file:
        figure.savefig(file, format="png")


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=int, default=2000, help="the toy's steps")
    parser.add_argument("--exact", action="store_true", help="the exact predictor")
    parser.add_argument("--checkpoint", help="of a training script, not the toy")
    parser.add_argument("--data", help="the pictures it was trained on")
    parser.add_argument("--labels", help="of --data, a .npy or IDX file")
    parser.add_argument("--held-out", type=int, default=2000, help="as in training")
    parser.add_argument("--samples", type=int, default=500, help="how many, at most")
    parser.add_argument("--chunk", type=int, default=100, help="drawn at a time")
    parser.add_argument("--clip-x-0", action="store_true", help="clamp x̂_0")
    parser.add_argument("--seed", type=int, default=0, help="of samples and features")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument(
        "--out", default="out/ladder", help="folder for what is written"
    )
    parser.set_defaults(test=None, test_labels=None)  # flags of score.py alone
    return parser


def main(argv: list[str]) -> None:
    args = flags().parse_args(argv)
    for name in ("train", "samples", "chunk"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}")
    if bool(args.checkpoint) is not bool(args.data):
        raise ValueError("--checkpoint and --data go together")
    if args.checkpoint and args.exact:
        raise ValueError("--exact is for the toy; leave it out with --checkpoint")
    out = Path(args.out)
    rungs = of_a_checkpoint(args) if args.checkpoint else of_the_toy(args)
    save_plot(out / "ladder.png", rungs)
    with write_whole(out / "ladder.json") as file:
        settings = (
            vars(args) if args.checkpoint else vars(args) | {"T": T, "size": SIZE}
        )
        text = json.dumps({"settings": settings, "rungs": rungs}, indent=1)
        file.write(text.encode())


if __name__ == "__main__":
    with errors_as_sentences():
        main(sys.argv[1:])
