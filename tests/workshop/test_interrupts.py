"""A run that is told to stop by any signal of a batch system saves first."""

import dataclasses
import os
import signal
import threading

import pytest

from tinyddpm.workshop.checkpoint import load_checkpoint
from tinyddpm.workshop.interrupts import signals

from .training_run import CONFIG, train

LONG = dataclasses.replace(CONFIG, steps=50, save_every=50)
OTHERS = [signal.SIGHUP, signal.SIGUSR1]


@pytest.fixture
def handlers():
    """What these signals do, as it was before the test."""
    before = {number: signal.getsignal(number) for number in OTHERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number, at):
    return lambda r: os.kill(os.getpid(), number) if r.step == at else None


@pytest.mark.parametrize("number", OTHERS)
def test_a_lost_terminal_and_a_batch_system_are_heard(
    tmp_path, handlers, number, capfd
):
    """SIGHUP and SIGUSR1 are as SIGTERM where nothing else is to be done with them:
    the step is finished, the run saved, the status 128 + the signal's number. After
    it they do again what they did."""
    signal.signal(number, signal.SIG_DFL)
    with pytest.raises(SystemExit) as ended:
        train(tmp_path, send(number, 2), config=LONG)
    assert ended.value.code == 128 + number
    assert load_checkpoint(tmp_path / "c.pt").step == 3
    assert f"{number.name}: finishing the step and saving" in capfd.readouterr().err
    assert signal.getsignal(number) == signal.SIG_DFL


@pytest.mark.parametrize("number", OTHERS)
def test_what_the_caller_ignores_or_handles_stays_the_callers(
    tmp_path, handlers, number
):
    """nohup ignores SIGHUP, a library may use SIGUSR1: the run goes on to its end."""
    short = dataclasses.replace(LONG, steps=4, save_every=4)
    heard = []
    for i, own in enumerate((signal.SIG_IGN, lambda *_: heard.append(1))):
        signal.signal(number, own)
        train(folder := tmp_path / str(i), send(number, 2), config=short)
        assert load_checkpoint(folder / "c.pt").step == 4
        assert signal.getsignal(number) == own
    assert heard == [1]


def test_a_closed_stderr_costs_no_checkpoint(tmp_path, monkeypatch):
    """A terminal that is gone cannot be written to: the run is saved all the same."""

    def gone(*_):
        raise OSError(5, os.strerror(5))

    class Gone:
        write = flush = gone

    monkeypatch.setattr("tinyddpm.workshop.interrupts.os.write", gone)
    monkeypatch.setattr("sys.stderr", Gone())
    with pytest.raises(SystemExit) as ended:
        train(tmp_path, send(signal.SIGTERM, 2), config=LONG)
    assert ended.value.code == 143
    assert load_checkpoint(tmp_path / "c.pt").step == 3


@pytest.mark.parametrize("world", [1, 2])
def test_a_second_signal_ends_a_run_of_one_process_at_once(monkeypatch, world):
    """The first is noted, and then does what it did before: SIGINT interrupts. Where
    several train together all are noted, since torchrun sends one of its own."""
    monkeypatch.setattr("tinyddpm.workshop.interrupts.world", lambda: world)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # "&" ignores it
    try:
        with signals(True) as caught:
            os.kill(os.getpid(), signal.SIGINT)
            assert caught == [signal.SIGINT]
            if world == 1:
                with pytest.raises(KeyboardInterrupt):
                    os.kill(os.getpid(), signal.SIGINT)
            else:
                os.kill(os.getpid(), signal.SIGINT)
        assert caught == [signal.SIGINT] * world
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_signals_are_left_alone():
    """Python lets the main thread alone handle them: a run elsewhere goes without."""
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run():
        with signals(True) as caught:
            seen.append((caught, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [([], before)]
