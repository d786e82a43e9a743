"""The console script. What costs time to import is imported when it is needed: ``--version`` needs nothing."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys

from llmbatch._version import __version__


def main() -> None:
    """Run the command line and exit."""
    _open_missing_descriptors()
    if sys.argv[1:] in (["--version"], ["-V"]):
        sys.stdout.write(f"llmbatch {__version__}\n")
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the command listens: no traceback of an import
    gc.set_threshold(50_000)  # importing makes hundreds of thousands of objects and no garbage: 20 ms
    from llmbatch.cli.app import app
    from llmbatch.cli.scrub import screen_streams

    screen_streams()
    try:
        app(prog_name="llmbatch")
    except SystemExit as done:
        _leave(done.code)


def _leave(code: object) -> None:
    """Exit without taking the interpreter down piece by piece: nothing is left to do, and it takes 80 ms."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if isinstance(code, str):
        raise SystemExit(code)
    os._exit(code if isinstance(code, int) else 0)


def _open_missing_descriptors() -> None:
    """A descriptor 0, 1 or 2 that was closed by the caller would be given to the first file we open.

    Results must not vanish in a standard output that is not there, so writing to it fails.
    """
    for number, name, flags in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # gets the lowest free number, which is this one
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


if __name__ == "__main__":
    main()
