"""The paper's results by another road than the code under test, in NumPy float64.

Eq. 2 is iterated, Gaussians are multiplied by their precisions, Bayes' rule is taken on
a grid, derivatives are differences and integrals sums. No formula is copied from the
package: where one is proved in the paper, we start from what it is proved from.

`beta` is (T,), β_1..β_T; t is (B,), 1..T; pictures are (B, ...).
"""

import math

import numpy as np
from numpy import ndarray


def moments(beta: ndarray) -> tuple[ndarray, ndarray]:
    """(m, v), each (T + 1,), with q(x_t|x_0) = N(m_t x_0, v_t I): eq. 2 iterated

    Scaling by √(1-β) scales the mean by it and the variance by its square; the step's
    own noise adds β. What eq. 4 calls √ᾱ_t is m_t and 1-ᾱ_t is v_t. No subtraction
    of near numbers: v is right to the last digits even where β is 1e-6.
    """
    m, v = [1.0], [0.0]
    for b in beta.tolist():
        m.append(math.sqrt(1 - b) * m[-1])
        v.append((1 - b) * v[-1] + b)
    return np.array(m), np.array(v)


def beside(table: ndarray, t: ndarray, x: ndarray) -> ndarray:
    """table[t] as (B, 1, ..., 1) beside x (B, ...)."""
    return table[t].reshape(-1, *[1] * (x.ndim - 1))


def posterior(
    beta: ndarray, x_t: ndarray, x_0: ndarray, t: ndarray
) -> tuple[ndarray, ndarray]:
    """Eq. 6, 7: (mean, variance) of q(x_{t-1}|x_t, x_0) by multiplying Gaussians

    Bayes: ∝ q(x_t|x_{t-1}) q(x_{t-1}|x_0). As a function of x_{t-1} the first has mean
    x_t/√α_t and precision α_t/β_t, the second mean m_{t-1} x_0 and precision 1/v_{t-1}.
    Precisions add, means are averaged by them. (Both are multiplied by v_{t-1} β_t
    below, since at t = 1 the second is infinite.)
    """
    m, v = moments(beta)
    b = beside(np.concatenate([[0.0], beta]), t, x_t)
    m_tm1, v_tm1 = beside(m, t - 1, x_t), beside(v, t - 1, x_t)
    precision_1, precision_2 = v_tm1 * (1 - b), b
    precision = precision_1 + precision_2
    mean_1, mean_2 = x_t / np.sqrt(1 - b), m_tm1 * x_0
    mean = (precision_1 * mean_1 + precision_2 * mean_2) / precision
    return mean, v_tm1 * b / precision


def posterior_on_a_grid(
    beta: ndarray, x_t: float, x_0: float, t: int
) -> tuple[ndarray, ndarray]:
    """Eq. 6 by brute force, one pixel, t >= 2: (x, density) of x_{t-1} on a grid

    Both factors of Bayes' rule are tabulated where either is above e^-72 of its peak,
    with six points a standard deviation of the narrower, multiplied, and divided by
    their integral. (Sums over a grid that fine are exact for Gaussians.)
    """
    m, v = moments(beta)
    b = beta[t - 1]
    centres = np.array([x_t / math.sqrt(1 - b), m[t - 1] * x_0])
    sigmas = np.sqrt([b / (1 - b), v[t - 1]])
    low, high = (centres - 12 * sigmas).min(), (centres + 12 * sigmas).max()
    x, h = np.linspace(low, high, int(6 * (high - low) / sigmas.min()), retstep=True)
    log_p = -((x_t - math.sqrt(1 - b) * x) ** 2) / (2 * b)
    log_p -= (x - m[t - 1] * x_0) ** 2 / (2 * v[t - 1])
    p = np.exp(log_p - log_p.max())
    return x, p / (p.sum() * h)


def x_0_from_noise(beta: ndarray, x_t: ndarray, t: ndarray, eps: ndarray) -> ndarray:
    """Eq. 15: the x_0 that eq. 4 with this ε takes to x_t, by undoing eq. 2 t times

    Take the whole noise √v_t ε off; what is left is the mean, which every step of the
    forward process scaled by √(1-β): divide it out, from step t back to step 1.
    """
    _, v = moments(beta)
    x = x_t - np.sqrt(beside(v, t, x_t)) * eps
    for step in range(int(t.max()), 0, -1):
        scale = np.where(t >= step, math.sqrt(1 - beta[step - 1]), 1.0)
        x = x / scale.reshape(-1, *[1] * (x.ndim - 1))
    return x


