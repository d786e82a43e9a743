"""Where do requests go? A model name, a base URL and what the user said become one Target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from llmbatch.errors import OptionsError
from llmbatch.providers.base import Provider
from llmbatch.providers.base_url import check_url, is_loopback, origin
from llmbatch.providers.places import Said, gemini_base, placed
from llmbatch.providers.services import (
    GEMINI,
    SERVICES,
    Service,
    dialect,
    known_service,
    own_server,
    service_at,
    service_named,
)
from llmbatch.records import Request

__all__ = ["SIM", "Target", "is_loopback", "origin", "resolve"]

SIM = "sim"

_NO_ENVIRONMENT: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Target:
    """One endpoint: the dialect it speaks, its URL, the model to ask there, and the variables of its key.

    ``speaks`` holds the dialects of the same server that rows have asked for so far, by their API's name.
    ``model`` is None when each row names its own. ``simulated`` means that the run starts the server itself.
    ``key_envs`` are looked at in order.
    """

    provider: Provider
    base_url: str
    model: str | None
    service: Service
    simulated: bool = False
    api_version: str | None = None
    speaks: dict[str, Provider] = field(default_factory=dict)

    def dialect(self, request: Request) -> Provider:
        """The dialect in which ``request`` is sent: that of its own body if the server speaks it."""
        if request.body is not None:
            return self._speaking(request.api)
        return self.provider if request.input is None else self._speaking(self.service.embeddings)

    def _speaking(self, api: str) -> Provider:
        if api == self.provider.name or api not in self.service.apis:
            return self.provider
        if api not in self.speaks:
            self.speaks[api] = dialect(api, self.service, self.api_version)
        return self.speaks[api]

    @property
    def url(self) -> str:
        """Where most requests go, for people and for the manifest."""
        return self.base_url + self.provider.path(self.model or "MODEL")

    @property
    def key_envs(self) -> tuple[str, ...]:
        return () if self.simulated else self.service.key_envs

    def key_envs_set(self, environment: Mapping[str, str]) -> list[str]:
        """Those of ``key_envs`` that hold something."""
        return [name for name in self.key_envs if environment.get(name, "").strip()]

    def key_headers(self, key: str, name: str | None = None) -> dict[str, str]:
        """The header that carries the key; ``name`` is the variable that it stood in."""
        if name in self.service.bearer_envs:
            return {"Authorization": f"Bearer {key}"}
        return {self.service.key_header: f"{self.service.key_scheme} {key}".lstrip()}

    @property
    def origin(self) -> str:
        """Scheme, host and port: what a key is bound to."""
        return origin(self.base_url)

    @property
    def is_loopback(self) -> bool:
        return is_loopback(urlsplit(self.base_url).hostname or "")

    @property
    def is_private(self) -> bool:
        """True if nobody on the way can read what is sent: https, or this very machine."""
        return self.base_url.startswith("https://") or self.is_loopback

    @property
    def needs_key(self) -> bool:
        """A provider's own address always does; somebody's own server may or may not."""
        return not self.simulated and self.service.needs_key


def resolve(
    model: str | None,
    base_url: str | None,
    *,
    api: str | None = None,
    api_version: str | None = None,
    environment: Mapping[str, str] = _NO_ENVIRONMENT,
) -> Target:
    """The target of a run.

    With a base URL the model name goes out as it was typed (``meta-llama/Llama-3.1-8B`` is a vLLM name), unless that
    is a known provider's own host, or ``api`` names the provider. Without one, the part before the slash names the
    service (``SERVICES``), and a bare name goes to the service that is known for it, else to OpenAI.
    ``api`` is the dialect, where it must be said; ``api_version`` that of Azure, Anthropic or Gemini.
    Raises OptionsError for a URL, a provider or a dialect that can not be used.
    """
    if not (model or "").isprintable():
        raise OptionsError(f"model {model!r} has characters that no model's name has")
    prefix, slash, name = (model or "").partition("/")
    if slash and not name:
        raise OptionsError(f"model {model!r} has no name after the provider")
    if prefix == SIM and name and base_url is None:
        return _simulated(name, api, api_version)
    said = Said(model, base_url and base_url.rstrip("/"), api, api_version, environment)
    if base_url is not None:
        return _at(said)
    service = service_named(prefix) if name else known_service(model or "")
    if service is None:
        raise OptionsError(
            f"provider {prefix!r} of model {model!r} is not known here (known: {', '.join(SERVICES)}, sim). "
            "For an OpenAI-compatible server add its address: --base-url http://localhost:8000/v1"
        )
    return _target(service, replace(said, model=name or model))


def _simulated(name: str, api: str | None, api_version: str | None) -> Target:
    service = own_server(api)
    base_url = service.simulated_base
    if GEMINI in service.apis:
        base_url = gemini_base(base_url, api_version)
    provider = dialect(_api_of(service, name, api), service, api_version)
    return Target(provider, base_url, name, service, simulated=True, api_version=api_version)


def _at(said: Said) -> Target:
    """At an address that was said: whose it is, or what was said of it, tells the service."""
    assert said.base_url is not None, "only asked with one"
    check_url(said.base_url, "--base-url")
    prefix, _, name = (said.model or "").partition("/")
    named = service_named(prefix) if name else None
    own = service_at(urlsplit(said.base_url).hostname or "")
    # Azure behind a gateway: nobody else has a version and no --api.
    if own is None and named is SERVICES["azure"] and said.api_version is not None:
        own = replace(named, needs_key=False)
    service = own or own_server(said.api)
    if named is not None and named.name == service.name:
        said = replace(said, model=name)
    return _target(service, said)


def _target(service: Service, said: Said) -> Target:
    service = placed(service, said)
    provider = dialect(_api_of(service, said.model, said.api), service, said.api_version)
    return Target(provider, service.base_url, said.model, service, api_version=said.api_version)


def _api_of(service: Service, model: str | None, api: str | None) -> str:
    named = api or service.api_of(model)
    if named not in service.apis:
        raise OptionsError(f"{service.name} does not speak {named!r}; --api may be {', '.join(service.apis)}")
    return named
