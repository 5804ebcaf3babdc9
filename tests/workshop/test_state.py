"""The file of a run: one run at a time, room on the disk, one folder for all."""

import re
import shutil
from collections import namedtuple

import pytest

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
