"""Laws of the settings: each field is a flag, and what a flag says is what is set."""

import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyddpm.workshop.settings import TrainConfig, flags, from_flags, pick_device


@dataclass(frozen=True)
class Settings:
    """A field of each kind."""

    a_number: Annotated[int, "how many"] = 3
    rate: Annotated[float, "how fast, 50 % say"] = 0.5
    name: Annotated[str, "of whom"] = "x"
    flip: Annotated[bool, "or not"] = True
    bf16: Annotated[bool | None, "or not, or either"] = None
    limit: Annotated[int | None, "at most"] = None
    widths: Annotated[tuple[int, ...], "of levels"] = (1, 2)


settings = st.builds(
    Settings,
    st.integers(0),
    st.floats(0, allow_infinity=False),
    st.text("abc/. ", min_size=1),
    st.booleans(),
    st.sampled_from([None, True, False]),
    st.none() | st.integers(0),
    st.lists(st.integers(0), max_size=3).map(tuple),
)


def as_flags(c: Settings) -> list[str]:
    """What a user would type to get these settings."""
    words = [f"--a-number={c.a_number}", f"--rate={c.rate!r}", f"--name={c.name}"]
    words += ["--flip" if c.flip else "--no-flip"]
    words += [] if c.bf16 is None else ["--bf16" if c.bf16 else "--no-bf16"]
    words += [] if c.limit is None else [f"--limit={c.limit}"]
    return [*words, "--widths", *map(str, c.widths)]


@given(settings)
def test_flags_say_what_is_set(c):
    """Settings -> flags -> settings is the identity, whatever the kind of the field."""
    args = flags(Settings(), "").parse_args(as_flags(c))
    assert from_flags(Settings, args) == c


@given(settings)
def test_without_flags_the_instance_is_the_default(c):
    """A script's own defaults are those of the instance that it gives."""
    assert from_flags(Settings, flags(c, "").parse_args([])) == c


def test_help_says_what_each_means_and_its_default():
    """--help is made from the fields' annotations; the script's description stands in
    it line by line, since scripts write commands there."""
    described = flags(Settings(), "What it does:\n\n    command --flag\n").format_help()
    assert "\n\nWhat it does:\n\n    command --flag\n\n" in described
    text = " ".join(described.split())
    for said in (
        "--a-number INT how many; default: 3",
        "--rate FLOAT how fast, 50 % say; default: 0.5",
        "--widths [INT ...] of levels; default: 1 2",
        "--bf16, --no-bf16 or not, or either --",  # None is for the words to tell
    ):
        assert said in text


@pytest.mark.parametrize("words", [["--rat=1"], ["--a-number=1.5"]])
def test_what_is_no_flag_or_no_value_ends_the_script(words, capsys):
    """An abbreviation might mean another flag tomorrow. The error is not hidden behind
    the names of all flags: usage is one line, the sentence the other."""
    parser = flags(Settings(), "")
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(words)
    assert ended.value.code == 2
    usage, said = capsys.readouterr().err.splitlines()
    assert usage == f"usage: {parser.prog} [flags]"
    assert words[0].split("=")[0] in said


@pytest.mark.parametrize(
    ("field", "limits", "beyond", "said"),
    [
        ("steps", [1], [0], "at least 1"),
        ("batch", [1], [0], "at least 1"),
        ("micro_batch", [1, None], [0], "at least 1"),
        ("log_every", [1], [0], "at least 1"),
        ("save_every", [100], [0], "at least 1"),
        ("warmup", [0], [-1], "finite and at least 0"),
        ("lr", [0.0], [-1e-3, math.nan, math.inf], "finite and at least 0"),
        ("lr_end", [0.0, None], [-1e-3, math.nan, math.inf], "finite and at least 0"),
        ("max_norm", [1e-30, math.inf], [0.0, math.nan], "above 0 (inf clips nothing)"),
        ("seed", [0, 2**62 - 1], [-1, 2**62], "in 0..2^62 - 1"),
        ("ema", [0.0, 1 - 2**-53], [-0.1, 1.0, math.nan], "in [0, 1)"),
    ],
)
def test_settings_that_make_no_sense_are_refused(field, limits, beyond, said):
    """Up to its limits a setting is taken: no averaging and no learning are runs, too.
    Beyond, a sentence with the name and the value, before anything is begun."""
    for value in limits:
        assert getattr(TrainConfig(**{field: value}), field) == value
    verb = "lie" if said.startswith("in") else "be"
    for value in beyond:
        with pytest.raises(ValueError, match=f"^{field} must ") as refused:
            TrainConfig(**{field: value})
        assert str(refused.value) == f"{field} must {verb} {said}, got {value}"


def test_what_is_saved_has_been_looked_at():
    """A checkpoint is made only where the loss was looked at, so that none holds what
    went wrong since."""
    assert TrainConfig(log_every=50, save_every=150).save_every == 150
    with pytest.raises(ValueError, match=r"^save_every") as refused:
        TrainConfig(save_every=150)
    assert str(refused.value) == (
        "save_every must be a multiple of log_every, at which the loss is looked at, "
        "got 150 and 100"
    )


numbers = st.one_of(
    st.integers(1, 10**6).flatmap(
        lambda n: st.sampled_from([n, float(n), np.int64(n), np.float64(n)])
    ),
    st.integers(1, 10**6).map(torch.tensor),
)


