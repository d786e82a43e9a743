"""What ``llmbatch ctl`` may ask of a run, and how both sides say it: one line of JSON there, one line back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import orjson

from llmbatch.errors import OptionsError, OutputRefused
from llmbatch.options import RunOptions
from llmbatch.rules.reasons import excerpt, kind_of, names

# A longer line is no request of ours, and no answer.
MAX_LINE_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 1024 * 1024

Action = Literal["status", "set", "pause", "resume", "drain"]
ACTIONS: tuple[Action, ...] = get_args(Action)
LIMITS = ("rpm", "tpm", "input-tpm", "output-tpm", "concurrency", "max-concurrency")
"""What can be set, by the names of the flags."""

_WHOLE_NUMBERS = ("concurrency", "max-concurrency")
_WHOLE = re.compile(r"0*[1-9][0-9]{0,8}", re.ASCII)
_SHOWN_CHARS = 40


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. ``limits`` are the new values by name; None is no limit, or of the concurrency auto."""

    action: Action
    limits: Mapping[str, float | None] = field(default_factory=dict)


def no_limit(name: str) -> str:
    """What None is called: ``auto`` of the concurrency, else ``none``."""
    return "auto" if name == "concurrency" else "none"


def limit_of(name: str, text: str) -> float | None:
    """The value that ``--NAME text`` has. Raises OptionsError."""
    if text == no_limit(name):
        return None
    shown = f"--{name} {excerpt(text, _SHOWN_CHARS)!r}"
    if name in _WHOLE_NUMBERS:
        if _WHOLE.fullmatch(text) is None:
            raise OptionsError(f"{shown}: give a whole number from 1, or {no_limit(name)}")
        return int(text)
    try:
        value = float(text)
    except ValueError:
        raise OptionsError(f"{shown}: give a number, or {no_limit(name)}") from None
    return _in_range(name, value)


def limits_of(words: Iterable[str]) -> dict[str, float | None]:
    """``rpm=300 concurrency=auto`` -> the new values by name. Raises OptionsError."""
    found: dict[str, float | None] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise OptionsError(f"set {excerpt(word, _SHOWN_CHARS)!r}: write NAME=VALUE, such as rpm=300")
        _refuse_unknown(name)
        if name in found:
            raise OptionsError(f"set {name} is given twice")
        found[name] = limit_of(name, text)
    if not found:
        raise OptionsError("set what? Write NAME=VALUE, such as rpm=300 or concurrency=auto")
    return found


def request_line(asked: Asked) -> bytes:
    """How ``asked`` is sent."""
    limits = {"limits": dict(asked.limits)} if asked.limits else {}
    return orjson.dumps({"action": asked.action, **limits}, option=orjson.OPT_APPEND_NEWLINE)


def parse_request(line: bytes) -> Asked:
    """What a line asks. Raises OptionsError for all that is no request: it may be anything."""
    try:
        asked = orjson.loads(line)
    except ValueError:
        raise OptionsError('a request is one line of JSON, such as {"action":"status"}') from None
    if not isinstance(asked, dict):
        raise OptionsError(f"a request is an object, not {kind_of(asked)}")
    action = asked.pop("action", None)
    if action not in ACTIONS:
        raise OptionsError(f"no such action; there are {', '.join(ACTIONS)}")
    limits = asked.pop("limits", {})
    if asked:
        raise OptionsError(f"a request has no {names(list(asked))}")
    if (action == "set") != bool(limits) or not isinstance(limits, dict):
        raise OptionsError('limits are an object that belongs to "set": {"action":"set","limits":{"rpm":300}}')
    return Asked(action, {name: _limit_in(name, value) for name, value in limits.items()})


def answer_line(answer: Mapping[str, Any]) -> bytes:
    """How an answer is sent: as ASCII, for the name of a file may be no UTF-8."""
    return json.dumps(answer, separators=(",", ":")).encode() + b"\n"


def refusal(why: str) -> dict[str, Any]:
    """The answer to a request that nothing was done about."""
    return {"ok": False, "error": why}


def parse_answer(line: bytes) -> dict[str, Any]:
    """What a run answered. Raises OptionsError with its words if it refused, OutputRefused if that is no answer."""
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or not isinstance(answer.get("ok"), bool):
        raise OutputRefused(f"what answers there is no run of llmbatch: {excerpt(line.decode('utf-8', 'replace'))!r}")
    if not answer["ok"]:
        raise OptionsError(str(answer.get("error")))
    return answer


def _limit_in(name: str, value: Any) -> float | None:
    """A value in a request: a number, or null."""
    _refuse_unknown(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise OptionsError(f"--{name} is a number or null, not {kind_of(value)}")
    return limit_of(name, str(value)) if name in _WHOLE_NUMBERS else _in_range(name, float(value))


def _refuse_unknown(name: str) -> None:
    if name not in LIMITS:
        raise OptionsError(
            f"set {excerpt(name, _SHOWN_CHARS)!r}: there is no such limit; there are {', '.join(LIMITS)}"
        )


def _in_range(name: str, value: float) -> float:
    """As the flag of that name has it."""
    RunOptions("-", **{name.replace("-", "_"): value})  # type: ignore[arg-type]
    return value
