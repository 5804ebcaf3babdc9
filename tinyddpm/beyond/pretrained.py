"""Weights to and from the diffusers library, `google/ddpm-cifar10-32` among them.

Everywhere here a network of ours takes the paper's t, 1..T, and one of diffusers t - 1,
as the authors' code does. The change of one into the other is exact: the embedding's
pairs at t are those at t - 1, turned by the angles ω_i, and `dense1` takes the turn in.
diffusers itself is not needed to read or to write; no pickle is run.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import Downsample, GroupNorm, Upsample
from ..mlp import time_embedding
from ..schedule import Schedule
from ..unet import Level, ResBlock, SelfAttention, UNet

# Our name of a weight -> diffusers' name, by each line in turn.
NAMES = (
    (r"^dense(\d)", r"time_embedding.linear_\1"),
    (r"\.dense\.", ".time_emb_proj."),
    (r"^norm_out", "conv_norm_out"),
    (r"^middle_attention", "mid_block.attentions.0"),
    (r"^middle1", "mid_block.resnets.0"),
    (r"^middle2", "mid_block.resnets.1"),
    (r"^down\.(\d+)\.resample", r"down_blocks.\1.downsamplers.0"),
    (r"^up\.(\d+)\.resample", r"up_blocks.\1.upsamplers.0"),
    (r"^(down|up)\.", r"\1_blocks."),
    (r"\.blocks\.", ".resnets."),
    (r"\.shortcut\.", ".conv_shortcut."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
)
# Attention's weights were renamed; the published .bin file has the older names.
NEW = ((r"\.([qkv])\.", r".to_\1."), (r"(attentions\.\d+)\.out\.", r"\1.to_out.0."))
OLD = (
    (r"\.q\.", ".query."),
    (r"\.k\.", ".key."),
    (r"\.v\.", ".value."),
    (r"(attentions\.\d+)\.out\.", r"\1.proj_attn."),
)

# What decides the function of a UNet2DModel beside its weights: the paper's setting,
# and what diffusers takes where config.json leaves it out, if that is another.
FUNCTION = {
    "layers_per_block": 2,
    "attention_head_dim": None,
    "norm_num_groups": 32,
    "norm_eps": 1e-6,
    "act_fn": "silu",
    "downsample_padding": 0,
    "mid_block_scale_factor": 1,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "mid_block_type": "UNetMidBlock2D",
    "add_attention": True,
    "attn_norm_num_groups": None,
    "resnet_time_scale_shift": "default",
    "downsample_type": "conv",
    "upsample_type": "conv",
    "time_embedding_dim": None,
    "class_embed_type": None,
    "num_class_embeds": None,
}
LEFT_OUT = {
    "attention_head_dim": 8,
    "norm_eps": 1e-5,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
}
SHAPE = (
    "in_channels",
    "out_channels",
    "block_out_channels",
    "down_block_types",
    "up_block_types",
)
NO_MATTER = {"sample_size", "dropout", "num_train_timesteps"}  # to ε_θ(x_t, t)

CONFIG = {  # of google/ddpm-cifar10-32, and what it leaves out
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"] + 2 * ["DownBlock2D"],
    "up_block_types": 2 * ["UpBlock2D"] + ["AttnUpBlock2D", "UpBlock2D"],
} | FUNCTION

PARTS = {UNet, Level, ResBlock, SelfAttention, GroupNorm, Downsample, Upsample}
PARTS |= {nn.Conv2d, nn.Linear, nn.Dropout, nn.Identity, nn.ModuleList}
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
WEIGHTS = "diffusion_pytorch_model"  # .safetensors or .bin


def unet_from_diffusers(
    source: Mapping[str, Tensor] | str | Path,
    in_channels: int | None = None,
    base: int | None = None,
    multipliers: Sequence[int] | None = None,
    attention_levels: Sequence[int] | None = None,
    dropout: float | None = None,
) -> UNet:
    """A `UNet` with the weights of a diffusers `UNet2DModel`; its t is the paper's.

    A state_dict has names and shapes alone. It cannot tell the heads of attention, the
    groups and eps of the norms, the padding, the activation, how t is embedded and
    whether x is centred first: all are taken to be the paper's (`CONFIG`), and weights
    trained with others give another function without a word. A config.json, in the
    folder or beside the file, tells them, and one that differs is refused.

    Args:
        source: a state_dict, with either of the two namings of attention's weights; a
            file, .safetensors or .bin; or a folder, of the model or of a pipeline.
        in_channels, ..., dropout: as in `UNet`. What is left out is read from the
            config.json, or is `UNet`'s default where there is none.
    Returns: the network in eval mode, on the CPU, in the dtype of the weights. Of what
        `unet_to_diffusers` wrote all weights are the same bits, but those of `dense1`
        the same up to one rounding, since they are turned back.
    Raises: FileNotFoundError; ImportError without the safetensors library; ValueError
        for another network's config.json, a damaged file, or weights that do not fit,
        which are all named.
    """
    names = ("in_channels", "base", "multipliers", "attention_levels", "dropout")
    values = (in_channels, base, multipliers, attention_levels, dropout)
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, Sequence) else value
        for name, value in zip(names, values, strict=True)
        if value is not None
    }
    if isinstance(source, Mapping):
        return _fill(_unmade(given), source)
    path = _file(Path(source))
    config = path.parent / "config.json"
    told = _told(config) if config.is_file() else {}
    differ = [
        f"{name} is {told[name]}, expected {value}"
        for name, value in given.items()
        if name != "dropout" and told.get(name, value) != value
    ]
    if differ:
        raise ValueError(f"{config} is of another network: {'; '.join(differ)}")
    try:
        return _fill(_unmade(told | given), _read(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_cifar10(path: str | Path) -> UNet:
    """ε_θ(x_t, t) of the paper's CIFAR-10 run, for the paper's t = 1..1000.

    Args: path, the folder of `google/ddpm-cifar10-32`, or the file in it,
        `diffusion_pytorch_model.bin` or `.safetensors`; a config.json that lies there
        is checked.
    Returns: the network, in eval mode, on the CPU.
    Raises: as `unet_from_diffusers`.
    """
    return unet_from_diffusers(path, 3, 128, (1, 2, 2, 2), (1,))


def unet_to_diffusers(
    net: nn.Module,
    folder: str | Path,
    s: Schedule,
    size: tuple[int, int] = (32, 32),
    sigma2: str = "beta",
    clip_x_0: bool = False,
) -> None:
    """Writes a network as a folder that `diffusers.DDPMPipeline.from_pretrained` opens.

    `pipeline(num_inference_steps=s.T)` is then Algorithm 2. The pipeline keeps the
    schedule's tables in float32, ours are float64: that is most of what differs.

    Args:
        net: a `UNet` of the paper's blocks, without classes, for 1 or 3 channels, whose
            multipliers begin with 1 and whose norms all have as many groups, which are
            32 if `base` is a multiple of 32 and at least 64.
        folder: which is not there yet, or is empty. It appears whole or not at all.
        s: the schedule the network was trained for.
        size: (H, W) of the pictures.
        sigma2, clip_x_0: of Algorithm 2, as in `sample`.
    Raises: before anything is written. ValueError for what diffusers cannot have or
        numbers that are not finite; FileExistsError; ImportError without safetensors.
    """
    unet = _exportable(net, size)
    configs = _configs(unet, s, size, sigma2, clip_x_0)
    weights = _theirs(unet)
    folder = Path(os.path.abspath(folder))
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already; give the name of a new one")
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise ImportError(
            "writing .safetensors takes that library: install the extra [pretrained]"
        ) from error
    content = save(weights, metadata={"format": "pt"})
    folder.parent.mkdir(parents=True, exist_ok=True)
    # In a hidden folder beside it, which goes away whatever happens.
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as beside:
        whole = Path(beside) / folder.name
        for name in ("unet", "scheduler"):
            (whole / name).mkdir(parents=True)
        (whole / "unet" / f"{WEIGHTS}.safetensors").write_bytes(content)
        for name, config in configs.items():
            text = json.dumps(config, indent=2) + "\n"
            (whole / name).write_text(text, encoding="utf-8")
        if folder.is_dir():
            folder.rmdir()
        whole.rename(folder)


def turn(dense1: Tensor, steps: int) -> Tensor:
    """The first dense layer for an embedding of t - `steps` in place of t's.

    W (sin ω t, cos ω t) = W' (sin ω t', cos ω t'), t' = t - n, by the addition formulas
    sin(ω t' + ω n) and cos(ω t' + ω n), for each frequency ω_i:
    W'_sin = W_sin cos(ω n) - W_cos sin(ω n),  W'_cos = W_sin sin(ω n) + W_cos cos(ω n).

    Args: dense1, the weight (emb, base); steps, n, of either sign.
    Returns: W', computed in float64 and rounded once.
    """
    t = torch.tensor([steps], dtype=torch.float64, device=dense1.device)
    sin, cos = time_embedding(t, dense1.shape[1])[0].chunk(2)
    W_sin, W_cos = dense1.double().chunk(2, dim=1)
    turned = [W_sin * cos - W_cos * sin, W_sin * sin + W_cos * cos]
    return torch.cat(turned, dim=1).to(dense1.dtype)


# Reading


def _unmade(arguments: Mapping[str, Any]) -> UNet:
    """The network without its numbers: they take memory once their shapes are right."""
    with torch.device("meta"):
        return UNet(**arguments)


def _fill(net: UNet, state_dict: Mapping[Any, Any]) -> UNet:
    """The network with these weights; ValueError that names each that does not fit."""
    _refuse_no_tensors(state_dict)
    attention = OLD if any(".query." in key for key in state_dict) else NEW
    shapes = {key: weight.shape for key, weight in net.state_dict().items()}
    ours = {_rename(key, NAMES + attention): key for key in shapes}
    wrong = [f"missing: {key}" for key in ours if key not in state_dict]
    wrong += [f"unknown: {key}" for key in state_dict if key not in ours]
    found = {}
    for theirs in ours.keys() & state_dict.keys():
        weight, shape = state_dict[theirs].detach(), shapes[ours[theirs]]
        # Attention's projections are matrices there, 1x1 convolutions here.
        fits = weight.shape == shape or (*weight.shape, 1, 1) == shape
        if fits and weight.dtype in FLOATS:
            found[ours[theirs]] = weight.reshape(shape)
        else:
            given = f"{weight.dtype}, shape {(*weight.shape,)}"
            wrong.append(f"{theirs}: {given}, expected floats, shape {(*shape,)}")
    if wrong:
        raise ValueError(
            f"these weights are not of a UNet2DModel with base {net.base}, multipliers "
            f"{net.multipliers} and attention at levels {net.attention_levels}: "
            f"{'; '.join(sorted(wrong))}"
        )
    _refuse_non_finite((theirs, found[key]) for theirs, key in ours.items())
    found["dense1.weight"] = turn(found["dense1.weight"], -1)
    dtype = reduce(torch.promote_types, (weight.dtype for weight in found.values()))
    net.to_empty(device="cpu").to(dtype).load_state_dict(found)
    return net.eval()


def _rename(key: str, names: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in names:
        key = re.sub(pattern, replacement, key)
    return key


def _refuse_no_tensors(found: Mapping[Any, Any]) -> None:
    for key, weight in found.items():
        if not isinstance(key, str) or not isinstance(weight, Tensor):
            given = f"{key!r}: {type(weight).__name__}"
            raise ValueError(f"holds something else than named tensors, {given}")
        if weight.is_meta or weight.layout != torch.strided:
            kind = "on the device meta" if weight.is_meta else f"{weight.layout}"
            raise ValueError(f"{key} is {kind}; give weights with all their numbers")


def _refuse_non_finite(weights: Iterable[tuple[str, Tensor]]) -> None:
    bad = [name for name, weight in weights if not bool(weight.isfinite().all())]
    if bad:
        raise ValueError(
            f"numbers that are not finite in {len(bad)} weights, {bad[0]} first"
        )


def _file(path: Path) -> Path:
    """The file of weights that `path` is, or that lies in its folder."""
    if not path.is_dir():
        return path
    folder = path / "unet" if (path / "unet").is_dir() else path  # of a pipeline
    files = [folder / f"{WEIGHTS}.{end}" for end in ("safetensors", "bin")]
    for file in files:
        if file.is_file():
            return file
    raise FileNotFoundError(f"{folder} has neither {files[1].name} nor {files[0].name}")


def _told(path: Path) -> dict[str, Any]:
    """`UNet`'s arguments by a config.json; ValueError if its function is another."""
    try:
        config: dict[str, Any] = dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a JSON object: {error}") from error
    known = FUNCTION.keys() | set(SHAPE) | NO_MATTER
    differ = [
        f"{name} is {value}, which is not known here"
        for name, value in config.items()
        if name not in known and not name.startswith("_") and value is not None
    ]
    if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
        differ.append(f"it is of a {config['_class_name']}, expected UNet2DModel")
    differ += [f"{name} is left out" for name in SHAPE if name not in config]
    if differ:
        raise ValueError(f"{path} is of another network: {'; '.join(differ)}")
    try:
        told = _arguments(*(config[name] for name in SHAPE))
        told |= {"dropout": config["dropout"]} if "dropout" in config else {}
        net = _unmade(told)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} is of another network: {error}") from error
    widths = {m.q.in_channels for m in net.modules() if isinstance(m, SelfAttention)}
    emb, groups = 4 * net.base, _groups(net)
    also = {  # other words for the same function
        "act_fn": ["silu", "swish"],
        "attention_head_dim": [None, *(widths if len(widths) == 1 else ())],
        "time_embedding_dim": [None, emb],
        "norm_num_groups": [groups],
        "attn_norm_num_groups": [None, groups],
    }
    for name, value in FUNCTION.items():
        found = config.get(name, LEFT_OUT.get(name, value))
        expected = also.get(name, [value])
        if found not in expected:
            differ.append(f"{name} is {found}, expected {expected[0]}")
    if differ:
        raise ValueError(f"{path} is of another network: {'; '.join(differ)}")
    return told


