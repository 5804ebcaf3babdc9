"""Laws of the precision that a machine is given, and of what `doctor` says about it."""

import re
import warnings
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tinyddpm.unet import UNet
from tinyddpm.workshop import doctor as screen
from tinyddpm.workshop import machine
from tinyddpm.workshop.command import main
from tinyddpm.workshop.machine import (
    choose_precision,
    default_precision,
    precision_to_sample,
)

CPU = torch.device("cpu")
U = 2.0**-8  # half the distance of neighbouring bfloat16 numbers, which have 8 bits
U_32 = 2.0**-24  # the same of float32, which has 24 bits

# The networks that the scripts train: the short settings, and the paper's.
SHORT = UNet, (3, 32, (1, 2, 2), (2,)), 32
GREY = UNet, (1, 32, (1, 2, 2), (2,)), 32
SPRITES = UNet, (3, 32, (1, 2, 2), (1, 2)), 16
PAPER = UNet, (3, 128, (1, 2, 2, 2), (1,)), 32


class Convolutions(TorchDispatchMode):
    """Notes each convolution that is computed: the shapes of x and weight, and how."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            x, weight, _, stride, padding, _, transposed, *_ = args
            how = (tuple(stride), tuple(padding), transposed)
            self.found.add((tuple(x.shape[1:]), tuple(weight.shape), *how))
        return func(*args, **(kwargs or {}))


def convolutions(make: type[nn.Module], arguments: tuple, size: int) -> list[tuple]:
    """Every convolution of the network, found without computing any."""
    with torch.device("meta"), Convolutions() as mode:
        x = torch.zeros(1, arguments[0], size, size)
        make(*arguments)(x, torch.ones(1, dtype=torch.long))
    return sorted(mode.found)


def some(found: list[tuple]) -> list[tuple]:
    """The cheapest of each kind: size of the weights' window, stride, transposed."""
    kinds: dict[tuple, tuple] = {}
    for case in found:
        (_, H, W), weight, *how = case
        cost = H * W * torch.Size(weight).numel()
        kind = (weight[2:], *how)
        kinds[kind] = min(kinds.get(kind, (cost, case)), (cost, case))
    return [case for _, case in kinds.values()]


def onednn_computes_in_bfloat16() -> bool:
    """Whether PyTorch has a library for it on this CPU, and not its own loops."""
    try:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError):  # a build without oneDNN
        return False


def agrees(case: tuple, seed: int) -> None:
    """Asserts the law of the tests below for one convolution and its two gradients."""
    shape, weight_shape, stride, padding, transposed = case
    g = Generator().manual_seed(seed)

    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        function = F.conv_transpose2d if transposed else F.conv2d
        return function(x, weight, stride=stride, padding=padding)

    def all_three(
        x: Tensor, weight: Tensor, above: Tensor | None
    ) -> tuple[Tensor, ...]:
        """The convolution, and its gradients if `above` is the one of its result."""
        x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
        y = convolve(x, weight)
        above = torch.randn(y.shape, generator=g) if above is None else above
        grads = torch.autograd.grad(y, (x, weight), above.to(y.dtype))
        return (y.detach(), *grads, above)

    def rounded(v: Tensor) -> Tensor:
        order = torch.channels_last if v.ndim == 4 else torch.preserve_format
        return v.bfloat16().contiguous(memory_format=order)

    x = rounded(torch.randn(2, *shape, generator=g))
    weight = rounded(torch.randn(weight_shape, generator=g))
    # numbers of bfloat16 in float32: their products are exact there
    above = rounded(all_three(x.float(), weight.float(), None)[3])
    exact = all_three(x.float(), weight.float(), above.float())[:3]
    size = all_three(x.float().abs(), weight.float().abs(), above.float().abs())[:3]
    terms = all_three(
        torch.ones_like(x).float(), torch.ones_like(weight).float(),
        torch.ones_like(above).float(),
    )[:3]  # fmt: skip
    found = all_three(x, weight, above)[:3]
    for what, a, b, S, n in zip(
        ("y", "∂x", "∂w"), found, exact, size, terms, strict=True
    ):
        assert a.dtype == torch.bfloat16
        bound = U * b.abs() + 2 * (1 + U) * n * U_32 * S
        if not onednn_computes_in_bfloat16():
            parts = weight.shape[2] * weight.shape[3] + len(x)
            bound += ((1 + U) ** parts - 1) * S
        excess = ((a.float() - b).abs() - bound).max()
        assert excess <= 0, f"{what} of {case} is {float(excess):.2e} beyond its bound"


