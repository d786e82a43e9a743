"""A whole message of Anthropic's as our Reply; a stream is folded into one first.

Source: Anthropic API reference, "Create a Message", response; the official SDK 2.11 (``types/message.py``,
``refusal_stop_details.py``, ``usage.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from llmbatch.providers.answer import bad_answer
from llmbatch.providers.openai_errors import MESSAGE_KEPT_CHARS
from llmbatch.records import Failure, Reply, Usage

# The set is open: what is not here stays as it came.
_FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "context_length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
    "pause_turn": "paused",
}


def reply_of(message: Any) -> Reply | Failure:
    """The Reply, or what is wrong with it. A refusal without a word is a Failure; with text it is a Reply that ends in
    ``content_filter``. Blocks of other kinds than text, thinking and tool_use are not read."""
    if not isinstance(message, dict):
        return bad_answer("the answer is no JSON object")
    content = message.get("content")
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        return bad_answer("the answer has no content")
    texts = [block.get("text") for block in content if block.get("type") == "text"]
    if not all(isinstance(text, str) for text in texts):
        return bad_answer("a text in the content is no text")
    stop_reason, model = _text(message.get("stop_reason")), _text(message.get("model"))
    usage, reported = usage_of(message.get("usage")), message.get("usage")
    tool_calls = [_tool_call(block) for block in content if block.get("type") == "tool_use"]
    thoughts = [thought for block in content if (thought := _thought(block))]
    output = "".join(texts)
    if stop_reason == "refusal" and not output:
        return _refused(message.get("stop_details"), usage)
    if not (output or stop_reason or tool_calls or thoughts):
        return Failure("unusable", "no_answer", "the answer is empty, and does not say why it ended", retryable=True)
    finish_reason = _FINISH_REASONS.get(stop_reason or "", stop_reason)
    return Reply(
        output=output,
        finish_reason=finish_reason,
        model=model,
        usage=usage,
        tool_calls=tool_calls or None,
        reasoning="\n\n".join(thoughts) or None,
        service_tier=_text(reported.get("service_tier")) if isinstance(reported, dict) else None,
        native_finish_reason=stop_reason if stop_reason != finish_reason else None,
    )


def usage_of(usage: Any) -> Usage:
    """Tokens as reported, None for what is missing or garbage. ``input_tokens`` does not hold what was read from the
    cache or written to it: it is added here."""
    if not isinstance(usage, dict):
        return Usage()
    uncached, read, written = (
        _count(usage.get(name)) for name in ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    )
    details, by_time = usage.get("output_tokens_details"), usage.get("cache_creation")
    return Usage(
        input_tokens=None if uncached is None else uncached + (read or 0) + (written or 0),
        output_tokens=_count(usage.get("output_tokens")),
        cached_input_tokens=read,
        reasoning_tokens=_count(details.get("thinking_tokens")) if isinstance(details, dict) else None,
        cache_write_tokens=written,
        cache_write_1h_tokens=_count(by_time.get("ephemeral_1h_input_tokens")) if isinstance(by_time, dict) else None,
    )


def _refused(details: Any, usage: Usage) -> Failure:
    """It is paid for, and asking the same again is refused again."""
    said = details if isinstance(details, dict) else {}
    category, explanation = _text(said.get("category")), _text(said.get("explanation"))
    why = f" ({category})" if category else ""
    words = f". It says: {explanation}" if explanation else ""
    message = f"the model refused to answer{why}: change the prompt, or ask another model{words}"
    return Failure("permanent", "content_filter", message[:MESSAGE_KEPT_CHARS], http_status=200, usage=usage)


def _tool_call(block: Mapping[str, Any]) -> dict[str, Any]:
    """In the shape of Chat Completions, whose arguments are the text of a JSON object. A stream has it as text."""
    given = block.get("input")
    arguments = given if isinstance(given, str) else orjson.dumps({} if given is None else given).decode()
    name = _text(block.get("name")) or ""
    return {
        "id": _text(block.get("id")),
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _thought(block: Mapping[str, Any]) -> str | None:
    return _text(block.get("thinking")) if block.get("type") == "thinking" else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None
