"""What this machine is, and which precision it is fast in.

A CPU needs instructions made for bfloat16, AVX512_BF16 or AMX, to gain by it. Without
them PyTorch still computes in it, many times slower than in float32.
"""

import functools
import os
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

X86 = ("x86_64", "amd64", "i386", "i686")
# The private functions of torch.cpu that tell, and the instructions they tell of. One
# that a version of PyTorch lacks tells of nothing.
TOLD_BY = {
    "AVX2": "_is_avx2_supported",
    "AVX512": "_is_avx512_supported",
    "AVX512_BF16": "_is_avx512_bf16_supported",
    "AMX": "_is_amx_tile_supported",
}
MADE_FOR_BF16 = ("AVX512_BF16", "AMX")
WORTH_IT = 0.9  # of float32's time: by less, rounding to 8 bits is not worth it


def choose_precision(
    device: torch.device, asked: bool | None, kept: bool | None = None
) -> tuple[bool, str]:
    """The precision of a run, and the sentence that its log begins with.

    A run keeps one precision to its end, on whatever machine it goes on: the weights
    would differ with another. Warns once where bfloat16 is slower than float32.

    Args:
        asked: the setting `bf16`: True, False, or None for what is fast here.
        kept: what the checkpoint of a resumed run was trained in; None for a new run.
    Returns: whether matrix products are in bfloat16, and the sentence.
    Raises: ValueError where a resumed run is asked for another precision than it has.
    """
    if kept is not None and asked not in (None, kept):
        raise ValueError(
            f"the checkpoint was trained in {name(kept)}, and {name(not kept)} was "
            f"asked for; leave out {'--bf16' if asked else '--no-bf16'}, or begin a "
            f"new run in another folder"
        )
    default, why = default_precision(device)
    bf16 = default if asked is None else asked
    sentence = f"{name(bf16)}: {why}"
    if kept is not None:
        bf16, sentence = kept, f"{name(kept)}, as the checkpoint was trained"
    elif asked is not None:
        sentence = f"{name(asked)}, as asked"
    if bf16 != default:
        sentence += f"; left to itself, this machine takes {name(default)}: {why}"
    if bf16 and not default and device.type == "cpu":
        warnings.warn(
            f"bfloat16 takes {slow_bf16_ratio():.1f} times as long as float32 on this "
            f"CPU (one convolution, forward and backward); --no-bf16 trains in float32",
            stacklevel=2,
        )
    return bf16, sentence


def precision_to_sample(
    device: torch.device, asked: bool | None, kept: bool | None
) -> tuple[bool, str]:
    """The precision that a trained network is asked in, and a sentence that says why.

    It is the one it was trained in, but for bfloat16 where that is not fast: nothing is
    trained any more, so that another machine may compute otherwise.

    Args:
        asked: True, False, or None for the rule above.
        kept: what the run was trained in; None where its checkpoint leaves it open, and
            then it is float32.
    """
    if asked is not None:
        return asked, f"{name(asked)}, as asked"
    if kept is None:
        return False, f"{name(False)}; its checkpoint leaves the precision open"
    if not kept:
        return False, f"{name(False)}, as it was trained"
    fast, why = default_precision(device)
    return fast, f"{name(fast)}{', as it was trained' if fast else ''}: {why}"


def default_precision(device: torch.device) -> tuple[bool, str]:
    """Whether bfloat16 is what `device` is fast in, and why, as half a sentence."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            gpu = torch.cuda.get_device_name()
        return bf16, f"{gpu} {'computes' if bf16 else 'cannot compute'} in bfloat16"
    if device.type != "cpu":
        return False, f"bfloat16 was never tried on {device.type}"
    found = instruction_sets()
    onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if found is None or not onednn:
        ratio = slow_bf16_ratio()
        return ratio < WORTH_IT, (
            f"bfloat16 takes {ratio:.2f} times as long as float32 on this CPU"
        )
    made = [instructions for instructions in MADE_FOR_BF16 if instructions in found]
    if made:
        return True, f"this CPU has {' and '.join(made)}"
    return False, f"this CPU has neither {' nor '.join(MADE_FOR_BF16)}"


def name(bf16: bool) -> str:
    """The precision as people read it."""
    return "bfloat16" if bf16 else "float32"


def instruction_sets() -> list[str] | None:
    """Which of `TOLD_BY` this CPU has; None where PyTorch cannot tell.

    It cannot on CPUs that are not x86, nor where it lacks both functions that decide.
    """
    if platform.machine().lower() not in X86:
        return None
    tells = {key: getattr(torch.cpu, of, None) for key, of in TOLD_BY.items()}
    if all(tells[key] is None for key in MADE_FOR_BF16):
        return None
    return [key for key, has in tells.items() if has is not None and has()]


@functools.cache
def slow_bf16_ratio() -> float:
    """How many times as long as float32 bfloat16 takes on this CPU, measured once.

    One 3x3 convolution of 64 channels at 16x16, two pictures, forward and backward, as
    there are many in the networks. It takes some 10 ms, and up to half a second where
    bfloat16 is slow. On one thread, since other work on the machine would decide
    when several of them are through.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        slow, fast = (
            fastest(_convolution(dtype)) for dtype in (torch.bfloat16, torch.float32)
        )
    finally:
        torch.set_num_threads(threads)
    return slow / fast


def _convolution(dtype: torch.dtype) -> Callable[[], None]:
    """A function that computes one convolution and its two gradients."""
    order = torch.channels_last
    x = torch.ones(2, 64, 16, 16, dtype=dtype).to(memory_format=order)
    weight = torch.ones(64, 64, 3, 3, dtype=dtype).to(memory_format=order)
    x.requires_grad_()
    weight.requires_grad_()

    def compute() -> None:
        with torch.enable_grad():
            out = F.conv2d(x, weight, padding=1)
            torch.autograd.grad(out, [x, weight], out.detach())

    return compute


def fastest(work: Callable[[], object], times: int = 3, seconds: float = 10.0) -> float:
    """The least seconds that `work` takes: whatever else runs can only add to them.

    It runs once before, since the first run also prepares, then up to `times` times,
    and not again once `seconds` are over.
    """
    work()
    best, end = float("inf"), time.perf_counter() + seconds
    for _ in range(times):
        began = time.perf_counter()
        work()
        now = time.perf_counter()
        best = min(best, now - began)
        if now > end:
            break
    return best


def cpu_name() -> str:
    """The CPU's name as its maker gives it, or the architecture's."""
    if Path("/proc/cpuinfo").exists():  # Linux
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        for line in text.splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "an unknown CPU"


def memory() -> tuple[int, int] | None:
    """Bytes of main memory that are free and in all; None where the system is silent.

    Linux tells what is free; elsewhere all of it is taken to be.
    """
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # no such call on Windows
        return None
    free = total
    if Path("/proc/meminfo").exists():
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    return free, total
