"""Results as CSV, Parquet and OpenAI Batch output: whole, in step with the lines they are made from, and harmless."""

from __future__ import annotations

import csv
import io
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import openai.types
import openai.types.chat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbatch.errors import InputError, OptionsError, OutputRefused, StorageError
from llmbatch.files.export import Export, lines_behind
from llmbatch.files.export_batch import batch_line
from llmbatch.files.export_table import Columns, csv_cell, csv_rows, joined, kind_of, typed
from llmbatch.files.results import written
from llmbatch.files.tables import RecordSplitter
from llmbatch.files.verify import locate
from llmbatch.options import RunOptions

OK: dict[str, Any] = {
    "id": "a", "row": 1, "status": "ok", "output": "Positive", "finish_reason": "stop", "model": "m",
    "usage": {"input_tokens": 3, "output_tokens": 2, "cached_input_tokens": None, "reasoning_tokens": 1},
    "cost_usd": 0.5, "latency_s": 0.25, "first_token_s": None, "attempts": 1, "request_id": "req_1", "key": "fp1:x",
}  # fmt: skip
REFUSED: dict[str, Any] = {
    "id": None, "row": 2, "status": "error", "attempts": 1, "request_id": "req_2", "key": "fp1:y",
    "error": {
        "type": "bad_request", "http_status": 400, "message": "no", "body": '{"error":{"message":"theirs","code":"c"}}',
    },
}  # fmt: skip
TIMED_OUT: dict[str, Any] = {
    "id": 7, "row": 3, "status": "error", "attempts": 2, "request_id": None, "key": "fp1:z",
    "error": {"type": "timeout", "http_status": None, "message": "gone", "body": None},
}  # fmt: skip
TOOL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("changes", "content", "reason"),
    [
        ({}, "Positive", "stop"),
        ({"output": {"city": "Lisbon"}}, '{"city":"Lisbon"}', "stop"),
        ({"output": [1, 2]}, "[1,2]", "stop"),
        ({"output": ""}, "", "stop"),
        ({"output": "", "tool_calls": [TOOL], "finish_reason": "tool_calls"}, None, "tool_calls"),
        ({"finish_reason": "context_length"}, "Positive", "length"),
        ({"finish_reason": "paused"}, "Positive", "length"),
        ({"finish_reason": None, "model": None, "usage": {}}, "Positive", "stop"),
        ({"output": "\ud800"}, "\ud800", "stop"),
    ],
)
def test_answer_is_a_completion_to_the_types_of_openai(
    changes: dict[str, Any], content: str | None, reason: str
) -> None:
    line = batch_line({**OK, **changes}, 1795219500)
    completion = openai.types.chat.ChatCompletion.model_validate(line["response"]["body"], strict=True)
    assert completion.choices[0].message.content == content
    assert completion.choices[0].finish_reason == reason
    assert (line["id"], line["custom_id"], line["error"]) == ("batch_req_1", "a", None)
    assert line["response"]["status_code"] == 200


@pytest.mark.parametrize("output", [[0.5, 1], [[0.5, 1], [2, 0.25]]])
def test_vectors_are_a_list_of_embeddings(output: list[Any]) -> None:
    body = batch_line({**OK, "output": output, "finish_reason": None}, 0)["response"]["body"]
    answer = openai.types.CreateEmbeddingResponse.model_validate(body)
    assert [one.embedding for one in answer.data] == (output if isinstance(output[0], list) else [output])
    assert answer.usage.prompt_tokens == 3


