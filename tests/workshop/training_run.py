"""A short training run of the real thing, for tests that kill it and compare it.

It imports little, so that the server that forks such processes is up soon.
"""

import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch._dynamo  # torch.optim asks for it: once here, not in every process
import torch.distributed as dist
from torch import Tensor, nn

from tinyddpm.schedule import linear_schedule
from tinyddpm.unet import UNet
from tinyddpm.workshop import checkpoint, files
from tinyddpm.workshop.run import fit
from tinyddpm.workshop.settings import TrainConfig
from tinyddpm.workshop.state import Record

B, SHAPE, STEPS, SAVE_EVERY = 4, (2, 4, 4), 24, 3
CONFIG = TrainConfig(
    steps=STEPS, batch=B, warmup=5, ema=0.9, log_every=1, save_every=SAVE_EVERY
)

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.workshop.training_run"])


def network(dropout: float = 0.2, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A small U-Net with dropout and attention; its zeros are moved off 0.

    Where a layer is 0, those before it get no gradient, and two runs that differ in
    them would look alike.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        net = UNet(SHAPE[0], 8, (1,), (0,), dropout).to(dtype)
        for p in net.parameters():
            nn.init.normal_(p, std=0.1)
    return net


def draw(n: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
    """Uniform numbers in [-1, 1]: what is learned does not matter here."""
    return (2 * torch.rand((n, *SHAPE), generator=generator) - 1,)


def train(
    folder: Path,
    tell: Callable[[Record], None] | None = None,
    resume: bool = False,
    config: TrainConfig = CONFIG,
) -> None:
    fit(linear_schedule(), network(), draw, config, tell, folder / "c.pt", resume)


def checkpoint_of(net: nn.Module) -> checkpoint.Checkpoint:
    """What is kept after one step of Adam, in which every gradient was 1; the average
    is still the network as it was before. No run is needed for it."""
    ema = {name: x.clone() for name, x in net.state_dict().items()}
    optimiser = torch.optim.Adam(net.parameters(), 0.25)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimiser.step()
    return checkpoint.Checkpoint(
        step=1,
        config={"lr": 0.25, "batch": 4},
        network=checkpoint.description(net),
        shape=SHAPE,
        beta=linear_schedule().beta[1:],
        weights=net.state_dict(),
        ema=ema,
        optimiser=optimiser.state_dict(),
        told=torch.zeros(1, 13, dtype=torch.float64),
        data="cpu:123",
    )


def in_a_process(
    folder: Path, resume: bool, pause: tuple[str, int] | None = None
) -> tuple[BaseProcess, Connection]:
    """Starts `train` in a process that sends what happens: each step, and its pause.

    Args:
        pause: (where, n): at the n-th time that a checkpoint's writing comes to that
            place of `PLACES`, send the place's name and wait to be killed.
    """
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=_child, args=(folder, resume, pause, sender))
    process.start()
    sender.close()
    return process, receiver


def part_of(folder: Path, pid: int) -> Path:
    """The file that this process writes a checkpoint to before it has its name."""
    return folder / f".c.pt.{pid}.part"


# Where a write can be killed: (module, function to come to, before or after it).
PLACES = {
    "half of it written": (checkpoint.hashlib, "blake2b", False),
    "not yet flushed": (files.os, "fsync", False),
    "not yet renamed": (files.os, "replace", False),
    "just renamed": (files.os, "replace", True),
}


def _child(
    folder: Path, resume: bool, pause: tuple[str, int] | None, sender: Connection
) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    sys.stderr = (folder / "stderr").open("a", buffering=1)
    os.dup2(sys.stderr.fileno(), 2)
    if pause is not None:
        module, name, after = PLACES[pause[0]]
        original, times = getattr(module, name), 0
        part = part_of(folder, os.getpid())

        def patched(*args, **kwargs):
            nonlocal times
            writing = part.exists()  # else it hashes a seed, or flushes the folder
            times += writing
            result = original(*args, **kwargs) if after else None
            if writing and times == pause[1]:
                sender.send(pause[0])
                time.sleep(3600)
            return result if after else original(*args, **kwargs)

        setattr(module, name, patched)
    train(folder, lambda r: sender.send(r.step), resume)


def one_of_two(
    rank: int,
    store: Path,
    checkpoint: Path | None,
    config: TrainConfig,
    dropout: float,
    sender: Connection,
) -> None:
    """Process `rank` of two that train together in float64; sends what came out, or
    the error that ended it."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", world_size=2, rank=rank)
    try:
        losses, tensors = alone(config, dropout, checkpoint)
    except (Exception, SystemExit) as error:
        sender.send(error)
    else:  # numbers outlive the process
        sender.send((losses, [p.tolist() for p in tensors]))
    dist.destroy_process_group()


def alone(
    config: TrainConfig, dropout: float, checkpoint: Path | None = None
) -> tuple[list[float], list[Tensor]]:
    """Trains in float64: the losses told, the weights and their average."""
    net, losses = network(dropout, torch.float64), []

    def draw64(n, generator):
        return tuple(x.double() for x in draw(n, generator))

    ema = fit(
        linear_schedule(),
        net,
        draw64,
        config,
        lambda r: losses.append(r.loss),
        checkpoint,
        resume=True,
    )
    return losses, [p.detach() for n in (net, ema) for p in n.parameters()]
