"""The formulas of the page and of the docstrings are run, and equal the functions.

Each is read as it is written, evaluated with NumPy at random numbers, and compared with
what the function beside it returns for the same numbers. What cannot be run stands in
`formulas.NOT_EXECUTED` with its reason, and nothing else is left out.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from tinyddpm import (
    EMA,
    L_T,
    Bound,
    L_simple,
    L_tm1,
    Schedule,
    constant_schedule,
    interpolate,
    linear_schedule,
    p_mean,
    p_step,
    predict_x_0,
    q_posterior,
    q_sample,
    q_step,
    rate_distortion,
    weight,
)
from tinyddpm.bound import L_0, bits_per_dim, log_decoder
from tinyddpm.data import to_float

from ..strategies import seeds, share
from . import formulas
from .formulas import NOT_EXECUTED, evaluate, page_formulas, right_side

B, D, SIGMA = 4, 5, "beta"
PAGE = page_formulas()
DOCUMENTED = formulas.documented()


def eps_theta(x_t: Tensor, t: Tensor) -> Tensor:
    """Something a network might say, different for every x_t and t."""
    return torch.tanh(1.3 * x_t + 0.1 * t.view(-1, 1))


class Numbers:
    """Random numbers for every letter: in torch for the functions, in NumPy for us."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.T = int(torch.randint(3, 9, (), generator=generator))

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        beta = 0.02 + 0.3 * torch.rand(self.T, generator=generator).double()
        self.s = Schedule(beta)
        self.t = torch.randint(2, self.T + 1, (B,), generator=generator)
        self.one_t = torch.full((B,), int(self.t[0]))  # for what is a mean at one t
        level = torch.randint(256, (B, D), generator=generator)
        level[0, :2] = torch.tensor([0, 255])
        self.level = level.double()
        self.x_0 = (self.level - 127.5) / 127.5
        self.eps, self.z, self.x_t, self.x_tm1 = (normal(B, D) for _ in range(4))
        self.eps_hat = eps_theta(self.x_t, self.t)

    def names(self, t: Tensor | None = None) -> dict[str, Any]:
        """The letters, at this t; x_t is random, not made by eq. 4."""
        s, t = self.s, self.t if t is None else t
        tables = {"β": s.beta, "α": s.alpha, "ᾱ": s.alpha_bar, "β̃": s.beta_tilde}
        tables["σ"] = s.sigma2(SIGMA).sqrt()
        known: dict[str, Any] = {k: v.numpy() for k, v in tables.items()}
        known |= {"t": t.numpy()[:, None], "T": self.T, "D": D, "σ_1": 0.5}
        for name in ("x_0", "x_t", "z"):
            known[name] = getattr(self, name).numpy()
        known |= {"x_{t-1}": self.x_tm1.numpy(), "ε": self.eps.numpy()}
        known["ε_θ"] = lambda x, t=None: by_torch(
            lambda x: eps_theta(x, self.t if t is None else as_t(t, len(x))), x
        )
        known["μ_θ"] = lambda x, t: by_torch(
            lambda x: p_mean(s, x, as_t(t, len(x)), eps_theta(x, as_t(t, len(x)))), x
        )
        known["μ̃_t"] = lambda x, x_0: by_torch(
            lambda x, x_0: q_posterior(s, x, x_0, t)[0], x, x_0
        )
        return known


def as_t(t: Any, n: int) -> Tensor:
    """The formula's t, (B, 1) or a number, as the functions take it."""
    return torch.as_tensor(np.broadcast_to(t, (n, 1))[:, 0].astype(int).copy())


def by_torch(f: Callable[..., Tensor], *arrays: Any) -> Any:
    return f(*(torch.from_numpy(np.ascontiguousarray(x)) for x in arrays)).numpy()


