"""Whom a run asks: each endpoint with its key and the proxy on the way, several of them if the user says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from llmbatch._version import __version__
from llmbatch.calls.connect import Proxy, proxy_for
from llmbatch.errors import OptionsError
from llmbatch.files.limit_group import account_name
from llmbatch.keys import Secret, load_key
from llmbatch.options import RunOptions
from llmbatch.providers.target import Target


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server and one key of it. ``name`` is for people."""

    target: Target
    key: Secret | None
    proxy: Proxy | None
    name: str

    @property
    def headers(self) -> dict[str, str]:
        """Of every request."""
        return request_headers(self.target, self.key)

    @property
    def secrets(self) -> list[str]:
        """What nobody may see."""
        return [*(() if self.key is None else [self.key.reveal()]), *(() if self.proxy is None else self.proxy.secrets)]

    @property
    def account(self) -> str:
        """Whose limits are used: a hash of the server and the key, which tells nothing of either."""
        return account_name(f"{self.target.origin}\0{'' if self.key is None else self.key.reveal()}")

    @property
    def loopback_only(self) -> bool:
        """Whether its key may go unencrypted because it stays on this machine."""
        return self.target.is_loopback and self.key is not None


def request_headers(target: Target, key: Secret | None) -> dict[str, str]:
    """Of every request to ``target``. The key among them goes to its origin only: no redirect is followed."""
    headers = {"Content-Type": "application/json", "User-Agent": f"llmbatch/{__version__}"}
    if key is not None:
        headers.update(target.key_headers(key.reveal(), key.source.removeprefix("$")))
    return headers


def key_for(target: Target, options: RunOptions, key_env: str | None, environment: Mapping[str, str]) -> Secret | None:
    """The key that the user named for ``target``, else its usual one; None if there is none. Raises OptionsError."""
    if target.simulated:
        return None
    usual = target.key_envs_set(environment) or [*target.key_envs, ""]
    return load_key(key_env=key_env, key_file=options.key_file, default_env=usual[0], environment=environment)


def endpoints_of(
    options: RunOptions,
    targets: Sequence[Target],
    environment: Mapping[str, str],
    proxies: Mapping[str, str],
    tell: Callable[[str], None],
) -> list[Endpoint]:
    """Every address with its key: several keys for one address, several addresses with one key, or pairs of both.

    ``tell`` hears what is worth knowing. Raises OptionsError for keys that are missing or would go unencrypted, and for
    addresses and keys that do not pair.
    """
    names: list[str | None] = [*options.key_envs] or [None]
    if len(targets) > 1 and len(names) not in (1, len(targets)):
        raise OptionsError(
            f"{len(targets)} times --base-url and {len(names)} times --key-env: give one key for all addresses, or one "
            "for each, in the same order"
        )
    if len(targets) == 1:
        pairs = [(targets[0], name) for name in names]
    else:
        pairs = list(zip(targets, names if len(names) > 1 else names * len(targets), strict=True))
    if len(set(names)) < len(names) or len({target.base_url for target in targets}) < len(targets):
        raise OptionsError("an address or a key is given twice: --base-url and --key-env must differ")
    several = len(pairs) > 1
    endpoints = [
        _endpoint(options, target, name, environment, proxies, tell, several=several) for target, name in pairs
    ]
    _refuse_one_key_twice(endpoints)
    return endpoints


def _refuse_one_key_twice(endpoints: Sequence[Endpoint]) -> None:
    """Limits hold for each key: under two names one would get twice as much."""
    seen: dict[tuple[str, str], str] = {}
    for endpoint in endpoints:
        if endpoint.key is None:
            continue
        first = seen.setdefault((endpoint.target.base_url, endpoint.key.reveal()), endpoint.key.source)
        if first != endpoint.key.source:
            raise OptionsError(f"{first} and {endpoint.key.source} hold the same key: name it once")


def _endpoint(
    options: RunOptions,
    target: Target,
    key_env: str | None,
    environment: Mapping[str, str],
    proxies: Mapping[str, str],
    tell: Callable[[str], None],
    *,
    several: bool,
) -> Endpoint:
    proxy = _proxy(target, proxies, tell)
    key = _key(options, target, key_env, environment, tell)
    name = urlsplit(target.base_url).netloc.rpartition("@")[2]
    return Endpoint(target, key, proxy, f"{name} with {key.source}" if several and key is not None else name)


def _proxy(target: Target, proxies: Mapping[str, str], tell: Callable[[str], None]) -> Proxy | None:
    """What the environment says, but never for this very machine, and never with a login from ``~/.netrc``."""
    if target.is_loopback:
        return None
    proxy = proxy_for(target.base_url, proxies)
    if proxy is not None:
        tell(f"through the proxy {proxy.url}")
    return proxy


def _key(
    options: RunOptions,
    target: Target,
    key_env: str | None,
    environment: Mapping[str, str],
    tell: Callable[[str], None],
) -> Secret | None:
    key = key_for(target, options, key_env, environment)
    if key is None and target.needs_key:
        raise OptionsError(
            f"no key for {target.base_url}: set {' or '.join(target.key_envs)}, or name its variable "
            "with --key-env NAME, or its file with --key-file FILE. To try without a key: -m sim/demo"
        )
    if key is None or target.is_private or options.allow_http:
        return key
    if key_env is not None or options.key_file is not None:
        raise OptionsError(f"the key would go unencrypted to {target.origin}; --allow-http sends it all the same")
    tell(f"{key.source} is not sent to {target.origin}, which is not https")
    return None
