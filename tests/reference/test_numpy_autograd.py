"""The autograd of `numpy_autograd.py` against central differences and definitions.

The engine judges torch in `test_autograd.py`, so nothing here asks torch.
"""

import numpy as np
import pytest
from hypothesis import assume, given, note
from hypothesis import strategies as st

from ..strategies import seeds
from .numpy_autograd import (
    Node,
    concatenate,
    conv2d,
    cos,
    exp,
    gradients,
    group_norm,
    log,
    pad,
    relu,
    silu,
    sin,
    softmax,
    sqrt,
    upsample,
)

EPSILON = np.finfo(np.float64).eps


def _operations(shape: tuple[int, ...]) -> dict:
    """Name -> f(a, b, kernel): all operations, on nodes that broadcast to `shape`.

    Where an operation needs the full shape, zeros are added, which broadcasts. The
    detours (a² + 1, the sine of a product, ...) keep to where the function is smooth
    and the numbers of a long program small.
    """
    B, C, H, W = shape
    full = np.zeros(shape)
    twice = [0, *range(C - 1)]  # channel 0 is taken twice, the last one never

    def channels(a: Node) -> Node:
        return (a + full).mean((0, 2, 3))

    return {
        "+": lambda a, b, w: a + b,
        "-": lambda a, b, w: a - b,
        "negate": lambda a, b, w: 1.0 - (-a),
        "*": lambda a, b, w: sin(a * b),
        "/": lambda a, b, w: a / (b * b + 1.0) + 1.0 / (a * a + 2.0),
        "**": lambda a, b, w: (a * a + 1.0) ** -0.7,
        "@": lambda a, b, w: (
            sin((a + full) @ (b + full).transpose(0, 1, 3, 2)) @ (b + full) * (1 / H)
        ),
        "exp": lambda a, b, w: exp(sin(a)),
        "log": lambda a, b, w: log(a * a + 1.0),
        "sqrt": lambda a, b, w: sqrt(a * a + 1.0),
        "sin": lambda a, b, w: sin(a),
        "cos": lambda a, b, w: cos(a),
        "silu": lambda a, b, w: silu(a),
        "relu": lambda a, b, w: relu(a),
        "sum": lambda a, b, w: sin(a.sum(-1, keepdims=True)) + b.sum((0, 2)).mean(),
        "mean": lambda a, b, w: a.mean((1, 3), keepdims=True),
        "reshape": lambda a, b, w: (a + full).reshape(B, H, W, C).transpose(0, 3, 1, 2),
        "index": lambda a, b, w: (a + full)[:, twice] * b,
        "concatenate": lambda a, b, w: concatenate([a + full, b + full], 1)[
            :, 1 : C + 1
        ],
        "pad": lambda a, b, w: pad(a + full, (1, 0), (0, 2))[:, :, :H, 2:],
        "softmax": lambda a, b, w: softmax(a + full, 1),
        "conv2d": lambda a, b, w: conv2d(a + full, w, 1, (0, 1), (1, 1)),
        "down, up": lambda a, b, w: upsample(conv2d(a + full, w, 2, (0, 0), (1, 0))),
        "group_norm": lambda a, b, w: group_norm(
            a + full, 2, channels(b) + 1.0, channels(sin(b)), 0.1
        ),
    }


def _run(shape, program, leaves: list[np.ndarray]) -> tuple[Node, list[Node], list]:
    """(one number made of every node of the program, its leaves, which side of 0 each
    argument of relu lies on)"""
    operations = _operations(shape)
    *nodes, kernel = inputs = [Node(x) for x in leaves]
    sides = []
    for name, i, j in program:
        a, b = nodes[i % len(nodes)], nodes[j % len(nodes)]
        nodes.append(operations[name](a, b, kernel))
        if name == "relu":
            sides.append(a.value > 0)
    total = Node(0.0)
    for k, node in enumerate(nodes):
        weights = np.cos(k + np.arange(node.value.size)).reshape(node.shape)
        total = total + (node * weights).sum()
    return total, inputs, sides


def _slope(f, h: float) -> tuple[float, float]:
    """(f'(0) from central differences, a bound on its error)

    Central differences at h, h/2, h/4 err by c_2 h² + c_4 h⁴ + ...; Romberg's table
    takes off the first two terms. What the second correction changed bounds the error
    that is left, which is of higher order; to it come a thousand roundings of f.
    """
    f_at = {x: f(x) for step in (h, h / 2, h / 4) for x in (step, -step)}
    d_1, d_2, d_4 = ((f_at[x] - f_at[-x]) / (2 * x) for x in (h, h / 2, h / 4))
    r_1, r_2 = (4 * d_2 - d_1) / 3, (4 * d_4 - d_2) / 3
    slope = (16 * r_2 - r_1) / 15
    size = max(1.0, *map(abs, f_at.values()))
    return slope, abs(slope - r_2) + 1000 * EPSILON * size / (h / 4)


