"""The file of a run: one run at a time, room on the disk, one folder for all."""

import os
import re
import shutil
import sys
from collections import namedtuple

import pytest
import torch
import torch.distributed as dist

from tinyddpm.workshop.processes import join
from tinyddpm.workshop.run import say_what_is_short
from tinyddpm.workshop.settings import TrainConfig

from .training_run import CONFIG, network, train


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
                train(tmp_path, resume=resume)
        assert sorted(p.name for p in tmp_path.iterdir()) == names
        refused.append(r.step)

    config = TrainConfig(**{**vars(CONFIG), "steps": 2})
    train(tmp_path, second, config=config)
    assert refused == [1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_a_disk_too_small_for_later_checkpoints_shows_at_the_start(
    tmp_path, monkeypatch
):
    """The first file has no moments of Adam, and a later one stands beside the one
    before: room for twice the weights, average and two moments, or no step is taken."""
    need = 2 * 4 * sum(4 * p.numel() for p in network().parameters())
    usage = namedtuple("usage", "total used free")
    asked = []

    def with_free(free):
        def disk_usage(path):
            asked.append(str(path))
            return usage(10**12, 0, free)

        monkeypatch.setattr(shutil, "disk_usage", disk_usage)

    with_free(need - 1)
    with pytest.raises(OSError, match="MiB free, but two checkpoints of this network"):
        train(tmp_path / "new", lambda r: pytest.fail("a step was taken"))
    assert not (tmp_path / "new" / "c.pt").exists()
    with_free(need)
    train(tmp_path / "new", config=TrainConfig(**{**vars(CONFIG), "steps": 1}))
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("steps", "ema", "warmup", "told"),
    [
        (1000, 0.9999, 0, ["will still hold 90% of the initial weights", "0.995 "]),
        (100, 0.9, 5000, ["warmed up over 5000 steps, but the run has 100", "about 5"]),
        (100, 0.95, 99, []),
        (800_000, 0.9999, 5000, []),
    ],
)
def test_settings_of_a_longer_run_are_told(capfd, steps, ema, warmup, told):
    """ema^steps of the initial weights is left in the average: above 5 % it is said,
    with a decay that leaves e^-5; so is a warm-up that the run does not outlast."""
    say_what_is_short(TrainConfig(steps=steps, ema=ema, warmup=warmup))
    said = capfd.readouterr().err
    assert len(said.splitlines()) == (1 if told else 0)
    for part in told:
        assert part in said
    for advised in re.findall(r"an ema of about ([\d.]+)", said):
        assert float(advised) ** steps < 0.05


@pytest.mark.parametrize(
    ("machines", "store", "said"),
    [
        (2, "True", "started 2 machines and is to restart .+ give --max-restarts=0"),
        (1, "False", "unset TORCH_DISABLE_SHARE_RDZV_TCP_STORE, or give --max-rest"),
    ],
)
def test_restarts_that_would_not_work_are_refused_at_the_start(
    tmp_path, monkeypatch, machines, store, said
):
    """Each machine counts its restarts for itself and would wait for the others for
    ever; without torchrun's store it is forgotten whose the checkpoint is."""
    for name, value in {
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_MAX_RESTARTS": "2",
        "TORCHELASTIC_USE_AGENT_STORE": store,
        "GROUP_WORLD_SIZE": str(machines),
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=said):
        join(torch.device("cpu"), tmp_path / "c.pt")
    assert os.listdir(tmp_path) == []


def test_a_machine_that_joins_a_running_job_is_told_to_start_it_anew(
    tmp_path, monkeypatch
):
    """--nnodes=1:2: torchrun starts all processes again in the same attempt, where the
    addresses of the first ones are still in its store. In the next attempt they are
    not, so that a restart after a failure is no reason to refuse."""
    store = dist.HashStore()
    module = sys.modules["torch.distributed.rendezvous"]  # a function has its name
    monkeypatch.setattr(module, "rendezvous", lambda _: iter([(store, 0, 1)]))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")

    def joins(attempt):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        join(torch.device("cpu"), tmp_path / "c.pt")
        dist.destroy_process_group()

    joins("0")
    with pytest.raises(ValueError, match=r"a machine joined .+ --nnodes=1, and with"):
        joins("0")
    joins("1")
