"""Weights from diffusers and to it: the same function, the same pictures.

The published files are not here, so diffusers builds the same model with random
weights; `pretrained.py` must then give the same function, whatever the weights are.
"""

import inspect
import json
import math

import pytest
import torch
from torch import Tensor, nn

from tinyddpm.beyond.convnext import ConvNeXtBlock
from tinyddpm.beyond.pretrained import (
    CONFIG,
    FUNCTION,
    LEFT_OUT,
    NO_MATTER,
    load_cifar10,
    turn,
    unet_from_diffusers,
    unet_to_diffusers,
)
from tinyddpm.mlp import MLP, time_embedding
from tinyddpm.sampler import p_sample_loop, p_step
from tinyddpm.schedule import Schedule, linear_schedule
from tinyddpm.unet import UNet
from tinyddpm.workshop.checkpoint import Checkpoint, description, save_checkpoint
from tinyddpm.workshop.command import main

from ..strategies import normal

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.parity

# Two levels of 64 and 128 channels, attention at the lower: small, yet every kind of
# weight is there, and 32 groups have two channels each.
SMALL = {
    "block_out_channels": (64, 128),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
OUR_SMALL = {"base": 64, "multipliers": (1, 2), "attention_levels": (1,)}


def published(seed: int = 0, **changes) -> nn.Module:
    """diffusers' model of the published configuration, no weight left as it was made.

    Matrices have gain 1 about (1/√fan-in), the rest are 1 or 0 about: activations stay
    of the order of 1, and no zero hides a branch.
    """
    model = diffusers.UNet2DModel(sample_size=32, **(CONFIG | changes)).eval()
    with torch.no_grad():
        for i, (name, p) in enumerate(model.named_parameters()):
            noise = normal(seed + i, p.shape, p.dtype)
            if p.ndim > 1:
                p.copy_(noise / p[0].numel() ** 0.5)
            else:
                p.copy_(0.1 * noise + ("norm" in name and name.endswith("weight")))
    return model


def old_names(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names attention's weights had when the published file was written."""
    renames = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    found = {}
    for key, weight in state_dict.items():
        for new, old in renames.items():
            key = key.replace(f".{new}.", f".{old}.")
        found[key] = weight
    assert found.keys() != state_dict.keys()
    return found


class Sinusoids(nn.Module):
    """Theirs (Timesteps) are float32 whatever the model is; these are not."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, t: Tensor) -> Tensor:
        i = torch.arange(self.dim // 2, dtype=torch.float64)
        angle = t[:, None] / 10000 ** (i / (self.dim // 2 - 1))
        return torch.cat([angle.sin(), angle.cos()], 1)


def in_float64(model: nn.Module) -> nn.Module:
    """Their model in float64, with sinusoids that are."""
    parameters = list(model.parameters())
    for p in [*parameters, *model.buffers()]:
        p.data = p.data.double()
    model.time_proj = Sinusoids(parameters[0].shape[0])
    return model


def disagreement(model: nn.Module, net: nn.Module, x: Tensor, t: Tensor) -> float:
    """max |theirs - ours| in units of theirs' largest number; t is theirs, from 0."""
    with torch.no_grad():
        theirs, ours = model(x, t).sample, net(x, t + 1)
    assert ours.dtype == theirs.dtype == x.dtype
    return float((ours - theirs).abs().max() / theirs.abs().max())


# float32's rounding is 6e-8, float64's 1e-16; a hundred layers one after the other.
precisions = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)]
)


@precisions
@pytest.mark.parametrize("names", [dict, old_names])
def test_the_same_function_as_diffusers(names, dtype, tolerance):
    """ε_θ equal over shapes, not only square, and over t, by both namings."""
    model = published(**SMALL)
    model = in_float64(model) if dtype == torch.float64 else model
    net = unet_from_diffusers(names(model.state_dict()), **OUR_SMALL)
    assert not net.training
    for i, (H, W) in enumerate([(4, 4), (6, 10), (16, 16), (32, 8)]):
        x = normal(i, (4, 3, H, W), dtype)
        t = torch.tensor([0, 1, 500 + i, 999])
        assert disagreement(model, net, x, t) < tolerance


