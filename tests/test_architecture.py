"""The drawing of ARCHITECTURE.md, kept true: imports go down, and the pure rooms stay pure."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "llmbatch"

# A module imports from lower levels, or from its own room (the same line here).
LEVEL = {
    "_version": 0,
    "records": 0,
    "errors": 0,
    "meters": 0,
    "sim": 0,
    "events": 1,
    "options": 1,
    "stopping": 1,
    "machine": 1,
    "keys": 1,
    "rules": 2,
    "summary": 2,
    "tally": 3,
    "prices": 3,
    "providers": 3,
    "files": 3,
    "hooks": 3,
    "calls": 4,
    "sampler": 4,
    "scheduler": 4,
    "manifest": 4,
    "identity": 4,
    "prepare": 4,
    "parts": 5,
    "output": 5,
    "endpoints": 5,
    "lineup": 5,
    "sender": 6,
    "control": 7,
    "feed": 6,
    "opening": 6,
    "desk": 7,
    "plan": 7,
    "rows": 7,
    "runner": 8,
    "estimate": 9,
    "api": 9,
    "compare": 9,
    "views": 10,
    "cli": 11,
    "__init__": 12,
    "__main__": 12,
}

# library -> the only places that import it, and why.
ONLY_IN = {
    "typer": ({"cli"}, "everything below works without a command line"),
    "aiohttp": ({"calls.wire"}, "one module talks to the network; its errors are translated there once"),
    "matplotlib": ({"views.plot"}, "an extra, imported when a picture is asked for"),
    "rich": ({"views.live"}, "what people see is not what happens"),
    "tenacity": ({"calls.retry"}, "one retry policy; a second one would multiply the attempts"),
    "aiofiles": ({"files.journal"}, "one writer"),
    "dotenv": ({"cli.env_file"}, "one reader of env files"),
    "genai_prices": ({"prices"}, "one price list, imported when there is something to price"),
    "jsonschema_rs": ({"rules.schema"}, "one schema of a run, checked in one place; slow to import"),
    "jinja2": ({"rules.template"}, "templates are sandboxed in one place"),
}

IMPURE = {"asyncio", "aiohttp", "time", "random", "os", "logging", "socket", "threading", "subprocess", "secrets"}
PURE = ("rules", "providers", "records", "errors", "events", "options", "tally", "meters", "summary")


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts), path


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: imports are absolute, so that they can be searched for"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(name: str) -> str:
    return name.split(".")[0]


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_go_down(name: str, path: Path) -> None:
    for imported in imports(path):
        if not imported.startswith("llmbatch."):
            continue
        target = room(imported.removeprefix("llmbatch."))
        if target not in LEVEL or target == room(name):
            continue
        assert LEVEL[target] < LEVEL[room(name)], (
            f"{name} imports {imported}: level {LEVEL[room(name)]} may only import lower ones, so that each room can "
            "be read and tested without those above it (ARCHITECTURE.md)"
        )


def test_every_room_has_a_level() -> None:
    assert {room(name) for name, _ in modules()} <= set(LEVEL)


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_libraries_stay_in_their_place(name: str, path: Path) -> None:
    for imported in imports(path):
        where = ONLY_IN.get(imported.split(".")[0])
        if where is not None and room(name) != "sim":
            allowed, reason = where
            assert name in allowed or room(name) in allowed, f"{name} imports {imported}, but {reason}"


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_pure_rooms_have_no_loop_clock_chance_or_disk(name: str, path: Path) -> None:
    if room(name) not in PURE:
        return
    impure = {imported.split(".")[0] for imported in imports(path)} & IMPURE
    assert not impure, f"{name} imports {impure}: decisions take time, chance and the past as arguments"


def test_the_simulator_stands_alone() -> None:
    for name, path in modules():
        if room(name) == "sim":
            ours = [i for i in imports(path) if i.startswith("llmbatch") and not i.startswith("llmbatch.sim")]
            assert not ours, (
                f"{name} imports {ours}: the simulator and our encoder must be able to contradict each other"
            )
