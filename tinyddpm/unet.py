"""The paper's network ε_θ(x_t, t): the U-Net of appendix B.

On the way down each level but the last halves the picture; on the way up each doubles
it again and reads, beside its own features, all that the way down made at that size. It
has 35,746,307 parameters at the default, which is the paper's setting for CIFAR-10.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Downsample, GroupNorm, Upsample, glorot, zero
from .mlp import time_embedding
from .schedule import check_index, check_range, whole


class ResBlock(nn.Module):
    """x + conv(dropout(SiLU(norm(h + dense(emb))))), h = conv(SiLU(norm(x))).

    Where the number of channels changes, a 1x1 convolution of x stands for x.
    """

    def __init__(
        self, in_channels: int, out_channels: int, emb_channels: int, dropout: float
    ) -> None:
        super().__init__()
        self.norm1 = GroupNorm(in_channels)
        self.conv1 = glorot(nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.dense = glorot(nn.Linear(emb_channels, out_channels))
        self.norm2 = GroupNorm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = glorot(nn.Conv2d(in_channels, out_channels, 1))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B, in, H, W), emb (B, emb_channels) after SiLU -> (B, out, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.dense(emb)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        out: Tensor = self.shortcut(x) + h
        return out


class SelfAttention(nn.Module):
    """x + dense(softmax(q kᵀ / √C) v), one head: each pixel looks at every pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.q = glorot(nn.Conv2d(channels, channels, 1))
        self.k = glorot(nn.Conv2d(channels, channels, 1))
        self.v = glorot(nn.Conv2d(channels, channels, 1))
        self.out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        # Channels innermost, whatever x has: a pixel's features are one row of q, k, v.
        h = self.norm(x).contiguous(memory_format=torch.channels_last)
        q = self.q(h).flatten(2).transpose(1, 2) * x.shape[1] ** -0.5  # (B, HW, C)
        k = self.k(h).flatten(2)  # (B, C, HW)
        v = self.v(h).flatten(2).transpose(1, 2)  # (B, HW, C)
        # The parameters' dtype: under autocast too the softmax is taken in float32.
        weights = torch.softmax(q @ k, dim=-1, dtype=self.norm.weight.dtype)
        h = weights @ v  # (B, HW, C)
        out: Tensor = x + self.out(h.transpose(1, 2).unflatten(2, x.shape[2:]))
        return out


