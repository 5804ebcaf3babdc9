"""Pictures read from files: CIFAR-10's binary version, IDX, .npy, folders of photos.

A data set becomes one uint8 tensor (N, C, H, W), its labels a LongTensor (N,). A file's
size and header are looked at before the rest of it is read, and no pickle is ever
opened. A damaged file ends in a ValueError that names it and says what is wrong, a
missing or unreadable one in an OSError.
"""

import math
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor

from .files import file_size

if TYPE_CHECKING:
    import numpy as np

CIFAR10_FOLDER = "cifar-10-batches-bin"
CIFAR10_FILES = {
    "train": [f"data_batch_{i}.bin" for i in (1, 2, 3, 4, 5)],
    "test": ["test_batch.bin"],
}
CIFAR10_COUNT = 10_000  # pictures in each of the six files
CIFAR10_RECORD = 1 + 3 * 32 * 32  # bytes: the label, then planes R, G, B
_MANY_BYTES = 1 << 26  # up to 64 MiB a gzipped file may unpack to, whatever its size
_MANY_TIMES = 200  # and up to so many times its size; MNIST has 5, zeros have 1,000
_LONGEST_SIDE = 65_535  # pixels; what a JPEG file can have at most


@contextmanager
def extra() -> Iterator[None]:
    """Imports a library that only reading and downloading need, or says whence."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error} (pip install 'tinyddpm[scripts]' installs it)", name=error.name
        ) from None


def _read_bytes(path: str | Path, file: BinaryIO, size: int) -> Tensor:
    """The next `size` bytes of the file, uint8 (size,), in memory once."""
    data = bytearray(size)
    if file.readinto(data) != size:  # type: ignore[attr-defined]
        raise ValueError(f"{path} became shorter while it was read")
    return torch.frombuffer(data, dtype=torch.uint8)


def read_cifar10(folder: str | Path, split: str = "train") -> tuple[Tensor, Tensor]:
    """CIFAR-10's binary version: 50,000 pictures to train, or 10,000 to test with.

    Args:
        folder: `cifar-10-batches-bin`, or the folder it lies in.
        split: "train" or "test".
    Returns: uint8 (N, 3, 32, 32), and labels 0..9, long (N,).
    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: a file is not 10,000 whole records.
    """
    if split not in CIFAR10_FILES:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    folder = Path(folder)
    if (folder / CIFAR10_FOLDER).is_dir():
        folder = folder / CIFAR10_FOLDER
    paths = [folder / name for name in CIFAR10_FILES[split]]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)} of CIFAR-10's binary version; "
            f"give the folder that holds them, or download it"
        )
    parts = [read_cifar10_file(path, CIFAR10_COUNT) for path in paths]
    return torch.cat([v for v, _ in parts]), torch.cat([c for _, c in parts])


def read_cifar10_file(
    path: str | Path, count: int | None = None
) -> tuple[Tensor, Tensor]:
    """One .bin file in CIFAR-10's layout: records of a label byte and 3,072 levels.

    Args:
        path: the file.
        count: how many records it must hold; by default any number >= 1.
    Returns: uint8 (N, 3, 32, 32), and labels 0..9, long (N,).
    """
    size = file_size(path)
    n, rest = divmod(size, CIFAR10_RECORD)
    if rest or n == 0 or n != (count or n):
        wanted = f"{count:,} records" if count else "one or more records"
        raise ValueError(
            f"{path} holds {size:,} bytes, expected {wanted} of {CIFAR10_RECORD:,} "
            f"bytes each; it is cut short or not a CIFAR-10 .bin file"
        )
    with open(path, "rb") as file:
        records = _read_bytes(path, file, size).view(n, CIFAR10_RECORD)
    images = records[:, 1:].reshape(n, 3, 32, 32)
    return images, _check_labels(path, records[:, 0], 10)


def _check_labels(path: str | Path, labels: Tensor, classes: int) -> Tensor:
    """Labels (N,), as long, all of them in 0..classes - 1."""
    wrong = (labels >= classes).nonzero()
    if len(wrong):
        i = int(wrong[0])
        raise ValueError(
            f"{path}: label {int(labels[i])} at record {i} (from 0), expected "
            f"0..{classes - 1}"
        )
    return labels.long()


def read_idx_images(path: str | Path) -> Tensor:
    """Grey pictures from an IDX file (MNIST's format), gzipped or not.

    Returns: uint8, (N, 1, H, W).
    """
    return _read_idx(path, ndim=3).unsqueeze(1)


def read_idx_labels(path: str | Path, classes: int = 10) -> Tensor:
    """Labels 0..classes - 1 from an IDX file, gzipped or not. Returns: long, (N,)."""
    return _check_labels(path, _read_idx(path, ndim=1), classes)


def _read_idx(path: str | Path, ndim: int) -> Tensor:
    """IDX: 0, 0, dtype (8: bytes), ndim; the sizes, big-endian; then the bytes."""
    size = file_size(path)
    first = 4 + 4 * ndim
    magic = 0x0800 + ndim
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"  # gzip's magic number
        file.seek(0)
        head = bytes(_gunzip(path, file, first)) if packed else file.read(first)
        if len(head) < first or head[:4] != magic.to_bytes(4, "big"):
            raise ValueError(
                f"{path} begins with {head[:4].hex() or 'nothing'}, expected "
                f"{magic:08x} and {ndim} sizes: an IDX file of bytes in {ndim} "
                f"dimensions"
            )
        shape = struct.unpack(f">{ndim}I", head[4:])
        n = math.prod(shape)
        if packed and n > max(_MANY_BYTES, _MANY_TIMES * size):
            raise ValueError(
                f"{path}: its header promises {'x'.join(map(str, shape))} = {n:,} "
                f"bytes, {n // size} times the gzipped file's size; if that is right, "
                f"unpack it yourself and give the unpacked file"
            )
        file.seek(0)
        data = _gunzip(path, file, first + n + 1) if packed else bytearray()
        found = len(data) - first if packed else size - first
        if n == 0 or found != n:
            raise ValueError(
                f"{path}: its header promises {'x'.join(map(str, shape))} = {n:,} "
                f"bytes, got {found:,}; it is damaged or cut short"
            )
        if not packed:
            return _read_bytes(path, file, size)[first:].view(shape)
    return torch.frombuffer(data, dtype=torch.uint8)[first:].view(shape)


def _gunzip(path: str | Path, file: BinaryIO, limit: int) -> bytearray:
    """The first `limit` bytes of what the file unpacks to, or all if that is less."""
    unpack = zlib.decompressobj(wbits=31)  # 31: gzip's header and check sum
    out = bytearray()
    problem: object = ""
    try:
        while len(out) < limit and not unpack.eof and not problem:
            packed = unpack.unconsumed_tail or file.read(1 << 16)
            piece = unpack.decompress(packed, min(limit - len(out), 1 << 20))
            out += piece
            if not packed and not piece:
                problem = "it is cut short"
    except zlib.error as error:
        problem = error
    if len(out) < limit and (unpack.unused_data or file.read(1)):
        problem = problem or "it continues after its end"
    if problem:
        raise ValueError(f"{path} does not unpack: {problem}")
    return out


def read_npy_images(path: str | Path) -> Tensor:
    """Pictures from a .npy file: uint8, (N, H, W, C) with C = 1 or 3.

    Returns: uint8, (N, C, H, W).
    """
    images = _read_npy(path)
    if images.dtype != "uint8" or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(
            f"{path} holds {images.dtype} {images.shape}, expected uint8 pictures "
            f"(N, H, W, C) with C = 1 or 3"
        )
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def read_npy_labels(path: str | Path) -> Tensor:
    """Labels from a .npy file: classes (N,), or one-hot rows (N, K) of any dtype.

    Returns: long, (N,), each >= 0.
    """
    rows = _read_npy(path)
    if rows.ndim == 1 and rows.dtype.kind in "biu":
        labels, expected = rows, "a class from 0 to 2^63 - 1"
        wrong = (rows < 0) | (rows > 2**63 - 1)
    elif rows.ndim == 2:
        labels, expected = rows.argmax(1), "one-hot labels: a single 1, all else 0"
        wrong = ((rows != 0).sum(1) != 1) | (rows.max(1) != 1)
    else:
        raise ValueError(
            f"{path} holds {rows.dtype} {rows.shape}, expected labels: whole numbers "
            f"(N,), or one-hot rows (N, K)"
        )
    if wrong.any():
        i = int(wrong.argmax())
        raise ValueError(f"{path}: row {i} is {rows[i].tolist()}, expected {expected}")
    return torch.from_numpy(labels.astype("int64"))


def _read_npy(path: str | Path) -> "np.ndarray[Any, Any]":
    """An array of numbers as numpy.save writes it, mapped: it takes no memory yet."""
    with extra():
        import numpy as np

    size = file_size(path)
    with open(path, "rb") as file:
        head = file.read(6)
    if head[:4] == b"PK\3\4":
        raise ValueError(
            f"{path} is an .npz archive, expected a .npy file: save the one array that "
            f"is meant with numpy.save"
        )
    if head != b"\x93NUMPY":
        raise ValueError(f"{path} begins with {head!r}, which is no .npy file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python 2's headers are all right
            array: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # NumPy raises nearly everything on damaged headers
        raise ValueError(f"{path} is no array of numbers ({error})") from error
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{path} holds {array.dtype}, expected numbers")
    if array.size == 0 or array.offset + array.nbytes != size:
        raise ValueError(
            f"{path}: its header promises {array.shape} of {array.dtype}, got "
            f"{size - array.offset:,} bytes; it is empty, damaged or cut short"
        )
    return np.asarray(array)


def read_image_folder(
    folder: str | Path, size: int | tuple[int, int], channels: int = 3
) -> tuple[Tensor, Tensor, list[str]]:
    """Photos of any size, and the sub-folders they lie in as their classes.

    Each is turned as its EXIF tag says, laid on white where it is transparent, shrunk
    (or enlarged) with antialiasing until it just covers `size`, and cropped at the
    centre. Every file in the folder and below counts, in the order of the names, links
    to files and folders included; only names that begin with a dot are left out.

    Args:
        folder: the folder of photos: JPEG, PNG, WebP, BMP or GIF, 8 bits a channel.
        size: the height and width (H, W) to give them, or one number for both.
        channels: 3 for colour, or 1 for grey.
    Returns: uint8 (N, channels, H, W); labels, long (N,); the classes' names, the
        sub-folders in order ("." for files beside them).
    Raises:
        ValueError: some are no pictures that decode: how many, and the first 10.
        OSError: a sub-folder cannot be read.
    """
    folder = Path(folder)
    H, W = (size, size) if isinstance(size, int) else size
    found = (
        {p.relative_to(folder): p for p in _files(folder)} if folder.is_dir() else {}
    )
    names = sorted(found, key=lambda name: name.as_posix())
    if min(H, W) < 1 or channels not in (1, 3) or not names:
        what = folder if folder.is_dir() else f"{folder}, which is no folder,"
        raise ValueError(
            f"expected a folder of photos, a size >= 1 and 1 or 3 channels, got {what} "
            f"with {len(names)} files, size {size} and {channels} channels"
        )
    images = torch.empty(len(names), channels, H, W, dtype=torch.uint8)
    problems = []
    for i, name in enumerate(names):
        try:
            images[i] = _read_photo(found[name], H, W, channels)
        except ImportError:  # Pillow is missing: the photo is not to blame
            raise
        except Exception as error:  # Pillow raises nearly everything on damaged files
            problems.append(f"{name} ({error})")
    if problems:
        raise ValueError(
            f"{len(problems)} of the {len(names)} files in {folder} are no pictures "
            f"that decode; mend or move away: {'; '.join(problems[:10])}"
        )
    classes = sorted({name.parent.as_posix() for name in names})
    labels = [classes.index(name.parent.as_posix()) for name in names]
    return images, torch.tensor(labels), classes


def _files(folder: Path, above: tuple[os.stat_result, ...] = ()) -> Iterator[Path]:
    """All files in it and below; a link to a folder above leads nowhere new."""
    here = folder.stat()
    if any(os.path.samestat(here, other) for other in above):
        return
    for name in os.listdir(folder):
        path = folder / name
        if name.startswith("."):
            continue
        if path.is_dir():
            yield from _files(path, (*above, here))
        else:
            yield path


def _read_photo(path: Path, H: int, W: int, channels: int) -> Tensor:
    """One photo, uint8 (channels, H, W)."""
    with extra():
        from PIL import Image, ImageOps

    if not path.exists():
        raise ValueError("it is a link to a file that is not there")
    file_size(path)
    with open(path, "rb") as file:
        head = file.read(25)
    if head[:8] == b"\x89PNG\r\n\x1a\n" and head[24:] == b"\x10":
        raise ValueError("it has 16 bits a channel, expected 8")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=("JPEG", "PNG", "WEBP", "BMP", "GIF")) as photo:
            if max(photo.size) > _LONGEST_SIDE:
                raise ValueError(
                    f"it has {photo.width:,} x {photo.height:,} pixels, expected at "
                    f"most {_LONGEST_SIDE:,} a side"
                )
            upright = ImageOps.exif_transpose(photo)
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    upright = upright.convert("RGB" if channels == 3 else "L")
    fitted = ImageOps.fit(upright, (W, H), Image.Resampling.LANCZOS)
    pixels = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8)
    return pixels.view(H, W, channels).permute(2, 0, 1)
