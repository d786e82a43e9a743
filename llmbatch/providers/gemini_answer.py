"""What Gemini answered: one GenerateContentResponse, or the many of a stream, folded into one answer.

Source: Gemini API reference, "GenerateContentResponse", "Candidate", "FinishReason", "UsageMetadata".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson

from llmbatch.providers.answer import bad_answer
from llmbatch.providers.json_text import writable
from llmbatch.records import Failure, Reply, Usage
from llmbatch.rules.reasons import excerpt

# finishReason -> our word. Those that blame the content, and those of an answer that went wrong, are below.
_FINISHED = {"STOP": "stop", "MAX_TOKENS": "length", "CONTINUATION": "paused"}
_BLOCKED = frozenset(
    {
        "SAFETY",
        "RECITATION",
        "BLOCKLIST",
        "PROHIBITED_CONTENT",
        "SPII",
        "LANGUAGE",
        "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_RECITATION",
        "ESCALATION",
        "MODEL_ARMOR",
        "PUP_LIMITED_DISABLED",
    }
)
_WENT_WRONG = frozenset(
    {
        "MALFORMED_FUNCTION_CALL",
        "MALFORMED_RESPONSE",
        "UNEXPECTED_TOOL_CALL",
        "TOO_MANY_TOOL_CALLS",
        "MISSING_THOUGHT_SIGNATURE",
        "OTHER",
        "IMAGE_OTHER",
        "NO_IMAGE",
    }
)
_UNSPECIFIED = ("", "FINISH_REASON_UNSPECIFIED", "BLOCK_REASON_UNSPECIFIED", "TRAFFIC_TYPE_UNSPECIFIED")
# trafficType -> the tier that was charged, as the request says it.
_TIERS = {"ON_DEMAND": "standard", "ON_DEMAND_FLEX": "flex", "ON_DEMAND_PRIORITY": "priority"}


class GeminiAnswer:
    """One answer, as far as it has come. Owned by one attempt. Only the first candidate is read."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._finish: str | None = None
        self._finish_message = ""
        self._blocked: Mapping[str, Any] | None = None
        self._usage: Any = None
        self._model: str | None = None
        self._candidates: set[int] = {0}
        self._bad: Failure | None = None

    @property
    def begun(self) -> bool:
        """Whether a part of the answer has come, which may have been billed."""
        return bool(self.text or self._reasoning or self._calls)

    def take(self, response: Mapping[str, Any]) -> bool:
        """One more response. True if it carried a part of the answer."""
        self._usage = response.get("usageMetadata") or self._usage
        self._model = _text(response.get("modelVersion")) or self._model
        feedback = response.get("promptFeedback")
        if isinstance(feedback, dict) and _word(feedback.get("blockReason")):
            self._blocked = feedback
        candidates = response.get("candidates") or []
        if not isinstance(candidates, list) or not all(isinstance(candidate, dict) for candidate in candidates):
            self._mark("candidates is no list of objects")
            return False
        news = [self._candidate(candidate, position) for position, candidate in enumerate(candidates)]
        return any(news)

    def ended(self, unfinished: Failure) -> Reply | Failure:
        """The whole answer, now that no more comes; ``unfinished`` if its end was never said."""
        usage = usage_of(self._usage)
        if self._bad is not None:
            return _with_usage(self._bad, usage)
        if self._finish is None:
            return _prompt_blocked(self._blocked, usage) if self._blocked else _with_usage(unfinished, usage)
        text = writable("".join(self.text))
        if self._finish in _WENT_WRONG:
            said = self._said("the model broke off")
            return Failure("unusable", self._finish.lower(), said, 200, retryable=True, usage=usage)
        if self._finish in _BLOCKED and not text:
            return _filtered(self._said("the answer was blocked"), usage)
        if self._finish not in _FINISHED.keys() | _BLOCKED and not text and not self._calls:
            return Failure("unusable", "no_answer", self._said("the answer is empty"), 200, retryable=True, usage=usage)
        return Reply(
            output=text,
            finish_reason=self._finish_reason(),
            model=self._model,
            usage=usage,
            tool_calls=self._calls or None,
            reasoning=writable("".join(self._reasoning)) or None,
            choices=len(self._candidates),
            service_tier=_tier(self._usage),
            native_finish_reason=self._finish,
        )

    def _finish_reason(self) -> str:
        """An unknown word stays as it is: the list of them is open."""
        assert self._finish is not None, "asked of an answer that has come to its end"
        if self._finish == "STOP" and self._calls:
            return "tool_calls"
        return "content_filter" if self._finish in _BLOCKED else _FINISHED.get(self._finish, self._finish)

    def _said(self, what: str) -> str:
        return f"{what}: {self._finish}{self._finish_message}"

    def _mark(self, what: str) -> None:
        self._bad = self._bad or bad_answer(what)

    def _candidate(self, candidate: Mapping[str, Any], position: int) -> bool:
        index = candidate.get("index", position)
        if type(index) is int and index > 0:
            self._candidates.add(index)
            return False
        if finish := _word(candidate.get("finishReason")):
            self._finish = excerpt(finish, 60)
            message = _text(candidate.get("finishMessage"))
            self._finish_message = f" ({excerpt(message, 400)})" if message else ""
        content = candidate.get("content") or {}
        parts = content.get("parts") or [] if isinstance(content, dict) else None
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            self._mark("candidates[0].content.parts is no list of objects")
            return False
        news = [self._part(part) for part in parts]
        return any(news)

    def _part(self, part: Mapping[str, Any]) -> bool:
        """Text, a thought or a call. What tools of the server did (code, searches) is no part of the answer."""
        text, call = part.get("text"), part.get("functionCall")
        if text is not None and not isinstance(text, str):
            self._mark("the text of a part is no text")
            return False
        if part.get("thought") is True:
            self._reasoning.append(text or "")
            return bool(text)
        if "inlineData" in part or "fileData" in part:
            self._bad = self._bad or _no_text()
        if call is not None:
            self._call(call, part.get("thoughtSignature"))
            return True
        if text:
            self.text.append(text)
        return bool(text)

    def _call(self, call: Any, signature: Any) -> None:
        name, args = (call.get("name"), call.get("args") or {}) if isinstance(call, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(args, dict):
            self._mark("a functionCall has no name, or its args are no object")
            return
        try:
            arguments = orjson.dumps(writable(args)).decode()
        except (TypeError, RecursionError):
            self._mark("the args of a functionCall can not be written")
            return
        identity = _text(call.get("id")) or f"call_{len(self._calls)}"
        said = {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}
        if _text(signature):
            # Where Google's own imitation of Chat Completions puts it; gemini_turns.py sends it back.
            said["extra_content"] = {"google": {"thought_signature": signature}}
        self._calls.append(writable(said))


def usage_of(usage: Any) -> Usage:
    """Tokens as reported. Zeros are left out on the wire, so what is missing beside a prompt is 0."""
    if not isinstance(usage, dict) or "promptTokenCount" not in usage:
        return Usage()
    thoughts = _count(usage, "thoughtsTokenCount")
    return Usage(
        input_tokens=_sum(_count(usage, "promptTokenCount"), _count(usage, "toolUsePromptTokenCount")),
        output_tokens=_sum(_count(usage, "candidatesTokenCount"), thoughts),
        cached_input_tokens=_count(usage, "cachedContentTokenCount"),
        reasoning_tokens=thoughts,
        media=_media(usage),
    )


def _media(usage: Mapping[str, Any]) -> dict[str, int] | None:
    """Tokens that are no text, by modality; None if the prompt's are not told apart."""
    prompt, answer = usage.get("promptTokensDetails"), usage.get("candidatesTokensDetails")
    if not isinstance(prompt, list):
        return None
    media: dict[str, int] = {}
    for one in (*prompt, *(answer if isinstance(answer, list) else ())):
        modality = _word(one.get("modality")) if isinstance(one, dict) else None
        if modality not in (None, "TEXT"):
            kind = str(modality).lower()
            media[kind] = media.get(kind, 0) + (_count(one, "tokenCount") or 0)
    return media


def _tier(usage: Any) -> str | None:
    traffic = _word(usage.get("trafficType")) if isinstance(usage, dict) else None
    return None if traffic is None else _TIERS.get(traffic, traffic.lower())


def _count(usage: Mapping[str, Any], name: str) -> int | None:
    value = usage.get(name, 0)
    return value if type(value) is int and value >= 0 else None


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


def _prompt_blocked(feedback: Mapping[str, Any], usage: Usage) -> Failure:
    said = f"the prompt was blocked: {excerpt(str(feedback['blockReason']), 60)}"
    if message := _text(feedback.get("blockReasonMessage")):
        said += f" ({excerpt(message, 400)})"
    return _filtered(said, usage)


def _filtered(said: str, usage: Usage) -> Failure:
    return Failure("permanent", "content_filter", said, 200, usage=usage)


def _no_text() -> Failure:
    said = "the answer holds pictures or sound, which is no text; 'generationConfig.responseModalities' asks for text"
    return Failure("unusable", "no_text", said, 200)


def _with_usage(failure: Failure, usage: Usage) -> Failure:
    return replace(failure, usage=None if usage == Usage() else usage)


def _word(value: Any) -> str | None:
    return value if isinstance(value, str) and value not in _UNSPECIFIED else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
