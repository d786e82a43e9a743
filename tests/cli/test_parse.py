"""How the words on the command line become values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmbatch.cli import parse
from llmbatch.errors import OptionsError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90.0), ("90s", 90.0), ("1.5m", 90.0), ("2h", 7200.0), ("250ms", 0.25), (" 5s ", 5.0), ("0", 0.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1s", "1d", "1e3", "inf", "nan", "1_000", "٣s", "5 s s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(OptionsError, match="is no duration"):
        parse.seconds(text)


@pytest.mark.parametrize(("text", "after"), [("p95", "p95"), ("10s", 10.0), ("1.5m", 90.0), ("250ms", 0.25)])
def test_hedge(text: str, after: float | str) -> None:
    assert parse.hedge(text) == after


@pytest.mark.parametrize("text", ["p99", "P95", "", "soon", "-1s", "95%"])
def test_what_is_no_hedge_is_refused(text: str) -> None:
    with pytest.raises(OptionsError, match="give p95, or a time such as 10s"):
        parse.hedge(text)


@pytest.mark.parametrize(("text", "number"), [("auto", None), ("1", 1), ("10000", 10_000)])
def test_concurrency(text: str, number: int | None) -> None:
    assert parse.concurrency(text) == number


@pytest.mark.parametrize("text", ["0", "-3", "2.5", "many", "", "٣", "1_0"])
def test_what_is_no_concurrency_is_refused(text: str) -> None:
    with pytest.raises(OptionsError, match="--concurrency"):
        parse.concurrency(text)


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("a=0.2", 0.2),
        ("a=true", True),
        ("a=null", None),
        ("a=text", "text"),
        ('a="7"', "7"),
        ("a=x=y", "x=y"),
        ("a=", ""),
        ('a={"type": "json_object"}', {"type": "json_object"}),
        ("a={broken", "{broken"),
        (" a =1", 1),
    ],
)
def test_params_are_json_where_they_can_be(pair: str, value: Any) -> None:
    assert parse.params([pair]) == {"a": value}


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", '{"b": [NaN]}', "[Infinity]"])
def test_a_param_that_is_no_number_of_json_is_refused(value: str) -> None:
    with pytest.raises(OptionsError, match=r"--param a: .* is not JSON; .* in quotes"):
        parse.params([f"a={value}"])
    assert parse.params(['a="NaN"', "b=Nan"]) == {"a": "NaN", "b": "Nan"}


@pytest.mark.parametrize(
    "value", ["99999999999999999999999", "-9223372036854775809", "[18446744073709551616]", "9" * 9999]
)
def test_a_param_beyond_64_bits_is_refused(value: str) -> None:
    with pytest.raises(OptionsError, match=r"--param seed: .* beyond 64 bits"):
        parse.params([f"seed={value}"])


def test_a_param_nested_without_end_is_refused() -> None:
    with pytest.raises(OptionsError, match="--param a: nested too deeply"):
        parse.params(["a=" + "[" * 100_000])


@pytest.mark.parametrize("pair", ["temperature", "=1", " =1", ""])
def test_a_pair_without_a_name_is_refused(pair: str) -> None:
    with pytest.raises(OptionsError, match="write name=value"):
        parse.params([pair])


def test_a_setting_given_twice_joins_its_values() -> None:
    assert parse.settings(["fault=429=0.1", "fault=500=0.1"], "--sim") == {"fault": "429=0.1,500=0.1"}


def test_a_param_given_twice_is_refused() -> None:
    with pytest.raises(OptionsError, match="temperature"):
        parse.params(["temperature=0", "temperature=1"])


def test_text_or_its_file(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("Grüße: {{ text }}\n", encoding="utf-8")
    assert parse.text_or_file(f"@{path}", "-t") == "Grüße: {{ text }}\n"
    assert parse.text_or_file("plain", "-t") == "plain"
    assert parse.text_or_file(None, "-t") is None
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(OptionsError, match="not UTF-8"):
        parse.text_or_file(f"@{path}", "-t")
