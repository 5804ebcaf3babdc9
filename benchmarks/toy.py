"""Our `fit` against the loop that tutorials print, on the toy's colour gradients.

    python benchmarks/toy.py                   # 2 cores, about two minutes
    python benchmarks/toy.py --json toy.json

The plain loop is a DataLoader over a TensorDataset, shuffled, ε and x_t made for each
batch by repeating the two coefficients to the pictures' shape, F.mse_loss, plain Adam,
and a progress bar with the loss and four statistics of each step. `fit` does more:
fresh pictures, gradient clipping, the moving average, records, a check that all is
finite.

Both train the same network on 391 batches of 128 (an epoch of 50,000 pictures) in turn,
in one process; the ratio is taken turn by turn. A third turn does what no loop can do
without, forward pass, loss and backward pass on one batch that is there already: plain
over bare is the largest ratio that any loop around this network could reach.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from tinyddpm import Schedule, linear_schedule
from tinyddpm.beyond.gradients import gradient_drawer, gradient_images
from tinyddpm.mlp import MLP
from tinyddpm.workshop.run import fit
from tinyddpm.workshop.settings import TrainConfig

SHAPE, BATCH, STEPS, T = (3, 5, 5), 128, 391, 100


class TwoLayers(nn.Module):
    """The tutorials' network: Linear, ReLU, Linear on (t/T, x_t)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(76, 128), nn.ReLU(), nn.Linear(128, 75))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        x = torch.cat([(t / T)[:, None], x_t.flatten(1)], dim=1)
        return self.net(x).view_as(x_t)


def plain_loop(s: Schedule, net: nn.Module, pictures: Tensor) -> None:
    """One epoch, as a reader of the paper writes it the first time."""
    alpha_bar = s.alpha_bar.float()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(pictures), batch_size=BATCH, shuffle=True)
    began = time.time()
    bar = tqdm(loader, file=sys.stderr)
    for (x_0,) in bar:
        t = torch.randint(1, T + 1, (len(x_0),))
        eps = torch.randn_like(x_0)
        of_x_0 = alpha_bar[t].sqrt().view(-1, 1, 1, 1).repeat(1, *SHAPE)
        of_eps = (1 - alpha_bar[t]).sqrt().view(-1, 1, 1, 1).repeat(1, *SHAPE)
        x_t = of_x_0 * x_0 + of_eps * eps
        eps_hat = net(x_t, t)
        loss = F.mse_loss(eps_hat, eps)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        statistics_of_step = {
            "loss": loss,
            "elapsed": time.time() - began,
            "eps_hat_mean": eps_hat.mean(),
            "eps_hat_var": eps_hat.var(),
            "x_t_mean": x_t.mean(),
            "x_t_var": x_t.var(),
        }
    bar.set_postfix_str(f"loss {float(statistics_of_step['loss']):.4f}")


def our_loop(s: Schedule, net: nn.Module) -> None:
    config = TrainConfig(steps=STEPS, batch=BATCH, lr=1e-3, warmup=0, ema=0.98)
    with tqdm(total=STEPS, file=sys.stderr) as bar:
        draw = gradient_drawer(*SHAPE[1:])
        fit(s, net, draw, config, log=lambda r: bar.update(r.step - bar.n))


def bare_loop(s: Schedule, net: nn.Module, pictures: Tensor) -> None:
    """The network's own work: nothing is drawn, and no weight is changed."""
    x_t, t = pictures[:BATCH], torch.randint(1, s.T + 1, (BATCH,))
    eps = torch.randn_like(x_t)
    for _ in range(STEPS):
        F.mse_loss(net(x_t, t), eps).backward()
        net.zero_grad()


def compare(name: str, net: nn.Module, turns: int) -> dict[str, Any]:
    """Median steps/s of each, and the median and quartiles of their ratios."""
    s = linear_schedule(T)
    pictures = gradient_images(STEPS * BATCH, *SHAPE[1:])
    loops = {
        "plain": lambda: plain_loop(s, net, pictures),
        "fit": lambda: our_loop(s, net),
        "bare": lambda: bare_loop(s, net, pictures),
    }

    times: dict[str, list[float]] = {loop: [] for loop in loops}
    for turn in range(-1, turns):  # the first is to warm up
        for loop, run in loops.items():
            began = time.perf_counter()
            run()
            if turn >= 0:
                times[loop].append(time.perf_counter() - began)

    def ratio(of: str) -> list[float]:
        """Lower quartile, median and upper quartile of plain / of, turn by turn."""
        pairs = zip(times["plain"], times[of], strict=True)
        return statistics.quantiles([plain / other for plain, other in pairs], n=4)

    rates = {loop: STEPS / statistics.median(times[loop]) for loop in loops}
    return {
        "network": name,
        "weights": sum(p.numel() for p in net.parameters()),
        "turns": turns,
        "steps_per_s": rates,
        "pictures_per_s": {loop: rate * BATCH for loop, rate in rates.items()},
        "plain_over_fit": ratio("fit"),
        "plain_over_bare": ratio("bare"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--turns", type=int, default=15, help="turns of 391 steps each")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    torch.manual_seed(0)
    rows = [
        compare("two layers", TwoLayers(), args.turns),
        compare("MLP", MLP(SHAPE), args.turns),
    ]
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} "
        f"threads, torch {torch.__version__}, Python {platform.python_version()}"
    )
    print(f"batch {BATCH}, {args.turns} turns of {STEPS} steps; {machine}")
    print("           weights   steps/s: plain     fit    bare   plain/fit (quartiles)")
    for r in rows:
        plain, ours, bare = r["steps_per_s"].values()
        low, median, high = r["plain_over_fit"]
        print(
            f"{r['network']:10} {r['weights']:8}{plain:17.0f}{ours:8.0f}{bare:8.0f}"
            f"{median:12.2f} ({low:.2f} .. {high:.2f}), at most "
            f"{r['plain_over_bare'][1]:.2f}"
        )
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
