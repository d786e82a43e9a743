"""The servers that are known by name: where they are, what they speak, where their key is, how they differ.

Sources: the API reference of each; for addresses and names of variables the clients of OpenAI (3.52), Anthropic (2.11),
Gemini (3.4), Groq, Together, Mistral and OpenRouter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from llmbatch.errors import OptionsError
from llmbatch.providers.base import Provider
from llmbatch.providers.manners import PLAIN, Manners

CHAT, RESPONSES, EMBEDDINGS = "openai-chat", "openai-responses", "openai-embeddings"
ANTHROPIC, GEMINI, GEMINI_EMBEDDINGS = "anthropic", "gemini", "gemini-embeddings"
APIS = (CHAT, RESPONSES, EMBEDDINGS, ANTHROPIC, GEMINI, GEMINI_EMBEDDINGS)

# Names of models that answer with vectors.
_EMBEDS = re.compile(r"(?:^|[/.-])(?:text-)?embed(?:ding|dings)?(?:$|[-.:/])|(?:^|/)(?:bge|e5|gte|nomic-embed)-", re.I)

_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One provider or kind of server, and how it differs from the others that speak the same dialect.

    ``apis`` are the dialects it speaks, the first by default. ``host`` and ``other_hosts`` are its own (``*`` is any
    one label), so that a base URL there, or below, is known to be it. ``key_envs`` are tried in order; keys from
    ``bearer_envs`` go as ``Authorization: Bearer``. ``paths`` are those of its dialects that are not the usual ones.
    ``deployments``: what is asked for is a name of the user's own, not the model's.
    ``base_url`` is empty where the environment must say it (providers/places.py).
    """

    name: str
    base_url: str
    key_envs: tuple[str, ...] = ()
    apis: tuple[str, ...] = (CHAT, EMBEDDINGS)
    host: str = ""
    other_hosts: tuple[str, ...] = ()
    key_header: str = "Authorization"
    key_scheme: str = "Bearer"
    bearer_envs: tuple[str, ...] = ()
    needs_key: bool = True
    deployments: bool = False
    manners: Manners = PLAIN
    paths: Mapping[str, str] = field(default_factory=dict)

    @property
    def embeddings(self) -> str:
        """The dialect that embeds; one it does not speak if there is none."""
        return GEMINI_EMBEDDINGS if GEMINI_EMBEDDINGS in self.apis else EMBEDDINGS

    def api_of(self, model: str | None) -> str:
        """The dialect for ``model``, by its name."""
        embeds = model is not None and self.embeddings in self.apis and _EMBEDS.search(model)
        return self.embeddings if embeds else self.apis[0]

    def owns(self, host: str) -> bool:
        """Whether ``host`` is the service's own, or below one."""
        return any(_is_below(host, own) for own in (self.host, *self.other_hosts) if own)

    @property
    def simulated_base(self) -> str:
        """Where the simulated provider speaks the first of these dialects."""
        return "http://127.0.0.1/v1beta" if GEMINI in self.apis else "http://127.0.0.1/v1"


def _is_below(host: str, own: str) -> bool:
    labels, wanted = host.removesuffix(".").split("."), own.split(".")
    return len(labels) >= len(wanted) and all(
        one in ("*", label) for one, label in zip(reversed(wanted), reversed(labels), strict=False)
    )


_OPENAI_MANNERS = Manners(max_tokens="max_completion_tokens", developer_role=True)

