"""`python -m tinyddpm`: the command line, which is in `workshop/command.py`."""

from .workshop.command import main

if __name__ == "__main__":
    raise SystemExit(main())
