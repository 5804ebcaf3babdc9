"""The examples run end to end on made pictures, and refuse bad ones with a sentence."""

import gzip
import importlib
import json
import os
import re
import signal
import struct
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from tests.mutation.mistakes import MISTAKES
from tinyddpm.data import to_uint8
from tinyddpm.sampler import sample
from tinyddpm.schedule import linear_schedule
from tinyddpm.workshop.checkpoint import load_checkpoint, rebuild
from tinyddpm.workshop.pictures import save_png
from tinyddpm.workshop.progress import Progress, errors_as_sentences

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
TINY = ["--steps", "4", "--batch", "2", "--log-every", "2", "--save-every", "4"]
TINY += ["--base", "8", "--multipliers", "1", "2", "--T", "24", "--samples", "4"]


@pytest.fixture
def example(monkeypatch):
    """Imports an example as Python does when it runs: its folder first on the path."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


def write_idx(path: Path, n: int = 3, size: int = 28) -> np.ndarray:
    pictures = np.random.default_rng(0).integers(0, 256, (n, size, size), np.uint8)
    head = struct.pack(">4I", 0x0803, n, size, size)
    with gzip.open(path, "wb") if path.suffix == ".gz" else path.open("wb") as file:
        file.write(head + pictures.tobytes())
    return pictures


@pytest.fixture
def fashion(example, tmp_path):
    write_idx(tmp_path / "train-images-idx3-ubyte.gz")
    return example("train_fashion"), ["--data", str(tmp_path), "--attention", "1"]


@pytest.fixture
def sprites(example, tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.integers(0, 256, (5, 16, 16, 3), np.uint8))
    np.save(tmp_path / "c.npy", np.eye(2, dtype=np.float32)[[0, 1, 1, 0, 1]])
    files = ["--data", str(tmp_path / "x.npy"), "--labels", str(tmp_path / "c.npy")]
    return example("train_sprites"), [*files, "--attention", "1"]


@pytest.fixture
def flowers(example, tmp_path):
    rng = np.random.default_rng(0)
    for i, size in enumerate([(20, 33), (40, 18)]):
        folder = tmp_path / "photos" / f"kind {i}"
        folder.mkdir(parents=True)
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "a.jpg")
    flags = ["--size", "16", "--attention", "1"]
    return example("train_flowers"), ["--data", str(tmp_path / "photos"), *flags]


def run(script: tuple[ModuleType, list[str]], out: Path, *more: str) -> dict:
    module, flags = script
    module.main([*flags, *TINY, "--out", str(out), "--device", "cpu", *more])
    return json.loads((out / "figures.json").read_text())


@pytest.mark.parametrize("name", ["fashion", "sprites", "flowers"])
def test_a_run_leaves_its_pictures_figures_and_checkpoint(name, request, tmp_path):
    """Algorithms 1 and 2: an example trains, samples, and writes all it promises."""
    out = tmp_path / "out"
    figures = run(request.getfixturevalue(name), out)
    written = {"grid.png", "loss.png", "figures.json", "checkpoint.pt"}
    written |= {"reverse.gif"} if name == "sprites" else set()
    assert {path.name for path in out.iterdir()} == written
    assert [step for step, *_ in figures["losses"]] == [2, 4]
    assert all(0 < loss < float("inf") for _, loss, _ in figures["losses"])
    assert figures["config"]["T"] == 24
    rows, columns, side = {
        "fashion": (1, 4, 64),
        "sprites": (3, 4, 64),  # two classes and none
        "flowers": (1, 4, 64),
    }[name]
    with Image.open(out / "grid.png") as grid:
        assert grid.size == (columns * (side + 2) + 2, rows * (side + 2) + 2)
        assert np.ptp(np.asarray(grid)[2:-2, 2:66]) > 0  # not all one colour
    if name == "sprites":
        # x_24, ..., x_1 for 4 s / 25 each, x_0 for 2 s; equal ones in a row are one
        with Image.open(out / "reverse.gif") as gif:
            times = [f.info["duration"] for f in ImageSequence.Iterator(gif)]
        assert sum(times) == 24 * 160 + 2000
        assert times[-1] >= 2000


@pytest.mark.parametrize("name", ["fashion", "sprites", "flowers"])
def test_the_grid_is_of_the_moving_average(name, request, tmp_path, monkeypatch):
    """It is what the checkpoint's EMA gives, each row of sprites for its own class.

    Of a fast run and a slow average, so that the weights themselves give another.
    """
    module, flags = request.getfixturevalue(name)
    learned, draw = [], module.drawer

    def noted(images, labels=None, **more):
        learned.append(labels)
        return draw(images, labels, **more)

    monkeypatch.setattr(module, "drawer", noted)
    fast = ["--ema", "0.9", "--lr", "0.05", "--warmup", "0", "--no-bf16"]
    run((module, flags), out := tmp_path / "out", *fast)
    found, s, made = load_checkpoint(out / "checkpoint.pt"), linear_schedule(24), {}
    n, classes = 4, None
    if name == "sprites":
        assert learned[0].tolist() == [0, 1, 1, 0, 1]
        n, classes = 12, torch.arange(3).repeat_interleave(4)  # the last is for none
    for which in ("ema", "weights"):
        net = rebuild(found, which)
        eps_theta = net if classes is None else partial(net, c=classes)
        generator = torch.Generator().manual_seed(0)
        x_0 = sample(s, eps_theta, (n, *found.shape), generator, clip_x_0=True)
        save_png(tmp_path / which, module.grid(to_uint8(x_0), 4))
        made[which] = (tmp_path / which).read_bytes()
    assert (out / "grid.png").read_bytes() == made["ema"] != made["weights"]


def test_a_killed_run_goes_on_and_no_run_is_overwritten(sprites, tmp_path, monkeypatch):
    """Killed and resumed is the run that was not: its losses, its samples."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    each = ["--log-every", "1"]  # a kill ends the window a loss is the mean of
    figures = run(sprites, whole, *each)
    with pytest.raises(FileExistsError, match=r"checkpoint\.pt"):
        run(sprites, whole, *each)

    class KilledAtTheFirstRecord(Progress):
        def __call__(self, r):
            super().__call__(r)
            if r.step == 1:  # a second signal would end the process at once
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(sprites[0], "Progress", KilledAtTheFirstRecord)
    with pytest.raises(SystemExit) as ended:
        run(sprites, out, *each)
    assert ended.value.code == 128 + signal.SIGTERM
    assert not (out / "grid.png").exists()
    monkeypatch.undo()

    assert run(sprites, out, *each, "--resume")["losses"] == figures["losses"]
    for name in ("grid.png", "reverse.gif"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_is_padded_not_resized(suffix, example, tmp_path):
    """Eq. 13 needs 8-bit levels: the 28x28 levels are there unchanged, black around."""
    pictures = write_idx(tmp_path / f"train-images-idx3-ubyte{suffix}")
    x = example("train_fashion").read(tmp_path)
    assert x.dtype == torch.uint8
    assert x.shape == (3, 1, 32, 32)
    assert torch.equal(x[:, 0, 2:-2, 2:-2], torch.from_numpy(pictures))
    assert int(x.long().sum()) == int(pictures.sum())  # all else is 0


def test_flowers_takes_every_block_with_every_attention(flowers, tmp_path):
    """--convnext and --linear change the network, each in its own way."""
    sizes, losses = {}, set()
    few = ("--no-bf16", "--samples", "1")
    for flags in ((), ("--convnext",), ("--linear",), ("--convnext", "--linear")):
        figures = run(flowers, tmp_path / "-".join(("out", *flags)), *few, *flags)
        sizes[flags] = figures["parameters"]
        losses.add(figures["losses"][-1][1])
    assert sizes["--linear",] == sizes[()]  # the attentions have equally many
    assert sizes["--convnext",] == sizes["--convnext", "--linear"] != sizes[()]
    assert len(losses) == 4


@pytest.mark.parametrize("name", ["fashion", "sprites", "flowers"])
def test_the_gpu_preset_is_a_set_of_settings_that_fit(name, request, tmp_path):
    """--full changes the defaults, and flags given beside it change those."""
    script = request.getfixturevalue(name)
    config = run(script, tmp_path / "out", "--full")["config"]
    assert config["steps"] == 4
    for key in ("warmup", "dropout", "ema", "lr", "clip_x_0"):
        full, minutes = (
            getattr(getattr(script[0], x), key) for x in ("FULL", "MINUTES")
        )
        assert config[key] == full != minutes


REFUSED = {
    "no folder": ("train_fashion", "--data {}/x", "give --data, or --download"),
    "no IDX file": (
        "train_fashion",
        "--data {}/junk",
        "begins with 68656c6c, expected",
    ),
    "no clothes": ("train_fashion", "--data {}/small", "20, 20.*, expected 28x28"),
    "no sprites": ("train_sprites", "--data {}/x.npy", r"x\.npy: No such file"),
    "a folder": ("train_sprites", "--data {}", "Is a directory"),
    "no npy": ("train_sprites", "--data {}/junk/photo.jpg", r"is no \.npy file"),
    "no photos": ("train_flowers", "--data {}/x", "x, which is no folder,"),
    "no picture": (
        "train_flowers",
        "--data {}/junk",
        r"2 of the 2 files in .*mend or move away: photo\.jpg",
    ),
    "odd size": (
        "train_flowers",
        "--data {}/ok --size 60",
        "must be multiples of 8, got 60 x 60",
    ),
    "no device": ("train_flowers", "--device gpu", "--device must be"),
    "no samples": ("train_flowers", "--samples 0", "samples must be at least 1, got 0"),
}


def refusal(name: str, script: ModuleType, argv: list[str], monkeypatch) -> str:
    """The sentence that a script ends with, after its own name."""
    monkeypatch.setattr("sys.argv", [f"examples/{name}.py"])
    with pytest.raises(SystemExit) as ended, errors_as_sentences():
        script.main(argv)
    said = str(ended.value)
    assert said.startswith(f"{name}.py: ")
    assert "\n" not in said
    return said


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_ends_in_a_sentence(case, example, tmp_path, monkeypatch):
    """What the user can mend is said in a sentence, and nothing is written."""
    junk = tmp_path / "junk"
    junk.mkdir()
    (junk / "train-images-idx3-ubyte").write_bytes(b"hello")
    (junk / "photo.jpg").write_bytes(b"hello")
    (tmp_path / "small").mkdir()
    write_idx(tmp_path / "small" / "train-images-idx3-ubyte", size=20)
    (tmp_path / "ok").mkdir()
    Image.new("RGB", (9, 7)).save(tmp_path / "ok" / "photo.png")
    name, flags, says = REFUSED[case]
    out = tmp_path / "out"
    argv = [*flags.format(tmp_path).split(), "--out", str(out)]
    assert re.search(says, refusal(name, example(name), argv, monkeypatch))
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "flags", "differs"),
    [
        ("fashion", ["--dropout", "0.5"], "dropout (there 0.0, here 0.5)"),
        ("sprites", ["--ema", "0.5"], "ema (there 0.99, here 0.5)"),
        ("flowers", ["--linear"], "linear (there False, here True)"),
    ],
)
def test_a_run_goes_on_with_its_own_settings_alone(
    name, flags, differs, request, tmp_path, monkeypatch
):
    """--resume with other settings names them, and leaves the run as it was."""
    script, out = request.getfixturevalue(name), tmp_path / "out"
    run(script, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    argv = [*script[1], *TINY, "--out", str(out), "--device", "cpu", "--resume"]
    said = refusal(f"train_{name}", script[0], argv + flags, monkeypatch)
    assert f"of another run, which differs in {differs}" in said
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_the_page_on_the_five_texts_names_laws_that_exist():
    """Each law named there is a test of that file, the one the mistake dies of."""
    page = (EXAMPLES.parent / "docs" / "five-texts.md").read_text(encoding="utf-8")
    for name, file in re.findall(r"\[(test_\w+)\]\(\.\./(tests/[\w/]+\.py)\)", page):
        assert f"def {name}(" in (EXAMPLES.parent / file).read_text(encoding="utf-8")
    named = re.findall(r"([MP]\d+b?): \[(test_\w+)\]\(\.\./tests/([\w/]+\.py)\)", page)
    dies_of = {m.name.split(",")[0]: m.test for m in MISTAKES}
    for mistake, name, file in named:  # an entry of prose names no test of its own
        assert dies_of[mistake] in ("", f"{file}::{name}")
    assert len(named) > 40
