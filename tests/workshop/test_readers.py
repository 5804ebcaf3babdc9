"""Readers: what was written is read back, and what is damaged is named.

The files are written here by NumPy and Pillow, from the formats' definitions. Real
pictures are read where TINYDDPM_DATA names a folder that holds them.
"""

import errno
import functools
import gzip
import hashlib
import io
import lzma
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from tests.strategies import seeds, share
from tinyddpm.workshop import readers
from tinyddpm.workshop.readers import (
    CIFAR10_RECORD,
    read_cifar10,
    read_cifar10_file,
    read_idx_images,
    read_idx_labels,
    read_image_folder,
    read_npy_images,
    read_npy_labels,
)


def levels(seed, *shape):
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def cifar_bytes(images, labels):
    """CIFAR-10's binary layout: a label byte, then the planes R, G, B by rows."""
    return b"".join(
        bytes([label]) + image.tobytes()
        for image, label in zip(images, labels, strict=True)
    )


def idx_bytes(array):
    """IDX: two zeros, 8 (unsigned bytes), the rank, the sizes big-endian, the bytes."""
    sizes = np.array(array.shape, dtype=">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def npy_bytes(array):
    out = io.BytesIO()
    np.save(out, array, allow_pickle=array.dtype == object)
    return out.getvalue()


WHOLE = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", ">i4"]  # NumPy's names


def one_hot(labels, classes, dtype=np.float32):
    return np.eye(classes, dtype=dtype)[labels]


def photo_bytes(array, format="PNG", **options):
    out = io.BytesIO()
    Image.fromarray(array).save(out, format, **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """One file for all examples, written anew in each."""
    return tmp_path_factory.mktemp("readers") / "photos" / "damaged.xyz"


def written(path, data):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def refused(read, path, match):
    """read(path) ends in a ValueError that names the file and says `match`."""
    with pytest.raises(ValueError, match=match) as caught:
        read(path)
    assert Path(path).name in str(caught.value)


# What was written is read back


@given(seeds, st.integers(1, 5))
def test_cifar10_records_are_read_back(path, seed, n):
    """The pixels in (N, C, H, W), planes R, G, B; the labels beside them."""
    images, labels = levels(seed, n, 3, 32, 32), levels(seed, n) % 10
    written(path, cifar_bytes(images, labels))
    for count in (None, n):
        v, c = read_cifar10_file(path, count)
        assert (v.dtype, c.dtype) == (torch.uint8, torch.long)
        np.testing.assert_array_equal(v.numpy(), images)
        np.testing.assert_array_equal(c.numpy(), labels)


@given(seeds, st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_idx_files_are_read_back(path, seed, n, H, W, packed):
    """(N, 1, H, W) and (N,), whether gzipped or not."""
    pack = gzip.compress if packed else bytes
    images, labels = levels(seed, n, H, W), levels(seed, n) % 10
    v = read_idx_images(written(path, pack(idx_bytes(images))))
    c = read_idx_labels(written(path, pack(idx_bytes(labels))))
    assert (v.dtype, c.dtype) == (torch.uint8, torch.long)
    np.testing.assert_array_equal(v.numpy(), images[:, None])
    np.testing.assert_array_equal(c.numpy(), labels)


@given(
    seeds,
    st.tuples(*[st.integers(1, 9)] * 3, st.sampled_from([1, 3])),
    st.sampled_from("CF"),
    st.sampled_from([(1, 0), (2, 0), (3, 0)]),
)
def test_npy_pictures_are_read_back(path, seed, shape, order, version):
    """(N, H, W, C) becomes (N, C, H, W), in C's and Fortran's order, any version."""
    images = np.asarray(levels(seed, *shape), order=order)
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as file:
        np.lib.format.write_array(file, images, version)
    v = read_npy_images(path)
    assert v.dtype == torch.uint8
    assert v.is_contiguous()
    np.testing.assert_array_equal(v.numpy(), images.transpose(0, 3, 1, 2))


@given(
    st.integers(1, 9).flatmap(
        lambda K: st.tuples(st.just(K), st.lists(st.integers(0, K - 1), min_size=1))
    ),
    st.sampled_from(["?", *WHOLE, "f2", "f4", "f8", ">f8"]),
    st.sampled_from("CF"),
)
def test_one_hot_labels_are_read_back(path, case, dtype, order):
    """Row k of the identity is class k, in each dtype and order."""
    classes, labels = case
    rows = np.asarray(one_hot(labels, classes, np.dtype(dtype)), order=order)
    read = read_npy_labels(written(path, npy_bytes(rows)))
    assert (read.dtype, read.tolist()) == (torch.long, labels)


@given(
    st.lists(st.integers(0, 127), min_size=1),
    st.sampled_from(WHOLE),
)
def test_whole_numbers_are_classes(path, labels, dtype):
    """(N,) whole numbers are the classes themselves, in each dtype; bool is 0 and 1."""
    for given_labels in (labels, [label % 2 for label in labels]):
        array = np.array(given_labels, dtype)
        read = read_npy_labels(written(path, npy_bytes(array)))
        assert (read.dtype, read.tolist()) == (torch.long, given_labels)
    written(path, npy_bytes(array.astype(bool)))
    assert read_npy_labels(path).tolist() == given_labels


def test_the_largest_class_is_a_class(path):
    """Up to what a LongTensor holds, of an unsigned dtype too."""
    largest = [0, 2**63 - 1]
    for dtype in ("i8", "u8"):
        written(path, npy_bytes(np.array(largest, dtype)))
        assert read_npy_labels(path).tolist() == largest


def test_a_file_of_python_2_is_read(path):
    """Its NumPy wrote the sizes of a header as 2L, of which today's warns."""
    images = levels(0, 2, 4, 4, 3)
    data = npy_bytes(images).replace(b"(2, 4, 4, 3)", b"(2L,4L,4L,3)")
    assert b"2L" in data
    v = read_npy_images(written(path, data))
    np.testing.assert_array_equal(v.numpy(), images.transpose(0, 3, 1, 2))


def test_a_gzipped_file_may_shrink_much_or_begin_late(path):
    """Pictures of one colour, of which a piece of the file makes many; and a comment
    before them longer than what is read at a time, of which nothing comes."""
    images = np.zeros((3, 1024, 1024), np.uint8)
    packed = gzip.compress(idx_bytes(images))
    comment = bytes([packed[3] | 16])  # the flag that says so
    late = packed[:3] + comment + packed[4:10] + b"x" * 100_000 + b"\0" + packed[10:]
    for data in (packed, late):
        assert torch.equal(
            read_idx_images(written(path, data)), torch.from_numpy(images[:, None])
        )


def test_an_npz_archive_is_refused_in_words(tmp_path):
    """Several arrays in one file: which is meant cannot be known."""
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", levels(0, 2, 4, 4, 3))
        for read in (read_npy_images, read_npy_labels):
            refused(
                read, tmp_path / "a.npz", r"a\.npz is an \.npz archive.*numpy\.save"
            )


def test_a_missing_numpy_is_named_with_the_extra(tmp_path, monkeypatch):
    """Without NumPy the error says which extra brings it."""
    path = written(tmp_path / "a.npy", npy_bytes(levels(0, 1, 4, 4, 3)))
    monkeypatch.setitem(sys.modules, "numpy", None)  # importing it fails
    with pytest.raises(ModuleNotFoundError, match="numpy") as refused:
        read_npy_images(path)
    assert refused.value.name == "numpy"
    assert str(refused.value).endswith(" (pip install 'tinyddpm[scripts]' installs it)")


def test_the_official_folder_is_read_in_order(tmp_path, monkeypatch):
    """data_batch_1 ... 5 one after the other; test_batch apart; either folder given."""
    monkeypatch.setattr("tinyddpm.workshop.readers.CIFAR10_COUNT", 2)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    names = [f"data_batch_{i}" for i in (1, 2, 3, 4, 5)] + ["test_batch"]
    images = levels(0, 6, 2, 3, 32, 32)
    for i, name in enumerate(names):
        (folder / f"{name}.bin").write_bytes(cifar_bytes(images[i], [i, 9]))
    for given_folder in (folder, tmp_path):
        v, c = read_cifar10(given_folder)
        np.testing.assert_array_equal(v.numpy(), images[:5].reshape(10, 3, 32, 32))
        assert c.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
        v, c = read_cifar10(given_folder, "test")
        np.testing.assert_array_equal(v.numpy(), images[5])
        assert c.tolist() == [5, 9]
    (folder / "data_batch_3.bin").write_bytes(cifar_bytes(images[3, :1], [0]))
    with pytest.raises(
        ValueError, match=r"data_batch_3\.bin holds 3,073 bytes.*cut sh"
    ):
        read_cifar10(folder)
    for i in (3, 5):
        (folder / f"data_batch_{i}.bin").unlink()
    with pytest.raises(FileNotFoundError, match="lacks") as refused:
        read_cifar10(folder)
    assert str(refused.value) == (
        f"{folder} lacks data_batch_3.bin, data_batch_5.bin of CIFAR-10's binary "
        f"version; give the folder that holds them, or download it"
    )
    with pytest.raises(ValueError, match=r"^split must be 'train' or 'test', got 'v"):
        read_cifar10(folder, "valid")


def test_the_official_files_hold_10_000_pictures_each(tmp_path):
    """As the data set's page has it: one more or less is another file."""
    path = written(tmp_path / "test_batch.bin", b"")
    for count in (9_999, 10_000, 10_001):
        os.truncate(path, count * (1 + 32 * 32 * 3))
        if count == 10_000:
            assert read_cifar10(tmp_path, "test")[0].shape == (count, 3, 32, 32)
            continue
        with pytest.raises(ValueError, match="expected 10,000 records of 3,073 bytes"):
            read_cifar10(tmp_path, "test")


@pytest.mark.parametrize(
    "read",
    [
        read_cifar10,
        read_cifar10_file,
        read_idx_images,
        read_idx_labels,
        read_npy_images,
        read_npy_labels,
    ],
)
def test_a_missing_file_is_named(tmp_path, read):
    """What is not there is a FileNotFoundError with its name."""
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read(tmp_path / "nowhere")


# What is damaged is named


def bomb(marker):
    """A pickle that makes the file `marker` when it is opened."""

    class Bomb:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    return Bomb()


def test_no_pickle_is_opened(tmp_path):
    """A pickle in any reader's place is refused by name, and its code does not run."""
    marker = tmp_path / "ran"
    with open(tmp_path / "probe", "wb") as file:
        pickle.dump(bomb(tmp_path / "armed"), file)
    pickle.loads((tmp_path / "probe").read_bytes()).close()
    assert (tmp_path / "armed").exists()  # the bomb works
    plain = pickle.dumps(bomb(marker))
    padded = plain.ljust(CIFAR10_RECORD, b"\0")
    objects = npy_bytes(np.array([bomb(marker)], dtype=object))
    for data in (plain, padded, objects, gzip.compress(plain)):
        file = written(tmp_path / "photos" / "a.bin", data)
        for read in READERS.values():
            refused(read, file, r"a\.bin")
    assert not marker.exists()
    file = written(tmp_path / "a.npy", objects)
    refused(read_npy_images, file, r"a\.npy is no array of numbers.*Python objects")


def read_photos(path):
    """The folder that the one photo lies in; its errors name the photo."""
    return read_image_folder(path.parent, 8)[0]


READERS = {
    "cifar": lambda path: read_cifar10_file(path, 2),
    "idx images": read_idx_images,
    "idx labels": read_idx_labels,
    "npy images": read_npy_images,
    "npy labels": read_npy_labels,
    "photo": read_photos,
}
RED = np.full((9, 13, 3), (200, 10, 10), dtype=np.uint8)
GOOD = {
    "cifar": [cifar_bytes(levels(0, 2, 3, 32, 32), [3, 7])],
    "idx images": [
        idx_bytes(levels(0, 3, 4, 5)),
        gzip.compress(idx_bytes(levels(0, 3, 4, 5))),
    ],
    "idx labels": [
        idx_bytes(np.arange(10, dtype=np.uint8)),
        gzip.compress(idx_bytes(np.arange(10, dtype=np.uint8))),
    ],
    "npy images": [npy_bytes(levels(0, 3, 4, 5, 3))],
    "npy labels": [npy_bytes(one_hot([0, 2, 1], 3))],
    "photo": [
        photo_bytes(levels(0, 9, 13, 3)),
        photo_bytes(levels(0, 9, 13, 3), "JPEG"),
        photo_bytes(levels(0, 9, 13, 3), "JPEG", progressive=True),
        photo_bytes(levels(0, 9, 13), "GIF"),
        photo_bytes(levels(0, 9, 13, 3), "BMP"),
        photo_bytes(levels(0, 9, 13, 3), "WEBP"),
    ],
}


@st.composite
def damaged(draw, kind):
    """A good file with bits flipped, bytes put in or taken out, cut short, or noise."""
    data = bytearray(draw(st.sampled_from(GOOD[kind])))
    # the first 200 bytes hold the headers: most of what can go wrong
    place = st.one_of(st.integers(0, min(200, len(data))), st.integers(0, len(data)))
    for _ in range(draw(st.integers(1, 3))):
        i = draw(place)
        how = draw(st.sampled_from(["flip", "put in", "take out", "cut", "replace"]))
        noise = draw(st.binary(min_size=1, max_size=20))
        if how == "flip" and i < len(data):
            data[i] ^= 1 << draw(st.integers(0, 7))
        elif how == "put in":
            data[i:i] = noise
        elif how == "take out":
            del data[i : i + len(noise)]
        elif how == "cut":
            del data[i:]
        elif how == "replace":
            data[i : i + len(noise)] = noise
    return bytes(data)


@pytest.mark.parametrize("kind", READERS)
@share(200)
@given(data=st.data())
def test_a_damaged_file_is_a_picture_or_a_named_error(path, kind, data):
    """The only outcomes: uint8 pictures or labels, or a ValueError with the name."""
    written(path, data.draw(damaged(kind)))
    try:
        result = READERS[kind](path)
    except ValueError as error:
        named = path.name in str(error)
        assert named, str(error)  # noqa: PT017  (either outcome is right)
        return
    parts = result if isinstance(result, tuple) else (result,)
    assert all(part.dtype in (torch.uint8, torch.long) for part in parts)
    assert all(len(part) > 0 for part in parts)


@pytest.mark.parametrize("kind", [kind for kind in READERS if kind != "photo"])
@given(data=st.data())
def test_a_file_cut_short_or_too_long_is_never_read(path, kind, data):
    """A file of another length than its header (or its count) says is refused."""
    good = data.draw(st.sampled_from(GOOD[kind]))
    cut = data.draw(st.integers(0, len(good) - 1))
    more = data.draw(st.binary(min_size=1, max_size=4000))
    for wrong in (good[:cut], good + more):
        refused(READERS[kind], written(path, wrong), path.name)


@pytest.mark.parametrize("kind", ["idx images", "idx labels"])
@given(data=st.data())
def test_a_flipped_bit_in_a_gzipped_file_changes_no_pixel(path, kind, data):
    """gzip's check sum stands guard: the very contents, or a ValueError."""
    plain, packed = GOOD[kind]
    i = data.draw(st.integers(0, 8 * len(packed) - 1))
    flipped = bytearray(packed)
    flipped[i // 8] ^= 1 << i % 8
    expected = READERS[kind](written(path, plain))
    try:
        result = READERS[kind](written(path, flipped))
    except ValueError:
        return
    assert torch.equal(result, expected)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.booleans())
def test_a_header_that_promises_too_much_needs_no_memory(path, n, H, packed):
    """Sizes up to 2**96 bytes over 100 bytes of pixels: refused, nothing reserved."""
    assume(n * H * 2**20 != 100)
    head = bytes([0, 0, 8, 3]) + np.array([n, H, 2**20], dtype=">u4").tobytes()
    data = head + bytes(100)
    written(path, gzip.compress(data) if packed else data)
    refused(read_idx_images, path, "its header promises")


@pytest.mark.parametrize("n", [20, 3 << 19])
def test_a_file_that_unpacks_to_more_than_it_says_is_not_unpacked(path, n):
    """A gzip bomb: 64 MiB behind a header of n bytes is refused at the next one, be it
    in the first piece of what is unpacked or in a later one."""
    data = idx_bytes(np.zeros((1, 1, n), dtype=np.uint8)) + bytes(1 << 26)
    packed = gzip.compress(data, 1)
    refused(read_idx_images, written(path, packed), f"got {n + 1:,}; it is damaged")


@pytest.mark.parametrize(
    ("kind", "good", "less"),
    [("cifar", 0, CIFAR10_RECORD), ("idx images", 0, 1), ("idx labels", 0, 1)],
)
def test_a_file_that_shrinks_while_it_is_read_is_refused(
    path, monkeypatch, kind, good, less
):
    """Of the size that it had when it was looked at, the end is not there any more:
    no pictures of what was in memory before."""
    written(path, GOOD[kind][good])
    size = path.stat().st_size
    os.truncate(path, size - less)
    monkeypatch.setattr(readers, "file_size", lambda _: size)
    refused(READERS[kind], path, "^.* became shorter while it was read$")


ONE_MORE = b"x" + bytes(5)
OTHER_SUM = bytearray(gzip.compress(idx_bytes(levels(0, 3, 4, 5))))
OTHER_SUM[-8] ^= 1
SENTENCES = [
    (
        read_cifar10_file,
        bytes(3072),
        "{} holds 3,072 bytes, expected one or more records of 3,073 bytes each; it is "
        "cut short or not a CIFAR-10 .bin file",
    ),
    (
        READERS["cifar"],
        bytes(3073),
        "{} holds 3,073 bytes, expected 2 records of 3,073 bytes each; it is cut short "
        "or not a CIFAR-10 .bin file",
    ),
    (
        read_idx_labels,
        idx_bytes(np.array([9, 10, 11], np.uint8)),
        "{}: label 10 at record 1 (from 0), expected 0..9",
    ),
    (
        functools.partial(read_idx_labels, classes=3),
        idx_bytes(np.array([2, 0, 3], np.uint8)),
        "{}: label 3 at record 2 (from 0), expected 0..2",
    ),
    (
        read_idx_images,
        b"",
        "{} begins with nothing, expected 00000803 and 3 sizes: an IDX file of bytes "
        "in 3 dimensions",
    ),
    (
        read_idx_labels,
        bytes([0, 0, 8, 1]),
        "{} begins with 00000801, expected 00000801 and 1 sizes: an IDX file of bytes "
        "in 1 dimensions",
    ),
    *[
        (
            read_idx_images,
            pack(idx_bytes(levels(0, 3, 4, 5))[:-2]),
            "{}: its header promises 3x4x5 = 60 bytes, got 58; it is damaged or cut "
            "short",
        )
        for pack in (bytes, gzip.compress)
    ],
    (
        read_idx_images,
        gzip.compress(idx_bytes(levels(0, 3, 4, 5)))[:-1],
        "{} does not unpack: it is cut short",
    ),
    (
        read_idx_images,
        gzip.compress(idx_bytes(levels(0, 3, 4, 5))) + ONE_MORE,
        "{} does not unpack: it continues after its end",
    ),
    (
        read_idx_images,
        OTHER_SUM,
        "{} does not unpack: Error -3 while decompressing data: incorrect data check",
    ),
    (
        read_npy_images,
        npy_bytes(levels(0, 2, 4, 4)),
        "{} holds uint8 (2, 4, 4), expected uint8 pictures (N, H, W, C) with C = 1 or "
        "3",
    ),
    (
        read_npy_labels,
        npy_bytes(np.zeros(3, "f4")),
        "{} holds float32 (3,), expected labels: whole numbers (N,), or one-hot rows "
        "(N, K)",
    ),
    (
        read_npy_labels,
        npy_bytes(np.array([3, -1])),
        "{}: row 1 is -1, expected a class from 0 to 2^63 - 1",
    ),
    (
        read_npy_labels,
        npy_bytes(np.array([[0, 1], [1, 1]])),
        "{}: row 1 is [1, 1], expected one-hot labels: a single 1, all else 0",
    ),
    (
        read_npy_labels,
        b"\x93NUMPE" + bytes(9),
        "{} begins with b'\\x93NUMPE', which is no .npy file",
    ),
    (
        read_npy_labels,
        npy_bytes(np.array([1, 0])) + bytes(3),
        "{}: its header promises (2,) of int64, got 19 bytes; it is empty, damaged or "
        "cut short",
    ),
]


@pytest.mark.parametrize(("read", "data", "said"), SENTENCES)
def test_a_refusal_is_a_whole_sentence(path, read, data, said):
    """The file, what it holds, what was expected in its place: nothing else."""
    with pytest.raises(ValueError, match=path.name) as caught:
        read(written(path, data))
    assert str(caught.value) == said.format(path)


# What is too large, and what never ends, is not read


def promising(n):
    """A gzipped IDX header of n bytes of pictures, with none of them behind it; of 39
    bytes, since nothing is squeezed."""
    sizes = np.array([1, 1, n], dtype=">u4").tobytes()
    data = gzip.compress(bytes([0, 0, 8, 3]) + sizes, 0)
    assert len(data) == 39
    return data


def test_gzipped_pictures_of_64_mebibytes_are_unpacked_whatever_they_shrink_to(path):
    """Any machine has those; more may come only from a file that is itself large."""
    refused(read_idx_images, written(path, promising(2**26)), "got 0; it is damaged")
    refused(
        read_idx_images, written(path, promising(2**26 + 1)), "unpack it yourself and"
    )


def test_gzipped_pictures_may_shrink_200_times(path, monkeypatch):
    """MNIST shrinks 5 times, one colour a thousand times. Beyond, the sentence says by
    how much, and what to do if the file is right."""
    monkeypatch.setattr(readers, "_MANY_BYTES", 0)
    refused(read_idx_images, written(path, promising(200 * 39)), "got 0; it is damaged")
    with pytest.raises(ValueError, match="promises") as caught:
        read_idx_images(written(path, promising(200 * 39 + 1)))
    assert str(caught.value) == (
        f"{path}: its header promises 1x1x7801 = 7,801 bytes, 200 times the gzipped "
        f"file's size; if that is right, unpack it yourself and give the unpacked file"
    )


def peak_memory(call):
    """The most bytes that Python and NumPy held at once during call()."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("cifar", "holds 2,147,483,648 bytes"),
        ("idx images", "begins with 00000000"),
        ("idx labels", "begins with 00000000"),
        ("npy images", "no .npy file"),
        ("npy labels", "no .npy file"),
        ("photo", "cannot identify"),
    ],
)
def test_a_huge_file_of_zeros_is_refused_by_its_size_or_header(tmp_path, kind, match):
    """2 GiB of zeros (a sparse file) take less than 1 MiB of memory to refuse."""
    path = written(tmp_path / "photos" / "zeros.bin", b"")
    os.truncate(path, 1 << 31)
    assert peak_memory(lambda: refused(READERS[kind], path, match)) < 1 << 20


def test_a_count_is_held_against_the_size_before_a_byte_is_read(tmp_path):
    """700,000 whole records (2 GiB) where 10,000 are expected."""
    path = written(tmp_path / "zeros.bin", b"")
    os.truncate(path, 700_000 * CIFAR10_RECORD)
    read = functools.partial(read_cifar10_file, count=10_000)
    assert peak_memory(lambda: refused(read, path, "expected 10,000 rec")) < 1 << 20


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes and devices are POSIX's")
@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("what", ["pipe", "device", "folder"])
def test_pipes_devices_and_folders_are_not_read(tmp_path, kind, what):
    """A pipe would wait and /dev/zero go on for ever; both end in a sentence."""
    path = tmp_path / "photos" / "a.bin"
    path.parent.mkdir()
    if what == "folder":
        if kind == "photo":
            return  # a sub-folder is where photos may lie
        path.mkdir()
        with pytest.raises(IsADirectoryError, match=r"a\.bin"):
            READERS[kind](path)
        return
    if what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    refused(READERS[kind], path, "a device or a pipe, expected a regular file")


def test_a_gzipped_bomb_is_refused_by_its_header(path, monkeypatch):
    """8 MiB of zeros in 8 KiB, as the header promises: no pictures shrink so far.

    Unpacked by hand it is read, as the message says; and ordinary files shrink less.
    """
    monkeypatch.setattr(readers, "_MANY_BYTES", 1 << 20)
    data = idx_bytes(np.zeros((8, 1024, 1024), np.uint8))
    written(path, gzip.compress(data))
    peak = peak_memory(lambda: refused(read_idx_images, path, "1[0-9]{3} times.*unp"))
    assert peak < 1 << 18
    assert read_idx_images(written(path, data)).shape == (8, 1, 1024, 1024)
    data = idx_bytes(levels(0, 8, 1024, 1024))
    assert read_idx_images(written(path, gzip.compress(data, 1))).sum() > 0


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["idx images", "npy images", "npy labels"])
def test_memory_is_that_of_the_pictures(path, kind, packed):
    """A file of n bytes takes n bytes, and not two or three times as much.

    The slack of 30 % is for a bytearray that grows, and for 64 KiB of buffers.
    """
    images = levels(0, 400, 64, 64, 3)
    data = {
        "idx images": idx_bytes(images[..., 0]),
        "npy images": npy_bytes(images),
        "npy labels": npy_bytes(np.eye(1000, dtype=bool)),
    }[kind]
    written(path, gzip.compress(data, 1) if packed and kind == "idx images" else data)
    READERS[kind](path)  # what is imported on the way does not count
    assert peak_memory(lambda: READERS[kind](path)) < 1.3 * len(data) + (1 << 16)


@pytest.mark.parametrize(
    ("read", "data", "match"),
    [
        (
            READERS["cifar"],
            cifar_bytes(levels(0, 2, 3, 32, 32), [3, 10]),
            "label 10 at",
        ),
        (READERS["cifar"], b"", "holds 0 bytes, expected 2 records"),
        (
            read_idx_labels,
            idx_bytes(np.array([1, 11], np.uint8)),
            "label 11 at record 1",
        ),
        (read_idx_labels, idx_bytes(levels(0, 2, 3, 4)), "begins with 00000803"),
        (
            read_idx_images,
            idx_bytes(levels(0, 5)),
            "begins with 00000801, expected 0000",
        ),
        (read_idx_images, b"", "begins with nothing"),
        (read_idx_images, b"\0\0\x0d\x03" + bytes(99), "begins with 00000d03"),
        (read_idx_images, idx_bytes(levels(0, 0, 4, 4)), "promises 0x4x4 = 0 bytes"),
        (
            read_npy_images,
            npy_bytes(levels(0, 2, 4, 4)),
            r"holds uint8 \(2, 4, 4",
        ),
        (read_npy_images, npy_bytes(levels(0, 2, 4, 4, 2)), "C = 1 or 3"),
        (read_npy_images, npy_bytes(np.zeros((1, 2, 2, 3), "f4")), "float32"),
        (read_npy_images, npy_bytes(np.zeros((1, 2, 2, 3), ">f4")), "holds >f4"),
        (read_npy_images, npy_bytes(np.zeros((1, 2, 2, 3), "i8")), "holds int64"),
        (read_npy_images, npy_bytes(np.zeros((0, 2, 2, 3), "u1")), "promises"),
        (read_npy_images, npy_bytes(np.zeros(3, [("a", "u1")])), "expected numbers"),
        (
            read_npy_labels,
            npy_bytes(np.zeros(3, "f4")),
            r"holds float32 \(3,\), expected labels: whole numbers",
        ),
        (
            read_npy_labels,
            npy_bytes(np.array([[0, 1], [1, 1.0]])),
            "row 1 is .1.0, 1.0",
        ),
        (
            read_npy_labels,
            npy_bytes(np.array([[0, 1], [0, 0.0]])),
            "row 1 is .0.0, 0.0",
        ),
        (
            read_npy_labels,
            npy_bytes(np.array([[0, 0.5], [0, 1]])),
            "row 0 is .0.0, 0.5",
        ),
        (
            read_npy_labels,
            npy_bytes(np.array([[2, 0], [0, 1.0]])),
            "row 0 is .2.0, 0.0",
        ),
        (read_npy_labels, npy_bytes(np.array([[1, np.nan]])), "row 0 is .1.0, nan"),
        (read_npy_labels, npy_bytes(np.array([[True, True]])), "row 0 is .True, True"),
        (read_npy_labels, npy_bytes(np.array([3, -1])), "row 1 is -1, expected a cl"),
        (
            read_npy_labels,
            npy_bytes(np.array([0, 2**63], "u8")),
            "row 1 is 92233720368",
        ),
        (read_npy_labels, npy_bytes(np.zeros((3, 0), "u1")), "it is empty"),
        (read_npy_labels, npy_bytes(np.array(3)), r"holds int64 \(\), expected lab"),
        (read_npy_labels, npy_bytes(np.array(["cat", "dog"])), "<U3, expected numbers"),
    ],
)
def test_the_error_says_what_is_wrong(path, read, data, match):
    """Each kind of wrong content has its own sentence."""
    refused(read, written(path, data), match)


# Folders of photos


@pytest.mark.parametrize("turn", [1, -1])
def test_sub_folders_are_classes_and_names_give_the_order(tmp_path, monkeypatch, turn):
    """In whichever order the file system lists them: by path, a class a sub-folder."""
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listed(path))[::turn])
    names = ["a.png", "b.png", "daisy/c.png", "daisy/x/a.png", "rose/a.png"]
    for i in range(5):
        (tmp_path / names[i]).parent.mkdir(parents=True, exist_ok=True)
        array = np.full((4, 4, 3), 10 * i, dtype=np.uint8)
        (tmp_path / names[i]).write_bytes(photo_bytes(array))
    (tmp_path / ".hidden").write_bytes(b"no picture")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_bytes(b"no picture")
    images, labels, classes = read_image_folder(tmp_path, 4)
    assert images.shape == (5, 3, 4, 4)
    assert images[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40]
    assert classes == [".", "daisy", "daisy/x", "rose"]
    assert labels.tolist() == [0, 0, 1, 2, 3]


def test_the_order_is_that_of_the_names_as_text(tmp_path):
    """The same on every system; a path's parts would put a folder before its like."""
    for i, name in enumerate(["a-b/1.png", "a/1.png"]):
        written(tmp_path / name, photo_bytes(np.full((1, 1, 3), i, np.uint8)))
    images, labels, classes = read_image_folder(tmp_path, 1)
    assert images[:, 0, 0, 0].tolist() == [0, 1]
    assert [classes[c] for c in labels] == ["a-b", "a"]


@given(seeds, st.integers(1, 12))
def test_a_photo_of_the_right_size_is_kept(path, seed, size):
    """Nothing to resize or crop: every pixel as it was."""
    array = levels(seed, size, size, 3)
    written(path, photo_bytes(array))
    images, _, _ = read_image_folder(path.parent, size)
    np.testing.assert_array_equal(images[0].permute(1, 2, 0).numpy(), array)


@given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 40), seeds)
def test_one_colour_stays_one_colour(path, H, W, size, seed):
    """A weighted mean of equal pixels is that pixel, whatever the sizes."""
    colour = levels(seed, 3)
    written(path, photo_bytes(np.broadcast_to(colour, (H, W, 3)).copy()))
    images, _, _ = read_image_folder(path.parent, size)
    expected = torch.from_numpy(colour)[:, None, None].expand(3, size, size)
    assert torch.equal(images[0], expected)


@pytest.mark.parametrize("across", [True, False])
def test_the_centre_is_kept(tmp_path, across):
    """Of three squares in a row, and in a column, the middle one is the picture."""
    middle = levels(0, 8, 8, 3)
    outer = np.zeros_like(middle)
    array = np.concatenate([outer, middle, outer], axis=1 if across else 0)
    (tmp_path / "a.png").write_bytes(photo_bytes(array))
    images, _, _ = read_image_folder(tmp_path, 8)
    np.testing.assert_array_equal(images[0].permute(1, 2, 0).numpy(), middle)


def test_shrinking_averages(tmp_path):
    """A fine chequerboard becomes grey: without antialiasing it would stay black/white.

    Away from the border (8 pixels), where the filter is cut off.
    """
    board = (np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8)
    (tmp_path / "a.png").write_bytes(photo_bytes(board))
    images, _, _ = read_image_folder(tmp_path, 32)
    inner = images[0, :, 8:-8, 8:-8].int()
    assert (inner - 127).abs().max() <= 2


def test_a_photo_is_turned_upright(tmp_path):
    """EXIF orientation 6: the camera lay on its side; the picture is turned back."""
    array = levels(0, 6, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.png").write_bytes(photo_bytes(array, exif=exif))
    images, _, _ = read_image_folder(tmp_path, 6)
    expected = np.rot90(array, -1)
    np.testing.assert_array_equal(images[0].permute(1, 2, 0).numpy(), expected)


def test_the_sharpest_filter_shrinks(tmp_path):
    """Where nothing is cropped a photo is what Pillow's best filter makes of it."""
    photo = Image.fromarray(levels(0, 24, 40, 3))
    photo.save(tmp_path / "a.png")
    expected = np.asarray(photo.resize((10, 6), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(only(tmp_path, (6, 10)), expected)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_every_format_is_read_whatever_the_name_says(tmp_path, format):
    """White is white in each; what a file is stands in it, not in its name."""
    white = np.full((4, 4, 3), 255, np.uint8)
    (tmp_path / "a").write_bytes(photo_bytes(white, format))
    np.testing.assert_array_equal(only(tmp_path), white)


def test_what_pillow_only_warns_of_is_read(tmp_path):
    """A tag that is cut short says nothing of the pixels."""
    exif = Image.Exif()
    exif[0x010E] = "a description of some length, which is not in the header"
    damaged = exif.tobytes()[:-30]
    (tmp_path / "a.png").write_bytes(photo_bytes(RED, exif=damaged))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert (only(tmp_path) == RED[:4, :4]).all()
    assert caught, "Pillow does not warn of it: the law needs another photo"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_8_bit_mode_becomes_rgb(tmp_path, mode):
    """White is white in every mode."""
    white = Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode)
    white.save(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"))
    images, _, _ = read_image_folder(tmp_path, 4)
    assert (images == 255).all()


def only(folder, size=4, channels=3):
    """The one photo of a folder, (H, W, channels)."""
    images, _, _ = read_image_folder(folder, size, channels)
    assert len(images) == 1
    return images[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_transparent_is_white(tmp_path, noise, channels):
    """A black sprite stays black, and no colour under alpha 0 is ever seen."""
    array = np.zeros((8, 8, 4), np.uint8)
    if noise:
        array[..., :3] = levels(0, 8, 8, 3)
        array[2:6, 2:6, :3] = 0
    array[2:6, 2:6, 3] = 255
    (tmp_path / "a.png").write_bytes(photo_bytes(array))
    expected = np.full((8, 8, channels), 255)
    expected[2:6, 2:6] = 0
    np.testing.assert_array_equal(only(tmp_path, 8, channels), expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_every_kind_of_transparency_shows_the_white(tmp_path, mode):
    """As a channel, as a palette's entry, as one colour: α·0 + (1 - α)·255 = 255."""
    if mode in ("RGBA", "LA"):
        photo = Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode)
        options = {}
    else:
        photo = Image.new(mode, (4, 4), 0)
        options = {"transparency": (0, 0, 0) if mode == "RGB" else 0}
    photo.save(tmp_path / "a.png", **options)
    np.testing.assert_array_equal(only(tmp_path), np.full((4, 4, 3), 255))


@given(st.integers(0, 255), st.integers(0, 255))
def test_half_transparent_is_mixed_with_white(path, level, alpha):
    """α·x + (1 - α)·255, to the rounding of 8 bits."""
    array = np.full((4, 4, 4), level, np.uint8)
    array[..., 3] = alpha
    written(path, photo_bytes(array))
    expected = alpha / 255 * level + (1 - alpha / 255) * 255
    assert np.abs(only(path.parent) - expected).max() <= 1


def png_bytes(width, height, depth, colour, rows):
    """A PNG written by hand: its header, and the rows as one compressed chunk."""

    def chunk(kind, data):
        checked = kind + data
        sum_ = zlib.crc32(checked).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + checked + sum_

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("colour", [0, 2, 4, 6])
def test_16_bits_a_channel_are_refused(tmp_path, depth, colour):
    """Grey and colour, with and without alpha: half the bits would be lost unseen."""
    samples = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    row = b"\0" + b"\xff" * (4 * samples * depth // 8)
    (tmp_path / "a.png").write_bytes(png_bytes(4, 4, depth, colour, 4 * row))
    if depth == 8:
        assert (only(tmp_path) == 255).all()
        return
    said = r"; mend or move away: a\.png \(it has 16 bits a channel, expected 8\)$"
    with pytest.raises(ValueError, match=said):
        read_image_folder(tmp_path, 4)


def test_a_long_thin_photo_is_refused_by_its_header(tmp_path):
    """1 x 89,000,000 pixels in a few bytes: refused before any pixel is decoded."""
    data = png_bytes(1, 89_000_000, 8, 0, b"\0\0")
    (tmp_path / "thin.png").write_bytes(data)
    with pytest.raises(
        ValueError,
        match=r"thin\.png \(it has 1 x 89,000,000 pixels, expected at most 65,535 a s",
    ):
        read_image_folder(tmp_path, 4)


def test_the_longest_photo_of_a_camera_is_read(tmp_path):
    """65,535 pixels a side are what a JPEG file can have; one more is refused."""
    for width in (65_535, 65_536):
        data = png_bytes(width, 1, 8, 0, bytes(1 + width))
        (tmp_path / "wide.png").write_bytes(data)
        if width == 65_535:
            assert (only(tmp_path) == 0).all()
            continue
        with pytest.raises(ValueError, match=r"it has 65,536 x 1 pixels"):
            read_image_folder(tmp_path, 4)


@given(seeds, st.integers(1, 9), st.integers(1, 9))
def test_grey_photos_of_any_shape_are_read_back(path, seed, H, W):
    """(N, 1, H, W): no pixel changes where nothing is to be resized."""
    array = levels(seed, H, W)
    written(path, photo_bytes(array))
    images, _, _ = read_image_folder(path.parent, (H, W), channels=1)
    np.testing.assert_array_equal(images.numpy(), array[None, None])
    assert torch.equal(
        read_image_folder(path.parent, (H, W))[0], images.expand(1, 3, -1, -1)
    )


def test_a_wide_photo_is_cropped_to_the_shape_asked_for(tmp_path):
    """8 x 40 to (8, 16): the middle 16 columns."""
    array = levels(0, 8, 40, 3)
    (tmp_path / "a.png").write_bytes(photo_bytes(array))
    np.testing.assert_array_equal(only(tmp_path, (8, 16)), array[:, 12:28])


def test_linked_folders_and_files_count(tmp_path):
    """A class that is a link to a folder elsewhere is a class, twice linked or not."""
    real = tmp_path / "elsewhere"
    written(real / "a.png", photo_bytes(RED))
    photos = tmp_path / "photos"
    photos.mkdir()
    written(photos / "dogs" / "b.png", photo_bytes(RED))
    for name in ("cats", "kittens"):
        (photos / name).symlink_to(real)
    (photos / "dogs" / "c.png").symlink_to(real / "a.png")
    images, labels, classes = read_image_folder(photos, 4)
    assert classes == ["cats", "dogs", "kittens"]
    assert labels.tolist() == [0, 1, 1, 2]
    assert len(images) == 4


def test_a_loop_of_links_ends(tmp_path):
    """A link to a folder above it holds nothing new, and is entered no second time."""
    written(tmp_path / "cats" / "a.png", photo_bytes(RED))
    (tmp_path / "cats" / "all").symlink_to(tmp_path)
    (tmp_path / "cats" / "self").symlink_to(tmp_path / "cats")
    _, labels, classes = read_image_folder(tmp_path, 4)
    assert (labels.tolist(), classes) == ([0], ["cats"])


def test_a_link_to_nothing_is_named(tmp_path):
    """What is missing is said: it may be a whole class."""
    written(tmp_path / "a.png", photo_bytes(RED))
    (tmp_path / "cats").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match="cats") as refused:
        read_image_folder(tmp_path, 4)
    assert str(refused.value) == (
        f"1 of the 2 files in {tmp_path} are no pictures that decode; mend or move "
        f"away: cats (it is a link to a file that is not there)"
    )


def test_the_first_ten_bad_photos_are_named(tmp_path):
    """Of thousands the sentence would be a book."""
    for i in range(12):
        (tmp_path / f"{i:02}.png").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match="12 of the 12 files") as refused:
        read_image_folder(tmp_path, 4)
    gone = [f"{i:02}.png (it is a link to a file that is not there)" for i in range(10)]
    assert str(refused.value).endswith(f"move away: {'; '.join(gone)}")


def test_a_sub_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    """Its photos are not left out in silence."""
    written(tmp_path / "open" / "a.png", photo_bytes(RED))
    written(tmp_path / "private" / "b.png", photo_bytes(RED))
    listed = os.listdir

    def refuse(path):
        if Path(path).name == "private":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return listed(path)

    monkeypatch.setattr(os, "listdir", refuse)  # the superuser may read everything
    with pytest.raises(PermissionError, match="private"):
        read_image_folder(tmp_path, 4)


def test_photos_that_do_not_decode_are_counted_and_named(tmp_path):
    """One bad file, and the whole folder is refused: none is left out in silence."""
    good = photo_bytes(levels(0, 50, 50, 3), "JPEG")
    bad = {
        "empty.jpg": b"",
        "half.jpg": good[: len(good) // 2],
        "notes.txt": b"not a picture",
        "deep.png": photo_bytes(np.zeros((4, 4), dtype=np.uint16)),
        "page.ps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }
    for name, data in {"good.jpg": good, **bad}.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match="5 of the 6 files in") as caught:
        read_image_folder(tmp_path, 8)
    assert all(name in str(caught.value) for name in bad)
    assert "good.jpg" not in str(caught.value)
    # PostScript is a program: it is not even handed to its interpreter
    assert "page.ps (cannot identify" in str(caught.value)
    for name in bad:
        (tmp_path / name).unlink()
    assert len(read_image_folder(tmp_path, 8)[0]) == 1


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    """A picture larger than Pillow trusts is an error that names it, not a warning."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    (tmp_path / "large.png").write_bytes(photo_bytes(levels(0, 40, 40, 3)))
    (tmp_path / "larger.png").write_bytes(photo_bytes(levels(0, 60, 60, 3)))
    with pytest.raises(ValueError, match=r"2 of the 2 .*large\.png.*larger\.png"):
        read_image_folder(tmp_path, 8)


def test_a_missing_pillow_is_not_blamed_on_the_photos(tmp_path, monkeypatch):
    """Without Pillow the error is Pillow's absence, whatever the folder holds."""
    (tmp_path / "a.png").write_bytes(photo_bytes(RED))
    monkeypatch.setitem(sys.modules, "PIL", None)  # importing it fails
    with pytest.raises(ImportError, match="PIL"):
        read_image_folder(tmp_path, 8)


def test_an_empty_folder_or_size_is_refused(tmp_path):
    """No photos, no folder, or a size of 0: said so."""

    def said(folder, files, *asked):
        with pytest.raises(ValueError, match="expected a folder") as refused:
            read_image_folder(folder, *asked)
        size, channels = (*asked, 3)[:2]
        what = f"{folder}{'' if folder.is_dir() else ', which is no folder,'}"
        assert str(refused.value) == (
            f"expected a folder of photos, a size >= 1 and 1 or 3 channels, got {what} "
            f"with {files} files, size {size} and {channels} channels"
        )

    said(tmp_path, 0, 8)
    said(tmp_path / "nowhere", 0, 8)
    (tmp_path / "a.png").write_bytes(photo_bytes(RED))
    said(tmp_path / "a.png", 0, 8)
    for asked in ((0,), ((4, 0),), ((0, 4),), (4, 5), (4, 2)):
        said(tmp_path, 1, *asked)


# Real pictures, where there are any

REAL = os.environ.get("TINYDDPM_DATA", "")
real = pytest.mark.skipif(
    not REAL, reason="TINYDDPM_DATA does not name a folder of real pictures"
)


def real_file(name):
    path = Path(REAL) / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


@real
@pytest.mark.parametrize(
    ("name", "sha256", "per_class"),
    [
        (
            "cifar10_lossless_train.bin",
            "9350d8ad5e080874998a7bfd36d95b7a52ce8d8c676c0061f7b47361669d6585",
            [517, 524, 490, 493, 537, 475, 503, 516, 529, 501],
        ),
        (
            "cifar10_lossless_test.bin",
            "c77ad46116beb3508f55d38aa34893560beae9515f9aca4a4dd0ea3617ac289e",
            [105, 93, 100, 104, 92, 87, 114, 102, 110, 110],
        ),
    ],
)
def test_real_cifar10_pictures(tmp_path, name, sha256, per_class):
    """Genuine records: written out again they are the same file; classes as listed."""
    packed = real_file(name + ".xz")
    path = written(tmp_path / name, lzma.decompress(packed.read_bytes()))
    images, labels = read_cifar10_file(path, sum(per_class))
    assert labels.bincount().tolist() == per_class
    again = cifar_bytes(images.numpy(), labels.tolist())
    assert hashlib.sha256(again).hexdigest() == sha256


@real
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("fashion_part-train", 8226),
        ("fashion_part-t10k", 4443),
        ("fashion_sheet", 900),
        ("mnist-t10k", 10_000),
    ],
)
def test_real_idx_files(name, count):
    """Fashion-MNIST and MNIST: NumPy sees the same bytes after the header."""
    images = real_file(f"{name}-images-idx3-ubyte.gz")
    labels = real_file(f"{name}-labels-idx1-ubyte.gz")
    v, c = read_idx_images(images), read_idx_labels(labels)
    assert v.shape == (count, 1, 28, 28)
    assert v.numpy().tobytes() == gzip.decompress(images.read_bytes())[16:]
    assert bytes(c.tolist()) == gzip.decompress(labels.read_bytes())[8:]
    assert len(c.unique()) == 10


@real
def test_real_sprites():
    """What numpy.load reads, and the number of each class as listed."""
    images = real_file("sprites_16x16.npy")
    labels = real_file("sprite_labels.npy")
    expected = np.load(images).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(read_npy_images(images).numpy(), expected)
    assert read_npy_labels(labels).bincount().tolist() == [432, 399, 206, 180, 128]


@real
def test_real_photos(tmp_path):
    """595 photos of 112 sizes, in five classes of known number."""
    with tarfile.open(real_file("flowers.tar")) as tar:
        tar.extractall(tmp_path, filter="data")
    images, labels, classes = read_image_folder(tmp_path / "flowers", 64)
    assert images.shape == (595, 3, 64, 64)
    assert classes == ["daisy", "dandelion", "rose", "sunflower", "tulip"]
    assert labels.bincount().tolist() == [120, 120, 117, 120, 118]
    # photos: no two are alike, none is of one colour
    assert len(images.flatten(1).unique(dim=0)) == 595
    assert images.float().flatten(1).std(dim=1).min() > 10


@real
@pytest.mark.slow
def test_the_whole_official_layout(tmp_path):
    """60,000 pictures in the six official files, 6,000 of each class."""
    script = real_file("make_cifar10.py")
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True)
    for split, n in (("train", 50_000), ("test", 10_000)):
        images, labels = read_cifar10(tmp_path, split)
        assert images.shape == (n, 3, 32, 32)
        assert labels.bincount().tolist() == [n // 10] * 10
