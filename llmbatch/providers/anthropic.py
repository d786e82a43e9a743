"""Anthropic Messages, spoken by Anthropic, and by DeepSeek, vLLM, Ollama and others beside their own dialect.

Source: Anthropic API reference, "Create a Message"; field names as in the official SDK 2.11 (``types``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmbatch.providers.answer import document_of
from llmbatch.providers.anthropic_answer import reply_of
from llmbatch.providers.anthropic_errors import understood
from llmbatch.providers.anthropic_refusals import check_body
from llmbatch.providers.anthropic_stream import MessagesStream
from llmbatch.providers.anthropic_turns import turns_of
from llmbatch.providers.limit_headers import anthropic_limits
from llmbatch.providers.members import refuse_unknown_members
from llmbatch.providers.neutral import neutral
from llmbatch.providers.openai_errors import request_id
from llmbatch.providers.schema_forms import anthropic_schema
from llmbatch.providers.sse import EventDecoder
from llmbatch.records import Failure, Reply, Request
from llmbatch.rules.answer import is_object
from llmbatch.rules.limits import Limits
from llmbatch.rules.reasons import RowError, excerpt, kind_of

Body = dict[str, Any]

# The one that takes all fields of the newer 2026-10-21, and the sampling parameters too.
API_VERSION = "2023-06-01"
# The API wants to be told, and what a model can write at most is not known here. No model that answers today writes
# less; a model that thinks spends a part of it on that. An answer that ends here says so: finish_reason "length".
DEFAULT_MAX_TOKENS = 4096

_SAME = ("temperature", "top_p", "top_k", "service_tier")
_NO_WORD = ("seed", "n", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "verbosity",
            "store")  # fmt: skip
_CHOICES = {"auto": "auto", "required": "any", "none": "none"}


class Anthropic:
    """The dialect. ``api_version`` goes as the header ``anthropic-version``; 2026-10-21 takes less."""

    name = "anthropic"
    streams = True
    embeds = False
    max_body_bytes: int | None = 32 * 2**20  # API reference, "Errors", request size limits

    def __init__(self, api_version: str | None = None) -> None:
        self._api_version = api_version or API_VERSION
        self.headers: Mapping[str, str] = {"anthropic-version": self._api_version}

    def path(self, model: str, *, stream: bool = False) -> str:
        """The same for all models."""
        return "/messages"

    def encode(self, request: Request) -> Mapping[str, Any]:
        """The JSON body. A row's own ``body`` goes as it is, with the run's schema; all else is translated.

        Raises RowError also for what this model, or this version of the API, is known to refuse.
        """
        if request.body is not None and request.api == self.name:
            body = _with_schema(request.body, request.schema)
        else:
            body = _translated(neutral(request))
        check_body(body, self._api_version)
        return body

    def streamed(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The same body, streamed. The usage comes unasked."""
        return {**body, "stream": True}

    def decode(self, status: int, headers: Mapping[str, str], body: bytes) -> Reply | Failure:
        """A whole answer. ``ok`` needs 200, complete JSON, and content that is no refusal."""
        document = document_of(status, headers, body)
        if isinstance(document, Failure):
            return understood(document, status, headers, body)
        reply = reply_of(document)
        if isinstance(reply, Failure):
            return replace(reply, http_status=status, request_id=request_id(headers))
        return reply

    def limits(self, headers: Mapping[str, str], time_s: float) -> Limits:
        """The ``anthropic-ratelimit-*`` family."""
        return anthropic_limits(headers, time_s)

    def events(self) -> EventDecoder:
        """Server-Sent Events; their names stand in the data too."""
        return EventDecoder()

    def stream_decoder(self) -> MessagesStream:
        """A decoder for one streamed answer."""
        return MessagesStream()


