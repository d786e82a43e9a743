"""What the process of one driver is told, and the same encode and decode for every driver."""

from __future__ import annotations

import os
import ssl
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

import orjson

from llmbatch.calls.connect import proxy_for, tls_context
from llmbatch.endpoints import key_for, request_headers
from llmbatch.errors import OptionsError
from llmbatch.hooks import HookError
from llmbatch.hooks.given import checked
from llmbatch.hooks.loading import Hook, load_hook
from llmbatch.hooks.places import described
from llmbatch.identity import target_of
from llmbatch.keys import Secret
from llmbatch.options import RunOptions
from llmbatch.prepare import builder_of
from llmbatch.providers.target import Target
from llmbatch.records import BadRow, Failure, Reply, Request, Row
from llmbatch.rules.comparison import Case
from llmbatch.rules.redact import Redactor
from llmbatch.rules.request import RequestBuilder


@dataclass(frozen=True, slots=True)
class Job:
    """One case for one process. ``simulated_url`` is where the simulated provider is, None with a real one.

    ``requests`` are those of the rows; with a hook (``work``) the ``rows`` are there instead, and each driver makes the
    requests. It holds no key: the process reads that where the user said it is.
    """

    case: Case
    options: RunOptions
    simulated_url: str | None
    ca_file: Path | None
    requests: tuple[Request, ...] = ()
    rows: tuple[Row, ...] = ()
    work: str | None = None
    hook_processes: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one row ended: after how long, with what kind of failure, or with what answer (as a checksum)."""

    row: int
    latency_s: float
    failure: str | None
    answer: int = 0


class Endpoint:
    """Where and how to ask, and what is to be done before. Used by any number of threads: nothing of it changes."""

    def __init__(self, job: Job) -> None:
        self.target = _at(target_of(job.options), job.simulated_url)
        key = key_of(self.target, job.options)
        self.headers = request_headers(self.target, key)
        ca_file = job.ca_file or job.options.ca_file
        self.tls: ssl.SSLContext | None = None
        if self.target.base_url.startswith("https:"):
            self.tls = ssl.create_default_context() if ca_file is None else tls_context(ca_file)
        self.redactor = Redactor([] if key is None else [key.reveal()])
        self.timeouts = job.options.timeouts
        self._work = None if job.work is None else Work(job.work, job.options)

    def worked(self, row: Row) -> Request:
        """The request of a row that comes with work, when that is done. Raises HookError, OptionsError."""
        assert self._work is not None, "rows come with the work to be done on them"
        return self._work.done(row)

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.target.base_url)
        return parts.hostname or "", parts.port or (443 if self.tls is not None else 80)

    def encoded(self, request: Request) -> tuple[str, Mapping[str, str], bytes]:
        """Path, headers and body of ``request``."""
        provider = self.target.dialect(request)
        path = urlsplit(self.target.base_url).path + provider.path(request.model)
        return path, {**self.headers, **provider.headers}, orjson.dumps(provider.encode(request))

    def decoded(self, request: Request, status: int, headers: Mapping[str, str], body: bytes) -> Reply | Failure:
        return self.target.dialect(request).decode(status, headers, body)


def _at(target: Target, simulated_url: str | None) -> Target:
    if simulated_url is None:
        return target
    here = urlsplit(simulated_url)
    return replace(target, base_url=f"{here.scheme}://{here.netloc}{urlsplit(target.base_url).path}")


def key_of(target: Target, options: RunOptions) -> Secret | None:
    """The key to ask ``target`` with; None if it needs none. Raises OptionsError."""
    key = key_for(target, options, next(iter(options.key_envs), None), os.environ)
    if key is None and target.needs_key:
        raise OptionsError(f"no key for {target.base_url}: set {' or '.join(target.key_envs)}, or say --key-env NAME")
    if key is not None and not target.is_private:
        raise OptionsError(f"the key would go unencrypted to {target.origin}, which is not https")
    return key


def refuse_proxy(target: Target) -> None:
    """The drivers go to the server directly, all in the same way. Raises OptionsError."""
    if not target.is_loopback and (proxy := proxy_for(target.base_url, getproxies_environment())) is not None:
        host = urlsplit(target.base_url).hostname
        raise OptionsError(f"compare knows no proxy, and the environment names {proxy.url}: add {host} to NO_PROXY")


class Work:
    """A hook and what its result asks for, for drivers that block. Each process loads its own."""

    def __init__(self, name: str, options: RunOptions) -> None:
        self.hook: Hook = load_hook(name, "--before")
        self._builder = builder_of(options, target_of(options))
        if self.hook.is_async:
            raise OptionsError(f"--before {name} is async, and only one of the drivers could await it: make it plain")

    def done(self, row: Row) -> Request:
        """The request of ``row``, after its work. Raises HookError, OptionsError."""
        try:
            given = self.hook.function(dict(row.fields))
        except Exception as error:
            raise HookError(f"hook {self.hook.name}: {described(error)}") from None
        return built(self._builder, row, checked(given, self.hook.name, self.hook.flag))


def built(builder: RequestBuilder, row: Row, given: Any) -> Request:
    """What a hook gave for ``row``, as its request. Raises OptionsError if nothing can be sent."""
    if isinstance(given, str):
        request = builder.build_said(replace(row, fields={"prompt": given}))
    elif isinstance(given, list):
        request = builder.build_said(replace(row, fields={"messages": given}))
    elif given is None:
        raise OptionsError("the hook left a row out: compare sends each of them")
    else:
        request = builder.build(replace(row, fields=given))
    if isinstance(request, BadRow):
        raise OptionsError(request.reason)
    return request


def outcome_of(row: int, latency_s: float, given: Reply | Failure) -> Outcome:
    if isinstance(given, Failure):
        return Outcome(row, latency_s, given.type)
    return Outcome(row, latency_s, None, zlib.crc32(orjson.dumps(given.output)))
