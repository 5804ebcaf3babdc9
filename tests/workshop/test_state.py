"""The state of a run, without a run: what is kept, resumed, looked at and told."""

import copy
import dataclasses
import io
import math
import shutil
import sys
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tinyddpm import linear_schedule
from tinyddpm.mlp import MLP
from tinyddpm.workshop import state as module
from tinyddpm.workshop.checkpoint import load_checkpoint, save_checkpoint
from tinyddpm.workshop.settings import TrainConfig
from tinyddpm.workshop.state import Record, State, by_tenth, tell

from ..helpers import same_weights
from ..strategies import seeds

S = linear_schedule(50)


def state_of(path=None, net=None, **settings):
    """A state before its first step; the average is not the network."""
    net = MLP((2,), 1, 1, 4) if net is None else net
    ema = copy.deepcopy(net)
    with torch.no_grad():
        for p in ema.parameters():
            p += 1
    config = TrainConfig(
        **{"steps": 7, "log_every": 2, "save_every": 4, "lr": 0.5} | settings
    )
    data = SimpleNamespace(shape=(2,), digest="cpu:1", refuse_outside=lambda: None)
    optimiser = torch.optim.Adam(net.parameters())
    return State(S, net, ema, optimiser, config, data, path)


def take(state, step, log=None, caught=(), loss=None):
    """A step whose two pictures, at t = 1 and t = 50, have the losses step, step + 1/2,
    and in which every gradient is 1."""
    for p in state.net.parameters():
        p.grad = torch.ones_like(p)
    state.optimiser.step()
    loss = torch.tensor([step, step + 0.5]) if loss is None else torch.tensor(loss)
    state.note(step, torch.tensor([1, 50]), loss)
    state.end_of_step(step, log, list(caught))


def row(step, seconds, *losses):
    """What is told of these losses at t = 1 and t = 50 by turns."""
    first, last = (sum(losses[i::2]) / len(losses[i::2]) for i in (0, 1))
    return [step, seconds, sum(losses) / len(losses), first, *[math.nan] * 8, last]


def same(a, b):
    """Whether two nests of numbers are equal, nan being nan."""
    return repr(a) == repr(b)


def said_by(call, *args, error=ValueError):
    """The whole sentence that it ends with."""
    with pytest.raises(error, match=r"\w") as refused:
        call(*args)
    return str(refused.value)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "c.pt"


@pytest.fixture
def clock(monkeypatch):
    """What the time is; its first item may be changed."""
    now = [100.0]
    told = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(module, "time", told)
    return now


@pytest.fixture
def second_of_two(monkeypatch):
    """This is process 1: nobody reads what it says, and it writes no file."""
    monkeypatch.setattr(module, "rank", lambda: 1)


# How a run begins


def test_a_run_begins_with_a_file_of_all_that_it_is(path, capfd):
    """Of step 0, so that a folder that cannot be written shows before any work."""
    state = state_of(path)
    state.begin(False, lambda record: pytest.fail("nothing was done"))
    found = load_checkpoint(path)
    assert (found.step, state.step, state.saved) == (0, 0, 0)
    assert found.config == dataclasses.asdict(state.config)
    assert found.network == (
        "MLP",
        {"shape": (2,), "width": 1, "depth": 1, "emb": 4},
    )
    assert (found.shape, found.data) == ((2,), "cpu:1")
    assert torch.equal(found.beta, S.beta[1:])
    kept = zip(found.weights.values(), found.ema.values(), strict=True)
    nets = zip(state.net.parameters(), state.ema.parameters(), strict=True)
    for pair, other in zip(kept, nets, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(pair, other, strict=True))
        assert not torch.equal(*pair)
    assert found.optimiser["state"] == {}
    assert found.told.shape == (0, 13)
    assert capfd.readouterr().err == ""


def test_a_run_without_a_file_keeps_none(tmp_path, monkeypatch, capfd):
    """And looks for none."""
    monkeypatch.chdir(tmp_path)
    state = state_of(steps=1, log_every=1)
    state.begin(True, None)
    take(state, 1)
    assert list(tmp_path.iterdir()) == []
    assert state.saved == -1
    assert capfd.readouterr().err == ""


