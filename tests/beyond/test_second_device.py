"""What `beyond/` costs on another device than the CPU, as `second_device.py` counts."""

import pytest
import torch

from tinyddpm import drawer, sample
from tinyddpm.beyond import (
    ablations,
    ddim,
    distance,
    estimate,
    gradients,
    guidance,
    improved,
    levels,
    oracle,
)

from ..second_device import Case, hold_to, mismatches, ran
from ..strategies import normal

SHAPE = (2, 3, 4, 4)


def fixed_variances(s, net, x_t, t, eps):
    return [
        ablations.fixed_variance(s, net)(x_t, t),
        ablations.fixed_variance(s, net, ablations.mu_itself, "beta_tilde")(x_t, t),
    ]


def loop(s, net, x_t, g):
    return [x[1:] for x in ddim.ddim_loop(s, net, x_t, [5, 3, 1], g, 0.5)]


def two_gaussians(mean, cov):
    m = mean.flatten()
    return distance.frechet_distance(
        distance.Gaussian(m, cov), distance.Gaussian(m + 1, 2 * cov)
    )


def L_of_step(s, x, x_t, t, eps):
    return ablations.L_of_step(s, x, x_t, t, eps.double(), eps.double().exp())


def of_p_theta(loss):
    return lambda s, net, x, t, eps: loss(
        s, ablations.fixed_variance(s, net), x, t, eps
    )


def sample_p_theta(s, net, g):
    p_theta = ablations.fixed_variance(s.to(g.device), net)
    return ablations.sample_p_theta(s, p_theta, SHAPE, g)


def bits_p_theta(s, net, x, g):
    p_theta = ablations.fixed_variance(s.to(g.device), net)
    return ablations.bits_per_dim_p_theta(s, p_theta, x, g)


