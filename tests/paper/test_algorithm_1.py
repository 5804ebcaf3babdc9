"""Algorithm 1: what it draws, line by line, and what it does with it (App. B)."""

import copy
import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tinyddpm
from tinyddpm import EMA, MLP, TrainConfig, UNet, linear_schedule, sample, train
from tinyddpm.schedule import Schedule
from tinyddpm.train import Hyperparameters, algorithm_1, learning_rate, random_seed

from ..helpers import filled, same_weights
from ..strategies import seeds, share

SHAPE = (2, 2, 2)
S = linear_schedule(50)
CONFIG = Hyperparameters(steps=12, batch=6, lr=0.01, warmup=4, ema=0.8)


class Net(nn.Module):
    """A noise predictor of two layers that keeps what it was asked, with dropout."""

    def __init__(self, dropout: float = 0.0, dtype: torch.dtype = torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.a, self.b = nn.Linear(9, 5, dtype=dtype), nn.Linear(5, 8, dtype=dtype)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator, dtype=dtype) / 2
        self.dropout, self.asked = nn.Dropout(dropout), []

    def forward(self, x_t, t):
        if self.training:
            self.asked.append((x_t.detach(), t))
        h = torch.cat([x_t.flatten(1), t[:, None].to(x_t) / S.T], 1)
        return self.b(self.dropout(torch.tanh(self.a(h)))).view_as(x_t)


def draw(n, generator):
    """One picture of eight numbers, again and again: ε can be told from x_t."""
    return (
        torch.linspace(-1, 1, 8, dtype=torch.float64).view(SHAPE).repeat(n, 1, 1, 1),
    )


def trained(config=CONFIG, net=None, draw=draw):
    """The network after `train.fit`, and its average."""
    net = Net() if net is None else net
    return net, train.fit(S, net, draw, config)


def batch(asked):
    """x_t, t and the ε that made x_t of the one picture (eq. 4)."""
    x_t, t = asked
    alpha_bar = S.alpha_bar[t].view(-1, 1, 1, 1)
    eps = (x_t - alpha_bar.sqrt() * draw(1, None)[0]) / (1 - alpha_bar).sqrt()
    return x_t, t, eps


class Lines:
    """Writes down what Algorithm 1 does, in its order, by standing in for each part.

    It is `draw`, the optimiser and the moving average in one.
    """

    def __init__(self):
        self.log, self.generator, self.batch = [], None, None
        self.param_groups = [{"lr": None}]

    def draw(self, B, generator):
        self.log.append("x_0")
        self.generator, self.state = generator, generator.get_state()
        self.x_0 = torch.rand((B, *SHAPE), generator=generator).double()
        return self.x_0, torch.arange(B)

    def step(self):
        self.log.append(("step", self.param_groups[0]["lr"]))

    def zero_grad(self):
        self.log.append("zero")

    def update(self):
        self.log.append("average")


def test_the_lines_in_order(monkeypatch):
    """Alg. 1: x_0, then t, then ε, from one generator of (seed, step); eq. 14 asked
    once with them; then the departures, in order: clipping, rate, step, average.
    """
    lines, config = Lines(), dataclasses.replace(CONFIG, steps=3, max_norm=0.25)
    L_simple, clip = train.L_simple, train.clip_grad_norm_

    class Classes(Net):
        def forward(self, x_t, t, c):
            return super().forward(x_t, t)

    def watched(*arguments):
        lines.log.append("L_simple")
        lines.batch = arguments
        return L_simple(*arguments)

    def clipped(theta, bound):
        assert all(p.grad is not None for p in theta)
        lines.log.append(("clip", bound))
        return clip(theta, bound)

    monkeypatch.setattr(train, "L_simple", watched)
    monkeypatch.setattr(train, "clip_grad_norm_", clipped)
    net = Classes()
    run = algorithm_1(S, net, lines.draw, config, lines, lines, first=2)
    for step in (2, 3):  # from `first` to the last
        lines.log.clear()
        at_step, loss = next(run)
        replay = torch.Generator().manual_seed(random_seed(config.seed, step))
        assert torch.equal(replay.get_state(), lines.state)
        x_0 = torch.rand((6, *SHAPE), generator=replay).double()
        t = torch.randint(1, S.T + 1, (6,), generator=replay)
        eps = torch.randn(x_0.shape, generator=replay, dtype=x_0.dtype)
        s, eps_theta, *drawn = lines.batch
        assert s is S
        assert eps_theta is net
        expected = (x_0, t, eps, torch.arange(6))
        assert all(map(torch.equal, drawn, expected))
        assert torch.equal(lines.generator.get_state(), replay.get_state())
        rate = ("step", learning_rate(config, step))
        order = ["x_0", "zero", "L_simple", ("clip", 0.25), rate, "average"]
        assert (at_step, lines.log) == (step, order)
        assert torch.equal(loss, L_simple(S, net, *expected).detach())
    assert next(run, None) is None


