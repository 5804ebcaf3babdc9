"""Exact noise predictors for data whose law is known, and the least L_simple there is.

They are ε* for Gaussian data, a finite data set and the toy's gradients, each an
`eps_theta` (x_t, t) -> eps_hat like any other, with the floors that no network can get
below.

Eq. 14 is least, at every t, for ε*(x_t, t) = E[ε|x_t], by eq. 4
ε* = (x_t - √ᾱ_t E[x_0|x_t]) / √(1-ᾱ_t). What it leaves is the floor of L_simple at t,

    E‖ε - ε*‖² / D = ᾱ_t/(1-ᾱ_t) · E tr Cov(x_0|x_t) / D,

and since ε - ε* is uncorrelated with every function of x_t, any network f costs
E‖ε - f‖² = E‖ε - ε*‖² + E‖f - ε*‖²: the floor plus its distance from ε*.
Everything is computed in float64 and rounded once, to the dtype of x_t.
"""

import math

import torch
from torch import Tensor

from ..sampler import EpsTheta
from ..schedule import Schedule, at
from .gradients import gradient_ramp
from .levels import nodes, posterior


def gaussian_oracle(s: Schedule, mean: Tensor, cov: Tensor) -> EpsTheta:
    """ε* for data N(m, Σ): √(1-ᾱ_t) (ᾱ_t Σ + (1-ᾱ_t) I)⁻¹ (x_t - √ᾱ_t m)

    Args:
        s: the schedule.
        mean: m, (C, H, W) or any other shape of one item.
        cov: Σ, (D, D), symmetric, positive semi-definite.
    """
    m = mean.double()
    variance, axes = _eigen(m, cov)

    def eps_theta(x_t: Tensor, t: Tensor) -> Tensor:
        _check(s, x_t, t, m.shape)
        a = at(s.alpha_bar, t, x_t.flatten(1))
        centred = x_t.double().flatten(1) - a.sqrt() * m.to(x_t.device).flatten()
        u, lam = axes.to(x_t.device), variance.to(x_t.device)
        eps = (1 - a).sqrt() * (centred @ u / (a * lam + 1 - a)) @ u.T
        return eps.view_as(x_t).to(x_t.dtype)

    return eps_theta


def gaussian_nll(mean: Tensor, cov: Tensor, x_0: Tensor) -> Tensor:
    """-log N(x_0; m, Σ) = ½ (x_0-m)ᵀ Σ⁻¹ (x_0-m) + ½ log det(2π Σ), nats an item

    Args: mean and cov as in `gaussian_oracle`, Σ regular; x_0 (B, ...).
    Returns: (B,), float64.
    """
    variance, axes = _eigen(mean.double(), cov)
    if not bool((variance > 0).all()):
        raise ValueError("a singular covariance has no density, so no -log p(x_0)")
    along = (x_0.double() - mean.double()).flatten(1) @ axes
    return (along**2 / variance + (2 * math.pi * variance).log()).sum(1) / 2


def gaussian_floor(s: Schedule, cov: Tensor) -> Tensor:
    """The least L_simple at every t for data N(m, Σ): mean_i ᾱ_t λ_i/(ᾱ_t λ_i + 1-ᾱ_t)

    with λ_i the eigenvalues of Σ (D, D); for Σ = I it is ᾱ_t.
    Returns: (T+1,), float64; entry 0 is nan, for without noise there is no ε to find.
    """
    variance, _ = _eigen(cov.new_zeros(len(cov)), cov)
    signal = s.alpha_bar[1:, None] * variance
    floor = (signal / (signal + 1 - s.alpha_bar[1:, None])).mean(1)
    return torch.cat([floor.new_full((1,), math.nan), floor])


def finite_oracle(s: Schedule, points: Tensor) -> EpsTheta:
    """ε* for data uniform on N points p_i: E[x_0|x_t] = Σ_i w_i p_i,

    w = softmax_i( -‖x_t - √ᾱ_t p_i‖² / 2(1-ᾱ_t) ). One point gives the point mass.

    Args:
        s: the schedule.
        points: (N, C, H, W) or (N, ...); a point given twice counts twice.
    """
    if points.ndim < 2 or len(points) < 1:
        raise ValueError(
            f"points must be (N, ...) with N >= 1, got shape {tuple(points.shape)}"
        )
    centre = points.double().mean(0)
    around = (points.double() - centre).flatten(1)  # near 0, so that little cancels

    def eps_theta(x_t: Tensor, t: Tensor) -> Tensor:
        _check(s, x_t, t, centre.shape)
        p, c = around.to(x_t.device), centre.to(x_t.device)
        a = at(s.alpha_bar, t, x_t.flatten(1))
        x = x_t.double().flatten(1) - a.sqrt() * c.flatten()
        log_w = (a.sqrt() * x @ p.T - a / 2 * p.square().sum(1)) / (1 - a)
        mean = c + (log_w.softmax(1) @ p).view_as(x_t)
        return _eps(s, x_t, t, mean)

    return eps_theta


