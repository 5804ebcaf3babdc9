"""Runs that are killed at random moments and resumed, against one that was not.

The moment is one of the run's processor time, drawn uniformly from the start to the
end: reading the data, a step, a save, the figures, a picture. A run is resumed until it
has ended. SIGTERM, SIGINT and SIGHUP let it save, and add a row to figures.json for the
step it stopped at; SIGKILL may change nothing at all.
"""

import functools
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import train_gradients
from tinyddpm.workshop import training
from tinyddpm.workshop.checkpoint import load_checkpoint
from tinyddpm.workshop.progress import errors_as_sentences

from .child import End, ended, in_a_child, start

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
KILLS = 4  # at most, in a run
COMMON = "--log-every 5 --save-every 10 --warmup 5 --ema 0.9 --device cpu"
TOY = "--T 25 --steps 60 --batch 32 --hidden 16 --depth 1 --height 4 --width 4"
UNET = (
    "--T 25 --steps 40 --batch 4 --base 4 --multipliers 1 --attention 0 --samples 4 "
    "--dropout 0.2 --no-bf16"
)


def toy(out: Path, resume: bool) -> None:
    """train_gradients.py, with fewer pictures in its figures."""
    train_gradients.EVALUATED = 500
    train_gradients.SAMPLED = train_gradients.BOUNDED = 16
    flags = [*TOY.split(), *COMMON.split(), "--out", str(out)]
    with errors_as_sentences():
        train_gradients.main(flags + ["--resume"] * resume)


def command(out: Path, resume: bool) -> None:
    """python -m tinyddpm train, on pictures of noise."""
    path = out.parent / "pictures.npy"
    flags = [str(path), *UNET.split(), *COMMON.split(), "--out", str(out)]
    with errors_as_sentences():
        training.main(flags + ["--resume"] * resume)


def seconds_of(pid: int) -> float:
    """The processor time that a process has taken."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("inf")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def killed(work: Callable[[], None], said: Path, number: int, after: float) -> End:
    """The process, sent a signal after so many seconds of its processor time."""
    said.unlink(missing_ok=True)
    pid = start(work, said)
    while seconds_of(pid) < after and not _over(pid):
        time.sleep(0.01)
    os.kill(pid, number)  # not yet waited for, so the number is still its own
    return ended(pid, said)


def _over(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def not_killed(
    kind: Callable[[Path, bool], None], folder: Path
) -> tuple[dict[str, Any], float]:
    """What a run leaves that nothing happens to, and its seconds of processor time."""
    out, before = folder / f"{kind.__name__} alone", os.times()
    end = in_a_child(lambda: kind(out, False), folder / "said")
    if end.code:
        raise SystemExit(f"the run that is not killed failed: {end.said}")
    now = os.times()
    took = now.children_user + now.children_system
    return result(out), took - before.children_user - before.children_system


def result(out: Path) -> dict[str, Any]:
    """All that a run left: of the checkpoint and figures.json what is not a time."""
    found: dict[str, Any] = {}
    for path in sorted(out.iterdir()):
        if path.name == "checkpoint.pt":
            c = load_checkpoint(path)
            config = {k: v for k, v in c.config.items() if k != "out"}
            # -1 for nan, where a tenth was not drawn: nan is unequal to itself
            rows = c.told[:, torch.arange(13) != 1].nan_to_num(-1).tolist()
            found |= {"step": c.step, "config": config, "rows": rows, "data": c.data}
            for part in ("weights", "ema", "optimiser"):
                found[part] = [x.numpy().tobytes() for x in tensors(getattr(c, part))]
        elif path.name == "figures.json":
            figures = json.loads(path.read_text())
            del figures["seconds"], figures["config"]["out"]
            found["losses"] = figures.pop("losses")
            found["figures"] = figures
        else:
            found[path.name] = path.read_bytes()
    return found


def tensors(state: Any) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else ()
    return [x for value in values for x in tensors(value)]


def differs(found: dict[str, Any], whole: dict[str, Any], stops: int) -> list[str]:
    """The names of what is not bit for bit the same.

    Where a signal stopped the run, a row was told there, and the next one is of the
    steps since: as many rows more as `stops`, and loss.png, which shows them, are its.
    """
    rows = ("rows", "losses", "loss.png")
    wrong = sorted(found.keys() ^ whole.keys())
    wrong += [n for n in found if n not in rows and found[n] != whole.get(n)]
    if not stops:
        return wrong + [n for n in rows if found.get(n) != whole.get(n)]
    for name in ("rows", "losses"):
        steps = [[row[0] for row in x[name]] for x in (found, whole)]
        rising = all(a < b for a, b in zip(steps[0], steps[0][1:], strict=False))
        if not rising or set(steps[1]) - set(steps[0]):
            wrong.append(name)
        if len(steps[0]) > len(steps[1]) + stops:
            wrong.append(name)
    return wrong


def main(kills: int, seed: int, folder: Path) -> bool:
    """Prints a table of the kills; whether all runs ended as they should."""
    rng = random.Random(seed)
    g = np.random.default_rng(seed)
    np.save(folder / "pictures.npy", g.integers(0, 256, (40, 4, 4, 3), np.uint8))
    ends: Counter[tuple[str, str]] = Counter()
    problems: list[str] = []
    left, runs, same, done = 0, 0, 0, 0
    alone = {kind: not_killed(kind, folder) for kind in (toy, command)}
    while done < kills:
        kind, runs = (toy, command)[runs % 2], runs + 1
        whole, takes = alone[kind]
        out, said = folder / f"{kind.__name__} {runs}", folder / f"{runs}.txt"
        work = functools.partial(kind, out, True)
        stops, tries, faults = 0, 0, []
        while True:
            if tries < KILLS and done < kills:
                number = rng.choice(SIGNALS)
                end = killed(work, said, number, rng.uniform(0, takes))
                how = _how(end, number)
                tries, done = tries + 1, done + (end.code != 0)
                ends[number.name, how] += end.code != 0
                stops += how == "saved and stopped"
            else:
                end = in_a_child(work, said)
                how = "went to its end" if end.code == 0 else "failed"
            if how == "failed" or "Traceback" in end.said:
                faults.append(f"{out.name}: exit {end.code}: {end.said[-900:]}")
            if end.code == 0 or how == "failed":
                break
        if wrong := differs(found := result(out), whole, stops):
            faults.append(f"{out.name}, {tries} kills: {wrong} differ")
        left += len(found.keys() - whole.keys())
        same, problems = same + (not faults), problems + faults
        print(f"  {out.name}: {tries} signals, {len(faults)} faults", flush=True)
        print("".join(f"  {fault}\n" for fault in faults), end="", flush=True)
    print(f"\n{sum(ends.values())} kills in {runs} runs, each resumed to its end")
    for (name, how), count in sorted((+ends).items()):  # those above 0
        print(f"  {name:10}{how:30}{count:4}")
    print(f"  runs that end as one that was not killed, to the bit: {same} of {runs}")
    print(f"  files left over: {left}; tracebacks or failures: {len(problems)}")
    return not problems


def _how(end: End, number: int) -> str:
    if end.code == 128 + number and "stopped after step" in end.said:
        return "saved and stopped"
    if end.code == -number or (end.code, number) == (130, signal.SIGINT):
        return "ended at once"
    return "had ended before" if end.code == 0 else "failed"
