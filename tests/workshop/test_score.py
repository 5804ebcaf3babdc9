"""Laws of `examples/score.py`, and of the readers it shares with other scripts."""

import gzip
import importlib.util
import json
import struct
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Generator

from tinyddpm import UNet, linear_schedule, sample, to_uint8
from tinyddpm.workshop.datasets import hold_out, read_pictures
from tinyddpm.workshop.readers import read_npy_images

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def load():
    """examples/score.py as a module."""
    spec = importlib.util.spec_from_file_location("score", EXAMPLES / "score.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def score(monkeypatch):
    """The example, whose classifier learns for a few steps."""
    module = load()
    monkeypatch.setattr(module, "STEPS", 30)
    monkeypatch.setattr(module, "BATCH", 32)
    return module


def halves(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (n, 8, 8, 1), bright above or below, and which of the two, one-hot."""
    rng = np.random.default_rng(seed)
    which = rng.integers(0, 2, n)
    v = rng.integers(0, 100, (n, 8, 8, 1))
    v[:, :4] += 120 * (which == 0)[:, None, None, None]
    v[:, 4:] += 120 * (which == 1)[:, None, None, None]
    return v.astype(np.uint8), np.eye(2, dtype=np.float32)[which]


@pytest.fixture
def files(tmp_path):
    """Training pictures, held-out ones, and samples of the same law; flags for all."""
    found = []
    for i, (name, n) in enumerate([("data", 120), ("test", 80), ("pictures", 60)]):
        v, c = halves(n, i)
        np.save(tmp_path / f"{name}.npy", v)
        np.save(tmp_path / f"{name}-c.npy", c)
        labels = {"data": "labels", "test": "test-labels", "pictures": "classes"}[name]
        found += [f"--{name}", f"{tmp_path / name}.npy"]
        found += [f"--{labels}", f"{tmp_path / name}-c.npy"]
    return found


def run(score, argv, out):
    score.main([*map(str, argv), "--out", str(out), "--device", "cpu"])
    return json.loads((out / "score.json").read_text())


def test_samples_like_the_data_are_at_the_floor_and_others_are_not(
    score, files, tmp_path, capsys
):
    """Fresh pictures of the data's law: like real ones. One class alone, noise: not."""
    good = run(score, files, tmp_path / "good")
    said = capsys.readouterr().out
    assert "40 pictures each" in said  # half of the 80 held out
    assert good["their accuracy"] == 1
    assert good["accuracy"] == {"samples": 1, "real": 1}
    assert all(len(line) <= 80 for line in said.splitlines()[:-1])
    with Image.open(tmp_path / "good" / "nearest.png") as image:
        assert image.size == (16 * 66 + 2, 2 * 66 + 2)

    floor = np.mean(good["distance"]["real"])
    assert np.mean(good["distance"]["samples"]) < 3 * floor
    v, c = halves(200, 3)
    noise = np.random.default_rng(0).integers(0, 256, v.shape, np.uint8)
    for wrong in (v[c[:, 0] == 1], noise):  # one class alone; no picture at all
        np.save(tmp_path / "wrong.npy", wrong)
        argv = ["--pictures", tmp_path / "wrong.npy", *files[:8]]
        bad = run(score, argv, tmp_path / "bad")
        assert bad["distance"]["real"] == good["distance"]["real"]
        assert np.mean(bad["distance"]["samples"]) > 5 * floor


def test_memorised_pictures_are_seen(score, files, tmp_path):
    """Samples that are training pictures: each at distance 0 from the nearest."""
    argv = ["--pictures", tmp_path / "data.npy", *files[:8]]
    found = run(score, argv, tmp_path / "out")
    assert found["nearest"]["samples"] == 0 < found["nearest"]["real"]
    assert found["nearer than 1 %"]["samples"] == 1
    assert "accuracy" not in found  # no --classes were given


def test_without_labels_rotations_are_learned(score, files, tmp_path, capsys):
    """The features then are of a network that tells quarter turns, and it is said."""
    argv = ["--pictures", tmp_path / "pictures.npy", "--data", tmp_path / "data.npy"]
    found = run(score, [*argv, "--held-out", "40"], tmp_path / "out")
    assert "quarter" in capsys.readouterr().out
    assert (found["training pictures"], found["held out"]) == (80, 40)
    assert found["pictures"] == 20


@given(st.integers(0, 2**32 - 1), st.integers(1, 20))
def test_a_rotation_is_undone_by_as_many_turns_back(seed, n):
    """v.rot90(k) turned by -k is v, for the k that is the label."""
    module = load()
    g = Generator().manual_seed(seed)
    v = torch.randint(256, (n, 3, 5, 5), generator=g, dtype=torch.uint8)
    turned, turns = module.rotated(v, g)
    for one, k, before in zip(turned, turns.tolist(), v, strict=True):
        assert torch.equal(one.rot90(-k, (1, 2)), before)


def test_samples_of_a_checkpoint_are_of_its_average_each_for_its_class(
    score, tmp_path, monkeypatch, capfd
):
    """Algorithm 2 with the EMA weights, class i mod K for sample i, kept in a file.

    How many of them left [-1, 1], where the file clamps them, is told."""
    torch.manual_seed(0)
    net = UNet(1, 4, (1, 2), (1,), 0.0, num_classes=2).eval()
    for p in net.parameters():  # the last layers start at 0
        torch.nn.init.normal_(p, std=0.2)
    s, shape = linear_schedule(24), (1, 8, 8)
    kept = SimpleNamespace(beta=s.beta[1:], shape=shape, config={"bf16": False})
    kept.config["held_out"] = 20
    monkeypatch.setattr(score, "load_checkpoint", lambda path: kept)
    networks = {"ema": net}
    rebuild = lambda kept, weights="ema": networks[weights]  # noqa: E731
    monkeypatch.setattr(score, "rebuild", rebuild)
    v, c = halves(60, 0)
    np.save(tmp_path / "v.npy", v)
    np.save(tmp_path / "c.npy", c)
    flags = ["--data", tmp_path / "v.npy", "--labels", tmp_path / "c.npy"]
    flags += ["--held-out", 20, "--samples", 6, "--chunk", 6, "--seed", 3]
    found = run(
        score, ["--checkpoint", tmp_path / "c.pt", *flags], out := tmp_path / "out"
    )
    assert found["pictures"] == 6
    assert "accuracy" in found
    of_class = partial(net, c=torch.arange(6) % 2)
    x_0 = sample(s, of_class, (6, *shape), Generator().manual_seed(3))
    assert torch.equal(read_npy_images(out / "samples.npy"), to_uint8(x_0))
    outside = int((x_0.abs().flatten(1).amax(1) > 1.5).sum())
    assert outside > 0  # a network that has not trained
    assert f"{outside} of 6 pictures left [-1, 1]" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("left", "advice"), [(7, "give --held-out 7"), (0, "give --test")]
)
def test_a_network_is_not_scored_on_what_it_was_trained_on(
    score, files, left, advice, monkeypatch
):
    """It must have held out as many pictures of --data, unless there is a --test."""
    kept = SimpleNamespace(shape=(3, 8, 8), config={"held_out": left} if left else {})
    monkeypatch.setattr(score, "load_checkpoint", lambda path: kept)
    monkeypatch.setattr(score, "read", lambda *_: pytest.fail("read"))
    argv = ["--checkpoint", "c.pt", "--data", "data.npy", "--held-out", "8"]
    with pytest.raises(ValueError, match=f"all pictures but {left},.* is 8: {advice}"):
        score.main(argv)
    with pytest.raises(pytest.fail.Exception):
        score.main([*argv, "--test", "test.npy"])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--samples", "0"], "at least 1"),
        (["--held-out", "120"], "cannot hold out 120 of 120"),
        (["--held-out", "3"], "too few"),
        (["--classes", "data-c.npy"], "120 classes for 60 pictures"),
        (["--labels", "test-c.npy"], "80 labels"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_the_work(
    score, files, more, said, tmp_path, monkeypatch
):
    """With a sentence, and nothing written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(score, "learn", lambda *_: pytest.fail("worked"))
    argv = ["--pictures", "pictures.npy", "--data", "data.npy", "--held-out", "40"]
    with pytest.raises(ValueError, match=said):
        score.main([*argv, *more, "--out", "out"])
    assert not Path("out").exists()


@given(st.integers(2, 300), st.data())
def test_held_out_pictures_are_the_same_in_every_run(of, data):
    """Two rising lists that share nothing and hold all; shuffled, not the first."""
    count = data.draw(st.integers(1, of - 1))
    train, held = hold_out(count, of)
    assert len(held) == count
    assert torch.equal(torch.cat([train, held]).sort().values, torch.arange(of))
    assert all(torch.equal(x, x.sort().values) for x in (train, held))
    assert torch.equal(hold_out(count, of)[1], held)
    if of > 100 and 20 < count < of - 20:
        assert not torch.equal(held, torch.arange(count))
    for wrong in (0, of):
        with pytest.raises(ValueError, match="cannot hold out"):
            hold_out(wrong, of)


def test_pictures_of_every_kind_come_with_their_labels(tmp_path):
    """An IDX file finds its labels beside it, a folder of photos its sub-folders'."""
    v = np.random.default_rng(0).integers(0, 256, (3, 6, 6), np.uint8)
    images = tmp_path / "train-images-idx3-ubyte.gz"
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    with gzip.open(images, "wb") as file:
        file.write(struct.pack(">4I", 0x0803, 3, 6, 6) + v.tobytes())
    assert read_pictures(images)[1] is None
    with gzip.open(labels, "wb") as file:
        file.write(struct.pack(">2I", 0x0801, 3) + bytes([4, 0, 9]))
    found, c, _ = read_pictures(images)
    assert torch.equal(found[:, 0], torch.from_numpy(v))
    assert c.tolist() == [4, 0, 9]

    np.save(tmp_path / "v.npy", v[..., None])
    np.save(tmp_path / "c.npy", np.eye(2, dtype=np.float32)[[1, 0, 1]])
    assert read_pictures(tmp_path / "v.npy")[1] is None
    assert read_pictures(tmp_path / "v.npy", tmp_path / "c.npy")[1].tolist() == [
        1,
        0,
        1,
    ]
    np.save(tmp_path / "v.npy", v[:2, ..., None])
    with pytest.raises(ValueError, match="holds 3 labels"):
        read_pictures(tmp_path / "v.npy", tmp_path / "c.npy")

    (tmp_path / "x.bin").write_bytes(bytes([7]) + bytes(3072))
    assert read_pictures(tmp_path / "x.bin")[1].tolist() == [7]
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.fromarray(v[0]).save(tmp_path / "photos" / name / "x.png")
    found, c, _ = read_pictures(tmp_path / "photos", size=(6, 6))
    assert found.shape == (2, 3, 6, 6)
    assert c.tolist() == [0, 1]
    assert read_pictures(tmp_path / "photos" / "a", size=(6, 6))[1] is None
    with pytest.raises(ValueError, match="give the size"):
        read_pictures(tmp_path / "photos")
