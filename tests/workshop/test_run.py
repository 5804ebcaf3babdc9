"""Laws of `workshop.run.fit`: what is around Algorithm 1 leaves its numbers alone."""

import copy
import dataclasses
import math
import re
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tinyddpm import linear_schedule, sample
from tinyddpm.schedule import Schedule
from tinyddpm.unet import UNet
from tinyddpm.workshop.checkpoint import load_checkpoint, rebuild
from tinyddpm.workshop.run import (
    fit,
    rng_left_alone,
    say_what_is_short,
    seconds_a_step,
    seed_masks,
)
from tinyddpm.workshop.settings import TrainConfig
from tinyddpm.workshop.state import by_tenth

from ..strategies import seeds, share
from .training_run import CONFIG as UNET_CONFIG
from .training_run import draw as unet_pictures
from .training_run import network
from .training_run import train as run_of_a_unet

SHAPE = (2, 2, 2)
S = linear_schedule(50)
CONFIG = TrainConfig(
    steps=12, batch=6, lr=0.01, warmup=4, ema=0.8, log_every=4, save_every=4
)


class Net(nn.Module):
    """A noise predictor of two layers that keeps what it was asked, with dropout."""

    def __init__(self, dropout: float = 0.0, dtype: torch.dtype = torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.a, self.b = nn.Linear(9, 5, dtype=dtype), nn.Linear(5, 8, dtype=dtype)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator, dtype=dtype) / 2
        self.dropout, self.asked = nn.Dropout(dropout), []

    def forward(self, x_t, t):
        if self.training:
            self.asked.append((x_t.detach(), t))
        h = torch.cat([x_t.flatten(1), t[:, None].to(x_t) / S.T], 1)
        return self.b(self.dropout(torch.tanh(self.a(h)))).view_as(x_t)


def ramp(n, generator):
    """One picture of eight numbers, again and again: ε can be told from x_t."""
    x_0 = torch.linspace(-1, 1, 8, dtype=torch.float64).view(SHAPE)
    return (x_0.repeat(n, 1, 1, 1),)


def noise(n, generator):
    """Pictures of uniform numbers."""
    return (2 * torch.rand((n, *SHAPE), generator=generator, dtype=torch.float64) - 1,)


def single(n, generator):
    return (noise(n, generator)[0].float(),)


def trained(config=CONFIG, net=None, data=noise, log=None, **where):
    """The network after `fit`, and its average."""
    net = Net() if net is None else net
    return net, fit(S, net, data, config, log, **where)


def same(a, b):
    """Whether two networks have the same weights, to the bit."""
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


def assert_near(a, b, tolerance=1e-9):
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


def batch(asked):
    """x_t, t and the ε that made x_t of the one picture (eq. 4)."""
    x_t, t = asked
    alpha_bar = S.alpha_bar[t].view(-1, 1, 1, 1)
    eps = (x_t - alpha_bar.sqrt() * ramp(1, None)[0]) / (1 - alpha_bar).sqrt()
    return x_t, t, eps


# What is watched, saved and resumed is the same run


@given(st.integers(1, 12), st.integers(1, 3), st.booleans(), st.booleans())
@share(20)
def test_to_watch_and_to_save_changes_no_bit(
    tmp_path_factory, log_every, times, watched, saved
):
    """Whatever is told and kept, and however often: the same weights and average."""
    config = dataclasses.replace(
        CONFIG, log_every=log_every, save_every=times * log_every
    )
    path = tmp_path_factory.mktemp("saved") / "c.pt" if saved else None
    records = []
    log = records.append if watched else None
    runs = [trained(net=Net(0.5)), trained(config, Net(0.5), log=log, checkpoint=path)]
    for plain, other in zip(*runs, strict=True):
        assert same(plain, other)
    every = [n for n in range(1, 13) if n % log_every == 0 or n == 12]
    assert [r.step for r in records] == (every if watched else [])


