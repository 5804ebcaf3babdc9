"""The toy's network, and the time embedding that it shares with the U-Net (App. B)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .schedule import check_index, whole


def time_embedding(t: Tensor, dim: int) -> Tensor:
    """App. B: the sinusoidal position embedding of t, (sin(ω_i t)..., cos(ω_i t)...)

    ω_i = 10000^(-i/(dim/2 - 1)), i = 0..dim/2 - 1: all sines first, then all cosines,
    as in the authors' code, so that published weights fit.

    Args: t (B,), any real dtype; dim, even, at least 4 (at 2 the denominator is 0).
    Returns: (B, dim), float64 if t is, else float32.
    """
    (dim,) = whole("the embedding's width", [dim], least=0)
    if dim < 4 or dim % 2:
        raise ValueError(f"the embedding's width must be even and >= 4, got {dim}")
    i = torch.arange(dim // 2, dtype=torch.float64, device=t.device)
    omega = torch.exp(-math.log(10000) * i / (dim // 2 - 1))
    angle = t.double()[:, None] * omega
    emb = torch.cat([angle.sin(), angle.cos()], dim=1)
    return emb if t.dtype == torch.float64 else emb.float()


class MLP(nn.Module):
    """ε_θ(x_t, t) = g(t) (x_t - y(x_t, t)), for pictures of a few hundred numbers.

    That is eq. 15 read backwards: the best y is √ᾱ_t E[x_0|x_t] and the best g is
    1/√(1-ᾱ_t), so y need only know pictures, not noise. g is 0 at the start. y is a
    multi-layer perceptron for pictures of a `shape` (C, H, W): each of its `depth`
    layers adds SiLU(scale(t) · dense(h) + shift(t)) to its `width` features h. `emb` is
    the width of the embedding of t; even, at least 4.
    """

    def __init__(
        self, shape: tuple[int, ...], width: int = 128, depth: int = 3, emb: int = 64
    ) -> None:
        super().__init__()
        self.shape = shape = tuple(whole("shape", shape))
        width, depth, emb = whole("width, depth and emb", [width, depth, emb])
        self.width, self.depth, self.emb = width, depth, emb
        D = math.prod(shape)
        self.emb1, self.emb2 = nn.Linear(emb, emb), nn.Linear(emb, emb)
        self.first = nn.Linear(D, width)
        self.dense = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.modulate = nn.ModuleList(nn.Linear(emb, 2 * width) for _ in range(depth))
        self.last = nn.Linear(width, D)
        self.gate = nn.Linear(emb, 1)
        for layer in (self.last, self.gate):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """ε_θ(x_t, t): x (B, *shape), t (B,), 1..T -> the noise, the shape of x."""
        if x.shape[1:] != self.shape or x.dtype != self.first.weight.dtype:
            wanted = f"(B, *{self.shape}), {self.first.weight.dtype}"
            raise ValueError(f"x must be {wanted}, got {tuple(x.shape)}, {x.dtype}")
        check_index("t", t, x)
        emb = time_embedding(t.double(), self.emb).to(x.dtype)
        emb = F.silu(self.emb2(F.silu(self.emb1(emb))))
        x = x.flatten(1)
        h = self.first(x)
        for dense, modulate in zip(self.dense, self.modulate, strict=True):
            scale, shift = modulate(emb).chunk(2, dim=1)
            h = h + F.silu((1 + scale) * dense(h) + shift)
        eps_hat: Tensor = self.gate(emb) * (x - self.last(h))
        return eps_hat.view(-1, *self.shape)