def _arguments(
    C: int, C_out: int, widths: list[int], down: list[str], up: list[str]
) -> dict[str, Any]:
    """`UNet`'s arguments for a config's SHAPE; ValueError where no UNet is so."""
    if C_out != C:
        raise ValueError(f"out_channels is {C_out}, expected {C}")
    kinds = {"DownBlock2D": "UpBlock2D", "AttnDownBlock2D": "AttnUpBlock2D"}
    mirrored = [kinds.get(name) for name in reversed(down)]
    if None in mirrored or mirrored != list(up) or len(down) != len(widths):
        raise ValueError(
            f"the blocks are {down} and {up} for channels {widths}, expected one of "
            f"{list(kinds)} for each, and their mirror image"
        )
    base = widths[0]
    if any(width % base for width in widths):
        raise ValueError(f"channels {widths} are no multiples of the first")
    return {
        "in_channels": C,
        "base": base,
        "multipliers": tuple(width // base for width in widths),
        "attention_levels": tuple(i for i, k in enumerate(down) if "Attn" in k),
    }


def _groups(net: UNet) -> int:
    """The number of groups of every norm; ValueError where they are not all alike."""
    groups = {m.num_groups for m in net.modules() if isinstance(m, GroupNorm)}
    if len(groups) > 1:
        raise ValueError(
            f"the norms have {sorted(groups)} groups for base {net.base} and "
            f"multipliers {net.multipliers}, and a UNet2DModel has one number for all "
            f"of them, so none can be this network; they are all 32 in one whose base "
            f"is 64, or another multiple of 32 above it"
        )
    return groups.pop()


def _read(path: Path) -> Mapping[Any, Any]:
    """What a .bin or .safetensors file holds; no pickle is run."""
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise ImportError(
                f"reading {path.name} takes the safetensors library: install the "
                f"extra [pretrained], or take the .bin file"
            ) from error
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # the two libraries raise six kinds between them
        raise ValueError(f"damaged, or no file of weights: {error}") from error
    if not isinstance(found, dict):
        raise ValueError("holds something else than named tensors")
    return found


# Writing


def _exportable(net: nn.Module, size: tuple[int, int]) -> UNet:
    """The network, if a UNet2DModel can be the same; else ValueError."""
    if type(net) is not UNet:
        raise ValueError(
            f"diffusers has a UNet2DModel for our UNet, not for {type(net).__name__}"
        )
    others = sorted({type(m).__name__ for m in net.modules() if type(m) not in PARTS})
    if net.num_classes is not None:
        raise ValueError(
            f"this UNet has {net.num_classes} classes, and DDPMPipeline asks for none; "
            f"export one that was trained without classes"
        )
    if others:
        raise ValueError(f"a UNet2DModel cannot have these parts: {', '.join(others)}")
    if net.in_channels not in (1, 3):
        raise ValueError(
            f"DDPMPipeline makes pictures of 1 or 3 channels, got {net.in_channels}"
        )
    if net.multipliers[0] != 1:
        raise ValueError(
            f"multipliers must begin with 1, since a UNet2DModel's first convolution "
            f"is as wide as its first level, got {net.multipliers}"
        )
    if min(size) < 1 or size[0] % net.factor or size[1] % net.factor:
        raise ValueError(f"H and W must be multiples of {net.factor}, got {size}")
    _groups(net)
    _refuse_non_finite(net.named_parameters())
    return net


def _theirs(net: UNet) -> dict[str, Tensor]:
    """The weights by diffusers' names and in its shapes, for t that counts from 0."""
    found = {}
    for key, weight in net.state_dict().items():
        theirs = _rename(key, NAMES + NEW)
        if key == "dense1.weight":
            weight = turn(weight, 1)
        if "attentions" in theirs and weight.ndim == 4:
            weight = weight.flatten(1)
        found[theirs] = weight.cpu().contiguous()
    return found


def _configs(
    net: UNet, s: Schedule, size: tuple[int, int], sigma2: str, clip_x_0: bool
) -> dict[str, dict[str, Any]]:
    """The three JSON files of the folder, by their names."""
    s.sigma2(sigma2)  # refuses what it does not know
    bars = (1 - s.beta[1:].float()).cumprod(0)
    if bars[0] == 1 or bars[-1] == 0:
        raise ValueError(
            f"diffusers keeps the schedule in float32, which cannot hold {s}"
        )
    levels = range(len(net.multipliers))
    kinds = ["Attn" if i in net.attention_levels else "" for i in levels]
    unet = {
        "_class_name": "UNet2DModel",
        "sample_size": size[0] if size[0] == size[1] else list(size),
        "in_channels": net.in_channels,
        "out_channels": net.in_channels,
        "block_out_channels": [net.base * m for m in net.multipliers],
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
        "dropout": net.dropout,
    }
    scheduler = {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": s.T,
        "trained_betas": s.beta[1:].tolist(),
        # At t = 1, where "fixedlarge" differs from "beta", nothing is added.
        "variance_type": "fixed_small" if sigma2 == "beta_tilde" else "fixed_large",
        "clip_sample": clip_x_0,
        "clip_sample_range": 1.0,
        "prediction_type": "epsilon",
    }
    index = {
        "_class_name": "DDPMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    return {
        "unet/config.json": unet | FUNCTION | {"norm_num_groups": _groups(net)},
        "scheduler/scheduler_config.json": scheduler,
        "model_index.json": index,
    }
