"""python -m tinyddpm sample | interpolate | bound | doctor: a checkpoint put to use.

What lives here: flags, files, and what is printed. What does not: any formula
(`sampler.py`, `bound.py`). Needs the extra [scripts].

    python -m tinyddpm sample CHECKPOINT
    python -m tinyddpm interpolate CHECKPOINT --data PATH --first 0 --second 1
    python -m tinyddpm bound CHECKPOINT --data PATH --pictures 64 --draws 50
    python -m tinyddpm doctor      # what this machine is fast in, and what to change

--data is CIFAR-10's binary version (a folder or one .bin file), an IDX file, a .npy
file, a folder of photos, or the word "gradients" for the toy's own.
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import pad

from ..beyond.estimate import estimate_bits_per_dim
from ..beyond.gradients import gradient_images
from ..bound import rate_distortion
from ..data import to_float, to_uint8
from ..sampler import interpolate, p_sample_loop
from ..schedule import Schedule
from .checkpoint import Checkpoint, load_checkpoint, rebuild
from .interrupts import out_of_memory
from .pictures import grid, save_png
from .readers import (
    CIFAR10_FOLDER,
    read_cifar10,
    read_cifar10_file,
    read_idx_images,
    read_image_folder,
    read_npy_images,
)
from .report import save_rate_distortion_plot, table
from .settings import Renamed, pick_device

WEIGHTS = {"ema": ("ema", "EMA weights"), "raw": ("weights", "raw weights")}


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, or 2 after a sentence on stderr."""
    args = _flags().parse_args(argv)
    commands = {"sample": _sample, "interpolate": _interpolate, "bound": _bound}
    commands["doctor"] = _doctor
    try:
        commands[args.command](args)
    except OSError as error:
        named = f"{error.filename}: {error.strerror}" if error.filename else error
        return _fail(args, named)
    except ModuleNotFoundError as error:
        return _fail(args, f"{error}; install the extra [scripts], see README")
    except ValueError as error:
        return _fail(args, error)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        lower = "--chunk" if args.command == "bound" else "--pictures"
        return _fail(args, f"out of memory; give a smaller {lower} ({error})")
    return 0


def _fail(args: argparse.Namespace, why: object) -> int:
    print(f"tinyddpm {args.command}: {why}", file=sys.stderr)
    return 2


def _flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tinyddpm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    both = argparse.ArgumentParser(add_help=False)
    both.add_argument("checkpoint", help="written by a training script")
    both.add_argument("--weights", choices=list(WEIGHTS), default="ema")
    both.add_argument(
        "--sigma2",
        choices=["beta", "beta_tilde", "fixedlarge"],
        default="beta",
        help="σ_t²; fixedlarge is β_t but β̃_2 in eq. 13, as in the authors' code",
    )
    both.add_argument("--clip-x-0", action="store_true", help="clamp x̂_0 to [-1, 1]")
    both.add_argument("--clip", action=Renamed, new="--clip-x-0")
    both.add_argument("--seed", type=int, default=0, help="of all randomness")
    both.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    commands = parser.add_subparsers(dest="command", required=True)

    of = commands.add_parser("sample", parents=[both], help="Algorithm 2, to a PNG")
    of.add_argument("--pictures", type=int, default=64, help="how many")
    of.add_argument("--out", default="out/sample.png")

    of = commands.add_parser(
        "interpolate", parents=[both], help="section 4.4, to a PNG"
    )
    of.add_argument("--data", required=True, help="where the two pictures are")
    of.add_argument("--first", type=int, default=0, help="the one at λ = 0, from 0")
    of.add_argument("--second", type=int, default=1, help="the one at λ = 1")
    of.add_argument("--t", type=int, help="the step to mix at; T/2 if not given")
    of.add_argument("--steps", type=int, default=9, help="how many λ from 0 to 1")
    of.add_argument("--out", default="out/interpolate.png")

    of = commands.add_parser("bound", parents=[both], help="eq. 5 in bits/dim")
    of.add_argument("--data", required=True, help="the pictures to charge for")
    of.add_argument("--pictures", type=int, default=64, help="how many, drawn by seed")
    of.add_argument(
        "--draws", type=int, help="t for each picture; every t if not given"
    )
    of.add_argument("--chunk", type=int, default=128, help="pictures a network call")
    of.add_argument("--plot", help="write rate and distortion (figure 5) to this PNG")

    of = commands.add_parser("doctor", help="this machine: rates, steps, advice")
    of.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    return parser


def _open(
    args: argparse.Namespace,
) -> tuple[Checkpoint, Schedule, nn.Module, Generator]:
    """The checkpoint, and its network on the device, which it says all about."""
    if not 0 <= args.seed < 2**62:
        raise ValueError(f"--seed must lie in 0..2^62 - 1, got {args.seed}")
    device = pick_device(args.device)
    checkpoint = load_checkpoint(args.checkpoint)
    kept, name = WEIGHTS[args.weights]
    s, net = Schedule(checkpoint.beta), rebuild(checkpoint, kept).to(device)
    more = ", x̂_0 clamped to [-1, 1]" if args.clip_x_0 else ""
    if getattr(net, "num_classes", None) is not None:
        more += ', for the class "none"'
    print(
        f"{args.checkpoint}: {type(net).__name__} after step {checkpoint.step:,}, "
        f"{name}; T = {s.T}, σ² = {args.sigma2}{more}"
    )
    return checkpoint, s, net, Generator(device).manual_seed(args.seed)


