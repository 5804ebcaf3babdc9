"""Data sets fetched from their official addresses, and unpacked.

What lives here: a download that can be broken off and repeated, and the addresses and
check sums of CIFAR-10 and Fashion-MNIST. What does not: reading the files
(`readers.py`).

A file has its name only once its size and MD5 have been found right; until then it is
NAME.part, which the next run goes on with. What is wrong ends in a ConnectionError
(the network) or a ValueError (the content). MD5 guards against accidents, not against
an adversary; it is what the authors of these sets publish.
"""

import gzip
import hashlib
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from .files import write_whole
from .readers import CIFAR10_COUNT, CIFAR10_FILES, CIFAR10_FOLDER, CIFAR10_RECORD

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_SIZE = 170_052_171
CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
FASHION_MNIST_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FASHION_MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
TIMEOUT = 30.0  # seconds without a byte after which a server counts as gone
_LOOK = (
    "An error page or a network's log-in page may have come in its place: look at the "
    "address in a browser"
)


def download_cifar10(folder: str | Path) -> Path:
    """Fetches CIFAR-10's binary version (162 MiB) into `folder` and unpacks it there.

    Returns: the folder `cifar-10-batches-bin`, for `read_cifar10`.
    """
    archive = Path(folder) / CIFAR10_URL.rpartition("/")[2]
    download(CIFAR10_URL, archive, CIFAR10_MD5, CIFAR10_SIZE)
    return unpack_cifar10(archive, folder)


def download_fashion_mnist(folder: str | Path) -> Path:
    """Fetches the four files of Fashion-MNIST (30 MiB) into `folder`, left gzipped.

    Returns: `folder`; the names are the keys of FASHION_MNIST_MD5.
    """
    for name, md5 in FASHION_MNIST_MD5.items():
        download(FASHION_MNIST_URL + name, Path(folder) / name, md5)
    return Path(folder)


def download(
    url: str,
    path: str | Path,
    md5: str,
    size: int | None = None,
    timeout: float = TIMEOUT,
) -> None:
    """Fetches url to path, with a progress bar; does nothing if it is there already.

    Args:
        url: http or https.
        path: the file to be made; its folder is made if need be.
        md5: the file's MD5, in hexadecimal.
        size: the file's size in bytes, if it is known.
        timeout: seconds without a byte after which the server counts as gone.
    Raises:
        ConnectionError: the server cannot be reached, refuses, or breaks off; what has
            come so far stays in path.part, and the next call goes on from there.
        ValueError: the file that came, or that was at path before, is another one. The
            first is removed; the second is not touched.
    """
    path = Path(path)
    if path.exists():
        if _md5(path) != md5:
            raise ValueError(
                f"{path} is there, but its MD5 is {_md5(path)} instead of {md5}; move "
                f"it away and download again"
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    if not part.exists() or _md5(part) != md5:
        resumed = _fetch(url, part, size, timeout)
        if resumed and _md5(part) != md5:  # what lay there was of another file
            part.unlink()
            _fetch(url, part, size, timeout)
    if _md5(part) != md5:
        given = f"{part.stat().st_size:,} bytes with MD5 {_md5(part)}"
        part.unlink()
        raise ValueError(
            f"{url} gave another file than expected: {given} instead of {md5}; it was "
            f"removed. {_LOOK}"
        )
    os.replace(part, path)


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _fetch(url: str, part: Path, size: int | None, timeout: float) -> bool:
    """Brings `part` to its full length; True if it went on from what lay there.

    A server that cannot send the rest alone sends all of it, and `part` begins anew.
    """
    from tqdm import tqdm

    have = part.stat().st_size if part.exists() else 0
    with _open(url, have, timeout) as response:
        resumes = response.status == 206
        have = have if resumes else 0
        total = size if response.length is None else have + response.length
        if size is not None and total != size:
            raise ValueError(
                f"{url} offers {total:,} bytes, expected {size:,}. {_LOOK}"
            )
        with (
            open(part, "ab" if resumes else "wb") as file,
            tqdm(
                desc=part.stem, total=total, initial=have, unit="B", unit_scale=True
            ) as bar,
        ):
            for chunk in _chunks(url, response):
                file.write(chunk)
                bar.update(len(chunk))
                if total is not None and file.tell() > total:
                    break  # another file; its sum will say so
            file.flush()
            os.fsync(file.fileno())
            have = file.tell()
    if total is not None and have < total:
        raise ConnectionError(
            f"{url} broke off after {have:,} of {total:,} bytes; they are kept in "
            f"{part}, run again to fetch the rest"
        )
    return resumes


def _open(url: str, have: int, timeout: float) -> HTTPResponse:
    """Asks for the bytes from `have` on: the answer is these (206), or all (200)."""
    headers = {"Range": f"bytes={have}-"} if have else {}
    request = urllib.request.Request(url, headers=headers)
    try:
        response: HTTPResponse = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # the rest is empty: not the file begun here
            return _open(url, 0, timeout)
        raise ConnectionError(
            f"{url} answered {error.code} {error.reason}; try again later, or look at "
            f"the address in a browser"
        ) from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ConnectionError(
            f"{url} cannot be reached ({reason}); check the network and run again"
        ) from error
    offered = response.headers.get("Content-Range", "")
    if response.status == 206 and not offered.startswith(f"bytes {have}-"):
        response.close()
        if have:
            return _open(url, 0, timeout)
        raise ConnectionError(
            f"{url} offers {offered!r} where all bytes were asked for"
        )
    return response


def _chunks(url: str, response: HTTPResponse) -> Iterator[bytes]:
    """What the server sends, as it comes."""
    try:
        while chunk := response.read1(1 << 16):
            yield chunk
    except (OSError, HTTPException) as error:
        raise ConnectionError(
            f"{url} broke off ({error}); what has come is kept, run again to fetch the "
            f"rest"
        ) from error


def unpack_cifar10(archive: str | Path, folder: str | Path) -> Path:
    """Unpacks the six .bin files of CIFAR-10's archive, and no other, into `folder`.

    All six must be regular files of the right size before the first is written, and
    each is written whole. What else the archive holds is left in it.

    Returns: the folder `cifar-10-batches-bin`.
    Raises: ValueError, naming the archive, where it is damaged or a file is missing.
    """
    names = [*CIFAR10_FILES["train"], *CIFAR10_FILES["test"]]
    size = CIFAR10_COUNT * CIFAR10_RECORD
    target = Path(folder) / CIFAR10_FOLDER
    try:
        with gzip.open(archive) as stream:
            while stream.read(1 << 20):
                pass  # to the end, where gzip's check sum is: tarfile stops before it
        with tarfile.open(archive, "r:gz") as tar:
            found = {m.name: m for m in tar if m.isreg() and m.size == size}
            missing = [n for n in names if f"{CIFAR10_FOLDER}/{n}" not in found]
            if missing:
                raise ValueError(
                    f"{archive} lacks {', '.join(missing)} as files of {size:,} bytes "
                    f"in {CIFAR10_FOLDER}; remove it and download again"
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
