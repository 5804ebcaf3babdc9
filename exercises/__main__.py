"""The paper's equations as blanks to fill in, and a grader that proves the answers.

    python -m exercises                 the list, and what is done
    python -m exercises start           writes my_ddpm/, the modules with the blanks
    python -m exercises check [NAME]    holds what you wrote to its equation's laws
    python -m exercises hint NAME       a hint; asked again, a plainer one, up to three
    python -m exercises solution NAME   our source
    python -m exercises run             trains the toy with your modules and with ours

NAME is a name of the list, such as eq4. The exit code is 0 for right, 1 for wrong or
not yet written, 2 where something must be mended before anything can be checked.
"""

import argparse
import contextlib
import difflib
import importlib.util
import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .rooms import OURS, Reader, UnusableError, solution, start
from .table import EXERCISES, NAMED, Exercise

SECONDS = 20.0  # for one exercise; a right answer takes less than one on an idle core
TO_START = 180.0  # for a process to import torch, on a machine that does other things


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m exercises",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command",
        nargs="?",
        default="list",
        choices=("list", "start", "check", "hint", "solution", "run"),
    )
    parser.add_argument("name", nargs="?", help="an exercise, such as eq4")
    args = parser.parse_args(argv)
    root = Path.cwd()
    try:
        if args.name and args.command not in ("check", "hint", "solution"):
            raise UnusableError(f"{args.command} takes no name, got {args.name!r}")
        chosen = named(args.name) if args.name else None
        if args.command == "start":
            return started(root)
        if args.command == "check":
            return check(Reader(root), [chosen] if chosen else [])
        if args.command in ("hint", "solution") and not chosen:
            how = "python -m exercises lists them"
            raise UnusableError(f"{args.command} needs a name: {how}")
        if chosen and args.command == "hint":
            return hint(root, chosen)
        if chosen:
            print(solution(chosen))
            return 0
        return run(Reader(root)) if args.command == "run" else listed(root)
    except KeyboardInterrupt:
        return 130
    except UnusableError as error:
        print(f"exercises: {error}", file=sys.stderr)
    except BrokenPipeError:  # of a `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"exercises: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        how = "pip install -c constraints.txt -e '.[scripts]' brings it"
        print(f"exercises: {error}; {how}", file=sys.stderr)
    return 2


def named(name: str) -> Exercise:
    """The exercise of that name, or of that function, or the like."""
    plain = name.lower().replace(".", "").replace(" ", "")
    for e in EXERCISES:
        last = e.function.rpartition(".")[2]
        if plain in (e.name.lower(), e.function.lower().replace(".", ""), last.lower()):
            return e
    near = difflib.get_close_matches(name, NAMED, 1)
    guess = f"; {near[0]} is near" if near else ""
    raise UnusableError(
        f"there is no exercise {name!r}{guess}: python -m exercises lists them"
    )


# --- list, start -----------------------------------------------------------------


def listed(root: Path) -> int:
    """The exercises in order, each with its state."""
    reader = Reader(root) if (root / "my_ddpm").is_dir() else None
    for e in EXERCISES:
        print(f"{state(reader, e):9} {e.name:10} {e.source}: {e.asks}")
    if reader is None:
        print("\nTo begin: python -m exercises start")
    else:
        print("\nTo check what you wrote: python -m exercises check")
    return 0


def state(reader: Reader | None, e: Exercise) -> str:
    """What is known of an exercise without running it."""
    if reader is None:
        return ""
    try:
        if reader.is_blank(e):
            return "not yet"
        last = kept(reader.folder, ".checked").get(e.name)
        if not last or last[0] != reader.fingerprint(e):
            return "unchecked"
        return str(last[1])
    except UnusableError:
        return "changed"


def started(root: Path) -> int:
    written = start(root)
    if not written:
        raise UnusableError(
            "my_ddpm/ is there, and nothing in it is overwritten; to begin a file "
            "again move it away first"
        )
    print(f"wrote {len(written)} files in my_ddpm/: {', '.join(written)}")
    first = EXERCISES[0]
    line = Reader(root).line(first)
    print(f"The first exercise, {first.name}, is at {first.file}, line {line}.")
    print(f"When it is written: python -m exercises check {first.name}")
    return 0


# --- check -----------------------------------------------------------------------