def test_a_file_that_is_there_is_not_overwritten(path):
    """Unless the run is to go on from it."""
    path.parent.mkdir()
    path.write_bytes(b"anything")
    assert said_by(state_of(path).begin, False, None, error=FileExistsError) == (
        f"{path} is there already and is not overwritten; go on from it with --resume, "
        f"or give another folder"
    )
    assert path.read_bytes() == b"anything"


def test_to_go_on_from_nothing_is_told(path, capfd):
    """A name mistyped would start 800,000 steps anew without a word."""
    state_of(str(path)).begin(True, None)
    said = f"there is no {path} to go on from: starting at step 0\n"
    assert capfd.readouterr().err == said
    assert load_checkpoint(path).step == 0


@pytest.fixture
def stopped(path, clock):
    """A run that was saved after step 4, 7 s after it had begun, with its state."""
    state = state_of(path, log_every=1)
    state.begin(False, None)
    for step in range(1, 5):
        clock[0] = 100.0 + 2 * step - 1
        take(state, step)
    return state


def test_what_is_resumed_goes_on_where_it_was(path, stopped, clock, capfd):
    """Weights, average, moments, steps, what was told, and the time on it."""
    capfd.readouterr()
    clock[0] = 1000.0
    state = state_of(path)
    assert not same_weights(state.net, stopped.net)
    state.begin(True, lambda record: pytest.fail("it is not done"))
    assert capfd.readouterr().err == "going on from step 4 of 7\n"
    assert (state.step, state.saved) == (4, 4)
    assert same_weights(state.net, stopped.net)
    assert same_weights(state.ema, stopped.ema)
    one, other = (x.optimiser.state_dict()["state"] for x in (state, stopped))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert same(state.told, stopped.told)
    clock[0] += 3
    take(state, 5)
    take(state, 6)
    assert same(state.told[-1], row(6.0, 7.0 + 3.0, 5.0, 5.5, 6.0, 6.5))


def test_time_begins_with_the_run_where_nothing_was_told(path, clock):
    """Resumed at step 0: no seconds are taken over."""
    state_of(path).begin(False, None)
    clock[0] = 200.0
    state = state_of(path, log_every=1)
    state.begin(True, None)
    clock[0] = 205.0
    take(state, 1)
    assert state.told[0][1] == 5.0


@pytest.mark.parametrize("case", ["log", "no log", "process 1", "nothing was told"])
def test_a_run_that_is_done_tells_its_end_again(path, stopped, monkeypatch, case):
    """Who resumes it gets the last record, once, in process 0: the figures are made of
    it. A file of the first format does not hold what was told."""
    if case == "process 1":
        monkeypatch.setattr(module, "rank", lambda: 1)
    if case == "nothing was told":
        found = load_checkpoint(path)
        nothing = torch.empty(0, 13, dtype=torch.float64)
        save_checkpoint(path, dataclasses.replace(found, told=nothing))
    told, state = [], state_of(path, steps=4)
    state.begin(True, None if case == "no log" else told.append)
    if case != "log":
        assert told == []
        return
    (record,) = told
    assert record.ema is state.ema
    step, _, loss, *tenths = row(4, 7.0, 4.0, 4.5)
    expected = Record(step, loss, tenths, None, True, stopped.told)
    assert same(record._replace(ema=None), expected)


def test_a_file_past_the_steps_asked_for_is_refused(path, stopped):
    """It would be a run of fewer steps with the weights of more."""
    state = state_of(path, steps=3)
    assert said_by(state.begin, True, None) == (
        f"{path} is of step 4, past the 3 steps asked for; give --steps 4 or more"
    )


