"""Numbers of other libraries' types: they count as Python's own, or are refused."""

import operator
import re

import numpy as np
import pytest
import torch

from tinyddpm import (
    EMA,
    MLP,
    UNet,
    constant_schedule,
    drawer,
    linear_schedule,
    predict_x_0,
    q_sample,
    quadratic_schedule,
    receive,
    sample,
    time_embedding,
    to_float,
    to_uint8,
    weight,
)
from tinyddpm.train import random_seed

from ..helpers import quiet, seeded

S = linear_schedule(100)
T = torch.tensor([3, 40])
NAME = operator.attrgetter("__name__")


def unet(n=3, **other):
    return UNet(**({"in_channels": 1, "base": 4, "multipliers": (n,)} | other))


# What is made of a whole number n, and of a number p between 0 and 1, as tensors.
WHOLE = {
    "linear_schedule's T": lambda n: quiet(linear_schedule, n, 0.1, 0.9).beta,
    "quadratic_schedule's T": lambda n: quiet(quadratic_schedule, n, 0.1, 0.9).beta,
    "constant_schedule's T": lambda n: quiet(constant_schedule, n, 0.9).beta,
    "sample's shape": lambda n: sample(S, lambda x, t: x, (n, 2), seeded(0)),
    "time_embedding's dim": lambda n: time_embedding(T, n),
    "MLP's shape": lambda n: MLP((n, 2)).first.weight[:0],
    "MLP's width": lambda n: MLP((2,), width=n).first.weight[:, :0],
    "MLP's depth": lambda n: torch.tensor(len(MLP((2,), depth=n).dense)),
    "UNet's multipliers": lambda n: unet(n, attention_levels=()).conv_out.weight,
    "UNet's in_channels": lambda n: (
        unet(1, in_channels=n, attention_levels=()).conv_out.weight
    ),
    "UNet's attention_levels": lambda n: unet(
        1, multipliers=(1,) * 5, attention_levels=(n,)
    ).conv_out.weight[:0],
    "UNet's num_classes": lambda n: unet(
        1, num_classes=n, attention_levels=()
    ).classes.weight[:, :0],
    "random_seed's": lambda n: torch.tensor(random_seed(0, n)),
}
# What the sentence of a refusal begins with, and the least number it would take.
REFUSED = {
    "linear_schedule's T": ("T", 1),
    "quadratic_schedule's T": ("T", 1),
    "constant_schedule's T": ("T", 1),
    "sample's shape": ("shape", 0),
    "time_embedding's dim": ("the embedding's width", 0),
    "MLP's shape": ("shape", 1),
    "MLP's width": ("width, depth and emb", 1),
    "MLP's depth": ("width, depth and emb", 1),
    "UNet's multipliers": ("multipliers, one a level,", 1),
    "UNet's attention_levels": ("attention_levels", 0),
    "UNet's in_channels": ("in_channels and base", 1),
    "UNet's num_classes": ("num_classes, if not None,", 1),
    "random_seed's": ("the numbers of a seed", 0),
}
BETWEEN = {
    "linear_schedule's beta_1": lambda p: quiet(linear_schedule, 9, p, 0.9).beta,
    "quadratic_schedule's beta_T": lambda p: quiet(quadratic_schedule, 9, 0.1, p).beta,
    "constant_schedule's beta": lambda p: quiet(constant_schedule, 9, p).beta,
    "EMA's decay": lambda p: torch.tensor(EMA(MLP((2,)), p).decay),
    "UNet's dropout": lambda p: torch.tensor(
        unet(1, dropout=p, attention_levels=()).middle1.dropout.p
    ),
}


@pytest.mark.parametrize("of", [np.int64, np.uint8, torch.tensor], ids=NAME)
@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_number_of_another_type_is_that_number(name, of):
    """f(of(n)) = f(n): NumPy's integers, and integer tensors of one element."""
    assert torch.equal(WHOLE[name](of(4)), WHOLE[name](4))


