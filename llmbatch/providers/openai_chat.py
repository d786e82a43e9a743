"""OpenAI Chat Completions, spoken by OpenAI and by most local servers (vLLM, SGLang, Ollama, llama.cpp, ...).

Source: OpenAI API reference, "Create chat completion" and "Streaming"; field names as in the official SDK 3.52.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson

from llmbatch.providers.openai_errors import (
    BODY_KEPT_BYTES,
    error_fields,
    http_failure,
    parse_error,
    request_id,
)
from llmbatch.records import Failure, Reply, Request, Usage


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
            if 200 < status < 300:
                return _unusable("no_content", f"HTTP {status} is no answer to a completion", status, headers, body)
            return http_failure(status, headers, body)
        try:
            document = _loads(body)
        except (ValueError, RecursionError):
            return _not_json(status, headers, body)
        reply = _reply_of(document)
        if isinstance(reply, Failure):
            if reply.type == "error_in_answer":
                return _error_with_200(headers, body)
            return replace(reply, http_status=status, body=_kept(body), request_id=request_id(headers))
        return reply

    def stream_decoder(self) -> ChatStream:
        """A decoder for one streamed answer."""
        return ChatStream()


class ChatStream:
    """Folds the chunks of one streamed completion. Ends at ``[DONE]``, or counts as ended by a finish reason.

    Some servers leave out ``[DONE]``; one that saw a finish reason is complete all the same.
    """

    def __init__(self) -> None:
        self.ended = False
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._refusal: list[str] = []
        self._tools: dict[int, dict[str, Any]] = {}
        self._finish_reason: str | None = None
        self._model: str | None = None
        self._usage: Any = None
        self._failure: Failure | None = None

    def feed(self, data: str) -> bool:
        """Take one event's data. True if it carried a part of the answer."""
        if data.startswith("[DONE]"):
            self.ended = True
            return False
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            chunk = None
        if not isinstance(chunk, dict):
            return self._fail(Failure("unusable", "bad_stream", f"not a JSON object in the stream: {data[:120]!r}"))
        if chunk.get("error"):
            return self._fail(_stream_error(chunk))
        self._model = chunk.get("model") or self._model
        self._usage = chunk.get("usage") or self._usage
        return self._choices(chunk.get("choices"))

    def finish(self) -> Reply | Failure:
        """The whole answer; a Failure that keeps the text so far if the stream was cut."""
        text = "".join(self._text)
        if self._failure is not None:
            return replace(self._failure, body=text[:BODY_KEPT_BYTES] or None)
        if self._finish_reason is None:
            message = f"the stream ended before its end marker, after {len(text):,} characters"
            return Failure(
                "unusable", "stream_cut", message, http_status=200, retryable=True, body=text[:BODY_KEPT_BYTES] or None
            )
        return Reply(
            output="".join(self._refusal) or text,
            finish_reason=self._finish_reason,
            model=self._model,
            usage=usage_of(self._usage),
            tool_calls=[self._tools[index] for index in sorted(self._tools)] or None,
            reasoning="".join(self._reasoning) or None,
        )

    def _fail(self, failure: Failure) -> bool:
        self._failure = failure
        self.ended = True
        return False

    def _choices(self, choices: Any) -> bool:
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return False
        choice = choices[0]
        self._finish_reason = choice.get("finish_reason") or self._finish_reason
        delta = choice.get("delta")
        return isinstance(delta, dict) and self._delta(delta)

    def _delta(self, delta: Mapping[str, Any]) -> bool:
        news = False
        for name, parts in (
            ("content", self._text),
            ("refusal", self._refusal),
            ("reasoning_content", self._reasoning),
            ("reasoning", self._reasoning),
        ):
            value = delta.get(name)
            if isinstance(value, str) and value:
                parts.append(value)
                news = True
        for call in delta.get("tool_calls") or ():
            self._tool_call(call)
            news = True
        return news

    def _tool_call(self, part: Any) -> None:
        if not isinstance(part, dict):
            return
        index = part.get("index", 0)
        call = self._tools.setdefault(
            index, {"id": None, "type": "function", "function": {"name": "", "arguments": ""}}
        )
        call["id"] = part.get("id") or call["id"]
        function = part.get("function") or {}
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""


