"""The commands of `python -m tinyddpm`, from a checkpoint to files and figures.

The network is a toy's and untrained: commands must be right for any weights.
"""

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.optim import Adam

from tinyddpm import linear_schedule
from tinyddpm.beyond.estimate import estimate_bits_per_dim
from tinyddpm.beyond.gradients import gradient_images
from tinyddpm.beyond.oracle import gradient_oracle
from tinyddpm.beyond.random_coding import RandomReceiver
from tinyddpm.bound import Bound
from tinyddpm.coding import receive
from tinyddpm.data import to_float, to_uint8
from tinyddpm.mlp import MLP
from tinyddpm.sampler import interpolate, sample
from tinyddpm.train import random_seed
from tinyddpm.unet import UNet
from tinyddpm.workshop import command as command_module
from tinyddpm.workshop import machine
from tinyddpm.workshop.checkpoint import Checkpoint, description, save_checkpoint
from tinyddpm.workshop.command import main
from tinyddpm.workshop.pictures import grid, save_png
from tinyddpm.workshop.report import mean_and_error, save_rate_distortion_plot, table

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
T, SHAPE = 24, (3, 4, 4)


def network(seed, shape=SHAPE):
    torch.manual_seed(seed)
    net = MLP(shape, width=8, depth=1, emb=8)
    for p in net.parameters():  # the last layers start at 0
        torch.nn.init.normal_(p, std=0.1)
    return net.eval()


def adam(net):
    """The optimiser's state after a step."""
    optimiser = Adam(net.parameters())
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step()
    return optimiser.state_dict()


def keep(path, shape=SHAPE):
    """Writes a checkpoint whose EMA and raw weights differ; returns its path."""
    ema, raw = network(0, shape), network(1, shape)
    kept = Checkpoint(
        step=1234,
        config={},
        network=description(ema),
        shape=shape,
        beta=linear_schedule(T).beta[1:],
        weights=raw.state_dict(),
        ema=ema.state_dict(),
        optimiser=adam(raw),
        told=torch.empty(0, 13, dtype=torch.float64),
        data=None,
    )
    save_checkpoint(path, kept)
    return path


@pytest.fixture
def checkpoint(tmp_path):
    return keep(tmp_path / "c.pt")


def run(*arguments):
    return main([str(a) for a in arguments])


def pixels(path):
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image))


def file_of_pictures(path, n=6, size=4):
    """A .npy file of n pictures, and the pictures (n, 3, size, size)."""
    v = np.random.default_rng(0).integers(0, 256, (n, size, size, 3), np.uint8)
    np.save(path, v)
    return path, torch.from_numpy(v).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("weights", "seed"), [("ema", 0), ("raw", 1)])
def test_sample_is_algorithm_2(checkpoint, tmp_path, capsys, weights, seed):
    """The PNG is the grid of `sample` with that seed and weights, told by name."""
    out = tmp_path / "new" / "s.png"
    flags = ("--pictures", 5, "--seed", 7, "--weights", weights)
    assert run("sample", checkpoint, "--out", out, *flags) == 0
    said = capsys.readouterr().out
    assert ("EMA weights" in said) == (weights == "ema")
    assert ("raw weights" in said) == (weights == "raw")
    assert "step 1,234" in said
    each = []
    for i in range(5):  # every picture by its own seed
        g = torch.Generator().manual_seed(random_seed(7, i))
        each.append(sample(linear_schedule(T), network(seed), (1, *SHAPE), g))
    mine = grid(to_uint8(torch.cat(each))).permute(1, 2, 0)
    apart = (pixels(out).int() - mine.int()).abs().max()
    assert apart <= 1  # a network rounds otherwise for another size of the batch


def test_interpolate_is_section_4_4(checkpoint, tmp_path):
    """The row is x_0, the mixtures for λ = 0..1, x'_0."""
    data, v = file_of_pictures(tmp_path / "x.npy")
    out = tmp_path / "i.png"
    flags = ("--data", data, "--first", 2, "--second", 5, "--t", 6, "--steps", 3)
    assert run("interpolate", checkpoint, *flags, "--out", out) == 0
    pair = to_float(v[[2, 5]])
    between = interpolate(
        linear_schedule(T),
        network(0),
        pair[:1],
        pair[1:],
        torch.tensor([0, 0.5, 1]),
        6,
        torch.Generator().manual_seed(0),
    )
    row = torch.cat([v[2:3], to_uint8(between[:, 0]), v[5:6]])
    assert torch.equal(pixels(out), grid(row, 5).permute(1, 2, 0))


