"""How good samples are: their distance from real pictures, beside that of real ones.

    python examples/score.py --checkpoint out/fashion/checkpoint.pt \
        --data data/fashion/train-images-idx3-ubyte.gz --held-out 2000
    python examples/score.py --pictures samples.npy --data data/mnist-images.npy

Some pictures are held out: those of --test, or --held-out many of --data, always the
same ones. On the others a small network learns the labels, or, where there are none,
by which quarter turn a picture was rotated. What it sees in a picture, 64 numbers, are
the features that the Fréchet distance is taken of. Printed, for the samples and, as the
floor, for as many held-out pictures in their place:

- the Fréchet distance from other held-out pictures;
- where the samples have classes, the accuracy on held-out pictures of a network that
  learned from the samples alone;
- the distance of each to its nearest training picture: near ones are memorised.

The network's weights are made anew each time, by --seed: compare only figures of one
seed, one data set and one number of pictures. Writes in --out: score.json, nearest.png,
the first samples above their nearest training pictures, and samples.npy, if drawn.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from tinyddpm import Schedule, sample, to_float, to_uint8
from tinyddpm.beyond.distance import frechet_distance, gaussian_of, nearest
from tinyddpm.workshop.checkpoint import load_checkpoint, rebuild
from tinyddpm.workshop.datasets import hold_out, read_pictures
from tinyddpm.workshop.files import write_whole
from tinyddpm.workshop.machine import precision_to_sample
from tinyddpm.workshop.pictures import grid, save_png
from tinyddpm.workshop.progress import errors_as_sentences
from tinyddpm.workshop.readers import read_npy_images, read_npy_labels
from tinyddpm.workshop.scripts import say_out_of_range
from tinyddpm.workshop.settings import pick_device
from tinyddpm.workshop.speed import faster

STEPS, BATCH = 500, 128  # of the classifier's training: less than a minute
ROUNDS = 20  # ways to cut the held-out pictures into two halves
SHOWN = 16  # samples in nearest.png

Labelled = tuple[Tensor, Tensor | None]  # uint8 (N, C, H, W); long (N,), or None


class Classifier(nn.Module):
    """Three convolutions and two dense layers; features are what the last one reads."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.dense = nn.Linear(64 * 4, 64)
        self.last = nn.Linear(64, classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, 64), of mean 0 and mean square 1 each.

        So scaled no single picture can be far out, and decide over the covariance.
        """
        h = F.max_pool2d(F.relu(self.conv1(x)), 2)
        h = F.max_pool2d(F.relu(self.conv2(h)), 2)
        h = F.adaptive_avg_pool2d(F.relu(self.conv3(h)), 2)
        return F.layer_norm(self.dense(h.flatten(1)), (64,))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> logits (B, classes)."""
        return self.last(F.relu(self.features(x)))


def learn(v: Tensor, c: Tensor | None, seed: int) -> Classifier:
    """A classifier of pictures v, uint8, with labels c; of their rotation if None."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Classifier(v.shape[1], 4 if c is None else int(c.max()) + 1).to(v.device)
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    g = Generator().manual_seed(seed)
    for _ in range(STEPS):
        i = torch.randint(len(v), (BATCH,), generator=g)
        x, label = rotated(v[i], g) if c is None else (v[i], c[i])
        loss = F.cross_entropy(net(to_float(x)), label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
    return net.eval()


def rotated(v: Tensor, g: Generator) -> tuple[Tensor, Tensor]:
    """Each picture turned by 0 to 3 quarters, and by how many, in place of a label."""
    turns = torch.randint(4, (len(v),), generator=g).to(v.device)
    each = torch.stack([v.rot90(k, (2, 3)) for k in range(4)])
    return each[turns, torch.arange(len(v), device=v.device)], turns


@torch.no_grad()
def accuracy(net: Classifier, v: Tensor, c: Tensor | None, seed: int) -> float:
    """The share of pictures whose label (or rotation) `net` finds."""
    if c is None:
        v, c = rotated(v, Generator().manual_seed(seed))
    found = torch.cat([net(to_float(part)).argmax(1) for part in v.split(500)])
    return float((found == c).double().mean())


@torch.no_grad()
def features(net: Classifier, v: Tensor) -> Tensor:
    """What `net` sees in pictures v, (N, 64)."""
    return torch.cat([net.features(to_float(part)) for part in v.split(500)])


def draw(args: argparse.Namespace, device: torch.device) -> Labelled:
    """Samples of the checkpoint's moving average, uint8, and their classes if any."""
    from tqdm import tqdm

    checkpoint = load_checkpoint(args.checkpoint)
    s, net = Schedule(checkpoint.beta), rebuild(checkpoint).to(device)
    g, done, classes = Generator(device).manual_seed(args.seed), [], None
    farthest = []  # of each picture the number farthest from 0, (chunk, 1)
    if getattr(net, "num_classes", None):
        classes = torch.arange(args.samples, device=device) % net.num_classes
    bf16, why = precision_to_sample(device, None, checkpoint.config.get("bf16"))
    print(f"sampling in {why}")
    net = faster(net, bf16, compiled=False)
    for i in tqdm(torch.arange(args.samples).split(args.chunk), disable=None):
        eps_theta = net if classes is None else partial(net, c=classes[i])
        size = (len(i), *checkpoint.shape)
        x_0 = sample(s, eps_theta, size, g, clip_x_0=args.clip_x_0)
        done.append(to_uint8(x_0))
        farthest.append(x_0.flatten(1).abs().amax(1, keepdim=True))
    say_out_of_range(torch.cat(farthest))
    return torch.cat(done), classes


