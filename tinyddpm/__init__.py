"""Denoising Diffusion Probabilistic Models (Ho, Jain, Abbeel 2020), in PyTorch.

Read the modules in the order of the paper: schedule, forward, sampler, train, bound.
What is here is what the paper numbers, and what one needs to use it; readers of files,
pictures, checkpoints and oracles are in the modules of those names.
"""

from importlib.metadata import PackageNotFoundError, version

from .bound import L_0, L_T, Bound, L_tm1, bits_per_dim, gaussian_kl, rate_distortion
from .coding import receive, send
from .data import drawer, gradient_drawer, gradient_images
from .decoder import log_decoder
from .forward import q_posterior, q_sample, q_step
from .mlp import MLP, time_embedding
from .sampler import interpolate, p_mean, p_sample_loop, p_step, predict_x_0, sample
from .schedule import (
    Schedule,
    at,
    constant_schedule,
    linear_schedule,
    quadratic_schedule,
)
from .train import EMA, L_simple, fit, weight
from .unet import UNet
from .workshop.pictures import to_float, to_uint8
from .workshop.settings import TrainConfig

__all__ = [
    "EMA",
    "L_0",
    "L_T",
    "MLP",
    "Bound",
    "L_simple",
    "L_tm1",
    "Schedule",
    "TrainConfig",
    "UNet",
    "at",
    "bits_per_dim",
    "constant_schedule",
    "drawer",
    "fit",
    "gaussian_kl",
    "gradient_drawer",
    "gradient_images",
    "interpolate",
    "linear_schedule",
    "log_decoder",
    "p_mean",
    "p_sample_loop",
    "p_step",
    "predict_x_0",
    "q_posterior",
    "q_sample",
    "q_step",
    "quadratic_schedule",
    "rate_distortion",
    "receive",
    "sample",
    "send",
    "time_embedding",
    "to_float",
    "to_uint8",
    "weight",
]

try:
    __version__ = version("tinyddpm")
except PackageNotFoundError:  # a clone that is used without being installed
    __version__ = "0+unknown"
