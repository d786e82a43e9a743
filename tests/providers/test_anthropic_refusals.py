"""What models and versions of the API are known to refuse is not sent; what nobody has said is."""

from __future__ import annotations

from typing import Any

import pytest

from llmbatch.providers.anthropic import Anthropic
from llmbatch.records import Request
from llmbatch.rules.reasons import RowError

USER = {"role": "user", "content": "Hi"}
TEMPERATURE = {"temperature": 1}
BUDGET = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
DISABLED = {"thinking": {"type": "disabled"}}
FORCED = {"tools": [{"name": "t", "input_schema": {}}], "tool_choice": "required"}
PREFILL = [USER, {"role": "assistant", "content": "{"}]
LATE_SYSTEM = [USER, {"role": "system", "content": "Be brief."}]


def encode(model: str, params: dict[str, Any], messages: Any = (USER,), version: str | None = None) -> None:
    Anthropic(version).encode(Request(model, messages, params))


@pytest.mark.parametrize(
    ("model", "refused"),
    [
        ("claude-opus-4-7", True),
        ("claude-opus-4-8-20260528", True),
        ("claude-opus-5-5", True),
        ("claude-sonnet-5", True),
        ("claude-sonnet-5-20260101", True),
        ("anthropic/claude-sonnet-5.5", True),
        ("us.anthropic.claude-opus-4-7-v1", True),
        ("claude-haiku-5-5", True),
        ("claude-fable-5", True),
        ("claude-mythos-5-2", True),
        ("claude-opus-4-6", False),
        ("claude-opus-4-20250514", False),
        ("claude-opus-4-1-20250805", False),
        ("claude-sonnet-4-6", False),
        ("claude-haiku-4-5-20251001", False),
        ("claude-3-5-sonnet-20241022", False),
        ("claude-3-haiku-20240307", False),
        ("claude-haiku-6", False),  # nothing is known of it
        ("claude-saga-1", False),
        ("deepseek-flash", False),
        ("m", False),
    ],
)
def test_which_models_take_sampling_parameters_and_budgets(model: str, refused: bool) -> None:
    for params in (TEMPERATURE, {"top_p": 1}, {"top_k": 1}, BUDGET):
        if not refused:
            encode(model, params)
            continue
        with pytest.raises(RowError, match="refuses") as raised:
            encode(model, params)
        assert model in str(raised.value) and next(iter(params)) in str(raised.value)
        assert "leave it out" in str(raised.value)


@pytest.mark.parametrize(
    ("model", "params", "messages", "refused"),
    [
        ("claude-opus-5-5", FORCED, [USER], "tool_choice"),
        ("claude-sonnet-5-5", FORCED, [USER], "tool_choice"),
        ("claude-fable-5-1", FORCED, [USER], "tool_choice"),
        ("claude-haiku-5-5", FORCED, [USER], None),
        ("claude-opus-5", FORCED, [USER], None),
        ("claude-opus-5-5", {**FORCED, "tool_choice": "auto"}, [USER], None),
        ("claude-opus-5-5", DISABLED, [USER], "thinking"),
        ("claude-sonnet-5-5", DISABLED, [USER], "thinking"),
        ("claude-fable-5", DISABLED, [USER], "thinking"),
        ("claude-haiku-5-5", DISABLED, [USER], None),
        ("claude-opus-4-8", DISABLED, [USER], None),
        ("claude-opus-5-5", {"thinking": {"type": "adaptive"}}, [USER], None),
        ("claude-opus-4-6", {}, PREFILL, "assistant"),
        ("claude-sonnet-5-5", {}, PREFILL, "assistant"),
        ("claude-sonnet-4-5", {}, PREFILL, None),
        ("claude-haiku-5-5", {}, PREFILL, None),
        ("claude-opus-4-7", {}, LATE_SYSTEM, "system message"),
        ("claude-haiku-4-5", {}, LATE_SYSTEM, "system message"),
        ("claude-3-5-haiku-20241022", {}, LATE_SYSTEM, "system message"),
        ("claude-opus-4-8", {}, LATE_SYSTEM, None),
        ("claude-sonnet-5-5", {}, LATE_SYSTEM, None),
    ],
)
def test_what_single_models_refuse(model: str, params: dict[str, Any], messages: Any, refused: str | None) -> None:
    if refused is None:
        encode(model, params, messages)
        return
    with pytest.raises(RowError, match=f"{model} refuses .*{refused}"):
        encode(model, params, messages)


def body_of(*turns: dict[str, Any], **more: Any) -> Request:
    return Request("m", body={"model": "m", "max_tokens": 1, "messages": list(turns), **more}, api="anthropic")


DOCUMENT = {"type": "document", "source": {"type": "text", "data": "a"}}
CITED = {"type": "text", "text": "a", "citations": [{"type": "char_location"}]}


@pytest.mark.parametrize(
    ("request_", "refused"),
    [
        (body_of(USER, temperature=1), "temperature"),
        (body_of(USER, top_p=0.5), "top_p"),
        (body_of(USER, top_k=5), "top_k"),
        (body_of({"role": "assistant", "content": [DOCUMENT]}, USER), "document"),
        (body_of({"role": "user", "content": [CITED]}), "citations"),
        (body_of({"role": "user", "content": [DOCUMENT]}), None),
        (body_of({"role": "user", "content": [{**CITED, "citations": []}]}), None),
        (body_of({"role": "assistant", "content": [CITED]}, USER), None),
        (body_of(USER, thinking={"type": "disabled"}), None),
        (body_of(*("garbage", {"content": 5}, {"content": [7]})), None),  # type: ignore[arg-type]
    ],
)
def test_the_newer_version_refuses_more_of_every_model(request_: Request, refused: str | None) -> None:
    assert Anthropic("2023-06-01").encode(request_) == request_.body
    if refused is None:
        assert Anthropic("2026-10-21").encode(request_) == request_.body
        return
    with pytest.raises(RowError, match=f"version 2026-10-21 .*{refused}.*--api-version 2023-06-01"):
        Anthropic("2026-10-21").encode(request_)


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "a"}, {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}],
        [{"type": "thinking", "thinking": "", "signature": "s"}],
    ],
)
def test_going_on_after_a_pause_is_no_prefill(content: list[Any]) -> None:
    body = {"model": "claude-opus-5-5", "max_tokens": 1, "messages": [USER, {"role": "assistant", "content": content}]}
    assert Anthropic().encode(Request("claude-opus-5-5", body=body, api="anthropic")) == body


@pytest.mark.parametrize("field", ["messages", "thinking", "tool_choice", "model"])
@pytest.mark.parametrize("garbage", [None, 5, "x", [], [None], {"type": []}])
def test_garbage_in_a_whole_body_is_left_to_the_server(field: str, garbage: Any) -> None:
    body = {"model": "claude-opus-5-5", "messages": [USER], field: garbage}
    for version in ("2023-06-01", "2026-10-21"):
        assert Anthropic(version).encode(Request("m", body=body, api="anthropic")) == body
