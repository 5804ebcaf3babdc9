"""The learned reverse process p_θ (eq. 1, 11, 15), Algorithm 2, section 4.4.

What lives here: everything that turns the network's ε_θ(x_t, t) into pictures. What
does not: how the network was trained (`train.py`) or what the steps cost in bits
(`bound.py`).

`eps_theta` is any callable (x_t, t) -> eps_hat with t of shape (B,), 1..T.
Randomness enters through one torch.Generator, in Algorithm 2 and section 4.4 alone.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .forward import _same_shape, q_posterior, q_sample
from .schedule import Schedule, at, check_t

EpsTheta = Callable[[Tensor, Tensor], Tensor]


def predict_x_0(s: Schedule, x_t: Tensor, t: Tensor, eps_hat: Tensor) -> Tensor:
    """Eq. 15: x̂_0 = (x_t - √(1-ᾱ_t) ε_θ(x_t)) / √ᾱ_t

    Args:
        s: the schedule.
        x_t: (B, ...).
        t: (B,), 1..T.
        eps_hat: ε_θ(x_t, t), the shape of x_t.
    Returns: x_0_hat, (B, ...).
    """
    check_t(s, t, x_t)
    _same_shape("eps_hat", eps_hat, "x_t", x_t)
    alpha_bar = at(s.alpha_bar, t, x_t)
    x_0_hat = (x_t - (1 - alpha_bar).sqrt() * eps_hat) / alpha_bar.sqrt()
    return x_0_hat.to(x_t.dtype)


def p_mean(s: Schedule, x_t: Tensor, t: Tensor, eps_hat: Tensor) -> Tensor:
    """Eq. 11: μ_θ(x_t, t) = (x_t - β_t / √(1-ᾱ_t) ε_θ(x_t, t)) / √α_t

    Arguments as in `predict_x_0`. Returns: mu_theta, (B, ...).
    """
    check_t(s, t, x_t)
    _same_shape("eps_hat", eps_hat, "x_t", x_t)
    beta, alpha = at(s.beta, t, x_t), at(s.alpha, t, x_t)
    alpha_bar = at(s.alpha_bar, t, x_t)
    mu_theta = (x_t - beta / (1 - alpha_bar).sqrt() * eps_hat) / alpha.sqrt()
    return mu_theta.to(x_t.dtype)


def p_step(
    s: Schedule,
    eps_theta: EpsTheta,
    x_t: Tensor,
    t: Tensor,
    z: Tensor,
    sigma2: str = "beta",
    clip: bool = False,
) -> Tensor:
    """Eq. 1: p_θ(x_{t-1}|x_t) = N(μ_θ(x_t, t), σ_t² I), Algorithm 2 line 4

    x_{t-1} = μ_θ(x_t, t) + σ_t z, with z = 0 at t = 1 (line 3), whatever is given.

    Args:
        s: the schedule.
        eps_theta: the network, called once.
        x_t: (B, ...).
        t: (B,), 1..T.
        z: N(0, I), the shape of x_t.
        sigma2: σ_t², as `Schedule.sigma2` names it (section 3.2).
        clip: clamp x̂_0 to [-1, 1] and take eq. 7's mean of it. The paper does not say
            so, the authors' code does; it keeps a poor network's pictures in range.
    Returns: x_{t-1}, (B, ...).
    """
    check_t(s, t, x_t)
    _same_shape("z", z, "x_t", x_t)
    return _x_tm1(s, x_t, t, eps_theta(x_t, t), z, sigma2, clip)


def _x_tm1(
    s: Schedule,
    x_t: Tensor,
    t: Tensor,
    eps_hat: Tensor,
    z: Tensor,
    sigma2: str,
    clip: bool,
) -> Tensor:
    """`p_step` once the network has answered."""
    if clip:
        x_0_hat = predict_x_0(s, x_t, t, eps_hat).clamp(-1, 1)
        mu_theta, _ = q_posterior(s, x_t, x_0_hat, t)
    else:
        mu_theta = p_mean(s, x_t, t, eps_hat)
    sigma = at(s.sigma2(sigma2), t, x_t).sqrt()
    z = z.masked_fill((t == 1).view(-1, *[1] * (z.ndim - 1)), 0)
    x_tm1 = mu_theta + sigma * z
    return x_tm1.to(x_t.dtype)


def p_sample_loop(
    s: Schedule,
    eps_theta: EpsTheta,
    x_T: Tensor,
    generator: torch.Generator | None = None,
    sigma2: str = "beta",
    clip: bool = False,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Algorithm 2, lines 2-5, as a Python generator: x_T, ..., x_1, x_0 as they come

    Args:
        s: the schedule.
        eps_theta: the network, called exactly T times, with t = T..1. An nn.Module
            runs in eval mode and is left as it was found; of a function's modules
            nothing is known: call eval() on them first.
        x_T: N(0, I), (B, ...).
        generator: source of every z, on x_T's device; None is torch's own.
        sigma2, clip: as in `p_step`.
    Yields: (t, x_t, x_0_hat) for t = T..1, where x_0_hat (eq. 15, clamped if `clip`)
        is what x_t shows of the picture; then (0, x_0, x_0).
    """
    yield from _p_loop_from(s, eps_theta, x_T, s.T, generator, sigma2, clip)


