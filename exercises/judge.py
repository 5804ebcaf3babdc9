"""Holds a reader's function to the laws of its exercise, and says what it finds.

As a program, `python -m exercises.judge SECONDS NAME...`, it is the process that runs a
reader's code: one line of JSON for each exercise on standard output, where the reader's
own prints do not go.
"""

import contextlib
import functools
import importlib
import json
import math
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .borrow import ours
from .known import SKIP, Known, known_of, published, said, wrong
from .laws import LAWS, Law, restore_schedules
from .rooms import MODULES
from .table import EXERCISES, NAMED, Exercise

F = Callable[..., Any]


class Verdict(NamedTuple):
    """What is found of one exercise."""

    kind: str  # right, wrong, raised, time
    text: str
    known: str = ""  # the published mistake that it is
    says: str = ""  # or the mistake without a name


class Broken(NamedTuple):
    """A law, and the first case in which it does not hold."""

    law: Law
    case: str
    yours: Any
    right: Any


class Raised:
    """A value that was never reached."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class TooLong(BaseException):
    """The time is over; no `except Exception` of the reader's swallows it."""


def judge(e: Exercise, theirs: F) -> Verdict:
    """The verdict on a function, or on a class of which one method is the exercise."""
    broken: list[Broken] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for law, right in zip(LAWS[e.name], of_ours(e), strict=True):
            for (case, wanted), (_, value) in zip(
                right, seen(law, theirs), strict=False
            ):
                if not same(value, wanted, law.close):
                    broken.append(Broken(law, case, value, wanted))
                    break
        if not broken:
            return Verdict("right", praise(e))
        law, case, value, wanted = broken[0]
        if isinstance(value, Raised):
            return Verdict("raised", exception(e, law, case, value.error))
        upto = LAWS[e.name][: LAWS[e.name].index(law) + 1]
        mine = [[x for _, x in seen(law, theirs)] for law in upto]
        for known in known_of(e):
            if alike(e, mine, known):
                text = blame(e, broken, said(known))
                return Verdict("wrong", text, known.id, known.says)
    known_id, why = plain_reason(value, wanted, mine[0])
    return Verdict("wrong", blame(e, broken, why), known_id)


def subject(e: Exercise) -> F:
    """What the laws call: our function, or the class whose method is the exercise."""
    return ours(f"{e.module}.{e.function.partition('.')[0]}")  # type: ignore


def seen(law: Law, f: F) -> Iterator[tuple[str, Any]]:
    """What a law sees of f; an exception is the last thing it sees."""
    torch.default_generator.manual_seed(0)  # torch.manual_seed writes down the stack
    restore_schedules()
    try:
        for case, value in law.see(f):
            yield case, value
            restore_schedules()
    except (Exception, SystemExit) as error:
        yield "", Raised(error)


def alike(e: Exercise, mine: list[list[Any]], known: Known) -> bool:
    """Whether a known mistake gives what was seen of the first laws.

    It need not have an answer in every case, but must have one that is wrong.
    """
    explained = False
    laws = zip(LAWS[e.name], mine, of_known(known, len(mine)), of_ours(e), strict=False)
    for law, values, others, right in laws:
        for value, (_, other), (_, best) in zip(values, others, right, strict=False):
            if other is SKIP:
                continue
            if not same(value, other, law.close):
                return False
            explained |= not same(value, best, law.close)
    return explained


@functools.cache
def of_ours(e: Exercise) -> list[list[tuple[str, Any]]]:
    """What each law sees of our own function."""
    return [list(seen(law, subject(e))) for law in LAWS[e.name]]


@functools.cache
def of_known(known: Known, laws: int) -> list[list[tuple[str, Any]]]:
    """What the first laws see of a known mistake."""
    return [list(seen(law, wrong(known))) for law in LAWS[known.exercise][:laws]]


