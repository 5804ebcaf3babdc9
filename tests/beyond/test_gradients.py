"""The toy's data: colour gradients whose corners are uniform on the 8-bit grid."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyddpm import to_float, to_uint8
from tinyddpm.beyond.gradients import (
    gradient_drawer,
    gradient_images,
    gradient_ramp,
    held_against_the_law,
    kolmogorov_p,
)

from ..helpers import chi2, chi2_limit, seeded
from ..strategies import dtypes, normal, seeds

# One pixel alone has no gradient, and is refused.
sizes = st.tuples(st.integers(1, 40), st.integers(1, 40)).filter(lambda s: s != (1, 1))


@given(sizes)
def test_the_ramp_goes_from_0_to_1(size):
    """g: 0 and 1 in the corners, rising along rows and columns, symmetric."""
    g = gradient_ramp(*size)
    assert g.shape == size
    assert g.dtype == torch.float64
    assert g[0, 0] == 0
    assert g[-1, -1] == 1
    for axis, n in enumerate(size):
        assert n == 1 or (g.diff(dim=axis) > 0).all()
    # a point reflection swaps the corners; rounding: a few units of 2**-53
    torch.testing.assert_close(g + g.flip(0, 1), torch.ones_like(g), rtol=0, atol=1e-15)


@given(sizes, seeds, st.integers(1, 4), dtypes)
def test_gradients_are_lines_between_two_colours(size, seed, C, dtype):
    """x_0 = (1-g) a + g b: corners on the 8-bit grid, all else between them."""
    H, W = size
    x_0 = gradient_images(3, H, W, seeded(seed), C, dtype)
    assert x_0.shape == (3, C, H, W)
    assert x_0.dtype == dtype
    assert x_0.abs().max() <= 1
    a, b = x_0[:, :, 0, 0], x_0[:, :, -1, -1]
    for corner in (a, b):
        assert torch.equal(to_float(to_uint8(corner), dtype), corner)
    # the same ramp by another road: coordinates of pixels in a unit of H + W
    x, y = np.linspace(0, W / (W + H), W), np.linspace(0, H / (W + H), H)
    g = torch.from_numpy(np.add.outer(y, x) / (x[-1] + y[-1]))
    a, b = a[..., None, None].double(), b[..., None, None].double()
    # four roundings of numbers of at most 1
    atol = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(x_0.double(), a + (b - a) * g, rtol=0, atol=atol)


def corner_levels(n, seed=0):
    """Levels of the first and the last corner of n pictures, (n, C) each."""
    v = to_uint8(gradient_images(n, 2, 2, seeded(seed)))
    return v[:, :, 0, 0].long(), v[:, :, -1, -1].long()


def test_colours_are_uniform_on_256_levels():
    """χ² over 256 levels, n = 102,400 a corner and channel, false alarm 6e-6 in all.

    The same statistic rejects levels 0..254 (255 never drawn) at the same n.
    """
    n = 102_400
    for corner in corner_levels(n):
        for channel in corner.T:
            counts = channel.bincount(minlength=256)
            assert counts.min() > 0  # both 0 and 255 are reached
            assert chi2(counts, n / 256) < chi2_limit(255)
    mutant = torch.randint(255, (n,), generator=seeded(0)).bincount(minlength=256)
    assert chi2(mutant, n / 256) > chi2_limit(255)


def test_corners_and_channels_are_independent():
    """χ² over 16 x 16 cells of every pair of the 6 levels, false alarm 15e-6 in all.

    The same statistic rejects a pair that shares its level in 1 of 8 pictures.
    """
    n = 102_400
    a, b = corner_levels(n)
    v = torch.cat([a, b], dim=1).T // 16
    for i in range(6):
        for j in range(i):
            counts = (16 * v[i] + v[j]).bincount(minlength=256)
            assert chi2(counts, n / 256) < chi2_limit(255)
    shared = torch.where(torch.arange(n) % 8 == 0, v[0], v[1])
    counts = (16 * v[0] + shared).bincount(minlength=256)
    assert chi2(counts, n / 256) > chi2_limit(255)


@given(seeds)
def test_gradients_are_a_function_of_the_generator(seed):
    """Equal seeds give equal pictures, the next batch is another, torch's RNG rests."""
    before = torch.get_rng_state()
    g, draw = seeded(seed), gradient_drawer(5, 4)
    (first,), (second,) = draw(7, g), draw(7, g)
    assert torch.equal(first, gradient_images(7, 5, 4, seeded(seed)))
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_generator_torchs_own_is_drawn_from():
    """On the CPU, in the toy's three channels and in float32."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        found = gradient_images(2, 5, 4)
    expected = gradient_images(2, 5, 4, seeded(7), 3, torch.float32)
    assert torch.equal(found, expected)


@given(
    st.tuples(st.integers(2, 6), st.integers(1, 6)),
    st.integers(1, 9),
    st.sampled_from([0.2, 1.0, 1.5]),
    seeds,
)
def test_pictures_are_held_against_the_law(size, B, scale, seed):
    """Each channel is (1-g) a + g b and a rest that is orthogonal to both.

    The rest is what noise has beside its projection on the two, and its size is said;
    the distance from uniform colours is sup |F_n(u) - u| over all u, which is reached
    at a colour or just below one. Here it is taken at each, from the a and b that the
    pictures were made of, some of them out of the range of the 256 levels.
    """
    g = gradient_ramp(*size).flatten()
    plane = torch.stack([1 - g, g])
    colours = scale * normal(seed, (B, 3, 2))
    noise = 0.1 * normal(seed + 1, (B, 3, len(g)))
    Q = torch.linalg.qr(plane.T).Q
    rest = noise - noise @ Q @ Q.T
    x_0 = (colours @ plane + rest).unflatten(2, size)
    found = held_against_the_law(x_0)

    n, u = 6 * B, (127.5 * (colours.flatten() + 1) + 0.5) / 256
    above = [(u <= v).double().mean() - v.clamp(0, 1) for v in u]
    below = [v.clamp(0, 1) - (u < v).double().mean() for v in u]
    distance = float(max(above + below))
    assert found == pytest.approx(
        {
            "rms_outside_the_plane": 127.5 * float(rest.square().mean().sqrt()),
            "energy_outside_the_plane": float(rest.square().sum() / x_0.square().sum()),
            "colours": n,
            "kolmogorov_distance": distance,
            "kolmogorov_p": kolmogorov_p(distance * n**0.5),
        },
        rel=1e-9,
        abs=1e-9,
    )


@given(st.floats(0.05, 3))
def test_kolmogorovs_law_has_two_forms(z):
    """1 - √(2π)/z Σ_{k>=1} exp(-(2k-1)² π²/8z²): Jacobi's identity for theta functions.

    This one converges where z is small; ten digits, as the function says.
    """
    terms = (math.exp(-(((2 * k - 1) * math.pi / z) ** 2) / 8) for k in range(1, 9))
    expected = 1 - math.sqrt(2 * math.pi) / z * sum(terms)
    assert kolmogorov_p(z) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("size", [(1, 1), (0, 5), (5, 0), (-1, -2)])
def test_a_picture_without_a_gradient_is_refused(size):
    """One pixel alone, or none, cannot go from one colour to another."""
    wanted = "a height and a width >= 1 and at least 2 pixels"
    says = f"a gradient needs {wanted}, got {size[0]}x{size[1]}"
    for make in (gradient_ramp, gradient_drawer, lambda *s: gradient_images(2, *s)):
        with pytest.raises(ValueError, match=f"^{says}$"):
            make(*size)
