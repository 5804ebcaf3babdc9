"""Right answers to the exercises, each written another way than ours.

`ANSWERS` holds (exercise, what the laws are called with): the function, or a class with
the method in it.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator

from tinyddpm.bound import gaussian_kl, log_decoder
from tinyddpm.forward import q_posterior, q_sample
from tinyddpm.sampler import asked, p_mean, p_step, predict_x_0
from tinyddpm.schedule import Schedule, at
from tinyddpm.train import EMA, learning_rate, random_seed
from tinyddpm.unet import ResBlock

ANSWERS: list[tuple[str, Callable[..., Any]]] = []
METHODS = {
    "alpha_bar": (Schedule, "__init__"),
    "ema": (EMA, "update"),
    "block": (ResBlock, "forward"),
}


def answer(exercise: str) -> Callable[[Any], Any]:
    def put(f: Any) -> Any:
        if exercise in METHODS:
            base, name = METHODS[exercise]
            ANSWERS.append((exercise, type(f.__name__, (base,), {name: f})))
        else:
            ANSWERS.append((exercise, f))
        return f

    return put


def wide(x: torch.Tensor) -> torch.Tensor:
    return x.view(-1, 1, 1, 1)


# --- section 2 -------------------------------------------------------------------


@answer("alpha_bar")
def one_product_after_the_other(self, beta):
    beta = [0.0, *beta.tolist()]
    alpha_bar = [1.0]
    for b in beta[1:]:
        alpha_bar.append(alpha_bar[-1] * (1 - b))
    tilde = [0.0, 0.0]
    for t in range(2, len(beta)):
        tilde.append((1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * beta[t])
    self.T = len(beta) - 1
    self.beta = torch.tensor(beta, dtype=torch.float64)
    self.alpha = 1 - self.beta
    self.alpha_bar = torch.tensor(alpha_bar, dtype=torch.float64)
    self.beta_tilde = torch.tensor(tilde, dtype=torch.float64)


@answer("alpha_bar")
def logarithms(self, beta):
    self.T = beta.shape[0]
    self.beta = F.pad(beta, (1, 0))
    self.alpha = F.pad(1 - beta, (1, 0), value=1.0)
    self.alpha_bar = torch.log1p(-self.beta).cumsum(0).exp()
    left = 1 - self.alpha_bar
    self.beta_tilde = self.beta * left.roll(1) / left.clamp(min=1e-300)
    self.beta_tilde[:2] = 0


@answer("alpha_bar")
def by_precisions(self, beta):
    self.T = len(beta)
    self.beta = torch.cat([torch.zeros(1, dtype=torch.float64), beta])
    self.alpha = 1 - self.beta
    self.alpha_bar = torch.cumprod(self.alpha, dim=0)
    precision = 1 / (1 - self.alpha_bar[1:-1]) + self.alpha[2:] / self.beta[2:]
    self.beta_tilde = torch.zeros_like(self.beta)
    self.beta_tilde[2:] = 1 / precision


@answer("alpha_bar")
def a_zero_in_place(self, beta):
    self.T = len(beta)
    self.beta = torch.zeros(len(beta) + 1, dtype=torch.float64)
    self.beta[1:] = beta
    self.alpha = 1.0 - self.beta
    self.alpha_bar = torch.stack(
        [self.alpha[: t + 1].prod() for t in range(self.T + 1)]
    )
    before = torch.cat([self.alpha_bar[:1], self.alpha_bar[:-1]])
    self.beta_tilde = ((1 - before) / (1 - self.alpha_bar) * self.beta).nan_to_num()


# --- section 4 -------------------------------------------------------------------


def line(beta_1, beta_T, T, how):
    if beta_1 is None:
        beta_1, beta_T = 0.1 / T, 20 / T
    return Schedule(how(beta_1, beta_T, T))


@answer("beta")
def arange(T=1000, beta_1=None, beta_T=None):
    def how(a, b, T):
        i = torch.arange(T, dtype=torch.float64)
        return a + i / max(T - 1, 1) * (b - a)

    return line(beta_1, beta_T, T, how)


@answer("beta")
def a_list(T=1000, beta_1=None, beta_T=None):
    def how(a, b, T):
        found = [a + (t - 1) * (b - a) / max(T - 1, 1) for t in range(1, T + 1)]
        return torch.tensor(found, dtype=torch.float64)

    return line(beta_1, beta_T, T, how)


@answer("beta")
def lerp(T=1000, beta_1=None, beta_T=None):
    def how(a, b, T):
        ends = torch.tensor([a, b], dtype=torch.float64)
        share = torch.arange(T, dtype=torch.float64) / max(T - 1, 1)
        return torch.lerp(ends[0], ends[1], share)

    return line(beta_1, beta_T, T, how)


@answer("beta")
def a_scaled_line(T=1000, beta_1=None, beta_T=None):
    def how(a, b, T):
        return a + (b - a) * torch.linspace(0, 1, T, dtype=torch.float64)

    return line(beta_1, beta_T, T, how)


# --- eq. 2 -----------------------------------------------------------------------


@answer("eq2")
def plain_index(s, x_tm1, t, z):
    beta = wide(s.beta[t])
    return (torch.sqrt(1 - beta) * x_tm1 + torch.sqrt(beta) * z).to(x_tm1.dtype)


@answer("eq2")
def alpha(s, x_tm1, t, z):
    a = at(s.alpha, t, x_tm1)
    return (a**0.5 * x_tm1 + (1 - a) ** 0.5 * z).to(x_tm1)


@answer("eq2")
def mean_and_deviation(s, x_tm1, t, z):
    beta = at(s.beta, t, x_tm1)
    mean, deviation = (1 - beta).sqrt() * x_tm1.double(), beta.sqrt()
    return torch.addcmul(mean, deviation.expand_as(z), z.double()).to(x_tm1.dtype)


@answer("eq2")
def item_by_item(s, x_tm1, t, z):
    found = []
    for x, step, noise in zip(x_tm1, t.tolist(), z, strict=True):
        b = float(s.beta[step])
        found.append(math.sqrt(1 - b) * x + math.sqrt(b) * noise)
    return torch.stack(found)


@answer("eq2")
def gathered(s, x_tm1, t, z):
    root = wide(torch.gather(s.beta.sqrt(), 0, t))
    return ((1 - root**2).sqrt() * x_tm1 + root * z).type_as(x_tm1)


@answer("eq2")
def rooted_whole(s, x_tm1, t, z):
    """Signs and squares under one root lose no digits here."""
    roots = torch.stack([s.alpha.sqrt(), s.beta.sqrt()])[:, t]
    return (wide(roots[0]) * x_tm1 + wide(roots[1]) * z).to(x_tm1.dtype)


# --- eq. 4 -----------------------------------------------------------------------


@answer("eq4")
def indexed(s, x_0, t, eps):
    alpha_bar = wide(s.alpha_bar[t])
    return (alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * eps).to(x_0.dtype)


@answer("eq4")
def roots_precomputed(s, x_0, t, eps):
    roots, others = s.alpha_bar.sqrt(), (1 - s.alpha_bar).sqrt()
    return (wide(roots[t]) * x_0 + wide(others[t]) * eps).to(x_0.dtype)


@answer("eq4")
def roots_precomputed_and_rounded(s, x_0, t, eps):
    """In float32, but after the root of a 1-ᾱ_t that was taken in float64."""
    roots = s.alpha_bar.sqrt().to(x_0.dtype)
    others = (1 - s.alpha_bar).sqrt().to(x_0.dtype)
    return wide(roots[t]) * x_0 + wide(others[t]) * eps


@answer("eq4")
def gather(s, x_0, t, eps):
    alpha_bar = s.alpha_bar.gather(0, t).reshape(t.shape[0], *[1] * (x_0.ndim - 1))
    return (alpha_bar.sqrt() * x_0 + (1.0 - alpha_bar).sqrt() * eps).to(x_0.dtype)


@answer("eq4")
def float64_throughout(s, x_0, t, eps):
    x, e, alpha_bar = x_0.double(), eps.double(), wide(s.alpha_bar[t])
    return (alpha_bar.sqrt() * x + (1 - alpha_bar).sqrt() * e).to(x_0.dtype)


@answer("eq4")
def product(s, x_0, t, eps):
    alpha_bar = torch.stack([s.alpha[1 : int(k) + 1].prod() for k in t])
    alpha_bar = wide(alpha_bar)
    return (alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps).to(x_0.dtype)


@answer("eq4")
def from_logarithms(s, x_0, t, eps):
    log = wide(s.alpha.log().cumsum(0)[t])
    found = (log / 2).exp() * x_0 + (-torch.expm1(log)).sqrt() * eps
    return found.to(x_0.dtype)


@answer("eq4")
def picture_by_picture(s, x_0, t, eps):
    made = [
        float(s.alpha_bar[k]) ** 0.5 * x + (1 - float(s.alpha_bar[k])) ** 0.5 * e
        for x, k, e in zip(x_0, t, eps, strict=True)
    ]
    return torch.stack(made)


@answer("eq4")
def einsum(s, x_0, t, eps):
    roots = torch.stack([s.alpha_bar, 1 - s.alpha_bar]).sqrt()[:, t]
    both = torch.stack([x_0, eps]).double()
    return torch.einsum("kb,kbchw->bchw", roots, both).to(x_0.dtype)


@answer("eq4")
def the_mean_then_the_noise(s, x_0, t, eps):
    alpha_bar = at(s.alpha_bar, t, x_0, first=0, eps=eps)
    x_t = x_0 * alpha_bar.sqrt()
    x_t += eps * (1 - alpha_bar).sqrt()
    return x_t.to(x_0.dtype)


# --- eq. 7 -----------------------------------------------------------------------


def tables(s, t, x):
    """β_t, α_t, ᾱ_t, ᾱ_{t-1}"""
    return (
        *(wide(v[t]) for v in (s.beta, s.alpha, s.alpha_bar)),
        wide(s.alpha_bar[t - 1]),
    )


@answer("eq7")
def as_printed(s, x_t, x_0, t):
    b, a, ab, before = tables(s, t, x_t)
    mu = before.sqrt() * b / (1 - ab) * x_0 + a.sqrt() * (1 - before) / (1 - ab) * x_t
    return mu.to(x_t.dtype), ((1 - before) / (1 - ab) * b).to(x_t.dtype)


@answer("eq7")
def one_denominator(s, x_t, x_0, t):
    b, a, ab, before = tables(s, t, x_t)
    mu = (before.sqrt() * b * x_0 + a.sqrt() * (1 - before) * x_t) / (1 - ab)
    return mu.to(x_t.dtype), wide(s.beta_tilde[t]).to(x_t.dtype)


@answer("eq7")
def gaussians_multiplied(s, x_t, x_0, t):
    """q(x_t|x_{t-1}) q(x_{t-1}|x_0), by precision; at t = 1 the second is a point."""
    b, a, _, before = tables(s, t, x_t)
    known = before == 1
    precision = a / b + 1 / torch.where(known, 1.0, 1 - before)
    mean = a.sqrt() / b * x_t + before.sqrt() / torch.where(known, 1, 1 - before) * x_0
    mu = torch.where(known, x_0.double(), mean / precision)
    var = torch.where(known, 0.0, 1 / precision)
    return mu.to(x_t.dtype), var.to(x_t.dtype)


@answer("eq7")
def through_the_variance(s, x_t, x_0, t):
    """c_0 = β̃_t √ᾱ_{t-1}/(1-ᾱ_{t-1}), c_t = β̃_t √α_t/β_t, for t > 1."""
    b, a, ab, before = tables(s, t, x_t)
    var = (1 - before) / (1 - ab) * b
    mu = before.sqrt() * b / (1 - ab) * x_0 + var * a.sqrt() / b * x_t
    return mu.to(x_t.dtype), var.to(x_t.dtype)


@answer("eq7")
def alpha_from_a_ratio(s, x_t, x_0, t):
    ab, before = wide(s.alpha_bar[t]), wide(s.alpha_bar[t - 1])
    a = ab / before
    b = wide(s.beta[t])
    mu = before.sqrt() * b / (1 - ab) * x_0 + a.sqrt() * (1 - before) / (1 - ab) * x_t
    return mu.to(x_t.dtype), (b * (1 - before) / (1 - ab)).to(x_t.dtype)


@answer("eq7")
def residual(s, x_t, x_0, t):
    """μ̃_t = x_0's part of eq. 4 at t-1, and what x_t says beyond eq. 4 at t."""
    _, a, ab, before = tables(s, t, x_t)
    gain = a.sqrt() * (1 - before) / (1 - ab)
    mu = before.sqrt() * x_0 + gain * (x_t - ab.sqrt() * x_0)
    return mu.to(x_t.dtype), at(s.beta_tilde, t, x_t).to(x_t.dtype)


