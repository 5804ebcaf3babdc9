"""Denoising diffusion implicit models (Song, Meng, Ermon 2020): fewer, larger steps.

A network trained by Algorithm 1 is sampled along any decreasing list of steps. With
eta = 0 nothing is random but x_T, and the way can be walked in both directions; with
eta = 1 and every step it is Algorithm 2 with σ_t² = β̃_t. Equation numbers are those of
"Denoising Diffusion Implicit Models", arXiv 2010.02502, which writes α_t for ᾱ_t.
"""

import operator
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Generator, Tensor

from ..sampler import EpsTheta, asked, predict_x_0, randn_like
from ..schedule import Schedule, at, check_range


def ddim_step(
    s: Schedule,
    x_t: Tensor,
    t: Tensor,
    t_prime: Tensor,
    eps_hat: Tensor,
    z: Tensor,
    eta: float = 0.0,
    clip_x_0: bool = False,
) -> Tensor:
    """Eq. 12, 16: from x_t to x_t' for any t' < t; t' = 0 gives x̂_0

    x_t' = √ᾱ_t' x̂_0 + √(1-ᾱ_t'-σ²) ε_θ(x_t, t) + σ z
    σ² = η² (1-ᾱ_t')/(1-ᾱ_t) (1 - ᾱ_t/ᾱ_t')

    The radicand is evaluated as (1-ᾱ_t') (1 - η² + η² ᾱ_t/ᾱ_t' (1-ᾱ_t')/(1-ᾱ_t)), which
    is the same number but a sum of terms that are not negative.

    Args:
        x_t: (B, ...).
        t, t_prime: (B,), long, 1..T and 0..t-1.
        eps_hat: ε_θ(x_t, t), the shape of x_t.
        z: N(0, I), the shape of x_t.
        eta: η, from 0 (deterministic) to 1 (as much noise as Algorithm 2).
        clip_x_0: clamp x̂_0 to [-1, 1] and let ε_θ be what eq. 15 then makes of x_t.
    Returns: x_t', (B, ...).
    """
    check_eta(eta)
    a = at(s.alpha_bar, t, x_t, z=z)
    a_prime = at(s.alpha_bar, t_prime, x_t, first=0)
    check_range("t - t_prime", t - t_prime, 1, s.T)
    x_0_hat = predict_x_0(s, x_t.double(), t, eps_hat)
    if clip_x_0:
        x_0_hat = x_0_hat.clamp(-1, 1)
        eps_hat = (x_t - a.sqrt() * x_0_hat) / (1 - a).sqrt()
    ratio = (1 - a_prime) / (1 - a)
    sigma2 = eta**2 * ratio * (1 - a / a_prime)
    radicand = (1 - a_prime) * (1 - eta**2 + eta**2 * a / a_prime * ratio)
    x = a_prime.sqrt() * x_0_hat + radicand.sqrt() * eps_hat + sigma2.sqrt() * z
    return x.to(x_t.dtype)


