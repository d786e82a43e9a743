"""From ``module:function`` to the function, or to what is wrong with it, before anything is sent."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmbatch.errors import OptionsError
from llmbatch.hooks.places import described
from llmbatch.rules.reasons import names


@dataclass(frozen=True, slots=True)
class Hook:
    """A function of the user's: ``name`` as it was given, and the ``flag`` that gave it.

    One that is not ``is_async`` may still return something to be awaited: only a call can tell.
    """

    name: str
    flag: str
    function: Callable[[Any], Any]
    is_async: bool


def load_hook(name: str, flag: str) -> Hook:
    """The hook ``module:function``; the module is looked for in the working directory first, as by ``python -m``.

    Raises OptionsError, naming ``flag``, for what is no function of one argument.
    """
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise OptionsError(
            f"{flag} {name}: give it as module:function, such as retrieve:lookup for lookup in retrieve.py"
        )
    if "/" in module_name or module_name.endswith(".py"):
        raise OptionsError(
            f"{flag} {name}: give the module as import has it: without .py, with dots between directories"
        )
    function = _attribute(_module(module_name, name, flag), path, name, flag)
    _check(function, name, flag)
    call = getattr(function, "__call__", None)  # noqa: B004  # an object whose call is async
    return Hook(name, flag, function, inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call))


def _module(module_name: str, name: str, flag: str) -> Any:
    here = "the working directory"
    with contextlib.suppress(FileNotFoundError):  # it was deleted
        here = str(Path.cwd())
        if sys.path[:1] not in ([here], [""]):
            sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise OptionsError(f"{flag} {name}: {module_name} can not be imported: {described(error)}") from None
        raise OptionsError(
            f"{flag} {name}: there is no module {error.name!r}, neither in {here} nor installed"
        ) from None
    except (Exception, SystemExit) as error:  # importing runs the user's code
        raise OptionsError(f"{flag} {name}: {module_name} can not be imported: {described(error)}") from None


def _attribute(owner: Any, path: str, name: str, flag: str) -> Any:
    for part in path.split("."):
        known = [known for known in dir(owner) if not known.startswith("_")]
        try:
            owner = getattr(owner, part)
        except AttributeError:
            close = difflib.get_close_matches(part, known, n=3)
            hint = f"was {' or '.join(close)} meant?" if close else f"it has: {names(known)}"
            raise OptionsError(f"{flag} {name}: there is no {part!r} in {_name_of(owner)}; {hint}") from None
    return owner


def _name_of(owner: Any) -> str:
    """How a module or a class calls itself."""
    return str(getattr(owner, "__name__", type(owner).__name__))


def _check(function: Any, name: str, flag: str) -> None:
    if not callable(function):
        raise OptionsError(f"{flag} {name}: it is no function, but of type {type(function).__name__}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise OptionsError(f"{flag} {name}: it yields; a hook returns, once for each row")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C do not say
        return
    try:
        signature.bind(None)
    except TypeError:
        raise OptionsError(
            f"{flag} {name}: it must take one argument, the row, but is {name.partition(':')[2]}{signature}"
        ) from None
