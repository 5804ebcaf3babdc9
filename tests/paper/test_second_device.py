"""What each public function costs on another device than the CPU: no GPU is needed.

`second_device.py` says how. The table is the law: how many copies between devices, and
how often the host waits for the device's numbers.
"""

import pytest
import torch
from torch import Tensor
from torch.optim import optimizer

import tinyddpm
from tinyddpm import (
    EMA,
    L_0,
    L_T,
    Bound,
    L_simple,
    L_tm1,
    Schedule,
    at,
    bits_per_dim,
    drawer,
    gaussian_kl,
    gradient_drawer,
    gradient_images,
    interpolate,
    log_decoder,
    p_mean,
    p_sample_loop,
    p_step,
    predict_x_0,
    q_posterior,
    q_sample,
    q_step,
    rate_distortion,
    sample,
    time_embedding,
    to_float,
    to_uint8,
    train,
    weight,
)
from tinyddpm.train import Hyperparameters, fit

from ..second_device import (
    ELSEWHERE,
    Case,
    GeneratorThere,
    SecondDevice,
    hold_to,
    mismatches,
    ran,
)

SHAPE = (2, 3, 4, 4)


def gradients(net, loss: Tensor) -> list[Tensor | None]:
    """The loss, and what its backward pass leaves at each weight."""
    loss.backward()
    return [loss, *(p.grad for p in net.parameters())]


def averaged(net):
    ema = EMA(net, 0.9)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 1
    ema.update()
    return list(ema.net.parameters())


def trained(s, net, v):
    """Three steps of Algorithm 1, with fused Adam as on a GPU."""
    h = Hyperparameters(3, batch=4, lr=1e-3, warmup=1, ema=0.5)
    return list(fit(s, net, drawer(v, flip=True), h).parameters())


def tables(s: Schedule) -> list[Tensor]:
    return [s.beta, s.alpha, s.alpha_bar, s.beta_tilde]


# The loops bring the schedule's four tables once, and do not wait in them. Of the other
# functions each brings those that it reads, unless `Schedule.to` has done so.
PUBLIC = {
    "EMA": Case(averaged),
    "L_0": Case(lambda s, x, y: L_0(s, x, y), 0, 1, (0, 2)),  # is x 8-bit? and σ_1²
    "L_T": Case(lambda s, x: L_T(s, x), 1),
    "L_simple": Case(
        lambda s, unet, x, t, eps: gradients(unet, L_simple(s, unet, x, t, eps)), 1
    ),
    "L_tm1": Case(lambda s, x, t, y: L_tm1(s, x, t, y), 11),
    "MLP": Case(lambda net, x, t: net(x, t)),
    "Schedule": Case(lambda beta: tables(Schedule(beta)), 2, 2),  # are they in (0, 1)?
    "UNet": Case(lambda unet, x, t: unet(x, t)),
    "UNet of classes": Case(lambda classes, x, t, c: classes(x, t, c)),
    "UNet of no class": Case(lambda classes, x, t: classes(x, t)),
    "at": Case(lambda s, t, x: at(s.alpha_bar, t, x), 1, free=("t", "x")),
    "bits_per_dim": Case(lambda s, net, x, g: bits_per_dim(s, net, x, g), 4, 3, (0, 3)),
    "drawer": Case(lambda v, c, g: drawer(v, c, flip=True)(4, g)),
    "fit": Case(trained, 4),
    "gaussian_kl": Case(lambda x, y: gaussian_kl(x, x.exp(), y, y.exp())),
    "gradient_drawer": Case(lambda g: gradient_drawer(4, 4, device=g.device)(2, g), 2),
    "gradient_images": Case(lambda g: gradient_images(2, 4, 4, g), 2),
    "interpolate": Case(
        lambda s, net, x, y, lam, g: interpolate(s, net, x, y, lam, 5, g),
        *(4, 1, (0, 1)),  # is λ in [0, 1]?
        free=("lam",),
    ),
    "log_decoder": Case(lambda v, x, y: log_decoder(v.double(), x.double(), y.exp())),
    "p_mean": Case(lambda s, x_t, t, eps: p_mean(s, x_t, t, eps), 3),
    "p_sample_loop": Case(
        lambda s, net, x_t, g: [x[1:] for x in p_sample_loop(s, net, x_t, g)], 4
    ),
    "p_step": Case(lambda s, x_t, t, eps, z: p_step(s, x_t, t, eps, z), 4),
    "predict_x_0": Case(lambda s, x_t, t, eps: predict_x_0(s, x_t, t, eps), 1),
    "q_posterior": Case(lambda s, x_t, x, t: q_posterior(s, x_t, x, t), 5),
    "q_sample": Case(lambda s, x, t, eps: q_sample(s, x, t, eps), 1),
    "q_step": Case(lambda s, x, t, z: q_step(s, x, t, z), 1),
    "rate_distortion": Case(
        lambda x, bits: rate_distortion(
            Bound(x[:, 0, 0, 0], bits, x[:, 0, 0, 1], x[:, 0, 0, 2], bits)
        )
    ),
    "sample": Case(lambda s, net, g: sample(s, net, SHAPE, g), 4),
    "sample, clamped": Case(
        lambda s, net, g: sample(s, net, SHAPE, g, "beta_tilde", True), 4
    ),
    "time_embedding": Case(lambda t: time_embedding(t, 8)),
    "to_float": Case(lambda v: to_float(v)),
    "to_uint8": Case(lambda x: to_uint8(x), 0, 1),  # is x finite?
    "weight": Case(lambda s, t: weight(s, t), 4),
}
# What has no tensors, or by its docstring only those of the CPU.
WITHOUT = {"Bound", "TrainConfig", "receive", "send"} | {
    f"{kind}_schedule" for kind in ("constant", "linear", "quadratic")
}


