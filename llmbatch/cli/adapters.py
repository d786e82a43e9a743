"""Commands that start without pydantic.

Typer makes an adapter of pydantic for every option, given or not, and importing pydantic is a fifth of the start of a
run. Texts, plain numbers, names of a list, and options that were not given become what they should without one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, get_args

import typer
from typer.core import TyperCommand, TyperGroup


class QuickCommand(TyperCommand):
    """A command whose options have an adapter when they need one."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # click's Context
        _spare_adapters(self.get_params(ctx))
        return super().parse_args(ctx, args)


class QuickGroup(TyperGroup):
    """The same of a group of commands."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # click's Context
        _spare_adapters(self.get_params(ctx))
        return super().parse_args(ctx, args)


def _spare_adapters(params: Iterable[Any]) -> None:
    for param in params:
        make = getattr(param, "get_runtime_param", None)  # typer has it from 0.25 on
        if make is not None and not isinstance(make.__self__, _IfNeeded):
            param.get_runtime_param = _IfNeeded(make).get


# Written as people write them; all else is left to pydantic, and its refusals.
_NUMBERS = {int: re.compile(r"[0-9]{1,9}"), float: re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")}


class _IfNeeded:
    """In the place of an option's ``RuntimeParam``, which ``get`` makes."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def get(self) -> _IfNeeded:
        return self

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """``value`` as the command takes it. Raises BadParameter."""
        wanted, is_text = param.type_descriptor.annotation, type(value) is str
        if value is None:
            return () if param.multiple or param.nargs == -1 else None
        if wanted == list[str] and type(value) in (list, tuple) and all(type(one) is str for one in value):
            return list(value)
        if is_text and (wanted is str or value in get_args(wanted)):
            return value
        if is_text and wanted in _NUMBERS and _NUMBERS[wanted].fullmatch(value) and not param.type_descriptor.is_ranged:
            return wanted(value)
        if type(value) is wanted and value == param.default:
            return value
        return self._make().coerce(value, param=param, ctx=ctx)
