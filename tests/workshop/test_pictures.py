"""Files of pictures, read back with Pillow."""

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image

from tests.strategies import seeds, share
from tinyddpm.workshop.pictures import (
    GAP,
    grid,
    save_gif,
    save_loss_plot,
    save_png,
    save_strip,
)


def levels(seed, shape):
    """Uniform 8-bit levels: a function of the seed."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(256, shape, dtype=torch.uint8, generator=g)


@given(
    seed=seeds,
    N=st.integers(1, 9),
    C=st.sampled_from([1, 3]),
    H=st.integers(1, 6),
    W=st.integers(1, 6),
    columns=st.integers(1, 10),
    scale=st.integers(1, 4),
)
def test_a_grid_holds_each_picture_at_its_place(seed, N, C, H, W, columns, scale):
    """Asked of each pixel: white between pictures, else the picture's own pixel."""
    v = levels(seed, (N, C, H, W))
    out = grid(v, columns, scale)
    row, i = np.divmod(np.arange(out.shape[1]) - GAP, H * scale + GAP)
    column, j = np.divmod(np.arange(out.shape[2]) - GAP, W * scale + GAP)
    n = row[:, None] * min(columns, N) + column
    inside = (i < H * scale)[:, None] & (j < W * scale) & (n >= 0) & (n < N)
    inside &= (row >= 0)[:, None] & (column >= 0)
    picked = v.numpy()[
        np.where(inside, n, 0), :, i[:, None] // scale % H, j // scale % W
    ]
    expected = np.where(inside[..., None], picked, 255).transpose(2, 0, 1)
    np.testing.assert_array_equal(out.numpy(), expected)
    assert inside.sum() == N * H * W * scale**2


