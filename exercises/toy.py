"""`python -m exercises run`: the toy, trained with the reader's modules, and ours."""

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from tinyddpm.beyond.gradients import gradient_drawer, gradient_images
from tinyddpm.beyond.oracle import gradient_floor, gradient_oracle
from tinyddpm.data import to_uint8
from tinyddpm.forward import q_sample
from tinyddpm.schedule import linear_schedule

SIDE = 4  # pixels of a picture
T = 100
STEPS = 1500
EVALUATED = 4000
SHOWN = 12


def run(out: Path, steps: int = STEPS) -> str:
    """Trains twice, writes samples.png, and says how far each is above the floor."""
    s = linear_schedule(T)
    floor = float(gradient_floor(s, SIDE, SIDE)[1:].mean())
    rows = [
        ("the data", gradient_images(SHOWN, SIDE, SIDE, Generator().manual_seed(3)))
    ]
    lines = [
        f"the exact floor of L_simple is {floor:.5f}; above it after {steps} steps:"
    ]
    for whose, package in (("yours", "my_ddpm"), ("ours", "tinyddpm")):
        print(f"training {whose} ...", file=sys.stderr, flush=True)
        above, x_0 = trained(package, steps)
        lines.append(f"  {whose:6} {100 * above / floor:.3g} %")
        rows.append((whose, x_0))
    save(out / "samples.png", rows)
    return "\n".join([*lines, f"samples: {out / 'samples.png'}"])


def trained(package: str, steps: int) -> tuple[float, Tensor]:
    """How far the network gets above the floor, ‖ε_θ - ε*‖²/D, and its samples."""
    room: Any = {
        name: importlib.import_module(f"{package}.{name}")
        for name in ("schedule", "train", "sampler", "mlp")
    }
    s = room["schedule"].linear_schedule(T)
    torch.manual_seed(0)
    net = room["mlp"].MLP((3, SIDE, SIDE))
    h = room["train"].Hyperparameters(
        steps=steps, batch=256, lr=2e-3, lr_end=0.0, warmup=50, ema=0.99, seed=0
    )
    ema = room["train"].fit(s, net, gradient_drawer(SIDE, SIDE), h)
    x_0 = gradient_images(EVALUATED, SIDE, SIDE, Generator().manual_seed(1))
    t = 1 + torch.arange(EVALUATED) % T
    eps = torch.randn(x_0.shape, generator=Generator().manual_seed(2))
    exact = linear_schedule(T)
    x_t = q_sample(exact, x_0, t, eps)
    with torch.no_grad():
        off = ema(x_t, t) - gradient_oracle(exact, SIDE, SIDE)(x_t, t)
    shape = (SHOWN, 3, SIDE, SIDE)
    made = room["sampler"].sample(s, ema, shape, Generator().manual_seed(4))
    return float(off.double().square().mean()), made.detach().float()


def save(path: Path, rows: list[tuple[str, Tensor]]) -> None:
    """One row of pictures above the other; what is not finite is shown black."""
    from tinyddpm.workshop.pictures import save_strip

    path.parent.mkdir(parents=True, exist_ok=True)
    blank = [""] * SHOWN
    save_strip(
        path,
        [(name, blank, to_uint8(x.nan_to_num(-1, -1, -1))) for name, x in rows],
    )
