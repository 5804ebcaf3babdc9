"""A checkpoint is whole or not there, and what does not fit is refused by name."""

import dataclasses
import hashlib
import io
import resource
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from tinyddpm import linear_schedule
from tinyddpm.schedule import Schedule
from tinyddpm.workshop.checkpoint import (
    Checkpoint,
    load_checkpoint,
    rebuild,
    save_checkpoint,
)
from tinyddpm.workshop.run import fit
from tinyddpm.workshop.settings import TrainConfig

from .training_run import CONFIG, SHAPE, draw, network, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a checkpoint of step 2, and that file's bytes."""
    folder = tmp_path_factory.mktemp("trained")
    train(folder, config=dataclasses.replace(CONFIG, steps=2))
    return folder


@pytest.fixture
def path(folder, tmp_path):
    """A copy of that checkpoint, to be spoiled."""
    return shutil.copy(folder / "c.pt", tmp_path / "c.pt")


def assert_equal(found: Checkpoint, expected: Checkpoint) -> None:
    """To the bit; of what was told, all but the seconds."""
    for name in ("beta", "weights", "ema", "optimiser"):
        parts = (getattr(x, name) for x in (found, expected))
        torch.testing.assert_close(*parts, rtol=0, atol=0)
    for name in ("config", "network", "shape", "step", "data"):
        assert getattr(found, name) == getattr(expected, name)
    told = [x.told[:, torch.arange(13) != 1] for x in (found, expected)]
    torch.testing.assert_close(*told, rtol=0, atol=0, equal_nan=True)


def test_what_is_saved_is_read(path, tmp_path):
    """save, load: the identity, to the bit; and the file is torch's own, too."""
    first = load_checkpoint(path)
    save_checkpoint(tmp_path / "again.pt", first)
    assert_equal(load_checkpoint(tmp_path / "again.pt"), first)
    assert torch.load(path, weights_only=True)["step"] == 2


def test_it_holds_the_run(path):
    """Step, settings, schedule, shape and names of the weights, without a prefix."""
    found, net = load_checkpoint(path), network()
    assert (found.step, found.shape) == (2, SHAPE)
    assert found.config == dataclasses.asdict(dataclasses.replace(CONFIG, steps=2))
    assert torch.equal(Schedule(found.beta).alpha_bar, linear_schedule().alpha_bar)
    names = list(net.state_dict())
    assert list(found.weights) == list(found.ema) == names
    assert len(found.optimiser["state"]) == len(list(net.parameters()))


def with_sum(content: bytes) -> bytes:
    return content + hashlib.blake2b(content, digest_size=32).digest()


def as_format_1(path):
    """The file as the version before this one wrote it: there max_norm was clip."""
    saved, buffer = torch.load(path, weights_only=True), io.BytesIO()
    settings = dict(saved["config"])
    settings["clip"] = settings.pop("max_norm")
    first = {"format": "tinyddpm checkpoint 1", "config": settings}
    kept = {name: x for name, x in saved.items() if name not in ("told", "data")}
    torch.save(kept | first, buffer)
    path.write_bytes(with_sum(buffer.getvalue()))


def test_a_checkpoint_of_format_1_is_read_sampled_and_resumed(path, tmp_path):
    """The network that comes back and the run that goes on are those of the same file
    in today's format. It does not hold what was told, nor whose data they were."""
    today = load_checkpoint(path)
    as_format_1(path)
    nothing = {"told": torch.empty(0, 13, dtype=torch.float64), "data": None}
    assert_equal(load_checkpoint(path), dataclasses.replace(today, **nothing))
    x, t = torch.ones(2, *SHAPE), torch.tensor([1, 1000])
    nets = [rebuild(found) for found in (load_checkpoint(path), today)]
    assert torch.equal(*(net(x, t) for net in nets))
    longer = dataclasses.replace(CONFIG, steps=4)
    train(path.parent, resume=True, config=longer)
    train(tmp_path / "whole", config=longer)
    whole = load_checkpoint(tmp_path / "whole" / "c.pt")
    later = dataclasses.replace(whole, told=whole.told[2:])
    assert_equal(load_checkpoint(path), later)
    as_format_1(path)
    other = dataclasses.replace(longer, seed=2)
    with pytest.raises(ValueError, match=r"differs in seed \(there 0, here 2\); go"):
        train(path.parent, resume=True, config=other)


