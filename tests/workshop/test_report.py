"""The bound as people read it."""

import math

import pytest
import torch

from tinyddpm.workshop.report import mean_and_error


def test_mean_and_error_of_known_numbers():
    """The standard error of a mean is s/√n with s² = Σ (x - x̄)²/(n - 1)."""
    mean, error = mean_and_error(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert mean == 3.0
    assert error == pytest.approx(math.sqrt(14 / 3 / 4))
    assert mean_and_error(torch.tensor([1.0, 3.0])) == (2.0, pytest.approx(1.0))
    assert math.isnan(mean_and_error(torch.tensor([1.0]))[1])
