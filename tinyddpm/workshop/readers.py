"""Pictures read from files: CIFAR-10's binary version, IDX, .npy, folders of photos.

What lives here: readers that check all they read. What does not: fetching the files
(`download.py`), and drawing batches from them (`data.py`).

A data set is one uint8 tensor (N, C, H, W), its labels a LongTensor (N,). A file that
is damaged ends in a ValueError that names it and says what is wrong; one that is
missing or may not be read, in an OSError. No pickle is ever opened.
"""

import math
import re
import struct
import warnings
import zlib
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import one_hot

CIFAR10_FOLDER = "cifar-10-batches-bin"
CIFAR10_FILES = {
    "train": [f"data_batch_{i}.bin" for i in (1, 2, 3, 4, 5)],
    "test": ["test_batch.bin"],
}
CIFAR10_COUNT = 10_000  # pictures in each of the six files
CIFAR10_RECORD = 1 + 3 * 32 * 32  # bytes: the label, then planes R, G, B
_NPY_HEADER = re.compile(
    rb"\{'descr': '([^']+)', 'fortran_order': (True|False), "
    rb"'shape': \(([0-9, ]{1,100})\),? ?\}\s*"
)
_NPY_DTYPES = {
    b"|u1": torch.uint8,
    b"<f4": torch.float32,
    b"<f8": torch.float64,
}


def read_pictures(
    path: str | Path,
    labels: str | Path | None = None,
    size: int | None = None,
    split: str = "train",
) -> tuple[Tensor, Tensor | None]:
    """Pictures of any kind that is read here, and their labels where there are any.

    Args:
        path: a .npy, .bin or IDX file, CIFAR-10's folder, or a folder of photos.
        labels: a .npy or IDX file of labels. An IDX file of pictures finds the one
            beside it, of the same name with labels-idx1 for images-idx3.
        size: of the photos of a folder, which are brought to it.
        split: "train" or "test", of CIFAR-10's folder.
    Returns: uint8 (N, C, H, W); long (N,) or None.
    """
    path, found = Path(path), None
    if path.suffix == ".npy":
        images = read_npy_images(path)
    elif path.suffix == ".bin":
        images, found = read_cifar10_file(path)
    elif (path / CIFAR10_FOLDER).is_dir() or any(path.glob("*.bin")):
        images, found = read_cifar10(path, split)
    elif path.is_dir():
        if size is None:
            raise ValueError(f"{path} holds photos of any size; give the size they get")
        images, found, classes = read_image_folder(path, size)
        found = found if len(classes) > 1 else None
    else:
        images = read_idx_images(path)
        beside = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
        if labels is None and beside != path and beside.is_file():
            labels = beside
    if labels is not None:
        npy = Path(labels).suffix == ".npy"
        found = read_npy_labels(labels) if npy else read_idx_labels(labels)
        if len(found) != len(images):
            raise ValueError(
                f"{labels} holds {len(found):,} labels, {path} {len(images):,} pictures"
            )
    return images, found


def hold_out(count: int, of: int) -> tuple[Tensor, Tensor]:
    """Which of `of` pictures to train on, and which `count` to hold out; for ever.

    Shuffled, since many files are sorted by class, and the same in every run.
    Returns: two rising LongTensors, (of - count,) and (count,).
    """
    if not 0 < count < of:
        raise ValueError(f"cannot hold out {count:,} of {of:,} pictures, and train too")
    order = torch.randperm(of, generator=torch.Generator().manual_seed(0))
    return order[count:].sort().values, order[:count].sort().values


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
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)} of CIFAR-10's binary version; "
            f"give the folder that holds them, or download it"
        )
    parts = [read_cifar10_file(path, CIFAR10_COUNT) for path in paths]
    images, labels = zip(*parts, strict=True)
    return torch.cat(images), torch.cat(labels)


def read_cifar10_file(
    path: str | Path, count: int | None = None
) -> tuple[Tensor, Tensor]:
    """One .bin file in CIFAR-10's layout: records of a label byte and 3,072 levels.

    Args:
        path: the file.
        count: how many records it must hold; by default any number >= 1.
    Returns: uint8 (N, 3, 32, 32), and labels 0..9, long (N,).
    """
    data = bytearray(Path(path).read_bytes())
    n, rest = divmod(len(data), CIFAR10_RECORD)
    if rest or n == 0 or n != (count or n):
        wanted = f"{count:,} records" if count else "one or more records"
        raise ValueError(
            f"{path} holds {len(data):,} bytes, expected {wanted} of "
            f"{CIFAR10_RECORD:,} bytes each; it is cut short or no CIFAR-10 .bin file"
        )
    records = torch.frombuffer(data, dtype=torch.uint8).view(n, CIFAR10_RECORD)
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
    data = Path(path).read_bytes()
    packed = data[:2] == b"\x1f\x8b"  # gzip's magic number
    first = 4 + 4 * ndim
    head = _gunzip(path, data, first) if packed else data[:first]
    magic = 0x0800 + ndim
    if len(head) < first or head[:4] != magic.to_bytes(4, "big"):
        raise ValueError(
            f"{path} begins with {head[:4].hex() or 'nothing'}, expected "
            f"{magic:08x} and {ndim} sizes: an IDX file of bytes in {ndim} dimensions"
        )
    shape = struct.unpack(f">{ndim}I", head[4:])
    n = math.prod(shape)
    if packed and n <= 1100 * len(data):  # gzip shrinks at most 1032 times
        data = _gunzip(path, data, first + n + 1)
    if n == 0 or len(data) != first + n:
        raise ValueError(
            f"{path}: its header promises {'x'.join(map(str, shape))} = {n:,} bytes, "
            f"got {len(data) - first:,}; it is damaged or cut short"
        )
    return torch.frombuffer(bytearray(data[first:]), dtype=torch.uint8).view(shape)


