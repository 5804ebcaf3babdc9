"""Training: the losses (eq. 12, 14), Algorithm 1, and the moving average (App. B).

What a step draws is a function of (seed, step) alone, but for dropout masks, which
`workshop/run.py` seeds: it puts around `algorithm_1`, from outside, what keeps a long
run alive and makes it fast.
"""

import copy
import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam, Optimizer

from .data import Draw
from .forward import q_sample
from .sampler import randn_like
from .schedule import Schedule, at, check_range, same_shape, whole


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """The settings of Algorithm 1, by default those of the paper's CIFAR-10 run."""

    steps: Annotated[int, "gradient steps in all (App. B)"] = 800_000
    batch: Annotated[int, "pictures a step, over all processes (App. B)"] = 128
    lr: Annotated[float, "Adam's learning rate (App. B)"] = 2e-4
    warmup: Annotated[int, "steps of linear warm-up (authors' code)"] = 5_000
    lr_end: Annotated[float | None, "end of a cosine decay, for short runs"] = None
    max_norm: Annotated[float, "bound on the gradient's norm (authors' code)"] = 1.0
    ema: Annotated[float, "decay of the weights' moving average (App. B)"] = 0.9999
    seed: Annotated[int, "of all randomness"] = 0


def L_simple(
    s: Schedule,
    eps_theta: Callable[..., Tensor],
    x_0: Tensor,
    t: Tensor,
    eps: Tensor,
    *c: Tensor,
) -> Tensor:
    """Eq. 14: L_simple = E_{t, x_0, ε} ‖ε - ε_θ(√ᾱ_t x_0 + √(1-ᾱ_t) ε, t)‖²

    The paper's squared norm is a sum over the D numbers of a picture. As in the
    authors' code, this is the mean over them (and over the batch), smaller by D.

    Args: eps_theta, the network, called once; x_0 in [-1, 1], (B, ...); t (B,), drawn
        uniformly from 1..T; eps, ε ~ N(0, I), the shape of x_0; c, further arguments of
        the network, such as the pictures' classes (B,). Returns: a scalar.
    """
    x_t = q_sample(s, x_0, t, eps)
    check_range("t", t, 1, s.T)  # eq. 4 takes t = 0 too
    eps_hat = eps_theta(x_t, t, *c)
    same_shape("eps_theta(x_t, t)", eps_hat, eps)
    loss: Tensor = (eps - eps_hat).square().mean()
    return loss


def weight(s: Schedule, t: Tensor, sigma2: str = "beta") -> Tensor:
    """Eq. 12: β_t² / (2 σ_t² α_t (1-ᾱ_t)), the weight of ‖ε - ε_θ‖² in L_{t-1}

    The norm is the paper's: a sum over D. L_simple drops this factor (eq. 14).

    Args: t (B,), 1..T, but from 2 with sigma2 = "beta_tilde", since β̃_1 = 0; sigma2,
        σ_t², as `Schedule.sigma2` names it. Returns: (B,), float64, nats.
    """
    tables, first = [s.beta, s.alpha, s.alpha_bar], 2 if sigma2 == "beta_tilde" else 1
    x = t.double() if isinstance(t, Tensor) else torch.empty(0)
    beta, alpha, alpha_bar, sigma2_t = at([*tables, s.sigma2(sigma2)], t, x, first)
    return torch.as_tensor(beta**2 / (2 * sigma2_t * alpha * (1 - alpha_bar)))


class EMA:
    """App. B: θ_ema ← decay θ_ema + (1 - decay) θ, on its own copy of the weights.

    It starts as a copy of the initial weights, as in the authors' code. Buffers, such
    as the statistics of a batch norm, are copied.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self.decay = float(decay)
        self._ema: list[Tensor] = list(self.net.parameters())
        self._theta: list[Tensor] = list(net.parameters())
        self._of = net

    @torch.no_grad()
    def update(self) -> None:
        """One step; ema + (1 - decay)(θ - ema) is the same with one rounding less."""
        torch._foreach_lerp_(self._ema, self._theta, 1 - self.decay)
        for of_ema, of_net in zip(self.net.buffers(), self._of.buffers(), strict=True):
            of_ema.copy_(of_net)


def gradient(*batch: Any, share: float = 1.0) -> Tensor:
    """Adds share · ∇_θ L_simple(s, ε_θ, x_0, t, ε) to each p.grad; returns the loss."""
    loss = share * L_simple(*batch)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def algorithm_1(
    s: Schedule,
    net: nn.Module,
    draw: Draw,
    h: Hyperparameters,
    ema: EMA,
    optimiser: Optimizer,
    first: int = 1,
    gradient: Callable[..., Tensor] = gradient,
) -> Iterator[tuple[int, Tensor]]:
    """Algorithm 1: training, as a Python generator that takes one step at a time

    The numbered lines are the paper's; clipping, the warm-up of the learning rate and
    the moving average are additions of the authors' code.

    Args: net, ε_θ, (x_t, t) or (x_t, t, c) -> eps_hat, trained in place; draw(B,
        generator) -> (x_0,) or (x_0, c), x_0 in [-1, 1]; ema and optimiser, of net;
        first, the first step to take; gradient, which adds line 5's to each p.grad.
    Yields: (step, L_simple) after each step.
    """
    theta, B = list(net.parameters()), h.batch
    device = theta[0].device
    for step in range(first, h.steps + 1):  # 1: repeat
        generator = Generator(device).manual_seed(random_seed(h.seed, step))
        x_0, *c = draw(B, generator)  # 2: x_0 ~ q(x_0)
        t = torch.randint(1, s.T + 1, (B,), generator=generator, device=device)  # 3: t
        eps = randn_like(x_0, generator)  # 4: ε ~ N(0, I)
        optimiser.zero_grad()
        loss = gradient(s, net, x_0, t, eps, *c)  # 5: take a gradient descent step
        clip_grad_norm_(theta, h.max_norm)
        optimiser.param_groups[0]["lr"] = learning_rate(h, step)
        optimiser.step()
        ema.update()
        yield step, loss  # 6: until converged


def fit(s: Schedule, net: nn.Module, draw: Draw, h: Hyperparameters) -> nn.Module:
    """Algorithm 1: takes all its steps, with Adam, and returns the moving average

    Args: as in `algorithm_1`. Returns: the network that App. B samples from.
    """
    s = s.to(next(net.parameters()).device)
    ema, optimiser = EMA(net, h.ema), Adam(net.parameters(), h.lr, fused=True)
    net.train()
    for _ in algorithm_1(s, net, draw, h, ema, optimiser):
        pass
    return ema.net


def learning_rate(h: Hyperparameters, step: int) -> float:
    """Linear from 0 over `warmup` steps, then constant (or a cosine to `lr_end`)."""
    rate, end = h.lr, h.lr_end
    if end is not None:
        rate = end + (rate - end) * (1 + math.cos(math.pi * step / h.steps)) / 2
    return rate * min(step / max(1, h.warmup), 1.0)


def random_seed(*key: int) -> int:
    """A 63-bit number from (seed, step, ...): neighbouring steps share nothing.

    Hashed, not summed: torch's CPU generator reads only the low 32 bits of a seed, with
    which some 75 of the paper's 800,000 steps repeat the draws of another one.
    """
    key = tuple(whole("the numbers of a seed", key, least=0))
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
