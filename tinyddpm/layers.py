"""The U-Net's layers: initialisation, group norm, dropout, halving and doubling.

What lives here: what appendix B leaves to the authors' code, and whatever is done in
another way than the plain one for speed (`Dropout`, `Upsample`; each says what it
equals). What does not: how layers make a network (`unet.py`).
"""

from typing import TypeVar

import torch
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

    Where channels are few, so are groups: each has two channels at least. The norm of
    one channel alone would cancel what the time embedding adds to it, one number for
    all its pixels, and the network would not see t.
    """

    def __init__(self, channels: int) -> None:
        if channels < 2:
            raise ValueError(
                f"group norm needs 2 channels a group at least, got {channels} in all"
            )
        groups = [g for g in range(1, 33) if channels % g == 0 and channels >= 2 * g]
        super().__init__(groups[-1], channels, eps=1e-6)


class Dropout(nn.Dropout):
    """nn.Dropout; on a CPU with four coins from each 64-bit random number.

    There torch tosses one coin after the other on one core, a twelfth of a training
    step's time. So p, and with it the scale 1/(1-p), is rounded to a multiple of 2⁻¹⁶.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if x.device.type != "cpu" or not self.training or torch.compiler.is_compiling():
            return super().forward(x)
        drop = round(self.p * 2**16)
        if drop == 2**16:
            return torch.zeros_like(x)
        n = x.numel()
        coins = torch.empty(-(-n // 4), dtype=torch.long).random_(-(2**63), None)
        keep = torch.empty_like(x)  # 1 or 0, as x lies in memory
        coins = coins.view(torch.int16)[:n].as_strided(x.shape, keep.stride())
        torch.ge(coins, drop - 2**15, out=keep)
        return x * keep.mul_(2**16 / (2**16 - drop))


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
    """conv(interpolate(x, scale_factor=2)): nearest neighbour, then a 3x3 convolution.

    Done as one transposed convolution of stride 2. In each direction a pixel of x
    stands for two, which meet the weights a, b, c one after the other: their sums
    c, b + c, a + b, a are the weights with which x adds to four pixels of the result.
    Along both, 16 products for what takes 36 one by one.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = glorot(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        weight = self.conv.weight.transpose(0, 1)  # (in, out, 3, 3)
        for direction in (2, 3):
            a, b, c = weight.unbind(direction)
            weight = torch.stack([c, b + c, a + b, a], direction)
        return F.conv_transpose2d(x, weight, self.conv.bias, stride=2, padding=1)