truths = st.sampled_from([True, 1, np.True_, torch.tensor(True)])
lies = st.sampled_from([False, 0, np.False_, torch.tensor(False)])


@given(numbers, numbers, truths | lies)
def test_numbers_of_other_kinds_become_plain(steps, batch, bf16):
    """NumPy's and torch's numbers, and whole floats: the same number, Python's own."""
    c = TrainConfig(steps=steps, batch=batch, lr=batch, bf16=bf16, lr_end=None)
    values = c.steps, c.batch, c.lr, c.bf16
    assert [type(x) for x in values] == [int, int, float, bool]
    assert values == (int(steps), int(batch), float(batch), bool(bf16))


@dataclass(frozen=True)
class More(TrainConfig):
    """A script's own settings, of every kind that flags know."""

    name: Annotated[str, "of whom"] = "x"
    widths: Annotated[tuple[int, ...], "of levels"] = (1, 2)
    rate: Annotated[float | None, "how fast"] = None
    free: dict | None = None  # no flag: left as it is


def test_texts_and_rows_become_plain_too():
    """A path is a text, a list or an array a tuple of plain numbers; a type that no
    flag has is left alone."""
    c = More(name=Path("a/b"), widths=np.array([3, 4]), rate=np.float32(0.5), free={})
    assert (c.name, c.widths, c.rate, c.free) == ("a/b", (3, 4), 0.5, {})
    assert [type(x) for x in (c.name, *c.widths, c.rate)] == [str, int, int, float]


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("lr", "1e-3", "float"),
        ("lr", None, "float"),
        ("lr", 1j, "float"),
        ("lr", np.ones(2), "float"),
        ("lr_end", "0", "float | None"),
        ("steps", 1.5, "int"),
        ("steps", "100", "int"),
        ("steps", math.nan, "int"),
        ("steps", math.inf, "int"),
        ("seed", torch.ones(2), "int"),
        ("micro_batch", b"4", "int | None"),
        ("bf16", 2, "bool | None"),
        ("bf16", "yes", "bool | None"),
        ("name", 3, "str"),
        ("widths", 3, r"tuple\[int, ...\]"),
        ("widths", "12", r"tuple\[int, ...\]"),
        ("widths", b"12", r"tuple\[int, ...\]"),
        ("widths", (1, 2.5), r"tuple\[int, ...\]"),
    ],
)
def test_settings_of_the_wrong_kind_are_refused_by_name(field, value, kind):
    """A sentence with the field, the type it wants and what it got; no TypeError of a
    comparison hours later."""
    given = type(value).__name__
    said = rf"^{field} must be of type {kind}, got .+ of type {given}$"
    with pytest.raises(ValueError, match=re.compile(said, re.DOTALL)):
        More(**{field: value})


@pytest.mark.parametrize("words", [["--clip", "1"], ["--clip=0.5"], ["--clip"]])
def test_a_renamed_flag_says_its_new_name(words, capsys):
    """--clip of earlier versions bounded the gradient: exit status 2, and the name."""
    with pytest.raises(SystemExit) as ended:
        flags(TrainConfig(), "").parse_args(words)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1].endswith("error: --clip is now called --max-norm")
    text = flags(TrainConfig(), "").format_help()
    assert "--max-norm" in text
    assert "--clip" not in text
    with pytest.raises(SystemExit):
        flags(Settings(), "").parse_args(words)  # it never bounded a gradient
    assert "error: unrecognized arguments: --clip" in capsys.readouterr().err


def test_what_may_change_is_all_but_what_changes_the_numbers():
    """The fixed settings are those the weights depend on; steps too, with lr_end."""
    fixed = {"batch", "warmup", "lr_end", "ema", "seed", "bf16"}
    assert set(TrainConfig().fixed()) == fixed
    assert set(TrainConfig(lr_end=0.0).fixed()) == {*fixed, "steps"}
    names = {f.name for f in dataclasses.fields(TrainConfig)}
    assert names == fixed | set(TrainConfig.may_change)


@pytest.mark.parametrize("gpus", [0, 1, 2])
def test_a_device_is_picked_by_name(gpus, monkeypatch):
    """auto is the GPU if there is one; GPUs are numbered from 0, and one that is not
    there is refused with what to do."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert pick_device("auto") == torch.device("cuda" if gpus else "cpu")
    assert pick_device("cpu") == torch.device("cpu")
    for name, number in (("cuda", 0), ("cuda:0", 0), ("cuda:1", 1), ("cuda:2", 2)):
        if number < gpus:
            assert pick_device(name) == torch.device(name)
            continue
        with pytest.raises(ValueError, match="was asked for") as refused:
            pick_device(name)
        assert str(refused.value) == (
            f"--device {name} was asked for, but PyTorch {torch.__version__} sees "
            f"{gpus} CUDA devices here; install a CUDA build of PyTorch and its "
            f"driver, or give --device cpu"
        )


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:x", ""])
def test_a_device_of_no_use_is_refused(name):
    """A name that torch does not know, and a kind of device that nothing runs on."""
    with pytest.raises(ValueError, match="--device") as refused:
        pick_device(name)
    said = f"--device must be auto, cpu, cuda or cuda:<number>, got {name!r}"
    assert str(refused.value) == said
