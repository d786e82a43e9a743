"""A whole body of one dialect, said in another."""

from __future__ import annotations

from typing import Any

import pytest

from llmbatch.providers.neutral import neutral
from llmbatch.records import Request
from llmbatch.rules.reasons import RowError

USER = {"role": "user", "content": "p"}


def test_a_neutral_request_stays_the_very_same() -> None:
    request = Request("m", [USER])
    assert neutral(request) is request


def test_a_chat_body() -> None:
    body = {"model": "b", "messages": [USER], "temperature": 0, "odd": 1, "stream": True, "stream_options": {}}
    found = neutral(Request("m", body=body, extra={"temperature": 1, "top_p": 1}, schema={"type": "object"}))
    assert found == Request("m", [USER], {"temperature": 0, "odd": 1}, {"top_p": 1}, schema={"type": "object"})


@pytest.mark.parametrize("texts", ["a", ["a", "b"]])
def test_an_embeddings_body(texts: Any) -> None:
    found = neutral(Request("m", body={"model": "m", "input": texts, "dimensions": 4}, api="openai-embeddings"))
    assert found == Request("m", params={"dimensions": 4}, input=texts)


@pytest.mark.parametrize(
    ("api", "body", "word"),
    [
        ("openai-chat", {}, "messages"),
        ("openai-chat", {"messages": None}, "messages"),
        ("openai-chat", {"messages": [{"role": "user"}]}, "content"),
        ("openai-embeddings", {"input": [1, 2]}, "numbers"),
        ("openai-embeddings", {"input": [[1, 2]]}, "numbers"),
        ("openai-embeddings", {}, "numbers"),
        ("gemini", {"contents": []}, "'gemini'"),
    ],
)
def test_what_has_no_neutral_form_is_refused(api: str, body: dict[str, Any], word: str) -> None:
    with pytest.raises(RowError, match=word):
        neutral(Request("m", body=body, api=api))