def test_error_that_the_server_answered_is_a_response_and_any_other_is_none() -> None:
    refused, timed_out = batch_line(REFUSED, 0), batch_line(TIMED_OUT, 0)
    assert refused["custom_id"] == "2" and refused["error"] is None
    assert refused["response"]["status_code"] == 400
    assert refused["response"]["body"]["error"] == {
        "message": "theirs", "type": "bad_request", "param": None, "code": "c",
    }  # fmt: skip
    assert timed_out["custom_id"] == "7" and timed_out["response"] is None
    assert timed_out["error"] == {"code": "timeout", "message": "gone"}
    skipped = batch_line({**TIMED_OUT, "status": "skipped", "error": {}}, 0)
    assert skipped["response"] is None and skipped["error"]["code"] == "skipped"


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1+1", "'=1+1"), ("+a", "'+a"), ("-a", "'-a"), ("@a", "'@a"), ("\ta", "'\ta"), ("\ra", "'\ra"),
        ("-5", "-5"), ("+1.5e3", "+1.5e3"), ("-5-2", "'-5-2"), (-5, "-5"), (None, ""), ("", ""), (True, "true"),
        ({"a": [1]}, '{"a":[1]}'), ("a=b", "a=b"),
    ],
)  # fmt: skip
def test_csv_cell_is_harmless_in_a_spreadsheet(value: Any, cell: str) -> None:
    assert csv_cell(value) == cell


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ((1, 2), "int"), ((1, None, 0.5), "float"), ((True, 1), "text"), (("a", 1), "text"), ((2**64,), "text"),
        (([1, 0.5], [2]), "vector"), (([1, "a"],), "text"), (([],), "text"), ((None,), None), (({"a": 1},), "text"),
        ((2**53 + 1, 1), "long"), ((2**53 + 1, 0.5), "text"), (([2**53 + 1],), "text"),
    ],
)  # fmt: skip
def test_kind_of_a_column_holds_all_its_values(values: tuple[Any, ...], kind: str | None) -> None:
    found = None
    for value in values:
        found = joined(found, kind_of(value))
    assert found == kind


def test_values_in_a_text_column_become_text() -> None:
    assert [typed(value, "text") for value in ("a", {"b": 1}, None, "\ud800")] == ["a", '{"b":1}', None, "\\ud800"]
    assert typed(1, "int") == 1


def test_columns_are_those_of_the_input_then_ours_then_what_else_a_line_says() -> None:
    columns = Columns()
    lines = [{**OK, "input": {"text": "t", "id": "a", "llmbatch_id": 1}}, {**REFUSED, "tool_calls": [TOOL]}]
    for line in lines:
        columns.learn(line)
    names = list(columns.kinds)
    assert names[:6] == ["text", "id", "llmbatch_id", "llmbatch_llmbatch_id", "row", "status"]
    assert names[-1] == "tool_calls"
    first, second = (dict(zip(names, columns.cells(line), strict=True)) for line in lines)
    assert (first["text"], first["output"], first["input_tokens"], first["cost_usd"]) == ("t", "Positive", 3, 0.5)
    assert (second["text"], second["error_type"], second["tool_calls"]) == (None, "bad_request", [TOOL])


def export_of(tmp_path: Path, lines: list[dict[str, Any]], format: str = "csv", name: str = "out.csv") -> Export:
    export = Export.of(str(tmp_path / name), format)  # type: ignore[arg-type]
    export.lines.out.write_bytes(b"".join(map(written, lines)))
    return export


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_export_is_made_of_the_rows_of_the_input_and_carries_the_time_of_its_lines(tmp_path: Path) -> None:
    export = export_of(tmp_path, [{**OK, "input": {"q": 'a,"b"\nc'}}, REFUSED, TIMED_OUT])
    export.make(3)
    assert export.out.stat().st_mtime_ns == export.lines.out.stat().st_mtime_ns
    export.make(2)
    rows = read_csv(export.out)
    assert [(row["q"], row["row"], row["error_message"]) for row in rows] == [('a,"b"\nc', "1", ""), ("", "2", "no")]
    assert export.out.stat().st_mtime_ns == export.lines.out.stat().st_mtime_ns - 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.csv.jsonl"]


