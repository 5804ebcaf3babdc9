"""What a script shows and keeps of its training: a bar, a JSON of figures, a curve.

It needs the extra [scripts].
"""

import dataclasses
import io
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

    Soon after the start it says what the whole will take, and ten times in a run it
    prints L_simple by tenths of t, under the least that any network can reach where
    that is known: the loss is large at small t and small at large t for the best
    network too, so its mean alone does not tell a good one. Where the output is no
    terminal, a line a minute stands for the bar.

    Args:
        folder: what is written goes there.
        config: kept in figures.json; config.steps is the bar's length.
        net: its parameters are counted.
        floor: the least L_simple at t = 0..T, as `oracle` gives it, or None.
        calls: the network calls for the samples that follow, of how many pictures each.
    """

    def __init__(
        self,
        folder: str | Path,
        config: TrainConfig,
        net: nn.Module,
        floor: Tensor | None = None,
        calls: tuple[int, int] = (0, 0),
    ) -> None:
        from tqdm import tqdm

        self.folder, self.config, self.floor = Path(folder), config, None
        self.least: float | None = None
        if floor is not None:
            T = len(floor) - 1
            self.least = float(floor[1:].mean())
            self.floor = by_tenth(T, torch.arange(1, T + 1), floor[1:])
        self.figures: dict[str, Any] = {
            "config": dataclasses.asdict(config),
            "parameters": sum(p.numel() for p in net.parameters()),
            "machine": _machine(next(net.parameters()).device),
            "seconds": 0.0,
            "losses": [],  # [step, L_simple, its mean in each tenth of t]
        }
        self.calls, self.first = calls, True
        on_gpu = next(net.parameters()).device.type == "cuda"
        self.compiles = on_gpu if config.compile is None else config.compile
        self.began = self.spoke = time.perf_counter()
        # no thread of tqdm's own: it would outlive a fork, and a bar needs none
        tqdm.monitor_interval = 0
        quiet = True if sys.stderr is None else None  # None: where it is no terminal
        self.bar = tqdm(total=config.steps, unit="step", disable=quiet, mininterval=0.5)

    def __call__(self, r: Record) -> None:
        self.figures["losses"] = [
            [int(step), loss, [x if x == x else None for x in tenths]]
            for step, _, loss, *tenths in r.told
        ]
        self.figures["seconds"] = r.told[-1][1]
        self.bar.set_postfix_str(f"L_simple {r.loss:.4f}", refresh=False)
        if self.first:  # of a resumed run the bar times what is new
            self.bar.initial = self.bar.n = max(0, r.step - self.config.log_every)
        self.bar.update(r.step - self.bar.n)
        self._say_when(r)
        tenth = max(1, self.config.steps // 10 // self.config.log_every)
        if (r.step // self.config.log_every) % tenth == 0 or self._last(r):
            self.bar.write(self._by_tenth(r), file=sys.stdout)
        if r.saved:
            self.save()

    def _say_when(self, r: Record) -> None:
        """What the whole will take, once; then a line a minute, if there is no bar."""
        now = time.perf_counter()
        if self.compiles:  # so the first steps took longer than the others will
            self.compiles, self.began = False, now
            return
        if self.first:
            self.at = r.step - min(r.step, self.config.log_every), self.began
        per_step = (now - self.at[1]) / max(1, r.step - self.at[0])
        left = per_step * (self.config.steps - r.step)
        if self.first and not self._last(r):
            n, pictures = self.calls  # a call without gradients: a third of a step
            drawing = per_step / 3 * n * max(1.0, pictures / self.config.batch)
            more = f", and the samples about {_time(drawing)}" if n else ""
            self.bar.write(
                f"the {self.config.steps - r.step} steps to come take about "
                f"{_time(left)}{more}; Ctrl-C saves, and --resume goes on",
                file=sys.stdout,
            )
        elif self.bar.disable and now - self.spoke > 60:
            self.spoke = now
            print(
                f"step {r.step} of {self.config.steps}: L_simple {r.loss:.4f}, "
                f"{1 / per_step:.3g} steps/s, {_time(left)} left",
                flush=True,
            )
        self.first = False

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
        with write_whole(self.folder / "figures.json") as file:
            file.write(json.dumps(self.figures, indent=1).encode())

    def close(self) -> None:
        """Ends the bar, writes figures.json, and draws loss.png."""
        self.bar.close()
        self.save()
        if self.figures["losses"]:  # none in a checkpoint of an earlier version
            steps, losses, _ = zip(*self.figures["losses"], strict=True)
            save_loss_plot(self.folder / "loss.png", steps, losses, self.least)


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def speak_any_terminal() -> None:
    """Letters that an output cannot show, as σ in cp1252, become question marks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """What the user can mend ends a script with a sentence, not with a traceback."""
    speak_any_terminal()
    try:
        yield
    except KeyboardInterrupt:
        print(f"\n{_script()}: interrupted", file=sys.stderr)
        sys.exit(130)
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