@pytest.mark.parametrize("of", [np.float64, np.float32, torch.tensor], ids=NAME)
@pytest.mark.parametrize("name", BETWEEN)
def test_a_number_of_another_type_is_that_number(name, of):
    """f(of(p)) = f(p), with a p that every type holds exactly."""
    assert torch.equal(BETWEEN[name](of(0.5)), BETWEEN[name](0.5))


@pytest.mark.parametrize(
    "wrong", [4.0, np.float32(4), torch.tensor(4.0), "4", None, np.ones(2), -1]
)
@pytest.mark.parametrize("name", WHOLE)
def test_what_is_no_whole_number_is_refused_in_a_sentence(name, wrong):
    """ValueError, which says what is wanted; num_classes alone may be None."""
    if wrong is None and "num_classes" in name:
        return
    begins, least = REFUSED[name]
    with pytest.raises(
        ValueError, match=rf"^{begins} must be whole and at least {least}"
    ):
        WHOLE[name](wrong)


@pytest.mark.parametrize(
    "make", [MLP, lambda n: sample(S, None, n), lambda n: list(receive(S, None, n, 0))]
)
def test_a_number_in_the_place_of_a_shape_is_refused_in_a_sentence(make):
    """A shape is a row of numbers, in the sentence too."""
    with pytest.raises(ValueError, match=r"^shape must be whole .+, got 4"):
        make(4)


@pytest.mark.parametrize("p", ["half", None, 1.5, float("nan")])
def test_an_end_point_that_is_none_is_refused_in_a_sentence(p):
    """0 < β < 1, whatever the type; a single end point that is None is refused too."""
    for name in ("linear_schedule's beta_1", "quadratic_schedule's beta_T"):
        with pytest.raises(ValueError, match=r"inside \(0, 1\)|both beta_1 and beta_T"):
            BETWEEN[name](p)


def test_an_empty_shape_is_refused_where_one_is_needed():
    """No number at all is no shape of a picture, and no levels of a U-Net."""
    for make in (MLP, lambda none: UNet(1, 4, none)):
        with pytest.raises(ValueError, match=r"must be whole and at least 1, got \(\)"):
            make(())


X = torch.zeros(2, 3)
SENTENCES = {
    "got <class 'list'>; to_float": lambda: q_sample(S, [1.0], T, X),
    "got torch.int64; to_float": lambda: q_sample(S, X.long(), T, X),
    "the batch, (2, 3), got <class 'list'>": lambda: predict_x_0(S, X, T, [1.0]),
    "the batch, (2, 3), got (1, 3)": lambda: predict_x_0(S, X, T, X[:1]),
    "a uint8 tensor, got [1]": lambda: to_float([1]),
    "a uint8 tensor, got torch.float32": lambda: to_float(X),
    "floating point, got <class 'list'>": lambda: to_uint8([0.0]),
    "floating point, got torch.int64": lambda: to_uint8(X.long()),
    "shape (B,), got int": lambda: weight(S, 5),
    "got Tensor torch.float32 (2, 3)": lambda: drawer(X),
    "got a and 0.5": lambda: linear_schedule(9, "a", 0.5),
    "got 0.1 and 1.0": lambda: linear_schedule(9, 0.1, 1.0),
    "attention_levels must lie in [0, 1], got (2,)": lambda: UNet(1, 4, (1, 1), (2,)),
    "even and >= 4, dropout in [0, 1), got 3 and 0.1": lambda: UNet(1, 3, (1,), ()),
    "in [0, 1), got 4 and 1.0": lambda: UNet(1, 4, (1,), (), 1.0),
    "x must be (B, *(2,)), torch.float32, got (2, 3)": lambda: MLP((2,))(X, T),
    "shape must be whole and at least 0, got XX": lambda: sample(S, None, "XX"),
}


@pytest.mark.parametrize("says", SENTENCES)
def test_a_sentence_says_what_was_given(says):
    """A type where no tensor was given, else what of the tensor does not fit."""
    with pytest.raises(ValueError, match=re.escape(says)):
        SENTENCES[says]()
