"""The weights of the paper's CIFAR-10 network, as `google/ddpm-cifar10-32` has them.

What lives here: the translation of diffusers' names for the U-Net's weights to ours,
and reading the published files. What does not: any download, nor diffusers itself.

The index: the authors' code counts steps from 0, so the published network wants t - 1.
`load_cifar10` takes the paper's t and subtracts; `unet_from_diffusers` does not.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..unet import UNet

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

CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [128, 256, 256, 256],
    "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"] + 2 * ["DownBlock2D"],
    "up_block_types": 2 * ["UpBlock2D"] + ["AttnUpBlock2D", "UpBlock2D"],
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
}


def unet_from_diffusers(
    state_dict: Mapping[str, Tensor],
    in_channels: int = 3,
    base: int = 128,
    multipliers: Sequence[int] = (1, 2, 2, 2),
    attention_levels: Sequence[int] = (1,),
    dropout: float = 0.1,
) -> UNet:
    """A `UNet` with the weights of a diffusers `UNet2DModel` of the same shape.

    Args:
        state_dict: the model's, with either of the two namings of attention's weights.
        in_channels, ..., dropout: as in `UNet`.
    Returns: the network in eval mode, in the dtype of the weights; its t is the
        model's own, which counts from 0.
    Raises: ValueError that names every missing, unknown and misshapen weight.
    """
    net = UNet(in_channels, base, multipliers, attention_levels, dropout)
    attention = OLD if any(".query." in str(key) for key in state_dict) else NEW
    ours = {_rename(key, NAMES + attention): key for key in net.state_dict()}
    wrong = [f"missing: {key}" for key in ours if key not in state_dict]
    wrong += [f"unknown: {key}" for key in state_dict if key not in ours]
    found = {}
    for theirs in ours.keys() & state_dict.keys():
        weight, shape = state_dict[theirs], net.state_dict()[ours[theirs]].shape
        # Attention's projections are matrices there, 1x1 convolutions here.
        fits = weight.shape == shape or (*weight.shape, 1, 1) == shape
        if fits and not _finite(weight):
            wrong.append(f"{theirs}: holds numbers that are not finite, or none")
        elif fits and weight.is_floating_point():
            found[ours[theirs]] = weight.reshape(shape)
        else:
            given = f"{weight.dtype}, shape {(*weight.shape,)}"
            wrong.append(f"{theirs}: {given}, expected floats, shape {(*shape,)}")
    if wrong:
        raise ValueError(
            f"these weights are not of a UNet2DModel with base {base}, multipliers "
            f"{tuple(multipliers)} and attention at levels {tuple(attention_levels)}:\n"
            + "\n".join(sorted(wrong))
        )
    net.to(found["conv_in.weight"].dtype).load_state_dict(found)
    return net.eval()


def _finite(weight: Tensor) -> bool:
    """Whether there are numbers, one beside the other, and none is nan or inf."""
    dense = weight.layout is torch.strided and not weight.is_meta
    return dense and bool(weight.isfinite().all())


def load_cifar10(path: str | Path) -> nn.Module:
    """ε_θ(x_t, t) of the paper's CIFAR-10 run, for the paper's t = 1..1000.

    Args:
        path: the folder of `google/ddpm-cifar10-32`, or the file in it,
            `diffusion_pytorch_model.bin` or `.safetensors`. A config.json beside it is
            checked: names and shapes of weights do not tell the function.
    Returns: a module of (x_t, t), in eval mode, on the CPU.
    Raises: FileNotFoundError, ValueError for a file of anything else, ImportError if
        the file is .safetensors and that library is not there.
    """
    path = Path(path)
    if not path.is_dir() and (path.parent / "config.json").is_file():
        _check_config(path.parent / "config.json")
    if path.is_dir():
        _check_config(path / "config.json")
        names = [f"diffusion_pytorch_model.{end}" for end in ("bin", "safetensors")]
        files = [path / name for name in names if (path / name).is_file()]
        if not files:
            raise FileNotFoundError(f"{path} has neither {names[0]} nor {names[1]}")
        path = files[0]
    try:
        return CountsFromZero(unet_from_diffusers(_read(path))).eval()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


class CountsFromZero(nn.Module):
    """ε_θ(x_t, t) for the paper's t, by a network trained with t - 1."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t (B, 3, H, W), t (B,), 1..1000 -> eps_hat (B, 3, H, W)."""
        eps_hat: Tensor = self.net(x_t, t - 1)
        return eps_hat


def _rename(key: str, names: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in names:
        key = re.sub(pattern, replacement, key)
    return key


def _check_config(path: Path) -> None:
    """Refuses a config.json that says something else than CONFIG; none is fine."""
    if not path.is_file():
        return
    try:
        config: dict[str, Any] = dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a JSON object: {error}") from error
    differ = [
        f"{name} is {config[name]}, expected {value}"
        for name, value in CONFIG.items()
        if name in config and config[name] != value
    ]
    if differ:
        raise ValueError(f"{path} is of another network: {'; '.join(differ)}")


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors in a .bin or .safetensors file; no pickle is run."""
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load
        except ImportError as error:
            raise ImportError(
                f"reading {path.name} takes the safetensors library: install the "
                f"extra [pretrained], or take the .bin file"
            ) from error
        content = path.read_bytes()
    try:
        if path.suffix == ".safetensors":
            found = load(content)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # the two libraries raise six kinds between them
        raise ValueError(f"damaged, or no file of weights: {error}") from error
    if not isinstance(found, dict) or not all(map(torch.is_tensor, found.values())):
        raise ValueError("holds something else than named tensors")
    return found