def same(a: Any, b: Any, close: float) -> bool:
    """Equal, numbers within `close` of the largest; a law of chance is absolute."""
    if isinstance(a, Raised) or isinstance(b, Raised):
        both = isinstance(a, Raised) and isinstance(b, Raised)
        return both and type(a.error) is type(b.error)
    if isinstance(b, tuple | list):
        return (
            isinstance(a, tuple | list)
            and len(a) == len(b)
            and all(same(x, y, close) for x, y in zip(a, b, strict=True))
        )
    if isinstance(b, Tensor):
        if not isinstance(a, Tensor) or a.shape != b.shape or a.dtype != b.dtype:
            return False
        if not b.is_floating_point():
            return torch.equal(a, b)
        a, b = a.detach().double(), b.detach().double()
        scale = float(torch.where(b.isfinite(), b, 0).abs().max()) if b.numel() else 0.0
        near = (a - b).abs() <= allowed(scale, close)
        return bool((near | (a == b) | (a.isnan() & b.isnan())).all())
    if isinstance(b, float):
        return isinstance(a, float | int) and abs(a - b) <= allowed(abs(b), close)
    return type(a) is type(b) and a == b


def allowed(scale: float, close: float) -> float:
    """A law of chance, of numbers near 1, is held absolutely; others relatively."""
    return close * scale + 1e-13 if close < 1e-3 else close * max(scale, 1.0)


# --- what is said ----------------------------------------------------------------


def blame(e: Exercise, broken: list[Broken], why: str) -> str:
    """The smallest failing case, the law, and what is known of such a mistake."""
    law, case, value, wanted = broken[0]
    yours, right = shown(value, wanted)
    source = e.source.partition(",")[0]
    width = max(len("yours"), len(source))
    lines = [
        f"{e.name} is wrong.",
        f"  {case}:",
        f"    {'yours':{width}}  {yours}",
        f"    {source:{width}}  {right}",
        f"  The law: {law.says}.",
    ]
    lines += [f"  {line}" for line in why.split("\n") if line]
    others = [b.law.says for b in broken[1:] if b.law.own]
    if others:
        lines += ["  Broken too:", *(f"    - {x}" for x in others)]
    return "\n".join(lines)


def praise(e: Exercise) -> str:
    lines = [f"{e.name} is right. These laws hold:"]
    return "\n".join(lines + [f"  - {law.says}" for law in LAWS[e.name]])


def shown(value: Any, wanted: Any) -> tuple[str, str]:
    """Both in words, numbers with as many digits as tell them apart."""
    if isinstance(value, Raised):
        return f"{type(value.error).__name__}: {value.error}", written(wanted)
    if isinstance(wanted, tuple | list):
        if isinstance(value, tuple | list) and len(value) == len(wanted):
            if not any(isinstance(x, Tensor) for x in wanted):
                return written(value), written(wanted)
            for k, (a, b) in enumerate(zip(value, wanted, strict=True)):
                if not same(a, b, 1e-9):
                    which = ("first", "second", "third")[k]
                    return tuple(f"{x} (the {which})" for x in shown(a, b))  # type: ignore
        return written(value), written(wanted)
    if isinstance(value, Tensor) and isinstance(wanted, Tensor):
        if value.shape != wanted.shape:
            return f"shape {tuple(value.shape)}", f"shape {tuple(wanted.shape)}"
        if value.dtype != wanted.dtype:
            return f"{value.dtype}", f"{wanted.dtype}"
        a, b = value.detach().flatten().double(), wanted.detach().flatten().double()
        off = (a - b).abs().nan_to_num(math.inf)
        off[a == b] = 0
        k = int(off.argmax())
        where = f" (number {k + 1} of {len(b)})" if len(b) > 1 else ""
        return tuple(x + where for x in digits(float(a[k]), float(b[k])))  # type: ignore
    if isinstance(value, float | int) and isinstance(wanted, float):
        return digits(float(value), wanted)
    return written(value), written(wanted)


def written(x: Any) -> str:
    if isinstance(x, bool):
        return "yes" if x else "no"
    if isinstance(x, Tensor):
        if x.numel() == 1:
            return f"{float(x.detach()):.6g}"
        return f"a tensor {tuple(x.shape)}, {x.dtype}"
    if isinstance(x, float):
        return f"{x:.4g}"
    if isinstance(x, list | tuple | set):
        inside = [written(v) for v in x]
        inside = [*inside[:12], "..."] if len(inside) > 12 else inside
        return f"{', '.join(inside)}" or "nothing"
    if x is None:
        return "None"
    return str(x) if isinstance(x, int | str) else f"{type(x).__name__} {x!r}"[:80]


def digits(a: float, b: float) -> tuple[str, str]:
    """Three significant digits, or as many more as tell the two apart."""
    for n in range(3, 17):
        if f"{a:.{n}g}" != f"{b:.{n}g}":
            return f"{a:.{n}g}", f"{b:.{n}g}"
    return repr(a), repr(b)