@given(seeds, st.integers(1, 11))
@share(20)
def test_resumed_is_uninterrupted(tmp_path_factory, seed, stop):
    """Stopped after any step and resumed: the same weights and average, to the bit.

    With dropout, and with the optimiser's moments, which a restart must bring back.
    """
    path = tmp_path_factory.mktemp("resumed") / "c.pt"
    whole = dataclasses.replace(CONFIG, seed=seed)
    part = dataclasses.replace(whole, steps=stop, log_every=1, save_every=1)
    net, ema = trained(whole, Net(0.5))
    trained(part, Net(0.5), checkpoint=path)
    fresh = Net(0.5)
    torch.manual_seed(seed)  # what the caller draws elsewhere is of no consequence
    resumed, resumed_ema = trained(whole, fresh, checkpoint=path, resume=True)
    assert same(net, resumed)
    assert same(ema, resumed_ema)
    assert not same(net, ema)


def test_a_run_that_is_done_is_left_as_it_is(tmp_path):
    """Resuming a finished run takes no step, gives the network it ended with, and
    tells its last record once more."""
    records = []
    where = {"log": records.append, "checkpoint": tmp_path / "c.pt"}
    _, ema = trained(**where)
    net, again = trained(**where, resume=True)
    assert same(ema, again)
    assert net.asked == []
    *_, last, once_more = records
    assert len(records) == 3 + 1
    assert once_more[:3] == last[:3]
    assert repr(once_more.told) == repr(last.told)  # there are nans in it


def test_each_step_is_taken_with_dropout_masks_of_its_own():
    """All of the network trains in training mode, though it was given in evaluation
    mode and is asked so at first; no two steps, nor two pieces of one, share a mask."""
    modes, masks = [], []

    class Watched(Net):
        def forward(self, x_t, t):
            modes.append({m.training for m in self.modules()})
            masks.append(tuple(self.dropout(torch.ones(64)).tolist()))
            return super().forward(x_t, t)

    net = Watched(0.5).eval()
    trained(dataclasses.replace(CONFIG, log_every=1, micro_batch=3), net)
    assert modes == [{False}] + [{True}] * 24
    assert len(set(masks[1:])) == 24
    assert not any(m.training for m in net.modules())


def test_each_process_and_step_has_dropout_masks_of_its_own(monkeypatch):
    """Rank, step and seed each change the masks, and the same three give the same."""
    drawn, own = [], torch.Generator()
    with torch.random.fork_rng([]):
        for rank, step, seed in [(0, 5, 0), (1, 5, 0), (0, 6, 0), (0, 5, 1), (0, 5, 0)]:
            monkeypatch.setattr("tinyddpm.workshop.run.rank", lambda rank=rank: rank)
            seed_masks(seed, step, torch.device("cpu"), own)
            drawn.append(tuple(torch.rand(3).tolist()))
            assert drawn[-1] == tuple(torch.rand(3, generator=own).tolist())
    assert len(set(drawn)) == 4
    assert drawn[0] == drawn[4]


def test_what_is_said_to_be_saved_is(tmp_path):
    """When `log` is told of a step, the file is of that step if it says so, with the
    row that was just told, and of an earlier one if not."""
    path, said = tmp_path / "c.pt", []

    def look(r):
        found = load_checkpoint(path)
        said.append((r.step, r.saved))
        assert (found.step == r.step) == r.saved
        if r.saved:
            assert found.told[:, 0].tolist() == [row[0] for row in r.told]

    config = dataclasses.replace(CONFIG, steps=6, log_every=2, save_every=4)
    trained(config, log=look, checkpoint=path)
    assert said == [(2, False), (4, True), (6, True)]


def test_nothing_of_the_callers_is_changed_but_the_weights():
    """Training flags, modules, hooks and random numbers are as they were before.

    In the middle the caller samples from the average and draws numbers of its own: the
    run is to the bit the one that was left alone.
    """

    def look(r):
        before = {name: p.clone() for name, p in r.ema.state_dict().items()}
        torch.manual_seed(7)
        sample(S, r.ema, (2, *SHAPE), torch.Generator().manual_seed(r.step))
        torch.rand(3)
        for name, p in r.ema.state_dict().items():
            assert torch.equal(p, before[name])
        assert not any(m.training for m in r.ema.modules())
        assert not any(p.requires_grad for p in r.ema.parameters())
        looked.append(r.step)

    looked, called = [], []
    net, undisturbed = (Net(0.5, torch.float32) for _ in range(2))
    net.b.eval()
    net.a.register_forward_hook(lambda m, *_: called.append(1) if m.training else None)
    modules, flags = list(net.modules()), [m.training for m in net.modules()]
    weights = [(name, id(p)) for name, p in net.named_parameters()]
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    _, ema = trained(net=net, log=look, data=single)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert looked == [4, 8, 12]
    assert len(called) == 12  # the caller's hooks are called in each step
    assert all(m is n for m, n in zip(net.modules(), modules, strict=True))
    assert [m.training for m in net.modules()] == flags
    assert [(name, id(p)) for name, p in net.named_parameters()] == weights
    _, undisturbed_ema = trained(net=undisturbed, data=single)
    assert same(net, undisturbed)
    assert same(ema, undisturbed_ema)


