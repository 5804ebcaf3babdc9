"""What makes a network fast computes what the plain network computes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tinyddpm.layers import Upsample
from tinyddpm.workshop.speed import FastDropout, FastUpsample, faster

from ..helpers import filled, small_unet, unet_batch
from ..strategies import normal, seeds, share


@share(40)
@given(st.integers(1, 5), st.integers(1, 5), seeds)
def test_the_transposed_convolution_is_the_plain_upsampling(h, w, seed):
    """It equals conv(interpolate(x, 2)), values and gradients."""
    up, x = filled(Upsample(3), seed), normal(seed, (2, 3, h, w)).requires_grad_()
    results = FastUpsample(up)(x), up(x)
    cotangent = normal(seed + 1, (2, 3, 2 * h, 2 * w))
    wrt = [x, *up.parameters()]
    gradients = [torch.autograd.grad(y, wrt, cotangent) for y in results]
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_keeps_each_number_with_probability_1_minus_p(p):
    """E[dropout(x)] = x: kept with 1-p and divided by it, at each of the four coins.

    Seed 0, n = 4 · 50,000 in four series; each count lies within 5 of its standard
    deviations √(n p (1-p)) (false alarms: one in two hundred thousand series), and so
    do pairs of neighbours, which a bad split of the 64 bits would tie together.
    """
    torch.manual_seed(0)
    dropout, x = FastDropout(p), normal(0, (50, 8, 25, 20)).abs() + 1
    y = dropout(x)
    kept = y != 0
    torch.testing.assert_close(y[kept], (x / (1 - p))[kept], rtol=2**-15, atol=0)
    coins = kept.reshape(-1, 4).double()  # in the order they are drawn
    n = len(coins)
    for i in range(4):
        for j in range(i, 4):
            q = (1 - p) if i == j else (1 - p) ** 2
            both = (coins[:, i] * coins[:, j]).sum().item()
            assert abs(both - n * q) < 5 * math.sqrt(n * q * (1 - q))


@share(40)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=4), seeds)
def test_dropout_of_any_shape(shape, seed):
    """A number is 0 or scaled, all by the same; untouched in eval and at p = 0."""
    x = normal(seed, tuple(shape)).abs() + 1
    torch.manual_seed(seed)
    y = FastDropout(0.25)(x)
    assert y.shape == x.shape
    torch.testing.assert_close(y[y != 0], (x / 0.75)[y != 0], rtol=1e-15, atol=0)
    assert torch.equal(FastDropout(0.25).eval()(x), x)
    assert torch.equal(FastDropout(0.0)(x), x)


def test_dropout_follows_the_order_in_memory():
    """Channels innermost or not, each number that is kept is its own, scaled."""
    x = normal(0, (2, 3, 4, 5)).abs() + 1
    x = x.to(memory_format=torch.channels_last)
    y = FastDropout(0.5)(x)
    torch.testing.assert_close(y[y != 0], 2 * x[y != 0])


def test_the_twin_computes_the_same_and_shares_its_weights():
    """Values and gradients of the whole U-Net, to rounding; no weight is a copy."""
    net, (x, t) = small_unet(dropout=0.0), unet_batch()
    twin = faster(net, bf16=False, compiled=False)
    kinds = [type(m) for m in twin.modules()]
    assert FastUpsample in kinds
    assert nn.Dropout not in kinds
    assert all(map(lambda p, q: p is q, net.parameters(), twin.parameters()))
    assert [type(m) for m in net.modules()].count(Upsample) == 1
    outputs = net(x, t), twin(x, t)
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
    weights = list(net.parameters())
    cotangent = normal(1, x.shape)
    gradients = [torch.autograd.grad(y, weights, cotangent) for y in outputs]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)
