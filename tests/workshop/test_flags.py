"""Each flag of each command and script reaches the call that it names, and no other.

What a command calls is replaced by stand-ins that note their arguments. A flag is then
right if between a run without it and a run with it those arguments differ that stand
in the table below, in the values that stand there, and no other argument does.
"""

import dataclasses
import inspect
import shlex
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

import train_cifar
import train_gradients
from tinyddpm.schedule import Schedule, linear_schedule
from tinyddpm.workshop import command, doctor, scripts, training
from tinyddpm.workshop.datasets import Pictures, hold_out

ANY = object()  # an argument that changes, in a way not looked at
GONE = object()  # an argument of a call that is not made
SHAPE = (3, 8, 8)
V = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1).expand(8, *SHAPE).contiguous()
LABELS = torch.tensor([0, 1, 1, 0, 1, 0, 1, 1])


class Net(nn.Module):
    """A network that is known by its name."""

    def __init__(self, name: str, num_classes: int | None = 2) -> None:
        super().__init__()
        self.name, self.num_classes = name, num_classes
        self.weight = nn.Parameter(torch.zeros(1))


def mark(value: Any) -> Any:
    """What an argument is, in a form that can be compared."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Generator):
        return f"seed {value.initial_seed()}"
    if isinstance(value, Schedule):
        return value.T
    if isinstance(value, partial):
        return mark(value.func), {k: mark(v) for k, v in value.keywords.items()}
    if isinstance(value, Path | torch.device):
        return str(value)
    if isinstance(value, tuple | list | range):
        return [mark(x) for x in value]
    if isinstance(value, type):
        return value.__name__
    return getattr(value, "name", "a function" if callable(value) else value)


class Stage:
    """Modules whose functions are stand-ins; `noted` has the arguments of each call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch, self.noted = monkeypatch, dict[str, Any]()
        self.configs: list[Any] = []  # of a run, all the same one

    def stand_in(
        self, module: ModuleType, name: str, answer: Callable[[Any], Any]
    ) -> None:
        signature = inspect.signature(getattr(module, name))

        def noted(*args: Any, **named: Any) -> Any:
            given = signature.bind(*args, **named)
            given.apply_defaults()
            for key, value in given.arguments.items():
                if not dataclasses.is_dataclass(value) or isinstance(value, Schedule):
                    self.noted[f"{name}.{key}"] = mark(value)
                elif name not in ("settled", "seconds_a_step"):  # which complete it
                    self.configs.append(value)
                    for field in dataclasses.fields(value):
                        setting = mark(getattr(value, field.name))
                        self.noted[f"config.{field.name}"] = setting
            return answer(SimpleNamespace(**given.arguments))

        self.monkeypatch.setattr(module, name, noted)


def nothing(_: Any) -> None:
    """The answer of a stand-in that is asked for its effect."""


# --- the commands that start from a checkpoint ---------------------------------------

CHECKPOINT = SimpleNamespace(
    step=7,
    config={"names": ("cat", "dog"), "bf16": True, "held_out": 6},
    network=None,
    shape=SHAPE,
    beta=linear_schedule(24).beta[1:],
    weights={},
    told=torch.empty(0, 13),
)


def commands(stage: Stage) -> Callable[[list[str]], None]:
    """`python -m tinyddpm` among stand-ins."""

    def of_batches(a: Any) -> Any:
        list(a.of_batch(range(3)))
        return {0: V}

    bound = SimpleNamespace()
    for name, answer in {
        "load_checkpoint": lambda _: CHECKPOINT,
        "rebuild": lambda a: Net(a.weights),
        "pick_device": lambda _: torch.device("cpu"),
        "precision_to_sample": lambda a: (a.asked is None, ""),
        "faster": lambda a: a.net,
        "guided": lambda _: "guided",
        "sampler_of": lambda _: ([2, 1], "a step"),
        "draw": lambda _: iter([]),
        "draw_all": of_batches,
        "kept_steps": lambda _: {0},
        "refuse_what_cannot_be_written": nothing,
        "save": nothing,
        "as_they_are": lambda _: Pictures(V, None, []),
        "interpolate": lambda _: torch.zeros(2, 1, *SHAPE),
        "save_png": nothing,
        "estimate_bits_per_dim": lambda _: bound,
        "table": lambda _: "",
        "rate_distortion": lambda _: ("rate", "distortion"),
        "save_rate_distortion_plot": nothing,
        "unet_to_diffusers": nothing,
    }.items():
        stage.stand_in(command, name, answer)
    stage.stand_in(doctor, "doctor", lambda _: "")

    def run(argv: list[str]) -> None:
        assert command.main(argv) == 0

    return run


