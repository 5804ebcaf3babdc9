"""What the example scripts share: their flags, their training run, its loss curve.

What lives here: what the three would repeat. What does not: data, networks, pictures.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, ClassVar, TypeVar

from torch import nn

from tinyddpm import Schedule
from tinyddpm.config import flags, from_flags
from tinyddpm.data import Draw
from tinyddpm.files import write_whole
from tinyddpm.pictures import save_loss_plot
from tinyddpm.train import Record, TrainConfig, fit


@dataclass(frozen=True)
class ExampleConfig(TrainConfig):
    """Defaults of a run of minutes on two cores; FULL in each script is for a GPU."""

    data: Annotated[str, "where the pictures are"] = "data"
    out: Annotated[str, "folder for what is written"] = "out"
    device: Annotated[str, "auto, cpu, cuda or cuda:<number>"] = "auto"
    T: Annotated[int, "steps; a sample takes as many network calls"] = 250
    samples: Annotated[int, "pictures in grid.png"] = 64
    lr: Annotated[float, "Adam's learning rate"] = 1e-3  # a narrow net bears more
    lr_end: Annotated[float | None, "cosine to this at the end"] = 5e-5
    warmup: Annotated[int, "steps of linear warm-up"] = 50
    ema: Annotated[float, "decay of the moving average"] = 0.99  # of about 100 steps
    log_every: Annotated[int, "steps between looks at the loss"] = 20
    save_every: Annotated[int, "steps between checkpoints"] = 200
    bf16: Annotated[bool | None, "network in bfloat16"] = True

    may_change: ClassVar[tuple[str, ...]] = (
        *TrainConfig.may_change,
        *("data", "out", "device", "samples"),
    )


Config = TypeVar("Config", bound=ExampleConfig)


def read_flags(
    default: Config, full: Config, description: str | None, argv: list[str]
) -> tuple[Config, bool]:
    """The settings, `default` or with --full `full`, changed by flags; and --resume."""
    parser = flags(full if "--full" in argv else default, description or "")
    parser.add_argument("--full", action="store_true", help="defaults for a GPU")
    parser.add_argument("--resume", action="store_true", help="go on from --out")
    args = parser.parse_args(argv)
    return from_flags(type(default), args), args.resume


def train(
    s: Schedule, net: nn.Module, draw: Draw, c: ExampleConfig, resume: bool
) -> nn.Module:
    """`fit`, with its losses printed, drawn and kept over resuming, all in c.out."""
    out, began = Path(c.out), time.perf_counter()
    path = out / "figures.json"
    losses: dict[int, float] = {}
    if resume and path.exists():
        losses = dict(json.loads(path.read_text())["losses"])

    def log(r: Record) -> None:
        losses[r.step] = r.loss
        seconds = time.perf_counter() - began
        print(f"step {r.step} of {c.steps}, {seconds:.0f} s: L_simple {r.loss:.4f}")
        figures = {
            "config": asdict(c),
            "parameters": sum(p.numel() for p in net.parameters()),
            "seconds_since_start_or_resume": round(seconds, 1),
            "losses": list(losses.items()),
        }
        with write_whole(path) as file:
            file.write(json.dumps(figures, indent=1).encode())

    ema = fit(s, net, draw, c, log, out / "checkpoint.pt", resume)
    save_loss_plot(out / "loss.png", list(losses), list(losses.values()))
    return ema


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """What the user can mend ends the script with a sentence, not with a traceback."""
    try:
        yield
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
