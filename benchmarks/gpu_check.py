"""What can only be seen on a GPU, in four minutes: is it right, and how fast is it?

    python benchmarks/gpu_check.py                        # needs one GPU, no network
    python benchmarks/gpu_check.py --device cpu --tiny    # the same code, on a CPU

1. Laws: each formula, and the gradients of a U-Net, on the GPU against the CPU, both in
   float64.
2. A run that is killed and resumed, beside one that was not.
3. Gradients: the compiled network in bfloat16 against the plain one in float32, for
   each parameter, beside what bfloat16 alone costs.
4. Speed: whole training steps of `fit`, eager and compiled, at three batch sizes, with
   the share of the rate of a matrix product and the peak memory; the passes of
   diffusers' UNet2DModel, where it is installed; and what the sampler adds to its
   network calls.

Compiling takes most of the time; it is done in processes side by side, at the start,
and what PyTorch then keeps on the disk is used again. What there was no time for is
left out and named. All figures go to results/gpu-<name of the GPU>.json.
"""

import argparse
import itertools
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tinyddpm import (
    L_0,
    L_T,
    L_simple,
    L_tm1,
    linear_schedule,
    log_decoder,
    p_mean,
    p_sample_loop,
    p_step,
    predict_x_0,
    q_posterior,
    q_sample,
    q_step,
    weight,
)
from tinyddpm.data import drawer
from tinyddpm.unet import UNet
from tinyddpm.workshop.checkpoint import load_checkpoint
from tinyddpm.workshop.run import fit
from tinyddpm.workshop.settings import TrainConfig, pick_device
from tinyddpm.workshop.speed import faster

ROOT = Path(__file__).parents[1]
S = linear_schedule(1000)
QUIET: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
TIMED = 5  # times each thing is timed


class Check:
    """The figures so far, and whether each law held.

    Attributes:
        device: the GPU, or the CPU with --tiny.
        tiny: a narrow network and batches of a few pictures, for a CPU.
        end: the time at which nothing new is begun.
        compiled: the kinds of network; on a CPU, where compiling takes minutes, plain.
    """

    def __init__(self, device: torch.device, tiny: bool, seconds: float) -> None:
        self.device, self.tiny, self.began = device, tiny, time.monotonic()
        self.end = self.began + seconds
        self.batches = [2, 4, 3] if tiny else [128, 512, 32]
        self.compiled = (False, True) if device.type == "cuda" else (False,)
        self.figures: dict[str, Any] = {"machine": machine(device), "tiny": tiny}
        self.failed: list[str] = []

    def net(self, dropout: float = 0.1) -> nn.Module:
        """The paper's network, with no weight at zero; --tiny has a small one."""
        torch.manual_seed(0)
        args: tuple[Any, ...] = (3, 32, (1, 2), (1,)) if self.tiny else ()
        return without_zeros(UNet(*args, dropout=dropout)).to(self.device)

    def law(self, name: str, apart: float, bound: float) -> None:
        """Notes a law that holds if `apart` is at most `bound`."""
        holds = apart <= bound  # not so for nan
        self.figures.setdefault("laws", {})[name] = {"apart": apart, "bound": bound}
        print(f"  {'holds' if holds else 'FAILS'}  {name}: {apart:.1e} <= {bound:.0e}")
        if not holds:
            self.failed.append(name)

    def part(self, name: str, do: Callable[["Check"], Any]) -> None:
        """Does one part, unless the time is over."""
        if time.monotonic() > self.end:
            print(f"\nleft out, for want of time: {name}")
            self.figures.setdefault("left out", []).append(name)
            return
        print(f"\n{name} ({time.monotonic() - self.began:.0f} s so far)", flush=True)
        try:
            found = do(self)
        except Exception as error:  # the other parts are worth having without it
            traceback.print_exc()
            self.failed.append(f"{name}: {type(error).__name__}: {error}")
        else:
            if found is not None:
                self.figures[name] = found


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures depend on beside the code."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.machine(),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def apart(x: Tensor, y: Tensor) -> float:
    """The largest difference, over the largest number."""
    x, y = x.detach().double().cpu(), y.detach().double().cpu()
    return float((x - y).abs().max() / y.abs().max().clamp_min(1e-300))


