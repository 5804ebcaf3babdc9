"""An arithmetic coder: symbols of known probability to bits, and back.

`random_coding.py` writes its messages with it. A message is a number in [0, 1), written
in binary: each symbol narrows the interval that the number lies in by the symbol's
probability.

The interval is held exactly, as Python's whole numbers: no carries, no renormalisation,
and time that grows with the square of the number of symbols (a few thousand is fine).
"""

import math

import torch
from torch import Tensor

PRECISION = 40  # bits of a probability: the rarest symbol costs 40 bits, not ∞


def cumulative(p: Tensor) -> Tensor:
    """Probabilities as whole counts of 2^40: (..., n) -> int64 (..., n + 1), from 0

    Each symbol gets at least 1, so that anything can be sent; the likeliest symbol
    takes what rounding leaves.
    """
    n, total = p.shape[-1], 1 << PRECISION
    counts = (p / p.sum(-1, keepdim=True) * (total - n)).floor().long() + 1
    left = total - counts.sum(-1, keepdim=True)
    counts.scatter_add_(-1, p.argmax(-1, keepdim=True), left)
    return torch.nn.functional.pad(counts.cumsum(-1), (1, 0))


class Writer:
    """Narrows [low, low + width) / 2^(40 n) by each of n symbols."""

    def __init__(self) -> None:
        self.n, self.low, self.width = 0, 0, 1

    def write(self, table: Tensor, symbol: int) -> None:
        """One symbol, 0..n-1, of the law that `cumulative` made the table of."""
        start, end = table[symbol : symbol + 2].tolist()
        self.low = (self.low << PRECISION) + self.width * start
        self.width *= end - start
        self.n += 1

    @property
    def bits(self) -> float:
        """-log2 of the width: what the symbols so far cost."""
        return self.n * PRECISION - math.log2(self.width)

    def message(self) -> bytes:
        """A number inside the interval, of as few bits as its width promises."""
        drop = self.width.bit_length() - 1  # 2^drop <= width: a multiple is inside
        length = self.n * PRECISION - drop
        number = -(-self.low >> drop)
        whole = -(-length // 8)
        return (number << (8 * whole - length)).to_bytes(whole, "big")


class Reader:
    """Reads what a Writer wrote, given the same tables in the same order."""

    def __init__(self, message: bytes) -> None:
        # (number - low) / width of the Writer's interval, as offset / width
        self.offset, self.width = int.from_bytes(message, "big"), 1 << 8 * len(message)

    def read(self, table: Tensor) -> int:
        """The next symbol."""
        self.offset <<= PRECISION
        place = torch.tensor(self.offset // self.width)
        symbol = int(torch.searchsorted(table, place, right=True)) - 1
        start, end = table[symbol : symbol + 2].tolist()
        self.offset -= self.width * start
        self.width *= end - start
        return symbol
