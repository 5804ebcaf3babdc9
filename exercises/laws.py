"""What is asked of each exercise's function: its laws, the simplest case first.

A law is a generator: it calls the function f in some cases and yields what it sees,
(case, value), the case in the paper's letters. A function is right if the values are
those of tinyddpm's own function, for which `tests/` proves the same laws by other ways.
For an exercise that is a method, f is its class.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from tinyddpm.forward import q_sample
from tinyddpm.sampler import p_mean
from tinyddpm.schedule import Schedule, linear_schedule
from tinyddpm.train import EMA, Hyperparameters

F = Callable[..., Any]
Seen = Iterator[tuple[str, Any]]


class Law(NamedTuple):
    """One law; values within `close` of each other, relatively, are the same."""

    says: str
    see: Callable[[F], Seen]
    close: float = 1e-9
    own: bool = True  # of this equation; False: of any, and broken where another is


def copies(tables: dict[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in tables.items()}


SMALL = Schedule(torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))
SMALL_IS = "β = 0.1, 0.2, 0.3"
PAPER = linear_schedule(1000)
PRISTINE = [(s, copies(vars(s))) for s in (SMALL, PAPER)]
# Rounding float32 once is 6e-8; a formula in float32 after tables in float64 is a few
# of these. A table in float32 has 1-ᾱ_1 wrong by 1.7e-4.
ROUNDED = 3e-6


def restore_schedules() -> None:
    """Undoes what a reader's function did to a schedule."""
    for s, tables in PRISTINE:
        vars(s).clear()
        vars(s).update(copies(tables))


