"""Reverse-mode automatic differentiation over NumPy float64 arrays.

A node holds an array and, for each node it was made from, a pullback:
the function that takes dL/d(this node) to this node's share of dL/d(that parent).
Only the operations that change numbers in a way of their own have a pullback written
by hand; the others (mean, softmax, convolution, group norm, ...) are composed of those.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

Pullback = Callable[[np.ndarray], np.ndarray]
_serial = itertools.count()


class Node:
    """An array, and the way back to the nodes it was made from.

    Attributes: value (a float64 array), parents (pairs of node and pullback), and the
    serial number of its making: a node is always made after its parents.
    """

    __array_ufunc__ = None  # so that `ndarray + Node` asks Node.__radd__

    def __init__(self, value, *parents: tuple["Node", Pullback]) -> None:
        self.value = np.asarray(value, dtype=np.float64)
        self.parents = parents
        self.serial = next(_serial)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    def __add__(self, other):
        a, b = self, _node(other)
        return Node(a.value + b.value, (a, lambda g: g), (b, lambda g: g))

    def __mul__(self, other):
        a, b = self, _node(other)
        return Node(
            a.value * b.value, (a, lambda g: g * b.value), (b, lambda g: g * a.value)
        )

    def __pow__(self, exponent: float):
        x = self.value
        return Node(x**exponent, (self, lambda g: g * exponent * x ** (exponent - 1.0)))

    def __matmul__(self, other):
        """Σ_k a[..., i, k] b[..., k, j]; rank 2 or more, leading axes broadcast."""
        a, b = self, _node(other)
        return Node(
            a.value @ b.value,
            (a, lambda g: g @ np.swapaxes(b.value, -1, -2)),
            (b, lambda g: np.swapaxes(a.value, -1, -2) @ g),
        )

    def __getitem__(self, index):
        """Any NumPy index; an entry that is taken twice gets both gradients."""

        def pullback(g: np.ndarray) -> np.ndarray:
            out = np.zeros(self.shape)
            np.add.at(out, index, g)
            return out

        return Node(self.value[index], (self, pullback))

    def __neg__(self):
        return self * -1.0

    def __sub__(self, other):
        return self + _node(other) * -1.0

    def __truediv__(self, other):
        return self * _node(other) ** -1.0

    def __radd__(self, other):
        return self + other

    def __rmul__(self, other):
        return self * other

    def __rsub__(self, other):
        return _node(other) - self

    def __rtruediv__(self, other):
        return _node(other) / self

    def sum(self, axis=None, keepdims: bool = False):
        kept = np.sum(self.value, axis=axis, keepdims=True)
        value = kept if keepdims else np.sum(self.value, axis=axis)
        return Node(
            value, (self, lambda g: np.broadcast_to(g.reshape(kept.shape), self.shape))
        )

    def mean(self, axis=None, keepdims: bool = False):
        total = self.sum(axis, keepdims)
        return total * (total.value.size / self.value.size)

    def reshape(self, *shape: int):
        return Node(self.value.reshape(shape), (self, lambda g: g.reshape(self.shape)))

    def transpose(self, *axes: int):
        back = np.argsort(axes)
        return Node(self.value.transpose(axes), (self, lambda g: g.transpose(back)))


def _node(x) -> Node:
    return x if isinstance(x, Node) else Node(x)


def gradients(y: Node, of: Sequence[Node]) -> list[np.ndarray]:
    """dy/dx for every node x in `of`; zeros for one that y does not depend on.

    y must be one number. The graph is walked with a stack of our own, not by recursion,
    so its depth is limited by memory alone; going through the nodes from the last made
    to the first, every node is done only when all that was made from it is done.
    """
    if y.value.size != 1:
        raise ValueError(f"y must be one number, got shape {y.shape}")
    reached, stack = {y.serial: y}, [y]
    while stack:
        for parent, _ in stack.pop().parents:
            if parent.serial not in reached:
                reached[parent.serial] = parent
                stack.append(parent)
    grad = {y.serial: np.ones(y.shape)}
    for serial in sorted(reached, reverse=True):
        for parent, pullback in reached[serial].parents:
            share = _sum_to(pullback(grad[serial]), parent.shape)
            grad[parent.serial] = grad.get(parent.serial, 0.0) + share
    return [grad.get(x.serial, np.zeros(x.shape)) for x in of]


def _sum_to(g: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Undoes broadcasting: a number used many times gets the sum of the gradients."""
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] != 1)
    return g.sum(axis=stretched, keepdims=True)


