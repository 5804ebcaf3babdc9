"""The variational bound L in bits/dim (eq. 3, 5, 8), rate and distortion (4.3).

What lives here: what the model charges for a picture, term by term of eq. 5, and the
rate-distortion curve that follows from it. What does not: eq. 13's decoder
(`decoder.py`), sending real bits (`coding.py`), what is trained (`train.py`).

By eq. 11, μ_θ(x_t, t) = μ̃_t(x_t, x̂_0): the terms below take x̂_0 (eq. 15) in place of
the network. Each is a sum over the D numbers of a picture, in nats, evaluated in
float64; bits/dim is nats / (D ln 2).

Four things differ from the authors' code, whose figures the paper prints. They clamp
x̂_0 to [-1, 1] before taking μ_θ of it: `clip=True` does so too. Their σ_1² in eq. 13 is
β̃_2: `sigma2="fixedlarge"` has it. And there their Φ is approximate, ours exact, and no
number costs more than 40 bits (`decoder.py` says more).
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .decoder import log_decoder, sigma2_1, to_levels
from .forward import _same_shape, q_sample
from .sampler import EpsTheta, _evaluating, _randn_like, predict_x_0
from .schedule import Schedule, at, check_t


class Bound(NamedTuple):
    """Eq. 5 by its terms, in bits/dim for each picture, float64.

    If t was sampled, total and each entry of L_tm1 are unbiased estimates of what they
    stand for: columns that were not drawn are 0, the others count for them.

    Attributes:
        L_T: (N,).
        L_tm1: (N, T + 1), L_tm1[:, t] is L_{t-1} for t = 2..T, else 0.
        L_0: (N,).
        total: (N,), their sum: an upper bound of -log2 p_θ(x_0) / D.
        mse: (N, T + 1), mse[:, t] = ‖x_0 - x̂_0(x_t)‖² / D for t = 1..T, x in [-1, 1];
            nan where t was not drawn, 0 at t = 0.
    """

    L_T: Tensor
    L_tm1: Tensor
    L_0: Tensor
    total: Tensor
    mse: Tensor


def gaussian_kl(mean1: Tensor, var1: Tensor, mean2: Tensor, var2: Tensor) -> Tensor:
    """KL(N(m_1, v_1) ‖ N(m_2, v_2)) = ½ (v_1/v_2 - 1 - ln v_1/v_2 + (m_1 - m_2)²/v_2)

    For each number, in nats; the shapes broadcast. var1 = 0 costs infinitely much.
    """
    r = (var1 - var2) / var2  # near 0 for β̃_t and β_t, where ln(1 + r) would cancel
    log_ratio = torch.where(r.abs() < 0.5, torch.log1p(r), (var1 / var2).log())
    return 0.5 * (r - log_ratio) + (mean1 - mean2).square() * (0.5 / var2)


def L_T(s: Schedule, x_0: Tensor) -> Tensor:
    """Eq. 5: L_T = KL(q(x_T|x_0) ‖ p(x_T)), the two laws eq. 4 and N(0, I)

    Args: the schedule; x_0 (B, ...). Returns: (B,), nats, float64.
    """
    x_0 = x_0.double()
    alpha_bar = s.alpha_bar[-1]
    zero, one = torch.zeros_like(alpha_bar), torch.ones_like(alpha_bar)
    return _sum(gaussian_kl(alpha_bar.sqrt() * x_0, 1 - alpha_bar, zero, one))


def L_tm1(
    s: Schedule, x_0: Tensor, t: Tensor, x_0_hat: Tensor, sigma2: str = "beta"
) -> Tensor:
    """Eq. 5, 8: L_{t-1} = KL(q(x_{t-1}|x_t, x_0) ‖ p_θ(x_{t-1}|x_t)) for t > 1

    = ‖μ̃_t(x_t, x_0) - μ̃_t(x_t, x̂_0)‖² / (2σ_t²) + C, where x_t drops out of the
    difference (eq. 7): it is √ᾱ_{t-1} β_t/(1-ᾱ_t) (x_0 - x̂_0). The C of eq. 8 is D
    times the KL for equal means: 0 if σ_t² is β̃_t, and kept here.

    Args:
        s: the schedule.
        x_0: data in [-1, 1], (B, ...).
        t: (B,), 2..T.
        x_0_hat: the network's eq. 15 from x_t ~ q(x_t|x_0), the shape of x_0.
        sigma2: σ_t², as `Schedule.sigma2` names it.
    Returns: (B,), nats, float64.
    """
    check_t(s, t, x_0, first=2)
    _same_shape("x_0_hat", x_0_hat, "x_0", x_0)
    return _L_tm1(s, _squared_error(x_0, x_0_hat), x_0[:1].numel(), t, sigma2)


def _L_tm1(s: Schedule, error: Tensor, D: int, t: Tensor, sigma2: str) -> Tensor:
    """`L_tm1` from ‖x_0 - x̂_0‖², (B,), whose shape the tables take."""
    beta, alpha_bar = at(s.beta, t, error), at(s.alpha_bar, t, error)
    c_0 = at(s.alpha_bar, t - 1, error).sqrt() * beta / (1 - alpha_bar)
    beta_tilde, sigma2_t = at(s.beta_tilde, t, error), at(s.sigma2(sigma2), t, error)
    same_mean = torch.zeros_like(error)
    C = D * gaussian_kl(same_mean, beta_tilde, same_mean, sigma2_t)
    return c_0**2 * error / (2 * sigma2_t) + C


def L_0(s: Schedule, x_0: Tensor, x_0_hat: Tensor, sigma2: str = "beta") -> Tensor:
    """Eq. 5, 13: L_0 = -log p_θ(x_0|x_1), where μ_θ(x_1, 1) is x̂_0 itself

    Args:
        s: the schedule.
        x_0: 8-bit pictures in [-1, 1], (B, ...).
        x_0_hat: the network's eq. 15 from x_1, the shape of x_0.
        sigma2: σ_1², as `decoder.sigma2_1` reads it.
    Returns: (B,), nats, float64.
    """
    _same_shape("x_0_hat", x_0_hat, "x_0", x_0)
    variance = sigma2_1(s, sigma2)
    return _sum(-log_decoder(to_levels(x_0), x_0_hat.double(), variance))


def bits_per_dim(
    s: Schedule,
    eps_theta: EpsTheta,
    x_0: Tensor,
    generator: torch.Generator | None = None,
    sigma2: str = "beta",
    clip: bool = False,
    draws: int | None = None,
    chunk: int = 128,
    progress: Callable[[int, int], None] | None = None,
) -> Bound:
    """Eq. 5: L for each picture, the expectation over x_t by one ε for each term

    Args:
        s: the schedule.
        eps_theta: the network; it is asked for N T pictures, N (draws + 1) if t is
            sampled. An nn.Module runs in eval mode and is left as it was found; of a
            function's modules nothing is known: call eval() on them first.
        x_0: 8-bit pictures in [-1, 1], (N, ...).
        generator: source of every ε and t, on x_0's device; None is torch's own.
        sigma2: σ_t², as `Schedule.sigma2` names it; σ_1² is `decoder.sigma2_1`.
        clip: clamp x̂_0 to [-1, 1], as the authors' code does and the paper does not
            say; published figures have it. No L_{t-1} rises by it: x_0 is inside.
        draws: estimate the sum over t > 1 without bias from this many t for each
            picture; None is every t. L_T and L_0 are never sampled.
        chunk: pictures in one call of the network, the bound of the memory. Noise is
            drawn by the chunk: another size means other noise of the same law.
        progress: called with (pictures the network has seen, all it will see).
    """
    level = to_levels(x_0)
    if len(level) == 0 or chunk < 1:
        raise ValueError(f"need a picture and chunk >= 1, got {len(level)} and {chunk}")
    s, to_bits = s.to(x_0.device), 1 / (level[0].numel() * math.log(2))
    t, weight = _draw_t(s, x_0, draws, generator)
    terms = level.new_zeros(len(x_0), s.T + 1)
    mse, seen = torch.full_like(terms, math.nan), 0
    mse[:, 0] = 0
    with _evaluating(eps_theta), torch.no_grad():
        for first, i, t_i, w in _chunks(t, weight, chunk):
            x_i = x_0[i]
            nats, error = _terms(s, eps_theta, x_i, t_i, first, generator, sigma2, clip)
            terms.index_put_((i, t_i), w * to_bits * nats, accumulate=True)
            mse[i, t_i] = error
            seen += len(i)
            if progress is not None:
                progress(seen, t.numel())
    at_T, at_0 = to_bits * L_T(s, x_0), terms[:, 1].clone()
    terms[:, 1] = 0
    return Bound(at_T, terms, at_0, at_T + terms.sum(1) + at_0, mse)


def _draw_t(
    s: Schedule, x_0: Tensor, draws: int | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Each picture's t, and what its term counts for: (N, 1 + draws) both, t = 1 first.

    P(t) is in proportion to 1/t, about as L_{t-1} falls (table 4), and each counts for
    1 / (draws P(t)). Draw k is from the k-th of `draws` equally likely parts of 2..T.
    """
    every = torch.arange(1, s.T + 1, device=x_0.device)
    if draws is None:
        t = every.expand(len(x_0), -1)
        return t, torch.ones_like(t, dtype=torch.float64)
    if draws < 1 or s.T == 1:
        raise ValueError(f"draws must be >= 1, of t = 2..T, got {draws} and T = {s.T}")
    P = every[1:].double().reciprocal()
    P /= P.sum()
    part = torch.arange(draws, device=x_0.device)
    u = P.new_empty(len(x_0), draws).uniform_(generator=generator)
    i = torch.searchsorted(P.cumsum(0)[:-1], (part + u) / draws)
    return pad(2 + i, (1, 0), value=1), pad(1 / (draws * P[i]), (1, 0), value=1)