def test_bfloat16_convolutions_agree_with_float32_within_their_rounding():
    """Σ w x in bfloat16 is Σ w x in float32, rounded: here, for each kind of layer.

    Of two bfloat16 numbers (8 bits) the product is exact in float32 (24 bits). Summed
    there, n terms in any order err by at most n 2⁻²⁴ Σ|w x|, in either computation; the
    result is rounded to 8 bits, by at most 2⁻⁸ of it. The same for both gradients.

    Where the CPU gives oneDNN nothing to compute bfloat16 with, PyTorch's own loops
    round more: they sum the positions of the window, and the pictures of a batch, in
    bfloat16. Each of k k + B sums of parts then errs by 2⁻⁸ Σ|w x| at most.
    """
    cases = some(convolutions(*SHORT))
    assert len(cases) >= 3
    for seed, case in enumerate(cases):
        agrees(case, seed)


@pytest.mark.slow
@pytest.mark.parametrize("network", [SHORT, GREY, SPRITES, PAPER])
def test_every_convolution_of_our_networks_agrees(network):
    """The law above for every convolution there is: base 32 and the paper's 128."""
    for seed, case in enumerate(convolutions(*network)):
        agrees(case, seed)


def test_the_law_sees_a_sum_that_is_kept_in_bfloat16():
    """A product summed in bfloat16, term by term, is beyond the bound of the law."""
    g = Generator().manual_seed(0)
    x, w = torch.randn(2, 64, 288, generator=g).bfloat16()
    kept = torch.zeros(64, dtype=torch.bfloat16)
    for term in (x * w).T:
        kept = kept + term
    exact, S = (x.float() * w.float()).sum(1), (x.float() * w.float()).abs().sum(1)
    bound = U * exact.abs() + 2 * (1 + U) * 288 * U_32 * S
    assert ((kept.float() - exact).abs() > bound).float().mean() > 0.5


# Which precision a run has, and the sentence that says why


@pytest.fixture
def fast(monkeypatch):
    """Sets what this machine is fast in; bfloat16 takes 16.25 times as long, if it is
    measured."""

    def is_fast(bf16):
        def default(device):
            assert isinstance(device, torch.device)
            return bf16, "so it is"

        monkeypatch.setattr(machine, "default_precision", default)

    monkeypatch.setattr(machine, "slow_bf16_ratio", lambda: 16.25)
    return is_fast


ELSE = "; left to itself, this machine takes"


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("bf16", "asked", "kept", "taken", "sentence"),
    [
        (False, None, None, False, "float32: so it is"),
        (False, False, None, False, "float32, as asked"),
        (False, True, None, True, f"bfloat16, as asked{ELSE} float32: so it is"),
        (True, None, None, True, "bfloat16: so it is"),
        (True, True, None, True, "bfloat16, as asked"),
        (True, False, None, False, f"float32, as asked{ELSE} bfloat16: so it is"),
        *[
            (False, x, False, False, "float32, as the checkpoint was trained")
            for x in (None, False)
        ],
        *[
            (True, x, True, True, "bfloat16, as the checkpoint was trained")
            for x in (None, True)
        ],
        *[
            (
                fast,
                None,
                not fast,
                not fast,
                f"{'float32' if fast else 'bfloat16'}, as the checkpoint was trained"
                f"{ELSE} {'bfloat16' if fast else 'float32'}: so it is",
            )
            for fast in (True, False)
        ],
    ],
)
def test_a_run_keeps_what_it_has_or_is_asked_for_and_says_so(
    fast, device, bf16, asked, kept, taken, sentence
):
    """A run that goes on keeps its precision on any machine; a new one takes what is
    asked, or what is fast. Where this machine would choose otherwise it is said, and
    who takes bfloat16 on a CPU that is slow in it is warned, at his own line."""
    fast(bf16)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = choose_precision(torch.device(device), asked, kept)
    assert found == (taken, sentence)
    warned = [(str(w.message), w.filename) for w in caught]
    slow = (
        "bfloat16 takes 16.2 times as long as float32 on this CPU (one convolution, "
        "forward and backward); --no-bf16 trains in float32"
    )
    assert warned == [(slow, __file__)] * (taken and not bf16 and device == "cpu")


