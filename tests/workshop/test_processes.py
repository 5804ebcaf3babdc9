"""What several processes agree on, told in one: `dist` is replaced by who would answer.

Processes that really train together are in test_distributed.py.
"""

import sys

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from tinyddpm.workshop import processes
from tinyddpm.workshop.processes import (
    any_process,
    gather,
    join,
    parts,
    rank,
    refuse_several,
    wait_for_all,
    world,
)


@given(st.integers(1, 4), st.integers(1, 9), st.none() | st.integers(1, 12))
def test_the_pieces_cover_the_batch_once(count, share, micro_batch):
    """Over all processes the pieces are the batch in its order, none larger than asked
    for; each process has one share of it, and a batch that leaves a rest is refused.
    """
    batch, found = count * share, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tinyddpm.workshop.processes.world", lambda: count)
        for rank in range(count):
            patch.setattr("tinyddpm.workshop.processes.rank", lambda rank=rank: rank)
            pieces = [range(batch)[piece] for piece in parts(batch, micro_batch)]
            assert all(0 < len(piece) <= (micro_batch or share) for piece in pieces)
            assert sum(map(len, pieces)) == share
            found += [i for piece in pieces for i in piece]
        if count > 1:
            with pytest.raises(ValueError, match="a batch of") as refused:
                parts(batch + 1, micro_batch)
            assert str(refused.value) == (
                f"a batch of {batch + 1} cannot be split evenly over {count} "
                f"processes; give a --batch that is a multiple of {count}"
            )
    assert found == list(range(batch))


def test_a_single_process_has_nobody_to_ask(monkeypatch):
    """It is number 0 of 1, and its own numbers are all there are: no call is made."""
    for name in ("all_gather", "all_reduce"):
        monkeypatch.setattr(dist, name, pytest.fail)
    x = torch.arange(3)
    assert (rank(), world()) == (0, 1)
    assert gather(x) is x
    assert [any_process(flag) for flag in (True, False)] == [True, False]
    wait_for_all()


def test_each_process_knows_its_number_and_theirs(monkeypatch):
    """As the group that they are in says it."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 3)
    monkeypatch.setattr(dist, "get_world_size", lambda: 5)
    assert (rank(), world()) == (3, 5)


@given(st.lists(st.booleans(), min_size=2, max_size=4), st.data())
def test_what_one_process_knows_all_know(flags, data):
    """A flag is set if it is in any of them, and numbers come together by rank, of the
    dtype that they had."""
    me = data.draw(st.integers(0, len(flags) - 1))

    def all_gather(shares, x):
        assert len(shares) == len(flags)
        for i, share in enumerate(shares):
            share.copy_(x + i - me)

    def all_reduce(x, op=dist.ReduceOp.SUM):
        assert op == dist.ReduceOp.SUM
        assert float(x) == flags[me]
        x.fill_(sum(flags))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "world", lambda: len(flags))
        patch.setattr(dist, "all_gather", all_gather)
        patch.setattr(dist, "all_reduce", all_reduce)
        assert any_process(flags[me]) == any(flags)
        for dtype in (torch.long, torch.float64):
            found = gather(torch.tensor([10 + me, 20 + me], dtype=dtype))
            expected = [n for i in range(len(flags)) for n in (10 + i, 20 + i)]
            assert (found.tolist(), found.dtype) == (expected, dtype)


def test_to_wait_is_to_ask_all(monkeypatch):
    """Nobody goes on before every process has answered: a call that each must make."""
    asked = []
    monkeypatch.setattr(processes, "world", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", asked.append)
    wait_for_all()
    assert len(asked) == 1


@pytest.mark.parametrize("count", [None, "1", "2", "8"])
def test_a_script_of_one_process_refuses_to_be_several(monkeypatch, count):
    """They would all write the same files; the sentence names the script for it."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if count is not None:
        monkeypatch.setenv("WORLD_SIZE", count)
    if count in (None, "1"):
        return refuse_several()
    with pytest.raises(ValueError, match="torchrun") as refused:
        refuse_several()
    assert str(refused.value) == (
        "torchrun started several processes, but this script trains in one; "
        "train_cifar.py is the one for torchrun"
    )


@pytest.fixture
def joined(monkeypatch, tmp_path):
    """Joins under what torchrun sets, as process 1 of 3, and says what came of it: the
    device, whether to resume, and what the group was told. Nothing is connected."""
    store, told = dist.HashStore(), []
    module = sys.modules["torch.distributed.rendezvous"]  # a function has its name

    def rendezvous(url):
        assert url == "env://"  # what torchrun sets
        return iter([(store, 1, 3)])

    def begin(backend, **settings):
        settings["store"].set("met", "yes")
        told.append((backend, settings["rank"], settings["world_size"]))

    monkeypatch.setattr(module, "rendezvous", rendezvous)
    monkeypatch.setattr(dist, "init_process_group", begin)

    def join_with(device="cpu", attempt=0, **environment):
        with monkeypatch.context() as patch:
            patch.setenv("TORCHELASTIC_RUN_ID", "none")
            patch.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))
            for name, value in environment.items():
                patch.setenv(name, str(value))
            found = join(torch.device(device), tmp_path / "c.pt")
        return *found, *told.pop()

    join_with.store = store
    return join_with