def _with_schema(body: Mapping[str, Any], schema: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if schema is None:
        return body
    output_config = body.get("output_config")
    said = output_config if isinstance(output_config, dict) else {}
    return {**body, "output_config": {**said, "format": _format(schema)}}


def _translated(request: Request) -> Body:
    if request.input is not None:
        raise RowError("'input' is for embeddings models; a chat model takes 'prompt' or 'messages'")
    given = {**request.extra, **request.params}
    if given.get("n") == 1:  # what it gives anyway
        del given["n"]
    for name in _NO_WORD:
        if name in given:
            raise RowError(f"Anthropic has no word for '{name}': leave it out")
    refuse_unknown_members(request.messages, Anthropic.name)
    system, turns = turns_of(request.messages)
    body: Body = {"model": request.model, "max_tokens": _max_tokens(given), "messages": turns}
    if system:
        body["system"] = system
    if given or request.schema is not None:
        _add_params(body, given, request.schema)
    return body


def _add_params(body: Body, given: Body, schema: Mapping[str, Any] | None) -> None:
    """Put into ``body`` what ``given`` says, word by word; what remains are fields of the API itself."""
    for name in _SAME:
        if name in given:
            body[name] = given.pop(name)
    if "stop" in given:
        stop = given.pop("stop")
        body["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    if "tools" in given:
        body["tools"] = [_tool(tool) for tool in _list_of(given.pop("tools"), "tools")]
    if choice := _tool_choice(given.pop("tool_choice", None), given.pop("parallel_tool_calls", True), "tools" in body):
        body["tool_choice"] = choice
    if metadata := _metadata(given.pop("metadata", None), given.pop("user", None)):
        body["metadata"] = metadata
    if output_config := _output_config(given.pop("reasoning_effort", None), given.pop("response_format", None), schema):
        body["output_config"] = output_config
    for name, value in given.items():
        body[name] = _joined(body[name], value, name) if name in body else value


def _max_tokens(given: Body) -> Any:
    """Taken out of ``given``, under either name."""
    limits = [given.pop(name) for name in ("max_completion_tokens", "max_tokens") if name in given]
    if len(limits) == 2 and limits[0] != limits[1]:
        raise RowError("'max_tokens' and 'max_completion_tokens' are the same for Anthropic: leave one of them out")
    return limits[0] if limits else DEFAULT_MAX_TOKENS


def _tool(tool: Any) -> Any:
    """A function as Chat Completions describes it; the API's own tools as they are."""
    if not isinstance(tool, dict):
        raise RowError(f"a tool must be an object, not {kind_of(tool)}")
    if "input_schema" in tool or tool.get("type", "function") != "function":
        return tool
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError(
            'a tool must be {"type": "function", "function": {"name": …, "parameters": …}}, or one of Anthropic\'s, '
            'like {"name": …, "input_schema": …}'
        )
    said = {name: value for name, value in function.items() if name != "parameters" and value is not None}
    more = {name: value for name, value in tool.items() if name not in ("type", "function")}
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    return {**said, "input_schema": parameters, **more}


def _tool_choice(choice: Any, parallel: Any, has_tools: bool) -> Body | None:
    found = _choice(choice)
    if parallel or not has_tools or (found or {}).get("type") == "none":
        return found
    return {**(found or {"type": "auto"}), "disable_parallel_tool_use": True}


def _choice(choice: Any) -> Body | None:
    if choice is None:
        return None
    if isinstance(choice, str) and choice in _CHOICES:
        return {"type": _CHOICES[choice]}
    if isinstance(choice, dict):
        function = choice.get("function")
        if choice.get("type") == "function" and isinstance(function, dict) and isinstance(function.get("name"), str):
            return {"type": "tool", "name": function["name"]}
        if choice.get("type") in ("auto", "any", "tool", "none"):
            return choice
    raise RowError(
        f"'tool_choice' may be {', '.join(_CHOICES)}, or name one function, for Anthropic, "
        f"not {excerpt(repr(choice), 60)}"
    )


def _metadata(metadata: Any, user: Any) -> Body:
    said = dict(metadata) if isinstance(metadata, dict) else {}
    for name in said:
        if name != "user_id":
            raise RowError(f"Anthropic's 'metadata' takes only 'user_id', not '{excerpt(str(name), 40)}': leave it out")
    if user is not None and said.setdefault("user_id", user) != user:
        raise RowError("'user' contradicts 'user_id' in 'metadata': leave one of them out")
    return said


def _output_config(effort: Any, response_format: Any, schema: Mapping[str, Any] | None) -> Body:
    config: Body = {}
    if effort is not None:
        if effort in ("none", "minimal"):
            raise RowError(
                f"Anthropic has no 'reasoning_effort' of '{effort}': low is the least; "
                '-p \'thinking={"type": "disabled"}\' turns thinking off where the model allows it'
            )
        config["effort"] = effort
    if schema is None and response_format is not None:
        schema = _schema_of(response_format)
    if schema is not None:  # --schema takes the place of a row's response_format, as in the other dialects
        config["format"] = _format(schema)
    return config


def _schema_of(response_format: Any) -> Mapping[str, Any] | None:
    """The schema in a ``response_format``; None for plain text."""
    said = response_format if isinstance(response_format, dict) else {}
    if said.get("type") == "text":
        return None
    described = said.get("json_schema")
    schema = described.get("schema") if isinstance(described, dict) else None
    if said.get("type") != "json_schema" or not isinstance(schema, dict):
        raise RowError(
            "'response_format' must be of the type json_schema, with a schema in it: Anthropic does not promise JSON "
            "without one; use --schema"
        )
    if not is_object(schema):  # it would be sent inside another, and nobody would take the answer out of that again
        raise RowError("the schema of 'response_format' must describe an object; use --schema for other values")
    return schema


def _format(schema: Mapping[str, Any]) -> Body:
    return {"type": "json_schema", "schema": anthropic_schema(schema)}


def _joined(ours: Any, theirs: Any, name: str) -> Any:
    """A field that was said in neutral words and in the API's own: objects are joined, nothing is overridden."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        both = {key: _joined(ours[key], theirs[key], f"{name}.{key}") for key in ours.keys() & theirs.keys()}
        return {**ours, **theirs, **both}
    if ours != theirs:
        raise RowError(
            f"'{excerpt(name, 60)}' is said twice, in Anthropic's words and in others: leave one of them out"
        )
    return ours


def _list_of(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise RowError(f"'{name}' must be a list, not {kind_of(value)}")
    return value
