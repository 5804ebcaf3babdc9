"""Damaged files of every kind that is read, and checkpoints with a right check sum.

Each is read in a process of its own, which must give what is right or one sentence, and
take no more memory than an idle process and a bound. Where a format has no check sum a
flipped byte may be another picture: there the shape and the type are what is right.
"""

import copy
import gzip
import hashlib
import io
import json
import os
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from tinyddpm import MLP, Schedule, TrainConfig, UNet, fit, linear_schedule
from tinyddpm.beyond.gradients import gradient_drawer
from tinyddpm.beyond.pretrained import unet_from_diffusers, unet_to_diffusers
from tinyddpm.workshop.checkpoint import DIGEST, load_checkpoint, rebuild
from tinyddpm.workshop.datasets import read_pictures
from tinyddpm.workshop.progress import Progress
from tinyddpm.workshop.readers import read_npy_labels

from .child import REFUSED, RIGHT, idle, in_a_child, sentence

MIB = 64  # more than an idle process and twice the file may not be taken
PHOTO = 512  # of a photo; Pillow refuses pictures of above 89 million pixels
CONFIG: dict[str, Any] = {"steps": 4, "batch": 4, "log_every": 1, "save_every": 2}
CONFIG |= {"warmup": 1, "ema": 0.5}


class Kind(NamedTuple):
    """Files of one kind: a good one, how it is read, and when that was right."""

    path: Path  # of the file to be damaged, in a folder of its own
    read: Callable[[Path], Any]  # takes the folder
    right: Callable[[Any], bool]
    mebibytes: int = MIB


