"""A generateContent answer on the wire: one JSON body, or events that are such bodies. Zeros are left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from llmbatch.sim.answer import Answer
from llmbatch.sim.gemini import GEMINI


def content_body(answer: Answer) -> bytes:
    """The body of an answer that is not streamed."""
    parts = [*_thoughts(answer), *_said(answer)]
    return orjson.dumps(_document(answer, parts, _finish_reason(answer), _usage(answer, answer.tokens)))


def array_body(answer: Answer) -> bytes:
    """A stream that was not asked for as events: one JSON array."""
    return b"[" + content_body(answer) + b"]"


def unavailable_body(_answer: Answer) -> bytes:
    return orjson.dumps(GEMINI.errors["503"].document)


def _document(
    answer: Answer, parts: list[dict[str, Any]], finish_reason: str | None, usage: dict[str, Any]
) -> dict[str, Any]:
    content = {"role": "model", "parts": parts} if parts else {"role": "model"}
    candidate: dict[str, Any] = {"content": content}
    if finish_reason:
        candidate["finishReason"] = finish_reason
    return {
        "candidates": [{**candidate, "index": index} for index in range(answer.ask.n)],
        "usageMetadata": usage,
        "modelVersion": answer.ask.model,
        "responseId": f"rsp-sim{answer.number:08d}",
    }


def _thoughts(answer: Answer) -> list[dict[str, Any]]:
    shown = answer.reasoning_tokens and answer.ask.shows_thoughts
    return [{"text": "Thinking it over.", "thought": True}] if shown else []


def _said(answer: Answer) -> list[dict[str, Any]]:
    if not answer.ask.tool:
        return [{"text": answer.text}] if answer.text else []
    if answer.cut:
        return []
    call = {"id": f"fc-sim{answer.number:08d}", "name": answer.ask.tool.name, "args": answer.arguments()}
    return [{"functionCall": call}]


def _finish_reason(answer: Answer) -> str:
    return "MAX_TOKENS" if answer.cut else "STOP"


def _usage(answer: Answer, tokens: int) -> dict[str, Any]:
    """The usage when each candidate has ``tokens``; thoughts are not among those."""
    prompt_tokens, n = answer.ask.prompt_tokens, answer.ask.n
    counts = {
        "promptTokenCount": prompt_tokens,
        "cachedContentTokenCount": answer.cached_tokens,
        "candidatesTokenCount": tokens * n,
        "thoughtsTokenCount": answer.reasoning_tokens * n,
        "totalTokenCount": prompt_tokens + (tokens + answer.reasoning_tokens) * n,
    }
    details = [{"modality": "TEXT", "tokenCount": prompt_tokens}]
    return {**{name: count for name, count in counts.items() if count}, "promptTokensDetails": details}


class GeminiStream:
    """Events without names, their lines ended by CRLF; behind the last one nothing."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def begin(self) -> Iterator[bytes]:
        if parts := _thoughts(self._answer):
            yield self._event(parts, None, 0)

    def content(self, start: int, stop: int) -> Iterator[bytes]:
        if not self._answer.ask.tool:
            yield self._event([{"text": self._answer.piece(start, stop)}], None, stop)
        elif stop == self._answer.tokens and (parts := _said(self._answer)):
            yield self._event(parts, None, stop)  # a function call comes whole

    def finish(self) -> Iterator[bytes]:
        yield self._event([{"text": ""}], _finish_reason(self._answer), self._answer.tokens)

    def failure(self) -> Iterator[bytes]:
        """Raw JSON over several lines, without ``data:``."""
        yield orjson.dumps(GEMINI.errors["503"].document, option=orjson.OPT_INDENT_2) + b"\n"

    def garbage(self) -> Iterator[bytes]:
        yield b'data: {"candidates":[{"content":\r\n\r\n'

    def _event(self, parts: list[dict[str, Any]], finish_reason: str | None, tokens: int) -> bytes:
        document = _document(self._answer, parts, finish_reason, _usage(self._answer, tokens))
        return b"data: " + orjson.dumps(document) + b"\r\n\r\n"
