"""What the paper compares itself with: μ̃-prediction, training on L, a learned Σ.

Sections 3.2, 3.4 and 4.2, and Table 2. The reverse process is here eq. 1 with any mean
and variance: `p_theta` is a callable (x_t, t) -> (μ_θ(x_t, t), Σ_θ(x_t, t)), where Σ_θ
holds the diagonal, as numbers of the shape of x_t or as one for each picture.
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from ..bound import L_T, gaussian_kl, log_decoder, sigma2_1
from ..data import to_levels
from ..forward import q_posterior, q_sample
from ..sampler import p_mean, randn_like
from ..schedule import Schedule, at, same_shape
from ..train import Hyperparameters
from ..unet import UNet

PTheta = Callable[..., tuple[Tensor, Tensor]]
Mean = Callable[[Schedule, Tensor, Tensor, Tensor], Tensor]


def score(s: Schedule, t: Tensor, eps_hat: Tensor) -> Tensor:
    """Section 3.2: ∇ log q(x_t) is about -ε_θ(x_t, t) / √(1-ᾱ_t), the score of x_t

    It is exact where ε_θ is E[ε|x_t]. Args: t (B,), 1..T; eps_hat (B, ...).
    """
    alpha_bar = at(s.alpha_bar, t, eps_hat)
    score_t: Tensor = -eps_hat / (1 - alpha_bar).sqrt()
    return score_t.to(eps_hat.dtype)


def mu_itself(s: Schedule, x_t: Tensor, t: Tensor, mu_hat: Tensor) -> Tensor:
    """Section 3.2: μ̃-prediction, where the network gives μ_θ(x_t, t) instead of ε_θ"""
    at(s.alpha_bar, t, x_t, mu_hat=mu_hat)
    return mu_hat


def fixed_variance(
    s: Schedule, net: Callable[..., Tensor], mean: Mean = p_mean, sigma2: str = "beta"
) -> PTheta:
    """Section 3.2: p_theta with Σ_θ = σ_t² I, σ_1² being that of eq. 13 (`sigma2_1`)

    Args: net, (x_t, t, *c) -> what `mean` makes μ_θ of: ε_θ for `sampler.p_mean`, μ_θ
        for `mu_itself`. The paper's own choice is the default.
    """
    table = s.sigma2(sigma2).clone()
    table[1] = sigma2_1(s, sigma2)

    def p_theta(x_t: Tensor, t: Tensor, *c: Tensor) -> tuple[Tensor, Tensor]:
        mu_theta = mean(s, x_t.double(), t, net(x_t, t, *c))
        return mu_theta.double(), at(table, t, x_t)

    return p_theta


def learned_variance(
    s: Schedule, net: Callable[..., tuple[Tensor, Tensor]], mean: Mean = p_mean
) -> PTheta:
    """Table 2: p_theta with a learned diagonal, Σ_θ(x_t, t) = exp(second answer of net)

    As in the authors' code the network gives log Σ_θ itself, of every number.

    Args: net, such as `TwoAnswers`; mean, which makes μ_θ of the first answer.
    """

    def p_theta(x_t: Tensor, t: Tensor, *c: Tensor) -> tuple[Tensor, Tensor]:
        first, log_variance = net(x_t, t, *c)
        same_shape("the network's second answer", log_variance, x_t)
        mu_theta = mean(s, x_t.double(), t, first)
        return mu_theta.double(), log_variance.double().exp()

    return p_theta


class TwoAnswers(nn.Module):
    """A network that answers twice, (x_t, t, *c) -> two tensors of the shape of x_t.

    `net` is one for twice the channels, such as `UNet(6)` for RGB. The further channels
    come in as zeros, and go out as the second answer.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x_t: Tensor, t: Tensor, *c: Tensor) -> tuple[Tensor, Tensor]:
        """x_t (B, C, ...), t (B,) -> (B, C, ...) and (B, C, ...)."""
        both = self.net(torch.cat([x_t, torch.zeros_like(x_t)], 1), t, *c)
        first, second = both.chunk(2, 1)
        return first, second