# What a save accepts, a load accepts


NUMBERS = {
    "NumPy": (np.int64, np.float64),
    "NumPy, narrow": (np.int32, np.float32),
    "torch": (torch.tensor, torch.tensor),
    "whole floats": (float, float),
    "NumPy, no axis": (np.array, np.array),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_settings_of_other_libraries_numbers_make_the_same_run(kind, tmp_path):
    """`for lr in np.logspace(...)` is how sweeps are written: the file is the one that
    plain numbers give, to the bit, is read, and goes on. (0.25 and the like: numbers
    that float32 has, too.)"""
    whole, real = NUMBERS[kind]
    plain = TrainConfig(
        steps=3, batch=4, lr=0.25, ema=0.5, seed=3, log_every=1, save_every=3
    )
    foreign = TrainConfig(
        steps=whole(3),
        batch=whole(4),
        lr=real(0.25),
        ema=real(0.5),
        seed=whole(3),
        log_every=whole(1),
        save_every=whole(3),
    )
    assert foreign == plain
    for field in dataclasses.fields(TrainConfig):
        assert type(getattr(foreign, field.name)) is type(getattr(plain, field.name))
    for name, config in (("plain", plain), ("foreign", foreign)):
        train(tmp_path / name, config=config)
    found = [load_checkpoint(tmp_path / name / "c.pt") for name in ("plain", "foreign")]
    assert_equal(*found)
    train(tmp_path / "foreign", resume=True, config=foreign)


@contextmanager
def room_for(n_bytes: int):
    """No file may grow beyond this: what a full disk does to the one being written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_last_good_checkpoint_whole(path):
    """The write fails with the step, the cause and the remedy; the file is as it was.

    No half of a file lies about afterwards.
    """
    before, resumed = path.read_bytes(), dataclasses.replace(CONFIG, steps=9)

    with (
        room_for(len(before) // 2),
        pytest.raises(OSError, match=r"of step 3 could not.+of step 2; make"),
    ):
        train(path.parent, resume=True, config=resumed)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    train(path.parent, resume=True, config=resumed)
    assert load_checkpoint(path).step == 9


def test_a_disk_too_small_shows_before_the_first_step(tmp_path):
    """A run that could never save stops at once, and says so."""
    with (
        room_for(1000),
        pytest.raises(OSError, match=r"of step 0 could not.+c\.pt.+has room"),
    ):
        train(tmp_path, lambda r: pytest.fail("a step was taken"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_vanishes_is_made_again(tmp_path):
    """Nothing of the run is lost if its folder is: the next checkpoint is all of it."""
    folder, config = tmp_path / "run", dataclasses.replace(CONFIG, steps=8)
    tell = lambda r: shutil.rmtree(folder) if r.step == 5 else None  # noqa: E731
    train(folder, tell, config=config)
    assert load_checkpoint(folder / "c.pt").step == 8


def test_a_folder_that_cannot_be_written_shows_before_the_first_step(tmp_path):
    """A file where the folder should be: an error that names it, before any work."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file.+give a folder that can be written"):
        train(tmp_path / "file", lambda r: pytest.fail("a step was taken"))


def test_a_checkpoint_is_never_overwritten_unasked(path):
    """Without resume, a file that is there, good or bad, is refused and left alone."""
    for content in (path.read_bytes(), b"something else"):
        path.write_bytes(content)
        with pytest.raises(FileExistsError, match=r"not overwritten.+--resume"):
            train(path.parent)
        assert path.read_bytes() == content


def test_resuming_says_where_it_begins(path, tmp_path, capfd):
    """A name mistyped would start 800,000 steps from nothing without a word."""
    longer = dataclasses.replace(CONFIG, steps=4)
    train(tmp_path / "elsewhere", resume=True, config=longer)
    assert "elsewhere/c.pt to go on from: starting at step 0" in capfd.readouterr().err
    train(path.parent, resume=True, config=longer)
    assert "going on from step 2 of 4" in capfd.readouterr().err