@answer("eq7")
def float64_data(s, x_t, x_0, t):
    mu, var = q_posterior(s, x_t.double(), x_0.double(), t)
    return mu.to(x_t.dtype), var.to(x_t.dtype)


@answer("eq7")
def a_loop(s, x_t, x_0, t):
    mu, var = [], []
    for x, y, k in zip(x_t, x_0, t.tolist(), strict=True):
        b, a = float(s.beta[k]), float(s.alpha[k])
        ab, before = float(s.alpha_bar[k]), float(s.alpha_bar[k - 1])
        left = 1 - ab
        mu.append(before**0.5 * b / left * y + a**0.5 * (1 - before) / left * x)
        var.append((1 - before) / left * b)
    return torch.stack(mu), wide(torch.tensor(var, dtype=x_t.dtype))


# --- eq. 15 ----------------------------------------------------------------------


@answer("eq15")
def solved(s, x_t, t, eps_hat):
    ab = wide(s.alpha_bar[t])
    return ((x_t - (1 - ab) ** 0.5 * eps_hat) / ab**0.5).to(x_t.dtype)


@answer("eq15")
def two_factors(s, x_t, t, eps_hat):
    ab = at(s.alpha_bar, t, x_t)
    return ((1 / ab).sqrt() * x_t - (1 / ab - 1).sqrt() * eps_hat).to(x_t.dtype)


