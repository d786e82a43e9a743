"""How every command ends: what went wrong in one line on standard error, and an exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import TracebackType

import typer

from llmbatch.cli.scrub import scrubbed
from llmbatch.errors import LlmbatchError, StorageError

INTERRUPTED = 130
BUG = 70


class Ending:
    """Around the work of a command, which sets ``code``; leaves with it, or with the code of the error.

    ``tell`` gets the code and the words of what went wrong, as soon as there is somebody to tell.
    """

    def __init__(self) -> None:
        self.code = 0
        self.tell: Callable[[int, str], None] | None = None

    def __enter__(self) -> Ending:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as __main__ left it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if error is not None and not self._explained(error):
                return
        finally:
            _let_go_of_streams()
        raise typer.Exit(self.code) from None

    def _explained(self, error: BaseException) -> bool:
        if isinstance(error, LlmbatchError):
            complain(str(error))
            return self._failed(error.exit_code, str(error))
        if isinstance(error, KeyboardInterrupt):  # before the run listens to signals, or after
            return self._failed(INTERRUPTED, "interrupted")
        if isinstance(error, Exception):
            trace = "".join(traceback.format_exception(error))
            complain("a bug; please report it. What was done is safe in the results", trace)
            return self._failed(BUG, "a bug; please report it")
        return False

    def _failed(self, code: int, why: str) -> bool:
        self.code = code
        if self.tell is not None:
            self.tell(code, why)
        return True


def answer(given: str | bytes) -> None:
    """Write what was asked for to standard output. Nothing is wrong with a reader that wants no more of it.

    Text is written as the terminal wants it, bytes as they are. Raises StorageError if it can not be written.
    """
    data = given.encode(sys.stdout.encoding or "utf-8", "backslashreplace") if isinstance(given, str) else given
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    except BrokenPipeError:
        return
    except OSError as error:
        raise StorageError(f"cannot write to standard output: {error.strerror}") from error


def complain(text: str, trace: str = "") -> None:
    """On one line, but for the ``trace`` of a bug; names of files and what servers say are shown, not obeyed."""
    from llmbatch.views.safe import safe

    lines = [safe(line) for line in (f"llmbatch: {text}", *trace.splitlines())]
    with contextlib.suppress(OSError):
        typer.echo(scrubbed("\n".join(lines)), err=True)


def _let_go_of_streams() -> None:
    """Whoever read them may be gone: the interpreter's last flush must not turn that into exit code 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
