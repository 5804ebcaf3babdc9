"""The toy's data, colour gradients, and how near pictures are to them.

Their exact predictor is in `oracle.py`.
"""

import math

import torch
from torch import Generator, Tensor

from ..data import Draw, to_float


def gradient_ramp(height: int, width: int) -> Tensor:
    """g of the toy's x_0 = (1-g) a + g b: from 0 at the top left to 1 bottom right

    g is H i/(H-1) + W j/(W-1) at pixel (i, j), divided by its value at the last pixel;
    a side of one pixel adds nothing. Returns: (H, W), float64.
    """
    if min(height, width) < 1 or height * width < 2:
        raise ValueError(
            f"a gradient needs a height and a width >= 1 and at least 2 pixels, "
            f"got {height}x{width}"
        )
    y = height * torch.linspace(0, 1, height, dtype=torch.float64)
    x = width * torch.linspace(0, 1, width, dtype=torch.float64)
    g = y[:, None] + x
    return g / g[-1, -1]


def gradient_drawer(
    height: int,
    width: int,
    channels: int = 3,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Draw:
    """The toy's data: x_0 = (1-g) a + g b, in each channel for itself

    The corner colours a and b are uniform on the 256 grid levels v/127.5 - 1 and
    independent; g is `gradient_ramp`. Every batch is fresh: the data set is endless.

    Returns: draw(B, generator) -> (x_0,), x_0 (B, C, H, W) in [-1, 1].
    """
    g = gradient_ramp(height, width)
    from_a, from_b = (1 - g).to(device, dtype), g.to(device, dtype)

    def draw(B: int, generator: Generator | None) -> tuple[Tensor, ...]:
        v = torch.empty((2, B, channels, 1, 1), dtype=torch.uint8, device=device)
        a, b = to_float(v.random_(256, generator=generator), dtype)
        return (from_a * a + from_b * b,)

    return draw


def gradient_images(
    n: int,
    height: int,
    width: int,
    generator: Generator | None = None,
    channels: int = 3,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """n colour gradients as `gradient_drawer` draws them, (n, C, H, W) in [-1, 1]."""
    device = "cpu" if generator is None else generator.device
    return gradient_drawer(height, width, channels, dtype, device)(n, generator)[0]


def held_against_the_law(x_0: Tensor) -> dict[str, float]:
    """How near pictures are to gradients between two uniform colours.

    Each channel is x_0 = (1-g) a + g b and a rest, by least squares. The rest is 0 for
    the data; a and b are uniform on 256 levels, which Kolmogorov's test compares:
    the largest difference of the distribution functions, and how likely one as large
    is for as many uniform numbers.
    """
    g = gradient_ramp(*x_0.shape[2:]).flatten().to(x_0.device)
    basis = torch.stack([1 - g, g])
    x = x_0.double().flatten(2)
    colours = x @ torch.linalg.pinv(basis)  # (B, C, 2)
    rest = x - colours @ basis
    u = (((colours + 1) * 127.5 + 0.5) / 256).flatten().sort().values.clamp(0, 1)
    n = len(u)
    above = torch.arange(1, n + 1, dtype=torch.float64, device=u.device) / n - u
    distance = float(torch.maximum(above, 1 / n - above).max())
    return {
        "rms_outside_the_plane": 127.5 * float(rest.square().mean().sqrt()),
        "energy_outside_the_plane": float(rest.square().sum() / x.square().sum()),
        "colours": n,
        "kolmogorov_distance": distance,
        "kolmogorov_p": kolmogorov_p(distance * math.sqrt(n)),
    }


def kolmogorov_p(z: float) -> float:
    """P(√n D_n > z) for large n: 2 Σ_{k>=1} (-1)^{k-1} exp(-2 k² z²), Kolmogorov."""
    if z < 0.2:
        return 1.0  # to ten digits, and the series would need many terms
    terms = ((-1.0) ** (k - 1) * math.exp(-2 * (k * z) ** 2) for k in range(1, 101))
    return float(2 * sum(terms))
