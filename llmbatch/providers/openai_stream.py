"""A streamed chat completion, folded into one answer.

Source: OpenAI API reference, "Streaming"; the official SDK's ``_streaming.py`` (``[DONE]``, errors in mid-stream).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from llmbatch.providers.finish_reasons import BROKEN_OFF, native, normalised
from llmbatch.providers.json_text import loads_chunk, writable
from llmbatch.providers.openai_errors import broken_stream, filtered
from llmbatch.providers.openai_usage import charged_usd, usage_of
from llmbatch.records import Failure, Reply
from llmbatch.rules.kept import KEPT_TEXT_CHARS
from llmbatch.rules.reasons import excerpt


class ChatStream:
    """Reads the chunks of one streamed completion up to ``[DONE]``, or to an error. Owned by one attempt.

    The answer is complete when its finish reason came: some servers leave out ``[DONE]``, and proxies write it
    also when the model broke off. ``names_cost``: the usage holds the price.
    """

    def __init__(self, *, names_cost: bool = False) -> None:
        self.ended = False
        self._names_cost = names_cost
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._refusal: list[str] = []
        # By their index; several where a server gives all of them the same.
        self._tools: dict[int, list[dict[str, Any]]] = {}
        self._finish_reason: str | None = None
        self._upstream_reason: str | None = None
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
            return self._fail(unusable_stream("bad_stream", f"not a JSON object in the stream: {excerpt(data)}"))
        if chunk.get("error"):
            began = bool(self._text or self._reasoning or self._tools)
            return self._fail(broken_stream(chunk["error"], data, began=began))
        self._model = _text(chunk.get("model")) or self._model
        self._usage = chunk.get("usage") or _groq_usage(chunk) or self._usage
        self._service_tier = _text(chunk.get("service_tier")) or self._service_tier
        return self._choices(chunk.get("choices"))

    @property
    def text(self) -> str:
        """The text so far; of a refusal, its words. No more of it than is kept."""
        return str(writable(start_of(self._text or self._refusal)))

    def finish(self) -> Reply | Failure:
        """The whole answer; a Failure that keeps the text so far if there is no whole one."""
        text, refusal = writable("".join(self._text)), writable("".join(self._refusal))
        tool_calls = writable([call for index in sorted(self._tools) for call in self._tools[index]]) or None
        ended = normalised(self._finish_reason, calls_tools=bool(tool_calls), refuses=bool(refusal))
        failure = self._failure or self._missing(ended, len(text))
        if failure is not None:
            return replace(failure, output_so_far=self.text or None)
        usage = usage_of(self._usage)
        if ended == "content_filter" and not (refusal or text or tool_calls):
            return filtered(usage)
        return Reply(
            output=refusal or text,
            finish_reason=ended,
            model=self._model,
            usage=usage,
            tool_calls=tool_calls,
            reasoning=writable("".join(self._reasoning)) or None,
            choices=len(self._indices) or 1,
            service_tier=self._service_tier,
            native_finish_reason=native(ended, self._finish_reason, self._upstream_reason),
            charged_usd=charged_usd(self._usage) if self._names_cost else None,
        )

    def _missing(self, ended: str | None, characters: int) -> Failure | None:
        if ended is None:
            return cut_stream(characters)
        if ended == BROKEN_OFF:
            return unusable_stream("stream_error", f"the model broke off after {characters:,} characters")
        return None

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
        self._upstream_reason = _text(choice.get("native_finish_reason")) or self._upstream_reason
        delta = choice.get("delta")
        return isinstance(delta, dict) and self._delta(delta)

    def _delta(self, delta: Mapping[str, Any]) -> bool:
        said, thought = content_of(delta.get("content")) or ("", "")
        news = False
        for value, parts in (
            (said, self._text),
            (_text(delta.get("refusal")), self._refusal),
            # Under both names while servers change from one to the other (vLLM).
            (_text(delta.get("reasoning_content")) or _text(delta.get("reasoning")), self._reasoning),
            (thought, self._reasoning),
        ):
            if value:
                parts.append(value)
                news = True
        calls = delta.get("tool_calls")
        for part in calls if isinstance(calls, list) else ():
            if isinstance(part, dict):
                self._tool_call(part)
                news = True
        older = delta.get("function_call")
        if isinstance(older, dict) and older:
            _add_to(self._tools.setdefault(0, [{"type": "function", "function": _begun("function")}])[-1], older)
            news = True
        return news

    def _tool_call(self, part: Mapping[str, Any]) -> None:
        index, identity = part.get("index"), _text(part.get("id"))
        calls = self._tools.setdefault(index if isinstance(index, int) else 0, [])
        kind = "custom" if isinstance(part.get("custom"), dict) else "function"
        said = part.get(kind)
        named = isinstance(said, dict) and bool(_text(said.get("name")))
        if not calls or (named and _is_another(calls[-1], identity, numbered=index is not None)):
            calls.append({"id": None, "type": kind, kind: _begun(kind)})
        call = calls[-1]
        call["id"] = identity or call["id"]
        if isinstance(said, dict) and kind in call:
            _add_to(call, said)


def _begun(kind: str) -> dict[str, str]:
    return {"name": "", "input" if kind == "custom" else "arguments": ""}


def _add_to(call: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    """Join the pieces of a call's name, and of its arguments or input."""
    whole = call[call["type"]]
    for name in whole:
        whole[name] += _text(said.get(name)) or ""


def _is_another(call: Mapping[str, Any], identity: str | None, *, numbered: bool) -> bool:
    """Whether a part that names a function begins the call after ``call``, where both have the same index (Gemini's
    imitation of this API, Ollama), or none: its id is another, or it has none and is not ``numbered``."""
    if not call[call["type"]]["name"]:
        return False
    return identity != call["id"] if identity is not None else not numbered


def content_of(content: Any) -> tuple[str, str] | None:
    """Text and thought of a message's ``content``: a string, nothing, or Mistral's list of chunks; None for garbage."""
    if content is None or isinstance(content, str):
        return content or "", ""
    if not isinstance(content, list) or not all(isinstance(chunk, dict) for chunk in content):
        return None
    thoughts = [chunk.get("thinking") for chunk in content if chunk.get("type") == "thinking"]
    return _joined(content), "".join(_text(thought) or _joined(thought) for thought in thoughts)


def _joined(chunks: Any) -> str:
    if not isinstance(chunks, list):
        return ""
    texts = (chunk.get("text") for chunk in chunks if isinstance(chunk, dict) and chunk.get("type") == "text")
    return "".join(_text(text) or "" for text in texts)


def start_of(parts: Iterable[str]) -> str:
    """The beginning of a text that comes in parts: as much as is kept of one that fails."""
    taken: list[str] = []
    size = 0
    for part in parts:
        taken.append(part)
        size += len(part)
        if size >= KEPT_TEXT_CHARS:
            break
    return "".join(taken)[:KEPT_TEXT_CHARS]


def unusable_stream(word: str, message: str) -> Failure:
    """A stream that was probably billed, and gives no answer."""
    return Failure("unusable", word, message, http_status=200, retryable=True)


def cut_stream(characters: int) -> Failure:
    """A stream without its protocol's end."""
    return unusable_stream("stream_cut", f"the stream ended before its end marker, after {characters:,} characters")


def _groq_usage(chunk: Mapping[str, Any]) -> Any:
    """Groq API reference, "Streaming": the last chunk has it under ``x_groq``."""
    own = chunk.get("x_groq")
    return own.get("usage") if isinstance(own, dict) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