@answer("eq15")
def reciprocal_roots(s, x_t, t, eps_hat):
    r = at(s.alpha_bar, t, x_t).rsqrt()
    return (r * x_t - (r * r - 1).sqrt() * eps_hat).to(x_t.dtype)


@answer("eq15")
def signal_to_noise(s, x_t, t, eps_hat):
    ab = at(s.alpha_bar, t, x_t)
    return (x_t / ab.sqrt() - ((1 - ab) / ab).sqrt() * eps_hat).to(x_t.dtype)


@answer("eq15")
def eq_4_of_minus_eps(s, x_t, t, eps_hat):
    ab = at(s.alpha_bar, t, x_t)
    noise = q_sample(s, torch.zeros_like(x_t.double()), t, eps_hat.double())
    return ((x_t - noise) / ab.sqrt()).to(x_t.dtype)


@answer("eq15")
def by_item(s, x_t, t, eps_hat):
    ab = s.alpha_bar[t].tolist()
    rows = zip(x_t, ab, eps_hat, strict=True)
    return torch.stack([(x - (1 - a) ** 0.5 * e) / a**0.5 for x, a, e in rows])


# --- eq. 11 ----------------------------------------------------------------------


@answer("eq11")
def eq_7_after_eq_15(s, x_t, t, eps_hat):
    x = x_t.double()
    return q_posterior(s, x, predict_x_0(s, x, t, eps_hat), t)[0].to(x_t.dtype)


