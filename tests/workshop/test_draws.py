"""Pictures are held to what they must be at each draw, and known by their content."""

import dataclasses
import hashlib
import io

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


def said_by(call, *args):
    """The whole sentence of the refusal."""
    with pytest.raises(ValueError, match=r"\w") as refused:
        call(*args)
    return str(refused.value)


GIVES = "draw(4, generator) must give "
SAID = {  # what a batch is, and what is said of it
    "a tensor": (
        lambda x: x,
        f"{GIVES}(x_0,) or (x_0, c), got Tensor; a single tensor x_0 is given as "
        f"(x_0,)",
    ),
    "nothing": (
        lambda x: (),
        f"{GIVES}(x_0,) or (x_0, c), got tuple; a single tensor x_0 is given as (x_0,)",
    ),
    "three": (
        lambda x: [x, x, x],
        f"{GIVES}(x_0,) or (x_0, c), got list; a single tensor x_0 is given as (x_0,)",
    ),
    "numpy": (lambda x: (x.numpy(),), f"{GIVES}tensors of 4 items each, got ndarray"),
    "fewer": (lambda x: (x[1:],), f"{GIVES}tensors of 4 items each, got 3"),
    "fewer classes": (
        lambda x: (x, torch.zeros(5)),
        f"{GIVES}tensors of 4 items each, got 5",
    ),
    "bytes": (
        lambda x: (x.byte(),),
        f"{GIVES}pictures as floating point, got torch.uint8; to_float scales 8-bit "
        f"pictures to [-1, 1]",
    ),
    "another shape": (
        lambda x: (x[..., :1],),
        "draw(4, generator) gave pictures (1, 2, 1), and (1, 2, 2) in its first batch; "
        "give all of them one shape",
    ),
}


@pytest.mark.parametrize("bad", SAID)
def test_each_batch_is_held_to_what_a_batch_is(bad):
    """The first one and later ones; what is wrong is said in the terms of `draw`."""
    change, said = SAID[bad]

    def wrong(n, generator):
        return change(uniform(n, generator)[0])

    if bad != "another shape":
        assert said_by(CheckedDraw, wrong, network(), B) == said
    data = CheckedDraw(uniform, network(), B)
    data.draw = wrong
    assert said_by(data, B, None) == said


@pytest.mark.parametrize("wrong", [127.5, -1.5, 1 + 1e-6, float("nan"), float("inf")])
def test_pictures_beyond_the_range_are_refused_at_the_next_look(wrong):
    """To look at each would make the host wait; the largest of all is kept, wherever in
    the batch it was and whatever came after. The range's ends lie in it."""
    factor = [1.0]

    def draw(n, generator):
        x_0 = torch.full((n, *SHAPE), 0.5)
        x_0[-1, 0, 1, 1] = factor[0]
        return [x_0]

    said = (
        f"pictures must lie in [-1, 1], got one with a number as large as "
        f"{abs(torch.tensor(wrong)):g}; to_float scales 8-bit pictures"
    )
    data = CheckedDraw(draw, network(), B)
    factor[0] = -1.0
    data(B, None)
    data.refuse_outside()
    factor[0] = wrong
    data(B, None)
    factor[0] = 0.0
    data(B, None)
    assert said_by(data.refuse_outside) == said
    factor[0] = wrong
    assert said_by(CheckedDraw, draw, network(), B) == said


def test_what_is_known_of_the_data():
    """Their shape, and whether any number is below 0, of the first batch; what is drawn
    is given on as it is."""
    data = CheckedDraw(uniform, network(), B)
    assert (data.shape, data.below_0) == (SHAPE, True)
    (x_0,) = data(3, torch.Generator().manual_seed(5))
    assert torch.equal(x_0, *uniform(3, torch.Generator().manual_seed(5)))
    for least, below in ((0.0, False), (-1e-6, True)):
        data = CheckedDraw(lambda n, g, x=least: (torch.full((n, 2), x),), Flat(), B)
        assert data.below_0 == below


