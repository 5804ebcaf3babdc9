"""What the bound costs beside the network calls that it must make.

    python benchmarks/bound.py                     # some two minutes
    python benchmarks/bound.py --json bound.json

For each network, `bits_per_dim` and the bare calls, eps_theta(x_t, t) on as many
batches of the same size, are timed in turn in one run, in processor time and on one
thread (a second that waits counts as work), so that what else the machine does matters
little. Printed: the median ratio and the quartiles.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from tinyddpm import linear_schedule
from tinyddpm.bound import bits_per_dim
from tinyddpm.data import to_float
from tinyddpm.mlp import MLP
from tinyddpm.unet import UNet

ROUNDS = 9


def seconds(do: Callable[[], object]) -> float:
    began = time.process_time()
    do()
    return time.process_time() - began


def compare(net: nn.Module, shape: tuple[int, ...], N: int, T: int) -> list[float]:
    """Quartiles, over N pictures: T calls of the network either way."""
    s, g = linear_schedule(T), torch.Generator().manual_seed(0)
    x_0 = to_float(torch.randint(256, (N, *shape), generator=g, dtype=torch.uint8))
    x_t = torch.randn(x_0.shape, generator=g)
    net.eval()

    @torch.no_grad()
    def calls() -> None:
        for step in range(1, T + 1):
            net(x_t, torch.full((N,), step))

    def bound() -> None:
        bits_per_dim(s, net, x_0, g)

    calls(), bound()  # warm up
    ratios = [seconds(bound) / seconds(calls) for _ in range(ROUNDS)]
    return statistics.quantiles(ratios, n=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    machine = f"one thread, torch {torch.__version__}"
    print(f"bits_per_dim / its network calls, n = {ROUNDS}; {machine}")
    small = UNet(3, 16, (1, 2), (1,), 0.0)
    cases = {
        "U-Net, base 16, 3x32x32, N = 8, T = 25": (small, (3, 32, 32), 8, 25),
        "toy MLP, 3x8x8, N = 128, T = 100": (MLP((3, 8, 8)), (3, 8, 8), 128, 100),
    }
    rows = {}
    for name, case in cases.items():
        low, median, high = rows[name] = compare(*case)
        print(f"{name:42} {median:.3f}  (quartiles {low:.3f} .. {high:.3f})")
    if args.json:
        result = {"machine": machine, "n": ROUNDS, "quartiles": rows}
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
