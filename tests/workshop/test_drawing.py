"""Samples in any number: picture i of a seed is the same, whatever it is drawn with."""

import numpy as np
import pytest
import torch
from PIL import Image

from tinyddpm import linear_schedule
from tinyddpm.workshop.drawing import (
    draw,
    draw_all,
    kept_steps,
    kind_of,
    refuse_what_cannot_be_written,
    sampler_of,
    save,
)
from tinyddpm.workshop.scripts import say_out_of_range

from ..helpers import some_network

S, SHAPE = linear_schedule(30), (3, 2, 2)


def drawn(count, batch, seed=0, name="ddpm", steps=None, eta=0.0, keep=(0,), net=None):
    every, step = sampler_of(S, net or some_network, name, steps, eta)

    def of_batch(numbers):
        return draw(every, step, SHAPE, numbers, seed, torch.device("cpu"))

    return draw_all(of_batch, count, batch, len(every), set(keep))


@pytest.mark.parametrize(
    "how",
    [{}, {"steps": 7}, {"name": "ddim", "steps": 7}, {"name": "ddim", "eta": 1.0}],
)
def test_a_picture_is_the_same_whatever_the_batch(how, capsys):
    """Its x_T and every z come from (seed, i): in batches of 1, 3 or all, first or last
    of 7 or alone, and at each step kept; another number or seed is another picture.

    The stand-in for a network works number by number, so that to the bit is meant."""
    first = 7 if how == {"steps": 7} else 30  # the T of the chosen steps' schedule
    whole = drawn(7, 7, keep=(0, first), **how)
    for count, batch in ((7, 1), (7, 3), (4, 4), (1, 1)):
        part = drawn(count, batch, keep=(0, first), **how)
        for t in (0, first):
            assert torch.equal(part[t], whole[t][:count])
    x_T = whole[first]
    assert len(torch.unique(x_T, dim=0)) == 7
    assert not torch.equal(drawn(7, 7, seed=1, keep=(first,), **how)[first], x_T)


@pytest.mark.parametrize(("name", "steps"), [("ddpm", None), ("ddpm", 7), ("ddim", 7)])
def test_a_network_is_asked_without_dropout(name, steps, capsys):
    """Whatever mode it is in, which it keeps: a grid may be made in mid-training."""
    modes = []

    class Watched(torch.nn.Module):
        def forward(self, x_t, t):
            modes.append(self.training or torch.is_grad_enabled())
            return some_network(x_t, t)

    net = Watched()
    drawn(1, 1, name=name, steps=steps, net=net)
    assert modes == [False] * (steps or S.T)
    assert net.training


def grows(by):
    """A network that leads to pictures of about this size: ε̂ = 0 but at the end."""
    return lambda x_t, t: torch.zeros_like(x_t) - by * (t == 1).view(-1, 1, 1, 1)


def test_pictures_out_of_range_are_counted_and_told(capsys):
    """x_0 beyond 1.5 becomes black, white or one colour when it is clamped to 8 bits:
    how many of how many, by how much, and both ways out. In range, nothing is said."""
    drawn(5, 2, net=grows(1e4))
    said = capsys.readouterr().out
    assert "5 of 5 pictures left [-1, 1] by more than 0.5, by up to" in said
    for way_out in ("train longer", "--clip-x-0", "clip_x_0=True"):
        assert way_out in said
    s = linear_schedule(30)

    def small(x_t, t):
        return x_t / (1 - s.alpha_bar[t].view(-1, 1, 1, 1)).sqrt()

    drawn(5, 2, net=small)  # the predictor for pictures that are all 0
    assert "left [-1, 1]" not in capsys.readouterr().out


def test_the_scripts_tell_it_too(capfd):
    """Of a batch that a script has sampled: 2 of 3, by up to 1; none, no word."""
    x_0 = torch.zeros(3, *SHAPE)
    x_0[0, 0, 0, 0], x_0[1, 2, 1, 1] = -1.6, 2.0
    say_out_of_range(x_0)
    said = capfd.readouterr().err
    assert "2 of 3 pictures left [-1, 1] by more than 0.5, by up to 1:" in said
    say_out_of_range(x_0.clamp(-1.5, 1.5))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["a.png", "A.PNG", "a.gif", "a.npz", "new/folder/"])
def test_what_is_saved_is_what_was_drawn(tmp_path, name, capsys):
    """Of each kind: a grid, an animation, the array (N, H, W, C), a file a picture."""
    out = str(tmp_path / name) + ("/" if name.endswith("/") else "")
    frames = drawn(3, 3, keep=kept_steps(out, list(range(30, 0, -1))))
    refuse_what_cannot_be_written(out, 3)
    save(out, frames)
    expected = frames[0].permute(0, 2, 3, 1).numpy()
    if kind_of(out) == "npz":
        with np.load(out) as found:
            assert np.array_equal(found["arr_0"], expected)
    elif kind_of(out) == "folder":
        for i in range(3):
            with Image.open(tmp_path / name / f"{i:06}.png") as picture:
                assert np.array_equal(np.asarray(picture), expected[i])
    else:
        with Image.open(out) as picture:
            assert (getattr(picture, "n_frames", 1) > 20) == (name == "a.gif")


def test_what_could_not_be_written_is_refused_before_the_work(tmp_path):
    """An unknown suffix, five channels in a picture, a folder below a file."""
    (tmp_path / "file").touch()
    for out, channels, said in (
        ("a.jpg", 3, "written as grid.png, chain.gif, samples.npz or into a folder/"),
        ("a.png", 5, "with 5 channels cannot be shown; .+ --out samples.npz"),
        ("a.gif", 2, "with 2 channels"),
        ("file/a.png", 3, "cannot write .+; give a folder"),
    ):
        with pytest.raises((ValueError, OSError), match=said):
            refuse_what_cannot_be_written(str(tmp_path / out), channels)
    refuse_what_cannot_be_written(str(tmp_path / "new" / "a.npz"), 5)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