def test_a_damaged_checkpoint_is_refused_and_left_alone(path):
    """With resume, a file that cannot be read is an error, not a fresh start."""
    path.write_bytes(damaged := path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        train(path.parent, resume=True)
    assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 1),
        ("batch", 8),
        ("ema", 0.5),
        ("warmup", 1),
        ("lr_end", 0.0),
        ("bf16", True),
    ],
)
def test_another_config_is_refused_by_the_names_that_differ(path, field, value):
    """A setting that would change the run's numbers cannot change on the way."""
    before, now = path.read_bytes(), dataclasses.replace(CONFIG, **{field: value})
    there = getattr(CONFIG, field)
    # with lr_end the steps must agree as well; the file is of fewer
    steps = r", steps \(.+\)" if field == "lr_end" else ""
    message = rf"differs in {field} \(there {there}, here {value}\){steps}; go on with"
    with pytest.raises(ValueError, match=message):
        train(path.parent, resume=True, config=now)
    assert path.read_bytes() == before


def test_another_rate_or_bound_may_follow_and_is_told(path, capfd):
    """What is advised after a run went wrong, a lower lr, is possible: the run goes on
    with it and says so, and the file holds what is used from there on."""
    now = dataclasses.replace(CONFIG, steps=4, lr=1e-5, max_norm=0.5)
    train(path.parent, resume=True, config=now)
    said = capfd.readouterr().err
    assert f"lr was {CONFIG.lr} so far, and is 1e-05 from here on" in said
    assert "max_norm was 1.0 so far, and is 0.5 from here on" in said
    found = load_checkpoint(path)
    assert (found.step, found.config["lr"], found.config["max_norm"]) == (4, 1e-5, 0.5)


def test_steps_may_change_unless_the_rate_depends_on_them(path, tmp_path):
    """More steps are more of the same; with lr_end they bend the rate's whole way."""
    longer = dataclasses.replace(CONFIG, steps=3, save_every=1, micro_batch=2)
    train(path.parent, resume=True, config=longer)
    assert load_checkpoint(path).step == 3
    with pytest.raises(ValueError, match=r"past the 2 steps.+give --steps 3 or more"):
        train(path.parent, resume=True, config=dataclasses.replace(CONFIG, steps=2))
    bent = dataclasses.replace(CONFIG, steps=2, lr_end=0.0)
    train(tmp_path / "bent", config=bent)
    with pytest.raises(ValueError, match=r"differs in steps \(there 2, here 3\)"):
        train(tmp_path / "bent", resume=True, config=dataclasses.replace(bent, steps=3))


def test_the_order_in_memory_may_change(tmp_path):
    """Resumed with the other order of axes, the weights are the same to rounding.

    Adam's averages must follow: walked in another order they would meet other weights,
    and the next step would be off by some of its size, 2e-4. Rounding is 1e-7 of that.
    Without dropout, whose masks go by the order in memory.
    """
    one, other = (
        dataclasses.replace(CONFIG, steps=4, channels_last=last)
        for last in (False, True)
    )
    for name, config, resume in (
        ("part", dataclasses.replace(one, steps=2), False),
        ("part", other, True),
        ("whole", one, False),
    ):
        file = tmp_path / name / "c.pt"
        fit(linear_schedule(), network(0.0), draw, config, None, file, resume)
    found, whole = (
        load_checkpoint(tmp_path / name / "c.pt") for name in ("part", "whole")
    )
    for part in ("weights", "ema"):
        torch.testing.assert_close(
            getattr(found, part), getattr(whole, part), rtol=0, atol=1e-6
        )


def test_another_network_schedule_or_picture_size_is_refused(path):
    """What is not in the settings is compared too, and named."""

    def small(n, generator):
        return (draw(n, generator)[0][..., :2],)

    class Other(nn.Linear):
        def forward(self, x, t):
            return super().forward(x)

    def other(n, generator):
        return (draw(n, generator)[0].roll(1, 3),)

    for s, net, data, named in [
        (linear_schedule(500), network(), draw, "differs in the schedule's beta;"),
        (linear_schedule(), network(0.1), draw, "differs in the network.+0.2.+0.1"),
        (linear_schedule(), network(), other, "differs in the data: a first batch"),
        (linear_schedule(), network(), small, r"the shape .+4, 4.+here \(2, 4, 2\)"),
        (linear_schedule(), Other(4, 4), draw, "names or shapes of the weights"),
    ]:
        with pytest.raises(ValueError, match=named):
            fit(s, net, data, CONFIG, None, path, resume=True)
