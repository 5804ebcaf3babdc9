"""Laws of the precision that a machine is given, and of what `doctor` says about it."""

import re
import warnings

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


@pytest.mark.parametrize(
    ("sets", "bf16"),
    [
        ([], False),
        (["AVX2"], False),
        (["AVX2", "AVX512"], False),
        (["AVX2", "AVX512", "AVX512_BF16"], True),
        (["AVX2", "AVX512", "AVX512_BF16", "AMX"], True),
    ],
)
def test_a_cpu_computes_in_bfloat16_only_with_instructions_for_it(
    sets, bf16, monkeypatch
):
    """AVX512_BF16 or AMX: bfloat16; neither: float32; and the reason names them."""
    monkeypatch.setattr(machine, "instruction_sets", lambda: sets)
    monkeypatch.setattr(machine, "slow_bf16_ratio", lambda: pytest.fail("measured"))
    chosen, why = default_precision(CPU)
    assert chosen is bf16
    assert "AVX512_BF16" in why
    assert ("neither" in why) is not bf16


@pytest.mark.parametrize(("ratio", "bf16"), [(0.5, True), (0.95, False), (16.0, False)])
def test_where_pytorch_cannot_tell_the_clock_does(ratio, bf16, monkeypatch):
    """On another architecture, and where the private functions are gone: measured."""
    monkeypatch.setattr(machine, "slow_bf16_ratio", lambda: ratio)
    with monkeypatch.context() as other:
        other.setattr(machine.platform, "machine", lambda: "aarch64")
        assert default_precision(CPU)[0] is bf16
    for of in machine.TOLD_BY.values():
        monkeypatch.delattr(torch.cpu, of, raising=False)
    chosen, why = default_precision(CPU)
    assert chosen is bf16
    assert f"{ratio:.2f} times" in why


def test_the_ratio_is_a_time_and_leaves_the_threads_alone():
    """slow_bf16_ratio() > 0, measured once, on one thread that is then given back."""
    threads = torch.get_num_threads()
    with torch.no_grad():
        first = machine.slow_bf16_ratio()
    assert 0 < first == machine.slow_bf16_ratio()
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("fast", [True, False])
def test_a_run_takes_what_is_asked_and_says_what_it_takes(fast, monkeypatch):
    """asked beats the default; bfloat16 where it is slow warns, with the ratio."""
    why = "a reason"
    monkeypatch.setattr(machine, "default_precision", lambda device: (fast, why))
    monkeypatch.setattr(machine, "slow_bf16_ratio", lambda: 16.25)
    assert choose_precision(CPU, None) == (fast, f"{machine.name(fast)}: {why}")
    assert choose_precision(CPU, False)[0] is False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bf16, sentence = choose_precision(CPU, True)
    assert bf16 is True
    assert [("16.2 times" in str(w.message)) for w in caught] == [True] * (not fast)
    assert ("float32" in sentence) is not fast  # what the machine would take


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("fast", [True, False])
def test_a_resumed_run_keeps_its_precision(kept, fast, monkeypatch):
    """On any machine; the sentence says where this one would choose otherwise."""
    monkeypatch.setattr(machine, "default_precision", lambda device: (fast, "reason"))
    monkeypatch.setattr(machine, "slow_bf16_ratio", lambda: 16.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bf16, sentence = choose_precision(CPU, None, kept)
        assert choose_precision(CPU, kept, kept)[0] is kept
    assert bf16 is kept
    assert sentence.startswith(f"{machine.name(kept)}, as the checkpoint")
    assert ("reason" in sentence) is (fast is not kept)
    with pytest.raises(ValueError, match="the checkpoint was trained in"):
        choose_precision(CPU, not kept, kept)


@pytest.mark.parametrize("fast", [True, False])
def test_samples_are_drawn_as_the_run_was_trained_unless_that_is_slow(
    fast, monkeypatch
):
    """What is asked for wins. Else bfloat16 only for a run that was trained so, where
    it is fast; and only what the checkpoint tells is called "as it was trained".
    """
    monkeypatch.setattr(machine, "default_precision", lambda device: (fast, "reason"))
    for kept in (True, False, None):
        for asked in (True, False):
            bf16, sentence = precision_to_sample(CPU, asked, kept)
            assert bf16 is asked
            assert sentence == f"{machine.name(asked)}, as asked"
        bf16, sentence = precision_to_sample(CPU, None, kept)
        assert bf16 is (kept is True and fast)
        assert sentence.startswith(machine.name(bf16))
        assert ("as it was trained" in sentence) is (kept is bf16)


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
