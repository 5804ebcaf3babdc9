"""train_cifar.py: its settings, what a run leaves behind, and what it refuses."""

import json
import sys
from dataclasses import fields

import pytest
import torch
from PIL import Image

import train_cifar
from tinyddpm.data import drawer, to_uint8
from tinyddpm.sampler import sample
from tinyddpm.schedule import linear_schedule
from tinyddpm.unet import UNet
from tinyddpm.workshop.checkpoint import load_checkpoint, rebuild
from tinyddpm.workshop.pictures import grid, save_png
from tinyddpm.workshop.progress import errors_as_sentences

TINY = [
    "--steps",
    "4",
    "--batch",
    "2",
    "--log-every",
    "1",
    "--save-every",
    "2",
    "--base",
    "8",
    "--multipliers",
    "1",
    "1",
    "1",
    "--attention",  # at 8x8: at 32x32 it would be most of the work
    "2",
    "--T",
    "24",
    "--samples",
    "2",
    "--sample-every",
    "2",
    "--device",
    "cpu",
]


@pytest.fixture
def pictures(tmp_path):
    """A .bin file of ten records: a label, and 3,072 bytes of a picture."""
    path = tmp_path / "pictures.bin"
    path.write_bytes(
        bytes((7 * i) % 10 if i % 3073 == 0 else i % 256 for i in range(30730))
    )
    return path


def run(*args):
    """The script with these arguments, as a user calls it."""
    with errors_as_sentences():
        train_cifar.main([str(a) for a in args])


def refusal(*args):
    """The sentence that the script ends with."""
    with pytest.raises(SystemExit) as ended:
        run(*args)
    assert isinstance(ended.value.code, str)
    return ended.value.code


def test_the_defaults_are_the_papers():
    """Section 4 and App. B: T, the network to its last weight, dropout, flips."""
    c = train_cifar.Config()
    assert (c.T, c.dropout, c.flip) == (1000, 0.1, True)
    assert (c.base, c.multipliers, c.attention) == (128, (1, 2, 2, 2), (1,))
    with torch.device("meta"):
        net = UNet(3, c.base, c.multipliers, c.attention, c.dropout)
    assert sum(p.numel() for p in net.parameters()) == 35_746_307


def test_a_run_leaves_checkpoint_figures_curve_and_grids(pictures, tmp_path, capsys):
    """Each is there and whole, says with what settings, and the network is in it."""
    out = tmp_path / "out"
    run("--data", pictures, "--out", out, *TINY)
    found = load_checkpoint(out / "checkpoint.pt")
    figures = json.loads((out / "figures.json").read_text())
    printed = capsys.readouterr().out
    for field in fields(train_cifar.Config):
        assert f"{field.name} = {found.config[field.name]}" in printed
    assert figures["config"] == json.loads(json.dumps(found.config))
    assert found.step == 4
    assert [row[0] for row in figures["losses"]] == [1, 2, 3, 4]
    for name in ("step-000002.png", "step-000004.png"):
        with Image.open(out / name) as picture:
            assert picture.mode == "RGB"
            assert min(picture.size) >= 64
    with Image.open(out / "loss.png") as curve:
        curve.verify()
    net = rebuild(found)
    assert net(torch.zeros(1, 3, 32, 32), torch.tensor([1])).shape == (1, 3, 32, 32)


def test_the_grid_is_of_the_moving_average_and_is_made_again(pictures, tmp_path):
    """The last grid, by hand from the checkpoint's EMA; lost to a kill, it comes back.

    Sampled after one step at a large rate, of which the slow average holds little, so
    that the network's own samples would differ.
    """
    out = tmp_path / "out"
    where = ("--data", pictures, "--out", out, *TINY, "--steps", 1)
    run(*where, "--lr", 0.1, "--warmup", 0)
    last = out / "step-000001.png"
    made, found = last.read_bytes(), load_checkpoint(out / "checkpoint.pt")
    grids = {}
    for weights in ("ema", "weights"):
        generator = torch.Generator().manual_seed(0)
        x_0 = sample(
            linear_schedule(24), rebuild(found, weights), (2, 3, 32, 32), generator
        )
        save_png(tmp_path / f"{weights}.png", grid(to_uint8(x_0)))
        grids[weights] = (tmp_path / f"{weights}.png").read_bytes()
    assert made == grids["ema"] != grids["weights"]
    last.unlink()
    run(*where, "--lr", 0.1, "--warmup", 0, "--resume")
    assert last.read_bytes() == made


@pytest.mark.parametrize("sample_every", [1, 2])  # the first grid, the last one
def test_too_many_samples_for_the_memory(pictures, tmp_path, monkeypatch, sample_every):
    """The flag to lower is --samples, not one of training; the checkpoint is kept."""

    def full(*args, **kwargs):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] can't allocate memory")

    monkeypatch.setattr(train_cifar, "sample", full)
    where = ("--data", pictures, "--out", tmp_path / "out", *TINY, "--steps", 2)
    said = refusal(*where, "--sample-every", sample_every)
    assert "lower --samples, now 2, and go on with --resume" in said
    assert "micro-batch" not in said
    monkeypatch.undo()
    run(*where, "--sample-every", sample_every, "--resume")
    assert (tmp_path / "out" / "step-000002.png").exists()


