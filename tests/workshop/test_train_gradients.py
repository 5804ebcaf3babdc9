"""The toy's script runs end to end, and its measures tell right samples from wrong.

How near to the floor the full run comes is measured by running it, not asserted here.
"""

import json
import math

import pytest
import torch
from PIL import Image

import train_gradients as script
from tinyddpm import Schedule, linear_schedule
from tinyddpm.beyond.gradients import gradient_images, kolmogorov_p
from tinyddpm.beyond.oracle import gradient_floor, gradient_oracle
from tinyddpm.workshop.checkpoint import load_checkpoint, rebuild

TINY = ["--height", "2", "--width", "3", "--T", "25", "--hidden", "8", "--depth", "1"]
TINY += ["--steps", "20", "--batch", "16", "--log-every", "5", "--save-every", "10"]


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch):
    monkeypatch.setattr(script, "EVALUATED", 500)
    monkeypatch.setattr(script, "SAMPLED", 64)
    monkeypatch.setattr(script, "BOUNDED", 8)


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_leaves_its_files_and_figures(tmp_path, capsys):
    """Pictures, curve, JSON and checkpoint; the floor is the exact one, and L_simple by
    tenths averages to L_simple (25 steps of t in tenths of 2 or 3)."""
    out = tmp_path / "new" / "folder"
    script.main([*TINY, "--out", str(out)])
    names = {"samples.png", "strip.png", "loss.png", "figures.json", "checkpoint.pt"}
    names.add("live.html")
    assert set(files_of(out)) == names
    for name in ("samples.png", "strip.png", "loss.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 300  # 11 pictures, or a curve
            assert len(picture.convert("L").getcolors(1 << 20)) > 10  # not blank
    f = json.loads((out / "figures.json").read_text())
    floor = gradient_floor(linear_schedule(25), 2, 3)[1:]
    assert f["floor"] == pytest.approx(float(floor.mean()), rel=1e-12)
    excess = (f["L_simple"] / f["floor"] - 1) * 100
    assert f["excess_per_cent"] == pytest.approx(excess, rel=1e-9)
    counts = [3, 2, 3, 2, 3, 2, 3, 2, 3, 2]  # t with (t - 1) * 10 // 25 = 0..9
    by_tenth = sum(n * x for n, x in zip(counts, f["L_simple_by_tenth"], strict=True))
    assert by_tenth / 25 == pytest.approx(f["L_simple"], rel=1e-9)
    assert [step for step, *_ in f["losses"]] == [5, 10, 15, 20]
    assert f["config"]["height"] == 2
    outside = {name: f[name]["rms_outside_the_plane"] for name in ("network", "oracle")}
    assert outside["oracle"] < 1 < outside["network"]  # 20 steps teach little
    last = capsys.readouterr().out.splitlines()
    assert last[-1].strip() == f"the data's entropy: {16 / 6:.3f} bits/dim"


def test_the_weights_measured_are_the_moving_average(tmp_path):
    """The excess in figures.json is that of the checkpoint's EMA, not of its weights,
    here of a fast run and a slow average, so that the two differ."""
    fast = ["--ema", "0.9", "--lr", "0.02", "--warmup", "0"]
    script.main([*TINY, *fast, "--out", str(tmp_path)])
    f = json.loads((tmp_path / "figures.json").read_text())
    kept = load_checkpoint(tmp_path / "checkpoint.pt")
    s, oracle = Schedule(kept.beta), gradient_oracle(Schedule(kept.beta), 2, 3)
    c = script.Config(height=2, width=3)
    measured = {}
    for weights in ("ema", "weights"):
        generator = torch.Generator().manual_seed(c.seed + 1)
        net = rebuild(kept, weights)
        _, above = script.loss_above_floor(s, net, oracle, generator, c)
        measured[weights] = float(above.mean())
    excess = f["L_simple"] - f["floor"]
    assert measured["ema"] == pytest.approx(excess, rel=1e-6)
    assert measured["weights"] != pytest.approx(excess, rel=1e-3)


def test_the_excess_is_what_is_lost_above_the_floor(monkeypatch):
    """E‖f - ε*‖²/D: 0 for ε* itself, and 1 - floor for f = 0, since E‖ε‖²/D = 1.

    The second within 5 standard errors of 5,000 pictures (1 in 2 million).
    """
    monkeypatch.setattr(script, "EVALUATED", 5000)
    s, c = linear_schedule(25), script.Config(height=2, width=3)
    oracle, generator = gradient_oracle(s, 2, 3), torch.Generator().manual_seed(0)
    t, above = script.loss_above_floor(s, oracle, oracle, generator, c)
    assert not above.any()
    assert torch.equal(t.bincount()[1:], torch.full((25,), 200))
    _, above = script.loss_above_floor(
        s, lambda x_t, t: torch.zeros_like(x_t), oracle, generator, c
    )
    expected = 1 - float(gradient_floor(s, 2, 3)[1:].mean())
    error = float(above.std() / len(above) ** 0.5)
    assert abs(float(above.mean()) - expected) < 5 * error


def test_the_law_holds_for_the_data_and_not_for_others():
    """Gradients lie in their plane and have uniform colours. Noise of n levels is seen
    as n √(1 - 2/HW) of them outside the plane; colours of less contrast, or missing the
    upper half, are not uniform. 2,000 pictures; false alarms of p < 0.001: 1 in 1,000.
    """
    x_0 = gradient_images(2000, 4, 5, torch.Generator().manual_seed(0))
    law = script.held_against_the_law(x_0)
    assert law["rms_outside_the_plane"] < 1e-4  # of 255 levels: float32
    assert law["energy_outside_the_plane"] < 1e-12
    assert law["colours"] == 2000 * 3 * 2
    assert law["kolmogorov_p"] > 0.001
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1))
    noisy = script.held_against_the_law(x_0 + noise * 3 / 127.5)
    expected = 3 * math.sqrt(1 - 2 / 20)
    # its relative error is 1/√(2 · 2000 · 3 · 18) = 0.0022
    assert noisy["rms_outside_the_plane"] == pytest.approx(expected, rel=0.01)
    assert script.held_against_the_law(0.9 * x_0)["kolmogorov_p"] < 1e-6
    assert script.held_against_the_law(-x_0.abs())["kolmogorov_p"] < 1e-6