@pytest.mark.slow  # the full network, 36 million weights, four times over
@precisions
def test_the_paper_s_network_is_the_same_function_as_diffusers(dtype, tolerance):
    """The same at the published size, at 32x32 and at another size."""
    model = published()
    model = in_float64(model) if dtype == torch.float64 else model
    net = unet_from_diffusers(model.state_dict())
    for i, (H, W) in enumerate([(32, 32), (8, 24)]):
        x, t = normal(i, (2, 3, H, W), dtype), torch.tensor([0, 999 - i])
        assert disagreement(model, net, x, t) < tolerance


@pytest.mark.parametrize(
    ("variance_type", "sigma2"),
    [("fixed_large", "beta"), ("fixed_small", "beta_tilde")],
)
def test_algorithm_2_step_by_step_as_ddpm_scheduler(variance_type, sigma2):
    """50 steps of Algorithm 2 from the same x_T with the same noise, each compared.

    Theirs counts from 0: its step t - 1 is our t. Their tables are float32 (1e-7, and
    1 - ᾱ_1 has lost three digits), so each step starts from the same x_t and is held to
    1e-4 of its largest number; theirs keeps β̃_1 at 1e-20 where ours is 0. Run on
    freely, the two end within 1e-3.
    """
    T = 50
    model = published(**SMALL)
    net = unet_from_diffusers(model.state_dict(), **OUR_SMALL)
    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=T,
        beta_start=1e-4 * 1000 / T,
        beta_end=0.02 * 1000 / T,
        variance_type=variance_type,
        clip_sample=False,
    )
    scheduler.set_timesteps(T)
    assert scheduler.timesteps.tolist() == list(range(T - 1, -1, -1))
    s = linear_schedule(T)
    x_t = x_free = normal(0, (2, 3, 8, 8), torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for index in scheduler.timesteps:
            t = torch.full((2,), int(index) + 1)
            state = generator.get_state()
            eps_hat = model(x_t, index).sample
            theirs = scheduler.step(eps_hat, index, x_t, generator).prev_sample
            generator.set_state(state)
            z = torch.randn(x_t.shape, generator=generator)
            z = z if index > 0 else torch.zeros_like(z)  # Algorithm 2, line 3
            scale = theirs.abs().max()
            ours = p_step(s, x_t, t, net(x_t, t), z, sigma2)
            assert (ours - theirs).abs().max() < 1e-4 * scale
            x_free = p_step(s, x_free, t, net(x_free, t), z, sigma2)
            x_t = theirs
    assert (x_free - x_t).abs().max() < 1e-3 * x_t.abs().max()


def test_every_wrong_key_is_named():
    """Missing, unknown and misshapen weights stand in the error, each of them, in one
    sentence."""
    state_dict = published(**SMALL).state_dict()
    gone = ["conv_in.weight", "mid_block.attentions.0.to_v.bias"]
    for key in gone:
        del state_dict[key]
    state_dict["conv_out.bias"] = torch.zeros(4)
    state_dict["conv_norm_out.weight"] = torch.zeros(64, dtype=torch.long)
    state_dict["extra.weight"] = state_dict["down.0.conv"] = torch.zeros(1)
    with pytest.raises(ValueError, match="these weights are not of") as error:
        unet_from_diffusers(state_dict, **OUR_SMALL)
    listed = str(error.value).partition(": ")[2].split("; ")
    assert listed == sorted(
        [f"missing: {key}" for key in gone]
        + ["unknown: down.0.conv", "unknown: extra.weight"]
        + ["conv_out.bias: torch.float32, shape (4,), expected floats, shape (3,)"]
        + ["conv_norm_out.weight: torch.int64, shape (64,), "
           "expected floats, shape (64,)"]
    )  # fmt: skip


def test_our_own_names_and_mixed_names_are_no_published_weights():
    """The map is strict: a weight under any other name than diffusers' is unknown."""
    with pytest.raises(ValueError, match=r"missing: conv_norm_out.bias") as error:
        unet_from_diffusers(UNet(**OUR_SMALL).state_dict(), **OUR_SMALL)
    assert "unknown: dense1.weight" in str(error.value)
    mixed = published(**SMALL).state_dict()
    mixed["mid_block.attentions.0.query.weight"] = mixed.pop(
        "mid_block.attentions.0.to_q.weight"
    )
    with pytest.raises(ValueError, match=r"missing: .*query\.bias"):
        unet_from_diffusers(mixed, **OUR_SMALL)


# The files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as google/ddpm-cifar10-32 is laid out, with random weights."""
    path = tmp_path_factory.mktemp("ddpm-cifar10-32")
    model = published()
    torch.save(old_names(model.state_dict()), path / "diffusion_pytorch_model.bin")
    (path / "config.json").write_text(json.dumps({"sample_size": 32} | CONFIG))
    return path, model


def test_load_cifar10_takes_the_paper_s_t(folder):
    """ε_θ(x, t) of the folder is the model at t - 1: 1..1000 here, 0..999 there."""
    path, model = folder
    eps_theta = load_cifar10(path)
    x, t = normal(0, (2, 3, 8, 8), torch.float32), torch.tensor([1, 1000])
    with torch.no_grad():
        expected, given = model(x, t - 1).sample, eps_theta(x, t)
    assert (given - expected).abs().max() < 1e-5 * expected.abs().max()
    assert not any(m.training for m in eps_theta.modules())


def test_load_cifar10_reads_safetensors_and_single_files(folder, tmp_path):
    """The same weights from .safetensors, in a folder or by the file's own name."""
    save_file = pytest.importorskip("safetensors.torch").save_file
    path, model = folder
    weights = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    expected = load_cifar10(path).state_dict()
    for source in (tmp_path, path / "diffusion_pytorch_model.bin"):
        found = load_cifar10(source).state_dict()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_config_of_another_network_is_refused(tmp_path):
    """config.json says which network the weights are of; what differs is named."""
    (tmp_path / "diffusion_pytorch_model.bin").touch()
    config = CONFIG | {"flip_sin_to_cos": True, "norm_num_groups": 16}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="another network") as error:
        load_cifar10(tmp_path)
    assert "flip_sin_to_cos is True, expected False" in str(error.value)
    assert "norm_num_groups is 16, expected 32" in str(error.value)
    for damaged in ("{", "[1]", "3"):
        (tmp_path / "config.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"config\.json is not a JSON object"):
            load_cifar10(tmp_path)


def test_what_is_not_there_is_named(tmp_path):
    """No folder, no file, an empty folder: FileNotFoundError with the name."""
    with pytest.raises(FileNotFoundError, match=r"neither .*\.bin nor .*\.safetensors"):
        load_cifar10(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nothing\.bin"):
        load_cifar10(tmp_path / "nothing.bin")


class Trap:
    """What a hostile pickle would run."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


@pytest.mark.parametrize("end", ["bin", "safetensors"])
def test_damaged_files_are_refused(end, tmp_path):
    """Empty, cut short or something else: a ValueError with the file's name.

    A pickle that would run code when it is opened runs none.
    """
    if end == "safetensors":
        pytest.importorskip("safetensors")
    path = tmp_path / f"weights.{end}"
    torch.save({"a": torch.zeros(99)}, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    torch.save({"a": Trap()}, tmp_path / "trap")
    for content in (b"", b"text", whole[:-100], (tmp_path / "trap").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"weights\.{end}: damaged, or no file"):
            load_cifar10(path)
    if end == "bin":
        for content in ([torch.zeros(1)], {"a": 1}):
            torch.save(content, path)
            with pytest.raises(ValueError, match="something else than named tensors"):
                load_cifar10(path)


def test_without_the_safetensors_library_the_extra_is_named(tmp_path, monkeypatch):
    """safetensors is no dependency: where it is missing, the error says what to do."""
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"")
    with pytest.raises(ImportError, match=r"extra \[pretrained\].*\.bin"):
        load_cifar10(path)


# config.json


def test_what_a_config_leaves_out_is_diffusers_default():
    """Every argument of UNet2DModel is one that we know, and what it is where it is
    left out is `LEFT_OUT`, or else the paper's setting.
    """
    defaults = inspect.signature(diffusers.UNet2DModel.__init__).parameters
    assert defaults.keys() - {"self"} == CONFIG.keys() | NO_MATTER
    for name, value in FUNCTION.items():
        assert defaults[name].default == LEFT_OUT.get(name, value)


OTHERS = {
    "attention_head_dim": 8,
    "norm_num_groups": 16,
    "norm_eps": 1e-5,
    "act_fn": "gelu",
    "downsample_padding": 1,
    "center_input_sample": True,
    "time_embedding_type": "fourier",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "attn_norm_num_groups": 16,
    "resnet_time_scale_shift": "scale_shift",
    "mid_block_scale_factor": 2,
    "add_attention": False,
    "num_class_embeds": 10,
    "time_embedding_dim": 128,
    "layers_per_block": 1,
    "out_channels": 6,
    "block_out_channels": [64, 96],
    "down_block_types": ["DownBlock2D", "SkipDownBlock2D"],
    "something_new": "on",
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A network of ours, and the folder it was written to."""
    net = ours()
    folder = tmp_path_factory.mktemp("exported") / "net"
    unet_to_diffusers(net, folder, LITTLE_NOISE, (8, 16))
    return net, folder


@pytest.mark.parametrize("name", OTHERS)
def test_each_setting_that_makes_another_function_is_refused(exported, tmp_path, name):
    """In a folder and beside a file alike, by name; the words for ours pass."""
    _, folder = exported
    config = json.loads((folder / "unet" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {name: OTHERS[name]}))
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    file.symlink_to(folder / "unet" / file.name)
    shown = {"block_out_channels": "channels", "down_block_types": "the blocks"}
    for source in (tmp_path, file):
        with pytest.raises(
            ValueError, match=rf"another network: .*{shown.get(name, name)}"
        ) as error:
            unet_from_diffusers(source)
        assert "\n" not in str(error.value)
    same = {"act_fn": "swish", "time_embedding_dim": 256, "_diffusers_version": "9"}
    (tmp_path / "config.json").write_text(json.dumps(config | same))
    unet_from_diffusers(file)


def test_what_is_left_out_is_not_taken_for_the_papers_setting(exported, tmp_path):
    """Without norm_eps diffusers takes 1e-5: that is another function."""
    _, folder = exported
    config = json.loads((folder / "unet" / "config.json").read_text())
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    file.symlink_to(folder / "unet" / file.name)
    for name, value in LEFT_OUT.items():
        left = {k: v for k, v in config.items() if k != name}
        (tmp_path / "config.json").write_text(json.dumps(left))
        with pytest.raises(ValueError, match=f"{name} is {value}, expected"):
            unet_from_diffusers(file)


def test_arguments_against_the_config_are_refused(exported):
    """config.json says base 64; dropout is no part of the function."""
    _, folder = exported
    with pytest.raises(ValueError, match="base is 64, expected 128"):
        unet_from_diffusers(folder, base=128)
    with pytest.raises(ValueError, match="base is 64, expected 128"):
        load_cifar10(folder)
    assert unet_from_diffusers(folder, dropout=0.5).dropout == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {0: torch.zeros(1)}, "something else than named tensors, 0: Tensor"),
        (lambda w: w | {"conv_in.bias": 3}, "named tensors, 'conv_in.bias': int"),
        (lambda w: w | {"conv_in.bias": w["conv_in.bias"].to_sparse()}, "sparse"),
        (lambda w: {k: v.to("meta") for k, v in w.items()}, "on the device meta"),
        (
            lambda w: {k: v * math.nan for k, v in w.items()},
            "not finite in 208 weights",
        ),
        (lambda w: w | {"conv_in.bias": torch.full((64,), math.inf)}, "conv_in.bias"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(change, message):
    """Numeric keys, sparse or meta tensors, nan and inf: one sentence each."""
    weights = dict(published(**SMALL).state_dict())
    with pytest.raises(ValueError, match=message) as error:
        unet_from_diffusers(change(weights), **OUR_SMALL)
    assert "\n" not in str(error.value)


# Writing


# As little as lets half of the pictures' numbers end inside (-1, 1), without training.
LITTLE_NOISE = Schedule(torch.linspace(0.001, 0.03, 20).double())


def ours(seed: int = 0, **changes) -> UNet:
    """A network of ours, no weight left as it was made."""
    net = UNet(**({"in_channels": 3} | OUR_SMALL | changes)).eval()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            noise = normal(seed + i, p.shape, p.dtype)
            p.copy_(noise / p[0].numel() ** 0.5 if p.ndim > 1 else p + 0.1 * noise)
    return net


@pytest.mark.parametrize("n", [1, -1, 7])
def test_the_turned_layer_answers_for_another_t(n):
    """W' (sin, cos)(ω(t - n)) = W (sin, cos)(ω t), for t = 1..1000."""
    W, t = normal(0, (32, 16)), torch.arange(1, 1001).double()
    expected = time_embedding(t, 16) @ W.T
    assert torch.allclose(
        time_embedding(t - n, 16) @ turn(W, n).T, expected, atol=1e-12
    )


@precisions
def test_the_folder_is_the_same_function_in_diffusers(dtype, tolerance, tmp_path):
    """theirs(x, t - 1) = ours(x, t), loaded by diffusers itself."""
    net = ours().to(dtype)
    unet_to_diffusers(net, tmp_path / "net", LITTLE_NOISE, (8, 16))
    model = diffusers.UNet2DModel.from_pretrained(
        tmp_path / "net", subfolder="unet", torch_dtype=dtype
    )
    model = in_float64(model) if dtype == torch.float64 else model
    for i, (H, W) in enumerate([(8, 16), (4, 4)]):
        x, t = normal(i, (4, 3, H, W), dtype), torch.tensor([0, 1, 500 + i, 999])
        assert disagreement(model, net, x, t) < tolerance


@pytest.mark.parametrize(
    ("sigma2", "clip_x_0"), [("beta", False), ("beta_tilde", True)]
)
def test_the_pipeline_draws_our_pictures(sigma2, clip_x_0, tmp_path):
    """DDPMPipeline and Algorithm 2 from the same generator: equal to 1e-5.

    A third of the pictures' numbers at least are not clamped, so that they can differ.
    """
    net, s = ours(), LITTLE_NOISE
    unet_to_diffusers(net, tmp_path / "net", s, (8, 16), sigma2, clip_x_0)
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "net")
    pipeline.set_progress_bar_config(disable=True)
    g = torch.Generator().manual_seed(1)
    theirs = pipeline(4, g, num_inference_steps=s.T, output_type="pt").images
    g = torch.Generator().manual_seed(1)
    x_T = torch.randn(4, 3, 8, 16, generator=g)
    *_, (_, x_0, _) = p_sample_loop(s, net, x_T, g, sigma2, clip_x_0)
    expected = (x_0 / 2 + 0.5).clamp(0, 1)
    assert ((expected > 0) & (expected < 1)).float().mean() > 1 / 3
    assert (torch.as_tensor(theirs) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"in_channels": 1, "multipliers": (1,), "attention_levels": (), "dropout": 0.3},
        {"multipliers": (1, 3, 2), "attention_levels": (0, 2)},
    ],
)
def test_import_after_export_is_the_identity(dtype, changes, tmp_path):
    """The same arguments and the same bits; dense1 is turned and back, which rounds
    each of a pair twice: at most 2 eps of the pair's length.
    """
    net = ours(**changes).to(dtype)
    unet_to_diffusers(net, tmp_path / "net", LITTLE_NOISE, (8, 8))
    for source in (tmp_path / "net", tmp_path / "net" / "unet"):
        back = unet_from_diffusers(source)
        assert description(back) == description(net)
        found = back.state_dict()
        for name, weight in net.state_dict().items():
            assert found[name].dtype == dtype
            if name != "dense1.weight":
                assert torch.equal(found[name], weight)
        sin, cos = net.dense1.weight.chunk(2, 1)
        length = torch.hypot(sin, cos).repeat(1, 2)
        error = (back.dense1.weight - net.dense1.weight).abs()
        assert (error <= 2 * torch.finfo(dtype).eps * length).all()