def mean_from_noise(beta: ndarray, x_t: ndarray, t: ndarray, eps: ndarray) -> ndarray:
    """Eq. 11 from the score: E[√α_t x_{t-1}|x_t, x_0] = x_t + β_t ∂/∂x_t log q(x_t|x_0)

    (Tweedie's formula for the last step's noise.) The derivative is a central
    difference, which has no truncation error here, since log q is quadratic; x_0 is the
    one that x_t and ε stand for.
    """
    m, v = moments(beta)
    x_0 = x_0_from_noise(beta, x_t, t, eps)
    b = beside(np.concatenate([[0.0], beta]), t, x_t)
    variance = beside(v, t, x_t)
    mean = beside(m, t, x_t) * x_0

    def log_q(x: ndarray) -> ndarray:
        return -((x - mean) ** 2) / (2 * variance)

    h = np.sqrt(variance)
    score = (log_q(x_t + h) - log_q(x_t - h)) / (2 * h)
    return (x_t + b * score) / np.sqrt(1 - b)


def gaussian_kl(mean_q, variance_q, mean_p, variance_p) -> ndarray:
    """KL(q || p) in nats, number by number: ∫ q (log q - log p) by Gauss-Hermite

    log q - log p is a polynomial of degree 2, for which eight nodes are exact.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    total = 0.0
    for z, w in zip(nodes, weights / weights.sum(), strict=True):
        x = mean_q + np.sqrt(variance_q) * z
        log_q = -(z**2 + np.log(variance_q)) / 2
        log_p = -((x - mean_p) ** 2 / variance_p + np.log(variance_p)) / 2
        total = total + w * (log_q - log_p)
    return total


def noise_weight(beta: ndarray, t: ndarray, sigma2: ndarray) -> ndarray:
    """Eq. 12's factor: what an error of 1 in ε costs in nats, by way of eq. 7 and a KL

    For one pixel with x_t = 0: the two x_0 that it stands for under ε = 1000 and under
    ε = 0, the posterior mean for each (eq. 8), and the KL of the two Gaussians with
    variance σ_t² around them, over 1000². (Of 1, it would drown in rounding errors.)
    sigma2 is (B,), the σ_t² of each t.
    """
    zero, size = np.zeros(t.shape), 1000.0
    x_0 = x_0_from_noise(beta, zero, t, zero + size)
    mu_tilde, _ = posterior(beta, zero, x_0, t)
    mu_theta, _ = posterior(beta, zero, zero, t)
    return gaussian_kl(mu_tilde, sigma2, mu_theta, sigma2) / size**2


def bin_nodes(level: int, mean: float, sigma: float) -> tuple[float, ndarray, ndarray]:
    """(top, d, weights): an integral over the bin of 8-bit level 0..255 as a sum

    The bin is x ± 1/255 around x = level/127.5 - 1, open to -∞ at 0 and to +∞ at 255.
    Gauss-Legendre on 80 panels around the bin's highest point under N(mean, σ²), which
    is mean + σ top, as far as the density matters. The nodes are at mean + σ (top + d).
    """
    x = level / 127.5 - 1
    low = -math.inf if level == 0 else (x - 1 / 255 - mean) / sigma
    high = math.inf if level == 255 else (x + 1 / 255 - mean) / sigma
    top = min(max(low, 0.0), high)
    fall = 40 / max(1.0, abs(top))  # e^-40 of the peak or less
    edges = np.linspace(max(low - top, -fall), min(high - top, fall), 81)
    nodes, weights = np.polynomial.legendre.leggauss(20)
    half, middle = np.diff(edges)[:, None] / 2, (edges[1:, None] + edges[:-1, None]) / 2
    return top, middle + half * nodes, half * weights


def log_bin_probability(level: int, mean: float, sigma: float) -> float:
    """Eq. 13, one pixel: log ∫ N(x; mean, σ²) dx over the bin of 8-bit level 0..255

    Relative to the density at the bin's highest point, so that no tail underflows:
    (top² - (top + d)²)/2 = -d (top + d/2).
    """
    top, d, weights = bin_nodes(level, mean, sigma)
    integral = np.sum(weights * np.exp(-d * (top + d / 2)))
    return math.log(integral) - top**2 / 2 - math.log(2 * math.pi) / 2
