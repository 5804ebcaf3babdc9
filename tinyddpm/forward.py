"""The forward process q (eq. 2, 4) and its posterior (eq. 6, 7).

What lives here: what is known without a network. Every function is pure; noise is an
argument. What does not: the learned reverse process p_θ (`sampler.py`).
"""

from torch import Tensor

from .schedule import Schedule, at, check_t


def q_step(s: Schedule, x_tm1: Tensor, t: Tensor, z: Tensor) -> Tensor:
    """Eq. 2: q(x_t|x_{t-1}) = N(√(1-β_t) x_{t-1}, β_t I)

    x_t = √(1-β_t) x_{t-1} + √β_t z

    Args:
        s: the schedule.
        x_tm1: x_{t-1}, (B, ...).
        t: (B,), 1..T.
        z: noise of this one step, N(0, I), the shape of x_tm1.
    Returns: x_t, (B, ...).
    """
    check_t(s, t, x_tm1)
    _same_shape("z", z, "x_tm1", x_tm1)
    beta = at(s.beta, t, x_tm1)
    x_t = (1 - beta).sqrt() * x_tm1 + beta.sqrt() * z
    return x_t.to(x_tm1.dtype)


def q_sample(s: Schedule, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Eq. 4: q(x_t|x_0) = N(√ᾱ_t x_0, (1-ᾱ_t) I)

    x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε

    ε is the whole noise of x_t, not that of its last step. t = 0 gives x_0 back.

    Args:
        s: the schedule.
        x_0: data in [-1, 1], (B, ...).
        t: (B,), 0..T.
        eps: ε ~ N(0, I), the shape of x_0.
    Returns: x_t, (B, ...).
    """
    check_t(s, t, x_0, first=0)
    _same_shape("eps", eps, "x_0", x_0)
    alpha_bar = at(s.alpha_bar, t, x_0)
    x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps
    return x_t.to(x_0.dtype)


def q_posterior(
    s: Schedule, x_t: Tensor, x_0: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """Eq. 6, 7: q(x_{t-1}|x_t, x_0) = N(μ̃_t(x_t, x_0), β̃_t I)

    μ̃_t = √ᾱ_{t-1} β_t / (1-ᾱ_t) x_0 + √α_t (1-ᾱ_{t-1}) / (1-ᾱ_t) x_t
    β̃_t = (1-ᾱ_{t-1}) / (1-ᾱ_t) β_t                      (at t = 1: μ̃ = x_0, β̃ = 0)

    Args:
        s: the schedule.
        x_t: (B, ...).
        x_0: the shape of x_t.
        t: (B,), 1..T.
    Returns: mu_tilde (B, ...), and the variance beta_tilde_t (B, 1, ..., 1).
    """
    check_t(s, t, x_t)
    _same_shape("x_0", x_0, "x_t", x_t)
    beta, alpha = at(s.beta, t, x_t), at(s.alpha, t, x_t)
    alpha_bar, alpha_bar_tm1 = at(s.alpha_bar, t, x_t), at(s.alpha_bar, t - 1, x_t)
    c_0 = alpha_bar_tm1.sqrt() * beta / (1 - alpha_bar)
    c_t = alpha.sqrt() * (1 - alpha_bar_tm1) / (1 - alpha_bar)
    mu_tilde = c_0 * x_0 + c_t * x_t
    beta_tilde_t = at(s.beta_tilde, t, x_t)
    return mu_tilde.to(x_t.dtype), beta_tilde_t.to(x_t.dtype)


def _same_shape(name: str, given: Tensor, of: str, x: Tensor) -> None:
    """A shape that merely broadcasts would share noise between pictures in silence."""
    if given.shape != x.shape:
        raise ValueError(
            f"{name} must have the shape of {of}, {tuple(x.shape)}, "
            f"got {tuple(given.shape)}"
        )