def broken() -> UNet:
    net = ours()
    net.conv_in.bias.data[0] = math.nan
    return net


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (lambda: MLP((3, 4, 4)), {}, "not for MLP"),
        (lambda: ours(num_classes=2), {}, "has 2 classes"),
        (lambda: ours(in_channels=5), {}, "1 or 3 channels, got 5"),
        (
            lambda: ours(base=32),
            {},
            r"\[16, 32\] groups for base 32.*is 64, or",
        ),
        (lambda: ours(block=ConvNeXtBlock), {}, "cannot have these parts: .*ConvNeXt"),
        (lambda: ours(multipliers=(2, 3)), {}, r"begin with 1, .* got \(2, 3\)"),
        (broken, {}, r"not finite in 1 weights, conv_in\.bias"),
        (ours, {"size": (8, 9)}, r"multiples of 2, got \(8, 9\)"),
        (ours, {"sigma2": "none"}, "sigma2 must be"),
        (ours, {"s": Schedule(torch.tensor([1e-9]))}, "in float32, which cannot hold"),
    ],
)
def test_what_diffusers_cannot_have_is_refused(make, settings, message, tmp_path):
    """One sentence, before anything is written."""
    arguments = {"s": LITTLE_NOISE, "size": (8, 8)} | settings
    with pytest.raises(ValueError, match=message) as error:
        unet_to_diffusers(make(), tmp_path / "new" / "net", **arguments)
    assert "\n" not in str(error.value)
    assert not any(tmp_path.iterdir())


