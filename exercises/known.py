"""The mistakes that the grader knows by name, as changes of our own functions.

A reader's function that is wrong and gives what one of these gives, in every case up
to the end of the first law it breaks, has that mistake. Those with an id stand in
published code or texts: `tests/mutation/mistakes.py` says where, and what is right.
"""

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .borrow import ours
from .table import EXERCISES, NAMED, Exercise


class Known(NamedTuple):
    """A mistake: `old` becomes `new` in the exercise's function, or t becomes t + k."""

    exercise: str
    id: str  # in tests/mutation/mistakes.py, or ""
    old: str  # stands once in the module
    new: str
    says: str = ""  # without an id: what is wrong; with one: how it differs from it
    shift: int = 0


SKIP = object()  # the answer in a case where a mistake has no answer


PATCHES = (
    # section 2: the tables
    Known(
        "alpha_bar",
        "M3",
        "self.alpha_bar = self.alpha.cumprod(0)",
        "self.alpha_bar = torch.cat([beta.new_ones(1), (1 - beta[0]) * "
        "(1 - beta).cumprod(0)])",
    ),
    Known(
        "alpha_bar",
        "M3b",
        "torch.cat([beta.new_zeros(1), beta])",
        "torch.cat([beta[:1], beta])",
    ),
    Known(
        "alpha_bar",
        "M7",
        "one_minus[:-1] / one_minus[1:] * beta",
        "one_minus[:-1] / one_minus[1:]",
    ),
    Known(
        "alpha_bar",
        "M46",
        "self.alpha_bar = self.alpha.cumprod(0)",
        "self.alpha_bar = self.alpha.float().cumprod(0).double()",
    ),
    Known(
        "alpha_bar",
        "M46",
        "self.T = len(beta)",
        "self.T, beta = len(beta), beta.float()",
    ),
    Known(
        "alpha_bar",
        "",
        "one_minus[:-1] / one_minus[1:] * beta",
        "beta",
        "this is β_t, the upper of the two choices of section 3.2; β̃_t is below it",
    ),
    Known(
        "alpha_bar",
        "",
        "one_minus[:-1] / one_minus[1:] * beta",
        "one_minus[1:] / one_minus[:-1] * beta",
        "1-ᾱ_{t-1} and 1-ᾱ_t have changed places",
    ),
    # section 4: the straight line
    Known(
        "beta",
        "M9",
        "torch.linspace(beta_1, beta_T, T, dtype=torch.float64)\n    return",
        "torch.linspace(beta_1, beta_T, T + 1, dtype=torch.float64)[1:]\n    return",
    ),
    Known(
        "beta",
        "D1",
        "torch.linspace(beta_1, beta_T, T, dtype=torch.float64)\n    return",
        "torch.linspace(beta_1, beta_T, T).double()\n    return",
    ),
    Known(
        "beta",
        "M6",
        "torch.linspace(beta_1, beta_T, T, dtype=torch.float64)\n    return",
        "torch.linspace(1e-4, 0.02, T, dtype=torch.float64)\n    return",
    ),
    Known(
        "beta",
        "",
        "torch.linspace(beta_1, beta_T, T, dtype=torch.float64)\n    return",
        "torch.linspace(beta_1, beta_T, T + 1, dtype=torch.float64)[:-1]\n    return",
        "the line never reaches β_T: both ends are among the T numbers",
    ),
    Known(
        "beta",
        "",
        "torch.linspace(beta_1, beta_T, T, dtype=torch.float64)\n    return",
        "torch.linspace(beta_1**0.5, beta_T**0.5, T, dtype=torch.float64) ** 2\n"
        "    return",
        "this is appendix B's quadratic schedule, √β_t on a straight line",
    ),
    # eq. 2
    Known(
        "eq2",
        "M8",
        "(1 - beta).sqrt() * x_tm1 + beta.sqrt() * z",
        "(1 - beta) * x_tm1 + beta * z",
    ),
    Known(
        "eq2",
        "M2",
        "(1 - beta).sqrt() * x_tm1 + beta.sqrt() * z",
        "(1 - beta).sqrt() * x_tm1 + beta * z",
        "in eq. 4",
    ),
    Known(
        "eq2",
        "M20",
        "(1 - beta).sqrt() * x_tm1 + beta.sqrt() * z",
        "(1 - beta) * x_tm1 + beta.sqrt() * z",
        "in eq. 4",
    ),
    # eq. 4
    Known("eq4", "M2", "(1 - alpha_bar).sqrt() * eps", "(1 - alpha_bar) * eps"),
    Known("eq4", "M20", "x_t = alpha_bar.sqrt() * x_0", "x_t = alpha_bar * x_0"),
    Known(
        "eq4",
        "M8",
        "alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps",
        "alpha_bar * x_0 + (1 - alpha_bar) * eps",
        "in eq. 2",
    ),
    Known(
        "eq4",
        "M46b",
        "alpha_bar = at(s.alpha_bar, t, x_0, first=0, eps=eps)",
        "alpha_bar = at(s.alpha_bar, t, x_0, first=0, eps=eps).to(x_0.dtype)",
    ),
    Known(
        "eq4",
        "",
        "at(s.alpha_bar, t, x_0, first=0, eps=eps)",
        "at(s.alpha, t, x_0, first=0, eps=eps)",
        "this is eq. 2, one step: α_t stands where ᾱ_t should",
    ),
    # eq. 7
    Known(
        "eq7",
        "M7",
        "beta_tilde_t = at(s.beta_tilde, t, x_t)",
        "beta_tilde_t = (1 - alpha_bar_tm1) / (1 - alpha_bar)",
    ),
    Known(
        "eq7",
        "",
        "beta_tilde_t = at(s.beta_tilde, t, x_t)",
        "beta_tilde_t = at(s.beta, t, x_t)",
        "the variance is β_t, the upper of the two choices of section 3.2",
    ),
    Known(
        "eq7",
        "",
        "beta_tilde_t = at(s.beta_tilde, t, x_t)",
        "beta_tilde_t = at(s.beta_tilde, t, x_t).sqrt()",
        "eq. 7's β̃_t is a variance; this is its root",
    ),
    Known(
        "eq7",
        "",
        "alpha_bar_tm1 = at(s.alpha_bar, t - 1, x_t, first=0)",
        "alpha_bar_tm1 = alpha_bar",
        "ᾱ_t stands where ᾱ_{t-1} should",
    ),
    Known(
        "eq7",
        "",
        "c_0 = alpha_bar_tm1.sqrt() * beta",
        "c_0 = alpha_bar_tm1 * beta",
        "x_0's factor has the root of ᾱ_{t-1}",
    ),
    Known(
        "eq7",
        "",
        "c_t = alpha.sqrt() * (1",
        "c_t = alpha * (1",
        "x_t's factor has the root of α_t",
    ),
    Known(
        "eq7",
        "",
        "c_0 * x_0 + c_t * x_t",
        "c_0 * x_t + c_t * x_0",
        "x_0 and x_t have changed places",
    ),
    Known(
        "eq7",
        "M46b",
        "beta, alpha, alpha_bar = at([s.beta, s.alpha, s.alpha_bar], t, x_t, x_0=x_0)\n"
        "    alpha_bar_tm1 = at(s.alpha_bar, t - 1, x_t, first=0)",
        "beta, alpha, alpha_bar = at([s.beta, s.alpha, s.alpha_bar], t, x_t).to("
        "x_t.dtype)\n"
        "    alpha_bar_tm1 = at(s.alpha_bar, t - 1, x_t, first=0).to(x_t.dtype)",
    ),
    # eq. 15
    Known(
        "eq15",
        "M2",
        "(x_t - (1 - alpha_bar).sqrt() * eps_hat) / alpha_bar",
        "(x_t - (1 - alpha_bar) * eps_hat) / alpha_bar",
        "in eq. 4",
    ),
    Known(
        "eq15",
        "M20",
        "eps_hat) / alpha_bar.sqrt()",
        "eps_hat) / alpha_bar",
        "in eq. 4",
    ),
    Known(
        "eq15",
        "",
        "x_0_hat = (x_t - (1 - alpha_bar).sqrt() * eps_hat) / alpha_bar.sqrt()",
        "x_0_hat = x_t - (1 - alpha_bar).sqrt() * eps_hat / alpha_bar.sqrt()",
        "x_t must be divided too: mind the parentheses",
    ),
    Known(
        "eq15",
        "M46b",
        "alpha_bar = at(s.alpha_bar, t, x_t, eps_hat=eps_hat)",
        "alpha_bar = at(s.alpha_bar, t, x_t, eps_hat=eps_hat).to(x_t.dtype)",
    ),
    # eq. 11
    Known(
        "eq11",
        "M2",
        "beta / (1 - alpha_bar).sqrt() * eps_hat",
        "beta / (1 - alpha_bar) * eps_hat",
        "in eq. 4",
    ),
    Known(
        "eq11",
        "",
        "eps_hat) / alpha.sqrt()",
        "eps_hat) / alpha",
        "the division is by the root of α_t",
    ),
    Known(
        "eq11",
        "",
        "eps_hat) / alpha.sqrt()",
        "eps_hat) / alpha_bar.sqrt()",
        "ᾱ_t stands where α_t should",
    ),
    Known(
        "eq11",
        "",
        "(1 - alpha_bar).sqrt() * eps_hat) / alpha.sqrt()",
        "(1 - alpha).sqrt() * eps_hat) / alpha.sqrt()",
        "α_t stands where ᾱ_t should",
    ),
    Known(
        "eq11",
        "",
        "(x_t - beta / (1 - alpha_bar).sqrt() * eps_hat) / alpha.sqrt()",
        "x_t - beta / (1 - alpha_bar).sqrt() * eps_hat / alpha.sqrt()",
        "x_t must be divided too: mind the parentheses",
    ),
    Known(
        "eq11",
        "",
        "(x_t - beta / (1 - alpha_bar).sqrt() * eps_hat) / alpha.sqrt()",
        "(x_t - (1 - alpha_bar).sqrt() * eps_hat) / alpha_bar.sqrt()",
        "this is eq. 15, the estimate of x_0",
    ),
    Known(
        "eq11",
        "M46b",
        "beta, alpha, alpha_bar = at([s.beta, s.alpha, s.alpha_bar], t, x_t, "
        "eps_hat=eps_hat)",
        "beta, alpha, alpha_bar = at([s.beta, s.alpha, s.alpha_bar], t, x_t, "
        "eps_hat=eps_hat).to(x_t.dtype)",
    ),
    # a step of Algorithm 2
    Known(
        "step",
        "M1",
        "sigma = at(s.sigma2(sigma2), t, x_t, z=z).sqrt()",
        "sigma = at(s.sigma2(sigma2), t, x_t, z=z)",
    ),
    Known(
        "step",
        "M10",
        "sigma = at(s.sigma2(sigma2), t, x_t, z=z).sqrt()",
        "sigma = at(s.sigma2(sigma2), t, x_t, z=z) ** 0.25",
    ),
    Known("step", "M17", "x_tm1 = mu_theta + sigma * z", "x_tm1 = mu_theta"),
    Known(
        "step",
        "P5",
        "mu_theta, _ = q_posterior(s, x_t, x_0_hat, t)",
        "mu_theta = p_mean(s, x_t, t, eps_hat)",
    ),
    Known("step", "D4", "if clip_x_0:\n", "if True:\n"),
    Known(
        "step",
        "",
        "mu_theta, _ = q_posterior(s, x_t, x_0_hat, t)",
        "mu_theta = p_mean(s, x_t, t, eps_hat).clamp(-1, 1)",
        "with clip_x_0 it is x̂_0 that is clamped, not the mean",
    ),
    Known(
        "step",
        "",
        "sigma = at(s.sigma2(sigma2), t, x_t, z=z).sqrt()",
        "sigma = at(s.beta, t, x_t, z=z).sqrt()",
        "σ_t² is β_t whatever sigma2 says",
    ),
    # Algorithm 2
    Known("algorithm2", "M18, P3, P6", "range(s.T, 0, -1)", "range(s.T, 1, -1)"),
    Known(
        "algorithm2",
        "P1",
        "randn_like(x_t, generator) if step > 1 else torch.zeros_like(x_t)  # 3",
        "randn_like(x_t, generator)",
    ),
    Known(
        "algorithm2",
        "M17",
        "randn_like(x_t, generator) if step > 1 else torch.zeros_like(x_t)  # 3",
        "torch.zeros_like(x_t)",
    ),
    Known(
        "algorithm2",
        "M1",
        "x_tm1 = p_step(s, x_t, t, eps_hat, z, sigma2, clip_x_0)  # 4: x_{t-1}",
        "x_tm1 = p_step(s, x_t, t, eps_hat, 0 * z, sigma2, clip_x_0) + at("
        "s.sigma2(sigma2), t, x_t) * z",
    ),
    Known(
        "algorithm2",
        "M10",
        "x_tm1 = p_step(s, x_t, t, eps_hat, z, sigma2, clip_x_0)  # 4: x_{t-1}",
        "x_tm1 = p_step(s, x_t, t, eps_hat, 0 * z, sigma2, clip_x_0) + at("
        "s.sigma2(sigma2), t, x_t) ** 0.25 * z",
    ),
    Known(
        "algorithm2",
        "M34",
        "s, eps_theta = s.to(x_T.device), asked(eps_theta)\n    x_t = x_T",
        "s = s.to(x_T.device)\n"
        "    if isinstance(eps_theta, nn.Module):\n        eps_theta.eval()\n"
        "    x_t = x_T",
    ),
    Known(
        "algorithm2",
        "M34",
        "s, eps_theta = s.to(x_T.device), asked(eps_theta)\n    x_t = x_T",
        "s = s.to(x_T.device)\n"
        "    if isinstance(eps_theta, nn.Module):\n        eps_theta.eval()\n"
        "    eps_theta = torch.no_grad()(eps_theta)\n    x_t = x_T",
    ),
    Known(
        "algorithm2",
        "",
        "range(s.T, 0, -1)",
        "range(1, s.T + 1)",
        "t must go down, from T to 1",
    ),
    Known(
        "algorithm2",
        "",
        "randn_like(x_t, generator) if step > 1 else torch.zeros_like(x_t)  # 3",
        "torch.randn_like(x_t) if step > 1 else torch.zeros_like(x_t)",
        "the noise comes from torch's own generator, not from the one given",
    ),
    Known(
        "algorithm2",
        "",
        "yield step, x_t, x_0_hat.clamp(-1, 1) if clip_x_0 else x_0_hat",
        "yield step, x_t, x_0_hat",
        "with clip_x_0 the x̂_0 that is yielded is clamped too",
    ),
    # eq. 8
    Known(
        "L_tm1",
        "",
        "gaussian_kl(mu_tilde, beta_tilde_t, mu_theta, sigma2_t)",
        "gaussian_kl(mu_theta, sigma2_t, mu_tilde, beta_tilde_t)",
        "q and p_θ have changed places: KL(q ‖ p) is not KL(p ‖ q)",
    ),
    Known(
        "L_tm1",
        "",
        "_sum(gaussian_kl(mu_tilde, beta_tilde_t, mu_theta, sigma2_t))",
        "_sum((mu_tilde - mu_theta).square() / (2 * sigma2_t))",
        "the C of eq. 8 is missing: with σ_t² = β_t it is not 0",
    ),
    Known(
        "L_tm1",
        "",
        "_sum(gaussian_kl(mu_tilde, beta_tilde_t, mu_theta, sigma2_t))",
        "gaussian_kl(mu_tilde, beta_tilde_t, mu_theta, sigma2_t).flatten(1).mean(1)",
        "the bound is a sum over a picture's numbers, not their mean",
    ),
    Known(
        "L_tm1",
        "",
        "gaussian_kl(mu_tilde, beta_tilde_t, mu_theta, sigma2_t)",
        "gaussian_kl(x_0, beta_tilde_t, x_0_hat, sigma2_t)",
        "the means are eq. 7's for x_0 and x̂_0, not x_0 and x̂_0 themselves",
    ),
    # eq. 12
    Known(
        "eq12",
        "",
        "torch.as_tensor(beta**2 / (",
        "torch.as_tensor(beta / (",
        "β_t is squared in eq. 12",
    ),
    Known(
        "eq12",
        "",
        "(2 * sigma2_t * alpha * (1 - alpha_bar))",
        "(sigma2_t * alpha * (1 - alpha_bar))",
        "the 2 of eq. 12 is missing",
    ),
    Known(
        "eq12",
        "",
        "(2 * sigma2_t * alpha * (1 - alpha_bar))",
        "(2 * sigma2_t**2 * alpha * (1 - alpha_bar))",
        "s.sigma2 holds σ_t², which is squared already",
    ),
    Known(
        "eq12",
        "",
        "(2 * sigma2_t * alpha * (1 - alpha_bar))",
        "(2 * sigma2_t * alpha_bar * (1 - alpha_bar))",
        "ᾱ_t stands where α_t should",
    ),
    Known(
        "eq12",
        "",
        "(2 * sigma2_t * alpha * (1 - alpha_bar))",
        "(2 * sigma2_t * alpha * (1 - alpha_bar).sqrt())",
        "1-ᾱ_t itself stands in eq. 12, not its root",
    ),
    # eq. 14
    Known(
        "eq14",
        "M14",
        "(eps - eps_hat).square()",
        "(at(s.beta / (1 - s.alpha_bar), t, eps).sqrt() * eps - eps_hat).square()",
    ),
    Known("eq14", "M15", "(eps - eps_hat).square()", "(x_0 - eps_hat).square()"),
    Known("eq14", "M16", "(eps - eps_hat).square()", "(eps - eps_hat).abs()"),
    Known(
        "eq14",
        "P9",
        "(eps - eps_hat).square().mean()",
        "(eps - eps_hat).square().flatten(1).sum(1).mean()",
    ),
    Known(
        "eq14",
        "",
        "(eps - eps_hat).square().mean()",
        "(eps - eps_hat).square().sum()",
        "the sum is over the batch too: the loss would grow with the batch",
    ),
    Known(
        "eq14",
        "",
        "(eps - eps_hat).square().mean()",
        "(eps - eps_hat).mean().square()",
        "the mean is of the squares; errors of both signs must not cancel",
    ),
    Known(
        "eq14",
        "",
        "eps_hat = eps_theta(x_t, t, *c)",
        "eps_hat = eps_theta(x_0, t, *c)",
        "the network must see x_t, not x_0",
    ),
    # Algorithm 1
    Known("algorithm1", "M5", "torch.randint(1, s.T + 1", "torch.randint(2, s.T + 1"),
    Known("algorithm1", "M5b", "torch.randint(1, s.T + 1", "torch.randint(1, s.T"),
    Known(
        "algorithm1",
        "",
        "torch.randint(1, s.T + 1",
        "torch.randint(0, s.T",
        "t counts from 0, as an array does; here t is the paper's, 1..T",
    ),
    Known(
        "algorithm1",
        "",
        "torch.randint(1, s.T + 1",
        "torch.randint(0, s.T + 1",
        "t = 0 is drawn: there is no noise at t = 0, and nothing to learn",
    ),
    Known(
        "algorithm1",
        "",
        "        optimiser.zero_grad()\n",
        "",
        "gradients add up from step to step: nothing sets them to zero",
    ),
    Known(
        "algorithm1",
        "",
        "        clip_grad_norm_(theta, h.max_norm)\n",
        "",
        "the gradient's norm is not bounded",
    ),
    Known(
        "algorithm1",
        "",
        '        optimiser.param_groups[0]["lr"] = learning_rate(h, step)\n',
        "",
        "the learning rate is not set: no warm-up",
    ),
    Known(
        "algorithm1",
        "",
        "        ema.update()\n",
        "",
        "the moving average is never updated",
    ),
    Known(
        "algorithm1",
        "",
        "        optimiser.step()\n        optimiser.zero_grad()\n"
        "        ema.update()\n",
        "        ema.update()\n        optimiser.step()\n"
        "        optimiser.zero_grad()\n",
        "the average is taken before the step: it is one step behind",
    ),
    Known(
        "algorithm1",
        "",
        "manual_seed(random_seed(h.seed, step))",
        "manual_seed(h.seed)",
        "each step draws the same: the seed must depend on the step",
    ),
    Known(
        "algorithm1",
        "",
        "eps = randn_like(x_0, generator)",
        "eps = randn_like(x_0[:1], generator).expand_as(x_0)",
        "all pictures of the batch have the same ε",
    ),
    Known(
        "algorithm1",
        "",
        "(B,), generator=generator, device=device)",
        "(1,), generator=generator, device=device).expand(B)",
        "all pictures of the batch have the same t",
    ),
    # appendix B
    Known(
        "ema",
        "D9",
        "torch._foreach_lerp_(self._ema, self._theta, 1 - self.decay)",
        "torch._foreach_lerp_(self._ema, self._theta, 1 - self.decay)\n"
        "        torch._foreach_copy_(self._theta, self._ema)",
    ),
    Known(
        "ema",
        "",
        "self._theta, 1 - self.decay",
        "self._theta, self.decay",
        "decay and 1-decay have changed places",
    ),
    Known(
        "ema",
        "",
        "            of_ema.copy_(of_net)",
        "            pass",
        "the buffers are not copied: a batch norm's statistics stay those of the start",
    ),
    Known(
        "embedding",
        "M28",
        "torch.cat([angle.sin(), angle.cos()], dim=1)",
        "torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)",
    ),
    Known(
        "embedding",
        "M28",
        "    omega = torch.exp(-math.log(10000) * i / (dim // 2 - 1))\n"
        "    angle = t.double()[:, None] * omega\n"
        "    emb = torch.cat([angle.sin(), angle.cos()], dim=1)",
        "    omega = torch.exp(-math.log(10000) * i / (dim // 2))\n"
        "    angle = t.double()[:, None] * omega\n"
        "    emb = torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)",
    ),
    Known(
        "embedding",
        "",
        "/ (dim // 2 - 1)",
        "/ (dim // 2)",
        "the last frequency is 1/10000: the exponent's denominator is dim/2 - 1",
    ),
    Known(
        "embedding",
        "",
        "torch.cat([angle.sin(), angle.cos()], dim=1)",
        "torch.cat([angle.cos(), angle.sin()], dim=1)",
        "the cosines come first; here, as in the authors' code, the sines do",
    ),
    Known(
        "eq13",
        "P10",
        "    log_b: Tensor = torch.special.log_ndtr(b)",
        "    log_a, log_b = (((c + 0.044715 * c**3) * (2 / math.pi) ** 0.5).tanh()"
        ".add(1).div(2).clamp(min=1e-12).log() for c in (a, b))",
    ),
    Known("eq13", "P10b", ".masked_fill(level == 255, FAR)", ""),
    Known(
        "eq13",
        "P10b",
        "    a = ((low - mean) / variance**0.5).masked_fill(level == 0, -FAR)\n"
        "    b = ((high - mean) / variance**0.5).masked_fill(level == 255, FAR)",
        "    a, b = (low - mean) / variance**0.5, (high - mean) / variance**0.5",
    ),
    Known(
        "eq13",
        "",
        "    right = a > -b\n"
        "    a, b = torch.where(right, -b, a), torch.where(right, -a, b)\n",
        "    return (torch.special.ndtr(b) - torch.special.ndtr(a)).log()\n",
        "far from the mean Φ(b) - Φ(a) cancels, and the logarithm is -∞ or rough",
    ),
    Known(
        "eq13",
        "",
        "    right = a > -b\n"
        "    a, b = torch.where(right, -b, a), torch.where(right, -a, b)\n",
        "    p = torch.special.ndtr(b) - torch.special.ndtr(a)\n"
        "    return p.clamp(min=1e-12).log()\n",
        "the floor of 1e-12 hides what Φ(b) - Φ(a) loses far from the mean, as it does "
        "in the authors' code",
    ),
    Known(
        "eq13",
        "",
        "    a = ((low - mean) / variance**0.5).masked_fill(level == 0, -FAR)\n"
        "    b = ((high - mean) / variance**0.5).masked_fill(level == 255, FAR)",
        "    a = ((low - mean) / variance).masked_fill(level == 0, -FAR)\n"
        "    b = ((high - mean) / variance).masked_fill(level == 255, FAR)",
        "the division is by σ_1, the root of the variance",
    ),
    Known(
        "eq13",
        "",
        "    a = ((low - mean) / variance**0.5).masked_fill(level == 0, -FAR)\n"
        "    b = ((high - mean) / variance**0.5).masked_fill(level == 255, FAR)",
        "    low = low.masked_fill(level == 0, -math.inf)\n"
        "    high = high.masked_fill(level == 255, math.inf)\n"
        "    a, b = (low - mean) / variance**0.5, (high - mean) / variance**0.5",
        "with ∞ itself the derivative is nan; FAR, which is 1e30, stands for it",
    ),
    Known(
        "block",
        "M21",
        "out: Tensor = self.shortcut(x) + h",
        "out = (x if x.shape == h.shape else nn.Conv2d(x.shape[1], h.shape[1], 1).to("
        "x)(x)) + h",
    ),
    Known(
        "block",
        "M22",
        "h = h + self.dense(emb)[:, :, None, None]",
        "h = self.dense(emb)[:, :, None, None].expand_as(h)",
        "of another block",
    ),
    Known(
        "block",
        "P4b",
        "        h = h + self.dense(emb)[:, :, None, None]\n",
        "",
        "of the whole network",
    ),
    Known(
        "block",
        "D5",
        "h = self.conv1(F.silu(self.norm1(x)))",
        "h = self.conv1(F.silu(x))",
        "of attention",
    ),
    Known(
        "block",
        "D5",
        "self.dropout(F.silu(self.norm2(h)))",
        "self.dropout(F.silu(h))",
        "of attention",
    ),
    Known(
        "block",
        "",
        "out: Tensor = self.shortcut(x) + h",
        "out: Tensor = h",
        "the shortcut is missing: a residual block adds to x",
    ),
    Known(
        "block",
        "",
        "self.conv2(self.dropout(F.silu(self.norm2(h))))",
        "self.conv2(F.silu(self.norm2(h)))",
        "dropout is missing",
    ),
)