# What looks at numbers says why: so few bytes are waited for, and not in a loop, but
# `bits_per_dim_p_theta`, whose steps may be of mixed t.
TABLE = {
    "ablations.score": Case(lambda s, t, eps: ablations.score(s, t, eps), 1),
    "ablations.mu_itself": Case(
        lambda s, x_t, t, eps: ablations.mu_itself(s, x_t, t, eps),
        1,
        free=("x_t", "t", "eps"),
    ),
    "ablations.fixed_variance": Case(
        fixed_variances, 6, 0, (0, 2), free=("eps",)
    ),  # σ_1²
    "ablations.learned_variance": Case(
        lambda s, two, x_t, t: ablations.learned_variance(s, two)(x_t, t), 3
    ),
    "ablations.L_of_step": Case(L_of_step, 5, 3, (0, 3)),  # which t are 1? is x 8-bit?
    "ablations.L": Case(of_p_theta(ablations.L), 10, 3, (0, 4)),
    "ablations.L_mu": Case(of_p_theta(ablations.L_mu), 10, 0, (0, 1)),
    "ablations.sample_p_theta": Case(sample_p_theta, 8, 1, (0, 1)),
    "ablations.bits_per_dim_p_theta": Case(bits_p_theta, 8, 1, (0, 1), each=3),
    "convnext": Case(lambda convnext, x, t: convnext(x, t)),
    "ddim.ddim_step": Case(
        lambda s, x_t, t, t_prime, eps, z: ddim.ddim_step(
            *(s, x_t, t, t_prime, eps, z, 0.5, True)
        ),
        3,
    ),
    "ddim.ddim_loop": Case(loop, 4),
    "ddim.ddim_sample": Case(
        lambda s, net, x_t: ddim.ddim_sample(s, net, x_t, [5, 3, 1]), 4
    ),
    "ddim.ddim_ode_step": Case(
        lambda s, x_t, t, t_prime, eps: ddim.ddim_ode_step(s, x_t, t, t_prime, eps), 2
    ),
    "ddim.ddim_encode": Case(
        lambda s, net, x: ddim.ddim_encode(s, net, x, [5, 3, 1]), 4
    ),
    "distance.gaussian_of": Case(lambda cov: distance.gaussian_of(cov), 0, 1),
    "distance.frechet_distance": Case(two_gaussians, 0, 1),
    "distance.nearest": Case(lambda x, y: distance.nearest(x, y)),
    "estimate.estimate_bits_per_dim": Case(
        lambda s, net, x, g: estimate.estimate_bits_per_dim(s, net, x, g), 4, 5, (0, 5)
    ),
    "estimate.estimate_bits_per_dim, drawn": Case(
        lambda s, classes, x, c, g: estimate.estimate_bits_per_dim(
            s, classes, x, g, draws=1, c=c
        ),
        *(4, 5, (0, 5)),
    ),
    "gradients.held_against_the_law": Case(
        lambda x: list(gradients.held_against_the_law(x).values()), 1, 3
    ),
    "guidance.sometimes_without_class": Case(
        lambda v, c, g: guidance.sometimes_without_class(drawer(v, c), 2, 0.5)(4, g)
    ),
    "guidance.guided": Case(
        lambda classes, x, t: guidance.guided(classes, 1, 0.5)(x, t), 1
    ),
    "guidance.guided, one by one": Case(
        lambda classes, c, x, t: guidance.guided(classes, c, 0.5)(x, t),
        *(1, 1),  # has the network such a class?
        free=("c",),
    ),
    "improved.strided": Case(
        lambda s, net, g: sample(*improved.strided(s, net, [5, 3, 1]), SHAPE, g),
        *(7, 0, (6, 1)),
    ),
    "improved.strided, its schedule": Case(
        lambda s, net, x: improved.strided(s.to(x.device), net, [5, 3, 1])[0].beta,
        *(10, 1, (6, 1)),
        free=("net", "x"),
    ),
    "improved.interpolated_variance": Case(
        lambda s, two, x_t, t: improved.interpolated_variance(s, two)(x_t, t), 5
    ),
    "improved.L_hybrid": Case(
        lambda s, two, x, t, eps: improved.L_hybrid(s, two, x, t, eps), 11, 3, (0, 3)
    ),
    "levels.posterior": Case(
        lambda theta, gram: levels.posterior(theta, 100.0, gram), 0, 3
    ),
    "oracle.gaussian_oracle": Case(
        lambda s, mean, cov, x_t, t: oracle.gaussian_oracle(s, mean, cov)(x_t, t),
        *(2, 2, (0, 2)),  # is the covariance one?
        free=("mean", "cov"),
    ),
    "oracle.gaussian_oracle, made on the CPU": Case(
        lambda s, x_t, t: oracle.gaussian_oracle(
            s, normal(0, SHAPE[1:]), torch.eye(48).double()
        )(x_t, t),
        *(5, 0, (3, 0)),
    ),
    "oracle.finite_oracle, made on the CPU": Case(
        lambda s, x_t, t: oracle.finite_oracle(s, normal(0, SHAPE))(x_t, t),
        *(5, 0, (2, 0)),
    ),
    "oracle.gaussian_nll": Case(
        lambda mean, cov, x: oracle.gaussian_nll(mean, cov, x), 0, 3
    ),
    "oracle.finite_oracle": Case(
        lambda s, y, x_t, t: oracle.finite_oracle(s, y)(x_t, t), 3, free=("y",)
    ),
    "oracle.gradient_oracle": Case(
        lambda s, x_t, t: oracle.gradient_oracle(s, 4, 4)(x_t, t), 8, 11, (5, 13)
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_it_costs_what_the_table_says(name):
    """What comes out is where what went in is, to the bit what the CPU gives.

    The copies and the waits are the table's, and for T = 5 and T = 7 the same.
    """
    hold_to(TABLE[name])


@pytest.mark.parametrize(("case", "left_behind"), mismatches(TABLE))
def test_what_is_left_behind_is_an_error(case, left_behind):
    """An argument on the CPU beside others that are not: no answer, no silent copy."""
    with pytest.raises((RuntimeError, ValueError)):
        ran(case, but=left_behind)
