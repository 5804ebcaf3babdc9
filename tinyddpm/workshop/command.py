"""python -m tinyddpm: train, sample, interpolate, bound, export, info, doctor.

    python -m tinyddpm train PATH --minutes 20     # Algorithm 1 on your own pictures
    python -m tinyddpm sample CHECKPOINT           # Algorithm 2, to out/sample.png
    python -m tinyddpm sample CHECKPOINT --sampler ddim --steps 50 --out samples.npz
    python -m tinyddpm interpolate CHECKPOINT --data PATH --first 0 --second 1
    python -m tinyddpm bound CHECKPOINT --data PATH --pictures 64 --draws 50
    python -m tinyddpm export CHECKPOINT --out folder/   # a U-Net for diffusers
    python -m tinyddpm info CHECKPOINT             # what a checkpoint holds
    python -m tinyddpm doctor                      # what this machine is fast in

PATH is a folder of photos, an IDX file or a folder of MNIST's files, a .npy file,
CIFAR-10's binary version, or, but for train, the word "gradients" for the toy's own.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ..beyond.estimate import estimate_bits_per_dim
from ..beyond.gradients import gradient_images
from ..beyond.guidance import guided
from ..beyond.pretrained import unet_to_diffusers
from ..bound import rate_distortion
from ..data import to_float, to_uint8
from ..sampler import interpolate
from ..schedule import Schedule
from .checkpoint import Checkpoint, load_checkpoint, rebuild
from .datasets import as_they_are, hold_out, padded
from .drawing import (
    draw,
    draw_all,
    kept_steps,
    refuse_what_cannot_be_written,
    sampler_of,
    save,
)
from .interrupts import out_of_memory
from .machine import precision_to_sample
from .pictures import grid, save_png
from .progress import speak_any_terminal
from .report import save_rate_distortion_plot, table
from .scripts import say_out_of_range
from .settings import Renamed, pick_device
from .speed import faster

WEIGHTS = {"ema": ("ema", "EMA weights"), "raw": ("weights", "raw weights")}
EXPORT = """Writes the U-Net of a checkpoint as a folder that diffusers opens.

Pictures for a public FID tool are what `sample` writes; the usual protocol, which the
paper follows, is 50,000 pictures of the EMA weights against the training set:

    python -m tinyddpm sample CHECKPOINT --pictures 50000 --out samples.npz

samples.npz has one array of 8-bit pictures (N, H, W, channels), arr_0, as the
evaluator of guided-diffusion reads it; --out samples/ gives a folder of PNG files, as
torch-fidelity and clean-fid read it. Make the reference statistics with the same tool,
from the training pictures at the network's own size: a FID against the test set, of
fewer pictures or by another tool is another number.
"""


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, or 2 after a sentence on stderr."""
    speak_any_terminal()
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["train"]:  # its flags are made from its settings
        from .training import main as train

        return _run("train", lambda: train(argv[1:]))
    args = _flags().parse_args(argv)
    commands = {"sample": _sample, "interpolate": _interpolate, "bound": _bound}
    commands |= {"export": _export, "info": _info, "doctor": _doctor}
    return _run(args.command, lambda: commands[args.command](args))


def _run(command: str, work: Callable[[], None]) -> int:
    try:
        work()
    except OSError as error:
        named = f"{error.filename}: {error.strerror}" if error.filename else error
        return _fail(command, named)
    except ModuleNotFoundError as error:
        return _fail(command, f"{error}; install the extra [scripts], see README")
    except (ImportError, ValueError, FloatingPointError) as error:
        return _fail(command, error)
    except KeyboardInterrupt:
        print(f"\ntinyddpm {command}: interrupted", file=sys.stderr)
        return 130
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not out_of_memory(error):
            raise
        lower = {"bound": "--chunk", "sample": "--batch"}.get(command, "--batch")
        return _fail(command, f"out of memory; give a smaller {lower} ({error})")
    return 0


def _fail(command: str, why: object) -> int:
    print(f"tinyddpm {command}: {why}", file=sys.stderr)
    return 2


