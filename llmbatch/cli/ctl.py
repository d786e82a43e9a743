"""``llmbatch ctl``."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from llmbatch.cli.ending import Ending, answer, complain
from llmbatch.errors import OptionsError, OutputRefused

if TYPE_CHECKING:
    import socket

EPILOG = """status: how far it is, how fast, what limits it. set: rpm, tpm, input-tpm, output-tpm, concurrency (or auto)
and max-concurrency; none takes a limit away. pause: no new requests, what is in flight goes on. resume: go on. drain:
end the run as SIGTERM does; the same llmbatch run command continues.

A run is found at OUT.ctl beside its output. One that writes to standard output tells the path of its socket with -v.

Examples:

  llmbatch ctl prompts.results.jsonl

  llmbatch ctl prompts.results.jsonl set rpm=300 concurrency=auto

Exit codes: 0 done; 1 no run is there; 2 bad usage, or the run refused it; 5 standard output can not be written; 6 a run
is there, but it is another user's, or does not answer.
"""
NO_RUN = 1
# The run answers in milliseconds; its loop may stand still for a while, in a hook or on a busy machine.
ANSWER_S = 10.0

Action = Literal["status", "set", "pause", "resume", "drain"]


def ctl(
    output: Annotated[str, typer.Argument(metavar="OUT", help="The output of the run, or its socket.")],
    action: Annotated[Action, typer.Argument(help="What to do.", show_default=True)] = "status",
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="For set: the new limits.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Ask a run that is under way how it is, or steer it."""
    with Ending() as ending:
        import os

        from llmbatch.files.reach import NoRun, reach
        from llmbatch.files.results import dump_line
        from llmbatch.rules.control import parse_answer
        from llmbatch.views.ctl import ctl_json, render_answer

        request = _request(action, settings or [])
        try:
            connection = reach(output, os.environ, ANSWER_S)
        except NoRun as none:
            complain(str(none))
            ending.code = NO_RUN
        else:
            with connection:
                found = parse_answer(_answer_to(request, connection))
            answer(dump_line(ctl_json(found)) if json else render_answer(action, found))


def _request(action: Action, settings: list[str]) -> bytes:
    from llmbatch.rules.control import Asked, limits_of, request_line

    if settings and action != "set":
        raise OptionsError(f"{settings[0]!r} belongs to set: llmbatch ctl OUT set {settings[0]}")
    return request_line(Asked(action, limits_of(settings) if action == "set" else {}))


def _answer_to(request: bytes, connection: socket.socket) -> bytes:
    from llmbatch.files.control_socket import exchange
    from llmbatch.rules.control import MAX_ANSWER_BYTES

    try:
        line = exchange(connection, request, MAX_ANSWER_BYTES)
    except TimeoutError:
        raise OutputRefused(
            f"the run does not answer within {ANSWER_S:g} s; is it stopped, by Ctrl-Z perhaps?"
        ) from None
    except OSError:
        line = b""
    if not line:
        raise OutputRefused("the run hung up without an answer: it ended just now, or too many ask it at once")
    return line


ctl.__doc__ = inspect.cleandoc(cast(Any, ctl.__doc__)) + "\n\n" + EPILOG
