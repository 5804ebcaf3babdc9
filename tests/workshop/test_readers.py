"""Readers: what was written is read back, and what is damaged is named.

The files are written here by NumPy and Pillow, from the formats' definitions. Real
pictures are read where TINYDDPM_DATA names a folder that holds them.
"""

import gzip
import hashlib
import io
import lzma
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from tests.strategies import seeds, share
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
    st.sampled_from([np.uint8, np.float32, np.float64]),
)
def test_one_hot_labels_are_read_back(path, case, dtype):
    """Row k of the identity is class k, in each dtype."""
    classes, labels = case
    written(path, npy_bytes(one_hot(labels, classes, dtype)))
    assert read_npy_labels(path).tolist() == labels


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
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks data_batch_3\.bin of CIFAR-10"):
        read_cifar10(folder)
    with pytest.raises(ValueError, match="'train' or 'test', got 'valid'"):
        read_cifar10(folder, "valid")


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
    refused(read_npy_images, file, r"a\.npy holds Python objects, which take a pickle")


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


def test_a_file_that_unpacks_to_more_than_it_says_is_not_unpacked(path):
    """A gzip bomb: 64 MiB behind a header of 20 bytes is refused after 21."""
    data = idx_bytes(np.zeros((1, 4, 5), dtype=np.uint8)) + bytes(1 << 26)
    refused(read_idx_images, written(path, gzip.compress(data)), "got 21; it is dam")


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
            r"holds torch.uint8 \(2, 4, 4",
        ),
        (read_npy_images, npy_bytes(levels(0, 2, 4, 4, 2)), "C = 1 or 3"),
        (read_npy_images, npy_bytes(np.zeros((1, 2, 2, 3), "f4")), "torch.float32"),
        (read_npy_images, npy_bytes(np.zeros((1, 2, 2, 3), ">f4")), "has the header"),
        (read_npy_images, npy_bytes(np.zeros((1, 2, 2, 3), "i8")), "has the header"),
        (read_npy_images, npy_bytes(np.zeros((0, 2, 2, 3), "u1")), "promises"),
        (read_npy_images, npy_bytes(np.zeros(3, [("a", "u1")])), "has the header"),
        (
            read_npy_labels,
            npy_bytes(np.zeros(3, "f4")),
            r"holds \(3,\), expected labels",
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
    ],
)
def test_the_error_says_what_is_wrong(path, read, data, match):
    """Each kind of wrong content has its own sentence."""
    refused(read, written(path, data), match)


# Folders of photos


@pytest.mark.parametrize("turn", [1, -1])
def test_sub_folders_are_classes_and_names_give_the_order(tmp_path, monkeypatch, turn):
    """In whichever order the file system lists them: by path, a class a sub-folder."""
    listed = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda *a: sorted(listed(*a))[::turn])
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


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_8_bit_mode_becomes_rgb(tmp_path, mode):
    """White is white in every mode."""
    white = Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode)
    white.save(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"))
    images, _, _ = read_image_folder(tmp_path, 4)
    assert (images == 255).all()


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
    for folder, got in (
        (tmp_path, ""),
        (tmp_path / "nowhere", ", which is no folder,"),
    ):
        with pytest.raises(ValueError, match=f"{folder.name}{got} with 0 files"):
            read_image_folder(folder, 8)
    (tmp_path / "a.png").write_bytes(photo_bytes(RED))
    with pytest.raises(ValueError, match="size 0"):
        read_image_folder(tmp_path, 0)


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
