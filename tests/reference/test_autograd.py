"""torch's L_simple and bound, and their gradients, against NumPy's networks and engine.

The law is eq. 14: for the same weights, pictures, t and ε, L_simple and its derivative
with respect to every weight and to every pixel of x_t are the same numbers, whether
torch computes them or the engine of `numpy_autograd.py` does.

`python -m tests.reference.largest_disagreement` prints the largest disagreement of
each network.
"""

from collections.abc import Callable

import numpy as np
import torch
from hypothesis import given, note
from hypothesis import strategies as st
from torch import Tensor, nn

from tinyddpm import L_0, L_T, L_tm1, train
from tinyddpm.bound import sigma2_1
from tinyddpm.mlp import MLP
from tinyddpm.schedule import Schedule, constant_schedule, linear_schedule
from tinyddpm.train import EMA, Hyperparameters, L_simple, algorithm_1
from tinyddpm.unet import UNet

from ..helpers import RTOL, U
from ..strategies import choices_of_sigma2, normal, schedules, seeds, share, steps
from . import numpy_autograd, numpy_networks, numpy_reference
from .numpy_autograd import Node, gradients

TOLERANCE = 1e-9
largest: dict[str, float] = {}  # of the disagreements seen, by network


def randomise(net: nn.Module, seed: int) -> None:
    """Every weight drawn: the layers that start at zero would hide all before them.

    Matrices keep the size of what they multiply, gains lie around 1, biases around 0.
    """
    for i, (name, p) in enumerate(net.named_parameters()):
        draw = normal(seed + i, tuple(p.shape))
        if p.ndim > 1:
            draw = draw / p[0].numel() ** 0.5
        elif name.endswith("weight"):
            draw = 1 + 0.3 * draw
        p.data.copy_(draw)


def by_torch(
    net: nn.Module, s: Schedule, x_0: Tensor, t: Tensor, eps: Tensor, *c: Tensor
) -> dict[str, np.ndarray]:
    """L_simple, and its gradient for x_t and every parameter, by torch in float64."""
    seen = []

    def eps_theta(x_t: Tensor, t: Tensor) -> Tensor:
        seen.append(x_t.requires_grad_())
        return net(x_t, t, *c)

    loss = L_simple(s, eps_theta, x_0, t, eps)
    loss.backward()
    found = {name: p.grad for name, p in net.named_parameters()}
    found |= {"L_simple": loss.detach(), "x_t": seen[0].grad}
    return {name: g.numpy() for name, g in found.items()}


def by_numpy(
    network: Callable, net: nn.Module, s: Schedule, x_0, t, eps, *c
) -> dict[str, np.ndarray]:
    """The same by NumPy alone: x_t is eq. 2 iterated, the weights are the net's."""
    x_0, t, eps, *c = (x.numpy() for x in (x_0, t, eps, *c))
    m, v = numpy_reference.moments(s.beta[1:].numpy())
    mean = numpy_reference.beside(m, t, x_0) * x_0
    x_t = Node(mean + np.sqrt(numpy_reference.beside(v, t, x_0)) * eps)
    weights = {name: Node(w.numpy()) for name, w in net.state_dict().items()}
    difference = eps - network(weights, x_t, t, *c)
    loss = (difference * difference).mean()
    nodes = {**weights, "x_t": x_t}
    found = dict(zip(nodes, gradients(loss, list(nodes.values())), strict=True))
    return {**found, "L_simple": loss.value}


def check(
    network: str, got: dict[str, np.ndarray], want: dict[str, np.ndarray]
) -> None:
    """Same names, and for each max|got - want| / max|want| <= 1e-9

    Where max|want| is below a millionth of the largest gradient (a softmax that is all
    but saturated), that millionth takes its place. The bias of the keys has gradient 0
    by law: it shifts all that one softmax sees alike. There both sides find rounding
    errors alone.
    """
    assert got.keys() == want.keys()
    top = max(np.abs(w).max() for w in want.values())
    found = {}
    for name, w in want.items():
        if name.endswith("k.bias"):
            assert max(np.abs(got[name]).max(), np.abs(w).max()) <= 1e-12 * top
        else:
            size = max(np.abs(w).max(), 1e-6 * top)
            found[name] = np.nan_to_num(np.abs(got[name] - w).max() / size, nan=np.inf)
    worst = max(found, key=found.__getitem__)
    largest[network] = max(largest.get(network, 0.0), found[worst])
    i = np.unravel_index(np.abs(got[worst] - want[worst]).argmax(), want[worst].shape)
    note(
        f"d L_simple / d {worst}, at {tuple(map(int, i))}: torch {got[worst][i]!r}, "
        f"NumPy {want[worst][i]!r}, relative disagreement {found[worst]:.2e}"
    )
    assert found[worst] <= TOLERANCE


