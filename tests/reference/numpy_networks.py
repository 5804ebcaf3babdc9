"""The noise predictors in NumPy, from their description, for autograd.

ε_θ(x_t, t) is a function of a table of named weights: the U-Net from App. B, the toy's
network from its docstring. Of the torch code only the names and shapes of the weights
are taken over, so that they can be copied across by name; there is no dropout.

Tables of weights are {name: Node}; pictures are Nodes (B, C, H, W); t is an array (B,).
"""

from collections.abc import Mapping

import numpy as np

from .numpy_autograd import (
    Node,
    concatenate,
    conv2d,
    group_norm,
    silu,
    softmax,
    upsample,
)

Weights = Mapping[str, Node]


def sinusoids(t: np.ndarray, width: int) -> np.ndarray:
    """(B, width): sines, then cosines, of t at wavelengths from 2π to 10000·2π

    The wavelengths are a geometric row (Vaswani et al. 2017, as the authors' code has
    it), both ends included.
    """
    wavelengths = 2 * np.pi * np.geomspace(1, 10_000, width // 2)
    phase = 2 * np.pi * t[:, None] / wavelengths
    return np.concatenate([np.sin(phase), np.cos(phase)], 1)


def dense(p: Weights, name: str, x: Node) -> Node:
    """x Wᵀ + b over the last axis."""
    return x @ p[f"{name}.weight"].transpose(1, 0) + p[f"{name}.bias"]


def mlp(p: Weights, x: Node, t: np.ndarray) -> Node:
    """The toy's ε_θ = g(t) (x_t - y(x_t, t)): y a perceptron with skips, t modulates it

    Layer i adds SiLU((1 + scale) · dense(h) + shift), scale and shift being the two
    halves of what a dense layer makes of the embedding; another makes g of it.
    """
    emb = Node(sinusoids(t, p["emb1.weight"].shape[1]))
    emb = silu(dense(p, "emb2", silu(dense(p, "emb1", emb))))
    pixels = x.reshape(len(t), -1)
    h = dense(p, "first", pixels)
    width = h.shape[1]
    depth = len([name for name in p if name.endswith(".weight") and "dense." in name])
    for i in range(depth):
        modulation = dense(p, f"modulate.{i}", emb)
        scale, shift = modulation[:, :width], modulation[:, width:]
        h = h + silu((1.0 + scale) * dense(p, f"dense.{i}", h) + shift)
    eps_hat = dense(p, "gate", emb) * (pixels - dense(p, "last", h))
    return eps_hat.reshape(*x.shape)


def convolution(p: Weights, name: str, x: Node) -> Node:
    """An odd kernel that keeps the size of the picture."""
    w, b = p[f"{name}.weight"], p[f"{name}.bias"]
    around = (w.shape[-1] // 2,) * 2
    return conv2d(x, w, 1, around, around) + b.reshape(1, -1, 1, 1)


def down(p: Weights, name: str, x: Node) -> Node:
    """Half the size by a 3×3 convolution of stride 2, over an even picture.

    The authors' TensorFlow pads such a picture by one row below and one column right.
    """
    w, b = p[f"{name}.weight"], p[f"{name}.bias"]
    return conv2d(x, w, 2, (0, 1), (0, 1)) + b.reshape(1, -1, 1, 1)


def normalised(p: Weights, name: str, x: Node) -> Node:
    """Group norm: 32 groups, or as many as leave 2 channels or more to a group."""
    C = x.shape[1]
    groups = max(g for g in range(1, 33) if C % g == 0 and 2 * g <= C)
    return group_norm(x, groups, p[f"{name}.weight"], p[f"{name}.bias"], 1e-6)


def residual_block(p: Weights, name: str, x: Node, emb: Node) -> Node:
    """Wide ResNet's: norm, SiLU, convolution, twice; the embedding of t in between."""
    h = convolution(p, f"{name}.conv1", silu(normalised(p, f"{name}.norm1", x)))
    shift = dense(p, f"{name}.dense", silu(emb))
    h = h + shift.reshape(*shift.shape, 1, 1)
    h = convolution(p, f"{name}.conv2", silu(normalised(p, f"{name}.norm2", h)))
    if f"{name}.shortcut.weight" in p:  # the number of channels changes
        x = convolution(p, f"{name}.shortcut", x)
    return x + h


def attention(p: Weights, name: str, x: Node) -> Node:
    """x + what every pixel reads from all pixels; one head, the pixels in a row."""
    B, C, H, W = x.shape

    def each_pixel(layer: str, rows: Node) -> Node:
        w, b = p[f"{name}.{layer}.weight"], p[f"{name}.{layer}.bias"]
        return rows @ w.reshape(C, C).transpose(1, 0) + b

    rows = normalised(p, f"{name}.norm", x).reshape(B, C, H * W).transpose(0, 2, 1)
    q, k, v = (each_pixel(layer, rows) for layer in "qkv")
    read = softmax(q @ k.transpose(0, 2, 1) * C**-0.5, axis=2) @ v
    return x + each_pixel("out", read).transpose(0, 2, 1).reshape(B, C, H, W)


def unet(p: Weights, x: Node, t: np.ndarray, c: np.ndarray | None = None) -> Node:
    """App. B's ε_θ(x_t, t), or (x_t, t, c); its levels and attentions are those named.

    Two residual blocks a level on the way down, three on the way up, each beside one of
    the features kept on the way down: those of the first convolution, of every block
    and of every halving, the last kept first.
    """

    def block(name: str, i: int, h: Node) -> Node:
        h = residual_block(p, f"{name}.blocks.{i}", h, emb)
        has_attention = f"{name}.attentions.{i}.q.weight" in p
        return attention(p, f"{name}.attentions.{i}", h) if has_attention else h

    emb = Node(sinusoids(t, p["dense1.weight"].shape[1]))
    emb = dense(p, "dense2", silu(dense(p, "dense1", emb)))
    if c is not None:
        emb = emb + p["classes.weight"][c]
    levels = len({name.split(".")[1] for name in p if name.startswith("down.")})

    h = convolution(p, "conv_in", x)
    kept = [h]
    for level in range(levels):
        for i in range(2):
            h = block(f"down.{level}", i, h)
            kept.append(h)
        if level < levels - 1:
            h = down(p, f"down.{level}.resample.conv", h)
            kept.append(h)

    h = residual_block(p, "middle1", h, emb)
    h = attention(p, "middle_attention", h)
    h = residual_block(p, "middle2", h, emb)

    for level in range(levels):
        for i in range(3):
            h = block(f"up.{level}", i, concatenate([h, kept.pop()], 1))
        if level < levels - 1:
            h = convolution(p, f"up.{level}.resample.conv", upsample(h))

    return convolution(p, "conv_out", silu(normalised(p, "norm_out", h)))