@answer("eq11")
def as_algorithm_2_prints_it(s, x_t, t, eps_hat):
    a, ab = at([s.alpha, s.alpha_bar], t, x_t)
    return ((x_t - (1 - a) / (1 - ab).sqrt() * eps_hat) / a.sqrt()).to(x_t.dtype)


@answer("eq11")
def multiplied_out(s, x_t, t, eps_hat):
    b, a, ab = at([s.beta, s.alpha, s.alpha_bar], t, x_t)
    return (x_t / a.sqrt() - b / ((1 - ab) * a).sqrt() * eps_hat).to(x_t.dtype)


@answer("eq11")
def plain_tables(s, x_t, t, eps_hat):
    b, a, ab = wide(s.beta[t]), wide(s.alpha[t]), wide(s.alpha_bar[t])
    return (a.rsqrt() * (x_t - b * eps_hat / torch.sqrt(1 - ab))).to(x_t.dtype)


@answer("eq11")
def factors_precomputed(s, x_t, t, eps_hat):
    of_x = 1 / s.alpha[1:].sqrt()
    of_eps = s.beta[1:] / ((1 - s.alpha_bar[1:]).sqrt() * s.alpha[1:].sqrt())
    return (wide(of_x[t - 1]) * x_t - wide(of_eps[t - 1]) * eps_hat).to(x_t.dtype)


@answer("eq11")
def float64_all_along(s, x_t, t, eps_hat):
    return p_mean(s, x_t.double(), t, eps_hat.double()).to(x_t.dtype)


@answer("eq11")
def score(s, x_t, t, eps_hat):
    """Tweedie's: the score is -ε/√(1-ᾱ_t), and μ = (x_t + β_t score)/√α_t."""
    b, a, ab = at([s.beta, s.alpha, s.alpha_bar], t, x_t)
    gradient = -eps_hat / (1 - ab).sqrt()
    return ((x_t + b * gradient) / a.sqrt()).to(x_t.dtype)


@answer("eq11")
def float32_after_float64_factors(s, x_t, t, eps_hat):
    b, a, ab = at([s.beta, s.alpha, s.alpha_bar], t, x_t)
    of_eps = (b / (1 - ab).sqrt()).to(x_t.dtype)
    return (x_t - of_eps * eps_hat) / a.sqrt().to(x_t.dtype)


# --- a step ----------------------------------------------------------------------