def plain_reason(value: Any, wanted: Any, first: list[Any]) -> tuple[str, str]:
    """A published name if there is one, and what is wrong in kind."""
    if value is None:
        who, right, sources = published("M31")
        why = f"This is M31, a published mistake: {who}{sources}.\nRight: {right}."
        return "M31", f"The function returns nothing.\n{why}"
    if isinstance(wanted, Tensor) and not isinstance(value, Tensor):
        return "", f"A tensor is asked for; yours is a {type(value).__name__}."
    if isinstance(wanted, Tensor) and value.shape != wanted.shape:
        return "", "The numbers may be right, but their shape is not."
    if isinstance(wanted, Tensor) and value.dtype != wanted.dtype:
        return "", "Give the answer the right dtype: .to(...) at the end."
    numbers = [x for x in first if isinstance(x, Tensor)]
    if len(numbers) > 3 and all(same(x, numbers[0], 1e-12) for x in numbers):
        return "", "It gives the same answer whatever it is given."
    return "", ""


def exception(e: Exercise, law: Law, case: str, error: BaseException) -> str:
    lines = [f"{e.name} ends with an exception.", f"  {case}:"]
    lines += [f"    {x}" for x in reader_lines(error.__traceback__)]
    last = traceback.format_exception_only(error)[-1].strip()
    return "\n".join([*lines, f"    {last}", f"  The law: {law.says}."])


def reader_lines(tb: TracebackType | None) -> list[str]:
    """The lines of a traceback that stand in my_ddpm/."""
    lines = []
    for frame in traceback.extract_tb(tb):
        path = Path(frame.filename)
        if path.parent.name == "my_ddpm":
            lines.append(f"my_ddpm/{path.name}, line {frame.lineno}, in {frame.name}")
            lines.append(f"    {frame.line}")
    return lines[-8:]


# --- the process that runs a reader's code ---------------------------------------


class Rooms:
    """The reader's modules, in which every exercise but one can be made ours."""

    def __init__(self) -> None:
        self.modules = {m: importlib.import_module(f"my_ddpm.{m}") for m in MODULES}
        self.places: dict[str, list[tuple[Any, str]]] = {}
        self.theirs: dict[str, Any] = {}
        for e in EXERCISES:
            holder: Any = self.modules[e.module]
            *classes, name = e.function.split(".")
            for c in classes:
                holder = getattr(holder, c)
            self.theirs[e.name] = found = vars(holder)[name]
            self.places[e.name] = [(holder, name)] + [
                (module, key)
                for module in self.modules.values()
                for key, value in vars(module).items()
                if value is found and (module, key) != (holder, name)
            ]

    def alone(self, e: Exercise) -> F:
        """The reader's function among right ones, so that it alone is judged."""
        for x in EXERCISES:
            f = self.theirs[x.name] if x is e else ours(x.path)
            for holder, name in self.places[x.name]:
                setattr(holder, name, f)
        first = e.function.partition(".")[0]
        return getattr(self.modules[e.module], first)  # type: ignore[no-any-return]


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises TooLong in the midst of what takes longer, where the system has alarms."""
    if not hasattr(signal, "setitimer"):
        yield  # whoever started this process ends it
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise TooLong

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def in_time(e: Exercise, rooms: Rooms, seconds: float) -> Verdict:
    try:
        with at_most(seconds):
            return judge(e, rooms.alone(e))
    except TooLong as error:
        lines = [f"{e.name} took more than {seconds:g} s: does a loop in it never end?"]
        lines += [f"    {x}" for x in reader_lines(error.__traceback__)]
        return Verdict("time", "\n".join(lines))


def main(seconds: float, names: list[str]) -> None:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the reader's code prints is seen, and is no verdict

    def tell(name: str, verdict: Verdict) -> None:
        out.write(json.dumps([name, *verdict]) + "\n")
        out.flush()

    torch.set_num_threads(1)
    try:
        rooms = Rooms()
    except (Exception, SystemExit) as error:
        lines = reader_lines(error.__traceback__)
        last = traceback.format_exception_only(error)[-1].strip()
        tell("", Verdict("import", "\n".join([*lines, last])))
        return
    tell("", Verdict("ready", ""))
    for name in names:
        tell(name, in_time(NAMED[name], rooms, seconds))


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
