"""A run that is killed at any moment and resumed is the run that was not."""

import dataclasses
import os
import random
import signal
import time

import pytest
import torch

from tinyddpm.schedule import linear_schedule
from tinyddpm.workshop.checkpoint import load_checkpoint
from tinyddpm.workshop.run import fit

from .training_run import (
    CONFIG,
    PLACES,
    STEPS,
    draw,
    in_a_process,
    network,
    part_of,
    train,
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The checkpoint at the end of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(folder)
    return load_checkpoint(folder / "c.pt")


def assert_same(found, expected):
    """Weights, moving average and optimiser, without a tolerance."""
    for part in ("step", "weights", "ema", "optimiser"):
        torch.testing.assert_close(
            getattr(found, part), getattr(expected, part), rtol=0, atol=0, msg=part
        )


def kill(folder, rng, place):
    """Starts or resumes the run, lets it take some steps, kills it there and then."""
    n = rng.randrange(1, 4)
    pause = None if place is None else (place, n)
    process, news = in_a_process(folder, resume=True, pause=pause)
    seen = []
    while (place not in seen) if place else (len(seen) < n):
        try:
            seen.append(news.recv())
        except EOFError:  # it came to its end before it came to the place
            break
    time.sleep(0 if place else rng.uniform(0, 0.05))  # some way into a step or a save
    process.kill()
    process.join()
    if place in seen:  # a write was under way, or just over
        part = part_of(folder, process.pid)
        assert part.exists() == (place != "just renamed"), place
    return seen, process.exitcode


def kill_and_resume(folder, kills, seed):
    """The run killed so many times and then let go; how many kills hit which place."""
    rng, hits = random.Random(seed), dict.fromkeys([None, *PLACES], 0)
    for i in range(kills):
        place = [None, *PLACES][i % (1 + len(PLACES))]
        seen, code = kill(folder, rng, place)
        hits[place] += code == -signal.SIGKILL and (place is None or place in seen)
        if STEPS in seen:
            break
    process, _ = in_a_process(folder, resume=True)
    process.join()
    assert process.exitcode == 0, (folder / "stderr").read_text()
    return hits


def test_killed_and_resumed_is_bit_for_bit_the_run_that_was_not(
    tmp_path, uninterrupted
):
    """SIGKILL between steps and at each place of a checkpoint's writing, then resume.

    At the end weights, moving average and optimiser are those of a run that was never
    killed, and no temporary file is left. Dropout is on: its masks come back too.
    """
    hits = kill_and_resume(tmp_path, kills=5, seed=0)
    assert all(hits.values()), hits
    assert_same(load_checkpoint(tmp_path / "c.pt"), uninterrupted)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.pt", "stderr"]


@pytest.mark.slow
def test_killed_many_times(tmp_path, uninterrupted):
    """As above, with 25 runs of 2 to 8 kills each."""
    total = dict.fromkeys([None, *PLACES], 0)
    for seed in range(1, 26):
        (folder := tmp_path / str(seed)).mkdir()
        hits = kill_and_resume(folder, kills=8, seed=seed)
        assert_same(load_checkpoint(folder / "c.pt"), uninterrupted)
        total = {place: total[place] + hits[place] for place in total}
    print(f"{sum(total.values())} kills: {total}")
    assert min(total.values()) >= 4, total


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_told_to_stop_it_finishes_the_step_saves_and_says_so(
    tmp_path, uninterrupted, sent, code
):
    """Exit code 128 + the signal's number, as a shell expects; nothing is lost.

    The checkpoint is of a step that is no multiple of save_every, and to go on from it
    leads to the same end.
    """
    process, news = in_a_process(tmp_path, resume=False)
    while news.recv() != 4:
        pass
    os.kill(process.pid, sent)
    process.join()
    said = (tmp_path / "stderr").read_text()
    step = load_checkpoint(tmp_path / "c.pt").step
    assert process.exitcode == code
    assert signal.Signals(sent).name in said
    assert f"stopped after step {step}" in said
    assert str(tmp_path / "c.pt") in said
    assert 4 <= step < STEPS
    train(tmp_path, resume=True)
    assert_same(load_checkpoint(tmp_path / "c.pt"), uninterrupted)


def test_signals_are_the_callers_again_afterwards(tmp_path):
    """`fit` handles SIGINT and SIGTERM only while it runs, and only if it can save."""
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    during = []

    def look(_):
        during.extend(signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM))

    config = dataclasses.replace(CONFIG, steps=1)
    train(tmp_path, look, config=config)
    assert not set(before) & set(during)
    assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    fit(linear_schedule(), network(), draw, config, look)
    assert during[2:] == before
