"""What several test files use: tolerances, stand-ins for a network, small networks.

U is float64's half unit in the last place. 1 - ᾱ_t >= β_1 >= MIN_BETA is a difference
of numbers near 1, so it, and whatever is divided by it, is right to U / MIN_BETA only:
that is RTOL.
"""

import math
import warnings
from pathlib import Path

import numpy as np
import torch
from hypothesis import note
from torch import Tensor, nn

from tinyddpm import L_0, L_tm1, UNet, at, linear_schedule, to_float, to_uint8
from tinyddpm.beyond.gradients import gradient_images

from .reference import numpy_reference as reference
from .strategies import MIN_BETA, normal

U = 2.0**-53
RTOL = 4 * U / MIN_BETA  # 4.4e-10: four roundings
BITS = 1 / math.log(2)  # bits in a nat

SHAPE = (4, 3, 2, 2)
# Shapes that torch would broadcast to SHAPE, and three that it would not.
WRONG_SHAPES = [
    *[(1,), (4,), (1, 3, 2, 2), (4, 1, 2, 2), (4, 3, 1, 1), (1, 1, 1, 1), ()],
    *[(5, 3, 2, 2), (4, 3, 2), (4, 3, 4)],
]


def shape_refused(name: str, shape: tuple[int, ...]) -> str:
    """The whole message that refuses `shape` beside a batch of SHAPE."""
    wanted, given = (str(x)[1:-1] for x in (SHAPE, shape))
    return rf"^{name} must have the shape of the batch, \({wanted}\), got \({given}\)$"


def assert_within(got: Tensor, expected: Tensor, error: Tensor) -> None:
    """|got - expected| <= error, each a tensor; says the numbers where it is not."""
    excess = ((got - expected).abs() - error).flatten()
    i = int(excess.argmax())
    say = [float(x.expand(got.shape).flatten()[i]) for x in (got, expected, error)]
    assert float(excess[i]) <= 0, "got {}, expected {}, error at most {}".format(*say)


def agree(got: Tensor, want: np.ndarray, error, **context) -> None:
    """|got - want| <= error + one rounding to got's dtype, against a NumPy array.

    float64's ᾱ_t is a product of t factors, each rounded: its relative error is about
    t U, and so is the absolute error of 1-ᾱ_t. The result is rounded once more, to the
    data's dtype: float32 must be as right as float32 can be.
    """
    assert got.shape == want.shape
    difference = abs(got.double().numpy() - want)
    allowed = error + torch.finfo(got.dtype).eps * abs(want)
    excess = difference - allowed
    note(f"{context}: torch {got.tolist()}, reference {want.tolist()}")
    assert (excess <= 0).all(), f"off by up to {excess.max()} more than allowed"


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    """As NumPy arrays, the floating-point ones in float64."""
    return [x.double().numpy() if x.is_floating_point() else x.numpy() for x in tensors]


def spread(v: np.ndarray, t: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Relative error of a coefficient with 1-ᾱ_{t-1} or 1-ᾱ_t in it, as (B, 1, ..., 1).

    About t U, divided by the smaller of the two; v is the table of 1-ᾱ_t.
    """
    error = 4 * (np.arange(len(v)) + 2) * U / np.maximum(np.roll(v, 1), v[1])
    error[:2] = 12 * U / v[1]
    return reference.beside(error, t, like)


def quiet(make, *arguments):
    """The schedule, without its warning that signal is left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*arguments)


def coefficients(q, s, first: int = 1) -> tuple[Tensor, Tensor]:
    """(a_t, b_t) for t = first..T, where q(s, x, t, y) = a_t x + b_t y.

    The equations are linear: feed ones for one input and zeros for the other, and the
    output is that input's coefficient. No sampling, no tolerance for luck.
    """
    t = torch.arange(first, s.T + 1)
    one, zero = torch.ones(len(t)).double(), torch.zeros(len(t)).double()
    return q(s, one, t, zero), q(s, zero, t, one)


# Noise predictors that are exact for the simplest data, so that it is known where
# every step must land. (`tinyddpm.beyond.oracle` has more, by other formulas.)


def gaussian(s):
    """The exact predictor for x_0 ~ N(0, I): E[ε | x_t] = √(1-ᾱ_t) x_t."""
    return lambda x_t, t: (1 - at(s.alpha_bar, t, x_t)).sqrt() * x_t


def point_mass(s, c):
    """The exact predictor for data that are always c: eq. 4 solved for ε."""

    def eps_theta(x_t, t):
        alpha_bar = at(s.alpha_bar, t, x_t)
        return (x_t - alpha_bar.sqrt() * c) / (1 - alpha_bar).sqrt()

    return eps_theta


