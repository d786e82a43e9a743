"""Where a service is: what its name, the environment, a base URL and a version say together."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from llmbatch.errors import OptionsError
from llmbatch.providers.azure import V1, on_surface
from llmbatch.providers.base_url import check_url
from llmbatch.providers.services import ANTHROPIC, Service

_REGION = re.compile(r"[a-z0-9-]{1,40}", re.ASCII)
_GEMINI_VERSION = re.compile(r"v[0-9]+(?:alpha|beta)?[0-9]*", re.ASCII)
_ROUTE = re.compile(r"(?:/openai|/anthropic)(?:/v1)?$")
# What a server listens on, which is no address to call.
_ANY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - nothing is bound
_OLLAMA_PORT = 11434
_WITH_VERSIONS = ("azure", "anthropic", "gemini")


@dataclass(frozen=True, slots=True)
class Said:
    """What is said of where requests go: the model without the service's name, the options, and the environment."""

    model: str | None
    base_url: str | None = None
    api: str | None = None
    api_version: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def variable(self, name: str) -> str | None:
        """The variable ``name``; None if it is not set, or empty."""
        return self.environment.get(name, "").strip() or None


def placed(service: Service, said: Said) -> Service:
    """``service`` with its base URL.

    Raises OptionsError for what must be said and is not, and for a version that means nothing there.
    """
    if said.api_version is not None and service.name not in _WITH_VERSIONS:
        raise OptionsError(f"--api-version means nothing to {service.name}; {', '.join(_WITH_VERSIONS)} have versions")
    return _PLACES.get(service.name, _as_said)(service, said)


def gemini_base(base_url: str, api_version: str | None) -> str:
    """``base_url`` with the version, its last segment, replaced. Raises OptionsError for what is no version."""
    if api_version is None:
        return base_url
    if _GEMINI_VERSION.fullmatch(api_version) is None:
        raise OptionsError(f"--api-version {api_version!r} is none of Gemini's; examples: v1, v1beta")
    root, _, last = base_url.rpartition("/")
    return f"{root if _GEMINI_VERSION.fullmatch(last) else base_url}/{api_version}"


def ollama_base(host: str) -> str:
    """The base URL that ``OLLAMA_HOST`` means: ``host``, ``host:port``, ``:port`` or a URL (Ollama FAQ). Raises
    OptionsError."""
    scheme, _, rest = host.rpartition("://")
    url = f"{scheme or 'http'}://{rest if not rest.startswith(':') else 'localhost' + rest}".rstrip("/")
    check_url(url, "OLLAMA_HOST")
    parts = urlsplit(url)
    name = "127.0.0.1" if parts.hostname in _ANY_ADDRESS else parts.hostname or ""
    named = f"[{name}]" if ":" in name else name
    port = parts.port or {"": _OLLAMA_PORT, "http": 80, "https": 443}.get(scheme, _OLLAMA_PORT)
    return f"{parts.scheme}://{named}:{port}{parts.path.removesuffix('/v1')}/v1"


def _azure(service: Service, said: Said) -> Service:
    endpoint = said.base_url or _checked(said, "AZURE_OPENAI_ENDPOINT")
    if endpoint is None:
        raise OptionsError(
            "Azure has an address for each resource: set AZURE_OPENAI_ENDPOINT=https://RESOURCE.openai.azure.com, "
            "or say --base-url https://RESOURCE.openai.azure.com/openai/v1"
        )
    usual = None if endpoint.rstrip("/").endswith(V1) else said.variable("OPENAI_API_VERSION")
    return on_surface(service, endpoint, said.api_version or usual)


def _bedrock(service: Service, said: Said) -> Service:
    return _routed(
        service, said.base_url or _checked(said, "AWS_BEDROCK_BASE_URL") or _mantle(said), said, "/openai/v1"
    )


def _mantle(said: Said) -> str:
    """Amazon Bedrock, "Endpoints": the one that takes API keys and speaks the dialects of others."""
    region = said.variable("AWS_REGION") or said.variable("AWS_DEFAULT_REGION")
    if region is None:
        raise OptionsError("Bedrock has an address for each region: set AWS_REGION, for instance to us-east-1")
    if _REGION.fullmatch(region) is None:
        raise OptionsError(f"AWS_REGION {region!r} is no region; an example: us-east-1")
    return f"https://bedrock-mantle.{region}.api.aws"


def _deepseek(service: Service, said: Said) -> Service:
    return _routed(service, said.base_url or service.base_url, said, "")


def _routed(service: Service, base_url: str, said: Said, openai_route: str) -> Service:
    """Services that speak Anthropic's dialect below an address of its own: by --api, the address, or the model."""
    root = _ROUTE.sub("", base_url)
    route = base_url[len(root) :]
    named_so = route.startswith("/anthropic") or (not route and "anthropic." in (said.model or ""))
    if said.api == ANTHROPIC or (said.api is None and named_so):
        return replace(service, base_url=f"{root}/anthropic/v1", apis=(ANTHROPIC,))
    return replace(service, base_url=root + (route if route.startswith("/openai") else openai_route))


def _ollama(service: Service, said: Said) -> Service:
    host = said.variable("OLLAMA_HOST")
    return replace(service, base_url=said.base_url or (ollama_base(host) if host else service.base_url))


def _gemini(service: Service, said: Said) -> Service:
    return replace(service, base_url=gemini_base(said.base_url or service.base_url, said.api_version))


def _as_said(service: Service, said: Said) -> Service:
    return replace(service, base_url=said.base_url or service.base_url)


_PLACES: dict[str, Callable[[Service, Said], Service]] = {
    "azure": _azure,
    "bedrock": _bedrock,
    "deepseek": _deepseek,
    "gemini": _gemini,
    "ollama": _ollama,
}


def _checked(said: Said, variable: str) -> str | None:
    url = said.variable(variable)
    if url is not None:
        check_url(url, variable)
    return None if url is None else url.rstrip("/")
