"""A line of OpenAI's Batch API, run as it is. Source: OpenAI guide "Batch API", "Preparing your batch file"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmbatch.rules.messages import check_messages
from llmbatch.rules.params import checked, without_overridden
from llmbatch.rules.reasons import RowError, excerpt, kind_of

# Azure's batch lines leave out the version.
_CHAT = "/chat/completions"


def is_batch_line(fields: Mapping[str, Any]) -> bool:
    return "body" in fields and fields.get("prompt") is None and fields.get("messages") is None


def batch_body(fields: Mapping[str, Any], model: str | None, run_params: Mapping[str, Any]) -> dict[str, Any]:
    """The line's ``body``; what it leaves unsaid is filled with the run's model and parameters.

    ``url`` only says the kind of endpoint: its host is never used. ``stream`` is left to the run, and a null
    counts as not given.
    Raises RowError for another kind of endpoint, and for a body that can not be sent.
    """
    _check_endpoint(fields)
    body = fields["body"]
    if type(body) is not dict:
        raise RowError(f"'body' must be an object, not {kind_of(body)}")
    check_messages(body.get("messages"))
    kept = checked(body)
    filled = {**without_overridden(run_params, kept), **kept}
    filled["model"] = kept.get("model") or model
    return filled


def _check_endpoint(fields: Mapping[str, Any]) -> None:
    url = fields.get("url", _CHAT)
    if type(url) is not str or not url.rstrip("/").endswith(_CHAT):
        given = f"'{excerpt(url, 60)}'" if type(url) is str else kind_of(url)
        raise RowError(f"'url' must end in /v1/chat/completions, the one endpoint supported yet, not {given}")
    if fields.get("method", "POST") != "POST":
        raise RowError("'method' must be POST")
