"""Random coding: x ~ q sent to one who knows only p, for about KL(q ‖ p) bits.

Both sides draw the same K candidates from p by a shared seed; the sender picks one with
chances in proportion to q/p, and sends its number (minimal random coding: Harsha et al.
2007, Havasi et al. 2019). The pick is made by a race, ordered random coding (Theis &
Yosri 2022): its law is the same, but early candidates win more often, so that a Zipf
code for the winner's number costs about KL + log2(KL + 1) + 1 bits in place of log2 K.

K must be far above 2^KL, or what is picked falls short of q, towards p: under q the
number log2 q/p varies by about 1.7 √KL around the KL, so that KL = 4 bits takes 2^15
candidates to hold all but a thousandth of q. More bits than that are too many for one
race. Both Gaussians of a step are diagonal: its numbers are split into blocks of 2 to 4
bits, and each is raced for itself. That is the price: a block takes about 3 bits more
than its KL (half a bit where the KL is near 0), so that a few large steps cost less
than many small ones. Levels have a discrete law and are coded exactly, at -log2 p.

A picture arrives exactly, whatever the network, as long as its answers are finite:
where it is bad, or a block has more bits than its race can carry, later steps only cost
more.
"""

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from ..bound import gaussian_kl
from ..coding import Gaussian
from .arithmetic import Reader, Writer, cumulative

BLOCK = 4  # bits of KL that one race carries at most
SPARE = 11  # a race for b bits has 2^(b + 11) candidates: 3 · 1.7 √4 is 10.2
RUN = 4096  # candidates in memory at a time
KINDS = 24  # a step's KL is rounded up to 2^(kind - 6) bits, kind = 0..23


class RandomSender:
    """The coder that Algorithm 3, `coding.send`, takes."""

    def __init__(self, seed: int = 0) -> None:
        self.writer, self.race = Writer(), Race(seed)

    @property
    def bits(self) -> float:
        return self.writer.bits

    def draw(self, q: Gaussian, p: Gaussian) -> Tensor:
        """Draws x ~ q, (1, ...), and writes it for one who knows p."""
        kl = float(gaussian_kl(*q, *p).sum()) / math.log(2)
        return self.race.send(self.writer, kl, q, p)

    def levels(self, level: Tensor, log_p: Tensor) -> None:
        """Writes numbers 0..255, (D,), by their laws ln p, (D, 256)."""
        for table, v in zip(cumulative(log_p.exp()), level.tolist(), strict=True):
            self.writer.write(table, int(v))

    def message(self) -> bytes:
        return self.writer.message()


class RandomReceiver:
    """The coder that Algorithm 4, `coding.receive`, takes, for a `RandomSender`."""

    def __init__(self, message: bytes, seed: int = 0) -> None:
        self.reader, self.race = Reader(message), Race(seed)

    def draw(self, p: Gaussian) -> Tensor:
        """Reads the x that the sender drew, (1, ...)."""
        return self.race.receive(self.reader, p)

    def levels(self, log_p: Tensor) -> Tensor:
        """Reads the numbers that the sender wrote, (D,)."""
        tables = cumulative(log_p.exp())
        return torch.tensor([self.reader.read(table) for table in tables])


class Race:
    """Ordered random coding with candidates from a shared seed, block after block.

    Before each step the sender tells its kind, the KL rounded up, which fixes the
    blocks, the number of candidates and the winners' Zipf law. Neighbouring steps are
    alike, so that costs a fraction of a bit.
    """

    def __init__(self, seed: int) -> None:
        self.shared = torch.Generator().manual_seed(seed)
        self.own = torch.Generator().manual_seed(seed + 1)  # the sender's alone
        self.kind = 0

    def send(self, writer: Writer, kl: float, q: Gaussian, p: Gaussian) -> Tensor:
        """Draws x ~ q, and writes it for one who knows p; kl is KL(q ‖ p) in bits."""
        kind = min(max(math.ceil(math.log2(max(kl, 1e-9))) + 6, 0), KINDS - 1)
        writer.write(_kind_table(self.kind), kind)
        self.kind = kind
        x, mean_q = p[0].flatten().clone(), q[0].flatten()
        var_q, var_p = q[1].flatten(), p[1].flatten()
        for block in self._blocks(len(x)):
            number, z = self._winner(mean_q[block], var_q, x[block], var_p)
            writer.write(_winner_table(kind), number)
            x[block] += var_p.sqrt() * z
        return x.view_as(p[0])

    def receive(self, reader: Reader, p: Gaussian) -> Tensor:
        """Reads the x that `send` drew."""
        self.kind = reader.read(_kind_table(self.kind))
        x, var_p = p[0].flatten().clone(), p[1].flatten()
        for block in self._blocks(len(x)):
            number = reader.read(_winner_table(self.kind))
            for first, z in self._runs(len(x[block])):
                if first <= number < first + len(z):
                    x[block] += var_p.sqrt() * z[number - first]
        return x.view_as(p[0])

    def _blocks(self, D: int) -> list[slice]:
        """Every n-th number is a block, so that a block is spread over the picture."""
        n = min(max(1, 2 ** (self.kind - 6) // BLOCK), D)
        return [slice(i, None, n) for i in range(n)]

    def _runs(self, d: int) -> Iterator[tuple[int, Tensor]]:
        """Candidates from N(0, I) in d numbers, by runs with their first number."""
        K = _candidates(self.kind)
        for first in range(0, K, RUN):
            size = (min(RUN, K), d)  # both are powers of 2
            yield first, torch.randn(size, generator=self.shared, dtype=torch.float32)

    def _winner(
        self, mean_q: Tensor, var_q: Tensor, mean_p: Tensor, var_p: Tensor
    ) -> tuple[int, Tensor]:
        """argmax_k of ln q(x_k)/p(x_k) - ln τ_k, where τ_1 < τ_2 < ... are K sorted
        exponential times: unsorted, it would be the Gumbel trick for chances ∝ q/p.

        For x = μ_p + σ_p z, ln q/p is c·z + b ‖z‖² and a constant, b = (1 - v_p/v_q)/2.
        """
        K, best = _candidates(self.kind), []
        times = torch.empty(K, dtype=torch.float64).exponential_(generator=self.own)
        log_tau = (times / torch.arange(K, 0, -1)).cumsum(0).log()
        c = (var_p.sqrt() * (mean_q - mean_p) / var_q).float()
        b = float((1 - var_p / var_q) / 2)
        for first, z in self._runs(len(mean_q)):
            score = z @ c + b * z.square().sum(1) - log_tau[first : first + len(z)]
            i = int(score.argmax())
            best.append((float(score[i]), first + i, z[i]))
        return max(best, key=lambda of_run: of_run[0])[1:]


def _candidates(kind: int) -> int:
    return int(2 ** math.ceil(min(2.0 ** (kind - 6), BLOCK) + SPARE))


@lru_cache
def _winner_table(kind: int) -> Tensor:
    """Zipf's law P(k) ∝ k^-λ, λ = 1 + 1/(b + 0.35) for a race of b bits.

    The form is that of Li & El Gamal (2018), who prove it with 1.53 in place of 0.35;
    most of our races are for less than a bit, and win more often at once.
    """
    bits = min(2.0 ** (kind - 6), BLOCK)
    k = torch.arange(1, _candidates(kind) + 1, dtype=torch.float64)
    return cumulative(k ** -(1 + 1 / (bits + 0.35)))


@lru_cache
def _kind_table(before: int) -> Tensor:
    """P(kind) ∝ 8^-|kind - before|: mostly it is as it was."""
    return cumulative(8.0 ** -(torch.arange(KINDS).double() - before).abs())