def test_bound_prints_the_bound(checkpoint, tmp_path, capsys):
    """Eq. 5 of pictures drawn by the seed: the lines hold the means and standard errors
    of `estimate_bits_per_dim` over every t, and the tenths of t sum to the sum over
    t > 1.
    """
    data, v = file_of_pictures(tmp_path / "x.npy")
    plot = tmp_path / "p.png"
    assert run("bound", checkpoint, "--data", data, "--seed", 3, "--plot", plot) == 0
    said = capsys.readouterr().out
    chosen = torch.randperm(6, generator=torch.Generator().manual_seed(3))
    g = torch.Generator().manual_seed(3)
    exact = estimate_bits_per_dim(
        linear_schedule(T), network(0), to_float(v[chosen]), g
    )
    lines = {line[:24].strip(): line[24:].split() for line in said.splitlines()}
    for name, values in (
        ("L_T", exact.L_T),
        ("sum of L_{t-1}, t > 1", exact.L_tm1.sum(1)),
        ("L_0", exact.L_0),
        ("total, >= -log2 p(x_0)/D", exact.total),
    ):
        printed = [float(x) for x in lines[name][:2]]
        assert printed == pytest.approx(mean_and_error(values), abs=6e-6)
    tenths = [float(x[0]) for name, x in lines.items() if name.startswith("t =")]
    assert len(tenths) == 10
    assert sum(tenths) == pytest.approx(float(exact.L_tm1.sum(1).mean()), abs=6e-5)
    assert "EMA weights" in said
    assert "6 of 6 pictures" in said
    assert pixels(plot).shape[:2] == (360, 1200)


def test_bound_of_the_toy_ends_with_the_entropy(checkpoint, capsys):
    """The gradients' own law: 2 log2(256)/(H W) = 1 bit/dim at 4x4, beside the bound;
    with few t the columns of rate and error, which need every t, are left out.
    """
    flags = ("--data", "gradients", "--pictures", 4, "--draws", 2, "--clip-x-0")
    assert run("bound", checkpoint, *flags) == 0
    said = capsys.readouterr().out
    assert "clamped" in said
    assert "RMSE" not in said
    assert "1.00000 bits/dim" in said.splitlines()[-1]


def test_the_tables_tenths_are_what_a_receiver_has_paid():
    """The rate after a tenth of t is L_T and all the terms above it; RMSE is that of
    the x_t then held. A line for each step where T < 10; L_0 in none of them.
    """
    N, T = 3, 5
    L_tm1 = torch.zeros(N, T + 1).double()
    L_tm1[:, 2:] = torch.tensor([4.0, 3.0, 2.0, 1.0]).double()
    ones = torch.ones(N).double()
    mse = torch.arange(T + 1).double().expand(N, -1) ** 2 / 127.5**2
    text = table(Bound(ones / 2, L_tm1, ones, ones * 11.5, mse)).splitlines()
    cells = [line[24:].split() for line in text[1:]]
    assert text[2].startswith("  t = 5..5")
    assert cells[0] == ["0.50000", "0.00000", "0.50000", "5.000"]
    assert [c[0] for c in cells[1:5]] == ["1.00000", "2.00000", "3.00000", "4.00000"]
    assert [c[2] for c in cells[1:5]] == ["1.50000", "3.50000", "6.50000", "10.50000"]
    assert [c[3] for c in cells[1:5]] == ["4.000", "3.000", "2.000", "1.000"]
    assert cells[6] == ["1.00000", "0.00000", "11.50000", "0.000"]
    assert cells[7][0] == "11.50000"