@pytest.mark.parametrize("kept", [True, False])
def test_a_run_that_goes_on_in_another_precision_is_refused(fast, kept):
    """Its weights would differ; the sentence says which flag to leave out."""
    fast(True)
    with pytest.raises(ValueError, match="the checkpoint") as refused:
        choose_precision(CPU, not kept, kept)
    was, asked = ("bfloat16", "float32") if kept else ("float32", "bfloat16")
    flag = "--no-bf16" if kept else "--bf16"
    assert str(refused.value) == (
        f"the checkpoint was trained in {was}, and {asked} was asked for; leave out "
        f"{flag}, or begin a new run in another folder"
    )


LEFT_OPEN = "float32; its checkpoint leaves the precision open"


@pytest.mark.parametrize(
    ("bf16", "asked", "kept", "taken", "sentence"),
    [
        *[
            (fast, asked, kept, asked, f"{machine.name(asked)}, as asked")
            for fast in (True, False)
            for asked in (True, False)
            for kept in (True, False, None)
        ],
        *[(fast, None, None, False, LEFT_OPEN) for fast in (True, False)],
        *[
            (fast, None, False, False, "float32, as it was trained")
            for fast in (True, False)
        ],
        (True, None, True, True, "bfloat16, as it was trained: so it is"),
        (False, None, True, False, "float32: so it is"),
    ],
)
def test_samples_are_drawn_as_the_run_was_trained_unless_that_is_slow(
    fast, bf16, asked, kept, taken, sentence
):
    """What is asked for wins. Else bfloat16 only for a run that was trained so, where
    it is fast; and only what the checkpoint tells is called "as it was trained".
    """
    fast(bf16)
    assert precision_to_sample(CPU, asked, kept) == (taken, sentence)


def test_a_gpu_is_asked_for_itself(monkeypatch):
    """That very one, and in earnest: to emulate bfloat16 is slower than float32."""
    asked = []
    monkeypatch.setattr(torch.cuda, "device", lambda x: asked.append(x) or ExitStack())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    device = torch.device("cuda", 3)
    for has in (True, False):

        def supported(including_emulation=True, has=has):
            return has or including_emulation

        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
        said = f"A GPU {'computes' if has else 'cannot compute'} in bfloat16"
        assert default_precision(device) == (has, said)
    assert asked == [device] * 2


def test_a_device_that_was_never_tried_computes_in_float32():
    """Nothing is known of it, which is said."""
    said = "bfloat16 was never tried on meta"
    assert default_precision(torch.device("meta")) == (False, said)


@pytest.mark.parametrize(
    ("sets", "bf16", "why"),
    [
        ([], False, "neither AVX512_BF16 nor AMX"),
        (["AVX2", "AVX512"], False, "neither AVX512_BF16 nor AMX"),
        (["AVX2", "AVX512", "AVX512_BF16"], True, "AVX512_BF16"),
        (["AVX2", "AVX512", "AVX512_BF16", "AMX"], True, "AVX512_BF16 and AMX"),
    ],
)
def test_a_cpu_computes_in_bfloat16_only_with_instructions_for_it(
    sets, bf16, why, monkeypatch
):
    """AVX512_BF16 or AMX: bfloat16; neither: float32; and the reason names them."""
    monkeypatch.setattr(machine, "instruction_sets", lambda: sets)
    monkeypatch.setattr(machine, "slow_bf16_ratio", lambda: pytest.fail("measured"))
    assert default_precision(CPU) == (bf16, f"this CPU has {why}")


@pytest.mark.parametrize("lacks", ["instructions", "oneDNN"])
@pytest.mark.parametrize("ratio", [0.5, 0.899, 0.9, 16.0])
def test_where_pytorch_cannot_tell_the_clock_does(monkeypatch, lacks, ratio):
    """Where it knows no instructions, or has no library that uses them: to round to 8
    bits is worth it for a tenth of the time at least."""
    sets = None if lacks == "instructions" else ["AMX"]
    monkeypatch.setattr(machine, "instruction_sets", lambda: sets)
    monkeypatch.setattr(machine, "slow_bf16_ratio", lambda: ratio)
    onednn = lacks != "oneDNN"
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    assert default_precision(CPU) == (
        ratio < 0.9,
        f"bfloat16 takes {ratio:.2f} times as long as float32 on this CPU",
    )


