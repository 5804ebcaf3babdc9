"""Pictures in any of the formats: one function that picks the reader by the path."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .readers import (
    CIFAR10_FOLDER,
    read_cifar10,
    read_cifar10_file,
    read_idx_images,
    read_idx_labels,
    read_image_folder,
    read_npy_images,
    read_npy_labels,
)

# The files of MNIST and of the sets in its format, by the split they hold.
IDX = {"train": "train", "test": "t10k"}


class Pictures(NamedTuple):
    """A data set in memory.

    Attributes:
        images: uint8, (N, C, H, W).
        labels: long, (N,), or None where there are none.
        classes: the classes' names, in the order of their labels; empty without labels.
    """

    images: Tensor
    labels: Tensor | None
    classes: list[str]


def read_pictures(
    path: str | Path,
    labels: str | Path | None = None,
    size: tuple[int, int] | None = None,
    channels: int = 3,
    split: str = "train",
) -> Pictures:
    """The pictures at `path`, and their classes where the files tell them.

    Args:
        path: a folder of CIFAR-10's binary version, or one of its .bin files; a .npy
            file (N, H, W, C); an IDX file, or a folder of MNIST's files in that format;
            else a folder of photos, whose sub-folders are classes.
        labels: a .npy or IDX file of labels, for pictures in such a file. An IDX file
            finds the one beside it, of the same name with labels-idx1.
        size: (H, W) that photos are shrunk and cropped to; they need one. Pictures of
            other formats are padded with black to it, and never resized, since levels
            between two others are not 8-bit ones (eq. 13).
        channels: 3, or 1 for photos in grey.
        split: "train" or "test", where the path holds both.
    Raises: OSError, ValueError, as the readers do.
    """
    path = Path(path)
    images, of_file, classes = as_they_are(path, size, channels, split)
    images = padded(images, size, path)
    if labels is not None:
        suffix = Path(labels).suffix.lower()
        npy = suffix in (".npy", ".npz")
        of_file = read_npy_labels(labels) if npy else read_idx_labels(labels)
        if len(of_file) != len(images):
            raise ValueError(
                f"{labels} holds {len(of_file)} labels, and {path} {len(images)} "
                f"pictures; give the labels of these pictures"
            )
        classes = []
    if of_file is not None and not classes:
        classes = [str(c) for c in range(int(of_file.max()) + 1)]
    return Pictures(images, of_file, classes)


def padded(images: Tensor, size: tuple[int, int] | None, path: object) -> Tensor:
    """The pictures with black around them, (N, C, *size); `path` is named in errors."""
    H, W = images.shape[2:]
    if size is None or size == (H, W):
        return images
    more = size[0] - H, size[1] - W
    if min(more) < 0:
        raise ValueError(
            f"{path} holds pictures of {H}x{W}, which cannot be padded to "
            f"{size[0]}x{size[1]}; give a size that is not smaller"
        )
    top, left = more[0] // 2, more[1] // 2
    return pad(images, (left, more[1] - left, top, more[0] - top))


def hold_out(count: int, of: int) -> tuple[Tensor, Tensor]:
    """Which of `of` pictures to train on, and which `count` to hold out; for ever.

    Shuffled, since many files are sorted by class, and the same in every run.
    Returns: two rising LongTensors, (of - count,) and (count,).
    """
    if not 0 < count < of:
        raise ValueError(f"cannot hold out {count:,} of {of:,} pictures, and train too")
    order = torch.randperm(of, generator=torch.Generator().manual_seed(0))
    return order[count:].sort().values, order[:count].sort().values


def as_they_are(
    path: Path, size: tuple[int, int] | None, channels: int, split: str
) -> Pictures:
    """As `read_pictures`, but for the black around them, and without other labels."""
    return Pictures(*_read(path, size, channels, split))


def _read(
    path: Path, size: tuple[int, int] | None, channels: int, split: str
) -> tuple[Tensor, Tensor | None, list[str]]:
    suffix = path.suffix.lower()
    if suffix in (".npy", ".npz"):
        return read_npy_images(path), None, []
    if suffix == ".bin":
        return *read_cifar10_file(path), []
    if not path.is_dir():
        beside = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
        known = beside != path and beside.is_file()
        return read_idx_images(path), read_idx_labels(beside) if known else None, []
    if (path / CIFAR10_FOLDER).is_dir() or any(path.glob("*.bin")):
        return *read_cifar10(path, split), []
    for end in ("", ".gz"):
        file = path / f"{IDX[split]}-images-idx3-ubyte{end}"
        if file.is_file():
            return _read(file, size, channels, split)
    if others := sorted(path.glob("*-images-idx3-ubyte*")):
        raise FileNotFoundError(
            f"{path} holds no {IDX[split]}-images-idx3-ubyte, which has the pictures "
            f"to {split} with; to take {others[0].name} in its place, name that file"
        )
    if size is None:
        raise ValueError(
            f"{path} looks like a folder of photos; give the size to shrink them to, "
            f"--size H W"
        )
    images, found, folders = read_image_folder(path, size, channels)
    return (images, found, folders) if len(folders) > 1 else (images, None, [])
