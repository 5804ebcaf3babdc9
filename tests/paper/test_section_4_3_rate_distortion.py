"""Section 4.3: the rate that a receiver has paid, and the distortion it sees."""

import pytest
import torch

from tinyddpm import bits_per_dim, rate_distortion

from ..helpers import constant


def test_rate_and_distortion_are_sums_and_errors_of_the_bound():
    """Section 4.3: a holder of x_t has paid L_T + Σ_{s>t} L_{s-1} and errs by
    127.5 √E‖x_0 - x̂_0‖²/D; T - t + 1 reverse steps in, as table 4 counts.
    """
    s, net, x_0 = constant(N=4)
    bound = bits_per_dim(s, net, x_0)
    rate, distortion = rate_distortion(bound)
    assert rate.shape == distortion.shape == (s.T + 1,)
    assert float(rate[0]) == pytest.approx(float(bound.total.mean()))
    assert float(rate[s.T]) == pytest.approx(float(bound.L_T.mean()))
    for t in range(s.T + 1):
        paid = float(bound.L_T.mean() + bound.L_tm1[:, t + 1 :].mean(0).sum())
        paid += float(bound.L_0.mean()) if t == 0 else 0.0
        assert float(rate[t]) == pytest.approx(paid, rel=1e-12)
    off = (x_0 - net.x_0_hat).square().mean().sqrt()
    assert float(distortion[0]) == 0
    torch.testing.assert_close(distortion[1:], (127.5 * off).expand(s.T))