# What PyTorch and the system tell

INSTRUCTIONS = ("AVX2", "AVX512", "AVX512_BF16", "AMX")
TOLD = [f"_is_{x}_supported" for x in ("avx2", "avx512", "avx512_bf16", "amx_tile")]


@pytest.mark.parametrize("name", ["x86_64", "AMD64", "i386", "i686", "aarch64"])
@pytest.mark.parametrize("has", INSTRUCTIONS)
@pytest.mark.parametrize("lacks", [(), (0, 1), (2,), (3,), (2, 3)])
def test_a_cpu_has_what_pytorch_says_it_has(monkeypatch, name, has, lacks):
    """As systems name x86. A function that a version lacks tells of nothing; without
    both that decide, or on another CPU, nothing is known."""
    monkeypatch.setattr(machine.platform, "machine", lambda: name)
    for i, (instructions, of) in enumerate(zip(INSTRUCTIONS, TOLD, strict=True)):
        answer = instructions == has
        monkeypatch.setattr(torch.cpu, of, lambda x=answer: x, raising=False)
        if i in lacks:
            monkeypatch.delattr(torch.cpu, of)
    known = [x for i, x in enumerate(INSTRUCTIONS) if i not in lacks]
    expected = [has] if has in known else []
    unknown = name == "aarch64" or lacks == (2, 3)
    assert machine.instruction_sets() == (None if unknown else expected)


