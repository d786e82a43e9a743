"""How large would a value be? What a template's expression could blow up is refused before it is made.

A template is the user's own, but widths, counts and formats may come out of a row: ``{{ '-' * n }}``,
``{{ fmt % x }}``. The bounds are upper ones, far above what a prompt needs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from llmbatch.options import MAX_BODY_BYTES

MAX_CHARS = MAX_BODY_BYTES
MAX_ITEMS = MAX_CHARS // 8
# Of one width, precision or count.
MAX_NUMBER = 1_000_000
MAX_INTEGER_BITS = 100_000

_LONG_NUMBER = re.compile(r"\d{7}")
_NESTED_FIELD = re.compile(r"\{[^{}]*\{")
_NUMBERED = ("ljust", "rjust", "center", "zfill", "expandtabs", "to_bytes", "batch", "slice", "round", "indent")


class TooLarge(Exception):
    """Its text says which act of the template it was."""


def check_operator(operator: str, left: Any, right: Any) -> None:
    """Raises TooLarge if ``left operator right`` would be."""
    if operator == "*":
        _check_product(left, right)
        _check_product(right, left)
    elif operator == "+" and _is_sized(left) and _is_sized(right):
        _check_size("+", len(left) + len(right), left)
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        _check(left.bit_length() * max(right, 0) > MAX_INTEGER_BITS, "**")
    elif operator == "%" and isinstance(left, str):
        _check_format("%", left, left.count("%"), right if isinstance(right, tuple) else (right,), "*" in left)


def check_join(parts: Iterable[Any], separator: str = "") -> None:
    """Raises TooLarge if ``parts`` put together would be."""
    lengths = [len(part) for part in parts if isinstance(part, str)]
    _check(sum(lengths) + len(lengths) * len(separator) > MAX_CHARS, "joining")


def check_call(name: str, owner: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Raises TooLarge if the method ``owner.name``, or the filter of that name on ``owner``, would give too much."""
    values = (*args, *named.values())
    if name in _NUMBERED:
        _check(_largest(values) > MAX_NUMBER, name)
    if not isinstance(owner, str):
        return
    if name in ("indent", "expandtabs"):
        _check_size(name, owner.count("\n" if name == "indent" else "\t") * max(_largest(values), _longest(values)), "")
    elif name in ("format", "format_map"):
        _check_format(name, owner, owner.count("{"), values, _NESTED_FIELD.search(owner) is not None)
    elif name == "replace" and len(args) > 1 and isinstance(args[0], str) and isinstance(args[1], str):
        _check_size(name, len(owner) + owner.count(args[0]) * (len(args[1]) - len(args[0])), "")
    elif name in ("translate", "wordwrap"):
        _check_size(name, len(owner) * _longest(values), "")


def _check_format(act: str, pattern: str, fields: int, values: tuple[Any, ...], widths_in_values: bool) -> None:
    _check(_LONG_NUMBER.search(pattern) is not None, act)
    _check(widths_in_values and _largest(values) > MAX_NUMBER, act)
    _check_size(act, fields * _longest(values), "")


def _check_product(sized: Any, times: Any) -> None:
    if isinstance(times, int) and isinstance(sized, int):
        _check(sized.bit_length() + times.bit_length() > MAX_INTEGER_BITS, "*")
    elif isinstance(times, int) and _is_sized(sized):
        _check_size("*", len(sized) * max(times, 0), sized)


def _is_sized(value: Any) -> bool:
    return isinstance(value, str | bytes | list | tuple)


def _check_size(act: str, size: int, like: Any) -> None:
    _check(size > (MAX_ITEMS if isinstance(like, list | tuple) else MAX_CHARS), act)


def _largest(values: Iterable[Any]) -> int:
    """Of the numbers among ``values`` and one level below."""
    return max((abs(value) for value in _flat(values) if isinstance(value, int)), default=0)


def _longest(values: Iterable[Any]) -> int:
    return max((len(value) for value in _flat(values) if isinstance(value, str)), default=0)


def _flat(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        if isinstance(value, Mapping):
            yield from value.values()
        elif isinstance(value, list | tuple):
            yield from value
        else:
            yield value


def _check(too_large: bool, act: str) -> None:
    if too_large:
        raise TooLarge(f"{act} would give more than {MAX_CHARS} characters, or a number beyond reason")
