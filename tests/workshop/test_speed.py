"""Laws of `workshop.speed`: a faster network is the same network."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tinyddpm.layers import Upsample
from tinyddpm.mlp import MLP
from tinyddpm.unet import UNet
from tinyddpm.workshop.speed import (
    FastDropout,
    FastUpsample,
    casts,
    fast_layers,
    faster,
    unwrapped,
)

from ..strategies import normal, seeds, share


def filled(net, seed=0):
    """The network in float64, none of its weights 0."""
    net = net.double()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p += 0.1 * normal(seed + i, p.shape)
    return net


def unet(dropout=0.0, **more):
    return filled(UNet(2, 8, (1, 2), (1,), dropout, **more))


def pictures(B=3):
    return normal(0, (B, 2, 4, 6)), 1 + 333 * torch.arange(B)


@share(40)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), seeds)
def test_fast_upsampling_equals_the_plain(h, w, channels, seed):
    """One transposed convolution is conv(interpolate(x)): values and gradients.

    Both are sums of at most 36 products a channel, of numbers of size 1 or so, in
    another order: float64's rounding, 1e-16 each.
    """
    plain = filled(Upsample(channels), seed)
    x = normal(seed, (2, channels, h, w)).requires_grad_()
    results = plain(x), FastUpsample(plain)(x)
    cotangent = normal(seed + 1, results[0].shape)
    wrt = [x, *plain.parameters()]
    gradients = [torch.autograd.grad(y, wrt, cotangent) for y in results]
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_fast_dropout_keeps_each_number_with_probability_1_minus_p(p):
    """E[dropout(x)] = x: kept with 1-p and divided by it, at each of the four coins.

    Seed 0, n = 4 · 50,000 in four series; each count lies within 5 of its standard
    deviations √(n q (1-q)) (false alarms: one in two hundred thousand series). So do
    pairs of neighbours, which a bad split of the 64 bits would tie together, and the
    same coin of two steps, which must not be tied either. nn.Dropout obeys the same.
    """
    x = normal(0, (50, 8, 25, 20)).abs() + 1
    for dropout, scale_error in ((FastDropout(p), 2**-15), (nn.Dropout(p), 1e-15)):
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            steps = [dropout(x) for _ in range(2)]
        for y in steps:
            kept = y != 0
            scaled = (x / (1 - p))[kept]
            torch.testing.assert_close(y[kept], scaled, rtol=scale_error, atol=0)
        first, second = ((y != 0).reshape(-1, 4).double() for y in steps)
        n = len(first)
        pairs = [(first[:, i], first[:, j]) for i in range(4) for j in range(i, 4)]
        pairs += [(first[:, i], second[:, i]) for i in range(4)]
        for one, other in pairs:
            q = (1 - p) if one.data_ptr() == other.data_ptr() else (1 - p) ** 2
            both = (one * other).sum().item()
            assert abs(both - n * q) < 5 * math.sqrt(n * q * (1 - q))


@share(40)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=4), st.booleans(), seeds)
def test_fast_dropout_of_any_shape_and_layout(shape, transposed, seed):
    """A number and its gradient are 0, or both scaled by 1/(1-p); in eval mode and at
    p = 0 nothing changes, and at p = 1 all is 0, as with nn.Dropout."""
    x = normal(seed, tuple(shape)).abs() + 1
    x = (x.transpose(0, 1) if transposed else x).requires_grad_()
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        y = FastDropout(0.25)(x)
    kept = y != 0
    assert y.shape == x.shape
    torch.testing.assert_close(y[kept], (x / 0.75)[kept], rtol=1e-15, atol=0)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, kept.double() / 0.75, rtol=1e-15, atol=0)
    for p, training in ((0.25, False), (0.0, True), (1.0, True), (1.0, False)):
        fast, plain = FastDropout(p).train(training), nn.Dropout(p).train(training)
        assert torch.equal(fast(x), plain(x))


@pytest.mark.parametrize("make", [unet, lambda: filled(MLP((2, 4, 6), 8, 2, 8))])
def test_a_twin_is_the_network_with_the_same_weights(make):
    """ε_θ and all gradients are the network's, to rounding in float64; every parameter
    and name is its own, so that what trains the one trains the other."""
    net = make()
    before = list(net.state_dict())
    twin = fast_layers(net)
    assert list(net.state_dict()) == list(twin.state_dict()) == before
    for (name, p), (same_name, q) in zip(
        net.named_parameters(), twin.named_parameters(), strict=True
    ):
        assert name == same_name
        assert p is q
    x, t = pictures()
    results = net(x, t), twin(x, t)
    wrt = list(net.parameters())
    gradients = [torch.autograd.grad(y.square().sum(), wrt) for y in results]
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        next(net.parameters()).zero_()
    torch.testing.assert_close(net(x, t), twin(x, t), rtol=1e-10, atol=1e-10)


def test_a_twin_replaces_its_own_layers_and_leaves_the_networks():
    """Every `Upsample` and `nn.Dropout` is replaced in the twin, sub-classes are not,
    and the network keeps its modules. Training flags are each one's own."""

    class Own(nn.Dropout):
        pass

    net = unet(dropout=0.5)
    net.own = Own(0.5)
    net.twice = nn.ModuleList([net.middle1, net.middle1])
    modules = list(net.modules())
    net.middle2.eval()
    flags = [m.training for m in modules]
    twin = fast_layers(net)
    kinds = [type(m) for m in twin.modules()]
    assert Upsample not in kinds
    assert nn.Dropout not in kinds
    assert kinds.count(FastUpsample) == 1
    assert kinds.count(FastDropout) == sum(type(m) is nn.Dropout for m in modules)
    assert kinds.count(Own) == 1
    assert twin.twice[0] is twin.twice[1] is twin.middle1
    assert [m.training for m in twin.modules()] == flags
    twin.train()
    assert all(m is n for m, n in zip(net.modules(), modules, strict=True))
    assert [m.training for m in net.modules()] == flags
    twin.eval()
    assert [m.training for m in net.modules()] == flags


