"""The U-Net's speed beside diffusers' UNet2DModel, the same function, in one run.

    python benchmarks/unet.py                                  # float32, batch 8
    python benchmarks/unet.py --dtype bfloat16 --batch 16
    python benchmarks/unet.py --device cuda --dtype bfloat16 --batch 128 --compile

Both networks are the paper's, with the same weights, and are first seen to agree; ours
has the layers that `workshop.speed.faster` puts in, as in training. Then,
round by round and in turn: a training pass (forward, L_simple, backward), a sampling
pass (forward alone), and a large matrix product in the same precision, which shows what
the device can do. diffusers' network is timed as its users have it, and once more in
the channels_last layout, which ours always has. The ratios are of medians.

Also: the work that the sampler adds to its network calls, Algorithm 2 with a network
that answers at once against the calls of the real one.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tinyddpm import linear_schedule, p_sample_loop
from tinyddpm.beyond.pretrained import CONFIG, unet_from_diffusers
from tinyddpm.workshop.speed import faster

RESULTS = Path(__file__).parent / "results"
STEPS = 50  # of Algorithm 2, to measure the sampler's own work


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=["float32", "bfloat16"],
        help="bfloat16 is autocast, the weights being float32",
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="torch.compile for all")
    parser.add_argument("--n", type=int, default=9, help="rounds")
    parser.add_argument("--json", type=Path, help="by default a name in results/")
    return parser.parse_args()


class Sample(nn.Module):
    """diffusers' network as a function of (x, t) to a tensor; there t counts from 0."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x, t - 1).sample


class AtOnce(nn.Module):
    """The network's modules, and an answer that takes no time."""

    def __init__(self, net: nn.Module, eps_hat: Tensor) -> None:
        super().__init__()
        self.net, self.eps_hat = net, eps_hat

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.eps_hat


def networks(device: str) -> dict[str, nn.Module]:
    """One function, three times; no weight at zero."""
    torch.manual_seed(0)
    made = [diffusers.UNet2DModel(sample_size=32, dropout=0.1, **CONFIG) for _ in "12"]
    with torch.no_grad():
        for p in made[0].parameters():
            if p.ndim > 1:
                p.normal_(std=p[0].numel() ** -0.5)
    made[1].load_state_dict(made[0].state_dict())
    nets = {
        "tinyddpm": faster(
            unet_from_diffusers(made[0].state_dict()).to(device),
            bf16=False,
            compiled=False,
        ),
        "diffusers": Sample(made[0]),
        "diffusers, channels_last": Sample(made[1]).to(
            memory_format=torch.channels_last
        ),
    }
    return {name: net.to(device).eval() for name, net in nets.items()}


def seconds(do: Callable[[], object], device: str) -> float:
    """Wall time of one call, to its end on the device."""
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    do()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def flop(do: Callable[[], object]) -> int:
    """Counted by torch, attention as the plain products it stands for."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        do()
    return counter.get_total_flops()


def machine(a: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on beside the code."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":")[1].strip()
                break
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if a.device == "cuda" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }


def measure(a: argparse.Namespace) -> dict[str, Any]:
    nets = networks(a.device)
    dtype = getattr(torch, a.dtype)
    generator = torch.Generator(a.device).manual_seed(0)
    x = torch.randn(a.batch, 3, 32, 32, generator=generator, device=a.device)
    eps = torch.randn(x.shape, generator=generator, device=a.device)
    t = 1 + torch.randint(1000, (a.batch,), generator=generator, device=a.device)
    size = 8192 if a.device == "cuda" else 2048
    left, right = torch.randn(2, size, size, generator=generator, device=a.device).to(
        dtype
    )

    def autocast() -> torch.autocast:
        on = dtype == torch.bfloat16
        return torch.autocast(a.device, torch.bfloat16, enabled=on)

    def training(net: nn.Module) -> None:
        net.train()
        with autocast():
            L_simple = (net(x, t).float() - eps).square().mean()
        L_simple.backward()
        for p in net.parameters():
            p.grad = None

    @torch.no_grad()
    def sampling(net: nn.Module) -> Tensor:
        net.eval()
        with autocast():
            return net(x, t).float()

    def product() -> Tensor:
        return left @ right

    counts = {
        (name, kind.__name__): flop(lambda kind=kind, net=net: kind(net)) / a.batch
        for name, net in nets.items()
        for kind in (training, sampling)
    }
    answers = [sampling(net) for net in nets.values()]
    rounding = 1e-4 if dtype == torch.float32 else 0.1
    for other in answers[1:]:
        apart = float((answers[0] - other).abs().max() / answers[0].abs().max())
        assert apart < rounding, f"the networks disagree by {apart}"

    run = {name: torch.compile(net) if a.compile else net for name, net in nets.items()}
    s = linear_schedule(STEPS)
    at_once = AtOnce(nets["tinyddpm"], answers[0])
    timed: dict[tuple[str, str], Callable[[], object]] = {
        ("product", "product"): product,
        ("sampler", "own work"): lambda: list(p_sample_loop(s, at_once, x, generator)),
    }
    for kind in (training, sampling):
        for name, net in run.items():
            timed[name, kind.__name__] = lambda kind=kind, net=net: kind(net)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in timed}
    for round_ in range(-2, a.n):  # two rounds to warm up
        for key, do in timed.items():
            taken = seconds(do, a.device)
            if round_ >= 0:
                times[key].append(taken)
    return report(a, times, counts, 2 * size**3)


def turn_by_turn(ours: list[float], theirs: list[float]) -> list[float] | None:
    """Quartiles of the ratio in each round."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return statistics.quantiles(ratios, n=4) if len(ratios) > 1 else None


