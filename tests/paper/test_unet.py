"""App. B: the U-Net.

Networks here are narrow and in float64, so that "equal" can mean to 1e-12.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tinyddpm.layers import GroupNorm
from tinyddpm.mlp import time_embedding
from tinyddpm.unet import ResBlock, SelfAttention, UNet

from ..helpers import filled, small_unet, unet_batch
from ..strategies import normal, seeds, share


@st.composite
def unets(draw, lowest: int = 1, **arguments) -> tuple[UNet, int, int]:
    """Networks of every sort that stays small, with a picture's H and W for them.

    Args:
        lowest: least height and width at the lowest level. At 1 x 1 a group of two
            channels holds two numbers, and the norm of two numbers is ±1 whatever
            they are; and a pixel alone has nobody to attend to.
    """
    multipliers = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    levels = draw(st.sets(st.integers(0, len(multipliers) - 1)))
    net = UNet(
        in_channels=draw(st.integers(1, 4)),
        base=draw(st.sampled_from([4, 6, 8, 10])),
        multipliers=multipliers,
        attention_levels=sorted(levels),
        **arguments,
    )
    H, W = (net.factor * draw(st.integers(lowest, 3)) for _ in range(2))
    return net, H, W


# The network as appendix B has it


def test_the_paper_s_network_has_35_746_307_parameters():
    """App. B, the published weights: the default is the paper's, to the last weight."""
    assert sum(p.numel() for p in UNet().parameters()) == 35_746_307


@share(40)
@given(unets(), seeds)
def test_the_output_is_zero_at_the_start(drawn, seed):
    """The last convolution starts at 0: ε_θ = 0 for any x, t, size and network."""
    net, H, W = drawn
    x = normal(seed, (2, net.in_channels, H, W), torch.float32)
    eps_hat = net(x, torch.tensor([1, 1000]))
    assert eps_hat.shape == x.shape
    assert eps_hat.abs().max() == 0


@pytest.mark.parametrize(("block", "inputs"), [(ResBlock, 2), (SelfAttention, 1)])
def test_each_branch_is_zero_at_the_start(block, inputs):
    """Residual and attention branches end in a layer of zeros: block(x) = x at first.

    Nothing above a block may undo its zeros, so the blocks are those of a whole net.
    """
    net = UNet(2, 8, (1, 2)).double()
    blocks = [m for m in net.modules() if isinstance(m, block)]
    assert blocks
    for m in blocks:
        channels = m.norm.num_channels if inputs == 1 else m.norm1.num_channels
        x = normal(1, (2, channels, 4, 4))
        rest = (x, normal(2, (2, 32)))[:inputs]
        expected = m.shortcut(x) if inputs == 2 else x
        assert torch.equal(m(*rest), expected)


def test_the_embedding_goes_through_dense_silu_dense_silu_dense():
    """App. B: the sinusoids pass a small MLP, and each block has a dense layer more."""
    net, (x, t) = small_unet(), unet_batch()
    seen = []
    for m in net.modules():
        if isinstance(m, ResBlock):
            m.dense.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    net(x, t)
    emb = time_embedding(t.double(), 8)
    expected = F.silu(net.dense2(F.silu(net.dense1(emb))))
    assert len(seen) == 2 * 2 + 2 + 2 * 3  # down, middle, up
    for emb in seen:
        torch.testing.assert_close(emb, expected, rtol=0, atol=1e-12)


# What the output depends on


@share(20)
@given(unets(lowest=2, num_classes=3), seeds)
def test_every_parameter_is_reached_by_a_gradient(drawn, seed):
    """No layer is built and left out: the gradient of each θ is not 0, but for two.

    The bias of k adds the same to a pixel's logits, which softmax does not see; of the
    class embedding, the rows that were not asked for. 1e-12 tells 0 from rounding.
    """
    net, H, W = drawn
    net = filled(net, seed).train()
    x, t = normal(seed, (2, net.in_channels, H, W)), torch.tensor([3, 700])
    eps_hat = net(x, t, torch.tensor([0, 3]))
    (eps_hat * normal(seed + 1, eps_hat.shape)).sum().backward()
    for name, p in net.named_parameters():
        seen = p.grad.abs().max() > 1e-12
        assert seen == (not name.endswith(".k.bias")), name
    assert net.classes.weight.grad[1:3].abs().max() == 0


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_each_level_reads_what_the_one_before_it_makes(multipliers):
    """Any multipliers, the first too: a level's first block reads the level above's.

    At full resolution that is conv_in, which makes `base` channels.
    """
    net = UNet(2, 4, multipliers, (), 0.0)
    reads = [level.blocks[0].conv1.in_channels for level in net.down]
    makes = [level.blocks[-1].conv2.out_channels for level in net.down]
    assert reads == [net.conv_in.out_channels, *makes[:-1]]


