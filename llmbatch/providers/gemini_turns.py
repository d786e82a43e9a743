"""A conversation in the shape of Chat Completions, as Gemini's ``contents`` and ``systemInstruction``.

Source: Gemini API reference, "Content", "Part", "FunctionCall", "FunctionResponse"; guide "Thought signatures".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from llmbatch.rules.reasons import RowError, excerpt

_SYSTEM = ("system", "developer")
_ROLES = {"user": "user", "assistant": "model", "tool": "user"}
_SAID = {"role", "content", "refusal", "tool_calls", "tool_call_id"}
# Files that Gemini reads where they are: its own, and those of Google Cloud Storage.
_GOOGLE_FILES = ("https://generativelanguage.googleapis.com/", "gs://")
_MIME_TYPES = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "gif": "image/gif",
    "heic": "image/heic",
    "heif": "image/heif",
    "pdf": "application/pdf",
}

Message = Mapping[str, Any]
Part = dict[str, Any]


def system_of(messages: Sequence[Message]) -> list[Part]:
    """The texts of all system messages; Gemini has one place for them, before the conversation."""
    return [
        part
        for where, message in _numbered(messages)
        if message.get("role") in _SYSTEM
        for part in _texts(message.get("content"), where)
        if part["text"]
    ]


def contents_of(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The turns, with those of one role that follow each other made one. Raises RowError for what has no word."""
    turns: list[dict[str, Any]] = []
    called: dict[str, str] = {}
    for where, message in _numbered(messages):
        _check_members(message, where)
        if message.get("role") in _SYSTEM:
            continue
        role = _ROLES.get(str(message.get("role")))
        if role is None:
            raise RowError(f"{where}: Gemini has no role {excerpt(repr(message.get('role')), 40)}")
        parts = list(_parts_of(message, where, called))
        if turns and turns[-1]["role"] == role:
            turns[-1]["parts"] += parts
        else:
            turns.append({"role": role, "parts": parts})
    if not turns:
        raise RowError("Gemini needs a user's message besides the system's")
    return turns


def _numbered(messages: Sequence[Message]) -> Iterator[tuple[str, Message]]:
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise RowError(f"messages[{number}] is no object")
        yield f"messages[{number}]", message


def _check_members(message: Message, where: str) -> None:
    for name in message.keys() - _SAID:
        if message[name] and not (name == "name" and message.get("role") == "tool"):
            raise RowError(f"{where}: Gemini has no word for '{excerpt(str(name), 40)}': leave it out")


def _parts_of(message: Message, where: str, called: dict[str, str]) -> Iterator[Part]:
    """``called`` are the functions of the calls so far, by the calls' ids."""
    if message["role"] == "tool":
        yield _function_response(message, where, called)
        return
    calls = message.get("tool_calls") or []
    content = message.get("content")
    if content is not None and not (content == "" and calls):
        yield from _content(content, where)
    if refusal := message.get("refusal"):
        yield {"text": _string(refusal, f"{where}.refusal")}
    if calls and (message["role"] != "assistant" or not isinstance(calls, list)):
        raise RowError(f"{where}: 'tool_calls' must be a list, in an assistant's message")
    for number, call in enumerate(calls):
        yield _function_call(call, f"{where}.tool_calls[{number}]", called)


def _content(content: Any, where: str) -> Iterator[Part]:
    if isinstance(content, str):
        yield {"text": content}
        return
    if not isinstance(content, list):
        raise RowError(f"{where}: the content must be a string or a list of parts")
    for number, part in enumerate(content):
        yield _part(part, f"{where}.content[{number}]")


def _texts(content: Any, where: str) -> Iterator[Part]:
    """Content where nothing but text can stand; no content is no text."""
    for part in _content(content or "", where):
        if "text" not in part:
            raise RowError(f"{where}: Gemini takes only text in this message")
        yield part


def _part(part: Any, where: str) -> Part:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("text", "refusal"):
        return {"text": _string(part.get(kind), where)}
    if kind == "image_url":
        return _image(part.get("image_url"), where)
    raise RowError(
        f"{where}: a part of type {excerpt(repr(kind), 40)} can not be said to Gemini; text and image_url can, the "
        "latter with a data: URL of any type that the model reads"
    )


def _image(image: Any, where: str) -> Part:
    url = image.get("url") if isinstance(image, Mapping) else image
    if isinstance(image, Mapping) and image.get("detail") not in (None, "auto"):
        raise RowError(f"{where}: Gemini has no 'detail' of a picture; use 'generationConfig.mediaResolution' for all")
    url = _string(url, f"{where}.image_url")
    if url[:5].lower() == "data:":
        return _inline(url, where)
    if not url.startswith(_GOOGLE_FILES):
        raise RowError(
            f"{where}: Gemini fetches no pictures from {excerpt(url, 60)}; give the path of a local file, a data: URL, "
            "or the URI of a file that was uploaded to Gemini"
        )
    mime_type = _MIME_TYPES.get(url.rpartition("/")[2].rpartition(".")[2].lower())
    return {"fileData": {"fileUri": url} | ({"mimeType": mime_type} if mime_type else {})}


def _inline(url: str, where: str) -> Part:
    head, _, data = url[5:].partition(",")
    mime_type, *parameters = head.split(";")
    if not mime_type or not data or "base64" not in parameters:
        raise RowError(f"{where}: a data: URL must be like data:image/png;base64,…")
    return {"inlineData": {"mimeType": mime_type, "data": data}}


def _function_call(call: Any, where: str, called: dict[str, str]) -> Part:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise RowError(f"{where}: only calls of functions can be said to Gemini")
    name = _string(function.get("name"), f"{where}.function.name")
    said: dict[str, Any] = {"name": name, "args": _arguments(function.get("arguments"), where)}
    if isinstance(identity := call.get("id"), str):
        called[identity] = name
        said = {"id": identity, **said}
    return {"functionCall": said} | _signature(call)


def _arguments(text: Any, where: str) -> dict[str, Any]:
    try:
        arguments = orjson.loads(text or "{}")
    except (orjson.JSONDecodeError, TypeError):
        arguments = None
    if not isinstance(arguments, dict):
        raise RowError(f"{where}: the arguments must be a JSON object, written as a string")
    return arguments


def _signature(call: Message) -> Part:
    """What a thinking model signed its call with, and refuses to do without when it is sent back."""
    extra = call.get("extra_content")
    google = extra.get("google") if isinstance(extra, Mapping) else None
    signature = google.get("thought_signature") if isinstance(google, Mapping) else None
    return {"thoughtSignature": signature} if isinstance(signature, str) else {}


def _function_response(message: Message, where: str, called: Mapping[str, str]) -> Part:
    identity = message.get("tool_call_id")
    if not isinstance(identity, str) or identity not in called:
        raise RowError(f"{where}: its 'tool_call_id' is that of no call before it, so the function is not known")
    text = "".join(part["text"] for part in _texts(message.get("content"), where))
    return {"functionResponse": {"id": identity, "name": called[identity], "response": _object_of(text)}}


def _object_of(text: str) -> dict[str, Any]:
    """A response must be an object; "result" is one of the names that the reference proposes for anything else."""
    try:
        response = orjson.loads(text)
    except orjson.JSONDecodeError:
        response = None
    return response if isinstance(response, dict) else {"result": text}


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"{where} must be a string")
    return value