def test_what_may_change_is_told_and_what_may_not_is_refused(path, stopped, capfd):
    """A lower rate or another bound, as is advised after a run went wrong; but no
    setting that would make it another run."""
    capfd.readouterr()
    state_of(path, lr=0.25, max_norm=3.0, micro_batch=1).begin(True, None)
    assert capfd.readouterr().err == (
        "lr was 0.5 so far, and is 0.25 from here on\n"
        "max_norm was 1.0 so far, and is 3.0 from here on\n"
        "going on from step 4 of 7\n"
    )
    said = said_by(state_of(path, seed=1).begin, True, None)
    assert said.startswith(
        f"{path} is of another run, which differs in seed (there 0, here 1); "
    )


def test_moments_lie_in_memory_as_their_weights_do(path):
    """Fused Adam walks them side by side: in another order they would meet others."""
    torch.manual_seed(0)
    first = state_of(path, nn.Conv2d(3, 4, 3), steps=1)
    first.begin(False, None)
    take(first, 1)
    for p in (kept := first.optimiser.state).values():
        assert p["exp_avg"].is_contiguous()
    net = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    state = state_of(path, net, steps=2)
    state.begin(True, None)
    pairs = zip(state.optimiser.state.items(), kept.values(), strict=True)
    for (p, found), expected in pairs:
        for name in ("exp_avg", "exp_avg_sq"):
            assert found[name].stride() == p.stride()
            assert torch.equal(found[name], expected[name])


# Several processes, and the disk


def test_processes_that_find_different_steps_are_refused(path, stopped, monkeypatch):
    """Each has a folder of its own: one would go on, the other begin."""
    monkeypatch.setattr(module, "gather", lambda x: torch.tensor([*x.tolist(), 0]))
    assert said_by(state_of(path).begin, True, None) == (
        f"the processes found {path} at different steps, [4, 0] (0 where there is "
        f"none); give a folder that they all share"
    )


@pytest.mark.parametrize("seen", [True, False])
def test_a_first_file_that_some_do_not_see_is_refused(path, monkeypatch, seen):
    """Asked once all are here, so that it has been written: could a process not go on
    from it later, no step is taken."""
    done = []
    monkeypatch.setattr(module, "wait_for_all", lambda: done.append("wait"))

    def any_process(flag):
        done.append(flag)
        return not seen

    monkeypatch.setattr(module, "any_process", any_process)
    if seen:
        state_of(path).begin(False, None)
    else:
        assert said_by(state_of(path).begin, False, None) == (
            f"not every process sees {path}, which process 0 has just written; give a "
            f"folder that all machines share"
        )
    assert done == ["wait", False]


def test_process_1_asks_for_the_file_that_it_does_not_write(
    path, monkeypatch, second_of_two
):
    """What it does not see it says, whatever the others do."""
    asked = []
    monkeypatch.setattr(module, "any_process", lambda flag: bool(asked.append(flag)))
    (state := state_of(path)).begin(False, None)
    assert asked == [True]
    assert not path.exists()
    assert state.saved == 0  # as process 0 has it: their sentences are the same


def test_a_disk_too_small_for_later_files_shows_at_the_start(tmp_path, monkeypatch):
    """The first file has no moments of Adam, and a later one stands beside the one
    before: room for twice the weights, average and two moments, or no step is taken.
    The disk is that of the folder, or of the one that it will be made in."""
    asked = []

    def with_free(free):
        usage = namedtuple("usage", "total used free")(10**12, 0, free)
        monkeypatch.setattr(
            shutil, "disk_usage", lambda folder: asked.append(folder) or usage
        )

    path = tmp_path / "new" / "deep" / "c.pt"
    net = nn.Linear(10_000, 20_000, device="meta", dtype=torch.float64)
    need = 2 * 4 * 8 * (10_000 + 1) * 20_000
    with_free(need - 1)
    for free in (5000 * 2**20, need - 1):
        with_free(free)
        assert said_by(state_of(path, net).begin, False, None, error=OSError) == (
            f"{tmp_path} has {free / 2**20:,.0f} MiB free, but two checkpoints of this "
            f"network need 12,208; make room, or give another folder"
        )
    assert list(tmp_path.iterdir()) == []
    net = MLP((2,), 1, 1, 4)
    with_free(2 * 4 * 4 * sum(p.numel() for p in net.parameters()))
    state_of(path, net).begin(False, None)
    assert asked == [tmp_path] * 3


