"""Where do requests go? A model name, a base URL and what the user said become one Target."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from urllib.parse import urlsplit

from llmbatch.errors import OptionsError
from llmbatch.providers.base import Provider
from llmbatch.providers.services import SERVICES, Service, dialect, known_service, own_server
from llmbatch.records import Request

SIM = "sim"

_LABEL = re.compile(r"[a-z0-9_-]{1,63}", re.ASCII | re.IGNORECASE)
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

    def endpoint(self, request: Request, *, stream: bool = False) -> str:
        """The whole URL for ``request``."""
        return self.base_url + self.dialect(request).path(request.model, stream=stream)

    @property
    def url(self) -> str:
        """Where most requests go, for people and for the manifest."""
        return self.base_url + self.provider.path(self.model or "MODEL")

    @property
    def key_envs(self) -> tuple[str, ...]:
        return () if self.simulated else self.service.key_envs

    def key_headers(self, key: str) -> dict[str, str]:
        """The header that carries the key."""
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
        return not self.simulated and self.service.needs_key and self.base_url == self.service.base_url


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
    if base_url is not None:
        return _at(base_url.rstrip("/"), model, api, api_version)
    service = SERVICES.get(prefix) if name else known_service(model or "")
    if service is None:
        raise OptionsError(
            f"provider {prefix!r} of model {model!r} is not known here (known: {', '.join(SERVICES)}, sim). "
            "For an OpenAI-compatible server add its address: --base-url http://localhost:8000/v1"
        )
    asked = name or model
    service = service.located(environment, asked, api_version)
    return _target(service, service.base_url, asked, api, api_version)


def _simulated(name: str, api: str | None, api_version: str | None) -> Target:
    service = own_server(api)
    return replace(_target(service, service.simulated_base, name, api, api_version), simulated=True)


def _at(base_url: str, model: str | None, api: str | None, api_version: str | None) -> Target:
    _check_url(base_url)
    prefix, _, name = (model or "").partition("/")
    host = urlsplit(base_url).hostname or ""
    for service in SERVICES.values():
        if service.host and (host == service.host or host.endswith("." + service.host)):
            return _target(service, base_url, name if prefix == service.name else model, api, api_version)
    service = own_server(api)
    return _target(service, base_url, name if name and prefix == service.name else model, api, api_version)


def _target(service: Service, base_url: str, model: str | None, api: str | None, api_version: str | None) -> Target:
    named = api or service.api_of(model)
    if named not in service.apis:
        raise OptionsError(f"{service.name} does not speak {named!r}; --api may be {', '.join(service.apis)}")
    return Target(dialect(named, service, api_version), base_url, model, service, api_version=api_version)


def origin(url: str) -> str:
    """``https://host:port`` of a URL, the port always said."""
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}:{port}"


def is_loopback(host: str) -> bool:
    """True for this machine itself: ``localhost``, 127.0.0.0/8, ::1 and ::ffff:127.0.0.0/104.

    No other name is, whatever it resolves to; ``localhost`` is held to it when the connection is made
    (``calls.connect.loopback_socket``). Numbers that only a resolver takes for an address are names.
    """
    if host == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    # Not left to ip_address: Python before 3.13 says no for the mapped ones.
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _check_url(url: str) -> None:
    if " " in url or not url.isprintable():
        raise OptionsError("--base-url has blanks, or characters that no URL has")
    try:
        parts = urlsplit(url)
        port_ok = parts.port is None or parts.port > 0
    except ValueError:
        port_ok, parts = False, urlsplit("")
    if "@" in url:
        raise OptionsError("--base-url must not carry a user name or password; use --key-env NAME for the key")
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_ok:
        raise OptionsError(f"--base-url {url!r} is no http(s) URL; an example: http://localhost:8000/v1")
    if not _is_host(parts.hostname):
        raise OptionsError(f"--base-url {url!r}: {parts.hostname!r} is no name of a host")
    if "?" in url or "#" in url:
        raise OptionsError("--base-url must not carry a query or fragment")
    for end in ("/chat/completions", "/responses", "/embeddings", "/messages"):
        if parts.path.rstrip("/").endswith(end):
            raise OptionsError(f"--base-url is the address before {end}; leave that part out")


def _is_host(host: str) -> bool:
    """An address, or a name that can be looked up: labels of 1 to 63 characters, 253 in all (RFC 1035)."""
    if ":" in host:
        return True  # urlsplit has looked at addresses in brackets
    try:
        name = host.encode("idna").decode().removesuffix(".")
    except UnicodeError:
        return False
    return len(name) <= 253 and all(map(_LABEL.fullmatch, name.split(".")))
