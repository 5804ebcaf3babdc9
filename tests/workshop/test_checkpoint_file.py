"""What a checkpoint's file holds, and what is refused; no run is needed for it."""

import dataclasses
import functools
import hashlib
import io
import os
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tinyddpm.beyond.convnext import ConvNeXtBlock, LinearAttention
from tinyddpm.mlp import MLP
from tinyddpm.unet import ResBlock, UNet
from tinyddpm.workshop.checkpoint import (
    Checkpoint,
    description,
    load_checkpoint,
    rebuild,
    refuse_another_run,
    save_checkpoint,
)
from tinyddpm.workshop.settings import TrainConfig

from ..helpers import same_weights
from .training_run import checkpoint_of

SMALL = functools.partial(UNet, 2, 4, (1, 2), (1,), 0.5)


@pytest.fixture
def found():
    """Of a network of few tensors, which are written and read in no time."""
    return checkpoint_of(MLP((2,), 1, 1, 4))


@pytest.fixture
def path(found, tmp_path):
    """Its file."""
    save_checkpoint(tmp_path / "c.pt", found)
    return tmp_path / "c.pt"


def said_by(call, *args, error=ValueError):
    """The whole sentence that it ends with."""
    with pytest.raises(error, match=r"\w") as refused:
        call(*args)
    return str(refused.value)


def with_sum(content):
    return content + hashlib.blake2b(content, digest_size=32).digest()


def resave(path, saved):
    """Whatever it is, in a file with a right check sum."""
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    path.write_bytes(with_sum(buffer.getvalue()))


# What is saved is read


def test_what_is_saved_is_read(found, path, tmp_path):
    """save, load: the identity, to the bit; and the file is torch's own, too, and says
    of which format it is."""
    again = load_checkpoint(path)
    for field in dataclasses.fields(Checkpoint):
        one, other = getattr(again, field.name), getattr(found, field.name)
        if isinstance(one, str | int | tuple | list | None):
            assert one == other
        else:
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    saved = torch.load(path, weights_only=True)
    assert saved["format"] == "tinyddpm checkpoint 2"
    assert saved["step"] == found.step == 1


def test_numbers_are_read_once_and_where_they_belong(found, path, monkeypatch):
    """A save looks at names and shapes of what it has made alone, which take no memory;
    a load has the numbers on the CPU, wherever they were."""
    places, load = [], torch.load

    def noted(*args, **options):
        places.append(options["map_location"])
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", noted)
    save_checkpoint(path, found)
    load_checkpoint(path)
    assert places == ["meta", "cpu"]


def test_reading_takes_the_files_size_once(tmp_path):
    """Tensors are read straight into their places, which are as large as the file.

    Python itself, which would hold a copy of the bytes, needs less than a quarter of
    it: 1 MiB at a time for the check sum."""
    save_checkpoint(tmp_path / "c", checkpoint_of(MLP((3, 16, 16), 512, 1)))
    size = (tmp_path / "c").stat().st_size
    assert size > 2**24
    tracemalloc.start()
    try:
        load_checkpoint(tmp_path / "c")
        assert tracemalloc.get_traced_memory()[1] < size / 4
    finally:
        tracemalloc.stop()


def first_format(path, **config):
    """The file as the version before this one wrote it, with these settings."""
    saved = torch.load(path, weights_only=True)
    kept = {name: x for name, x in saved.items() if name not in ("told", "data")}
    resave(path, kept | {"format": "tinyddpm checkpoint 1", "config": config})


def test_a_file_of_the_first_format_is_read(path):
    """Its bound on the gradient was called clip, and is Algorithm 1's own where it was
    not set; what was told, and whose data they were, it does not hold."""
    for clip in (0.5, None):
        first_format(path, lr=0.25, **({"clip": clip} if clip else {}))
        found = load_checkpoint(path)
        max_norm = clip or TrainConfig().max_norm
        assert found.config == {"lr": 0.25, "max_norm": max_norm}
        assert found.data is None
        assert (found.told.shape, found.told.dtype) == ((0, 13), torch.float64)