def _read(args: argparse.Namespace, shape: tuple[int, ...]) -> Tensor:
    """Every picture of --data, uint8 (N, C, H, W), of the checkpoint's shape."""
    C, H, W = shape
    path = Path(args.data)
    if args.data == "gradients":
        g = Generator().manual_seed(args.seed)
        return to_uint8(gradient_images(max(args.pictures, 1), H, W, g, C))
    if path.suffix.lower() in (".npy", ".npz"):
        images = read_npy_images(path)
    elif path.suffix.lower() == ".bin":
        images, _ = read_cifar10_file(path)
    elif (path / CIFAR10_FOLDER).is_dir() or any(path.glob("*.bin")):
        images, _ = read_cifar10(path, "test")
    elif path.is_dir():
        images, _, _ = read_image_folder(path, (H, W), C)
    else:
        images = read_idx_images(path)
    if images.shape[2:] == (28, 28) and (H, W) == (32, 32):  # (Fashion-)MNIST
        print(f"{args.data}: 2 black pixels put around each picture")
        images = pad(images, (2, 2, 2, 2))
    if images.shape[1:] != torch.Size(shape):
        raise ValueError(
            f"{args.checkpoint} is for pictures {tuple(shape)}, {args.data} holds "
            f"{tuple(images.shape[1:])}; give the data it was trained for"
        )
    return images


def _doctor(args: argparse.Namespace) -> None:
    from .doctor import doctor  # it alone needs the networks

    print(doctor(args.device))


def _sample(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    _check(args.out, "--pictures", args.pictures)
    checkpoint, s, net, g = _open(args)
    x_T = torch.randn(args.pictures, *checkpoint.shape, generator=g, device=g.device)
    loop = p_sample_loop(s, net, x_T, g, args.sigma2, args.clip_x_0)
    for _, x_t, _ in tqdm(loop, total=s.T + 1, disable=None):
        x_0 = x_t
    save_png(args.out, grid(to_uint8(x_0)))
    print(f"{args.pictures} samples: {args.out}")


def _interpolate(args: argparse.Namespace) -> None:
    _check(args.out, "--steps", args.steps)
    checkpoint, s, net, g = _open(args)
    args.pictures = max(args.first, args.second) + 1
    images = _read(args, checkpoint.shape)
    for index in (args.first, args.second):
        if not 0 <= index < len(images):
            raise ValueError(
                f"{args.data} has pictures 0..{len(images) - 1}, got {index}"
            )
    t = max(1, s.T // 2) if args.t is None else args.t
    pair = to_float(images[[args.first, args.second]]).to(g.device)
    lam = torch.linspace(0, 1, args.steps)
    between = interpolate(
        s, net, pair[:1], pair[1:], lam, t, g, args.sigma2, args.clip_x_0
    )
    row = torch.cat([pair[:1], between[:, 0], pair[1:]])
    save_png(args.out, grid(to_uint8(row), len(row)))
    print(f"x_0, λ = 0..1 mixed at t = {t}, x'_0: {args.out}")


def _bound(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    _check(args.plot, "--pictures", args.pictures)
    if args.plot and args.draws is not None:
        raise ValueError("--plot needs every t: give it without --draws")
    checkpoint, s, net, g = _open(args)
    images = _read(args, checkpoint.shape)
    n = min(args.pictures, len(images))
    chosen = torch.randperm(len(images), generator=Generator().manual_seed(args.seed))
    x_0 = to_float(images[chosen[:n]]).to(g.device)
    print(f"{n} of {len(images):,} pictures of {args.data}, drawn by seed {args.seed}")
    with tqdm(disable=None, unit=" pictures") as bar:

        def progress(seen: int, of: int) -> None:
            bar.total = of
            bar.update(seen - bar.n)

        bound = estimate_bits_per_dim(
            *(s, net, x_0, g, args.sigma2, args.clip_x_0),
            *(args.draws, args.chunk, progress),
        )
    print(table(bound, every_t=args.draws is None))
    if args.data == "gradients":
        H, W = x_0.shape[2:]
        print(f"entropy of the data: 2 log2(256)/(H W) = {16 / (H * W):.5f} bits/dim")
    if args.plot:
        save_rate_distortion_plot(args.plot, *rate_distortion(bound))
        print(f"rate and distortion: {args.plot}")


def _check(out: str | None, flag: str, count: int) -> None:
    """Refuses what would otherwise fail after the work is done."""
    if count < 1:
        raise ValueError(f"{flag} must be at least 1, got {count}")
    if out is None:
        return
    folder = Path(out).parent
    if Path(out).suffix != ".png" or Path(out).is_dir():
        raise ValueError(f"pictures are written as .png files, got {out!r}")
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OSError(f"cannot write {out}; give a folder that can be written")


if __name__ == "__main__":
    sys.exit(main())