def some_network(x_t: Tensor, t: Tensor) -> Tensor:
    """Any function of x_t and t, bounded: what a network might say."""
    return (3 * x_t).sin() + 0.1 * t.view(-1, *[1] * (x_t.ndim - 1)).cos().to(x_t)


class Recorder:
    """Keeps what the network was asked."""

    def __init__(self, eps_theta=some_network):
        self.eps_theta, self.x, self.t = eps_theta, [], []

    def __call__(self, x_t, t):
        self.x.append(x_t.clone())
        self.t.append(t.clone())
        return self.eps_theta(x_t, t)


def random_pictures(seed: int, shape: tuple[int, ...]) -> Tensor:
    """8-bit pictures in [-1, 1], every level possible."""
    g = torch.Generator().manual_seed(seed)
    return to_float(torch.randint(256, shape, generator=g, dtype=torch.uint8))


def gradient(seed: int = 0, size: int = 3) -> Tensor:
    """One of the toy's gradients on the 8-bit grid, (1, 3, size, size)."""
    g = torch.Generator().manual_seed(seed)
    return to_float(to_uint8(gradient_images(1, size, size, g)))


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    """Whether two networks have the same weights, to the bit."""
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def chi2(counts, expected):
    """Σ (observed - expected)² / expected over all cells."""
    return float(((counts.double() - expected) ** 2 / expected).sum())


def chi2_limit(freedom, z=4.753):
    """What χ² exceeds with probability 1e-6 (Wilson-Hilferty; Φ(4.753) = 1 - 1e-6)."""
    a = 2 / (9 * freedom)
    return freedom * (1 - a + z * a**0.5) ** 3


# Small U-Nets. As it is made a network returns 0 whatever comes in, so tests that ask
# what the output depends on first fill the weights that start at 0.


def filled(net: nn.Module, seed: int = 0) -> nn.Module:
    """The network in float64 eval mode, every number in it moved by N(0, 0.1²)."""
    net = net.double().eval()
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter += 0.1 * normal(seed + i, parameter.shape)
    return net


def small_unet(seed: int = 0, **arguments) -> nn.Module:
    """A two-level network of 8 channels with attention at the lower level."""
    return filled(UNet(2, 8, (1, 2), **arguments), seed)


def unet_batch(seed: int = 0, B: int = 3, H: int = 4, W: int = 6):
    """Pictures (B, 2, H, W) and steps 1, 334, 667, ... of 1000."""
    return normal(seed, (B, 2, H, W)), 1 + 333 * torch.arange(B)


# A network whose bound is known.


class Constant(nn.Module):
    """Answers so that x̂_0 is one picture, whatever the noise; keeps what it was asked.

    Every term of the bound is then known without its ε.
    """

    def __init__(self, s, x_0_hat):
        super().__init__()
        self.s, self.x_0_hat, self.asked = s, x_0_hat, []
        self.dropout = nn.Dropout(0.5)

    def forward(self, x_t, t):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.asked.append(t.tolist())
        alpha_bar = self.s.alpha_bar[t].view(-1, 1, 1, 1)
        x_0_hat = self.x_0_hat.to(x_t.dtype)
        return self.dropout((x_t - alpha_bar.sqrt() * x_0_hat) / (1 - alpha_bar).sqrt())


def constant(seed: int = 0, N: int = 3, T: int = 12):
    """(schedule, network, pictures, as float64) of a known bound."""
    s = linear_schedule(T, 1e-3, 0.7)
    x_0 = random_pictures(seed, (N, 2, 3, 2)).double()
    return s, Constant(s, normal(seed, (1, 2, 3, 2)) / 3), x_0


def terms_of_constant(s, net: Constant, x_0: Tensor, sigma2: str = "beta") -> Tensor:
    """Its terms one by one, (N, T + 1) bits/dim: column 1 is L_0, column t L_{t-1}."""
    columns, D = [torch.zeros(len(x_0)).double()], x_0[0].numel()
    x_0_hat = net.x_0_hat.expand_as(x_0)
    columns.append(L_0(s, x_0, x_0_hat, sigma2))
    for step in range(2, s.T + 1):
        t = torch.full((len(x_0),), step)
        columns.append(L_tm1(s, x_0, t, x_0_hat, sigma2))
    return torch.stack(columns, 1) * BITS / D


def same_bounds(a, b) -> bool:
    """Whether two bounds are equal to the bit, nan for a t that was not drawn too."""
    pairs = zip(a, b, strict=True)
    return all(torch.equal(x.nan_to_num(-1), y.nan_to_num(-1)) for x, y in pairs)


# The README's table "The paper and the code".

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def table_rows() -> list[list[str]]:
    """The cells of the table paper -> function -> file -> test."""
    table = README.partition("| paper | function |")[2].partition("\n\n")[0]
    lines = table.splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