# 1. Laws


def laws(check: Check) -> None:
    """Each formula, and a U-Net with its gradients, against the CPU in float64.

    A GPU's logarithms and sums round otherwise, by some units of 2⁻⁵³ each. The bound
    for the formulas is 10⁻¹², and for a network, whose sums are longer, 10⁻⁹.
    """
    g, B = torch.Generator().manual_seed(0), 64
    level = torch.randint(256, (B, 3, 8, 8), generator=g)
    x_0 = level.double() / 127.5 - 1
    eps, z = torch.randn(2, *x_0.shape, generator=g, dtype=torch.float64)
    t = torch.randint(2, S.T + 1, (B,), generator=g)
    x_t = q_sample(S, x_0, t, eps)
    formulas: dict[str, tuple[Callable[..., Any], list[Any]]] = {
        "eq. 2, q_step": (q_step, [x_0, t, z]),
        "eq. 4, q_sample": (q_sample, [x_0, t, eps]),
        "eq. 7, q_posterior": (lambda *a: q_posterior(*a)[0], [x_t, x_0, t]),
        "eq. 15, predict_x_0": (predict_x_0, [x_t, t, eps]),
        "eq. 11, p_mean": (p_mean, [x_t, t, eps]),
        "eq. 1, p_step": (p_step, [x_t, t, eps, z]),
        "eq. 5, L_T": (L_T, [x_0]),
        "eq. 8, L_tm1": (L_tm1, [x_0, t, x_0 + 0.1 * eps]),
        "eq. 13, L_0": (L_0, [x_0, x_0 + 0.01 * eps]),
        "eq. 13, log_decoder": (
            lambda s, v, mean: log_decoder(v, mean, 1e-4),
            [level.double(), x_0 + 0.01 * eps],
        ),
        "eq. 12, weight": (weight, [t]),
    }
    there = S.to(check.device)
    for name, (formula, args) in formulas.items():
        here = formula(S, *args)
        far = formula(there, *(x.to(check.device) for x in args))
        if far.device.type != check.device.type:
            check.failed.append(f"{name} is on {far.device}")
        check.law(name, apart(far, here), 1e-12)

    net, found = small_net().double(), []
    walk, x_T, *zs = linear_schedule(25), *torch.randn(26, 8, 3, 8, 8, generator=g)
    for device in (torch.device("cpu"), check.device):
        s, net = S.to(device), net.to(device)
        net.zero_grad()
        L_simple(s, net, *(x[:8].to(device) for x in (x_0, t, eps))).backward()
        theta = [p.grad.cpu().clone() for p in net.parameters()]
        x = x_T.double().to(device)
        with torch.no_grad():
            for step, z in zip(range(25, 0, -1), zs, strict=True):
                now = torch.full((8,), step, device=device)
                x = p_step(walk.to(device), x, now, net(x, now), z.to(x))
        found.append((theta, x))
    (here, x_here), (far, x_far) = found
    largest = max(float(grad.abs().max()) for grad in here)
    pairs = zip(here, far, strict=True)
    worst = max(float((a - b).abs().max()) for a, b in pairs) / largest
    check.law(f"gradients of a U-Net, {len(here)} tensors", worst, 1e-9)
    check.law("25 steps of eq. 1 with it", apart(x_far, x_here), 1e-9)


def small_net() -> nn.Module:
    """A narrow U-Net without dropout or zeros."""
    torch.manual_seed(0)
    return without_zeros(UNet(3, 32, (1, 2), (1,), 0.0))


def without_zeros(net: nn.Module) -> nn.Module:
    """The paper's layers that begin at zero would hide what is before them."""
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim > 1:
                p.normal_(std=p[0].numel() ** -0.5)
    return net


# 2. A run that is killed