names = sorted(_operations((1, 2, 2, 2)))
programs = st.lists(
    st.tuples(st.sampled_from(names), st.integers(0, 9), st.integers(0, 9)),
    min_size=1,
    max_size=8,
)
# Even sides, so that down and up again gives the size back; channels for two groups.
full_shapes = st.tuples(
    st.integers(1, 3), st.sampled_from([2, 4]), st.sampled_from([2, 4]), st.just(4)
)


@given(
    full_shapes, st.lists(st.tuples(*[st.booleans()] * 4), min_size=1), programs, seeds
)
def test_gradients_are_central_differences_on_random_graphs(shape, kept, program, seed):
    """dy/dx of any graph (nodes used often, broadcast) = lim (y(x+hv) - y(x-hv)) / 2h

    Along one random direction v for each leaf. relu has no derivative at 0: an example
    in which the step takes an argument of relu across 0 is left out.
    """
    random = np.random.default_rng(seed)
    leaf_shapes = [
        tuple(n if whole else 1 for n, whole in zip(shape, flags, strict=True))
        for flags in kept
    ] + [(shape[1], shape[1], 2, 3)]
    leaves = [random.normal(size=leaf_shape) for leaf_shape in leaf_shapes]
    y, inputs, sides = _run(shape, program, leaves)
    for k, gradient in enumerate(gradients(y, inputs)):
        v = random.normal(size=leaves[k].shape)
        v /= np.sqrt(np.sum(v * v))

        def f(h, k=k, v=v):
            moved = [x + h * v if i == k else x for i, x in enumerate(leaves)]
            value, _, moved_sides = _run(shape, program, moved)
            for before, after in zip(sides, moved_sides, strict=True):
                assume(np.array_equal(before, after))
            return float(value.value)

        slope, tolerance = _slope(f, h=0.004)
        got = float(np.sum(gradient * v))
        note(f"leaf {k}: gradient·v = {got!r}, differences {slope!r} ± {tolerance:.1e}")
        assert gradient.shape == leaves[k].shape
        assert abs(got - slope) <= tolerance


def test_every_path_of_a_deep_graph_counts_once_for_each_use():
    """y <- y/2 + y/2, many times: dy/dx = 1 exactly, over 2^n paths; no recursion"""
    x = Node([3.0])
    y = x
    for _ in range(5000):
        y = y * 0.5 + y * 0.5
    assert y.value == [3.0]
    assert gradients(y, [x])[0] == [1.0]


def test_a_node_that_y_does_not_use_has_gradient_zero():
    """dy/dx = 0 where y does not depend on x; y itself has gradient 1"""
    x, unused = Node([1.0, 2.0]), Node(np.ones((2, 3)))
    y = (x * x).sum()
    of_x, of_unused, of_y = gradients(y, [x, unused, y])
    assert np.array_equal(of_x, [2.0, 4.0])
    assert np.array_equal(of_unused, np.zeros((2, 3)))
    assert of_y == 1.0


def test_only_a_single_number_has_a_gradient():
    """Summing y in silence would hide a forgotten reduction"""
    with pytest.raises(ValueError, match=r"one number, got shape \(2,\)"):
        gradients(Node([1.0, 2.0]), [])


@given(st.lists(st.integers(-3, 2), min_size=1, max_size=8))
def test_a_row_of_an_embedding_gets_the_gradient_of_each_use(rows):
    """y = Σ_k k E[c_k]: dy/dE[i] = Σ_{k: c_k = i} k; c < 0 counts from the end"""
    table = Node(np.arange(6.0).reshape(3, 2))
    k = np.arange(1.0, len(rows) + 1)
    y = (table[np.array(rows)] * k[:, None]).sum()
    want = [k[np.array(rows) % 3 == i].sum() for i in range(3)]
    assert np.array_equal(gradients(y, [table])[0], np.transpose([want, want]))