@pytest.mark.parametrize("flip", [True, False])
def test_flips_are_a_setting_that_is_obeyed(pictures, tmp_path, monkeypatch, flip):
    """App. B mirrors the pictures; --no-flip does not."""
    asked = []

    def noted(images, flip):
        asked.append(flip)
        return drawer(images, flip=flip)

    monkeypatch.setattr(train_cifar, "drawer", noted)
    flag = "--flip" if flip else "--no-flip"
    run("--data", pictures, "--out", tmp_path / "out", *TINY, "--steps", 1, flag)
    assert asked == [flip]


def test_resume_goes_on_and_another_config_is_refused(pictures, tmp_path):
    """The fields that differ are named; steps and intervals may be others."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    where = ("--data", pictures, "--out", out)
    run(*where, *TINY, "--steps", 2)
    before = (out / "checkpoint.pt").read_bytes()
    figures = (out / "figures.json").read_bytes()
    assert "not overwritten; go on from it with --resume" in refusal(*where, *TINY)
    said = refusal(*where, *TINY, "--resume", "--warmup", 1, "--dropout", 0)
    assert "dropout (there 0.1, here 0.0), warmup (there 5000, here 1)" in said
    assert (out / "checkpoint.pt").read_bytes() == before
    assert (out / "figures.json").read_bytes() == figures
    run(*where, *TINY, "--resume", "--samples", 1)
    (out / "checkpoint.pt").write_bytes(before)  # figures of steps that were lost
    run(*where, *TINY, "--resume", "--samples", 1)
    run("--data", pictures, "--out", whole, *TINY)
    ends = [load_checkpoint(folder / "checkpoint.pt") for folder in (out, whole)]
    for part in ("step", "weights", "ema", "optimiser"):
        one, other = (getattr(end, part) for end in ends)
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    told = [json.loads((f / "figures.json").read_text()) for f in (out, whole)]
    assert told[0]["losses"] == told[1]["losses"]


def test_smoke_is_a_set_of_defaults_that_flags_override(pictures, tmp_path):
    """--smoke narrows the network and shortens the run; a flag given beats it."""
    out = tmp_path / "out"
    run("--data", pictures, "--out", out, "--smoke", *TINY, "--seed", 3)
    config = load_checkpoint(out / "checkpoint.pt").config
    assert (config["steps"], config["base"], config["seed"]) == (4, 8, 3)
    assert config["lr"] == train_cifar.SMOKE.lr != train_cifar.Config().lr


def test_download_comes_first_and_into_the_data_folder(pictures, tmp_path, monkeypatch):
    """--download fetches into --data, and what was fetched is read."""

    def fetch(folder):
        inside = tmp_path / folder / "cifar-10-batches-bin"
        inside.mkdir(parents=True)
        for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
            (inside / name).write_bytes(pictures.read_bytes() * 1000)

    monkeypatch.setattr(train_cifar, "download_cifar10", fetch)
    data, out = tmp_path / "data", tmp_path / "out"
    run("--data", data, "--out", out, "--download", *TINY, "--steps", 1)
    assert load_checkpoint(out / "checkpoint.pt").step == 1


def test_what_cannot_work_is_refused_with_a_sentence(pictures, tmp_path):
    """What was given, what is wanted, what to do; and no folder is left behind."""
    (tmp_path / "short.bin").write_bytes(pictures.read_bytes()[:-1])
    (tmp_path / "file").write_text("")
    out = ("--out", tmp_path / "out")
    for args, said in [
        (("--data", tmp_path / "none"), "with --download"),
        (("--data", tmp_path / "short.bin"), "short.bin"),
        (("--data", pictures, "--device", "tpu"), "got 'tpu'"),
        (("--data", pictures, "--batch", 0), "batch must be at least 1, got 0"),
        (("--data", pictures, "--T", 0), "got 0"),
        (("--data", pictures, "--multipliers", 0), "multipliers, one a level, must be"),
        (("--data", pictures, "--sample-every", 3, "--log-every", 2), "multiple of"),
    ]:
        assert said in refusal(*TINY, *out, *args)
        assert not (tmp_path / "out").exists()
    said = refusal("--data", pictures, *TINY, "--out", tmp_path / "file" / "out")
    assert "give a folder that can be written" in said


def test_cuda_asked_for_and_absent(pictures, tmp_path, monkeypatch):
    """The device, the build of PyTorch, how many it sees, and the way out."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    said = refusal(
        "--data", pictures, *TINY, "--out", tmp_path / "o", "--device", "cuda"
    )
    assert "--device cuda was asked for, but PyTorch" in said
    assert "sees 0 CUDA devices" in said
    assert "--device cpu" in said


@pytest.mark.parametrize("module", ["tqdm", "PIL"])
def test_a_missing_extra_is_named(pictures, tmp_path, monkeypatch, module):
    """Without the libraries of [scripts] the script says how to get them."""
    monkeypatch.setitem(sys.modules, module, None)
    said = refusal("--data", pictures, *TINY, "--out", tmp_path / "out")
    assert module in said
    assert "install the extra [scripts]" in said