def test_every_output_depends_on_every_input_pixel():
    """Attention in the middle: each number of ε_θ sees every number of x_t."""
    net, (x, t) = small_unet(), unet_batch(B=1)
    x.requires_grad_()
    eps_hat = net(x, t)
    for number in eps_hat.flatten():
        (gradient,) = torch.autograd.grad(number, x, retain_graph=True)
        assert gradient.abs().min() > 0


@share(40)
@given(unets(lowest=2), seeds, st.integers(1, 999))
def test_the_output_depends_on_t(drawn, seed, t):
    """ε_θ(x, t) ≠ ε_θ(x, t + 1): no norm cancels what the embedding adds."""
    net, H, W = drawn
    net, x = filled(net, seed), normal(seed, (1, net.in_channels, H, W))
    now, later = (net(x, torch.tensor([step])) for step in (t, t + 1))
    assert (now - later).abs().max() > 1e-9


@share(40)
@given(unets(), seeds)
def test_a_picture_s_output_does_not_depend_on_the_rest_of_the_batch(drawn, seed):
    """Group norm, not batch norm: a mixed batch equals its items one by one; any order.

    1e-12: float64 sums of some hundred terms, in another order for another B.
    """
    net, H, W = drawn
    net, t = filled(net, seed), torch.tensor([1, 500, 1000])
    x = normal(seed, (3, net.in_channels, H, W))
    together = net(x, t)
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1]) for i in range(3)])
    order = torch.tensor([2, 0, 1])
    scale = together.abs().max().item()
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12 * scale)
    torch.testing.assert_close(
        net(x[order], t[order]), together[order], rtol=0, atol=1e-12 * scale
    )


def test_every_saved_activation_is_read_on_the_way_up():
    """Each block going up reads, last saved first, one tensor of the way down.

    So the list ends empty, the finest skip is not lost, and every skip has a gradient.
    """
    net, (x, t) = small_unet(), unet_batch()
    saved, read = [], []
    net.up[0].register_forward_pre_hook(lambda m, args: saved.extend(args[2]))
    for level in net.up:
        for block in level.blocks:
            block.register_forward_pre_hook(lambda m, args: read.append(args[0]))
    eps_hat = net(x, t)
    assert len(read) == len(saved) == 6
    for skip, cat in zip(reversed(saved), read, strict=True):
        assert torch.equal(cat[:, -skip.shape[1] :], skip)
        (gradient,) = torch.autograd.grad(
            eps_hat.square().sum(), cat, retain_graph=True
        )
        assert gradient[:, -skip.shape[1] :].abs().amax((0, 2, 3)).min() > 0


def test_asking_changes_nothing():
    """In eval mode ε_θ is a function: asked twice, the same; torch's RNG untouched."""
    net, (x, t) = small_unet(), unet_batch()
    state, weights = torch.get_rng_state(), [p.clone() for p in net.parameters()]
    first, second = net(x, t), net(x, t)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, weights, net.parameters()))


def test_in_training_dropout_is_drawn_anew_and_a_seed_repeats_it():
    """App. B's dropout: two passes differ, two passes from one seed do not."""
    net, (x, t) = small_unet().train(), unet_batch()
    torch.manual_seed(0)
    first, second = net(x, t), net(x, t)
    torch.manual_seed(0)
    assert torch.equal(net(x, t), first)
    assert not torch.equal(first, second)


# Classes


def test_no_class_is_the_class_after_the_last():
    """c = None and c = num_classes ask for the same; a class asks for another."""
    net, (x, t) = small_unet(num_classes=4), unet_batch()
    none = net(x, t)
    assert torch.equal(net(x, t, torch.tensor([4, 4, 4])), none)
    mixed = net(x, t, torch.tensor([4, 0, 1]))
    torch.testing.assert_close(mixed[0], none[0], rtol=0, atol=1e-12)
    assert (mixed[1:] - none[1:]).abs().amax((1, 2, 3)).min() > 1e-6


def test_a_class_is_added_to_the_embedding_of_t():
    """An embedding row of zeros is no class at all: ε_θ(x, t, c) is then ε_θ(x, t)."""
    with_classes, without = small_unet(num_classes=4), small_unet()
    with torch.no_grad():
        with_classes.classes.weight[2] = 0
    without.load_state_dict(
        {k: v for k, v in with_classes.state_dict().items() if "classes" not in k}
    )
    x, t = unet_batch()
    torch.testing.assert_close(
        with_classes(x, t, torch.tensor([2, 2, 2])), without(x, t), rtol=0, atol=1e-12
    )


