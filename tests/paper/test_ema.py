"""App. B: the moving average of the weights."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tinyddpm import EMA

from ..strategies import seeds


@given(st.integers(1, 40), st.floats(0, 0.9999), seeds)
def test_the_average_in_closed_form(n, decay, seed):
    """App. B: θ_ema = d^n θ_0 + (1 - d) Σ_i d^(n-i) θ_i, θ_0 the initial weights."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Linear(3, 2, dtype=torch.float64)
    start = net.weight.detach().clone()
    ema, expected = EMA(net, decay), decay**n * start
    for i in range(1, n + 1):
        theta = torch.randn(2, 3, generator=generator, dtype=torch.float64)
        net.weight.data = net.weight.data.copy_(theta)
        ema.update()
        expected = expected + (1 - decay) * decay ** (n - i) * theta
    torch.testing.assert_close(ema.net.weight.data, expected, rtol=1e-12, atol=1e-12)


def test_buffers_are_copied():
    """What is no weight, such as a batch norm's statistics, is that of the network."""
    net = nn.BatchNorm1d(3).train()
    ema = EMA(net, 0.9)
    for seed in range(3):
        net(torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)) + 2)
        ema.update()
    assert int(net.num_batches_tracked) == 3
    for name, buffer in net.named_buffers():
        assert torch.equal(ema.net.get_buffer(name), buffer), name
        assert ema.net.get_buffer(name) is not buffer


def test_the_average_is_a_network_of_its_own():
    """App. B: another copy, to sample from: in eval mode, without gradients; the
    network that is trained is left as it was."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    before = net.state_dict()
    ema = EMA(net, 0.5)
    assert not any(m.training for m in ema.net.modules())
    assert not any(p.requires_grad for p in ema.net.parameters())
    assert all(m.training for m in net.modules())
    net[0].weight.data.add_(1)
    ema.update()
    assert torch.allclose(ema.net[0].weight, before["0.weight"] - 0.5)
    assert all(p.requires_grad for p in net.parameters())
