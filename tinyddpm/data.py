"""Data: the 8-bit scale of section 3.3, and batches x_0 ~ q(x_0) to train on."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

# draw(B, generator) -> (x_0,) or (x_0, c): a batch for Algorithm 1, line 2
Draw = Callable[[int, Generator | None], tuple[Tensor, ...]]


def to_float(v: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Section 3.3: 8-bit levels v = 0..255 scaled linearly to [-1, 1], v/127.5 - 1

    Args: v, uint8, any shape. Returns: that shape, in dtype.
    """
    if getattr(v, "dtype", None) != torch.uint8:
        raise ValueError(f"levels must be a uint8 tensor, got {getattr(v, 'dtype', v)}")
    return (v.to(dtype) - 127.5) / 127.5  # the numerator is exact: rounded once


def to_uint8(x: Tensor) -> Tensor:
    """The nearest 8-bit level of x in [-1, 1]; beyond the ends, the end.

    It undoes `to_float`. Raises: ValueError for nan, and for x not floating point.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        given = x.dtype if isinstance(x, Tensor) else type(x)
        raise ValueError(f"pictures in [-1, 1] must be floating point, got {given}")
    if x.isnan().any():
        raise ValueError(f"{int(x.isnan().sum())} of {x.numel()} pixels are nan")
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_levels(x_0: Tensor) -> Tensor:
    """The level v = 0..255 of each number of pictures in [-1, 1], as float64.

    Raises: ValueError off the grid v/127.5 - 1, where eq. 13 means nothing.
    """
    scaled = (x_0.double() + 1) * 127.5
    level = scaled.round()
    right = ((scaled - level).abs() < 1e-3) & (level >= 0) & (level <= 255)
    if not right.all():
        raise ValueError(
            f"eq. 13 needs 8-bit pictures, x = v/127.5 - 1 with v in 0..255, got x = "
            f"{float(x_0[~right][0])}; round them first: to_float(to_uint8(x_0))"
        )
    return level


def drawer(images: Tensor, labels: Tensor | None = None, flip: bool = False) -> Draw:
    """Draws batches x_0 ~ q(x_0) (Algorithm 1, line 2) from pictures held in memory.

    Pictures are drawn uniformly and with replacement: an expectation over q(x_0) needs
    no epochs, and a batch is then a function of its generator alone. All of it happens
    on the device of the pictures, where the generator must be too.

    Args:
        images: uint8, (N, C, H, W).
        labels: long, (N,), on the same device.
        flip: mirror each picture left to right with probability 1/2 (App. B).
    Returns: draw(B, generator) -> (x_0,) or (x_0, c): x_0 (B, C, H, W) float32 in
        [-1, 1], c (B,) long.
    """
    N, device = len(images), images.device
    if images.dtype != torch.uint8 or images.ndim != 4 or N < 1:
        given = f"got {type(images).__name__} {images.dtype} {tuple(images.shape)}"
        raise ValueError(f"pictures must be uint8 (N, C, H, W) with N >= 1, {given}")
    if labels is not None and (labels.shape != (N,) or labels.dtype != torch.long):
        given = f"got {labels.dtype} {tuple(labels.shape)}"
        raise ValueError(f"{N} pictures need as many labels, a LongTensor, {given}")

    def draw(B: int, generator: Generator | None) -> tuple[Tensor, ...]:
        i = torch.randint(N, (B,), generator=generator, device=device)
        v = images[i]
        if flip:
            coin = torch.randint(2, (B, 1, 1, 1), generator=generator, device=device)
            v = torch.where(coin == 1, v.flip(3), v)
        return (to_float(v),) if labels is None else (to_float(v), labels[i])

    return draw
