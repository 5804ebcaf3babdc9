"""Two processes that train together do what one does with the same batch."""

import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tinyddpm.workshop.checkpoint import load_checkpoint

from .training_run import CONFIG, alone, one_of_two, processes

CONFIG = dataclasses.replace(CONFIG, steps=8, log_every=2, save_every=2)


def two(folder, config, checkpoints=(None, None), dropout=0.0):
    """Two processes that train together, and where what each ends with comes out."""
    started = []
    for rank in range(2):
        receiver, sender = processes.Pipe(duplex=False)
        args = (rank, folder / "store", checkpoints[rank], config, dropout, sender)
        process = processes.Process(target=one_of_two, args=args)
        process.start()
        sender.close()
        started.append((process, receiver))
    return started


def ends(started):
    """What each of the two ends with: its losses, weights and average, or an error."""
    results = [receiver.recv() for _, receiver in started]
    for process, _ in started:
        process.join()
        assert process.exitcode == 0
    return results


@pytest.mark.parametrize("micro_batch", [None, 1])
def test_two_processes_are_one_to_rounding(tmp_path, micro_batch):
    """The same losses, weights and average, in float64; only process 0 tells.

    The mean of the processes' means is the mean of the batch: sums in another order,
    1e-16 each, which Adam's division by √v carries on relative to each entry.
    """
    config = dataclasses.replace(CONFIG, micro_batch=micro_batch)
    losses, tensors = alone(CONFIG, 0.0)
    (told, first), (silent, second) = (
        (losses, [torch.tensor(p, dtype=torch.float64) for p in tensors])
        for losses, tensors in ends(two(tmp_path, config))
    )
    assert len(losses) == 4
    assert silent == []
    torch.testing.assert_close(told, losses, rtol=1e-12, atol=0)
    worst = max(float((a - b).abs().max()) for a, b in zip(first, tensors, strict=True))
    print(
        f"largest difference of a weight: {worst:.1e}, of a loss: "
        f"{max(abs(a / b - 1) for a, b in zip(told, losses, strict=True)):.1e}"
    )
    assert worst < 1e-10
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_signal_to_one_process_ends_both_after_the_same_step(tmp_path):
    """Soon, not when the loss is next looked at: torchrun kills after 30 s.

    The signal comes to process 1, the checkpoint is process 0's, and of a step long
    before the next look; both exit with 128 + the signal's number.
    """
    path = tmp_path / "c.pt"
    far = dataclasses.replace(CONFIG, steps=10**6, log_every=10**6, save_every=10**6)
    started = two(tmp_path, far, (path, path))
    while not path.exists():
        time.sleep(0.01)
    time.sleep(0.5)  # some steps
    os.kill(started[1][0].pid, signal.SIGTERM)
    for error in ends(started):
        assert isinstance(error, SystemExit)
        assert error.code == 143
    assert 0 < load_checkpoint(path).step < 10**6


def test_every_process_names_the_last_good_checkpoint(tmp_path):
    """A loss that is not finite stops all, each with the same sentence."""
    path = tmp_path / "c.pt"
    wild = dataclasses.replace(CONFIG, lr=1e200, warmup=0)
    for error in ends(two(tmp_path, wild, (path, path))):
        assert isinstance(error, FloatingPointError)
        assert f"the last good checkpoint is {path}, of step 0" in str(error)


def test_processes_that_do_not_share_a_folder_are_refused(tmp_path):
    """One would go on from step 8 and the other from 0: both say so, before a step."""
    paths = [tmp_path / name / "c.pt" for name in ("one", "other")]
    alone(CONFIG, 0.0, paths[0])
    before = paths[0].read_bytes()
    longer = dataclasses.replace(CONFIG, steps=10)
    for error in ends(two(tmp_path, longer, paths)):
        assert isinstance(error, ValueError)
        assert re.search(r"at different steps, \[8, 0\].+that they all", str(error))
    assert paths[0].read_bytes() == before
    assert not paths[1].exists()