class Flat(nn.Module):
    """Keeps what it was asked and how; the answer is 0, or of a wrong shape."""

    def __init__(self, columns=None):
        super().__init__()
        self.p, self.columns = nn.Parameter(torch.zeros(1)), columns
        self.asked = []

    def forward(self, *args):
        self.asked.append((self.training, torch.is_grad_enabled(), args))
        return self.p * args[0][:, : self.columns]


def test_the_network_is_asked_once_whether_the_pictures_fit():
    """Of the first picture at t = 1, with its class, as one asks a network; an answer
    of another shape is refused before the work."""

    def draw(n, generator):
        return torch.linspace(-1, 1, n)[:, None].expand(n, 2), torch.arange(n) + 7

    net = Flat()
    CheckedDraw(draw, net, B)
    ((training, grad, (x, t, c)),) = net.asked
    assert (training, grad) == (False, False)
    assert net.training
    assert (x.tolist(), t.tolist(), c.tolist()) == ([[-1.0, -1.0]], [1], [7])
    assert t.dtype == torch.long
    said = said_by(CheckedDraw, draw, Flat(1), B)
    assert said == (
        "eps_theta(x_t, t) must have the shape of the batch, (1, 2), got (1, 1)"
    )


def test_a_draw_is_given_a_generator_of_the_network_s_device(monkeypatch):
    """A new one each time: what is drawn first is the same, wherever the run is."""
    asked = []

    def made(device):
        asked.append(device)
        return torch.Generator(device)

    monkeypatch.setattr("tinyddpm.workshop.draws.Generator", made)
    assert CheckedDraw(uniform, network(), B).digest
    assert asked == [torch.device("cpu")] * 2


def test_a_digest_is_of_the_numbers_of_a_first_batch():
    """With a new generator, of float64 and whole numbers as they are, however they lie
    in memory; other numbers, other classes, or none, have another. As a file has it: a
    run goes on with the data that it was begun with."""

    def digest(*batch):
        return CheckedDraw(lambda n, g: batch, Flat(), B).digest

    x, c = uniform(B, torch.Generator().manual_seed(1))[0], torch.arange(B)
    hashed = hashlib.blake2b(digest_size=16)
    for part in (x, c):
        buffer = io.BytesIO()
        torch.save(part.double(), buffer)
        hashed.update(buffer.getvalue())
    assert digest(x, c) == f"cpu:{hashed.hexdigest()}"
    across = x.transpose(2, 3).contiguous().transpose(2, 3)
    assert digest(x.double(), c.int()) == digest(across, c) == digest(x, c)
    x_1 = x.clone().requires_grad_()
    assert digest(x_1, c) == digest(x, c)
    others = [digest(x), digest(x, c + 1), digest(-x, c), digest(x.roll(1, 0), c)]
    assert len({digest(x, c), *others}) == 5
    drawn = CheckedDraw(uniform, Flat(), B).digest
    first = uniform(B, torch.Generator())
    assert drawn == digest(*first)


@pytest.mark.parametrize("bad", ["above", "a tensor"])
@pytest.mark.parametrize("at", [2, 3, 4])
def test_each_draw_is_looked_at_not_the_first_alone(bad, at):
    """A draw that is right at first and wrong later ends the run, by the next look at
    the loss at the latest."""
    drawn = []

    def draw(n, generator):
        (x_0,) = uniform(n, generator)
        drawn.append(n)
        if len(drawn) <= at:
            return (x_0,)
        return (x_0 * 127.5,) if bad == "above" else x_0

    said = {
        "above": r"must lie in \[-1, 1\], got one with a number as large as \d",
        "a tensor": r"a single tensor x_0 is given as \(x_0,\)",
    }[bad]
    with pytest.raises(ValueError, match=said):
        train(draw)
    assert len(drawn) <= at + 1 + CONFIG.log_every


def test_pictures_from_0_to_1_are_told(capfd):
    """Nothing below 0 in a batch: taught to a network they would give pale pictures.
    It may be so, and is told; pictures with anything below 0 are not spoken of."""
    said = (
        "no pixel of the first batch is below 0; pictures must be scaled to [-1, 1], "
        "not to [0, 1]\n"
    )
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
