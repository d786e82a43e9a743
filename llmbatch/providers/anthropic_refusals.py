"""What the models and versions of Anthropic's API are known to answer with 400, refused here before it is sent: every
row would pay a round trip for it.

Only what the documentation says of a model is here; a model that it does not name is asked, and says itself.

Sources: Anthropic, "Versions", "Migrating to 2026-10-21", the pages of the models, "What's new in Claude 4.6" (no
prefill), guide "Mid-conversation system messages"; litellm 1.109, ``supports_sampling_params``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from llmbatch.rules.reasons import RowError, excerpt

Body = Mapping[str, Any]
Version = tuple[int, int]
Models = Mapping[str, tuple[Version, Version]]
"""Families of models, each with the first and the last version of which something holds."""

# The version of the API that knows no sampling parameters.
STRICT_VERSION = "2026-10-21"

# claude-opus-4-8-20260528, claude-haiku-5.5, us.anthropic.claude-opus-4-6-v1; a date is no minor version.
_NAME = re.compile(r"claude-([a-z]+)-(\d{1,2})(?!\d)(?:[-.](\d{1,2})(?!\d))?")
# claude-3-5-sonnet-20241022, claude-3-haiku-20240307
_OLD_NAME = re.compile(r"claude-(\d)(?:[-.](\d))?-([a-z]+)")

_FIRST, _LAST = (0, 0), (999, 0)
_ALL = (_FIRST, _LAST)

_THINKS_BY_ITSELF: Models = {
    "opus": ((4, 7), _LAST),
    "sonnet": ((5, 0), _LAST),
    "haiku": ((5, 5), (5, 5)),
    "fable": _ALL,
    "mythos": _ALL,
}
_FREE_CHOICE: Models = {"opus": ((5, 5), (5, 5)), "sonnet": ((5, 5), (5, 5)), "fable": ((5, 1), (5, 1))}
_ALWAYS_THINKS: Models = {**_FREE_CHOICE, "fable": _ALL}
_NO_PREFILL: Models = {"opus": ((4, 6), _LAST), "sonnet": ((4, 6), _LAST), "fable": _ALL}
_SYSTEM_FIRST: Models = {"opus": (_FIRST, (4, 7)), "sonnet": (_FIRST, (4, 6)), "haiku": (_FIRST, (4, 5))}


@dataclass(frozen=True, slots=True)
class _Refusal:
    """``models`` refuse ``what`` a body for which ``asked`` is true holds; ``instead`` is the way out."""

    models: Models
    what: str
    asked: Callable[[Body], bool]
    instead: str


def check_body(body: Body, api_version: str) -> None:
    """Raises RowError, naming the model, the field and the way out, for a body that would be answered with 400."""
    model = body.get("model")
    for refusal in _refusals_of(model) if isinstance(model, str) else ():
        if refusal.asked(body):
            raise RowError(f"{excerpt(str(model), 60)} refuses {refusal.what}: {refusal.instead}")
    if api_version == STRICT_VERSION:
        _check_strictly(body)


@lru_cache(maxsize=256)
def _refusals_of(model: str) -> tuple[_Refusal, ...]:
    family, version = _parsed(model)
    return tuple(one for one in _REFUSALS if _holds(one.models, family, version))


def _holds(models: Models, family: str, version: Version) -> bool:
    if family not in models:
        return False
    first, last = models[family]
    return first <= version <= last


def _parsed(model: str) -> tuple[str, Version]:
    """Family and version; an empty family for a name that is not of this kind."""
    if found := _NAME.search(model):
        return found[1], (int(found[2]), int(found[3] or 0))
    if found := _OLD_NAME.search(model):
        return found[3], (int(found[1]), int(found[2] or 0))
    return "", _FIRST


def _has(name: str) -> Callable[[Body], bool]:
    return lambda body: name in body


def _type_in(body: Body, name: str) -> Any:
    value = body.get(name)
    return value.get("type") if isinstance(value, dict) else None


def _is_prefilled(body: Body) -> bool:
    """Whether the last turn is the start of the answer; what the server's own tools left is not."""
    turns = body.get("messages")
    last = turns[-1] if isinstance(turns, list) and turns else None
    if not isinstance(last, dict) or last.get("role") != "assistant":
        return False
    content = last.get("content")
    return isinstance(content, str) or all(block.get("type") == "text" for block in _blocks_of(last))


def _has_system_turn(body: Body) -> bool:
    return any(turn.get("role") == "system" for turn in _turns_of(body))


def _turns_of(body: Body) -> Iterator[Body]:
    turns = body.get("messages")
    return (turn for turn in turns if isinstance(turn, dict)) if isinstance(turns, list) else iter(())


def _blocks_of(turn: Body) -> Iterator[Body]:
    content = turn.get("content")
    return (block for block in content if isinstance(block, dict)) if isinstance(content, list) else iter(())


_SAMPLING = ("temperature", "top_p", "top_k")
_REFUSALS = (
    *(
        _Refusal(_THINKS_BY_ITSELF, f"'{name}'", _has(name), "leave it out, and say in the prompt what is wanted")
        for name in _SAMPLING
    ),
    _Refusal(
        _THINKS_BY_ITSELF,
        "'thinking' of the type enabled, with 'budget_tokens'",
        lambda body: _type_in(body, "thinking") == "enabled",
        "leave it out, and use reasoning_effort",
    ),
    _Refusal(
        _ALWAYS_THINKS,
        "'thinking' of the type disabled",
        lambda body: _type_in(body, "thinking") == "disabled",
        "leave it out, and use reasoning_effort low",
    ),
    _Refusal(
        _FREE_CHOICE,
        "a forced 'tool_choice'",
        lambda body: _type_in(body, "tool_choice") in ("any", "tool"),
        "use auto, or --schema for an answer in a given form",
    ),
    _Refusal(
        _NO_PREFILL,
        "a conversation that ends with the assistant's text",
        _is_prefilled,
        "end it with a user's message; --schema gives the answer a form",
    ),
    _Refusal(_SYSTEM_FIRST, "a system message after other messages", _has_system_turn, "put it first"),
)


def _check_strictly(body: Body) -> None:
    """What version 2026-10-21 of the API refuses of every model."""
    for name in _SAMPLING:
        if name in body:
            raise _strict(f"'{name}'")
    for turn in _turns_of(body):
        for block in _blocks_of(turn):
            if turn.get("role") == "assistant" and block.get("type") == "document":
                raise _strict("a document in an assistant's turn")
            if turn.get("role") == "user" and block.get("type") == "text" and block.get("citations"):
                raise _strict("'citations' of a user's text")


def _strict(what: str) -> RowError:
    return RowError(
        f"version {STRICT_VERSION} of the API refuses {what}: leave it out, or use --api-version 2023-06-01"
    )