INFERENCE = tuple(
    Known(
        e.name,
        "M32",
        f"def {e.function}(\n" if e.name in ("eq7", "step") else f"def {e.function}(",
        "import torch\n\n\n@torch.inference_mode()\n"
        + (
            f"def {e.function}(\n"
            if e.name in ("eq7", "step")
            else f"def {e.function}("
        ),
    )
    for e in EXERCISES
    if e.name in ("eq2", "eq4", "eq7", "eq15", "eq11", "step")
)

SHIFTED = tuple(
    Known(
        name,
        "M4" if (name, k) == ("eq4", 1) else "",
        "",
        "",
        f"this is the equation at t {'+' if k > 0 else '-'} 1: here tables have an "
        f"entry for t = 0, so that index t is the paper's t",
        k,
    )
    for name in ("eq2", "eq4", "eq7", "eq15", "eq11", "step", "L_tm1", "eq12")
    for k in (1, -1)
)

KNOWN = PATCHES + INFERENCE + SHIFTED


def known_of(e: Exercise) -> list[Known]:
    return [k for k in KNOWN if k.exercise == e.name]


@functools.cache
def wrong(k: Known) -> Callable[..., Any]:
    """The function, or the class, with the mistake in it."""
    e = NAMED[k.exercise]
    if k.shift:
        return shifted(e, k.shift)
    module = importlib.import_module(f"tinyddpm.{e.module}")
    text = patched(k, Path(module.__file__ or "").read_text(encoding="utf-8"))
    names = {"__name__": module.__name__, "__package__": "tinyddpm"}
    exec(compile(text, f"<{k.id or 'mistake'} in {e.module}>", "exec"), names)
    found: Callable[..., Any] = names[e.function.partition(".")[0]]  # type: ignore
    return found


