"""Where the requests of a run go, and the identity of each across runs: its key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from llmbatch.errors import OptionsError
from llmbatch.files.images import as_data
from llmbatch.options import RunOptions
from llmbatch.providers.target import Target, resolve
from llmbatch.records import Request
from llmbatch.rules.fingerprint import Fingerprinter

# Endpoints differ where the model stands in the URL; rows may name ever new ones.
_MOST_ENDPOINTS = 1_000


def target_of(options: RunOptions) -> Target:
    """Where requests go; of several addresses the first, by which results are known. Raises OptionsError."""
    return targets_of(options)[0]


def targets_of(options: RunOptions) -> list[Target]:
    """Every address of a run. Raises OptionsError if they do not all speak the same dialect."""
    urls: tuple[str | None, ...] = options.base_urls or (None,)
    targets = [
        resolve(options.model, url, api=options.api, api_version=options.api_version, environment=os.environ)
        for url in urls
    ]
    first = targets[0]
    for url, target in zip(urls, targets, strict=True):
        if target.provider.name != first.provider.name or target.model != first.model:
            raise OptionsError(
                f"--base-url {url} is asked for {target.model} as {target.provider.name}, {urls[0]} for {first.model} "
                f"as {first.provider.name}: rows can only be spread over addresses that take the same requests"
            )
    return targets


class Identity:
    """Keys of the requests of one run, all with the same schema. ``generation`` as in RunOptions."""

    def __init__(self, target: Target, generation: int = 0) -> None:
        self._target = target
        self._generation = generation
        self._endpoints: dict[str, Fingerprinter] = {}

    def __call__(self, request: Request) -> str:
        """The key: a fingerprint of where ``request`` goes and of all it asks.

        Raises RowError for what the provider has no word for, Unwritable for what JSON can not hold.
        """
        provider = self._target.dialect(request)
        endpoint = self._target.base_url + provider.path(request.model)
        fingerprint = self._endpoints.get(endpoint)
        if fingerprint is None:
            fingerprint = Fingerprinter(endpoint, self._generation, request.schema)
            if len(self._endpoints) < _MOST_ENDPOINTS:
                self._endpoints[endpoint] = fingerprint
        return fingerprint(provider.encode(as_data(request)))


class RowIdentity:
    """Keys of rows that a hook prepares: of the row itself and of all that the run makes of it.

    What the hook finds may be another thing the next time, and to ask it costs; so a finished row is found without it.
    """

    def __init__(self, options: RunOptions, target: Target) -> None:
        self._fingerprint = Fingerprinter(target.url, options.generation)
        self._tasks = options.tasks
        self._about = {
            "before": options.before,
            "model": target.model,
            "api": target.provider.name,
            "template": options.template,
            "system": options.system,
            "params": dict(options.params),
            "schema": options.schema,
        }

    def __call__(self, fields: Mapping[str, Any], task: str | None = None) -> str:
        """The key of a row, or of one of its tasks (its name and template). Raises Unwritable."""
        named = None if task is None else [task, self._tasks.get(task)]
        return self._fingerprint({**self._about, "task": named, "row": fields})
