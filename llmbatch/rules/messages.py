"""Is this a conversation that can be sent? Only what every provider would refuse is refused here."""

from __future__ import annotations

from typing import Any

from llmbatch.rules.images import split_images, with_image_urls
from llmbatch.rules.reasons import RowError, excerpt, kind_of

# OpenAI API reference, "Create chat completion", messages.
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
# An assistant's turn may have one of these in place of content.
_INSTEAD_OF_CONTENT = ("tool_calls", "function_call", "refusal", "audio")


def check_messages(messages: Any) -> None:
    """Raises RowError, naming the message, unless ``messages`` is a list of turns with something in them."""
    if type(messages) is not list:
        raise RowError(f"'messages' must be a list, not {kind_of(messages)}")
    if not messages:
        raise RowError("'messages' is empty")
    something = False
    for position, message in enumerate(messages):
        something |= _says_something(message, position)
    if not something:
        raise RowError("all messages are empty")


def prompt_message(prompt: Any) -> dict[str, Any]:
    """The user's turn that asks ``prompt``. Raises RowError if it is no text, or an empty one."""
    if type(prompt) is not str:
        raise RowError(f"'prompt' must be a string, not {kind_of(prompt)}")
    if not prompt or prompt.isspace():
        raise RowError("the prompt is empty")
    return {"role": "user", "content": prompt}


def rendered_message(text: str, nonce: str) -> dict[str, Any]:
    """The user's turn that a template gave: in parts if images stand in it. Raises RowError if it is empty."""
    message = prompt_message(text)
    parts = split_images(text, nonce)
    return message if parts is None else {**message, "content": parts}


def normalised(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Checked ``messages``, images in one form (rules/images.py); the same list if there are none."""
    if not any(map(_has_image, messages)):
        return messages
    return [
        {**message, "content": with_image_urls(message["content"], f"messages[{position}].content")}
        if _has_image(message)
        else message
        for position, message in enumerate(messages)
    ]


def has_system(messages: list[dict[str, Any]]) -> bool:
    return any(message["role"] in ("system", "developer") for message in messages)


def _has_image(message: dict[str, Any]) -> bool:
    content = message.get("content")
    return type(content) is list and any(part["type"] in ("image", "image_url") for part in content)


def _says_something(message: Any, position: int) -> bool:
    if type(message) is not dict:
        raise RowError(f"messages[{position}] must be an object, not {kind_of(message)}")
    role = message.get("role")
    if role not in ROLES:
        given = f"'{excerpt(role, 40)}'" if type(role) is str else kind_of(role) if role is not None else "missing"
        raise RowError(f"the role of messages[{position}] is {given}: it must be one of {', '.join(ROLES)}")
    content = message.get("content")
    if type(content) is str:
        return bool(content) and not content.isspace()
    if type(content) is list and content:
        _check_parts(content, position)
        return True
    if content is None and role == "assistant" and any(message.get(name) for name in _INSTEAD_OF_CONTENT):
        return True
    given = "an empty list" if content == [] else kind_of(content)
    raise RowError(f"the content of messages[{position}] must be a string or a list of parts, not {given}")


def _check_parts(parts: list[Any], position: int) -> None:
    for number, part in enumerate(parts):
        where = f"messages[{position}].content[{number}]"
        if type(part) is not dict or type(part.get("type")) is not str:
            raise RowError(f'{where} must be an object with a "type", like {{"type": "text", "text": "…"}}')
        if part["type"] == "text" and type(part.get("text")) is not str:
            raise RowError(f"the text of {where} must be a string, not {kind_of(part.get('text'))}")
