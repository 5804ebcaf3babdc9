"""Data: the toy's colour gradients, and batches of pictures for training.

What lives here: `gradient_images`, and the functions that draw x_0 ~ q(x_0). What does
not: reading files (`readers.py`) and the 8-bit scale itself (`pictures.py`).
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from .workshop.pictures import to_float

# draw(B, generator) -> (x_0,) or (x_0, c): a batch for Algorithm 1, line 2
Draw = Callable[[int, Generator | None], tuple[Tensor, ...]]


def gradient_ramp(height: int, width: int) -> Tensor:
    """g of x_0 = (1-g) a + g b: from 0 at the top left to 1 at the bottom right

    g is H i/(H-1) + W j/(W-1) at pixel (i, j), divided by its value at the last pixel;
    a side of one pixel adds nothing.

    Returns: (H, W), float64.
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

    Returns: draw(B, generator) -> (x_0,), x_0 (B, C, H, W) in [-1, 1]. The generator
        lives on `device`.
    """
    g = gradient_ramp(height, width)
    from_a, from_b = (1 - g).to(device, dtype), g.to(device, dtype)

    def draw(B: int, generator: Generator | None) -> tuple[Tensor, ...]:
        size = (2, B, channels, 1, 1)
        v = torch.randint(
            256, size, generator=generator, dtype=torch.uint8, device=device
        )
        a, b = to_float(v, dtype)
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


def drawer(images: Tensor, labels: Tensor | None = None, flip: bool = False) -> Draw:
    """Draws batches x_0 ~ q(x_0) (Algorithm 1, line 2) from pictures held in memory.

    Pictures are drawn uniformly and with replacement: an expectation over q(x_0) needs
    no epochs, and a batch is then a function of its generator alone. All of it happens
    on the device of the pictures, without the host waiting.

    Args:
        images: uint8, (N, C, H, W).
        labels: long, (N,), on the same device.
        flip: mirror each picture left to right with probability 1/2 (App. B).
    Returns: draw(B, generator) -> (x_0,) or (x_0, c): x_0 (B, C, H, W) float32 in
        [-1, 1], c (B,) long. The generator lives on the device of the pictures.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or len(images) < 1:
        raise ValueError(
            f"pictures must be uint8 (N, C, H, W) with N >= 1, got {images.dtype} "
            f"{tuple(images.shape)}"
        )
    if labels is not None and (
        labels.shape != images.shape[:1] or labels.dtype != torch.long
    ):
        raise ValueError(
            f"{len(images)} pictures need as many labels, a LongTensor (N,), got "
            f"{labels.dtype} {tuple(labels.shape)}"
        )
    device = images.device

    def draw(B: int, generator: Generator | None) -> tuple[Tensor, ...]:
        i = torch.randint(len(images), (B,), generator=generator, device=device)
        v = images[i]
        if flip:
            coin = torch.randint(2, (B, 1, 1, 1), generator=generator, device=device)
            v = torch.where(coin == 1, v.flip(3), v)
        return (to_float(v),) if labels is None else (to_float(v), labels[i])

    return draw


def sometimes_without_class(draw: Draw, none: int, share: float = 0.1) -> Draw:
    """Puts the class `none` in place of that share of the classes drawn.

    So one network learns both ε_θ(x_t, t, c) and ε_θ(x_t, t).
    """

    def draw_some(B: int, generator: Generator | None) -> tuple[Tensor, ...]:
        x_0, c = draw(B, generator)
        u = torch.rand(B, generator=generator, device=c.device)
        return x_0, torch.where(u < share, none, c)

    return draw_some
