"""Samples in any number: drawn in batches, each picture by its own seed, and saved.

Picture i of a seed is the same whatever the batch size: its x_T and every z come from a
generator seeded by (seed, i). (A network may round otherwise for another batch size.)
"""

import io
import os
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from ..beyond.ddim import check_eta, ddim_step, uniform_steps
from ..beyond.improved import strided
from ..data import to_uint8
from ..sampler import asked, p_step
from ..schedule import Schedule
from ..train import random_seed
from .files import write_whole
from .pictures import grid, save_gif, save_png

Step = Callable[[Tensor, int, int, Tensor], Tensor]  # (x_t, t, t', z) -> x_t'
FRAMES = 50  # of an animation


def sampler_of(
    s: Schedule,
    eps_theta: Callable[..., Tensor],
    name: str = "ddpm",
    steps: int | None = None,
    eta: float = 0.0,
    sigma2: str = "beta",
    clip_x_0: bool = False,
) -> tuple[list[int], Step]:
    """The steps to take, falling, and the step that a sampler takes from t to t'.

    Args:
        name: "ddpm", Algorithm 2, or "ddim" with its eta.
        steps: how many of the T steps to take, spaced evenly; None for all.
    """
    check_eta(eta)
    if steps is not None and not 1 <= steps <= s.T:
        raise ValueError(f"steps must lie in 1..{s.T}, got {steps}")
    every = uniform_steps(s.T, s.T if steps is None else steps)
    if name == "ddpm":
        s, eps_theta = (s, eps_theta) if steps is None else strided(s, eps_theta, every)
        every = list(range(s.T, 0, -1))
    elif name != "ddim":
        raise ValueError(f"the sampler must be 'ddpm' or 'ddim', got {name!r}")
    ask = asked(eps_theta)

    def step(x_t: Tensor, t: int, t_prime: int, z: Tensor) -> Tensor:
        now = torch.full(x_t.shape[:1], t, device=x_t.device)
        eps_hat = ask(x_t, now)
        if name == "ddpm":
            return p_step(s, x_t, now, eps_hat, z, sigma2, clip_x_0)
        later = torch.full_like(now, t_prime)
        return ddim_step(s, x_t, now, later, eps_hat, z, eta, clip_x_0)

    return every, step


def draw(
    steps: list[int],
    step: Step,
    shape: tuple[int, ...],
    numbers: range,
    seed: int,
    device: torch.device,
) -> Iterator[tuple[int, Tensor]]:
    """The pictures of these numbers, (B, C, H, W), as they come out of the noise.

    Yields: (t, x_t) for each of the steps, then (0, x_0).
    """
    x_t = torch.empty((len(numbers), *shape), device=device)  # too many fail at once
    own = [Generator(device).manual_seed(random_seed(seed, i)) for i in numbers]

    def noise() -> Tensor:
        each = [torch.randn(shape, generator=g, device=device) for g in own]
        return torch.stack(each)

    x_t = noise()
    for t, t_prime in pairwise([*steps, 0]):
        yield t, x_t
        x_t = step(x_t, t, t_prime, noise() if t_prime > 0 else torch.zeros_like(x_t))
    yield 0, x_t


def draw_all(
    of_batch: Callable[[range], Iterator[tuple[int, Tensor]]],
    count: int,
    batch: int,
    steps: int,
    keep: set[int],
) -> dict[int, Tensor]:
    """All pictures, batch after batch, uint8 by the step t that they are kept at.

    After a few steps it says how long the rest will take, and at the end how many
    pictures were out of range.
    """
    from tqdm import tqdm

    frames: dict[int, list[Tensor]] = {t: [] for t in keep}
    outside, farthest, began, said = 0, 0.0, time.perf_counter(), False
    total = -(-count // batch) * steps
    with tqdm(total=total, unit="step", disable=None) as bar:
        for first in range(0, count, batch):
            for t, x_t in of_batch(range(first, min(first + batch, count))):
                if t in frames:
                    frames[t].append(to_uint8(x_t).cpu())
                if t > 0:
                    bar.update()
                if not said and t > 0 and bar.n == min(5, steps):
                    said = True
                    seconds = (time.perf_counter() - began) / bar.n * (total - bar.n)
                    bar.write(f"{count} pictures take about {seconds:.0f} s more")
                last = x_t
            beyond = (last.abs().flatten(1).amax(1) - 1).clamp(min=0)
            outside += int((beyond > 0.5).sum())
            farthest = max(farthest, float(beyond.max()))
    if outside:
        print(out_of_range(outside, count, farthest))
    return {t: torch.cat(parts) for t, parts in frames.items()}


def out_of_range(outside: int, count: int, farthest: float) -> str:
    """What to say of pictures that left [-1, 1]: black, white, or of one colour."""
    return (
        f"{outside} of {count} pictures left [-1, 1] by more than 0.5, by up to "
        f"{farthest:.3g}: the network has not trained long enough for Algorithm 2 as "
        f"it is printed; train longer, or clamp x̂_0 with --clip-x-0 (in Python "
        f"clip_x_0=True), as the authors' code does"
    )


def kind_of(out: str) -> str:
    """What `out` asks for, "png", "gif", "npz" or "folder"; ValueError for all else."""
    suffix = Path(out).suffix.lower()
    if out.endswith(("/", os.sep)) or (Path(out).is_dir()):
        return "folder"
    if suffix in (".png", ".gif", ".npz"):
        return suffix[1:]
    raise ValueError(
        f"samples are written as grid.png, chain.gif, samples.npz or into a folder/, "
        f"got {out!r}"
    )


def refuse_what_cannot_be_written(out: str, channels: int | None = None) -> None:
    """ValueError or OSError before the work, where `out` could not be written after."""
    kind = kind_of(out)
    if channels not in (None, 1, 3) and kind != "npz":
        raise ValueError(
            f"pictures with {channels} channels cannot be shown; write them as an "
            f"array: --out samples.npz"
        )
    folder = Path(out) if kind == "folder" else Path(out).parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OSError(f"cannot write {out}; give a folder that can be written")


def save(out: str, frames: dict[int, Tensor]) -> None:
    """Writes samples, or how they came out of the noise, as `kind_of(out)` says.

    Args: frames, uint8 (N, C, H, W) by t, as `draw_all` gives them; 0 is among them.
    """
    kind, v = kind_of(out), frames[0]
    if kind == "png":
        save_png(out, grid(v))
    elif kind == "gif":
        order = sorted(frames, reverse=True)
        save_gif(out, [grid(frames[t], scale=2) for t in order])
    elif kind == "npz":
        import numpy

        buffer = io.BytesIO()
        arrays: dict[str, Any] = {"arr_0": v.permute(0, 2, 3, 1).contiguous().numpy()}
        numpy.savez_compressed(buffer, **arrays)
        with write_whole(out) as file:
            file.write(buffer.getvalue())
    else:
        for i, picture in enumerate(v):
            save_png(Path(out) / f"{i:06}.png", picture)


def kept_steps(out: str, steps: list[int]) -> set[int]:
    """Which x_t a file of this kind shows: about 50 for an animation, else x_0."""
    if kind_of(out) != "gif":
        return {0}
    every = max(1, len(steps) // FRAMES)
    return {*steps[::every], 0}
