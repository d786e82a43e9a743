"""How the words on the command line become values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

from llmbatch.errors import OptionsError
from llmbatch.rules.reasons import excerpt

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?", re.ASCII)
_UNIT_S = {"ms": 0.001, "s": 1.0, None: 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """``90``, ``90s``, ``1.5m``, ``1h`` -> seconds."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise OptionsError(f"{text!r} is no duration; write 30, 30s, 5m or 1h")
    return float(match[1]) * _UNIT_S[match[2]]


def hedge(text: str) -> float | Literal["p95"]:
    """``p95``, or a duration in seconds."""
    if text == "p95":
        return "p95"
    if _DURATION.fullmatch(text.strip()) is None:
        raise OptionsError(f"--hedge {text[:40]!r}: give p95, or a time such as 10s")
    return seconds(text)


def concurrency(text: str) -> int | None:
    """``auto`` -> None, else a whole number from 1."""
    from llmbatch.rules.control import limit_of

    return cast(int | None, limit_of("concurrency", text))


def text_or_file(text: str | None, flag: str) -> str | None:
    """The text itself, or what stands in the file after ``@``."""
    if text is None or not text.startswith("@"):
        return text
    path = Path(text[1:])
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionsError(f"{flag} @{path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from error


def tasks(pairs: Iterable[str]) -> dict[str, str]:
    """``name=template`` or ``name=@file`` -> the template by name, in the order given."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise OptionsError(f"--task {pair[:60]!r}: write NAME=TEMPLATE or NAME=@FILE, the name as in a program")
        if name in found:
            raise OptionsError(f"--task {name} is given twice")
        found[name] = text_or_file(text, f"--task {name}") or ""
    return found


def params(pairs: Iterable[str], flag: str = "--param") -> dict[str, Any]:
    """``temperature=0.2`` -> {"temperature": 0.2}: the value is JSON if it is valid JSON, else text.

    What looks like a number but is none of JSON's, or none of 64 bits, is an OptionsError: text is not meant.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        ((name, value),) = settings([pair], flag).items()
        if name in found:
            raise OptionsError(f"{flag} {name} is given twice")
        found[name] = _json_or_text(value, f"{flag} {name}")
    return found


def settings(pairs: Iterable[str], flag: str) -> dict[str, str]:
    """``name=value`` pairs as text; a name given twice joins its values by a comma."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise OptionsError(f"{flag} {pair!r}: write name=value")
        name = name.strip()
        found[name] = f"{found[name]},{value}" if name in found else value
    return found


def _json_or_text(value: str, where: str) -> Any:
    def no_number(word: str) -> NoReturn:
        raise OptionsError(f"{where}: {word} is not JSON; a text that looks like it goes in quotes: '\"{word}\"'")

    def integer(digits: str) -> int:
        if len(digits) > len(str(-(2**63))) or not -(2**63) <= int(digits) < 2**64:
            raise OptionsError(f"{where}: the integer {excerpt(digits, 40)} is beyond 64 bits")
        return int(digits)

    try:
        return json.loads(value, parse_constant=no_number, parse_int=integer)
    except RecursionError:
        raise OptionsError(f"{where}: nested too deeply") from None
    except ValueError:
        return value
