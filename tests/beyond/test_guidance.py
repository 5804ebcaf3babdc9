"""Classes that are left out at times, so that one network learns both."""

import torch

from tinyddpm.beyond.guidance import sometimes_without_class


def test_the_class_is_left_out_as_often_as_asked():
    """Every picture keeps its class or gets `none`, with the probability given."""
    x_0, c, n = torch.zeros(1), torch.arange(3).repeat(4000), 12_000

    def without(share: float) -> torch.Tensor:
        draw = sometimes_without_class(lambda B, g: (x_0, c), none=3, share=share)
        x, kept = draw(n, torch.Generator().manual_seed(0))
        assert x is x_0
        assert bool(((kept == c) | (kept == 3)).all())
        return (kept == 3).double().mean()

    assert without(0.0) == 0
    assert without(1.0) == 1
    # binomial: 5.2 standard deviations, false alarm 2e-7; 0.9 or no draw is far off
    assert abs(without(0.1) - 0.1) < 5.2 * (0.1 * 0.9 / n) ** 0.5