@pytest.mark.parametrize("wrap", ["compiled", "DataParallel", "both"])
def test_a_wrapped_network_is_the_network_inside(tmp_path, wrap, capfd):
    """torch.compile(net) and DataParallel(net) train, save and are rebuilt as net is:
    the same file, with which the one goes on where the other stopped. That it trains
    on one device only is told to whoever gave a DataParallel."""

    def wrapped(net):
        if wrap != "compiled":
            net = nn.DataParallel(net)
        return net if wrap == "DataParallel" else torch.compile(net, backend="eager")

    config = dataclasses.replace(UNET_CONFIG, steps=6, compile=False)
    half = dataclasses.replace(config, steps=3)
    s, folders = linear_schedule(), {}
    for name, around in (("plain", lambda net: net), ("wrapped", wrapped)):
        path = tmp_path / name / "c.pt"
        fit(s, around(network()), unet_pictures, half, None, path)
        folders[name] = path
        # and the other way of giving the network goes on
        other = wrapped if name == "plain" else lambda net: net
        fit(s, other(network()), unet_pictures, config, None, path, resume=True)
    plain, other = (load_checkpoint(path) for path in folders.values())
    assert plain.network == other.network
    assert plain.network is not None
    for part in ("weights", "ema", "optimiser"):
        torch.testing.assert_close(
            getattr(plain, part), getattr(other, part), rtol=0, atol=0
        )
    x, t = torch.ones(1, 2, 4, 4), torch.tensor([3])
    assert torch.equal(rebuild(plain)(x, t), rebuild(other)(x, t))
    told = (
        "the network is trained without its DataParallel wrapper, on cpu alone; to "
        "train on several GPUs, start the script with torchrun\n"
    )
    assert (told in capfd.readouterr().err) == (wrap != "compiled")


# What is shared out and sped up is the same run to rounding


@given(st.integers(1, 7))
@share(20)
def test_micro_batches_add_up_to_the_batch(size):
    """The gradient of a mean is the weighted mean of its parts' gradients, even or not.

    In float64, so that the difference is rounding: Adam divides by √v, so an entry's
    relative error, 1e-15 or so a step, is all that grows.
    """
    config = dataclasses.replace(CONFIG, micro_batch=size)
    records, whole_records = [], []
    net, ema = trained(config, log=records.append)
    whole, whole_ema = trained(log=whole_records.append)
    assert {len(t) for _, t in net.asked} == {min(size, 6)} | ({6 % size} - {0})
    assert_near(net, whole)
    assert_near(ema, whole_ema)
    for r, w in zip(records, whole_records, strict=True):
        torch.testing.assert_close(r.loss, w.loss, rtol=1e-9, atol=0)


def test_micro_batches_keep_pictures_and_classes_together():
    """(x_0, c) from `draw` reach the network as (x_t, t, c), row by row, in pieces too.

    x_0 is c/10 everywhere, and one step of β = 1e-8 leaves that to be read off x_t.
    """
    seen = []

    class Conditional(Net):
        def forward(self, x_t, t, c):
            if self.training:
                read = (10 * x_t.mean((1, 2, 3))).round().long()
                seen.append((len(c), read.tolist() == c.tolist()))
            return super().forward(x_t, t)

    def classes(n, generator):
        c = torch.randint(10, (n,), generator=generator)
        return (c.double() / 10).view(-1, 1, 1, 1).expand(n, *SHAPE), c

    config = dataclasses.replace(CONFIG, micro_batch=4)
    fit(Schedule(torch.tensor([1e-8])), Conditional(), classes, config)
    assert seen == [(4, True), (2, True)] * 12


