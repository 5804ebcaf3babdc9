"""The toy's data: colour gradients, whose exact predictor `oracle.py` has."""

import torch
from torch import Generator, Tensor

from ..data import Draw, to_float


def gradient_ramp(height: int, width: int) -> Tensor:
    """g of the toy's x_0 = (1-g) a + g b: from 0 at the top left to 1 bottom right

    g is H i/(H-1) + W j/(W-1) at pixel (i, j), divided by its value at the last pixel;
    a side of one pixel adds nothing. Returns: (H, W), float64.
    """
    if height < 1 or width < 1 or height * width < 2:
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