@answer("step")
def indexed_variance(s, x_t, t, eps_hat, z, sigma2="beta", clip_x_0=False):
    table = {"beta": s.beta, "beta_tilde": s.beta_tilde}[sigma2]
    if clip_x_0:
        x_0_hat = torch.clamp(predict_x_0(s, x_t, t, eps_hat), -1.0, 1.0)
        mu = q_posterior(s, x_t, x_0_hat, t)[0]
    else:
        mu = p_mean(s, x_t, t, eps_hat)
    return (mu + table[t].sqrt().view(-1, 1, 1, 1) * z).to(x_t.dtype)


@answer("step")
def always_through_x_0(s, x_t, t, eps_hat, z, sigma2="beta", clip_x_0=False):
    x_0_hat = predict_x_0(s, x_t.double(), t, eps_hat)
    if clip_x_0:
        x_0_hat = x_0_hat.clamp(-1, 1)
    mu, _ = q_posterior(s, x_t.double(), x_0_hat, t)
    return (mu + at(s.sigma2(sigma2), t, x_t) ** 0.5 * z).to(x_t.dtype)


@answer("step")
def variance_of_eq_7(s, x_t, t, eps_hat, z, sigma2="beta", clip_x_0=False):
    x_0_hat = predict_x_0(s, x_t.double(), t, eps_hat)
    limit = 1.0 if clip_x_0 else math.inf
    mu, var = q_posterior(s, x_t.double(), x_0_hat.clamp(-limit, limit), t)
    if sigma2 != "beta_tilde":
        var = at(s.sigma2(sigma2), t, x_t)
    return (mu + var.sqrt() * z).to(x_t.dtype)


@answer("step")
def no_noise_at_1(s, x_t, t, eps_hat, z, sigma2="beta", clip_x_0=False):
    """Masks z at t = 1 itself: Algorithm 2 gives zeros there anyhow."""
    return p_step(s, x_t, t, eps_hat, z * wide(t > 1), sigma2, clip_x_0)


@answer("step")
def logarithm_of_the_variance(s, x_t, t, eps_hat, z, sigma2="beta", clip_x_0=False):
    sigma = (0.5 * at(s.sigma2(sigma2), t, x_t).log()).exp()
    still = p_step(s, x_t.double(), t, eps_hat, torch.zeros_like(z), sigma2, clip_x_0)
    return (still + sigma * z).to(x_t.dtype)


# --- Algorithm 2 -----------------------------------------------------------------


@answer("algorithm2")
@torch.no_grad()
def a_while_loop(s, eps_theta, x_T, generator=None, sigma2="beta", clip_x_0=False):
    ask, x, step = asked(eps_theta), x_T, s.T
    while step:
        t = torch.tensor([step] * len(x))
        hat = ask(x, t)
        x_0_hat = predict_x_0(s, x, t, hat)
        yield step, x, torch.clamp(x_0_hat, -1, 1) if clip_x_0 else x_0_hat
        z = torch.zeros_like(x)
        if step > 1:
            z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = p_step(s, x, t, hat, z, sigma2, clip_x_0)
        step -= 1
    yield 0, x, x


@answer("algorithm2")
def all_noise_first(s, eps_theta, x_T, generator=None, sigma2="beta", clip_x_0=False):
    """Draws z_T..z_2 in one call: other numbers, the same law."""
    eps_theta, x = asked(eps_theta), x_T.detach().clone()
    z = torch.randn(s.T, *x.shape, generator=generator, dtype=x.dtype)
    z[0] = 0
    for step in reversed(range(1, s.T + 1)):
        t = torch.full((len(x),), step)
        hat = eps_theta(x, t)
        x_0_hat = predict_x_0(s, x, t, hat)
        yield step, x, x_0_hat.clamp(-1, 1) if clip_x_0 else x_0_hat
        x = p_step(s, x, t, hat, z[step - 1], sigma2, clip_x_0)
    yield 0, x, x


@answer("algorithm2")
def by_hand(s, eps_theta, x_T, generator=None, sigma2="beta", clip_x_0=False):
    """Line 4 written out, the flags kept without `asked`."""
    x = x_T
    table = s.sigma2(sigma2)
    for step in range(s.T, 0, -1):
        t = torch.full(x.shape[:1], step)
        flags = {}
        if isinstance(eps_theta, torch.nn.Module):
            flags = {m: m.training for m in eps_theta.modules()}
            eps_theta.eval()
        with torch.no_grad():
            hat = eps_theta(x, t)
        for m, flag in flags.items():
            m.training = flag
        x_0_hat = predict_x_0(s, x, t, hat)
        if clip_x_0:
            x_0_hat = x_0_hat.clamp(-1, 1)
        yield (step, x, x_0_hat)
        x = q_posterior(s, x, x_0_hat, t)[0]
        if step > 1:
            noise = torch.empty_like(x).normal_(generator=generator)
            x = (x + table[step].sqrt() * noise).to(x_T.dtype)
    yield (0, x, x)