def _flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tinyddpm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument("checkpoint", help="written by a training script")
    model.add_argument(
        "--weights",
        choices=list(WEIGHTS),
        default="ema",
        help="ema is their moving average, raw is what Algorithm 1 left",
    )
    model.add_argument(
        "--sigma2",
        choices=["beta", "beta_tilde", "fixedlarge"],
        default="beta",
        help="σ_t²; fixedlarge is β_t but β̃_2 in eq. 13, as in the authors' code",
    )
    model.add_argument("--clip-x-0", action="store_true", help="clamp x̂_0 to [-1, 1]")
    model.add_argument("--clip", action=Renamed, new="--clip-x-0")
    both = argparse.ArgumentParser(add_help=False, parents=[model])
    both.add_argument("--seed", type=int, default=0, help="of all randomness")
    both.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    both.add_argument(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        help="matrix products in bfloat16; if not given, where the run was trained so "
        "and this machine is fast in it",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    commands.add_parser(
        "train", help="Algorithm 1 on your own pictures; train --help has its flags"
    )

    def add(name: str, parent: argparse.ArgumentParser, text: str) -> Any:
        of = commands.add_parser(name, parents=[parent], help=text)
        of.description = f"{text[0].upper()}{text[1:]}."
        return of

    of = add("sample", both, "pictures, by Algorithm 2 or in fewer steps")
    of.add_argument("--pictures", type=int, default=64, help="how many")
    of.add_argument("--batch", type=int, default=64, help="pictures at a time")
    of.add_argument(
        "--sampler",
        choices=["ddpm", "ddim"],
        default="ddpm",
        help="ddpm is Algorithm 2, ddim Song et al. 2020",
    )
    of.add_argument("--steps", type=int, help="of the T steps; if not given, all")
    of.add_argument("--eta", type=float, default=0.0, help="ddim's noise, 0 to 1")
    of.add_argument(
        "--class", dest="of_class", metavar="CLASS", help="its name or number, from 0"
    )
    of.add_argument(
        "--guidance", type=float, default=0.0, help="w of (1+w) ε(x,t,c) - w ε(x,t)"
    )
    of.add_argument(
        "--out",
        default="out/sample.png",
        help="grid.png, chain.gif, samples.npz, or a folder/",
    )

    of = add("interpolate", both, "section 4.4: from one picture to another, to a PNG")
    of.add_argument("--data", required=True, help="where the two pictures are")
    of.add_argument("--first", type=int, default=0, help="the one at λ = 0, from 0")
    of.add_argument("--second", type=int, default=1, help="the one at λ = 1")
    of.add_argument("--t", type=int, help="the step to mix at; if not given, T/2")
    of.add_argument("--steps", type=int, default=9, help="how many λ from 0 to 1")
    of.add_argument("--out", default="out/interpolate.png", help="a .png file")

    of = add("bound", both, "eq. 5, the bound on -log p of pictures, in bits/dim")
    of.add_argument("--data", required=True, help="the pictures to charge for")
    of.add_argument(
        "--held-out",
        action="store_true",
        help="only those that training left out, as its --held-out asked for",
    )
    of.add_argument("--pictures", type=int, default=64, help="how many, drawn by seed")
    of.add_argument(
        "--draws", type=int, help="t for each picture; if not given, every t"
    )
    of.add_argument("--chunk", type=int, default=128, help="pictures a network call")
    of.add_argument("--plot", help="write rate and distortion (figure 5) to this PNG")

    of = add("export", model, "a U-Net for diffusers; its --help has a recipe for FID")
    of.description, of.formatter_class = EXPORT, argparse.RawDescriptionHelpFormatter
    of.add_argument("--out", required=True, help="the folder, which is not there yet")

    of = commands.add_parser("info", help="what a checkpoint holds")
    of.add_argument("checkpoint", help="written by a training script")

    of = commands.add_parser("doctor", help="this machine: rates, steps, advice")
    of.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    every = {action for of in commands.choices.values() for action in of._actions}
    for action in every:  # parents lend theirs to several commands
        if not any(action.default is x for x in (None, False, argparse.SUPPRESS)):
            action.help = f"{action.help}; default: {action.default}"
    return parser


def _open(
    args: argparse.Namespace, of_class: str | None = None, guidance: float = 0.0
) -> tuple[Checkpoint, Schedule, Callable[..., Tensor], Generator]:
    """The checkpoint, and what its network answers, of which it says all.

    Returns: the checkpoint; its schedule; ε_θ(x_t, t), of the class asked for; and the
    generator of the seed, on the device.
    """
    if not 0 <= args.seed < 2**62:
        raise ValueError(f"--seed must lie in 0..2^62 - 1, got {args.seed}")
    device = pick_device(args.device)
    checkpoint = load_checkpoint(args.checkpoint)
    kept, name = WEIGHTS[args.weights]
    s, net = Schedule(checkpoint.beta), rebuild(checkpoint, kept).to(device)
    c = _class(args.checkpoint, checkpoint, net, of_class, guidance)
    bf16, precision = precision_to_sample(
        device, args.bf16, checkpoint.config.get("bf16")
    )
    fast = faster(net, bf16, compiled=False)
    eps_theta = fast if c is None else guided(fast, c, guidance)
    more = ", x̂_0 clamped to [-1, 1]" if args.clip_x_0 else ""
    if getattr(net, "num_classes", None) is not None:
        more += f', for the class "{"none" if c is None else of_class}"'
    more += f", guidance w = {guidance:g}" if guidance else ""
    print(
        f"{args.checkpoint}: {type(net).__name__} after step {checkpoint.step:,}, "
        f"{name}; T = {s.T}, σ² = {args.sigma2}{more}; {precision}"
    )
    return checkpoint, s, eps_theta, Generator(device).manual_seed(args.seed)


def _class(
    path: str,
    checkpoint: Checkpoint,
    net: nn.Module,
    of_class: str | None,
    guidance: float,
) -> int | None:
    """The number of the class of that name or number; None where none is asked for."""
    if of_class is None:
        if guidance:
            raise ValueError("--guidance needs a --class to guide towards")
        return None
    number = getattr(net, "num_classes", None)
    if number is None:
        raise ValueError(f"{path} has no classes; leave out --class")
    names = list(checkpoint.config.get("names") or ())
    if of_class in names:
        return names.index(of_class)
    if of_class.isdecimal() and int(of_class) < number:
        return int(of_class)
    known = ", ".join(names) or f"0..{number - 1}"
    raise ValueError(f"the classes are {known}, got {of_class!r}")


def _read(
    args: argparse.Namespace, shape: tuple[int, ...], split: str = "test"
) -> Tensor:
    """Every picture of --data, uint8 (N, C, H, W), of the checkpoint's shape.

    Of its test set if it has one, or by `split` of the set that was trained on.
    """
    C, H, W = shape
    if args.data == "gradients":
        g = Generator().manual_seed(args.seed)
        return to_uint8(gradient_images(max(args.pictures, 1), H, W, g, C))
    images = as_they_are(Path(args.data), (H, W), C, split).images
    more = H - images.shape[2], W - images.shape[3]
    if any(more) and all(0 <= n < 8 for n in more):  # as in training: 28 to 32, say
        print(f"{args.data}: black pixels are put around each picture, to {H}x{W}")
        images = padded(images, (H, W), args.data)
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
    for name in ("pictures", "batch"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}")
    refuse_what_cannot_be_written(args.out)
    checkpoint, s, eps_theta, g = _open(args, args.of_class, args.guidance)
    refuse_what_cannot_be_written(args.out, checkpoint.shape[0])
    steps, step = sampler_of(
        *(s.to(g.device), eps_theta, args.sampler, args.steps, args.eta),
        *(args.sigma2, args.clip_x_0),
    )

    def of_batch(numbers: range) -> Iterator[tuple[int, Tensor]]:
        return draw(steps, step, checkpoint.shape, numbers, args.seed, g.device)

    keep = kept_steps(args.out, steps)
    frames = draw_all(of_batch, args.pictures, args.batch, len(steps), keep)
    save(args.out, frames)
    print(f"{args.pictures} samples, {len(steps)} steps each: {args.out}")


def _export(args: argparse.Namespace) -> None:
    checkpoint = load_checkpoint(args.checkpoint)
    kept, name = WEIGHTS[args.weights]
    s, net = Schedule(checkpoint.beta), rebuild(checkpoint, kept)
    _, H, W = checkpoint.shape
    unet_to_diffusers(net, args.out, s, (H, W), args.sigma2, args.clip_x_0)
    print(f"{args.checkpoint}: {name} after step {checkpoint.step:,}, written to")
    for file in sorted(Path(args.out).rglob("*.*")):
        print(f"  {file}, {file.stat().st_size:,} bytes")
    print(
        f"Open it, and draw a picture by Algorithm 2, with diffusers:\n"
        f"  from diffusers import DDPMPipeline; "
        f"pipeline = DDPMPipeline.from_pretrained({args.out!r})\n"
        f'  pipeline(num_inference_steps={s.T}).images[0].save("sample.png")'
    )


def _info(args: argparse.Namespace) -> None:
    checkpoint = load_checkpoint(args.checkpoint)
    s = Schedule(checkpoint.beta)
    theta = sum(x.numel() for x in checkpoint.weights.values())
    name, arguments = checkpoint.network or ("a network of another program", {})
    told = checkpoint.told.tolist()
    print(f"{args.checkpoint}: step {checkpoint.step:,}, {theta:,} weights")
    print(f"network   {name}({', '.join(f'{k}={v}' for k, v in arguments.items())})")
    print(f"pictures  {'x'.join(map(str, checkpoint.shape))}")
    print(f"schedule  {s}")
    if told:
        print(f"L_simple  {told[-1][2]:.4f} at step {int(told[-1][0]):,}")
        print(f"time      {told[-1][1]:.0f} s of training")
    for key, value in checkpoint.config.items():
        print(f"  {key} = {value}")


def _interpolate(args: argparse.Namespace) -> None:
    _check(args.out, "--steps", args.steps)
    checkpoint, s, eps_theta, g = _open(args)
    refuse_what_cannot_be_written(args.out, checkpoint.shape[0])
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
        s, eps_theta, pair[:1], pair[1:], lam, t, g, args.sigma2, args.clip_x_0
    )
    say_out_of_range(between[:, 0])
    row = torch.cat([pair[:1], between[:, 0], pair[1:]])
    save_png(args.out, grid(to_uint8(row), len(row)))
    print(f"x_0, λ = 0..1 mixed at t = {t}, x'_0: {args.out}")


