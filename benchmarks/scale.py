"""What a training step and a sample cost as batch, width, picture size and T grow.

    python benchmarks/scale.py                                   # CPU, some 5 minutes
    python benchmarks/scale.py --device cuda --batch 32 64 128 256 --width 64 128 192
    python benchmarks/scale.py --json scale.json

The U-Net of appendix B, with fewer channels. The first number after each flag is the
base; the others are tried one at a time, each in a process of its own, so that its peak
memory is its own. Times are medians: of the steps between `fit`'s records (drawing,
gradient, Adam, moving average and all), and of whole runs of Algorithm 2.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from tinyddpm import linear_schedule, sample
from tinyddpm.data import drawer
from tinyddpm.unet import UNet
from tinyddpm.workshop.run import fit
from tinyddpm.workshop.settings import TrainConfig, pick_device
from tinyddpm.workshop.speed import faster

RECORDS = 6  # the first is warming up


def cost(case: dict[str, int], device: torch.device, each: int) -> dict[str, Any]:
    """One row: the case, ms a step, pictures/s, ms a sample, peak memory in MiB."""
    torch.manual_seed(0)
    net = UNet(base=case["width"]).to(device)
    size = (3, case["size"], case["size"])
    images = torch.randint(256, (512, *size), dtype=torch.uint8, device=device)
    s = linear_schedule(case["T"])
    config = TrainConfig(
        steps=RECORDS * each,
        batch=case["batch"],
        log_every=each,
        save_every=each,
        warmup=0,
        ema=0,
    )
    ends: list[float] = []
    fit(s, net, drawer(images), config, lambda r: ends.append(time.perf_counter()))
    steps = [(b - a) / each for a, b in itertools.pairwise(ends)]
    step, sampled = statistics.median(steps), []
    eps_theta = faster(net, config.bf16, compiled=False)
    for _ in range(3):
        began = time.perf_counter()
        sample(s, eps_theta, (case["batch"], *size)).cpu()
        sampled.append(time.perf_counter() - began)
    return case | {
        "ms_per_step": 1e3 * step,
        "quartiles_ms": [1e3 * q for q in statistics.quantiles(steps, n=4)[::2]],
        "pictures_per_s": case["batch"] / step,
        "ms_per_sample": 1e3 * statistics.median(sampled) / case["batch"],
        "peak_mib": _peak_mib(device),
    }


def _peak_mib(device: torch.device) -> float:
    """On a GPU what PyTorch took; on a CPU the whole process, PyTorch itself too."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if platform.system() == "Darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def cases(args: argparse.Namespace) -> list[dict[str, int]]:
    """The base, then each other value by itself."""
    ranges = {name: getattr(args, name) for name in ("batch", "width", "size", "T")}
    base = {name: values[0] for name, values in ranges.items()}
    others = [base | {name: v} for name, vs in ranges.items() for v in vs[1:]]
    return [base, *others]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 4, 16, 32])
    parser.add_argument("--width", type=int, nargs="+", default=[32, 16, 64, 128])
    parser.add_argument("--size", type=int, nargs="+", default=[32, 16, 64])
    parser.add_argument("--T", type=int, nargs="+", default=[25, 50, 100])
    parser.add_argument("--steps", type=int, default=3, help="between two times")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    device = pick_device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    machine = (
        f"{name}, {os.cpu_count()} cores ({platform.machine()}), "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(
        f"{machine}; medians of {RECORDS - 1} times {args.steps} steps, and of 3 runs"
    )
    print("batch width size    T   ms/step  pictures/s  ms/sample  peak MiB")
    rows = []
    for case in cases(args):
        with multiprocessing.get_context("spawn").Pool(1) as process:
            row = process.apply(cost, (case, device, args.steps))
        rows.append(row)
        print(
            f"{row['batch']:5} {row['width']:5} {row['size']:4} {row['T']:4}"
            f"{row['ms_per_step']:10.1f}{row['pictures_per_s']:12.1f}"
            f"{row['ms_per_sample']:11.1f}{row['peak_mib']:10.0f}",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
