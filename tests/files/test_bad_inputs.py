"""Every way an input can be wrong: the row costs nothing and says why, or the file is refused with a command."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmbatch.errors import InputError
from llmbatch.files.jsonl import parse_line, text_line
from llmbatch.files.readers import open_input
from llmbatch.records import BadRow, Request
from llmbatch.rules.request import RequestBuilder

GOOD = b'{"prompt":"hi"}\n'
UTF16 = '{"prompt":"hi"}\n'.encode("utf-16-le")


@dataclass
class Case:
    """``bad`` are words of the one error row (at ``line``), ``refused`` words of the InputError; else all is sent."""

    number: str
    data: bytes
    bad: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    sent: int = 0
    line: int = 1
    name: str = "in.jsonl"
    cap: int = 1 << 20
    template: str | None = None


def row(**fields: object) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def user(content: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": content}]


FRAMING = [
    Case("1 BOM at the start", b"\xef\xbb\xbf" + GOOD, sent=1),
    Case("2 BOM inside", GOOD + b"\xef\xbb\xbf" + GOOD, sent=2),
    Case("3 UTF-16 BOM", b"\xff\xfe" + UTF16, refused=("UTF-16", "iconv -f UTF-16 -t UTF-8", "in.jsonl")),
    Case("3 UTF-16 bare", UTF16, refused=("UTF-16", "iconv -f UTF-16LE")),
    Case("3 UTF-16BE bare", '{"a":1}'.encode("utf-16-be"), refused=("iconv -f UTF-16BE",)),
    Case("3 UTF-32", "{}\n".encode("utf-32"), refused=("UTF-32", "iconv -f UTF-32")),
    Case("4 CRLF", b'{"prompt":"a"}\r\n{"prompt":"b"}\r\n', sent=2),
    Case("5 lone CR", b'{"prompt":"a"}\r{"prompt":"b"}\r', refused=("no newline found", "tr '\\r' '\\n'")),
    Case("5 lone CR in text", b"one\rtwo\r", refused=("no newline found",), name="in.txt"),
    Case("6 CR as whitespace", b'{\r"prompt":"a"}\n', sent=1),
    Case("6 CR as whitespace, no LF", b'{\r"prompt":"a"\r}', sent=1),
    Case("7 U+2028 VT FF", '{"prompt":"a\u2028b\u2029c\u0085d"}\n'.encode(), sent=1),
    Case("8 invalid UTF-8", GOOD + b'{"prompt":"\xff"}\n' + GOOD, bad=("byte 12 (0xff)", "UTF-8"), line=2, sent=2),
    Case("8 invalid UTF-8 in text", b"ok\n\xff\n", bad=("byte 1 (0xff)",), line=2, sent=1, name="in.txt"),
    Case("9 overlong", b'{"prompt":"\xc0\xaf"}\n', bad=("0xc0", "not UTF-8")),
    Case("10 CESU-8", b'{"prompt":"\xed\xa0\x80"}\n', bad=("0xed", "not UTF-8")),
    Case("11 lone surrogate", b'{"prompt":"\\ud800"}\n', bad=("surrogate", "column")),
    Case("12 reversed pair", b'{"prompt":"\\udc00\\ud800"}\n', bad=("surrogate",)),
    Case("13 escaped NUL", b'{"prompt":"a\\u0000b"}\n', sent=1),
    Case("14 raw NUL", b'{"prompt":"a\x00b"}\n', bad=("control character", "column 13")),
    Case("14 raw tab", b'{"prompt":"a\tb"}\n', bad=("control character",)),
    Case("15 line of NULs", GOOD + b"\x00" * 50 + b"\n" + GOOD, bad=("50 NUL", "damaged file"), line=2, sent=2),
    Case("15 first line of NULs", b"\x00" * 50 + b"\n" + GOOD, bad=("damaged file",), sent=1),
    Case("15 only NULs", b"\x00" * 50, refused=("damaged",)),
    Case("16 empty lines", b"\n" + GOOD + b"\n\n" + GOOD, sent=2),
    Case("17 blank lines", b"  \t\r\n" + GOOD + b" \n", sent=1),
    Case("18 no last newline", GOOD + GOOD.rstrip(), sent=2),
    Case("18 torn last line", GOOD + b'{"prompt":"h', bad=("cut short",), line=2, sent=1),
    Case("19 trailing garbage", b'{"prompt":"a"} x\n', bad=("after the end", "column 16")),
    Case("20 two objects", b'{"prompt":"a"}{"prompt":"b"}\n', bad=("two JSON values", "column 15")),
    Case("21 # comment", b"# rows\n" + GOOD, bad=("comment", "remove"), sent=1),
    Case("21 // comment", b"// rows\n" + GOOD, bad=("comment",), sent=1),
    Case("22 long line", GOOD + row(prompt="x" * 500) + GOOD, bad=("longer than",), line=2, sent=2, cap=100),
    Case("22 long first line", row(prompt="x" * 200) + GOOD, bad=("longer than",), sent=1, cap=100),
    Case("22 long last line", GOOD + b'{"prompt":"' + b"x" * 500, bad=("longer than",), line=2, sent=1, cap=100),
    Case("23 endless line", b'{"prompt":"' + b"x" * 500, refused=("does not end",), cap=100),
    Case("24 empty file", b""),
    Case("24 only a BOM", b"\xef\xbb\xbf"),
    Case("25 only bad rows", b"{\n", bad=("too early",)),
    Case("26 gzip", gzip.compress(GOOD * 3), sent=3, name="in.jsonl.gz"),
    Case("26 gzip by content", gzip.compress(GOOD), sent=1),
    Case("26 gzip members", gzip.compress(GOOD) + gzip.compress(GOOD) + b"\0" * 9, sent=2),
    Case("26 gzipped text", gzip.compress(b"one\ntwo\n"), sent=2, name="in.txt.gz"),
    Case("27 zstd", b"\x28\xb5\x2f\xfd" + b"\xff" * 20, refused=("in.jsonl.zst", "zstd"), name="in.jsonl.zst"),
    Case("27 xz", b"\xfd7zXZ\x00" + bytes(20), refused=("xzcat",)),
    Case("27 bz2", b"BZh91AY&SY", refused=("bzcat",)),
    Case("27 zip", b"PK\x03\x04" + bytes(20), refused=("unzip -p",)),
    Case("27 binary", b"\x89PNG\r\n\x1a\n\x00\x00", refused=("binary",)),
    Case("29 gzip bomb", gzip.compress(b"{" + b" " * 10**7), refused=("does not end",), cap=10**5),
]

JSON = [
    Case("35 array", b'[\n  {"prompt":"a"},\n  {"prompt":"b"}\n]\n', refused=("JSON array", "jq -c '.[]' in.jsonl")),
    Case("35 array on a line", b'[{"prompt":"a"}]\n', refused=("JSON array",)),
    Case("36 pretty-printed", b'{\n  "prompt": "a"\n}\n', refused=("spread over lines", "jq -c . in.jsonl")),
    Case("37 CSV in JSONL", b"id,text\n1,hello\n", refused=("CSV", "--input-format csv")),
    Case("37 CSV, quoted", b'"id","prompt"\n1,hello\n', sent=1, name="rows"),
    Case("37 CSV by name", b"prompt\nhello\n", sent=1, name="in.csv"),
    Case("37 TSV in JSONL", b"id\ttext\n1\thello\n", refused=("TSV", "--input-format tsv")),
    Case("37 TSV", b"id\tprompt\n1\thello\n", sent=1, name="rows"),
    Case("37 JSONL in CSV", GOOD, refused=("JSON rows", "--input-format jsonl"), name="in.csv"),
    Case(
        "37 ragged CSV",
        b"id,prompt\n1,a\n2\n3,b\n",
        bad=("1 cells for 2 columns", "prompt"),
        line=3,
        sent=2,
        name="in.csv",
    ),
    Case(
        "37 CSV with a cell too many",
        b"id,prompt\n1,a,b\n",
        bad=("3 cells for 2 columns", "'b'"),
        line=2,
        name="in.csv",
    ),
    Case(
        "37 CSV of two equal names", b"text,prompt,text\n1,2,3\n", bad=("'text'", "columns 1, 3"), line=2, name="in.csv"
    ),
    Case("37 CSV without a name", b"prompt,\na,b\n", bad=("no name", "column 2"), line=2, name="in.csv"),
    Case(
        "37 CSV of an open quote",
        b'id,prompt\n1,a\n2,"b\n3,c\n',
        bad=("never closed", "column 2"),
        line=3,
        sent=1,
        name="in.csv",
    ),
    Case("37 CSV of Latin-1", b"id,prompt\n1,caf\xe9\n2,b\n", bad=("0xe9", "not UTF-8"), line=2, sent=1, name="in.csv"),
    Case("37 CSV of a NUL", b"id,prompt\n" + b"1,a\n" * 300 + b"2,\x00b\n", sent=301, name="in.csv"),
    Case(
        "37 long CSV record",
        b'id,prompt\n1,a\n2,"' + b"x\n" * 200 + b'"\n3,b\n',
        bad=("longer than",),
        line=3,
        sent=2,
        name="in.csv",
        cap=100,
    ),
    Case("37 endless CSV header", b'"id' + b"x" * 500, refused=("header does not end",), name="in.csv", cap=100),
    Case("37 CSV of lone CR", b"id,prompt\r1,a\r", refused=("lone CR",), name="in.csv"),
    Case("37 Parquet", b"PAR1" + bytes(20), refused=("in.parquet", "Parquet"), name="in.parquet"),
    Case("37 no Parquet", GOOD, refused=("no Parquet file", "PAR1"), name="in.parquet"),
    Case("38 an array", GOOD + b"[1]\n", bad=("an array",), line=2, sent=1),
    Case("38 an array first", b"[1]\n" + GOOD, bad=("an array",), sent=1),
    Case("38 a number", b"5\n", bad=("a number",)),
    Case("38 null", b"null\n", bad=("null",)),
    Case("38 true", b"true\n", bad=("a boolean",)),
    Case("38 a bare string is a prompt", b'"hi"\n', sent=1),
    *[
        Case(f"39 {key} twice", b'{"prompt":"a","id":"1",' + member + b"}\n", bad=(f"'{key}'", "2 times"))
        for key, member in (
            ("prompt", b'"prompt":"b"'),
            ("id", b'"id":"2"'),
            ("id", b'"\\u0069d":"2"'),
            ("model", b'"model":"a","model":"b"'),
            ("custom_id", b'"custom_id":1,"custom_id":2'),
            ("messages", b'"x":{"messages":[],"messages":[]}'),
        )
    ],
    Case("39 the same name at two levels", b'{"id":"1","prompt":"a","x":{"id":"2"}}\n', sent=1),
    Case("40 NaN", b'{"prompt":"a","x":NaN}\n', bad=("NaN", "column 19")),
    Case("40 -Infinity", b'{"prompt":"a","x":-Infinity}\n', bad=("not JSON",)),
    Case("41 1e999", b'{"prompt":"a","x":1e999}\n', bad=("too large",)),
    Case("43 5,000 digits", b'{"prompt":"a","id":' + b"1" * 5000 + b"}\n", bad=("too large",)),
    Case("43 beyond 64 bits", b'{"prompt":"a","x":18446744073709551616}\n', bad=("64 bits", "string")),
    Case("45 nested 2,000", b'{"prompt":"a","x":' + b"[" * 2000 + b"]" * 2000 + b"}\n", bad=("nested",)),
    Case("45 nested 300", b'{"prompt":"a","x":' + b"[" * 300 + b"]" * 300 + b"}\n", bad=("nested", "200")),
    Case("45 wide, not deep", b'{"prompt":"a","x":[' + b"[]," * 300 + b"[]]}\n", sent=1),
    Case("46 trailing comma", b'{"prompt":"a",}\n', bad=("trailing comma", "column 14")),
    Case("46 single quotes", b"{'prompt':'a'}\n", bad=("double quotes", "column 2")),
    Case("46 True", b'{"prompt":"a","x":True}\n', bad=("true, not True", "column 19")),
    Case("46 unquoted key", b'{prompt:"a"}\n', bad=("key", "double quotes", "column 2")),
    Case("47 many keys", row(prompt="a", **{f"k{number}": 1 for number in range(5000)}), sent=1),
    Case("55 id null", row(id=None, prompt="a"), bad=("'id'", "null")),
    Case("55 id empty", row(id="", prompt="a"), bad=("'id'", "empty")),
    Case("55 id list", row(id=[1], prompt="a"), bad=("'id'", "an array")),
    Case("55 id object", row(custom_id={}, prompt="a"), bad=("'custom_id'", "an object")),
    Case("44 id true", row(id=True, prompt="a"), bad=("'id'", "a boolean")),
    Case("56 id with control characters", row(id="\x1b[2J" * 3000, prompt="a"), sent=1),
    Case("57 id like a path", row(id="../../etc/x", prompt="a"), sent=1),
]

MEANING = [
    Case("58 no prompt", row(text="a"), bad=("no 'prompt'", "text", "--template")),
    Case("59 both", row(prompt="a", messages=user("b")), bad=("both",)),
    Case("60 empty prompt", row(prompt=""), bad=("empty",)),
    Case("61 blank prompt", row(prompt=" \n\u00a0"), bad=("empty",)),
    Case("61 blank messages", row(messages=user(" ")), bad=("empty",)),
    Case("62 no messages", row(messages=[]), bad=("'messages' is empty",)),
    Case("63 unknown role", row(messages=[{"role": "bot", "content": "a"}]), bad=("messages[0]", "'bot'", "assistant")),
    Case("63 no role", row(messages=[{"content": "a"}]), bad=("missing", "assistant")),
    Case("64 two system messages", row(messages=[{"role": "system", "content": "a"}] * 2 + user("b")), sent=1),
    Case("65 parts", row(messages=user([{"type": "image_url", "image_url": {"url": "https://x"}}])), sent=1),
    Case("65 content null", row(messages=user(None)), bad=("content of messages[0]", "null")),
    Case(
        "65 null with tool calls", row(messages=[{"role": "assistant", "content": None, "tool_calls": [{}]}]), sent=1
    ),
    Case("65 bare string part", row(messages=user(["a"])), bad=("messages[0].content[0]",)),
    Case("65 no parts", row(messages=user([])), bad=("an empty list",)),
    Case("66 content a number", row(messages=user(5)), bad=("content of messages[0]", "a number")),
    Case("66 prompt a number", row(prompt=5), bad=("'prompt'", "a number")),
    Case("67 own field", row(prompt="a", category="b"), sent=1),
    Case("68 own model", row(prompt="a", model="other", temperature=1), sent=1),
    Case("69 url", row(prompt="a", url="https://evil"), bad=("may not set 'url'",)),
    Case("69 base_url", row(prompt="a", params={"base_url": "https://evil"}), bad=("may not set 'base_url'",)),
    Case("69 API-Key", row(prompt="a", **{"API-Key": "k"}), bad=("may not set 'API-Key'",)),
    Case(
        "69 headers in body", row(custom_id="a", body={"messages": user("a"), "headers": {}}), bad=("'headers'",)
    ),
    Case("70 stream", row(prompt="a", stream=True), sent=1),
    Case("70 n", row(prompt="a", n=2), bad=("'n'", "not 2")),
    Case("70 user, store", row(prompt="a", user="u", store=False), sent=1),
    *[Case(f"71 max_tokens {value!r}", row(prompt="a", max_tokens=value), bad=("'max_tokens'", "integer from 1"))
      for value in (0, -1, "100", 10**9, True, 1.5)],
    Case("72 temperature text", row(prompt="a", temperature="0.7"), bad=("'temperature'", "a number", "'0.7'")),
    Case("76 template field missing", row(body="a"), bad=("'text' is missing", "body"), template="{{ text }}"),
    Case("77 template field null", row(text=None), bad=("'text' is null", "default('')"), template="{{ text }}"),
    Case("78 value looks like a template", row(text="{{ 1/0 }}"), sent=1, template="{{ text }}"),
    Case("84 results file", row(id="r", row=1, status="ok", key="fp1:00"), refused=("results file",)),
    Case("84 journal", row(llmbatch={"version": 1}), refused=("results file",)),
]  # fmt: skip


@pytest.mark.parametrize("case", FRAMING + JSON + MEANING, ids=lambda case: case.number)
async def test_a_bad_input_is_an_error_row_or_a_refused_file(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(case.name).write_bytes(case.data)
    if case.refused:
        with pytest.raises(InputError) as refusal:
            await outcomes(case)
        assert all(word in str(refusal.value) for word in case.refused), str(refusal.value)
        return
    found = await outcomes(case)
    bad = [outcome for outcome in found if isinstance(outcome, BadRow)]
    assert sum(isinstance(outcome, Request) for outcome in found) == case.sent, bad
    assert len(bad) == bool(case.bad)
    for outcome in bad:
        assert outcome.reason.startswith(f"line {case.line}: ")
        assert all(word in outcome.reason for word in case.bad), outcome.reason
        assert outcome.reason.isprintable()
        assert len(outcome.reason) < 400
        assert outcome.line == case.line
        assert outcome.offset == case.data[: outcome.offset].rfind(b"\n") + 1


async def outcomes(case: Case) -> list[Request | BadRow]:
    builder = RequestBuilder(model="m", template=case.template)
    source = await open_input(case.name, max_line_bytes=case.cap)
    parse = text_line if source.format == "text" else parse_line
    found: list[Request | BadRow] = []
    try:
        async for batch in source.batches():
            for line in batch:
                parsed = parse(line, len(found) + 1)
                found.append(parsed if isinstance(parsed, BadRow) else builder.build(parsed, line.offset))
    finally:
        source.close()
    return found


def test_an_error_row_shows_the_value_escaped_and_short() -> None:
    from llmbatch.records import Line

    bad = parse_line(Line(7, 99, b'{"a": \x1b[31m' + b"x" * 1000 + "\u202e".encode()), 3)
    assert isinstance(bad, BadRow)
    assert (bad.index, bad.line, bad.offset) == (3, 7, 99)
    assert "\\x1b[31m" in bad.reason
    assert len(bad.reason) < 250
