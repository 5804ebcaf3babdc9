"""The NumPy reference against definitions, so that it may judge torch."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ..strategies import share
from . import numpy_reference as reference


@share(10)
@given(st.floats(-3, 3), st.floats(1e-3, 1))
def test_the_bins_sum_to_one_and_are_differences_of_phi(mean, sigma):
    """Eq. 13's 256 bins cover the line: Σ p = 1; each is Φ(b) - Φ(a) by math.erf"""
    got = [reference.log_bin_probability(k, mean, sigma) for k in range(256)]
    assert abs(math.fsum(map(math.exp, got)) - 1) <= 1e-13
    ends = [-math.inf, *[(k + 0.5) / 127.5 - 1 for k in range(255)], math.inf]
    phi = [math.erf((x - mean) / sigma / math.sqrt(2)) / 2 for x in ends]
    assert max(abs(np.exp(got) - np.diff(phi))) <= 1e-13
