"""Several processes that train together, as torchrun starts them.

Each draws the whole batch and takes its share of it. With a single process there is
nothing to share, and every function returns at once.
"""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor


def join(device: torch.device, checkpoint: Path) -> tuple[torch.device, bool]:
    """Joins the processes that torchrun started, on one machine or several, if it did.

    On several machines a run that is cut short is gone on with by hand: the machines
    count their restarts each for itself, and would wait for each other for ever. Their
    number is fixed: --nnodes=2, say, not --nnodes=1:2.

    Args:
        checkpoint: the file that the run is, or will be, kept in.
    Returns: this process's device, the GPU of its number where `device` is one; and
        whether the run should resume: no checkpoint was there when torchrun first
        started it, so that one that is there now is its own.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return device, False
    machines = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
    if restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise ValueError(
            "torchrun is to restart the processes by itself, but without a store of "
            "its own it forgets whose the checkpoint is; unset "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE, or give --max-restarts=0"
        )
    if restarts and machines > 1:
        raise ValueError(
            f"torchrun started {machines} machines and is to restart them by itself, "
            f"which works on one machine only; give --max-restarts=0, and after a "
            f"failure start again with --resume"
        )
    if device.type == "cuda":
        local, seen = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= seen:
            raise ValueError(
                f"process {local} of this machine needs a GPU of its own, but PyTorch "
                f"sees {seen} of them; give --nproc-per-node={seen}, or --device cpu"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    from torch.distributed.distributed_c10d import PrefixStore  # not in every build
    from torch.distributed.rendezvous import rendezvous

    store, number, count = next(rendezvous("env://"))
    # torchrun keeps the store over a restart: what the first attempt wrote stays
    found = checkpoint.exists()
    at_first = store.compare_set("checkpoint", "", str(found))
    # and so do the addresses of the dead
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if store.add(f"process {number} in attempt {attempt}", 1) > 1:  # not counted there
        raise ValueError(
            f"torchrun started the processes anew because a machine joined them, which "
            f"is not supported; start again with a fixed number of machines, such as "
            f"--nnodes={machines}, and with --resume"
        )
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore(f"attempt {attempt}", store),
        rank=number,
        world_size=count,
    )
    return device, found and at_first == b"False"


def refuse_several() -> None:
    """ValueError where torchrun started a script that trains in one process."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "torchrun started several processes, but this script trains in one; "
            "train_cifar.py is the one for torchrun"
        )


def rank() -> int:
    """Which of the processes this one is, 0 where there is one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def parts(batch: int, micro_batch: int | None) -> list[slice]:
    """This process's share of the batch, in pieces of at most `micro_batch`."""
    if batch % world():
        raise ValueError(
            f"a batch of {batch} cannot be split evenly over {world()} processes; give "
            f"a --batch that is a multiple of {world()}"
        )
    share = batch // world()
    first, size = rank() * share, micro_batch or share
    ends = range(first, first + share, size)
    return [slice(i, min(i + size, first + share)) for i in ends]


def gather(x: Tensor) -> Tensor:
    """(n,) on each process -> (n * processes,) on all of them, by rank."""
    if world() == 1:
        return x
    shares = [torch.empty_like(x) for _ in range(world())]
    dist.all_gather(shares, x)
    return torch.cat(shares)


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any of the processes, once every one is here.

    The hosts ask each other, over gloo: no GPU is waited for. (A group made by hand
    for GPUs must be able to: "cpu:gloo,cuda:nccl".)
    """
    if world() == 1:
        return flag
    flags = torch.tensor(float(flag))
    dist.all_reduce(flags)  # their sum
    return bool(flags)


def wait_for_all() -> None:
    """Returns when every process is here."""
    any_process(False)