def test_a_twin_shares_buffers_and_what_else_its_modules_hold():
    """A batch norm's running statistics go on in both; so does what hooks are told."""
    net, seen = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.0)), []
    net[0].register_forward_hook(lambda *_: seen.append(1))
    net[0].note = seen
    twin = fast_layers(net)
    twin(normal(0, (5, 2)).float() + 3)
    assert net[0].running_mean.min() > 0.1
    assert int(net[0].num_batches_tracked) == 1
    assert seen == [1]
    assert twin[0].note is seen


@pytest.mark.parametrize("compiled", [None, False, True])
def test_faster_is_the_same_function(compiled, monkeypatch):
    """Unwrapped and wrapped anew, on a CPU only when asked to; weights its own."""
    asked = []
    monkeypatch.setattr(torch, "compile", lambda net: asked.append(net) or net)
    net = unet().eval()
    x, t = pictures()
    quick = faster(net, bf16=False, compiled=compiled)
    assert len(asked) == (compiled is True)
    torch.testing.assert_close(quick(x, t), net(x, t), rtol=1e-10, atol=1e-10)
    assert not quick.training


def test_faster_in_bfloat16_is_near_and_float32_outside():
    """Matrix products keep eight bits: some 2^-8 of the output; weights stay float32.

    Also with arguments given by name, and with the layers in train or eval mode as
    they were."""
    net = copy.deepcopy(unet(num_classes=3)).float().eval()
    x, t = pictures()
    x, c = x.float(), torch.tensor([0, 3, 1])
    quick = faster(net, bf16=True)
    with torch.no_grad():
        exact, rounded = net(x, t, c), quick(x, t, c=c).float()
    assert not torch.equal(exact, rounded)
    assert float((exact - rounded).norm() / exact.norm()) < 0.05
    assert {p.dtype for p in quick.parameters()} == {torch.float32}
    assert not any(m.training for m in quick.modules())


@pytest.mark.parametrize("last", [True, False])
def test_the_order_in_memory_is_as_asked(last):
    """channels_last is of the weights themselves, the twin's and the network's."""
    net = unet()
    faster(net, channels_last=last)
    order = torch.channels_last if last else torch.contiguous_format
    assert net.middle1.conv1.weight.is_contiguous(memory_format=order)


def test_what_wraps_a_network_is_taken_off():
    """torch.compile, DataParallel, and one around the other; a plain one is itself."""
    net = unet()
    compiled = torch.compile(net, backend="eager")
    for wrapped in (net, compiled, nn.DataParallel(net), nn.DataParallel(compiled)):
        assert unwrapped(wrapped) is net


def test_a_layer_that_somebody_listens_to_is_left_alone():
    """Its hooks would not be called in another one's place; nor is a dropout replaced
    that changes its input. A place without a module stays one."""
    heard = []
    net = nn.Sequential(Upsample(2), nn.Dropout(0.5), nn.Dropout(0.5, inplace=True))
    net.register_module("nothing", None)
    net[0].register_forward_pre_hook(lambda *_: heard.append("before"))
    net[1].register_forward_hook(lambda *_: heard.append("after"))
    twin = fast_layers(net)
    assert [type(m) for m in twin[:3]] == [Upsample, nn.Dropout, nn.Dropout]
    twin[:3].eval()(torch.zeros(1, 2, 3, 3))
    assert heard == ["before", "after"]
    assert twin.nothing is None


