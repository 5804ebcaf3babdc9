"""Laws of the distance between sets of pictures, and of the nearest picture."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from tinyddpm.beyond.distance import (
    Gaussian,
    frechet_distance,
    gaussian_of,
    nearest,
)

SEEDS = st.integers(0, 2**32 - 1)
F64 = torch.float64


def draws(seed: int, n: int, D: int, scale: float = 1.0) -> Tensor:
    """n correlated features (n, D) with a mean of their own, float64."""
    g = Generator().manual_seed(seed)
    mix = torch.randn(D, D, generator=g, dtype=F64)
    mean = torch.randn(D, generator=g, dtype=F64)
    return scale * (torch.randn(n, D, generator=g, dtype=F64) @ mix + mean)


def size(*sets: Tensor) -> float:
    """What the distance is a difference of: its error is a share of this."""
    return sum(float(x.square().sum(1).mean()) for x in sets)


def close(a: float, b: float, *sets: Tensor) -> bool:
    """Equal up to rounding: 10⁻¹⁰ of the traces, of which eigenvectors keep 10⁻¹³."""
    return abs(a - b) <= 1e-10 * size(*sets)


@given(SEEDS, st.integers(2, 40), st.integers(1, 12), st.sampled_from([1e-3, 1.0, 1e3]))
def test_a_set_is_at_distance_0_from_itself(seed, n, D, scale):
    """d(p, p) = 0, also where n <= D makes the covariance singular, in any order."""
    x = draws(seed, n, D, scale)
    shuffled = x[torch.randperm(n, generator=Generator().manual_seed(seed))]
    assert close(frechet_distance(gaussian_of(x), gaussian_of(shuffled)), 0.0, x)


@given(SEEDS, st.integers(2, 40), st.integers(2, 40), st.integers(1, 12))
def test_it_is_symmetric_and_not_negative(seed, n, m, D):
    """d(p, q) = d(q, p) >= 0."""
    x, y = draws(seed, n, D), draws(seed + 1, m, D)
    p, q = gaussian_of(x), gaussian_of(y)
    there, back = frechet_distance(p, q), frechet_distance(q, p)
    assert there >= 0
    assert close(there, back, x, y)


@given(SEEDS, st.integers(1, 12))
def test_of_gaussians_with_common_axes_it_is_known(seed, D):
    """C_p = U diag(a²) Uᵀ, C_q = U diag(b²) Uᵀ: ‖m_p - m_q‖² + Σ (a_i - b_i)²."""
    g = Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(D, D, generator=g, dtype=F64)).Q
    a, b, m, n = torch.rand(4, D, generator=g, dtype=F64)
    p, q = (Gaussian(mean, axes * s**2 @ axes.T) for mean, s in ((m, a), (n, b)))
    expected = float((m - n).square().sum() + (a - b).square().sum())
    # a root near 0 keeps half the digits of its square: 10⁻⁸
    assert frechet_distance(p, q) == pytest.approx(expected, abs=1e-7 * D)


@given(SEEDS)
def test_of_gaussians_in_the_plane_it_is_known(seed):
    """D = 2, any axes: tr (C_p C_q)^½ = √(tr C_p C_q + 2 √det C_p C_q)."""
    p, q = gaussian_of(draws(seed, 9, 2)), gaussian_of(draws(seed + 1, 9, 2))
    product = p.cov @ q.cov
    root = (product.trace() + 2 * product.det().clamp(min=0).sqrt()).sqrt()
    expected = (p.mean - q.mean).square().sum() + (p.cov + q.cov).trace() - 2 * root
    scale = float((p.cov + q.cov).trace())
    assert frechet_distance(p, q) == pytest.approx(float(expected), abs=1e-7 * scale)


@given(SEEDS, st.integers(2, 40), st.integers(1, 12))
def test_a_shift_of_the_mean_adds_its_square(seed, n, D):
    """d(p, q + v) = d(p, q) + ‖m_p - m_q - v‖² - ‖m_p - m_q‖²; d(p, p + v) = ‖v‖²."""
    x, y = draws(seed, n, D), draws(seed + 1, n, D)
    v = torch.randn(D, generator=Generator().manual_seed(seed), dtype=F64)
    p, q, moved = gaussian_of(x), gaussian_of(y), gaussian_of(y + v)
    gap = p.mean - q.mean
    added = float((gap - v).square().sum() - gap.square().sum())
    assert close(
        frechet_distance(p, moved), frechet_distance(p, q) + added, x, y, y + v
    )
    alone = frechet_distance(p, gaussian_of(x + v))
    assert close(alone, float(v.square().sum()), x, x + v)


@given(SEEDS, st.integers(3, 40), st.integers(1, 12))
def test_it_grows_with_the_noise_added(seed, n, D):
    """C_q = C_p + σ² I: Σ (√(λ_i + σ²) - √λ_i)², which rises with σ without end."""
    x = draws(seed, n, D)
    p = gaussian_of(x)
    lam = torch.linalg.eigvalsh(p.cov).clamp(min=0)
    last = -1.0
    for sigma2 in (0.0, 0.01, 0.1, 1.0, 10.0):
        noisy = Gaussian(p.mean, p.cov + sigma2 * torch.eye(D, dtype=F64))
        found = frechet_distance(p, noisy)
        expected = float(((lam + sigma2).sqrt() - lam.sqrt()).square().sum())
        assert found == pytest.approx(expected, abs=1e-7 * (size(x) + D * sigma2))
        assert found > last or found < 1e-6 * size(x)
        last = found


@pytest.mark.parametrize("seed", range(3))
def test_it_grows_with_noise_on_the_items_themselves(seed):
    """Features + σ z of a fixed z: the further, the further away (n = 500, D = 8)."""
    x = draws(seed, 500, 8)
    z = torch.randn(x.shape, generator=Generator().manual_seed(seed), dtype=F64)
    found = [
        frechet_distance(gaussian_of(x), gaussian_of(x + sigma * z))
        for sigma in (0.0, 0.5, 1.0, 2.0, 4.0)
    ]
    assert found == sorted(found)
    assert found[1] > 1e-6 * size(x)


@given(SEEDS, st.integers(2, 30), st.integers(1, 8))
def test_the_moments_are_those_of_the_set(seed, n, D):
    """m = Σ x / N, C = Σ (x - m)(x - m)ᵀ / (N - 1), as torch.cov has it."""
    x = draws(seed, n, D)
    p = gaussian_of(x.float())
    assert p.mean.dtype == p.cov.dtype == F64
    torch.testing.assert_close(p.mean, x.float().double().mean(0))
    expected = torch.cov(x.float().double().T).reshape(D, D)
    torch.testing.assert_close(p.cov, expected)


@given(SEEDS, st.sampled_from([3, 7, 9]), st.integers(1, 4))
def test_the_covariance_does_not_see_where_the_set_lies(seed, n, D):
    """C(x + c) = C(x), for whole numbers x of at most 20 and c = 10⁹.

    The mean m is then rounded to 10⁻⁷, and C is off by the square of that: 10⁻¹⁴. A
    factor x - m that is x + m instead would make it 10⁹ · 10⁻⁷.
    """
    g = Generator().manual_seed(seed)
    x = torch.randint(-20, 20, (n, D), generator=g).double()
    found = gaussian_of(x + 10**9).cov
    torch.testing.assert_close(found, gaussian_of(x).cov, rtol=0, atol=1e-9)


@given(SEEDS, st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_the_nearest_is_the_nearest(seed, n, m, chunk):
    """min_j ‖x_i - y_j‖ / √D, one by one; an item among the others finds itself."""
    g = Generator().manual_seed(seed)
    x, y = torch.randn(n, 2, 3, 3, generator=g), torch.randn(m, 2, 3, 3, generator=g)
    distance, which = nearest(x, y, chunk)
    every = torch.stack([(x - one).square().flatten(1).mean(1).sqrt() for one in y], 1)
    torch.testing.assert_close(distance, every.min(1).values)
    assert torch.equal(which, every.min(1).indices)
    distance, which = nearest(y, y, chunk)
    assert torch.equal(which, torch.arange(m))
    assert not distance.any()


REFUSED = {
    "one item": (
        lambda: gaussian_of(torch.zeros(1, 3)),
        "features must be (N, D) with N >= 2 and D >= 1, got (1, 3); a covariance "
        "needs two items at least",
    ),
    "no feature": (
        lambda: gaussian_of(torch.zeros(2, 0)),
        "features must be (N, D) with N >= 2 and D >= 1, got (2, 0); a covariance "
        "needs two items at least",
    ),
    "pictures": (
        lambda: gaussian_of(torch.zeros(2, 3, 4)),
        "features must be (N, D) with N >= 2 and D >= 1, got (2, 3, 4); a covariance "
        "needs two items at least",
    ),
    "a feature of no size": (
        lambda: gaussian_of(torch.tensor([[0.0], [float("inf")]])),
        "a feature is not finite; the network or a picture is damaged",
    ),
    "features of two networks": (
        lambda: frechet_distance(
            gaussian_of(torch.zeros(3, 2)), gaussian_of(torch.zeros(3, 4))
        ),
        "both sets need features of one size, got 2 and 4",
    ),
    "pictures of two sizes": (
        lambda: nearest(torch.zeros(2, 3), torch.zeros(2, 4)),
        "expected items of one shape, and one to compare with at least, got (2, 3) and "
        "(2, 4)",
    ),
    "nothing to compare with": (
        lambda: nearest(torch.zeros(2, 3), torch.zeros(0, 3)),
        "expected items of one shape, and one to compare with at least, got (2, 3) and "
        "(0, 3)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_compared_is_refused(case):
    """Too few items, features that are not finite, and sets of different sizes."""
    call, says = REFUSED[case]
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        call()