@answer("algorithm2")
def noise_drawn_at_1_too(
    s, eps_theta, x_T, generator=None, sigma2="beta", clip_x_0=False
):
    """Draws at t = 1 as well and multiplies by 0."""
    eps_theta = asked(eps_theta)
    x = x_T.detach()
    for step in range(s.T, 0, -1):
        t = torch.full(x.shape[:1], step)
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype) * (step != 1)
        hat = eps_theta(x, t)
        guess = predict_x_0(s, x, t, hat)
        yield step, x, guess.clamp(-1, 1) if clip_x_0 else guess
        x = p_step(s, x, t, hat, z, sigma2, clip_x_0)
    yield 0, x, x


# --- eq. 5, 8 --------------------------------------------------------------------


def kl(m1, v1, m2, v2):
    return 0.5 * (v1 / v2 - 1 - (v1 / v2).log() + (m1 - m2) ** 2 / v2)


@answer("L_tm1")
def torch_distributions(s, x_0, t, x_0_hat, sigma2="beta"):
    x, hat = x_0.double(), x_0_hat.double()
    mu, var = q_posterior(s, x, x, t)
    theta, _ = q_posterior(s, x, hat, t)
    sigma = at(s.sigma2(sigma2), t, x).sqrt()
    normal = torch.distributions.Normal
    found = torch.distributions.kl_divergence(
        normal(mu, var.sqrt().expand_as(mu)), normal(theta, sigma.expand_as(mu))
    )
    return found.sum((1, 2, 3))


@answer("L_tm1")
def eq_8_with_its_constant(s, x_0, t, x_0_hat, sigma2="beta"):
    b, ab, before = wide(s.beta[t]), wide(s.alpha_bar[t]), wide(s.alpha_bar[t - 1])
    c_0 = before.sqrt() * b / (1 - ab)
    var, tilde = wide(s.sigma2(sigma2)[t]), wide(s.beta_tilde[t])
    square = (c_0 * (x_0.double() - x_0_hat.double())).square().flatten(1).sum(1)
    C = x_0[0].numel() * kl(0.0 * tilde, tilde, 0.0 * tilde, var).flatten()
    return square / (2 * var.flatten()) + C


@answer("L_tm1")
def the_formula(s, x_0, t, x_0_hat, sigma2="beta"):
    zero = torch.zeros_like(x_0, dtype=torch.float64)
    mu, v = q_posterior(s, zero, x_0.double(), t)
    theta, _ = q_posterior(s, zero, x_0_hat.double(), t)
    return kl(mu, v, theta, wide(s.sigma2(sigma2)[t])).flatten(1).sum(1)


@answer("L_tm1")
def at_some_x_t(s, x_0, t, x_0_hat, sigma2="beta"):
    x_0, x_0_hat = x_0.double(), x_0_hat.double()
    x_t = q_sample(s, x_0, t, torch.ones_like(x_0))
    mu, v = q_posterior(s, x_t, x_0, t)
    theta, _ = q_posterior(s, x_t, x_0_hat, t)
    nats = gaussian_kl(mu, v, theta, at(s.sigma2(sigma2), t, x_0))
    return nats.reshape(len(x_0), -1).sum(-1)


# --- eq. 12 ----------------------------------------------------------------------


@answer("eq12")
def whole_tables(s, t, sigma2="beta"):
    table = s.beta**2 / (2 * s.sigma2(sigma2) * s.alpha * (1 - s.alpha_bar))
    return table[t]


@answer("eq12")
def without_the_tables_of_alpha(s, t, sigma2="beta"):
    b, ab = s.beta[t], s.alpha_bar[t]
    return 0.5 * b * b / s.sigma2(sigma2)[t] / (1 - b) / (1 - ab)


@answer("eq12")
def square_of_eq_11s_factor(s, t, sigma2="beta"):
    """Eq. 8 of two means by eq. 11 that differ by 1 in ε."""
    zero, one = torch.zeros(len(t), 1).double(), torch.ones(len(t), 1).double()
    off = p_mean(s, zero, t, one).flatten()
    return off**2 / (2 * s.sigma2(sigma2)[t])