def pair(n: Numbers, step: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """(mean, variance) of x = mean + deviation z."""
    zero = torch.zeros_like(n.z)
    mean = step(zero)
    return mean, (step(zero + 1) - mean) ** 2


def means(n: Numbers) -> Tensor:
    return p_mean(n.s, n.x_t, n.t, n.eps_hat)


def reverse(n: Numbers, z: Tensor) -> Tensor:
    return p_step(n.s, n.x_t, n.t, n.eps_hat, z, SIGMA)


def squared(n: Numbers, t: Tensor) -> Tensor:
    """‖ε - ε_θ‖² of the pictures, (B,)."""
    x_t = q_sample(n.s, n.x_0, t, n.eps)
    return (n.eps - eps_theta(x_t, t)).square().sum(1)


def hat(n: Numbers, t: Tensor) -> Tensor:
    return predict_x_0(n.s, n.x_t, t, eps_theta(n.x_t, t))


def constant(n: Numbers, t: Tensor) -> float:
    """C of eq. 8: D times the KL for equal means."""
    ratio = float(n.s.beta_tilde[t[0]] / n.s.sigma2(SIGMA)[t[0]])
    return D * (ratio - 1 - math.log(ratio)) / 2


def gaussians(n: Numbers) -> dict[str, Any]:
    """The laws that stand in a divergence, by the names they have there."""
    s, t = n.s, n.t
    last, zero = torch.full((B,), s.T), torch.zeros_like(n.x_0)
    variance = (1 - s.alpha_bar[-1]).expand(B, D)
    mu_tilde, beta_tilde = q_posterior(s, n.x_t, n.x_0, t)
    mu_theta, sigma2 = pair(n, lambda z: reverse(n, z))
    laws = {
        "q(x_T|x_0)": (q_sample(s, n.x_0, last, zero), variance),
        "p(x_T)": (zero, zero + 1),
        "q(x_{t-1}|x_t,x_0)": (mu_tilde, beta_tilde.expand(B, D)),
        "p_θ(x_{t-1}|x_t)": (mu_theta, sigma2),
    }
    return {k: (m.numpy(), v.numpy()) for k, (m, v) in laws.items()}


def bound(n: Numbers) -> Bound:
    """Eq. 5 of one picture."""
    generator = torch.Generator().manual_seed(0)
    return bits_per_dim(n.s, eps_theta, n.x_0[:1], generator, SIGMA)


def terms(n: Numbers) -> dict[str, Any]:
    """L_0..L_T of eq. 5 in bits/dim, as a table over their index."""
    of = bound(n)
    table = np.zeros(n.T + 1)
    table[1 : n.T] = of.L_tm1[0, 2:].numpy()  # L_{t-1} for t = 2..T
    table[0], table[n.T] = float(of.L_0), float(of.L_T)
    return {"L": table, "T": n.T}


def with_hat(n: Numbers) -> dict[str, Any]:
    """For L_tm1: one t, and x̂_0 by eq. 15 from that x_t."""
    known = n.names(n.one_t)
    known |= {"x̂_0": hat(n, n.one_t).numpy(), "C": constant(n, n.one_t)}
    return known


def decoder(n: Numbers) -> Tensor:
    """The probability of each level by the function, (B, D)."""
    return log_decoder(n.level, first_hat(n), 0.25)


def edges() -> dict[str, Any]:
    """δ+ and δ- as the page has them."""
    return {
        f"δ{sign}": lambda x, i=i: evaluate(right_side(PAGE[f"(13) {i}"]), {"x": x})
        for sign, i in (("+", 2), ("-", 3))
    }


def bins(n: Numbers) -> dict[str, Any]:
    return n.names() | edges() | {"x_1": n.x_t.numpy()}


def decoded(n: Numbers) -> dict[str, Any]:
    """L_0's -log p_θ(x_0|x_1), by the page's eq. 13."""
    value = evaluate(right_side(PAGE["(13) 1"]), bins(n))
    return {"p_θ(x_0|x_1)": value}


def mixed(n: Numbers, lam: float) -> Tensor:
    """What the network is asked first while interpolating: x̄_t."""
    asked: list[Tensor] = []

    def record(x: Tensor, t: Tensor) -> Tensor:
        asked.append(x)
        return torch.zeros_like(x)

    generator = torch.Generator().manual_seed(1)
    lams, t = torch.tensor([lam], dtype=torch.float64), int(n.t[0])
    interpolate(n.s, record, n.x_0, n.x_tm1, lams, t, generator)
    return asked[0]


def ends(n: Numbers) -> dict[str, Any]:
    return {"λ": 0.3, "x_t": mixed(n, 0).numpy(), "x'_t": mixed(n, 1).numpy()}


def averaged(n: Numbers) -> tuple[EMA, dict[str, Any]]:
    """One step of the average, and what it was made of."""
    net = nn.Linear(D, B, bias=False).double()
    nn.init.normal_(net.weight)
    ema = EMA(net, 0.7)
    before = net.weight.detach().clone()
    with torch.no_grad():
        net.weight += n.x_0
    after = net.weight.detach().numpy()
    ema.update()
    known = {"θ_ema": before.numpy(), "θ": after, "d": 0.7, "decay": 0.7}
    return ema, known


def line(n: Numbers) -> dict[str, Any]:
    """Section 4 for a schedule of T steps and its end points."""
    t = np.arange(1, n.T + 1)
    return {"t": t, "T": n.T, "β_1": 1e-3, "β_T": 0.99}


def straight(n: Numbers) -> Tensor:
    return linear_schedule(n.T, 1e-3, 0.99).beta[1:]


Case = tuple[Callable[[Numbers], dict[str, Any]], Callable[[Numbers], Any]]
NAMES: Callable[[Numbers], dict[str, Any]] = Numbers.names
Q_STEP: Case = (NAMES, lambda n: q_step(n.s, n.x_tm1, n.t, n.z))
Q_STEP_LAW: Case = (NAMES, lambda n: pair(n, lambda z: q_step(n.s, n.x_tm1, n.t, z)))
Q_SAMPLE: Case = (NAMES, lambda n: q_sample(n.s, n.x_0, n.t, n.eps))
Q_SAMPLE_LAW: Case = (NAMES, lambda n: pair(n, lambda z: q_sample(n.s, n.x_0, n.t, z)))
POSTERIOR: Case = (NAMES, lambda n: q_posterior(n.s, n.x_t, n.x_0, n.t))
MU_TILDE: Case = (NAMES, lambda n: q_posterior(n.s, n.x_t, n.x_0, n.t)[0])
BETA_TILDE: Case = (NAMES, lambda n: q_posterior(n.s, n.x_t, n.x_0, n.t)[1])
TRUE_MEAN: Case = (NAMES, lambda n: p_mean(n.s, n.x_t, n.t, n.eps))
STEP: Case = (NAMES, lambda n: reverse(n, n.z))
STEP_LAW: Case = (NAMES, lambda n: pair(n, lambda z: reverse(n, z)))
KL_T: Case = (gaussians, lambda n: L_T(n.s, n.x_0)[:, None])
KL_TM1: Case = (
    gaussians,
    lambda n: L_tm1(n.s, n.x_0, n.t, hat(n, n.t), SIGMA)[:, None],
)
MEAN_TM1: Case = (
    with_hat,
    lambda n: L_tm1(n.s, n.x_0, n.one_t, hat(n, n.one_t), SIGMA).mean(),
)
EACH_TM1: Case = (
    with_hat,
    lambda n: L_tm1(n.s, n.x_0, n.one_t, hat(n, n.one_t), SIGMA)[:, None],
)
TOTAL: Case = (terms, lambda n: bound(n).total[0])
LOSS: Case = (NAMES, lambda n: D * L_simple(n.s, eps_theta, n.x_0, n.t, n.eps))
X_0_HAT: Case = (NAMES, lambda n: predict_x_0(n.s, n.x_t, n.t, n.eps_hat))
MIXED: Case = (ends, lambda n: mixed(n, 0.3))
LINE: Case = (line, straight)


def first_hat(n: Numbers) -> Tensor:
    """μ_θ(x_1, 1) for random x_1."""
    one = torch.ones(B, dtype=torch.long)
    return p_mean(n.s, n.x_t, one, eps_theta(n.x_t, one))


def ema_case(n: Numbers) -> dict[str, Any]:
    torch.manual_seed(0)
    return averaged(n)[1]


def ema_value(n: Numbers) -> Tensor:
    torch.manual_seed(0)
    return averaged(n)[0].net.weight.detach()


def decoder_1(n: Numbers) -> Tensor:
    """L_0 with σ_1 = 0.5, for which the quadrature's tails do not underflow."""
    s = Schedule(torch.cat([torch.tensor([0.25]).double(), n.s.beta[2:]]))
    return L_0(s, n.x_0, first_hat(n), SIGMA)[:, None]


ON_THE_PAGE: dict[str, Case] = {
    "(1) 2": STEP_LAW,
    "(2) 1": Q_STEP_LAW,
    "(2) 2": Q_STEP,
    "(4) 1": Q_SAMPLE_LAW,
    "(4) 2": Q_SAMPLE,
    "(4) 3": (
        lambda n: n.names() | {"t": int(n.t[0])},
        lambda n: n.s.alpha_bar[n.t[0]],
    ),
    "(5) 1": TOTAL,
    "(5) 2": KL_T,
    "(5) 3": KL_TM1,
    "(5) 4": (decoded, decoder_1),
    "(6) 1": POSTERIOR,
    "(7) 1": MU_TILDE,
    "(7) 2": BETA_TILDE,
    "(Section 4) 1": LINE,
    "(8) 1": MEAN_TM1,
    "(9) 1": TRUE_MEAN,
    "(10) 1": TRUE_MEAN,
    "(11) 1": (NAMES, means),
    "(12) 1": (
        lambda n: n.names(n.one_t),
        lambda n: (weight(n.s, n.one_t, SIGMA) * squared(n, n.one_t)).mean(),
    ),
    "(Algorithm 2, line 4) 1": STEP,
    "(13) 1": (bins, lambda n: decoder(n).sum(1, keepdim=True).exp()),
    "(13) 2": (
        lambda n: {"x": n.x_0.numpy()},
        lambda n: (n.x_0 + 1 / 255).masked_fill(n.level == 255, math.inf),
    ),
    "(13) 3": (
        lambda n: {"x": n.x_0.numpy()},
        lambda n: (n.x_0 - 1 / 255).masked_fill(n.level == 0, -math.inf),
    ),
    "(Section 3.3) 1": (
        lambda n: {"v": n.level.numpy()},
        lambda n: to_float(n.level.to(torch.uint8), torch.float64),
    ),
    "(14) 1": LOSS,
    "(15) 1": X_0_HAT,
    "(Section 4.3) 1": (
        lambda n: terms(n) | {"t": int(n.t[0])},
        lambda n: rate_distortion(bound(n))[0][n.t[0]],
    ),
    "(Section 4.4) 1": MIXED,
    "(App. B) 1": (ema_case, ema_value),
}

IN_DOCSTRINGS: dict[tuple[str, str], Case] = {
    ("linear_schedule", "β_t"): LINE,
    ("constant_schedule", "β_t"): (
        lambda n: {"β": 0.2, "t": 1},
        lambda n: constant_schedule(40, 0.2).beta[1:],
    ),
    ("q_step", "q(x_t|x_{t-1})"): Q_STEP_LAW,
    ("q_step", "x_t"): Q_STEP,
    ("q_sample", "q(x_t|x_0)"): Q_SAMPLE_LAW,
    ("q_sample", "x_t"): Q_SAMPLE,
    ("q_posterior", "q(x_{t-1}|x_t, x_0)"): POSTERIOR,
    ("q_posterior", "μ̃_t"): MU_TILDE,
    ("q_posterior", "β̃_t"): BETA_TILDE,
    ("p_step", "p_θ(x_{t-1}|x_t)"): STEP_LAW,
    ("p_step", "x_{t-1}"): STEP,
    ("p_mean", "μ_θ(x_t, t)"): (NAMES, means),
    ("predict_x_0", "x̂_0"): X_0_HAT,
    ("interpolate", "x̄_t"): MIXED,
    ("L_simple", "L_simple"): LOSS,
    ("weight", ""): (NAMES, lambda n: weight(n.s, n.t, SIGMA)[:, None]),
    ("EMA", "θ_ema"): (ema_case, ema_value),
    ("L_T", "L_T"): KL_T,
    ("L_tm1", "L_{t-1}"): KL_TM1,
    ("L_tm1", "="): EACH_TM1,
    ("L_0", "L_0"): (decoded, decoder_1),
    ("log_decoder", ""): (
        lambda n: edges() | {"x": n.x_0.numpy(), "σ_1": 0.5, "μ": first_hat(n).numpy()},
        decoder,
    ),
    ("bits_per_dim", "L"): TOTAL,
    ("rate_distortion", "rate[t]"): (
        lambda n: terms(n) | {"t": int(n.t[0])},
        lambda n: rate_distortion(bound(n))[0][n.t[0]],
    ),
}


def agree(found: Any, expected: Any) -> None:
    """Equal to float64's rounding, times what a quadrature or a difference costs."""
    if isinstance(expected, tuple):
        for one, other in zip(found, expected, strict=True):
            agree(one, other)
        return
    found = np.broadcast_to(np.asarray(found, dtype=float), np.shape(expected))
    np.testing.assert_allclose(found, np.asarray(expected), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("label", ON_THE_PAGE)
@share(20)  # a wrong formula is wrong at nearly all numbers
@given(seed=seeds)
def test_a_formula_of_the_page_is_what_the_function_computes(label, seed):
    """Eq. 1 to 15: the page's LaTeX, run, gives the function's numbers."""
    n = Numbers(seed)
    names, value = ON_THE_PAGE[label]
    agree(evaluate(right_side(PAGE[label]), names(n)), value(n))


@pytest.mark.parametrize("where", IN_DOCSTRINGS, ids=" ".join)
@share(20)
@given(seed=seeds)
def test_a_docstrings_formula_is_what_the_function_computes(where, seed):
    """Eq. 1 to 15: the docstring's formula, run, gives the function's numbers."""
    n = Numbers(seed)
    names, value = IN_DOCSTRINGS[where]
    text = formulas.docstring_formulas(DOCUMENTED[where[0]])[where[1]]
    agree(evaluate(text, names(n), whole=False), value(n))


def test_no_formula_is_left_out():
    """Each formula of the page, and of a docstring of README's table, is executed or
    listed with the reason why not."""
    assert set(PAGE) == set(ON_THE_PAGE) | {x for x in NOT_EXECUTED if x[0] == "("}
    found = set()
    for name, function in formulas.documented().items():
        for left in formulas.docstring_formulas(function):
            found.add((name, left))
    listed = {tuple(x.split(", ", 1)) for x in NOT_EXECUTED if x[0] != "("}
    assert found - listed == set(IN_DOCSTRINGS)


MISTAKEN = {
    "(4) 2": (r"\sqrt{1-\bar\alpha_t}", r"(1-\bar\alpha_t)"),
    "(7) 1": (r"\bar\alpha_{t-1}", r"\bar\alpha_t"),
    "(7) 2": (r"\, \beta_t", ""),
    "(11) 1": (r"\beta_t}{", r"\sqrt{\beta_t}}{"),
    "(13) 2": (r"\infty", "1"),
    "(15) 1": (r"\sqrt{1-\bar\alpha_t}", r"\sqrt{\bar\alpha_t}"),
}


@pytest.mark.parametrize("label", MISTAKEN)
def test_a_misprint_is_found(label):
    """Eq. 4, 7, 11, 13, 15: without a root, index or factor the numbers differ."""
    old, new = MISTAKEN[label]
    latex = PAGE[label].replace(old, new, 1)
    assert latex != PAGE[label]
    n = Numbers(0)
    names, value = ON_THE_PAGE[label]
    with pytest.raises(AssertionError):
        agree(evaluate(right_side(latex), names(n)), value(n))


LETTERS = {"a": 2.0, "b": 3.0, "c": 4.0, "d": 5.0}


@pytest.mark.parametrize(
    ("text", "value"),
    [("a b / c d", 2 * 3 / 4 * 5), ("√a b", math.sqrt(2) * 3), ("-a² + b", -1)],
)
def test_products_bind_from_the_left(text, value):
    """The dialect: a b / c d is ((a b) / c) d; a root is of the next factor."""
    assert evaluate(text, LETTERS) == pytest.approx(value)


def test_prose_is_not_read_as_a_formula():
    """Words end a docstring's formula, and must not stand in one of the page."""
    assert evaluate("a, the mean", {"a": 1.0}, whole=False) == 1
    with pytest.raises(ValueError, match=re.escape("is read only up to")):
        evaluate("a, the mean", {"a": 1.0})
