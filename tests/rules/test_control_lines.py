"""What may be asked of a run, as words on the command line and as lines on the wire: tables, and garbage."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbatch.errors import OptionsError, OutputRefused
from llmbatch.options import RunOptions
from llmbatch.rules.control import (
    ACTIONS,
    LIMITS,
    MAX_LINE_BYTES,
    Asked,
    answer_line,
    limits_of,
    parse_answer,
    parse_request,
    refusal,
    request_line,
)


@pytest.mark.parametrize(
    ("words", "limits"),
    [
        (["rpm=300"], {"rpm": 300}),
        (["rpm=0.5"], {"rpm": 0.5}),
        (["rpm=1e3"], {"rpm": 1000}),
        (["tpm=none", "input-tpm=20000", "output-tpm=8000"], {"tpm": None, "input-tpm": 20000, "output-tpm": 8000}),
        (["concurrency=auto", "max-concurrency=64"], {"concurrency": None, "max-concurrency": 64}),
        (["concurrency=007"], {"concurrency": 7}),
        (["max-concurrency=none"], {"max-concurrency": None}),
    ],
)
def test_words_become_limits(words: list[str], limits: dict[str, float | None]) -> None:
    assert limits_of(words) == limits


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "set what"),
        (["rpm"], "write NAME=VALUE"),
        (["speed=3"], "there is no such limit; there are rpm, tpm,"),
        (["=3"], "there is no such limit"),
        (["rpm="], "--rpm '': give a number, or none"),
        (["rpm=fast"], "--rpm 'fast': give a number, or none"),
        (["rpm=auto"], "--rpm 'auto': give a number, or none"),
        (["rpm=0"], "--rpm must be above 0, not 0"),
        (["rpm=-3"], "--rpm must be above 0, not -3"),
        (["tpm=nan"], "--tpm must be above 0, not nan"),
        (["output-tpm=inf"], "--output-tpm must be above 0, not inf"),
        (["concurrency=0"], "--concurrency '0': give a whole number from 1, or auto"),
        (["concurrency=none"], "--concurrency 'none': give a whole number from 1, or auto"),
        (["concurrency=2.5"], "--concurrency '2.5': give a whole number from 1, or auto"),
        (["max-concurrency=auto"], "--max-concurrency 'auto': give a whole number from 1, or none"),
        (["concurrency=" + "9" * 5000], "give a whole number from 1"),
        (["rpm=1", "rpm=2"], "set rpm is given twice"),
    ],
)
def test_words_that_are_no_limits_are_refused_with_the_words_of_the_flag(words: list[str], why: str) -> None:
    with pytest.raises(OptionsError) as refused:
        limits_of(words)
    assert why in str(refused.value)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("name", LIMITS)
def test_each_limit_is_an_option_of_a_run(name: str) -> None:
    assert getattr(RunOptions("-", **{name.replace("-", "_"): 7}), name.replace("-", "_")) == 7
    assert limits_of([f"{name}=7"]) == {name: 7}


@pytest.mark.parametrize(
    "asked",
    [
        *(Asked(action) for action in ACTIONS if action != "set"),
        Asked("set", {"rpm": 300.0}),
        Asked("set", {"rpm": None, "concurrency": None, "max-concurrency": 5}),
    ],
)
def test_what_is_asked_arrives(asked: Asked) -> None:
    line = request_line(asked)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert parse_request(line) == asked


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"", "one line of JSON"),
        (b"status", "one line of JSON"),
        (b'{"action":"sta', "one line of JSON"),
        (b"\xff\xfe{}", "one line of JSON"),
        (b"[" * 10_000, "one line of JSON"),
        (b"[]", "an object, not an array"),
        (b"null", "an object, not null"),
        (b"{}", "no such action; there are status, set, pause, resume, drain"),
        (b'{"action":"kill"}', "no such action"),
        (b'{"action":["status"]}', "no such action"),
        (b'{"action":{}}', "no such action"),
        (b'{"action":"status","verbose":true}', "a request has no verbose"),
        (b'{"action":"status","limits":{"rpm":1}}', 'limits are an object that belongs to "set"'),
        (b'{"action":"set"}', 'limits are an object that belongs to "set"'),
        (b'{"action":"set","limits":{}}', 'limits are an object that belongs to "set"'),
        (b'{"action":"set","limits":["rpm"]}', 'limits are an object that belongs to "set"'),
        (b'{"action":"set","limits":{"speed":1}}', "there is no such limit"),
        (b'{"action":"set","limits":{"rpm":"300"}}', "--rpm is a number or null, not a string"),
        (b'{"action":"set","limits":{"rpm":true}}', "--rpm is a number or null, not a boolean"),
        (b'{"action":"set","limits":{"rpm":-1}}', "--rpm must be above 0"),
        (b'{"action":"set","limits":{"rpm":1e400}}', "JSON"),
        (b'{"action":"set","limits":{"concurrency":1.5}}', "give a whole number from 1"),
        (b'{"action":"set","limits":{"concurrency":99999999999}}', "give a whole number from 1"),
    ],
)
def test_a_line_that_is_no_request_is_refused(line: bytes, why: str) -> None:
    with pytest.raises(OptionsError) as refused:
        parse_request(line)
    assert why in str(refused.value)


def json_values() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([*ACTIONS, *LIMITS])
    names = st.text() | st.sampled_from(["action", "limits", *LIMITS])
    return st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(names, inner), max_leaves=20)


@given(st.binary() | json_values().map(lambda value: json.dumps(value).encode()))
def test_any_line_is_a_request_or_refused(line: bytes) -> None:
    try:
        asked = parse_request(line)
    except OptionsError as refused:
        assert len(answer_line(refusal(str(refused)))) < MAX_LINE_BYTES
    else:
        assert asked.action in ACTIONS


def test_an_answer_arrives() -> None:
    answer = {"ok": True, "changed": {}, "status": {"done": 3}}
    assert parse_answer(answer_line(answer)) == answer


def test_an_answer_with_a_file_name_that_is_no_utf_8_arrives() -> None:
    answer = {"ok": True, "changed": {}, "status": {"output": os.fsdecode(b"/data/\xff.jsonl")}}
    assert parse_answer(answer_line(answer)) == answer


def test_a_refusal_arrives_as_bad_usage() -> None:
    with pytest.raises(OptionsError, match=r"^--rpm must be above 0$"):
        parse_answer(answer_line(refusal("--rpm must be above 0")))


@pytest.mark.parametrize("line", [b"", b"HTTP/1.1 400 Bad Request", b"\xff", b"[]", b"{}", b'{"ok":1}', b"[" * 10_000])
def test_what_answers_otherwise_is_no_run(line: bytes) -> None:
    with pytest.raises(OutputRefused, match="no run of llmbatch"):
        parse_answer(line)
