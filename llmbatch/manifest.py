"""What a run says of itself: in its journal, and to be found again among other pipelines. No secret is in it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

from llmbatch._version import __version__
from llmbatch.options import STDIO, RunOptions
from llmbatch.providers.target import Target


def manifest(options: RunOptions, target: Target) -> dict[str, Any]:
    """The line that every start appends to the journal; what changed since is read from it."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "version": __version__,
        "started": started,
        **_settings(options, target),
        "input": _described(options.input),
    }


def pipe_identity(options: RunOptions, target: Target, first_line: bytes) -> dict[str, Any]:
    """What tells a run to standard output from others: the same words on the same data find their journal again."""
    return {
        **_settings(options, target),
        "input": options.input,
        "directory": _working_directory(),
        "first_line": blake2b(first_line, digest_size=8).hexdigest(),
    }


def _settings(options: RunOptions, target: Target) -> dict[str, Any]:
    return {
        "provider": "sim" if target.simulated else target.origin,
        "model": target.model,
        "api": target.provider.name,
        "endpoint": target.url,
        "template_hash": _hash(options.template),
        "system_hash": _hash(options.system),
        "params": dict(options.params),
        **{name: said for name, said in _questions(options).items() if said is not None},
        **({"generation": options.generation} if options.generation else {}),
    }


def _questions(options: RunOptions) -> dict[str, Any]:
    """What only some runs have."""
    return {
        "tasks": {name: _hash(text) for name, text in options.tasks.items()} or None,
        "schema_hash": None if options.schema is None else _hash(json.dumps(options.schema, sort_keys=True)),
        "before": options.before,
        "after": options.after,
    }


def _hash(text: str | None) -> str | None:
    return None if text is None else blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _working_directory() -> str | None:
    try:
        return str(Path.cwd())
    except FileNotFoundError:  # deleted; whoever pipes rows through does not need it
        return None


def _described(path: str) -> dict[str, Any]:
    """Enough of an input file to say later that it is another one."""
    if path == STDIO:
        return {"path": STDIO}
    try:
        status = Path(path).stat()
    except OSError:  # removed since it was opened; it is read all the same
        return {"path": path}
    return {"path": path, "size": status.st_size, "mtime": status.st_mtime}
