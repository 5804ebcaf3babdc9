"""A network that is only asked, not trained: by every function that does so."""

import pytest
import torch
from torch import Tensor, nn

from tinyddpm import (
    Schedule,
    bits_per_dim,
    interpolate,
    p_sample_loop,
    receive,
    sample,
    send,
)
from tinyddpm.beyond.ddim import ddim_encode, ddim_loop, ddim_sample
from tinyddpm.beyond.estimate import estimate_bits_per_dim
from tinyddpm.beyond.guidance import guided
from tinyddpm.beyond.improved import strided
from tinyddpm.beyond.random_coding import RandomReceiver, RandomSender

from ..helpers import some_network
from ..second_device import leaves

S = Schedule(torch.tensor([1e-3, 0.3, 0.9], dtype=torch.float64))
X, SHAPE = torch.ones(1, 1, 2, 2), (1, 1, 2, 2)


class Asked(nn.Module):
    """Refuses to be asked with dropout on or gradients; one part of it is frozen."""

    num_classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.frozen = nn.Dropout(0.5), nn.Dropout(0.5).eval()
        self.weight = nn.Parameter(torch.ones(()))
        self.times = 0

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        assert not any(m.training for m in self.modules())
        assert not torch.is_grad_enabled()
        self.times += 1
        return self.dropout(self.weight * some_network(x_t, t))


def message(net: nn.Module) -> bytes:
    return send(S, net, X, RandomSender())[0]


FUNCTIONS = {
    "p_sample_loop": lambda net: [x for _, *x in p_sample_loop(S, net, X)],
    "sample": lambda net: sample(S, net, SHAPE),
    "interpolate": lambda net: interpolate(S, net, X, -X, torch.tensor([0.5]), 2),
    "bits_per_dim": lambda net: bits_per_dim(S, net, X),
    "send": lambda net: [x[1:3] for x in send(S, net, X, RandomSender())[1]],
    "receive": lambda net: [
        x for _, *x in receive(S, net, SHAPE, RandomReceiver(message(net)))
    ],
    "ddim_loop": lambda net: [x for _, *x in ddim_loop(S, net, X, [3, 1])],
    "ddim_sample": lambda net: ddim_sample(S, net, X, [3, 1]),
    "ddim_encode": lambda net: ddim_encode(S, net, X, [3, 1]),
    "estimate": lambda net: estimate_bits_per_dim(S, net, X),
    "guided": lambda net: guided(net, 1, 0.5)(X, torch.tensor([2])),
    "strided": lambda net: strided(S, net, [3, 1])[1](X, torch.tensor([2])),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_network_is_asked_without_dropout_and_left_as_it_was(name):
    """App. B: dropout is for training. Each part's flag is as before, and what is
    made is an ordinary tensor, which a caller may train on: none of inference mode.
    """
    net = Asked()
    flags = [m.training for m in net.modules()]
    made = [x for x in leaves(FUNCTIONS[name](net)) if isinstance(x, Tensor)]
    assert net.times > 0
    assert [m.training for m in net.modules()] == flags == [True, True, False]
    assert made
    assert not any(x.is_inference() or x.requires_grad for x in made)
