"""Pictures are held to what they must be at each draw, and known by their content."""

import dataclasses

import pytest
import torch
from torch import nn

from tinyddpm import drawer, linear_schedule
from tinyddpm.mlp import MLP
from tinyddpm.workshop.draws import CheckedDraw
from tinyddpm.workshop.run import fit
from tinyddpm.workshop.settings import TrainConfig

SHAPE, B = (1, 2, 2), 4
CONFIG = TrainConfig(steps=6, batch=B, warmup=1, ema=0.5, log_every=2, save_every=2)


def uniform(n, generator):
    return (2 * torch.rand((n, *SHAPE), generator=generator) - 1,)


def network():
    return MLP(SHAPE, 4, 1, 4)


def train(draw, config=CONFIG, **where):
    return fit(linear_schedule(30), network(), draw, config, **where)


@pytest.mark.parametrize("bad", ["above", "nan", "fewer", "a tensor", "numpy", "bytes"])
@pytest.mark.parametrize("at", [2, 3, 4])
def test_each_draw_is_looked_at_not_the_first_alone(bad, at):
    """A draw that is right at first and wrong later ends the run, by the next look at
    the loss at the latest; what is wrong is said in the terms of `draw`."""
    drawn = []

    def draw(n, generator):
        (x_0,) = uniform(n, generator)
        drawn.append(n)
        if len(drawn) <= at:
            return (x_0,)
        return {
            "above": (x_0 * 127.5,),
            "nan": (x_0 * torch.nan,),
            "fewer": (x_0[1:],),
            "a tensor": x_0,
            "numpy": (x_0.numpy(),),
            "bytes": (x_0.byte(),),
        }[bad]

    said = {
        "above": r"must lie in \[-1, 1\], got one with a number as large as \d",
        "nan": r"must lie in \[-1, 1\], got one with a number as large as nan",
        "fewer": r"draw\(4, generator\) must give tensors of 4 items each, got 3",
        "a tensor": r"a single tensor x_0 is given as \(x_0,\)",
        "numpy": r"must give tensors of 4 items each, got ndarray",
        "bytes": r"as floating point, got torch.uint8; to_float scales",
    }[bad]
    with pytest.raises(ValueError, match=said):
        train(draw)
    assert len(drawn) <= at + 1 + CONFIG.log_every


def test_pictures_from_0_to_1_are_told(capfd):
    """Nothing below 0 in a batch: taught to a network they would give pale pictures.
    It may be so, and is told; pictures with anything below 0 are not spoken of."""
    said = "pictures must be scaled to [-1, 1], not to [0, 1]"
    train(lambda n, g: ((uniform(n, g)[0] + 1) / 2,))
    assert said in capfd.readouterr().err
    train(uniform)
    assert said not in capfd.readouterr().err


def test_a_loader_of_batches_of_its_own_size_is_named():
    """An iterator that gives its own number of pictures: what was asked, and got."""
    batches = iter(torch.utils.data.DataLoader(torch.zeros(80, *SHAPE), 3))
    with pytest.raises(
        ValueError, match=r"draw\(4, generator\) .+ 4 items each, got 3"
    ):
        train(lambda n, g: (next(batches),))


@pytest.mark.parametrize("change", ["another picture", "another number of them"])
def test_data_are_known_by_their_bytes_wherever_they_lie(tmp_path, change):
    """A copy of the pictures, read from elsewhere, goes on with the run; other pictures
    are refused in words, and the file is left as it was."""
    path = tmp_path / "c.pt"
    v = torch.arange(32).view(8, *SHAPE).byte()
    train(drawer(v), checkpoint=path)
    longer = dataclasses.replace(CONFIG, steps=8)
    train(drawer(v.clone()), longer, checkpoint=path, resume=True)
    other = v[:-1] if change == "another number of them" else v.roll(1, 0)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="differs in the data: a first batch drawn"):
        train(
            drawer(other),
            dataclasses.replace(CONFIG, steps=10),
            checkpoint=path,
            resume=True,
        )
    assert path.read_bytes() == before


def test_a_draw_that_does_not_go_by_its_generator_is_no_reason_to_refuse(tmp_path):
    """Such data have no digest: each draw differs, and the run may go on."""
    draw = uniform(99, torch.Generator().manual_seed(1))[0].split(B)
    batches = iter(draw)
    assert CheckedDraw(lambda n, g: (next(batches),), network(), B).digest is None
    path = tmp_path / "c.pt"
    for steps in (2, 4):
        torch.manual_seed(steps)
        train(
            lambda n, g: uniform(n, None),
            dataclasses.replace(CONFIG, steps=steps),
            checkpoint=path,
            resume=True,
        )


class Dropped(nn.Module):
    """A layer with dropout before it, after which another draws from torch's own."""

    def __init__(self, disturbed, p):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        nn.init.constant_(self.inner.weight, 0.1)
        nn.init.zeros_(self.inner.bias)
        self.dropout, self.disturbed = nn.Dropout(p), disturbed

    def forward(self, x_t, t):
        if self.disturbed:  # as a thread of the caller's may, after the seeding
            torch.rand(3)
        return self.inner(self.dropout(x_t.flatten(1))).view_as(x_t)


def test_dropout_masks_are_the_runs_own():
    """Whoever draws from torch's generator meanwhile: on a CPU the weights are the
    same, to the bit; and the masks do matter."""
    weights = []
    for disturbed, p in ((False, 0.5), (True, 0.5), (False, 0.0)):
        with torch.random.fork_rng([]):
            net = Dropped(disturbed, p)
            fit(linear_schedule(30), net, uniform, CONFIG)
        weights.append(net.inner.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