class Level(nn.Module):
    """One resolution: blocks, after each an attention or nothing, then a resampling."""

    def __init__(
        self, blocks: list[nn.Module], attentions: list[nn.Module], resample: nn.Module
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attentions = nn.ModuleList(attentions)
        self.resample = resample

    def forward(self, h: Tensor, emb: Tensor, saved: list[Tensor], up: bool) -> Tensor:
        """Down: saves all that it computes. Up: each block reads the last saved too."""
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            h = torch.cat([h, saved.pop()], dim=1) if up else h
            h = attention(block(h, emb))
            saved += [] if up else [h]
        h = self.resample(h)
        saved += [] if up or isinstance(self.resample, nn.Identity) else [h]
        return h


class UNet(nn.Module):
    """App. B: the network, ε_θ(x_t, t) or ε_θ(x_t, t, c).

    Args:
        in_channels: of the pictures, and of the noise that is predicted.
        base: channels at full resolution; even, at least 4.
        multipliers: the channels of each level as a multiple of `base`.
        attention_levels: those with attention after each block, 0 being full size.
            There always is one between the two middle blocks.
        dropout: the probability inside each block.
        num_classes: None, or the number of classes c; one more stands for "none".
        block, attention: the modules, or others that are made and called as they are.
    """

    def __init__(
        self,
        in_channels: int = 3,
        base: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        attention_levels: Sequence[int] = (1,),
        dropout: float = 0.1,
        num_classes: int | None = None,
        block: Callable[[int, int, int, float], nn.Module] = ResBlock,
        attention: Callable[[int], nn.Module] = SelfAttention,
    ) -> None:
        super().__init__()
        multipliers = tuple(whole("multipliers, one a level,", multipliers))
        attention_levels = tuple(whole("attention_levels", attention_levels, least=0))
        in_channels, base = whole("in_channels and base", [in_channels, base])
        levels, dropout = range(len(multipliers)), float(dropout)
        if set(attention_levels) - set(levels):
            wanted = f"lie in {list(levels)}, got {attention_levels}"
            raise ValueError(f"attention_levels must {wanted}")
        if base < 4 or base % 2 or not 0 <= dropout < 1:
            wanted = f"even and >= 4, dropout in [0, 1), got {base} and {dropout}"
            raise ValueError(f"base must be {wanted}")
        if num_classes is not None:
            (num_classes,) = whole("num_classes, if not None,", [num_classes])
        self.in_channels, self.base, self.num_classes = in_channels, base, num_classes
        self.multipliers, self.attention_levels = multipliers, attention_levels
        self.dropout, self.factor = dropout, 2 ** (len(levels) - 1)
        emb = 4 * base
        self.dense1 = glorot(nn.Linear(base, emb))
        self.dense2 = glorot(nn.Linear(emb, emb))
        if num_classes is not None:
            self.classes = nn.Embedding(num_classes + 1, emb)

        def level(i: int, inputs: list[int], width: int, resample: nn.Module) -> Level:
            after = attention if i in attention_levels else nn.Identity
            blocks = [block(c, width, emb, dropout) for c in inputs]
            return Level(blocks, [after(width) for _ in inputs], resample)

        c = base  # channels of what comes in from the level before
        saved = [base]  # channels of what the way down saves for the way up
        self.conv_in = glorot(nn.Conv2d(in_channels, base, 3, padding=1))
        self.down = nn.ModuleList()
        for i in levels:
            width, last = base * multipliers[i], i == levels[-1]
            halve = nn.Identity() if last else Downsample(width)
            self.down.append(level(i, [c, width], width, halve))
            saved += [width] * (2 if last else 3)
            c = width
        self.middle1 = block(c, c, emb, dropout)
        self.middle_attention = attention(c)
        self.middle2 = block(c, c, emb, dropout)
        self.up = nn.ModuleList()
        for i in reversed(levels):
            width = base * multipliers[i]
            inputs = [h + saved.pop() for h in (c, width, width)]
            double = Upsample(width) if i > 0 else nn.Identity()
            self.up.append(level(i, inputs, width, double))
            c = width
        self.norm_out = GroupNorm(c)
        self.conv_out = zero(nn.Conv2d(c, in_channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """ε_θ(x_t, t, c), the shape of x; ValueError for any other x, t or c than

        x (B, in_channels, H, W), H and W divisible by 2^(levels - 1); t (B,), long; and
        c (B,), long, 0..num_classes, the last for "none", which None is for all.
        """
        C, dtype, size = self.in_channels, self.conv_in.weight.dtype, x.shape[2:]
        if x.ndim != 4 or x.shape[1] != C or x.dtype != dtype:
            given = f"got {tuple(x.shape)}, {x.dtype}"
            raise ValueError(f"x must be (B, {C}, H, W), {dtype}, {given}")
        if 0 in size or size[0] % self.factor or size[1] % self.factor:
            given = f"got {size[0]} x {size[1]}; pad or crop the pictures"
            raise ValueError(f"H and W must be multiples of {self.factor}, {given}")
        check_index("t", t, x)
        emb = time_embedding(t.double(), self.base).to(x.dtype)
        emb = self.dense2(F.silu(self.dense1(emb)))
        if self.num_classes is not None:
            c = torch.full_like(t, self.num_classes) if c is None else c
            check_index("c", c, x)
            check_range("c", c, 0, self.num_classes)
            emb = emb + self.classes(c)
        elif c is not None:
            raise ValueError("this UNet has no classes: leave c out or set num_classes")
        emb = F.silu(emb)
        h: Tensor = self.conv_in(x)
        saved = [h]
        for down in self.down:
            h = down(h, emb, saved, up=False)
        h = self.middle1(h, emb)
        h = self.middle2(self.middle_attention(h), emb)
        for up in self.up:
            h = up(h, emb, saved, up=True)
        assert not saved, "each saved activation is used once"
        h = self.conv_out(F.silu(self.norm_out(h)))
        return h
