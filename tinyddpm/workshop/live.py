"""Writes a page on which Algorithm 2 runs in the browser, with a trained toy network.

The page is `live.html` of this folder with the schedule and the weights put into it.
"""

import base64
import json
import struct
from pathlib import Path

from torch import nn

from ..mlp import MLP
from ..schedule import Schedule
from .files import write_whole

TEMPLATE = Path(__file__).with_name("live.html")
PLACE = "{{network}}"  # where the numbers go


def save_live(path: str | Path, s: Schedule, net: nn.Module) -> None:
    """Writes one file that opens from disk and asks for no other.

    It holds β as JSON, which keeps every digit, and the weights as little-endian
    float32 in base64, in the order of the state_dict.

    Args:
        path: an .html file.
        s: the schedule that the network was trained with.
        net: an MLP for colour gradients (3, H, W); the page knows no other data.
    """
    if not isinstance(net, MLP) or len(net.shape) != 3 or net.shape[0] != 3:
        given = getattr(net, "shape", None)
        raise ValueError(
            f"the page shows an MLP of pictures (3, H, W), got {type(net).__name__} of "
            f"shape {given}; train_gradients.py trains one"
        )
    weights = {name: w.float().cpu() for name, w in net.state_dict().items()}
    numbers = [x for w in weights.values() for x in w.flatten().tolist()]
    packed = struct.pack(f"<{len(numbers)}f", *numbers)
    network = {
        "shape": list(net.shape),
        "emb": net.emb,
        "depth": len(net.dense),
        "beta": s.beta.tolist(),
        "weights": {name: list(w.shape) for name, w in weights.items()},
        "float32": base64.b64encode(packed).decode(),
    }
    page = TEMPLATE.read_text("utf-8").replace(PLACE, json.dumps(network))
    with write_whole(path) as file:
        file.write(page.encode())
