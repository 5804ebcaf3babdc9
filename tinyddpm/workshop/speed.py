"""What makes a network fast: bfloat16, compiling, and layers equal to the plain ones.

`faster` gives a twin of a network that shares its weights and does the same, sooner.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Upsample


def unwrapped(net: nn.Module) -> nn.Module:
    """The network inside what torch.compile, DataParallel or DDP made of it."""
    while True:
        inside = getattr(net, "_orig_mod", None)
        if isinstance(net, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inside = net.module
        if not isinstance(inside, nn.Module):
            return net
        net = inside


def fast_layers(net: nn.Module) -> nn.Module:
    """A twin of the network that shares its weights, with faster layers in it.

    The twin's parameters and buffers are the network's own: training the one trains the
    other. Other attributes and its training flags are copied. In place of each plain
    `Upsample` and `nn.Dropout` it has a module that equals it.
    """
    twins: dict[nn.Module, nn.Module] = {}

    def twin(module: nn.Module) -> nn.Module:
        if module not in twins:
            made = object.__new__(type(module))  # copying asks modules that refuse it
            made.__dict__ = dict(module.__dict__)
            children = module._modules.items()
            made._modules = {
                name: None if child is None else twin(child) for name, child in children
            }
            hooked = made._forward_hooks or made._forward_pre_hooks
            if type(made) is Upsample and not hooked:
                made = FastUpsample(made)
            elif type(made) is nn.Dropout and not (made.inplace or hooked):
                made = FastDropout(made.p)
            made.training = module.training
            twins[module] = made
        return twins[module]

    return twin(net)


def faster(
    net: nn.Module,
    bf16: bool | None = None,
    channels_last: bool | None = None,
    compiled: bool | None = None,
    together: bool = False,
) -> nn.Module:
    """A twin of `net` that shares its weights and computes the same, sooner.

    Args:
        net: the network; one that is compiled or wrapped already is unwrapped first.
        bf16: whether matrix products are in bfloat16; None as `casts` decides.
        channels_last: whether the weights have their channels last in memory; None
            leaves them.
        compiled: by torch.compile; None does so on a GPU. On a CPU compiling takes
            minutes and was not seen to pay.
        together: whether several processes train it: their gradients are then averaged
            while the backward pass makes them.
    """
    if compiled is None and hasattr(net, "_orig_mod"):
        compiled = True
    net = unwrapped(net)
    device = next(net.parameters()).device
    cuda = device.type == "cuda"
    if channels_last is not None:
        order = torch.channels_last if channels_last else torch.contiguous_format
        net.to(memory_format=order)  # type: ignore[call-overload]
    twin = fast_layers(net)
    if together:
        gpus = [device] if cuda else None
        twin = nn.parallel.DistributedDataParallel(twin, device_ids=gpus)
    if compiled or (compiled is None and cuda):
        twin = torch.compile(twin)  # type: ignore[assignment]
    # Not entered where it would do nothing: that costs a toy 2 % of its step.
    return InBfloat16(twin) if casts(device, bf16) else twin


class InBfloat16(nn.Module):
    """A network whose matrix products are in bfloat16."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.num_classes = getattr(net, "num_classes", None)  # guidance asks for it
        self.train(net.training)

    def forward(self, x: Tensor, *others: Tensor, **named: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            eps_hat: Tensor = self.net(x, *others, **named)
        return eps_hat


def casts(device: torch.device, bf16: bool | None) -> bool:
    """Whether products are in bfloat16: if `bf16`, or if it is None on a GPU with them.

    On a CPU float32 unless asked for: which CPUs gain differs (with AVX512_BF16 the
    U-Net trains 1.7 times as fast, without it is slower), and so would the weights.
    """
    if bf16 is not None or device.type != "cuda":
        return bool(bf16)
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


class FastDropout(nn.Dropout):
    """nn.Dropout; on a CPU with four coins from each 64-bit random number.

    There torch tosses one coin after the other on one core, a twelfth of a training
    step's time. So p, and with it the scale 1/(1-p), is rounded to a multiple of 2⁻¹⁶.
    There the masks can come from a generator of their own: torch's is every thread's.
    """

    generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        drop = round(self.p * 2**16)
        slow = x.device.type == "cpu" and not torch.compiler.is_compiling()
        if not (slow and self.training and 0 < drop < 2**16):
            return super().forward(x)
        n = x.numel()
        coins = torch.empty(-(-n // 4), dtype=torch.long)
        coins.random_(-(2**63), None, generator=self.generator)
        keep = torch.empty_like(x)  # 1 or 0, as x lies in memory
        coins = coins.view(torch.int16)[:n].as_strided(x.shape, keep.stride())
        torch.ge(coins, drop - 2**15, out=keep)
        return x * keep.mul_(2**16 / (2**16 - drop))


class FastUpsample(nn.Module):
    """conv(interpolate(x, scale_factor=2)): nearest neighbour, then a 3x3 convolution.

    This is done as one transposed convolution of stride 2. In each direction a pixel of
    x stands for two, which meet the weights a, b, c one after the other: their sums
    c, b + c, a + b, a are the weights with which x adds to four pixels of the result.
    Along both, 16 products for what takes 36 one by one.
    """

    def __init__(self, plain: Upsample) -> None:
        super().__init__()
        self.conv = plain.conv

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        weight = self.conv.weight.transpose(0, 1)  # (in, out, 3, 3)
        for direction in (2, 3):
            a, b, c = weight.unbind(direction)
            weight = torch.stack([c, b + c, a + b, a], direction)
        return F.conv_transpose2d(x, weight, self.conv.bias, stride=2, padding=1)
