"""The forward process q, which adds noise (eq. 2, 4), and its posterior (eq. 6, 7).

Everything here is known without a network. The functions are pure: noise is an
argument. In all of them s is the schedule and t is (B,) with the paper's 1..T. Any
other t, or shapes that differ, raise ValueError.
"""

from torch import Tensor

from .schedule import Schedule, at


def q_step(s: Schedule, x_tm1: Tensor, t: Tensor, z: Tensor) -> Tensor:
    """Eq. 2: q(x_t|x_{t-1}) = N(√(1-β_t) x_{t-1}, β_t I)

    x_t = √(1-β_t) x_{t-1} + √β_t z

    Args: x_tm1 (B, ...); z ~ N(0, I), the noise of this one step, its shape.
    Returns: x_t, (B, ...).
    """
    beta = at(s.beta, t, x_tm1, z=z)
    x_t = (1 - beta).sqrt() * x_tm1 + beta.sqrt() * z
    return x_t.to(x_tm1.dtype)


def q_sample(s: Schedule, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Eq. 4: q(x_t|x_0) = N(√ᾱ_t x_0, (1-ᾱ_t) I)

    x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε

    ε is the whole noise of x_t, not that of its last step. t = 0 gives x_0 back.

    Args: x_0 in [-1, 1], (B, ...); t from 0; eps, ε ~ N(0, I), the shape of x_0.
    Returns: x_t, (B, ...).
    """
    alpha_bar = at(s.alpha_bar, t, x_0, first=0, eps=eps)
    x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps
    return x_t.to(x_0.dtype)


def q_posterior(
    s: Schedule, x_t: Tensor, x_0: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """Eq. 6, 7: q(x_{t-1}|x_t, x_0) = N(μ̃_t(x_t, x_0), β̃_t I)

    μ̃_t = √ᾱ_{t-1} β_t / (1-ᾱ_t) x_0 + √α_t (1-ᾱ_{t-1}) / (1-ᾱ_t) x_t
    β̃_t = (1-ᾱ_{t-1}) / (1-ᾱ_t) β_t                      (at t = 1: μ̃ = x_0, β̃ = 0)

    Args: x_t (B, ...); x_0, the shape of x_t.
    Returns: mu_tilde (B, ...), and the variance beta_tilde_t (B, 1, ..., 1).
    """
    beta, alpha, alpha_bar = at([s.beta, s.alpha, s.alpha_bar], t, x_t, x_0=x_0)
    alpha_bar_tm1 = at(s.alpha_bar, t - 1, x_t, first=0)
    c_0 = alpha_bar_tm1.sqrt() * beta / (1 - alpha_bar)
    c_t = alpha.sqrt() * (1 - alpha_bar_tm1) / (1 - alpha_bar)
    mu_tilde = c_0 * x_0 + c_t * x_t
    beta_tilde_t = at(s.beta_tilde, t, x_t)
    return mu_tilde.to(x_t.dtype), beta_tilde_t.to(x_t.dtype)