@st.composite
def unets(draw) -> dict:
    """Arguments of a U-Net: 1 to 3 levels, any widths, attention anywhere, any classes

    The base is 4 or more, since group norm wants two channels a group.
    """
    multipliers = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    levels = st.sampled_from(range(len(multipliers)))
    return {
        "in_channels": draw(st.integers(1, 3)),
        "base": draw(st.sampled_from([4, 6, 8])),
        "multipliers": multipliers,
        "attention_levels": draw(st.sets(levels).map(sorted)),
        "num_classes": draw(st.one_of(st.none(), st.integers(1, 3))),
    }


@share(30)
@given(
    unets(),
    st.integers(1, 2),
    st.integers(1, 2),
    st.integers(2, 3),
    schedules(),
    seeds,
    st.data(),
)
def test_unet_gradients_are_those_of_numpy(arguments, B, rows, columns, s, seed, data):
    """Eq. 14 through all of App. B: blocks, attention, down and up, t and class

    Sides are multiples of 2^(levels - 1), which is what can be halved so often, and the
    smallest picture has two pixels at least: of a group of two channels at one pixel,
    group norm keeps the sign alone, and no gradient but rounding errors gets past it.
    """
    net = UNet(**arguments).double().eval()
    randomise(net, seed)
    smallest = 2 ** (len(arguments["multipliers"]) - 1)
    shape = (B, arguments["in_channels"], rows * smallest, columns * smallest)
    t = data.draw(steps(s, B))
    x_0, eps = normal(seed - 1, shape), normal(seed - 2, shape)
    c = []
    if (classes := arguments["num_classes"]) is not None:  # the last is "none given"
        one = st.integers(0, classes)
        c = [torch.tensor(data.draw(st.lists(one, min_size=B, max_size=B)))]
    got = by_torch(net, s, x_0, t, eps, *c)
    want = by_numpy(numpy_networks.unet, net, s, x_0, t, eps, *c)
    check("U-Net", got, want)


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.integers(1, 12),
    st.integers(1, 4),
    st.sampled_from([4, 6, 16]),
    schedules(),
    seeds,
    st.data(),
)
def test_mlp_gradients_are_those_of_numpy(shape, width, depth, emb, s, seed, data):
    """Eq. 14 through the toy's perceptron, for data of any rank, width and depth"""
    B, *shape = shape if len(shape) > 1 else [1, *shape]
    net = MLP(tuple(shape), width, depth, emb).double()
    randomise(net, seed)
    t = data.draw(steps(s, B))
    x_0, eps = normal(seed - 1, (B, *shape)), normal(seed - 2, (B, *shape))
    got = by_torch(net, s, x_0, t, eps)
    check("MLP", got, by_numpy(numpy_networks.mlp, net, s, x_0, t, eps))


@share(2)
@given(seeds)
def test_the_gradient_that_algorithm_1_takes_is_numpys(seed):
    """Alg. 1 line 5: of each step's own x_0, t, ε and class, and of the weights it has
    then, L_simple and its gradient are the NumPy engine's, and nothing else is added.
    """
    net = UNet(2, 4, (1, 2), (1,), dropout=0.0, num_classes=2).double()
    randomise(net, seed)
    s = linear_schedule(50)
    h = Hyperparameters(steps=3, batch=2, lr=1e-2, warmup=1, seed=seed)
    steps_taken = 0

    def draw(B, generator):
        x_0 = torch.rand((B, 2, 4, 4), generator=generator, dtype=torch.float64)
        return 2 * x_0 - 1, torch.randint(3, (B,), generator=generator)

    def compared(s, eps_theta, x_0, t, eps, c):
        nonlocal steps_taken
        steps_taken += 1
        assert all(p.grad is None for p in net.parameters())
        want = by_numpy(numpy_networks.unet, net, s, x_0, t, eps, c)
        loss = train.gradient(s, eps_theta, x_0, t, eps, c)
        got = {name: p.grad.numpy().copy() for name, p in net.named_parameters()}
        got |= {"L_simple": loss.numpy(), "x_t": want["x_t"]}
        check("U-Net", got, want)
        return loss

    adam = torch.optim.Adam(net.parameters(), h.lr)
    run = algorithm_1(s, net, draw, h, EMA(net, h.ema), adam, gradient=compared)
    assert [step for step, _ in run] == [1, 2, 3]
    assert steps_taken == 3


def decoder(v: np.ndarray, mean: Node, sigma: float) -> Node:
    """Eq. 13: Σ ln of the bins' probabilities, by quadrature of the density."""
    total = Node(0.0)
    for i, level in np.ndenumerate(v):
        mu = float(mean.value[i])
        top, d, weights = numpy_reference.bin_nodes(int(level), mu, sigma)
        z = (mu + sigma * (top + d) - mean[i]) * (1 / sigma)  # fixed nodes, a mean
        bin_ = (weights * numpy_autograd.exp((top**2 - z * z) * 0.5)).sum()
        total = total + numpy_autograd.log(bin_) - top**2 / 2
    return total - v.size * np.log(2 * np.pi) / 2


