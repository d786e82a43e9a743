"""CSV and TSV records become the rows that JSONL would hold, whatever the chunks, quotes and line ends."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import datetime
import gzip
import io
import os
import tracemalloc
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbatch.errors import InputError, StorageError
from llmbatch.files.parquet import json_value
from llmbatch.files.readers import InputFile, open_input
from llmbatch.files.tables import RecordSplitter, cells_of, delimiter_of
from llmbatch.records import Line
from llmbatch.rules.reasons import RowError


@contextlib.contextmanager
def piped_stdin() -> Iterator[int]:
    """Standard input is a pipe; gives its writing end."""
    reading, writing = os.pipe()
    saved = os.dup(0)
    os.dup2(reading, 0)
    os.close(reading)
    try:
        yield writing
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        with contextlib.suppress(OSError):
            os.close(writing)


async def lines_of(source: InputFile) -> list[Line]:
    return [line async for batch in source.batches() for line in batch]


async def read(path: Path) -> tuple[list[Line], InputFile]:
    source = await open_input(str(path))
    try:
        return await lines_of(source), source
    finally:
        source.close()


def split(content: bytes, delimiter: str = ",", cuts: tuple[int, ...] = ()) -> list[Line]:
    splitter = RecordSplitter(1 << 20, delimiter)
    lines = []
    for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
        if start < end:
            lines += splitter.feed(content[start:end])
    return lines + splitter.finish()


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        ("a,b", ["a", "b"]),
        ("", [""]),
        (",", ["", ""]),
        ('"a,b",c', ["a,b", "c"]),
        ('"a ""quoted"" word",', ['a "quoted" word', ""]),
        ('""', [""]),
        ('""""', ['"']),
        ('5" pipe,6"', ['5" pipe', '6"']),
        ('"two\r\nlines",x', ["two\r\nlines", "x"]),
    ],
)
def test_cells(text: str, cells: list[str]) -> None:
    assert cells_of(text, ",") == cells


@pytest.mark.parametrize(
    ("text", "words"), [('a,"b', "column 2 is never closed"), ('"a"b,c', "column 1 has text after")]
)
def test_wrong_quotes_name_their_column(text: str, words: str) -> None:
    with pytest.raises(RowError, match=words):
        cells_of(text, ",")


@pytest.mark.parametrize(
    ("header", "delimiter"),
    [(b"id,text", ","), (b"id;text", ";"), (b"id\ttext", "\t"), (b"id|text", "|"), (b"text", ","),
     (b'id;"a, b, and c"', ";"), (b"a,b;c", ",")],
)  # fmt: skip
def test_delimiter_is_that_of_the_header(header: bytes, delimiter: str) -> None:
    assert delimiter_of(header) == delimiter


_CELL = st.text(st.sampled_from('ab "\n\r,;é\u2028'), max_size=8)
_TABLE = st.lists(st.tuples(_CELL, _CELL), max_size=6)


@given(_TABLE, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.data())
def test_what_the_csv_module_wrote_is_read_back_whatever_the_chunks(
    rows: list[tuple[str, str]], end: str, bom: bool, data: st.DataObject
) -> None:
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    content = b"\xef\xbb\xbf" * bom + out.getvalue().encode()
    cuts = sorted(data.draw(st.lists(st.integers(4, len(content)))))
    lines = split(content, cuts=tuple(cuts))
    assert [orjson.loads(line.data) for line in lines] == [{"a": a, "b": b} for a, b in rows]
    for line in lines:
        before = content[: line.offset]
        assert before.endswith(b"\n")
        assert line.number == before.count(b"\n") + 1


@given(st.binary(max_size=60), st.data())
def test_no_bytes_crash_it_and_chunks_change_nothing(tail: bytes, data: st.DataObject) -> None:
    content = b'a,"b"\n' + tail
    cuts = sorted(data.draw(st.lists(st.integers(1, len(content)))))
    assert split(content, cuts=tuple(cuts)) == split(content)


