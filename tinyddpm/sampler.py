"""The learned reverse process p_θ (eq. 1, 11, 15), Algorithm 2 and section 4.4.

`eps_theta` is any callable (x_t, t) -> eps_hat, such as a network. In all functions s
is the schedule and t is (B,), 1..T; any other t, or shapes that differ, raise
ValueError. Randomness enters through one torch.Generator.
"""

from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor, nn

from .forward import q_posterior, q_sample
from .schedule import Schedule, at, whole

EpsTheta = Callable[[Tensor, Tensor], Tensor]


def predict_x_0(s: Schedule, x_t: Tensor, t: Tensor, eps_hat: Tensor) -> Tensor:
    """Eq. 15: x̂_0 = (x_t - √(1-ᾱ_t) ε_θ(x_t)) / √ᾱ_t

    Args: x_t (B, ...); t (B,); eps_hat, ε_θ(x_t, t), the shape of x_t.
    Returns: x_0_hat, (B, ...).
    """
    alpha_bar = at(s.alpha_bar, t, x_t, eps_hat=eps_hat)
    x_0_hat = (x_t - (1 - alpha_bar).sqrt() * eps_hat) / alpha_bar.sqrt()
    return x_0_hat.to(x_t.dtype)


def p_mean(s: Schedule, x_t: Tensor, t: Tensor, eps_hat: Tensor) -> Tensor:
    """Eq. 11: μ_θ(x_t, t) = (x_t - β_t / √(1-ᾱ_t) ε_θ(x_t, t)) / √α_t

    Args: as in `predict_x_0`. Returns: mu_theta, (B, ...).
    """
    beta, alpha, alpha_bar = at([s.beta, s.alpha, s.alpha_bar], t, x_t, eps_hat=eps_hat)
    mu_theta: Tensor = (x_t - beta / (1 - alpha_bar).sqrt() * eps_hat) / alpha.sqrt()
    return mu_theta.to(x_t.dtype)


def p_step(
    s: Schedule,
    x_t: Tensor,
    t: Tensor,
    eps_hat: Tensor,
    z: Tensor,
    sigma2: str = "beta",
    clip_x_0: bool = False,
) -> Tensor:
    """Eq. 1: p_θ(x_{t-1}|x_t) = N(μ_θ(x_t, t), σ_t² I), Algorithm 2 line 4

    x_{t-1} = μ_θ(x_t, t) + σ_t z

    Args: as in `predict_x_0`, and
        z: N(0, I), the shape of x_t; at t = 1 Algorithm 2 gives zeros (line 3).
        sigma2: σ_t², as `Schedule.sigma2` names it (section 3.2).
        clip_x_0: clamp x̂_0 to [-1, 1] and take eq. 7's mean of it. The authors' code
            does this, the paper does not; it keeps a poor network's pictures in range.
    Returns: x_{t-1}, (B, ...).
    """
    sigma = at(s.sigma2(sigma2), t, x_t, z=z).sqrt()
    mu_theta = p_mean(s, x_t, t, eps_hat)
    if clip_x_0:
        x_0_hat = predict_x_0(s, x_t, t, eps_hat).clamp(-1, 1)
        mu_theta, _ = q_posterior(s, x_t, x_0_hat, t)
    x_tm1 = mu_theta + sigma * z
    return x_tm1.to(x_t.dtype)


