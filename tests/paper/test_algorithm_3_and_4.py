"""Algorithms 3 and 4: what is sent is received, and charged what eq. 5 says.

The coder is an argument: here `Direct`, which costs what theory charges and keeps the
message in a list, and the random coder of `beyond/`, whose message is real bits.
"""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyddpm import (
    L_0,
    L_T,
    L_tm1,
    Schedule,
    gaussian_kl,
    linear_schedule,
    p_sample_loop,
    q_posterior,
    receive,
    send,
    to_float,
)
from tinyddpm.beyond.oracle import gradient_oracle
from tinyddpm.beyond.random_coding import RandomReceiver, RandomSender
from tinyddpm.bound import sigma2_1
from tinyddpm.coding import log_levels, reverse

from ..helpers import BITS, U, gradient, quiet, some_network
from ..strategies import choices_of_sigma2, seeds, share


class Direct:
    """A coder for both sides: x ~ q by its generator, put into a list and taken out.

    It notes the q and p that it was given, and charges KL(q ‖ p) bits for a draw.
    """

    def __init__(self, seed=0, sent=None):
        self.g = torch.Generator().manual_seed(seed)
        self.sent = [] if sent is None else list(sent)
        self.bits, self.q, self.p = 0.0, [], []

    def draw(self, *laws):
        self.p.append(laws[-1])
        if len(laws) == 1:
            return self.sent.pop(0)
        self.q.append(laws[0])
        (mean, variance), _ = laws
        self.bits += float(gaussian_kl(*laws[0], *laws[1]).sum()) * BITS
        z = torch.randn(mean.shape, generator=self.g, dtype=torch.float64)
        self.sent.append(mean + variance.sqrt() * z)
        return self.sent[-1]

    def levels(self, *given):
        self.law = given[-1]
        if len(given) == 1:
            return self.sent.pop(0)
        self.bits -= float(self.law.gather(1, given[0].long()[:, None]).sum()) * BITS
        self.sent.append(given[0])

    def message(self):
        return self.sent


@given(seeds, choices_of_sigma2, st.integers(2, 12))
@share(40)
def test_the_lines_in_order(seed, sigma2, T):
    """Alg. 3: x_T ~ q(x_T|x_0) using p(x_T), then x_t ~ q(x_t|x_{t+1}, x_0) using
    p_θ(x_t|x_{t+1}), then x_0 using p_θ(x_0|x_1); Alg. 4 uses the same p in turn.
    """
    s, x_0 = quiet(linear_schedule, T, 1e-2, 0.8), gradient(seed)
    coder = Direct(seed)
    message, sent = send(s, some_network, x_0, coder, sigma2)
    assert [step.t for step in sent] == [*range(T, -1, -1)]
    mean, variance = coder.q[0]
    torch.testing.assert_close(mean, s.alpha_bar[T].sqrt() * x_0.double())
    assert float(variance) == float(1 - s.alpha_bar[T])
    assert float(coder.p[0][0].abs().max()) == 0
    assert float(coder.p[0][1]) == 1
    for before, q, p in zip(sent, coder.q[1:], coder.p[1:], strict=False):
        t, x_t = torch.tensor([before.t]), before.x_t.double()
        for got, expected in zip(q, q_posterior(s, x_t, x_0.double(), t), strict=True):
            torch.testing.assert_close(got, expected.double())
        _, reverse_p = reverse(s, some_network, before.x_t, before.t, sigma2)
        assert all(map(torch.equal, p, reverse_p))
    receiver = Direct(sent=message)
    shape = tuple(x_0.shape)
    received = list(receive(s, some_network, shape, receiver, sigma2))
    assert len(receiver.p) == len(coder.p) == T
    for ours, theirs in zip(receiver.p, coder.p, strict=True):
        assert ours[0].dtype == ours[1].dtype == torch.float64
        assert torch.equal(ours[0], theirs[0])
        assert float(ours[1]) == float(theirs[1])
    assert torch.equal(receiver.law, coder.law)
    x_0_hat, _ = reverse(s, some_network, sent[-2].x_t, 1, sigma2)
    nats = float(L_0(s, x_0, x_0_hat, sigma2))  # eq. 13 in float64, sums of 27 numbers
    assert sent[-1].kl == pytest.approx(nats * BITS, rel=1e-12)
    assert coder.law.shape == (x_0.numel(), 256)
    total = coder.law.exp().sum(1)  # 256 probabilities, each rounded
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=256 * U)
    for (t, x_t, x_0_hat), step in zip(received, sent, strict=True):
        assert (t, step.t) == (step.t, t)
        assert torch.equal(x_t, step.x_t)
        assert torch.equal(x_0_hat, step.x_0_hat)
    assert torch.equal(received[-1][1], x_0)


@given(seeds, choices_of_sigma2)
@share(40)
def test_the_p_that_is_sent_with_is_that_of_algorithm_2(seed, sigma2):
    """Eq. 1, 15: `reverse` gives x̂_0, mean and variance of a step of Algorithm 2."""
    s = quiet(linear_schedule, 6, 1e-2, 0.8)
    x_T = gradient(seed).double()
    g = torch.Generator().manual_seed(seed)
    loop = list(p_sample_loop(s, some_network, x_T, g, sigma2))
    replay = torch.Generator().manual_seed(seed)
    for (t, x_t, x_0_hat), (_, x_tm1, _) in pairwise(loop[:-1]):
        shown, (mean, variance) = reverse(s, some_network, x_t, t, sigma2)
        torch.testing.assert_close(shown, x_0_hat)
        z = torch.randn(x_t.shape, generator=replay, dtype=x_t.dtype)
        torch.testing.assert_close(mean + variance.sqrt() * z, x_tm1)


