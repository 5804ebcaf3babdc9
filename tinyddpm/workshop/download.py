"""CIFAR-10 and Fashion-MNIST, fetched from their owners and unpacked.

A file gets its name only once its SHA-256 has been found right. Until then it is called
NAME.part, and the next call continues from where that one ends. The transfer, its
progress bar and the hashes are the work of the library `pooch`, which the extra
[scripts] installs; it starts anew each time, so continuing is done here.
"""

import gzip
import os
import shutil
import tarfile
import time
import zlib
from contextlib import suppress
from multiprocessing.pool import AsyncResult, ThreadPool
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

from .files import write_whole
from .readers import (
    CIFAR10_COUNT,
    CIFAR10_FILES,
    CIFAR10_FOLDER,
    CIFAR10_RECORD,
    extra,
)


class OfficialFile(NamedTuple):
    """A file as its owner publishes it: its address, http or https; its size, bytes."""

    url: str
    size: int
    sha256: str


CIFAR10 = OfficialFile(  # its page gives the MD5 c32a1d4ab5d03f1284b67883e8d87530
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    170_052_171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
# From the owner's repository: the addresses in its README offer no https. The MD5 sums
# there are 8d4fb7e6c68d591d4c3dfef9ec88bf0d, 25c81989df183df01b3e8a0aad5dffbe,
# bef4ecab320f06d8554ea6380940ec79 and bb300cfdad3c16e7a12a480ee83cd310.
_FASHION_MNIST = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/"
    "b2617bb6d3ffa2e429640350f613e3291e10b141/data/fashion/{}-ubyte.gz"
)
FASHION_MNIST = [
    OfficialFile(_FASHION_MNIST.format(name), size, sha256)
    for name, size, sha256 in (
        (
            "train-images-idx3",
            26_421_880,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        (
            "train-labels-idx1",
            29_515,
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
        (
            "t10k-images-idx3",
            4_422_102,
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        (
            "t10k-labels-idx1",
            5_148,
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    )
]
TIMEOUT = 30.0  # seconds without a byte after which a server counts as gone
SLOWEST = 10_000  # bytes a second, on average, below which a transfer is given up
_LOOK = (
    "An error page or a network's login page may have come in its place: look at the "
    "address in a browser"
)


def download_cifar10(folder: str | Path) -> Path:
    """Fetches CIFAR-10's binary version (162 MiB) into `folder` and unpacks it there.

    Returns: the folder `cifar-10-batches-bin`, for `read_cifar10`.
    """
    return unpack_cifar10(download(CIFAR10, folder), folder)


def download_fashion_mnist(folder: str | Path) -> Path:
    """Fetches the four files of Fashion-MNIST (30 MiB) into `folder`, left gzipped.

    Returns: `folder`.
    """
    for file in FASHION_MNIST:
        download(file, folder)
    return Path(folder)


def download(file: OfficialFile, folder: str | Path, timeout: float = TIMEOUT) -> Path:
    """Fetches a file, with a progress bar; does nothing if it is there already.

    Where several processes ask for the same file, one fetches it and the others wait.

    Args:
        file: what is fetched.
        folder: where it is put, under its own name; made if need be.
        timeout: seconds without a byte after which the server counts as gone.
    Returns: the file's path.
    Raises:
        ConnectionError: the server cannot be reached, refuses, breaks off, or is slower
            than `SLOWEST`. What has come so far is kept, and the next call continues.
        ValueError: the file that came, or that was there before, is another one. The
            first is removed; the second is not touched.
        ModuleNotFoundError: pooch is not installed.
    """
    from filelock import FileLock  # torch needs it too

    path = Path(folder) / file.url.rpartition("/")[2]
    part = path.with_name(path.name + ".part")
    lock = path.with_name(f".{path.name}.lock")
    if not file.url.startswith(("http://", "https://")):
        raise ValueError(f"expected an http or https address, got {file.url}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        try:
            if not path.exists():
                _fetch(file, part, timeout)
                os.replace(part, path)
            elif (found := _sha256(path)) != file.sha256:
                raise ValueError(
                    f"{path} is there, but its SHA-256 is {found} instead of "
                    f"{file.sha256}; move it away and download again"
                )
        finally:
            with suppress(OSError):  # Windows: it is open, and goes when closed
                lock.unlink()
    return path


def _sha256(path: Path) -> str:
    with extra():
        from pooch import file_hash

    digest: str = file_hash(str(path), alg="sha256")
    return digest


class _RefusedError(ValueError):
    """What the server offers is not the file."""


class _UselessError(_RefusedError):
    """What lies in the .part file is not the file either."""


def _fetch(file: OfficialFile, part: Path, timeout: float) -> None:
    """Brings `part` to its full length and checks it."""
    had = part.stat().st_size if part.exists() else 0
    try:
        with open(part, "ab") as opened:
            if had != file.size:
                _Transfer(file, opened).run(timeout)
            os.fsync(opened.fileno())
        if (found := _sha256(part)) != file.sha256:
            raise _UselessError(
                f"{file.url} gave another file than expected: its SHA-256 is {found} "
                f"instead of {file.sha256}; it was removed. {_LOOK}"
            )
    except _UselessError:
        part.unlink()
        if not had:
            raise
        _fetch(file, part, timeout)  # all of it: it began with another file's bytes
    except BaseException:
        if part.exists() and part.stat().st_size == 0:
            part.unlink()
        raise


class _Transfer:
    """A .part file as pooch sees it: it grows neither too large nor too slowly."""

    def __init__(self, file: OfficialFile, opened: BinaryIO) -> None:
        self.file, self.opened, self.flush = file, opened, opened.flush
        self.have = opened.tell()  # bytes in the .part file
        self.came = 0  # bytes of this call
        self.answers: list[Any] = []  # to be closed: pooch leaves that to chance

    def run(self, timeout: float) -> None:
        """Fetches what is missing, or gives up."""
        from requests import RequestException
        from urllib3.exceptions import HTTPError

        with ThreadPool(1) as pool:
            try:
                self._wait_for(pool.apply_async(self._get, [timeout]), timeout)
            except _RefusedError:
                raise
            except (RequestException, HTTPError, ValueError) as error:
                reason: BaseException = error
                while reason.__context__:  # what the system said, without wrappings
                    reason = reason.__context__
                self.give_up(" ".join(str(reason).split()), error)
        if self.have < self.file.size:
            self.give_up("it broke off")

    def _wait_for(self, result: "AsyncResult[None]", timeout: float) -> None:
        """Waits no longer than the slowest rate allows.

        A server that drips, in an answer's header or body, is never silent for as long
        as the timeout.
        """
        begun = time.monotonic()
        while not result.ready():
            result.wait(0.1)
            late = time.monotonic() - begun - 2 * timeout
            if self.came < SLOWEST * late and not result.ready():
                self.give_up(f"less than {SLOWEST:,} bytes a second came")
        result.get()

    def _get(self, timeout: float) -> None:
        with extra():
            from pooch import HTTPDownloader

        missing = {"Range": f"bytes={self.have}-"} if self.have else {}
        get = HTTPDownloader(
            progressbar=True,
            chunk_size=1 << 14,
            timeout=timeout,
            headers={"Accept-Encoding": "identity", **missing},
            hooks={"response": self.begin},
        )
        try:
            get(self.file.url, self, None)
        finally:
            for answer in self.answers:
                answer.close()

    def give_up(self, why: str, cause: Exception | None = None) -> NoReturn:
        raise ConnectionError(
            f"{self.file.url} cannot be fetched ({why}). {self.have:,} of "
            f"{self.file.size:,} bytes are kept in {self.opened.name}: look at the "
            f"network, or at the address in a browser, and run again to continue"
        ) from cause

    def begin(self, response: Any, **_: Any) -> None:
        """Judges an answer by its header; requests calls it before it reads the rest.

        A server that cannot send the missing bytes alone may send all of them.
        """
        self.answers.append(response)
        url, size, status = self.file.url, self.file.size, response.status_code
        sent = response.headers.get("Content-Range", "no range")
        start = self.have if status == 206 else 0
        length = response.headers.get("Content-Length", "")
        if response.is_redirect:
            response.raw.close()  # requests would read its body, however long
        elif (status == 206 and not sent.startswith(f"bytes {start}-")) or (
            status == 416 and self.have
        ):
            raise _UselessError(
                f"{url} offers {sent}, expected bytes {start}-{size - 1}"
            )
        elif status < 400:  # pooch raises an error for the others
            if length.isdecimal() and start + int(length) != size:
                raise _RefusedError(
                    f"{url} offers {start + int(length):,} bytes, expected {size:,}. "
                    f"{_LOOK}"
                )
            self.have = start
            self.opened.truncate(start)
            response.headers["Content-Length"] = str(size - start)  # the bar's total
            # A .gz stays as it is, also where the server calls it an encoding.
            response.raw.headers.pop("Content-Encoding", None)

    def write(self, chunk: bytes) -> None:
        self.have += len(chunk)
        self.came += len(chunk)
        if self.have > self.file.size:
            raise _UselessError(
                f"{self.file.url} sends more than the {self.file.size:,} bytes that "
                f"are expected; they were removed. {_LOOK}"
            )
        self.opened.write(chunk)


class _Archive(gzip.GzipFile):
    """A gzipped archive that unpacks neither too much nor too large a header."""

    most = 0  # bytes

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= 1 << 20 or self.tell() > self.most:
            raise tarfile.ReadError(f"it unpacks to more than {self.most:,} bytes")
        return super().read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return super().seek(min(offset, self.most + 1), whence)


def unpack_cifar10(archive: str | Path, folder: str | Path) -> Path:
    """Unpacks the six .bin files of CIFAR-10's archive, and no other, into `folder`.

    All six must be regular files of the right size before the first is written, and
    each is written whole. What else the archive holds is left in it; one that unpacks
    to more than twice the six files is refused.

    Returns: the folder `cifar-10-batches-bin`.
    Raises: ValueError, naming the archive, where it is damaged or a file is missing.
    """
    names = [*CIFAR10_FILES["train"], *CIFAR10_FILES["test"]]
    size = CIFAR10_COUNT * CIFAR10_RECORD
    target = Path(folder) / CIFAR10_FOLDER
    try:
        with _Archive(archive) as stream:
            stream.most = 2 * len(names) * size
            while stream.read(1 << 20):
                pass  # to the end, where gzip's check sum is: tarfile stops before it
            stream.seek(0)
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                found = {m.name: m for m in tar if m.isreg() and m.size == size}
                missing = [n for n in names if f"{CIFAR10_FOLDER}/{n}" not in found]
                if missing:
                    raise ValueError(
                        f"{archive} lacks {', '.join(missing)} as files of {size:,} "
                        f"bytes in {CIFAR10_FOLDER}; remove it and download again"
                    )
                for name in names:
                    member = tar.extractfile(found[f"{CIFAR10_FOLDER}/{name}"])
                    assert member is not None  # a regular file
                    with member, write_whole(target / name) as file:
                        shutil.copyfileobj(member, file)
    except (tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{archive} does not unpack ({error}); remove it and download again"
        ) from error
    return target
