"""A second device without a GPU: tensors that say they are elsewhere, and are counted.

Inside `with SecondDevice() as device:` a tensor that is made on, or moved to, ELSEWHERE
says so, and is computed on by the CPU: its numbers are real, and equal to the bit to
the same function's on the CPU. As on a GPU an operation on tensors of two places is an
error, and so is a generator of another place; stricter than there, a CPU tensor of one
number is not let in either. Copies from one place to the other are counted, and each
time the host waits for numbers of the device.

ELSEWHERE is torch's "meta", which has the advantage over "privateuseone" that nothing
need be registered with the process: no thread of autograd's, no accelerator.
"""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple
from weakref import WeakValueDictionary

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tinyddpm import MLP, UNet, linear_schedule
from tinyddpm.beyond.ablations import TwoAnswers
from tinyddpm.beyond.convnext import ConvNeXtBlock
from tinyddpm.beyond.convnext import LinearAttention as Linear

from .helpers import quiet, random_pictures
from .strategies import normal

ELSEWHERE, CPU = torch.device("meta"), torch.device("cpu")

# What looks at numbers, or makes a tensor whose size depends on them.
WAITS = (
    "_linalg_check_errors",
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "repeat_interleave",
)


def leaves(tree: Any) -> list[Any]:
    """What lies in nested tuples, lists and dictionaries."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if not isinstance(tree, tuple | list):
        return [tree]
    return [leaf for part in tree for leaf in leaves(part)]


def mapped(f: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The same nest with f(x) for each tensor x."""
    if isinstance(tree, Tensor):
        return f(tree)
    if isinstance(tree, dict):
        return {key: mapped(f, part) for key, part in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)([mapped(f, part) for part in tree])
    return tree


class There(Tensor):
    """A tensor of ELSEWHERE, whose numbers are those of a CPU tensor, `here`."""

    here: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: Tensor) -> "There":
        there = Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=ELSEWHERE,
        )
        there.here = here
        return there

    def __repr__(self) -> str:
        return f"There({self.here})"

    def tolist(self) -> list:  # torch refuses it to subclasses
        return self.cpu().tolist()

    def __getitem__(self, i: Any) -> Tensor:
        """torch would make a tensor of a list behind the mode's back."""
        i = torch.tensor(i).to(ELSEWHERE) if isinstance(i, list) else i
        return super().__getitem__(i)

    @classmethod
    def __torch_dispatch__(cls, f, types, args=(), kwargs=None):
        raise RuntimeError(f"{f} of a second device's tensor, outside of its `with`")


class SecondDevice(TorchDispatchMode):
    """Runs what happens ELSEWHERE, and counts.

    Attributes:
        copies: of tensors from one place to the other, either way.
        waits: how often the host waited for numbers of ELSEWHERE.
    """

    def __init__(self) -> None:
        super().__init__()
        self.copies = self.waits = 0

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name, flat = f.overloadpacket.__name__, leaves((args, kwargs))
        tensors = [x for x in flat if isinstance(x, Tensor)]
        there = {id(x.here): x for x in tensors if isinstance(x, There)}
        assert all(isinstance(x, There) for x in tensors if x.is_meta), "no numbers"
        place = ELSEWHERE if there else CPU
        asked_for = kwargs.get("device")
        to = place if asked_for is None else torch.device(asked_for)
        if name in ("_to_copy", "copy_"):
            source = tensors[-1].device  # of _to_copy's only one, of copy_'s second
            to = to if name == "_to_copy" else tensors[0].device
            self.copies += source != to
            self.waits += source != to == CPU
        elif len({x.device for x in tensors}) > 1:
            raise RuntimeError(f"{f}: all tensors must be on the same device")
        self._drawn(f, to, flat)
        looks = name in WAITS or (name.startswith("index") and _mask(flat[1:]))
        self.waits += looks and place == ELSEWHERE
        if asked_for is not None:
            kwargs = {**kwargs, "device": CPU}
        if there:
            args, kwargs = mapped(_brought_here, (args, kwargs))
        made = f(*args, **kwargs)
        if to == CPU:
            return made

        def place_there(x: Tensor) -> Tensor:
            # What an operation in place returns is what it was given.
            return there[id(x)] if id(x) in there else There(x)

        return mapped(place_there, made)

    @staticmethod
    def _drawn(f: object, to: torch.device, flat: list) -> None:
        for g in flat:
            if isinstance(g, Generator) and GeneratorThere.place_of(g) != to:
                raise RuntimeError(f"{f}: the generator is not on {to}")


class GeneratorThere(Generator):
    """A torch.Generator that says it is of the device that it was made for."""

    known: ClassVar = WeakValueDictionary[int, "GeneratorThere"]()

    def __new__(cls, device: torch.device | str | None = None) -> "GeneratorThere":
        made = super().__new__(cls, CPU)
        made.place = CPU if device is None else torch.device(device)
        cls.known[made._cdata] = made
        return made

    @property
    def device(self) -> torch.device:
        return self.place

    @classmethod
    def place_of(cls, g: Generator) -> torch.device:
        """On its way to the operation a generator loses its Python class."""
        return cls.known.get(g._cdata, g).device


def _brought_here(x: Tensor) -> Tensor:
    return x.here if isinstance(x, There) else x


def _mask(others: list) -> bool:
    return any(isinstance(x, Tensor) and x.dtype == torch.bool for x in others)


