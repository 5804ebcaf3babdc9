"""Pictures as people see them: grids, strips, animations and plots, and their files.

A picture to be seen is uint8, (C, H, W) with 1 or 3 channels; several are (N, C, H, W).
Pillow and matplotlib (the extra [scripts]) are imported where they are used, and no
global state of theirs is touched. Files are written whole or not at all.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .files import write_whole

if TYPE_CHECKING:
    from PIL.Image import Image

GAP = 2  # white pixels around each picture of a grid
SEEN = 64  # a grid enlarges its pictures to about this many pixels


def grid(v: Tensor, columns: int = 8, scale: int | None = None) -> Tensor:
    """Pictures side by side, row after row, on white.

    Args:
        v: uint8, (N, C, H, W).
        columns: pictures in a row; the last row may be shorter.
        scale: each pixel becomes scale x scale pixels (nearest neighbour); by default
            so many that the longer side of a picture is about 64.
    Returns: uint8, (C, rows, pixels).
    """
    if (
        v.dtype != torch.uint8
        or v.ndim != 4
        or 0 in v.shape
        or v.shape[1] not in (1, 3)
    ):
        raise ValueError(
            f"a grid takes uint8 pictures (N, C, H, W) with C = 1 or 3, got {v.dtype} "
            f"{tuple(v.shape)}; to_uint8 makes them from pictures in [-1, 1]"
        )
    if scale is None:
        scale = max(1, round(SEEN / max(v.shape[2:])))
    v = v.cpu().repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    N, C, H, W = v.shape
    columns = min(columns, N)
    rows = -(-N // columns)
    out = v.new_full((C, rows * (H + GAP) + GAP, columns * (W + GAP) + GAP), 255)
    for i, picture in enumerate(v):
        y, x = (i // columns) * (H + GAP) + GAP, (i % columns) * (W + GAP) + GAP
        out[:, y : y + H, x : x + W] = picture
    return out


def _pillow(picture: Tensor) -> "Image":
    """The same picture, (C, H, W) with C = 1 or 3, as a Pillow image."""
    from PIL import Image

    if picture.dtype != torch.uint8 or picture.ndim != 3 or len(picture) not in (1, 3):
        raise ValueError(
            f"a picture to be written is uint8 (C, H, W) with C = 1 or 3, got "
            f"{picture.dtype} {tuple(picture.shape)}"
        )
    pixels = picture[0] if len(picture) == 1 else picture.permute(1, 2, 0)
    return Image.fromarray(pixels.cpu().contiguous().numpy())


def save_png(path: str | Path, picture: Tensor) -> None:
    """Writes one uint8 picture (C, H, W), C = 1 or 3, losslessly."""
    image = _pillow(picture)
    with write_whole(path) as file:
        image.save(file, format="PNG")


def save_gif(path: str | Path, frames: Sequence[Tensor]) -> None:
    """Writes uint8 pictures (C, H, W) as an animation that repeats for ever.

    Each frame has its share of 4 s, to the hundredth; the last one stays for 2 s.
    Equal frames in a row are written as one that stays for their times together. GIF
    holds 256 colours a frame, so that frames are close to the pictures, not equal.
    """
    if len({frame.shape for frame in frames}) != 1:
        raise ValueError(
            f"an animation needs one or more frames of one shape, got "
            f"{[tuple(frame.shape) for frame in frames][:10]}"
        )
    first, *rest = [_pillow(frame).quantize(256) for frame in frames]
    # GIF counts in hundredths, which Pillow would cut to; below 20 ms viewers slow down
    each = max(20, 10 * round(400 / len(frames)))
    with write_whole(path) as file:
        first.save(
            file,
            format="GIF",
            save_all=True,
            append_images=rest,
            duration=[each] * len(rest) + [2000],
            loop=0,
        )


def save_strip(
    path: str | Path, rows: Sequence[tuple[str, Sequence[str], Tensor]]
) -> None:
    """Writes rows of pictures, each row under a heading, each picture under a caption.

    Args:
        path: a .png file.
        rows: of (heading, N captions, uint8 pictures (N, C, H, W)), all pictures of one
            shape. What stands between dollars, `$x_0$`, is set as mathematics.
    """
    from matplotlib.figure import Figure

    shapes = [(len(captions), *v.shape[1:]) for _, captions, v in rows]
    if len({*shapes, *(v.shape for _, _, v in rows)}) != 1:
        raise ValueError(
            f"a strip needs rows of one shape and a caption for each picture, got rows "
            f"{[tuple(v.shape) for _, _, v in rows]} and "
            f"{[len(captions) for _, captions, _ in rows]} captions"
        )
    strips = [grid(v, columns=len(v)) for _, _, v in rows]
    line, (height, width) = 20, strips[0].shape[1:]
    total = len(rows) * (2 * line + height)
    # a power of 2 divides without rounding: the figure has exactly these pixels
    figure = Figure(figsize=(width / 128, total / 128), dpi=128)

    def write(text: str, x: float, y: float, align: str) -> None:
        figure.text(x / width, y / total, text, ha=align, va="center", size=7)

    for i, (heading, captions, _) in enumerate(rows):
        bottom = total - (i + 1) * (2 * line + height)
        write(heading, GAP, bottom + height + 1.5 * line, "left")
        for j, caption in enumerate(captions):
            x = (j + 0.5) * width / len(captions)
            write(caption, x, bottom + height + 0.5 * line, "center")
        # figimage puts pixels down as they are; imshow would resample them
        pixels = strips[i].expand(3, -1, -1).permute(1, 2, 0).numpy()
        figure.figimage(pixels, xo=0, yo=bottom, origin="upper")
    with write_whole(path) as file:
        figure.savefig(file, format="png")


def save_loss_plot(
    path: str | Path,
    steps: Sequence[int],
    losses: Sequence[float],
    floor: float | None = None,
) -> None:
    """Writes the loss curve, on a logarithmic scale, as a .png file.

    Args:
        steps, losses: of equal length; every loss > 0.
        floor: the smallest loss any network can have, if it is known.
    """
    from matplotlib.figure import Figure

    if len(steps) != len(losses) or not losses or not min(losses) > 0:
        raise ValueError(
            f"a loss curve needs a loss > 0 for each step, got {len(steps)} steps and "
            f"{len(losses)} losses, the least {min(losses, default=None)}"
        )
    figure = Figure(figsize=(8, 4), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(
        steps, losses, linewidth=1, label=f"training, at the end {losses[-1]:.4g}"
    )
    if floor is not None:
        axes.axhline(floor, color="black", linestyle="--", label=f"floor {floor:.4g}")
    axes.set(xlabel="step", ylabel="$L_{simple}$ (mean over D)", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    with write_whole(path) as file:
        figure.savefig(file, format="png")
