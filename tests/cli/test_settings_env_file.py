"""``--env-file``: variables as if the environment had them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmbatch.cli import execute
from llmbatch.cli.app import app
from llmbatch.cli.env_file import load_env_file
from llmbatch.errors import OptionsError

SECRET = "canary-3f1c9d7e2b"


def written(path: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        ("A=1\nB = two words\n", {"A": "1", "B": "two words"}),
        ("export A=1", {"A": "1"}),
        ("# a comment\n\nA=1 # another\n", {"A": "1"}),
        ("A='x # y'\nB=\"x\\ny\"\nC='x\\ny'", {"A": "x # y", "B": "x\ny", "C": "x\\ny"}),
        ("A=sk#1=2", {"A": "sk#1=2"}),
        ("A=${HOME}\nB=$HOME", {"A": "${HOME}", "B": "$HOME"}),
        ("A=", {"A": ""}),
        ("A=1\nA=2", {"A": "2"}),
        ("\ufeffA=1\r\nB=2\r\n", {"A": "1", "B": "2"}),
        ("", {}),
    ],
)
def test_lines(tmp_path: Path, text: str, variables: dict[str, str]) -> None:
    environment: dict[str, str] = {}
    load_env_file(written(tmp_path / "env", text, 0o644), environment)
    assert environment == variables


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    environment = {"A": "mine"}
    load_env_file(written(tmp_path / "env", "A=file\nB=file\n"), environment)
    assert environment == {"A": "mine", "B": "file"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"A=1\n{SECRET}\n", 2),
        (f"A=1\n\n\nB='{SECRET}\n", 4),
        (f"={SECRET}", 1),
        (f"{SECRET}=1", 1),
        (f"1A={SECRET}", 1),
        ("A B=1", 1),
    ],
)
def test_what_is_no_variable_is_refused_and_not_repeated(tmp_path: Path, text: str, line: int) -> None:
    environment: dict[str, str] = {}
    with pytest.raises(OptionsError, match=f"env, line {line}: ") as raised:
        load_env_file(written(tmp_path / "env", text), environment)
    assert SECRET not in str(raised.value) and not environment


@pytest.mark.parametrize("data", [b"A=\xff", b"A=a\0b", "A=1".encode("utf-16")])
def test_what_is_no_text_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(OptionsError, match="not UTF-8 text") as raised:
        load_env_file(written(tmp_path / "env", data), {})
    assert raised.value.__cause__ is None


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "HF_TOKEN", "my_key", "CLIENT_SECRET", "KEY"])
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o602])
def test_a_file_with_a_key_is_its_owners_alone(tmp_path: Path, name: str, mode: int) -> None:
    environment: dict[str, str] = {}
    path = written(tmp_path / "env", f"{name}={SECRET}\n", mode)
    with pytest.raises(OptionsError, match="chmod 600") as raised:
        load_env_file(path, environment)
    assert SECRET not in str(raised.value) and not environment


def test_a_file_with_a_key_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "env", "OPENAI_API_KEY=x")
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(OptionsError, match="another user"):
        load_env_file(path, {})


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(OptionsError, match=r"--env-file no/env: No such file"):
        load_env_file(Path("no/env"), {})


def test_it_is_read_before_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float | None, str | None]] = []

    def note(options: object, _: object) -> int:
        seen.append((getattr(options, "rpm", None), os.environ.get("OPENAI_API_KEY")))
        return 0

    monkeypatch.setattr(execute, "run_command", note)
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "LLMBATCH_RPM", "LLMBATCH_PROFILE"):
        monkeypatch.setenv(name, "")  # so that it is as before when the test is over
        monkeypatch.delenv(name)
    (tmp_path / "in.jsonl").write_text('"a"\n')
    (tmp_path / "llmbatch.toml").write_text('[profiles.p]\nmodel = "sim/x"\n')
    env = written(tmp_path / ".env", f"OPENAI_API_KEY={SECRET}\nLLMBATCH_RPM=7\nLLMBATCH_PROFILE=p\n")
    done = CliRunner().invoke(app, ["run", "in.jsonl", "--env-file", str(env)])
    assert done.exit_code == 0, done.output
    assert seen == [(7.0, SECRET)]
    assert SECRET not in done.output