# Precision, layout, compilation


def test_float64_all_through():
    """A float64 network computes in float64, the sinusoids of t included.

    Moved by 1e-9, x moves the output along its gradient: float32 anywhere inside would
    round that away. And float32 agrees to its own precision.
    """
    net, (x, t) = small_unet(), unet_batch()
    seen = []
    net.dense1.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    eps_hat = net(x, t)
    assert eps_hat.dtype == torch.float64
    assert torch.equal(seen[0], time_embedding(t.double(), 8))
    nudge, v = 1e-9 * normal(5, x.shape), normal(6, x.shape)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad((net(x, t) * v).sum(), x)
    moved = ((net(x + nudge, t) - eps_hat) * v).sum()
    torch.testing.assert_close(moved, (gradient * nudge).sum(), rtol=1e-4, atol=0)
    in_float32 = net.float()(x.float(), t)
    torch.testing.assert_close(in_float32.double(), eps_hat, rtol=1e-3, atol=1e-4)


def test_under_autocast_norms_and_softmax_compute_in_float32(monkeypatch):
    """bfloat16 for products alone: 8 bits are too few for sums over a picture.

    A norm of bfloat16 numbers is the float32 norm of them, rounded once at its end.
    """
    net = small_unet().float()
    seen, softmaxes, softmax = [], [], torch.softmax

    def watched(*args, **kwargs):
        softmaxes.append(softmax(*args, **kwargs))
        return softmaxes[-1]

    monkeypatch.setattr(torch, "softmax", watched)
    for m in net.modules():
        if isinstance(m, GroupNorm):
            m.register_forward_hook(lambda m, args, y: seen.append((m, args[0], y)))
    x, t = unet_batch()
    with torch.autocast("cpu", torch.bfloat16):
        eps_hat = net(x.float(), t)
    assert eps_hat.dtype == torch.bfloat16
    assert len(seen) == 2 * 12 + 6 + 1  # two a block, one an attention, the last
    for norm, x_low, y in list(seen):
        exact = norm(x_low.float())
        assert (y - exact).abs().max() <= 2**-8 * exact.abs().max()
    assert [y.dtype for y in softmaxes] == 6 * [torch.float32]
    exact = net(x.float(), t)
    # bfloat16 has 8 bits: 2⁻⁹ at a rounding, some 50 of them one after the other.
    assert (eps_hat - exact).abs().max() < 50 * 2**-9 * exact.abs().max()


def test_any_memory_layout_gives_the_same():
    """channels_last and the plain layout are one function."""
    net, (x, t) = small_unet(), unet_batch()
    expected = net(x, t)
    net, x = (a.to(memory_format=torch.channels_last) for a in (net, x))
    torch.testing.assert_close(net(x, t), expected, rtol=0, atol=1e-12)


@pytest.mark.slow  # torch.compile takes seconds to wake up
@pytest.mark.parametrize("training", [False, True])
def test_the_compiler_takes_it_whole(training):
    """No Python that depends on values in a tensor: one graph, the same output."""
    net, (x, t) = small_unet(num_classes=4, dropout=0.0).train(training), unet_batch()
    c = torch.tensor([0, 4, 1])
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, t, c), net(x, t, c), rtol=0, atol=1e-12)
    torch._dynamo.reset()


@share(40)
@given(st.integers(1, 4), st.integers(1, 4), seeds)
def test_self_attention_is_softmax_of_q_kt_times_v(h, w, seed):
    """x + out(softmax(q kᵀ/√C) v), by torch's own attention."""
    attention = filled(SelfAttention(6), seed)
    x = normal(seed, (2, 6, h, w))
    q, k, v = (
        f(attention.norm(x)).flatten(2).mT
        for f in (attention.q, attention.k, attention.v)
    )
    mixed = F.scaled_dot_product_attention(q, k, v).mT.unflatten(2, (h, w))
    torch.testing.assert_close(
        attention(x), x + attention.out(mixed), rtol=0, atol=1e-12
    )


# The door


