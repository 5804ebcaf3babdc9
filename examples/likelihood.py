"""What the bound of eq. 5 is worth, on two laws whose -log p(x_0) is known exactly.

    python examples/likelihood.py            # 2 cores, a minute

Both use the exact noise predictor, so that nothing is left to training. Prints how the
bound of Gaussian data nears their entropy as T grows, then the bound of the toy's
gradients by its terms, beside theirs. Writes out/likelihood/rate_distortion.png.
"""

import argparse
import math

import torch

from tinyddpm import Schedule, linear_schedule, predict_x_0, q_sample
from tinyddpm.beyond.gradients import gradient_images
from tinyddpm.beyond.oracle import gaussian_oracle, gradient_oracle
from tinyddpm.bound import L_T, L_tm1, bits_per_dim, rate_distortion
from tinyddpm.data import to_float, to_uint8
from tinyddpm.workshop.progress import errors_as_sentences
from tinyddpm.workshop.report import save_rate_distortion_plot, table

MEAN, VARIANCE = 0.3, 0.25  # of the Gaussian data, one number each
SIZE, PICTURES = 5, 256  # of the gradients
BITS = 1 / math.log(2)


def same_noise_in(T: int) -> Schedule:
    """T steps that together add what the paper's 1000 add: ᾱ sampled from one curve."""
    u = torch.linspace(0, 1, T + 1, dtype=torch.float64)
    so_far = 0.1 * u + 19.9 * u**2 / 2  # ∫ of the paper's 1000 β_t
    return Schedule(-torch.expm1(-so_far.diff()))


def gaussian_bound(s: Schedule) -> float:
    """Eq. 5 in bits, exactly: the mean over x_0 = m ± √v and ε = ±1

    stands for the expectation, since every term is a polynomial of degree 2 in them.
    x_0 is continuous, so -log p_θ(x_0|x_1) is a density here, not eq. 13's bins.
    """
    sign = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    x_0, eps = MEAN + math.sqrt(VARIANCE) * sign[:, :1], sign[:, 1:]
    eps_theta = gaussian_oracle(s, torch.tensor([MEAN]), torch.tensor([[VARIANCE]]))
    nats = L_T(s, x_0)
    for step in range(1, s.T + 1):
        t = torch.full((4,), step)
        x_t = q_sample(s, x_0, t, eps)
        x_0_hat = predict_x_0(s, x_t, t, eps_theta(x_t, t))
        if step > 1:
            nats += L_tm1(s, x_0, t, x_0_hat)
        else:
            squared = (x_0 - x_0_hat)[:, 0] ** 2
            nats += (squared / s.beta[1] + (2 * math.pi * s.beta[1]).log()) / 2
    return float(nats.mean()) * BITS


def main() -> None:
    entropy = math.log2(2 * math.pi * math.e * VARIANCE) / 2
    print(f"N({MEAN}, {VARIANCE}), σ² = β: entropy {entropy:.5f} bits")
    print(f"{'T':>5}{'bound':>10}{'gap':>10}")
    for T in (10, 30, 100, 300, 1000):
        bound = gaussian_bound(same_noise_in(T))
        print(f"{T:5}{bound:10.5f}{bound - entropy:10.5f}")

    s, g = linear_schedule(1000), torch.Generator().manual_seed(0)
    x_0 = to_float(to_uint8(gradient_images(PICTURES, SIZE, SIZE, g)))
    print(f"\n{PICTURES} gradients 3x{SIZE}x{SIZE}, T = {s.T}, σ² = β")
    gradients = bits_per_dim(s, gradient_oracle(s, SIZE, SIZE), x_0, g)
    print(table(gradients))
    floor = 16 / SIZE**2
    gap = float(gradients.total.mean()) - floor
    print(f"entropy, 2 log2(256)/(H W): {floor:.5f}; gap {gap:.5f} bits/dim")
    path = "out/likelihood/rate_distortion.png"
    save_rate_distortion_plot(path, *rate_distortion(gradients))
    print(f"rate and distortion: {path}")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    with errors_as_sentences():
        import matplotlib  # noqa: F401 (its absence shows before the minute of work)

        main()
