"""OpenAI Responses: ``instructions`` and ``input`` items in, ``output`` items out.

Source: OpenAI API reference, "Create a model response"; types of the official SDK 3.52.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmbatch.providers.answer import document_of
from llmbatch.providers.json_text import loads
from llmbatch.providers.limit_headers import openai_limits
from llmbatch.providers.manners import PLAIN, Manners
from llmbatch.providers.members import refuse_unknown_members
from llmbatch.providers.neutral import neutral
from llmbatch.providers.openai_errors import request_id
from llmbatch.providers.responses_body import body_of
from llmbatch.providers.responses_reply import is_failed, outcome_of
from llmbatch.providers.responses_stream import ResponsesStream
from llmbatch.providers.sse import EventDecoder
from llmbatch.records import Failure, Reply, Request
from llmbatch.rules.limits import Limits

# What its parts have in common with those of Chat Completions.
_OF_PARTS = frozenset({"prompt_cache_breakpoint"})


class OpenAIResponses:
    """The dialect. What it makes is not stored at the provider unless the row or ``-p store=true`` says so: the API's
    own default keeps a copy of every answer for 30 days."""

    name = "openai-responses"
    headers: Mapping[str, str] = {}
    streams = True
    embeds = False
    max_body_bytes: int | None = None

    def __init__(self, manners: Manners = PLAIN, *, path: str | None = None) -> None:
        self._manners = manners
        self._path = path or "/responses"

    def path(self, model: str, *, stream: bool = False) -> str:
        """The same for all models."""
        return self._path

    def encode(self, request: Request) -> Mapping[str, Any]:
        """The JSON body; a row's own ``body`` goes as it is. Raises RowError for what Responses has no word for."""
        if request.body is not None and request.api == self.name and request.schema is None:
            return request.body
        request = neutral(request)
        refuse_unknown_members(request.messages, self.name, _OF_PARTS)
        return body_of(request)

    def streamed(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The same body, streamed; the usage comes in the last event."""
        return {**body, "stream": True}

    def decode(self, status: int, headers: Mapping[str, str], body: bytes) -> Reply | Failure:
        """A whole answer. HTTP 200 alone says nothing: the answer's own ``status`` does."""
        document = document_of(status, headers, body)
        if isinstance(document, Failure) and status == 200 and is_failed(failed := _document(body)):
            document = failed
        outcome = document if isinstance(document, Failure) else outcome_of(document)
        if isinstance(outcome, Failure):
            return replace(outcome, http_status=outcome.http_status or status, request_id=request_id(headers))
        return outcome

    def limits(self, headers: Mapping[str, str], time_s: float) -> Limits:
        """The ``x-ratelimit-*`` family."""
        return openai_limits(headers, time_s, requests_window_s=self._manners.requests_window_s)

    def events(self) -> EventDecoder:
        """Server-Sent Events."""
        return EventDecoder()

    def stream_decoder(self) -> ResponsesStream:
        """A decoder for one streamed answer."""
        return ResponsesStream()


def _document(body: bytes) -> Any:
    try:
        return loads(body)
    except (ValueError, RecursionError):
        return None
