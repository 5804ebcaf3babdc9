"""The U-Net's layers: what appendix B leaves open is as in the authors' code."""

from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def zero(layer: Layer) -> Layer:
    """Weights and bias 0: the branch that ends in this layer adds nothing at first."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def glorot(layer: Layer) -> Layer:
    """The authors' initialisation: U(-a, a), a² = 6 / (fan_in + fan_out), bias 0."""
    nn.init.xavier_uniform_(zero(layer).weight)
    return layer


class GroupNorm(nn.GroupNorm):
    """Group normalisation as the authors have it: 32 groups, eps 1e-6.

    Where channels are few, so are groups, each of two channels at least: the norm of a
    single channel would cancel what the time embedding adds to all its pixels.
    """

    def __init__(self, channels: int) -> None:
        if channels < 2:
            given = f"got {channels} in all"
            raise ValueError(f"group norm needs 2 channels a group at least, {given}")
        groups = [g for g in range(1, 33) if channels % g == 0 and channels >= 2 * g]
        super().__init__(groups[-1], channels, eps=1e-6)


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2, padded on the right and bottom alone.

    So the authors' framework pads: the windows begin at pixels 0, 2, 4, ...
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = glorot(nn.Conv2d(channels, channels, 3, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2)."""
        h: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return h


class Upsample(nn.Module):
    """Nearest-neighbour interpolation to twice the size, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = glorot(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        h: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return h
