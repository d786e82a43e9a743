"""Options become what typer's own adapters make of them; these are imported only where they are needed."""

import subprocess
import sys
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from llmbatch.cli.adapters import QuickCommand

VALUES = [
    "7",
    "-7",
    "+7",
    "007",
    "1_0",
    " 7",
    "7.5",
    "7.",
    ".5",
    "1e3",
    "inf",
    "nan",
    "99999999999",
    "٣",
    "one",
    "ONE",
    "",
]


def told(quick: bool, annotation: Any, default: Any, args: list[str], **limits: int) -> tuple[int, Any, str]:
    """Exit code, value and output of a command with one option."""
    app, got = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False), []

    def command(option: Annotated[annotation, typer.Option(**limits)] = default) -> None:  # type: ignore[valid-type]
        got.append(option)

    app.command(cls=QuickCommand if quick else None)(command)
    done = CliRunner().invoke(app, args)
    return done.exit_code, repr(got), done.output


@pytest.mark.parametrize(
    ("annotation", "default"),
    [
        (str, "text"),
        (str | None, None),
        (int, 3),
        (int | None, None),
        (float | None, None),
        (float, 2),
        (bool, False),
        (Literal["one", "two"], "one"),
        (list[str] | None, None),
        (list[int] | None, None),
    ],
)
def test_every_value_becomes_what_typer_makes_of_it(annotation: Any, default: Any) -> None:
    lines = [[], *([f"--option={value}"] for value in VALUES), ["--option=one", "--option=7"]]
    for args in lines if annotation is not bool else [[], ["--option"], ["--no-option"]]:
        assert told(True, annotation, default, args) == told(False, annotation, default, args), args


def test_a_number_with_limits_keeps_them() -> None:
    for args in ([], ["--option=7"], ["--option=9"]):
        assert told(True, int, 3, args, min=1, max=8) == told(False, int, 3, args, min=1, max=8), args


def test_a_plain_command_line_imports_no_pydantic() -> None:
    words = [
        "run",
        "missing.jsonl",
        "-m",
        "sim/demo",
        "-c",
        "10",
        "--rpm",
        "600",
        "--max-attempts",
        "2",
        "--progress",
        "none",
    ]
    script = (
        f"import sys; sys.argv = ['llmbatch', *{words!r}]\n"
        "import llmbatch.cli.app\n"
        "try: llmbatch.cli.app.app()\n"
        "except SystemExit as done: assert done.code == 2, done.code\n"
        "assert 'llmbatch.cli.execute' in sys.modules and 'pydantic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=60)