def gradient_oracle(s: Schedule, height: int, width: int) -> EpsTheta:
    """ε* for the toy's gradients x_0 = (1-g) a + g b, a and b uniform on 256 levels

    Channels are independent. In each, x_t tells of θ = (a, b) only through the two
    numbers Σ (1-g) x and Σ g x, or their least-squares fit θ̂, which is θ plus Gaussian
    noise: `levels.posterior` sums over the 256 x 256 pairs.

    Args:
        s: the schedule.
        height, width: of the pictures; any number of channels.
    """
    basis, G = _basis(height, width)
    fit = basis.T @ torch.linalg.inv(G)  # (HW, 2)

    def eps_theta(x_t: Tensor, t: Tensor) -> Tensor:
        if x_t.ndim != 4:
            raise ValueError(f"x_t must be (B, C, H, W), got {tuple(x_t.shape)}")
        _check(s, x_t, t, (x_t.shape[1], height, width))
        x = x_t.double().flatten(2)
        a = at(s.alpha_bar, t, x)
        theta_hat = x @ fit.to(x.device) / a.sqrt()  # (B, C, 2)
        colours = torch.empty_like(theta_hat)
        for step in set(t.tolist()):
            now = t == step
            rows = theta_hat[now].flatten(0, 1)
            theta, _ = posterior(rows, _snr(s, step), G.to(x.device))
            colours[now] = theta.view(-1, *theta_hat.shape[1:])
        mean = colours @ basis.to(x.device)
        return _eps(s, x_t, t, mean.view_as(x_t))

    return eps_theta


def gradient_floor(s: Schedule, height: int, width: int) -> Tensor:
    """The least L_simple at every t for the toy's gradients, by quadrature

    With λ = ᾱ_t/(1-ᾱ_t), y = θ̂ = θ + N(0, (λG)⁻¹) and m(y) = E[θ|y] the floor is
    λ/HW · E tr(G Cov(θ|y)). As E[θᵀGθ] = E[θᵀGy] = E[mᵀGy],

        E tr(G Cov(θ|y)) = E[θᵀGθ] - E[mᵀGm] = ∫ p(y) m(y)ᵀ G (y - m(y)) dy,

    a smooth integral in two dimensions, for which the trapezoid rule converges
    exponentially: to rounding, and to 1e-6 of 2/HW where noise is a tenth of a level.
    Two limits: 2/HW while the noise is wide against the levels but narrow against
    their range (a plane of 2 dimensions in HW), λ · Var(x_0) as ᾱ_t goes to 0.

    Returns: (T+1,), float64; entry 0 is nan, for without noise there is no ε to find.
    """
    _, G = _basis(height, width)
    floor = torch.full((s.T + 1,), math.nan, dtype=torch.float64)
    for t in range(1, s.T + 1):
        snr = _snr(s, t)
        axis, weight = nodes(snr, G)
        y = torch.cartesian_prod(axis, axis)
        m, log_p = posterior(y, snr, G)
        p = torch.outer(weight, weight).flatten() * log_p.exp()
        trace = ((m @ G) * (y - m)).sum(1)
        floor[t] = snr / (height * width) * (p * trace).sum() / p.sum()
    return floor


def _basis(height: int, width: int) -> tuple[Tensor, Tensor]:
    """x_0 = θᵀ (1-g, g): the two rows (2, HW), and their Gram matrix G (2, 2)"""
    g = gradient_ramp(height, width).flatten()
    basis = torch.stack([1 - g, g])
    return basis, basis @ basis.T


def _snr(s: Schedule, t: int) -> float:
    """λ = ᾱ_t/(1-ᾱ_t)"""
    alpha_bar = float(s.alpha_bar[t])
    return alpha_bar / (1 - alpha_bar)


def _eps(s: Schedule, x_t: Tensor, t: Tensor, mean: Tensor) -> Tensor:
    """ε* = (x_t - √ᾱ_t E[x_0|x_t]) / √(1-ᾱ_t)"""
    alpha_bar = at(s.alpha_bar, t, x_t)
    eps = (x_t - alpha_bar.sqrt() * mean) / (1 - alpha_bar).sqrt()
    return eps.to(x_t.dtype)


def _eigen(mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and -vectors of Σ, which must fit m and be a covariance."""
    D = mean.numel()
    sigma = cov.double()
    if sigma.shape != (D, D) or not torch.allclose(sigma, sigma.T):
        raise ValueError(
            f"cov must be symmetric and ({D}, {D}), for the {D} numbers of mean, got "
            f"shape {tuple(sigma.shape)}"
        )
    variance, axes = torch.linalg.eigh(sigma)
    if float(variance.min()) < -1e-12 * float(variance.abs().max()):
        raise ValueError(
            f"cov must not have negative eigenvalues, got {float(variance.min()):g}"
        )
    return variance.clamp(min=0), axes


def _check(s: Schedule, x_t: Tensor, t: Tensor, shape: tuple[int, ...]) -> None:
    at(s.alpha_bar, t, x_t)  # which refuses a wrong t
    if x_t.shape[1:] != torch.Size(shape):
        raise ValueError(
            f"this oracle knows items of shape {tuple(shape)}, got x_t of shape "
            f"{tuple(x_t.shape)}"
        )
