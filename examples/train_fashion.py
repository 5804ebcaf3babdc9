"""Fashion-MNIST: clothes, 28x28, padded to 32x32, one channel.

    python examples/train_fashion.py --download           # 2 cores, minutes
    python examples/train_fashion.py --download --full    # for a GPU

Reads train-images-idx3-ubyte, gzipped or not. Writes in --out: checkpoint.pt, loss.png,
figures.json, and in grid.png samples of the weights' moving average.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from tinyddpm import UNet, drawer, fit, linear_schedule, sample, to_uint8
from tinyddpm.workshop.download import download_fashion_mnist
from tinyddpm.workshop.pictures import grid, save_png
from tinyddpm.workshop.progress import Progress, errors_as_sentences
from tinyddpm.workshop.readers import read_idx_images
from tinyddpm.workshop.scripts import (
    SHORT,
    PictureConfig,
    command_line,
    sampling,
    say_out_of_range,
    settled,
)
from tinyddpm.workshop.settings import pick_device

HERE = {"data": "data/fashion", "out": "out/fashion"}
# Few pictures a step and many steps: early on, steps count for more.
MINUTES = PictureConfig(
    **SHORT | HERE, steps=1200, batch=16, multipliers=(1, 2, 2), attention=(2,)
)
FULL = PictureConfig(**HERE, steps=50_000, ema=0.9995)  # else App. B's, for CIFAR-10
NAME = "train-images-idx3-ubyte"


def main(argv: list[str]) -> None:
    more = {"--download": "fetch the files first"}
    c, args = command_line(argv, __doc__, MINUTES, {"--full": FULL}, more)
    device, s, out = pick_device(c.device), linear_schedule(c.T), Path(c.out)
    c = settled(c, device, args.resume)
    if args.download:
        download_fashion_mnist(c.data)
    draw = drawer(read(Path(c.data)).to(device))
    torch.manual_seed(c.seed)
    net = UNet(1, c.base, c.multipliers, c.attention, c.dropout).to(device)

    progress = Progress(out, c, net, calls=(c.T, c.samples))
    ema = fit(s, net, draw, c, progress, out / "checkpoint.pt", args.resume)
    progress.close()

    with sampling(c, ema) as (eps_theta, generator):
        x_0 = sample(
            s, eps_theta, (c.samples, 1, 32, 32), generator, clip_x_0=c.clip_x_0
        )
    say_out_of_range(x_0)
    save_png(out / "grid.png", grid(to_uint8(x_0)))


def read(folder: Path) -> Tensor:
    """The training pictures with 2 black pixels around: (N, 1, 32, 32).

    Padded, not resized: interpolated levels would not be 8-bit ones (eq. 13).
    """
    for path in (folder / NAME, folder / f"{NAME}.gz"):
        if path.is_file():
            images = read_idx_images(path)
            if images.shape[2:] != (28, 28):
                raise ValueError(f"{path} is {tuple(images.shape)}, expected 28x28")
            return pad(images, (2, 2, 2, 2))
    raise FileNotFoundError(
        f"{folder} holds no {NAME} or {NAME}.gz; give --data, or --download"
    )


if __name__ == "__main__":
    with errors_as_sentences():
        main(sys.argv[1:])