class OnAGpu(nn.Linear):
    """Says that it is on the second GPU; nothing is computed there."""

    def parameters(self, recurse=True):
        yield SimpleNamespace(device=torch.device("cuda", 1))


@pytest.mark.parametrize("supported", [True, False])
def test_products_are_in_bfloat16_where_asked_or_where_a_gpu_has_them(
    monkeypatch, supported
):
    """In earnest: a GPU that emulates them is slower with them."""

    def is_bf16_supported(including_emulation=True):
        return supported or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [casts(cpu, x) for x in (None, False, True)] == [False, False, True]
    assert [casts(gpu, x) for x in (None, False, True)] == [supported, False, True]


def test_a_network_in_bfloat16_says_what_it_is(monkeypatch):
    """It has the classes and the mode of the one inside, and casts to bfloat16 where
    the pictures are, whatever that device would cast to by itself."""
    asked, autocast = [], torch.autocast
    monkeypatch.setattr(
        torch, "autocast", lambda *a: asked.append(a) or autocast("cpu", *a[1:])
    )
    net = unet(num_classes=3).float().train()
    quick = faster(net, bf16=True)
    assert (quick.num_classes, quick.training) == (3, True)
    assert faster(net.eval(), bf16=True).training is False
    assert faster(nn.Linear(2, 2), bf16=True).num_classes is None
    quick(pictures()[0].float(), pictures()[1], torch.tensor([0, 3, 1]))
    assert asked == [("cpu", torch.bfloat16)]


@pytest.mark.parametrize("on_gpu", [True, False])
def test_a_gpu_compiles_and_several_share(monkeypatch, on_gpu):
    """Unless told not to; one that was compiled is compiled anew. Processes average
    their gradients, each on the GPU that the network is on."""
    compiled, shared = [], []
    monkeypatch.setattr(torch, "compile", lambda net: compiled.append(net) or net)

    def share(net, device_ids):
        shared.append((type(net), device_ids))
        return net

    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", share)
    monkeypatch.setattr("tinyddpm.workshop.speed.unwrapped", lambda net: net)
    net = OnAGpu(2, 2) if on_gpu else nn.Linear(2, 2)
    for asked in (None, False, True):
        compiled.clear()
        quick = faster(net, False, compiled=asked)
        assert len(compiled) == (on_gpu if asked is None else asked)
        assert type(quick) is type(net)  # nothing around it that would do nothing
    assert shared == []
    compiled.clear()
    net._orig_mod = nn.Linear(1, 1)  # what torch.compile leaves in its own
    faster(net, False, compiled=False)
    assert compiled == []
    faster(net, False, together=True)
    assert len(compiled) == 1
    gpus = [torch.device("cuda", 1)] if on_gpu else None
    assert shared == [(type(net), gpus)]


def test_masks_come_from_a_generator_of_their_own():
    """Where there is one, torch's own numbers are neither used nor drawn."""
    x, masks = torch.ones(3, 5), []
    dropout = FastDropout(0.5)
    for seed, other in ((1, 2), (1, 3), (2, 3)):
        with torch.random.fork_rng([]):
            torch.manual_seed(other)
            before = torch.random.get_rng_state()
            dropout.generator = torch.Generator().manual_seed(seed)
            masks.append(dropout(x))
            assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_dropout_is_torch_s_where_it_is_as_fast(monkeypatch):
    """While a network is compiled, on other devices, and for p that 16 bits take for 0
    or 1; the smallest and largest that they do not are tossed here."""
    plain = []
    forward = nn.Dropout.forward

    def noted(dropout, x):
        plain.append(dropout.p)
        return forward(dropout, x)

    monkeypatch.setattr(nn.Dropout, "forward", noted)
    unit, x = 2.0**-16, torch.ones(8)
    for p in (0.0, 0.4 * unit, 1 - 0.4 * unit, 1.0):
        FastDropout(p)(x)
    assert len(plain) == 4
    for p in (unit, 1 - unit):
        FastDropout(p)(x)
    assert len(plain) == 4
    FastDropout(0.5)(x.to("meta"))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    FastDropout(0.25)(x)
    assert plain[4:] == [0.5, 0.25]
