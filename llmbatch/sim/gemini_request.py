"""A generateContent request as the Gemini API reads it (Gemini API reference, "Generating content")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmbatch.sim.ask import (
    REASONING_TOKENS,
    Ask,
    Tool,
    Turn,
    any_json,
    prefixes_of,
    prompt_turn,
    tokens_of,
    tool_called,
)
from llmbatch.sim.dialect import json_object
from llmbatch.sim.fields import ARRAY, BOOLEAN, OBJECT, STRING, Field, check_fields, choice, integer, number
from llmbatch.sim.gemini import GEMINI, WORDS, invalid
from llmbatch.sim.schemas import ANYTHING, SchemaRules, complaint_about

_FIELDS = {
    "model": STRING,
    "contents": ARRAY,
    "systemInstruction": OBJECT,
    "generationConfig": OBJECT,
    "safetySettings": ARRAY,
    "tools": ARRAY,
    "toolConfig": OBJECT,
    "cachedContent": STRING,
    "serviceTier": choice("flex", "standard", "priority"),
    "store": BOOLEAN,
    "labels": OBJECT,
    "continuationToken": STRING,
}
_CONFIG_FIELDS = {
    "temperature": number(0, 2),
    "topP": number(0, 1),
    "topK": number(1),
    "candidateCount": integer(1, 8),
    "maxOutputTokens": integer(1),
    "stopSequences": ARRAY,
    "seed": integer(-(2**31), 2**31 - 1),
    "presencePenalty": number(-2, 2),
    "frequencyPenalty": number(-2, 2),
    "responseLogprobs": BOOLEAN,
    "logprobs": integer(0, 20),
    "responseMimeType": choice("text/plain", "application/json", "text/x.enum"),
    "responseSchema": OBJECT,
    "responseJsonSchema": OBJECT,
    "responseModalities": ARRAY,
    "mediaResolution": STRING,
    "speechConfig": OBJECT,
    "imageConfig": OBJECT,
    "enableEnhancedCivicAnswers": BOOLEAN,
    "thinkingConfig": OBJECT,
}
_THINKING_FIELDS = {
    "thinkingBudget": integer(-1),
    "thinkingLevel": choice("MINIMAL", "LOW", "MEDIUM", "HIGH", "XHIGH"),
    "includeThoughts": BOOLEAN,
}
_CONTENT_FIELDS = {"role": STRING, "parts": ARRAY}
_PART_FIELDS = {
    "text": STRING,
    "inlineData": OBJECT,
    "fileData": OBJECT,
    "functionCall": OBJECT,
    "functionResponse": OBJECT,
    "thought": BOOLEAN,
    "thoughtSignature": STRING,
    "videoMetadata": OBJECT,
    "mediaResolution": OBJECT,
}
_BLOB_FIELDS = {"mimeType": STRING, "data": STRING, "displayName": STRING}
_FILE_FIELDS = {"mimeType": STRING, "fileUri": STRING, "displayName": STRING}
_CALL_FIELDS = {"id": STRING, "name": STRING, "args": OBJECT}
_RESPONSE_FIELDS = {"id": STRING, "name": STRING, "response": OBJECT, "parts": ARRAY}
_TOOL_FIELDS = {
    "functionDeclarations": ARRAY,
    **dict.fromkeys(("googleSearch", "googleSearchRetrieval", "codeExecution", "urlContext", "googleMaps"), OBJECT),
    **dict.fromkeys(("fileSearch", "computerUse"), OBJECT),
}
_FUNCTION_FIELDS = {
    "name": STRING,
    "description": STRING,
    "parameters": OBJECT,
    "parametersJsonSchema": OBJECT,
    "response": OBJECT,
    "responseJsonSchema": OBJECT,
    "behavior": STRING,
}
_CALLING_FIELDS = {"mode": choice("AUTO", "ANY", "NONE", "VALIDATED"), "allowedFunctionNames": ARRAY}
_SAFETY_FIELDS = {"category": STRING, "threshold": STRING}
# The keywords that responseJsonSchema is documented to take.
_SCHEMA_RULES = SchemaRules(
    keywords=frozenset(
        {
            *("$id", "$defs", "$ref", "$anchor", "type", "format", "title", "description", "enum", "items"),
            *("prefixItems", "minItems", "maxItems", "minimum", "maximum", "anyOf", "oneOf", "properties"),
            *("additionalProperties", "required", "propertyOrdering"),
        }
    ),
    lone_references=True,
)


def camel(given: Any, table: Mapping[str, Field]) -> Any:
    """``given`` with the names of ``table`` that are written in snake_case, which proto JSON takes as well."""
    if not isinstance(given, dict) or given.keys() <= table.keys():
        return given
    return {_camel(name) if _camel(name) in table else name: value for name, value in given.items()}


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join([word.capitalize() for word in rest])


def parse_generate(body: bytes, model: str, stream: bool) -> Ask:
    """The request in ``body``; ApiError 400, as documented, when the API would refuse it."""
    fields: dict[str, Any] = camel(json_object(body, GEMINI), _FIELDS)
    check_fields(fields, _FIELDS, WORDS, required=("contents",))
    check_model(fields.get("model"), model)
    config = _config(fields.get("generationConfig"))
    turns = _turns(fields["contents"])
    if fields.get("systemInstruction") is not None:
        turns.insert(0, turn_of(fields["systemInstruction"], "systemInstruction", "system"))
    _check_safety(fields.get("safetySettings") or [])
    turn, tokens = prompt_turn(turns), tokens_of(turns)
    thinking = camel(config.get("thinkingConfig") or {}, _THINKING_FIELDS)
    return Ask(
        model=model,
        prompt=turn.text,
        prompt_tokens=tokens,
        max_tokens=config.get("maxOutputTokens"),
        n=config.get("candidateCount") or 1,
        stream=stream,
        images=turn.images,
        reasoning_tokens=_thinking_tokens(thinking),
        shows_thoughts=bool(thinking.get("includeThoughts")),
        schema=_schema(config, turn.text),
        tool=_tool(fields, turns) if fields.get("tools") or fields.get("toolConfig") else None,
        prefixes=prefixes_of(turns, tokens),
    )


def check_model(named: str | None, model: str) -> None:
    """A model in the body must be that of the path."""
    if named is not None and named != f"models/{model}":
        raise invalid(f"The model in the body, {named}, is not that of the URL, models/{model}.", "model")


def _config(given: Any) -> dict[str, Any]:
    config: dict[str, Any] = camel(given or {}, _CONFIG_FIELDS)
    where = "generationConfig"
    check_fields(config, _CONFIG_FIELDS, WORDS, where)
    if (stops := config.get("stopSequences")) and len(stops) > 5:
        raise invalid("The number of stop sequences must be at most 5.", f"{where}.stopSequences")
    schemas = [name for name in ("responseSchema", "responseJsonSchema") if config.get(name) is not None]
    if len(schemas) > 1:
        raise invalid("Only one of responseSchema and responseJsonSchema may be set.", where)
    if schemas and config.get("responseMimeType") != "application/json":
        message = f"{schemas[0]} needs responseMimeType 'application/json'."
        raise invalid(message, f"{where}.responseMimeType")
    return config


def _turns(contents: list[Any]) -> list[Turn]:
    if not contents:
        raise WORDS.missing("contents")
    return [turn_of(content, f"contents[{index}]") for index, content in enumerate(contents)]


def turn_of(content: Any, where: str, role: str = "user") -> Turn:
    """The text of ``content``, which is of ``role`` if it names none."""
    check_fields(content, _CONTENT_FIELDS, WORDS, where)
    if role == "user" and content.get("role") not in (None, "user", "model"):
        raise invalid("Please use a valid role: user, model.", f"{where}.role")
    if not content.get("parts"):
        raise invalid(f"* GenerateContentRequest.{where}.parts: contents.parts must not be empty.", f"{where}.parts")
    parts = [_part(part, f"{where}.parts[{index}]") for index, part in enumerate(content["parts"])]
    text = "".join([part["text"] for part in parts if part.get("text") and not part.get("thought")])
    if not text and any(part.get("functionResponse") is not None for part in parts):
        return Turn("tool", "")
    images = sum([_is_image(part) for part in parts])
    return Turn("assistant" if content.get("role") == "model" else role, text, images)


def _part(given: Any, where: str) -> dict[str, Any]:
    part: dict[str, Any] = camel(given, _PART_FIELDS)
    check_fields(part, _PART_FIELDS, WORDS, where)
    data = [
        name
        for name in ("text", "inlineData", "fileData", "functionCall", "functionResponse")
        if part.get(name) is not None
    ]
    if len(data) != 1:
        raise invalid(f"* {where}.data: required oneof field 'data' must have one initialized field", where)
    for name, table, required in (
        ("inlineData", _BLOB_FIELDS, ("mimeType", "data")),
        ("fileData", _FILE_FIELDS, ("fileUri",)),
        ("functionCall", _CALL_FIELDS, ("name",)),
        ("functionResponse", _RESPONSE_FIELDS, ("name", "response")),
    ):
        if part.get(name) is not None:
            part[name] = camel(part[name], table)
            check_fields(part[name], table, WORDS, f"{where}.{name}", required)
    return part


def _is_image(part: dict[str, Any]) -> bool:
    data = part.get("inlineData") or part.get("fileData") or {}
    return "fileUri" in data or str(data.get("mimeType", "")).startswith("image/")


def _check_safety(settings: list[Any]) -> None:
    for index, setting in enumerate(settings):
        check_fields(setting, _SAFETY_FIELDS, WORDS, f"safetySettings[{index}]", required=("category", "threshold"))


def _thinking_tokens(thinking: dict[str, Any]) -> int:
    check_fields(thinking, _THINKING_FIELDS, WORDS, "generationConfig.thinkingConfig")
    level, budget = thinking.get("thinkingLevel"), thinking.get("thinkingBudget")
    if level is not None and budget is not None:
        raise invalid("Only one of thinkingBudget and thinkingLevel may be set.", "generationConfig.thinkingConfig")
    if level is not None:
        return REASONING_TOKENS[level.lower()]
    if budget is None:
        return 0
    return REASONING_TOKENS["medium"] if budget < 0 else min(budget, REASONING_TOKENS["medium"])


def _schema(config: dict[str, Any], prompt: str) -> Any:
    """The schema the answer must fit, None for text."""
    schema = config.get("responseJsonSchema")
    if schema is not None:
        if why := complaint_about(schema, _SCHEMA_RULES):
            raise invalid(why, "generationConfig.responseJsonSchema")
        return schema
    if config.get("responseSchema") is not None:
        if why := complaint_about(config["responseSchema"], ANYTHING):
            raise invalid(why, "generationConfig.responseSchema")
        return config["responseSchema"]
    return any_json(prompt) if config.get("responseMimeType") == "application/json" else None


def _tool(fields: dict[str, Any], turns: list[Turn]) -> Tool | None:
    """The tool that is called."""
    tools = _declared(fields.get("tools") or [])
    settings = camel(fields.get("toolConfig") or {}, {"functionCallingConfig": OBJECT})
    table = {"functionCallingConfig": OBJECT, "retrievalConfig": OBJECT}
    check_fields(settings, table, WORDS, "toolConfig")
    calling = camel(settings.get("functionCallingConfig") or {}, _CALLING_FIELDS)
    check_fields(calling, _CALLING_FIELDS, WORDS, "toolConfig.functionCallingConfig")
    mode, allowed = calling.get("mode", "AUTO"), calling.get("allowedFunctionNames")
    if allowed:
        if mode not in ("ANY", "VALIDATED"):
            message = "allowedFunctionNames may only be set when mode is ANY or VALIDATED."
            raise invalid(message, "toolConfig.functionCallingConfig")
        if any(name not in [tool.name for tool in tools] for name in allowed):
            raise invalid("allowedFunctionNames names a function that is not declared.", "toolConfig")
        tools = [tool for tool in tools if tool.name in allowed]
    if mode == "ANY" and not tools:
        raise invalid("Function calling config is set without function_declarations.", "toolConfig")
    return None if mode == "NONE" else tool_called(tools, mode == "ANY", turns)


def _declared(given: list[Any]) -> list[Tool]:
    tools = []
    for index, entry in enumerate(given):
        entry = camel(entry, _TOOL_FIELDS)
        check_fields(entry, _TOOL_FIELDS, WORDS, f"tools[{index}]")
        for place, function in enumerate(entry.get("functionDeclarations") or []):
            tools.append(_function(function, f"tools[{index}].functionDeclarations[{place}]"))
    return tools


def _function(given: Any, where: str) -> Tool:
    function = camel(given, _FUNCTION_FIELDS)
    check_fields(function, _FUNCTION_FIELDS, WORDS, where, required=("name",))
    if function.get("parameters") is not None and function.get("parametersJsonSchema") is not None:
        raise invalid("Only one of parameters and parametersJsonSchema may be set.", where)
    parameters = function.get("parametersJsonSchema") or function.get("parameters")
    if parameters and (why := complaint_about(parameters, ANYTHING)):
        raise invalid(why, where)
    return Tool(function["name"], parameters or {"type": "object"})