def L_of_step(
    s: Schedule, x_0: Tensor, x_t: Tensor, t: Tensor, mu_theta: Tensor, variance: Tensor
) -> Tensor:
    """Eq. 5: each picture's L_{t-1}, which at t = 1 is L_0 with the decoder of eq. 13

    Args: x_0, 8-bit pictures in [-1, 1], (B, ...); x_t ~ q(x_t|x_0); t (B,), 1..T;
        mu_theta and variance, p_theta(x_t, t).
    Returns: (B,), nats, float64, differentiable in mu_theta and variance.
    """
    mu_tilde, beta_tilde_t = q_posterior(s, x_t.double(), x_0.double(), t)
    variance = variance.expand_as(mu_theta)
    nats = mu_theta.new_zeros(len(t))
    for which, last in ((t > 1, False), (t == 1, True)):
        rows = which.nonzero()[:, 0]  # each use of a mask would make the host wait
        mu, var = mu_theta[rows], variance[rows]
        if last:
            each = -log_decoder(to_levels(x_0[rows]), mu, var)
        else:
            each = gaussian_kl(mu_tilde[rows], beta_tilde_t[rows], mu, var)
        nats[rows] = each.flatten(1).sum(1)
    return nats


def L(
    s: Schedule, p_theta: PTheta, x_0: Tensor, t: Tensor, eps: Tensor, *c: Tensor
) -> Tensor:
    """Eq. 5 as a loss: the mean over the batch of L_{t-1} / D, nats

    For t uniform on 1..T, T times its expectation is (L - L_T) / D. With ε-prediction
    and Σ_θ = σ_t² I, each L_{t-1} is eq. 12 plus a constant, and `train.L_simple` is
    what is left of it without the weights.

    Args: as in `train.L_simple`, with p_theta for ε_θ and 8-bit pictures for x_0.
    """
    x_t = q_sample(s, x_0, t, eps)
    nats = L_of_step(s, x_0, x_t, t, *p_theta(x_t, t, *c))
    return nats.mean() / x_0[0].numel()


def L_mu(
    s: Schedule, p_theta: PTheta, x_0: Tensor, t: Tensor, eps: Tensor, *c: Tensor
) -> Tensor:
    """Table 2, "MSE": E ‖μ̃_t(x_t, x_0) - μ_θ(x_t, t)‖², eq. 8 without its weight

    Like `train.L_simple` it is the mean over the D numbers, and takes those arguments.
    """
    x_t = q_sample(s, x_0, t, eps)
    mu_tilde, _ = q_posterior(s, x_t, x_0, t)
    mu_theta, _ = p_theta(x_t, t, *c)
    return (mu_tilde - mu_theta).square().mean()


@torch.no_grad()
def sample_p_theta(
    s: Schedule,
    p_theta: PTheta,
    shape: tuple[int, ...],
    generator: Generator | None = None,
) -> Tensor:
    """Algorithm 2 with any p_theta: x_{t-1} = μ_θ + √Σ_θ z, without noise at t = 1

    Args: shape, of the batch, (B, ...). A p_theta's network must be in eval mode.
    Returns: x_0, float32, on the generator's device.
    """
    device = torch.device("cpu") if generator is None else generator.device
    s, x_t = s.to(device), torch.randn(shape, generator=generator, device=device)
    for step in range(s.T, 0, -1):
        mu_theta, variance = p_theta(x_t, torch.full(shape[:1], step, device=device))
        z = randn_like(x_t, generator) if step > 1 else torch.zeros_like(x_t)
        x_t = (mu_theta + variance.sqrt() * z).to(x_t.dtype)
    return x_t


@torch.no_grad()
def bits_per_dim_p_theta(
    s: Schedule, p_theta: PTheta, x_0: Tensor, generator: Generator | None = None
) -> Tensor:
    """Eq. 5 with any p_theta: the total of `bound.bits_per_dim`, (N,), bits/dim

    Args: as there. A p_theta's network must be in eval mode.
    """
    s, D = s.to(x_0.device), x_0[0].numel()
    nats = L_T(s, x_0)
    for step in range(s.T, 0, -1):
        t = torch.full(x_0.shape[:1], step, device=x_0.device)
        x_t = q_sample(s, x_0, t, randn_like(x_0, generator))
        nats = nats + L_of_step(s, x_0, x_t, t, *p_theta(x_t, t))
    return nats / (D * math.log(2))


# App. B, CelebA-HQ and LSUN at 256x256: smaller batches and steps, and no dropout. The
# steps differ from one data set to the other, so give them.
HYPERPARAMETERS_256 = Hyperparameters(lr=2e-5, batch=64)


def unet_256() -> UNet:
    """App. B: the network for 256x256, 114 million weights, attention at 16x16"""
    return UNet(3, 128, (1, 1, 2, 2, 4, 4), (4,), 0.0)
