"""A streamed chat completion, folded into one answer.

Source: OpenAI API reference, "Streaming"; the official SDK's ``_streaming.py`` (``[DONE]``, errors in mid-stream).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from llmbatch.providers.json_text import loads_chunk, writable
from llmbatch.providers.openai_errors import broken_off, error_fields, http_failure, status_of
from llmbatch.providers.openai_usage import usage_of
from llmbatch.records import Failure, Reply
from llmbatch.rules.kept import KEPT_TEXT_CHARS
from llmbatch.rules.reasons import excerpt


class ChatStream:
    """Reads the chunks of one streamed completion up to ``[DONE]``, or to an error. Owned by one attempt.

    The answer is complete when its finish reason came: some servers leave out ``[DONE]``, and proxies write it
    also when the model broke off.
    """

    def __init__(self) -> None:
        self.ended = False
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._refusal: list[str] = []
        self._tools: dict[int, dict[str, Any]] = {}
        self._finish_reason: str | None = None
        self._model: str | None = None
        self._service_tier: str | None = None
        self._indices: set[int] = set()
        self._usage: Any = None
        self._failure: Failure | None = None

    def feed(self, data: str) -> bool:
        """Take one event's data. True if it carried a part of the answer."""
        if self.ended or data.startswith("[DONE]"):
            self.ended = True
            return False
        try:
            chunk = loads_chunk(data)
        except (ValueError, RecursionError):
            chunk = None
        if not isinstance(chunk, dict):
            return self._fail(_unusable("bad_stream", f"not a JSON object in the stream: {excerpt(data)}"))
        if chunk.get("error"):
            return self._fail(self._error(chunk["error"], data))
        self._model = _text(chunk.get("model")) or self._model
        self._usage = chunk.get("usage") or self._usage
        self._service_tier = _text(chunk.get("service_tier")) or self._service_tier
        return self._choices(chunk.get("choices"))

    @property
    def text(self) -> str:
        """The text so far; of a refusal, its words. No more of it than is kept."""
        return str(writable(_start(self._text or self._refusal)))

    def finish(self) -> Reply | Failure:
        """The whole answer; a Failure that keeps the text so far if there is no whole one."""
        text = writable("".join(self._text))
        failure = self._failure or self._missing(len(text))
        if failure is not None:
            return replace(failure, output_so_far=self.text or None)
        return Reply(
            output=writable("".join(self._refusal)) or text,
            finish_reason=self._finish_reason,
            model=self._model,
            usage=usage_of(self._usage),
            tool_calls=writable([self._tools[index] for index in sorted(self._tools)]) or None,
            reasoning=writable("".join(self._reasoning)) or None,
            choices=len(self._indices) or 1,
            service_tier=self._service_tier,
        )

    def _missing(self, characters: int) -> Failure | None:
        if self._finish_reason is None:
            return _unusable("stream_cut", f"the stream ended before its end marker, after {characters:,} characters")
        if self._finish_reason == "error":
            return _unusable("stream_error", f"the model broke off after {characters:,} characters")
        return None

    def _error(self, error: Any, data: str) -> Failure:
        """Before any text an error counts as its own status; after it, the text may have been billed."""
        code, word, _ = error_fields(error if isinstance(error, dict) else {})
        status = status_of(code, word)
        if status is not None and not self._text and not self._reasoning and not self._tools:
            return http_failure(status, {}, data.encode("utf-8", "replace"))
        return broken_off(error)

    def _fail(self, failure: Failure) -> bool:
        self._failure = failure
        self.ended = True
        return False

    def _choices(self, choices: Any) -> bool:
        """Only the first choice is read; with ``n`` above 1 each chunk carries one of them."""
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return False
        choice = choices[0]
        index = choice.get("index")
        if index not in (None, 0):
            if type(index) is int:
                self._indices |= {0, index}
            return False
        self._finish_reason = _text(choice.get("finish_reason")) or self._finish_reason
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
            if value := _text(delta.get(name)):
                parts.append(value)
                news = True
        calls = delta.get("tool_calls")
        for part in calls if isinstance(calls, list) else ():
            if isinstance(part, dict):
                self._tool_call(part)
                news = True
        return news

    def _tool_call(self, part: Mapping[str, Any]) -> None:
        index, function = part.get("index"), part.get("function")
        call = self._tools.setdefault(
            index if isinstance(index, int) else 0,
            {"id": None, "type": "function", "function": {"name": "", "arguments": ""}},
        )
        call["id"] = _text(part.get("id")) or call["id"]
        if isinstance(function, dict):
            call["function"]["name"] += _text(function.get("name")) or ""
            call["function"]["arguments"] += _text(function.get("arguments")) or ""


def _start(parts: Iterable[str]) -> str:
    taken: list[str] = []
    size = 0
    for part in parts:
        taken.append(part)
        size += len(part)
        if size >= KEPT_TEXT_CHARS:
            break
    return "".join(taken)[:KEPT_TEXT_CHARS]


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _unusable(word: str, message: str) -> Failure:
    return Failure("unusable", word, message, http_status=200, retryable=True)
