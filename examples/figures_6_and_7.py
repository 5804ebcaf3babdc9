"""Figures 6 and 7 of the paper on the toy: what x_t shows of the picture to come.

    python examples/figures_6_and_7.py                       # 2 cores, a minute
    python examples/figures_6_and_7.py --exact               # seconds

Figure 6, progressive generation: x̂_0 (eq. 15) at some steps of Algorithm 2, and below
each its distance from the x_0 that comes out at the end. Figure 7: several x_0 that
Algorithm 2 makes of one and the same x_t, for a large, a middle and a small t: what x_t
has settled they share. Writes figure_6.png and figure_7.png in --out.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Generator, Tensor

from tinyddpm import MLP, Schedule, linear_schedule, p_sample_loop, to_uint8
from tinyddpm.beyond.gradients import gradient_drawer
from tinyddpm.beyond.oracle import gradient_oracle
from tinyddpm.sampler import EpsTheta
from tinyddpm.train import Hyperparameters, fit
from tinyddpm.workshop.pictures import save_strip
from tinyddpm.workshop.progress import errors_as_sentences

SIZE, T, SHOWN = 8, 100, 11
FROZEN = (90, 60, 30, 10)  # the t of figure 7's rows


def trained(s: Schedule, steps: int, seed: int) -> EpsTheta:
    """The toy's network after Algorithm 1, with the settings of train_gradients.py."""
    torch.manual_seed(seed)
    h = Hyperparameters(
        steps, batch=512, lr=4e-3, lr_end=0.0, warmup=100, max_norm=0.03, ema=0.99,
        seed=seed,
    )  # fmt: skip
    return fit(s, MLP((3, SIZE, SIZE), 96), gradient_drawer(SIZE, SIZE), h)


def rms(x: Tensor) -> Tensor:
    """The root mean square of each picture, (B, ...) -> (B,)."""
    return x.square().flatten(1).mean(1).sqrt()


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2000, help="gradient steps")
    parser.add_argument("--exact", action="store_true", help="the exact predictor")
    parser.add_argument("--seed", type=int, default=0, help="of all randomness")
    parser.add_argument("--out", default="out/figures", help="folder of the pictures")
    args = parser.parse_args(argv)
    if args.steps < 1:
        raise ValueError(f"--steps must be at least 1, got {args.steps}")
    s, out, g = linear_schedule(T), Path(args.out), Generator().manual_seed(args.seed)
    exact = gradient_oracle(s, SIZE, SIZE)
    eps_theta = exact if args.exact else trained(s, args.steps, args.seed)
    x_T = torch.randn(4, 3, SIZE, SIZE, generator=g)

    # Figure 6: all x̂_0 of Algorithm 2, and their distance from the last one
    path = {t: x_0_hat for t, _, x_0_hat in p_sample_loop(s, eps_theta, x_T, g)}
    error = {t: 127.5 * rms(x_0_hat - path[0]) for t, x_0_hat in path.items()}
    seen = [round(T * (1 - i / (SHOWN - 1))) for i in range(SHOWN)]
    rows = []
    for i in range(len(x_T)):
        names = [f"{t}: {float(error[t][i]):.1f}" for t in seen]
        pictures = to_uint8(torch.stack([path[t][i] for t in seen]))
        rows.append(
            ("" if i else "step t, and the RMSE of x̂_0 there (0..255)", names, pictures)
        )
    save_strip(out / "figure_6.png", rows)
    print(f"RMSE of x̂_0 from x_0, 0..255, root mean square of {len(x_T)} pictures:")
    print(
        "  ".join(f"t={t} {float(error[t].square().mean().sqrt()):.1f}" for t in seen)
    )

    # Figure 7: Algorithm 2 from one x_t, again and again
    states = {t: x_t for t, x_t, _ in p_sample_loop(s, eps_theta, x_T[:1], g)}
    rows = []
    for t in FROZEN:
        x_t = states[t].repeat(SHOWN - 1, 1, 1, 1)
        *_, (_, x_0, _) = p_sample_loop(Schedule(s.beta[1 : t + 1]), eps_theta, x_t, g)
        names = ["$x_t$", *["$x_0$"] * (SHOWN - 1)]
        pictures = to_uint8(torch.cat([states[t], x_0]))
        rows.append((f"x_0 from one x_t, t = {t}", names, pictures))
        spread = 127.5 * float(x_0.var(0).mean().sqrt())
        print(f"from one x_{t}: the x_0 differ by {spread:.1f} of 255 levels")
    save_strip(out / "figure_7.png", rows)


if __name__ == "__main__":
    with errors_as_sentences():
        main(sys.argv[1:])
