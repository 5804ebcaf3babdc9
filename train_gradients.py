"""The toy: colour gradients, a perceptron, Algorithms 1 and 2, in a minute on a CPU.

    python train_gradients.py
    python train_gradients.py --height 5 --width 5 --steps 2000

For these pictures the least loss that any network can reach is known exactly, and so is
the network that reaches it (`tinyddpm/beyond/oracle.py`). What is printed at the end
stands beside both. In --out: samples.png, real and generated pictures; strip.png, the
forward process above the reverse one; loss.png, the loss curve with that floor;
figures.json; live.html, a page on which the network runs Algorithm 2 in a browser.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Generator, Tensor, nn

from tinyddpm.beyond.gradients import (
    gradient_drawer,
    gradient_images,
    held_against_the_law,
)
from tinyddpm.beyond.oracle import gradient_floor, gradient_oracle
from tinyddpm.bound import bits_per_dim
from tinyddpm.data import to_float, to_uint8
from tinyddpm.forward import q_sample
from tinyddpm.mlp import MLP
from tinyddpm.sampler import EpsTheta, p_sample_loop, sample
from tinyddpm.schedule import Schedule, linear_schedule
from tinyddpm.workshop.live import save_live
from tinyddpm.workshop.pictures import save_strip
from tinyddpm.workshop.processes import refuse_several
from tinyddpm.workshop.progress import Progress, errors_as_sentences
from tinyddpm.workshop.report import mean_and_error
from tinyddpm.workshop.run import fit
from tinyddpm.workshop.settings import TrainConfig, flags, from_flags, pick_device
from tinyddpm.workshop.state import by_tenth


@dataclass(frozen=True)
class Config(TrainConfig):
    """Settings of a run of a minute on two cores."""

    out: Annotated[str, "folder for what is written"] = "out/gradients"
    device: Annotated[str, "auto, cpu, cuda or cuda:<number>"] = "cpu"
    height: Annotated[int, "of a picture"] = 8
    width: Annotated[int, "of a picture"] = 8
    T: Annotated[int, "steps; the paper's end points times 1000/T"] = 100
    hidden: Annotated[int, "width of the network"] = 96
    depth: Annotated[int, "layers that t modulates"] = 3
    steps: Annotated[int, "gradient steps in all"] = 6_000
    batch: Annotated[int, "pictures a step"] = 512
    lr: Annotated[float, "Adam's learning rate"] = 4e-3  # a small net bears more
    lr_end: Annotated[float | None, "cosine to this at the end"] = 0.0
    warmup: Annotated[int, "steps of linear warm-up"] = 100
    # The factor 1/√(1-ᾱ_t) of ε_θ is 32 at t = 1, so that the few pictures of small t
    # decide over a batch's gradient. Unbounded they keep the network near the best
    # linear ε_θ for long, 5 % above the floor.
    max_norm: Annotated[float, "bound on the gradient's norm"] = 0.03
    ema: Annotated[float, "decay of the moving average"] = 0.99  # of 100 steps
    save_every: Annotated[int, "steps between checkpoints"] = 2_000

    may_change = (*TrainConfig.may_change, "out", "device")


EVALUATED = 20_000  # fresh pictures that the loss is measured on
SAMPLED = 1024  # pictures generated
BOUNDED = 256  # pictures that the bound is measured on
SHOWN = 11  # pictures in a row


def main(argv: list[str]) -> None:
    parser = flags(Config(), __doc__ or "")
    parser.add_argument("--resume", action="store_true", help="go on from --out")
    args = parser.parse_args(argv)
    refuse_several()
    c = from_flags(Config, args)
    out, device, s = Path(c.out), pick_device(c.device), linear_schedule(c.T)
    draw = gradient_drawer(c.height, c.width, device=device)
    torch.manual_seed(c.seed)
    net = MLP((3, c.height, c.width), c.hidden, c.depth).to(device)
    floor = gradient_floor(s, c.height, c.width)
    progress = Progress(out, c, net, floor)
    ema = fit(s, net, draw, c, progress, out / "checkpoint.pt", args.resume).cpu()

    progress.figures |= figures(s, ema, floor, c)
    progress.close()
    save_pictures(out, s, ema, c)
    save_live(out / "live.html", s, ema)
    print(report(progress.figures))


def figures(s: Schedule, ema: nn.Module, floor: Tensor, c: Config) -> dict[str, Any]:
    """Everything that is printed at the end, measured on pictures not trained on."""
    generator = Generator().manual_seed(c.seed + 1)
    oracle = gradient_oracle(s, c.height, c.width)
    t, above = loss_above_floor(s, ema, oracle, generator, c)
    excess, error = mean_and_error(above)
    least = float(floor[1:].mean())
    shape = (SAMPLED, 3, c.height, c.width)
    result: dict[str, Any] = {
        "L_simple": least + excess,
        "floor": least,
        "excess_per_cent": 100 * excess / least,
        "excess_standard_error": 100 * error / least,
        "L_simple_by_tenth": by_tenth(s.T, t, floor[t] + above),
        "floor_by_tenth": by_tenth(s.T, t, floor[t]),
    }
    x_0 = to_float(to_uint8(gradient_images(BOUNDED, c.height, c.width, generator)))
    for name, eps_theta in (("network", ema), ("oracle", oracle)):
        made = sample(s, eps_theta, shape, generator)
        bound = bits_per_dim(s, eps_theta, x_0, generator)
        total, error = mean_and_error(bound.total)
        result[name] = held_against_the_law(made) | {
            "bound_bits_per_dim": total,
            "bound_standard_error": error,
            "L_0_bits_per_dim": float(bound.L_0.mean()),
        }
    result["entropy_bits_per_dim"] = 2 * 8 / (c.height * c.width)
    return result


def loss_above_floor(
    s: Schedule, ema: nn.Module, oracle: EpsTheta, generator: Generator, c: Config
) -> tuple[Tensor, Tensor]:
    """t and ‖ε_θ - ε*‖²/D for fresh pictures: the mean is L_simple minus its floor.

    ‖ε - ε_θ‖²/D, whose mean is L_simple, would say the same with a far larger error: it
    varies with the part of ε that no network can know, which here is left out.
    """
    x_0 = gradient_images(EVALUATED, c.height, c.width, generator)
    t = 1 + torch.arange(EVALUATED) % s.T
    eps = torch.randn(x_0.shape, generator=generator)
    x_t = q_sample(s, x_0, t, eps)
    with torch.no_grad():
        off = (ema(x_t, t) - oracle(x_t, t)).double()
    return t, off.square().flatten(1).mean(1)


def save_pictures(out: Path, s: Schedule, ema: nn.Module, c: Config) -> None:
    """samples.png, and strip.png: eq. 4 above Algorithm 2."""
    generator = Generator().manual_seed(c.seed + 2)
    shape = (SHOWN, 3, c.height, c.width)
    real = gradient_images(SHOWN, c.height, c.width, generator)
    made = sample(s, ema, shape, generator)
    blank = [""] * SHOWN
    rows = [("real", blank, to_uint8(real)), ("generated", blank, to_uint8(made))]
    save_strip(out / "samples.png", rows)
    # closer together near t = 0, where there is something to be seen
    t = (torch.linspace(0, 1, SHOWN).square() * s.T).ceil().long()
    x_0, eps = real[:1].expand(shape), torch.randn(1, *shape[1:], generator=generator)
    forward = q_sample(s, x_0, t, eps.expand(shape))
    x_T = torch.randn(1, *shape[1:], generator=generator)
    path = {step: x for step, x, _ in p_sample_loop(s, ema, x_T, generator)}
    reverse = torch.cat([path[step] for step in t.flip(0).tolist()])
    names = [f"$x_{{{step}}}$" for step in t.tolist()]
    rows = [
        ("forward process, eq. 4", names, to_uint8(forward)),
        ("reverse process, Algorithm 2", names[::-1], to_uint8(reverse)),
    ]
    save_strip(out / "strip.png", rows)


def report(f: dict[str, Any]) -> str:
    """The last lines that the script prints."""
    lines = [
        f"L_simple {f['L_simple']:.5f}, exact floor {f['floor']:.5f}: "
        f"{f['excess_per_cent']:.2f} ± {f['excess_standard_error']:.2f} % above it "
        f"(moving average of the weights, {EVALUATED} fresh pictures)",
        "by tenths of t, from 1 to T:",
        "  L_simple" + "".join(f"{x:9.5f}" for x in f["L_simple_by_tenth"]),
        "  floor   " + "".join(f"{x:9.5f}" for x in f["floor_by_tenth"]),
        f"{SAMPLED} samples, and the bound on {BOUNDED} pictures:",
        f"{'outside the gradient plane':>40}{'colours against uniform':>28}"
        f"{'bits/dim':>16}{'of it L_0':>12}",
    ]
    for name in ("network", "oracle"):
        x = f[name]
        plane = f"{x['rms_outside_the_plane']:.2f} of 255 levels"
        plane += f", energy {x['energy_outside_the_plane']:.0e}"
        colours = f"D = {x['kolmogorov_distance']:.4f}, p = {x['kolmogorov_p']:.3f}"
        bits = f"{x['bound_bits_per_dim']:.3f} ± {x['bound_standard_error']:.3f}"
        lines.append(
            f"  {name:8}{plane:>30}{colours:>28}{bits:>16}{x['L_0_bits_per_dim']:12.3f}"
        )
    lines.append(f"  the data's entropy: {f['entropy_bits_per_dim']:.3f} bits/dim")
    return "\n".join(lines)


if __name__ == "__main__":
    with errors_as_sentences():
        main(sys.argv[1:])
