"""`python -m tinyddpm train`, end to end on made pictures, and what it refuses."""

import gzip
import json
import os
import signal
import struct
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tinyddpm.data import to_uint8
from tinyddpm.sampler import sample
from tinyddpm.schedule import linear_schedule
from tinyddpm.train import Hyperparameters
from tinyddpm.unet import UNet
from tinyddpm.workshop import run as running
from tinyddpm.workshop import training
from tinyddpm.workshop.checkpoint import load_checkpoint, rebuild
from tinyddpm.workshop.command import main as command
from tinyddpm.workshop.pictures import grid, save_png
from tinyddpm.workshop.progress import Progress

TINY = ["--steps", "4", "--batch", "2", "--log-every", "2", "--save-every", "2"]
TINY += ["--base", "4", "--multipliers", "1", "2", "--attention", "1"]
TINY += ["--T", "24", "--samples", "4", "--device", "cpu", "--no-bf16"]
TINY += ["--warmup", "0"]  # so that four steps change something


def write_idx(path: Path, n: int = 3, size: int = 28) -> np.ndarray:
    pictures = np.random.default_rng(0).integers(0, 256, (n, size, size), np.uint8)
    head = struct.pack(">4I", 0x0803, n, size, size)
    with gzip.open(path, "wb") if path.suffix == ".gz" else path.open("wb") as file:
        file.write(head + pictures.tobytes())
    return pictures


@pytest.fixture
def digits(tmp_path):
    """The flags for a folder of MNIST's format, 12x12."""
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", size=12)
    return [str(tmp_path)]


