"""Nothing inside a conversation is dropped silently when it is translated."""

from __future__ import annotations

from typing import Any

import pytest

from llmbatch.providers.anthropic import Anthropic
from llmbatch.providers.base import Provider
from llmbatch.providers.gemini import Gemini
from llmbatch.providers.openai_chat import OpenAIChat
from llmbatch.providers.openai_responses import OpenAIResponses
from llmbatch.records import Request
from llmbatch.rules.reasons import RowError

IMAGE = "data:image/png;base64,iVBORw0KGgo="
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
others = pytest.mark.parametrize("provider", [Anthropic(None), Gemini(), OpenAIResponses()], ids=lambda one: one.name)


def conversation(part: dict[str, Any] | None = None, call: dict[str, Any] | None = None) -> Request:
    messages: list[dict[str, Any]] = [{"role": "user", "content": [part or {"type": "text", "text": "a"}]}]
    if call is not None:
        messages += [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "x"},
        ]
    return Request("m", messages)


@others
@pytest.mark.parametrize(
    ("request_", "where"),
    [
        (conversation({"type": "text", "text": "a", "new": 1}), r"messages\[0\].content\[0\]"),
        (conversation({"type": "image_url", "image_url": {"url": IMAGE, "new": 1}}), r"content\[0\].image_url"),
        (conversation(call={**CALL, "new": 1}), r"messages\[1\].tool_calls\[0\]"),
        (conversation(call={**CALL, "function": {**CALL["function"], "new": 1}}), r"tool_calls\[0\].function"),  # type: ignore[dict-item]
    ],
)
def test_an_unknown_member_is_an_error_that_names_its_place(provider: Provider, request_: Request, where: str) -> None:
    with pytest.raises(RowError, match=where + ".*'new'"):
        provider.encode(request_)


@others
def test_what_says_nothing_is_no_error(provider: Provider) -> None:
    assert provider.encode(conversation({"type": "text", "text": "a", "annotations": [], "new": None}, dict(CALL)))


def test_chat_takes_it_as_it_is() -> None:
    request = conversation({"type": "text", "text": "a", "new": 1})
    assert OpenAIChat().encode(request)["messages"] == request.messages
