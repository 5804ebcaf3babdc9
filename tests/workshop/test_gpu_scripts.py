"""The scripts that are made for a GPU run on a CPU too, in a small setting."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def load(path: str):
    """The script as a module, without running it."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cifar(tmp_path):
    """40 pictures of noise as CIFAR-10's records."""
    g = torch.Generator().manual_seed(0)
    records = torch.randint(256, (40, 3073), generator=g, dtype=torch.uint8)
    records[:, 0] %= 10
    path = tmp_path / "some.bin"
    path.write_bytes(records.numpy().tobytes())
    return path


def test_the_check_finds_nothing_wrong_and_measures_each_part(monkeypatch, capsys):
    """Every law holds of the CPU against itself, exactly where nothing is compiled."""
    check = load("benchmarks/gpu_check.py")
    flags = ["--device", "cpu", "--tiny", "--seconds", "3000"]  # however busy it is
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *flags])
    kept, begin = [], check.Check.__init__

    def noted(self, *args):
        kept.append(self)
        begin(self, *args)

    monkeypatch.setattr(check.Check, "__init__", noted)
    assert check.main() == 0
    figures = kept[0].figures
    assert kept[0].failed == []
    assert "left out" not in figures
    apart = [law["apart"] for law in figures["laws"].values()]
    assert len(apart) == 16
    assert sum(x == 0 for x in apart) == 14
    rows = figures["steps of fit"]["rows"]
    assert [row["batch"] for row in rows] == kept[0].batches
    assert all(row["pictures_per_s"] > 0 for row in rows)
    assert "0 laws failed" in capsys.readouterr().out


def test_a_law_that_fails_is_told_and_the_check_fails():
    """A number beyond its bound, and nan, are failures; one at its bound is not."""
    check = load("benchmarks/gpu_check.py")
    tried = check.Check(torch.device("cpu"), True, 10.0)
    tried.law("at its bound", 1e-3, 1e-3)
    tried.law("beyond", 1.1e-3, 1e-3)
    tried.law("nan", float("nan"), 1e-3)
    tried.part("a part that breaks", lambda check: 1 / 0)
    assert tried.failed[:2] == ["beyond", "nan"]
    assert "ZeroDivisionError" in tried.failed[2]
    assert len(tried.failed) == 3


def test_minutes_of_cifar_leave_pictures_and_a_bound(cifar, tmp_path, capsys):
    """As many steps as fit, 20 at least; samples in both files are the same."""
    script, out = load("examples/cifar_in_minutes.py"), tmp_path / "out"
    flags = ["--data", str(cifar), "--test", str(cifar), "--device", "cpu", "--tiny"]
    flags += ["--minutes", "0.01", "--batch", "2", "--samples", "4", "--ema", "0.8"]
    script.main([*flags, "--out", str(out)])
    figures = json.loads((out / "bound.json").read_text())
    assert figures["pictures"] == 40
    assert figures["steps"] == 20
    assert figures["bits/dim"] > figures["L_0"] > 0
    v = np.load(out / "samples.npz")["arr_0"]
    assert v.shape == (4, 32, 32, 3)
    with Image.open(out / "grid.png") as picture:
        assert picture.size[0] > 4 * 32
    assert "20 steps in 0.01 minutes" in capsys.readouterr().out