def chosen(seed: int, n: int, of: Tensor | None = None) -> list[Any]:
    """The n pictures, of all or `of` these, that `bound` draws by its seed."""
    v = V if of is None else V[of]
    order = torch.randperm(len(v), generator=Generator().manual_seed(seed))
    return ((v[order[:n]].float() - 127.5) / 127.5).tolist()


def model(*calls: str) -> dict[str, dict[str, Any]]:
    """The flags that four commands share: what is asked takes σ² and the clamp, and
    what is made of the network takes it.
    """
    asked, *of_the_net = calls
    return {
        "--weights raw": {f"{x}": "weights" for x in ("rebuild.weights", *of_the_net)},
        "--sigma2 beta_tilde": {f"{asked}.sigma2": "beta_tilde"},
        "--clip-x-0": {f"{asked}.clip_x_0": True},
    }


COMMANDS: dict[str, dict[str, dict[str, Any]]] = {
    "sample c.pt --class dog": {
        **model("sampler_of", "faster.net", "guided.net"),
        "--seed 5": {"draw.seed": 5},
        "--device cpu": {"pick_device.name": "cpu"},
        "--no-bf16": {"precision_to_sample.asked": False, "faster.bf16": False},
        "--pictures 9": {"draw_all.count": 9},
        "--batch 9": {"draw_all.batch": 9},
        "--sampler ddim": {"sampler_of.name": "ddim"},
        "--steps 9": {"sampler_of.steps": 9},
        "--eta 0.5": {"sampler_of.eta": 0.5},
        "--class cat": {"guided.c": 0},
        "--guidance 2": {"guided.w": 2.0},
        "--out x.npz": {
            "save.out": "x.npz",
            "kept_steps.out": "x.npz",
            "refuse_what_cannot_be_written.out": "x.npz",
        },
    },
    "interpolate c.pt --data d.npy": {
        **model("interpolate", "faster.net", "interpolate.eps_theta"),
        "--seed 5": {"interpolate.generator": "seed 5"},
        "--device cpu": {"pick_device.name": "cpu"},
        "--no-bf16": {"precision_to_sample.asked": False, "faster.bf16": False},
        "--data e.npy": {"as_they_are.path": "e.npy"},
        "--first 3": {"interpolate.x_0": ANY, "save_png.picture": ANY},
        "--second 3": {"interpolate.x_0_prime": ANY, "save_png.picture": ANY},
        "--t 3": {"interpolate.t": 3},
        "--steps 3": {"interpolate.lam": [0, 0.5, 1]},
        "--out x.png": {
            "save_png.path": "x.png",
            "refuse_what_cannot_be_written.out": "x.png",
        },
    },
    "bound c.pt --data d.npy --pictures 4": {
        **model(
            "estimate_bits_per_dim", "faster.net", "estimate_bits_per_dim.eps_theta"
        ),
        "--seed 5": {
            "estimate_bits_per_dim.generator": "seed 5",
            "estimate_bits_per_dim.x_0": chosen(5, 4),
        },
        "--device cpu": {"pick_device.name": "cpu"},
        "--no-bf16": {"precision_to_sample.asked": False, "faster.bf16": False},
        "--data e.npy": {"as_they_are.path": "e.npy"},
        "--pictures 3": {"estimate_bits_per_dim.x_0": chosen(0, 3)},
        "--held-out": {
            "as_they_are.split": "train",
            "estimate_bits_per_dim.x_0": chosen(0, 4, hold_out(6, 8)[1]),
        },
        "--draws 3": {"estimate_bits_per_dim.draws": 3, "table.every_t": False},
        "--chunk 3": {"estimate_bits_per_dim.chunk": 3},
        "--plot x.png": {
            "refuse_what_cannot_be_written.out": "x.png",
            "refuse_what_cannot_be_written.channels": None,
            "rate_distortion.bound": ANY,
            "save_rate_distortion_plot.path": "x.png",
            "save_rate_distortion_plot.rate": "rate",
            "save_rate_distortion_plot.distortion": "distortion",
        },
    },
    "export c.pt --out folder": {
        **model("unet_to_diffusers", "unet_to_diffusers.net"),
        "--out other": {"unet_to_diffusers.folder": "other"},
    },
    "info c.pt": {},
    "doctor": {"--device cpu": {"doctor.device_name": "cpu"}},
}