@answer("eq12")
def a_list_of_floats(s, t, sigma2="beta"):
    found = []
    for k in t.tolist():
        b, v = float(s.beta[k]), float(s.sigma2(sigma2)[k])
        found.append(b**2 / (2 * v * float(s.alpha[k]) * (1 - float(s.alpha_bar[k]))))
    return torch.tensor(found, dtype=torch.float64)


# --- eq. 14 ----------------------------------------------------------------------


@answer("eq14")
def mse_loss(s, eps_theta, x_0, t, eps, *c):
    return F.mse_loss(eps_theta(q_sample(s, x_0, t, eps), t, *c), eps)


@answer("eq14")
def mean_of_means(s, eps_theta, x_0, t, eps, *c):
    hat = eps_theta(q_sample(s, x_0, t, eps), t, *c)
    return ((eps - hat) ** 2).flatten(1).mean(1).mean()


@answer("eq14")
def norm(s, eps_theta, x_0, t, eps, *c):
    hat = eps_theta(q_sample(s, x_0, t, eps), t, *c)
    return ((hat - eps).flatten(1).norm(dim=1) ** 2).mean() / eps[0].numel()


@answer("eq14")
def eq_4_written_out(s, eps_theta, x_0, t, eps, *c):
    ab = wide(s.alpha_bar[t])
    x_t = (ab.sqrt() * x_0 + (1 - ab).sqrt() * eps).to(x_0.dtype)
    off = eps_theta(x_t, t, *c) - eps
    return (off * off).sum() / off.numel()


@answer("eq14")
def dot(s, eps_theta, x_0, t, eps, *c):
    off = (eps - eps_theta(q_sample(s, x_0, t, eps), t, *c)).reshape(-1)
    return torch.dot(off, off) / len(off)


# --- Algorithm 1 -----------------------------------------------------------------


@answer("algorithm1")
def gradients_zeroed_first(s, net, draw, h, ema, optimiser, first=1, gradient=None):
    theta = list(net.parameters())
    device = theta[0].device
    for step in range(first, h.steps + 1):
        optimiser.zero_grad()
        g = Generator(device).manual_seed(random_seed(h.seed, step))
        x_0, *c = draw(h.batch, g)
        eps = torch.randn(x_0.shape, generator=g)
        t = torch.randint(low=1, high=s.T + 1, size=(h.batch,), generator=g)
        loss = gradient(s, net, x_0, t, eps, *c)
        torch.nn.utils.clip_grad_norm_(theta, h.max_norm)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(h, step)
        optimiser.step()
        ema.update()
        yield step, loss


@answer("algorithm1")
def from_zero_plus_one(s, net, draw, h, ema, optimiser, first=1, gradient=None):
    step = first
    while step <= h.steps:
        g = Generator().manual_seed(random_seed(h.seed, step))
        batch = draw(h.batch, g)
        t = 1 + (torch.rand(h.batch, generator=g) * s.T).long()
        eps = torch.empty_like(batch[0]).normal_(generator=g)
        loss = gradient(s, net, batch[0], t, eps, *batch[1:])
        total = torch.sqrt(sum((p.grad**2).sum() for p in net.parameters()))
        for p in net.parameters():
            p.grad *= min(1.0, h.max_norm / (float(total) + 1e-6))
        optimiser.param_groups[0]["lr"] = learning_rate(h, step)
        optimiser.step()
        for p in net.parameters():
            p.grad = None
        ema.update()
        yield step, loss
        step += 1


@answer("algorithm1")
def another_seed(s, net, draw, h, ema, optimiser, first=1, gradient=None):
    """The seed a function of (seed, step) of its own."""
    for step in range(first, h.steps + 1):
        g = Generator().manual_seed(hash((h.seed, step)) % 2**63)
        x_0, *c = draw(h.batch, g)
        t = torch.randint(s.T, (h.batch,), generator=g) + 1
        eps = torch.randn(*x_0.shape, generator=g)
        loss = gradient(s, net, x_0, t, eps, *c)
        torch.nn.utils.clip_grad_norm_(net.parameters(), h.max_norm)
        optimiser.param_groups[0].update(lr=learning_rate(h, step))
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        ema.update()
        yield step, loss


# --- the average -----------------------------------------------------------------


def buffers(self):
    for of_ema, of_net in self._buffers:
        of_ema.copy_(of_net)


@answer("ema")
@torch.no_grad()
def mul_and_add(self):
    for a, p in zip(self._ema, self._theta, strict=True):
        a.mul_(self.decay).add_(p, alpha=1 - self.decay)
    buffers(self)