def one(x: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """A batch of one picture of one pixel."""
    return torch.tensor(x, dtype=dtype).view(1, 1, 1, 1)


def numbers(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """N(0, 1), rounded to two decimals so that a case can be written down."""
    x = torch.randn(shape, generator=Generator().manual_seed(seed), dtype=dtype)
    return (x * 100).round() / 100


def said(letters: Sequence[str], values: Sequence[float], *rest: str) -> str:
    """x_0 = 1, ε = 0, t = 3, β = ..."""
    pairs = zip(letters, values, strict=True)
    return ", ".join([*(f"{a} = {v:g}" for a, v in pairs), *rest])


def tensors(args: Sequence[Any]) -> list[Tensor]:
    return [a for a in args if isinstance(a, Tensor)]


def equation(
    says: str,
    letters: Sequence[str],
    args: Callable[..., Sequence[Any]],
    also: Sequence[tuple[str, dict[str, Any]]] = (("", {}),),
    quiet_at_1: str = "",
) -> list[Law]:
    """The laws of a pure function of pictures, one for each letter, and of t.

    Args: args(s, data, t, **kwargs) puts the arguments in their order; also, variants:
        what is said of them, and kwargs; quiet_at_1, a letter that must be 0 at t = 1.
    """
    n = len(letters)
    units = [tuple(float(i == k) for i in range(n)) for k in range(n)]
    quiet = letters.index(quiet_at_1) if quiet_at_1 else None

    def cases(s: Schedule, steps: Sequence[int], rows: Sequence[Any]) -> Iterator[Any]:
        for t, row, (what, kwargs) in itertools.product(steps, rows, also):
            if t == 1 and quiet is not None:
                row = tuple(0.0 if i == quiet else x for i, x in enumerate(row))
            if any(row):
                yield t, row, what, kwargs

    def values(
        f: F, s: Schedule, name: str, steps: Sequence[int], rows: Sequence[Any]
    ) -> Seen:
        for t, row, what, kwargs in cases(s, steps, rows):
            given = args(s, [one(x) for x in row], torch.tensor([t]), **kwargs)
            rest = [f"t = {t}", name, *([what] if what else [])]
            yield said(letters, row, *rest), f(*given)

    def small(f: F) -> Seen:
        rows = [*units, (1.0,) * n, tuple(numbers(7, n).tolist())]
        yield from values(f, SMALL, SMALL_IS, (1, 2, 3), rows)

    def paper(f: F) -> Seen:
        rows = [tuple(numbers(seed, n).tolist()) for seed in (1, 2)]
        steps = (1, 2, 3, 500, 999, 1000)
        yield from values(f, PAPER, "the paper's β", steps, rows)

    def batch(f: F) -> Seen:
        shape = (3, 2, 2, 2)
        data = [numbers(10 + k, *shape) for k in range(n)]
        t = torch.tensor([3, 2, 3])
        yield "three pictures of 2x2x2 numbers, t = 3, 2, 3", f(*args(SMALL, data, t))

    def precision(f: F) -> Seen:
        for t in (1, 1000):
            for row in units:
                data = [one(x, torch.float32) for x in row]
                if t == 1 and quiet is not None and row[quiet]:
                    continue
                case = said(letters, row, f"t = {t}", "the paper's β", "float32")
                yield case, f(*args(PAPER, data, torch.tensor([t])))

    def pure(f: F) -> Seen:
        data = [numbers(20 + k, 2, 1, 2, 2) for k in range(n)]
        given = args(SMALL, data, torch.tensor([2, 3]))
        before = [x.clone() for x in tensors(given)]
        tables = {k: v.clone() for k, v in vars(SMALL).items() if k != "T"}
        state = torch.get_rng_state()
        f(*given)
        after = zip(before, tensors(given), strict=True)
        changed = any(not torch.equal(a, b) for a, b in after)
        for name, table in tables.items():
            changed |= not torch.equal(getattr(SMALL, name), table)
        yield "are the arguments changed?", changed
        drawn = not torch.equal(torch.get_rng_state(), state)
        yield "is torch's random generator used?", drawn

    def differentiable(f: F) -> Seen:
        data = [numbers(30 + k, 2, 1, 2, 2).requires_grad_() for k in range(n)]
        out = f(*args(SMALL, data, torch.tensor([2, 3])))
        out = out[0] if isinstance(out, tuple) else out
        yield "is the answer a tensor of inference mode?", out.is_inference()
        # float64, so that a wrong dtype is told by the law on dtypes
        out.double().square().sum().backward()
        for letter, x in zip(letters, data, strict=True):
            yield f"the gradient of the answer's squares by {letter}", x.grad

    rounding = "the answer has the data's dtype, and is rounded once, at the end"
    laws = [
        Law(says, small),
        Law(f"{says}, on the paper's schedule too", paper, own=False),
        Law("each picture of a batch has its own t", batch, own=False),
        Law(rounding, precision, ROUNDED, own=False),
        Law("the function is pure: nothing is changed, nothing drawn", pure),
        Law("the answer can be differentiated", differentiable, own=False),
    ]
    return laws


# --- section 2 and 4 -------------------------------------------------------------

TABLES = {
    "beta": ("β", "β_t for t >= 1 is what was given, and β_0 = 0"),
    "alpha": ("α", "α_t = 1-β_t, and α_0 = 1"),
    "alpha_bar": ("ᾱ", "ᾱ_t = ∏_{s=1}^t α_s, and ᾱ_0 = 1"),
    "beta_tilde": ("β̃", "β̃_t = (1-ᾱ_{t-1})/(1-ᾱ_t) β_t (eq. 7), β̃_0 = β̃_1 = 0"),
}


def table(name: str) -> Law:
    letter, says = TABLES[name]

    def see(f: F) -> Seen:
        for beta in ([0.1], [0.1, 0.2], [0.1, 0.2, 0.3]):
            given = ", ".join(map(str, beta))
            found = getattr(f(torch.tensor(beta, dtype=torch.float64)), name)
            if not isinstance(found, Tensor) or found.shape != (len(beta) + 1,):
                yield f"the table {letter} for β = {given}", found
                continue
            for t, x in enumerate(found):
                yield f"{letter}_{t} for β = {given}", x
        yield f"{letter} for the paper's β", getattr(f(PAPER.beta[1:].clone()), name)

    return Law(says, see)


def tables_keep_their_digits(f: F) -> Seen:
    s = f(PAPER.beta[1:].clone())
    yield "1-ᾱ_1 for the paper's β", 1 - s.alpha_bar[1]
    yield "β̃_2 for the paper's β", s.beta_tilde[2]
    yield "T for the paper's β", s.T


def given_beta_is_kept(f: F) -> Seen:
    beta = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    f(beta).beta[1:].mul_(2)
    yield (
        "is the β that was given another after the tables are changed?",
        bool((beta[1] != 0.2).item()),
    )


def straight_line(f: F) -> Seen:
    for T, ends in ((1, (0.1, 0.1)), (2, (0.1, 0.2)), (3, (0.1, 0.3)), (5, (0.9, 0.1))):
        beta = f(T, *ends).beta
        for t in range(1, len(beta)):
            yield f"β_{t} for T = {T}, β_1 = {ends[0]}, β_T = {ends[1]}", beta[t]
        yield f"β_1..β_T for T = {T}", beta[1:]


def default_end_points(f: F) -> Seen:
    for T in (1000, 100, 50):
        beta = f(T).beta
        yield f"β_1 for T = {T}, nothing else given", beta[1]
        yield f"β_T for T = {T}, nothing else given", beta[-1]
    yield "β_1..β_T for T = 1000", f(1000).beta[1:]


# --- forward, sampler ------------------------------------------------------------


def composed(f: F) -> Seen:
    """Eq. 2 iterated on mean and variance, against eq. 4's two factors squared."""
    a2, v = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for t in (1, 2, 3):
        a2, v = (1 - SMALL.beta[t]) * a2, (1 - SMALL.beta[t]) * v + SMALL.beta[t]
        step = torch.tensor([t])
        a, b = (f(SMALL, one(x), step, one(1 - x)) for x in (1.0, 0.0))
        gap = a.square() - a2, b.square() - v
        for what, x in zip(("mean", "variance"), gap, strict=True):
            yield f"is the {what} that of {t} steps of eq. 2?", bool(x.abs() < 1e-9)


def unit_variance(f: F) -> Seen:
    for t in (1, 2, 3):
        step = torch.tensor([t])
        a, b = (f(SMALL, one(x), step, one(1 - x)) for x in (1.0, 0.0))
        yield f"variance of x_t, t = {t}, {SMALL_IS}", (a.square() + b.square())


def at_0(f: F) -> Seen:
    yield "x_0 = 1, ε = 1, t = 0", f(SMALL, one(1), torch.tensor([0]), one(1))


def undoes_eq_4(f: F) -> Seen:
    for t in (1, 500, 1000):
        x_0, eps, step = one(0.3), one(-1.2), torch.tensor([t])
        x_t = q_sample(PAPER, x_0, step, eps)
        yield f"x_0 = 0.3 back from x_t, ε = -1.2, t = {t}", f(PAPER, x_t, step, eps)


def precisions_add(f: F) -> Seen:
    """Bayes: 1/β̃_t = 1/(1-ᾱ_{t-1}) + α_t/β_t."""
    for t in (2, 3):
        _, var = f(SMALL, one(0), one(0), torch.tensor([t]))
        yield f"1/β̃_{t}, {SMALL_IS}", 1 / var


def at_1_x_0_is_known(f: F) -> Seen:
    mu, var = f(SMALL, one(5), one(0.3), torch.tensor([1]))
    yield "μ̃_1 for x_1 = 5, x_0 = 0.3", mu
    yield "β̃_1", var


class Asked(nn.Module):
    """ε_θ = x_t/2, which keeps t and its flags; with a part that has dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Dropout(0.5)
        self.weight = nn.Parameter(torch.tensor(0.5))
        self.asked: list[tuple[Tensor, Tensor]] = []
        self.flags: list[bool] = []

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.asked.append((x_t.detach(), t))
        self.flags.append(self.training or self.part.training)
        return self.weight.to(x_t) * x_t


def loop(
    f: F, net: Any = None, seed: int = 3, **kwargs: Any
) -> tuple[list[Any], Asked, Tensor]:
    """All that the loop yields from one x_T of 4096 numbers."""
    net = Asked() if net is None else net
    g = Generator().manual_seed(seed)
    x_T = torch.randn((4, 4, 16, 16), generator=g, dtype=torch.float64)
    out = f(SMALL, net, x_T.clone(), g, **kwargs)
    return [*itertools.islice(out, 20)], net, x_T


def loop_steps(f: F) -> Seen:
    found, net, x_T = loop(f)
    yield "t of what is yielded, T = 3", [step for step, _, _ in found]
    yield (
        "t that the network is asked for, T = 3",
        [int(t.flatten()[0]) for _, t in net.asked],
    )
    yield "shape of the network's t, batch 4", [tuple(t.shape) for _, t in net.asked]
    yield "the first x_t that is yielded is x_T", torch.equal(found[0][1], x_T)
    yield (
        "the network sees the x_t that is yielded",
        [
            torch.equal(a, b)
            for (a, _), (_, b, _) in zip(net.asked, found, strict=False)
        ],
    )


def noise(found: list[Any], sigma2: Tensor) -> list[Tensor]:
    """z of each step that has some: (x_{t-1} - μ_θ)/σ_t."""
    zs = []
    for (step, x_t, _), (_, x_tm1, _) in itertools.pairwise(found):
        if step > 1:
            t = torch.full((len(x_t),), step)
            mu = p_mean(SMALL, x_t, t, x_t / 2)
            zs.append((x_tm1 - mu) / sigma2[step].sqrt())
    return zs


def loop_noise(f: F) -> Seen:
    """4096 numbers: the error of a mean is 0.016, of a deviation 0.011; 0.1 is 6 σ."""
    for choice in ("beta", "beta_tilde"):
        found, _, _ = loop(f, sigma2=choice)
        zs = noise(found, SMALL.sigma2(choice))
        for t, z in zip((3, 2), zs, strict=False):
            yield f"mean of z at t = {t}, σ² = {choice}", z.mean()
            yield f"deviation of z at t = {t}, σ² = {choice}", z.std()
        yield f"z of one step as of the next, σ² = {choice}", (zs[0] * zs[1]).mean()
        a, b = zs[0][0], zs[0][1]
        yield f"z of one picture as of the next, σ² = {choice}", (a * b).mean()


def loop_end(f: F) -> Seen:
    (*_, (_, x_1, _), (_, x_0, last)), _, _ = loop(f)
    right = p_mean(SMALL, x_1, torch.ones(4, dtype=torch.long), x_1 / 2)
    yield "noise in x_0, T = 3: x_0 less μ_θ(x_1, 1)", (x_0 - right).std()
    yield "the last x_0_hat is x_0", torch.equal(x_0, last)


def loop_x_0_hat(f: F) -> Seen:
    for clip in (False, True):
        found, _, _ = loop(f, clip_x_0=clip)
        for step, x_t, x_0_hat in found[:3]:
            root = (1 - SMALL.alpha_bar[step]).sqrt()
            x = (x_t - root * x_t / 2) / SMALL.alpha_bar[step].sqrt()
            off = (x_0_hat - (x.clamp(-1, 1) if clip else x)).abs().max()
            case = f"is x̂_0 eq. 15's at t = {step}, clip_x_0 = {clip}?"
            yield case, bool(off < 1e-6)
    found, _, _ = loop(f, clip_x_0=True)
    inside = bool(found[-1][1].abs().max() < 1 + 1e-6)
    yield "is x_0 inside [-1, 1] with clip_x_0?", inside


def loop_generator(f: F) -> Seen:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    a = loop(f)[0][-1][1]
    yield (
        "is torch's own generator used?",
        not torch.equal(torch.get_rng_state(), state),
    )
    yield "the same seed gives the same x_0", torch.equal(a, loop(f)[0][-1][1])
    z, w = (noise(loop(f, seed=k)[0], SMALL.beta)[0] for k in (3, 4))
    yield "another seed gives another z", not torch.allclose(z, w)


def loop_flags(f: F) -> Seen:
    for training in (True, False):
        net = Asked().train(training)
        net.part.eval()
        found, _, _ = loop(f, net)
        when = f"a network in {'training' if training else 'eval'} mode"
        yield f"{when}: its flags afterwards", (net.training, net.part.training)
        yield f"{when}: is dropout on when it is asked?", any(net.flags)
        yield (
            f"{when}: do the pictures ask for gradients?",
            any(x.requires_grad for _, x, _ in found),
        )


def loop_lazy(f: F) -> Seen:
    net, g = Asked(), Generator().manual_seed(0)
    out = f(SMALL, net, numbers(4, 2, 1, 2, 2), g)
    yield "a generator function, which yields", hasattr(out, "__next__")
    next(out)
    yield "calls of the network before the first yield", len(net.asked)


# --- train -----------------------------------------------------------------------


class Predicts(nn.Module):
    """ε_θ = a constant, whatever x_t; keeps what it was asked."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))
        self.asked: list[tuple[Any, ...]] = []

    def forward(self, x_t: Tensor, t: Tensor, *c: Tensor) -> Tensor:
        self.asked.append((x_t.detach().clone(), t.clone(), *c))
        return self.value.to(x_t) + torch.zeros_like(x_t)


def loss_cases(f: F) -> Seen:
    rows = [(0, 1, 1), (0, 1, 0.5), (0, 1, 0), (0, 1, -1), (1, 0, 0), (1, 1, 0.25)]
    rows += [tuple(numbers(k, 3).tolist()) for k in range(4)]
    for t, (x_0, eps, hat) in itertools.product((2, 3, 1), rows):
        net = Predicts(hat)
        case = said(("x_0", "ε", "ε_θ"), (x_0, eps, hat), f"t = {t}", SMALL_IS)
        yield case, f(SMALL, net, one(x_0), torch.tensor([t]), one(eps))


def loss_mean(f: F) -> Seen:
    x_0, eps, t = (
        numbers(1, 3, 2, 2, 2),
        numbers(2, 3, 2, 2, 2),
        torch.tensor([1, 2, 3]),
    )
    for B in (1, 3):
        net = Predicts(0.0)
        case = f"{B} picture(s) of 8 numbers, ε_θ = 0"
        yield case, f(SMALL, net, x_0[:B], t[:B], eps[:B])
    single = [one(x).float() for x in (1.0, 0.5)]
    yield (
        "float32 pictures",
        f(SMALL, Predicts(0.0), single[0], torch.tensor([2]), single[1]),
    )


def loss_input(f: F) -> Seen:
    x_0, eps, t = numbers(1, 2, 1, 2, 2), numbers(2, 2, 1, 2, 2), torch.tensor([1, 3])
    net, c = Predicts(0.0), torch.tensor([5, 6])
    f(SMALL, net, x_0, t, eps, c)
    yield "calls of the network", len(net.asked)
    yield "x_t that the network sees", net.asked[0][0]
    yield "t that the network sees", net.asked[0][1].flatten()
    yield "classes that the network sees", [a.tolist() for a in net.asked[0][2:]]


def loss_gradient(f: F) -> Seen:
    net = Predicts(0.5)
    f(SMALL, net, one(0), torch.tensor([2]), one(1)).backward()
    yield "gradient by ε_θ at ε = 1, ε_θ = 0.5", net.value.grad


def weights(f: F) -> Seen:
    for choice in ("beta", "beta_tilde"):
        for t in (2, 3, 1):
            if t > 1 or choice == "beta":
                case = f"t = {t}, σ_t² = {choice}, {SMALL_IS}"
                yield case, f(SMALL, torch.tensor([t]), choice)


def weights_of_the_paper(f: F) -> Seen:
    t = torch.tensor([2, 3, 500, 1000])
    for choice in ("beta", "beta_tilde"):
        yield (
            f"t = 2, 3, 500, 1000, σ_t² = {choice}, the paper's β",
            f(PAPER, t, choice),
        )
    yield "t = 1, the paper's β, σ_t² not given", f(PAPER, torch.tensor([1]))


class Line(nn.Module):
    """A network of one weight w: ε_θ = w. Keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(5.0))
        self.asked: list[tuple[Tensor, Tensor]] = []

    def forward(self, x_t: Tensor, t: Tensor, *c: Tensor) -> Tensor:
        self.asked.append((x_t, t))
        return self.w + 0 * x_t


class Descent:
    """Plain gradient descent; torch.optim would take seconds to be imported."""

    def __init__(self, net: nn.Module) -> None:
        self.param_groups: list[dict[str, Any]] = [
            {"params": list(net.parameters()), "lr": 123.0}
        ]

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p -= group["lr"] * p.grad

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p in self.param_groups[0]["params"]:
            p.grad = None


class Trained:
    """A run of Algorithm 1 on one picture of numbers 0.5, all of it written down."""

    def __init__(
        self, f: F, steps: int = 6, B: int = 64, seed: int = 1, first: int = 1
    ) -> None:
        self.net = Line()
        self.drawn: list[tuple[Any, Any]] = []
        self.lines: list[tuple[Any, ...]] = []
        self.before: list[float] = []  # the gradient that line 5 finds
        self.w: list[float] = []
        self.average: list[float] = []
        self.steps: list[Any] = []
        self.losses: list[float] = []
        h = Hyperparameters(
            steps=steps, batch=B, lr=0.1, warmup=3, max_norm=1.0, ema=0.5, seed=seed
        )
        ema = EMA(self.net, h.ema)
        optimiser = Descent(self.net)
        out = f(SMALL, self.net, self.draw, h, ema, optimiser, first, self.gradient)
        for step, loss in itertools.islice(out, steps + 5):
            self.steps.append(step)
            self.losses.append(float(loss))
            self.w.append(float(self.net.w))
            self.average.append(float(next(ema.net.parameters())))

    def draw(self, B: int, generator: Generator | None) -> tuple[Tensor, ...]:
        self.drawn.append((B, generator))
        c = torch.arange(B)
        return torch.full((B, 1, 2, 2), 0.5), c

    def gradient(self, *batch: Any) -> Tensor:
        """Adds 3, then 0.5, then 3, ... to the weight's gradient."""
        self.lines.append(batch)
        k = len(self.lines)
        before = 0.0 if self.net.w.grad is None else float(self.net.w.grad)
        self.before.append(before)
        self.net.w.grad = torch.tensor(before + (3.0 if k % 2 else 0.5))
        return torch.tensor(10.0 + k)

    @property
    def t(self) -> Tensor:
        return torch.cat([line[3] for line in self.lines])

    @property
    def eps(self) -> Tensor:
        return torch.stack([line[4] for line in self.lines])


def train_steps(f: F) -> Seen:
    run = Trained(f)
    yield "the steps that are yielded, h.steps = 6", run.steps
    yield "the losses that are yielded: what line 5 gives", run.losses
    yield "the steps from first = 4, h.steps = 6", Trained(f, first=4).steps
    yield "times that `gradient`, line 5, is called in 6 steps", len(run.lines)


def train_t(f: F) -> Seen:
    """2560 draws: the error of a share is 0.009."""
    run = Trained(f, 40)
    yield "the shape of t, batch 64", {tuple(line[3].shape) for line in run.lines}
    for t in range(5):
        yield f"share of t = {t}, T = 3", float((run.t == t).double().mean())
    mixed = all(len(line[3].unique()) > 1 for line in run.lines)
    yield "the pictures of a batch have different t", mixed


def train_eps(f: F) -> Seen:
    """40 x 64 x 4 numbers: the errors are below 0.01."""
    run = Trained(f, 40)
    eps = run.eps
    yield "the shape of ε, x_0 being (64, 1, 2, 2)", tuple(eps.shape[1:])
    yield "the mean of ε", eps.mean()
    yield "the deviation of ε", eps.std()
    yield "correlation of ε in one step and the next", (eps[1:] * eps[:-1]).mean()
    yield (
        "correlation of ε of one picture and the next",
        (eps[:, 1:] * eps[:, :-1]).mean(),
    )
    yield (
        "correlation of ε of one pixel and the next",
        (eps[..., 1:] * eps[..., :-1]).mean(),
    )


def train_data(f: F) -> Seen:
    run = Trained(f)
    yield "how many pictures draw is asked for, h.batch = 64", {B for B, _ in run.drawn}
    yield (
        "draw is given a torch.Generator",
        all(isinstance(g, Generator) for _, g in run.drawn),
    )
    yield (
        "x_0 of line 5 is what draw gave",
        {float(line[2].mean()) for line in run.lines},
    )
    yield "classes go on to line 5", [line[5:][0].tolist()[:3] for line in run.lines]


def train_weights(f: F) -> Seen:
    """Gradients 3, 0.5, 3, ... clipped to norm 1; rates 0.1 x 1/3, 2/3, 1, 1, ..."""
    run = Trained(f)
    yield "gradients that line 5 finds, step by step", run.before
    for k, w in enumerate(run.w, 1):
        g, clipped = (3, 1) if k % 2 else (0.5, 0.5)
        rate = f"gradient {g} (norm bounded: {clipped}), rate {min(k / 3, 1) / 10:.3g}"
        yield f"weight after step {k}: {rate}", w


def train_average(f: F) -> Seen:
    run = Trained(f)
    for k, w in enumerate(run.average, 1):
        yield f"moving average of the weight after step {k}, decay 0.5", w


def train_seed(f: F) -> Seen:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    a, b, c = Trained(f), Trained(f, first=4), Trained(f, seed=2)
    yield (
        "is torch's own generator used?",
        not torch.equal(torch.get_rng_state(), state),
    )
    yield (
        "step 4 draws the same when it is the first",
        torch.equal(a.eps[3:], b.eps) and torch.equal(a.t[3 * 64 :], b.t),
    )
    yield "one step draws what another draws", torch.equal(a.eps[0], a.eps[1])
    yield "another seed draws the same", torch.equal(a.eps, c.eps)


# --- appendix B ------------------------------------------------------------------


def averages(f: F) -> Seen:
    for decay, thetas in ((0.9, (1.0,)), (0.9, (1.0, 1.0)), (0.75, (2.0, -1.0, 4.0))):
        net = nn.Linear(1, 1, dtype=torch.float64)
        with torch.no_grad():
            net.weight.fill_(0)
            net.bias.fill_(1)
            ema = f(net, decay)
            for theta in thetas:
                net.weight.fill_(theta)
                net.bias.fill_(theta + 1)
                ema.update()
        case = f"decay = {decay}, θ_ema = 0, θ = {', '.join(map(str, thetas))}"
        yield case, ema.net.weight.detach().clone()
        yield f"{case}, the second weight, 1 more", ema.net.bias.detach().clone()
        yield f"θ of the network itself, {case}", net.weight.detach().clone()


def averages_of_buffers(f: F) -> Seen:
    net = nn.BatchNorm1d(1)
    ema = f(net, 0.9)
    for buffer, x in zip(net.buffers(), (4, 1, 7), strict=True):
        buffer.fill_(x)
    ema.update()
    yield "the average's running mean, the network's being 4", ema.net.running_mean
    yield "its number of batches, the network's being 7", ema.net.num_batches_tracked


def averages_need_no_gradient(f: F) -> Seen:
    net = nn.Linear(1, 1)
    ema = f(net, 0.9)
    ema.update()
    ema.update()
    yield "does the average ask for gradients?", ema.net.weight.requires_grad
    yield "does the network still?", net.weight.requires_grad


def embeddings(f: F) -> Seen:
    for t, dim in itertools.product((0, 1, 2), (4, 6)):
        for i, x in enumerate(f(torch.tensor([t]), dim).flatten()):
            yield f"number {i} of dim = {dim}, t = {t}", x


def embeddings_of_a_batch(f: F) -> Seen:
    yield "t = 1, 500, 1000, dim = 128", f(torch.tensor([1, 500, 1000]), 128)
    yield "dtype for t in float32", f(torch.tensor([3.0]), 8)


def embeddings_in_float64(f: F) -> Seen:
    t = torch.tensor([1.0, 999.0], dtype=torch.float64)
    yield "t = 1, 999 in float64, dim = 8", f(t, 8)


def made_block(f: F, inside: int, outside: int, dropout: float = 0.0) -> Any:
    """A block in eval mode with weights that are all different from 0."""
    block = f(inside, outside, 6, dropout).double().eval()
    g = Generator().manual_seed(8)
    with torch.no_grad():
        for p in block.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) / 2)
    return block


