"""Training: the losses (eq. 12, 14), Algorithm 1, and the moving average (App. B).

What lives here: what is minimised and the loop that does it. What does not: the
network (`mlp.py`, `unet.py`) and the pictures (`data.py`).
"""

from torch import Tensor

from .forward import _same_shape, q_sample
from .sampler import EpsTheta
from .schedule import Schedule, at, check_t


def L_simple(
    s: Schedule, eps_theta: EpsTheta, x_0: Tensor, t: Tensor, eps: Tensor
) -> Tensor:
    """Eq. 14: L_simple = E_{t, x_0, ε} ‖ε - ε_θ(√ᾱ_t x_0 + √(1-ᾱ_t) ε, t)‖²

    The paper's squared norm is a sum over the D numbers of a picture; this is the mean
    over them (and over the batch), smaller by the constant factor D.

    Args:
        s: the schedule.
        eps_theta: the network, called once.
        x_0: data in [-1, 1], (B, ...).
        t: (B,), drawn uniformly from 1..T.
        eps: ε ~ N(0, I), the shape of x_0.
    Returns: a scalar.
    """
    check_t(s, t, x_0)
    eps_hat = eps_theta(q_sample(s, x_0, t, eps), t)
    _same_shape("eps_hat", eps_hat, "eps", eps)
    return (eps - eps_hat).square().mean()


def weight(s: Schedule, t: Tensor, sigma2: str = "beta") -> Tensor:
    """Eq. 12: β_t² / (2 σ_t² α_t (1-ᾱ_t)), what L_{t-1} weighs ‖ε - ε_θ‖² with

    The norm is the paper's: a sum over D. L_simple drops this factor (eq. 14).

    Args:
        s: the schedule.
        t: (B,), 1..T; from 2 with sigma2 = "beta_tilde", since β̃_1 = 0.
        sigma2: σ_t², "beta" or "beta_tilde".
    Returns: (B,), float64, nats.
    """
    like = t.double()
    first = 2 if sigma2 == "beta_tilde" else 1
    check_t(s, t, like, first)
    beta, alpha, alpha_bar = (at(x, t, like) for x in (s.beta, s.alpha, s.alpha_bar))
    return beta**2 / (2 * at(s.sigma2(sigma2), t, like) * alpha * (1 - alpha_bar))
