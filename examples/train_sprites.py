"""Sprites, 16x16 RGB, each drawn for the class asked for.

    python examples/train_sprites.py --data data/sprites_16x16.npy \
        --labels data/sprite_labels.npy                   # 2 cores, minutes
    ... --full                                            # for a GPU

Reads two .npy files: uint8 (N, 16, 16, 3), or another size that divides by 4, and
one-hot labels (N, K). Writes in --out: checkpoint.pt, loss.png, figures.json, and
samples of the weights' moving average, a row for each class and a last one for no
class: grid.png, and reverse.gif, in which they come out of the noise.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Generator, Tensor, nn

from tinyddpm import Schedule, linear_schedule, p_sample_loop
from tinyddpm.config import TrainConfig, flags, from_flags, pick_device
from tinyddpm.data import Draw, drawer
from tinyddpm.pictures import grid, save_gif, save_png, to_uint8
from tinyddpm.progress import Progress, errors_as_sentences
from tinyddpm.readers import read_npy_images, read_npy_labels
from tinyddpm.runtime import autocast
from tinyddpm.train import fit
from tinyddpm.unet import UNet

FRAMES = 50  # of the animation


@dataclass(frozen=True)
class Config(TrainConfig):
    data: Annotated[str, "the pictures, a .npy file"] = "data/sprites_16x16.npy"
    labels: Annotated[str, "their classes, a .npy file"] = "data/sprite_labels.npy"
    out: Annotated[str, "folder for what is written"] = "out/sprites"
    device: Annotated[str, "auto, cpu, cuda or cuda:<number>"] = "auto"
    samples: Annotated[int, "pictures of each class"] = 8
    none: Annotated[float, "share of pictures trained on without their class"] = 0.1
    T: Annotated[int, "steps; a sample takes as many network calls"] = 250
    base: Annotated[int, "width; the paper's is 128"] = 32
    multipliers: Annotated[tuple[int, ...], "widths of the levels, in bases"] = (
        1,
        2,
        2,
    )
    attention: Annotated[tuple[int, ...], "levels with attention, from 0"] = (1, 2)
    dropout: Annotated[float, "in every block"] = 0.0  # the run is too short to overfit
    steps: Annotated[int, "gradient steps in all"] = 1000
    batch: Annotated[int, "pictures a step"] = 64
    lr: Annotated[float, "Adam's learning rate"] = 1e-3  # a narrow net bears more
    lr_end: Annotated[float | None, "cosine to this at the end"] = 5e-5
    warmup: Annotated[int, "steps of linear warm-up"] = 50
    ema: Annotated[float, "decay of the moving average"] = 0.99  # of about 100 steps
    log_every: Annotated[int, "steps between looks at the loss"] = 20
    save_every: Annotated[int, "steps between checkpoints"] = 200
    bf16: Annotated[bool | None, "network in bfloat16"] = True

    may_change = (*TrainConfig.may_change, "out", "device", "samples")


FULL = Config(
    T=1000, base=128, dropout=0.1, steps=50_000, batch=128, lr=2e-4, lr_end=None,
    warmup=5000, ema=0.9995, log_every=100, save_every=5000, bf16=None,
)  # fmt: skip


def main(argv: list[str]) -> None:
    parser = flags(FULL if "--full" in argv else Config(), __doc__ or "")
    parser.add_argument("--full", action="store_true", help="defaults for a GPU")
    parser.add_argument("--resume", action="store_true", help="go on from --out")
    args = parser.parse_args(argv)
    c = from_flags(Config, args)
    device, s, out = pick_device(c.device), linear_schedule(c.T), Path(c.out)
    for path in (c.data, c.labels):
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} is no file; give --data and --labels")
    images, labels = read_npy_images(c.data), read_npy_labels(c.labels)
    none = int(labels.max()) + 1  # the class after the last one
    draw = drawer(images.to(device), labels.to(device))
    draw = sometimes_without_class(draw, none, c.none)
    torch.manual_seed(c.seed)
    channels = images.shape[1]
    net = UNet(channels, c.base, c.multipliers, c.attention, c.dropout, none).to(device)

    progress = Progress(out, c, net, args.resume)
    ema = fit(s, net, draw, c, progress, out / "checkpoint.pt", args.resume)
    progress.close()

    classes = torch.arange(none + 1, device=device).repeat_interleave(c.samples)
    generator = Generator(device).manual_seed(c.seed)
    size = (len(classes), *images.shape[1:])
    x_T = torch.randn(size, generator=generator, device=device)
    with autocast(device, c.bf16):
        frames = reverse(s, ema, x_T, classes, generator)
    save_png(out / "grid.png", grid(frames[-1], c.samples))
    save_gif(out / "reverse.gif", [grid(v, c.samples, scale=2) for v in frames])


def sometimes_without_class(draw: Draw, none: int, share: float) -> Draw:
    """Puts the class `none` in place of that share of the classes drawn."""

    def draw_some(B: int, generator: Generator | None) -> tuple[Tensor, ...]:
        x_0, c = draw(B, generator)
        u = torch.rand(B, generator=generator, device=c.device)
        return x_0, torch.where(u < share, none, c)

    return draw_some


def reverse(
    s: Schedule, net: nn.Module, x_T: Tensor, c: Tensor, generator: Generator
) -> list[Tensor]:
    """Algorithm 2 for the classes c: about FRAMES of x_T, ..., x_0, in 8 bits."""
    loop = p_sample_loop(s, lambda x_t, t: net(x_t, t, c), x_T, generator)
    return [to_uint8(x_t) for t, x_t, _ in loop if t % max(1, s.T // FRAMES) == 0]


if __name__ == "__main__":
    with errors_as_sentences():
        main(sys.argv[1:])