def killed(check: Check) -> dict[str, Any]:
    """train_cifar.py three times: whole, whole again, and killed once and resumed.

    A GPU sums in no fixed order, so two whole runs differ already, and the differences
    grow with the steps. The third may be off by as much as they are, tenfold.
    """
    with tempfile.TemporaryDirectory() as folder:
        g = torch.Generator().manual_seed(0)
        records = torch.randint(256, (200, 3073), generator=g, dtype=torch.uint8)
        records[:, 0] %= 10
        data = Path(folder) / "some.bin"
        data.write_bytes(records.numpy().tobytes())
        steps, every = (12, 4) if check.tiny else (300, 20)
        weights = {}
        for name in ("whole", "again", "killed"):
            out = Path(folder) / name
            command = [
                *(sys.executable, "train_cifar.py", "--data", str(data)),
                *("--smoke", "--out", str(out), "--device", str(check.device)),
                *("--steps", str(steps), "--log-every", str(every), "--no-compile"),
                *("--save-every", str(every), "--sample-every", str(steps)),
                *("--T", "25", "--samples", "4", "--batch", "8", "--no-bf16"),
            ]
            if name == "killed":
                run = subprocess.Popen(command, cwd=ROOT, **QUIET)
                while not (out / "figures.json").exists() and run.poll() is None:
                    time.sleep(0.02)
                run.send_signal(signal.SIGTERM)
                code, command = run.wait(), [*command, "--resume"]
                at = load_checkpoint(out / "checkpoint.pt").step
                print(f"  killed after step {at} of {steps}, exit code {code}")
                if code != 128 + signal.SIGTERM:
                    check.failed.append(f"exit code {code} after SIGTERM")
            subprocess.run(command, cwd=ROOT, check=True, **QUIET)
            state = load_checkpoint(out / "checkpoint.pt").weights
            weights[name] = torch.cat([x.double().flatten() for x in state.values()])
    whole = weights["whole"]
    again = float((weights["again"] - whole).norm() / whole.norm())
    resumed = float((weights["killed"] - whole).norm() / whole.norm())
    print(f"  two whole runs are {again:.1e} apart")
    check.law("a killed run and a whole one", resumed, max(10 * again, 1e-12))
    return {"killed after": at, "two whole runs apart": again, "killed": resumed}


# 3. Gradients in bfloat16


def gradients(check: Check) -> dict[str, Any]:
    """Of the paper's network, by parameter: compiled in bfloat16 against exact float32.

    bfloat16 has 8 bits. How much of a gradient that costs is measured beside it, by the
    same network in bfloat16 without compiling; compiling may cost as much again.
    """
    torch.backends.cudnn.allow_tf32 = False  # on by default; it has 11 bits
    net, B = check.net(dropout=0.0), check.batches[-1]
    g = torch.Generator(check.device).manual_seed(0)
    x_0 = 2 * torch.rand(B, 3, 32, 32, generator=g, device=check.device) - 1
    eps = torch.randn(x_0.shape, generator=g, device=check.device)
    t = torch.randint(1, 1001, (B,), generator=g, device=check.device)
    s, found = S.to(check.device), {}
    for name, bf16, compiled in (
        ("float32", False, False),
        ("bfloat16", True, False),
        ("compiled", True, check.compiled[-1]),
    ):
        net.zero_grad()
        L_simple(s, faster(net, bf16, compiled=compiled), x_0, t, eps).backward()
        found[name] = {
            n: p.grad.clone()
            for n, p in net.named_parameters()
            if not n.endswith("k.bias")  # 0: it adds the same to all that softmax sees
        }
    torch.backends.cudnn.allow_tf32 = True
    errors = {
        kind: {
            name: float((grad - exact).norm() / exact.norm())
            for (name, grad), exact in zip(
                found[kind].items(), found["float32"].values(), strict=True
            )
        }
        for kind in ("bfloat16", "compiled")
    }
    figures = {
        kind: {"median": statistics.median(e.values()), "largest": max(e.values())}
        for kind, e in errors.items()
    }
    for kind, e in figures.items():
        print(f"  {kind}: median {e['median']:.2%}, largest {e['largest']:.2%}")
    for which in ("median", "largest"):
        bound = 2 * figures["bfloat16"][which]
        check.law(f"compiled, {which} error", figures["compiled"][which], bound)
    return figures | {"of parameters": len(errors["compiled"])}


# 4. Speed


