"""Runs tests against a copy of the project in which one file is replaced.

It tries the patches of `mistakes.py`, one wrong line at a time. A trial is a fork of a
process that has imported torch, pytest and hypothesis but neither tinyddpm nor its
tests: it starts at once, imports the changed copy afresh, and leaves nothing behind.
Needs os.fork (Linux, macOS).
"""

import ast
import compileall
import contextlib
import gc
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import hypothesis
import numpy.random  # noqa: F401
import pytest
import torch
import torch.distributed.tensor
import torch.distributions
import torch.fx.experimental.symbolic_shapes
import torch.optim
import torch.testing  # all but three of these: once here, not in every fork
from torch.autograd.gradcheck import GradcheckError

ROOT = Path(__file__).resolve().parent.parent.parent
COPIED = ("tinyddpm", "tests", "examples", "*.py", "setup.cfg", "*.toml", "README.md")
PARTS = ("tests", "tinyddpm", "examples")  # what a fork must import afresh


class Trial(NamedTuple):
    """The copy's file `path` holds `text` ("" and "": nothing is changed)."""

    path: str
    text: str
    tests: tuple[str, ...]  # pytest node ids
    examples: int = 50  # hypothesis' for each test
    seconds: int = 120  # of processor time it may take: a stopped clock is no hang


class Outcome(NamedTuple):
    """verdict: "passes", "law" (a test failed by its law), "crash" or "time"."""

    verdict: str
    why: str  # the test that failed and its error's first line


def run(trials: Sequence[Trial], workers: int = 2) -> Iterator[tuple[int, Outcome]]:
    """Yields (index of the trial, outcome) as they end, `workers` at a time."""
    assert not any(name.split(".")[0] == "tinyddpm" for name in sys.modules)
    gc.freeze()  # what is imported by now is not garbage: no fork need look again
    with tempfile.TemporaryDirectory() as name:
        folder, running = Path(name).resolve(), dict[int, int]()
        _copy_project(folder / "clean")
        waiting = list(enumerate(trials))[::-1]
        while waiting or running:
            while waiting and len(running) < workers:
                i, trial = waiting.pop()
                sys.stdout.flush()
                pid = os.fork()
                if pid == 0:
                    _child(trial, folder / "clean", folder / str(i))
                running[pid] = i
            pid, status = os.wait()
            i = running.pop(pid)
            yield i, _outcome(folder / str(i), status)
            shutil.rmtree(folder / str(i))


def because_of_its_law(error: BaseException, copy: Path) -> bool:
    """Whether a test failed as a law fails, not as a program breaks.

    That is: an assertion of the test's own (also one of `pytest.raises`, `assert_close`
    or `gradcheck`, called by the test); a ValueError that the package raises itself, at
    its doors; or any error where the law is a refusal, and this is not the one that
    `pytest.raises` waits for. Whatever else comes out of the package is a crash. `copy`
    is where package and tests lie, at any depth.
    """
    if isinstance(error, BaseExceptionGroup):  # hypothesis found several
        return all(because_of_its_law(e, copy) for e in error.exceptions)
    frames = traceback.extract_tb(error.__traceback__)
    parts = [_part(frame.filename, copy) for frame in frames]
    if type(error) is ValueError and parts[-1] == "tinyddpm":
        return True
    ours = [part for part in parts if part]
    asserted = AssertionError | pytest.fail.Exception | GradcheckError
    if isinstance(error, asserted) and ours[-1:] == ["tests"]:
        return True
    return any(_refusal_awaited(frame, copy) for frame in frames)


def _part(file: str, copy: Path) -> str:
    """Which of PARTS a file lies in; "" if in none."""
    path = Path(file)
    part = path.relative_to(copy).parts[0] if path.is_relative_to(copy) else ""
    return part if part in PARTS else ""


def _refusal_awaited(frame: traceback.FrameSummary, copy: Path) -> bool:
    """Whether the line is inside `with pytest.raises(...)` of a test."""
    if _part(frame.filename, copy) != "tests":
        return False
    for node in ast.walk(ast.parse(Path(frame.filename).read_text())):
        if isinstance(node, ast.With) and "pytest.raises" in ast.unparse(node.items[0]):
            first, last = node.body[0].lineno, node.body[-1].end_lineno
            if first <= frame.lineno <= last:
                return True
    return False


class _Watch:
    """A pytest plugin that keeps the first error of tests in `copy`."""

    def __init__(self, copy: Path) -> None:
        self.copy, self.outcome, self.ran = copy, Outcome("passes", ""), 0

    def pytest_runtest_logreport(self, report):
        self.ran += report.when == "call"

    def pytest_exception_interact(self, node, call):
        error = call.excinfo.value
        law = because_of_its_law(error, self.copy) and call.when == "call"
        line = next(iter(str(error).strip().splitlines()), "")
        why = f"{node.nodeid}: {type(error).__name__}: {line}"
        self.outcome = Outcome("law" if law else "crash", why)


def _child(trial: Trial, clean: Path, folder: Path) -> None:
    """Runs the trial's tests in a copy at `folder`, notes the outcome, and exits."""
    signal.setitimer(signal.ITIMER_PROF, trial.seconds)
    try:
        shutil.copytree(clean, folder)
        if trial.path:
            (folder / trial.path).write_text(trial.text)
        os.chdir(folder)
        for name in [n for n in sys.modules if n.split(".")[0] in PARTS]:
            del sys.modules[name]
        sys.path[:] = [p for p in sys.path if Path(p).resolve() != ROOT]
        sys.path.insert(0, str(folder))
        sys.dont_write_bytecode = True
        with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
            outcome = _pytest(trial.tests, trial.examples)
    except BaseException as error:
        outcome = Outcome("crash", repr(error))
    (folder / "outcome.json").write_text(json.dumps(outcome))
    os._exit(0)


def _copy_project(folder: Path) -> None:
    """The files that tests read, compiled once, here, not in every fork."""
    for pattern in COPIED:
        for path in ROOT.glob(pattern):
            to = folder / path.name
            if path.is_dir():
                shutil.copytree(path, to, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                to.parent.mkdir(exist_ok=True)
                shutil.copy2(path, to)
    compileall.compile_dir(folder, quiet=2)


def _pytest(tests: Sequence[str], examples: int) -> Outcome:
    """Runs these tests up to the first failure; a found example need not be small."""
    torch.set_num_threads(1)
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile(
        "patched",
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        max_examples=examples,
        phases=phases,
    )
    os.environ["HYPOTHESIS_PROFILE"] = "patched"
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    watch = _Watch(Path.cwd())
    options = ["-x", "-q", "-m", "", "--assert=plain", "-p", "no:cacheprovider"]
    options += ["-p", "_hypothesis_pytestplugin", "--tb=no", "--no-header"]
    code = pytest.main([*options, *tests], plugins=[watch])
    if watch.outcome.verdict == "passes" and (code != 0 or watch.ran == 0):
        return Outcome("crash", f"pytest ended with {code!r} after {watch.ran} tests")
    return watch.outcome


def _outcome(folder: Path, status: int) -> Outcome:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        late = number == signal.SIGPROF
        return Outcome("time" if late else "crash", f"signal {number}")
    return Outcome(*json.loads((folder / "outcome.json").read_text()))