class Case(NamedTuple):
    """One row of a table of what a function costs on a second device.

    `call` takes what it names of `given`, and `s`; its result holds tensors.
    """

    call: Callable[..., Any]
    copies: int = 0  # with a schedule that is still on the CPU
    waits: int = 0
    there: tuple[int, int] = (0, 0)  # copies and waits with one that is there already
    each: int = 0  # waits in each of the T steps beside
    free: tuple[str, ...] = ()  # what may be anywhere: is moved, or has but a shape

    @property
    def names(self) -> list[str]:
        return [name for name in inspect.signature(self.call).parameters if name != "s"]


def fixed(net: nn.Module) -> nn.Module:
    """The network in eval mode, its weights always the same numbers."""
    for i, parameter in enumerate(net.eval().parameters()):
        parameter.data = 0.3 * normal(i, parameter.shape, torch.float32)
    return net


def given(names: list[str], place: torch.device, T: int) -> dict[str, Any]:
    """Arguments by their names, always the same, all of them at one place.

    x, y: two pairs of 8-bit pictures; v: of bytes; eps, z, x_t: noise; t, t_prime and
    c: steps and classes; lam: numbers in [0, 1]; beta: a schedule's; bits: T + 1 for a
    picture; mean, cov: of a Gaussian; theta, gram: for `levels.posterior`; net, two:
    MLPs, one with two answers; unet, convnext, classes: U-Nets, of plain and of other
    layers and with classes; g: a generator.
    """
    shape = (2, 3, 4, 4)
    every: dict[str, Callable[[], Any]] = {
        "x": lambda: random_pictures(0, shape),
        "y": lambda: random_pictures(1, shape),
        "v": lambda: normal(2, shape).mul(50).abs().to(torch.uint8),
        "eps": lambda: normal(3, shape, torch.float32),
        "z": lambda: normal(4, shape, torch.float32),
        "x_t": lambda: normal(5, shape, torch.float32),
        "t": lambda: torch.tensor([2, 5]),
        "t_prime": lambda: torch.tensor([0, 4]),
        "c": lambda: torch.tensor([1, 0]),
        "lam": lambda: torch.tensor([0.0, 0.25, 1.0]),
        "beta": lambda: torch.linspace(0.1, 0.3, T, dtype=torch.float64),
        "bits": lambda: normal(6, (2, T + 1)).abs(),
        "mean": lambda: normal(7, shape[1:]),
        "theta": lambda: normal(8, (5, 2)),
        "gram": lambda: torch.tensor([[5.0, 1.0], [1.0, 4.0]]).double(),
        "cov": lambda: torch.eye(48).double() + torch.ones(48, 48).double() / 3,
        "unet": lambda: fixed(UNet(3, 4, (1, 1))),
        "net": lambda: fixed(MLP(shape[1:], 4, 1, 4)),
        "two": lambda: TwoAnswers(fixed(MLP((6, 4, 4), 4, 1, 4))),
        "convnext": lambda: fixed(UNet(3, 4, (1,), (), 0, None, ConvNeXtBlock, Linear)),
        "classes": lambda: fixed(UNet(3, 4, (1,), (), num_classes=2)),
    }

    def moved(name: str) -> Any:
        if name == "g":
            return GeneratorThere(place).manual_seed(0)
        made = every[name]()
        if place == CPU:
            return made
        with SecondDevice():
            return made.to(place)

    return {name: moved(name) for name in names}


def ran(
    case: Case,
    there: bool = True,
    s_there: bool = False,
    T: int = 5,
    but: str | None = None,
) -> tuple[list[Tensor | float], int, int]:
    """(tensors and numbers of the result, copies, waits); `but` is left on the CPU."""
    s, names = quiet(linear_schedule, T, 0.05, 0.4), case.names
    arguments = given(names, ELSEWHERE if there else CPU, T) | given(
        [but] if but else [], CPU, T
    )
    with SecondDevice() as device:
        if "s" in inspect.signature(case.call).parameters:
            arguments["s"] = s.to(ELSEWHERE) if s_there else s
        device.copies = device.waits = 0
        made = leaves(case.call(**arguments))
    made = [x for x in made if isinstance(x, Tensor | float)]
    return made, device.copies, device.waits


def hold_to(case: Case) -> None:
    """The law of a row: the place, the numbers, and the counts, whatever T is.

    And what comes out can be trained on: it is no tensor of inference mode.
    """
    want, *none = ran(case, there=False)
    assert none == [0, 0]
    assert not any(isinstance(x, Tensor) and x.is_inference() for x in want)

    def costs(copies: int, waits: int, T: int = 5, s_there: bool = False) -> None:
        got, *counts = ran(case, T=T, s_there=s_there)
        assert counts == [copies, waits + T * case.each], "copies and waits"
        if T == 5:
            same(got, want)

    costs(case.copies, case.waits)
    if "s" in inspect.signature(case.call).parameters:
        costs(case.copies, case.waits, T=7)
        costs(*case.there, s_there=True)


def same(got: list[Tensor | float], want: list[Tensor | float]) -> None:
    """To the bit the CPU's numbers, but ELSEWHERE."""
    assert len(got) == len(want) > 0
    for x, y in zip(got, want, strict=True):
        if isinstance(y, Tensor):
            assert isinstance(x, There)
            assert x.dtype == y.dtype
            x = x.here
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


def mismatches(cases: dict[str, Case]) -> list[Any]:
    """(case, argument) for each argument that may not stay behind on the CPU."""
    return [
        pytest.param(case, name, id=f"{of}-{name}")
        for of, case in cases.items()
        for name in case.names
        if len(case.names) > 1 and name not in case.free
    ]
