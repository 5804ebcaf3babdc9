"""The toy's noise predictor, and the time embedding that `unet.py` shares.

What lives here: sinusoidal features of t, and a multi-layer perceptron ε_θ(x_t, t) for
pictures of a few hundred numbers. What does not: anything convolutional (`unet.py`).
"""

import math

import torch
from torch import Tensor


def time_embedding(t: Tensor, dim: int) -> Tensor:
    """App. B's sinusoidal position embedding of t: (sin(ω_i t)..., cos(ω_i t)...)

    ω_i = 10000^(-i/(dim/2 - 1)), i = 0..dim/2 - 1: all sines first, then all cosines,
    as in the authors' code, so that published weights fit.

    Args:
        t: (B,), any real dtype.
        dim: even, at least 4 (the exponent's denominator is 0 at dim = 2).
    Returns: (B, dim), float64 if t is, else float32.
    """
    if dim < 4 or dim % 2:
        raise ValueError(f"the embedding's width must be even and >= 4, got {dim}")
    dtype = torch.float64 if t.dtype == torch.float64 else torch.float32
    i = torch.arange(dim // 2, dtype=torch.float64, device=t.device)
    omega = torch.exp(-math.log(10000) * i / (dim // 2 - 1))
    angle = t.to(torch.float64)[:, None] * omega
    return torch.cat([angle.sin(), angle.cos()], dim=1).to(dtype)