@pytest.mark.parametrize(
    ("x", "t", "c", "message"),
    [
        ((2, 3, 4, 4), (2,), None, r"\(B, 2, H, W\).*\(2, 3, 4, 4\)"),
        ((2, 4, 4), (2,), None, r"\(B, 2, H, W\)"),
        ((2, 2, 4, 5), (2,), None, "multiples of 2.*4 x 5"),
        ((2, 2, 0, 4), (2,), None, "multiples of 2.*0 x 4"),
        ((2, 2, 4, 4), (3,), None, r"t must be.*\(2, 2, 4, 4\), got \(3,\)"),
        ((2, 2, 4, 4), (), None, r"t must be.*got \(\)"),
        ((2, 2, 4, 4), (2, 1), None, r"t must be.*got \(2, 1\)"),
        ((2, 2, 4, 4), (2,), (1,), r"c must be.*\(2, 2, 4, 4\), got \(1,\)"),
    ],
)
def test_shapes_are_refused_by_name(x, t, c, message):
    """The error says what was given and what was expected; nothing is computed."""
    net = small_unet(num_classes=4)
    c = None if c is None else torch.zeros(c, dtype=torch.long)
    with pytest.raises(ValueError, match=message):
        net(torch.zeros(x).double(), torch.ones(t, dtype=torch.long), c)


@pytest.mark.parametrize("size", [(3, 4), (4, 3)])
def test_height_and_width_must_both_halve(size):
    """Each level but the last halves both, so both are multiples of 2 here."""
    net = UNet(1, 4, (1, 1), ())
    x, t = torch.zeros(1, 1, *size), torch.ones(1, dtype=torch.long)
    with pytest.raises(ValueError, match=f"multiples of 2, got {size[0]} x {size[1]};"):
        net(x, t)


def test_there_is_one_class_more_than_asked_for():
    """num_classes rows, and the one for "none"."""
    assert len(UNet(1, 4, (1,), (), num_classes=4).classes.weight) == 5


def test_dtypes_and_classes_are_refused_by_name():
    """8-bit pictures, t that is no index, classes out of range or for nobody."""
    net, (x, t) = small_unet(num_classes=4), unet_batch()
    with pytest.raises(
        ValueError, match=r"torch\.float64, got \(3, 2, 4, 6\), torch\.uint8"
    ):
        net(x.to(torch.uint8), t)
    with pytest.raises(ValueError, match=r"torch\.float64, got .*float32"):
        net(x.float(), t)
    with pytest.raises(ValueError, match=r"t must be a LongTensor.*float64"):
        net(x, t.double())
    with pytest.raises(ValueError, match=r"c must be a LongTensor.*float64"):
        net(x, t, t.double())
    for t_and_c, message in (
        ((3,), "t must be a LongTensor.*got int"),
        ((None,), "t must be a LongTensor.*got NoneType"),
        ((t, 3), "c must be a LongTensor.*got int"),
    ):
        with pytest.raises(ValueError, match=message):
            net(x, *t_and_c)
    for low, high in ((-1, 2), (0, 5)):
        with pytest.raises(
            ValueError, match=rf"c must lie in 0\.\.4, got {low}\.\.{high}"
        ):
            net(x, t, torch.tensor([low, high, 0]))
    with pytest.raises(
        ValueError, match=r"^this UNet has no classes: leave c out or set"
    ):
        small_unet()(x, t, torch.tensor([0, 0, 0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"multipliers": ()}, "multipliers"),
        ({"multipliers": (1, 0)}, "multipliers"),
        ({"attention_levels": (4,)}, r"\[0, 1, 2, 3\].*\(4,\)"),
        ({"attention_levels": (-1,)}, r"\(-1,\)"),
        ({"base": 2}, "even and >= 4.*got 2 and"),
        ({"base": 7}, "even and >= 4"),
        ({"in_channels": 0}, "in_channels and base must be whole and at least 1"),
        ({"dropout": 1.0}, r"dropout in \[0, 1\)"),
        ({"num_classes": 0}, "num_classes, if not None, must be .+ at least 1, got 0"),
    ],
)
def test_impossible_networks_are_refused(arguments, message):
    """A network that could not run is refused when it is made."""
    with pytest.raises(ValueError, match=message):
        UNet(**{"base": 8} | arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
def test_cuda_agrees_and_never_waits():
    """A step of training makes the host wait for the GPU nowhere; float64 agrees."""
    net, (x, t) = small_unet(num_classes=4), unet_batch()
    c = torch.tensor([0, 4, 1])
    expected = net(x, t, c)
    net, x, t, c = net.cuda(), x.cuda(), t.cuda(), c.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        eps_hat = net.train()(x, t, c)
        eps_hat.square().mean().backward()
        eps_hat = net.eval()(x, t, c)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(eps_hat.cpu(), expected, rtol=0, atol=1e-10)