# What is not read


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a good file, to be spoiled in copies."""
    folder = tmp_path_factory.mktemp("good")
    save_checkpoint(folder / "good.pt", checkpoint_of(MLP((2,), 1, 1, 4)))
    return folder


@given(st.data())
def test_a_file_that_is_not_whole_is_refused(folder, data):
    """Cut anywhere, or with any bit of any byte turned, in the weights or not (which
    torch.load would not see): the sentence has the size and what to do."""
    path = folder / "c.pt"
    content = bytearray((folder / "good.pt").read_bytes())
    i = data.draw(st.integers(0, len(content) - 1) | st.integers(0, 40))
    if data.draw(st.booleans()):
        del content[i:]
    else:
        content[i] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    assert said_by(load_checkpoint, path) == (
        f"{path} is not a whole checkpoint: it is cut short or damaged (its "
        f"{len(content):,} bytes do not fit their check sum), or another program wrote "
        f"it; move it away, and start again or go on from a good copy"
    )


def test_what_is_not_torch_s_is_not_read_to_its_end(tmp_path):
    """16 GiB of zeros (a sparse file) are refused by their first bytes."""
    path = tmp_path / "c.pt"
    path.touch()
    os.truncate(path, 2**34)
    assert "(its 17,179,869,184 bytes do not fit" in said_by(load_checkpoint, path)


def test_a_file_that_torch_cannot_read_is_refused(tmp_path):
    """Whole, as its check sum says, and begun as torch's files are."""
    (path := tmp_path / "c.pt").write_bytes(with_sum(b"PK\3\4, but nothing else"))
    assert said_by(load_checkpoint, path).startswith(
        f"{path} cannot be read as a checkpoint: "
    )


class Code:
    """What a pickle may hold: a call that is made when it is read."""

    def __reduce__(self):
        return exec, ("import sys; sys.was_run = True",)


def test_no_code_is_ever_run(path):
    """A pickle with a call in it is refused, and the call not made."""
    resave(path, Code())
    assert said_by(load_checkpoint, path) == (
        f"{path} holds more than numbers and plain values; no code is run from a file, "
        f"so it was not read"
    )
    assert not hasattr(sys, "was_run")


@pytest.mark.parametrize("version", ["tinyddpm checkpoint 3", None])
def test_another_version_is_refused(path, version):
    """A file of another format, whole as it is, is not guessed at; nor is one without
    a format, nor one of the first that lacks its settings."""
    saved = torch.load(path, weights_only=True)
    said = (
        f"{path} is a checkpoint of another version, this one reads 'tinyddpm "
        f"checkpoint 2'; use the version of tinyddpm that wrote it"
    )
    del saved["format"]
    resave(path, saved | ({"format": version} if version else {}))
    assert said_by(load_checkpoint, path) == said
    for config in ([], None):
        resave(path, saved | {"format": "tinyddpm checkpoint 1", "config": config})
        assert said_by(load_checkpoint, path) == said


def test_what_is_no_dictionary_is_no_checkpoint(path):
    """What it is, is said."""
    resave(path, [1, 2])
    assert said_by(load_checkpoint, path) == f"{path} holds a list, not a checkpoint"


# What a save accepts, a load accepts


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("config", {"lr": np.float64(1e-3)}),
        ("config", {1: 2}),
        ("network", ("MLP", {"width": np.int64(8)})),
        ("shape", (np.int64(2), 4, 4)),
        ("shape", (2.0, 4, 4)),
        ("beta", torch.ones(3)),
        ("optimiser", {"state": {}}),
        ("told", torch.zeros(1, 12).double()),
        ("data", 3),
        ("step", 2.0),
    ],
)
def test_what_could_not_be_read_again_is_not_written(path, found, part, value):
    """A save reads its own bytes back before they take the good file's place."""
    before = path.read_bytes()
    wrong = dataclasses.replace(found, **{part: value})
    said = said_by(save_checkpoint, path, wrong)
    begin = "nothing was written, since it could not be read again: "
    assert said.startswith(f"{begin}{path} h")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("part", "where"),
    [
        ("weights", ["first.weight"]),
        ("ema", ["first.weight"]),
        ("optimiser", [3, "exp_avg_sq"]),
    ],
)
def test_nothing_that_is_not_finite_is_ever_saved(path, found, part, where, bad):
    """One bad number anywhere: a sentence with its place, and the file as it was."""
    before, state = path.read_bytes(), getattr(found, part)
    state = state["state"] if part == "optimiser" else state
    functools.reduce(lambda state, key: state[key], where, state)[-1] = bad
    name = "".join(f"[{key}]" for key in where)
    assert said_by(save_checkpoint, path, found, error=FloatingPointError) == (
        f"after step 1 {part}{name} holds a number that is not finite, so nothing was "
        f"saved; go on from the last good checkpoint with a lower learning rate"
    )
    assert path.read_bytes() == before


