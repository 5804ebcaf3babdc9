"""Improved DDPM (Nichol & Dhariwal 2021): cosine schedule, fewer steps, learned Σ.

Equation numbers are those of "Improved Denoising Diffusion Probabilistic Models", arXiv
2102.09672. The sigmoid schedule of Jabri et al. (2022) stands beside the cosine one.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..forward import q_sample
from ..sampler import asked, p_mean
from ..schedule import Schedule, at, same_shape, whole
from .ablations import L_of_step, PTheta
from .ddim import check_steps

BETA_MAX = 0.999  # no β_t is larger: the last step of either schedule would be 1


def cosine_schedule(T: int = 1000, offset: float = 0.008) -> Schedule:
    """Eq. 17: ᾱ_t = f(t)/f(0), f(t) = cos²((t/T + s)/(1 + s) · π/2); β_t <= 0.999

    Args: offset, s, which keeps β_1 from being too small for 8-bit pictures.
    """
    u = _times(T)
    f = ((u + offset) / (1 + offset) * math.pi / 2).cos() ** 2
    return _schedule_of(f / f[0])


def sigmoid_schedule(
    T: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0
) -> Schedule:
    """ᾱ_t = (σ(e) - σ(u)) / (σ(e) - σ(b)), u from b = start/τ to e = end/τ in T steps

    σ is the logistic function, and β_t <= 0.999 (Jabri et al. 2022, arXiv 2212.11972).
    A larger τ makes the way from 1 to 0 straighter.
    """
    if not (start < end and tau > 0):
        given = f"got start = {start}, end = {end}, tau = {tau}"
        raise ValueError(f"start must be below end, and tau above 0; {given}")
    u = (start + (end - start) * _times(T)) / tau
    f = u.sigmoid()
    return _schedule_of((f[-1] - f) / (f[-1] - f[0]))


def strided(
    s: Schedule, net: Callable[..., Any], steps: Sequence[int]
) -> tuple[Schedule, Callable[..., Any]]:
    """Eq. 19: the same diffusion in fewer steps, a schedule and a network for it

    Of the steps τ_1 < ... < τ_S, step i of the new schedule has ᾱ_i = ᾱ_{τ_i} of s, so
    β_i = 1 - ᾱ_{τ_i}/ᾱ_{τ_{i-1}}, from which β̃_i follows; the new network asks `net` at
    τ_i. Samplers, the bound and `interpolated_variance` take both as they are:

        sample(*strided(s, net, uniform_steps(s.T, 50)), shape)

    Args: net, (x_t, t, ...) -> any answer, asked as `sampler.asked` does, without
        gradients; steps, falling, of T..1, such as `ddim.uniform_steps` gives.
    """
    rising = torch.tensor([0, *reversed(check_steps(steps, s.T))])
    alpha_bar = s.alpha_bar.cpu()[rising]
    fewer = Schedule(1 - alpha_bar[1:] / alpha_bar[:-1]).to(s.alpha_bar.device)
    ask, rising = asked(net), rising.to(s.alpha_bar.device)

    def at_tau(x_t: Tensor, t: Tensor, *c: Tensor) -> Any:
        return ask(x_t, rising.to(t.device)[t], *c)

    return fewer, at_tau


def interpolated_variance(
    s: Schedule, net: Callable[..., tuple[Tensor, Tensor]]
) -> PTheta:
    """Eq. 15: p_theta with Σ_θ(x_t, t) = exp(v log β_t + (1 - v) log β̃_t)

    β̃_1 = 0 has no logarithm: β̃_2 stands for it, as in the authors' code.

    Args: net, (x_t, t, *c) -> (ε_θ, v), both of the shape of x_t, such as
        `ablations.TwoAnswers`.
    """
    if s.T < 2:
        raise ValueError("a learned variance needs T >= 2, got T = 1")
    beta_tilde = torch.cat([s.beta_tilde[:1], s.beta_tilde[2:3], s.beta_tilde[2:]])

    def p_theta(x_t: Tensor, t: Tensor, *c: Tensor) -> tuple[Tensor, Tensor]:
        eps_hat, v = net(x_t, t, *c)
        beta, beta_tilde_t = at([s.beta, beta_tilde], t, x_t, v=v)
        variance = (v * beta.log() + (1 - v) * beta_tilde_t.log()).exp()
        return p_mean(s, x_t.double(), t, eps_hat), variance

    return p_theta


def L_hybrid(
    s: Schedule,
    net: Callable[..., tuple[Tensor, Tensor]],
    x_0: Tensor,
    t: Tensor,
    eps: Tensor,
    *c: Tensor,
    lam: float = 0.001,
) -> Tensor:
    """Eq. 16: L_hybrid = L_simple + λ L_vlb, where L_vlb teaches Σ_θ alone

    L_vlb = T · L_{t-1}/D in nats estimates eq. 5 from one t. The mean's gradient is
    stopped in it, so that ε_θ learns from L_simple, and v from L_vlb.

    Args: as in `train.L_simple`, but net gives (ε_θ, v) and x_0 are 8-bit pictures.
    Returns: a scalar.
    """
    x_t = q_sample(s, x_0, t, eps)
    eps_hat, v = net(x_t, t, *c)
    same_shape("eps_theta(x_t, t)", eps_hat, eps)
    L_simple = (eps - eps_hat).square().mean()
    p_theta = interpolated_variance(s, lambda x_t, t: (eps_hat.detach(), v))
    nats = L_of_step(s, x_0, x_t, t, *p_theta(x_t, t))
    L_vlb = s.T * nats.mean() / x_0[0].numel()
    return L_simple + lam * L_vlb


def _times(T: int) -> Tensor:
    """t/T for t = 0..T, float64."""
    (T,) = whole("T", [T])
    return torch.linspace(0, 1, T + 1, dtype=torch.float64)


def _schedule_of(alpha_bar: Tensor) -> Schedule:
    """β_t = 1 - ᾱ_t/ᾱ_{t-1}, at most BETA_MAX, for ᾱ_0..ᾱ_T."""
    return Schedule((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=BETA_MAX))
