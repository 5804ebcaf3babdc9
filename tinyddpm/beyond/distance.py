"""How far samples are from real pictures: the Fréchet distance, and nearest pictures.

The distance is between Gaussians with the mean and covariance of each set's features
(Heusel et al. 2017, where a network trained on ImageNet makes the features). It is not
in the DDPM paper but as the score FID, which its tables report.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Gaussian(NamedTuple):
    """The Gaussian with a set's first two moments, in float64.

    Attributes:
        mean: m, (D,).
        cov: C, (D, D), with the factor 1/(N - 1).
    """

    mean: Tensor
    cov: Tensor


def gaussian_of(features: Tensor) -> Gaussian:
    """The mean and covariance of features (N, D), N >= 2."""
    if features.ndim != 2 or len(features) < 2 or not features.shape[1]:
        raise ValueError(
            f"features must be (N, D) with N >= 2 and D >= 1, got "
            f"{tuple(features.shape)}; a covariance needs two items at least"
        )
    if not features.isfinite().all():
        raise ValueError("a feature is not finite; the network or a picture is damaged")
    x = features.double()
    mean = x.mean(0)
    return Gaussian(mean, (x - mean).T @ (x - mean) / (len(x) - 1))


def frechet_distance(p: Gaussian, q: Gaussian) -> float:
    """‖m_p - m_q‖² + tr(C_p + C_q - 2 (C_p^½ C_q C_p^½)^½), the square of a distance

    as FID is: of 2-Wasserstein's. (C_p^½ C_q C_p^½)^½ is |C_q^½ C_p^½|, so its trace is
    the sum of the singular values of C_q^½ C_p^½. Taken from there no root is drawn of
    what rounding left in place of 0: a set is at distance 0 from itself also where its
    covariance is singular.

    Estimated from N items it is too large, by about a constant over N: compare only
    distances of as many items, and with that of real pictures to others.
    """
    if p.mean.shape != q.mean.shape:
        raise ValueError(
            f"both sets need features of one size, got {len(p.mean)} and {len(q.mean)}"
        )
    shift = (p.mean - q.mean).square().sum()
    overlap = torch.linalg.svdvals(_root(q.cov) @ _root(p.cov)).sum()
    spread = p.cov.trace() + q.cov.trace() - 2 * overlap
    return float(shift + spread.clamp(min=0))  # below 0 by rounding alone


def _root(cov: Tensor) -> Tensor:
    """C^½ of a symmetric C, whose negative eigenvalues, of rounding, count as 0."""
    values, axes = torch.linalg.eigh(cov)
    root: Tensor = (axes * values.clamp(min=0).sqrt()) @ axes.T
    return root


def nearest(x: Tensor, others: Tensor, chunk: int = 256) -> tuple[Tensor, Tensor]:
    """For each item of x the nearest of `others`: min_j ‖x_i - others_j‖ / √D

    Args:
        x, others: (N, ...) and (M, ...), items of one shape.
        chunk: how many of x are compared at a time.
    Returns: the root mean square difference, (N,), and which it is, long (N,).
    """
    if x.shape[1:] != others.shape[1:] or not len(others):
        raise ValueError(
            f"expected items of one shape, and one to compare with at least, got "
            f"{tuple(x.shape)} and {tuple(others.shape)}"
        )
    x, others = x.flatten(1).float(), others.flatten(1).float()
    parts = torch.split(x, chunk)
    which = torch.cat([torch.cdist(part, others).argmin(1) for part in parts])
    # cdist multiplies matrices, which costs half the digits: again, for the pairs found
    return (x - others[which]).square().mean(1).sqrt(), which