def exp(x: Node) -> Node:
    y = np.exp(x.value)
    return Node(y, (x, lambda g: g * y))


def log(x: Node) -> Node:
    return Node(np.log(x.value), (x, lambda g: g / x.value))


def sqrt(x: Node) -> Node:
    y = np.sqrt(x.value)
    return Node(y, (x, lambda g: g / (2.0 * y)))


def sin(x: Node) -> Node:
    return Node(np.sin(x.value), (x, lambda g: g * np.cos(x.value)))


def cos(x: Node) -> Node:
    return Node(np.cos(x.value), (x, lambda g: -g * np.sin(x.value)))


def relu(x: Node) -> Node:
    return Node(np.maximum(x.value, 0.0), (x, lambda g: g * (x.value > 0.0)))


def silu(x: Node) -> Node:
    """x / (1 + e^-x), the logistic function by tanh: e^-x would overflow."""
    p = 0.5 * (1.0 + np.tanh(0.5 * x.value))
    return Node(x.value * p, (x, lambda g: g * p * (1.0 + x.value * (1.0 - p))))


def concatenate(nodes: Sequence[Node], axis: int) -> Node:
    ends = np.cumsum([n.shape[axis] for n in nodes])

    def part(i: int) -> Pullback:
        return lambda g: np.split(g, ends[:-1], axis)[i]

    value = np.concatenate([n.value for n in nodes], axis)
    return Node(value, *[(n, part(i)) for i, n in enumerate(nodes)])


def pad(x: Node, rows: tuple[int, int], columns: tuple[int, int]) -> Node:
    """Zeros around the last two axes: (above, below) and (left, right)."""
    width = [(0, 0)] * (len(x.shape) - 2) + [rows, columns]
    inner = tuple(slice(a, a + n) for (a, _), n in zip(width, x.shape, strict=True))
    return Node(np.pad(x.value, width), (x, lambda g: g[inner]))


def softmax(x: Node, axis: int) -> Node:
    """e^x / Σ e^x, the same for x - constant; the largest x, so that e^x is <= 1."""
    e = exp(x - x.value.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def conv2d(
    x: Node,
    w: Node,
    stride: int = 1,
    rows: tuple[int, int] = (0, 0),
    columns: tuple[int, int] = (0, 0),
) -> Node:
    """y[b, o, i, j] = Σ_{c, k, l} w[o, c, k, l] x[b, c, stride·i + k, stride·j + l]

    x (B, C, H, W) is first padded with zeros; w (C', C, K, L). Each of the K·L shifts
    of x is one slice of it; stacked, they make the sum one matrix product.
    """
    x = pad(x, rows, columns)
    B, C, H, W = x.shape
    C_out, _, K, L = w.shape
    height, width = (H - K) // stride + 1, (W - L) // stride + 1
    shifts = [
        x[:, :, k : k + stride * height : stride, j : j + stride * width : stride]
        for k in range(K)
        for j in range(L)
    ]
    shifted = concatenate(shifts, 1).reshape(B, K * L * C, height * width)
    matrix = w.transpose(0, 2, 3, 1).reshape(C_out, K * L * C)
    return (matrix @ shifted).reshape(B, C_out, height, width)


def upsample(x: Node, factor: int = 2) -> Node:
    """Nearest neighbour: every pixel of (B, C, H, W) becomes factor × factor."""
    B, C, H, W = x.shape
    stretched = x.reshape(B, C, H, 1, W, 1) * np.ones((factor, 1, factor))
    return stretched.reshape(B, C, H * factor, W * factor)


def group_norm(x: Node, groups: int, gain: Node, shift: Node, epsilon: float) -> Node:
    """(x - mean) / √(variance + epsilon) over each group of channels, · gain + shift

    x (B, C, ...); gain and shift (C,), one for each channel; the variance divides by
    the number of entries of the group.
    """
    B, C = x.shape[:2]
    grouped = x.reshape(B, groups, -1)
    centred = grouped - grouped.mean(2, keepdims=True)
    variance = (centred * centred).mean(2, keepdims=True)
    normed = (centred / sqrt(variance + epsilon)).reshape(*x.shape)
    channel = (1, C) + (1,) * (len(x.shape) - 2)
    return normed * gain.reshape(*channel) + shift.reshape(*channel)
