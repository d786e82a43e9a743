"""Lines of the batch APIs, run as they are: OpenAI's, and Anthropic's.

Sources: OpenAI guide "Batch API", "Preparing your batch file"; Anthropic API reference, "Create a Message Batch".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmbatch.rules.messages import check_messages
from llmbatch.rules.params import checked, without_overridden
from llmbatch.rules.reasons import RowError, excerpt, kind_of

RESPONSES = "openai-responses"
ANTHROPIC = "anthropic"
# The end of ``url`` -> the API. Azure's batch lines leave out the version.
_APIS = {
    "/chat/completions": "openai-chat",
    "/responses": RESPONSES,
    "/embeddings": "openai-embeddings",
}
# The limit of an answer's tokens, as -p says it, in the words of Responses.
_LIMIT, _LIMITS = "max_output_tokens", ("max_tokens", "max_completion_tokens")


def is_batch_line(fields: Mapping[str, Any]) -> bool:
    """Whether it is a line of OpenAI's."""
    return "body" in fields and fields.get("prompt") is None and fields.get("messages") is None


def is_anthropic_line(fields: Mapping[str, Any]) -> bool:
    """Whether it is a line of Anthropic's: all that is asked stands in ``params``."""
    params = fields.get("params")
    return type(params) is dict and "messages" in params and not fields.keys() & {"prompt", "messages"}


def batch_body(
    fields: Mapping[str, Any], model: str | None, run_params: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The API that a line is written for, and its ``body``; what it leaves unsaid is the run's model and parameters.

    ``url`` only says the kind of endpoint: its host is never used. ``stream`` is left to the run, and a null
    counts as not given.
    Raises RowError for another kind of endpoint, and for a body that can not be sent.
    """
    api = _api(fields)
    body = fields["body"]
    if type(body) is not dict:
        raise RowError(f"'body' must be an object, not {kind_of(body)}")
    if api == "openai-chat":
        check_messages(body.get("messages"))
    elif body.get("input") in (None, "", []) and not (api == RESPONSES and body.get("prompt")):
        raise RowError("'body' has no 'input'")
    if api == RESPONSES:
        run_params = {_LIMIT if name in _LIMITS else name: value for name, value in run_params.items()}
    return api, _filled(body, model, run_params)


def anthropic_body(fields: Mapping[str, Any], model: str | None, run_params: Mapping[str, Any]) -> dict[str, Any]:
    """The ``params`` of an Anthropic line, filled in the same way. Raises RowError."""
    messages = fields["params"]["messages"]
    if type(messages) is not list or not messages:
        given = "an empty list" if messages == [] else kind_of(messages)
        raise RowError(f"'messages' must be a list of turns, not {given}")
    return _filled(fields["params"], model, run_params)


def _filled(body: Mapping[str, Any], model: str | None, run_params: Mapping[str, Any]) -> dict[str, Any]:
    kept = checked(body)
    filled = {**without_overridden(run_params, kept), **kept}
    filled["model"] = kept.get("model") or model
    return filled


def _api(fields: Mapping[str, Any]) -> str:
    if fields.get("method", "POST") != "POST":
        raise RowError("'method' must be POST")
    url = fields.get("url", "/chat/completions")
    for end, api in _APIS.items():
        if type(url) is str and url.rstrip("/").endswith(end):
            return api
    given = f"'{excerpt(url, 60)}'" if type(url) is str else kind_of(url)
    known = ", ".join(f"/v1{end}" for end in _APIS)
    raise RowError(f"'url' must end in one of {known}, not {given}")