def test_each_step_is_charged_its_term_of_the_bound():
    """Eq. 5: the KL of x_T is L_T, that of x_t is L_t at the x_{t+1} that was sent, and
    x_0 costs L_0: the sum of the charges is L on the path sent, and a coder that costs
    what theory charges spends so much.
    """
    s, x_0, coder = linear_schedule(25), gradient(), Direct()
    _, sent = send(s, gradient_oracle(s, 3, 3), x_0, coder)
    assert sent[0].kl == pytest.approx(float(L_T(s, x_0)) * BITS, rel=1e-9)
    for before, now in pairwise(sent[:-1]):
        t = torch.tensor([before.t])
        nats = L_tm1(s, x_0, t, before.x_0_hat)
        # x̂_0 was rounded to float32 for the record, which matters to tiny KLs
        assert now.kl == pytest.approx(float(nats) * BITS, rel=1e-3, abs=1e-5)
    nats = L_0(s, x_0, sent[-2].x_0_hat)
    assert sent[-1].kl == pytest.approx(float(nats) * BITS, rel=1e-4)
    for step in sent:
        assert step.bits == pytest.approx(step.kl, abs=1e-9)
    assert coder.bits == pytest.approx(sum(step.kl for step in sent), rel=1e-12)


@pytest.mark.parametrize("sigma2", [(), ("beta_tilde",)])
def test_a_gradient_is_received_bit_by_bit(sigma2):
    """Algorithms 3 and 4: every x_t, every x̂_0 and x_0 itself, from the message, the
    seed, the shape and the network; unasked, both sides take the same σ_t². Another
    seed gives another picture.
    """
    s = linear_schedule(25)
    eps_theta, x_0 = gradient_oracle(s, 3, 3), gradient()
    shape = tuple(x_0.shape)
    message, sent = send(s, eps_theta, x_0, RandomSender(5), *sigma2)
    assert isinstance(message, bytes)
    received = list(receive(s, eps_theta, shape, RandomReceiver(message, 5), *sigma2))
    assert [t for t, _, _ in received] == [step.t for step in sent]
    for (_, x_t, x_0_hat), step in zip(received, sent, strict=True):
        assert torch.equal(x_t, step.x_t)
        assert torch.equal(x_0_hat, step.x_0_hat)
    assert torch.equal(received[-1][1], x_0)
    other = RandomReceiver(message, 6)
    *_, (_, elsewhere, _) = receive(s, eps_theta, shape, other, *sigma2)
    assert not torch.equal(elsewhere, x_0)


@given(st.sampled_from([-2.0, 0.0, 0.5, 3.0]), choices_of_sigma2, seeds)
@share(20)
def test_any_picture_arrives_whatever_the_network(scale, sigma2, seed):
    """A bad network costs bits, but x_0 arrives: its levels are coded exactly, and none
    has probability 0 (eq. 13).
    """
    s = Schedule(torch.tensor([1e-3, 0.3, 0.9]))
    g = torch.Generator().manual_seed(seed)
    x_0 = to_float(torch.randint(256, (1, 1, 3, 2), generator=g, dtype=torch.uint8))

    def eps_theta(x_t, t):
        return scale * x_t

    message, _ = send(s, eps_theta, x_0, RandomSender(seed), sigma2)
    coder = RandomReceiver(message, seed)
    *_, (_, received, _) = receive(s, eps_theta, (1, 1, 3, 2), coder, sigma2)
    assert torch.equal(received, x_0)


def test_bad_input_is_refused():
    """Errors are sentences: one 8-bit picture, a network that gives numbers."""
    s, x_0 = Schedule(torch.tensor([0.1, 0.9])), gradient()
    with pytest.raises(ValueError, match="one picture"):
        send(s, lambda x, t: x, x_0.expand(2, -1, -1, -1), Direct())
    with pytest.raises(ValueError, match="8-bit pictures"):
        send(s, lambda x, t: x, x_0 + 1e-2, Direct())
    with pytest.raises(ValueError, match="not finite"):
        send(s, lambda x, t: x * math.nan, x_0, Direct())


@pytest.mark.parametrize("sender", [0, 1])
def test_both_sides_need_the_seed_that_was_said(sender):
    """Another seed is another message; it is read with the seed it was written with."""
    s, x_0 = Schedule(torch.tensor([1e-3, 0.3, 0.9])), gradient()
    message, sent = send(s, some_network, x_0, RandomSender(sender))
    other, _ = send(s, some_network, x_0, RandomSender(1 - sender))
    assert message != other
    for seed in (sender, 1 - sender):
        coder = RandomReceiver(message, seed)
        _, x_T, _ = next(receive(s, some_network, x_0.shape, coder))
        assert torch.equal(x_T, sent[0].x_t) == (seed == sender)


@pytest.mark.parametrize("sigma2", ["beta", "beta_tilde", "fixedlarge"])
def test_sender_and_receiver_use_the_sigma2_that_was_said(sigma2):
    """Eq. 1, 13: p's variance is σ_t² at each step, and σ_1² for the levels."""
    s, x_0 = Schedule(torch.tensor([0.1, 0.3, 0.9])), gradient()
    there = Direct()
    _, steps = send(s, some_network, x_0, there, sigma2)
    here = Direct(sent=there.sent)
    list(receive(s, some_network, x_0.shape, here, sigma2))
    for coder in (there, here):
        variances = [float(variance) for _, variance in coder.p]
        assert variances == [1.0, *s.sigma2(sigma2)[[3, 2]].tolist()]
        law = log_levels(steps[-2].x_0_hat.double(), sigma2_1(s, sigma2))
        torch.testing.assert_close(coder.law, law, rtol=1e-5, atol=1e-3)
