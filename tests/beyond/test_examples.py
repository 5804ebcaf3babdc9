"""The examples of what is beyond the paper run end to end, and refuse nonsense."""

import importlib
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.optim import Adam

from tinyddpm import UNet, linear_schedule, sample, to_uint8
from tinyddpm.beyond.guidance import guided
from tinyddpm.train import random_seed
from tinyddpm.workshop.checkpoint import Checkpoint, description, save_checkpoint
from tinyddpm.workshop.datasets import hold_out

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.fixture
def example(monkeypatch):
    """Imports an example as Python does when it runs: its folder first on the path."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name: str, **small: object):
        module = importlib.import_module(name)
        for constant, value in small.items():
            monkeypatch.setattr(module, constant, value)
        return module

    return load


def test_table_2_trains_its_six_rows_and_says_what_it_found(example, tmp_path, capsys):
    """Six rows of two seeds in the paper's order; what is printed is what is written.

    The exact predictor has the least bound of all that share its variance β_t: no
    network with that variance can be below it (eq. 8, for one noise and many pictures).
    """
    small = example("table_2", SAMPLED=40, BOUNDED=64, T=25)
    out = tmp_path / "out"
    small.main(["--steps", "3", "--seeds", "2", "--batch", "8", "--out", str(out)])
    said = capsys.readouterr().out
    found = json.loads((out / "figures.json").read_text(encoding="utf-8"))
    assert [len(row["seeds"]) for row in found["rows"]] == [2] * 6
    assert [row["predicts"] for row in found["rows"]] == ["μ̃"] * 3 + ["ε"] * 3
    least = [seed["bits_per_dim"] for seed in found["exact"]]
    for row in found["rows"]:
        first = row["seeds"][0]["bits_per_dim"]
        shown = f"{sum(seed['bits_per_dim'] for seed in row['seeds']) / 2:.3f} ±"
        assert shown in said
        if "learned" not in row["objective"]:
            assert first > least[0]
    with Image.open(out / "samples.png") as picture:
        assert picture.size[0] > 0
    assert "its ordering" in said


@pytest.mark.parametrize("lower", [0, 5])
def test_table_2_judges_by_the_numbers(lower, example):
    """Row 5 (L_simple) best of all: yes; any other row best: no.

    Samples that run away are no better for what is left of them.
    """
    small = example("table_2")
    seeds, calm = range(3), dict.fromkeys(small.MEASURES, 0.0)

    def row(outside, run_away=0.0):
        rms = "rms_outside_the_plane"
        return [
            calm | {rms: outside + i / 100, "run_away_per_cent": run_away}
            for i in seeds
        ]

    table = [row(5.0) for _ in range(6)]
    table[lower] = row(1.0)
    table[3] = row(0.5, run_away=1.5)
    said = {text[6:]: text[:6].strip() for text in small.verdict(table)[1:-1]}
    assert said["L_simple has the best samples of all"] == (
        "yes" if lower == 5 else "no"
    )
    assert said["a learned Σ makes ε's samples worse"] == "yes"
    assert said["a learned Σ makes μ̃'s samples worse"] == "no"
    assert said["μ̃ and ε are alike on L"] == "yes"
    assert "does not appear" in small.verdict(table)[-1]


def test_figures_6_and_7_show_what_x_t_has_settled(example, tmp_path, capsys):
    """Figure 6: x̂_0's error falls to 0 at t = 0, here with the exact predictor.

    Figure 7: the smaller t, the more alike are the x_0 of one x_t.
    """
    small = example("figures_6_and_7", SIZE=4, T=40, FROZEN=(36, 12, 4))
    small.main(["--exact", "--out", str(tmp_path)])
    said = capsys.readouterr().out.splitlines()
    errors = [float(part.split()[1]) for part in said[1].split("  ")]
    assert errors[-1] == 0 < errors[-2] < errors[0]
    spread = [float(line.split("by ")[1].split()[0]) for line in said[2:]]
    assert spread[0] > spread[1] > spread[2] > 0
    for name, rows in (("figure_6.png", 4), ("figure_7.png", 3)):
        with Image.open(tmp_path / name) as picture:
            assert picture.size[1] == rows * (64 + 4 + 40)


def test_the_ladder_has_a_line_for_each_rung(example, tmp_path, capsys):
    """Each sampler at each number of steps; a bound for those that have one.

    What is printed is what is written.
    """
    few = {"SAMPLED": 50, "BOUNDED": 16, "SHAPE": (50, 3, 4, 4)}
    small = example("sampler_ladder", SIZE=4, T=40, STEPS=(5,), **few)
    small.main(["--train", "20", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    rungs = json.loads((tmp_path / "ladder.json").read_text())["rungs"]
    assert [r["steps"] for r in rungs] == [5, 40, 5, 40, 5, 40, 5]
    for r in rungs:
        assert (r["bits_per_dim"] is None) == r["sampler"].startswith("DDIM")
        assert f"{r['kolmogorov_distance']:17.4f}" in said
    assert (tmp_path / "ladder.png").stat().st_size > 0


def keep_classes(path):
    """Writes a checkpoint of a U-Net with two classes; returns its moving average."""
    nets = [UNet(1, 4, (1, 2), (1,), 0.0, num_classes=2) for _ in range(2)]
    for p in [*nets[0].parameters(), *nets[1].parameters()]:
        torch.nn.init.normal_(p, std=0.2)  # the last layers start at 0
    raw, ema = (net.eval() for net in nets)
    optimiser = Adam(raw.parameters())
    for p in raw.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step()  # its state is part of a checkpoint
    kept = Checkpoint(
        step=1,
        config={"bf16": False, "held_out": 16},
        network=description(ema),
        shape=(1, 8, 8),
        beta=linear_schedule(24).beta[1:],
        weights=raw.state_dict(),
        ema=ema.state_dict(),
        optimiser=optimiser.state_dict(),
        told=torch.empty(0, 13, dtype=torch.float64),
        data=None,
    )
    save_checkpoint(path, kept)
    return ema


def test_guidance_has_a_row_for_each_class_and_the_same_noise_in_a_column(
    example, tmp_path
):
    """Row c, group w, column i: Algorithm 2 of ε̃ of that c and w, by the seed of i."""
    torch.manual_seed(0)
    ema = keep_classes(tmp_path / "c.pt")
    flags = ["--checkpoint", str(tmp_path / "c.pt"), "--guidance", "0", "2"]
    flags += ["--pictures", "2", "--steps", "24", "--clip-x-0", "--seed", "3"]
    example("guidance").main([*flags, "--device", "cpu", "--out", str(tmp_path)])
    with Image.open(tmp_path / "guidance.png") as picture:
        found = np.asarray(picture).astype(int)[2:, 2:]
    assert found.shape == (2 * 50, 5 * 50)  # 8 pixels, enlarged to 48, and a white gap
    for c in range(2):
        for column, w, i in ((0, 0, 0), (1, 0, 1), (3, 2, 0), (4, 2, 1)):
            g = torch.Generator().manual_seed(random_seed(3, i))
            eps_theta = guided(ema, c, w)
            x_0 = sample(linear_schedule(24), eps_theta, (1, 1, 8, 8), g, clip_x_0=True)
            y, x = 50 * c, 50 * column
            part = found[y : y + 48 : 6, x : x + 48 : 6]
            # a network rounds otherwise for another size of the batch
            assert np.abs(part - to_uint8(x_0)[0, 0].numpy()).max() <= 1
        assert (found[50 * c : 50 * c + 48, 100:150] == 255).all()


def test_the_ladder_of_a_checkpoint_is_of_its_average_and_its_classes(
    example, tmp_path, monkeypatch, capsys
):
    """All T steps are Algorithm 2 with the EMA weights, sample i of class i mod K, held
    against the pictures kept back: the distance that `score.compare` gives.
    """
    small = example("sampler_ladder", STEPS=(5,))
    for name, value in (("STEPS", 3), ("BATCH", 8)):
        monkeypatch.setattr(small.score, name, value)
    torch.manual_seed(0)
    ema = keep_classes(tmp_path / "c.pt")
    v = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
    np.save(tmp_path / "v.npy", v)
    judged, compare = [], small.score.compare
    monkeypatch.setattr(
        small.score, "compare", lambda *a: judged.append(a) or compare(*a)
    )
    flags = ["--checkpoint", "c.pt", "--data", "v.npy", "--held-out", "16"]
    flags += ["--samples", "6", "--chunk", "6", "--seed", "3", "--clip-x-0"]
    monkeypatch.chdir(tmp_path)
    small.main([*flags, "--device", "cpu", "--out", "out"])
    said = capsys.readouterr().out
    rungs = json.loads(Path("out/ladder.json").read_text())["rungs"]
    assert [r["steps"] for r in rungs] == [5, 24, 5, 24, 5, 24, 5]
    s, shape = linear_schedule(24), (1, 8, 8)
    of_class, g = partial(ema, c=torch.arange(6) % 2), torch.Generator().manual_seed(3)
    x_0 = sample(s, of_class, (6, *shape), g, clip_x_0=True)
    made, held, _, n = judged[1]
    assert (made.int() - to_uint8(x_0).int()).abs().max() <= 1  # faster layers round
    assert n == 6
    kept_back = torch.from_numpy(v)[hold_out(16, 40)[1]].flatten(1)
    assert sorted(held.flatten(1).tolist()) == sorted(kept_back.tolist())
    for r in rungs:
        assert f"{r['distance']:17.3f}{r['distance'] / r['floor']:17.2f}" in said
    with Image.open("out/ladder.png") as picture:
        assert picture.size == (600, 400)


@pytest.mark.parametrize(
    ("name", "argv", "says"),
    [
        ("table_2", ["--seeds", "0"], "must be at least 1"),
        ("table_2", ["--steps", "-1"], "must be at least 1"),
        ("figures_6_and_7", ["--steps", "0"], "--steps must be at least 1, got 0"),
        ("sampler_ladder", ["--train", "0"], "--train must be at least 1, got 0"),
        ("guidance", ["--checkpoint", "x", "--pictures", "0"], "at least 1, got 0"),
        ("sampler_ladder", ["--data", "x.npy"], "--checkpoint and --data go together"),
        (
            "sampler_ladder",
            ["--checkpoint", "x", "--data", "x.npy", "--exact"],
            "--exact is for the toy",
        ),
        ("cifar_in_minutes", ["--data", __file__], "that were not trained on"),
    ],
)
def test_nonsense_is_a_sentence_and_nothing_is_written(
    name, argv, says, example, tmp_path
):
    """What cannot be run is refused before any work, and --out is not made."""
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=says):
        example(name).main([*argv, "--out", str(out)])
    assert not out.exists()
