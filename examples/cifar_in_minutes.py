"""The paper's CIFAR-10 network, trained for minutes on one GPU instead of for a day.

    python examples/cifar_in_minutes.py --data data --minutes 8
    python examples/cifar_in_minutes.py --data some.bin --test other.bin \
        --device cpu --tiny

--data is as in train_cifar.py. The network, T, the schedule, the loss and the sampler
are the paper's. So that a short run ends well, the learning rate is larger and falls
along half a cosine, and the moving average is over fewer steps. A few steps are timed
first, and as many are done as fit into --minutes; compiling, the samples and the bound
take their time besides. Writes in --out: checkpoint.pt, figures.json, loss.png;
grid.png and samples.npz, pictures drawn by Algorithm 2, unclamped; and bound.json, the
bits/dim of --test pictures.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Generator, Tensor

from tinyddpm import linear_schedule, sample, to_float, to_uint8
from tinyddpm.beyond.estimate import estimate_bits_per_dim
from tinyddpm.data import drawer
from tinyddpm.unet import UNet
from tinyddpm.workshop.drawing import save
from tinyddpm.workshop.files import write_whole
from tinyddpm.workshop.machine import choose_precision
from tinyddpm.workshop.pictures import grid, save_png
from tinyddpm.workshop.progress import Progress, errors_as_sentences
from tinyddpm.workshop.readers import read_cifar10, read_cifar10_file
from tinyddpm.workshop.report import mean_and_error
from tinyddpm.workshop.run import fit, seconds_a_step
from tinyddpm.workshop.scripts import say_out_of_range
from tinyddpm.workshop.settings import TrainConfig, pick_device
from tinyddpm.workshop.speed import faster


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="data", help="training pictures")
    parser.add_argument("--test", help="for the bound; CIFAR-10's folder has its own")
    parser.add_argument("--minutes", type=float, default=8, help="of training alone")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=6e-4, help="falls to a hundredth")
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--samples", type=int, default=256, help="for samples.npz")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu")
    parser.add_argument(
        "--tiny", action="store_true", help="a small network, for a CPU"
    )
    parser.add_argument("--out", type=Path, default=Path("out/cifar-in-minutes"))
    args = parser.parse_args(argv)
    if not args.minutes > 0 or min(args.batch, args.samples) < 1:
        raise ValueError("--minutes, --batch and --samples must be above 0")
    if args.test is None and Path(args.data).is_file():
        raise ValueError(
            f"the bound needs pictures that were not trained on: {args.data} is one "
            f"file; give another one as --test"
        )
    if (args.out / "checkpoint.pt").exists():
        raise FileExistsError(f"{args.out} holds a run already; give another --out")
    device, began = pick_device(args.device), time.perf_counter()
    images = read(args.data, "train").to(device)
    test = to_float(read(args.test or args.data, "test")).to(device)

    torch.manual_seed(0)
    s = linear_schedule(25 if args.tiny else 1000)
    bf16, why = choose_precision(device, None)
    narrow = (32, (1, 2), (1,)) if args.tiny else ()
    net = UNet(3, *narrow, dropout=0.0).to(device)  # too short a run to overfit
    draw = drawer(images, flip=True)
    config = TrainConfig(
        steps=20, batch=args.batch, lr=args.lr, lr_end=args.lr / 100, ema=args.ema,
        log_every=20, save_every=1_000, bf16=bf16,
    )  # fmt: skip
    seconds = seconds_a_step(s, net, draw, config)
    steps = max(20, int(60 * args.minutes / seconds) // 20 * 20)
    config = replace(config, steps=steps, warmup=steps // 20)
    print(
        f"{len(images):,} pictures; {1e3 * seconds:.1f} ms a step of {args.batch}, so "
        f"{steps:,} steps in {args.minutes:g} minutes; {why}"
    )
    progress = Progress(args.out, config, net, calls=(s.T, args.samples))
    ema = fit(s, net, draw, config, progress, args.out / "checkpoint.pt")
    progress.close()
    print(f"trained, {time.perf_counter() - began:.0f} s after the start", flush=True)

    eps_theta = faster(ema, bf16, compiled=False)
    g = Generator(device).manual_seed(0)
    x_0 = sample(s, eps_theta, (args.samples, 3, 32, 32), g)
    say_out_of_range(x_0)
    v = to_uint8(x_0).cpu()
    save(str(args.out / "samples.npz"), {0: v})
    save_png(args.out / "grid.png", grid(v[:100], 10))
    print(f"drawn, {time.perf_counter() - began:.0f} s after the start", flush=True)

    bound = estimate_bits_per_dim(s, eps_theta, test, g, draws=min(100, s.T - 1))
    bits, error = mean_and_error(bound.total)
    figures = {
        "pictures": len(test),
        "bits/dim": bits,
        "error": error,
        "L_0": mean_and_error(bound.L_0)[0],
        "steps": steps,
        "seconds a step": seconds,
        "seconds": time.perf_counter() - began,
    }
    with write_whole(args.out / "bound.json") as file:
        file.write(json.dumps(figures, indent=1).encode())
    print(f"{len(test)} test pictures: {bits:.3f} ± {error:.3f} bits/dim at most")


def read(path: str, split: str) -> Tensor:
    """The pictures of a .bin file, or of CIFAR-10's folder, uint8 (N, 3, 32, 32)."""
    if Path(path).is_file():
        return read_cifar10_file(path)[0]
    return read_cifar10(path, split)[0]


if __name__ == "__main__":
    with errors_as_sentences():
        main(sys.argv[1:])