def test_fit_is_algorithm_1_with_appendix_bs_optimiser():
    """Alg. 1, line 5, and App. B, written out: gradient, clipping, Adam, warm-up, EMA.

    From what the network was asked follow its gradients by central formulas of Adam
    (Kingma, Ba 2015, algorithm 1), in float64; the last digits are rounding.
    """
    config = dataclasses.replace(CONFIG, max_norm=0.05)
    net, ema = trained(config)
    mine = Net()
    theta, average = list(mine.parameters()), [p.clone() for p in mine.parameters()]
    m, v = ([torch.zeros_like(p) for p in theta] for _ in range(2))
    clipped = 0
    for step, asked in enumerate(net.asked, start=1):
        x_t, t, eps = batch(asked)
        loss = ((eps - mine(x_t, t)) ** 2).sum() / eps.numel()
        gradient = torch.autograd.grad(loss, theta)
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradient))
        clipped += norm > config.max_norm
        rate = config.lr * min(step / config.warmup, 1)
        for i, g in enumerate(gradient):
            g = g * min(1, config.max_norm / norm)
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g**2
            m_hat, v_hat = m[i] / (1 - 0.9**step), v[i] / (1 - 0.999**step)
            theta[i].data -= rate * m_hat / (v_hat.sqrt() + 1e-8)
            average[i] = config.ema * average[i] + (1 - config.ema) * theta[i].data
    assert len(net.asked) == config.steps
    assert clipped > 0
    # clip_grad_norm_ divides by norm + 1e-6, which is 1e-5 of our clipped norm
    for ours, expected in ((net, theta), (ema, average)):
        for p, q in zip(ours.parameters(), expected, strict=True):
            torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-6, atol=1e-6)


def test_a_network_is_trained_in_training_mode():
    """App. B's dropout is on in every step, in whatever mode the network was given."""
    net, _ = trained(net=Net(0.5).eval())
    assert len(net.asked) == CONFIG.steps  # it notes what it is asked in training mode


def test_t_is_uniform_on_1_to_T_and_eps_is_standard_normal():
    """Alg. 1, lines 3 and 4: t ~ U{1..T}, ε ~ N(0, I), all independent.

    8,000 pictures. χ² of t over 50 cells and of ε² over 64,000 numbers, correlations
    of neighbours over steps: each within 4.5 standard deviations of its law (one false
    alarm in 10^5). T and 1 both occur; 0 or T + 1 would not pass `q_sample`.
    """
    config = dataclasses.replace(CONFIG, batch=80, steps=100)
    net, _ = trained(config)
    batches = [batch(asked) for asked in net.asked]
    t = torch.cat([t for _, t, _ in batches])
    eps = torch.cat([eps for *_, eps in batches]).flatten()
    n = len(t)
    assert n == 8000
    counts = torch.bincount(t, minlength=S.T + 1)[1:].double()
    chi2 = float(((counts - n / S.T) ** 2).sum() / (n / S.T))
    assert abs(chi2 - (S.T - 1)) < 4.5 * math.sqrt(2 * (S.T - 1))
    assert counts[0] > 0
    assert counts[-1] > 0
    assert abs(float(eps.mean())) < 4.5 / math.sqrt(8 * n)
    assert abs(float((eps**2).mean()) - 1) < 4.5 * math.sqrt(2 / (8 * n))
    for x, shift in (
        (eps, 1),
        (eps, 8),
        (eps, 8 * 80),
        (t.double(), 1),
        (t.double(), 80),
    ):
        x = (x - x.mean()) / x.std()
        correlation = float((x[shift:] * x[:-shift]).mean())
        assert abs(correlation) < 4.5 / math.sqrt(len(x)), shift