# What is done after a step


def test_what_is_due_is_done_and_nothing_else(path, clock):
    """Every second step is told, every fourth saved, and the last one both; of losses,
    those since the last look, whole and by tenths of t."""
    told, files, state = [], [], state_of(path)
    state.begin(False, None)
    for step in range(1, 8):
        clock[0] += 1
        take(state, step, told.append)
        files.append(load_checkpoint(path).step)
    assert files == [0, 0, 0, 4, 4, 4, 7]
    assert [(r.step, r.saved) for r in told] == [
        *((2, False), (4, True), (6, False), (7, True))
    ]
    rows = [row(float(n), float(n), n - 1, n - 0.5, n, n + 0.5) for n in (2, 4, 6)]
    rows.append(row(7.0, 7.0, 7.0, 7.5))
    for record, expected in zip(told, rows, strict=True):
        assert same([record.loss, *record.by_tenth], expected[2:])
        assert record.ema is state.ema
        assert record.told is state.told
    assert same(state.told, rows)
    assert same(load_checkpoint(path).told.tolist(), rows)


def test_to_keep_a_loss_is_not_to_look_at_it():
    """It stays on the device, without the graph that made it."""
    state, loss = state_of(), torch.ones(2, requires_grad=True) * 2
    state.note(3, torch.tensor([1, 2]), loss)
    ((step, t, kept),) = state.unread
    assert (step, t.tolist(), kept.tolist()) == (3, [1, 2], [2.0, 2.0])
    assert not kept.requires_grad


def test_only_process_0_tells(path, second_of_two, capfd):
    """All of them look at the losses, since all must stop where one is not finite."""
    state = state_of(log_every=1, save_every=1)
    take(state, 1, lambda record: pytest.fail("told by process 1"))
    assert len(state.told) == 1
    with pytest.raises(SystemExit):
        take(state, 2, caught=[15])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("own", [True, False])
def test_a_signal_ends_all_after_the_same_step(path, monkeypatch, capfd, own):
    """Saved, told, and left together, though nothing was due: with 128 + the signal's
    number, or SIGTERM's where another process got it. Without a file it is said."""
    done, asked, told = [], [], []

    def any_process(flag):
        asked.append(flag)
        return flag or not own

    (state := state_of(path)).begin(False, None)
    monkeypatch.setattr(module, "any_process", any_process)
    monkeypatch.setattr(
        module, "wait_for_all", lambda: done.append(capfd.readouterr().err)
    )
    with pytest.raises(SystemExit) as ended:
        take(state, 1, told.append, caught=[2] if own else [])
    assert ended.value.code == 128 + (2 if own else 15)
    assert asked == [own]
    assert [(r.step, r.saved) for r in told] == [(1, True)]
    assert load_checkpoint(path).step == 1
    assert done == [""]  # it is said once all are here
    said = f"stopped after step 1; the last good checkpoint is {path}, of step 1\n"
    assert capfd.readouterr().err == said
    with pytest.raises(SystemExit):
        take(state_of(), 1, caught=[2])
    assert capfd.readouterr().err == "stopped after step 1; there is no checkpoint\n"


def test_a_signal_at_the_last_step_is_late(path, capfd):
    """The run is done and ends as one that is done."""
    state = state_of(path, steps=1)
    take(state, 1, caught=[2])
    assert load_checkpoint(path).step == 1
    assert capfd.readouterr().err == ""


# What ends a run


def test_a_loss_that_is_not_finite_ends_the_run_where_it_began(path):
    """The first of the steps since the last look, with its t; nothing is saved."""
    (state := state_of(path)).begin(False, None)
    take(state, 1, loss=[1.0, math.inf])
    said = said_by(
        lambda: take(state, 2, loss=[math.nan, 1.0]), error=FloatingPointError
    )
    assert said == (
        f"the loss is not finite at step 1, t = 50; nothing of it was saved; the last "
        f"good checkpoint is {path}, of step 0"
    )
    assert load_checkpoint(path).step == 0