def usage_of(usage: Any) -> Usage:
    """Tokens as reported; None for what is missing, negative or no number."""
    if not isinstance(usage, dict):
        return Usage()
    prompt, completion = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    return Usage(
        input_tokens=_count(usage.get("prompt_tokens")),
        output_tokens=_count(usage.get("completion_tokens")),
        cached_input_tokens=_count(prompt.get("cached_tokens")) if isinstance(prompt, dict) else None,
        reasoning_tokens=_count(completion.get("reasoning_tokens")) if isinstance(completion, dict) else None,
    )


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _loads(body: bytes) -> Any:
    """Strict JSON. A lone surrogate, legal in JSON and refused by orjson, is kept as the text of its escape."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        if b"\\ud" not in body.lower():
            raise
        return _escape_surrogates(json.loads(body.decode("utf-8"), parse_constant=_refuse_constant))


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _escape_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_escape_surrogates(name): _escape_surrogates(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_escape_surrogates(member) for member in value]
    return value


def _reply_of(document: Any) -> Reply | Failure:
    if not isinstance(document, dict):
        return Failure("unusable", "bad_answer", "the answer is no JSON object", retryable=True)
    if document.get("error"):
        return Failure("unusable", "error_in_answer", "an error with HTTP 200")
    choices = document.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return Failure("unusable", "bad_answer", "the answer has no choices[0].message", retryable=True)
    content = message.get("content")
    if content is not None and not isinstance(content, str):
        return Failure("unusable", "bad_answer", "choices[0].message.content is no text", retryable=True)
    finish_reason, model = choice.get("finish_reason"), document.get("model")
    return Reply(
        output=message.get("refusal") or content or "",
        finish_reason=finish_reason if isinstance(finish_reason, str) else None,
        model=model if isinstance(model, str) else None,
        usage=usage_of(document.get("usage")),
        tool_calls=message.get("tool_calls") or None,
        reasoning=message.get("reasoning_content") or message.get("reasoning") or None,
    )


def _error_with_200(headers: Mapping[str, str], body: bytes) -> Failure:
    """An error inside HTTP 200 (OpenRouter and other gateways) counts as its own ``code``, else as unusable."""
    code, word, message = error_fields(parse_error(body))
    if code.isdigit() and 400 <= int(code) < 600:
        return http_failure(int(code), headers, body)
    return _unusable(code or word or "error_in_answer", message or "an error with HTTP 200", 200, headers, body)


def _stream_error(chunk: Mapping[str, Any]) -> Failure:
    error = chunk["error"]
    code, word, message = error_fields(error if isinstance(error, dict) else {"message": str(error)})
    return Failure("unusable", code or word or "stream_error", message or "error in mid-stream", retryable=True)


def _not_json(status: int, headers: Mapping[str, str], body: bytes) -> Failure:
    if not body.strip():
        return _unusable("empty_answer", "the answer is empty", status, headers, body)
    start = body[:200].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        return _unusable(
            "html_answer", "the answer is a web page, not JSON: is the base URL right?", status, headers, body
        )
    return _unusable("bad_json", "the answer is not valid JSON, or was cut short", status, headers, body)


def _unusable(word: str, message: str, status: int, headers: Mapping[str, str], body: bytes) -> Failure:
    return Failure(
        kind="unusable",
        type=word,
        message=message,
        http_status=status,
        retryable=True,
        body=_kept(body),
        request_id=request_id(headers),
    )


def _kept(body: bytes) -> str | None:
    return body[:BODY_KEPT_BYTES].decode("utf-8", "replace") or None
