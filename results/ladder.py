"""A row of the table in README.md beside this file: a training, its score, its picture.

    python results/ladder.py mnist-10 data/mnist --steps 4000 --held-out 2000

The first argument is the row's name, the others are `python -m tinyddpm train`'s. It
writes in out/ladder/NAME what the training and `examples/score.py` write, row.json, and
samples.png: generated pictures on the left, held-out ones on the right, a row for each
class where there are classes; the row is printed. bits/dim is what `python -m tinyddpm
bound` says of held-out pictures. Run it from the repository's root.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from tinyddpm.workshop.checkpoint import load_checkpoint
from tinyddpm.workshop.datasets import hold_out, read_pictures
from tinyddpm.workshop.files import write_whole
from tinyddpm.workshop.pictures import grid, save_png
from tinyddpm.workshop.progress import errors_as_sentences
from tinyddpm.workshop.readers import read_npy_images

COLUMNS, ROWS = 5, 6  # of each side of samples.png; classes are rows of their own


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the row, and of its folder")
    parser.add_argument("--scored", type=int, default=250, help="samples, at most")
    parser.add_argument("--charged", type=int, default=50, help="for bits/dim")
    parser.add_argument("--of", help="another file of pictures for bits/dim")
    args, arguments = parser.parse_known_args(argv)
    out = Path("out/ladder") / args.name
    began = processor_seconds()
    # the picture is of the samples that are scored: the training need draw few
    call("-m", "tinyddpm", "train", *arguments, "--samples", "1", "--out", str(out))
    seconds = processor_seconds() - began
    config = json.loads((out / "figures.json").read_text())["config"]
    score = ["--checkpoint", str(out / "checkpoint.pt"), "--data", config["data"]]
    score += ["--held-out", str(config["held_out"]), "--samples", str(args.scored)]
    score += ["--labels", config["labels"]] if config["labels"] else []
    score += ["--clip-x-0"] if config["clip_x_0"] else []
    call("examples/score.py", *score, "--out", str(out))
    save_png(out / "samples.png", side_by_side(out, config))
    charged = ["--data", args.of or config["data"], "--pictures", str(args.charged)]
    charged += [] if args.of else ["--held-out"]
    charged += ["--clip-x-0"] if config["clip_x_0"] else []
    told = call("-m", "tinyddpm", "bound", str(out / "checkpoint.pt"), *charged)
    found = {"name": args.name, "processor seconds": seconds} | row(out, config)
    found["bits/dim"] = [float(x) for x in told.split()[-2:]]  # ± its standard error
    found["command"] = " ".join(["python -m tinyddpm train", *arguments])
    with write_whole(out / "row.json") as file:
        file.write(json.dumps(found, indent=1).encode())
    print(markdown(found))


def markdown(found: dict[str, Any]) -> str:
    """The row as it stands in README.md."""
    nearest, accuracy = found["nearest"], found["accuracy"]
    cells = [
        found["name"],
        f"{found['processor seconds']:.0f}",
        f"{found['pictures seen']:,}",
        f"{found['L_simple']:.4f}",
        "{:.2f} ± {:.2f}".format(*found["bits/dim"]),
        f"{found['distance']:.2f} ± {found['its deviation']:.2f}",
        f"{found['floor']:.2f}",
        f"{found['distance'] / found['floor']:.1f}",
        "{samples:.0%} ({real:.0%})".format(**accuracy) if accuracy else "",
        f"{nearest['samples']:.0f} ({nearest['real']:.0f})",
        f"{found['n']}",
    ]
    return f"| {' | '.join(cells)} |"


def call(*arguments: str) -> str:
    """What Python prints, run with these arguments; ends as it does if it fails."""
    with subprocess.Popen(
        [sys.executable, "-u", *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        told = []
        for line in process.stdout:
            print(line, end="", flush=True)
            told.append(line)
    if process.returncode:
        sys.exit(process.returncode)
    return "".join(told)


def processor_seconds() -> float:
    """Of all processes that were started here and have ended, on all their threads."""
    import resource  # not on Windows

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def row(out: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The figures of the table."""
    trained = json.loads((out / "figures.json").read_text())
    scored = json.loads((out / "score.json").read_text())
    losses = torch.tensor([loss for _, loss, _ in trained["losses"]])
    last = losses[-max(1, len(losses) // 10) :]
    distance = {
        who: torch.tensor(values, dtype=torch.double)
        for who, values in scored["distance"].items()
    }
    return {
        "weights": trained["parameters"],
        "seconds": trained["seconds"],
        "pictures seen": config["steps"] * config["batch"],
        "L_simple": float(last.mean()),
        "distance": float(distance["samples"].mean()),
        "its deviation": float(distance["samples"].std()),
        "floor": float(distance["real"].mean()),
        "accuracy": scored.get("accuracy"),
        "nearest": scored["nearest"],
        "nearer than 1 %": scored["nearer than 1 %"],
        "n": scored["pictures"],
    }


def side_by_side(out: Path, config: dict[str, Any]) -> Tensor:
    """Samples on the left, held-out pictures on the right, uint8 (C, rows, pixels)."""
    checkpoint = load_checkpoint(out / "checkpoint.pt")
    C, H, W = checkpoint.shape
    v, labels, _ = read_pictures(config["data"], config["labels"], (H, W), C)
    rest = hold_out(config["held_out"], len(v))[1]
    rest = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(0))]
    made, held = read_npy_images(out / "samples.npy"), v[rest]
    classes = (checkpoint.network or ("", {}))[1].get("num_classes")
    if classes and labels is not None:  # samples are of the classes in turn
        c = labels[rest]
        held = torch.cat([held[c == k][:COLUMNS] for k in range(classes)])
        made = torch.cat([made[k::classes][:COLUMNS] for k in range(classes)])
    scale = max(1, 48 // max(H, W))
    sides = [
        grid(x[: COLUMNS * (classes or ROWS)], COLUMNS, scale) for x in (made, held)
    ]
    return torch.cat([pad(sides[0], (0, 16), value=255), sides[1]], 2)


if __name__ == "__main__":
    with errors_as_sentences():
        main(sys.argv[1:])