def block_repeats(f: F) -> Seen:
    x, emb = numbers(1, 2, 4, 4, 4), numbers(2, 2, 6)
    for outside in (8, 4):
        block = made_block(f, 4, outside)
        same = torch.equal(block(x, emb), block(x, emb))
        yield f"4 channels to {outside}, eval: asked twice, the same", same


def blocks(f: F) -> Seen:
    x, emb = numbers(1, 2, 4, 4, 4), numbers(2, 2, 6)
    for outside in (4, 8):
        block = made_block(f, 4, outside)
        case = f"4 channels to {outside}, 4x4 pixels"
        yield f"{case}, shape", tuple(block(x, emb).shape)
        yield f"{case}, x = 0, emb = 0", block(0 * x, 0 * emb)
        yield f"{case}, emb = 0", block(x, 0 * emb)
        yield case, block(x, emb)


def block_dropout(f: F) -> Seen:
    x, emb = numbers(1, 2, 4, 4, 4), numbers(2, 2, 6)
    block = made_block(f, 4, 4, dropout=0.5)
    yield "in eval mode: is dropout off?", torch.equal(block(x, emb), block(x, emb))
    block.train()
    yield (
        "in training mode: is dropout on?",
        not torch.equal(block(x, emb), block(x, emb)),
    )


