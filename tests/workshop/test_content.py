"""A checkpoint with a right check sum and wrong content ends in one sentence."""

import dataclasses
import functools
import hashlib
import io
import shutil
from pathlib import Path

import pytest
import torch

from tinyddpm.mlp import MLP
from tinyddpm.workshop.checkpoint import load_checkpoint, save_checkpoint
from tinyddpm.workshop.command import main
from tinyddpm.workshop.content import refuse_content

from .training_run import SHAPE, checkpoint_of, network

KEY = "first.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A sound file, of step 1; its network has few tensors."""
    path = tmp_path_factory.mktemp("trained") / "c.pt"
    save_checkpoint(path, checkpoint_of(MLP(SHAPE, width=8, depth=1, emb=4)))
    return path


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    """The same of a U-Net."""
    path = tmp_path_factory.mktemp("unet") / "c.pt"
    save_checkpoint(path, checkpoint_of(network()))
    return path


def put(*way):
    """A change of the saved parts: the value at the end of the way is the last item."""
    *keys, last, value = way

    def change(saved):
        for key in keys:
            saved = saved[key]
        saved[last] = value

    return change


def without(*way):
    *keys, last = way

    def change(saved):
        for key in keys:
            saved = saved[key]
        del saved[last]

    return change


def wide(saved):
    """A weight more, and in the average, too: of no layer."""
    saved["weights"]["more"] = saved["ema"]["more"] = torch.zeros(1)


def whole_numbers(saved):
    for name in ("weights", "ema"):
        saved[name][KEY] = saved[name][KEY].long()


def of_no_parameter(saved):
    saved["optimiser"]["state"][-1] = saved["optimiser"]["state"][0]


def moments(saved):
    for name in ("exp_avg", "exp_avg_sq"):
        saved["optimiser"]["state"][0][name] = torch.zeros(5, 4, 3)


def turned_round(saved):
    state = saved["optimiser"]["state"]
    last = max(state)
    state[0], state[last] = state[last], state[0]


PARTS = ("step", "config", "network", "shape", "beta", "weights", "ema", "optimiser")
PARTS = (*PARTS, "told", "data")
ADAM, GROUP = ("optimiser", "state", 0), ("optimiser", "param_groups", 0)
ROW = functools.partial(torch.full, dtype=torch.float64)
SIZE = 10**5  # of the file that the parts stand in
NOT_ADAMS = "its optimiser's groups are not those of Adam with {'betas': (0.9, 0.999), "
NOT_ADAMS += "'eps': 1e-08, 'weight_decay': 0, 'amsgrad': False, 'maximize': False, "
NOT_ADAMS += "'capturable': False, 'differentiable': False}"
NUMBERED = "its optimiser's parameters are not numbered as Adam numbers them"
NO_MOMENTS = "its optimiser has no moments of parameter 0"
FEWER = "its moving average has other weights than the network"