def _gunzip(path: str | Path, data: bytes, limit: int) -> bytes:
    """The first `limit` bytes of what `data` unpacks to, or all where that is less."""
    unpack = zlib.decompressobj(wbits=31)  # 31: gzip's header and check sum
    try:
        out = unpack.decompress(data, limit)
    except zlib.error as error:
        raise ValueError(f"{path} does not unpack: {error}") from error
    if len(out) < limit and (not unpack.eof or unpack.unused_data):
        what = "it goes on after its end" if unpack.eof else "it is cut short"
        raise ValueError(f"{path} does not unpack: {what}")
    return out


def read_npy_images(path: str | Path) -> Tensor:
    """Pictures from a .npy file: uint8, (N, H, W, C) with C = 1 or 3.

    Returns: uint8, (N, C, H, W).
    """
    images = _read_npy(path)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(
            f"{path} holds {images.dtype} {tuple(images.shape)}, expected uint8 "
            f"pictures (N, H, W, C) with C = 1 or 3"
        )
    return images.permute(0, 3, 1, 2).contiguous()


def read_npy_labels(path: str | Path) -> Tensor:
    """One-hot labels (N, K) from a .npy file. Returns: long, (N,), 0..K - 1."""
    rows = _read_npy(path)
    if rows.ndim != 2:
        raise ValueError(f"{path} holds {tuple(rows.shape)}, expected labels (N, K)")
    labels = rows.argmax(1)
    wrong = (rows != one_hot(labels, rows.shape[1])).any(1).nonzero()
    if len(wrong):
        raise ValueError(
            f"{path}: row {int(wrong[0])} is {rows[wrong[0, 0]].tolist()}, expected "
            f"one-hot labels: a single 1, all else 0"
        )
    return labels


def _read_npy(path: str | Path) -> Tensor:
    """An array as numpy.save writes it; objects, which need a pickle, are refused."""
    data = Path(path).read_bytes()
    if data[:6] != b"\x93NUMPY" or data[6:7] not in (b"\1", b"\2", b"\3"):
        raise ValueError(f"{path} begins with {data[:7]!r}, which is no .npy file")
    width = 2 if data[6] == 1 else 4  # bytes that hold the header's length
    first = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    header = _NPY_HEADER.fullmatch(data[8 + width : first])
    dtype = _NPY_DTYPES.get(header[1]) if header else None
    if header is None or dtype is None:
        if b"'|O'" in data[8 + width : first]:
            raise ValueError(
                f"{path} holds Python objects, which take a pickle to read; none is "
                f"opened here: save it as an array of numbers"
            )
        raise ValueError(
            f"{path} has the header {data[8 + width : first][:100]!r}, expected an "
            f"array of uint8, float32 or float64 as numpy.save writes it"
        )
    shape = tuple(int(size) for size in re.findall(rb"\d+", header[3]))
    if math.prod(shape) * dtype.itemsize != len(data) - first or len(data) == first:
        raise ValueError(
            f"{path}: its header promises {shape} of {dtype}, got "
            f"{len(data) - first:,} bytes; it is damaged or cut short"
        )
    flat = torch.frombuffer(bytearray(data[first:]), dtype=dtype)
    if header[2] == b"False":
        return flat.view(shape)
    return flat.view(shape[::-1]).permute(*range(len(shape))[::-1])  # Fortran's order


def read_image_folder(
    folder: str | Path, size: int
) -> tuple[Tensor, Tensor, list[str]]:
    """Photos of any size, and the sub-folders they lie in as their classes.

    Each is turned as its EXIF tag says, shrunk (or enlarged) until its short side is
    `size`, with antialiasing, and cropped at the centre. All files count, in the order
    of their names; only names that begin with a dot are left out.

    Returns: uint8 (N, 3, size, size); labels, long (N,); the classes' names, the
        sub-folders in order ("." for files beside them).
    Raises: ValueError, if any is no picture that decodes: how many, and the first 10.
    """
    folder = Path(folder)
    found = {p.relative_to(folder): p for p in folder.rglob("*") if p.is_file()}
    names = [p for p in found if not any(part.startswith(".") for part in p.parts)]
    names.sort(key=lambda p: p.as_posix())
    if size < 1 or not names:
        what = folder if folder.is_dir() else f"{folder}, which is no folder,"
        raise ValueError(
            f"expected a folder of photos and a size >= 1, got {what} with "
            f"{len(names)} files and size {size}"
        )
    images = torch.empty(len(names), 3, size, size, dtype=torch.uint8)
    problems = []
    for i, name in enumerate(names):
        try:
            images[i] = _read_photo(found[name], size)
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


def _read_photo(path: Path, size: int) -> Tensor:
    """One photo, uint8 (3, size, size)."""
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=("JPEG", "PNG", "WEBP", "BMP", "GIF")) as photo:
            if photo.mode.startswith(("I", "F")):
                raise ValueError(f"mode {photo.mode} has more than 8 bits a channel")
            upright = ImageOps.exif_transpose(photo).convert("RGB")
    square = ImageOps.fit(upright, (size, size), Image.Resampling.LANCZOS)
    pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
    return pixels.view(size, size, 3).permute(2, 0, 1)
