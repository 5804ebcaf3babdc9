"""A checkpoint with a right check sum and wrong content ends in one sentence."""

import hashlib
import io
import shutil

import pytest
import torch

from tinyddpm.mlp import MLP
from tinyddpm.workshop.checkpoint import load_checkpoint, save_checkpoint
from tinyddpm.workshop.command import main

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


PARTS = ("step", "config", "network", "shape", "beta", "weights", "ema", "optimiser")
PARTS = (*PARTS, "told", "data")
ADAM = ("optimiser", "state", 0)
DAMAGE = {f"without {name}": without(name) for name in PARTS}
DAMAGE |= {f"{name} is 3.5": put(name, 3.5) for name in PARTS}
DAMAGE |= {f"{name} is a list": put(name, [[]]) for name in PARTS}
DAMAGE |= {
    f"{name} is None": put(name, None)
    for name in PARTS
    if name not in ("network", "data")
}
DAMAGE |= {f"{name} is text": put(name, "x") for name in PARTS if name != "data"}
DAMAGE |= {
    "a part more": put("more", 1),
    "step below 0": put("step", -1),
    "step is True": put("step", True),
    "a setting without a name": put("config", {1: 2}),
    "network of one": put("network", ("UNet",)),
    "network of numbers": put("network", (1, {})),
    "network's arguments as text": put("network", ("UNet", "x")),
    "shape is empty": put("shape", ()),
    "shape with 0": put("shape", (2, 0, 4)),
    "shape of floats": put("shape", (2.0, 4.0, 4.0)),
    "beta is float32": put("beta", torch.full((1000,), 0.01)),
    "beta is a matrix": put("beta", torch.full((10, 100), 0.01).double()),
    "beta is empty": put("beta", torch.empty(0).double()),
    "beta above 1": put("beta", torch.full((1000,), 1.5).double()),
    "beta is nan": put("beta", torch.full((1000,), torch.nan).double()),
    "beta by strides": put("beta", torch.tensor([0.1]).double().expand(10**9)),
    "beta is sparse": put("beta", torch.full((9,), 0.1).double().to_sparse()),
    "weights: one less": without("weights", KEY),
    "weights: one more": put("weights", "more", torch.zeros(1)),
    "weights: another shape": put("weights", KEY, torch.zeros(1)),
    "weights: a list": put("weights", KEY, [0.0]),
    "weights: None": put("weights", KEY, None),
    "weights: numbered": put("weights", 3, torch.zeros(1)),
    "weights: whole numbers": whole_numbers,
    "weights: complex": put("weights", KEY, torch.zeros(8, 32).cfloat()),
    "weights: by strides": put("weights", KEY, torch.zeros(1).expand(8, 10**6)),
    "ema: one less": without("ema", KEY),
    "ema: double": put("ema", KEY, torch.zeros(8, 32).double()),
    "told: of 12 columns": put("told", torch.zeros(1, 12).double()),
    "told: float32": put("told", torch.zeros(1, 13)),
    "Adam without state": put("optimiser", "state", {}),
    "Adam without groups": without("optimiser", "param_groups"),
    "Adam's groups as text": put("optimiser", "param_groups", ["x"]),
    "Adam's group is empty": put("optimiser", "param_groups", [{}]),
    "Adam's moment missing": without(*ADAM, "exp_avg"),
    "Adam's moment as a list": put(*ADAM, "exp_avg", [0.0]),
    "Adam's parameters in a list": put("optimiser", "param_groups", 0, "params", 0, []),
    "Adam's eps as a tensor": put("optimiser", "param_groups", 0, "eps", torch.ones(3)),
    "Adam's fused as a tensor": put(
        "optimiser", "param_groups", 0, "fused", torch.ones(3)
    ),
    "Adam's parameter as a tensor": put(
        "optimiser", "param_groups", 0, "params", 0, torch.ones(3)
    ),
    "a setting as a tensor": put("config", "batch", torch.ones(3)),
    "network of a tensor": put("network", ("UNet", {"base": torch.ones(3)})),
    "Adam turned round": put("optimiser", "param_groups", 0, "maximize", True),
    "Adam's state of no parameter": of_no_parameter,
    "Adam's step of four": put(*ADAM, "step", torch.ones(2, 2)),
    "Adam's moment in whole numbers": put(*ADAM, "exp_avg", torch.zeros(3).long()),
    "Adam's moments of a layer that is not": moments,
    "Adam's moment of another shape": put(*ADAM, "exp_avg", torch.zeros(3)),
    "Adam with other betas": put("optimiser", "param_groups", 0, "betas", (0.5, 0.5)),
}


def resave(path, saved):
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    content = buffer.getvalue()
    path.write_bytes(content + hashlib.blake2b(content, digest_size=32).digest())


@pytest.mark.parametrize("kind", DAMAGE)
def test_wrong_content_ends_in_one_sentence(good, tmp_path, kind, capfd):
    """Whatever a part is in place of what a run wrote: a ValueError with the file's
    name from `load_checkpoint`, exit status 2 and one line from the command, never a
    traceback, a wrong network or memory that the file does not have."""
    saved, path = torch.load(good, weights_only=True), tmp_path / "c.pt"
    DAMAGE[kind](saved)
    resave(path, saved)
    with pytest.raises(
        ValueError, match=r"c\.pt has the form of a checkpoint, but its? "
    ):
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
