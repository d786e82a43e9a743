"""The response object of OpenAI Responses as a Reply, or as the Failure that its ``status`` says.

Source: OpenAI API reference, "The response object"; types of the official SDK 3.52.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmbatch.providers.answer import bad_answer
from llmbatch.providers.openai_errors import error_fields, filtered, http_failure, status_of
from llmbatch.providers.openai_usage import responses_usage_of
from llmbatch.records import Failure, Reply, Usage

_REASONS = {"max_output_tokens": "length"}
# Codes of a failed response that stand for what is in the row; all others may be gone the next time.
_OF_THE_ROW = re.compile(r"invalid_|.*_policy|image_|empty_image|unsupported_|failed_to_download|data_residency")


def is_failed(document: Any) -> bool:
    """Whether it is a response object that says itself that it failed."""
    return isinstance(document, dict) and document.get("status") == "failed"


def outcome_of(response: Any) -> Reply | Failure:
    """What a whole response object means."""
    if not isinstance(response, dict):
        return bad_answer("the answer is no JSON object")
    status, usage = response.get("status"), responses_usage_of(response.get("usage"))
    if status == "failed":
        return _failure_of(response.get("error"), usage)
    if status == "cancelled":
        return _unfinished("cancelled", "the response was cancelled at the provider", usage)
    if status in ("queued", "in_progress"):
        return _unfinished("not_finished", f"the response is still {status}: leave out 'background'", usage)
    output = response.get("output")
    if status not in ("completed", "incomplete") or not isinstance(output, list):
        return bad_answer("the answer has no output with the status completed or incomplete")
    return _reply_of(response, [item for item in output if isinstance(item, dict)], usage)


def _reply_of(response: Mapping[str, Any], output: Sequence[Mapping[str, Any]], usage: Usage) -> Reply | Failure:
    parts = list(_parts(output))
    text = _joined(part.get("text") for part in parts if part.get("type") == "output_text")
    refusal = _joined(part.get("refusal") for part in parts if part.get("type") == "refusal")
    calls = [_call(item) for item in output if item.get("type") in tuple(_CALLS)]
    reason = _reason(response)
    ended = _REASONS.get(reason, reason) if reason else "tool_calls" if calls else "stop"
    if ended == "stop" and refusal and not text:
        ended = "content_filter"
    if ended == "content_filter" and not (text or refusal or calls):
        return filtered(usage)
    return Reply(
        output=text or refusal,
        finish_reason=ended,
        model=_text(response.get("model")),
        usage=usage,
        tool_calls=calls or None,
        reasoning=_joined(_thoughts(output)) or None,
        service_tier=_text(response.get("service_tier")),
        native_finish_reason=None if reason == ended else reason,
    )


def _reason(response: Mapping[str, Any]) -> str | None:
    """Why the answer is incomplete; None if it is complete."""
    if response.get("status") == "completed":
        return None
    details = response.get("incomplete_details")
    return (_text(details.get("reason")) if isinstance(details, dict) else None) or "incomplete"


def _parts(output: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The content of the answer; of what the model says on the way only if there is nothing else."""
    messages = [item for item in output if item.get("type") == "message"]
    final = [item for item in messages if item.get("phase") != "commentary"]
    for item in final or messages:
        content = item.get("content")
        yield from (part for part in content if isinstance(part, dict)) if isinstance(content, list) else ()


def _thoughts(output: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """Of each reasoning item its summary, else its text."""
    for item in output:
        if item.get("type") == "reasoning":
            told = item.get("summary") or item.get("content")
            yield from (part.get("text") for part in told if isinstance(part, dict)) if isinstance(told, list) else ()


_CALLS = {"function_call": ("function", "arguments"), "custom_tool_call": ("custom", "input")}


def _call(item: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call in the shape of Chat Completions."""
    kind, said = _CALLS[item["type"]]
    return {
        "id": _text(item.get("call_id")),
        "type": kind,
        kind: {"name": _text(item.get("name")) or "", said: _text(item.get(said)) or ""},
    }


def _failure_of(error: Any, usage: Usage) -> Failure:
    error = error if isinstance(error, dict) else {}
    code, word, message = error_fields(error)
    named, message = code or word or "failed", message or "the response failed, and does not say why"
    status = status_of(code, word)
    if status is not None:
        return http_failure(status, {}, json.dumps({"error": error}).encode())
    if _OF_THE_ROW.match(named):
        return Failure("permanent", named, message, http_status=200, usage=usage)
    return Failure("unusable", named, message, http_status=200, retryable=True, usage=usage)


def _unfinished(word: str, message: str, usage: Usage) -> Failure:
    return Failure("unusable", word, message, http_status=200, retryable=True, usage=usage)


def _joined(texts: Iterator[Any]) -> str:
    return "".join(text for text in texts if isinstance(text, str))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