def test_a_loss_of_another_process_ends_all_with_one_sentence(monkeypatch):
    """They see the same losses by rank; the first step that went wrong is named, not
    the first process."""

    def gather(x):
        if x.dtype == torch.long:
            return torch.cat([x, torch.tensor([3, 4, 5, 6])])
        return torch.cat([x, torch.tensor([0.0, math.inf, math.nan, 0.0])])

    monkeypatch.setattr(module, "gather", gather)
    state = state_of()
    take(state, 1)
    said = said_by(
        lambda: take(state, 2, loss=[math.nan, 1.0]), error=FloatingPointError
    )
    assert said == (
        "the loss is not finite at step 1, t = 4; nothing of it was saved; there is no "
        "checkpoint"
    )


def test_weights_that_are_not_finite_end_the_run(path):
    """A gradient that overflows spoils them, the losses being finite still."""
    state = state_of(path)
    with torch.no_grad():
        next(state.net.parameters()).view(-1)[-1] = math.inf
    take(state, 1)
    assert said_by(lambda: take(state, 2), error=FloatingPointError) == (
        "the weights are not finite after step 2, though the losses up to it were; "
        "nothing of it was saved; there is no checkpoint"
    )


def test_pictures_that_are_wrong_end_the_run_before_their_loss_is_told():
    """What is seen of them at the next look is the cause; a loss is its consequence."""
    state = state_of(log_every=1, save_every=1)

    def refuse():
        raise ValueError("pictures must lie in [-1, 1]")

    state.data.refuse_outside = refuse
    said = said_by(lambda: take(state, 1, loss=[math.nan, 1.0]))
    assert said == "pictures must lie in [-1, 1]"


def test_a_file_that_cannot_be_written_ends_the_run(path, monkeypatch):
    """At first there is nothing to go on from; later there is, and it is named."""
    (state := state_of(path)).begin(False, None)
    full = OSError("no room")

    def refuse(*_):
        raise full

    monkeypatch.setattr(module, "save_checkpoint", refuse)
    said = said_by(lambda: take(state, 1, caught=[2]), error=OSError)
    assert said == (
        f"the checkpoint of step 1 could not be written (no room); the last good "
        f"checkpoint is {path}, of step 0; make room, and go on with --resume"
    )
    path.unlink()
    assert said_by(state_of(path).begin, False, None, error=OSError) == (
        "the checkpoint of step 0 could not be written (no room); give a folder that "
        "can be written and has room"
    )


# What is told


@given(st.integers(1, 60), st.lists(st.integers(0, 10**6), min_size=1), seeds)
def test_tenths_part_the_steps(T, draws, seed):
    """Each t lies in one tenth: weighted by their counts, tenths give back the mean.

    A tenth without a step is nan; tenths are of T/10 steps to within one.
    """
    t = torch.tensor(draws) % T + 1
    values = torch.rand(t.shape, generator=torch.Generator().manual_seed(seed)).double()
    counts = by_tenth(T, t, torch.ones(t.shape))
    tenths = by_tenth(T, t, values)
    inside = [
        [i * T <= 10 * (u - 1) < (i + 1) * T for u in t.tolist()] for i in range(10)
    ]
    total = 0.0
    for value, one, members in zip(tenths, counts, inside, strict=True):
        assert math.isnan(value) == math.isnan(one) == (not any(members))
        total += 0 if math.isnan(value) else value * sum(members)
    assert total / len(t) == pytest.approx(float(values.mean()), rel=1e-12)


@pytest.mark.parametrize("error", [OSError, ValueError, None])
def test_a_run_goes_on_if_nobody_can_read_what_it_says(monkeypatch, error):
    """A terminal that is gone is an OSError, a closed file a ValueError."""

    class Gone(io.StringIO):
        def write(self, text):
            if error is not None:
                raise error
            return super().write(text)

    monkeypatch.setattr(sys, "stderr", gone := Gone())
    tell("something")
    assert gone.getvalue() == ("" if error else "something\n")