def damaged(good: bytes, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Some 25 ways to spoil the bytes, by name."""
    n = len(good)
    for first, last, times in ((0, min(64, n), 7), (0, n, 7)):
        for _ in range(times):
            spoilt = bytearray(good)
            for _ in range(rng.choice((1, 1, 2, 8))):
                spoilt[rng.randrange(first, last)] ^= 1 << rng.randrange(8)
            yield "flipped bits", bytes(spoilt)
    for size in (0, 1, 7, *(rng.randrange(n) for _ in range(4)), n - 1):
        yield "cut short", good[:size]
    yield "too long", good + b"\0"
    yield "too long", good + rng.randbytes(1000)
    at = rng.randrange(n)
    yield "zeros inside", good[:at] + bytes(min(512, n - at)) + good[at + 512 :]
    yield "other bytes", rng.randbytes(n)
    yield "other bytes", bytes(n)
    yield "other bytes", b"<html>please log in</html>"


def pictures(shape: tuple[int, ...], **settings: Any) -> dict[str, Any]:
    """`read` and `right` of a file of pictures, uint8."""

    def right(found: Any) -> bool:
        images, labels, _ = found
        fits = images.shape[1:] == shape and images.dtype == torch.uint8
        return fits and (labels is None or labels.min() >= 0)

    return {"read": lambda path: read_pictures(path, **settings), "right": right}


def kinds(folder: Path) -> Iterator[tuple[str, Kind]]:
    """A small good file of each kind."""
    g = np.random.default_rng(0)

    def file(name: str, content: bytes = b"") -> Path:
        path = folder / name.partition("/")[0] / name.rpartition("/")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    v = g.integers(0, 256, (12, 6, 5), np.uint8)
    idx = b"\0\0\x08\x03" + np.array(v.shape, ">u4").tobytes() + v.tobytes()
    yield "IDX", Kind(file("idx/v", idx), **pictures((1, 6, 5)))
    path = file("idx.gz/v.gz", gzip.compress(idx, mtime=0))
    yield "IDX, gzipped", Kind(path, **pictures((1, 6, 5)))
    records = g.integers(0, 256, (3, 3073), np.uint8)
    records[:, 0] %= 10
    path = file("cifar/v.bin", records.tobytes())
    yield "CIFAR .bin", Kind(path, **pictures((3, 32, 32)))
    np.save(path := file("npy/v.npy"), g.integers(0, 256, (9, 5, 4, 3), np.uint8))
    yield ".npy pictures", Kind(path, **pictures((3, 5, 4)))
    np.save(path := file("labels/c.npy"), np.eye(3, dtype=np.float32)[[0, 2, 1, 1]])
    right = lambda c: c.dtype == torch.long and 0 <= int(c.min()) <= int(c.max()) < 3  # noqa: E731
    yield ".npy labels", Kind(path, read_npy_labels, right)
    photo = Image.fromarray(g.integers(0, 256, (40, 30, 4), np.uint8))
    for mode, form in (
        *(("RGB", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("RGB", "JPEG")),
        *(("RGB", "WEBP"), ("P", "GIF"), ("RGB", "BMP")),
    ):
        path = file(f"{form}{mode}/photo.{form.lower()}")
        photo.convert(mode).save(path, form)
        how = pictures((3, 8, 8), size=(8, 8))
        how["read"] = lambda path: read_pictures(path.parent, size=(8, 8))
        yield f"{form} {mode}", Kind(path, **how, mebibytes=PHOTO)

    path = file("checkpoint/c.pt")
    path.unlink()
    in_a_child(lambda: trained(path), folder / "said")
    good = load_checkpoint(path)

    def opened(path: Path) -> Any:
        c = load_checkpoint(path)
        return c, rebuild(c), Schedule(c.beta)

    def same(found: Any) -> bool:
        weights = found[0].weights
        return weights.keys() == good.weights.keys() and all(
            torch.equal(weights[k], x) for k, x in good.weights.items()
        )

    yield "checkpoint", Kind(path, opened, same)
    net = UNet(1, 64, (1,), (), 0.0)
    unet_to_diffusers(net, folder / "diffusers", linear_schedule(100), (8, 8))
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        yield (
            name.removeprefix("diffusion_pytorch_"),
            Kind(
                folder / "diffusers" / "unet" / name,
                lambda path: unet_from_diffusers(path.parent),
                lambda found: isinstance(found, UNet) and found.base == 64,
            ),
        )
    out = folder / "figures"
    in_a_child(lambda: trained(out / "checkpoint.pt", out), folder / "said")
    rows = json.loads((out / "figures.json").read_bytes())["losses"]
    yield (
        "figures.json, resumed",
        Kind(
            out / "figures.json",
            lambda path: trained(path.parent / "checkpoint.pt", path.parent),
            lambda _: json.loads((out / "figures.json").read_bytes())["losses"] == rows,
        ),
    )


def trained(path: Path, out: Path | None = None, shape: Any = (3, 4, 4)) -> None:
    """A run of four steps, resumed if it is there, with figures if `out` is given."""
    torch.manual_seed(0)
    net, config = MLP(shape, 8, 1, 8), TrainConfig(**CONFIG)
    progress = None if out is None else Progress(out, config, net)
    draw = gradient_drawer(*shape[1:])
    fit(linear_schedule(100), net, draw, config, progress, path, resume=True)
    if progress is not None:
        progress.close()


def huge(folder: Path) -> Iterator[tuple[str, Kind]]:
    """Files that are large, endless or no files at all: refused by size or header."""
    for name in ("v.npy", "v.idx", "v.bin", "c.pt", "config.json"):
        (path := folder / "huge" / name).parent.mkdir(exist_ok=True)
        with open(path, "wb") as file:
            file.truncate(1 << 31)
        if name != "config.json":  # JSON is read whole, however large
            yield "2 GiB of zeros", reader(path)
    png = (folder / "PNGRGB" / "photo.png").read_bytes()
    for size in ((1, 89_000_000), (30_000, 30_000), (9_000, 9_000)):
        head = b"IHDR" + b"".join(n.to_bytes(4, "big") for n in size) + png[24:29]
        head += zlib.crc32(head).to_bytes(4, "big")
        (path := folder / f"bomb {size}" / "photo.png").parent.mkdir()
        path.write_bytes(png[:12] + head + png[33:])
        yield "PNG of many pixels", reader(path)
    (path := folder / "zeros" / "v.gz").parent.mkdir()
    first = b"\0\0\x08\x03" + np.array((4096, 512, 512), ">u4").tobytes()
    path.write_bytes(gzip.compress(first + bytes(1 << 28)) + bytes(100))
    yield "gzip of zeros", reader(path)
    for end in (".npy", ".bin", ".idx", ".pt", ".png"):
        (path := folder / f"odd{end}" / f"device{end}").parent.mkdir()
        path.symlink_to("/dev/zero")
        yield "link to /dev/zero", reader(path)
        (path := folder / f"pipe{end}" / f"pipe{end}").parent.mkdir()
        os.mkfifo(path)
        yield "pipe", reader(path)
        (path := folder / f"none{end}" / f"none{end}").parent.mkdir()
        path.symlink_to("nowhere")
        yield "dangling link", reader(path)
        if end != ".png":
            (path := folder / f"folder{end}" / f"folder{end}").mkdir(parents=True)
            yield "a folder in its place", reader(path)


def reader(path: Path) -> Kind:
    if path.suffix == ".pt":
        return Kind(path, load_checkpoint, lambda _: False)
    read = lambda path: read_pictures(path, size=(8, 8))  # noqa: E731
    if path.suffix == ".png":
        read = lambda path: read_pictures(path.parent, size=(8, 8))  # noqa: E731
        return Kind(path, read, lambda _: False, PHOTO)
    return Kind(path, read, lambda _: False)


ODD: tuple[Callable[[], Any], ...] = (
    *(lambda: None, lambda: "text", lambda: 10**30, lambda: -1, lambda: 0.5),
    *(lambda: [], lambda: {}, lambda: [1, "a"], lambda: True, lambda: float("nan")),
    *(lambda: torch.zeros(2, 2), lambda: torch.zeros(3).long()),
    *(lambda: torch.zeros(1).expand(10**9), lambda: torch.zeros(2, dtype=torch.cfloat)),
)


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to every part of nested dictionaries, lists and tuples."""
    if way:
        yield way
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*way, key))
    elif isinstance(value, list | tuple):
        for i in range(len(value)):
            yield from places(value[i], (*way, i))