def sample(
    s: Schedule,
    eps_theta: EpsTheta,
    shape: tuple[int, ...],
    generator: torch.Generator | None = None,
    sigma2: str = "beta",
    clip: bool = False,
    device: torch.device | str | None = None,
) -> Tensor:
    """Algorithm 2: x_T ~ N(0, I), then T reverse steps; returns x_0

    Args:
        s: the schedule.
        eps_theta: the network, as in `p_sample_loop`.
        shape: of the batch, (B, ...).
        generator: source of x_T and every z; None is torch's own.
        sigma2, clip: as in `p_step`.
        device: where to sample; by default the generator's, else the network's.
    Returns: x_0, float32 (`p_sample_loop` takes any dtype of x_T), the mean of the last
        step without noise, not clamped.
    """
    device = device or _device(eps_theta, generator)
    x_T = torch.randn(shape, generator=generator, device=device)
    return _last(p_sample_loop(s, eps_theta, x_T, generator, sigma2, clip))


def interpolate(
    s: Schedule,
    eps_theta: EpsTheta,
    x_0: Tensor,
    x_0_prime: Tensor,
    lam: Tensor,
    t: int,
    generator: torch.Generator | None = None,
    sigma2: str = "beta",
    clip: bool = False,
) -> Tensor:
    """Section 4.4: x̄_t = (1-λ) x_t + λ x'_t, decoded by Algorithm 2 from step t

    x_t, x'_t ~ q(.|x_0), q(.|x'_0). The paper prints x_0 and x'_0 in the mixture;
    the sentence around it means x_t and x'_t (mixing clean pictures would be a
    cross-fade). As in the paper, x_t and x'_t are the same for every λ. So is the noise
    of the reverse process here: λ alone moves the picture. Between the ends the mixture
    has less noise than eq. 4 gives x_t, (1-λ)² + λ² of its variance: half at λ = 1/2.

    Args:
        s: the schedule.
        eps_theta: the network.
        x_0, x_0_prime: the two pictures of each pair, (B, ...).
        lam: λ, (L,), each in [0, 1].
        t: the step to diffuse to, 1..T; the larger, the coarser the mixture.
        generator: source of all noise.
        sigma2, clip: as in `p_step`.
    Returns: (L, B, ...), one row of pictures for each λ.
    """
    _same_shape("x_0_prime", x_0_prime, "x_0", x_0)
    lam = torch.as_tensor(lam, dtype=torch.float64).to(x_0)
    if lam.ndim != 1 or len(lam) < 1 or not bool(((lam >= 0) & (lam <= 1)).all()):
        raise ValueError(f"lam must be a row of numbers in [0, 1], got {lam}")
    if not 1 <= t <= s.T:
        raise ValueError(f"t must lie in 1..{s.T}, got {t}")
    steps = x_0.new_full(x_0.shape[:1], t, dtype=torch.long)
    x_t = q_sample(s, x_0, steps, _randn_like(x_0, generator))
    x_t_prime = q_sample(s, x_0_prime, steps, _randn_like(x_0, generator))
    weights = lam.view(-1, *[1] * x_0.ndim)
    x_bar = (1 - weights) * x_t + weights * x_t_prime  # (L, B, ...)
    loop = _p_loop_from(
        s, eps_theta, x_bar.flatten(0, 1), t, generator, sigma2, clip, len(lam)
    )
    return _last(loop).view_as(x_bar)


def _p_loop_from(
    s: Schedule,
    eps_theta: EpsTheta,
    x: Tensor,
    start: int,
    generator: torch.Generator | None,
    sigma2: str,
    clip: bool,
    shared: int = 1,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Algorithm 2 from x_start down; z is drawn once for each of `shared` copies."""
    s = s.to(x.device)
    for step in range(start, 0, -1):
        t = torch.full(x.shape[:1], step, device=x.device)
        with _evaluating(eps_theta), torch.no_grad():
            eps_hat = eps_theta(x, t)
            x_0_hat = predict_x_0(s, x, t, eps_hat)
            z = _randn_like(x[: len(x) // shared], generator)
            z = z.repeat(shared, *[1] * (x.ndim - 1))
            x_tm1 = _x_tm1(s, x, t, eps_hat, z, sigma2, clip)
        yield step, x, x_0_hat.clamp(-1, 1) if clip else x_0_hat
        x = x_tm1
    yield 0, x, x


def _last(loop: Iterator[tuple[int, Tensor, Tensor]]) -> Tensor:
    """x_0, the second item of what a loop yields last; earlier x_t are let go."""
    return deque(loop, maxlen=1)[0][1]


def _randn_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """torch.randn_like, which cannot take a generator."""
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def _device(eps_theta: EpsTheta, generator: torch.Generator | None) -> torch.device:
    if generator is not None:
        return generator.device
    if isinstance(eps_theta, nn.Module):
        for p in eps_theta.parameters():
            return p.device
    return torch.device("cpu")


@contextmanager
def _evaluating(eps_theta: EpsTheta) -> Iterator[None]:
    """Dropout off while the network is asked; every training flag as found after."""
    modules = list(eps_theta.modules()) if isinstance(eps_theta, nn.Module) else []
    was_training = [m for m in modules if m.training]
    for m in was_training:
        m.training = False
    try:
        yield
    finally:
        for m in was_training:
            m.training = True
