"""Marks for the provider's cache: where rows of one kind are alike to, and nowhere that the API refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from llmbatch.providers.cache_marks import wants_marks, with_cache_marks

MARK = {"cache_control": {"type": "ephemeral"}}
TOOL = {"name": "track", "input_schema": {"type": "object"}}
LATER = {**TOOL, "name": "later", "defer_loading": True}
CALL = {"type": "tool_use", "id": "t", "name": "track", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": "here"}
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "s"}


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}


def assistant(*content: Any) -> dict[str, Any]:
    return {**user(*content), "role": "assistant"}


def marked_places(value: Any, place: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        if "cache_control" in value:
            assert value["cache_control"] == MARK["cache_control"]
            yield place
        for name, member in value.items():
            yield from marked_places(member, f"{place}/{name}")
    elif isinstance(value, list):
        for number, member in enumerate(value):
            yield from marked_places(member, f"{place}/{number}")


def without_marks(value: Any) -> Any:
    """And text in one form: a text is a list of one block."""
    if isinstance(value, dict):
        return {
            name: [text(member)] if name in ("system", "content") and isinstance(member, str) else without_marks(member)
            for name, member in value.items()
            if name != "cache_control"
        }
    return [without_marks(member) for member in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("body", "places"),
    [
        ({"messages": [user("a question")]}, []),
        ({"messages": [user(text("a question"))]}, []),
        ({"system": "s", "messages": [user("q")]}, ["/system/0"]),
        ({"system": [text("s"), text("t")], "messages": [user("q")]}, ["/system/1"]),
        ({"system": "", "messages": [user("q")]}, []),
        ({"tools": [TOOL, TOOL], "messages": [user("q")]}, ["/tools/1"]),
        ({"tools": [TOOL, LATER], "messages": [user("q")]}, ["/tools/0"]),
        ({"tools": [LATER], "messages": [user("q")]}, []),
        ({"tools": [TOOL], "system": "s", "messages": [user("a"), assistant("b"), user("q")]},
         ["/tools/0", "/system/0", "/messages/1/content/0"]),
        # The document, then the question about it.
        ({"messages": [user(text("a document"), text("q"))]}, ["/messages/0/content/0"]),
        ({"messages": [user(text("a"), text("b"), text("q"))]}, ["/messages/0/content/1"]),
        ({"messages": [user(text("a document"), text("q")), assistant("begun")]}, ["/messages/0/content/0"]),
        ({"messages": [user("a"), assistant("b"), user("c"), assistant("d"), user("q")]}, ["/messages/3/content/0"]),
        ({"messages": [user("a"), assistant(CALL), user(RESULT)]}, ["/messages/1/content/0"]),
        # Not on thoughts, and not on empty texts.
        ({"messages": [user("a"), assistant(text("b"), THOUGHT), user("q")]}, ["/messages/1/content/0"]),
        ({"messages": [user("a"), assistant(THOUGHT), user("q")]}, ["/messages/0/content/0"]),
        ({"messages": [user("a"), assistant(""), user("q")]}, ["/messages/0/content/0"]),
        # Whoever marks knows better.
        ({"system": "s", "messages": [user(text("d", **MARK), text("q"))]}, ["/messages/0/content/0"]),
        ({"tools": [{**TOOL, **MARK}], "system": "s", "messages": [user("q")]}, ["/tools/0"]),
        ({"system": [text("s", **MARK)], "messages": [user("a"), assistant("b"), user("q")]}, ["/system/0"]),
        ({"system": "s", "messages": [user("q")], **MARK}, [""]),
        # What is wrong is told by the API.
        ({"system": 5, "tools": "no", "messages": "q"}, []),
        ({"messages": ["q", 5, user("a"), None]}, []),
        ({"messages": []}, []),
        ({}, []),
    ],
)  # fmt: skip
def test_where_marks_stand(body: dict[str, Any], places: list[str]) -> None:
    before = json.dumps(body)
    marked = with_cache_marks("anthropic", body)
    assert list(marked_places(marked)) == places
    assert without_marks(marked) == without_marks(body)
    assert json.dumps(body) == before


def test_other_dialects_are_left_alone() -> None:
    body = {"system": "s", "messages": [user("a"), assistant("b"), user("q")]}
    for api in ("openai-chat", "openai-responses", "openai-embeddings", "gemini"):
        assert with_cache_marks(api, body) is body and not wants_marks(api)
