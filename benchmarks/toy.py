"""Our `fit` against the loop that tutorials print, on the toy's colour gradients.

    python benchmarks/toy.py                   # 2 cores, about two minutes
    python benchmarks/toy.py --json toy.json

The plain loop is a DataLoader over a TensorDataset, shuffled, ε and x_t made for each
batch by repeating the two coefficients to the pictures' shape, F.mse_loss, plain Adam,
and a progress bar with the loss and four statistics of each step. `fit` does more:
fresh pictures, gradient clipping, the moving average, records, a check that all is
finite.

Both train the same network on 391 batches of 128 (an epoch of 50,000 pictures) in turn,
in one process; the ratio is taken turn by turn. What lives here: nothing but that.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from tinyddpm import Schedule, linear_schedule
from tinyddpm.config import TrainConfig
from tinyddpm.data import gradient_drawer, gradient_images
from tinyddpm.mlp import MLP
from tinyddpm.train import fit

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
    config = TrainConfig(steps=STEPS, batch=BATCH, lr=1e-3, warmup=0)
    with tqdm(total=STEPS, file=sys.stderr) as bar:
        draw = gradient_drawer(*SHAPE[1:])
        fit(s, net, draw, config, log=lambda r: bar.update(r.step - bar.n))


def compare(name: str, net: nn.Module, turns: int) -> dict[str, object]:
    """Median steps/s of each, and the median and quartiles of their ratio."""
    s = linear_schedule(T)
    pictures = gradient_images(STEPS * BATCH, *SHAPE[1:])

    def seconds(loop: object, *arguments: object) -> float:
        began = time.perf_counter()
        loop(s, net, *arguments)  # type: ignore[operator]
        return time.perf_counter() - began

    seconds(plain_loop, pictures), seconds(our_loop)  # warm up
    pairs = [(seconds(plain_loop, pictures), seconds(our_loop)) for _ in range(turns)]
    plain, ours = (STEPS / statistics.median(x) for x in zip(*pairs, strict=True))
    low, median, high = statistics.quantiles([a / b for a, b in pairs], n=4)
    return {
        "network": name,
        "weights": sum(p.numel() for p in net.parameters()),
        "turns": turns,
        "plain_steps_per_s": plain,
        "fit_steps_per_s": ours,
        "plain_pictures_per_s": plain * BATCH,
        "fit_pictures_per_s": ours * BATCH,
        "ratio_median": median,
        "ratio_quartiles": [low, high],
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
    print("network     weights   plain steps/s   fit steps/s   pictures/s   ratio")
    for r in rows:
        print(
            f"{r['network']:10} {r['weights']:8}  {r['plain_steps_per_s']:14.0f}"
            f"{r['fit_steps_per_s']:14.0f} {r['fit_pictures_per_s']:12.0f}"
            f"   {r['ratio_median']:.2f} "
            f"({r['ratio_quartiles'][0]:.2f} .. {r['ratio_quartiles'][1]:.2f})"
        )
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