def _bound(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    _check(args.plot, "--pictures", args.pictures)
    if args.plot and args.draws is not None:
        raise ValueError("--plot needs every t: give it without --draws")
    checkpoint, s, eps_theta, g = _open(args)
    left = checkpoint.config.get("held_out", 0) if args.held_out else 0
    if args.held_out and not left:
        raise ValueError(
            f"{args.checkpoint} was trained on all its pictures: leave out --held-out, "
            f"and give others in --data"
        )
    images = _read(args, checkpoint.shape, "train" if left else "test")
    images = images[hold_out(left, len(images))[1]] if left else images
    n = min(args.pictures, len(images))
    chosen = torch.randperm(len(images), generator=Generator().manual_seed(args.seed))
    x_0 = to_float(images[chosen[:n]]).to(g.device)
    print(f"{n} of {len(images):,} pictures of {args.data}, drawn by seed {args.seed}")
    with tqdm(disable=None, unit=" pictures") as bar:

        def progress(seen: int, of: int) -> None:
            bar.total = of
            bar.update(seen - bar.n)

        bound = estimate_bits_per_dim(
            *(s, eps_theta, x_0, g, args.sigma2, args.clip_x_0),
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
    if Path(out).suffix.lower() != ".png" or Path(out).is_dir():
        raise ValueError(f"pictures are written as .png files, got {out!r}")
    refuse_what_cannot_be_written(out)


if __name__ == "__main__":
    sys.exit(main())
