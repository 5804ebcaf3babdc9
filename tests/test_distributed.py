"""Two processes that train together do what one does with the same batch.

What lives here: DistributedDataParallel over gloo, on the CPU, through `fit` and
through torchrun. What does not: micro-batches of one process (`test_train.py`).
"""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tinyddpm.checkpoint import load_checkpoint

from .training_run import CONFIG, alone, one_of_two, processes

CONFIG = dataclasses.replace(CONFIG, steps=8, log_every=2, save_every=2)


def together(folder, config, dropout=0.0):
    """What each of two processes ends with: its losses told, weights and average."""
    (folder / "store").unlink(missing_ok=True)
    started = []
    for rank in range(2):
        receiver, sender = processes.Pipe(duplex=False)
        args = (rank, folder, config, dropout, sender)
        process = processes.Process(target=one_of_two, args=args)
        process.start()
        sender.close()
        started.append((process, receiver))
    results = [receiver.recv() for _, receiver in started]
    for process, _ in started:
        process.join()
        assert process.exitcode == 0
    return [
        (losses, [torch.tensor(p, dtype=torch.float64) for p in tensors])
        for losses, tensors in results
    ]


@pytest.mark.parametrize("micro_batch", [None, 1])
def test_two_processes_are_one_to_rounding(tmp_path, micro_batch):
    """The same losses, weights and average, in float64; only process 0 tells.

    The mean of the processes' means is the mean of the batch: sums in another order,
    1e-16 each, which Adam's division by √v carries on relative to each entry.
    """
    config = dataclasses.replace(CONFIG, micro_batch=micro_batch)
    losses, tensors = alone(CONFIG, 0.0)
    (told, first), (silent, second) = together(tmp_path, config)
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


def start(folder, *torchrun):
    """train_cifar.py in two processes by torchrun: random pictures, a narrow net."""
    pictures = folder / "pictures.bin"
    generator = torch.Generator().manual_seed(0)
    records = torch.randint(256, (20, 3073), generator=generator)
    records[:, 0] %= 10  # the label
    pictures.write_bytes(bytes(records.flatten().tolist()))
    settings = (
        f"--data {pictures} --out {folder / 'out'} --device cpu --steps 40 --batch 4 "
        "--log-every 1 --save-every 2 --base 8 --multipliers 1 --attention 0 --T 50 "
        "--samples 1 --sample-every 40"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", *torchrun, "train_cifar.py", *settings.split()]
    return subprocess.Popen(
        command,
        cwd=Path(__file__).parent.parent,
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
    ends = [load_checkpoint(f / "out" / "checkpoint.pt") for f in (again, undisturbed)]
    for part in ("step", "weights", "ema", "optimiser"):
        one, other = (getattr(end, part) for end in ends)
        torch.testing.assert_close(one, other, rtol=0, atol=0)
