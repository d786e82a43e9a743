"""Where do requests go? A model name, a base URL and what the user said become one Target."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from llmbatch.errors import OptionsError
from llmbatch.providers.base import Provider
from llmbatch.providers.openai_chat import OpenAIChat

OPENAI_URL = "https://api.openai.com/v1"
OPENAI_KEY = "OPENAI_API_KEY"
SIM = "sim"

_LABEL = re.compile(r"[a-z0-9_-]{1,63}", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Target:
    """One endpoint: the dialect it speaks, its URL, the model to ask there, and the variable of its key.

    ``model`` is None when each row names its own. ``simulated`` means that the run starts the server itself.
    """

    provider: Provider
    base_url: str
    model: str | None
    key_env: str
    simulated: bool = False

    @property
    def url(self) -> str:
        return self.base_url.rstrip("/") + self.provider.path

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
        """OpenAI always does; somebody's own server may or may not."""
        return self.base_url == OPENAI_URL


def resolve(model: str | None, base_url: str | None) -> Target:
    """The target of a run.

    With a base URL the model name goes out as it was typed (``meta-llama/Llama-3.1-8B`` is a vLLM name), but for
    OpenAI's own hosts. Without one, ``openai/NAME`` and bare names go to OpenAI and ``sim/NAME`` to the simulator.
    Raises OptionsError for a URL or a provider that can not be used.
    """
    if not (model or "").isprintable():
        raise OptionsError(f"model {model!r} has characters that no model's name has")
    prefix, slash, name = (model or "").partition("/")
    if prefix == SIM and name and base_url is None:
        return Target(OpenAIChat(), "http://127.0.0.1/v1", name, "", simulated=True)
    if base_url is not None:
        _check_url(base_url)
        openai = (urlsplit(base_url).hostname or "").endswith("api.openai.com")
        plain = name if openai and prefix == "openai" else model
        return Target(OpenAIChat(renames_max_tokens=openai), base_url.rstrip("/"), plain, OPENAI_KEY)
    if slash and not name:
        raise OptionsError(f"model {model!r} has no name after the provider")
    if name and prefix != "openai":
        raise OptionsError(
            f"provider {prefix!r} of model {model!r} is not known here (known: openai, sim). "
            "For an OpenAI-compatible server add its address: --base-url http://localhost:8000/v1"
        )
    return Target(OpenAIChat(renames_max_tokens=True), OPENAI_URL, name or model, OPENAI_KEY)


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
    if parts.path.rstrip("/").endswith("/chat/completions"):
        raise OptionsError("--base-url is the address before /chat/completions; leave that part out")


def _is_host(host: str) -> bool:
    """An address, or a name that can be looked up: labels of 1 to 63 characters, 253 in all (RFC 1035)."""
    if ":" in host:
        return True  # urlsplit has looked at addresses in brackets
    try:
        name = host.encode("idna").decode().removesuffix(".")
    except UnicodeError:
        return False
    return len(name) <= 253 and all(map(_LABEL.fullmatch, name.split(".")))
