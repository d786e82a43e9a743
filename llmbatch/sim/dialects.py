"""Which dialect is spoken where: the paths of every API, and the dialects behind them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from urllib.parse import parse_qs, unquote

from llmbatch.sim.anthropic import ANTHROPIC
from llmbatch.sim.ask import Ask
from llmbatch.sim.azure import AZURE, FilteredStream, filtered_body
from llmbatch.sim.chat_answer import ChatStream, completion_body
from llmbatch.sim.chat_request import parse_chat
from llmbatch.sim.dialect import Dialect, Vendor
from llmbatch.sim.embeddings import embeddings_body, parse_embeddings
from llmbatch.sim.gemini import GEMINI
from llmbatch.sim.gemini_answer import GeminiStream, array_body, content_body, unavailable_body
from llmbatch.sim.gemini_embeddings import batch_embed_body, embed_body, parse_batch_embed, parse_embed
from llmbatch.sim.gemini_request import parse_generate
from llmbatch.sim.http11 import HttpRequest
from llmbatch.sim.messages_answer import MessagesStream, message_body, overloaded_body
from llmbatch.sim.messages_request import parse_messages
from llmbatch.sim.openai import OPENAI, failure_in_200
from llmbatch.sim.responses_answer import ResponsesStream, failed_body, response_body
from llmbatch.sim.responses_request import parse_responses


def _body_only(parse: Callable[[bytes], Ask]) -> Callable[[HttpRequest, str], Ask]:
    return lambda request, _model: parse(request.body)


def _body_and_model(parse: Callable[[bytes, str], Ask]) -> Callable[[HttpRequest, str], Ask]:
    return lambda request, model: parse(request.body, model)


CHAT = Dialect("openai-chat", OPENAI, _body_and_model(parse_chat), completion_body, ChatStream, failure_in_200)
RESPONSES = Dialect(
    "openai-responses", OPENAI, _body_only(parse_responses), response_body, ResponsesStream, failed_body
)
EMBEDDINGS = Dialect(
    "openai-embeddings", OPENAI, _body_and_model(parse_embeddings), embeddings_body, None, failure_in_200
)
MESSAGES = Dialect(
    "anthropic",
    ANTHROPIC,
    lambda request, _model: parse_messages(request.body, request.headers),
    message_body,
    MessagesStream,
    overloaded_body,
)
GENERATE = Dialect(
    "gemini",
    GEMINI,
    lambda request, model: parse_generate(request.body, model, stream=False),
    content_body,
    GeminiStream,
    unavailable_body,
)
_GENERATE_EVENTS = replace(GENERATE, parse=lambda request, model: parse_generate(request.body, model, stream=True))
_GENERATE_ARRAY = replace(GENERATE, body=array_body)
EMBED = Dialect("gemini-embeddings", GEMINI, _body_and_model(parse_embed), embed_body, None, unavailable_body)
BATCH_EMBED = replace(EMBED, parse=_body_and_model(parse_batch_embed), body=batch_embed_body)
AZURE_CHAT = replace(CHAT, name="azure-chat", vendor=AZURE, body=filtered_body, stream=FilteredStream)
AZURE_RESPONSES = replace(RESPONSES, name="azure-responses", vendor=AZURE)
AZURE_EMBEDDINGS = replace(EMBEDDINGS, name="azure-embeddings", vendor=AZURE)

# The paths of OpenAI are also known without their version.
_PATHS: Mapping[str, Dialect] = {
    "/v1/chat/completions": CHAT,
    "/chat/completions": CHAT,
    "/v1/responses": RESPONSES,
    "/responses": RESPONSES,
    "/v1/embeddings": EMBEDDINGS,
    "/embeddings": EMBEDDINGS,
    "/v1/messages": MESSAGES,
    "/openai/v1/chat/completions": AZURE_CHAT,
    "/openai/v1/responses": AZURE_RESPONSES,
    "/openai/v1/embeddings": AZURE_EMBEDDINGS,
}
_AZURE_DATED = re.compile(r"/openai/(?:deployments/([^/]+)/(chat/completions|embeddings)|(responses))")
_AZURE_KINDS = {"chat/completions": AZURE_CHAT, "embeddings": AZURE_EMBEDDINGS, "responses": AZURE_RESPONSES}
_API_VERSION = re.compile(r"\d{4}-\d{2}-\d{2}(-preview)?")
_GEMINI = re.compile(r"/(?:v1|v1beta)/models/([^/:]+):(\w+)")
_GEMINI_METHODS = {"generateContent": GENERATE, "embedContent": EMBED, "batchEmbedContents": BATCH_EMBED}


def dialect_at(request: HttpRequest) -> tuple[Dialect, str] | None:
    """The dialect spoken at the request's path, and the model that stands in the path.

    None where nothing is; ApiError when an address of Azure lacks its version.
    """
    dialect = _PATHS.get(request.path)
    if dialect:
        return dialect, ""
    if match := _GEMINI.fullmatch(request.path):
        method = _gemini_method(match[2], request.query)
        return (method, unquote(match[1])) if method else None
    if match := _AZURE_DATED.fullmatch(request.path):
        version = parse_qs(request.query).get("api-version", [""])[-1]
        if not _API_VERSION.fullmatch(version):
            raise AZURE.no_such_url(404, "Resource not found: api-version is missing or is no version.")
        return _AZURE_KINDS[match[2] or match[3]], unquote(match[1] or "")
    return None


def _gemini_method(name: str, query: str) -> Dialect | None:
    if name == "streamGenerateContent":
        return _GENERATE_EVENTS if parse_qs(query).get("alt") == ["sse"] else _GENERATE_ARRAY
    return _GEMINI_METHODS.get(name)


def vendor_at(request: HttpRequest) -> Vendor:
    """Who answers at a path where no dialect is spoken, such as that of the models."""
    if request.path.startswith("/openai/"):
        return AZURE
    if request.path.startswith("/v1beta/") or "x-goog-api-key" in request.headers:
        return GEMINI
    return ANTHROPIC if "anthropic-version" in request.headers else OPENAI
