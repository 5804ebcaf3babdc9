"""Mistakes as readers make them, in words other than those of `exercises/known.py`.

`MISTAKEN` holds (exercise, the published name it must be given, the function).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, nn

from tinyddpm.sampler import asked, p_mean, p_step, predict_x_0
from tinyddpm.schedule import Schedule, at
from tinyddpm.train import EMA, learning_rate, random_seed
from tinyddpm.unet import ResBlock

MISTAKEN: list[tuple[str, str, Callable[..., Any]]] = []
METHODS = {
    "alpha_bar": (Schedule, "__init__"),
    "ema": (EMA, "update"),
    "block": (ResBlock, "forward"),
}


def mistake(exercise: str, known: str) -> Callable[[Any], Any]:
    def put(f: Any) -> Any:
        if exercise in METHODS:
            base, name = METHODS[exercise]
            made = type(f.__name__, (base,), {name: f})
            MISTAKEN.append((exercise, known, made))
        else:
            MISTAKEN.append((exercise, known, f))
        return f

    return put


def wide(x):
    return x.view(-1, 1, 1, 1)


@mistake("alpha_bar", "M46")
def float32_tables(self, beta):
    self.T = len(beta)
    self.beta = torch.cat([torch.zeros(1), beta.float()])
    self.alpha = 1.0 - self.beta
    self.alpha_bar = torch.cumprod(self.alpha, 0)
    left = 1 - self.alpha_bar
    self.beta_tilde = torch.cat([torch.zeros(1), left[:-1] / left[1:] * self.beta[1:]])


@mistake("alpha_bar", "M7")
def no_beta_in_the_posterior_variance(self, beta):
    self.T = len(beta)
    self.beta = torch.cat([beta.new_zeros(1), beta])
    self.alpha = 1 - self.beta
    self.alpha_bar = torch.cumprod(self.alpha, 0)
    self.beta_tilde = torch.zeros_like(self.beta)
    for t in range(1, self.T + 1):
        self.beta_tilde[t] = (1 - self.alpha_bar[t - 1]) / (1 - self.alpha_bar[t])


@mistake("beta", "M9")
def over_T(T=1000, beta_1=None, beta_T=None):
    if beta_1 is None:
        beta_1, beta_T = 0.1 / T, 20 / T
    steps = range(1, T + 1)
    found = [beta_1 + t * (beta_T - beta_1) / T for t in steps]
    return Schedule(torch.tensor(found, dtype=torch.float64))


@mistake("beta", "D1")
def double_after(T=1000, beta_1=None, beta_T=None):
    if beta_1 is None:
        beta_1, beta_T = 0.1 / T, 20 / T
    return Schedule(torch.linspace(beta_1, beta_T, T).to(torch.float64))


@mistake("eq2", "M8")
def variance_for_deviation(s, x_tm1, t, z):
    b = wide(s.beta[t])
    return ((1 - b) * x_tm1 + b * z).to(x_tm1.dtype)


@mistake("eq2", "M31")
def no_return(s, x_tm1, t, z):
    b = wide(s.beta[t])
    (1 - b).sqrt() * x_tm1 + b.sqrt() * z


@mistake("eq4", "M2")
def one_root(s, x_0, t, eps):
    ab = wide(s.alpha_bar[t])
    return (ab**0.5 * x_0 + (1 - ab) * eps).to(x_0.dtype)


@mistake("eq4", "M2")
def one_root_and_the_wrong_dtype(s, x_0, t, eps):
    """Two mistakes: the first law that is broken names the first of them."""
    ab = wide(s.alpha_bar[t])
    return torch.sqrt(ab) * x_0.double() + (1 - ab) * eps


@mistake("eq4", "M4")
def next_index(s, x_0, t, eps):
    """Raises at t = T, where index T + 1 is beyond the table."""
    ab = wide(s.alpha_bar[t + 1])
    return (ab.sqrt() * x_0 + (1 - ab).sqrt() * eps).to(x_0.dtype)


@mistake("eq4", "M20")
def no_root_of_the_signal(s, x_0, t, eps):
    ab = wide(s.alpha_bar.gather(0, t))
    return (ab * x_0 + torch.sqrt(1 - ab) * eps).to(x_0.dtype)


@mistake("eq4", "M46b")
def tables_in_the_datas_dtype(s, x_0, t, eps):
    ab = wide(s.alpha_bar.to(x_0.dtype)[t])
    return ab.sqrt() * x_0 + (1 - ab).sqrt() * eps


@mistake("eq4", "M32")
@torch.inference_mode()
def in_inference_mode(s, x_0, t, eps):
    ab = wide(s.alpha_bar[t])
    return (ab.sqrt() * x_0 + (1 - ab).sqrt() * eps).to(x_0.dtype)


@mistake("eq7", "M7")
def variance_without_beta(s, x_t, x_0, t):
    b, a, ab, before = (
        *(wide(v[t]) for v in (s.beta, s.alpha, s.alpha_bar)),
        wide(s.alpha_bar[t - 1]),
    )
    left = 1 - ab
    mu = before.sqrt() * b / left * x_0 + a.sqrt() * (1 - before) / left * x_t
    return mu.to(x_t.dtype), ((1 - before) / left).to(x_t.dtype)


@mistake("eq15", "M2")
def eq_4s_slip(s, x_t, t, eps_hat):
    ab = wide(s.alpha_bar[t])
    return (x_t / ab.sqrt() - (1 - ab) / ab.sqrt() * eps_hat).to(x_t.dtype)


@mistake("eq15", "M31")
def forgotten(s, x_t, t, eps_hat):
    at(s.alpha_bar, t, x_t)


@mistake("step", "M1")
def variance_times_z(s, x_t, t, eps_hat, z, sigma2="beta", clip_x_0=False):
    zero = torch.zeros_like(z)
    mu = p_step(s, x_t, t, eps_hat, zero, sigma2, clip_x_0)
    return (mu + wide(s.sigma2(sigma2)[t]) * z).to(x_t.dtype)


@mistake("step", "M17")
def mean_alone(s, x_t, t, eps_hat, z, sigma2="beta", clip_x_0=False):
    return p_step(s, x_t, t, eps_hat, z * 0, sigma2, clip_x_0)


@mistake("step", "P5")
def clamped_and_dropped(s, x_t, t, eps_hat, z, sigma2="beta", clip_x_0=False):
    mu = p_mean(s, x_t, t, eps_hat)
    if clip_x_0:
        predict_x_0(s, x_t, t, eps_hat).clamp_(-1, 1)
    return (mu + wide(s.sigma2(sigma2)[t]).sqrt() * z).to(x_t.dtype)


@mistake("step", "D4")
def clamps_unasked(s, x_t, t, eps_hat, z, sigma2="beta", clip_x_0=False):
    return p_step(s, x_t, t, eps_hat, z, sigma2, clip_x_0=True)


@mistake("algorithm2", "M18, P3, P6")
def stops_at_x_1(s, eps_theta, x_T, generator=None, sigma2="beta", clip_x_0=False):
    eps_theta, x = asked(eps_theta), x_T
    for step in reversed(range(2, s.T + 1)):
        t = torch.full(x.shape[:1], step)
        hat = eps_theta(x, t)
        yield step, x, predict_x_0(s, x, t, hat)
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = p_step(s, x, t, hat, z, sigma2, clip_x_0)
    yield 0, x, x


@mistake("algorithm2", "P1")
def noise_at_the_end(s, eps_theta, x_T, generator=None, sigma2="beta", clip_x_0=False):
    eps_theta, x = asked(eps_theta), x_T
    for step in reversed(range(1, s.T + 1)):
        t = torch.full(x.shape[:1], step)
        hat = eps_theta(x, t)
        yield step, x, predict_x_0(s, x, t, hat)
        z = torch.empty_like(x).normal_(generator=generator)
        x = p_step(s, x, t, hat, z, sigma2, clip_x_0)
    yield 0, x, x


@mistake("algorithm2", "M34")
@torch.no_grad()
def eval_for_good(s, eps_theta, x_T, generator=None, sigma2="beta", clip_x_0=False):
    if isinstance(eps_theta, nn.Module):
        eps_theta.eval()
    x = x_T
    for step in range(s.T, 0, -1):
        t = torch.full(x.shape[:1], step)
        hat = eps_theta(x, t)
        guess = predict_x_0(s, x, t, hat)
        yield step, x, guess.clamp(-1, 1) if clip_x_0 else guess
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype) * (step > 1)
        x = p_step(s, x, t, hat, z, sigma2, clip_x_0)
    yield 0, x, x


def noised(s, x_0, t, eps):
    ab = wide(s.alpha_bar[t])
    return (ab.sqrt() * x_0 + (1 - ab).sqrt() * eps).to(x_0.dtype)


@mistake("eq14", "M16")
def l1_loss(s, eps_theta, x_0, t, eps, *c):
    return F.l1_loss(eps_theta(noised(s, x_0, t, eps), t, *c), eps)


@mistake("eq14", "M15")
def against_the_picture(s, eps_theta, x_0, t, eps, *c):
    return F.mse_loss(eps_theta(noised(s, x_0, t, eps), t, *c), x_0)


@mistake("eq14", "P9")
def summed(s, eps_theta, x_0, t, eps, *c):
    off = eps_theta(noised(s, x_0, t, eps), t, *c) - eps
    return (off**2).sum((1, 2, 3)).mean()


def epochs(s, net, draw, h, ema, optimiser, first, gradient, low, high):
    for step in range(first, h.steps + 1):
        g = Generator().manual_seed(random_seed(h.seed, step))
        x_0, *c = draw(h.batch, g)
        t = torch.randint(low, high, (h.batch,), generator=g)
        eps = torch.randn(x_0.shape, generator=g)
        loss = gradient(s, net, x_0, t, eps, *c)
        nn.utils.clip_grad_norm_(net.parameters(), h.max_norm)
        optimiser.param_groups[0]["lr"] = learning_rate(h, step)
        optimiser.step()
        optimiser.zero_grad()
        ema.update()
        yield step, loss


@mistake("algorithm1", "M5")
def never_1(s, net, draw, h, ema, optimiser, first=1, gradient=None):
    yield from epochs(s, net, draw, h, ema, optimiser, first, gradient, 2, s.T + 1)


@mistake("algorithm1", "M5b")
def never_T(s, net, draw, h, ema, optimiser, first=1, gradient=None):
    yield from epochs(s, net, draw, h, ema, optimiser, first, gradient, 1, s.T)


@mistake("ema", "D9")
@torch.no_grad()
def swapped_for_good(self):
    for a, p, (of_ema, of_net) in zip(
        self._ema, self._theta, self._buffers or [(None, None)] * 9, strict=False
    ):
        a.mul_(self.decay).add_(p, alpha=1 - self.decay)
        p.copy_(a)
        if of_ema is not None:
            of_ema.copy_(of_net)


@mistake("eq13", "P10")
def tanh(level, mean, variance):
    def phi(x):
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    low = ((level - 0.5) / 127.5 - 1).masked_fill(level == 0, -1e30)
    high = ((level + 0.5) / 127.5 - 1).masked_fill(level == 255, 1e30)
    a, b = (low - mean) / math.sqrt(variance), (high - mean) / math.sqrt(variance)
    right = a > -b
    a, b = torch.where(right, -b, a), torch.where(right, -a, b)
    log_a, log_b = phi(a).clamp(min=1e-12).log(), phi(b).clamp(min=1e-12).log()
    return log_b + torch.log(-torch.expm1(log_a - log_b))


@mistake("embedding", "M28")
def in_turn(t, dim):
    emb = torch.empty(len(t), dim, dtype=torch.float64)
    w = torch.logspace(0, -4, dim // 2, dtype=torch.float64)
    emb[:, 0::2] = torch.sin(t.double()[:, None] * w)
    emb[:, 1::2] = torch.cos(t.double()[:, None] * w)
    return emb if t.dtype == torch.float64 else emb.float()


@mistake("block", "M21")
def a_new_shortcut_each_time(self, x, emb):
    h = self.conv1(F.silu(self.norm1(x))) + self.dense(emb)[:, :, None, None]
    h = self.conv2(self.dropout(F.silu(self.norm2(h))))
    if h.shape[1] != x.shape[1]:
        x = F.conv2d(x, torch.randn(h.shape[1], x.shape[1], 1, 1, dtype=x.dtype))
    return x + h


@mistake("block", "P4b")
def blind_to_t(self, x, emb):
    h = self.conv1(F.silu(self.norm1(x)))
    return self.shortcut(x) + self.conv2(self.dropout(F.silu(self.norm2(h))))
