"""Gemini's ``generateContent`` (Developer API).

Source: Gemini API reference, "Generating content", and the official SDK google-genai 3.4 (wire names, which fields
stand beside ``generationConfig`` and which in it).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from llmbatch.providers.answer import bad_answer
from llmbatch.providers.gemini_answer import GeminiAnswer
from llmbatch.providers.gemini_errors import decoded
from llmbatch.providers.gemini_stream import GeminiEvents, GeminiStream
from llmbatch.providers.gemini_turns import contents_of, system_of
from llmbatch.providers.members import refuse_unknown_members
from llmbatch.providers.neutral import neutral
from llmbatch.providers.schema_forms import gemini_schema
from llmbatch.records import Failure, Reply, Request
from llmbatch.rules.limits import NO_LIMITS, Limits
from llmbatch.rules.params import checked
from llmbatch.rules.reasons import RowError, excerpt

# Of an inline request: Gemini API guide, "Batch API"; larger ones are allowed for some inputs only.
MAX_BODY_BYTES = 20 * 10**6

# Neutral names that only have another spelling in ``generationConfig``.
_IN_CONFIG = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "max_tokens": "maxOutputTokens",
    "max_completion_tokens": "maxOutputTokens",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
    "logprobs": "responseLogprobs",
    "top_logprobs": "logprobs",
    "n": "candidateCount",
}
_EFFORTS = ("minimal", "low", "medium", "high", "xhigh")
# Models that know a budget and no levels; what Google's OpenAI-compatible endpoint makes of an effort
# (Gemini API guide, "OpenAI compatibility").
_BY_BUDGET = "gemini-2.5"
_BUDGETS = {"minimal": 1024, "low": 1024, "medium": 8192, "high": 24576}
# "auto" is what the server does when nothing is said.
_TIERS = {"auto": None, "default": "standard", "standard": "standard", "flex": "flex", "priority": "priority"}
_NO_WORD = ("logit_bias", "verbosity", "user", "metadata")
# All neutral names that are understood or refused here; any other is Gemini's own. The model stands in the path.
_TRANSLATED = frozenset(
    {*_IN_CONFIG, *_NO_WORD, "model", "stop", "reasoning_effort", "response_format", "tools", "tool_choice"}
    | {"parallel_tool_calls", "service_tier", "store"}
)

Json = dict[str, Any]


class Gemini:
    """The dialect. The base URL ends in the version; the model stands in the path, and so does streaming."""

    name = "gemini"
    headers: Mapping[str, str] = {}
    streams = True
    embeds = False
    max_body_bytes: int | None = MAX_BODY_BYTES

    def path(self, model: str, *, stream: bool = False) -> str:
        """The endpoint of ``model``, which may be a tuned one (``tunedModels/NAME``)."""
        return f"/{resource_of(model)}:{'streamGenerateContent?alt=sse' if stream else 'generateContent'}"

    def encode(self, request: Request) -> Mapping[str, Any]:
        """The JSON body. A row's own ``body`` goes as it is; other names than the neutral ones are merged into it."""
        if request.body is not None and request.api == self.name and request.schema is None:
            return request.body
        request = neutral(request)
        if request.input is not None:
            raise RowError("'input' is for embeddings models; a chat model takes 'prompt' or 'messages'")
        refuse_unknown_members(request.messages, self.name)
        body: Json = {"contents": contents_of(request.messages)}
        if system := system_of(request.messages):
            body["systemInstruction"] = {"parts": system}
        given = checked({**request.extra, **request.params})
        _merge_into(body, _config_of(given, request.schema, request.model))
        _merge_into(body, _beside_config(given))
        _merge_into(body, {name: value for name, value in given.items() if name not in _TRANSLATED})
        return body

    def streamed(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The same body: the path says that the answer is to be streamed."""
        return body

    def decode(self, status: int, headers: Mapping[str, str], body: bytes) -> Reply | Failure:
        """A whole answer. ``ok`` needs 200, complete JSON, and a candidate with its finish reason."""
        return decoded(status, headers, body, _reply_of)

    def limits(self, headers: Mapping[str, str], time_s: float) -> Limits:
        """Gemini says nothing of its limits in headers."""
        return NO_LIMITS

    def events(self) -> GeminiEvents:
        """Server-Sent Events, and errors without their framing."""
        return GeminiEvents()

    def stream_decoder(self) -> GeminiStream:
        """A decoder for one streamed answer."""
        return GeminiStream()


def resource_of(model: str) -> str:
    """The model as a path: ``models/NAME``, or ``tunedModels/NAME``. What could leave the path is quoted."""
    kind, slash, name = model.partition("/")
    if slash and kind in ("models", "tunedModels"):
        return f"{kind}/{quote(name, safe='')}"
    return f"models/{quote(model, safe='')}"


def _reply_of(document: Any) -> Reply | Failure:
    if not isinstance(document, dict):
        return bad_answer("the answer is no JSON object")
    answer = GeminiAnswer()
    answer.take(document)
    return answer.ended(bad_answer("the answer has no candidates[0].finishReason, so it may be cut short"))


def _config_of(given: Json, schema: Mapping[str, Any] | None, model: str) -> Json:
    """What ``generationConfig`` says."""
    config: Json = {}
    for name, field in _IN_CONFIG.items():
        if name in given and config.setdefault(field, given[name]) != given[name]:
            raise RowError(f"'{name}' contradicts another parameter for Gemini's '{field}': leave one of them out")
    if "stop" in given:
        config["stopSequences"] = [given["stop"]] if isinstance(given["stop"], str) else given["stop"]
    if "reasoning_effort" in given:
        config["thinkingConfig"] = _thinking(given["reasoning_effort"], model)
    if schema is not None:
        config |= _held_to(schema)
    elif "response_format" in given:
        config |= _format(given["response_format"])
    return {"generationConfig": config} if config else {}


def _beside_config(given: Json) -> Json:
    """What stands beside it. Raises RowError for what Gemini has no word for."""
    for name in _NO_WORD:
        if name in given:
            raise RowError(f"Gemini has no word for '{name}': leave it out")
    if not given.get("parallel_tool_calls", True):
        raise RowError("Gemini can not be told to call one tool at a time: leave 'parallel_tool_calls' out")
    body: Json = {"store": given["store"]} if "store" in given else {}
    if "service_tier" in given and (tier := _tier(given["service_tier"])):
        body["serviceTier"] = tier
    tools = given.get("tools", [])
    if "tools" in given:
        body["tools"] = _tools(tools)
    if calling := _calling(given.get("tool_choice"), any(map(_is_strict, tools))):
        body["toolConfig"] = {"functionCallingConfig": calling}
    return body


def _merge_into(body: Json, more: Mapping[str, Any]) -> None:
    """Objects are merged, at every depth; anything else of ``more`` replaces what was there."""
    for name, value in more.items():
        ours = body.get(name)
        if isinstance(ours, dict) and isinstance(value, Mapping):
            body[name] = inner = dict(ours)
            _merge_into(inner, value)
        else:
            body[name] = value


def _held_to(schema: Mapping[str, Any]) -> Json:
    return {"responseMimeType": "application/json", "responseJsonSchema": gemini_schema(schema)}


def _thinking(effort: str, model: str) -> Json:
    if effort == "none":
        return {"thinkingBudget": 0}
    known = tuple(_BUDGETS) if _BY_BUDGET in model else _EFFORTS
    if effort not in known:
        raise RowError(f"'reasoning_effort' may be none, {', '.join(known)} for {model}, not '{excerpt(effort, 40)}'")
    return {"thinkingBudget": _BUDGETS[effort]} if _BY_BUDGET in model else {"thinkingLevel": effort.upper()}


def _format(said: Mapping[str, Any]) -> Json:
    kind = said.get("type")
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"responseMimeType": "application/json"}
    described = said.get("json_schema")
    schema = described.get("schema") if isinstance(described, dict) else None
    if kind != "json_schema" or not isinstance(schema, dict):
        raise RowError(
            "'response_format' must be of type text, json_object, or json_schema with a 'json_schema' that has a "
            "'schema'; or use --schema"
        )
    return _held_to(schema)


def _tools(given: list[Json]) -> list[Json]:
    """Functions in the shape of Chat Completions become declarations, together; Gemini's own tools go as they are."""
    functions = [_declaration(tool) for tool in given if "type" in tool]
    own = [tool for tool in given if "type" not in tool]
    return ([{"functionDeclarations": functions}] if functions else []) + own


def _declaration(tool: Mapping[str, Any]) -> Json:
    function = tool.get("function")
    if tool["type"] != "function" or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError(
            'a tool must be {"type": "function", "function": {"name": …}} or one of Gemini\'s own, like '
            f'{{"googleSearch": {{}}}}, not of type {excerpt(repr(tool["type"]), 40)}'
        )
    beside = [name for name in tool if name not in ("type", "function")]
    for name in [*beside, *(function.keys() - {"name", "description", "parameters", "strict"})]:
        raise RowError(f"Gemini has no word for '{excerpt(name, 40)}' of a function: leave it out")
    named = {"name": "name", "description": "description", "parameters": "parametersJsonSchema"}
    return {theirs: function[ours] for ours, theirs in named.items() if function.get(ours) is not None}


def _is_strict(tool: Mapping[str, Any]) -> bool:
    function = tool.get("function")
    return isinstance(function, dict) and function.get("strict") is True


def _calling(choice: str | Json | None, strict: bool) -> Json:
    """Who decides on calls. VALIDATED is AUTO with calls that fit their schemas: what ``strict`` tools ask for."""
    if choice in (None, "auto"):
        return {"mode": "VALIDATED"} if strict else {"mode": "AUTO"} if choice else {}
    if choice in ("none", "required"):
        return {"mode": {"none": "NONE", "required": "ANY"}[str(choice)]}
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise RowError(
            "'tool_choice' may be auto, none, required or "
            '{"type": "function", "function": {"name": …}} for Gemini; more is said by \'toolConfig\''
        )
    return {"mode": "ANY", "allowedFunctionNames": [name]}


def _tier(name: str) -> str | None:
    if name not in _TIERS:
        raise RowError(f"'service_tier' may be {', '.join(_TIERS)} for Gemini, not '{excerpt(name, 40)}'")
    return _TIERS[name]
