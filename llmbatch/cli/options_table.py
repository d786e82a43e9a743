"""What a command's options take, read off its signature, so that a file or a variable can say the same as a flag."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from typer.models import OptionInfo

from llmbatch.errors import OptionsError

_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_SHOWN_CHARS = 60
# How the keys of the known providers begin; what begins so is never shown.
_KEY = re.compile(r"\b(?:sk-|gsk_|xai-|hf_|AIza|pplx-|r8_|Bearer )[\w.+/=-]{12,}")


@dataclass(frozen=True, slots=True)
class Option:
    """One option: ``kind`` is bool, int, float, str or Path; ``choices`` are all it takes, if there are any.

    ``of_numbers``: its text may be a number, such as ``10`` for ``--concurrency N|auto``. ``of_path``: it names a file.
    ``of_code``: it names a function, which is run. ``of_words``: its values hold neither blanks nor commas.
    """

    name: str
    flag: str
    kind: type
    choices: tuple[str, ...] = ()
    repeatable: bool = False
    of_numbers: bool = False
    of_path: bool = False
    of_code: bool = False
    of_words: bool = False

    def from_text(self, text: str, where: str) -> Any:
        """The value of a variable; of a repeatable option one on each line, or word by word. Raises OptionsError."""
        if self.of_words:
            return text.replace(",", " ").split()
        if self.repeatable:
            return [line.strip() for line in text.splitlines() if line.strip()]
        if self.kind is bool:
            return self._yes_or_no(text.strip().lower(), where)
        if self.kind in (int, float):
            return self._number(text, where)
        return self._chosen(text, where)

    def from_toml(self, value: Any, where: str) -> Any:
        """The value in a file. Raises OptionsError if it is of another type, or not one of the choices."""
        if self.repeatable:
            texts = [value] if isinstance(value, str) else value
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise OptionsError(f'{where}: write a list of texts, such as ["…", "…"]')
            return texts
        if self.kind is bool or isinstance(value, bool):
            if self.kind is not bool or not isinstance(value, bool):
                raise OptionsError(f"{where} takes {self.takes}, not {_shown(value)}")
            return value
        if isinstance(value, int | float) and (self.kind is float or self.of_numbers):
            return str(value) if self.of_numbers else value
        if not isinstance(value, int if self.kind is int else str) or self.kind is float:
            raise OptionsError(f"{where} takes {self.takes}, not {_shown(value)}")
        return self._chosen(value, where) if isinstance(value, str) else value

    @property
    def takes(self) -> str:
        """In words, what may be said for it."""
        if self.choices:
            return ", ".join(self.choices[:-1]) + f" or {self.choices[-1]}"
        words = {bool: "true or false", int: "a whole number", float: "a number"}
        return words.get(self.kind, "a number or text in quotes" if self.of_numbers else "text in quotes")

    def _yes_or_no(self, word: str, where: str) -> bool:
        if word not in _YES + _NO:
            raise OptionsError(f"{where} takes true or false, not {_shown(word)}")
        return word in _YES

    def _number(self, text: str, where: str) -> int | float:
        try:
            number: int | float = self.kind(text)
        except ValueError:
            raise OptionsError(f"{where} takes {self.takes}, not {_shown(text)}") from None
        return number

    def _chosen(self, text: str, where: str) -> str:
        if self.choices and text not in self.choices:
            raise OptionsError(f"{where} takes {self.takes}, not {_shown(text)}")
        return text


def options_of(command: Callable[..., Any]) -> Mapping[str, Option]:
    """The options of ``command`` by the name of their argument."""
    hints = get_type_hints(command, include_extras=True)
    return {name: _option(name, hint) for name, hint in hints.items() if _info(hint) is not None}


def _info(hint: Any) -> OptionInfo | None:
    if get_origin(hint) is not Annotated:
        return None
    return next((one for one in get_args(hint)[1:] if isinstance(one, OptionInfo)), None)


def _option(name: str, hint: Any) -> Option:
    info = _info(hint)
    assert info is not None, "only options are asked for"
    kind = _without_none(get_args(hint)[0])
    repeatable = get_origin(kind) is list
    if repeatable:
        (kind,) = get_args(kind)
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    long = [word for word in info.param_decls or () if word.startswith("--")]
    words = (info.metavar or "").replace("|", " ").split()
    return Option(
        name,
        long[0].split("/")[0] if long else f"--{name.replace('_', '-')}",
        str if choices else kind,
        choices,
        repeatable,
        of_numbers=not repeatable and kind is str and bool({"N", "TIME"} & set(words)),
        of_path=kind is Path or bool({"FILE", "DIR"} & set(words)),
        of_code="MODULE:FUNCTION" in words,
        of_words=repeatable and info.metavar in ("URL", "NAME"),
    )


def _without_none(kind: Any) -> Any:
    if get_origin(kind) not in (Union, types.UnionType):
        return kind
    (found,) = (one for one in get_args(kind) if one is not type(None))
    return found


def looks_like_key(text: str) -> bool:
    """Whether a key may be in it."""
    return _KEY.search(text) is not None


def _shown(value: Any) -> str:
    text = repr(value)
    if looks_like_key(text):
        return "what is given, which is not repeated, as it may be a key"
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"
