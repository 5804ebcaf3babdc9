"""The figures of the site, each computed by the package's own functions.

    python docs/figures.py DIR         # writes them all, to look at without the site

A graph is SVG inside its page, its lines and letters in the colour of the text around
it, so that it reads in a light and in a dark scheme. Pictures are PNG.
"""

import base64
import io
import math
import re
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Generator

from tinyddpm import (
    Schedule,
    bits_per_dim,
    constant_schedule,
    gradient_images,
    interpolate,
    linear_schedule,
    p_mean,
    p_sample_loop,
    p_step,
    predict_x_0,
    q_posterior,
    q_sample,
    q_step,
    quadratic_schedule,
    rate_distortion,
    weight,
)
from tinyddpm.beyond.oracle import (
    finite_oracle,
    gaussian_oracle,
    gradient_floor,
    gradient_oracle,
)
from tinyddpm.bound import log_decoder
from tinyddpm.sampler import EpsTheta

INK, FAINT = "#010203", "#040506"  # stand for the colour of the text, full and faint
BLUE, ORANGE, GREEN, RED = "#3987d6", "#d07d1e", "#2e9e63", "#d9544d"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tinyddpm",
    "font.size": 10.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True,
    "figure.max_open_warning": 0,
}
matplotlib.rcParams.update(STYLE)
torch.set_num_threads(1)  # the tensors are small
FIGURES: dict[str, Callable[[], Figure | np.ndarray]] = {}

# Table 4 of the paper: bits/dim sent and RMSE on 0..255 after so many reverse steps
TABLE_4 = np.array(
    [
        (0.00000, 67.60125),
        (0.00013, 60.97170),
        (0.00081, 54.18826),
        (0.00282, 46.12765),
        (0.00716, 38.03236),
        (0.01507, 30.80948),
        (0.02866, 24.43656),
        (0.05415, 18.47482),
        (0.11994, 12.02277),
        (1.77581, 0.95136),
    ]
)


def figure(
    make: Callable[[], Figure | np.ndarray],
) -> Callable[[], Figure | np.ndarray]:
    """Registers a function that gives a graph or a picture (H, W, 3) of bytes."""
    FIGURES[make.__name__] = make
    return make


@cache
def paper() -> Schedule:
    """The paper's schedule, T = 1000."""
    return linear_schedule(1000)


@cache
def toy() -> Schedule:
    """That of train_gradients.py, T = 100."""
    return linear_schedule(100)


@cache
def floor() -> torch.Tensor:
    """The least L_simple at every t for gradients of 4 × 4."""
    return gradient_floor(toy(), 4, 4)