def start(folder, *torchrun):
    """train_cifar.py in two processes by torchrun: random pictures, a narrow net."""
    pictures = folder / "pictures.bin"
    generator = torch.Generator().manual_seed(0)
    records = torch.randint(256, (20, 3073), generator=generator)
    records[:, 0] %= 10  # the label
    pictures.write_bytes(bytes(records.flatten().tolist()))
    settings = (
        f"--data {pictures} --out {folder / 'out'} --device cpu --steps 40 --batch 4 "
        "--log-every 1 --save-every 2 --base 8 --multipliers 1 1 1 --attention 2 "
        "--T 50 --samples 1 --sample-every 40"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", *torchrun, "train_cifar.py", *settings.split()]
    return subprocess.Popen(
        command,
        cwd=Path(__file__).parent.parent.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_a_worker(job, checkpoint):
    """SIGKILL for one of the two, once a step after the first few was saved."""
    while not checkpoint.exists() or load_checkpoint(checkpoint).step < 4:
        assert job.poll() is None, job.stderr.read()
        time.sleep(0.01)
    workers = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    assert len(workers) == 2
    os.kill(int(workers[1]), signal.SIGKILL)


def finish(job):
    """What the job wrote to stderr; one that hangs is ended, and fails the test."""
    try:
        return job.communicate(timeout=300)[1]
    except subprocess.TimeoutExpired:
        job.send_signal(signal.SIGTERM)  # torchrun ends its workers
        raise


@pytest.mark.slow
def test_a_killed_worker_ends_the_job_with_a_clear_message(tmp_path):
    """The job fails, does not hang, names the signal and how to go on; with
    --max-restarts it goes on by itself, to the end that an undisturbed job has."""
    checkpoint = tmp_path / "out" / "checkpoint.pt"
    job = start(tmp_path)
    kill_a_worker(job, checkpoint)
    said = finish(job)
    assert job.returncode != 0
    assert "SIGKILL" in said
    assert "process 0 lost touch with the 1 others" in said
    assert "--resume" in said
    assert 4 <= load_checkpoint(checkpoint).step < 40

    (again := tmp_path / "again").mkdir()
    job = start(again, "--max-restarts=1")
    kill_a_worker(job, again / "out" / "checkpoint.pt")
    said = finish(job)
    assert job.returncode == 0, said
    (undisturbed := tmp_path / "undisturbed").mkdir()
    job = start(undisturbed)
    said = finish(job)
    assert job.returncode == 0, said
    found = [load_checkpoint(f / "out" / "checkpoint.pt") for f in (again, undisturbed)]
    for part in ("step", "weights", "ema", "optimiser"):
        one, other = (getattr(end, part) for end in found)
        torch.testing.assert_close(one, other, rtol=0, atol=0)

    # another job, into the same folder, is refused as often as it is started
    path = undisturbed / "out" / "checkpoint.pt"
    before = path.read_bytes()
    job = start(undisturbed, "--max-restarts=1")
    said = finish(job)
    assert job.returncode != 0
    assert said.count("is there already and is not overwritten") >= 4  # 2 x 2 processes
    assert path.read_bytes() == before


def test_a_folder_that_is_not_shared_shows_before_the_first_step(tmp_path):
    """Neither finds a checkpoint; process 0 writes the first one, and process 1, which
    does not see it, could not go on from it later: both say so."""
    paths = [tmp_path / name / "c.pt" for name in ("one", "other")]
    for error in ends(two(tmp_path, CONFIG, paths)):
        assert isinstance(error, ValueError)
        assert "give a folder that all machines share" in str(error)
    assert load_checkpoint(paths[0]).step == 0
    assert not paths[1].exists()


def start_two_machines(folder, outs, nproc, *more):
    """Two torchrun agents on this machine, as on two: the same command on each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pictures = folder / "pictures.bin"
    generator = torch.Generator().manual_seed(0)
    records = torch.randint(256, (20, 3073), generator=generator)
    records[:, 0] %= 10
    pictures.write_bytes(bytes(records.flatten().tolist()))
    jobs = []
    for node, out in enumerate(outs):
        settings = (
            f"--data {pictures} --out {out} --device cpu --batch 4 --log-every 1 "
            "--save-every 2 --base 8 --multipliers 1 1 1 --attention 2 --dropout 0 "
            "--warmup 1 --ema 0.5 --no-bf16 --T 50 --samples 1 --sample-every 40"
        )
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2"]
        command += [f"--node-rank={node}", f"--nproc-per-node={nproc}"]
        command += ["--max-restarts=0", "--master-addr=127.0.0.1"]
        command += [f"--master-port={port}", "train_cifar.py", *settings.split()]
        jobs.append(
            subprocess.Popen(
                [*command, *more],
                cwd=Path(__file__).parent.parent.parent,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    said = [finish(job) for job in jobs]
    return [job.returncode for job in jobs], said


@pytest.mark.slow
def test_two_machines_train_together_in_a_folder_they_share(tmp_path):
    """Two agents of one process each end with one checkpoint; in folders of their own
    they are refused before a step; two agents of two processes go on from the first
    run's file, to the end of one process alone, to rounding (dropout is 0: its masks
    are each process's own)."""
    shared = tmp_path / "shared"
    codes, said = start_two_machines(tmp_path, (shared, shared), 1, "--steps", "2")
    assert codes == [0, 0], said
    assert sorted(p.name for p in shared.glob("*.pt")) == ["checkpoint.pt"]
    assert load_checkpoint(shared / "checkpoint.pt").step == 2

    apart = (tmp_path / "a", tmp_path / "b")
    codes, said = start_two_machines(tmp_path, apart, 1, "--steps", "2")
    assert 0 not in codes
    assert all("give a folder that all machines share" in s for s in said), said

    more = ("--steps", "4", "--resume")
    codes, said = start_two_machines(tmp_path, (shared, shared), 2, *more)
    assert codes == [0, 0], said
    found = load_checkpoint(shared / "checkpoint.pt")
    assert found.step == 4
    alone = tmp_path / "alone"
    settings = {k: v for k, v in found.config.items() if k != "names"}
    import train_cifar

    train_cifar.main(
        [
            *("--data", str(tmp_path / "pictures.bin"), "--out", str(alone)),
            *("--device", "cpu", "--steps", "4", "--batch", "4", "--log-every", "1"),
            *("--save-every", "2", "--base", "8", "--multipliers", "1", "1", "1"),
            *("--attention", "2", "--dropout", "0", "--warmup", "1", "--ema", "0.5"),
            *("--no-bf16", "--T", "50", "--samples", "1", "--sample-every", "40"),
        ]
    )
    whole = load_checkpoint(alone / "checkpoint.pt")
    assert settings["batch"] == whole.config["batch"]
    for name, weight in whole.weights.items():
        # a step is at most lr = 2e-4 a weight; Adam divides rounding by its own size
        torch.testing.assert_close(found.weights[name], weight, rtol=0, atol=2e-4)
