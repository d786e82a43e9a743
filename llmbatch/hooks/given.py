"""What did a hook give, and can it be used?"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import orjson

from llmbatch.hooks import HookError
from llmbatch.rules.reasons import excerpt

# What JSON can hold nests less deeply (orjson: 254 levels); what holds itself nests without end.
_MAX_NESTING = 300
# A coroutine is looked for in the first members only: rows have few, and a table put into one need not be gone through.
_MAX_MEMBERS = 10_000

# By these the lines of an output are told apart, and from damage.
_RESERVED = ("llmbatch", "crc")

_WANTED = {
    "--before": "a dict (the row), a list (messages), a string (the prompt) or None (leave the row out)",
    "--after": "a dict: the result it was given, changed or not",
}


def checked(value: Any, name: str, flag: str) -> Any:
    """``value`` if it is what a hook of this flag may give. Raises HookError.

    A coroutine anywhere in it means that an await was forgotten. What is written to the output must be JSON; fields for
    a template may be more than that.
    """
    try:
        orjson.dumps(value)
    except TypeError as error:
        _refuse_awaitables(value, name)
        if flag == "--after":
            raise HookError(f"hook {name} returned what JSON can not hold: {_culprit(value, str(error))}") from None
    if flag == "--after" and isinstance(value, dict) and (own := [word for word in _RESERVED if word in value]):
        raise HookError(f"hook {name} returned a member {own[0]!r}, which llmbatch writes itself: name it otherwise")
    if isinstance(value, dict) or (flag == "--before" and (value is None or isinstance(value, list | str))):
        return value
    given = "None: is the return missing?" if value is None else f"a value of type {type(value).__name__}"
    raise HookError(f"hook {name} returned {given}; it must return {_WANTED[flag]}")


def _refuse_awaitables(value: Any, name: str) -> None:
    found = list(_awaitables(value, "", 0, iter(range(_MAX_MEMBERS))))
    for _, awaitable in found:
        if inspect.iscoroutine(awaitable):
            awaitable.close()  # else Python would warn of it, too
    if found:
        path, awaitable = found[0]
        what = f"the coroutine {awaitable.__name__!r}" if inspect.iscoroutine(awaitable) else type(awaitable).__name__
        raise HookError(f"hook {name} returned {what}{_inside(path)}: was an await forgotten?")


def _awaitables(value: Any, path: str, depth: int, left: Iterator[int]) -> Iterator[tuple[str, Any]]:
    if inspect.isawaitable(value):
        yield path, value
    elif depth < _MAX_NESTING:
        for step, member in _members(value):
            if next(left, None) is None:
                return
            yield from _awaitables(member, path + step, depth + 1, left)


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f".{key}", member) for key, member in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"[{number}]", member) for number, member in enumerate(value))


def _culprit(value: Any, why: str) -> str:
    """The innermost member that can not be written, and why."""
    path = ""
    for _ in range(_MAX_NESTING):
        for step, member in _members(value):
            try:
                orjson.dumps(member)
            except TypeError as error:
                path, value, why = path + step, member, str(error)
                break
        else:
            break
    return f"{excerpt(why)}{_inside(path)}"


def _inside(path: str) -> str:
    return f" in '{excerpt(path.removeprefix('.'))}'" if path else ""
