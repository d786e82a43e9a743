"""The commands. Each module imports what it needs inside its command, so that ``--help`` is quick."""

from __future__ import annotations

import typer

from llmbatch._version import __version__
from llmbatch.cli.adapters import QuickCommand, QuickGroup
from llmbatch.cli.compare import compare
from llmbatch.cli.configured import ConfiguredCommand
from llmbatch.cli.ctl import ctl
from llmbatch.cli.models import models
from llmbatch.cli.repair import repair
from llmbatch.cli.run import run
from llmbatch.cli.simulate import sim
from llmbatch.cli.verify import verify

app = typer.Typer(
    name="llmbatch",
    cls=QuickGroup,
    help="Run a file of prompts through any LLM API, as fast as the limits allow, "
    "and never lose or pay twice for an answer.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"llmbatch {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", "-V", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Common to all commands."""


app.command("run", cls=ConfiguredCommand)(run)
app.command("compare", cls=QuickCommand)(compare)
app.command("models", cls=QuickCommand)(models)
app.command("verify", cls=QuickCommand)(verify)
app.command("repair", cls=QuickCommand)(repair)
app.command("ctl", cls=QuickCommand)(ctl)
app.command("sim", cls=QuickCommand)(sim)