# The network comes back


@pytest.mark.parametrize("which", ["ema", "weights"])
def test_the_network_comes_back(which):
    """The same ε_θ, with dropout off; the average unless the weights are asked for."""
    net, g = SMALL(), torch.Generator().manual_seed(0)
    for p in net.parameters():
        nn.init.normal_(p, generator=g)
    found = checkpoint_of(net)
    again = rebuild(found, which)
    net.load_state_dict(getattr(found, which))
    assert same_weights(again, net)
    assert not any(m.training for m in again.modules())
    assert {p.device.type for p in again.parameters()} == {"cpu"}
    assert same_weights(rebuild(found), net) == (which == "ema")


PAPERS = {"in_channels", "base", "multipliers", "attention_levels", "dropout"}
PAPERS |= {"num_classes"}


def test_networks_made_of_other_libraries_numbers_come_back(tmp_path):
    """A network's own arguments are kept as plain numbers, or it is refused by name.
    Those of the paper's U-Net are six; parts that are not the paper's are named."""
    small = (2, 4, [1], [0])
    nets = [
        (UNet(np.int64(2), np.int32(4), np.array([1]), {np.int64(0)}), PAPERS),
        (UNet(*small, np.float32(0.5), num_classes=np.int64(3)), PAPERS),
        (UNet(*small, block=ConvNeXtBlock), PAPERS | {"block"}),
        (UNet(*small, attention=LinearAttention), PAPERS | {"attention"}),
        (MLP((np.int64(2), 4), np.int64(8), np.int64(1), np.int64(8)), None),
    ]
    for net, names in nets:
        kept = description(net)
        assert kept[0] == type(net).__name__
        assert set(kept[1]) == (names or {"shape", "width", "depth", "emb"})
        save_checkpoint(tmp_path / "c.pt", checkpoint_of(net))
        found = load_checkpoint(tmp_path / "c.pt")
        assert found.network == kept
        again = rebuild(found)
        assert description(again) == kept
        assert [type(m) for m in again.modules()] == [type(m) for m in net.modules()]
    net = nets[0][0]
    net.dropout = "much"
    said = "UNet's dropout must be of type float, got 'much' of type str"
    assert said_by(description, net) == said


def test_a_network_that_is_not_ours_has_no_description():
    """A class that is, by name alone, ours; a block that is; a class of no such name.
    To describe a network that is trained but not rebuilt is no error."""
    changed = SMALL()
    changed.middle1.__class__ = type("ResBlock", (ResBlock,), {})
    other = SMALL()
    other.middle_attention.__class__ = type("Mine", (nn.Identity,), {})
    subclass = type("UNet", (UNet,), {})(2, 4, (1, 2), (1,))
    for net in (changed, other, subclass, nn.Linear(2, 2)):
        assert description(net) is None


def test_a_network_that_cannot_come_back_says_why(found):
    """One that kept no arguments, one of another class, weights of another name."""
    assert said_by(rebuild, found, "mean") == (
        "weights must be 'ema' or 'weights', got 'mean'"
    )
    assert said_by(rebuild, dataclasses.replace(found, network=None)) == (
        "this checkpoint does not say how its network is made: that is known of an "
        "MLP, and of a UNet with blocks and attention of tinyddpm; make the network in "
        "Python and load `checkpoint.ema` into it"
    )
    assert said_by(rebuild, dataclasses.replace(found, network=("Net", {}))) == (
        "networks to rebuild are ['MLP', 'UNet'], not 'Net'"
    )


