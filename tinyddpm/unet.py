"""The paper's noise predictor ε_θ(x_t, t): the U-Net of appendix B.

What lives here: the residual block, self-attention, and the network that joins them,
35,746,307 parameters at the default, which is the paper's setting for CIFAR-10. What
does not: the layers inside (`layers.py`), another block and another attention to plug
in (`convnext.py`), and the weights that the authors published (`pretrained.py`).

On the way down each level but the last halves the picture; on the way up each doubles
it again and reads, beside its own features, all that the way down made at that size.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Downsample, Dropout, GroupNorm, Upsample, glorot, zero
from .mlp import time_embedding
from .schedule import check_index


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
        self.dropout = Dropout(dropout)
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
    """x + dense(softmax(q kᵀ / √C) v), one head: each pixel looks at every pixel.

    Plain products are quicker here than torch's fused attention, which is made for
    narrow heads and long sequences: at 16x16 there are as many pixels as channels.
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


class DownLevel(Level):
    def forward(self, h: Tensor, emb: Tensor) -> list[Tensor]:
        """All that the level computes, to be saved; the last of it goes on down."""
        hs = [h]
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            hs.append(attention(block(hs[-1], emb)))
        if not isinstance(self.resample, nn.Identity):
            hs.append(self.resample(hs[-1]))
        return hs[1:]


class UpLevel(Level):
    def forward(self, h: Tensor, emb: Tensor, saved: list[Tensor]) -> Tensor:
        """Each block takes the last of `saved` off the list, and reads it beside h."""
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            h = attention(block(torch.cat([h, saved.pop()], dim=1), emb))
        h = self.resample(h)
        return h


class UNet(nn.Module):
    """App. B: the network, ε_θ(x_t, t) or ε_θ(x_t, t, c).

    Args:
        in_channels: of the pictures, and of the noise that is predicted.
        base: channels at full resolution; even, at least 4.
        multipliers: the channels of each level as a multiple of `base`. Every level
            but the last halves the picture.
        attention_levels: the levels, 0 being full resolution, with an attention after
            each block. There always is one between the two middle blocks.
        dropout: the probability inside each block.
        num_classes: None, or the number of classes c; one more stands for "none".
        block: called with (in_channels, out_channels, emb_channels, dropout), makes a
            module of (x, emb). `emb` (B, emb_channels) is the embedding of t and c.
        attention: called with (channels), makes a module of (x).
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
        levels = range(len(multipliers))
        if not levels or min(multipliers) < 1 or set(attention_levels) - set(levels):
            raise ValueError(
                f"multipliers must be whole numbers >= 1, one a level, and "
                f"attention_levels some of {list(levels)}; got {multipliers} and "
                f"{attention_levels}"
            )
        if base < 4 or base % 2 or in_channels < 1 or not 0 <= dropout < 1:
            raise ValueError(
                f"base must be even and >= 4, in_channels >= 1, dropout in [0, 1); "
                f"got {base}, {in_channels} and {dropout}"
            )
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes must be None or >= 1, got {num_classes}")
        # What a checkpoint needs to make the network again: plain values alone.
        plain = block is ResBlock and attention is SelfAttention
        self.arguments: dict[str, Any] | None = (
            None
            if not plain
            else {
                "in_channels": in_channels,
                "base": base,
                "multipliers": tuple(multipliers),
                "attention_levels": tuple(attention_levels),
                "dropout": dropout,
                "num_classes": num_classes,
            }
        )
        self.in_channels, self.base, self.num_classes = in_channels, base, num_classes
        self.factor = 2 ** (len(levels) - 1)
        emb = 4 * base
        self.dense1 = glorot(nn.Linear(base, emb))
        self.dense2 = glorot(nn.Linear(emb, emb))
        if num_classes is not None:
            self.classes = nn.Embedding(num_classes + 1, emb)

        def modules(
            level: int, inputs: list[int], width: int
        ) -> tuple[list[nn.Module], list[nn.Module]]:
            attends = level in attention_levels
            return (
                [block(c, width, emb, dropout) for c in inputs],
                [attention(width) if attends else nn.Identity() for _ in inputs],
            )

        c = base  # channels of what comes in from the level before
        saved = [base]  # channels of what the way down saves for the way up
        self.conv_in = glorot(nn.Conv2d(in_channels, base, 3, padding=1))
        self.down = nn.ModuleList()
        for i in levels:
            width, last = base * multipliers[i], i == levels[-1]
            halve = nn.Identity() if last else Downsample(width)
            self.down.append(DownLevel(*modules(i, [c, width], width), halve))
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
            self.up.append(UpLevel(*modules(i, inputs, width), double))
            c = width
        self.norm_out = GroupNorm(c)
        self.conv_out = zero(nn.Conv2d(c, in_channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """ε_θ(x_t, t, c).

        Args:
            x: (B, in_channels, H, W), H and W divisible by 2^(levels - 1).
            t: (B,), long, the paper's 1..T.
            c: (B,), long, in 0..num_classes, the last for "none"; None is "none" for
                all.
        Returns: the noise, the shape of x.
        Raises: ValueError for any other x, t or c.
        """
        self._check(x, t, c)
        emb = time_embedding(t.double(), self.base).to(x.dtype)
        emb = self.dense2(F.silu(self.dense1(emb)))
        if self.num_classes is not None:
            none = torch.full_like(t, self.num_classes)
            emb = emb + self.classes(none if c is None else c)
        emb = F.silu(emb)
        h: Tensor = self.conv_in(x)
        saved = [h]
        for level in self.down:
            saved += level(saved[-1], emb)
        h = self.middle1(saved[-1], emb)
        h = self.middle2(self.middle_attention(h), emb)
        for level in self.up:
            h = level(h, emb, saved)
        assert not saved, "each saved activation is used once"
        h = self.conv_out(F.silu(self.norm_out(h)))
        return h

    def _check(self, x: Tensor, t: Tensor, c: Tensor | None) -> None:
        """The door: shapes and dtypes of x, t and c, and the range of c on a CPU.

        On a GPU the embedding itself stops at a c out of range: to look at the values
        here would make the host wait.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels or not x.is_floating_point():
            raise ValueError(
                f"x must be floating point, of shape (B, {self.in_channels}, H, W); "
                f"got {x.dtype}, shape {tuple(x.shape)}"
            )
        if x.dtype != self.conv_in.weight.dtype:
            raise ValueError(
                f"x must have the dtype of the weights, {self.conv_in.weight.dtype}, "
                f"got {x.dtype}"
            )
        height, width = x.shape[2:]
        if height < 1 or width < 1 or height % self.factor or width % self.factor:
            raise ValueError(
                f"H and W must be multiples of {self.factor}, for the network halves "
                f"them level by level; got {height} x {width}; pad or crop the pictures"
            )
        check_index("t", t, x)
        if c is None:
            return
        check_index("c", c, x)
        if self.num_classes is None:
            raise ValueError(
                "this UNet has no classes: leave c out, or set num_classes"
            )
        if c.device.type == "cpu" and not torch.compiler.is_compiling() and len(c):
            low, high = int(c.min()), int(c.max())
            if low < 0 or high > self.num_classes:
                raise ValueError(
                    f"c must lie in 0..{self.num_classes} ({self.num_classes} is "
                    f"'none'), got {low}..{high}"
                )
