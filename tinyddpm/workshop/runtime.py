"""What makes Algorithm 1 fast, repeatable and hard to kill, and is not in the paper.

What lives here: seeding a step, bfloat16 and compilation, many GPUs, signals, trouble.
What does not: the loop that uses them (`train.py`) and the checkpoint's file format
(`checkpoint.py`).
"""

import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def random_seed(*key: int) -> int:
    """A 63-bit number from (seed, step, ...): neighbouring steps share nothing.

    Hashed, not summed: torch's CPU generator reads only the low 32 bits of a seed. Of
    the paper's 800,000 steps some 75 thus repeat the draws of another one.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def seed_masks(seed: int, step: int, device: torch.device) -> None:
    """Seeds torch's own generator, which dropout masks come from, for one step.

    All processes draw the same batch, but each its own masks, for other pictures.
    """
    masks = random_seed(seed, step, rank())
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(masks)
    else:
        torch.default_generator.manual_seed(masks)


@contextmanager
def rng_left_alone(device: torch.device) -> Iterator[None]:
    """The caller's random numbers go on afterwards as if nothing had been drawn."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def faster(
    net: nn.Module,
    bf16: bool | None,
    channels_last: bool | None,
    compiled: bool | None,
) -> Callable[..., Tensor]:
    """`net` as a function that computes the same, sooner, in `torch.distributed` too.

    Where several processes train together, gradients are averaged over them while the
    backward pass makes them.

    Args:
        bf16: as in `autocast`.
        channels_last: the order of the weights in memory; None leaves it (`UNet` has
            its channels last).
        compiled: by torch.compile; None does so on a GPU. On a CPU compiling takes
            minutes and was not seen to pay.
    """
    device = next(net.parameters()).device
    cuda = device.type == "cuda"
    if channels_last is not None:
        order = torch.channels_last if channels_last else torch.contiguous_format
        net.to(memory_format=order)  # type: ignore[call-overload]
    call: Callable[..., Any] = net
    if dist.is_initialized():
        gpus = [device] if cuda else None
        call = nn.parallel.DistributedDataParallel(net, device_ids=gpus)
    if compiled or (compiled is None and cuda):
        call = torch.compile(call)
    # Not entered where it would do nothing: that costs a toy 2 % of its step.
    return autocast(device, bf16)(call) if _casts(device, bf16) else call


def autocast(device: torch.device, bf16: bool | None) -> torch.autocast:
    """Matrix products in bfloat16 if `bf16`, or if None and the GPU has them.

    On a CPU float32 unless asked for: which CPUs gain differs (with AVX512_BF16 the
    U-Net trains 1.7 times as fast, without it is slower), and so would the weights.
    """
    on = _casts(device, bf16)
    return torch.autocast(device.type, torch.bfloat16, enabled=on)


def _casts(device: torch.device, bf16: bool | None) -> bool:
    if bf16 is not None or device.type != "cuda":
        return bool(bf16)
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def join(device: torch.device, checkpoint: Path) -> tuple[torch.device, bool]:
    """Joins the processes that torchrun started on one machine, if it did.

    Args:
        checkpoint: the file that the run is, or will be, kept in.
    Returns: this process's device, the GPU of its number where `device` is one; and
        whether the run should resume: no checkpoint was there when torchrun first
        started it, so that one that is there now is its own.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return device, False
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
    at_first = store.compare_set("checkpoint", "", "found" if found else "none")
    # and so do the addresses of the dead
    restarts = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore(f"attempt {restarts}", store),
        rank=number,
        world_size=count,
    )
    return device, found and at_first == b"none"


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
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def wait_for_all() -> None:
    """Returns when every process is here."""
    any_process(False)


@contextmanager
def as_a_run(
    device: torch.device, batch: int, micro_batch: int | None, catch: bool
) -> Iterator[list[int]]:
    """What holds around the whole loop; yields the list that signals are noted in."""
    with (
        rng_left_alone(device),
        trouble_explained(batch, micro_batch),
        signals(catch) as caught,
    ):
        yield caught


@contextmanager
def signals(on: bool) -> Iterator[list[int]]:
    """Notes SIGINT and SIGTERM in the list it yields; a second one ends the process.

    Not so under torchrun, which sends a signal of its own after the terminal's: with
    several processes every one of them is noted, and the run still saved.
    """
    caught: list[int] = []
    if not on or threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(number: int, _: Any) -> None:
        name = signal.Signals(number).name
        if rank() == 0:  # not print: it may have been interrupted itself
            os.write(2, f"\n{name}: finishing the step and saving\n".encode())
        caught.append(number)
        if world() == 1:
            restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        restore()


def out_of_memory(error: RuntimeError) -> bool:
    """Whether that is it: on a CPU PyTorch has no error of its own for it."""
    return isinstance(error, torch.OutOfMemoryError) or "alloc_cpu" in str(error)


@contextmanager
def trouble_explained(batch: int, micro_batch: int | None) -> Iterator[None]:
    """Out of memory: which flag to lower. Another process gone: how to go on."""
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        if out_of_memory(error):
            now = min(micro_batch or batch, batch // world())
            lower = f"lower --micro-batch (the batch stays {batch}: gradients add up)"
            raise torch.OutOfMemoryError(
                f"out of memory with {now} pictures at a time; give a "
                f"{lower if now > 1 else 'lower --batch'}, or a narrower network. "
                f"PyTorch said: {said}"
            ) from error
        if isinstance(error, dist.DistError) or (world() > 1 and "onnection" in said):
            raise ConnectionError(
                f"process {rank()} lost touch with the {world() - 1} others, so one of "
                f"them has ended; go on from the last checkpoint with --resume "
                f"(torchrun --max-restarts=N does so by itself). PyTorch said: {said}"
            ) from error
        raise