def compare(
    samples: Tensor, held: Tensor, net: Classifier, n: int
) -> dict[str, list[float]]:
    """The distance of n samples, and of n held-out pictures, from n others held out.

    In `ROUNDS` ways to choose them: how much the floor itself varies.
    """
    seen, real = features(net, samples), features(net, held)
    g, of_samples = Generator().manual_seed(0), Generator().manual_seed(0)
    found: dict[str, list[float]] = {"samples": [], "real": []}
    for _ in range(ROUNDS):
        order = torch.randperm(len(held), generator=g)
        others = gaussian_of(real[order[-n:]])
        mine = gaussian_of(seen[torch.randperm(len(seen), generator=of_samples)[:n]])
        found["samples"].append(frechet_distance(mine, others))
        found["real"].append(frechet_distance(gaussian_of(real[order[:n]]), others))
    return found


def fitted(images: Tensor, shape: Sequence[int], path: str) -> Tensor:
    """The pictures, if they are of the samples' shape."""
    if images.shape[1:] != torch.Size(shape):
        raise ValueError(
            f"the samples are {tuple(shape)}, {path} holds {tuple(images.shape[1:])}; "
            f"give the data that they imitate"
        )
    return images


def main(argv: list[str]) -> None:
    args = flags().parse_args(argv)
    if min(args.samples, args.chunk) < 1 or not 0 <= args.seed < 2**62:
        raise ValueError("--samples and --chunk must be at least 1, --seed at least 0")
    device, began = pick_device(args.device), time.perf_counter()
    samples, classes, out = None, None, Path(args.out)
    if args.pictures:
        samples = read_npy_images(args.pictures)
        classes = read_npy_labels(args.classes) if args.classes else None
        shape = samples.shape[1:]
    else:
        checkpoint = load_checkpoint(args.checkpoint)
        held_out_in_training(args, checkpoint.config)
        shape = checkpoint.shape
    (v, c), (held, held_c) = read(args, shape, device)
    n = min(args.samples, len(held) // 2)
    if n < 2:
        raise ValueError(f"{len(held)} held-out pictures are too few; 4 at least")
    if samples is None:
        samples, classes = draw(args, device)
        save_npy(out / "samples.npy", samples)
    samples, classes = shuffled(samples.to(device), classes)
    n = min(n, len(samples))

    net = learn(v, c, args.seed)
    what = "turns of a quarter, for want of labels" if c is None else "the classes"
    figures: dict[str, Any] = {
        "pictures": n,
        "training pictures": len(v),
        "held out": len(held),
        "features learned from": what,
        "their accuracy": accuracy(net, held, held_c, args.seed),
        "seconds to learn": time.perf_counter() - began,
        "distance": compare(samples, held, net, n),
    }
    if classes is not None and held_c is not None:
        # each network sees as many pictures, and is asked about the same others
        figures["accuracy"] = {
            who: accuracy(learn(x[:n], k[:n], args.seed), held[n:], held_c[n:], 0)
            for who, x, k in (("samples", samples, classes), ("real", held, held_c))
        }
    near, which = nearest(to_float(samples[:n]), to_float(v))
    real, _ = nearest(to_float(held[:n]), to_float(v))
    figures["nearest"] = {  # in 8-bit levels
        "samples": float(near.median()) * 127.5,
        "real": float(real.median()) * 127.5,
    }
    figures["nearer than 1 %"] = {
        "samples": float((near < real.quantile(0.01)).double().mean()),
        "real": float((real < real.quantile(0.01)).double().mean()),
    }
    shown = samples[:n][:SHOWN], v[which[:SHOWN]]
    save_png(out / "nearest.png", grid(torch.cat(shown), len(shown[0])))
    print(report(figures))
    figures |= {"seconds": time.perf_counter() - began, "arguments": vars(args)}
    with write_whole(out / "score.json") as file:
        file.write(json.dumps(figures, indent=1).encode())
    print(f"samples above their nearest training pictures: {out / 'nearest.png'}")


def held_out_in_training(args: argparse.Namespace, config: dict[str, Any]) -> None:
    """Refuses to score a network on pictures that it was trained on."""
    left = config.get("held_out", 0)
    if args.test is None and args.held_out != left:
        others = (
            f"give --held-out {left}, or others by --test" if left else "give --test"
        )
        raise ValueError(
            f"{args.checkpoint} was trained on all pictures but {left:,}, and "
            f"--held-out is {args.held_out:,}: {others}"
        )


def read(
    args: argparse.Namespace, shape: Sequence[int], device: torch.device
) -> tuple[Labelled, Labelled]:
    """The training pictures and the held-out ones, these shuffled."""
    v, c, _ = read_pictures(args.data, args.labels, (shape[1], shape[2]), shape[0])
    v = fitted(v, shape, args.data).to(device)
    c = None if c is None else c.to(device)
    if not args.test:
        train, rest = hold_out(args.held_out, len(v))
        held = v[rest], None if c is None else c[rest]
        return (v[train], None if c is None else c[train]), shuffled(*held)
    held, held_c, _ = read_pictures(
        args.test, args.test_labels, (shape[1], shape[2]), shape[0], "test"
    )
    held = fitted(held, shape, args.test).to(device)
    if (c is None) is not (held_c is None):
        raise ValueError("labels are needed of both --data and --test, or of neither")
    return (v, c), shuffled(held, None if held_c is None else held_c.to(device))


def shuffled(v: Tensor, c: Tensor | None) -> Labelled:
    """In an order that is always the same: any part stands for the whole."""
    if c is not None and len(c) != len(v):
        raise ValueError(f"got {len(c)} classes for {len(v)} pictures")
    order = torch.randperm(len(v), generator=Generator().manual_seed(1)).to(v.device)
    return v[order], None if c is None else c.to(v.device)[order]


def report(figures: dict[str, Any]) -> str:
    """The table: samples, and real pictures in their place."""
    lines = [
        f"{figures['training pictures']:,} training pictures, {figures['held out']:,} "
        f"held out. Features: of a network that learned",
        f"{figures['features learned from']} in {figures['seconds to learn']:.0f} s; "
        f"right on {figures['their accuracy']:.1%} of the pictures held out",
    ]

    def row(name: str, samples: str, real: str) -> None:
        lines.append(f"{name:44}{samples:>17}{real:>17}")

    row(f"{figures['pictures']:,} pictures each", "samples", "real (floor)")
    both = {
        who: torch.tensor(found, dtype=torch.double)
        for who, found in figures["distance"].items()
    }
    cells = (f"{x.mean():.3f} ± {x.std():.3f}" for x in both.values())
    row("Fréchet distance from others held out", *cells)
    times = float(both["samples"].mean() / both["real"].mean())
    row("  in floors", f"{times:.2f}", "1")
    for key, name, form in (
        ("accuracy", "accuracy of a network that learned from them", "{:.1%}"),
        ("nearest", "RMSE (0..255) to nearest training picture", "{:.1f}"),
        ("nearer than 1 %", "  nearer than the nearest 1 % of real ones", "{:.1%}"),
    ):
        if key in figures:
            row(name, *(form.format(x) for x in figures[key].values()))
    return "\n".join(lines)


def save_npy(path: Path, v: Tensor) -> None:
    """Writes pictures as `read_npy_images` reads them, (N, H, W, C)."""
    import numpy as np

    with write_whole(path) as file:
        np.save(file, v.permute(0, 2, 3, 1).cpu().contiguous().numpy())


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    of = parser.add_mutually_exclusive_group(required=True)
    of.add_argument("--checkpoint", help="of a training script: samples are drawn")
    of.add_argument("--pictures", help="samples, a .npy file, uint8 (N, H, W, C)")
    parser.add_argument("--classes", help="of --pictures, a .npy file, one-hot (N, K)")
    parser.add_argument("--data", required=True, help="training pictures")
    parser.add_argument("--labels", help="of --data, a .npy or IDX file")
    parser.add_argument("--test", help="held-out pictures, if in another file")
    parser.add_argument("--test-labels", help="of --test")
    parser.add_argument("--held-out", type=int, default=2000, help="else, so many")
    parser.add_argument("--samples", type=int, default=1000, help="how many, at most")
    parser.add_argument("--chunk", type=int, default=100, help="drawn at a time")
    parser.add_argument("--clip-x-0", action="store_true", help="clamp x̂_0")
    parser.add_argument("--seed", type=int, default=0, help="of all randomness")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--out", default="out/score", help="folder for what is written")
    return parser


if __name__ == "__main__":
    with errors_as_sentences():
        main(sys.argv[1:])