def speed(check: Check) -> dict[str, Any]:
    """Whole steps of `fit`: drawing, gradient, clipping, Adam and moving average."""
    rate = product_rate(check)
    print(f"  product of matrices in bfloat16: {rate / 1e12:.1f} TFLOP/s")
    flops = count(check)
    print(f"  {flops / 1e9:.1f} GFLOP a picture, forward and backward")
    print("            batch    ms/step  pictures/s  of matrix rate  peak GiB")
    rows = []
    for compiled, B in itertools.product(check.compiled, check.batches):
        if time.monotonic() > check.end:
            print("  the rest was left out, for want of time")
            break
        row = step_of_fit(check, B, compiled)
        row["share"] = flops * row["pictures_per_s"] / rate
        print(
            f"  {'compiled' if compiled else 'eager':8} {B:6d} {row['ms']:10.1f} "
            f"{row['pictures_per_s']:11,.0f} {row['share']:15.1%} {row['gib']:9.2f}",
            flush=True,
        )
        rows.append(row)
    return {"matrix_tflop_per_s": rate / 1e12, "gflop": flops / 1e9, "rows": rows}


def product_rate(check: Check) -> float:
    """Floating-point operations a second of a large product in bfloat16."""
    n = 512 if check.tiny else 8192
    a, b = torch.randn(2, n, n, device=check.device).bfloat16()
    return 2 * n**3 / median(check, lambda: a @ b)


