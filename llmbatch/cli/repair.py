"""``llmbatch repair``."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, cast

import typer

from llmbatch.cli.ending import Ending, answer

EPILOG = """Exit codes: 0 repaired, or nothing to repair; 2 no such file; 5 local disk; 6 a run holds it, or it is no
file of llmbatch, or one of a newer version.
"""


def repair(
    output: Annotated[str, typer.Argument(metavar="OUT", help="A results file, finished or not.")],
    drop_changed: Annotated[
        bool, typer.Option("--drop-changed", help="Move lines aside too that were changed since they were written.")
    ] = False,
) -> None:
    """Move the damaged lines of a results file to OUT.torn, and keep all others; their rows are then sent again.

    Example: llmbatch repair prompts.results.jsonl
    """
    with Ending():
        from llmbatch.files.repair import repair as repair_output
        from llmbatch.views.verified import render_repaired

        answer(render_repaired(repair_output(output, drop_changed=drop_changed)))


repair.__doc__ = inspect.cleandoc(cast(Any, repair.__doc__)) + "\n\n" + EPILOG