def report(
    a: argparse.Namespace,
    times: dict[tuple[str, str], list[float]],
    counts: dict[tuple[str, str], float],
    product_flop: int,
) -> dict[str, Any]:
    median = {key: statistics.median(values) for key, values in times.items()}
    rate = product_flop / median["product", "product"]
    rows = [
        {
            "network": name,
            "pass": kind,
            "seconds": median[name, kind],
            "quartiles": statistics.quantiles(values, n=4) if a.n > 1 else None,
            "pictures_per_second": a.batch / median[name, kind],
            "time_over_diffusers": median[name, kind] / median["diffusers", kind],
            "turn_by_turn": turn_by_turn(values, times["diffusers", kind]),
            "gflop_per_picture": counts[name, kind] / 1e9,
            "share_of_matrix_rate": counts[name, kind]
            * a.batch
            / median[name, kind]
            / rate,
        }
        for (name, kind), values in times.items()
        if (name, kind) in counts
    ]
    own = median["sampler", "own work"] / STEPS / median["tinyddpm", "sampling"]
    return {
        "settings": {
            "device": a.device,
            "dtype": a.dtype,
            "batch": a.batch,
            "threads": a.threads,
            "compile": a.compile,
            "n": a.n,
        },
        "machine": machine(a),
        "matrix_tflop_per_second": rate / 1e12,
        "rows": rows,
        "sampler_work_over_network_calls": own,
        "times": {f"{name}, {kind}": values for (name, kind), values in times.items()},
    }


def spread(quartiles: list[float] | None) -> str:
    return f"{quartiles[0]:.3f}..{quartiles[2]:.3f}" if quartiles else "-"


def show(result: dict[str, Any]) -> None:
    setting = ", ".join(f"{k} {v}" for k, v in result["settings"].items())
    print(setting)
    print(", ".join(f"{k} {v}" for k, v in result["machine"].items()))
    print(f"matrix product: {result['matrix_tflop_per_second']:.3f} TFLOP/s\n")
    head = ("ms", "pictures/s", "time ratio", "by turns", "GFLOP/pic", "of matrix rate")
    print(f"{'':34}" + "".join(f"{word:>15}" for word in head))
    for row in result["rows"]:
        print(
            f"{row['pass'] + ', ' + row['network']:34}"
            f"{1e3 * row['seconds']:15.1f}"
            f"{row['pictures_per_second']:15.2f}"
            f"{row['time_over_diffusers']:15.3f}"
            f"{spread(row['turn_by_turn']):>15}"
            f"{row['gflop_per_picture']:15.2f}"
            f"{row['share_of_matrix_rate']:15.1%}"
        )
    own = result["sampler_work_over_network_calls"]
    print(f"\nthe sampler's own work over its network calls: {own:.2%}")


if __name__ == "__main__":
    a = arguments()
    torch.set_num_threads(a.threads)
    if a.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no CUDA GPU here; use --device cpu")
    result = measure(a)
    show(result)
    compiled = "-compiled" if a.compile else ""
    name = f"unet-{a.device}-{a.dtype}-{a.batch}{compiled}.json"
    path = a.json or RESULTS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {path}")