def median(check: Check, do: Callable[[], object], rounds: int = TIMED) -> float:
    """Seconds; one round before them is not counted."""
    times = []
    for _ in range(rounds + 1):
        wait(check.device)
        began = time.perf_counter()
        do()
        wait(check.device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def count(check: Check) -> float:
    """Floating-point operations of one picture's two passes, as torch counts them."""
    net = faster(check.net(), bf16=False, compiled=False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        one_pass(check, net, 1)
    return float(counter.get_total_flops())


def one_pass(check: Check, net: nn.Module, B: int) -> None:
    """Forward and backward pass of B pictures."""
    x_0 = torch.zeros(B, 3, 32, 32, device=check.device)
    t = torch.full((B,), 500, device=check.device)
    L_simple(S.to(check.device), net, x_0, t, torch.ones_like(x_0)).backward()
    for p in net.parameters():
        p.grad = None


def step_of_fit(check: Check, B: int, compiled: bool) -> dict[str, Any]:
    """Milliseconds, the median of some; pictures a second; peak memory in GiB."""
    torch.compiler.reset()  # else another batch size would be compiled for any size
    each = 1 if check.tiny else max(2, 512 // B)
    images = torch.randint(256, (1000, 3, 32, 32), dtype=torch.uint8)
    config = TrainConfig(
        steps=(TIMED + 1) * each, batch=B, log_every=each, save_every=each, warmup=0,
        ema=0.0, compile=compiled,
    )  # fmt: skip
    ends: list[float] = []
    if check.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(check.device)
    draw = drawer(images.to(check.device))
    fit(S, check.net(), draw, config, lambda r: ends.append(time.perf_counter()))
    times = [(b - a) / each for a, b in itertools.pairwise(ends)]
    peak = 0
    if check.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(check.device)
    ms = statistics.median(times)
    return {
        "batch": B,
        "compiled": compiled,
        "ms": 1e3 * ms,
        "quartiles_ms": [1e3 * q for q in statistics.quantiles(times, n=4)[::2]],
        "pictures_per_s": B / ms,
        "gib": peak / 2**30,
    }


def beside_diffusers(check: Check) -> dict[str, Any] | None:
    """Forward and backward pass in bfloat16, ours and theirs in turn."""
    try:
        theirs = diffusers_net(check)
    except ImportError:
        print("  diffusers is not installed")
        return None
    B, figures = check.batches[0], {}
    for compiled in check.compiled:
        torch.compiler.reset()
        nets = {"tinyddpm": check.net(), "diffusers": theirs}
        fast = {k: faster(n, True, compiled=compiled) for k, n in nets.items()}
        times: dict[str, list[float]] = {name: [] for name in fast}
        for _ in range(TIMED):
            for name, net in fast.items():
                times[name].append(
                    median(check, lambda n=net: one_pass(check, n, B), 1)
                )
        ms = {name: 1e3 * statistics.median(ts) for name, ts in times.items()}
        kind = "compiled" if compiled else "eager"
        ratio = ms["tinyddpm"] / ms["diffusers"]
        print(
            f"  {kind}, batch {B}: {ms['tinyddpm']:.1f} ms, theirs "
            f"{ms['diffusers']:.1f} ms, ratio {ratio:.3f}",
            flush=True,
        )
        figures[kind] = ms | {"ratio": ratio, "batch": B}
    return figures


def diffusers_net(check: Check) -> nn.Module:
    """Their network of the same function, as (x_t, t) -> eps_hat; t counts from 0."""
    import diffusers

    from tinyddpm.beyond.pretrained import CONFIG

    class Theirs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            settings = dict(CONFIG)
            if check.tiny:
                settings |= {
                    "block_out_channels": (32, 64),
                    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
                    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
                }
            self.net = diffusers.UNet2DModel(sample_size=32, dropout=0.1, **settings)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            eps_hat: Tensor = self.net(x, t - 1).sample
            return eps_hat

    return Theirs().to(check.device)


class AtOnce(nn.Module):
    """Answers without work."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x


def sampler(check: Check) -> dict[str, Any]:
    """What Algorithm 2 adds to its network calls, for 64 pictures (2 with --tiny)."""
    B, steps = (2, 25) if check.tiny else (64, 100)
    s, x_T = linear_schedule(steps), torch.randn(B, 3, 32, 32, device=check.device)
    net = faster(check.net().eval(), True, compiled=False)
    t = torch.full((B,), 1, device=check.device)

    @torch.no_grad()
    def calls() -> None:
        for _ in range(steps):
            net(x_T, t)

    own = median(check, lambda: [None for _ in p_sample_loop(s, AtOnce(), x_T)]) / steps
    call = median(check, calls) / steps
    whole = median(check, lambda: [None for _ in p_sample_loop(s, net, x_T)]) / steps
    print(
        f"  a network call {1e3 * call:.2f} ms, the rest of a step by itself "
        f"{1e3 * own:.2f} ms, a whole step {1e3 * whole:.2f} ms: "
        f"{whole / call - 1:.1%} more than the call"
    )
    ms = {"call": 1e3 * call, "own work": 1e3 * own, "step": 1e3 * whole}
    return ms | {"batch": B}


# Compiling ahead, and the whole


def compile_only(check: Check, what: str) -> None:
    """In a process of its own: leaves on the disk what compiling takes longest for."""
    if what == "gradients":
        gradients(check)
    elif what == "diffusers":
        one_pass(check, faster(diffusers_net(check), True), check.batches[0])
    else:
        step_of_fit(check, int(what), True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu")
    parser.add_argument(
        "--tiny", action="store_true", help="a small network, for a CPU"
    )
    parser.add_argument(
        "--seconds", type=float, default=200, help="begin nothing after"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    parser.add_argument("--compile-only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    check = Check(pick_device(args.device), args.tiny, args.seconds)
    if args.compile_only:
        compile_only(check, args.compile_only)
        return 0
    print(", ".join(f"{k} {v}" for k, v in check.figures["machine"].items()))
    ahead = []
    if check.device.type == "cuda":
        for what in ("gradients", *map(str, check.batches), "diffusers"):
            command = [sys.executable, __file__, *sys.argv[1:], "--compile-only", what]
            ahead.append(subprocess.Popen(command, **QUIET))
    check.part("laws", laws)
    check.part("kill and resume", killed)
    for process in ahead:
        process.wait()
    check.part("gradients in bfloat16", gradients)
    check.part("steps of fit", speed)
    check.part("sampler", sampler)
    check.part("beside diffusers", beside_diffusers)
    check.figures["seconds"] = time.monotonic() - check.began
    check.figures["failed"] = check.failed
    name = re.sub(r"[^a-z0-9]+", "-", check.figures["machine"]["device"].lower())
    path = args.out / f"gpu-{name}.json"
    if not args.tiny:
        args.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(check.figures, indent=1) + "\n")
        print(f"\nwritten: {path}")
    print(f"{check.figures['seconds']:.0f} s; {len(check.failed)} laws failed")
    return int(bool(check.failed))


if __name__ == "__main__":
    sys.exit(main())
