"""The toy's gradients, and the batches that training draws."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import dtypes, seeds
from tinyddpm.beyond.gradients import gradient_drawer, gradient_images, gradient_ramp
from tinyddpm.data import drawer, sometimes_without_class
from tinyddpm.workshop.pictures import to_float, to_uint8

# One pixel alone has no gradient, and is refused.
sizes = st.tuples(st.integers(1, 40), st.integers(1, 40)).filter(lambda s: s != (1, 1))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def chi2(counts, expected):
    """Σ (observed - expected)² / expected over all cells."""
    return float(((counts.double() - expected) ** 2 / expected).sum())


def chi2_limit(freedom, z=4.753):
    """What χ² exceeds with probability 1e-6 (Wilson-Hilferty; Φ(4.753) = 1 - 1e-6)."""
    a = 2 / (9 * freedom)
    return freedom * (1 - a + z * a**0.5) ** 3


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


@pytest.mark.parametrize("size", [(1, 1), (0, 5), (5, 0), (-1, -2)])
def test_a_picture_without_a_gradient_is_refused(size):
    """One pixel alone, or none, cannot go from one colour to another."""
    for make in (gradient_ramp, gradient_drawer, lambda *s: gradient_images(2, *s)):
        with pytest.raises(ValueError, match=f"got {size[0]}x{size[1]}"):
            make(*size)


def distinct(N, seed=0):
    """N pictures (N, 3, 4, 5), no two alike, none like its own or another's mirror."""
    return torch.randint(256, (N, 3, 4, 5), dtype=torch.uint8, generator=seeded(seed))


@given(st.integers(1, 20), st.integers(1, 30), seeds, st.booleans())
def test_a_batch_is_pictures_of_the_set_with_their_labels(N, B, seed, flip):
    """Each x_0 is v/127.5 - 1 of a picture or, with flip alone, of its mirror."""
    images, labels = distinct(N), torch.arange(N) + 100
    x_0, c = drawer(images, labels, flip)(B, seeded(seed))
    assert x_0.shape == (B, 3, 4, 5)
    assert x_0.dtype == torch.float32
    v = to_uint8(x_0)
    assert torch.equal(to_float(v), x_0)
    for picture, label in zip(v, c, strict=True):
        original = images[label - 100]
        mirror = torch.from_numpy(original.numpy()[:, :, ::-1].copy())
        same = torch.equal(picture, original)
        assert same or (flip and torch.equal(picture, mirror))


@pytest.mark.parametrize("flip", [False, True])
def test_pictures_and_their_mirrors_are_drawn_uniformly(flip):
    """χ² over 16 pictures x 2 sides, n = 32,000, false alarm 1e-6."""
    images, n = distinct(16), 32_000
    sides = torch.cat([images, images.flip(3)]) if flip else images
    (x_0,) = drawer(images, flip=flip)(n, seeded(0))
    rows = {tuple(side.flatten().tolist()): i for i, side in enumerate(sides)}
    drawn = torch.tensor([rows[tuple(v)] for v in to_uint8(x_0).flatten(1).tolist()])
    counts = drawn.bincount(minlength=len(sides))
    assert chi2(counts, n / len(sides)) < chi2_limit(len(sides) - 1)


@given(seeds, st.booleans())
def test_a_batch_is_a_function_of_the_generator(seed, flip):
    """Equal seeds give equal batches, the next is another, torch's RNG rests."""
    before = torch.get_rng_state()
    images, g = distinct(50), seeded(seed)
    kept = images.clone()
    draw = drawer(images, flip=flip)
    (first,), (second,) = draw(20, g), draw(20, g)
    assert torch.equal(first, drawer(images, flip=flip)(20, seeded(seed))[0])
    assert not torch.equal(first, second)
    first.zero_()  # a batch is a copy: what is done to it does not reach the set
    assert torch.equal(images, kept)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("images", "labels", "match"),
    [
        (torch.zeros(2, 3, 4, 4), None, "pictures must be uint8"),
        (distinct(2)[0], None, "pictures must be uint8"),
        (distinct(2)[:0], None, "pictures must be uint8"),
        (distinct(2), torch.arange(3), r"2 pictures need as many labels.*\(3,\)"),
        (distinct(2), torch.zeros(2), r"a LongTensor \(N,\), got torch\.float32"),
    ],
)
def test_a_set_that_cannot_be_drawn_from_is_refused(images, labels, match):
    """Floats, wrong shapes, no pictures, labels that do not pair: at the door."""
    with pytest.raises(ValueError, match=match):
        drawer(images, labels)


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
