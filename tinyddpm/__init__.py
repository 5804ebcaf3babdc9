"""Denoising Diffusion Probabilistic Models (Ho, Jain, Abbeel 2020), in PyTorch.

Read the modules in the order of the paper: schedule, forward, sampler, train.
"""

from .forward import q_posterior, q_sample, q_step
from .sampler import interpolate, p_mean, p_sample_loop, p_step, predict_x_0, sample
from .schedule import (
    Schedule,
    at,
    constant_schedule,
    linear_schedule,
    quadratic_schedule,
)
from .train import L_simple, weight

__all__ = [
    "L_simple",
    "Schedule",
    "at",
    "constant_schedule",
    "interpolate",
    "linear_schedule",
    "p_mean",
    "p_sample_loop",
    "p_step",
    "predict_x_0",
    "q_posterior",
    "q_sample",
    "q_step",
    "quadratic_schedule",
    "sample",
    "weight",
]
