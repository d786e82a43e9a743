"""OpenAI Chat Completions, spoken by OpenAI and by most local servers (vLLM, SGLang, Ollama, llama.cpp, ...).

Source: OpenAI API reference, "Create chat completion" and "Streaming"; field names as in the official SDK 3.52.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from llmbatch.providers.answer import bad_answer, document_of
from llmbatch.providers.finish_reasons import BROKEN_OFF, native, normalised
from llmbatch.providers.limit_headers import openai_limits
from llmbatch.providers.manners import PLAIN, Manners
from llmbatch.providers.neutral import neutral
from llmbatch.providers.openai_errors import broken_off, filtered, request_id
from llmbatch.providers.openai_stream import ChatStream, content_of
from llmbatch.providers.openai_usage import charged_usd, usage_of
from llmbatch.providers.schema_forms import chat_fields
from llmbatch.providers.sse import EventDecoder
from llmbatch.records import Failure, Reply, Request
from llmbatch.rules.limits import Limits
from llmbatch.rules.reasons import RowError

_TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")


class OpenAIChat:
    """The dialect, as a server with these ``manners`` speaks it. ``path`` is where it is not the usual one; ``{model}``
    in it stands for the model."""

    name = "openai-chat"
    headers: Mapping[str, str] = {}
    streams = True
    embeds = False
    max_body_bytes: int | None = None

    def __init__(self, manners: Manners = PLAIN, *, path: str | None = None) -> None:
        self._manners = manners
        self._path = path or "/chat/completions"
        self._names_model = "{model}" in self._path

    def path(self, model: str, *, stream: bool = False) -> str:
        """The same for all models, but for Azure's deployments."""
        return self._path.replace("{model}", quote(model, safe="")) if self._names_model else self._path

    def encode(self, request: Request) -> Mapping[str, Any]:
        """The JSON body. A row's own ``body`` goes as it is; else model, messages, ``-p`` fields, the row's params."""
        if request.body is not None and request.api == self.name and request.schema is None:
            return request.body
        request = neutral(request)
        if request.input is not None:
            raise RowError("'input' is for embeddings models; a chat model takes 'prompt' or 'messages'")
        body: dict[str, Any] = {"model": request.model, "messages": self._messages(request.messages)}
        if request.extra:
            body.update(request.extra)
        if request.params:
            body.update(request.params)
        if len(body) > 2:
            self._rename(body)
        if request.schema is not None:
            body.update(chat_fields(body["messages"], request.schema, self._manners.schema_mode))
        return body

    def _messages(self, messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """Only OpenAI's own models have a developer; to others it is the system."""
        if self._manners.developer_role:
            return messages
        for message in messages:  # every row comes by, so no generator
            if message.get("role") == "developer":
                break
        else:
            return messages
        return [{**one, "role": "system"} if one.get("role") == "developer" else one for one in messages]

    def _rename(self, body: dict[str, Any]) -> None:
        """OpenAI's reasoning models refuse ``max_tokens``, most imitations do not know its new name."""
        wanted = self._manners.max_tokens
        for name in _TOKEN_LIMITS:
            if wanted is not None and name != wanted and name in body:
                body[wanted] = body.pop(name)
        if self._manners.seed != "seed" and "seed" in body:
            body[self._manners.seed] = body.pop("seed")

    def streamed(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The same body, streamed, with the usage in the last chunk."""
        if not self._manners.stream_options:
            return {**body, "stream": True}
        return {**body, "stream": True, "stream_options": {"include_usage": True}}

    def decode(self, status: int, headers: Mapping[str, str], body: bytes) -> Reply | Failure:
        """A whole answer. ``ok`` needs 200, complete JSON, and a choice that came to its end."""
        document = document_of(status, headers, body)
        reply = document if isinstance(document, Failure) else _reply_of(document, self._manners)
        if isinstance(reply, Failure):
            return replace(reply, http_status=reply.http_status or status, request_id=request_id(headers))
        return reply

    def limits(self, headers: Mapping[str, str], time_s: float) -> Limits:
        """The ``x-ratelimit-*`` family."""
        return openai_limits(headers, time_s, requests_window_s=self._manners.requests_window_s)

    def events(self) -> EventDecoder:
        """Server-Sent Events."""
        return EventDecoder()

    def stream_decoder(self) -> ChatStream:
        """A decoder for one streamed answer."""
        return ChatStream(names_cost=self._manners.names_cost)


def _reply_of(document: Any, manners: Manners) -> Reply | Failure:
    if not isinstance(document, dict):
        return bad_answer("the answer is no JSON object")
    choices = document.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return bad_answer("the answer has no choices[0].message")
    said = content_of(message.get("content"))
    if said is None:
        return bad_answer("choices[0].message.content is no text")
    text, thought = said
    refusal, tool_calls = _text(message.get("refusal")) or "", _tool_calls(message)
    reason = _text(choice.get("finish_reason"))
    ended = normalised(reason, calls_tools=bool(tool_calls), refuses=bool(refusal))
    if choice.get("error") or ended == BROKEN_OFF:
        return broken_off(choice.get("error") or f"the model broke off ({reason})")
    reply = Reply(
        output=refusal or text,
        finish_reason=ended,
        model=_text(document.get("model")),
        usage=usage_of(document.get("usage")),
        tool_calls=tool_calls,
        reasoning=_text(message.get("reasoning_content")) or _text(message.get("reasoning")) or thought or None,
        choices=len(choices) if isinstance(choices, list) else 1,
        service_tier=_text(document.get("service_tier")),
        native_finish_reason=native(ended, reason, choice.get("native_finish_reason")),
        charged_usd=charged_usd(document.get("usage")) if manners.names_cost else None,
    )
    if reply.output or reply.tool_calls:
        return reply
    if ended == "content_filter":
        return filtered(reply.usage)
    if not (ended or reply.reasoning):
        return Failure("unusable", "no_answer", "the answer is empty, and does not say why it ended", retryable=True)
    return reply


def _tool_calls(message: Mapping[str, Any]) -> Sequence[Any] | None:
    """Also the one call of the older ``functions``."""
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls:
        return calls
    call = message.get("function_call")
    return [{"type": "function", "function": call}] if isinstance(call, dict) and call else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
