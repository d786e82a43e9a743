"""A whole body of one dialect as a Request in none, so that another dialect can say it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from llmbatch.records import Request
from llmbatch.rules.messages import check_messages
from llmbatch.rules.params import without_overridden
from llmbatch.rules.reasons import RowError

Body = Mapping[str, Any]


def neutral(request: Request) -> Request:
    """``request`` without a body: messages, or texts to embed, and parameters. Raises RowError for what has no
    neutral form."""
    if request.body is None:
        return request
    said = _reader(request.api)(request.body)
    extra = without_overridden(request.extra, said.params)
    return replace(said, model=request.model, extra=extra, schema=request.schema)


def _reader(api: str) -> Callable[[Body], Request]:
    if api == "openai-chat":
        return _of_chat
    if api == "openai-embeddings":
        return _of_embeddings
    if api == "openai-responses":
        from llmbatch.providers.from_responses import of_responses

        return of_responses
    if api == "anthropic":
        from llmbatch.providers.from_anthropic import of_anthropic

        return of_anthropic
    raise RowError(f"a body for the API {api!r} can not be translated for another")


def _of_chat(body: Body) -> Request:
    messages = body.get("messages")
    check_messages(messages)
    return Request(str(body.get("model")), messages or (), _rest(body, "messages"))


def _of_embeddings(body: Body) -> Request:
    texts = body.get("input")
    if not all(isinstance(text, str) for text in (texts if isinstance(texts, list) else [texts])):
        raise RowError("'input' of numbers means another text to every model: give it as text")
    return Request(str(body.get("model")), params=_rest(body, "input"), input=texts)


def _rest(body: Body, said: str) -> dict[str, Any]:
    """The parameters; how the answer travels is the run's business."""
    return {name: value for name, value in body.items() if name not in ("model", "stream", "stream_options", said)}
