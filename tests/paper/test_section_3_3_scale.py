"""Section 3.3: 8-bit levels scaled to [-1, 1], and back."""

import math
import re

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tinyddpm import to_float, to_uint8
from tinyddpm.data import to_levels

LEVELS = torch.arange(256, dtype=torch.uint8)
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", FLOATS)
def test_8_bit_to_float_to_8_bit_is_the_identity(dtype):
    """Section 3.3: all 256 levels survive, in every dtype a network may use."""
    assert torch.equal(to_uint8(to_float(LEVELS, dtype)), LEVELS)
    assert torch.equal(to_uint8(to_float(LEVELS).to(dtype)), LEVELS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_grid_is_rounded_once(dtype):
    """Section 3.3: v/127.5 - 1, to the last digit, the ends exactly -1 and 1."""
    x = to_float(LEVELS, dtype)
    exact = [(2 * v - 255) / 255 for v in range(256)]  # one rounding in float64
    assert torch.equal(x, torch.tensor(exact, dtype=torch.float64).to(dtype))
    assert x[0] == -1
    assert x[255] == 1


@given(st.floats(allow_nan=False, width=32))
@example(1.005)  # truncation without a clamp wraps this to 0,
@example(-1.02)  # and this to 254
@example(math.inf)
@example(-math.inf)
def test_to_uint8_takes_the_nearest_level_and_saturates(x):
    """The level's value is within half a bin (1/255) of x clamped to [-1, 1]."""
    value = float(to_float(to_uint8(torch.tensor([x])), torch.float64))
    # x + 1 is rounded to float32 (2**-24), and its multiple of 127.5 again
    assert abs(value - min(max(x, -1), 1)) <= 1 / 255 + 2**-22


def test_what_is_no_picture_is_refused():
    """nan, levels given as floats and floats given as levels are ValueErrors."""
    with pytest.raises(ValueError, match="1 of 2 pixels are nan"):
        to_uint8(torch.tensor([0.0, math.nan]))
    with pytest.raises(ValueError, match=r"floating point, got torch\.uint8"):
        to_uint8(LEVELS)
    with pytest.raises(ValueError, match=r"uint8 tensor, got torch\.float32"):
        to_float(torch.zeros(1))


def test_levels_are_read_from_every_float_that_stands_for_one():
    """Section 3.3: x = v/127.5 - 1 gives v back, for all 256 levels and both dtypes."""
    v = torch.arange(256, dtype=torch.uint8)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(to_levels(to_float(v, dtype)), v.double())


@pytest.mark.parametrize("x", [0.0, 1 + 2 / 255, -1.01, 0.5, math.nan, math.inf])
def test_pictures_off_the_grid_are_refused(x):
    """Eq. 13 needs 8-bit data: what lies between the levels or beyond is an error that
    names it."""
    picture = to_float(torch.full((1, 1, 2, 2), 7, dtype=torch.uint8))
    picture[0, 0, 1, 1] = x
    given = re.escape(str(float(picture[0, 0, 1, 1])))
    with pytest.raises(ValueError, match=rf"8-bit pictures.* got x = {given}; .*uint8"):
        to_levels(picture)
