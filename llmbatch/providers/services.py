"""The servers that are known by name: where they are, what they speak, where their key is, how they differ."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from llmbatch.errors import OptionsError
from llmbatch.providers.base import Provider

CHAT, RESPONSES, EMBEDDINGS = "openai-chat", "openai-responses", "openai-embeddings"
ANTHROPIC, GEMINI, GEMINI_EMBEDDINGS = "anthropic", "gemini", "gemini-embeddings"
APIS = (CHAT, RESPONSES, EMBEDDINGS, ANTHROPIC, GEMINI, GEMINI_EMBEDDINGS)

# Names of models that answer with vectors.
_EMBEDS = re.compile(r"(?:^|[/.-])(?:text-)?embed(?:ding|dings)?(?:$|[-.:/])|(?:^|/)(?:bge|e5|gte|nomic-embed)-", re.I)

SchemaMode = Literal["json_schema", "json_object", "none"]
"""How far a server holds the model to a schema: to all of it, to JSON, or not at all."""


@dataclass(frozen=True, slots=True)
class Service:
    """One provider or kind of server, and how it differs from the others that speak the same dialect.

    ``apis`` are the dialects it speaks, the first by default. ``host`` is its own, so that a base URL there is known
    to be it. ``key_envs`` are tried in order. ``renames_max_tokens``: ``max_tokens`` goes as ``max_completion_tokens``.
    """

    name: str
    base_url: str
    key_envs: tuple[str, ...]
    apis: tuple[str, ...] = (CHAT, EMBEDDINGS)
    host: str = ""
    key_header: str = "Authorization"
    key_scheme: str = "Bearer"
    needs_key: bool = True
    renames_max_tokens: bool = False
    schema_mode: SchemaMode = "json_schema"

    @property
    def embeddings(self) -> str:
        """The dialect that embeds; one it does not speak if there is none."""
        return GEMINI_EMBEDDINGS if GEMINI_EMBEDDINGS in self.apis else EMBEDDINGS

    def api_of(self, model: str | None) -> str:
        """The dialect for ``model``, by its name."""
        embeds = model is not None and self.embeddings in self.apis and _EMBEDS.search(model)
        return self.embeddings if embeds else self.apis[0]

    def located(self, environment: Mapping[str, str], model: str | None, api_version: str | None) -> Service:
        """The service where this environment says it is. Raises OptionsError if that must be said and is not."""
        return self

    @property
    def simulated_base(self) -> str:
        """Where the simulated provider speaks the first of these dialects."""
        return "http://127.0.0.1/v1beta" if GEMINI in self.apis else "http://127.0.0.1/v1"


SERVICES: dict[str, Service] = {
    one.name: one
    for one in (
        Service(
            "openai",
            "https://api.openai.com/v1",
            ("OPENAI_API_KEY",),
            (CHAT, RESPONSES, EMBEDDINGS),
            "api.openai.com",
            renames_max_tokens=True,
        ),
        Service(
            "anthropic",
            "https://api.anthropic.com/v1",
            ("ANTHROPIC_API_KEY",),
            (ANTHROPIC,),
            "api.anthropic.com",
            "x-api-key",
            "",
        ),
        Service(
            "gemini",
            "https://generativelanguage.googleapis.com/v1beta",
            ("GOOGLE_API_KEY", "GEMINI_API_KEY"),
            (GEMINI, GEMINI_EMBEDDINGS),
            "generativelanguage.googleapis.com",
            "x-goog-api-key",
            "",
        ),
    )
}

_OWN = Service("this server", "", ("OPENAI_API_KEY",), (CHAT, RESPONSES, EMBEDDINGS), needs_key=False)


def own_server(api: str | None) -> Service:
    """Somebody's own server, which speaks ``api``; the OpenAI dialects if nothing is said."""
    if api is not None and api not in APIS:
        raise OptionsError(f"--api {api!r} is not known; it may be {', '.join(APIS)}")
    for service in SERVICES.values():
        if api in service.apis and api not in _OWN.apis:
            return replace(service, base_url="", host="", needs_key=False)
    return _OWN


def known_service(model: str) -> Service:
    """The service of a bare model name."""
    for start, name in (("claude-", "anthropic"), ("gemini-", "gemini")):
        if model.startswith(start):
            return SERVICES[name]
    return SERVICES["openai"]


def dialect(api: str, service: Service, api_version: str | None) -> Provider:
    """The dialect ``api`` as ``service`` speaks it. Each is imported when it is needed."""
    if api == CHAT:
        from llmbatch.providers.openai_chat import OpenAIChat

        return OpenAIChat(renames_max_tokens=service.renames_max_tokens)
    if api == RESPONSES:
        from llmbatch.providers.openai_responses import OpenAIResponses

        return OpenAIResponses()
    if api == EMBEDDINGS:
        from llmbatch.providers.openai_embeddings import OpenAIEmbeddings

        return OpenAIEmbeddings()
    if api == ANTHROPIC:
        from llmbatch.providers.anthropic import Anthropic

        return Anthropic(api_version)
    if api == GEMINI:
        from llmbatch.providers.gemini import Gemini

        return Gemini()
    from llmbatch.providers.gemini_embeddings import GeminiEmbeddings

    return GeminiEmbeddings()
