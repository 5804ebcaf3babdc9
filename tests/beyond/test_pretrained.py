"""The published weights' layout: diffusers' U-Net, weight for weight, step for step.

The published files are not here, so diffusers builds the same model with random
weights; `pretrained.py` must then give the same function, whatever the weights are.
"""

import json

import pytest
import torch
from torch import Tensor, nn

from tinyddpm.beyond.pretrained import CONFIG, load_cifar10, unet_from_diffusers
from tinyddpm.sampler import p_step
from tinyddpm.schedule import linear_schedule
from tinyddpm.unet import UNet

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
    """max |theirs - ours| in units of theirs' largest number."""
    with torch.no_grad():
        theirs, ours = model(x, t).sample, net(x, t)
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

    Theirs counts from 0: its step t - 1 is our t, and the network must be asked with
    t - 1 too. Their tables are float32 (1e-7, and 1 - ᾱ_1 has lost three digits), so
    each step starts from the same x_t and is held to 1e-4 of its largest number; theirs
    keeps β̃_1 at 1e-20 where ours is 0. Run on freely, the two end within 1e-3.
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
            ours = p_step(s, x_t, t, net(x_t, t - 1), z, sigma2)
            assert (ours - theirs).abs().max() < 1e-4 * scale
            x_free = p_step(s, x_free, t, net(x_free, t - 1), z, sigma2)
            x_t = theirs
    assert (x_free - x_t).abs().max() < 1e-3 * x_t.abs().max()


def test_every_wrong_key_is_named():
    """Missing, unknown and misshapen weights stand in the error, each of them."""
    state_dict = published(**SMALL).state_dict()
    gone = ["conv_in.weight", "mid_block.attentions.0.to_v.bias"]
    for key in gone:
        del state_dict[key]
    state_dict["conv_out.bias"] = torch.zeros(4)
    state_dict["conv_norm_out.weight"] = torch.zeros(64, dtype=torch.long)
    state_dict["extra.weight"] = state_dict["down.0.conv"] = torch.zeros(1)
    with pytest.raises(ValueError, match="these weights are not of") as error:
        unet_from_diffusers(state_dict, **OUR_SMALL)
    lines = str(error.value).splitlines()[1:]
    assert lines == sorted(
        [f"missing: {key}" for key in gone]
        + ["unknown: down.0.conv", "unknown: extra.weight"]
        + ["conv_out.bias: torch.float32, shape (4,), expected floats, shape (3,)"]
        + ["conv_norm_out.weight: torch.int64, shape (64,), "
           "expected floats, shape (64,)"]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (torch.full((3,), torch.nan), "conv_out.bias: holds numbers that are not"),
        (torch.zeros(3).to_sparse(), "conv_out.bias: holds numbers that are not"),
        (torch.zeros(3, device="meta"), "or none"),
        (None, "unknown: 3"),
    ],
)
def test_weights_that_are_no_numbers_are_named(bad, said):
    """All-nan, sparse and meta tensors, and a key that is no text: one ValueError."""
    state_dict = dict(published(**SMALL).state_dict())
    state_dict |= {3: torch.zeros(1)} if bad is None else {"conv_out.bias": bad}
    with pytest.raises(ValueError, match=said):
        unet_from_diffusers(state_dict, **OUR_SMALL)


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
    config = CONFIG | {"flip_sin_to_cos": True, "norm_num_groups": 16}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="another network") as error:
        load_cifar10(tmp_path)
    assert "flip_sin_to_cos is True, expected False" in str(error.value)
    assert "norm_num_groups is 16, expected 32" in str(error.value)
    with pytest.raises(ValueError, match="another network"):  # beside a file, too
        load_cifar10(tmp_path / "diffusion_pytorch_model.bin")
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