def test_a_folder_is_whole_or_not_there(tmp_path, monkeypatch):
    """What is there stays; an empty folder is filled; a failure leaves nothing."""
    net, (taken, empty) = ours(), (tmp_path / "taken", tmp_path / "empty")
    empty.mkdir()
    taken.write_text("mine")
    with pytest.raises(FileExistsError, match="taken is there already"):
        unet_to_diffusers(net, taken, LITTLE_NOISE, (8, 8))
    with monkeypatch.context() as patched:
        patched.setattr(json, "dumps", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            unet_to_diffusers(net, empty, LITTLE_NOISE, (8, 8))
    assert not any(empty.iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "taken"]
    unet_to_diffusers(net, empty, LITTLE_NOISE, (8, 8))
    assert len([p for p in empty.rglob("*") if p.is_file()]) == 4
    with pytest.raises(FileExistsError, match="empty is there already"):
        unet_to_diffusers(net, empty, LITTLE_NOISE, (8, 8))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "taken"]
    assert taken.read_text() == "mine"


def keep(path, net: nn.Module) -> str:
    """A checkpoint of this network, its raw weights being another's; its path."""
    raw = {name: weight / 2 for name, weight in net.state_dict().items()}
    adam = torch.optim.Adam(net.parameters())
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    adam.step()
    checkpoint = Checkpoint(
        step=7,
        config={},
        network=description(net),
        shape=(3, 8, 16),
        beta=LITTLE_NOISE.beta[1:],
        weights=raw,
        ema=net.state_dict(),
        optimiser=adam.state_dict(),
        told=torch.empty(0, 13, dtype=torch.float64),
        data=None,
    )
    save_checkpoint(path, checkpoint)
    return str(path)


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_the_command_export(weights, tmp_path, capsys):
    """Exit status 0, the checkpoint's weights and schedule; the lines that it prints
    open the folder and draw a picture of the checkpoint's size.
    """
    net, out = ours(), tmp_path / "net"
    path = keep(tmp_path / "c.pt", net)
    flags = ["--weights", weights, "--sigma2", "beta_tilde", "--clip-x-0"]
    assert main(["export", path, "--out", f"{out}/", *flags]) == 0
    said = capsys.readouterr().out
    for file in out.rglob("*.*"):
        assert f"{file}, {file.stat().st_size:,} bytes" in said
    bias = unet_from_diffusers(out).conv_in.bias
    assert torch.equal(bias, net.conv_in.bias / (2 if weights == "raw" else 1))
    config = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
    assert torch.equal(
        torch.tensor(config["trained_betas"]).double(), LITTLE_NOISE.beta[1:].float()
    )
    assert (config["variance_type"], config["clip_sample"]) == ("fixed_small", True)
    lines = [line.strip() for line in said.splitlines()[-2:]]
    picture = tmp_path / "sample.png"
    exec("\n".join(lines).replace("sample.png", str(picture)), {})
    assert picture.is_file()


def test_the_command_export_ends_in_a_sentence(tmp_path, capsys, monkeypatch):
    """Exit status 2, one line, nothing written: another network, a folder that is
    there, no checkpoint, no safetensors library; its help has the recipe for FID.
    """
    path, out = keep(tmp_path / "c.pt", ours()), tmp_path / "net"
    mlp = keep(tmp_path / "mlp.pt", MLP((3, 8, 16), width=8, depth=1, emb=8))
    (tmp_path / "taken").write_text("mine")
    cases = [
        (mlp, out, "not for MLP"),
        (path, tmp_path / "taken", "is there already"),
        (str(tmp_path / "none.pt"), out, "No such file"),
    ]
    with monkeypatch.context() as patched:
        for checkpoint, folder, message in cases:
            assert main(["export", checkpoint, "--out", str(folder)]) == 2
            said = capsys.readouterr().err.strip()
            assert message in said
            assert "\n" not in said
        patched.setitem(__import__("sys").modules, "safetensors.torch", None)
        assert main(["export", path, "--out", str(out)]) == 2
        assert "install the extra [pretrained]" in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(SystemExit) as ended:
        main(["export", "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("50000", "EMA weights", "training set"))
