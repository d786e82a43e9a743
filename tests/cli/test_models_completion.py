"""What the shell offers at TAB, asked as the shells ask."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmbatch.cli import completion
from llmbatch.cli.app import app


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "LLMBATCH_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def offered(words: str, shell: str = "bash") -> list[str]:
    """What follows the last word of ``words``; a blank at the end asks for a new one."""
    if shell == "bash":
        asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    else:
        asked = {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = subprocess.run(
        [sys.executable, "-m", "llmbatch"],
        env={**os.environ, "_LLMBATCH_COMPLETE": f"complete_{shell}", **asked},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_services_then_models_after_the_list_was_shown_once() -> None:
    assert {"openai/", "anthropic/", "gemini/", "sim/"} <= set(offered("llmbatch run in.jsonl -m "))
    assert offered("llmbatch run -m anth") == ["anthropic/"]
    assert offered("llmbatch run -m openai/gpt-4.1-m") == []
    assert CliRunner().invoke(app, ["models", "no-such-model"]).exit_code == 1
    assert offered("llmbatch run -m openai/gpt-4.1-m") == ["openai/gpt-4.1-mini"]
    assert offered("llmbatch run --model openai/gpt-4.1-m", "fish") == ["openai/gpt-4.1-mini"]
    assert {"anthropic/", "anthropic/claude-sonnet-4-5"} <= set(offered("llmbatch run -m anth"))


@pytest.mark.parametrize(
    ("words", "some"),
    [
        ("llmbatch run --api openai-", {"openai-chat", "openai-responses", "openai-embeddings"}),
        ("llmbatch run --input-format ", {"auto", "jsonl", "text"}),
        ("llmbatch run --progress j", {"json"}),
        ("llmbatch run --profile c", {"cheap"}),
        ("llmbatch run --env-", {"--env-file"}),
        ("llmbatch mod", {"models"}),
        ("llmbatch ctl out.jsonl ", {"status", "set", "pause", "resume", "drain"}),
        ("llmbatch ctl out.jsonl re", {"resume"}),
    ],
)
def test_values_of_other_options(home: Path, words: str, some: set[str]) -> None:
    (home / "llmbatch.toml").write_text("[profiles.cheap]\nrpm = 1\n[profiles.fast]\nrpm = 9\n")
    assert some <= set(offered(words))
    assert "fast" not in offered("llmbatch run --profile c")


def test_a_file_with_a_fault_in_it_offers_nothing_and_says_nothing(home: Path) -> None:
    (home / "llmbatch.toml").write_text("nonsense")
    assert completion.profiles("") == []


@pytest.mark.parametrize("cache", [b"\xff\xfe", None])
def test_a_cache_that_can_not_be_read_offers_nothing(home: Path, cache: bytes | None) -> None:
    path = home / ".cache" / "llmbatch" / "models.txt"
    path.parent.mkdir(parents=True)
    if cache is None:
        path.mkdir()
    else:
        path.write_bytes(cache)
    assert completion.models("openai/") == []
    completion.remember_models(["openai/x", "openai/with:colon"])
    assert completion.models("openai/") == ([] if cache is None else ["openai/x"])


def test_tab_does_not_import_the_price_list() -> None:
    script = (
        "import sys; from llmbatch.cli import completion; completion.models('openai/'); completion.models('')\n"
        "assert not [name for name in sys.modules if name.startswith(('genai_prices', 'aiohttp', 'rich'))]"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_is_shown(monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    done = subprocess.run(
        [sys.executable, "-m", "llmbatch", "--show-completion", shell], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "_LLMBATCH_COMPLETE" in done.stdout
