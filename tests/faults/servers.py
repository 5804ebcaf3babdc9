"""Servers and archives that mean no good, on this machine's own address.

After each bad answer the file must not have its name, a sentence must have said why in
bounded time, memory and disk, and a good server must be able to go on from what was
kept. Nothing may be written outside the folder.
"""

import functools
import gzip
import hashlib
import io
import itertools
import os
import socket
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pooch  # noqa: F401  # imported once, not by every process
import requests  # noqa: F401

from tinyddpm.workshop import download as module
from tinyddpm.workshop.download import OfficialFile, download, unpack_cifar10
from tinyddpm.workshop.readers import CIFAR10_FILES, CIFAR10_FOLDER, CIFAR10_RECORD

from .child import REFUSED, RIGHT, WRONG, idle, in_a_child, sentence

DATA = bytes(i % 251 for i in range(100_000))
SHA256 = hashlib.sha256(DATA).hexdigest()
OK = b"HTTP/1.1 200 OK\r\n"
TIMEOUT = 0.5  # seconds; 30 in use
SECONDS, MIB = 60, 64  # that a bad answer may take, on a busy machine too
Answer = Callable[[socket.socket], None]


def says(*parts: bytes, close: bool = True) -> Answer:
    """Sends the parts, then closes, or is silent."""

    def answer(peer: socket.socket) -> None:
        for part in parts:
            peer.sendall(part)
        if not close:
            time.sleep(SECONDS)

    return answer


def for_ever(first: bytes, part: bytes, pause: float = 0.0) -> Answer:
    def answer(peer: socket.socket) -> None:
        peer.sendall(first)
        while True:
            peer.sendall(part)
            time.sleep(pause)

    return answer


def length(n: object) -> bytes:
    return OK + f"Content-Length: {n}\r\n\r\n".encode()


def to(place: str) -> Answer:
    """A redirect."""
    head = f"HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n"
    return says(head.encode())


