"""Classifier-free guidance (Ho & Salimans 2022): the same noise for each class and w.

    python -m tinyddpm train sprites_16x16.npy --labels sprite_labels.npy
    python examples/guidance.py --checkpoint out/train/checkpoint.pt --clip-x-0

Writes guidance.png: a row for each class, and in it, side by side, pictures for each
guidance w. The pictures of a column begin with the same x_T and have the same z, so
that what differs is the class and w alone.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from tinyddpm import Schedule, to_uint8
from tinyddpm.beyond.guidance import guided
from tinyddpm.workshop.checkpoint import load_checkpoint, rebuild
from tinyddpm.workshop.drawing import draw, sampler_of
from tinyddpm.workshop.machine import precision_to_sample
from tinyddpm.workshop.pictures import grid, save_png
from tinyddpm.workshop.progress import errors_as_sentences
from tinyddpm.workshop.scripts import say_out_of_range
from tinyddpm.workshop.settings import pick_device
from tinyddpm.workshop.speed import faster


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="of a network with classes")
    parser.add_argument("--guidance", type=float, nargs="+", default=[0, 1, 3])
    parser.add_argument("--pictures", type=int, default=6, help="of each class and w")
    parser.add_argument("--steps", type=int, default=125, help="of the T steps")
    parser.add_argument("--clip-x-0", action="store_true", help="clamp x̂_0")
    parser.add_argument("--seed", type=int, default=0, help="of all randomness")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--out", default="out/guidance", help="folder of the picture")
    return parser


def main(argv: list[str]) -> None:
    args = flags().parse_args(argv)
    if args.pictures < 1:
        raise ValueError(f"--pictures must be at least 1, got {args.pictures}")
    device, kept = pick_device(args.device), load_checkpoint(args.checkpoint)
    s, net = Schedule(kept.beta).to(device), rebuild(kept).to(device)
    K, n = getattr(net, "num_classes", None), args.pictures
    if K is None:
        raise ValueError(f"{args.checkpoint} has no classes to be guided towards")
    bf16, why = precision_to_sample(device, None, kept.config.get("bf16"))
    net = faster(net, bf16, compiled=False)
    print(f"{K} classes, w = {', '.join(f'{w:g}' for w in args.guidance)}; {why}")

    def of_class(c: int, w: float) -> Tensor:
        """n pictures, (n, C, H, W), of one class."""
        eps_theta = guided(net, c, w)
        steps, step = sampler_of(
            s, eps_theta, "ddpm", args.steps, clip_x_0=args.clip_x_0
        )
        *_, (_, x_0) = draw(steps, step, kept.shape, range(n), args.seed, device)
        return x_0

    # n pictures for each w, and between them a white one
    rows = torch.stack(
        [torch.stack([of_class(c, w) for w in args.guidance]) for c in range(K)]
    )
    say_out_of_range(rows.flatten(0, 2))
    white = torch.ones_like(rows[:, :, :1])
    row = torch.cat([rows, white], 2).flatten(1, 2)[:, :-1]
    path = Path(args.out) / "guidance.png"
    scale = max(1, 48 // max(kept.shape[1:]))
    save_png(path, grid(to_uint8(row).flatten(0, 1), row.shape[1], scale))
    print(f"a row for each class: {path}")


if __name__ == "__main__":
    with errors_as_sentences():
        main(sys.argv[1:])
