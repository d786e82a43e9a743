"""OpenAI Chat Completions, spoken by OpenAI and by most local servers (vLLM, SGLang, Ollama, llama.cpp, ...).

Source: OpenAI API reference, "Create chat completion" and "Streaming"; field names as in the official SDK 3.52.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmbatch.providers.answer import bad_answer, document_of
from llmbatch.providers.limit_headers import openai_limits
from llmbatch.providers.neutral import neutral
from llmbatch.providers.openai_errors import broken_off, request_id
from llmbatch.providers.openai_stream import ChatStream
from llmbatch.providers.openai_usage import usage_of
from llmbatch.providers.schema_forms import openai_schema
from llmbatch.providers.sse import EventDecoder
from llmbatch.records import Failure, Reply, Request
from llmbatch.rules.limits import Limits
from llmbatch.rules.reasons import RowError


class OpenAIChat:
    """The dialect. With ``renames_max_tokens`` a row's ``max_tokens`` is sent as ``max_completion_tokens``,

    which OpenAI's reasoning models demand and most imitations do not know.
    """

    name = "openai-chat"
    headers: Mapping[str, str] = {}
    streams = True
    max_body_bytes: int | None = None

    def __init__(self, *, renames_max_tokens: bool = False) -> None:
        self._renames_max_tokens = renames_max_tokens

    def path(self, model: str, *, stream: bool = False) -> str:
        """The same for all models."""
        return "/chat/completions"

    def encode(self, request: Request) -> Mapping[str, Any]:
        """The JSON body. A row's own ``body`` goes as it is; else model, messages, ``-p`` fields, the row's params."""
        if request.body is not None and request.api == self.name and request.schema is None:
            return request.body
        request = neutral(request)
        if request.input is not None:
            raise RowError("'input' is for embeddings models; a chat model takes 'prompt' or 'messages'")
        body: dict[str, Any] = {"model": request.model, "messages": request.messages}
        if request.extra:
            body.update(request.extra)
        if request.params:
            body.update(request.params)
            if self._renames_max_tokens and "max_tokens" in request.params:
                body["max_completion_tokens"] = body.pop("max_tokens")
        if request.schema is not None:
            body["response_format"] = {"type": "json_schema", "json_schema": openai_schema(request.schema)}
        return body

    def streamed(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The same body, streamed, with the usage in the last chunk."""
        return {**body, "stream": True, "stream_options": {"include_usage": True}}

    def decode(self, status: int, headers: Mapping[str, str], body: bytes) -> Reply | Failure:
        """A whole answer. ``ok`` needs 200, complete JSON, and a choice that came to its end."""
        document = document_of(status, headers, body)
        reply = document if isinstance(document, Failure) else _reply_of(document)
        if isinstance(reply, Failure):
            return replace(reply, http_status=reply.http_status or status, request_id=request_id(headers))
        return reply

    def limits(self, headers: Mapping[str, str], time_s: float) -> Limits:
        """The ``x-ratelimit-*`` family."""
        return openai_limits(headers, time_s)

    def events(self) -> EventDecoder:
        """Server-Sent Events."""
        return EventDecoder()

    def stream_decoder(self) -> ChatStream:
        """A decoder for one streamed answer."""
        return ChatStream()


def _reply_of(document: Any) -> Reply | Failure:
    if not isinstance(document, dict):
        return bad_answer("the answer is no JSON object")
    choices = document.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return bad_answer("the answer has no choices[0].message")
    if choice.get("error") or choice.get("finish_reason") == "error":
        return broken_off(choice.get("error") or "the model broke off")
    content = message.get("content")
    if content is not None and not isinstance(content, str):
        return bad_answer("choices[0].message.content is no text")
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