WRONG_DATA = DATA[:-1] + b"?"
N = len(DATA)
SERVERS: dict[str, Answer] = {
    "404": says(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
    "500": says(b"HTTP/1.1 500 Oh\r\n\r\nwe are sorry"),
    "403, and a page without end": for_ever(b"HTTP/1.1 403 No\r\n\r\n", bytes(1 << 16)),
    "closes at once": says(),
    "closes within the header": says(OK + b"Content-Le"),
    "closes early": says(length(N), DATA[: N // 2]),
    "closes early, of no stated length": says(OK + b"\r\n", DATA[: N // 2]),
    "wrong sum": says(length(N), WRONG_DATA),
    "wrong sum, of no stated length": says(OK + b"\r\n", WRONG_DATA),
    "shorter": says(length(5), DATA[:5]),
    "longer": says(length(N + 1), DATA + b"?"),
    "longer, of no stated length": says(OK + b"\r\n", DATA + bytes(1000)),
    "offers 10 TB": for_ever(length(10**13), bytes(1 << 16)),
    "never ends": for_ever(OK + b"\r\n", bytes(1 << 16)),
    "Content-Length too small": says(length(N - 7), DATA),
    "Content-Length too large": says(length(N + 7), DATA),
    "Content-Length -1": says(length(-1), DATA),
    "Content-Length of words": says(length("many"), DATA),
    "two Content-Lengths": says(
        OK + b"Content-Length: 5\r\n" + length(N).removeprefix(OK), DATA
    ),
    "chunks without end": for_ever(
        OK + b"Transfer-Encoding: chunked\r\n\r\n",
        b"4000\r\n" + bytes(0x4000) + b"\r\n",
    ),
    "a chunk of no size": says(
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", DATA[:100]
    ),
    "a chunk of 10 TB": for_ever(
        OK + b"Transfer-Encoding: chunked\r\n\r\n9184e72a000\r\n", bytes(1 << 16)
    ),
    "drips its header": for_ever(OK + b"X: ", b"x", 0.02),
    "drips its body": for_ever(length(N), b"x", 0.02),
    "silent": says(close=False),
    "silent after the header": says(length(N), close=False),
    "silent within the body": says(length(N), DATA[:20_000], close=False),
    "to file:": to("file:///etc/hostname"),
    "to ftp:": to("ftp://127.0.0.1/file"),
    "to data:": to("data:text/plain,hello"),
    "to nonsense": to("http://[::bad"),
    "to a word": to("::::"),
    "to a closed port": to("http://127.0.0.1:1/file"),
    "to nowhere": says(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"),
    "to itself": to("/file"),
    "to elsewhere, with a page without end": for_ever(
        b"HTTP/1.1 302 Found\r\nLocation: /file\r\n\r\n", bytes(1 << 16)
    ),
    "no HTTP": says(b"220 ftp ready\r\n" * 100),
    "HTTP 9": says(b"HTTP/9.9 200 OK\r\n\r\n", DATA),
    "a header line without end": for_ever(OK + b"X: ", b"x" * (1 << 16)),
    "headers without end": for_ever(OK, b"X: y\r\n" * 1000),
    "continue without end": for_ever(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "a part not asked for": says(
        b"HTTP/1.1 206 Part\r\nContent-Range: bytes 7-9/10\r\n\r\n", DATA
    ),
    "nothing": says(b"HTTP/1.1 204 None\r\n\r\n"),
    "gzip that is none": says(OK + b"Content-Encoding: gzip\r\n\r\n", WRONG_DATA),
    "a small gzip of much": says(
        OK + b"Content-Encoding: gzip\r\n\r\n", gzip.compress(bytes(1 << 28))
    ),
}
ALL_THE_SAME = ("Content-Length -1", "Content-Length of words")  # the bytes are right


def serve(answer: Answer) -> str:
    """Answers every request so, from a thread; the address."""
    listening = socket.create_server(("127.0.0.1", 0))

    def one(peer: socket.socket) -> None:
        with peer:
            try:
                peer.recv(1 << 16)
                answer(peer)
                peer.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it has had enough

    def loop() -> None:
        while True:
            peer, _ = listening.accept()
            threading.Thread(target=one, args=(peer,), daemon=True).start()

    threading.Thread(target=loop, daemon=True).start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}/file"


def of_server(answer: Answer, folder: Path) -> int:
    """A download from the bad server; then from a good one."""
    file = OfficialFile(serve(answer), N, SHA256)
    path = folder / "file"
    code = sentence(lambda: download(file, folder, TIMEOUT), lambda _: True)
    named = path.exists() and path.read_bytes() == DATA
    if named != (code == RIGHT) or path.exists() != named or _size(folder) > 2 * N:
        print("it has its name and should not, or has grown")
        return WRONG
    good = OfficialFile(serve(says(length(N), DATA)), N, SHA256)
    if download(good, folder, 30).read_bytes() != DATA:
        return WRONG
    return code


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


NAMES = [f"{CIFAR10_FOLDER}/{n}" for n in itertools.chain(*CIFAR10_FILES.values())]
SIZE = 4 * CIFAR10_RECORD  # with four pictures a file


def entry(name: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info, content = tarfile.TarInfo(name), bytes(SIZE)
    for field, value in ({"size": SIZE} | fields).items():
        setattr(info, field, value)
    return info, content if info.type == tarfile.REGTYPE else b""


def archive(*extra: Any, less: int = 0, **fields: Any) -> bytes:
    """The six files, some fewer, and what is given; `fields` spoil the last of them."""
    members = [entry(name) for name in NAMES[: len(NAMES) - less - bool(fields)]]
    members += [entry(NAMES[-1], **fields)] if fields else []
    members += [entry(name, **more) for name, more in extra]
    with tarfile.open(fileobj=(out := io.BytesIO()), mode="w:gz") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content) if content else None)
    return out.getvalue()


def bomb(size: bytes, kind: bytes = b"0") -> bytes:
    """A gzipped tar whose first header promises `size` (octal) of what is of `kind`."""
    head = bytearray(tarfile.TarInfo("x").tobuf())
    head[124:136], head[156:157] = size.rjust(11, b"0") + b"\0", kind
    head[148:156] = b" " * 8
    head[148:156] = f"{sum(head):06o}\0 ".encode()
    return gzip.compress(bytes(head) + bytes(1 << 28))


LINK, DEVICE = tarfile.SYMTYPE, tarfile.CHRTYPE
ARCHIVES: dict[str, tuple[Callable[[], bytes], int]] = {
    "the six files": (archive, RIGHT),
    "and one of ../": (lambda: archive(("../evil", {})), RIGHT),
    "and one of /": (lambda: archive(("/tmp/evil-of-tests", {})), RIGHT),
    "and a link to /etc": (
        lambda: archive(("x", {"type": LINK, "linkname": "/etc", "size": 0})),
        RIGHT,
    ),
    "a link in the place of one": (
        lambda: archive(type=LINK, linkname="/etc/hostname", size=0),
        REFUSED,
    ),
    "a hard link in the place of one": (
        lambda: archive(type=tarfile.LNKTYPE, linkname=NAMES[0], size=0),
        REFUSED,
    ),
    "a device in the place of one": (lambda: archive(type=DEVICE, size=0), REFUSED),
    "a pipe in the place of one": (
        lambda: archive(type=tarfile.FIFOTYPE, size=0),
        REFUSED,
    ),
    "a folder in the place of one": (
        lambda: archive(type=tarfile.DIRTYPE, size=0),
        REFUSED,
    ),
    "a link in the place of the folder": (
        lambda: archive(
            (CIFAR10_FOLDER, {"type": LINK, "linkname": "/tmp", "size": 0})
        ),
        RIGHT,
    ),
    "one is missing": (lambda: archive(less=1), REFUSED),
    "cut short": (lambda: archive()[:-500], REFUSED),
    "flipped within": (
        lambda: (a := archive())[:50] + bytes([a[50] ^ 4]) + a[51:],
        REFUSED,
    ),
    "no archive": (lambda: b"<html>please log in</html>", REFUSED),
    "empty": (lambda: b"", REFUSED),
    "zeros, 256 MiB in 0.3": (lambda: gzip.compress(bytes(1 << 28)), REFUSED),
    "a file of 8 GiB": (lambda: bomb(b"77777777777"), REFUSED),
    "a long name of 8 GiB": (lambda: bomb(b"77777777777", b"L"), REFUSED),
    "a pax header of 8 GiB": (lambda: bomb(b"77777777777", b"x"), REFUSED),
    "a size of words": (lambda: bomb(b"many"), REFUSED),
}


def of_archive(content: bytes, folder: Path) -> int:
    module.CIFAR10_COUNT = 4
    path = folder / "cifar.tar.gz"
    path.write_bytes(content)
    target = folder / CIFAR10_FOLDER

    def right(found: Any) -> bool:
        files = [p for p in target.iterdir() if p.is_file() and not p.is_symlink()]
        return len(files) == 6 and all(p.stat().st_size == SIZE for p in files)

    code = sentence(lambda: unpack_cifar10(path, folder), right)
    if code == REFUSED and target.exists():
        print("some files were written all the same")
        return WRONG
    return code


def cases() -> Iterator[tuple[str, str, Callable[[Path], int], int]]:
    """(table, name, work in a folder, how it must end)."""
    for name, answer in SERVERS.items():
        work = functools.partial(of_server, answer)
        yield "servers", name, work, RIGHT if name in ALL_THE_SAME else REFUSED
    for scheme in ("file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x", "nonsense"):
        file = OfficialFile(scheme, N, SHA256)
        work = lambda folder, f=file: sentence(  # noqa: E731
            lambda: download(f, folder, TIMEOUT), lambda _: False
        )
        yield "addresses", scheme, work, REFUSED
    for name, (content, end) in ARCHIVES.items():
        yield "archives", name, functools.partial(_archived, content), end


def _archived(content: Callable[[], bytes], folder: Path) -> int:
    return of_archive((folder / "made").read_bytes(), folder)


def main(seed: int, folder: Path) -> bool:
    """Prints a table; whether every case ended as it should."""
    rest, ends = idle(), Counter[tuple[str, str]]()
    problems, slowest, most = [], Counter[str](), Counter[str]()
    for i, (table, name, work, wanted) in enumerate(cases()):
        inside = folder / str(i) / "inside"
        inside.mkdir(parents=True)
        if table == "archives":  # made here: it is not the memory of the reading
            (inside / "made").write_bytes(ARCHIVES[name][0]())
        began = time.monotonic()
        # a process of its own, since matplotlib and torch do not like threads' forks
        end = in_a_child(lambda w=work, p=inside: w(p), folder / "said", SECONDS)
        took, used = time.monotonic() - began, end.mebibytes - rest
        slowest[table] = max(slowest[table], int(took))
        most[table] = max(most[table], used)
        outside = os.listdir(inside.parent) != ["inside"]
        outside |= Path("/tmp/evil-of-tests").exists()
        right = end.code == wanted and used <= MIB and not outside
        ends[table, "as it should" if right else "fault"] += 1
        if not right:
            more = f"{used} MiB, {took:.0f} s" + ", written outside" * outside
            problems.append(f"{name}: exit {end.code}, {more}: {end.said[-700:]}")
    print(f"\n{sum(ends.values())} servers, addresses and archives")
    for (table, how), count in sorted(ends.items()):
        more = f"at most {slowest[table]} s and {most[table]} MiB more each"
        print(f"  {table:12}{how:16}{count:4}  {more}")
    print("".join(f"  {p}\n" for p in problems), end="")
    return not problems
