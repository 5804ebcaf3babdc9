"""The toy's network: what any ε_θ must keep, on small MLPs in float64.

Its gradients are held against the NumPy autograd in `reference/test_autograd.py`.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyddpm.mlp import MLP

from ..strategies import normal, seeds

sizes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))


def small(seed: int, shape=(2, 2, 3), depth: int = 2) -> MLP:
    """A float64 MLP whose every weight is drawn: at initialisation the gate is 0."""
    net = MLP(shape, width=8, depth=depth, emb=6).double()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(normal(seed + i, p.shape) / 2)
    return net


@given(sizes, st.integers(1, 3), seeds)
def test_the_output_is_zero_at_initialisation(shape, depth, seed):
    """The loss then starts at E‖ε‖²/D = 1 whatever the data, as for App. B's U-Net."""
    net = MLP(shape, width=8, depth=depth, emb=4)
    x_t = normal(seed, (3, *shape), torch.float32)
    out = net(x_t, torch.tensor([1, 500, 1000]))
    assert out.shape == x_t.shape
    assert not out.any()


@given(sizes, st.integers(1, 3), seeds)
def test_every_weight_is_reached_by_a_gradient(shape, depth, seed):
    """No layer is built and left out: ∂L/∂w is not 0 in any parameter."""
    net = small(seed, shape, depth)
    x_t = normal(seed + 99, (5, *shape))
    net(x_t, torch.arange(1, 6)).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert float(p.grad.abs().max()) > 0, name


@given(seeds)
def test_the_output_depends_on_t_and_on_every_pixel(seed):
    """ε_θ(x_t, t) is a function of both: f too, not the gate alone, turns with t."""
    net, x_t = small(seed), normal(seed + 99, (1, 2, 2, 3))
    with torch.no_grad():
        ratio = net(x_t, torch.tensor([3])) / net(x_t, torch.tensor([4]))
    assert float(ratio.max() - ratio.min()) > 1e-6  # a gate alone would scale all alike
    x_t.requires_grad_()
    net(x_t, torch.tensor([3])).square().sum().backward()
    assert bool((x_t.grad != 0).all())


@given(seeds)
def test_a_batch_of_mixed_t_is_its_items_one_by_one(seed):
    """No item of a batch sees another (BatchNorm would mix noise levels)."""
    net, x_t = small(seed), normal(seed + 99, (4, 2, 2, 3))
    t = torch.tensor([1, 7, 7, 1000])
    one_by_one = torch.cat([net(x_t[i : i + 1], t[i : i + 1]) for i in range(4)])
    size = max(1, float(one_by_one.detach().abs().max()))
    rounding = 1e-14 * size  # sums in another order
    torch.testing.assert_close(net(x_t, t), one_by_one, rtol=0, atol=rounding)


def test_the_default_is_the_toys():
    """127,244 weights at 3x5x5: what the README's toy trains."""
    assert sum(p.numel() for p in MLP((3, 5, 5)).parameters()) == 127_244


@pytest.mark.parametrize(
    ("x_t", "t", "message"),
    [
        (torch.zeros(2, 3, 4, 4), torch.ones(2).long(), r"5, 5\).*got \(2, 3, 4, 4\)"),
        (
            torch.zeros(2, 75),
            torch.ones(2).long(),
            r"\(B, \*\(3, 5, 5\)\).*got \(2, 75\)",
        ),
        (
            torch.zeros(2, 3, 5, 5),
            torch.ones(1).long(),
            r"^t must be \(B,\).*\(2, 3, 5, 5\), got \(1,\)",
        ),
        (
            torch.zeros(2, 3, 5, 5),
            3,
            r"^t must be a LongTensor of shape \(B,\), got int",
        ),
        (torch.zeros(2, 3, 5, 5), torch.ones(2), r"LongTensor.*got torch\.float32"),
        (
            torch.zeros(2, 3, 5, 5).double(),
            torch.ones(2).long(),
            "float32, got .*float64",
        ),
    ],
)
def test_bad_input_is_named(x_t, t, message):
    """What was given and what was expected, in the error."""
    with pytest.raises(ValueError, match=message):
        MLP((3, 5, 5))(x_t, t)


def test_bad_sizes_are_named():
    """As above, for the constructor."""
    with pytest.raises(
        ValueError, match=r"shape must be .+ at least 1, got \(3, 0, 5\)"
    ):
        MLP((3, 0, 5))
    with pytest.raises(ValueError, match=r"width, depth and emb .+ got 0, 3, 64"):
        MLP((3, 5, 5), width=0)
    with pytest.raises(ValueError, match=r"width, depth and emb .+ got 128, 0, 64"):
        MLP((3, 5, 5), depth=0)