class Costs(TorchDispatchMode):
    """Notes the convolutions: shapes, kind and order in memory, and the gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "convolution" in str(func):
            backward = "backward" in str(func)
            last = torch.channels_last
            self.found.append(
                [
                    (tuple(x.shape), x.dtype, x.is_contiguous(memory_format=last))
                    for x in args[backward : 2 + backward]
                ]
            )
            self.found.append(args[-1] if backward else args[3:5])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_measured_is_a_layer_of_the_networks(dtype):
    """64 channels at 16x16 with a 3x3 window that keeps the size, of two pictures, in
    the order that is fast; with both gradients, whoever asks."""
    with Costs() as mode, torch.no_grad():
        machine._convolution(dtype)()
    layer = [((2, 64, 16, 16), dtype, True), ((64, 64, 3, 3), dtype, True)]
    assert mode.found == [layer, ([1, 1], [1, 1]), layer, [True, True, False]]


@pytest.mark.parametrize("fails", [True, False])
def test_the_ratio_is_measured_on_one_thread_that_is_given_back(monkeypatch, fails):
    """bfloat16's time over float32's; others would decide if there were several."""
    threads, used = [7], []
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(machine, "_convolution", lambda dtype: dtype)

    def fastest(dtype):
        used.append(threads[-1])
        if fails:
            raise RuntimeError("no time")
        return {torch.bfloat16: 3.0, torch.float32: 2.0}[dtype]

    monkeypatch.setattr(machine, "fastest", fastest)
    if fails:
        with pytest.raises(RuntimeError, match="no time"):
            machine.slow_bf16_ratio.__wrapped__()
    else:
        assert machine.slow_bf16_ratio.__wrapped__() == 1.5
    assert used == [1] * (1 if fails else 2)
    assert threads == [7, 1, 7]


@pytest.mark.parametrize(
    ("takes", "options", "least"),
    [
        ([9, 3, 1, 2], {}, 1),  # the first run also prepares
        ([0.5, 3, 1, 2], {}, 1),
        ([9, 3, 2], {"times": 2}, 2),
        ([99, 10, 4], {}, 4),  # ten seconds are not over at ten seconds
        ([99, 10.5], {}, 10.5),
        ([9, 3, 3], {"seconds": 5}, 3),
    ],
)
def test_the_fastest_of_some_runs_counts(monkeypatch, takes, options, least):
    """Three by default, and none after ten seconds: nobody waits for minutes."""
    now, left = [100.0], list(takes)
    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(machine, "time", clock)

    def work():
        now[0] += left.pop(0)

    assert machine.fastest(work, **options) == least
    assert left == []


@pytest.fixture
def files(monkeypatch, tmp_path):
    """What stands in /proc, if anything."""
    monkeypatch.setattr(
        machine, "Path", lambda name: tmp_path / name.removeprefix("/proc/")
    )
    return tmp_path


def test_a_cpu_is_called_what_its_maker_calls_it(files, monkeypatch):
    """Or as the system calls its kind; what is no text in it is no reason to fail."""
    monkeypatch.setattr(machine.platform, "processor", lambda: "a kind")
    monkeypatch.setattr(machine.platform, "machine", lambda: "an architecture")
    text = "processor : 0\nmodel name\t: A CPU: 2é \nmodel name : other\n"
    (files / "cpuinfo").write_bytes(text.encode() + b"\xff\n")
    assert machine.cpu_name() == "A CPU: 2é"
    (files / "cpuinfo").write_text("vendor : 1\n")
    assert machine.cpu_name() == "a kind"
    (files / "cpuinfo").unlink()
    assert machine.cpu_name() == "a kind"
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    assert machine.cpu_name() == "an architecture"
    monkeypatch.setattr(machine.platform, "machine", lambda: "")
    assert machine.cpu_name() == "an unknown CPU"


def test_memory_is_what_the_system_tells(files, monkeypatch):
    """Pages times their size in all; what is free in kibibytes, or all of it; nothing
    where the system has no such call, or does not know."""
    told = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(machine.os, "sysconf", told.__getitem__)
    assert machine.memory() == (4_096_000, 4_096_000)
    text = "MemTotal:    9 kB\nMemAvailable:    3 kB\nSwapFree:    5 kB\n"
    (files / "meminfo").write_text(text)
    assert machine.memory() == (3 * 1024, 4_096_000)
    for error in (AttributeError, ValueError, OSError):

        def refuse(name, error=error):
            raise error

        monkeypatch.setattr(machine.os, "sysconf", refuse)
        assert machine.memory() is None


def test_the_ratio_is_a_time_and_leaves_the_threads_alone():
    """slow_bf16_ratio() > 0, measured once, on one thread that is then given back."""
    threads = torch.get_num_threads()
    with torch.no_grad():
        first = machine.slow_bf16_ratio()
    assert 0 < first == machine.slow_bf16_ratio()
    assert torch.get_num_threads() == threads


def is_one_screen(out: str) -> None:
    """At most 24 lines of 80 ASCII columns, a rate and a share for each network."""
    lines = out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert out.isascii()
    for network in ("the toy", "base 32", "the paper's network"):
        assert re.search(rf"^{network} .*float\d+ .* \d+%$", out, re.MULTILINE)
    assert torch.__version__ in out


@pytest.mark.slow
def test_the_screen_is_one_screen(capsys):
    """`python -m tinyddpm doctor`, measured here."""
    threads = torch.get_num_threads()
    assert main(["doctor", "--device", "cpu"]) == 0
    is_one_screen(capsys.readouterr().out)
    assert torch.get_num_threads() == threads


def test_the_screen_is_one_screen_where_much_is_to_change(monkeypatch):
    """Also with every piece of advice there is, and a long foreign name of a CPU."""
    monkeypatch.setattr(screen, "measure", lambda *_: screen.Step(1, 1e6, 1e10))
    monkeypatch.setattr(screen, "product_rate", lambda *_: 1e12)
    monkeypatch.setattr(screen, "cpu_name", lambda: "Процессор " * 12)
    monkeypatch.setattr(screen, "memory", lambda: (2**30, 2**31))
    monkeypatch.setattr(screen, "_load", lambda: 1e3)
    monkeypatch.setattr(screen, "_processors", lambda: 16)
    monkeypatch.setattr(screen.shutil, "which", lambda _: "nvidia-smi")
    monkeypatch.setattr(screen.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(screen.torch.cuda, "is_available", lambda: False)
    out = screen.doctor("cpu")
    is_one_screen(out)
    assert len(out.partition(" days.")[2].splitlines()) == 2 + 6  # none is cut off
    assert "--micro-batch 1 " in out


def test_operations_are_counted_for_both_passes():
    """W x: 2 D² operations forward, and 2 D² for the weights' gradient, a picture."""
    D = 12

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Linear(D, D)

        def forward(self, x, t):
            return self.dense(x.flatten(1)).view_as(x)

    step = screen.measure(Net(), (3, 2, 2), False, 4, 0.1)
    assert step.pictures in (1, 4)
    assert step.flops == step.pictures * 4 * D**2
    assert step.seconds > 0
