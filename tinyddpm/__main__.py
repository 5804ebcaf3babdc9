"""`python -m tinyddpm`: the command line, which is in `workshop/command.py`."""

import sys

from .workshop.command import main

if __name__ == "__main__":
    sys.exit(main())