def block_start(f: F) -> Seen:
    x, emb = numbers(1, 2, 4, 4, 4), numbers(2, 2, 6)
    block = f(4, 4, 6, 0.0).double().eval()
    yield "a new block, 4 channels to 4: the answer less x", block(x, emb) - x


def block_gradients(f: F) -> Seen:
    x, emb = numbers(1, 2, 4, 4, 4), numbers(2, 2, 6)
    block = made_block(f, 4, 8)
    block(x, emb).square().sum().backward()
    for name, p in block.named_parameters():
        reached = p.grad is not None and bool((p.grad != 0).any())
        yield f"does a gradient reach {name}?", reached


# --- bound -----------------------------------------------------------------------


def divergences(f: F) -> Seen:
    for choice in ("beta_tilde", "beta"):
        for t, x_0, hat in itertools.product((2, 3), (0.0, 1.0), (0.0, 0.5)):
            case = f"x_0 = {x_0:g}, x̂_0 = {hat:g}, t = {t}, σ_t² = {choice}"
            args = SMALL, one(x_0), torch.tensor([t]), one(hat)
            yield f"{case}, {SMALL_IS}", f(*args, choice)


def divergences_of_a_batch(f: F) -> Seen:
    x_0, hat = numbers(1, 3, 2, 2, 2), numbers(2, 3, 2, 2, 2)
    t = torch.tensor([2, 3, 2])
    yield "three pictures of 2x2x2 numbers, t = 2, 3, 2", f(SMALL, x_0, t, hat)
    steps = torch.tensor([2, 500, 1000])
    for choice in ("beta", "beta_tilde"):
        case = f"the paper's β, t = 2, 500, 1000, σ_t² = {choice}"
        yield case, f(PAPER, x_0, steps, hat, choice)


