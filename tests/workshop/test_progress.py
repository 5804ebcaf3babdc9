"""What a script shows and keeps: a line a minute, letters, figures that are whole."""

import dataclasses
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
import torch

from tinyddpm.workshop.checkpoint import load_checkpoint
from tinyddpm.workshop.command import main
from tinyddpm.workshop.progress import Progress, errors_as_sentences, speak_any_terminal
from tinyddpm.workshop.state import Record

from .training_run import CONFIG, network, train

FEW = dataclasses.replace(CONFIG, steps=8, log_every=1, save_every=4)


def with_figures(folder, kill_at=None, after=False, resume=True):
    """Trains with a `Progress`; SIGKILL as it is told of a step, or has written it."""
    progress = Progress(folder, FEW, network())

    def log(r):
        if after:
            progress(r)
        if r.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if not after:
            progress(r)

    train(folder, log, resume, FEW)
    progress.close()


def rows(folder):
    return json.loads((folder / "figures.json").read_text())["losses"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    with_figures(folder := tmp_path_factory.mktemp("whole"))
    return rows(folder)


@pytest.mark.parametrize(("kill_at", "after"), [(4, False), (6, True), (8, False)])
def test_killed_and_resumed_every_row_is_there_once(
    tmp_path, uninterrupted, kill_at, after
):
    """What was told belongs to the checkpoint: killed just after its save and before
    the figures are written (4, 8), or between two saves, the rows of figures.json are
    those of the run that was left alone, each once, in order, to the last digit."""
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=with_figures, args=(tmp_path, kill_at, after))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with_figures(tmp_path)
    assert rows(tmp_path) == uninterrupted
    assert [row[0] for row in uninterrupted] == list(range(1, 9))
    found = load_checkpoint(tmp_path / "c.pt")
    assert found.told[:, 0].tolist() == list(range(1, 9))
    names = ["c.pt", "figures.json", "loss.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def test_leftovers_of_the_dead_go_with_the_next_file(tmp_path):
    """Of figures and plots, too; those of a process that lives stay."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = [tmp_path / f".{n}.{dead.pid}.part" for n in ("figures.json", "loss.png")]
    alive = tmp_path / f".figures.json.{os.getppid()}.part"
    for path in (*left, alive):
        path.touch()
    with_figures(tmp_path)
    assert [path.exists() for path in (*left, alive)] == [False, False, True]


@pytest.mark.parametrize("content", ["", '{"losses": [[1], "x"]}'])
def test_figures_that_are_spoilt_stop_no_run(tmp_path, uninterrupted, content):
    """Nothing is read from figures.json: whatever it holds, it is written anew."""
    with_figures(tmp_path)
    (tmp_path / "figures.json").write_text(content)
    with_figures(tmp_path)
    assert [row[:2] for row in rows(tmp_path)] == [row[:2] for row in uninterrupted]


def test_where_there_is_no_bar_a_line_a_minute_tells_rate_and_rest(
    tmp_path, capsys, monkeypatch
):
    """Soon the time of the whole; then, each time that a minute is over, the step, the
    loss, steps/s and the time left: here 10 steps take half a minute."""
    clock = [0.0]
    monkeypatch.setattr(
        "tinyddpm.workshop.progress.time.perf_counter", lambda: clock[0]
    )
    net, config = (
        network(),
        dataclasses.replace(CONFIG, steps=1000, log_every=10, save_every=1000),
    )
    progress = Progress(tmp_path, config, net, calls=(100, 8))
    lines, told = [], []
    for step in range(10, 81, 10):
        clock[0] += 30.0
        told.append([float(step), clock[0], 0.5, *[0.1] * 10])
        progress(Record(step, 0.5, [0.1] * 10, net, False, told))
        lines.append(capsys.readouterr().out)
    assert (
        "the 990 steps to come take about 50 min, and the samples about 3 min"
        in (lines[0])
    )
    spoke = [i for i, line in enumerate(lines) if "steps/s" in line]
    assert spoke == [2, 5]  # over 60 s after the start, and after the line before
    assert "step 30 of 1000: L_simple 0.5000, 0.333 steps/s, 48 min left" in lines[2]
    progress.bar.close()


def test_the_time_of_compiling_is_not_taken_for_that_of_a_step(
    tmp_path, capsys, monkeypatch
):
    """10 steps and 300 s of compiling, then 10 steps in 30 s: 980 to come in 49 min."""
    clock = [0.0]
    monkeypatch.setattr(
        "tinyddpm.workshop.progress.time.perf_counter", lambda: clock[0]
    )
    config = dataclasses.replace(
        CONFIG, steps=1000, log_every=10, save_every=1000, compile=True
    )
    progress, lines, told = Progress(tmp_path, config, network()), [], []
    for step, now in ((10, 330.0), (20, 360.0)):
        clock[0] = now
        told.append([float(step), now, 0.5, *[0.1] * 10])
        progress(Record(step, 0.5, [0.1] * 10, network(), False, told))
        lines.append(capsys.readouterr().out)
    assert "steps to come" not in lines[0]
    assert "the 980 steps to come take about 49 min" in lines[1]
    progress.bar.close()


def test_an_output_that_has_not_our_letters_shows_something(monkeypatch):
    """In cp1252, as Windows redirects, there is no σ: question marks, and no error."""
    bytes_written = io.BytesIO()
    stream = io.TextIOWrapper(bytes_written, encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", stream)
    speak_any_terminal()
    print("σ² = β, x̂_0, λ, ‖ε‖, é")
    with pytest.raises(SystemExit) as ended:
        main(["sample", "--help"])
    assert ended.value.code == 0
    stream.flush()
    said = bytes_written.getvalue().decode("cp1252")
    assert said.startswith("?² = ?, x?_0, ?, ???, é")
    assert "clamp x?_0 to [-1, 1]" in said


def test_a_script_speaks_any_terminal_too(monkeypatch):
    """Its sentences, of errors too, and a stderr that is not there at all."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))

    def fail():
        print("‖ε - ε_θ‖")
        raise ValueError("σ")

    with pytest.raises(SystemExit), errors_as_sentences():
        fail()


def test_a_run_without_a_stderr_is_a_run(tmp_path, monkeypatch):
    """Started with 2>&-, Python has none: no bar, and the same files."""
    monkeypatch.setattr(sys, "stderr", None)
    with_figures(tmp_path)
    assert len(rows(tmp_path)) == 8
    assert torch.is_tensor(load_checkpoint(tmp_path / "c.pt").told)