def test_batch_export_keeps_the_order_and_every_row(tmp_path: Path) -> None:
    export = export_of(tmp_path, [OK, REFUSED, TIMED_OUT], "openai-batch", "out.jsonl")
    export.make(3)
    lines = [json.loads(line) for line in export.out.read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == ["a", "2", "7"]
    assert lines_behind(str(export.out)) == str(export.out) + ".jsonl"


def test_kill_between_seal_and_export_and_while_it_is_made(tmp_path: Path) -> None:
    export = export_of(tmp_path, [OK])
    (tmp_path / ".out.csv.making").write_text("half of i")
    export.refuse_foreign()
    assert export.renew(1)
    assert len(read_csv(export.out)) == 1
    assert not export.renew(1)
    assert not (tmp_path / ".out.csv.making").exists()


def test_older_export_is_made_again(tmp_path: Path) -> None:
    export = export_of(tmp_path, [OK])
    export.out.write_text("old")
    os.utime(export.out, (1, 1))
    assert export.renew(1)
    assert read_csv(export.out)[0]["output"] == "Positive"


def test_export_of_fewer_or_more_rows_is_made_again(tmp_path: Path) -> None:
    export = export_of(tmp_path, [OK, REFUSED, TIMED_OUT])
    for rows in (2, 3, 1):
        assert export.renew(rows)
        assert len(read_csv(export.out)) == rows
        assert not export.renew(rows)


def test_export_that_somebody_changed_is_neither_removed_nor_overwritten(tmp_path: Path) -> None:
    export = export_of(tmp_path, [OK])
    export.make(1)
    export.out.write_text("with my labels")
    assert not export.renew(1)
    with pytest.raises(OutputRefused, match="was changed since it was made; move it away"):
        export.withdraw()
    assert export.out.read_text() == "with my labels"


def test_export_is_withdrawn_when_its_lines_are_continued(tmp_path: Path) -> None:
    export = export_of(tmp_path, [OK])
    export.make(1)
    export.withdraw()
    assert not export.out.exists()
    export.withdraw()


@pytest.mark.parametrize("beside", [None, "out.csv.jsonl.partial"])
def test_file_of_somebody_else_is_refused(tmp_path: Path, beside: str | None) -> None:
    export = Export.of(str(tmp_path / "out.csv"), "csv")
    export.out.write_text("mine\n")
    if beside:
        (tmp_path / beside).write_bytes(b"")
    with pytest.raises(OutputRefused, match=r"was not made from out\.csv\.jsonl"):
        export.refuse_foreign()


def test_damaged_line_makes_no_export_and_leaves_the_old_one(tmp_path: Path) -> None:
    export = export_of(tmp_path, [OK])
    export.make(1)
    before = export.out.read_bytes()
    export.lines.out.write_bytes(written(OK) + b"{damaged\n")
    with pytest.raises(StorageError, match="line 2 is damaged"):
        export.make(2)
    assert export.out.read_bytes() == before
    assert not (tmp_path / ".out.csv.making").exists()


def test_disk_that_fails_is_told_with_where_the_answers_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export = export_of(tmp_path, [OK])

    def full(fd: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llmbatch.files.export.write_all", full)
    with pytest.raises(StorageError, match=r"No space left.*every answer is safe in .*out\.csv\.jsonl"):
        export.make(1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv.jsonl"]


def test_mode_is_that_of_the_lines_or_of_the_file_that_is_replaced(tmp_path: Path) -> None:
    export = export_of(tmp_path, [OK])
    export.lines.out.chmod(0o600)
    export.make(1)
    assert export.out.stat().st_mode & 0o777 == 0o600
    export.out.chmod(0o644)
    export.make(1)
    assert export.out.stat().st_mode & 0o777 == 0o644


def test_verify_and_repair_name_the_lines_behind_an_export(tmp_path: Path) -> None:
    export = export_of(tmp_path, [OK])
    with pytest.raises(InputError, match=r"made from .*out\.csv\.jsonl"):
        locate(str(export.out))
    assert locate(str(export.lines.out))[1] == export.lines.out
    (tmp_path / "plain").write_bytes(written(OK))
    (tmp_path / "plain.jsonl").write_bytes(written(OK))
    assert locate(str(tmp_path / "plain"))[1] == tmp_path / "plain"


@pytest.mark.parametrize(
    ("output", "format", "path", "found"),
    [
        (None, None, "d/in.results.jsonl", "jsonl"),
        (None, "csv", "d/in.results.csv", "csv"),
        (None, "openai-batch", "d/in.batch.jsonl", "openai-batch"),
        ("x.CSV", None, "x.CSV", "csv"),
        ("x.parquet", None, "x.parquet", "parquet"),
        ("x.csv", "jsonl", "x.csv", "jsonl"),
        ("x.gz", "csv", "x.gz", "csv"),
        ("-", "openai-batch", "-", "openai-batch"),
    ],
)
def test_format_and_name_of_the_results(output: str | None, format: Any, path: str, found: str) -> None:
    options = RunOptions(input="d/in.csv.gz", output=output, format=format)
    assert (options.output_path, options.results_format) == (path, found)
    assert options.keeps_input == (found in ("csv", "parquet"))


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_table_on_standard_output_is_refused(format: Any) -> None:
    with pytest.raises(OptionsError, match=f"--format {format} is no stream.*-o FILE"):
        RunOptions(input="-", format=format)


_NAMES = st.lists(
    st.text("abc é", min_size=1, max_size=4).map(str.strip).filter(bool), min_size=2, max_size=3, unique=True
)
_CELLS = st.text(st.sampled_from('ab "\n\r,;=+-@\t5é'), max_size=6)


@given(_NAMES, st.lists(st.lists(_CELLS, min_size=3, max_size=3), max_size=5))
def test_rows_of_a_csv_come_back_from_the_csv_of_their_results(names: list[str], rows: list[list[str]]) -> None:
    rows = [row[: len(names)] for row in rows]
    out = io.StringIO(newline="")
    csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\r\n").writerows([names, *rows])
    read = _objects(out.getvalue().encode())
    columns = Columns()
    lines = [{**OK, "row": number, "input": fields} for number, fields in enumerate(read, 1)]
    for line in lines:
        columns.learn(line)
    again = _objects(csv_rows([list(columns.kinds), *(list(columns.cells(line)) for line in lines)]))
    assert [[*fields.values()][: len(names)] for fields in again] == [[csv_cell(cell) for cell in row] for row in rows]
    assert [fields["output"] for fields in again] == ["Positive"] * len(rows)


def _objects(content: bytes) -> list[dict[str, str]]:
    splitter = RecordSplitter(1 << 20, ",")
    return [json.loads(line.data) for line in splitter.feed(content) + splitter.finish()]


def test_memory_does_not_grow_with_the_results(tmp_path: Path) -> None:
    export = Export.of(str(tmp_path / "out.csv"), "csv")
    with export.lines.out.open("wb") as file:
        file.writelines(written({**OK, "row": n, "input": {"text": "x" * 500}}) for n in range(1, 20_001))
    tracemalloc.start()
    try:
        export.make(20_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(read_csv(export.out)) == 20_000
    assert peak < 14_000_000  # the lines are 16 MB, as values several times that


def test_parquet_is_typed_and_read_back(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    lines = [{**OK, "input": {"n": 1, "t": "a"}}, {**REFUSED, "input": {"n": None, "t": "b"}}]
    export = export_of(tmp_path, lines, "parquet", "out.parquet")
    export.make(2)
    table = parquet.read_table(export.out)
    types = {field.name: str(field.type) for field in table.schema}
    assert (types["n"], types["t"], types["output"], types["cost_usd"]) == ("int64", "string", "string", "double")
    assert types["input_tokens"] == "int64"
    rows = table.to_pylist()
    assert [(row["n"], row["output"], row["status"]) for row in rows] == [(1, "Positive", "ok"), (None, None, "error")]


def test_parquet_keeps_the_digits_of_integers_beside_fractions(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    values: list[dict[str, Any]] = [{"n": 2**53 + 1, "v": [2**53 + 1], "l": 2**53 + 1}, {"n": 0.5, "v": [0.5], "l": 1}]
    export = export_of(tmp_path, [{**OK, "input": value} for value in values], "parquet", "out.parquet")
    export.make(2)
    rows = parquet.read_table(export.out).to_pylist()
    assert [(row["n"], row["v"], row["l"]) for row in rows] == [
        ("9007199254740993", "[9007199254740993]", 2**53 + 1),
        ("0.5", "[0.5]", 1),
    ]