def divergences_in_float64(f: F) -> Seen:
    x_0, hat = (numbers(k, 2, 1, 2, 2).float() for k in (1, 2))
    yield "float32 pictures", f(SMALL, x_0, torch.tensor([2, 3]), hat)


def level(v: float) -> Tensor:
    return torch.tensor([v], dtype=torch.float64)


def decoded(f: F) -> Seen:
    for v, mean, variance in (
        *((128, 0.0, 1.0), (127, 0.0, 0.01), (100, 0.1, 0.01), (200, -0.3, 0.25)),
        *((127, 0.0, 1e-4), (128, 0.0, 1e-4)),
    ):
        case = f"level {v}, μ = {mean:g}, σ_1² = {variance:g}"
        yield case, f(level(v), level(mean), variance)


def decoded_at_the_ends(f: F) -> Seen:
    for v, mean in itertools.product((0, 255), (0.0, 1.0, -1.0, 1.5, -1.5)):
        case = f"level {v} (x = {v / 127.5 - 1:g}), μ = {mean:g}, σ_1² = 1"
        yield case, f(level(v), level(mean), 1.0)


def levels_sum_to_one(f: F) -> Seen:
    v = torch.arange(256, dtype=torch.float64)
    for mean, variance in ((0.0, 1.0), (0.5, 0.01), (-0.999, 1e-4), (3.0, 0.1)):
        total = f(v, level(mean), variance).exp().sum()
        yield f"the 256 probabilities' sum, μ = {mean:g}, σ_1² = {variance:g}", total