# --- the scripts that train ----------------------------------------------------------


def training_stage(stage: Stage, module: ModuleType) -> Callable[[list[str]], None]:
    """`module.main` among stand-ins; its network is "net", that of `fit` "ema"."""
    made = SimpleNamespace(name="progress", close=lambda: None, figures={})

    def network(a: Any) -> Net:
        stage.noted["seed of the weights"] = torch.initial_seed()
        return Net("net", getattr(a, "num_classes", None))

    for name, answer in {
        "pick_device": lambda _: torch.device("cpu"),
        "linear_schedule": lambda a: linear_schedule(a.T),
        "settled": lambda a: a.c,
        "join": lambda a: (a.device, False),
        "wait_for_all": nothing,
        "rank": lambda _: 0,
        "download_cifar10": nothing,
        "read_cifar10": lambda _: (V, LABELS),
        "read_pictures": lambda _: Pictures(V, LABELS, ["cat", "dog"]),
        "hold_out": lambda a: (torch.arange(a.count, 8), None),
        "drawer": lambda _: "draw",
        "gradient_drawer": lambda _: "draw",
        "sometimes_without_class": lambda _: "draw with classes",
        "UNet": network,
        "MLP": network,
        "gradient_floor": lambda _: "floor",
        "seconds_a_step": lambda _: 1.0,
        "Progress": lambda _: made,
        "fit": lambda _: Net("ema"),
        "sample": lambda _: torch.zeros(1, *SHAPE),
        "say_out_of_range": nothing,
        "grid": lambda _: "grid",
        "save_png": nothing,
        "figures": lambda _: {},
        "save_pictures": nothing,
        "save_live": nothing,
        "report": lambda _: "",
    }.items():
        with suppress(AttributeError):  # not each of them is there
            stage.stand_in(module, name, answer)
    stage.stand_in(scripts, "faster", lambda a: a.net)
    for name in training.DOWNLOADS:
        fetch = partial(stage.noted.__setitem__, f"fetch {name}")
        stage.monkeypatch.setitem(training.DOWNLOADS, name, fetch)
    return module.main


ALGORITHM_1 = {  # they go to `fit`, and nowhere else
    **{"--steps 9": {}, "--batch 9": {}, "--lr 9": {}, "--warmup 9": {}},
    **{"--lr-end 9": {}, "--max-norm 9": {}, "--ema 0.5": {}},
    **{"--log-every 50": {}, "--save-every 9000": {}, "--micro-batch 9": {}},
    **{"--channels-last": {}, "--compile": {}},
}
OF_ALL: dict[str, dict[str, Any]] = {
    **ALGORITHM_1,
    "--out x": {
        "Progress.folder": "x",
        "fit.checkpoint": "x/checkpoint.pt",
    },
    "--device cuda": {"pick_device.name": "cuda"},
    "--T 30": {"linear_schedule.T": 30, "fit.s": 30},
    "--resume": {"fit.resume": True},
}
OF_A_UNET: dict[str, dict[str, Any]] = {
    "--no-bf16": {"faster.bf16": False},
    "--seed 5": {"seed of the weights": 5, "sample.generator": "seed 5"},
    "--T 30": {"sample.s": 30, "Progress.calls": ANY},
    "--base 6": {"UNet.base": 6},
    "--multipliers 1 1": {"UNet.multipliers": [1, 1]},
    "--attention 0": {"UNet.attention_levels": [0]},
    "--dropout 0.5": {"UNet.dropout": 0.5},
    "--resume": {"settled.resume": True},
}


