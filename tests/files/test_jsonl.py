"""Lines of JSONL and of text become rows; whatever the bytes, nothing is raised and nothing is bent."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbatch.files.index import identity_text
from llmbatch.files.jsonl import parse_line, text_line
from llmbatch.records import BadRow, Line, Row


def parsed(data: bytes) -> Row | BadRow:
    return parse_line(Line(4, 0, data), 2)


def row_of(data: bytes) -> Row:
    row = parsed(data)
    assert isinstance(row, Row), row
    return row


def test_a_row_knows_its_index_its_line_and_its_id() -> None:
    assert row_of(b'{"custom_id":"r1","prompt":"hi"}') == Row(2, 4, "r1", {"custom_id": "r1", "prompt": "hi"})


def test_a_bare_string_is_a_prompt_without_an_id() -> None:
    assert row_of(b'"hi"') == Row(2, 4, None, {"prompt": "hi"})


@pytest.mark.parametrize("number", [2**53 + 1, 2**63, 2**64, 2**64 + 1, -(2**63) - 1, 10**30, 10**300 + 7])
def test_an_integer_id_stays_exact(number: int) -> None:
    row = row_of(b'{"prompt":"a","id":%d}' % number)
    assert type(row.id) is int
    assert row.id == number


def test_a_long_integer_elsewhere_is_refused_rather_than_rounded() -> None:
    assert isinstance(parsed(b'{"prompt":"a","id":%d,"n":{"x":%d}}' % (2**70, 2**70)), BadRow)
    assert row_of(b'{"prompt":"a","x":%d}' % (2**64 - 1)).fields["x"] == 2**64 - 1


def test_ids_that_python_calls_equal_are_told_apart() -> None:
    texts = [identity_text(row_id, 1) for row_id in (1, 1.0, "1", "1.0", "i:1", -1, 10**25)]
    assert len(set(texts)) == len(texts)
    assert identity_text(2**53, 1) != identity_text(2**53 + 1, 1)


def test_unicode_forms_of_an_id_are_different_ids() -> None:
    assert identity_text("\u00e9", 1) != identity_text("e\u0301", 1)


def test_a_text_line_keeps_its_spaces_and_loses_its_line_end() -> None:
    row = text_line(Line(1, 0, "  été \r".encode()), 1)
    assert isinstance(row, Row)
    assert row.fields == {"prompt": "  été "}


def test_many_brackets_in_a_text_are_no_nesting() -> None:
    assert isinstance(parsed(json.dumps({"prompt": "[{" * 5000}).encode()), Row)


@given(st.binary())
def test_any_bytes_become_a_row_or_a_bad_row(data: bytes) -> None:
    for parse in (parse_line, text_line):
        outcome = parse(Line(1, 0, data), 1)
        assert isinstance(outcome, Row) or (outcome.reason.startswith("line 1: ") and outcome.reason.isprintable())


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["prompt", "text", "x"]), JSON_VALUES))
def test_fields_come_back_as_they_were_written(fields: dict[str, object]) -> None:
    for data in (orjson.dumps(fields), json.dumps(fields).encode()):
        assert row_of(data).fields == fields


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\ufeff"), min_size=1))
def test_a_text_line_is_its_prompt(text: str) -> None:
    row = text_line(Line(1, 0, text.encode()), 1)
    assert isinstance(row, Row) or not text.strip("\x00")
    assert isinstance(row, BadRow) or row.fields["prompt"] == text