def decoded_far_away(f: F) -> Seen:
    for v, mean in ((200, -1.0), (50, 1.0), (255, -1.0), (0, 1.0)):
        case = f"level {v}, μ = {mean:g}, σ_1² = 0.0001: the bin is far from the mean"
        yield case, f(level(v), level(mean), 1e-4)


def decoder_gradient(f: F) -> Seen:
    for v in (0, 128, 255):
        mean = level(0.3).requires_grad_()
        f(level(v), mean, 0.01).sum().backward()
        yield f"d/dμ at level {v}, μ = 0.3, σ_1² = 0.01", mean.grad


def _step(s: Schedule, d: list[Tensor], t: Tensor, *rest: Any) -> Sequence[Any]:
    return (s, d[0], t, d[1], d[2], *rest)


def _step_args(
    s: Schedule, d: list[Tensor], t: Tensor, sigma2: str = "beta", clip: bool = False
) -> Sequence[Any]:
    return _step(s, d, t, sigma2, clip)


def default_step(f: F) -> Seen:
    """A large ε_θ: were x̂_0 clamped, it would show."""
    args = _step(SMALL, [one(3), one(-2), one(1)], torch.tensor([2]))
    yield "x_t = 3, ε_θ = -2, z = 1, t = 2, sigma2 and clip_x_0 not given", f(*args)


