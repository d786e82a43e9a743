"""The help is documentation: every command says what it does, shows an example and lists its exit codes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmbatch.cli.app import app

README = Path(__file__).parent.parent / "README.md"
COMMANDS = ("run", "compare", "verify", "repair", "models", "ctl", "sim")


def shown(*args: str) -> str:
    result = CliRunner().invoke(app, [*args, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert result.exit_code == 0, result.output
    return result.output


def flags(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_shows_an_example_and_its_exit_codes(command: str) -> None:
    text = shown(command)
    assert f"llmbatch {command} " in text
    assert "Exit codes" in text


@pytest.mark.parametrize(("command", "code"), [("run", code) for code in (0, 1, 2, 3, 5, 6, 70, 129, 130, 143, 141)])
def test_run_explains_each_of_its_exit_codes(command: str, code: int) -> None:
    exits = shown(command).split("Exit codes:", 1)[1]
    assert re.search(rf"\b{code}\b", exits)


def test_all_commands_are_listed() -> None:
    text = shown()
    assert all(re.search(rf"^ +{command} ", text, re.MULTILINE) for command in COMMANDS)


def test_flags_in_the_examples_exist() -> None:
    known = {"--version"}.union(*(flags(shown(command)) for command in COMMANDS))
    examples = [line for line in README.read_text().splitlines() if line.lstrip("$ ").startswith("llmbatch ")]
    assert examples
    assert flags("\n".join(examples)) <= known


def test_no_key_can_be_given_on_the_command_line() -> None:
    assert not {"--api-key", "--key", "--token"} & flags(shown("run"))
