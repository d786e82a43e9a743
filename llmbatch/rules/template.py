"""Jinja2 templates: what does this row ask for? Sandboxed, and strict about what is missing.

Import this module only where a template is used: Jinja2 takes 80 ms to import. Line ends of the template become
``\\n``, as Jinja2 has it; the last newline is kept. Values are data: ``{{`` inside one is never rendered again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, Undefined, UndefinedError, meta
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmbatch.errors import OptionsError
from llmbatch.options import MAX_BODY_BYTES
from llmbatch.rules.reasons import RowError, excerpt, names

MAX_RENDERED_CHARS = MAX_BODY_BYTES


class RowTemplate:
    """A compiled template. Raises OptionsError, naming ``flag`` and the line, if ``source`` is no template."""

    def __init__(self, source: str, flag: str = "--template") -> None:
        self._flag = flag
        try:
            self._names = meta.find_undeclared_variables(_ENVIRONMENT.parse(source))
            self._template: Template = _ENVIRONMENT.from_string(source)
        except TemplateSyntaxError as error:
            raise OptionsError(f"{flag}, line {error.lineno}: {error.message}") from None
        except RecursionError:
            raise OptionsError(f"{flag}: nested too deeply") from None

    def render(self, fields: Mapping[str, Any]) -> str:
        """The text for a row: each field is a name, ``row`` is all of them.

        Raises RowError for a missing or null field, a forbidden act, a failing expression, a text without end.
        """
        try:
            return self._bounded({**fields, "row": fields})
        except RowError:
            raise
        except UndefinedError as error:
            raise RowError(f"{self._flag}: {self._missing(error, fields)}") from None
        except SecurityError as error:
            raise RowError(f"{self._flag}: not allowed in a template: {excerpt(str(error))}") from None
        except Exception as error:  # an expression of the user's may raise anything
            raise RowError(f"{self._flag}: {type(error).__name__}: {excerpt(str(error))}") from None

    def _bounded(self, context: dict[str, Any]) -> str:
        pieces: list[str] = []
        chars = 0
        try:
            for piece in self._template.root_render_func(self._template.new_context(context)):
                pieces.append(piece)
                chars += len(piece)
                if chars > MAX_RENDERED_CHARS:
                    raise RowError(f"{self._flag}: renders to more than {MAX_RENDERED_CHARS} characters")
        except _NullValue:
            raise RowError(f"{self._flag}: {self._null(context)}") from None
        return "".join(pieces)

    def _missing(self, error: UndefinedError, fields: Mapping[str, Any]) -> str:
        missing = sorted(name for name in self._names if name not in fields and f"'{name}'" in str(error))
        what = f"field '{missing[0]}' is missing" if missing else excerpt(str(error))
        return f"{what}; the row has: {names(list(map(str, fields)))}"

    def _null(self, context: Mapping[str, Any]) -> str:
        null = sorted(name for name in self._names if name in context and context[name] is None)
        name = null[0] if null else "x"
        what = f"field '{excerpt(name, 40)}'" if null else "a value"
        return f"{what} is null: use {{{{ {name} | default('') }}}}"


class _NullValue(Exception):
    """A null would have been written as the word None."""


class _Environment(ImmutableSandboxedEnvironment):
    def getattr(self, obj: Any, attribute: str) -> Any:
        """``row.items`` is the row's field of that name, if it has one, not a method of dict."""
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)


def _finalize(value: Any) -> Any:
    if value is None:
        raise _NullValue
    if callable(value) and not isinstance(value, Undefined):
        raise RowError(f"a template can not write {excerpt(repr(value), 60)}: are the parentheses missing?")
    return value


def _default(value: Any, instead: Any = "", boolean: bool = False) -> Any:
    """Jinja2's ``default``, for which null counts as missing too."""
    return instead if isinstance(value, Undefined) or value is None or (boolean and not value) else value


def _tojson(value: Any, indent: int | None = None) -> str:
    """Jinja2's own writes ``<`` as ``\\u003c``, for HTML; a model would see that."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _environment() -> _Environment:
    environment = _Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
    environment.finalize = _finalize
    environment.filters.update(default=_default, d=_default, tojson=_tojson)
    # The same row must render to the same request when the command is given again.
    del environment.filters["random"], environment.globals["lipsum"]
    return environment


_ENVIRONMENT = _environment()
