"""What is wrong with a hook is said before anything is sent."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmbatch.errors import OptionsError
from llmbatch.hooks.loading import load_hook

Write = Callable[[str], str]

SOURCE = """
    def lookup(row):
        return row

    async def fetch(row):
        return row

    def yields(row):
        yield row

    def two(row, db):
        return row

    def optional(row, db=None):
        return row

    class Caller:
        async def __call__(self, row):
            return row

        def method(self, row):
            return row

    caller = Caller()
    number = 7
"""


@pytest.mark.parametrize(
    ("path", "is_async"),
    [("lookup", False), ("fetch", True), ("optional", False), ("caller", True), ("caller.method", False)],
)
def test_a_function_of_one_argument_is_found_in_the_working_directory(module: Write, path: str, is_async: bool) -> None:
    hook = load_hook(f"{module(SOURCE)}:{path}", "--before")
    assert hook.is_async is is_async
    assert hook.flag == "--before"


def test_the_working_directory_comes_first(module: Write, tmp_path: Path) -> None:
    load_hook(f"{module(SOURCE)}:lookup", "--before")
    assert Path(sys.path[0]).resolve() == tmp_path.resolve()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("{}", ["module:function"]),
        ("{}:", ["module:function"]),
        (":lookup", ["module:function"]),
        ("{}.py:lookup", ["without .py"]),
        ("./{}:lookup", ["without .py"]),
        ("no_such_module:lookup", ["there is no module 'no_such_module'", "nor installed"]),
        ("{}.inner:lookup", ["there is no module"]),
        ("{}:lokup", ["there is no 'lokup' in retrieve", "was lookup meant?"]),
        ("{}:zzzzzz", ["it has: Caller, caller, fetch"]),
        ("{}:Caller.metod", ["there is no 'metod' in Caller", "was method meant?"]),
        ("{}:number", ["no function, but of type int"]),
        ("{}:yields", ["it yields"]),
        ("{}:two", ["must take one argument", "two(row, db)"]),
        ("{}:Caller.method", ["must take one argument", "Caller.method(self, row)"]),
    ],
)
def test_what_is_no_hook_is_named(module: Write, spec: str, words: list[str]) -> None:
    given = spec.format(module(SOURCE))
    with pytest.raises(OptionsError) as caught:
        load_hook(given, "--after")
    assert str(caught.value).startswith(f"--after {given}: ")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "\nimport no_such_library\n",
            ["can not be imported", ":2 in <module>: ModuleNotFoundError", "no_such_library"],
        ),
        ("x = 1\ny = {}['a']\n", [":2 in <module>: KeyError: 'a'"]),
        ("def lookup(:\n", [":1: SyntaxError"]),
        ("raise SystemExit('enough')\n", ["SystemExit: enough"]),
        ("import sys; sys.exit()\n", ["SystemExit"]),
    ],
)
def test_an_error_in_the_module_is_told_from_a_missing_module(module: Write, source: str, words: list[str]) -> None:
    with pytest.raises(OptionsError) as caught:
        load_hook(f"{module(source)}:lookup", "--before")
    assert "there is no module 'retrieve" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