def test_28x28_for_a_32x32_network_get_a_black_border(tmp_path, capfd):
    """(Fashion-)MNIST is padded with level 0, not resized (eq. 13). No other size is:
    a network for 32x32 has not seen 16x16 pictures in a wide black frame.
    """
    checkpoint, out = keep(tmp_path / "c.pt", (3, 32, 32)), tmp_path / "i.png"
    data, v = file_of_pictures(tmp_path / "x.npy", size=28)
    assert run("interpolate", checkpoint, "--data", data, "--out", out) == 0
    assert "black pixels are put around" in capfd.readouterr().out
    first = pixels(out)[2 : 2 + 32 * 2 : 2, 2 : 2 + 32 * 2 : 2]
    padded = torch.nn.functional.pad(v[0], (2, 2, 2, 2)).permute(1, 2, 0)
    assert torch.equal(first, padded)
    data, _ = file_of_pictures(tmp_path / "y.npy", size=16)
    assert run("interpolate", checkpoint, "--data", data, "--out", out) == 2
    refused(capfd, r"\(3, 32, 32\), .*y\.npy holds \(3, 16, 16\)")


def test_a_tenth_that_was_not_drawn_shows_a_dash():
    """0.00000 ± 0.00000 would be a claim; what was drawn counts for it in the sum."""
    terms, mse = torch.zeros(2, 21).double(), torch.full((2, 21), torch.nan).double()
    terms[:, 7], mse[:, 7], mse[:, :2] = 3.0, 0.1, 0.0
    zero = torch.zeros(2).double()
    text = table(Bound(zero, terms, zero, terms.sum(1), mse), every_t=False)
    rows = {line[:24].strip(): line[24:].split() for line in text.splitlines()}
    assert rows["t = 8..7"] == ["3.00000", "0.00000"]
    assert rows["t = 10..9"] == ["-", "-"]
    assert rows["sum of L_{t-1}, t > 1"][0] == "3.00000"


def test_a_folder_of_photos_is_shrunk_to_the_networks_size(checkpoint, tmp_path):
    """Photos of any size are data too; the other readers' files are named below."""
    folder = tmp_path / "photos"
    for i in range(2):
        save_png(folder / f"{i}.png", torch.full((3, 9, 9), 100 + i).byte())
    assert run("bound", checkpoint, "--data", folder, "--pictures", 2) == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.bin", bytes(3073), r"pictures \(3, 4, 4\), .*x\.bin holds \(3, 32, 32\)"),
        (
            "x-idx3-ubyte",
            bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0, 9]) + bytes(81),
            r"holds \(1, 9, 9\); give the data it was trained for",
        ),
        ("x.npy", b"no array", "no .npy file"),
        ("x.bin", bytes(3000), "cut short"),
        (None, None, "No such file"),
    ],
)
def test_wrong_data_end_in_a_sentence(
    checkpoint, tmp_path, capfd, name, content, message
):
    """Status 2, one line that says what was given and expected, nothing written."""
    path = tmp_path / (name or "nothing")
    if name:
        path.write_bytes(content)
    plot = tmp_path / "p.png"
    assert run("bound", checkpoint, "--data", path, "--plot", plot) == 2
    refused(capfd, message)
    assert not plot.exists()


def test_a_folder_of_mnist_without_its_test_set_is_no_folder_of_photos(
    checkpoint, tmp_path, capfd
):
    """`bound` asks for the test set; where it is not there, it says what is."""
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"")
    assert run("bound", checkpoint, "--data", tmp_path) == 2
    refused(capfd, r"holds no t10k-images-idx3-ubyte.*train-images-idx3-ubyte\.gz in")


def refused(capfd, message):
    error = capfd.readouterr().err.strip()
    assert error.count("\n") == 0
    assert error.startswith("tinyddpm ")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(error)


