"""Batches x_0 ~ q(x_0) from pictures in memory: line 2 of Algorithm 1."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyddpm import drawer, to_float, to_uint8

from ..helpers import chi2, chi2_limit, seeded
from ..strategies import seeds


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
    """χ² over 16 pictures x 2 sides, n = 32,000, false alarm 1e-6; unasked, none is
    mirrored."""
    images, n = distinct(16), 32_000
    sides = torch.cat([images, images.flip(3)]) if flip else images
    draw = drawer(images, flip=True) if flip else drawer(images)
    (x_0,) = draw(n, seeded(0))
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
        (
            torch.zeros(2, 3, 4, 4),
            None,
            r"be uint8 .*, got Tensor torch\.float32 \(2, 3, 4, 4\)",
        ),
        (distinct(2)[0], None, "pictures must be uint8"),
        (distinct(2)[:0], None, "pictures must be uint8"),
        (distinct(2), torch.arange(3), r"2 pictures need as many labels.*\(3,\)"),
        (distinct(2), torch.zeros(2), r"a LongTensor, got torch\.float32"),
    ],
)
def test_a_set_that_cannot_be_drawn_from_is_refused(images, labels, match):
    """Floats, wrong shapes, no pictures, labels that do not pair: at the door."""
    with pytest.raises(ValueError, match=match):
        drawer(images, labels)