def patched(k: Known, text: str) -> str:
    """The module's text with the mistake in it."""
    if text.count(k.old) != 1:
        times = f"{k.old!r} occurs {text.count(k.old)} times"
        raise ValueError(f"{k.exercise} {k.id}: {times} in {NAMED[k.exercise].module}")
    return text.replace(k.old, k.new)


def shifted(e: Exercise, by: int) -> Callable[..., Any]:
    """Our function at t + by; no answer where a t would leave 1..T, or for t = 0."""
    right = ours(e.path)
    where = right.__code__.co_varnames.index("t")
    least = 2 if e.name == "L_tm1" else 1

    def f(s: Any, *args: Any, **kwargs: Any) -> Any:
        given = [s, *args]
        t = given[where]
        if int((t + by).min()) < least or int((t + by).max()) > s.T:
            return SKIP
        if e.name == "eq12" and int(t.min()) + by < 2:
            return SKIP  # β̃_1 = 0
        given[where] = t + by
        return right(*given, **kwargs)

    return f


def said(k: Known) -> str:
    """What the grader says of a mistake, by its published name if it has one."""
    if not k.id:
        first = k.says.partition(" ")[0]  # a word, which begins a sentence, or a letter
        begin = first.capitalize() if first.islower() and len(first) > 2 else first
        return f"{begin}{k.says[len(first) :]}."
    who, right, sources = published(k.id)
    if k.says and not k.shift:
        return f"This is the slip of {k.id}, published {k.says}: {who}{sources}."
    return f"This is {k.id}, a published mistake: {who}{sources}.\nRight: {right}."


SOURCES = {
    **{f"S{i}": f"text {i + 1} of docs/five-texts.md" for i in range(5)},
    "HO": "the authors' code",
    "ID": "improved-diffusion",
    "LU": "lucidrains/denoising-diffusion-pytorch",
    "HF": "diffusers",
    "SM": "smalldiffusion",
    "TI": "tiny-diffusion",
    "LA": "labml",
    "MI": "minDiffusion",
    "W8": "w86763777/pytorch-ddpm",
}


def published(name: str) -> tuple[str, str, str]:
    """Where a mistake stands, what is right, and what the abbreviations mean."""
    from tests.mutation.mistakes import MISTAKES

    m = next(m for m in MISTAKES if name.split(", ")[0] in m.name.split(", "))
    words = m.who.replace(":", " ").replace(",", " ").split()
    meant = dict.fromkeys(f"{w} is {SOURCES[w]}" for w in words if w in SOURCES)
    return m.who, m.right, f" ({'; '.join(meant)})" if meant else ""