def test_who_was_not_started_by_torchrun_joins_nobody(tmp_path, monkeypatch):
    """The device stays the one asked for; a checkpoint that is there is not taken."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    (tmp_path / "c.pt").touch()
    device = torch.device("meta")
    assert join(device, tmp_path / "c.pt") == (device, False)
    assert not dist.is_initialized()


def test_each_attempt_meets_in_a_place_of_its_own(joined):
    """The store outlives a restart, and so would the addresses of the dead."""
    for attempt in (0, 1):
        assert joined(attempt=attempt)[2:] == ("gloo", 1, 3)
        assert joined.store.get(f"attempt {attempt}/met") == b"yes"


def test_each_process_has_a_gpu_of_its_own(joined, monkeypatch):
    """The one of its number on this machine, which becomes the current one; hosts talk
    over gloo, GPUs over nccl. Where there are too few, the sentence says how many."""
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    device, *group = joined("cuda", LOCAL_RANK=1)
    assert device == torch.device("cuda", 1)
    assert current == [device]
    assert group == [False, "cpu:gloo,cuda:nccl", 1, 3]
    with pytest.raises(ValueError, match="needs a GPU") as refused:
        joined("cuda", LOCAL_RANK=2)
    assert str(refused.value) == (
        "process 2 of this machine needs a GPU of its own, but PyTorch sees 2 of them; "
        "give --nproc-per-node=2, or --device cpu"
    )


ITS_STORE, RESTARTS = "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_MAX_RESTARTS"


@pytest.mark.parametrize(
    ("machines", "restarts", "store"),
    [(1, 0, None), (1, 1, "True"), (2, 0, None), (2, 0, "False"), (None, None, None)],
)
def test_restarts_that_would_work_are_not_refused(joined, machines, restarts, store):
    """On one machine with torchrun's own store, or where there are to be none."""
    given = {"GROUP_WORLD_SIZE": machines, RESTARTS: restarts, ITS_STORE: store}
    assert joined(**{k: v for k, v in given.items() if v is not None})[3] == 1


@pytest.mark.parametrize(
    ("machines", "store", "said"),
    [
        (
            2,
            "True",
            "torchrun started 2 machines and is to restart them by itself, which works "
            "on one machine only; give --max-restarts=0, and after a failure start "
            "again with --resume",
        ),
        *[
            (
                1,
                store,
                "torchrun is to restart the processes by itself, but without a store "
                "of its own it forgets whose the checkpoint is; unset "
                "TORCH_DISABLE_SHARE_RDZV_TCP_STORE, or give --max-restarts=0",
            )
            for store in ("False", None)
        ],
    ],
)
def test_restarts_that_would_not_work_are_refused_at_the_start(
    joined, monkeypatch, machines, store, said
):
    """Each machine counts its restarts for itself and would wait for the others for
    ever; without torchrun's store it is forgotten whose the checkpoint is."""
    monkeypatch.delenv(ITS_STORE, raising=False)
    given = {"GROUP_WORLD_SIZE": machines, RESTARTS: 1}
    with pytest.raises(ValueError, match="torchrun") as refused:
        joined(**given, **({ITS_STORE: store} if store else {}))
    assert str(refused.value) == said


def test_a_machine_that_joins_a_running_job_is_told_to_start_it_anew(joined):
    """--nnodes=1:2: torchrun starts all processes again in the same attempt, where the
    addresses of the first ones are still in its store. In the next attempt they are
    not, so that a restart after a failure is no reason to refuse."""
    joined(attempt=0)
    with pytest.raises(ValueError, match="a machine joined") as refused:
        joined(attempt=0, GROUP_WORLD_SIZE=2)
    assert str(refused.value) == (
        "torchrun started the processes anew because a machine joined them, which is "
        "not supported; start again with a fixed number of machines, such as "
        "--nnodes=2, and with --resume"
    )
    joined(attempt=1)


def test_only_its_own_checkpoint_is_a_restarted_job_s_to_go_on_from(joined, tmp_path):
    """Where the first attempt was refused, since a checkpoint was there, so is every
    other; one that came later is the job's own."""
    resumes = []
    for attempt in range(3):
        resumes.append(joined(attempt=attempt)[1])
        (tmp_path / "c.pt").touch()
    assert resumes == [False, True, True]


def test_a_checkpoint_that_was_there_before_is_nobody_s_to_go_on_from(joined, tmp_path):
    """However often the job is restarted."""
    (tmp_path / "c.pt").touch()
    assert [joined(attempt=attempt)[1] for attempt in range(3)] == [False] * 3