def test_bfloat16_is_float32_to_its_eight_bits():
    """Autocast: the losses of the first steps differ by some 2^-8, the weights' dtype
    and the loss's stay float32."""
    runs = []
    for bf16 in (False, True):
        records = []
        config = dataclasses.replace(CONFIG, bf16=bf16, log_every=1)
        net, _ = trained(config, Net(dtype=torch.float32), single, records.append)
        assert {p.dtype for p in net.parameters()} == {torch.float32}
        runs.append([r.loss for r in records])
    assert runs[0] != runs[1]
    assert runs[1] == pytest.approx(runs[0], rel=0.02)


@pytest.mark.slow
def test_compiled_is_the_same_and_leaves_no_trace(tmp_path):
    """torch.compile changes the numbers by rounding alone, and no name of a weight."""
    config = dataclasses.replace(CONFIG, compile=True)
    compiled, _ = trained(config, checkpoint=tmp_path / "c.pt")
    plain, _ = trained()
    assert_near(compiled, plain)
    names = torch.load(tmp_path / "c.pt", weights_only=True)["weights"]
    assert list(names) == list(plain.state_dict())


# What is told


def test_what_is_told_is_what_was_lost():
    """A record has L_simple over the steps since the last, whole and by tenths of t."""
    records, step = [], 0
    config = dataclasses.replace(CONFIG, steps=10, lr=0.0, save_every=8)
    net, _ = trained(config, data=ramp, log=records.append)
    assert [r.step for r in records] == [4, 8, 10]
    assert [r.saved for r in records] == [False, True, True]
    for r in records:
        asked = [batch(a) for a in net.asked[step : r.step]]
        t = torch.cat([t for _, t, _ in asked])
        still = copy.deepcopy(net).eval()
        with torch.no_grad():
            errors = [eps - still(x_t, t) for x_t, t, eps in asked]
        loss = torch.cat(errors).square().mean((1, 2, 3))
        assert r.loss == pytest.approx(float(loss.mean()), rel=1e-9)
        expected = by_tenth(S.T, t, loss)
        assert r.by_tenth == pytest.approx(expected, rel=1e-9, nan_ok=True)
        step = r.step


