"""Laws of `guidance.py`: the guided predictor is the score of p(x_t|c) p(c|x_t)^w."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tinyddpm import (
    MLP,
    UNet,
    at,
    bits_per_dim,
    linear_schedule,
    q_sample,
    to_float,
)
from tinyddpm.beyond.ablations import score
from tinyddpm.beyond.ddim import ddim_sample, uniform_steps
from tinyddpm.beyond.estimate import estimate_bits_per_dim
from tinyddpm.beyond.guidance import guided, sometimes_without_class

from ..strategies import normal, schedules, seeds, share, steps

CENTRES = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.3, -1.2]], dtype=torch.float64)
VARIANCE = 0.3  # of each class, in both numbers
weights = st.floats(0, 10)


def log_p(s, x_t, t, c=None):
    """log q(x_t|c) of classes N(m_c, v I), or log q(x_t) of all three alike; (B,).

    By eq. 4 x_t is N(√ᾱ_t m_c, (ᾱ_t v + 1-ᾱ_t) I) in class c.
    """
    a = at(s.alpha_bar, t, x_t)[:, :, None]
    variance = a * VARIANCE + 1 - a
    from_centre = x_t[:, None, :] - a.sqrt() * CENTRES
    each = -(from_centre**2) / (2 * variance) - (2 * math.pi * variance).log() / 2
    each = each.sum(2)  # (B, 3)
    if c is None:
        return each.logsumexp(1) - math.log(len(CENTRES))
    return each.gather(1, c[:, None])[:, 0]


class Mixture(nn.Module):
    """ε* = -√(1-ᾱ_t) ∇ log q(x_t|c), or with no class ∇ log q(x_t), by autograd."""

    num_classes = len(CENTRES)

    def __init__(self, s):
        super().__init__()
        self.s = s

    def forward(self, x_t, t, c=None):
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            (grad,) = torch.autograd.grad(log_p(self.s, x, t, c).sum(), x)
        return -(1 - at(self.s.alpha_bar, t, x_t)).sqrt() * grad


@given(schedules(), seeds, weights, st.data())
def test_guidance_is_the_score_of_the_sharpened_law(s, seed, w, data):
    """Eq. 6: -ε̃/√(1-ᾱ_t) = ∇ log [q(x_t|c) q(c|x_t)^w], with q(c|x_t) by Bayes' rule.

    By automatic differentiation of the product itself.
    """
    t, x_t = data.draw(steps(s, 6)), normal(seed, (6, 2))
    c = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=6, max_size=6)))
    found = score(s, t, guided(Mixture(s), c, w)(x_t, t))
    x = x_t.clone().requires_grad_()
    of_class = log_p(s, x, t, c)
    posterior = of_class - math.log(len(CENTRES)) - log_p(s, x, t)
    (expected,) = torch.autograd.grad((of_class + w * posterior).sum(), x)
    # the largest score is that of narrow classes far away: |x_t| / 0.3 at most
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * (1 + w))


@given(schedules(), seeds, weights, st.data())
def test_two_classes_are_pushed_apart_as_the_formula_says(s, seed, w, data):
    """Classes N(±m, v): ε̃ - ε* = -w √(1-ᾱ_t) q(other|x_t) 2 √ᾱ_t m / (ᾱ_t v + 1-ᾱ_t).

    Since q(c|x_t) is logistic in x_t, its log's gradient is 1 - q(c|x_t) times a slope:
    the push is towards the class, strongest where x_t looks like the other.
    """
    t, x_t, m = data.draw(steps(s, 6)), normal(seed, (6, 1)), 0.8
    a = at(s.alpha_bar, t, x_t)
    spread = a * VARIANCE + 1 - a

    def of_class(x_t, centre):
        return (1 - a).sqrt() * (x_t - a.sqrt() * centre) / spread

    def net(x_t, t, c=None):
        if c is not None:
            return of_class(x_t, m * (1 - 2 * c[:, None].double()))
        first = (2 * a.sqrt() * m * x_t / spread).sigmoid()
        return first * of_class(x_t, m) + (1 - first) * of_class(x_t, -m)

    pushed = guided(net, 0, w)(x_t, t) - guided(net, 0, 0)(x_t, t)
    other = (-2 * a.sqrt() * m * x_t / spread).sigmoid()
    expected = -w * (1 - a).sqrt() * other * 2 * a.sqrt() * m / spread
    torch.testing.assert_close(pushed, expected, rtol=1e-9, atol=1e-9 * (1 + w))


def test_samples_are_of_the_class_and_go_further_for_larger_w():
    """w = 0 gives N(m_c, v I); a larger w pictures whose class is more certain.

    DDIM with 250 of 1000 steps is within 0.02 of the conditional law; the 2,000 samples
    have a mean good to 5 √(v/2000) = 0.06 and a variance to 5 √(2/2000) = 16 %.
    """
    s, x_T = linear_schedule(1000), normal(0, (2000, 2))
    net, certain, far = Mixture(s), [], []
    for w in (0.0, 1.0, 4.0):
        x_0 = ddim_sample(s, guided(net, 0, w), x_T, uniform_steps(1000, 250))
        t = torch.ones(len(x_0), dtype=torch.long)
        c = torch.zeros_like(t)
        certain.append(float((log_p(s, x_0, t, c) - log_p(s, x_0, t)).mean()))
        far.append(float(x_0[:, 0].mean()))
        if w == 0:
            assert float((x_0.mean(0) - CENTRES[0]).abs().max()) < 0.08
            ratio = x_0.var(0) / VARIANCE
            assert float((ratio - 1).abs().max()) < 0.2
    assert certain[0] < certain[1] < certain[2] <= math.log(len(CENTRES))
    assert far[0] < far[1] < far[2]


def test_w_0_asks_the_network_once_for_the_class():
    """w = 0: ε̃ is ε_θ(x_t, t, c) itself; any other w asks for "no class" as well."""
    asked, x_t, t = [], normal(0, (3, 2)), torch.tensor([1, 2, 3])

    def net(x_t, t, *c):
        asked.append(c)
        return x_t * (1 + len(c))

    assert torch.equal(guided(net, 1, 0)(x_t, t), 2 * x_t)
    assert len(asked) == 1
    assert asked[0][0].tolist() == [1, 1, 1]
    assert torch.equal(guided(net, 1, 0.5)(x_t, t), 1.5 * 2 * x_t - 0.5 * x_t)
    assert len(asked) == 3


def small_unet() -> UNet:
    """A U-Net of 8x8 grey pictures in 3 classes that answers more than 0."""
    torch.manual_seed(0)
    net = UNet(1, 8, (1, 2), (), 0.5, num_classes=3)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return net


def test_a_unet_is_asked_for_classes_without_dropout():
    """(1 + w) ε_θ(x_t, t, c) - w ε_θ(x_t, t, none), in eval mode; flags are kept."""
    net, x_t = small_unet(), normal(1, (2, 1, 8, 8), torch.float32)
    t, c = torch.tensor([3, 90]), torch.tensor([0, 2])
    found = guided(net, c, 2.0)(x_t, t)
    assert net.training
    net.eval()
    with torch.no_grad():
        expected = 3 * net(x_t, t, c) - 2 * net(x_t, t, torch.tensor([3, 3]))
    assert torch.equal(found, expected)
    assert not torch.equal(found, guided(net, c, 0.0)(x_t, t))


@share(20)
@given(seeds, st.integers(1, 7))
def test_the_bound_knows_the_classes_of_its_pictures(seed, chunk):
    """Eq. 5 given c: each picture of a batch has the bound that it has alone.

    `bits_per_dim` takes a function that closes over c; the estimate, which regroups
    pictures, takes c beside them and refuses such a function in words. ε is 0 here
    throughout, so that nothing differs but the grouping.
    """
    s = linear_schedule(25)
    c = torch.tensor([0, 1, 2, 1, 0])
    g = torch.Generator().manual_seed(seed)
    v = torch.randint(256, (5, 1, 2, 2), generator=g, dtype=torch.uint8)
    x_0 = to_float(v, torch.float64)

    def net(x_t, t, c):
        return 0.3 * x_t + 0.1 * c.view(-1, 1, 1, 1) + 0.01 * t.view(-1, 1, 1, 1)

    with pytest.MonkeyPatch.context() as patch:
        for module in ("tinyddpm.bound", "tinyddpm.beyond.estimate"):
            patch.setattr(f"{module}.randn_like", lambda x, g: torch.zeros_like(x))
        whole = bits_per_dim(s, guided(net, c), x_0).total
        one_by_one = [
            bits_per_dim(s, guided(net, int(k)), x_0[i : i + 1]).total
            for i, k in enumerate(c)
        ]
        torch.testing.assert_close(whole, torch.cat(one_by_one), rtol=1e-12, atol=0)
        found = estimate_bits_per_dim(s, net, x_0, c=c, chunk=chunk).total
        torch.testing.assert_close(found, whole, rtol=1e-12, atol=0)
        if chunk != len(c):
            with pytest.raises(ValueError, match=r"c must be \(B,\)"):
                estimate_bits_per_dim(s, guided(net, c), x_0, chunk=chunk)
        with pytest.raises(ValueError, match=r"c must be \(B,\)"):
            estimate_bits_per_dim(s, net, x_0, c=c[:3])


FINITE = "the guidance w must be finite and >= 0, got "
REFUSED = {
    "no such class": (UNet, 4, 0.0, "c must lie in 0..3, got 4..4"),
    "a class below 0": (
        UNet,
        torch.tensor([1, -1]),
        0.0,
        "c must lie in 0..3, got -1..1",
    ),
    "a class that is no whole number": (
        UNet,
        torch.tensor([0.5]),
        0.0,
        "c must be a LongTensor of shape (B,), got torch.float32",
    ),
    "a network without classes": (
        MLP,
        0,
        1.0,
        "this network knows no classes, so none can be asked; train one with "
        "num_classes and sometimes_without_class",
    ),
    "a negative guidance": (UNet, 0, -1.0, FINITE + "-1.0"),
    "a guidance that is no number": (UNet, 0, math.nan, FINITE + "nan"),
    "a guidance without end": (UNet, 0, math.inf, FINITE + "inf"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_a_sentence_before_any_work(case):
    """Classes that are not there, networks without, and w < 0 are refused at once."""
    kind, c, w, says = REFUSED[case]
    net = small_unet() if kind is UNet else MLP((1, 8, 8))
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        guided(net, c, w)


def test_classes_of_another_batch_are_a_sentence():
    """c (B,) belongs to a batch of B: not to one of another size."""
    x_t = q_sample(
        linear_schedule(30), normal(0, (3, 2)), torch.ones(3).long(), normal(1, (3, 2))
    )
    eps_theta = guided(lambda x_t, t, c=None: x_t, torch.tensor([0, 1]))
    with pytest.raises(
        ValueError, match=r"^c must be \(B,\), .* \(3, 2\), got \(2,\)$"
    ):
        eps_theta(x_t, torch.ones(3).long())


def test_the_class_is_left_out_as_often_as_asked():
    """Every picture keeps its class or gets `none`, with the probability given."""
    x_0, c, n = torch.zeros(1), torch.arange(3).repeat(4000), 12_000

    def without(*share: float) -> torch.Tensor:
        draw = sometimes_without_class(lambda B, g: (x_0, c), 3, *share)
        x, kept = draw(n, torch.Generator().manual_seed(0))
        assert x is x_0
        assert bool(((kept == c) | (kept == 3)).all())
        return (kept == 3).double().mean()

    assert without(0.0) == 0
    assert without(1.0) == 1
    # binomial: 5.2 standard deviations, false alarm 2e-7; 0.9 or no draw is far off
    assert abs(without(0.1) - 0.1) < 5.2 * (0.1 * 0.9 / n) ** 0.5
    assert without() == without(0.1)


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-24])
def test_none_and_all_are_none_and_all(u, monkeypatch):
    """share = 0 leaves out no class and share = 1 each, for every u in [0, 1)."""
    monkeypatch.setattr(torch, "rand", lambda B, **_: torch.full((B,), u))
    x_0, c = torch.zeros(3), torch.arange(3)
    for left_out, expected in ((0.0, c), (1.0, torch.full_like(c, 3))):
        draw = sometimes_without_class(lambda B, g: (x_0, c), 3, left_out)
        assert torch.equal(draw(3, None)[1], expected)


def test_the_classes_left_out_are_a_function_of_the_generator():
    """Equal seeds leave out the same, the next batch is another, torch's RNG rests."""
    draw = sometimes_without_class(lambda B, g: (B, torch.zeros(B)), 3, 0.5)
    before, g = torch.get_rng_state(), torch.Generator().manual_seed(0)
    first, second = draw(99, g)[1], draw(99, g)[1]
    assert torch.equal(draw(99, g.manual_seed(0))[1], first)
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
