"""The console script. What costs time to import is imported when it is needed: ``--version`` needs nothing."""

from __future__ import annotations

import os
import sys

from llmbatch._version import __version__


def main() -> None:
    """Run the command line and exit."""
    _open_missing_descriptors()
    if sys.argv[1:] in (["--version"], ["-V"]):
        sys.stdout.write(f"llmbatch {__version__}\n")
        return
    from llmbatch.cli.app import app

    app(prog_name="llmbatch")


def _open_missing_descriptors() -> None:
    """A descriptor 0, 1 or 2 that was closed by the caller would be given to the first file we open."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one


if __name__ == "__main__":
    main()
