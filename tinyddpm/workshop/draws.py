"""What `fit` asks of the pictures it is given, at the first draw and at each."""

import hashlib
import io
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ..data import Draw
from ..sampler import asked
from ..schedule import same_shape


class CheckedDraw:
    """`draw`, with each batch held to what the first one was.

    Attributes:
        shape: (C, H, W) of the pictures.
        digest: tells the data, wherever they lie: of the first batch that a new
            generator draws, with the kind of device. Other data, or more or fewer of
            them, draw another batch; a change to a few of N pictures, none of which is
            in that batch of B, goes unseen, and to see it for certain all of the data
            would have to be read. None for a draw that does not go by its generator.
        largest: the largest |x_0| drawn so far, on the device.
        below_0: whether any number of the first batch is below 0.
    """

    def __init__(self, draw: Draw, net: nn.Module, B: int) -> None:
        """Draws twice, and asks the network once whether the pictures fit it."""
        self.draw, device = draw, next(net.parameters()).device
        batch = self._batch(B, Generator(device))
        x_0, *c = batch
        self.shape = tuple(x_0.shape[1:])
        self.largest = x_0.abs().amax()
        self.below_0 = bool((x_0 < 0).any())
        self.refuse_outside()
        first = torch.ones(1, dtype=torch.long, device=device)
        eps_hat = asked(net)(x_0[:1], first, *(y[:1] for y in c))
        same_shape("eps_theta(x_t, t)", eps_hat, x_0[:1])
        both = [_digest(batch), _digest(self._batch(B, Generator(device)))]
        self.digest = f"{device.type}:{both[0]}" if both[0] == both[1] else None

    def __call__(self, B: int, generator: Generator | None) -> tuple[Tensor, ...]:
        batch = self._batch(B, generator)
        if batch[0].shape[1:] != self.shape:
            raise ValueError(
                f"draw({B}, generator) gave pictures {tuple(batch[0].shape[1:])}, and "
                f"{self.shape} in its first batch; give all of them one shape"
            )
        self.largest = torch.maximum(self.largest, batch[0].abs().amax())
        return batch

    def refuse_outside(self) -> None:
        """ValueError where a picture drawn so far leaves [-1, 1], or holds a nan."""
        if not bool(self.largest <= 1):
            raise ValueError(
                f"pictures must lie in [-1, 1], got one with a number as large as "
                f"{float(self.largest):g}; to_float scales 8-bit pictures"
            )

    def _batch(self, B: int, generator: Generator | None) -> tuple[Tensor, ...]:
        batch: Any = self.draw(B, generator)
        if not isinstance(batch, tuple | list) or not 1 <= len(batch) <= 2:
            raise ValueError(
                f"draw({B}, generator) must give (x_0,) or (x_0, c), got "
                f"{type(batch).__name__}; a single tensor x_0 is given as (x_0,)"
            )
        for x in batch:
            if not isinstance(x, Tensor) or len(x) != B:
                given = f"{type(x).__name__}" if not isinstance(x, Tensor) else len(x)
                raise ValueError(
                    f"draw({B}, generator) must give tensors of {B} items each, got "
                    f"{given}"
                )
        if not batch[0].is_floating_point():
            raise ValueError(
                f"draw({B}, generator) must give pictures as floating point, got "
                f"{batch[0].dtype}; to_float scales 8-bit pictures to [-1, 1]"
            )
        return tuple(batch)


def _digest(batch: tuple[Tensor, ...]) -> str:
    """Of the numbers, whatever their dtype."""
    digest = hashlib.blake2b(digest_size=16)
    for x in batch:
        buffer = io.BytesIO()
        torch.save(x.detach().double().cpu().contiguous().clone(), buffer)
        digest.update(buffer.getvalue())
    return digest.hexdigest()