def steps(s: Schedule, first: int = 1) -> torch.Tensor:
    return torch.arange(first, s.T + 1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def axes(
    xlabel: str = "t", ylabel: str = "", width: float = 4.2
) -> tuple[Figure, Axes]:
    fig, ax = plt.subplots(figsize=(width, 2.7))
    ax.set_xlabel(xlabel)
    ax.set_title(ylabel, loc="left")
    return fig, ax


# Sections 2 and 4: the schedule


@figure
def beta() -> Figure:
    """β_t and β̃_t of the paper's schedule."""
    fig, ax = axes(ylabel="β_t and β̃_t")
    s = paper()
    ax.plot(steps(s), s.beta[1:], color=BLUE, label="β_t")
    ax.plot(steps(s), s.beta_tilde[1:], "--", color=ORANGE, label="β̃_t")
    ax.legend()
    return fig


@figure
def beta_start() -> Figure:
    """The same two for the first steps, where they differ."""
    fig, ax = axes(ylabel="the first twenty steps")
    s = paper()
    t = slice(1, 21)
    ax.plot(range(1, 21), 1e4 * s.beta[t], "o-", ms=3, color=BLUE, label="10⁴ β_t")
    ax.plot(
        range(1, 21), 1e4 * s.beta_tilde[t], "o--", ms=3, color=ORANGE, label="10⁴ β̃_t"
    )
    ax.set_xticks([1, 5, 10, 15, 20])
    ax.legend()
    return fig


@figure
def alpha_bar() -> Figure:
    """What is left of x_0 in x_t, and how much noise there is."""
    fig, ax = axes(ylabel="√ᾱ_t of x_0, √(1-ᾱ_t) of noise")
    s = paper()
    ax.plot(s.alpha_bar.sqrt(), color=BLUE, label="√ᾱ_t")
    ax.plot((1 - s.alpha_bar).sqrt(), color=ORANGE, label="√(1-ᾱ_t)")
    ax.legend()
    return fig


@figure
def snr() -> Figure:
    """Signal to noise."""
    fig, ax = axes(ylabel="signal to noise, ᾱ_t / (1-ᾱ_t)")
    s = paper()
    ax.semilogy(steps(s), (s.alpha_bar / (1 - s.alpha_bar))[1:], color=BLUE)
    ax.axhline(1, color=FAINT, lw=0.8)
    return fig


@figure
def end_points() -> Figure:
    """√ᾱ_t for T = 1000 and T = 100, end points kept and scaled."""
    fig, ax = axes("t / T", "√ᾱ_t: what x_t keeps of x_0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warning is what the figure is about
        kept = linear_schedule(100, 1e-4, 0.02)
    for s, style, color, label in (
        (kept, "-", RED, "T = 100, β from 10⁻⁴ to 0.02"),
        (toy(), "-", BLUE, "T = 100, β scaled by 10"),
        (paper(), ":", INK, "T = 1000, the paper"),
    ):
        u = torch.linspace(0, 1, s.T + 1)
        ax.plot(u, s.alpha_bar.sqrt(), style, color=color, label=label)
    ax.set_ylim(0, 1.5)
    ax.set_yticks([0, 0.5, 1])
    ax.legend(loc="upper right", fontsize=9)
    return fig


@figure
def other_schedules() -> Figure:
    """√ᾱ_t of the three schedules of appendix B."""
    fig, ax = axes(ylabel="√ᾱ_t for three schedules, T = 1000")
    for s, color, label in (
        (constant_schedule(), ORANGE, "constant"),
        (paper(), BLUE, "linear"),
        (quadratic_schedule(), GREEN, "quadratic"),
    ):
        ax.plot(s.alpha_bar.sqrt(), color=color, label=label)
    ax.legend()
    return fig


# Eq. 2 and 4


@figure
def walk() -> Figure:
    """Eq. 2 step by step for one pixel, and eq. 4's mean and two deviations."""
    fig, ax = axes(ylabel="one pixel, x_0 = 0.8: 12 walks of eq. 2", width=5.6)
    s, n = paper(), 12
    generator, x = seeded(1), torch.full((n,), 0.8, dtype=torch.float64)
    walks = [x]
    for t in range(1, s.T + 1):
        z = torch.randn(n, generator=generator, dtype=torch.float64)
        x = q_step(s, x, torch.full((n,), t), z)
        walks.append(x)
    every = slice(0, s.T + 1, 10)
    t = torch.arange(s.T + 1)[every]
    ax.plot(t, torch.stack(walks)[every], lw=0.6, alpha=0.55, color=BLUE)
    x_0 = torch.full((len(t),), 0.8, dtype=torch.float64)
    mean = q_sample(s, x_0, t, torch.zeros_like(x_0))
    deviation = q_sample(s, torch.zeros_like(x_0), t, torch.ones_like(x_0))
    ax.plot(t, mean, color=ORANGE, lw=2.2, label="eq. 4: mean")
    for sign in (-2, 2):
        label = "eq. 4: mean ± 2 deviations" if sign > 0 else None
        ax.plot(t, mean + sign * deviation, "--", color=ORANGE, label=label)
    ax.set_ylim(-3.2, 4.4)
    ax.legend(loc="upper left", ncols=2, fontsize=9)
    return fig


def picture(seed: int = 4, size: int = 16) -> torch.Tensor:
    """A gradient, (1, 3, H, W), on the 8-bit grid."""
    x = gradient_images(1, size, size, seeded(seed))
    return ((x + 1) * 127.5).round() / 127.5 - 1


def rows(pictures: list[torch.Tensor], scale: int = 4, gap: int = 4) -> np.ndarray:
    """Rows of pictures, each (N, 3, H, W) in [-1, 1], with transparent gaps."""
    lines = []
    for row in pictures:
        v = ((row.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        v = v.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
        line = torch.zeros(v.shape[2] + gap, len(v) * (v.shape[3] + gap) - gap, 4)
        for i, item in enumerate(v):
            at = i * (v.shape[3] + gap)
            line[: v.shape[2], at : at + v.shape[3], :3] = item.permute(1, 2, 0).float()
            line[: v.shape[2], at : at + v.shape[3], 3] = 255
        lines.append(line)
    return torch.cat(lines).to(torch.uint8).numpy()[:-gap]


@figure
def forward_strip() -> np.ndarray:
    """Eq. 4: x_t of one picture, the same ε throughout."""
    s, x_0 = paper(), picture()
    t = torch.tensor([0, 50, 100, 200, 300, 500, 700, 1000])
    eps = torch.randn(x_0.shape, generator=seeded())
    many = x_0.expand(len(t), -1, -1, -1)
    return rows([q_sample(s, many, t, eps.expand_as(many))])


# Eq. 6, 7


def product(t: int) -> Figure:
    """Eq. 7 for one pixel: two Gaussians in x_{t-1}, and their product."""
    s = paper()
    x_0, at, zero = torch.tensor([0.5]).double(), torch.tensor([t]), torch.zeros(1)
    zero = zero.double()
    x_t = q_sample(s, x_0, at, torch.full((1,), -1.2).double())
    mean_0 = float(q_sample(s, x_0, at - 1, zero))
    deviation_0 = float(q_sample(s, zero, at - 1, torch.ones(1).double()))
    scale = float(q_step(s, torch.ones(1).double(), at, zero))
    deviation_t = float(s.beta[t].sqrt()) / scale
    mu, beta_tilde = q_posterior(s, x_t, x_0, at)
    sigma = float(beta_tilde.sqrt())
    fig, ax = axes("x_{t-1}", f"t = {t}")
    low = min(mean_0 - 3.2 * deviation_0, float(x_t) / scale - 3.2 * deviation_t)
    high = max(mean_0 + 3.2 * deviation_0, float(x_t) / scale + 3.2 * deviation_t)
    x = np.linspace(low, high, 300)
    for mean, deviation, color, style, label in (
        (mean_0, deviation_0, BLUE, "-", "q(x_{t-1} | x_0)"),
        (float(x_t) / scale, deviation_t, ORANGE, "-", "q(x_t | x_{t-1})"),
        (float(mu), sigma, GREEN, "-", "their product, eq. 7"),
    ):
        y = np.exp(-(((x - mean) / deviation) ** 2) / 2)
        ax.plot(x, y, style, color=color, label=label)
        if color == GREEN:
            ax.fill_between(x, y, color=color, alpha=0.25, lw=0)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    if t == 2:
        ax.set_ylim(0, 1.75)
        ax.legend(loc="upper left", fontsize=9)
    else:
        ax.set_ylim(0, 1.3)
    return fig


for _t in (2, 20, 100, 400):
    FIGURES[f"product_{_t}"] = lambda t=_t: product(t)


@figure
def shares() -> Figure:
    """Eq. 7's weight of x_0 and of x_t."""
    fig, ax = axes(ylabel="eq. 7: μ̃_t = c_0 x_0 + c_t x_t")
    s = paper()
    t = steps(s)
    one, zero = torch.ones(s.T).double(), torch.zeros(s.T).double()
    ax.semilogx(t, q_posterior(s, zero, one, t)[0], color=BLUE, label="c_0")
    ax.semilogx(t, q_posterior(s, one, zero, t)[0], color=ORANGE, label="c_t")
    ax.legend()
    return fig


# Eq. 3, 5, 8, 12, 14


@cache
def gradient_bounds() -> dict[str, torch.Tensor]:
    """L_{t-1} on 48 gradients: the exact ε*, one blind to neighbours, and the floor."""
    s, size = toy(), 4
    x_0 = picture_batch(48, size)
    flat = gradient_images(4000, size, size, seeded(9)).double()
    mean = flat.mean(0)
    cov = torch.cov(flat.flatten(1).T)
    exact = bits_per_dim(s, gradient_oracle(s, size, size), x_0, seeded(1))
    alone = torch.diag(cov.diag())  # each number for itself: no two pixels are alike
    blind = bits_per_dim(s, gaussian_oracle(s, mean, alone), x_0, seeded(1))
    t = steps(s, 2)
    D = x_0[0].numel()
    least = weight(s, t) * floor()[2:]
    ratio = s.beta_tilde[2:] / s.beta[2:]
    C = (ratio - 1 - ratio.log()) / 2
    bits = 1 / math.log(2)
    return {
        "t": t,
        "exact": exact.L_tm1.mean(0)[2:],
        "alone": blind.L_tm1.mean(0)[2:],
        "floor": (least + C) * bits,
        "C": C * bits,
        "rate": rate_distortion(exact)[0],
        "distortion": rate_distortion(exact)[1],
        "total": exact.total.mean(),
        "L_0": exact.L_0.mean(),
        "L_T": exact.L_T.mean(),
        "D": torch.tensor(D),
    }


def picture_batch(n: int, size: int) -> torch.Tensor:
    x = gradient_images(n, size, size, seeded(2))
    return ((x + 1) * 127.5).round() / 127.5 - 1


@figure
def terms() -> Figure:
    """L_{t-1} by t with its floor."""
    fig, ax = axes(ylabel="L_{t-1} in bits/dim, gradients of 4 × 4", width=5.6)
    b = gradient_bounds()
    ax.semilogy(b["t"], b["alone"], color=ORANGE, label="an ε_θ blind to neighbours")
    ax.semilogy(b["t"], b["exact"], color=BLUE, lw=1, label="ε*, 48 pictures")
    ax.semilogy(b["t"], b["floor"], "--", color=INK, label="the floor, by quadrature")
    ax.semilogy(b["t"], b["C"], ":", color=GREEN, label="C of eq. 8 (σ_t² = β_t)")
    ax.legend(fontsize=9)
    return fig


@figure
def weights() -> Figure:
    """Eq. 12's factor, and that of L_simple."""
    fig, ax = axes(ylabel="eq. 12: what L weighs ‖ε - ε_θ‖² with", width=5.6)
    s = paper()
    t, u = steps(s), steps(s, 2)
    ax.loglog(t, weight(s, t), color=BLUE, label="σ_t² = β_t")
    ax.loglog(u, weight(s, u, "beta_tilde"), "--", color=ORANGE, label="σ_t² = β̃_t")
    mean = float(weight(s, t).mean())
    ax.loglog(t, torch.full((s.T,), mean), ":", color=INK, label="L_simple, scaled")
    ax.legend()
    return fig


@figure
def floors() -> Figure:
    """The least L_simple at every t, for three laws of x_0."""
    fig, ax = axes(ylabel="the least L_simple there is, by t", width=5.6)
    s = toy()
    t = steps(s)
    ax.plot(t, s.alpha_bar[1:], color=ORANGE, label="x_0 ~ N(0, I): ᾱ_t")
    ax.plot(t, floor()[1:], color=BLUE, label="gradients of 4 × 4")
    ax.plot(t, torch.zeros(s.T), color=GREEN, label="one picture: 0")
    ax.legend()
    return fig


@figure
def losses() -> Figure:
    """One network, two batches: how much of L_simple is the luck of t."""
    fig, ax = axes("batch", "L_simple of one finished ε*, batch after batch", width=5.6)
    s, n, B = toy(), 120, 128
    generator = seeded(3)
    t = torch.randint(1, s.T + 1, (n, B), generator=generator)
    luck = floor()[t].mean(1)
    ax.plot(luck, color=BLUE, lw=1, label="a batch's mean over its own 128 t")
    ax.axhline(
        float(floor()[1:].mean()), color=INK, ls="--", label="the mean over all t"
    )
    ax.set_ylim(bottom=0)
    ax.legend(loc="lower left", fontsize=9)
    return fig


# Eq. 13


def bins(mean: float, low: int, high: int, title: str) -> Figure:
    """Eq. 13: the density's integral over each level's bin."""
    fig, ax = axes("level v of x = v/127.5 - 1", title)
    sigma2 = float(paper().beta[1])
    level = torch.arange(256).double()
    p = log_decoder(level, torch.full((256,), mean / 127.5 - 1).double(), sigma2).exp()
    v = np.arange(low, high + 1)
    ax.bar(v, p[low : high + 1], width=1, color=BLUE, alpha=0.35, ec=BLUE, lw=1)
    sigma = 127.5 * math.sqrt(sigma2)
    x = np.linspace(low - 3, high + 0.5, 300)
    density = np.exp(-(((x - mean) / sigma) ** 2) / 2) / (
        sigma * math.sqrt(2 * math.pi)
    )
    ax.plot(x, density, color=ORANGE)
    ax.set_xlim(low - (3 if low == 0 else 0.5), high + 0.5)
    for at, y in zip(v, p[low : high + 1], strict=True):
        if y > 0.02:
            ax.text(at, y + 0.01, f"{100 * y:.0f} %", ha="center", fontsize=9)
    ax.set_ylim(0, 0.62)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    return fig


@figure
def bins_inside() -> Figure:
    """A mean between two levels."""
    return bins(127.3, 122, 132, "μ at level 127.3")


@figure
def bins_at_the_end() -> Figure:
    """A mean near -1: the first bin reaches to -∞."""
    return bins(0.4, 0, 6, "μ at level 0.4: the first bin reaches to -∞")


# Eq. 11, 15, Algorithm 2


@figure
def progress() -> np.ndarray:
    """Figure 6 of the paper: x_t above x̂_0 along Algorithm 2, with the exact ε*."""
    s, size = toy(), 8
    x_T = torch.randn(1, 3, size, size, generator=seeded(5))
    shown = {100, 90, 75, 60, 40, 20, 5, 0}
    noisy, seen = [], []
    for t, x_t, x_0_hat in p_sample_loop(
        s, gradient_oracle(s, size, size), x_T, seeded(6)
    ):
        if t in shown:
            noisy.append(x_t)
            seen.append(x_0_hat)
    return rows([torch.cat(noisy), torch.cat(seen)], scale=8)


@figure
def shared_x_t() -> np.ndarray:
    """Figure 7 of the paper: x_0 ~ p_θ(x_0|x_t) from one x_t, a row for each t."""
    s, size, n = toy(), 8, 6
    eps_theta = gradient_oracle(s, size, size)
    x_T = torch.randn(1, 3, size, size, generator=seeded(7))
    frozen = {
        t: x_t
        for t, x_t, _ in p_sample_loop(s, eps_theta, x_T, seeded(8))
        if t in (100, 75, 50, 10)
    }
    lines = []
    for t, x_t in frozen.items():
        ends = from_step(s, eps_theta, x_t.expand(n, -1, -1, -1), t, seeded(100))
        lines.append(torch.cat([x_t, ends]))
    return rows(lines, scale=8)


def from_step(
    s: Schedule, eps_theta: EpsTheta, x_t: torch.Tensor, t: int, generator: Generator
) -> torch.Tensor:
    """Algorithm 2 from step t on: x_0 ~ p_θ(x_0|x_t) for each x_t of a batch."""
    for step in range(t, 0, -1):
        at = torch.full((len(x_t),), step)
        noise = torch.randn(x_t.shape, generator=generator)
        z = noise if step > 1 else torch.zeros_like(x_t)
        x_t = p_step(s, x_t, at, eps_theta(x_t, at), z)
    return x_t


@figure
def mixtures() -> np.ndarray:
    """Figure 8 of the paper: two gradients mixed at several t."""
    s, size = toy(), 8
    a, b = gradient_images(2, size, size, seeded(14)).split(1)
    lam = torch.linspace(0, 1, 7)
    eps_theta = gradient_oracle(s, size, size)
    lines = []
    for t in (10, 40, 70, 100):
        mixed = interpolate(s, eps_theta, a, b, lam, t, seeded(3))[:, 0]
        lines.append(torch.cat([a, mixed, b]))
    return rows(lines, scale=7)


@figure
def two_variances() -> Figure:
    """Var x_t along Algorithm 2 for N(0, I) data and its exact ε*, by both σ²."""
    fig, ax = axes(ylabel="variance of x_t in Algorithm 2, x_0 ~ N(0, I)")
    s = linear_schedule(50)
    t = torch.arange(s.T, -1, -1)
    for choice, color in (("beta", BLUE), ("beta_tilde", ORANGE)):
        v = [1.0]
        for step in range(s.T, 0, -1):
            at = torch.tensor([step])
            one = torch.ones(1).double()
            eps = (1 - s.alpha_bar[step]).sqrt() * one
            c = float(p_mean(s, one, at, eps))
            noise = float(getattr(s, choice)[step]) if step > 1 else 0
            v.append(c * c * v[-1] + noise)
        label = {"beta": "σ_t² = β_t", "beta_tilde": "σ_t² = β̃_t"}[choice]
        ax.plot(t, v, color=color, label=label)
    ax.set_xlim(s.T, 0)
    ax.set_ylim(0.8, 1.05)
    ax.legend(loc="lower left")
    return fig


@figure
def reverse_walk() -> Figure:
    """Algorithm 2 for one pixel that is -0.7 or 0.7, with the exact ε*."""
    fig, ax = axes(ylabel="one pixel, x_0 = ±0.7: 24 runs of Algorithm 2", width=5.6)
    s = paper()
    eps_theta = finite_oracle(s, torch.tensor([[-0.7], [0.7]]))
    x_T = torch.randn(24, 1, generator=seeded(2))
    loop = list(p_sample_loop(s, eps_theta, x_T, seeded(3)))[::10]
    t = [step for step, _, _ in loop]
    ax.plot(t, torch.cat([x_t for _, x_t, _ in loop], 1).T, lw=0.7, color=BLUE)
    ax.set_xlim(s.T, -20)
    ax.plot([-12, -12], [-0.7, 0.7], "o", color=ORANGE, clip_on=False)
    return fig


@figure
def last_step() -> Figure:
    """The last step's noise in levels, if it were drawn."""
    fig, ax = axes(ylabel="deviation σ_t, in levels of 255")
    s = paper()
    t = steps(s)[:100]
    ax.plot(t, 127.5 * s.beta[1:101].sqrt(), color=BLUE, label="σ_t² = β_t")
    ax.plot(
        t, 127.5 * s.beta_tilde[1:101].sqrt(), "--", color=ORANGE, label="σ_t² = β̃_t"
    )
    ax.plot([1], [0], "o", color=RED, label="what Algorithm 2 adds at t = 1")
    ax.legend(fontsize=9)
    return fig


# Eq. 14: the exact ε* as a field


def field(t: int) -> Figure:
    """-ε* for two points in the plane."""
    s = paper()
    points = torch.tensor([[-0.9, -0.4], [0.9, 0.4]], dtype=torch.float64)
    axis = torch.linspace(-2.2, 2.2, 11, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    eps = finite_oracle(s, points)(x, torch.full((len(x),), t))
    fig, ax = plt.subplots(figsize=(3.0, 3.2))
    longest = float(eps.norm(dim=1).max())
    arrows = (-eps / longest).T
    ax.quiver(*x.T, *arrows, color=BLUE, angles="xy", width=0.007, scale=11)
    at = s.alpha_bar[t].sqrt() * points
    ax.plot(*at.T, "o", color=ORANGE, ms=6)
    ax.set_aspect("equal")
    ax.set_title(f"t = {t}", loc="left")
    ax.set_xticks([-2, 0, 2])
    ax.set_yticks([-2, 0, 2])
    return fig


for _t in (10, 200, 400, 900):
    FIGURES[f"field_{_t}"] = lambda t=_t: field(t)


@figure
def x_0_seen() -> Figure:
    """Eq. 15 for one pixel of a two-point law: E[x_0|x_t] against x_t."""
    fig, ax = axes("x_t", "x̂_0 by eq. 15 with ε*, x_0 = -0.7 or 0.7")
    s = paper()
    points = torch.tensor([[-0.7], [0.7]], dtype=torch.float64)
    x_t = torch.linspace(-2.5, 2.5, 160, dtype=torch.float64)[:, None]
    for t, color in ((50, BLUE), (300, ORANGE), (600, GREEN)):
        at = torch.full((len(x_t),), t)
        eps = finite_oracle(s, points)(x_t, at)
        ax.plot(x_t, predict_x_0(s, x_t, at, eps), color=color, label=f"t = {t}")
    ax.legend()
    return fig


# Section 4.3


@figure
def rates() -> Figure:
    """Rate and distortion: the paper's table 4, and the toy with the exact ε*."""
    fig, ax = axes("rate, bits/dim", "distortion: RMSE on 0..255", width=5.6)
    b = gradient_bounds()
    ax.plot(*TABLE_4.T, "o-", ms=4, color=ORANGE, label="CIFAR-10, the paper's table 4")
    ax.plot(b["rate"][1:], b["distortion"][1:], color=BLUE, label="gradients, exact ε*")
    ax.legend()
    return fig


@figure
def distortion_by_t() -> Figure:
    """The same against the reverse steps taken."""
    fig, ax = axes("share of the reverse steps taken", "distortion: RMSE on 0..255")
    b = gradient_bounds()
    ax.plot(np.arange(1, 11) / 10, TABLE_4[:, 1], "o-", ms=4, color=ORANGE)
    u = 1 - (torch.arange(1, toy().T + 1) - 1) / toy().T
    ax.plot(u, b["distortion"][1:], color=BLUE)
    return fig


@figure
def rate_by_t() -> Figure:
    """Bits sent against the reverse steps taken."""
    fig, ax = axes("share of the reverse steps taken", "rate, bits/dim")
    b = gradient_bounds()
    ax.plot(np.arange(1, 11) / 10, TABLE_4[:, 0], "o-", ms=4, color=ORANGE)
    u = 1 - (torch.arange(1, toy().T + 1) - 1) / toy().T
    ax.plot(u, b["rate"][1:], color=BLUE)
    return fig


# What a figure is on a page


@cache
def drawn(name: str, alt: str) -> str:
    """The figure as HTML."""
    made = FIGURES[name]()
    if isinstance(made, Figure):
        return f'<div class="panel">{svg(made, name, alt)}</div>'
    buffer = io.BytesIO()
    plt.imsave(buffer, made, format="png")
    data = base64.b64encode(buffer.getvalue()).decode()
    height, width = made.shape[:2]
    return (
        f'<img class="strip" src="data:image/png;base64,{data}" alt="{alt}" '
        f'width="{width}" height="{height}">'
    )


def svg(fig: Figure, name: str, alt: str) -> str:
    """Inline SVG in the page's colours; ids carry the figure's name, unused ones go."""
    buffer = io.StringIO()
    fig.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    plt.close(fig)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.S)
    used = set(re.findall(r"#([\w-]+)[\")]", text))
    text = re.sub(
        r' id="([^"]+)"',
        lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "",
        text,
    )
    text = re.sub(r"(href=\"#|url\(#)([\w-]+)", rf"\g<1>{name}-\g<2>", text)
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d)\d+", r"\1", tag[0]), text)
    text = text.replace(INK, "currentColor").replace(FAINT, "currentColor")
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"\n\s*", " ", text)
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups()  # type: ignore
    head = f'<svg role="img" aria-label="{alt}" viewBox="0 0 {width} {height}"'
    return re.sub(
        r"<svg[^>]*>", head + f' width="{float(width) * 4 / 3:.0f}">', text, count=1
    )


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.mkdir(parents=True, exist_ok=True)
    for name, make in FIGURES.items():
        made = make()
        if isinstance(made, Figure):
            made.savefig(place / f"{name}.png", dpi=80)
        else:
            plt.imsave(place / f"{name}.png", made)
