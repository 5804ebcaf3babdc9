"""Classifier-free guidance (Ho & Salimans 2022): classes on demand, and more of them.

A network is trained with classes that are left out at times. What is made of it here
is an ordinary `eps_theta` (x_t, t) -> eps_hat, which the samplers and the bound take
like any other: none of them knows of classes.
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from ..data import Draw
from ..sampler import EpsTheta, asked
from ..schedule import check_index, check_range


def sometimes_without_class(draw: Draw, none: int, share: float = 0.1) -> Draw:
    """Puts the class `none` in place of that share of the classes drawn.

    So one network learns both ε_θ(x_t, t, c) and ε_θ(x_t, t).
    """

    def draw_some(B: int, generator: Generator | None) -> tuple[Tensor, ...]:
        x_0, c = draw(B, generator)
        u = torch.rand(B, generator=generator, device=c.device)
        return x_0, torch.where(u < share, none, c)

    return draw_some


def guided(net: Callable[..., Tensor], c: Tensor | int, w: float = 0.0) -> EpsTheta:
    """Eq. 6: ε̃(x_t, t) = (1 + w) ε_θ(x_t, t, c) - w ε_θ(x_t, t)

    In terms of scores, ∇ log [p(x_t|c) p(c|x_t)^w]: w = 0 gives pictures of the class,
    a larger w those that are most clearly of it, and fewer kinds of them.

    The network is asked as `sampler.asked` does, without gradients, and once a step if
    w = 0, else twice.

    Args:
        net: (x_t, t, c) -> eps_hat, and (x_t, t) -> eps_hat for no class, such as
            `UNet` with num_classes.
        c: the class of every picture, or those of a batch, (B,), long. Where a batch is
            regrouped, as `estimate.estimate_bits_per_dim` does, only one class for all
            can be closed over; that function takes the classes as an argument.
        w: the guidance, >= 0.
    Returns: ε̃, (x_t, t) -> (B, ...).
    Raises: ValueError for a class that the network does not have, or a network without.
    """
    if not (0 <= w < math.inf):
        raise ValueError(f"the guidance w must be finite and >= 0, got {w}")
    classes = torch.as_tensor(c)
    check_index("c", classes.reshape(-1), classes.reshape(-1))
    if isinstance(net, nn.Module):
        _check_classes(net, classes.reshape(-1))
    eps_theta = asked(net)

    def eps_tilde(x_t: Tensor, t: Tensor) -> Tensor:
        of_batch = classes.to(t.device)
        of_batch = of_batch.expand_as(t) if of_batch.ndim == 0 else of_batch
        check_index("c", of_batch, x_t)
        eps_c = eps_theta(x_t, t, of_batch)
        return eps_c if w == 0 else (1 + w) * eps_c - w * eps_theta(x_t, t)

    return eps_tilde


def _check_classes(net: nn.Module, c: Tensor) -> None:
    """Refuses a network without classes, and classes that it does not have."""
    num_classes = getattr(net, "num_classes", None)
    if num_classes is None:
        how = "train one with num_classes and sometimes_without_class"
        raise ValueError(f"this network knows no classes, so none can be asked; {how}")
    check_range("c", c.cpu(), 0, num_classes)  # the last one stands for no class