SERVICES: dict[str, Service] = {
    one.name: one
    for one in (
        Service(
            name="openai",
            base_url="https://api.openai.com/v1",
            key_envs=("OPENAI_API_KEY",),
            apis=(CHAT, RESPONSES, EMBEDDINGS),
            host="api.openai.com",
            manners=_OPENAI_MANNERS,
        ),
        Service(
            name="anthropic",
            base_url="https://api.anthropic.com/v1",
            key_envs=("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
            apis=(ANTHROPIC,),
            host="api.anthropic.com",
            key_header="x-api-key",
            key_scheme="",
            bearer_envs=("ANTHROPIC_AUTH_TOKEN",),
        ),
        Service(
            name="gemini",
            base_url="https://generativelanguage.googleapis.com/v1beta",
            key_envs=("GOOGLE_API_KEY", "GEMINI_API_KEY"),
            apis=(GEMINI, GEMINI_EMBEDDINGS),
            host="generativelanguage.googleapis.com",
            key_header="x-goog-api-key",
            key_scheme="",
        ),
        Service(
            name="azure",
            base_url="",
            key_envs=("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN"),
            apis=(CHAT, RESPONSES, EMBEDDINGS),
            host="openai.azure.com",
            other_hosts=("services.ai.azure.com", "cognitiveservices.azure.com"),
            key_header="api-key",
            key_scheme="",
            bearer_envs=("AZURE_OPENAI_AD_TOKEN",),
            deployments=True,
            manners=_OPENAI_MANNERS,
        ),
        Service(
            name="bedrock",
            base_url="",
            key_envs=("AWS_BEARER_TOKEN_BEDROCK",),
            apis=(CHAT, RESPONSES),
            host="bedrock-mantle.*.api.aws",
            other_hosts=("bedrock-runtime.*.amazonaws.com",),
        ),
        Service(
            name="openrouter",
            base_url="https://openrouter.ai/api/v1",
            key_envs=("OPENROUTER_API_KEY",),
            apis=(CHAT, RESPONSES, EMBEDDINGS, ANTHROPIC),
            host="openrouter.ai",
            manners=Manners(names_cost=True),
        ),
        Service(
            name="groq",
            base_url="https://api.groq.com/openai/v1",
            key_envs=("GROQ_API_KEY",),
            apis=(CHAT, RESPONSES),
            host="api.groq.com",
            manners=Manners(requests_window_s=_DAY_S),
        ),
        Service(
            name="together",
            base_url="https://api.together.ai/v1",
            key_envs=("TOGETHER_API_KEY",),
            host="api.together.ai",
            other_hosts=("api.together.xyz",),
        ),
        Service(
            name="deepseek",
            base_url="https://api.deepseek.com",
            key_envs=("DEEPSEEK_API_KEY",),
            apis=(CHAT, RESPONSES),
            host="api.deepseek.com",
            manners=Manners(schema_mode="json_object"),
        ),
        Service(
            name="mistral",
            base_url="https://api.mistral.ai/v1",
            key_envs=("MISTRAL_API_KEY",),
            host="api.mistral.ai",
            other_hosts=("api.eu.mistral.ai", "api.us.mistral.ai"),
            manners=Manners(max_tokens="max_tokens", seed="random_seed", stream_options=False),
        ),
        Service(
            name="xai",
            base_url="https://api.x.ai/v1",
            key_envs=("XAI_API_KEY",),
            apis=(CHAT,),
            host="api.x.ai",
        ),
        Service(
            name="vllm",
            base_url="http://localhost:8000/v1",
            apis=(CHAT, RESPONSES, EMBEDDINGS),
            needs_key=False,
        ),
        Service(
            name="sglang",
            base_url="http://localhost:30000/v1",
            apis=(CHAT, RESPONSES, EMBEDDINGS, ANTHROPIC),
            needs_key=False,
        ),
        Service(
            name="ollama",
            base_url="http://localhost:11434/v1",
            apis=(CHAT, RESPONSES, EMBEDDINGS),
            needs_key=False,
        ),
        Service(
            name="llamacpp",
            base_url="http://localhost:8080/v1",
            apis=(CHAT, RESPONSES, EMBEDDINGS),
            needs_key=False,
        ),
        Service(name="tgi", base_url="http://localhost:8080/v1", apis=(CHAT,), needs_key=False),
    )
}
_ALIASES = {"google": "gemini", "llama.cpp": "llamacpp"}

_OWN = Service(
    name="this server",
    base_url="",
    key_envs=("OPENAI_API_KEY",),
    apis=(CHAT, RESPONSES, EMBEDDINGS),
    needs_key=False,
)

# How the names of a provider's own models begin; all others are OpenAI's.
_BEGINNINGS = {
    "claude-": "anthropic",
    "gemini-": "gemini",
    "deepseek-": "deepseek",
    "grok-": "xai",
    "mistral-": "mistral",
    "ministral-": "mistral",
    "codestral-": "mistral",
}


def own_server(api: str | None) -> Service:
    """Somebody's own server, which speaks ``api``; the OpenAI dialects if nothing is said."""
    if api is not None and api not in APIS:
        raise OptionsError(f"--api {api!r} is not known; it may be {', '.join(APIS)}")
    for service in SERVICES.values():
        if api in service.apis and api not in _OWN.apis:
            return replace(service, base_url="", host="", needs_key=False)
    return _OWN


def service_named(name: str) -> Service | None:
    """The service that users call ``name``."""
    return SERVICES.get(_ALIASES.get(name, name))


def known_service(model: str) -> Service:
    """The service of a bare model name."""
    for start, name in _BEGINNINGS.items():
        if model.startswith(start):
            return SERVICES[name]
    return SERVICES["openai"]


def service_at(host: str) -> Service | None:
    """The service whose own host it is."""
    return next((service for service in SERVICES.values() if service.owns(host)), None)


def dialect(api: str, service: Service, api_version: str | None) -> Provider:
    """The dialect ``api`` as ``service`` speaks it. Each is imported when it is needed."""
    path = service.paths.get(api)
    if api == CHAT:
        from llmbatch.providers.openai_chat import OpenAIChat

        return OpenAIChat(service.manners, path=path)
    if api == RESPONSES:
        from llmbatch.providers.openai_responses import OpenAIResponses

        return OpenAIResponses(service.manners, path=path)
    if api == EMBEDDINGS:
        from llmbatch.providers.openai_embeddings import OpenAIEmbeddings

        return OpenAIEmbeddings(path=path)
    if api == ANTHROPIC:
        from llmbatch.providers.anthropic import Anthropic

        return Anthropic(api_version)
    if api == GEMINI:
        from llmbatch.providers.gemini import Gemini

        return Gemini()
    from llmbatch.providers.gemini_embeddings import GeminiEmbeddings

    return GeminiEmbeddings()