@pytest.fixture
def sprites(tmp_path):
    """The flags for five pictures 8x8 in a .npy file, of two classes."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.integers(0, 256, (5, 8, 8, 3), np.uint8))
    np.save(tmp_path / "c.npy", np.eye(2, dtype=np.float32)[[0, 1, 1, 0, 1]])
    return [str(tmp_path / "x.npy"), "--labels", str(tmp_path / "c.npy")]


@pytest.fixture
def photos(tmp_path):
    """The flags for two photos of different size, each in a folder of its own."""
    rng = np.random.default_rng(0)
    for i, size in enumerate([(20, 33), (40, 18)]):
        folder = tmp_path / "photos" / f"kind {i}"
        folder.mkdir(parents=True)
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "a.jpg")
    return [str(tmp_path / "photos"), "--size", "8", "8"]


def run(argv: list[str], out: Path, *more: str) -> dict:
    training.main([*argv, *TINY, "--out", str(out), *more])
    return json.loads((out / "figures.json").read_text())


@pytest.mark.parametrize("name", ["digits", "sprites", "photos"])
def test_a_run_leaves_its_pictures_figures_and_checkpoint(name, request, tmp_path):
    """Algorithms 1 and 2: it trains, samples, and writes all it promises."""
    out = tmp_path / "out"
    figures = run(request.getfixturevalue(name), out)
    written = {"grid.png", "loss.png", "figures.json", "checkpoint.pt"}
    assert {path.name for path in out.iterdir()} == written
    assert [step for step, *_ in figures["losses"]] == [2, 4]
    assert all(0 < loss < float("inf") for _, loss, _ in figures["losses"])
    assert figures["config"]["T"] == 24
    rows, columns = (1, 4) if name == "digits" else (3, 1)  # two classes and none
    side = 60 if name == "digits" else 64  # 12 and 8 pixels, enlarged
    with Image.open(out / "grid.png") as picture:
        assert picture.size == (columns * (side + 2) + 2, rows * (side + 2) + 2)
        assert np.ptp(np.asarray(picture)[2:-2, 2:-2]) > 0  # not all one colour


@pytest.mark.parametrize("name", ["digits", "sprites"])
def test_the_grid_is_of_the_moving_average(name, request, tmp_path):
    """It is what the checkpoint's EMA gives, each row for its own class, in order.

    Of a fast run and a slow average, so that the weights themselves give another.
    """
    fast = ["--ema", "0.9", "--lr", "0.05", "--warmup", "0", "--samples", "6"]
    run(request.getfixturevalue(name), out := tmp_path / "out", *fast)
    found, s, made = load_checkpoint(out / "checkpoint.pt"), linear_schedule(24), {}
    for which in ("ema", "weights"):
        net = rebuild(found, which)
        eps_theta, columns = net, 8
        if name == "sprites":
            columns = 2
            eps_theta = partial(net, c=torch.arange(3).repeat_interleave(2))
        generator = torch.Generator().manual_seed(0)
        x_0 = sample(s, eps_theta, (6, *found.shape), generator, clip_x_0=True)
        save_png(tmp_path / which, grid(to_uint8(x_0), columns))
        made[which] = (tmp_path / which).read_bytes()
    assert (out / "grid.png").read_bytes() == made["ema"] != made["weights"]


def test_a_killed_run_goes_on_and_no_run_is_overwritten(sprites, tmp_path, monkeypatch):
    """Killed and resumed is the run that was not: its losses, its samples. What it
    took so far is counted, and without --steps it has those it began with.
    """
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

    monkeypatch.setattr(training, "Progress", KilledAtTheFirstRecord)
    with pytest.raises(SystemExit) as ended:
        run(sprites, out, *each)
    assert ended.value.code == 128 + signal.SIGTERM
    assert not (out / "grid.png").exists()
    monkeypatch.undo()
    before = float(load_checkpoint(out / "checkpoint.pt").told[-1, 1])

    argv = [*sprites, *TINY[2:], *each, "--out", str(out), "--resume"]
    training.main(argv)
    again = json.loads((out / "figures.json").read_text())
    assert again["losses"] == figures["losses"]
    assert again["seconds"] > before > 0
    assert (out / "grid.png").read_bytes() == (whole / "grid.png").read_bytes()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_pictures_are_padded_not_resized(suffix, tmp_path):
    """Eq. 13 needs 8-bit levels: the 28x28 levels are there unchanged, black around."""
    pictures = write_idx(tmp_path / f"train-images-idx3-ubyte{suffix}")
    for more in ({"size": (32, 32)}, {"multipliers": (1, 1, 1, 1)}):  # 28 is 4 · 7
        x, _, _ = training.read(training.Config(data=str(tmp_path), **more))
        assert x.dtype == torch.uint8
        assert x.shape == (3, 1, 32, 32)
        assert torch.equal(x[:, 0, 2:-2, 2:-2], torch.from_numpy(pictures))
        assert int(x.long().sum()) == int(pictures.sum())  # all else is 0


def test_other_blocks_change_the_network_and_are_known_again(photos, tmp_path):
    """--convnext and --linear each change the network, and `sample` rebuilds it."""
    sizes, losses = {}, set()
    for flags in ((), ("--convnext",), ("--linear",)):
        out = tmp_path / "-".join(("out", *flags))
        figures = run(photos, out, *flags)
        sizes[flags] = figures["parameters"]
        losses.add(figures["losses"][-1][1])
        made = str(out / "samples.npz")
        of = ["sample", str(out / "checkpoint.pt"), "--pictures", "1", "--steps", "2"]
        assert command([*of, "--out", made]) == 0
    assert sizes["--linear",] == sizes[()]  # the attentions have equally many
    assert sizes["--convnext",] != sizes[()]
    assert len(losses) == 3


def timed(monkeypatch, each: float) -> None:
    """From here on, each step that is only timed takes so many seconds."""
    monkeypatch.setattr(
        running, "time", type("", (), {"perf_counter": iter_of(each).__next__})
    )


def iter_of(each: float):
    now = 0.0
    while True:
        yield now
        now += each


def test_minutes_choose_the_steps_and_change_nothing_else(
    sprites, tmp_path, monkeypatch, capsys
):
    """3 steps of a second are --minutes 0.05: the run is bit for bit that of --steps 3
    with the ema and warm-up of so few, the checkpoint keeps them, and --resume goes on
    with them unasked.
    """
    timed(monkeypatch, 1.0)
    more = [*TINY[2:], "--log-every", "1", "--save-every", "1"]
    chosen, given = tmp_path / "chosen", tmp_path / "given"
    training.main([*sprites, *more, "--minutes", "0.05", "--out", str(chosen)])
    assert "about 1 s a step here: 3 steps in 0.05 minutes" in capsys.readouterr().out
    more += ["--ema", "0", "--warmup", "0"]
    training.main([*sprites, *more, "--steps", "3", "--out", str(given)])
    one, other = (load_checkpoint(f / "checkpoint.pt") for f in (chosen, given))
    assert one.config == other.config | {"out": str(chosen)}
    assert one.config["steps"] == one.step == 3
    for name, weight in one.weights.items():
        assert torch.equal(weight, other.weights[name])
        assert torch.equal(one.ema[name], other.ema[name])
    monkeypatch.setattr(training, "seconds_a_step", lambda *_: pytest.fail("timed"))
    again = [*sprites, *more[:-4], "--out", str(chosen), "--resume"]
    for flags in ([], ["--minutes", "9"]):
        training.main([*again, *flags])
        assert load_checkpoint(chosen / "checkpoint.pt").config["steps"] == 3


def test_what_a_step_takes_is_the_median_after_a_warm_up(monkeypatch):
    """The first two steps, and one that something else held up, count for nothing."""
    ends = iter([0.0, 50.0, 80.0, 80.5, 97.0, 97.5, 98.0, 98.5, 99.0])
    monkeypatch.setattr(running, "time", type("", (), {"perf_counter": ends.__next__}))
    monkeypatch.setattr(running, "fit", lambda *a: [a[4](None) for _ in range(8)])
    net = torch.nn.Linear(1, 1)
    c = training.Config(log_every=10, save_every=20)
    assert running.seconds_a_step(None, net, None, c, 18.5) == 0.5


@pytest.mark.parametrize(
    ("minutes", "seconds", "steps"),
    [(10, 0.31, 1900), (1, 60, 1), (1, 100, 1), (1, 0.61, 98), (600, 0.0031, 11000000)],
)
def test_steps_fit_into_the_minutes(minutes, seconds, steps):
    """The greatest number of them, but one at least; beyond 99, cut to two digits."""
    assert training.steps_in(minutes, seconds) == steps


def test_minutes_choose_what_is_not_given():
    """The average is over an eighth of the steps, the warm-up a twentieth at most."""
    for flags, found in (
        ([], {"steps": 800, "ema": 0.99, "warmup": 40}),
        (["--ema", "0.5"], {"steps": 800, "warmup": 40}),
        (["--ema", "0.5", "--warmup=7"], {"steps": 800}),
    ):
        c, args = training.flags(["--minutes", "1", *flags])
        assert training.chosen(c, args, 800) == found
    c, args = training.flags(["--minutes", "1"])
    many = training.chosen(c, args, 10**6)
    assert many == {"steps": 10**6, "ema": 0.9995, "warmup": c.warmup}


def test_one_in_ten_is_learned_without_its_class(sprites, monkeypatch, tmp_path):
    """What `fit` draws: each picture with its class or, at times, the class "none".

    Of 20,000 draws, a tenth within 5 standard errors (1 in 2 million).
    """
    drawn = []

    def noted(s, net, draw, *_):
        assert net.num_classes == 2
        drawn.append(draw(20_000, torch.Generator().manual_seed(0)))
        return net

    monkeypatch.setattr(training, "fit", noted)
    monkeypatch.setattr(training, "save_grid", lambda *_: None)
    run(sprites, tmp_path / "out")
    (x_0, c), v = drawn[0], torch.from_numpy(np.load(sprites[0])).permute(0, 3, 1, 2)
    which = (to_uint8(x_0)[:, None] == v).flatten(2).all(2).long().argmax(1)
    none = c == 2
    assert torch.equal(c[~none], torch.tensor([0, 1, 1, 0, 1])[which[~none]])
    assert abs(float(none.double().mean()) - 0.1) < 5 * (0.1 * 0.9 / 20_000) ** 0.5


def test_presets_are_what_their_text_says():
    """paper: appendix B's, to the last field, with flips. 256: its larger network, with
    114 million weights, lr 2e-5, batch 64, no dropout. All that --help names is there.
    """
    assert training.__doc__ is not None
    text = training.__doc__.partition("changes:\n\n")[2]
    named = [line.split()[0] for line in text.splitlines()]
    assert named == list(training.PRESETS)
    paper, large = training.PRESETS["paper"], training.PRESETS["256"]
    for name, value in vars(Hyperparameters()).items():
        assert getattr(paper, name) == value
        if name not in ("lr", "batch", "steps"):
            assert getattr(large, name) == value
    assert (paper.T, paper.flip, paper.size, paper.clip_x_0) == (1000, True, (), False)
    assert (paper.dropout, large.dropout) == (0.1, 0)
    assert (large.lr, large.batch, large.size) == (2e-5, 64, (256, 256))
    for c, weights in ((paper, 35_746_307), (large, 113_673_219)):
        with torch.device("meta"):
            net = UNet(3, c.base, c.multipliers, c.attention, c.dropout)
        assert sum(p.numel() for p in net.parameters()) == weights


def test_a_preset_is_a_set_of_defaults_that_flags_override():
    """--preset NAME changes the defaults, and flags given beside it change those."""
    for name, preset in training.PRESETS.items():
        for flags in (["--preset", name], [f"--preset={name}"]):
            c, _ = training.flags([*flags, "--seed", "3", "--no-flip"])
            assert vars(c) == vars(preset) | {"seed": 3, "flip": False}
    assert training.flags([])[0] == training.PRESETS["small"]


@pytest.mark.parametrize("name", list(training.DOWNLOADS))
def test_a_download_goes_to_the_path_before_it_is_read(name, tmp_path, monkeypatch):
    """--download NAME fetches that data set, into PATH, which is then read."""
    fetched = []

    def fetch(folder):
        fetched.append(folder)
        write_idx(Path(folder) / "train-images-idx3-ubyte", size=8)

    monkeypatch.setitem(training.DOWNLOADS, name, fetch)
    run([str(tmp_path), "--download", name], tmp_path / "out")
    assert fetched == [str(tmp_path)]


REFUSED = {
    "no IDX file": ("{}/junk", "begins with 68656c6c, expected"),
    "no such file": ("{}/x.npy", r"there is no .*x\.npy; give the PATH"),
    "no npy": ("{}/junk/photo.npy", r"is no \.npy file"),
    "no size": ("{}/ok", "give the size to shrink them to, --size H W"),
    "no picture": (
        "{}/photos --size 8 8",
        r"2 of the 2 files in .*mend or move away: a\.jpg",
    ),
    "one size": ("{}/ok --size 8", r"size must be H W, two numbers >= 1, got \(8,\)"),
    "no device": ("{}/ok --device gpu", "--device must be"),
    "no samples": ("{}/ok --samples 0", "samples must be at least 1, got 0"),
    "none left": ("{}/ok --size 8 8 --held-out 1", "cannot hold out 1 of 1 pictures"),
    "held out": ("{}/ok --size 8 8 --held-out -1", "held_out must be at least 0"),
    "both": ("{}/ok --minutes 1 --steps 3", "give --steps or --minutes"),
    "no time": ("{}/ok --minutes 0", "--minutes must be above 0 .*, got 0"),
    "endless": ("{}/ok --minutes 1e308", "at most 525,600, a year, got 1e"),
    "names": ("{}/v.npy --names a b", "--names gives 2 names, and there are 0 classes"),
    "no labels": ("{}/v.npy --labels {}/c.npy", r"c\.npy: No such file"),
    "no network": (
        "{}/v.npy --attention 9",
        r"attention_levels must lie in \[0, 1, 2\]",
    ),
    "channels": ("{}/five.npy", r"\(N, H, W, C\) with C = 1 or 3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_ends_in_a_sentence(case, tmp_path, capfd):
    """What the user can mend is said in one sentence, and nothing is written."""
    for folder in ("junk", "photos", "ok"):
        (tmp_path / folder).mkdir()
    (tmp_path / "junk" / "train-images-idx3-ubyte").write_bytes(b"hello")
    (tmp_path / "junk" / "photo.npy").write_bytes(b"hello")
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "photos" / name).write_bytes(b"hello")
    Image.new("RGB", (9, 7)).save(tmp_path / "ok" / "photo.png")
    np.save(tmp_path / "v.npy", np.zeros((2, 8, 8, 3), np.uint8))
    np.save(tmp_path / "five.npy", np.zeros((2, 8, 8, 5), np.uint8))
    flags, says = REFUSED[case]
    out = tmp_path / "out"
    argv = [*flags.format(*[tmp_path] * 2).split(), "--out", str(out)]
    assert command(["train", *argv]) == 2
    said = capfd.readouterr().err.strip()
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(said)
    assert said.startswith("tinyddpm train: ")
    assert "\n" not in said
    assert not out.exists()


def test_a_run_goes_on_with_its_own_settings_alone(photos, tmp_path, capfd):
    """--resume with other settings names them, and leaves the run as it was."""
    out = tmp_path / "out"
    run(photos, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for flags, differs in (
        (["--dropout", "0.5"], "dropout (there 0.0, here 0.5)"),
        (["--linear"], "linear (there False, here True)"),
        (["--steps", "5"], "steps (there 4, here 5)"),  # the cosine has another end
    ):
        argv = ["train", *photos, *TINY, "--out", str(out), "--resume", *flags]
        assert command(argv) == 2
        said = capfd.readouterr().err
        assert f"of another run, which differs in {differs}" in said
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
