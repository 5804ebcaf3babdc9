"""Algorithms 3 and 4: a picture as bits, sent and received step by step.

What lives here: minimal random coding of each x_t, and an entropy code for x_0. What
does not: what theory charges for a picture (`bound.py`), and how symbols become bits
(`arithmetic.py`).

To send some x ~ q to one who knows only p costs about KL(q ‖ p): both draw the same K
candidates from p by a shared seed, the sender picks one with chances in proportion to
q/p, and sends its number (minimal random coding: Harsha et al. 2007, Havasi et al.
2019). The pick is made by a race, ordered random coding (Theis & Yosri 2022): its law
is the same, but early candidates win more often, so that a Zipf code for the winner's
number costs about KL + log2(KL + 1) + 1 bits in place of log2 K.

K must be far above 2^KL, or what is picked falls short of q, towards p: under q the
number log2 q/p varies by about 1.7 √KL around the KL, so that KL = 4 bits takes 2^15
candidates to hold all but a thousandth of q. More bits than that are too many for one
race. Both Gaussians of a step are diagonal: its numbers are split into blocks of 2 to 4
bits, and each is raced for itself. That is the price: a block takes about 3 bits more
than its KL (half a bit where the KL is near 0), so that a few large steps cost less
than many small ones. x_0 given x_1 is a discrete law (eq. 13), and coded exactly, at
-log2 p.

The receiver has the message, the seed, the network and the shape. It must compute the
sender's very floats: same machine, same version, same number of threads; both ask the
network for one picture at a time. x_0 arrives exactly, whatever the network, as long as
its answers are finite: where it is bad, or a block has more bits than its race can
carry, later steps only cost more.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .beyond.arithmetic import Reader, Writer, cumulative
from .bound import gaussian_kl
from .decoder import log_decoder, sigma2_1, to_levels
from .forward import q_posterior
from .sampler import EpsTheta, _evaluating, predict_x_0
from .schedule import Schedule, at
from .workshop.pictures import to_float

BLOCK = 4  # bits of KL that one race carries at most
SPARE = 11  # a race for b bits has 2^(b + 11) candidates: 3 · 1.7 √4 is 10.2
RUN = 4096  # candidates in memory at a time
KINDS = 24  # a step's KL is rounded up to 2^(kind - 6) bits, kind = 0..23

Gaussian = tuple[Tensor, Tensor]  # mean (1, ...) and variance (one number), float64


class Sent(NamedTuple):
    """One step of Algorithm 3.

    Attributes:
        t: T..0.
        x_t: what was sent, (1, ...).
        x_0_hat: what it shows of the picture (eq. 15; at t = 0 x_0 itself).
        kl: what theory charges: KL(q ‖ p) in bits, at t = 0 -log2 p_θ(x_0|x_1).
        bits: what it took of the message.
    """

    t: int
    x_t: Tensor
    x_0_hat: Tensor
    kl: float
    bits: float


def send(
    s: Schedule, eps_theta: EpsTheta, x_0: Tensor, seed: int = 0, sigma2: str = "beta"
) -> tuple[bytes, list[Sent]]:
    """Algorithm 3: send x_T ~ q(x_T|x_0), then each x_t ~ q(x_t|x_{t+1}, x_0), then x_0

    Args:
        s: the schedule.
        eps_theta: the network, called T times.
        x_0: one 8-bit picture in [-1, 1], (1, ...), on the CPU, as is the network.
        seed: of the randomness that the receiver shares.
        sigma2: σ_t², as `Schedule.sigma2` names it; σ_1² is `decoder.sigma2_1`.
    Returns: the message, and what each of its T + 1 steps sent and cost.
    """
    if len(x_0) != 1:
        raise ValueError(f"send takes one picture, (1, C, H, W), got {len(x_0)}")
    level, variance = to_levels(x_0), sigma2_1(s, sigma2)
    x_0 = to_float(level.to(torch.uint8))
    writer, race, steps = Writer(), Race(seed), list[Sent]()
    alpha_bar = s.alpha_bar[-1]
    q: Gaussian = alpha_bar.sqrt() * x_0.double(), 1 - alpha_bar
    p: Gaussian = torch.zeros_like(q[0]), torch.ones_like(alpha_bar)
    for t in range(s.T, 0, -1):
        before, kl = writer.bits, float(gaussian_kl(*q, *p).sum()) / math.log(2)
        x_t = race.send(writer, kl, q, p).float()
        x_0_hat, p = _reverse(s, eps_theta, x_t, t, sigma2)
        q = q_posterior(s, x_t.double(), x_0.double(), torch.tensor([t]))
        steps.append(Sent(t, x_t, x_0_hat.float(), kl, writer.bits - before))
    before, tables = writer.bits, _level_tables(x_0_hat, variance)
    for table, v in zip(tables, level.flatten().tolist(), strict=True):
        writer.write(table, int(v))
    kl = -float(log_decoder(level, x_0_hat, variance).sum()) / math.log(2)
    steps.append(Sent(0, x_0, x_0, kl, writer.bits - before))
    return writer.message(), steps


def receive(
    s: Schedule,
    eps_theta: EpsTheta,
    message: bytes,
    shape: tuple[int, ...],
    seed: int = 0,
    sigma2: str = "beta",
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Algorithm 4: receive x_T by p(x_T), then each x_t by p_θ(x_t|x_{t+1}), then x_0

    Args: as `send` was given them; shape is x_0's, (1, ...).
    Yields: as `p_sample_loop`: (t, x_t, x_0_hat) for t = T..1, then (0, x_0, x_0).
    """
    variance = sigma2_1(s, sigma2)
    reader, race = Reader(message), Race(seed)
    zeros = torch.zeros(shape, dtype=torch.float64)
    p: Gaussian = zeros, zeros.new_ones(())
    for t in range(s.T, 0, -1):
        x_t = race.receive(reader, p).float()
        x_0_hat, p = _reverse(s, eps_theta, x_t, t, sigma2)
        yield t, x_t, x_0_hat.float()
    level = [reader.read(table) for table in _level_tables(x_0_hat, variance)]
    x_0 = to_float(torch.tensor(level, dtype=torch.uint8)).view(shape)
    yield 0, x_0, x_0


def _reverse(
    s: Schedule, eps_theta: EpsTheta, x_t: Tensor, t: int, sigma2: str
) -> tuple[Tensor, Gaussian]:
    """Eq. 15, 1, 11: x̂_0 and p_θ(x_{t-1}|x_t), float64; the same on both sides."""
    step = torch.tensor([t])
    with _evaluating(eps_theta), torch.no_grad():
        eps_hat = eps_theta(x_t, step)
    if not eps_hat.isfinite().all():
        raise ValueError(
            f"eps_theta(x_t, {t}) is not finite, so it says no p to code by"
        )
    x_0_hat = predict_x_0(s, x_t.double(), step, eps_hat.double())
    mu_theta, _ = q_posterior(s, x_t.double(), x_0_hat, step)
    return x_0_hat, (mu_theta, at(s.sigma2(sigma2), step, x_t))


def _level_tables(mean: Tensor, variance: float) -> Tensor:
    """Eq. 13 for the 256 levels of each number, as the coder's tables (D, 257)."""
    level = torch.arange(256, dtype=torch.float64)
    return cumulative(log_decoder(level, mean.view(-1, 1), variance).exp())


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
            size = (min(RUN, K - first), d)
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