def check(reader: Reader, chosen: list[Exercise]) -> int:
    """Runs the laws of the exercises chosen, or of all that are written."""
    if importlib.util.find_spec("torch") is None:
        raise UnusableError("torch is missing: pip install -c constraints.txt -e .")
    todo: list[Exercise] = []
    waiting: list[Exercise] = []
    for e in chosen or EXERCISES:
        (waiting if reader.is_blank(e) else todo).append(e)
    if chosen and waiting:
        e = waiting[0]
        print(
            f"{e.name}: not yet. {e.file}, line {reader.line(e)}, still borrows ours."
        )
        print(f"A hint: python -m exercises hint {e.name}")
        return 1
    results = {}
    for name, (kind, text, *_) in verdicts(reader.folder.parent, todo):
        results[name] = kind
        remember(reader, NAMED[name], "right" if kind == "right" else "wrong")
        if kind == "right" and not chosen:
            text = f"{name} is right."
        print(text)
        if kind != "right":
            print(f"  A hint: python -m exercises hint {name}")
        print(flush=True)
    if waiting:
        print(f"not yet: {', '.join(e.name for e in waiting)}")
    wrong = any(kind != "right" for kind in results.values())
    if not wrong:
        pointer(reader, chosen)
    return 1 if wrong or not results else 0


def pointer(reader: Reader, done: list[Exercise]) -> None:
    """The next blank after what was checked, or else the first."""
    after = EXERCISES.index(done[0]) if done else 0
    for e in (*EXERCISES[after:], *EXERCISES):
        if state(reader, e) == "not yet":
            print(f"Next: {e.name}, {e.source}, at {e.file}, line {reader.line(e)}.")
            return
    print("Nothing is left blank. To train with it: python -m exercises run")


def verdicts(
    root: Path, todo: list[Exercise], seconds: float = SECONDS
) -> Iterator[tuple[str, list[str]]]:
    """(name, verdict) of each exercise, from a process that may hang or die."""
    names = [e.name for e in todo]
    while names:
        with judging(root, names, seconds) as (process, lines):
            ready = next_line(process, lines, TO_START)
            if ready is None:
                raise UnusableError("the process that checks ended before it began")
            if ready[1] == "import":
                raise UnusableError(f"my_ddpm cannot be imported:\n{ready[2]}")
            while names:
                found = next_line(process, lines, seconds + 10)
                name = names.pop(0)
                if found is None:
                    why = f"{name} ended or blocked the process that checks it"
                    yield name, ["died", f"{why} (exit code {process.wait()})."]
                    break
                yield name, found[1:]


@contextlib.contextmanager
def judging(root: Path, names: list[str], seconds: float) -> Iterator[tuple[Any, Any]]:
    """The process that runs the reader's code."""
    paths = [str(OURS.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-B", "-m", "exercises.judge", str(seconds), *names]
    process = subprocess.Popen(
        command,
        cwd=root,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        yield process, process.stdout
    finally:
        process.kill()
        process.communicate()


def next_line(process: Any, lines: Any, seconds: float) -> list[str] | None:
    """The next verdict, or None if the process ends or takes too long."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        line = lines.readline()
    finally:
        timer.cancel()
    return json.loads(line) if line else None


def kept(folder: Path, name: str) -> dict[str, Any]:
    """What a small file of my_ddpm/ remembers; nothing if it is not there or broken."""
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def keep(folder: Path, name: str, what: dict[str, Any]) -> None:
    (folder / name).write_text(json.dumps(what, indent=1) + "\n", encoding="utf-8")


def remember(reader: Reader, e: Exercise, verdict: str) -> None:
    """For the list: the verdict, and of which text it is."""
    known = kept(reader.folder, ".checked")
    keep(reader.folder, ".checked", known | {e.name: [reader.fingerprint(e), verdict]})


# --- hint, run -------------------------------------------------------------------


def hint(root: Path, e: Exercise) -> int:
    """The next of three hints; the third is given again."""
    folder = root / "my_ddpm"
    if not folder.is_dir():
        raise UnusableError("there is no my_ddpm/ here: python -m exercises start")
    shown = kept(folder, ".hints")
    step = shown.get(e.name, 0)
    step = min(step + 1 if isinstance(step, int) and step >= 0 else 1, 3)
    keep(folder, ".hints", shown | {e.name: step})
    print(
        f"{e.name}, {e.source}, hint {step} of 3: {e.hints[step - 1]}.".replace(
            "..", "."
        )
    )
    if step == 3:
        print(f"Ours: python -m exercises solution {e.name}")
    return 0


def run(reader: Reader) -> int:
    """Trains the toy; of an exception only the reader's lines are shown."""
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(reader.folder.parent))
    for needed in ("matplotlib", "PIL"):  # of samples.png; training comes first
        importlib.import_module(needed)
    from .judge import reader_lines
    from .toy import run as run_toy

    blank = [e.name for e in EXERCISES if reader.is_blank(e)]
    if blank:
        print(f"borrowed from ours: {', '.join(blank)}")
    try:
        print(run_toy(reader.folder.parent / "out" / "exercises"))
    except ModuleNotFoundError:
        raise
    except Exception as error:
        last = traceback.format_exception_only(error)[-1].strip()
        told = [*reader_lines(error.__traceback__), last, "python -m exercises check"]
        print("\n".join(told), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
