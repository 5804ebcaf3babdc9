"""The U-Net's layers: norm, resampling, initialisation (App. B)."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from tinyddpm.layers import Downsample, GroupNorm, Upsample, glorot, zero

from ..helpers import filled
from ..strategies import normal, seeds, share


@pytest.mark.parametrize("make", [glorot, zero])
def test_initialisation(make):
    """The authors' variance scaling: U(-a, a), a² = 6/(fan_in + fan_out); biases 0.

    n = 64·32·9 = 18432 draws: the largest misses a by 2a/n on average; the variance is
    a²/3 with a relative standard deviation of √(0.8/n) = 0.7 %, so 4 % is 6 of them.
    """
    torch.manual_seed(0)
    conv = make(nn.Conv2d(32, 64, 3))
    assert conv.bias.abs().max() == 0
    if make is zero:
        assert conv.weight.abs().max() == 0
        return
    a = math.sqrt(6 / (9 * 32 + 9 * 64))
    assert 0.99 * a < conv.weight.abs().max() <= a
    assert math.isclose(conv.weight.var().item(), a**2 / 3, rel_tol=0.04)


@share(100)
@given(st.integers(2, 500), seeds)
@example(66, 0)  # 33 groups of 2 would fit
def test_group_norm(channels, seed):
    """At most 32 groups of 2 channels or more, each of mean 0 and variance 1 after.

    Of variance v/(v + 1e-6), to be exact, v being the variance before.
    """
    norm = GroupNorm(channels).double()
    assert 1 <= norm.num_groups <= 32
    assert channels // norm.num_groups >= 2
    assert norm.num_groups == 32 or channels % 64  # 32 wherever they have 2 channels
    x = 3 + 2 * normal(seed, (2, channels, 3, 2))
    before, after = (
        y.reshape(2, norm.num_groups, -1).var(2, correction=0) for y in (x, norm(x))
    )
    means = norm(x).reshape(2, norm.num_groups, -1).mean(2)
    assert means.abs().max() < 1e-9
    torch.testing.assert_close(after, before / (before + 1e-6), rtol=1e-9, atol=0)


def test_group_norm_refuses_a_channel_alone():
    """One channel a group would cancel the time embedding, so 1 channel is refused."""
    with pytest.raises(ValueError, match="2 channels a group at least, got 1"):
        GroupNorm(1)


@share(40)
@given(st.integers(1, 4), st.integers(1, 4), seeds)
def test_downsampling_pads_on_the_right_and_bottom(h, w, seed):
    """y[i, j] = Σ_uv w[u, v] x[2i + u, 2j + v] + b with zeros beyond the far edges.

    Summed tap by tap from shifted pictures. Padded on both sides, windows would begin
    at -1, and the published weights would see everything one pixel away.
    """
    down = filled(Downsample(3), seed)
    x = normal(seed, (2, 3, 2 * h, 2 * w))
    beyond = torch.zeros(2, 3, 2 * h + 2, 2 * w + 2, dtype=x.dtype)
    beyond[:, :, : 2 * h, : 2 * w] = x
    expected = down.conv.bias[:, None, None].clone()
    for u in range(3):
        for v in range(3):
            tap = beyond[:, :, u : u + 2 * h : 2, v : v + 2 * w : 2]
            weight = down.conv.weight[:, :, u, v]
            expected = expected + torch.einsum("oi,bihw->bohw", weight, tap)
    torch.testing.assert_close(down(x), expected, rtol=0, atol=1e-12)


@share(40)
@given(st.integers(1, 5), st.integers(1, 5), seeds)
def test_upsampling_is_nearest_neighbour_then_a_convolution(h, w, seed):
    """y[i, j] = Σ_uv w[u, v] x[(i + u - 1)//2, (j + v - 1)//2] + b, 0 beyond the edges.

    Each pixel of x is written four times, and the taps are summed one by one.
    """
    up, x = filled(Upsample(3), seed), normal(seed, (2, 3, h, w))
    beyond = torch.zeros(2, 3, 2 * h + 2, 2 * w + 2, dtype=x.dtype)
    i, j = torch.arange(2 * h) // 2, torch.arange(2 * w) // 2
    beyond[:, :, 1:-1, 1:-1] = x[:, :, i[:, None], j]
    expected = up.conv.bias[:, None, None]
    for u in range(3):
        for v in range(3):
            tap = beyond[:, :, u : u + 2 * h, v : v + 2 * w]
            weight = up.conv.weight[:, :, u, v]
            expected = expected + torch.einsum("oi,bihw->bohw", weight, tap)
    torch.testing.assert_close(up(x), expected, rtol=0, atol=1e-12)