def keep_classes(path):
    """Writes a checkpoint of a U-Net with two classes, "cat" and "dog"."""
    torch.manual_seed(0)
    net = UNet(1, 8, (1,), (0,), 0.0, num_classes=2)
    for p in net.parameters():  # the last layers start at 0
        torch.nn.init.normal_(p, std=0.1)
    kept = Checkpoint(
        step=1234,
        config={"names": ("cat", "dog"), "bf16": True},
        network=description(net),
        shape=(1, 4, 4),
        beta=linear_schedule(T).beta[1:],
        weights=net.state_dict(),
        ema=net.state_dict(),
        optimiser=adam(net),
        told=torch.empty(0, 13, dtype=torch.float64),
        data=None,
    )
    save_checkpoint(path, kept)
    return path


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], 'σ² = beta, for the class "none"; '),
        (["--class", "dog"], 'σ² = beta, for the class "dog"; '),
        (["--class", "1", "--guidance", "2"], 'the class "1", guidance w = 2; '),
        (["--no-bf16"], '"none"; float32, as asked'),
        (["--bf16"], '"none"; bfloat16, as asked'),
    ],
)
def test_what_is_asked_of_the_network_is_said(flags, said, tmp_path, capsys):
    """The class, or that there is none, the guidance and the precision."""
    checkpoint = keep_classes(tmp_path / "c.pt")
    flags = [*flags, "--pictures", 1, "--steps", 2, "--out", tmp_path / "a.npz"]
    assert run("sample", checkpoint, *flags) == 0
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("fast", [True, False])
def test_samples_are_drawn_as_the_run_was_trained_where_that_is_fast(
    fast, tmp_path, capsys, monkeypatch
):
    """bfloat16 of a run in bfloat16, on a machine that is fast in it; else float32,
    which --no-bf16 gives too, to the bit.
    """
    monkeypatch.setattr(machine, "default_precision", lambda _: (fast, "so it is"))
    checkpoint, made = keep_classes(tmp_path / "c.pt"), {}
    for flags in ([], ["--bf16"], ["--no-bf16"]):
        out = tmp_path / f"{len(flags)}{flags}.npz"
        more = ("--pictures", 9, "--clip-x-0", "--out", out)
        assert run("sample", checkpoint, *flags, *more) == 0
        made[tuple(flags)] = np.load(out)["arr_0"]
    said = capsys.readouterr().out
    assert (f"{'bfloat16, as it was trained' if fast else 'float32'}: so it is") in said
    same = "--bf16" if fast else "--no-bf16"
    assert (made[()] == made[same,]).all()
    assert (made["--bf16",] != made["--no-bf16",]).any()


def test_pictures_between_two_that_leave_the_range_are_told(
    checkpoint, tmp_path, capfd, monkeypatch
):
    """A PNG clamps them, so that it alone would not tell."""
    beyond = torch.full((2, 1, *SHAPE), 3.0)
    monkeypatch.setattr(command_module, "interpolate", lambda *_: beyond)
    data, _ = file_of_pictures(tmp_path / "x.npy")
    out = tmp_path / "i.png"
    assert run("interpolate", checkpoint, "--data", data, "--out", out) == 0
    assert "2 of 2 pictures left [-1, 1]" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        ("sample", ["--pictures", "0"], "--pictures must be at least 1, got 0"),
        (
            "sample",
            ["--out", "x.jpg"],
            r"grid\.png, .+ or into a folder/, got 'x\.jpg'",
        ),
        ("interpolate", ["--data", "gradients", "--out", "x.jpg"], r"as \.png files"),
        ("sample", ["--batch", "0"], "--batch must be at least 1, got 0"),
        ("sample", ["--steps", "25"], "25"),
        ("sample", ["--guidance", "1"], "--guidance needs a --class"),
        ("sample", ["--class", "0"], "has no classes; leave out --class"),
        ("sample", ["--device", "cuda:99"], "CUDA devices"),
        ("sample", ["--seed", "-1"], r"--seed must lie in 0\.\.2\^62 - 1, got -1"),
        (
            "sample",
            ["--pictures", f"{10**15}", "--batch", f"{10**15}"],
            "a smaller --batch",
        ),
        ("interpolate", ["--data", "gradients", "--second", "-1"], "got -1"),
        ("interpolate", ["--data", "gradients", "--t", "25"], r"1\.\.24, got 25"),
        ("interpolate", ["--data", "gradients", "--steps", "0"], "--steps must be"),
        ("bound", ["--data", "gradients", "--draws", "0"], "draws must be >= 1"),
        ("bound", ["--data", "gradients", "--chunk", "0"], "chunk >= 1"),
        ("bound", ["--data", "gradients", "--held-out"], "trained on all its pictures"),
        ("bound", ["--data", "gradients", "--draws", "2", "--plot", "p.png"], "every"),
    ],
)
def test_wrong_flags_end_in_a_sentence(
    checkpoint, tmp_path, capfd, monkeypatch, command, flags, message
):
    """Status 2, one line that says what was given and expected, nothing written."""
    monkeypatch.chdir(tmp_path)
    assert main([command, str(checkpoint), *flags]) == 2
    refused(capfd, message)
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


