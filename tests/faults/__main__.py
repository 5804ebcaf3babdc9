"""python -m tests.faults [kills|files|servers ...] [--seed N] [--kills N] [--rounds N]

With no name, all three. It takes some minutes of one core, and prints a table of each;
the exit status is 1 if anything ended otherwise than it should.
"""

import argparse
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "agg")
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # threads do not outlive a fork
    os.environ[name] = "1"

parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
parser.add_argument("which", nargs="*", help="kills, files, servers; all by default")
parser.add_argument("--seed", type=int, default=0, help="of what is done, and when")
parser.add_argument("--kills", type=int, default=60)
parser.add_argument("--rounds", type=int, default=1, help="of some 400 files each")
args = parser.parse_args()
if wrong := set(args.which) - {"kills", "files", "servers"}:
    parser.error(f"there are kills, files and servers, got {sorted(wrong)}")

import matplotlib.figure  # noqa: E402, F401  # imported once, not by every process
import torch  # noqa: E402
import torch._dynamo  # noqa: E402
import tqdm  # noqa: E402, F401

from . import files, kills, servers  # noqa: E402

torch.set_num_threads(1)
warnings.simplefilter("ignore")  # T is small: x_T keeps some signal
good = True
with tempfile.TemporaryDirectory(prefix="faults ") as place:
    for name in args.which or ("kills", "files", "servers"):
        (folder := Path(place) / name).mkdir()
        if name == "kills":
            good &= kills.main(args.kills, args.seed, folder)
        elif name == "files":
            good &= files.main(args.rounds, args.seed, folder)
        else:
            good &= servers.main(args.seed, folder)
sys.exit(0 if good else 1)