# kind: the change, and what is said of it
DAMAGE = {f"no {n}": (without(n), f"it lacks ['{n}'] and adds []") for n in PARTS}
DAMAGE |= {f"{n}: float": (put(n, 3.5), f"its {n} is float") for n in PARTS}
DAMAGE |= {
    f"{n}: list": (
        put(n, [[]]),
        f"its {n} is {'[[]]' if n in ('network', 'shape') else 'list'}",
    )
    for n in PARTS
}
DAMAGE |= {
    f"{n}: None": (put(n, None), f"its {n} is NoneType")
    for n in PARTS
    if n not in ("network", "data")
}
DAMAGE |= {
    f"{n}: text": (put(n, "x" * 99), f"its {n} is '{'x' * 59}")  # it may be a book
    for n in PARTS
    if n != "data"
}
DAMAGE |= {
    "a part more": (put("more", 1), "it lacks [] and adds ['more']"),
    "a number as a part": (put(1, 2), "it lacks [] and adds ['1']"),
    "step below 0": (put("step", -1), "its step is -1"),
    "step is True": (put("step", True), "its step is True"),
    "setting: no name": (
        put("config", {1: 2}),
        "its config has names that are not strings",
    ),
    "setting: a tensor": (
        put("config", "batch", torch.ones(3)),
        "its config holds more than plain values",
    ),
    "setting: a tensor far inside": (
        put("config", {"a": {"b": [1, ("x", torch.ones(3))]}}),
        "its config holds more than plain values",
    ),
    "network of one": (put("network", ("UNet",)), "its network is ('UNet',)"),
    "network of three": (
        put("network", ("UNet", {}, {})),
        "its network is ('UNet', {}, {})",
    ),
    "network of numbers": (put("network", (1, {})), "its network is (1, {})"),
    "network: text": (put("network", ("UNet", "x")), "its network is ('UNet', 'x')"),
    "network: no name": (
        put("network", ("UNet", {1: 2})),
        "its network is ('UNet', {1: 2})",
    ),
    "network of a tensor": (
        put("network", ("UNet", {"base": torch.ones(3)})),
        "its network holds more than plain values",
    ),
    "shape: empty": (put("shape", ()), "its shape is ()"),
    "shape: with 0": (put("shape", (2, 0, 4)), "its shape is (2, 0, 4)"),
    "shape: of floats": (put("shape", (2.0, 4)), "its shape is (2.0, 4)"),
    "shape: of truths": (put("shape", (True, 4)), "its shape is (True, 4)"),
    "beta: float32": (
        put("beta", torch.full((9,), 0.01)),
        "its beta is a tensor (9,) of torch.float32",
    ),
    "beta: a matrix": (
        put("beta", ROW((10, 9), 0.01)),
        "its beta is a tensor (10, 9) of torch.float64",
    ),
    "beta: empty": (
        put("beta", ROW((0,), 0.01)),
        "its beta is a tensor (0,) of torch.float64",
    ),
    "beta: by strides": (
        put("beta", ROW((1,), 0.1).expand(10**9)),
        "its beta is a tensor (1000000000,) of torch.float64",
    ),
    "beta: a number more than the file": (
        put("beta", ROW((1,), 0.1).expand(SIZE // 8 + 1)),
        "its beta is a tensor (12501,) of torch.float64",
    ),
    "beta: sparse": (
        put("beta", ROW((9,), 0.1).to_sparse()),
        "its beta is a tensor (9,) of torch.float64",
    ),
    **{
        f"beta: {x}": (
            put("beta", ROW((9,), x)),
            "its beta does not lie between 0 and 1",
        )
        for x in (0.0, 1.0, -0.1, 1.5, float("nan"))
    },
    "weights: one less": (without("weights", KEY), FEWER),
    "weights: one more": (put("weights", "more", torch.zeros(1)), FEWER),
    "weights: another shape": (
        put("weights", KEY, torch.zeros(1)),
        f"its ema['{KEY}'] is a tensor (8, 32) of torch.float32, not a tensor (1,) of "
        f"torch.float32",
    ),
    "weights: a list": (put("weights", KEY, [0.0]), f"its weights['{KEY}'] is list"),
    "weights: None": (put("weights", KEY, None), f"its weights['{KEY}'] is NoneType"),
    "weights: numbered": (
        put("weights", 3, torch.zeros(1)),
        "its weights has names that are not strings",
    ),
    "weights: whole numbers": (
        whole_numbers,
        f"its weights['{KEY}'] is a tensor (8, 32) of torch.int64",
    ),
    "weights: complex": (
        put("weights", KEY, torch.zeros(8, 32).cfloat()),
        f"its weights['{KEY}'] is a tensor (8, 32) of torch.complex64",
    ),
    "weights: by strides": (
        put("weights", KEY, torch.zeros(1).expand(8, 10**6)),
        f"its weights['{KEY}'] is a tensor (8, 1000000) of torch.float32",
    ),
    "ema: one less": (without("ema", KEY), FEWER),
    "ema: numbered": (
        put("ema", 3, torch.zeros(1)),
        "its ema has names that are not strings",
    ),
    "ema: double": (
        put("ema", KEY, torch.zeros(8, 32).double()),
        f"its ema['{KEY}'] is a tensor (8, 32) of torch.float64, not a tensor (8, 32) "
        f"of torch.float32",
    ),
    **{
        f"told: {shape} of {dtype}": (
            put("told", torch.zeros(shape, dtype=dtype)),
            f"its told is a tensor {shape} of {dtype}",
        )
        for shape, dtype in (
            ((1, 12), torch.float64),
            ((1, 13), torch.float32),
            ((13,), torch.float64),
        )
    },
    "Adam: no state": (
        put("optimiser", "state", {}),
        "its optimiser has no state after step 1",
    ),
    **{
        f"Adam: {name}": (change, "its optimiser is not Adam's state")
        for name, change in {
            "no groups": without("optimiser", "param_groups"),
            "a part more": put("optimiser", "more", 1),
            "state: a list": put("optimiser", "state", []),
        }.items()
    },
    **{
        f"Adam: {name}": (change, NOT_ADAMS)
        for name, change in {
            "groups: a dictionary": put("optimiser", "param_groups", {}),
            "group: text": put("optimiser", "param_groups", ["x"]),
            "group: empty": put("optimiser", "param_groups", [{}]),
            "group: no list": put(*GROUP, "params", (0, 1)),
            "parameter: a tensor": put(*GROUP, "params", 0, torch.ones(3)),
            "eps: a tensor": put(*GROUP, "eps", torch.ones(3)),
            "fused: a tensor": put(*GROUP, "fused", torch.ones(3)),
            "turned round": put(*GROUP, "maximize", True),
            "other betas": put(*GROUP, "betas", (0.5, 0.5)),
        }.items()
    },
    "Adam: parameters in a list": (put(*GROUP, "params", 0, []), NUMBERED),
    "Adam: parameters twice": (put(*GROUP, "params", 1, 0), NUMBERED),
    "Adam: state of no parameter": (of_no_parameter, NUMBERED),
    **{
        f"Adam: {name}": (change, NO_MOMENTS)
        for name, change in {
            "kept: a list": put(*ADAM, [1]),
            "no moment": without(*ADAM, "exp_avg"),
            "moment: a list": put(*ADAM, "exp_avg", [0.0]),
            "step of four": put(*ADAM, "step", torch.ones(2, 2)),
            "step: whole number": put(*ADAM, "step", torch.tensor(1)),
            "moment: whole numbers": put(*ADAM, "exp_avg", torch.zeros(8, 32).long()),
            "squares: whole": put(*ADAM, "exp_avg_sq", torch.zeros(8, 32).long()),
            "moment: another shape": put(*ADAM, "exp_avg", torch.zeros(3)),
            "moments of no layer": moments,
        }.items()
    },
    "Adam: in another order": (
        turned_round,
        "its optimiser has no moments of parameter 1",
    ),
}


def sound(**changes):
    """The parts of a file of step 1, with these in place of what they were."""
    found = checkpoint_of(MLP(SHAPE, width=8, depth=1, emb=4))
    return {f.name: getattr(found, f.name) for f in dataclasses.fields(found)} | changes


@pytest.mark.parametrize("kind", DAMAGE)
def test_wrong_content_is_named_in_one_sentence(kind):
    """Whatever a part is in place of what a run wrote: what it is, and what to do."""
    saved, (change, said) = sound(), DAMAGE[kind]
    change(saved)
    with pytest.raises(ValueError, match="form of a checkpoint") as refused:
        refuse_content(Path("c.pt"), saved, SIZE)
    assert str(refused.value) == (
        f"c.pt has the form of a checkpoint, but {said}; it was not written by a run "
        f"of tinyddpm, or was changed since: go on from a good copy"
    )


@pytest.mark.parametrize(("saved", "what"), [([1], "list"), ("x", "'x'"), (3, "3")])
def test_what_has_no_parts_is_named(saved, what):
    """It is no dictionary at all."""
    with pytest.raises(ValueError, match=f" but it holds {what} in place of its parts"):
        refuse_content(Path("c.pt"), saved, SIZE)


def group(saved, *sizes):
    """Adam's groups of so many parameters, of which the last one was never used."""
    (only,) = saved["optimiser"]["param_groups"]
    numbers = iter(only["params"])
    groups = [only | {"params": [next(numbers) for _ in range(n)]} for n in sizes]
    del saved["optimiser"]["state"][sum(sizes) - 1]
    saved["optimiser"]["param_groups"] = groups
    return saved


def test_what_a_run_may_write_is_accepted():
    """From the first step on, of the smallest shapes, of networks that are not ours
    and have buffers of whole numbers, with Adam's parameters in groups, with a weight
    that is not trained, as large as the file; on "meta", where no number is looked at.
    """
    parameters = len(sound()["optimiser"]["param_groups"][0]["params"])
    counted = {"counts": torch.tensor([3]), **sound()["weights"]}
    on_meta = sound(beta=ROW((3,), 0.1).to("meta"))
    for saved in (
        sound(),
        sound(step=0, optimiser=sound()["optimiser"] | {"state": {}}),
        sound(shape=(1,), beta=ROW((1,), 0.1), config={}, data=None),
        sound(told=torch.zeros(0, 13).double(), network=["MLP", {}]),
        sound(config={"a": [None, 1, 2.5, ("x", {"b": True})]}),
        sound(network=None, weights=counted, ema=counted),
        group(sound(), 2, parameters - 2),
        sound(beta=ROW((1,), 0.1).expand(SIZE // 8)),
        on_meta,
    ):
        refuse_content(Path("c.pt"), saved, SIZE)


def resave(path, saved):
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    content = buffer.getvalue()
    path.write_bytes(content + hashlib.blake2b(content, digest_size=32).digest())


IN_A_FILE = ["step: float", "no told", "beta: by strides", "weights: complex"]
IN_A_FILE += ["Adam: eps: a tensor"]


@pytest.mark.parametrize("kind", IN_A_FILE)
def test_wrong_content_ends_a_command_in_one_line(good, tmp_path, kind, capfd):
    """A ValueError from `load_checkpoint`, exit status 2 and one line from the command,
    never a traceback, a wrong network or memory that the file does not have."""
    saved, path = torch.load(good, weights_only=True), tmp_path / "c.pt"
    DAMAGE[kind][0](saved)
    resave(path, saved)
    with pytest.raises(ValueError, match="has the form of a checkpoint, but it"):
        load_checkpoint(path)
    assert main(["info", str(path)]) == 2
    said = capfd.readouterr().err
    assert said.startswith(f"tinyddpm info: {path}")
    assert said.count("\n") == 1


def test_what_is_no_dictionary_is_no_checkpoint(good, tmp_path, capfd):
    """A tensor, a list, a part of a checkpoint: one sentence, too."""
    for i, saved in enumerate((torch.zeros(3), [1], None, {"step": 1})):
        resave(path := tmp_path / f"{i}.pt", saved)
        assert main(["sample", str(path), "--out", str(tmp_path / "a.png")]) == 2
        assert capfd.readouterr().err.count("\n") == 1
    shutil.copy(good, tmp_path / "c.pt")
    assert load_checkpoint(tmp_path / "c.pt").step == 1


OF_ANOTHER = {
    "a weight of no layer": wide,
    "another class": put("network", ("Net", {})),
    "arguments unknown": put("network", ("UNet", {"depth": 3})),
    "arguments of another type": put("network", ("UNet", {"in_channels": "x"})),
    "arguments of another network": put("network", ("UNet", {"in_channels": 1})),
    "a shape not the network's": put("shape", (3, 4, 4)),
}


@pytest.mark.parametrize("kind", OF_ANOTHER)
def test_weights_of_another_network_end_in_one_sentence(unet, tmp_path, kind, capfd):
    """The parts are sound and do not fit each other: `sample` says so, status 2."""
    saved, path = torch.load(unet, weights_only=True), tmp_path / "c.pt"
    OF_ANOTHER[kind](saved)
    resave(path, saved)
    out = tmp_path / "a.png"
    assert main(["sample", str(path), "--pictures", "1", "--out", str(out)]) == 2
    assert capfd.readouterr().err.count("\n") == 1
    assert not out.exists()
