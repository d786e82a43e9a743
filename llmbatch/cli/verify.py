"""``llmbatch verify``."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, Literal, cast

import typer

from llmbatch.cli.ending import Ending, answer

EPILOG = """Exit codes: 0 nothing is wrong; 1 something is; 2 no such file; 5 local disk; 6 it is no file of llmbatch,
or one of a newer version.
"""

Format = Literal["auto", "jsonl", "text", "csv", "tsv", "parquet"]


def verify(
    output: Annotated[str, typer.Argument(metavar="OUT", help="A results file, finished or not.")],
    input_: Annotated[
        str | None,
        typer.Option("-i", "--input", metavar="INPUT", help="Look also whether every row of it has its line."),
    ] = None,
    input_format: Annotated[Format, typer.Option(help="Default: by suffix, then by the first line.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Is every line of a results file as it was written, and is none missing? Changes nothing, and waits for nobody.

    Example: llmbatch verify prompts.results.jsonl --input prompts.jsonl
    """
    with Ending() as ending:
        import asyncio

        from llmbatch.files.results import dump_line
        from llmbatch.files.verify import verify as verify_output
        from llmbatch.views.verified import exit_code, render_verified, verified_json

        found = asyncio.run(verify_output(output, input_, input_format))
        answer(dump_line(verified_json(found)) if json else render_verified(found))
        ending.code = exit_code(found)


verify.__doc__ = inspect.cleandoc(cast(Any, verify.__doc__)) + "\n\n" + EPILOG
