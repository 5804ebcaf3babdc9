"""What narrow networks reach of a CPU's rate, and what takes the rest of the time.

    python benchmarks/narrow.py                               # some ten minutes
    python benchmarks/narrow.py --width 32 --batch 16 64 --json narrow.json
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/narrow.py

For each width, batch and precision: a forward and a backward pass of the U-Net, with
the layers that `faster` puts in, in processor time on one thread, so that what else the
machine does matters little. Its rate is set beside that of a large matrix product,
timed in turn with it. PyTorch's profiler splits the time into products (all
convolutions and matrix products), normalisation, activations, copies (casts, changes of
layout) and the rest. The column "products alone" is the rate of the products by
themselves over that of the large product: no arrangement of what is around them gets
beyond it. The last command stands for a CPU without AVX512 on one that has it. Of
networks of 128 channels a quarter of the batch is taken.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from tinyddpm import L_simple, linear_schedule
from tinyddpm.unet import UNet
from tinyddpm.workshop.machine import cpu_name, instruction_sets
from tinyddpm.workshop.speed import faster

S = linear_schedule(1000)
ROUNDS = 5
KINDS = {  # by what a name in the profile holds, the first that fits
    "products": ("conv", "mm", "mkldnn"),
    "norms": ("norm",),
    "activations": ("silu", "softmax", "sigmoid"),
    "copies": ("copy", "cat", "contiguous", "clone", "to_"),
}


def passes(net: nn.Module, size: int, B: int) -> Callable[[], None]:
    """A forward and a backward pass of B pictures."""
    g = torch.Generator().manual_seed(0)
    x_0 = 2 * torch.rand(B, 3, size, size, generator=g) - 1
    eps = torch.randn(x_0.shape, generator=g)
    t = torch.randint(1, S.T + 1, (B,), generator=g)

    def do() -> None:
        for p in net.parameters():
            p.grad = None
        L_simple(S, net, x_0, t, eps).backward()

    return do


def seconds(do: Callable[[], object]) -> float:
    began = time.process_time()
    do()
    return time.process_time() - began


def shares(do: Callable[[], None]) -> dict[str, float]:
    """The part of the time that each of `KINDS` takes."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        do()
    found = dict.fromkeys((*KINDS, "the rest"), 0.0)
    for event in seen.key_averages():
        name = event.key.lower()
        fits = (kind for kind, words in KINDS.items() if any(w in name for w in words))
        found[next(fits, "the rest")] += event.self_cpu_time_total
    whole = sum(found.values())
    return {kind: part / whole for kind, part in found.items()}


def row(width: int, B: int, bf16: bool, size: int) -> dict[str, Any]:
    torch.manual_seed(0)
    net = UNet(3, width, (1, 2, 2) if width < 128 else (1, 2, 2, 2), (1,))
    do = passes(faster(net, bf16, compiled=False), size, B)
    a, b = torch.randn(2, 1024, 1024).to(torch.bfloat16 if bf16 else torch.float32)
    with FlopCounterMode(display=False) as counter:
        do()  # and what runs first prepares
    flops, times, rates = counter.get_total_flops(), [], []
    for _ in range(ROUNDS):
        rates.append(2 * 1024**3 / seconds(lambda: a @ b))
        times.append(seconds(do))
    took, rate = statistics.median(times), statistics.median(rates)
    split = shares(do)
    share = flops / took / rate
    return {
        "width": width,
        "batch": B,
        "precision": "bfloat16" if bf16 else "float32",
        "ms": 1e3 * took,
        "quartiles_ms": [1e3 * q for q in statistics.quantiles(times, n=4)[::2]],
        "pictures_per_s": B / took,
        "gflop_per_s": flops / took / 1e9,
        "share": share,
        "products alone": share / split["products"],
        **split,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--size", type=int, default=32, help="of the pictures")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    limits = [os.environ.get(k) for k in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")]
    machine = (
        f"{cpu_name()}, {instruction_sets()}, one thread, torch {torch.__version__}"
    )
    print(machine, *(f"limited to {limit}" for limit in limits if limit))
    columns = ("share", "products alone", *KINDS, "the rest")
    print(f"{'width batch':18}{'ms':>9}{'pictures/s':>12}", end="")
    print("".join(f"{name:>16}" for name in columns))
    rows = []
    for width in args.width:
        for B in args.batch if width < 128 else [max(1, args.batch[0] // 4)]:
            for bf16 in (True, False):
                r = row(width, B, bf16, args.size)
                print(f"{width:4}{B:5} {r['precision']:8}{r['ms']:9.0f}", end="")
                print(f"{r['pictures_per_s']:12.1f}", end="")
                print("".join(f"{r[name]:16.0%}" for name in columns), flush=True)
                rows.append(r)
    if args.json:
        text = json.dumps(
            {"machine": machine, "limits": limits, "rows": rows}, indent=1
        )
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