async def test_delimiter_is_noted_and_the_first_row_tells_pipes_apart(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(b"model;prompt\nm;one\nm;two\n")
    lines, source = await read(path)
    assert [orjson.loads(line.data) for line in lines] == [{"model": "m", "prompt": p} for p in ("one", "two")]
    assert "semicolons" in source.notes[0]
    assert b'"model"' in source.first_line and b"m;one" in source.first_line
    assert source.bytes_read == source.size_bytes


async def test_table_in_gzip_and_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "in.tsv.gz"
    path.write_bytes(gzip.compress(b"id\tprompt\n1\ta,b\n"))
    source = await open_input(str(path))
    again = source.reopen()
    for one in (source, again):
        assert [line.data for line in await lines_of(one)] == [b'{"id":"1","prompt":"a,b"}']
        one.close()


async def test_cut_gzip_table_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "in.csv.gz"
    path.write_bytes(gzip.compress(b"prompt,x\n" + os.urandom(9000).hex().encode() + b",1\n" * 2)[:-9])
    _, source = await read(path)
    assert source.truncated


async def test_row_of_a_slow_pipe_is_delivered_at_once_and_spooled_whole(tmp_path: Path) -> None:
    with piped_stdin() as writing:
        os.write(writing, b"id,prompt\n1,a\n2,")
        source = await open_input("-")
        batches = source.batches()
        assert [line.data for line in await asyncio.wait_for(anext(batches), 5)] == [b'{"id":"1","prompt":"a"}']
        os.write(writing, b"b\n")
        os.close(writing)
        assert [line.data for batch in [b async for b in batches] for line in batch] == [b'{"id":"2","prompt":"b"}']
        source.close()
    with piped_stdin() as writing:
        os.write(writing, b"id,prompt\n1,a\n2,b\n")
        os.close(writing)
        piped = await open_input("-")
        spooled: InputFile = await piped.spool(tmp_path)
        assert len(await lines_of(spooled)) == 2
        spooled.close()
        piped.close()


async def test_memory_does_not_grow_with_the_table(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    with path.open("w") as file:
        file.write("id,prompt\n")
        file.writelines(f'{number},"text ""{number}"", {"x" * 100}"\n' for number in range(60_000))
    tracemalloc.start()
    try:
        source = await open_input(str(path))
        count = 0
        async for batch in source.batches():
            count += len(batch)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    source.close()
    assert count == 60_000
    assert peak < 10_000_000  # all rows together are 18 MB


async def test_parquet_without_its_library_is_refused_with_the_command(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    path.write_bytes(b"PAR1" + bytes(20))
    with pytest.raises(InputError, match=r"llmbatch\[parquet\]|damaged Parquet"):
        await open_input(str(path))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC), "2026-01-02T03:04:05+00:00"),
        (datetime.time(3, 4), "03:04:00"),
        (datetime.timedelta(minutes=1), "60.0"),
        (Decimal("1.50"), "1.50"),
        ("é".encode(), "é"),
        (b"\xff\x00", "/wA="),
    ],
)
def test_values_of_parquet_that_json_has_no_word_for(value: object, text: str) -> None:
    assert json_value(value) == text


async def test_parquet_rows_are_numbered_and_typed(tmp_path: Path) -> None:
    parquet, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    path = tmp_path / "in.parquet"
    day = datetime.date(2026, 1, 2)
    rows = [{"id": n, "text": f"t{n}", "day": day, "tags": ["a", "c"]} for n in range(600)]
    parquet.write_table(pa.Table.from_pylist(rows), path)
    lines, source = await read(path)
    assert [line.number for line in lines] == list(range(1, 601))
    assert orjson.loads(lines[7].data) == {"id": 7, "text": "t7", "day": "2026-01-02", "tags": ["a", "c"]}
    assert not source.truncated and b'"text"' in source.first_line


async def test_parquet_row_with_a_value_that_can_not_be_read_is_one_bad_row(tmp_path: Path) -> None:
    parquet, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    path = tmp_path / "in.parquet"
    far = pa.array([0, 2**61], pa.int64()).cast(pa.timestamp("us"))
    parquet.write_table(pa.table({"prompt": ["a", "b"], "when": far}), path)
    good, bad = (await read(path))[0]
    assert orjson.loads(good.data) == {"prompt": "a", "when": "1970-01-01T00:00:00"}
    assert (bad.number, bad.problem) == (2, "column 'when' can not be read: date value out of range")


async def test_parquet_text_that_is_not_utf8_is_one_bad_row(tmp_path: Path) -> None:
    parquet, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    path = tmp_path / "in.parquet"
    parquet.write_table(pa.table({"prompt": pa.array([b"a", b"\xff"]).view(pa.string())}), path)
    good, bad = (await read(path))[0]
    assert orjson.loads(good.data) == {"prompt": "a"}
    assert bad.problem is not None and bad.problem.startswith("column 'prompt' can not be read: 'utf-8' codec")


async def test_parquet_nanoseconds_at_any_depth_are_text(tmp_path: Path) -> None:
    parquet, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    path = tmp_path / "in.parquet"
    one = pa.array([1], pa.int64())
    columns = {
        "time": one.cast(pa.time64("ns")),
        "took": one.cast(pa.duration("ns")),
        "times": pa.array([[1]]).cast(pa.list_(pa.timestamp("ns"))),
        "in": pa.StructArray.from_arrays([one.cast(pa.timestamp("ns"))], names=["at"]),
    }
    parquet.write_table(pa.table(columns), path)
    [line] = (await read(path))[0]
    moment = "1970-01-01 00:00:00.000000001"
    values = {"time": "00:00:00.000000001", "took": "1e-09", "times": [moment], "in": {"at": moment}}
    assert orjson.loads(line.data) == values


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["prompt", "prompt"], "the table has the name 'prompt' for columns 1, 2"),
        (["", "prompt"], "the table has no name for column 1"),
    ],
)
async def test_parquet_columns_without_names_of_their_own_are_bad_rows(
    tmp_path: Path, names: list[str], problem: str
) -> None:
    parquet, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    path = tmp_path / "in.parquet"
    parquet.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=names), path)
    [line] = (await read(path))[0]
    assert line.problem == problem


async def test_parquet_damaged_behind_its_first_rows_says_so(tmp_path: Path) -> None:
    parquet, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    path = tmp_path / "in.parquet"
    parquet.write_table(pa.table({"prompt": [f"row {n}" for n in range(5000)]}), path, use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[5000:5100] = b"\x55" * 100
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"in.parquet is damaged Parquet after row 0: .*; write it anew, and"):
        await read(path)