def test_no_two_steps_and_no_two_seeds_see_the_same():
    """Randomness is a function of (seed, step): the same again, different elsewhere."""
    config = dataclasses.replace(CONFIG, steps=4)
    one, again = trained(config)[0], trained(config)[0]
    other = trained(dataclasses.replace(config, seed=1))[0]
    assert same_weights(one, again)
    seen = [x_t for net in (one, other) for x_t, _ in net.asked]
    assert len({float(x_t.sum()) for x_t in seen}) == 8


@given(seeds)
@share(20)
def test_seeds_of_neighbours_share_nothing(seed):
    """(seed, step) -> 63 bits: no two of a hundred alike, nor in the 32 bits that
    torch's CPU generator reads. False alarm: 100²/2 / 2^32 = 1e-6 an example."""
    found = [random_seed(seed + i, step) for i in range(10) for step in range(10)]
    assert all(0 <= key < 2**63 for key in found)
    assert max(found) >= 2**62  # the highest bit is 0 in all with probability 2^-100
    assert len({key % 2**32 for key in found}) == 100


def test_it_goes_on_where_it_is_told_to():
    """Steps 1..4, then 5..12 with the same state, are steps 1..12: nothing else is
    kept between steps than weights, average and optimiser."""

    def parts():
        net = Net()
        adam = torch.optim.Adam(net.parameters(), CONFIG.lr)
        return net, EMA(net, CONFIG.ema), adam

    net, ema, adam = parts()
    losses = list(algorithm_1(S, net, draw, CONFIG, ema, adam))
    assert [step for step, _ in losses] == list(range(1, 13))
    again, its_ema, its_adam = parts()
    rest = (S, again, draw, CONFIG, its_ema, its_adam)
    list(itertools.islice(algorithm_1(*rest), 4))
    assert list(algorithm_1(*rest, first=5)) == losses[4:]
    assert same_weights(net, again)
    assert same_weights(ema.net, its_ema.net)


def test_all_is_drawn_where_the_network_is():
    """t and ε are made on the weights' device, and torch's default, here the one
    without memory, is not asked."""
    x_0 = draw(CONFIG.batch, None)
    nets = [Net(), Net()]
    _, its_ema = trained(net=nets[0])
    with torch.device("meta"):
        _, again = trained(net=nets[1], draw=lambda *_: x_0)
    assert same_weights(*nets)
    assert same_weights(its_ema, again)


def test_the_first_step_of_a_single_weight():
    """Any network is trained, also one of a single weight w, ε_θ = w x_t. Adam's first
    step is as long as the learning rate, and up: ε and x_t are correlated positively.
    """

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, x_t, t):
            return self.w * x_t

    config = dataclasses.replace(CONFIG, steps=1, warmup=0, batch=100)
    net, _ = trained(config, Scale())
    # Adam's eps of 1e-8 is beside a gradient of more than 1e-3
    assert float(net.w.detach()) == pytest.approx(config.lr, rel=1e-5)


def test_sampling_in_the_middle_changes_nothing_of_the_run():
    """Alg. 2 from the average, between steps of Alg. 1: the same run, to the bit."""

    def single(n, generator):
        return (draw(n, generator)[0].float(),)

    nets = [Net(dtype=torch.float32) for _ in range(2)]
    for net, looks in zip(nets, (True, False), strict=True):
        ema = EMA(net, CONFIG.ema)
        adam = torch.optim.Adam(net.parameters(), CONFIG.lr)
        for step, _ in algorithm_1(S, net, single, CONFIG, ema, adam):
            if looks and step % 4 == 0:
                torch.rand(3)
                sample(S, ema.net, (2, *SHAPE), torch.Generator().manual_seed(step))
    assert same_weights(*nets)


