"""Denoising Diffusion Probabilistic Models (Ho, Jain, Abbeel 2020), in PyTorch.

Read the modules in the order of the paper: schedule, forward, sampler, train, bound,
coding, and the networks mlp and unet. `import tinyddpm` loads these alone. Its `fit` is
`workshop.run.fit`: `train.fit` with checkpoints, a log and several processes around it.
"""

import importlib.metadata
from typing import TYPE_CHECKING, Any

# fmt: off
# isort: off
from .bound import (
    L_0, L_T, Bound, L_tm1, bits_per_dim, gaussian_kl, log_decoder, rate_distortion,
)
from .coding import receive, send
from .data import drawer, to_float, to_uint8
from .forward import q_posterior, q_sample, q_step
from .mlp import MLP, time_embedding
from .sampler import interpolate, p_mean, p_sample_loop, p_step, predict_x_0, sample
from .schedule import (
    Schedule, at, constant_schedule, linear_schedule, quadratic_schedule,
)
from .train import EMA, L_simple, weight
from .unet import UNet

if TYPE_CHECKING:
    from .beyond.gradients import gradient_drawer, gradient_images
    from .workshop.run import fit
    from .workshop.settings import TrainConfig

__all__ = [
    "EMA", "L_0", "L_T", "MLP", "Bound", "L_simple", "L_tm1", "Schedule", "TrainConfig",
    "UNet", "at", "bits_per_dim", "constant_schedule", "drawer", "fit", "gaussian_kl",
    "gradient_drawer", "gradient_images", "interpolate", "linear_schedule",
    "log_decoder", "p_mean", "p_sample_loop", "p_step", "predict_x_0", "q_posterior",
    "q_sample", "q_step", "quadratic_schedule", "rate_distortion", "receive", "sample",
    "send", "time_embedding", "to_float", "to_uint8", "weight",
]
# fmt: on
try:
    __version__ = importlib.metadata.version("tinyddpm")
except importlib.metadata.PackageNotFoundError:  # a clone that is not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    """Loads what is not the paper when it is asked for, and not before."""
    rooms = {"fit": "workshop.run", "TrainConfig": "workshop.settings"}
    rooms |= dict.fromkeys(("gradient_drawer", "gradient_images"), "beyond.gradients")
    if name not in rooms:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{rooms[name]}"), name)