@pytest.mark.parametrize("command", ["sample", "interpolate", "bound"])
def test_a_renamed_flag_says_its_new_name(checkpoint, command, capsys):
    """--clip of earlier versions clamped x̂_0: exit status 2, and what it is called."""
    data = [] if command == "sample" else ["--data", "gradients"]
    with pytest.raises(SystemExit) as ended:
        run(command, checkpoint, *data, "--clip")
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith("error: --clip is now called --clip-x-0")


def test_a_damaged_checkpoint_or_a_folder_in_a_file_is_refused(
    checkpoint, tmp_path, capfd
):
    """The checkpoint is whole or refused; an --out below a file cannot be written."""
    assert run("sample", checkpoint, "--out", checkpoint / "s.png") == 2
    refused(capfd, "cannot write")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    assert run("sample", checkpoint, "--out", tmp_path / "s.png") == 2
    refused(capfd, "not a whole checkpoint")
    assert not (tmp_path / "s.png").exists()


def test_the_commands_need_the_scripts_extra(checkpoint, capfd, monkeypatch):
    """Without tqdm, Pillow or matplotlib the error says what to install."""
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert run("bound", checkpoint, "--data", "gradients") == 2
    refused(capfd, r"install the extra \[scripts\]")


def test_it_runs_as_a_module(checkpoint, tmp_path):
    """`python -m tinyddpm` itself, and its exit status."""
    command = [sys.executable, "-m", "tinyddpm", "sample", str(checkpoint)]
    done = subprocess.run(
        [*command, "--pictures", "1", "--out", "a.jpg"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2
    assert "a.jpg" in done.stderr


def test_the_plot_is_written_whole_or_not_at_all(tmp_path):
    """A folder that is a file: an error that names the path, and nothing left."""
    (tmp_path / "file").touch()
    rate, distortion = torch.ones(3), torch.ones(3)
    with pytest.raises(OSError, match="cannot write"):
        save_rate_distortion_plot(tmp_path / "file" / "p.png", rate, distortion)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# --- examples ----------------------------------------------------------------------


def example(name, monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", [name, *map(str, flags)])
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def test_send_gradient_sends_a_file_that_holds_the_picture(
    tmp_path, monkeypatch, capsys
):
    """Algorithms 3 and 4 with the exact predictor: message.bin alone gives x_0, to one
    who has the sender's seed.
    """
    flags = ("--T", 25, "--seed", 3, "--out", tmp_path)
    example("send_gradient", monkeypatch, *flags)
    assert "received exactly" in capsys.readouterr().out
    s, message = linear_schedule(25), (tmp_path / "message.bin").read_bytes()
    *_, (_, x_0, _) = receive(
        s, gradient_oracle(s, 8, 8), (1, 3, 8, 8), RandomReceiver(message, 3)
    )
    g = torch.Generator().manual_seed(3)
    assert torch.equal(to_uint8(x_0), to_uint8(gradient_images(1, 8, 8, g)))
    with Image.open(tmp_path / "strip.png") as strip:
        assert strip.size[0] > 600


def test_likelihood_prints_a_gap_that_falls_with_T(tmp_path, monkeypatch, capsys):
    """The Gaussian table's last column is > 0 and falls; the gradients' gap is > 0."""
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(EXAMPLES / "likelihood.py"))
    steps = linear_schedule(30)
    monkeypatch.setitem(names["main"].__globals__, "PICTURES", 4)
    monkeypatch.setitem(names["main"].__globals__, "linear_schedule", lambda T: steps)
    names["main"]()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    gaps = [float(line[2]) for line in lines[2:7]]
    assert [int(line[0]) for line in lines[2:7]] == [10, 30, 100, 300, 1000]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] > 0
    assert float(lines[-2][-2]) > 0
    assert (tmp_path / "out/likelihood/rate_distortion.png").exists()
