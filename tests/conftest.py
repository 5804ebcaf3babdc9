"""How much hypothesis tries, chosen by HYPOTHESIS_PROFILE: dev, ci or thorough.

In each the same code gives the same examples on every run (derandomize), nothing is
kept between runs (no database), and no example has a deadline: the machines that run
this are noisy, so a time can say nothing about the code.
"""

import os
import sys

import torch
from hypothesis import HealthCheck, settings

COMMON = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("dev", COMMON, max_examples=50)
settings.register_profile("ci", COMMON, max_examples=100, print_blob=True)
settings.register_profile("thorough", COMMON, max_examples=300, print_blob=True)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "dev")
settings.load_profile(PROFILE)

# The tensors here are small: a second thread costs more to wake than it saves.
torch.set_num_threads(1)

# These kill processes, fork them or bound the size of their files.
if sys.platform == "win32":
    names = ("checkpoint", "distributed", "kill")
    collect_ignore = [f"workshop/test_{name}.py" for name in names]
