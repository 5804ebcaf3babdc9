"""Another block and another attention for `UNet(block=..., attention=...)`.

They are a ConvNeXt block (Liu et al. 2022, arXiv 2201.03545), and linear attention
(Shen et al. 2018, arXiv 1812.01243), whose cost grows with the number of pixels and not
with its square. The DDPM paper's own block and attention are in `unet.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import GroupNorm, glorot, zero


class ConvNeXtBlock(nn.Module):
    """x + contract(dropout(GELU(expand(norm(depthwise(x) + dense(emb))))))

    `depthwise` is a 7x7 convolution of each channel by itself; `expand` and `contract`
    are 1x1 convolutions to four times the channels and back. The norm is the U-Net's
    group norm, which sees the mean that `dense(emb)` shifts within a group.
    """

    def __init__(
        self, in_channels: int, out_channels: int, emb_channels: int, dropout: float
    ) -> None:
        super().__init__()
        # Left as torch initialises it: Glorot's fan-out does not know of groups.
        self.depthwise = nn.Conv2d(
            in_channels, in_channels, 7, padding=3, groups=in_channels
        )
        self.dense = glorot(nn.Linear(emb_channels, in_channels))
        self.norm = GroupNorm(in_channels)
        self.expand = glorot(nn.Conv2d(in_channels, 4 * out_channels, 1))
        self.dropout = nn.Dropout(dropout)
        self.contract = zero(nn.Conv2d(4 * out_channels, out_channels, 1))
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = glorot(nn.Conv2d(in_channels, out_channels, 1))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B, in, H, W), emb (B, emb_channels) after SiLU -> (B, out, H, W)."""
        h = self.depthwise(x) + self.dense(emb)[:, :, None, None]
        h = self.dropout(F.gelu(self.expand(self.norm(h))))
        out: Tensor = self.shortcut(x) + self.contract(h)
        return out


class LinearAttention(nn.Module):
    """x + dense(softmax(q) (softmax(k)ᵀ v)), one head: no table of pixels by pixels.

    The softmax of k is over the pixels, so that kᵀ v is C averages of v over the whole
    picture; that of q is over the features, so that a pixel's result is an average of
    those. A v that is the same at every pixel thus comes back as it is, as from full
    attention.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.q = glorot(nn.Conv2d(channels, channels, 1))
        self.k = glorot(nn.Conv2d(channels, channels, 1))
        self.v = glorot(nn.Conv2d(channels, channels, 1))
        self.out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        h = self.norm(x).contiguous(memory_format=torch.channels_last)
        q = self.q(h).flatten(2).transpose(1, 2)  # (B, HW, C)
        k = self.k(h).flatten(2)  # (B, C, HW)
        v = self.v(h).flatten(2).transpose(1, 2)  # (B, HW, C)
        # The parameters' dtype: under autocast too the softmax is taken in float32.
        q = torch.softmax(q, dim=2, dtype=self.norm.weight.dtype)  # over the features
        k = torch.softmax(k, dim=2, dtype=self.norm.weight.dtype)  # over the pixels
        h = q @ (k @ v)  # (B, HW, C)
        out: Tensor = x + self.out(h.transpose(1, 2).unflatten(2, x.shape[2:]))
        return out