@pytest.mark.parametrize(("z", "p"), [(1.2238, 0.1), (1.3581, 0.05), (1.6276, 0.01)])
def test_kolmogorov_p_at_the_critical_values(z, p):
    """The tabled critical values of √n D_n."""
    assert kolmogorov_p(z) == pytest.approx(p, rel=1e-3)


@pytest.mark.parametrize("z", [0.05, 0.2, 0.3, 0.7, 1.0, 1.5])
def test_kolmogorov_p_by_the_other_series(z):
    """P(√n D_n <= z) = √(2π)/z Σ_{k>=1} exp(-(2k-1)² π²/(8z²)): Jacobi's identity."""
    terms = (math.exp(-(((2 * k - 1) * math.pi / z) ** 2) / 8) for k in range(1, 50))
    below = math.sqrt(2 * math.pi) / z * sum(terms)
    assert kolmogorov_p(z) == pytest.approx(1 - below, abs=1e-9)


def test_a_second_run_overwrites_nothing_and_resume_measures_again(tmp_path):
    """Without --resume the folder of a run is refused and left as it is; with it, a
    finished run is measured again, to the same figures."""
    script.main([*TINY, "--out", str(tmp_path)])
    before = files_of(tmp_path)
    with pytest.raises(FileExistsError, match="--resume"):
        script.main([*TINY, "--out", str(tmp_path)])
    assert files_of(tmp_path) == before
    script.main([*TINY, "--out", str(tmp_path), "--resume"])
    once, again = (json.loads(x["figures.json"]) for x in (before, files_of(tmp_path)))
    for name in ("L_simple", "floor", "network", "oracle", "losses"):
        assert again[name] == once[name]
    (tmp_path / "figures.json").write_text('{"seconds": 1.0, "lo')
    script.main([*TINY, "--out", str(tmp_path), "--resume"])
    again = json.loads(files_of(tmp_path)["figures.json"])  # from the checkpoint alone
    for name in ("L_simple", "losses", "seconds"):
        assert again[name] == once[name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--height", "0"], "height and a width >= 1.*got 0x3"),
        (["--T", "10"], "T = 10"),
        (["--hidden", "0"], "at least 1"),
        (["--device", "cuda:7"], "cuda:7"),
    ],
)
def test_bad_settings_end_with_a_sentence_and_no_files(tmp_path, arguments, message):
    """Before training starts, and before a folder is made."""
    with pytest.raises(ValueError, match=message):
        script.main([*TINY, *arguments, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_shows_before_training(tmp_path, monkeypatch):
    """A file where the folder should be: an error with its name, no gradient step."""
    (tmp_path / "file").write_text("here")
    monkeypatch.setattr("tinyddpm.train.L_simple", lambda *_: pytest.fail("began"))
    with pytest.raises(OSError, match=r"cannot write|could not be written"):
        script.main([*TINY, "--out", str(tmp_path / "file" / "out")])
    assert (tmp_path / "file").read_text() == "here"