def p_sample_loop(
    s: Schedule,
    eps_theta: EpsTheta,
    x_T: Tensor,
    generator: Generator | None = None,
    sigma2: str = "beta",
    clip_x_0: bool = False,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Algorithm 2: sampling, as a Python generator of x_T, ..., x_1, x_0

    Args:
        eps_theta: the network, called exactly T times, t = T..1 (see `asked`).
        x_T: N(0, I), (B, ...).
        generator: source of every z, on x_T's device; None is torch's own.
        sigma2, clip_x_0: as in `p_step`.
    Yields: (t, x_t, x_0_hat) for t = T..1, where x_0_hat (eq. 15, clamped if
        `clip_x_0`) is what x_t shows of the picture; then (0, x_0, x_0).
    """
    s, eps_theta = s.to(x_T.device), asked(eps_theta)
    x_t = x_T.detach()  # 1: x_T ~ N(0, I)
    for step in range(s.T, 0, -1):  # 2: for t = T, ..., 1 do
        t = torch.full(x_t.shape[:1], step, device=x_t.device)
        z = randn_like(x_t, generator) if step > 1 else torch.zeros_like(x_t)  # 3
        eps_hat = eps_theta(x_t, t)
        x_0_hat = predict_x_0(s, x_t, t, eps_hat)
        x_tm1 = p_step(s, x_t, t, eps_hat, z, sigma2, clip_x_0)  # 4: x_{t-1}
        yield step, x_t, x_0_hat.clamp(-1, 1) if clip_x_0 else x_0_hat
        x_t = x_tm1
    yield 0, x_t, x_t  # 5: end for, 6: return x_0


def sample(
    s: Schedule,
    eps_theta: EpsTheta,
    shape: tuple[int, ...],
    generator: Generator | None = None,
    sigma2: str = "beta",
    clip_x_0: bool = False,
    device: torch.device | str | None = None,
) -> Tensor:
    """Algorithm 2: draws x_T ~ N(0, I), takes the T steps of `p_sample_loop`, keeps x_0

    Args: as in `p_sample_loop`; shape, of the batch, (B, ...); device, by default the
        generator's, else the network's. Returns: x_0, float32, not clamped.
    """
    theta = eps_theta.parameters() if isinstance(eps_theta, nn.Module) else iter(())
    shape = tuple(whole("shape", shape, least=0))
    here = next(theta, torch.empty(0)).device if generator is None else generator.device
    x_T = torch.randn(shape, generator=generator, device=device or here)
    loop = p_sample_loop(s, eps_theta, x_T, generator, sigma2, clip_x_0)
    return deque(loop, maxlen=1)[0][1]  # the last x_t; earlier ones are let go


@torch.no_grad()
def interpolate(
    s: Schedule,
    eps_theta: EpsTheta,
    x_0: Tensor,
    x_0_prime: Tensor,
    lam: Tensor,
    t: int,
    generator: Generator | None = None,
    sigma2: str = "beta",
    clip_x_0: bool = False,
) -> Tensor:
    """Section 4.4: x̄_t = (1-λ) x_t + λ x'_t, decoded by Algorithm 2 from step t

    x_t, x'_t ~ q(.|x_0), q(.|x'_0). The paper prints x_0 and x'_0 in the mixture; the
    sentence around it means x_t and x'_t (mixing clean pictures would be a cross-fade).
    As in the paper, these are the same for every λ. So is the noise of the reverse
    process here: λ alone moves the picture. Between the ends the mixture has less noise
    than eq. 4: its variance times (1-λ)² + λ², half at λ = 1/2.

    Args: as in `p_sample_loop`; x_0 and x_0_prime, the pictures of each pair, (B, ...);
        lam, λ, (L,), in [0, 1]; t, 1..T: the larger, the coarser the mixture.
    Returns: (L, B, ...), one row of pictures for each λ.
    """
    lam = torch.as_tensor(lam, dtype=torch.float64).to(x_0)
    if lam.ndim != 1 or len(lam) < 1 or not bool(((lam >= 0) & (lam <= 1)).all()):
        raise ValueError(f"lam must be a row of numbers in [0, 1], got {lam}")
    s, eps_theta, shape = s.to(x_0.device), asked(eps_theta), (len(lam), *x_0.shape)
    t_B = torch.full(x_0.shape[:1], t, device=x_0.device)
    at(s.beta, t_B, x_0, x_0_prime=x_0_prime)  # refuses another shape, and t = 0
    x_t = q_sample(s, x_0, t_B, randn_like(x_0, generator))
    x_t_prime = q_sample(s, x_0_prime, t_B, randn_like(x_0, generator))
    lam = lam.view(-1, *[1] * x_0.ndim)
    x_bar = ((1 - lam) * x_t + lam * x_t_prime).flatten(0, 1)  # (L B, ...)
    for step in range(t, 0, -1):  # Algorithm 2, lines 2 to 5
        t_LB = torch.full(x_bar.shape[:1], step, device=x_0.device)
        z = randn_like(x_0, generator) if step > 1 else torch.zeros_like(x_0)
        z = z.expand(shape).flatten(0, 1)  # one z for all λ
        x_bar = p_step(s, x_bar, t_LB, eps_theta(x_bar, t_LB), z, sigma2, clip_x_0)
    return x_bar.view(shape)


def randn_like(x: Tensor, generator: Generator | None) -> Tensor:
    """N(0, I) with the shape, dtype and device of x."""
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def asked(eps_theta: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Calls `eps_theta` with dropout off and no gradients, then restores its flags.

    Modules inside a function are out of reach: call eval() on them first.
    """
    modules = list(eps_theta.modules()) if isinstance(eps_theta, nn.Module) else []

    @torch.no_grad()
    def ask(*args: Tensor) -> Tensor:
        was_training = [m for m in modules if m.training]
        try:
            for m in was_training:
                m.training = False
            return eps_theta(*args)
        finally:
            for m in was_training:
                m.training = True

    return ask
