"""Which model answered, and what else is odd about a good answer."""

from __future__ import annotations

import pytest

from llmbatch.records import Reply, Usage
from llmbatch.rules.flags import flags_of, same_model


@pytest.mark.parametrize(
    ("asked", "answered", "same"),
    [
        ("gpt-4.1-mini", "gpt-4.1-mini", True),
        ("gpt-4.1-mini", "gpt-4.1-mini-2025-04-14", True),
        ("gpt-4", "gpt-4-0613", True),
        ("claude-3-haiku", "claude-3-haiku-20240307", True),
        ("claude-3-5-sonnet-latest", "claude-3-5-sonnet-20241022", True),
        ("gemini-2.0-flash", "gemini-2.0-flash-001", True),
        ("gemini-2.5-flash", "models/gemini-2.5-flash-preview-05-20", True),
        ("claude-sonnet-4", "claude-sonnet-4@20250514", True),
        ("openai/gpt-4o", "gpt-4o-2024-08-06", True),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b-instruct", True),
        ("deepseek/deepseek-r1:free", "deepseek/deepseek-r1", True),
        ("llama3.2", "llama3.2:latest", True),
        ("llama3.2", "/models/llama3.2.gguf", True),
        ("", "gpt-4o", True),
        ("gpt-4o", "llama", False),
        ("gpt-4o", "gpt-4o-mini", False),
        ("gpt-4o", "gpt-4o-mini-2024-07-18", False),
        ("gpt-4o-mini", "gpt-4o", False),
        ("gpt-4.1", "gpt-4", False),
        ("gpt-4-0314", "gpt-4-0613", False),
        ("gpt-5", "gpt-5.2-2025-12-11", False),
        ("ft:gpt-4o:acme", "gpt-4o", False),
        ("ft:gpt-4o:acme::a1", "ft:gpt-4o:acme::a1", True),
        ("ft:gpt-4o:acme::a1", "ft:gpt-4o:acme::b2", False),
        ("claude-haiku", "claude-haiku-4-5", False),
    ],
)
def test_a_dated_version_is_the_model_asked_for_and_another_model_is_not(asked: str, answered: str, same: bool) -> None:
    assert same_model(asked, answered) is same


def reply(output: object = "x", model: str | None = "m", choices: int = 1, tools: list[object] | None = None) -> Reply:
    return Reply(output, "stop", model, Usage(), tool_calls=tools, choices=choices)


@pytest.mark.parametrize(
    ("answer", "flags"),
    [
        (reply(), ()),
        (reply(model=None), ()),
        (reply(""), ("empty",)),
        (reply("", tools=[{"id": "a"}]), ()),
        (reply(choices=3), ("choices_mismatch",)),
        (reply("", "other", 2), ("empty", "choices_mismatch", "model_mismatch")),
    ],
)
def test_flags(answer: Reply, flags: tuple[str, ...]) -> None:
    assert flags_of(answer, "m") == flags
    assert "model_mismatch" not in flags_of(answer, None)