def _chunks(
    t: Tensor, weight: Tensor, chunk: int
) -> Iterator[tuple[bool, Tensor, Tensor, Tensor]]:
    """(t = 1?, pictures, t, weight) for each call: all t = 1, then the rest.

    Equal t stay together, and calls are full however few the pictures.
    """
    pictures = torch.arange(len(t), device=t.device)
    for first, columns in ((True, slice(1)), (False, slice(1, None))):
        t_i, w = t[:, columns].T.flatten(), weight[:, columns].T.flatten()
        i = pictures.repeat(len(t_i) // len(t))
        for j in range(0, len(i), chunk):
            k = slice(j, j + chunk)
            yield first, i[k], t_i[k], w[k]


def _terms(
    s: Schedule,
    eps_theta: EpsTheta,
    x_0: Tensor,
    t: Tensor,
    first: bool,
    generator: torch.Generator | None,
    sigma2: str,
    clip: bool,
) -> tuple[Tensor, Tensor]:
    """One call of the network: L_{t-1} (L_0 if `first`) in nats and x̂_0's mse, (B,)."""
    x_t = q_sample(s, x_0, t, _randn_like(x_0, generator))
    x_0_hat = predict_x_0(s, x_t.double(), t, eps_theta(x_t, t))
    x_0_hat = x_0_hat.clamp(-1, 1) if clip else x_0_hat
    error, D = _squared_error(x_0, x_0_hat), x_0[0].numel()
    if first:
        return L_0(s, x_0, x_0_hat, sigma2), error / D
    return _L_tm1(s, error, D, t, sigma2), error / D


def rate_distortion(bound: Bound) -> tuple[Tensor, Tensor]:
    """Section 4.3, figure 5, table 4: what a receiver who holds x_t has paid, and sees

    rate[t] = L_T + Σ_{s>t} L_{s-1}, bits/dim; distortion[t] = 127.5 √E‖x_0 - x̂_0‖²/D,
    the root mean square error on the scale 0..255 over all pictures. x_t is held after
    T - t + 1 reverse steps of table 4. At t = 0 the rate is the whole bound and the
    error 0. If t was sampled, the error is of the pictures that drew t, nan where none.

    Returns: rate, distortion: (T + 1,) each, means over the pictures of the bound.
    """
    sent = bound.L_tm1.mean(0)
    sent[1] = bound.L_0.mean()
    later = sent.flip(0).cumsum(0).flip(0) - sent  # Σ_{s>t}
    return bound.L_T.mean() + later, 127.5 * bound.mse.nanmean(0).sqrt()


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean over pictures, and its standard error (nan for a single picture)."""
    error = values.std() / len(values) ** 0.5 if len(values) > 1 else math.nan
    return float(values.mean()), float(error)


def _squared_error(x_0: Tensor, x_0_hat: Tensor) -> Tensor:
    """‖x_0 - x̂_0‖², (B,), float64."""
    return _sum((x_0 - x_0_hat.double()).square())


def _sum(nats: Tensor) -> Tensor:
    """The sum over a picture's D numbers, (B, ...) -> (B,)."""
    return nats.flatten(1).sum(1)
