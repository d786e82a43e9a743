"""Finding the run of an output, for ``llmbatch ctl``: a connection to it, or what is there instead."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import orjson

from llmbatch.errors import OptionsError, OutputRefused
from llmbatch.files.control_socket import SUFFIX, connect, places
from llmbatch.files.export import LINES_SUFFIX
from llmbatch.files.lock import holder
from llmbatch.files.paths import OutputPaths
from llmbatch.files.spill import state_directory
from llmbatch.options import STDIO

# What people name who look into the directory instead of at their command.
_BESIDE = (".partial", ".lock", SUFFIX)
_FIRST_LINE_BYTES = 1 << 20
_NOBODY_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ECONNREFUSED, errno.ENAMETOOLONG)


class NoRun(Exception):
    """Nobody is there to be asked. The text says where it was looked, and what is there instead."""


def reach(name: str, environ: Mapping[str, str], timeout_s: float) -> socket.socket:
    """A connection to the run of ``name``: its output, one of the files beside it, or its socket.

    Raises NoRun, OutputRefused for a run that is another user's or can not be asked, OptionsError for standard output.
    """
    if name == STDIO:
        raise OptionsError(_of_streams(state_directory(environ)))
    try:
        return _reached(name, environ, timeout_s)
    except PermissionError as error:
        raise OutputRefused(f"{error.filename or name}: {error.strerror}; only its owner can ask a run") from None
    except OSError as error:
        raise OptionsError(f"{name}: {error.strerror or error}") from error


def _reached(name: str, environ: Mapping[str, str], timeout_s: float) -> socket.socket:
    looked = _sockets(name, environ)
    for path in looked:
        try:
            return connect(path, timeout_s)
        except TimeoutError:
            raise OutputRefused(f"the run at {path} opens to nobody; is it stopped, by Ctrl-Z perhaps?") from None
        except OSError as error:
            if error.errno not in _NOBODY_THERE:
                raise
    raise NoRun(f"no run of {name}: {_instead(name)}; looked for {' and '.join(map(str, looked))}")


def _sockets(name: str, environ: Mapping[str, str]) -> list[Path]:
    if Path(name).is_socket():
        return [Path(name)]
    return list(dict.fromkeys(place for paths in _outputs(name) for place in places(paths.ctl, environ)))


def _outputs(name: str) -> Iterator[OutputPaths]:
    """What may be meant: the output of that name, or that which the file belongs to; and the lines behind a table."""
    names = [name, *(name.removesuffix(suffix) for suffix in _BESIDE if name.endswith(suffix))]
    for one in names:
        yield OutputPaths.of(one)
    for one in names:
        if not one.endswith(LINES_SUFFIX):
            yield OutputPaths.of(one + LINES_SUFFIX)


def _instead(name: str) -> str:
    """What is known of the output. Raises OutputRefused if a run holds it all the same."""
    outputs = list(_outputs(name))
    for paths in outputs:
        if (signature := holder(paths)) is not None:
            raise OutputRefused(
                f"a run holds {paths.out} ({signature}), but has no socket: it begins or ends at this moment, or could "
                f"have none. kill -USR1 {signature.pid} makes it print its status, kill {signature.pid} drains it"
            )
    for paths in outputs:
        if paths.partial.exists():
            return f"{paths.partial} is unfinished, and the same llmbatch run command continues it"
    for paths in outputs:
        if _holds_results(paths.out):
            return f"{paths.out} is complete"
    return "nothing is known of it"


def _holds_results(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            line = orjson.loads(file.readline(_FIRST_LINE_BYTES))
    except (OSError, ValueError):
        return False
    return isinstance(line, dict) and "row" in line and "status" in line


def _of_streams(state: Path | None) -> str:
    found = [] if state is None else sorted(os.fspath(path) for path in state.glob(f"*{SUFFIX}") if path.is_socket())
    there = f"; in {state} there are {', '.join(found)}" if found else ""
    return f"standard output has no name of its own: give the socket of the run, which it tells with -v{there}"
