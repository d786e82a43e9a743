"""What a hook gives is checked: a forgotten await, a wrong type, what JSON can not hold."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llmbatch.hooks import HookError
from llmbatch.hooks.given import checked


async def fetch() -> str:
    return "text"


class Thing:
    pass


@pytest.mark.parametrize(
    ("value", "flag"),
    [
        ({"prompt": "a"}, "--before"),
        ([{"role": "user", "content": "a"}], "--before"),
        ("a prompt", "--before"),
        (None, "--before"),
        ({"thing": Thing()}, "--before"),
        ({"output": {"a": [1, None]}}, "--after"),
    ],
)
def test_what_can_be_used_passes(value: Any, flag: str) -> None:
    assert checked(value, "m:f", flag) is value


@pytest.mark.parametrize(
    ("value", "flag", "words"),
    [
        (7, "--before", ["a value of type int", "a dict (the row), a list (messages)"]),
        (Thing(), "--before", ["a value of type Thing"]),
        (("a",), "--before", ["a value of type tuple"]),
        (None, "--after", ["None: is the return missing?", "a dict: the result"]),
        ("text", "--after", ["a value of type str"]),
        ({"output": {"scores": [1, Thing()]}}, "--after", ["Thing", "in 'output.scores[1]'"]),
        ({"output": {1: "a"}}, "--after", ["in 'output'", "str"]),
        ({"a": 2**70}, "--after", ["64", "in 'a'"]),
    ],
)
def test_what_can_not_be_used_is_named(value: Any, flag: str, words: list[str]) -> None:
    with pytest.raises(HookError) as caught:
        checked(value, "m:f", flag)
    assert str(caught.value).startswith("hook m:f returned ")
    for word in words:
        assert word in str(caught.value)


def test_what_holds_itself_is_refused() -> None:
    endless: dict[str, Any] = {}
    endless["again"] = endless
    with pytest.raises(HookError, match="what JSON can not hold"):
        checked(endless, "m:f", "--after")
    assert checked(endless, "m:f", "--before") is endless


@pytest.mark.parametrize("flag", ["--before", "--after"])
def test_a_forgotten_await_is_named_and_python_does_not_warn_as_well(flag: str) -> None:
    with pytest.raises(HookError, match=r"m:f returned the coroutine 'fetch' in 'docs\[1\]': was an await forgotten"):
        checked({"docs": ["a", fetch()], "other": (fetch(),)}, "m:f", flag)
    with pytest.raises(HookError, match=r"m:f returned the coroutine 'fetch': was an await forgotten"):
        checked(fetch(), "m:f", flag)


async def test_a_future_is_a_forgotten_await_too() -> None:
    with pytest.raises(HookError, match=r"returned Future in 'a': was an await forgotten"):
        checked({"a": asyncio.get_running_loop().create_future()}, "m:f", "--before")