def replaced(value: Any, way: tuple[Any, ...], by: Any) -> Any:
    if not way:
        return by
    inner = replaced(value[way[0]], way[1:], by)
    if isinstance(value, tuple):
        return (*value[: way[0]], inner, *value[way[0] + 1 :])
    value[way[0]] = inner
    return value


def wrong_content(good: Path, count: int, rng: random.Random) -> Iterator[bytes]:
    """Checkpoints with one part made something else, and a right check sum."""
    saved = torch.load(good, weights_only=True)
    everywhere = list(places(saved))
    for i in range(count):
        spoilt, way = copy.deepcopy(saved), rng.choice(everywhere)
        if i % 5 == 0:  # the upper parts, which are few
            way = (rng.choice(list(saved)),)
        if i % 7 == 0 and isinstance(spoilt[way[0]], dict):
            del spoilt[way[0]][rng.choice(list(spoilt[way[0]]))]
        else:
            spoilt = replaced(spoilt, way, rng.choice(ODD)())
        torch.save(spoilt, buffer := io.BytesIO())
        content = buffer.getvalue()
        yield content + hashlib.blake2b(content, digest_size=DIGEST).digest()


def main(rounds: int, seed: int, folder: Path) -> bool:
    """Prints a table of the files; whether all ended as they should."""
    rng, rest = random.Random(seed), idle()
    table: dict[str, Counter[str]] = {}
    most: dict[str, int] = {}
    problems: list[str] = []

    def note(name: str, what: str, kind: Kind, read: Any = None) -> None:
        path = kind.path
        work = read or (lambda: sentence(lambda: kind.read(path), kind.right))
        end = in_a_child(work, folder / "said", seconds=600)
        size = path.stat().st_size >> 20 if path.is_file() else 0
        used, size = end.mebibytes - rest, 0 if size > 1000 else size
        row = table.setdefault(name, Counter())
        most[name] = max(most.get(name, 0), used)
        row[{RIGHT: "right", REFUSED: "sentence"}.get(end.code, "fault")] += 1
        if end.code not in (RIGHT, REFUSED) or used > kind.mebibytes + 2 * size:
            row["fault"] += end.code in (RIGHT, REFUSED)
            problems.append(
                f"{name}, {what}: exit {end.code}, {used} MiB: {end.said[-700:]}"
            )

    for name, kind in kinds(folder):
        good = kind.path.read_bytes()
        note(name, "nothing", kind)
        for _ in range(rounds):
            for what, content in damaged(good, rng):
                kind.path.write_bytes(content)
                note(name, what, kind)
        kind.path.write_bytes(good)
    for name, kind in huge(folder):
        note(name, name, kind)

    path = folder / "checkpoint" / "c.pt"
    good = path.read_bytes()
    for content in wrong_content(path, 60 * rounds, rng):
        for what, use in (
            ("opened", lambda: rebuild(load_checkpoint(path))),
            ("resumed", lambda: trained(path)),
        ):
            path.write_bytes(content)
            kind = Kind(path, lambda _, u=use: u(), lambda _: True)
            note(f"checkpoint, right check sum, {what}", what, kind)
    path.write_bytes(good)

    print(f"\n{sum(row.total() for row in table.values())} files (good ones included)")
    print(f"  {'':38}{'right':>7}{'sentence':>9}{'fault':>6}{'MiB more':>9}")
    for name, row in table.items():
        cells = f"{row['right']:7}{row['sentence']:9}{row['fault']:6}{most[name]:9}"
        print(f"  {name:38}{cells}")
    print("".join(f"  {p}\n" for p in problems), end="")
    return not problems
