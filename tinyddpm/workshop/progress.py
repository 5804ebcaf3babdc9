"""What a script shows and keeps of its training: a bar, a JSON of figures, a curve.

What lives here: what is done with each `Record` of `fit`, and the errors that end a
script with a sentence. What does not: training itself (`train.py`). Needs the extra
[scripts].
"""

import dataclasses
import json
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .files import write_whole
from .pictures import save_loss_plot
from .processes import world
from .settings import TrainConfig
from .state import Record, by_tenth

MENDABLE = (
    OSError,
    ValueError,
    FloatingPointError,
    MemoryError,
    torch.OutOfMemoryError,
)


class Progress:
    """The `log` of `fit`: a progress bar with the loss; figures.json, loss.png.

    Ten times in a run it prints L_simple by tenths of t, under the least that any
    network can reach where that is known: the loss is large at small t and small at
    large t for the best network too, so its mean alone does not tell a good one.

    Args:
        folder: what is written goes there.
        config: kept in figures.json; config.steps is the bar's length.
        net: its parameters are counted.
        resume: go on with the losses that figures.json holds.
        floor: the least L_simple at t = 0..T, as `oracle` gives it, or None.
    """

    def __init__(
        self,
        folder: str | Path,
        config: TrainConfig,
        net: nn.Module,
        resume: bool = False,
        floor: Tensor | None = None,
    ) -> None:
        from tqdm import tqdm

        self.folder, self.config, self.floor = Path(folder), config, None
        self.least: float | None = None
        if floor is not None:
            T = len(floor) - 1
            self.least = float(floor[1:].mean())
            self.floor = by_tenth(T, torch.arange(1, T + 1), floor[1:])
        self.began = time.perf_counter()
        self.figures: dict[str, Any] = {
            "config": dataclasses.asdict(config),
            "parameters": sum(p.numel() for p in net.parameters()),
            "machine": _machine(next(net.parameters()).device),
            "seconds": 0.0,
            "losses": [],  # [step, L_simple, its mean in each tenth of t]
        }
        if resume and self._path.exists():
            try:
                kept = json.loads(self._path.read_text(encoding="utf-8"))
                self.figures |= {key: kept[key] for key in ("seconds", "losses")}
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self._path} is damaged ({error}); move it away, and the figures "
                    f"begin anew where the checkpoint goes on"
                ) from error
        self.before = float(self.figures["seconds"])
        # no thread of tqdm's own: it would outlive a fork, and a bar needs none
        tqdm.monitor_interval = 0
        self.bar = tqdm(total=config.steps, unit="step", disable=None, mininterval=0.5)

    @property
    def _path(self) -> Path:
        return self.folder / "figures.json"

    def __call__(self, r: Record) -> None:
        # steps that a killed run took after its last checkpoint are taken again
        losses = [row for row in self.figures["losses"] if row[0] < r.step]
        losses.append([r.step, r.loss, [x if x == x else None for x in r.by_tenth]])
        self.figures["losses"] = losses
        self.figures["seconds"] = self.before + time.perf_counter() - self.began
        self.bar.set_postfix_str(f"L_simple {r.loss:.4f}", refresh=False)
        if self.bar.n == 0:  # of a resumed run the bar times what is new
            self.bar.initial = self.bar.n = max(0, r.step - self.config.log_every)
        self.bar.update(r.step - self.bar.n)
        tenth = max(1, self.config.steps // 10 // self.config.log_every)
        if (r.step // self.config.log_every) % tenth == 0 or self._last(r):
            self.bar.write(self._by_tenth(r), file=sys.stdout)
        if r.saved:  # what is told and what is resumed from go together
            self.save()

    def _last(self, r: Record) -> bool:
        return r.step == self.config.steps

    def _by_tenth(self, r: Record) -> str:
        def row(name: str, values: list[float]) -> str:
            return f"{name:>24}" + "".join(
                f"{x:8.4f}" if x == x else f"{'-':>8}" for x in values
            )

        lines = [row(f"step {r.step}: {r.loss:.4f} =", r.by_tenth)]
        if self.floor is not None:
            lines.append(row(f"floor: {self.least:.4f} =", self.floor))
        return "\n".join(lines)

    def save(self) -> None:
        """Writes figures.json; `figures` may be added to before."""
        with write_whole(self._path) as file:
            file.write(json.dumps(self.figures, indent=1).encode())

    def close(self) -> None:
        """Ends the bar, writes figures.json, and draws loss.png."""
        self.bar.close()
        self.save()
        if self.figures["losses"]:  # none where a finished run is resumed
            steps, losses, _ = zip(*self.figures["losses"], strict=True)
            save_loss_plot(self.folder / "loss.png", steps, losses, self.least)


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """What the user can mend ends a script with a sentence, not with a traceback."""
    try:
        yield
    except ModuleNotFoundError as error:
        sys.exit(
            f"{_script()}: {error}; install the extra [scripts], as the README says"
        )
    except MENDABLE as error:
        said: object = error
        if isinstance(error, OSError) and error.filename:  # the system's, with a number
            said = (
                f"{error.filename}: {error.strerror}; --help lists the flags for files"
            )
        sys.exit(f"{_script()}: {said}")


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        name = f"{world()} x {torch.cuda.get_device_name(device)}"
    else:
        name = f"{world()} x {torch.get_num_threads()} threads of {platform.machine()}"
    return f"{name}, torch {torch.__version__}"


def _script() -> str:
    return Path(sys.argv[0]).name