@given(
    st.tuples(*[st.integers(1, 3)] * 4),
    st.tuples(*[st.integers(1, 3)] * 3),
    st.integers(1, 3),
    st.tuples(*[st.integers(0, 2)] * 4),
    seeds,
)
def test_conv2d_is_its_definition(shape, kernel, stride, padding, seed):
    """y[b,o,i,j] = Σ w[o,c,k,l] x[b,c,si+k-above,sj+l-left], with x = 0 outside

    Any stride and any padding on each of the four sides, as long as one window fits.
    Tolerance: no more than 27 products are added, each rounded twice.
    """
    (B, C, H, W), (C_out, K, L) = shape, kernel
    above, below, left, right = padding
    height, width = (H + above + below - K) // stride, (W + left + right - L) // stride
    assume(height >= 0 and width >= 0)
    random = np.random.default_rng(seed)
    x, w = random.normal(size=shape), random.normal(size=(C_out, C, K, L))
    want, size = np.zeros((2, B, C_out, height + 1, width + 1))
    for b, o, i, j, c, k, m in np.ndindex(*want.shape, C, K, L):
        row, column = stride * i + k - above, stride * j + m - left
        if 0 <= row < H and 0 <= column < W:
            want[b, o, i, j] += w[o, c, k, m] * x[b, c, row, column]
            size[b, o, i, j] += abs(w[o, c, k, m] * x[b, c, row, column])
    got = conv2d(Node(x), Node(w), stride, (above, below), (left, right)).value
    note(f"{got=}\n{want=}")
    assert got.shape == want.shape
    assert np.all(np.abs(got - want) <= 2 * 27 * EPSILON * size)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), seeds)
def test_group_norm_gives_every_group_mean_shift_and_variance_gain(B, groups, n, seed):
    """Within a group of n channels: mean 0, variance v/(v + epsilon), before the gain

    Tolerance: about 100 roundings of numbers below 10, divided by the gain, since the
    gain is taken off again here.
    """
    random = np.random.default_rng(seed)
    x = random.normal(5.0, size=(B, groups * n, 2, 3))
    gain, shift = random.normal(size=(2, groups * n))
    y = group_norm(Node(x), groups, Node(gain), Node(shift), 0.3).value
    normed = (y - shift[:, None, None]) / gain[:, None, None]
    v = x.reshape(B, groups, -1).var(2)
    tolerance = 1000 * EPSILON / np.abs(gain).min()
    got = normed.reshape(B, groups, -1)
    assert np.max(np.abs(got.mean(2))) <= tolerance
    assert np.max(np.abs(got.var(2) - v / (v + 0.3))) <= tolerance


@given(seeds, st.sampled_from([0, 1]))
def test_softmax_sums_to_one_and_keeps_the_ratios(seed, axis):
    """Σ p = 1, p_i / p_j = e^(x_i - x_j), and e^1000 does not overflow"""
    x = np.random.default_rng(seed).normal(1000.0, size=(3, 4))
    p = softmax(Node(x), axis).value
    assert np.max(np.abs(p.sum(axis) - 1)) <= 8 * EPSILON
    first_p, first_x = np.take(p, [0], axis), np.take(x, [0], axis)
    ratio = np.exp(x - first_x)
    assert np.max(np.abs(p / first_p / ratio - 1)) <= 16 * EPSILON


def test_upsample_repeats_every_pixel():
    """Nearest neighbour: y[b, c, i, j] = x[b, c, i // factor, j // factor]"""
    x = np.random.default_rng(0).normal(size=(2, 3, 2, 5))
    for factor in (1, 2, 3):
        i, j = np.ogrid[: 2 * factor, : 5 * factor]
        want = x[:, :, i // factor, j // factor]
        assert np.array_equal(upsample(Node(x), factor).value, want)


def test_elementary_functions_are_numpys_and_bear_large_numbers():
    """exp, log, sqrt, sin, cos; SiLU(x) = x/(1 + e^-x), 0 far left and x far right"""
    x = np.array([0.1, 0.7, 3.0])
    for ours, theirs in [(exp, np.exp), (log, np.log), (sqrt, np.sqrt)]:
        assert np.array_equal(ours(Node(x)).value, theirs(x))
    for ours, theirs in [(sin, np.sin), (cos, np.cos)]:
        assert np.array_equal(ours(Node(x)).value, theirs(x))
    far = Node([-1e4, 0.0, 1e4])
    y = silu(far)  # a warning of overflow would be an error
    assert np.array_equal(y.value, [0.0, 0.0, 1e4])
    assert np.array_equal(gradients(y.sum(), [far])[0], [0.0, 0.5, 1.0])
    assert np.max(np.abs(silu(Node(x)).value - x / (1 + np.exp(-x)))) <= 8 * EPSILON
    assert np.array_equal(relu(Node([-2.0, 3.0])).value, [0.0, 3.0])