def as_on_a_gpu(monkeypatch):
    """`fit` makes its own generator, and a fused Adam, which "meta" is not good for."""
    monkeypatch.setattr(train, "Generator", GeneratorThere)
    good = ["cpu", ELSEWHERE.type]
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: good)


def test_the_stand_in_counts_and_refuses_what_a_gpu_does():
    """Copies either way; numbers that are read, and sizes that depend on them; two
    places in one operation, and a generator of the other place."""
    with SecondDevice() as device:
        x = torch.arange(3.0).to(ELSEWHERE)
        y = x.double() * 2 + torch.ones(3, device=ELSEWHERE)
        assert (device.copies, device.waits) == (1, 0)
        assert y.cpu().tolist() == [1, 3, 5]
        assert (device.copies, device.waits) == (2, 1)
        looks = (float, bool, int, torch.nonzero, lambda z: z[None][z[None] > 0])
        for n, look in enumerate(looks, 2):
            look(y.sum())
            assert (device.copies, device.waits) == (2, n)
        y[:2] = x[1:]
        assert y.tolist() == [1, 2, 5]
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, generator=torch.Generator(), device=ELSEWHERE)
        g = GeneratorThere(ELSEWHERE)
        assert torch.rand(3, generator=g, device=g.device).device == ELSEWHERE


def test_every_public_name_is_in_the_table():
    """`tinyddpm.__all__` is the table, but for what has no tensors."""
    names = {name.partition(" ")[0].rstrip(",") for name in PUBLIC}
    assert names | WITHOUT == set(tinyddpm.__all__)
    assert not names & WITHOUT


@pytest.mark.parametrize("name", PUBLIC)
def test_it_costs_what_the_table_says(monkeypatch, name):
    """What comes out is where what went in is, to the bit what the CPU gives.

    The copies and the waits are the table's, and for T = 5 and T = 7 the same.
    """
    as_on_a_gpu(monkeypatch)
    hold_to(PUBLIC[name])


@pytest.mark.parametrize(("case", "left_behind"), mismatches(PUBLIC))
def test_what_is_left_behind_is_an_error(monkeypatch, case, left_behind):
    """An argument on the CPU beside others that are not: no answer, no silent copy."""
    as_on_a_gpu(monkeypatch)
    with pytest.raises((RuntimeError, ValueError)):
        ran(case, but=left_behind)