def middle(s: Schedule, d: list[Tensor], t: Tensor) -> Sequence[Any]:
    return s, d[0], t, d[1]


LAWS: dict[str, list[Law]] = {
    "alpha_bar": [
        *(table(name) for name in TABLES),
        Law("1-ᾱ_t keeps its digits: tables are float64", tables_keep_their_digits),
        Law("the β that is given stays as it is", given_beta_is_kept),
    ],
    "beta": [
        Law("β_t = β_1 + (t-1)/(T-1) (β_T-β_1)", straight_line, 1e-12),
        Law("end points that are not given scale by 1000/T", default_end_points, 1e-12),
    ],
    "eq2": [
        *equation("x_t = √(1-β_t) x_{t-1} + √β_t z", ("x_{t-1}", "z"), middle),
        Law("data of unit variance keep it", unit_variance),
    ],
    "eq4": [
        *equation("x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε", ("x_0", "ε"), middle),
        Law("data of unit variance keep it", unit_variance),
        Law("t steps of eq. 2 are eq. 4", composed),
        Law("t = 0 gives x_0 back", at_0),
    ],
    "eq7": [
        *equation(
            "μ̃_t = √ᾱ_{t-1} β_t/(1-ᾱ_t) x_0 + √α_t (1-ᾱ_{t-1})/(1-ᾱ_t) x_t, "
            "β̃_t = (1-ᾱ_{t-1})/(1-ᾱ_t) β_t",
            ("x_t", "x_0"),
            lambda s, d, t: (s, d[0], d[1], t),
        ),
        Law("Bayes: 1/β̃_t = 1/(1-ᾱ_{t-1}) + α_t/β_t", precisions_add),
        Law("at t = 1 the mean is x_0 and the variance 0", at_1_x_0_is_known),
    ],
    "eq15": [
        *equation("x̂_0 = (x_t - √(1-ᾱ_t) ε_θ)/√ᾱ_t", ("x_t", "ε_θ"), middle),
        Law("eq. 15 undoes eq. 4", undoes_eq_4),
    ],
    "eq11": equation("μ_θ = (x_t - β_t/√(1-ᾱ_t) ε_θ)/√α_t", ("x_t", "ε_θ"), middle),
    "step": [
        *equation(
            "x_{t-1} = μ_θ(x_t, t) + σ_t z",
            ("x_t", "ε_θ", "z"),
            _step_args,
            also=(
                ("", {}),
                ("σ² = β̃", {"sigma2": "beta_tilde"}),
                ("clip_x_0", {"clip": True}),
            ),
            quiet_at_1="z",
        ),
        Law("by default σ_t² = β_t and x̂_0 is not clamped", default_step),
    ],
    "algorithm2": [
        Law("T calls of the network, t = T..1; then x_0 is yielded", loop_steps),
        Law(
            "z ~ N(0, I) and σ_t² as asked, in every step but the last", loop_noise, 0.1
        ),
        Law("z = 0 at t = 1 (line 3)", loop_end, 0.05),
        Law("x̂_0 by eq. 15, clamped if asked", loop_x_0_hat),
        Law("all noise comes from the generator given", loop_generator),
        Law("the network is asked without dropout, and left as found", loop_flags),
        Law("one step is taken at a time", loop_lazy),
    ],
    "eq14": [
        Law("L_simple = ‖ε - ε_θ(x_t, t)‖²", loss_cases),
        Law("the mean over a picture's numbers and the batch", loss_mean, ROUNDED),
        Law("the network sees eq. 4's x_t, t and the classes, once", loss_input),
        Law("the loss can be differentiated", loss_gradient),
    ],
    "eq12": [
        Law("β_t²/(2 σ_t² α_t (1-ᾱ_t))", weights),
        Law("the same on the paper's schedule, in float64", weights_of_the_paper),
    ],
    "algorithm1": [
        Law(
            "a step at a time, from first to h.steps; line 5 once in each", train_steps
        ),
        Law("line 2: x_0 ~ q(x_0), with the classes that come with it", train_data),
        Law("line 3: t is uniform on {1..T}, of each picture its own", train_t, 0.06),
        Law("line 4: ε ~ N(0, I)", train_eps, 0.06),
        Law(
            "the gradient is bounded, the rate warmed up, and one step taken",
            train_weights,
            1e-5,
        ),
        Law("the average follows each step", train_average, 1e-5),
        Law("draws are a function of the seed and the step", train_seed),
    ],
    "ema": [
        Law("θ_ema ← decay θ_ema + (1-decay) θ", averages),
        Law("buffers are copied", averages_of_buffers),
        Law("no gradient is recorded, none taken away", averages_need_no_gradient),
    ],
    "embedding": [
        Law(
            "sin(ω_i t), then cos(ω_i t), ω_i = 10000^(-i/(dim/2-1))", embeddings, 1e-6
        ),
        Law("the same for a batch, float32", embeddings_of_a_batch, 1e-6),
        Law("in float64 for t in float64", embeddings_in_float64),
    ],
    "L_tm1": [
        Law("L_{t-1} = KL(q(x_{t-1}|x_t, x_0) ‖ p_θ(x_{t-1}|x_t))", divergences),
        Law("a sum over a picture's numbers, of each its own", divergences_of_a_batch),
        Law("computed in float64", divergences_in_float64),
    ],
    "eq13": [
        Law("ln ∫_{δ-}^{δ+} N(x; μ, σ_1²) dx, δ± = x ± 1/255", decoded),
        Law("the first and the last bin reach to infinity", decoded_at_the_ends),
        Law("the 256 probabilities add up to 1", levels_sum_to_one),
        Law("far from the mean too", decoded_far_away),
        Law("the answer can be differentiated", decoder_gradient),
    ],
    "block": [
        Law("in eval mode a network is a function", block_repeats),
        Law(
            "shortcut(x) + conv2(SiLU(norm2(conv1(SiLU(norm1(x))) + dense(emb))))",
            blocks,
        ),
        Law("dropout, in training alone", block_dropout),
        Law("a new block adds nothing to x", block_start),
        Law("every parameter is reached by a gradient", block_gradients),
    ],
}
