"""App. B: the sinusoidal embedding of t."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyddpm import MLP, UNet, time_embedding


@given(st.floats(0, 1e4), st.integers(2, 40).map(lambda half: 2 * half))
def test_time_embedding_is_all_sines_then_all_cosines(t, dim):
    """App. B: sin(ω_i t) and cos(ω_i t), ω from 1 down to 1/10000 in even ratios.

    sin² + cos² = 1 tells which pairs belong together; ω is read off by the derivative.
    """
    t = torch.tensor([t], dtype=torch.float64)
    table, slope = torch.autograd.functional.jvp(
        lambda t: time_embedding(t, dim), t, torch.ones_like(t)
    )
    sin, cos = table[0].chunk(2)
    torch.testing.assert_close(
        sin**2 + cos**2, torch.ones_like(sin), rtol=0, atol=1e-14
    )
    omega = slope[0].chunk(2)[0] * cos - slope[0].chunk(2)[1] * sin
    assert abs(float(omega[0]) - 1) < 1e-12
    assert abs(float(omega[-1]) - 1e-4) < 1e-12
    ratios = omega[1:] / omega[:-1]
    even = torch.full_like(ratios, math.exp(-math.log(1e4) / (dim // 2 - 1)))
    torch.testing.assert_close(ratios, even, rtol=1e-9, atol=0)
    at_zero = time_embedding(torch.zeros(1), dim)
    assert at_zero.dtype == torch.float32
    assert at_zero[0].tolist() == [0.0] * (dim // 2) + [1.0] * (dim // 2)


@pytest.mark.parametrize("dim", [0, 2, 5])
def test_time_embedding_refuses_odd_and_tiny_widths(dim):
    """At 2 the exponent's denominator dim/2 - 1 is 0; an odd width has no pairs."""
    with pytest.raises(ValueError, match=f"even and >= 4, got {dim}"):
        time_embedding(torch.ones(1), dim)


@pytest.mark.parametrize("dtype", [torch.long, torch.float32, torch.bfloat16])
def test_a_step_of_any_dtype_has_one_embedding(dtype):
    """sin and cos of ω_i t in float64, rounded once, for the t that the dtype holds."""
    t = torch.tensor([1, 334, 996]).to(dtype)
    exact = time_embedding(t.double(), 32)
    assert exact.dtype == torch.float64
    assert torch.equal(time_embedding(t, 32), exact.float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [lambda: MLP((3, 2, 2)), lambda: UNet(3, 8, (1, 1))])
def test_networks_round_the_embedding_once(make, dtype):
    """Whatever dtype the pictures have: bfloat16 would make 996 of t = 997, and float32
    lose the last digits of ω_i t."""
    net, seen = make().to(dtype), []
    first = net.emb1 if isinstance(net, MLP) else net.dense1
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    t = torch.tensor([1, 334, 997])
    net(torch.zeros(3, 3, 2, 2, dtype=dtype), t)
    exact = time_embedding(t.double(), first.in_features)
    assert torch.equal(seen[0], exact.to(dtype))
