"""The bound of eq. 5 for many pictures: in pieces, and from a sample of the steps t.

With every t it is `bound.bits_per_dim` in law, in pieces. With `draws` steps
for each picture it is an unbiased estimate that costs a fraction of the network calls.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from ..bound import L_0, L_T, Bound, L_tm1
from ..data import to_levels
from ..forward import q_sample
from ..sampler import asked, predict_x_0, randn_like
from ..schedule import Schedule, check_index


@torch.no_grad()
def estimate_bits_per_dim(
    s: Schedule,
    eps_theta: Callable[..., Tensor],
    x_0: Tensor,
    generator: Generator | None = None,
    sigma2: str = "beta",
    clip_x_0: bool = False,
    draws: int | None = None,
    chunk: int = 128,
    progress: Callable[[int, int], None] | None = None,
    c: Tensor | None = None,
) -> Bound:
    """Eq. 5's terms as `bound.bits_per_dim` has them, or an estimate of them

    If t is sampled, total and each entry of L_tm1 are unbiased estimates of what they
    stand for: columns that were not drawn are 0, the others count for them, and mse is
    nan where t was not drawn.

    Args:
        s, eps_theta, x_0, generator, sigma2, clip_x_0: as in `bound.bits_per_dim`. The
            network is asked for N T pictures, or N (draws + 1) if t is sampled.
        draws: None for every t, or how many t = 2..T to draw for each picture, beside
            t = 1.
        chunk: pictures in a network call.
        progress: called with (pictures asked for so far, all of them) after each call.
        c: the classes of the pictures, (N,), if eps_theta is (x_t, t, c) -> eps_hat. A
            function that closes over them cannot follow the regrouped pictures.
    """
    level = to_levels(x_0)
    if len(level) == 0 or chunk < 1:
        raise ValueError(f"need a picture and chunk >= 1, got {len(level)} and {chunk}")
    if c is not None:
        check_index("c", c, x_0)
    s, eps_theta, D = s.to(x_0.device), asked(eps_theta), x_0[0].numel()
    t, weight = draw_t(s, x_0, draws, generator)
    nats = level.new_zeros(len(x_0), s.T + 1)
    mse = torch.full_like(nats, math.nan)
    mse[:, 0] = 0
    seen = 0
    for i, t_i, w in _chunks(t, weight, chunk):
        x_i = x_0[i]
        x_t = q_sample(s, x_i, t_i, randn_like(x_i, generator))
        eps_hat = eps_theta(x_t, t_i) if c is None else eps_theta(x_t, t_i, c[i])
        x_0_hat = predict_x_0(s, x_t.double(), t_i, eps_hat)
        x_0_hat = x_0_hat.clamp(-1, 1) if clip_x_0 else x_0_hat
        last = int(t_i[0]) == 1  # t = 1 is never in one call with another t
        term = (
            L_0(s, x_i, x_0_hat, sigma2)
            if last
            else L_tm1(s, x_i, t_i, x_0_hat, sigma2)
        )
        nats.index_put_((i, t_i), w * term, accumulate=True)
        mse[i, t_i] = (x_i - x_0_hat).square().flatten(1).mean(1)
        seen += len(i)
        if progress is not None:
            progress(seen, t.numel())
    at_T, at_0 = L_T(s, x_0), nats[:, 1].clone()
    nats[:, 1] = 0
    L, bits = at_T + nats.sum(1) + at_0, D * math.log(2)
    return Bound(at_T / bits, nats / bits, at_0 / bits, L / bits, mse)


def draw_t(
    s: Schedule, x_0: Tensor, draws: int | None, generator: Generator | None
) -> tuple[Tensor, Tensor]:
    """Each picture's t, and what its term counts for: (N, 1 + draws) both, t = 1 first

    P(t) is in proportion to t^-1.5, about as L_{t-1} falls in table 4, and each term
    counts for 1 / (draws P(t)). On the toy with its exact predictor (5x5, 48 pictures)
    one draw then has a standard deviation of 0.55 bits/dim at T = 100 and 0.61 at
    T = 1000; with 1/t it has 1.32 and 0.75, with t^-2 0.39 and 1.92. Draw k is from the
    k-th of `draws` equally likely parts of 2..T.
    """
    every = torch.arange(1, s.T + 1, device=x_0.device)
    if draws is None:
        t = every.expand(len(x_0), -1)
        return t, torch.ones_like(t, dtype=torch.float64)
    if draws < 1 or s.T == 1:
        raise ValueError(f"draws must be >= 1, of t = 2..T, got {draws} and T = {s.T}")
    P = every[1:].double() ** -1.5
    P /= P.sum()
    part = torch.arange(draws, device=x_0.device)
    u = P.new_empty(len(x_0), draws).uniform_(generator=generator)
    i = torch.searchsorted(P.cumsum(0)[:-1], (part + u) / draws)
    return pad(2 + i, (1, 0), value=1), pad(1 / (draws * P[i]), (1, 0), value=1)


def _chunks(
    t: Tensor, weight: Tensor, chunk: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(pictures, t, weight) for each call: all t = 1, then the rest.

    Equal t stay together, and calls are full however few the pictures.
    """
    pictures = torch.arange(len(t), device=t.device)
    for columns in (slice(1), slice(1, None)):
        t_i, w = t[:, columns].T.flatten(), weight[:, columns].T.flatten()
        i = pictures.repeat(len(t_i) // len(t))
        for j in range(0, len(i), chunk):
            k = slice(j, j + chunk)
            yield i[k], t_i[k], w[k]
