"""One fault in a process of its own: how it ended, what it said, its memory."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

RIGHT, WRONG, REFUSED = 0, 1, 3  # exit statuses
LONGEST = 1200  # characters of a sentence


class End(NamedTuple):
    """How a process ended."""

    code: int  # its exit status, or minus the signal that ended it
    said: str  # what it wrote
    mebibytes: int  # the most memory it had


def start(work: Callable[[], Any], said: Path) -> int:
    """Forks a process that does `work`, with both outputs in the file; its number.

    Nothing is imported again, and matplotlib's and torch's locks are free: this process
    has one thread.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = WRONG
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setpgid(0, 0)
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        code = int(work() or 0)
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        why = error.code
        code = why if isinstance(why, int) else int(why is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int, said: Path, seconds: float = 300) -> End:
    """Waits for the process, and kills one that takes too long."""
    until = time.monotonic() + seconds
    while True:
        found, status, used = os.wait4(pid, os.WNOHANG)
        if found:
            break
        if time.monotonic() > until:
            os.killpg(pid, signal.SIGKILL)
            until = float("inf")
        time.sleep(0.02)
    text = said.read_text(errors="replace") if said.exists() else ""
    if until == float("inf"):
        text += f"\nTraceback: none, but it took more than {seconds} s"
    return End(os.waitstatus_to_exitcode(status), text, used.ru_maxrss // 1024)


def in_a_child(work: Callable[[], Any], said: Path, seconds: float = 300) -> End:
    said.unlink(missing_ok=True)
    return ended(start(work, said), said, seconds)


def sentence(read: Callable[[], Any], right: Callable[[Any], bool]) -> int:
    """Whether `read` gave what is right, or refused in a sentence; else a traceback."""
    try:
        found = read()
    except (ValueError, OSError) as error:
        text = str(error)
        print(text)
        return REFUSED if text and "\n" not in text and len(text) < LONGEST else WRONG
    if right(found):
        return RIGHT
    print("it was read as something else")
    return WRONG


def idle() -> int:
    """The memory that a process has which does nothing, MiB."""
    return in_a_child(lambda: None, Path(os.devnull)).mebibytes
