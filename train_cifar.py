r"""The paper's CIFAR-10 run (section 4, appendix B): train, sample, save, go on.

    python train_cifar.py --data data --download       # fetches 162 MiB first
    python train_cifar.py --data data --resume         # goes on from the checkpoint
    python train_cifar.py --data data --smoke          # a minute on a CPU, narrow net
    torchrun --nproc-per-node=4 train_cifar.py --data data

On two machines that share the folder --out, the same on each, with its own NODE (0, 1):

    torchrun --nnodes=2 --node-rank=NODE --nproc-per-node=4 --max-restarts=0 \
        --master-addr=FIRST-MACHINE --master-port=29500 train_cifar.py --data data

--data is the folder that holds cifar-10-batches-bin, that folder itself, or one .bin
file of its records. In --out: checkpoint.pt, figures.json, loss.png, and grids of
samples from the moving average of the weights, step-*.png. A run killed while it draws
a grid goes on without that one; the last grid is drawn again.
"""

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tinyddpm.data import drawer, to_uint8
from tinyddpm.sampler import sample
from tinyddpm.schedule import linear_schedule
from tinyddpm.unet import UNet
from tinyddpm.workshop.download import download_cifar10
from tinyddpm.workshop.interrupts import trouble_explained
from tinyddpm.workshop.pictures import grid, save_png
from tinyddpm.workshop.processes import join, rank, wait_for_all
from tinyddpm.workshop.progress import Progress, errors_as_sentences
from tinyddpm.workshop.readers import read_cifar10, read_cifar10_file
from tinyddpm.workshop.run import fit
from tinyddpm.workshop.scripts import (
    PictureConfig,
    command_line,
    sampling,
    say_out_of_range,
    settled,
)
from tinyddpm.workshop.settings import pick_device
from tinyddpm.workshop.state import Record


@dataclass(frozen=True)
class Config(PictureConfig):
    """Settings beside those that all scripts on pictures share."""

    data: Annotated[str, "folder of cifar-10-batches-bin, or a .bin file"] = "data"
    out: Annotated[str, "folder for what is written"] = "out/cifar"
    flip: Annotated[bool, "mirror each picture with probability 1/2 (App. B)"] = True
    sample_every: Annotated[int, "steps between grids of samples"] = 25_000

    may_change = (*PictureConfig.may_change, "sample_every")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sample_every < 1 or self.sample_every % self.log_every:
            raise ValueError(
                f"sample_every must be a positive multiple of log_every, got "
                f"{self.sample_every} and {self.log_every}"
            )


SMOKE = Config(
    out="out/cifar-smoke", steps=120, batch=16, lr=1e-3, warmup=20, ema=0.97,
    log_every=10, save_every=60,
    T=100, base=32, multipliers=(1, 2, 2), attention=(2,), samples=16,
    sample_every=120, clip_x_0=True,
)  # fmt: skip


def main(argv: list[str]) -> None:
    more = {"--download": {"action": "store_true", "help": "fetch CIFAR-10 first"}}
    c, args = command_line(argv, __doc__, Config(), {"--smoke": SMOKE}, more, True)
    device, restarted = join(pick_device(c.device), Path(c.out) / "checkpoint.pt")
    if args.download and rank() == 0:
        download_cifar10(c.data)
    wait_for_all()
    c = settled(c, device, args.resume or restarted)
    images = read(c.data).to(device)
    if rank() == 0:
        print(*(f"{f.name} = {getattr(c, f.name)}" for f in fields(c)), sep="\n")
        print(f"{len(images)} pictures, on {device}")
    torch.manual_seed(c.seed)
    net = UNet(3, c.base, c.multipliers, c.attention, c.dropout).to(device)
    try:
        train(c, net, images, args.resume or restarted)
        with trouble_explained(c.batch, c.micro_batch):
            wait_for_all()  # the group ends when process 0 has drawn, and not before
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def read(path: str) -> Tensor:
    """The training pictures, uint8 (N, 3, 32, 32)."""
    if Path(path).is_file():
        return read_cifar10_file(path)[0]
    try:
        return read_cifar10(path)[0]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} with --download") from error


def train(c: Config, net: nn.Module, images: Tensor, resume: bool) -> None:
    """Algorithm 1, with a grid by Algorithm 2 at intervals and at the end."""
    s, out = linear_schedule(c.T), Path(c.out)
    checkpoint = out / "checkpoint.pt"
    if rank() != 0:
        fit(s, net, drawer(images, flip=c.flip), c, None, checkpoint, resume)
        return
    progress = Progress(out, c, net, calls=(c.T, c.samples))

    def save_samples(step: int, ema: nn.Module) -> None:
        with sampling(c, ema) as (eps_theta, generator):
            shape = (c.samples, 3, 32, 32)
            x_0 = sample(s, eps_theta, shape, generator, clip_x_0=c.clip_x_0)
        say_out_of_range(x_0)
        save_png(out / f"step-{step:06}.png", grid(to_uint8(x_0)))

    def log(r: Record) -> None:
        progress(r)
        if r.step % c.sample_every == 0 and r.step < c.steps:
            save_samples(r.step, r.ema)

    ema = fit(s, net, drawer(images, flip=c.flip), c, log, checkpoint, resume)
    progress.close()
    save_samples(c.steps, ema)  # after it: a run killed here makes them when resumed


if __name__ == "__main__":
    with errors_as_sentences():
        main(sys.argv[1:])
