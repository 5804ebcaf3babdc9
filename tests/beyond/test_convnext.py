"""The laws of the ConvNeXt block and of linear attention, alone and in the U-Net."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tinyddpm.beyond.convnext import ConvNeXtBlock, LinearAttention
from tinyddpm.unet import ResBlock, SelfAttention, UNet

from ..helpers import filled, unet_batch
from ..strategies import normal, seeds, share

plug_ins = pytest.mark.parametrize(
    ("block", "attention"),
    [
        (ConvNeXtBlock, SelfAttention),
        (ResBlock, LinearAttention),
        (ConvNeXtBlock, LinearAttention),
    ],
)


@plug_ins
def test_they_go_into_the_u_net(block, attention):
    """UNet(block=..., attention=...) and no line more: 0 at the start, then of use.

    Filled, every parameter has a gradient, but the bias of k, which softmax does not
    see; and the output depends on t and on each pixel of x.
    """
    net = UNet(2, 8, (1, 2), dropout=0.0, block=block, attention=attention)
    x, t = unet_batch()
    assert net(x.float(), t).abs().max() == 0
    net, x = filled(net), x.requires_grad_()
    eps_hat = net(x, t)
    assert (net(x, t + 1) - eps_hat).abs().amax((1, 2, 3)).min() > 1e-6
    (eps_hat * normal(1, eps_hat.shape)).sum().backward()
    assert x.grad.abs().min() > 0
    for name, p in net.named_parameters():
        seen = p.grad.abs().max() > 1e-12
        assert seen == (not name.endswith(".k.bias")), name


@plug_ins
def test_under_autocast(block, attention, monkeypatch):
    """bfloat16 for products: near the exact result (2⁻⁹ a rounding, some 50 times).

    Each softmax is in float32, as the paper's attention takes it too.
    """
    taken, softmax = set(), torch.softmax

    def watched(*args, **kwargs):
        weights = softmax(*args, **kwargs)
        taken.add(weights.dtype)
        return weights

    monkeypatch.setattr(torch, "softmax", watched)
    net = filled(UNet(2, 8, (1, 2), block=block, attention=attention)).float()
    x, t = unet_batch()
    exact = net(x.float(), t)
    with torch.autocast("cpu", torch.bfloat16):
        eps_hat = net(x.float(), t)
    assert (eps_hat - exact).abs().max() < 50 * 2**-9 * exact.abs().max()
    assert taken == {torch.float32}


@share(40)
@given(st.integers(1, 9), st.integers(1, 9), seeds)
def test_the_embedding_is_added_to_the_features(h, w, seed):
    """With emb = 0 the block still reads x through its 7x7 convolution, tap by tap.

    A block that put the embedding in the place of its features would lose what the
    depthwise convolution computed.
    """
    block = filled(ConvNeXtBlock(4, 6, 8, 0.0), seed)
    x, emb = normal(seed, (2, 4, h, w)), normal(seed + 1, (2, 8))
    beyond, features = F.pad(x, (3, 3, 3, 3)), 0
    for u in range(7):
        for v in range(7):
            tap = block.depthwise.weight[:, 0, u, v][:, None, None]
            features = features + tap * beyond[:, :, u : u + h, v : v + w]
    features = features + block.depthwise.bias[:, None, None]
    features = (
        features + (emb @ block.dense.weight.T + block.dense.bias)[..., None, None]
    )
    branch = block.contract(F.gelu(block.expand(block.norm(features))))
    torch.testing.assert_close(
        block(x, emb), block.shortcut(x) + branch, rtol=0, atol=1e-12
    )


def with_plain_ends(attention: LinearAttention) -> LinearAttention:
    """x + mixed values alone: the last layer of the branch is the identity."""
    with torch.no_grad():
        attention.out.weight.copy_(
            torch.eye(len(attention.out.weight))[..., None, None]
        )
        attention.out.bias.zero_()
    return attention


@share(40)
@given(st.integers(1, 4), st.integers(1, 4), seeds)
def test_equal_values_come_back_as_they_are(h, w, seed):
    """v the same at every pixel ⇒ so is the result: the weights add up to 1.

    Only if k's softmax is over positions: over features, it would be a sum that grows
    with the picture.
    """
    attention = with_plain_ends(filled(LinearAttention(6), seed))
    with torch.no_grad():
        attention.v.weight.zero_()
    x = normal(seed, (2, 6, h, w))
    # out[c] = Σ_d softmax(q)_d Σ_n softmax(k)_nd v_nc = v_c
    v = attention.v.bias[:, None, None].expand_as(x)
    torch.testing.assert_close(attention(x), x + v, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [LinearAttention, SelfAttention])
def test_pixels_have_no_order(kind):
    """Permute the pixels of x, and the result is permuted alike."""
    attention, x = filled(kind(6)), normal(0, (2, 6, 3, 5))
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))

    def permuted(x):
        return x.flatten(2)[..., order].unflatten(2, (3, 5))

    torch.testing.assert_close(
        attention(permuted(x)), permuted(attention(x)), rtol=0, atol=1e-12
    )


@share(40)
@given(st.integers(1, 4), st.integers(1, 4), seeds)
def test_it_is_the_attention_of_the_product_of_two_softmaxes(h, w, seed):
    """(softmax(q) softmax(k)ᵀ) v with the pixels-by-pixels table written out.

    The table's rows add up to 1, as those of full attention do.
    """
    attention = with_plain_ends(filled(LinearAttention(6), seed))
    x = normal(seed, (2, 6, h, w))
    q, k, v = (
        f(attention.norm(x)).flatten(2) for f in (attention.q, attention.k, attention.v)
    )
    q, k = (a.exp() / a.exp().sum(dim, True) for a, dim in ((q, 1), (k, 2)))
    table = torch.einsum("bdi,bdj->bij", q, k)
    torch.testing.assert_close(table.sum(2), torch.ones_like(table[..., 0]))
    mixed = torch.einsum("bij,bcj->bci", table, v).unflatten(2, (h, w))
    torch.testing.assert_close(attention(x), x + mixed, rtol=0, atol=1e-12)
