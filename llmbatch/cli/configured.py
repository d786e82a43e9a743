"""A command whose options may also stand in the environment and in a file; ``settings`` says which place wins.

What reads files is imported when a command runs, not for ``--help``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from llmbatch.cli.adapters import QuickCommand
from llmbatch.cli.ending import complain
from llmbatch.errors import LlmbatchError


class ConfiguredCommand(QuickCommand):
    """A command whose options may also stand in the environment and in a file."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # click's Context
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        typed, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        if typed.get("help"):
            return super().parse_args(ctx, args)
        given = {name: value for name, value in typed.items() if value is not None}
        from llmbatch.cli.options_table import options_of
        from llmbatch.cli.settings import BY_NAME, resolve

        assert self.callback is not None, "a command does something"
        try:
            settled = resolve(options_of(self.callback), given)
        except LlmbatchError as error:
            complain(str(error))
            raise typer.Exit(error.exit_code) from None
        ctx.default_map = dict(settled.values)
        rest = super().parse_args(ctx, args)
        for name in BY_NAME:
            if name in given:
                ctx.params[name] = [*settled.values.get(name, ()), *given[name]]
        if not given.get("quiet"):
            _tell(settled.told, as_json=ctx.params.get("progress") == "json")
        return rest


def _tell(lines: Sequence[str], *, as_json: bool) -> None:
    from llmbatch.views.json_lines import JsonLines
    from llmbatch.views.printer import Sink
    from llmbatch.views.safe import safe

    for line in map(safe, lines):
        if as_json:
            JsonLines(sys.stderr).note(line)
        else:
            Sink(sys.stderr).line(f"llmbatch: {line}")
