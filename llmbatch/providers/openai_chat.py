"""OpenAI Chat Completions, spoken by OpenAI and by most local servers (vLLM, SGLang, Ollama, llama.cpp, ...).

Source: OpenAI API reference, "Create chat completion" and "Streaming"; field names as in the official SDK 3.52.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmbatch.providers.json_text import loads
from llmbatch.providers.openai_errors import (
    broken_off,
    error_fields,
    http_failure,
    parse_error,
    request_id,
    status_of,
)
from llmbatch.providers.openai_stream import ChatStream
from llmbatch.providers.openai_usage import usage_of
from llmbatch.records import Failure, Reply, Request
from llmbatch.rules.nesting import MAX_NESTING, nests_too_deeply

# A byte order mark, and the blank and comment lines by which DeepSeek and OpenRouter keep a connection alive.
_PREFACE = re.compile(rb"(?:\xef\xbb\xbf)?(?:\s|:[^\n]*\n)*+")


class OpenAIChat:
    """The dialect. With ``renames_max_tokens`` a row's ``max_tokens`` is sent as ``max_completion_tokens``,

    which OpenAI's reasoning models demand and most imitations do not know.
    """

    name = "openai-chat"
    path = "/chat/completions"

    def __init__(self, *, renames_max_tokens: bool = False) -> None:
        self._renames_max_tokens = renames_max_tokens

    def encode(self, request: Request) -> Mapping[str, Any]:
        """The JSON body. A row's own ``body`` goes as it is; else model, messages, ``-p`` fields, the row's params."""
        if request.body is not None:
            return request.body
        body: dict[str, Any] = {"model": request.model, "messages": request.messages}
        if request.extra:
            body.update(request.extra)
        if request.params:
            body.update(request.params)
            if self._renames_max_tokens and "max_tokens" in request.params:
                body["max_completion_tokens"] = body.pop("max_tokens")
        return body

    def streamed(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The same body, streamed, with the usage in the last chunk."""
        return {**body, "stream": True, "stream_options": {"include_usage": True}}

    def decode(self, status: int, headers: Mapping[str, str], body: bytes) -> Reply | Failure:
        """A whole answer. ``ok`` needs 200, complete JSON, and a choice that came to its end."""
        if status != 200:
            if 200 < status < 300 or status == 304:  # 304 answers a condition that was not set
                return _unusable("no_content", f"HTTP {status} is no answer to a completion", status, headers)
            return http_failure(status, headers, body)
        if not body.startswith(b"{"):
            body = _PREFACE.sub(b"", body, count=1)
        try:
            document = loads(body)
        except (ValueError, RecursionError):
            return _not_json(status, headers, body)
        if isinstance(document, dict) and document.get("error"):
            return _error_with_200(headers, body)
        if nests_too_deeply(document, body):
            return _unusable("bad_answer", f"the answer nests deeper than {MAX_NESTING} levels", status, headers)
        reply = _reply_of(document)
        if isinstance(reply, Failure):
            return replace(reply, http_status=status, request_id=request_id(headers))
        return reply

    def stream_decoder(self) -> ChatStream:
        """A decoder for one streamed answer."""
        return ChatStream()


def _reply_of(document: Any) -> Reply | Failure:
    if not isinstance(document, dict):
        return Failure("unusable", "bad_answer", "the answer is no JSON object", retryable=True)
    choices = document.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return Failure("unusable", "bad_answer", "the answer has no choices[0].message", retryable=True)
    if choice.get("error") or choice.get("finish_reason") == "error":
        return broken_off(choice.get("error") or "the model broke off")
    content = message.get("content")
    if content is not None and not isinstance(content, str):
        return Failure("unusable", "bad_answer", "choices[0].message.content is no text", retryable=True)
    finish_reason, model, service_tier = (
        choice.get("finish_reason"),
        document.get("model"),
        document.get("service_tier"),
    )
    reply = Reply(
        output=message.get("refusal") or content or "",
        finish_reason=finish_reason if isinstance(finish_reason, str) else None,
        model=model if isinstance(model, str) else None,
        usage=usage_of(document.get("usage")),
        tool_calls=message.get("tool_calls") or None,
        reasoning=message.get("reasoning_content") or message.get("reasoning") or None,
        choices=len(choices) if isinstance(choices, list) else 1,
        service_tier=service_tier if isinstance(service_tier, str) else None,
    )
    if not (reply.output or reply.finish_reason or reply.tool_calls or reply.reasoning):
        return Failure("unusable", "no_answer", "the answer is empty, and does not say why it ended", retryable=True)
    return reply


def _error_with_200(headers: Mapping[str, str], body: bytes) -> Failure:
    """An error inside HTTP 200 (OpenRouter and other gateways) counts as its own ``code``, else as unusable."""
    code, word, message = error_fields(parse_error(body))
    inner_status = status_of(code, word)
    if inner_status is not None:
        return http_failure(inner_status, headers, body)
    return _unusable(code or word or "error_in_answer", message or "an error with HTTP 200", 200, headers)


def _not_json(status: int, headers: Mapping[str, str], body: bytes) -> Failure:
    if not body.strip():
        return _unusable("empty_answer", "the answer is empty", status, headers)
    start = body[:200].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        return _unusable("html_answer", "the answer is a web page, not JSON: is the base URL right?", status, headers)
    return _unusable("bad_json", "the answer is not valid JSON, or was cut short", status, headers)


def _unusable(word: str, message: str, status: int, headers: Mapping[str, str]) -> Failure:
    return Failure(
        kind="unusable",
        type=word,
        message=message,
        http_status=status,
        retryable=True,
        request_id=request_id(headers),
    )