def ddim_loop(
    s: Schedule,
    eps_theta: EpsTheta,
    x_T: Tensor,
    steps: Sequence[int],
    generator: Generator | None = None,
    eta: float = 0.0,
    clip_x_0: bool = False,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Samples along a decreasing list of steps, as `sampler.p_sample_loop` along all

    Args:
        eps_theta: the network, called once for each of the steps.
        x_T: N(0, I), (B, ...): the picture at the first of the steps.
        steps: such as `uniform_steps(s.T, 50)`: falling, from T at most to 1 at least.
        generator: source of every z, on x_T's device; not used with eta = 0.
        eta, clip_x_0: as in `ddim_step`.
    Yields: (t, x_t, x_0_hat) for each of the steps, then (0, x_0, x_0).
    """
    check_eta(eta)
    steps = check_steps(steps, s.T)
    s, eps_theta, x_t = s.to(x_T.device), asked(eps_theta), x_T.detach()
    for step, step_prime in pairwise([*steps, 0]):
        t = torch.full(x_t.shape[:1], step, device=x_t.device)
        t_prime = torch.full_like(t, step_prime)
        noisy = eta > 0 and step_prime > 0
        z = randn_like(x_t, generator) if noisy else torch.zeros_like(x_t)
        eps_hat = eps_theta(x_t, t)
        x_0_hat = predict_x_0(s, x_t, t, eps_hat)
        yield step, x_t, x_0_hat.clamp(-1, 1) if clip_x_0 else x_0_hat
        x_t = ddim_step(s, x_t, t, t_prime, eps_hat, z, eta, clip_x_0)
    yield 0, x_t, x_t


def ddim_sample(
    s: Schedule,
    eps_theta: EpsTheta,
    x_T: Tensor,
    steps: Sequence[int],
    generator: Generator | None = None,
    eta: float = 0.0,
    clip_x_0: bool = False,
) -> Tensor:
    """The x_0 at the end of `ddim_loop`, whose arguments these are; (B, ...)"""
    loop = ddim_loop(s, eps_theta, x_T, steps, generator, eta, clip_x_0)
    return deque(loop, maxlen=1)[0][1]


def ddim_ode_step(
    s: Schedule, x_t: Tensor, t: Tensor, t_prime: Tensor, eps_hat: Tensor
) -> Tensor:
    """Eq. 13: eq. 12 with η = 0 for any pair t, t', in either direction

    x_t'/√ᾱ_t' = x_t/√ᾱ_t + (√((1-ᾱ_t')/ᾱ_t') - √((1-ᾱ_t)/ᾱ_t)) ε_θ,

    an Euler step of the differential equation 14. It leads away from the picture too.

    Args: as in `ddim_step`, but t and t_prime are any of 0..T.
    Returns: x_t', (B, ...).
    """
    a = at(s.alpha_bar, t, x_t, first=0, eps_hat=eps_hat)
    a_prime = at(s.alpha_bar, t_prime, x_t, first=0)
    d_sigma = ((1 - a_prime) / a_prime).sqrt() - ((1 - a) / a).sqrt()
    x = a_prime.sqrt() * (x_t / a.sqrt() + d_sigma * eps_hat)
    return x.to(x_t.dtype)


def ddim_encode(
    s: Schedule, eps_theta: EpsTheta, x_0: Tensor, steps: Sequence[int]
) -> Tensor:
    """Section 4.3: the x at the first of the steps from which `ddim_loop` makes x_0

    Each step asks the network where it starts, `ddim_loop` where this one ends, so that
    x_0 comes back up to an error that halves when the steps are doubled. There is no
    noise to predict at t = 0, where a network was not trained: t = 1 is asked instead.

    Args: x_0 (B, ...); steps, falling, as `ddim_loop` will be given them.
    Returns: (B, ...).
    """
    steps = check_steps(steps, s.T)
    s, eps_theta, x_t = s.to(x_0.device), asked(eps_theta), x_0.detach()
    for step, step_prime in pairwise([0, *reversed(steps)]):
        t = torch.full(x_t.shape[:1], step, device=x_t.device)
        eps_hat = eps_theta(x_t, t.clamp(min=1))
        x_t = ddim_ode_step(s, x_t, t, torch.full_like(t, step_prime), eps_hat)
    return x_t


def uniform_steps(T: int, n: int) -> list[int]:
    """n of the steps T..1, equally far apart, falling: T first, about T/n last"""
    n = _check_n(T, n)
    return [round(T * i / n) for i in range(n, 0, -1)]


def quadratic_steps(T: int, n: int) -> list[int]:
    """App. D.2: about T (i/n)² for i = n..1, at least i: closer together near t = 1"""
    n = _check_n(T, n)
    return [max(i, -(-T * i**2 // n**2)) for i in range(n, 0, -1)]


def check_steps(steps: Sequence[int], T: int) -> list[int]:
    """The steps as a list, or a ValueError unless they fall and lie in 1..T."""
    found = [operator.index(step) for step in steps]
    falling = all(a > b for a, b in pairwise(found))
    if not found or not falling or found[0] > T or found[-1] < 1:
        some = f"{found[:8]}" + ("..." if len(found) > 8 else "")
        raise ValueError(f"steps must fall and lie in {T}..1, got {some}")
    return found


def check_eta(eta: float) -> None:
    """Refuses an η that is not in [0, 1]."""
    if not 0 <= eta <= 1:
        how = "0 is deterministic, 1 has the noise of Algorithm 2"
        raise ValueError(f"eta must lie in [0, 1] ({how}), got {eta}")


def _check_n(T: int, n: int) -> int:
    if not hasattr(n, "__index__") or not 1 <= operator.index(n) <= T:
        raise ValueError(f"of T = {T} steps, 1..{T} can be taken, got {n!r}")
    return operator.index(n)