class HostReads(TorchDispatchMode):
    """Counts what makes the host wait for a GPU: numbers read, shapes that depend."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        waits = (
            *("_local_scalar_dense", "nonzero", "is_nonzero"),
            *("equal", "masked_select"),
        )
        self.n += any(f"aten.{name}." in str(function) for name in waits)
        return function(*args, **(kwargs or {}))


def test_no_step_makes_the_host_wait(monkeypatch):
    """Between two looks at the loss, no number is read back from the device.

    On a CPU the equations read t to check it, which on a GPU they leave to the device:
    that is out here.
    """
    for room in ("schedule", "train"):
        monkeypatch.setattr(f"tinyddpm.{room}.check_range", lambda *_: None)

    def reads(steps):
        config = dataclasses.replace(CONFIG, steps=steps, log_every=40, save_every=40)
        with HostReads() as mode:
            trained(config, net=Net(0.5))
        return mode.n

    assert reads(20) == reads(40) > 0


# What is refused, and when


@pytest.mark.parametrize("value", [1.01, -1.01, math.nan, math.inf])
def test_pictures_out_of_range_are_refused(value):
    """x_0 lies in [-1, 1]: a number outside, or nan, in the first batch is an error."""

    def wrong(n, generator):
        (x_0,) = ramp(n, generator)
        x_0[-1, -1, -1, -1] = value
        return (x_0,)

    with pytest.raises(ValueError, match=r"must lie in \[-1, 1\], got .+to_float"):
        trained(data=wrong)


def test_a_network_that_does_not_fit_leaves_nothing_behind(tmp_path):
    """Pictures that the network refuses, or answers in another shape, end the run
    before there is a folder or a checkpoint that would stand in the way.
    """

    class Flat(Net):
        def forward(self, x_t, t):
            return super().forward(x_t, t).flatten(1)

    odd = torch.zeros(CONFIG.batch, 2, 3, 2).double()
    unet = UNet(2, 4, (1, 2), (), 0.0).double()
    for net, data, said in (
        (unet, lambda n, g: (odd,), "multiples of 2.*3 x 2"),
        (Flat(), ramp, r"eps_theta.* shape of the batch, \(1, 2, 2, 2\), got \(1, 8\)"),
    ):
        with pytest.raises(ValueError, match=said):
            fit(S, net, data, CONFIG, None, tmp_path / "out" / "c.pt")
        assert list(tmp_path.iterdir()) == []


def test_pictures_of_another_kind_or_number_are_refused():
    """8-bit pictures, more than asked for, no tuple, or pictures whose size or range
    changes on the way: an error that says what was given and what is expected."""
    for batch, said in (
        ((torch.zeros((6, *SHAPE), dtype=torch.uint8),), "floating point.+to_float"),
        ((torch.zeros(7, *SHAPE),), "must give tensors of 6 items each, got 7"),
        ((torch.zeros(6, *SHAPE), torch.zeros(5)), "tensors of 6 items each, got 5"),
        (torch.zeros(6, *SHAPE), "got Tensor; a single tensor x_0 is given as"),
        ((), r"must give \(x_0,\) or \(x_0, c\), got tuple"),
    ):
        with pytest.raises(ValueError, match=said):
            trained(data=lambda n, g, batch=batch: batch)
    drawn = []

    def changing(n, generator):
        drawn.append(n)
        return (noise(n, generator)[0][..., : 2 - len(drawn) // 5],)

    said = r"gave pictures \(2, 2, 1\), and \(2, 2, 2\) in its first batch"
    with pytest.raises(ValueError, match=said):
        trained(data=changing)
    assert len(drawn) == 5
    drawn.clear()

    def growing(n, generator):
        drawn.append(n)
        return (noise(n, generator)[0] * (1 if len(drawn) < 5 else 127.5),)

    with pytest.raises(ValueError, match=r"lie in \[-1, 1\], got one with a number as"):
        trained(data=growing)
    assert len(drawn) == 2 + 4  # two to begin with, and then up to the next look


@pytest.mark.parametrize("saves", [True, False])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, saves):
    """The step and t where it began, the last good checkpoint, which is left alone."""
    known, _ = trained()
    bad_t = int(known.asked[9][1][0])
    step = next(i for i, (_, t) in enumerate(known.asked, 1) if i > 8 and bad_t in t)

    class Breaks(Net):
        def forward(self, x_t, t):
            bad = (t == bad_t) & (len(self.asked) >= step - 1)
            return (
                super().forward(x_t, t)
                + torch.where(bad, math.inf, 0)[:, None, None, None]
            )

    path = tmp_path / "c.pt"
    where = f"last good checkpoint is {path}, of step 8" if saves else "no checkpoint"
    message = (
        f"not finite at step {step}, t = {bad_t}; nothing of it was saved; .*{where}"
    )
    with pytest.raises(FloatingPointError, match=message):
        trained(net=Breaks(), checkpoint=path if saves else None)
    assert path.exists() == saves


def test_weights_that_are_not_finite_stop_the_run(tmp_path):
    """A gradient that overflows spoils the weights, the loss being finite still."""

    class Overflows(Net):
        def forward(self, x_t, t):
            y = super().forward(x_t, t)
            if len(self.asked) == 12:
                y.register_hook(lambda g: g * math.nan)
            return y

    path = tmp_path / "c.pt"
    with pytest.raises(
        FloatingPointError, match=r"weights .+ after step 12.+of step 8"
    ):
        trained(net=Overflows(), checkpoint=path)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] can't allocate memory"),
    ],
)
def test_out_of_memory_says_which_flag_to_lower(error):
    """The flag, its value now, and that the batch need not change."""

    def full(n, generator):
        raise error

    config = dataclasses.replace(CONFIG, micro_batch=3)
    message = "with 3 pictures at a time; give a lower --micro-batch.+batch stays 6"
    with pytest.raises(torch.OutOfMemoryError, match=message):
        trained(config, data=full)
    config = dataclasses.replace(CONFIG, micro_batch=1)
    message = "with one picture at a time; give a lower --batch, or a narrower"
    with pytest.raises(torch.OutOfMemoryError, match=message):
        trained(config, data=full)
    error = RuntimeError("something else")
    with pytest.raises(RuntimeError, match=r"^something else$"):
        trained(config, data=full)


def test_a_second_run_in_one_folder_is_refused_while_the_first_one_runs(tmp_path):
    """The one that is there goes on to its end; the other says so in a sentence and
    touches nothing, resumed or not; afterwards no lock is left."""
    refused = []

    def second(r):
        names = sorted(p.name for p in tmp_path.iterdir())
        for resume in (True, False):
            with pytest.raises(
                BlockingIOError, match=r"another run is writing .+c\.pt"
            ):
                run_of_a_unet(tmp_path, resume=resume)
        assert sorted(p.name for p in tmp_path.iterdir()) == names
        refused.append(r.step)

    config = TrainConfig(**{**vars(UNET_CONFIG), "steps": 2})
    run_of_a_unet(tmp_path, second, config=config)
    assert refused == [1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


IT_HOLDS = (
    "after {} steps the moving average will still hold {} of the initial weights; "
)
IT_HOLDS += "for so short a run give an ema of about {} instead of {}\n"
IT_WARMS = "the learning rate is warmed up over {} steps, but the run has {}; for so "
IT_WARMS += "short a run give a warmup of about {}\n"


@pytest.mark.parametrize(
    ("steps", "ema", "warmup", "told"),
    [
        (1000, 0.9999, 0, IT_HOLDS.format(1000, "90%", "0.995", "0.9999")),
        (3, 0.9, 0, IT_HOLDS.format(3, "73%", "0", "0.9")),
        (100, 0.9, 5000, IT_WARMS.format(5000, 100, 5)),
        (100, 0.9, 100, IT_WARMS.format(100, 100, 5)),
        (1, 0.05, 0, ""),  # 5 % exactly
        (100, 0.95, 99, ""),
        (800_000, 0.9999, 5000, ""),
    ],
)
def test_settings_of_a_longer_run_are_told(capfd, steps, ema, warmup, told):
    """ema^steps of the initial weights is left in the average: above 5 % it is said,
    with a decay that leaves e^-5; so is a warm-up that the run does not outlast."""
    say_what_is_short(TrainConfig(steps=steps, ema=ema, warmup=warmup))
    said = capfd.readouterr().err
    assert said == told
    for advised in re.findall(r"an ema of about ([\d.]+)", said):
        assert float(advised) ** steps < 0.05


@pytest.mark.parametrize(
    ("takes", "timed", "median"),
    [
        ([50, 50, 2, 3, 10], 5, 3),  # three at least, however long they take
        ([50, 50] + [1] * 198, 7, 1),  # and no more once four seconds are over
        ([50, 50] + [0.001] * 198, 200, 0.001),
    ],
)
def test_a_step_is_timed_on_a_copy_after_a_warm_up(monkeypatch, takes, timed, median):
    """The median of steps of the very run, without its warm-up, its average and the two
    first steps, which also prepare. The network is left as it was."""
    now, looked = [100.0], []
    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr("tinyddpm.workshop.run.time", clock)

    def steps(s, net, draw, config, log):
        assert (s, draw) == (S, noise)
        assert type(net) is Net
        assert net is not given_net
        assert same(net, given_net)
        assert config == dataclasses.replace(
            CONFIG, steps=200, log_every=1, save_every=1, warmup=0, ema=0.0
        )
        for seconds in takes:
            now[0] += seconds
            looked.append(seconds)
            log(None)

    monkeypatch.setattr("tinyddpm.workshop.run.fit", steps)
    given_net = Net()
    found = seconds_a_step(S, nn.DataParallel(given_net), noise, CONFIG)
    assert found == pytest.approx(median)
    assert len(looked) == timed


def test_masks_and_random_numbers_are_of_the_gpu_that_the_network_is_on(monkeypatch):
    """Its generator is seeded, with the very seed that a CPU has, and given back as it
    was; a CPU's run leaves all GPUs alone."""
    asked, gpu, cpu = [], torch.device("cuda", 1), torch.device("cpu")
    left_alone = torch.random.fork_rng
    monkeypatch.setattr(
        torch.random, "fork_rng", lambda x: asked.append(x) or ExitStack()
    )
    monkeypatch.setattr(torch.cuda, "device", lambda x: asked.append(x) or ExitStack())
    monkeypatch.setattr(torch.cuda, "manual_seed", asked.append)
    for device in (gpu, cpu):
        with rng_left_alone(device):
            pass
    assert asked == [[gpu], []]
    asked.clear()
    own = torch.Generator()
    seed_masks(1, 2, gpu, own)
    assert asked == [gpu, own.initial_seed()]
    with left_alone([]):
        seed_masks(1, 2, cpu, own)
        assert torch.default_generator.initial_seed() == asked[1]
    assert asked[2:] == []