@share(20)
@given(schedules(min_T=2, max_T=50), choices_of_sigma2, seeds, st.data())
def test_the_gradients_of_the_bound_are_numpys(s, sigma2, seed, data):
    """Eq. 5, 8, 13: L_T, L_{t-1} and L_0 and their derivatives in x̂_0, and in x_0,
    are the NumPy engine's, with the levels 0 and 255 among the pictures'.

    There by products of Gaussians, Gauss-Hermite and Gauss-Legendre quadrature; a few
    differences of numbers near 1, each right to RTOL. The KLs are parabolas, for which
    a central difference is exact but for its rounding, that of pictures h apart.
    """
    v = data.draw(st.lists(st.sampled_from([0, 1, 128, 254, 255]), min_size=3))
    v = np.array(v[:6]).reshape(1, -1)
    x_0 = torch.from_numpy(v / 127.5 - 1)
    sigma_1 = sigma2_1(s, sigma2) ** 0.5
    x_0_hat = x_0 + min(sigma_1, 0.3) * normal(seed, x_0.shape)
    t = data.draw(steps(s, 1, first=2))
    beta, n = s.beta[1:].numpy(), t.numpy()
    variance = numpy_reference.beside(s.sigma2(sigma2).numpy(), n, v)

    def numpy_bound(x_0: Node, x_0_hat: Node) -> dict[str, Node]:
        m, w = numpy_reference.moments(beta)
        zero = np.zeros(v.shape)
        of_q, of_p = (
            numpy_reference.posterior(beta, zero, x, n) for x in (x_0, x_0_hat)
        )
        kl = numpy_reference.gaussian_kl
        return {
            "L_T": kl(m[-1] * x_0, w[-1], 0.0, 1.0).sum(),
            "L_tm1": kl(of_q[0], of_q[1], of_p[0], variance).sum(),
            "L_0": -decoder(v, x_0_hat, sigma_1),
        }

    def bound(x: Tensor, x_0_hat: Tensor) -> dict[str, Tensor]:
        return {
            "L_T": L_T(s, x).sum(),
            "L_tm1": L_tm1(s, x, t, x_0_hat, sigma2).sum(),
            "L_0": L_0(s, x_0, x_0_hat, sigma2).sum(),  # of levels: no slope in x_0
        }

    nodes = [Node(x.numpy()) for x in (x_0, x_0_hat)]
    leaves = [x.clone().requires_grad_() for x in (x_0, x_0_hat)]
    h, along = 2.0**-6, [normal(seed + i, x_0.shape) for i in (1, 2)]
    wanted = numpy_bound(*nodes)
    for name, term in bound(*leaves).items():
        found = torch.autograd.grad(term, leaves, allow_unused=True)
        want = gradients(wanted[name], nodes)
        got = [np.zeros(v.shape) if g is None else g.numpy() for g in found]
        size = max(float(np.abs(w).max()) for w in want)
        value = float(term.detach())
        error = 8 * RTOL * (1 + abs(value))
        assert abs(value - wanted[name].value) <= error, name
        for g, w in zip(got, want, strict=True):
            assert np.abs(g - w).max() <= 8 * RTOL * size + 64 * U, name
        if name != "L_0":
            ends = [
                float(bound(x_0 + h_ * along[0], x_0_hat + h_ * along[1])[name])
                for h_ in (h, -h)
            ]
            slope = sum((g * v.numpy()).sum() for g, v in zip(got, along, strict=True))
            rounding = 64 * U * sum(map(abs, ends)) / h**2
            assert abs((ends[0] - ends[1]) / (2 * h) - slope) <= rounding, name


def test_no_weight_escapes_the_check():
    """Power: only the keys' biases have gradient 0, by law; all others are well above

    So no layer that starts at zero, no norm that cancels t, no unused weight blinds the
    comparison: the others are at least 1e-8 of the largest, rounding errors 1e-16.
    """
    unet = UNet(2, 4, (1, 2), attention_levels=(1,), num_classes=2).double().eval()
    mlp = MLP((2, 4, 4), width=8, depth=2, emb=4).double()
    x_0, eps = normal(1, (2, 2, 4, 4)), normal(2, (2, 2, 4, 4))
    s, t = constant_schedule(50, 0.1), torch.tensor([1, 50])
    for net, network, c in (
        (unet, numpy_networks.unet, [torch.tensor([0, 1])]),
        (mlp, numpy_networks.mlp, []),
    ):
        randomise(net, seed=0)
        found = by_numpy(network, net, s, x_0, t, eps, *c)
        size = {name: np.abs(g).max() for name, g in found.items()}
        small = {name for name in size if size[name] < 1e-8 * max(size.values())}
        assert small == {name for name in size if name.endswith("k.bias")}
