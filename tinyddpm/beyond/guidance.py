"""Classifier-free guidance (Ho & Salimans 2022): classes that are left out at times."""

import torch
from torch import Generator, Tensor

from ..data import Draw


def sometimes_without_class(draw: Draw, none: int, share: float = 0.1) -> Draw:
    """Puts the class `none` in place of that share of the classes drawn.

    So one network learns both ε_θ(x_t, t, c) and ε_θ(x_t, t).
    """

    def draw_some(B: int, generator: Generator | None) -> tuple[Tensor, ...]:
        x_0, c = draw(B, generator)
        u = torch.rand(B, generator=generator, device=c.device)
        return x_0, torch.where(u < share, none, c)

    return draw_some