@answer("ema")
def data(self):
    for a, p in zip(self._ema, self._theta, strict=True):
        a.data = self.decay * a.data + (1 - self.decay) * p.data
    buffers(self)


@answer("ema")
@torch.no_grad()
def copied(self):
    for a, p in zip(self._ema, self._theta, strict=True):
        a.copy_(a * self.decay + p * (1 - self.decay))
    for a, b in self._buffers:
        a.set_(b.clone())


@answer("ema")
@torch.no_grad()
def one_rounding_less(self):
    for a, p in zip(self._ema, self._theta, strict=True):
        a += (1 - self.decay) * (p - a)
    buffers(self)


@answer("ema")
@torch.no_grad()
def lerped(self):
    for a, p in zip(self._ema, self._theta, strict=True):
        a.lerp_(p, 1 - self.decay)
    buffers(self)


# --- eq. 13 ----------------------------------------------------------------------


@answer("eq13")
def mirrored_pictures(level, mean, variance):
    """Mirrors the picture, not the bin: level v and μ to 255 - v and -μ."""
    centre = level / 127.5 - 1
    right = centre > mean
    level = torch.where(right, 255 - level, level)
    return log_decoder(level, torch.where(right, -mean, mean), variance)


@answer("eq13")
def one_of_two(level, mean, variance):
    """Both tails are computed, and the one that keeps its digits is taken."""
    sd = math.sqrt(variance)
    big = torch.full_like(level, 1e30)
    a = torch.where(level > 0, (level - 127.5 - 0.5) / 127.5, -big).sub(mean) / sd
    b = torch.where(level < 255, (level - 127.5 + 0.5) / 127.5, big).sub(mean) / sd
    left = a.abs() < b.abs()
    far, near = torch.where(left, -b, a), torch.where(left, -a, b)
    high, low = torch.special.log_ndtr(near), torch.special.log_ndtr(far)
    return high + torch.log(-torch.expm1(low - high))


# --- the embedding ---------------------------------------------------------------


@answer("embedding")
def powers(t, dim):
    i = torch.arange(dim // 2, dtype=torch.float64)
    omega = 10000 ** (-i / (dim // 2 - 1))
    angle = torch.outer(t.double(), omega)
    emb = torch.cat((torch.sin(angle), torch.cos(angle)), -1)
    return emb.to(t.dtype if t.dtype == torch.float64 else torch.float32)


@answer("embedding")
def logspace(t, dim):
    omega = torch.logspace(0, -4, dim // 2, dtype=torch.float64)
    angle = t[:, None].double() * omega[None]
    emb = torch.hstack([angle.sin(), angle.cos()])
    return emb if t.dtype == torch.float64 else emb.float()


@answer("embedding")
def filled_in(t, dim):
    half = dim // 2
    emb = torch.empty(len(t), dim, dtype=torch.float64)
    for i in range(half):
        w = math.exp(-math.log(10000) * i / (half - 1))
        emb[:, i], emb[:, half + i] = (t.double() * w).sin(), (t.double() * w).cos()
    return emb if t.dtype == torch.float64 else emb.to(torch.float32)


@answer("embedding")
def complex_numbers(t, dim):
    i = torch.arange(dim // 2, dtype=torch.float64) / (dim // 2 - 1)
    turn = torch.exp(1j * t.double()[:, None] * torch.exp(-i * math.log(1e4)))
    emb = torch.cat([turn.imag, turn.real], dim=1)
    return emb if t.dtype == torch.float64 else emb.float()


# --- the block -------------------------------------------------------------------


@answer("block")
def silu_by_hand(self, x, emb):
    def silu(v):
        return v * torch.sigmoid(v)

    h = self.conv1(silu(self.norm1(x)))
    h = h + self.dense(emb).unsqueeze(-1).unsqueeze(-1)
    h = self.dropout(silu(self.norm2(h)))
    return self.conv2(h) + self.shortcut(x)


@answer("block")
def viewed(self, x, emb):
    skip = self.shortcut(x)
    h = self.conv1(torch.nn.SiLU()(self.norm1(x)))
    h += self.dense(emb).view(*h.shape[:2], 1, 1)
    return skip + self.conv2(self.dropout(F.silu(self.norm2(h))))


@answer("block")
def functional_dropout(self, x, emb):
    h = F.silu(self.norm1(x))
    h = self.conv1(h) + self.dense(emb)[..., None, None]
    h = F.dropout(F.silu(self.norm2(h)), self.dropout.p, self.training)
    return torch.add(self.shortcut(x), self.conv2(h))
