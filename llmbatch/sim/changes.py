"""Settings that change while the provider runs: ``60s:rpm=300``, ``30s:down=600s``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

# Nobody is there for so long.
DOWN = "down"
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|m|h|)", re.ASCII)
_UNITS_S = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
# What a running server can not change: where it listens, what it has drawn or counted already, this list itself.
_FIXED = frozenset({"at", "burst", "drain", "idle", "ledger", "port", "script", "seed", "slot-slowdown"})


@dataclass(frozen=True, slots=True)
class Change:
    """``field`` of SimOptions gets ``value`` at ``at_s`` seconds after the first request.

    The field `DOWN` is none of them: its value is for how many seconds connections are refused.
    """

    at_s: float
    field: str
    value: Any


def read_changes(text: str, readers: Mapping[str, tuple[str, Callable[[str], Any]]]) -> tuple[Change, ...]:
    """Changes from ``TIME:NAME=VALUE``, several of them joined by semicolons. ValueError names what is wrong."""
    changes = tuple(_change(item.strip(), readers) for item in text.split(";"))
    downs = sorted((change.at_s, change.value) for change in changes if change.field == DOWN)
    if any(first_s + down_s >= next_s for (first_s, down_s), (next_s, _) in pairwise(downs)):
        raise ValueError("the times of down must not meet")
    return changes


def _change(item: str, readers: Mapping[str, tuple[str, Callable[[str], Any]]]) -> Change:
    time, colon, setting = item.partition(":")
    name, equals, value = setting.partition("=")
    option = name.strip().replace("_", "-")
    if not colon or not equals:
        raise ValueError(f"{item!r} is not TIME:NAME=VALUE, such as 60s:rpm=300")
    if option == DOWN:
        return Change(seconds(time), DOWN, seconds(value))
    if option in _FIXED or option not in readers:
        changeable = [DOWN, *(name for name in readers if name not in _FIXED)]
        raise ValueError(f"{item!r}: {option} can not change; these can: {', '.join(changeable)}")
    field, read = readers[option]
    try:
        return Change(seconds(time), field, read(value))
    except ValueError as error:
        raise ValueError(f"{item!r}: {error}") from None


def seconds(text: str) -> float:
    """``600``, ``600s``, ``10m``, ``1h`` or ``250ms``."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a time, such as 60s, 250ms or 10m")
    return float(match[1]) * _UNITS_S[match[2]]