@pytest.mark.parametrize(
    ("changed", "why", "made"),
    [
        ({"base": 8}, "Error(s) in loading state_dict for UNet: size mismatch", True),
        ({"depth": 3}, "UNet.__init__() got an unexpected keyword argument", True),
        ({"block": "Unknown"}, "'Unknown'", False),
        ({"base": 10**9}, "base is 1000000000, for 16,650 weights", False),
        (
            {"multipliers": (1, 10**9)},
            "multipliers is (1, 1000000000), for 16,650 weights",
            False,
        ),
    ],
)
def test_weights_of_another_network_are_refused_in_one_line(
    monkeypatch, changed, why, made
):
    """Before there is memory for it: the network is first made without numbers, and not
    even so where it would have more layers or channels than there are weights."""
    found, places, make = checkpoint_of(SMALL()), [], UNet.__init__
    arguments = found.network[1] | changed

    def noted(net, *args, **options):
        places.append(str(torch.get_default_device()))
        make(net, *args, **options)

    monkeypatch.setattr(UNet, "__init__", noted)
    said = said_by(rebuild, dataclasses.replace(found, network=("UNet", arguments)))
    assert said.startswith(
        f"the weights of this checkpoint are not those of UNet(**{arguments}), which "
        f"it says they are: {why}"
    )
    assert "\n" not in said
    assert "\t" not in said
    assert places == ["meta"] * made


# What only one of two runs has


def as_a_run(found, **changes):
    return dataclasses.replace(found, **changes)


def test_what_differs_between_two_runs_is_named(path, found):
    """A setting, a weight, a step of beta, another shape or network, one at a time and
    together; but a setting that is new, and changes no number, is no reason."""
    name = next(iter(found.weights))
    kept = {key: x for key, x in found.weights.items() if key != name}
    more = as_a_run(found, config={**found.config, "colour": 1})
    one_less = as_a_run(found, weights=kept)
    cut = as_a_run(found, weights=found.weights | {name: torch.ones(1)})
    shorter = as_a_run(found, beta=found.beta[:-1])
    falling = as_a_run(found, beta=found.beta.flip(0))
    wide = as_a_run(found, shape=(2, 4, 8), network=None)
    both = as_a_run(falling, config={"lr": 1, "batch": 3})
    shapes = "the names or shapes of the weights"
    refuse_another_run(path, found, found, set(found.config))
    refuse_another_run(path, found, more, set())
    for old, new, fixed, differ in [
        (more, found, set(), "colour (there 1, here None)"),
        (found, more, {"colour"}, "colour (there None, here 1)"),
        (found, one_less, set(), shapes),
        (one_less, found, set(), shapes),
        (cut, found, set(), shapes),
        (found, shorter, set(), "the schedule's beta"),
        (shorter, found, set(), "the schedule's beta"),
        (falling, found, set(), "the schedule's beta"),
        (
            found,
            wide,
            set(),
            f"the network (there {found.network}, here None), the shape (there "
            f"{found.shape}, here (2, 4, 8))",
        ),
        (
            found,
            both,
            {"lr", "batch"},
            "batch (there 4, here 3), lr (there 0.25, here 1), the schedule's beta",
        ),
    ]:
        assert said_by(refuse_another_run, path, old, new, fixed) == (
            f"{path} is of another run, which differs in {differ}; go on with the "
            f"settings it has, or give another folder"
        )


def test_data_are_compared_where_they_can_be(path, found):
    """Digests are of a batch of one size, drawn on one kind of device, of pictures of
    one shape: where any of these differs, or a draw has no digest, nothing is known."""

    def as_drawn(data, batch=4, shape=found.shape):
        return as_a_run(found, data=data, shape=shape, config={"batch": batch})

    here = as_drawn("cpu:a")
    assert said_by(refuse_another_run, path, as_drawn("cpu:b"), here, set()) == (
        f"{path} is of another run, which differs in the data: a first batch drawn "
        f"from them does not hold the same pictures; go on with the settings it has, "
        f"or give another folder"
    )
    for other in (
        *(as_drawn("cpu:a"), as_drawn("cuda:b"), as_drawn(None)),
        as_drawn("cpu:b", batch=5),
    ):
        refuse_another_run(path, other, here, set())
        refuse_another_run(path, here, other, set())
    small = as_drawn("cpu:b", shape=(2, 4, 2))
    assert "the data" not in said_by(refuse_another_run, path, small, here, set())
