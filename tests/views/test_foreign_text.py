"""Whatever is shown passes ``safe``: a look at the sources, for the places nobody thought of."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent.parent / "llmbatch"

# Attributes whose text comes from a model, a server, an input, a file name or the command line.
FOREIGN = {
    "endpoint", "example", "model", "output", "message", "next_command", "notices", "request_id", "text", "type", "why",
    "warnings", "bad_examples", "filename",
}  # fmt: skip
# Where such an attribute is no text on its way to a screen: file.py:function -> why.
HARMLESS = {
    "live.py:start": "goes through LiveBar.note, which is safe",
    "plain.py:_start_words": "goes through PlainLines._put, which is safe",
    "printer.py:draining_words": "the name of a signal",
}
# Calls under which a foreign text is safe to show; ``len`` and the like show none of it.
SAFE = {"safe", "_shares", "_step", "_TYPE_CELLS", "len", "count", "bool", "isinstance"}


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for path in sorted((PACKAGE / "views").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield f"{path.name}:{node.name}", node


def shown_as_it_is(node: ast.AST) -> Iterator[ast.Attribute]:
    """Foreign attributes in what is formatted, yielded or returned, outside of calls that make them safe."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SAFE:
        return
    named = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id
    if isinstance(node, ast.Attribute) and node.attr in FOREIGN and named not in (False, "tokens"):  # those are numbers
        yield node
    for child in ast.iter_child_nodes(node):
        yield from shown_as_it_is(child)


def suspects(function: ast.FunctionDef) -> list[str]:
    shown = [node for node in ast.walk(function) if isinstance(node, ast.FormattedValue | ast.Yield)]
    return [ast.unparse(found) for node in shown for found in shown_as_it_is(node)]


@pytest.mark.parametrize(("name", "function"), [pytest.param(*found, id=found[0]) for found in functions()])
def test_foreign_text_is_shown_only_through_safe(name: str, function: ast.FunctionDef) -> None:
    found = suspects(function)
    assert not found or name in HARMLESS, f"{name} shows {found} as it is; put safe() around it"


def test_every_exception_is_still_one() -> None:
    assert {name for name, function in functions() if suspects(function)} == set(HARMLESS)


def test_the_look_finds_what_it_looks_for() -> None:
    bad = ast.parse("def f(error):\n    yield f'{error.message}'").body[0]
    good = ast.parse("def f(error):\n    yield f'{safe(error.message, 9)}'").body[0]
    assert isinstance(bad, ast.FunctionDef) and isinstance(good, ast.FunctionDef)
    assert suspects(bad) and not suspects(good)