def both(*tables: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The tables as one, with what each says of a flag."""
    flags = dict.fromkeys(flag for table in tables for flag in table)
    parts = {flag: [table.get(flag, {}) for table in tables] for flag in flags}
    return {
        flag: {k: v for x in xs for k, v in x.items()} for flag, xs in parts.items()
    }


WITHOUT = ("draw", "none", "share")
ROWS = torch.arange(3)  # of grid.png: two classes and none
SCRIPTS = {
    "train": both(
        OF_ALL,
        OF_A_UNET,
        {
            "--data x": {"read_pictures.path": "x"},
            "--out x": {"save_png.path": "x/grid.png"},
            "--samples 9": {
                "Progress.calls": [250, 9],
                "sample.shape": [9, *SHAPE],
                "sample.eps_theta": ("ema", {"c": ROWS.repeat_interleave(3).tolist()}),
                "grid.columns": 3,
            },
            "--no-clip-x-0": {"sample.clip_x_0": False},
            "--size 8 8": {"read_pictures.size": [8, 8]},
            "--grey": {"read_pictures.channels": 1},
            "--labels x": {"read_pictures.labels": "x"},
            "--names x y": {},
            "--no-classes": {
                "drawer.labels": None,
                "fit.draw": "draw",
                "UNet.num_classes": None,
                "sample.shape": [64, *SHAPE],
                "sample.eps_theta": "ema",
                **{f"sometimes_without_class.{x}": GONE for x in WITHOUT},
                "grid.columns": 8,
            },
            "--flip": {"drawer.flip": True},
            "--held-out 3": {
                "hold_out.count": 3,
                "hold_out.of": 8,
                "drawer.images": V[3:].tolist(),
                "drawer.labels": LABELS[3:].tolist(),
            },
            "--convnext": {"UNet.block": "ConvNeXtBlock"},
            "--linear": {"UNet.attention": "LinearAttention"},
            "--minutes 0.5": {
                "config.steps": 30,
                "config.ema": 1 - 8 / 30,
                "config.warmup": 1,
                "seconds_a_step.s": 250,
                "seconds_a_step.seconds": 4.0,
                "seconds_a_step.net": "net",
                "seconds_a_step.draw": "draw with classes",
            },
            "--download cifar-10": {"fetch cifar-10": "data"},
            "--preset small": {},
        },
    ),
    "train_cifar": both(
        OF_ALL,
        OF_A_UNET,
        {
            "--data x": {"read_cifar10.folder": "x"},
            "--out x": {
                "join.checkpoint": "x/checkpoint.pt",
                "save_png.path": "x/step-800000.png",
            },
            "--steps 9": {"save_png.path": "out/cifar/step-000009.png"},
            "--samples 9": {
                "Progress.calls": [1000, 9],
                "sample.shape": [9, 3, 32, 32],
            },
            "--clip-x-0": {"sample.clip_x_0": True},
            "--no-flip": {"drawer.flip": False},
            "--sample-every 9000": {},
            "--download": {"download_cifar10.folder": "data"},
        },
    ),
    "train_gradients": both(
        OF_ALL,
        {
            "--bf16": {},
            "--out x": {
                "save_pictures.out": "x",
                "save_live.path": "x/live.html",
            },
            "--seed 5": {"seed of the weights": 5},
            "--T 30": {
                f"{call}.s": 30
                for call in ("gradient_floor", "figures", "save_pictures", "save_live")
            },
            "--height 3": {
                "gradient_drawer.height": 3,
                "gradient_floor.height": 3,
                "MLP.shape": [3, 3, 8],
            },
            "--width 3": {
                "gradient_drawer.width": 3,
                "gradient_floor.width": 3,
                "MLP.shape": [3, 8, 3],
            },
            "--hidden 9": {"MLP.width": 9},
            "--depth 9": {"MLP.depth": 9},
        },
    ),
}
MODULES = {
    "train": training,
    "train_cifar": train_cifar,
    "train_gradients": train_gradients,
}


# --- the laws ------------------------------------------------------------------------


def arguments(start: Callable[..., Any], argv: str) -> tuple[dict[str, Any], list[Any]]:
    """What the stand-ins note of one run."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        stage = Stage(monkeypatch)
        start(stage)(shlex.split(argv))
    return stage.noted, stage.configs


def reaches(start: Callable[..., Any], base: str, flag: str, wanted: dict) -> None:
    """Asserts that `flag` changes the arguments that are `wanted`, and no other."""
    (before, _), (after, configs) = (
        arguments(start, x) for x in (base, f"{base} {flag}")
    )
    changed = {k for k in before | after if before.get(k, GONE) != after.get(k, GONE)}
    assert changed == set(wanted)
    assert {k: after.get(k, GONE) for k in wanted if wanted[k] is not ANY} == {
        k: v for k, v in wanted.items() if v is not ANY
    }
    assert all(config == configs[0] for config in configs)


@pytest.mark.parametrize(
    ("base", "flag"),
    [(base, flag) for base, flags in COMMANDS.items() for flag in flags],
)
def test_a_commands_flag_reaches_the_call_that_it_names(base, flag):
    """Of a command on a checkpoint: the argument named here changes, and it alone."""
    reaches(commands, base, flag, COMMANDS[base][flag])


@pytest.mark.parametrize(
    ("name", "flag"),
    [(name, flag) for name, flags in SCRIPTS.items() for flag in flags],
)
def test_a_scripts_flag_reaches_the_call_that_it_names(name, flag):
    """Of a script: its setting, which `fit` and all others are given, and the call
    that it is for; nothing else changes.
    """
    setting = flag.split()[0].removeprefix("--").removeprefix("no-").replace("-", "_")
    wanted = SCRIPTS[name][flag]
    fields = {field.name for field in dataclasses.fields(MODULES[name].Config)}
    if setting in fields:
        wanted = {f"config.{setting}": ANY} | wanted
    reaches(partial(training_stage, module=MODULES[name]), "", flag, wanted)


def test_no_flag_is_left_out():
    """Every flag of every parser stands in a table, but for those tried elsewhere."""
    elsewhere = {"--help", "--clip", "--smoke"}
    parsers = dict(command._flags()._subparsers._group_actions[0].choices)
    parsers.pop("train")
    for name, parser in parsers.items():
        (base,) = [x for x in COMMANDS if x.split()[0] == name]
        flags = {x for action in parser._actions for x in action.option_strings[-1:]}
        tried = {flag.split()[0] for flag in COMMANDS[base]}
        assert flags - elsewhere == tried, name
    for name, module in MODULES.items():
        fields = {x.name for x in dataclasses.fields(module.Config)}
        tried = {x.split()[0].replace("--no-", "--") for x in SCRIPTS[name]}
        more = set(training.MORE) if name == "train" else set()
        more |= {"--download"} if name == "train_cifar" else set()
        wanted = {f"--{x.replace('_', '-')}" for x in fields} | more | {"--resume"}
        assert wanted == tried, name


def test_what_is_shown_is_of_the_moving_average():
    """Grids, figures and pages are of what `fit` gives, not of the network it trains;
    a row of the grid for each class, in their order, and a last one for none.
    """
    for name, module in MODULES.items():
        noted, _ = arguments(partial(training_stage, module=module), "")
        assert noted["fit.net"] == "net"
        if name == "train_gradients":
            for call in ("figures.ema", "save_pictures.ema", "save_live.net"):
                assert noted[call] == "ema"
        else:
            assert noted["faster.net"] == "ema"
    rows = ROWS.repeat_interleave(21).tolist()
    noted, _ = arguments(partial(training_stage, module=training), "")
    assert noted["sample.eps_theta"] == ("ema", {"c": rows})
    assert noted["grid.columns"] == 21
    assert noted["sometimes_without_class.none"] == 2
    assert noted["fit.draw"] == "draw with classes"


@pytest.mark.parametrize("base", [x for x in COMMANDS if "d.npy" in x])
def test_a_bound_is_charged_for_pictures_held_out(base):
    """Where the data have a test set, `bound` and `interpolate` take theirs from it."""
    noted, _ = arguments(commands, base)
    assert noted["as_they_are.split"] == "test"
    assert noted["as_they_are.size"] == [8, 8]