@pytest.mark.parametrize(
    ("size", "seen"),
    [(1, 64), (5, 65), (16, 64), (28, 56), (32, 64), (64, 64), (90, 90)],
)
def test_small_pictures_are_enlarged_to_be_seen(size, seen):
    """A 5x5 picture is shown at about 64 pixels; large ones are left alone."""
    out = grid(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    assert out.shape == (3, seen + 2 * GAP, seen + 2 * GAP)
    for narrow in ((1, size), (size, 1)):  # the longer side is what is seen
        out = grid(torch.zeros(1, 3, *narrow, dtype=torch.uint8))
        assert max(out.shape) == seen + 2 * GAP


def test_64_pictures_make_a_square():
    """The number of samples that papers show is as many across as down."""
    _, height, width = grid(torch.zeros(64, 1, 8, 8, dtype=torch.uint8)).shape
    assert height == width


@pytest.mark.parametrize(
    "v",
    [
        torch.zeros(2, 3, 4, 4),
        torch.zeros(3, 4, 4, dtype=torch.uint8),
        torch.zeros(2, 2, 4, 4, dtype=torch.uint8),
        torch.zeros(0, 3, 4, 4, dtype=torch.uint8),
    ],
)
def test_what_a_grid_cannot_show_is_refused(v):
    """Floats, three dimensions, two channels, no pictures: ValueErrors."""
    with pytest.raises(ValueError, match="a grid takes uint8 pictures"):
        grid(v)


def pixels(path, mode="RGB"):
    """What a viewer shows, (H, W, C) or (H, W)."""
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return np.array(image.convert(mode))


@pytest.mark.parametrize(("C", "mode"), [(1, "L"), (3, "RGB")])
def test_a_png_is_read_back_equal(tmp_path, C, mode):
    """PNG is lossless: Pillow reads the very pixels, in the same places."""
    v = levels(C, (C, 5, 7))
    save_png(tmp_path / "a.png", v)
    expected = v[0] if C == 1 else v.permute(1, 2, 0)
    np.testing.assert_array_equal(pixels(tmp_path / "a.png", mode), expected.numpy())


def test_what_is_no_picture_leaves_no_file(tmp_path):
    """A wrong shape or dtype is refused, and nothing is written."""
    for wrong in (torch.zeros(3, 4, 4), levels(0, (2, 4, 4)), levels(0, (1, 3, 4, 4))):
        with pytest.raises(ValueError, match=r"uint8 \(C, H, W\) with C = 1 or 3"):
            save_png(tmp_path / "a.png", wrong)
        with pytest.raises(ValueError, match=r"uint8 \(C, H, W\) with C = 1 or 3"):
            save_gif(tmp_path / "a.gif", [wrong])
    assert list(tmp_path.iterdir()) == []


def shown(path):
    """(milliseconds, pixels (3, H, W)) of each frame that a viewer shows."""
    with Image.open(path) as image:
        assert image.n_frames == 1 or image.info["loop"] == 0  # 0: for ever
        for i in range(image.n_frames):
            image.seek(i)
            v = np.array(image.convert("RGB")).transpose(2, 0, 1)
            yield image.info["duration"], v


@pytest.mark.parametrize("C", [1, 3])
@pytest.mark.parametrize(
    "order",
    [[0, 1, 2, 3, 4], [0, 1, 2, 1, 2, 2], [0, 0, 1, 1], [2, 2, 2], [0]],
    ids=str,
)
def test_a_gif_shows_every_frame_for_its_time(tmp_path, C, order):
    """Frame k of n at (k + 1/2)/n of 4 s, equal ones too; the last one for 2 s.

    Frames of at most 256 colours are shown exactly. A frame's time is right to the
    hundredth of a second, GIF's unit.
    """
    frames = [levels(i, (C, 9, 11)) for i in order]
    save_gif(tmp_path / "a.gif", frames)
    viewed = [v for ms, v in shown(tmp_path / "a.gif") for _ in range(ms)]
    each, last = 4000 / len(frames), 2000
    wrong = 5 * (len(frames) - 1)  # half a hundredth for each frame but the last
    assert abs(len(viewed) - (each * (len(frames) - 1) + last)) <= wrong
    for k, frame in enumerate(frames):
        at = -1 if k == len(frames) - 1 else round((k + 0.5) * each)
        np.testing.assert_array_equal(viewed[at], frame.expand(3, -1, -1).numpy())
    for v in viewed[-last:]:
        np.testing.assert_array_equal(v, viewed[-1])


def test_no_frame_is_too_short_to_be_seen(tmp_path):
    """Viewers take 10 ms or less for a mistake and show such frames for 100 ms."""
    save_gif(tmp_path / "a.gif", [levels(i, (1, 2, 2)) for i in range(400)])
    assert [ms for ms, _ in shown(tmp_path / "a.gif")][:-1] == [20] * 399


def test_a_gif_needs_frames_of_one_shape(tmp_path):
    """No frame, or frames of two shapes: refused, nothing written. The sentence names
    the first ten shapes, for there may be thousands."""
    shapes = [(3, 4, 4 + i) for i in range(11)]
    for given_shapes in ([], shapes[:2], shapes):
        with pytest.raises(ValueError, match="an animation") as refused:
            save_gif(tmp_path / "a.gif", [levels(0, shape) for shape in given_shapes])
        assert str(refused.value) == (
            f"an animation needs one or more frames of one shape, got "
            f"{given_shapes[:10]}"
        )
    assert list(tmp_path.iterdir()) == []


# What a matplotlibrc may say of pictures, the first as astronomers have it.
OF_A_USER = {"image.origin": "lower", "savefig.format": "pdf", "figure.dpi": 37}


@share(20)
@example(seed=0, n_rows=1, N=9, C=1, H=4, W=4)  # a longer row than a grid's
@given(
    seed=seeds,
    n_rows=st.integers(1, 3),
    N=st.integers(1, 9),
    C=st.sampled_from([1, 3]),
    H=st.integers(1, 40),
    W=st.integers(1, 40),
)
def test_a_strip_puts_pictures_down_pixel_by_pixel(
    tmp_path_factory, seed, n_rows, N, C, H, W
):
    """Below 40 pixels of text, each row is its grid, unresampled, in order, whatever
    the user's own settings of matplotlib say of pictures."""
    path = tmp_path_factory.mktemp("strip") / "a.png"
    rows = [levels(seed + i, (N, C, H, W)) for i in range(n_rows)]
    captions = [f"$x_{{{j}}}$" for j in range(N)]
    with rc_context(OF_A_USER):
        save_strip(path, [(f"row {i}", captions, v) for i, v in enumerate(rows)])
    shown = np.split(pixels(path), n_rows)
    for block, v in zip(shown, rows, strict=True):
        expected = grid(v, N).expand(3, -1, -1).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(block[40:], expected)
        assert (block[:20] < 128).any()  # a heading,
        assert (block[20:40] < 128).any()  # and captions


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were written, to be asked what is in them."""
    figures, write = [], Figure.savefig

    def noted(figure, *args, **options):
        figures.append(figure)
        write(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", noted)
    return figures


def test_the_texts_of_a_strip_stand_where_they_belong(tmp_path, drawn):
    """A heading begins where its row of pictures does, in the upper of the two lines
    above it; a caption is in the middle above its picture, in the lower one. Nothing
    leaves its line of 20 pixels, with hats and indices."""
    caption, N, W = r"$\hat{x}_0^{(2)}$", 3, 40
    v = levels(0, (N, 1, 32, W))
    save_strip(tmp_path / "a.png", [("one", [caption] * N, v), ("two", ["x"] * N, v)])
    (figure,) = drawn
    height = grid(v, N, scale=2).shape[1]
    renderer = FigureCanvasAgg(figure).get_renderer()
    found = [(x.get_text(), x.get_window_extent(renderer)) for x in figure.texts]
    for i, (heading, under) in enumerate([("one", caption), ("two", "x")]):
        top = (2 - i) * (40 + height)
        (name, box), *captions = found[i * (N + 1) : (i + 1) * (N + 1)]
        assert name == heading
        assert box.x0 == pytest.approx(GAP)
        assert top - 20 <= box.y0 < box.y1 <= top
        for j, (name, box) in enumerate(captions):
            assert name == under
            middle = GAP + j * (2 * W + GAP) + W
            assert (box.x0 + box.x1) / 2 == pytest.approx(middle, abs=GAP)
            assert top - 40 <= box.y0 < box.y1 <= top - 20


def test_a_strip_needs_a_caption_for_each_picture(tmp_path):
    """Too few captions, or rows of two shapes: refused, nothing written."""
    a, b = levels(0, (2, 3, 4, 4)), levels(0, (3, 3, 4, 4))
    for rows in (
        [("one", ["x"], a)],
        [("one", ["x", "y"], a), ("two", ["x", "y", "z"], b)],
        [],
    ):
        with pytest.raises(
            ValueError, match="rows of one shape and a caption for each"
        ):
            save_strip(tmp_path / "a.png", rows)
    assert list(tmp_path.iterdir()) == []


def test_a_loss_plot_draws_the_losses_and_the_floor(tmp_path, drawn):
    """The curve is the losses given, the dashed line the floor, on a log scale; the
    legend has the last loss and the floor in figures, the axes say what they are. None
    of it leaves the picture, and most of the picture is the curve's."""
    with rc_context(OF_A_USER):
        losses = [1.0, 0.5, 0.12345]
        save_loss_plot(tmp_path / "a.png", [1, 2, 5], losses, floor=0.0312345)
    save_loss_plot(tmp_path / "b.png", [1, 2, 5], [1.0, 0.5, 0.1])
    (with_floor,), (without,) = (figure.axes for figure in drawn)
    curve, floor = with_floor.lines
    assert curve.get_xydata().tolist() == [[1, 1.0], [2, 0.5], [5, 0.12345]]
    assert set(floor.get_ydata()) == {0.0312345}
    assert with_floor.get_yscale() == "log"
    low, high = with_floor.get_ylim()
    assert low < 0.0312345 < 1 < high
    assert len(without.lines) == 1
    for name in ("a.png", "b.png"):
        assert pixels(tmp_path / name).shape == (400, 800, 3)
    said = [text.get_text() for text in with_floor.get_legend().get_texts()]
    assert said == ["training, at the end 0.1235", "floor 0.03123"]
    axes = with_floor.get_xlabel(), with_floor.get_ylabel()
    assert axes == ("step", "$L_{simple}$ (mean over D)")
    box, picture = drawn[0].get_tightbbox(), drawn[0].bbox_inches
    assert 0 <= box.x0 < box.x1 <= picture.width
    assert 0 <= box.y0 < box.y1 <= picture.height
    place = with_floor.get_position()
    assert min(place.width, place.height) > 0.8


def test_in_a_loss_plot_the_curve_stands_out(tmp_path, drawn):
    """A loss is noisy, so its line is thinner than matplotlib's; lines that help to
    read it off, between the powers of ten too, are paler; the floor, as black as the
    texts, is no curve."""
    save_loss_plot(tmp_path / "a.png", [1, 2, 5], [1.0, 0.5, 0.1], floor=0.03)
    curve, floor = drawn[0].axes[0].lines
    assert curve.get_linewidth() < 1.5
    assert floor.get_linestyle() == "--" != curve.get_linestyle()
    axis = drawn[0].axes[0].yaxis
    assert to_rgba(floor.get_color()) == to_rgba(axis.label.get_color())
    assert to_rgba(floor.get_color()) != to_rgba(curve.get_color())
    for tick in (axis.get_major_ticks()[0], axis.get_minor_ticks()[0]):
        assert tick.gridline.get_visible()
        assert 0.1 < tick.gridline.get_alpha() < 0.5


@pytest.mark.parametrize(
    ("steps", "losses"),
    [([], []), ([1], [0.0]), ([1], [math.nan]), ([1], [-1.0]), ([1, 2], [1.0])],
)
def test_a_loss_plot_refuses_what_it_cannot_show(tmp_path, steps, losses):
    """No loss, one not above 0 (log scale), or not one for each step: refused."""
    with pytest.raises(ValueError, match="a loss curve") as refused:
        save_loss_plot(tmp_path / "a.png", steps, losses)
    assert str(refused.value) == (
        f"a loss curve needs a loss > 0 for each step, got {len(steps)} steps and "
        f"{len(losses)} losses, the least {min(losses) if losses else None}"
    )
    assert list(tmp_path.iterdir()) == []


def test_plots_leave_pyplot_alone(tmp_path, monkeypatch):
    """No global figure, backend or window: pyplot, where those live, is not needed."""
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it fails
    save_loss_plot(tmp_path / "a.png", [1, 2], [1.0, 0.5])
    save_strip(tmp_path / "b.png", [("a", ["b"], levels(0, (1, 3, 4, 4)))])


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    """Each function names the path that it cannot write, and what to do."""
    (tmp_path / "a").write_bytes(b"")
    path, v = tmp_path / "a" / "b.png", levels(0, (1, 3, 4, 4))
    for save in (
        lambda: save_png(path, v[0]),
        lambda: save_gif(path, [v[0]]),
        lambda: save_strip(path, [("a", ["b"], v)]),
        lambda: save_loss_plot(path, [1], [1.0]),
    ):
        with pytest.raises(OSError, match=r"cannot write .*a/b\.png.*give a folder"):
            save()
