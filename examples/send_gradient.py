"""Algorithms 3 and 4: one gradient sent as real bits, step by step, and received.

    python examples/send_gradient.py                  # the exact noise predictor
    python examples/send_gradient.py --checkpoint out/gradients/checkpoint.pt

Prints bits spent against the KL that theory charges, and writes in --out: message.bin,
all that the receiver gets, and strip.png, what it holds and sees after some steps.
"""

import argparse
from pathlib import Path

import torch

from tinyddpm import Schedule, linear_schedule
from tinyddpm.beyond.gradients import gradient_images
from tinyddpm.beyond.oracle import gradient_oracle
from tinyddpm.beyond.random_coding import RandomReceiver, RandomSender
from tinyddpm.coding import receive, send
from tinyddpm.data import to_float, to_uint8
from tinyddpm.workshop.checkpoint import load_checkpoint, rebuild
from tinyddpm.workshop.files import write_whole
from tinyddpm.workshop.pictures import save_strip
from tinyddpm.workshop.progress import errors_as_sentences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="a network trained on gradients")
    parser.add_argument("--T", type=int, default=100, help="the exact predictor's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="out/send_gradient")
    c = parser.parse_args()
    if c.checkpoint:
        kept = load_checkpoint(c.checkpoint)
        s, eps_theta, shape = Schedule(kept.beta), rebuild(kept), kept.shape
    else:
        s, shape = linear_schedule(c.T), (3, 8, 8)
        eps_theta = gradient_oracle(s, 8, 8)
    channels, height, width = shape
    g = torch.Generator().manual_seed(c.seed)
    x_0 = to_float(to_uint8(gradient_images(1, height, width, g, channels)))

    message, steps = send(s, eps_theta, x_0, RandomSender(c.seed))
    path = Path(c.out) / "message.bin"
    with write_whole(path) as file:
        file.write(message)
    message = path.read_bytes()  # nothing else of the sender's is used below
    received = list(receive(s, eps_theta, (1, *shape), RandomReceiver(message, c.seed)))

    print(f"{'t':>5}{'KL, bits':>10}{'sent':>8}{'RMSE':>8}")
    kl, sent, shown = 0.0, 0.0, {round(s.T * i / 9) for i in range(10)}
    at, paid, held, seen = [], [], [], []
    for step, (t, x_t, x_0_hat) in zip(steps, received, strict=True):
        assert torch.equal(x_t, step.x_t), f"x_{t} is not the sender's"
        kl, sent = kl + step.kl, sent + step.bits
        if t in shown:
            rmse = 127.5 * float((x_0_hat - x_0).square().mean().sqrt())
            print(f"{t:5}{kl:10.1f}{sent:8.1f}{rmse:8.2f}")
            at, paid = [*at, f"$t={t}$"], [*paid, f"{sent:.0f} bits"]
            held, seen = [*held, to_uint8(x_t)], [*seen, to_uint8(x_0_hat)]
    print(f"received exactly: {8 * len(message)} bits, {kl:.0f} by theory; the levels")
    print(f"as they are: {8 * x_0.numel()}; the colours' entropy: {16 * channels}")
    rows = [("held: $x_t$", at, torch.cat(held))]
    rows += [(r"seen: $\hat{x}_0$", paid, torch.cat(seen))]
    save_strip(path.with_name("strip.png"), rows)


if __name__ == "__main__":
    with errors_as_sentences():
        main()