def test_each_picture_goes_with_its_class():
    """(x_0, c) from `draw` reach the network as (x_t, t, c), row by row.

    x_0 is c/10 everywhere, and one step of β = 1e-8 leaves that to be read off x_t.
    """
    seen = []

    class Conditional(Net):
        def forward(self, x_t, t, c):
            read = (10 * x_t.mean((1, 2, 3))).round().long()
            seen.append(read.tolist() == c.tolist())
            return super().forward(x_t, t)

    def classes(n, generator):
        c = torch.randint(10, (n,), generator=generator)
        return (c.double() / 10).view(-1, 1, 1, 1).expand(n, *SHAPE), c

    train.fit(Schedule(torch.tensor([1e-8])), Conditional(), classes, CONFIG)
    assert seen == [True] * 12


def test_the_rate_rises_for_5000_steps_and_stays():
    """App. B's 2e-4 and the authors' warm-up; lr_end bends it down by half a cosine."""
    paper = Hyperparameters()
    rates = [learning_rate(paper, step) for step in (1, 2500, 5000, 5001, 800_000)]
    assert rates == pytest.approx([4e-8, 1e-4, 2e-4, 2e-4, 2e-4], rel=1e-12)
    short = Hyperparameters(steps=1000, warmup=0, lr_end=1e-5)
    rates = [learning_rate(short, step) for step in (1, 500, 1000)]
    assert rates == pytest.approx([2e-4, 1.05e-4, 1e-5], rel=1e-5)


@given(st.integers(1, 400), st.integers(0, 400), st.sampled_from([0.0, 1e-5, 3e-4]))
def test_a_cosine_ends_where_it_says_and_the_warm_up_is_a_line(steps, warmup, end):
    """The rate of the last step is lr_end, half way it is the mean of both; over the
    warm-up it is the same cosine times step/warmup, and after it the cosine itself."""
    with_, without = (
        Hyperparameters(steps=2 * steps, warmup=w, lr_end=end) for w in (warmup, 0)
    )
    middle, last = (learning_rate(without, n * steps) for n in (1, 2))
    assert middle == pytest.approx((2e-4 + end) / 2, rel=1e-12)
    assert last == pytest.approx(end, rel=1e-12, abs=1e-19)
    for step in (1, warmup // 2, warmup, warmup + 1, steps, 2 * steps):
        share = min(1.0, step / warmup) if warmup else 1.0
        cosine = learning_rate(without, step)
        found = learning_rate(with_, step)
        assert found == pytest.approx(share * cosine, rel=1e-12, abs=1e-19)


def test_the_defaults_are_the_papers():
    """App. B: 800k steps of 128, Adam at 2e-4, EMA 0.9999; authors' code: 5,000, 1."""
    c = Hyperparameters()
    assert (c.steps, c.batch, c.lr, c.ema) == (800_000, 128, 2e-4, 0.9999)
    assert (c.warmup, c.max_norm, c.lr_end) == (5000, 1.0, None)


def unet(multipliers):
    return filled(UNet(2, 4, multipliers, (0,), dropout=0.0))


NETWORKS = {
    "MLP": lambda: filled(MLP((2, 4, 4), width=8, depth=2, emb=4)),
    "U-Net of one level": lambda: unet((1,)),
    "U-Net with upsampling": lambda: unet((1, 2)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_run_that_can_be_killed_is_the_plain_run(name):
    """`tinyddpm.fit`, with all that is around Algorithm 1, ends with the very bits of
    `train.fit`, the algorithm alone.

    But for the U-Net's upsampling, where the same function is computed by another
    formula: there the two agree to rounding, in float64. Adam divides by √v, so that an
    entry's relative error, 1e-15 or so a step, is all that grows.
    """

    def pictures(n, generator):
        x_0 = torch.rand((n, 2, 4, 4), generator=generator, dtype=torch.float64)
        return (2 * x_0 - 1,)

    plain, records = NETWORKS[name](), []
    start, around = copy.deepcopy(plain), copy.deepcopy(plain)
    settings = {"steps": 6, "batch": 4, "lr": 1e-3, "warmup": 2, "ema": 0.8}
    config = TrainConfig(**settings, log_every=1, save_every=1)
    ema = train.fit(S, plain, pictures, Hyperparameters(**settings))
    its_ema = tinyddpm.fit(S, around, pictures, config, records.append)
    assert [r.step for r in records] == [*range(1, 7)]
    assert not same_weights(plain, start)
    for a, b in ((plain, around), (ema, its_ema)):
        if name != "U-Net with upsampling":
            assert same_weights(a, b)
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)
