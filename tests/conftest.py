"""How much hypothesis tries, chosen by HYPOTHESIS_PROFILE: dev, ci or thorough.

In each the same code gives the same examples on every run (derandomize), nothing is
kept between runs (no database), and no example has a deadline: the machines that run
this are noisy, so a time can say nothing about the code.
"""

import os
import sys

import pytest
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

# The tensors here are small: a second thread costs more to wake than it saves. What the
# tests start is beside them.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """The whole run uses up to four cores; who names a file, or a test by -k, waits for
    no worker. pytest-xdist's own options say otherwise: -n 0 is one process."""
    option, named = config.option, config.args_source is pytest.Config.ArgsSource.ARGS
    here = named or option.keyword or hasattr(config, "workerinput")
    if not here and getattr(option, "numprocesses", 0) is None:
        option.numprocesses, option.dist = "auto", "worksteal"
        option.maxprocesses = option.maxprocesses or 4


# These kill processes, fork them or bound the size of their files.
if sys.platform == "win32":
    names = ("checkpoint", "distributed", "kill")
    collect_ignore = [f"workshop/test_{name}.py" for name in names]
