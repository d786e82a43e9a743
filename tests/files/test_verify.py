"""What `llmbatch verify` finds, and what it does not take for wrong."""

import json
import os

import pytest

from llmbatch.errors import InputError, OutputRefused
from llmbatch.files.checksum import checksum_ok, with_checksum, without_checksum
from llmbatch.files.journal import manifest_line
from llmbatch.files.lock import OutputLock
from llmbatch.files.paths import OutputPaths
from llmbatch.files.results import again_line, dump_line
from llmbatch.files.verify import locate, row_in, verify, why_damaged
from llmbatch.views.verified import exit_code, next_step, render_verified, verified_json

MANIFEST = manifest_line({"version": "0.1", "model": "m"})


def result(row, status="ok", *, id=None, key="fp1:a", **more):
    return {"id": id, "row": row, "status": status, "key": key, **more}


def line(row, *args, **more):
    return with_checksum(dump_line(result(row, *args, **more)))


@pytest.fixture
def paths(tmp_path):
    return OutputPaths.of(str(tmp_path / "out.jsonl"))


def sealed(paths, *lines):
    paths.out.write_bytes(b"".join(lines))
    return str(paths.out)


def journal(paths, *lines):
    paths.partial.write_bytes(b"".join([MANIFEST, *lines]))
    return str(paths.out)


def kinds(found):
    return [(one.kind, one.line, one.row) for one in found.findings]


# The checksum


@pytest.mark.parametrize("value", [result(1), result(2, output="é\u2028\ud800"), {"n": 2**80}, {"llmbatch": 1}])
def test_line_is_good_json_with_its_checksum_last(value):
    data = with_checksum(dump_line(value))
    assert checksum_ok(data) is checksum_ok(data[:-1]) is True
    assert data.endswith(b'"}\n')
    read = json.loads(data)
    assert list(read)[-1] == "crc"
    assert without_checksum(read) == value


def test_every_flipped_bit_before_the_checksum_is_seen():
    data = bytearray(line(7, output="an answer"))
    for at in range(len(data) - 19):
        for bit in range(8):
            data[at] ^= 1 << bit
            assert checksum_ok(bytes(data)) is False, (at, bit)
            data[at] ^= 1 << bit
    assert checksum_ok(bytes(data)) is True


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b"{}\n", dump_line(result(1)), b'{"crc":1}\n', b'{"a":1, "crc": "00000000"}\n', b'"crc":"00000000"}'],
)
def test_line_of_another_writer_has_no_checksum(data):
    assert checksum_ok(data) is None


def test_line_written_again_has_a_checksum_of_its_own():
    old = line(1, id="a", output="x")
    again = again_line(json.loads(old), 5)
    assert checksum_ok(again) is True
    assert json.loads(again)["row"] == 5
    assert again.count(b'"crc"') == 1
    assert again_line(json.loads(old), 1) == old


def test_manifest_has_a_checksum():
    assert checksum_ok(MANIFEST) is True


# What is wrong


async def test_sealed_file_as_it_was_written(paths):
    name = sealed(paths, *(line(row) for row in range(1, 51)))
    found = await verify(name)
    assert (found.lines, found.good, found.wrong, found.findings) == (50, 50, 0, [])
    assert render_verified(found) == "50 lines: 50 good, 0 damaged, 0 changed, 0 doubled; 0 rows missing\n"
    assert exit_code(found) == 0


@pytest.mark.parametrize(
    ("bad", "why", "row", "id"),
    [
        (line(2, id="b")[:40] + b"\n", "not JSON", 2, "b"),
        (b'{"id":17,"row":2,"status":"ok","outp\n', "not JSON", 2, 17),
        (b'{"id":null,"row":2,"status":"ok"' + b"\0" * 30 + b"\n", "30 NUL bytes", 2, None),
        (b"\0" * 30 + b"\n", "30 NUL bytes", None, None),
        (b'{"prompt":"x"}\n', "JSON, but no line of llmbatch", None, None),
        (b'{"id":"\\"row\\":9,\\"status\\":\\"","row":2,"sta\n', "not JSON", None, '"row":9,"status":"'),
        (b"\xff\xfe\n", "not JSON", None, None),
        (b"\n", "empty", None, None),
    ],
)
async def test_damaged_line_is_named(paths, bad, why, row, id):
    first = line(1, id="a")
    found = await verify(sealed(paths, first, bad, line(3, id="c")))
    (damaged, missing) = found.findings
    assert (damaged.kind, damaged.text, damaged.line, damaged.offset) == ("damaged", why, 2, len(first))
    assert (damaged.row, damaged.id) == (row, id)
    assert (missing.kind, missing.row) == ("missing", 2)
    assert (found.lines, found.good, found.damaged, found.missing) == (3, 2, 1, 1)
    assert next_step(found) == f"llmbatch repair {paths.out}"


async def test_torn_end_of_a_sealed_file_is_damage(paths):
    found = await verify(sealed(paths, line(1), line(2), line(3)[:-30]))
    assert kinds(found) == [("damaged", 3, 3)]
    assert found.findings[0].text == "torn: the file ends in the middle of it"
    assert found.to_repair


async def test_torn_end_of_a_journal_is_mended_by_the_next_run(paths):
    found = await verify(journal(paths, line(1), line(2), b'{"id":null,"row":3'))
    assert kinds(found) == [("damaged", 4, None)]
    assert not found.to_repair
    assert next_step(found).startswith("run the same command again")


async def test_last_line_without_its_newline_is_whole(paths):
    found = await verify(journal(paths, line(1), line(2)[:-1]))
    assert (found.good, found.wrong) == (3, 0)


async def test_line_changed_by_hand_is_named_and_may_stand(paths):
    found = await verify(sealed(paths, line(1), line(2, output="x").replace(b'"x"', b'"y"'), line(3)))
    assert kinds(found) == [("changed", 2, 2)]
    assert (found.good, found.changed, exit_code(found)) == (2, 1, 1)
    assert "--drop-changed" in next_step(found)


async def test_lines_without_a_checksum_are_counted_and_fine(paths):
    found = await verify(sealed(paths, dump_line(result(1)), line(2)))
    assert (found.without_checksum, found.wrong) == (1, 0)


@pytest.mark.parametrize(
    "lines",
    [
        [line(1), line(2), line(2)],
        [line(1, id="a"), line(2, id="b"), line(2, id="b", request_id="2")],
        [line(1, id="a"), line(2, id="b"), line(3, id="a")],
        [line(1), line(2, "error", key=None), line(2, "error", key=None)],
    ],
    ids=["row", "row-and-id", "id", "bad-row"],
)
async def test_doubled_row_is_named(paths, lines):
    found = await verify(sealed(paths, *lines))
    assert [(one.kind, one.line) for one in found.findings] == [("doubled", 3)]
    assert (found.good, found.doubled) == (2, 1)
    assert found.to_repair


async def test_gaps_are_rows_that_are_missing(paths):
    found = await verify(sealed(paths, line(2), line(3), line(7), line(9)))
    assert [one.text for one in found.findings] == [
        "row 1 has no line",
        "rows 4 to 6 have no line",
        "row 8 has no line",
    ]
    assert found.missing == 5
    assert next_step(found).startswith("run the same command again")


async def test_wild_row_number_is_one_range(paths):
    found = await verify(sealed(paths, line(1), line(10**15)))
    assert (found.missing, len(found.findings)) == (10**15 - 2, 1)


async def test_order_is_only_told(paths):
    found = await verify(sealed(paths, line(3), line(1), line(2)))
    assert (found.unordered, found.wrong) == (1, 0)
    assert "1 line not in the order of the input" in render_verified(found)


async def test_lines_of_rows_that_left_the_input_are_no_doubles(paths):
    """r3 moved to the front; the others left, and keep their numbers behind it."""
    found = await verify(sealed(paths, line(1, id="r3"), line(1, id="r1"), line(2, id="r2"), line(4, id="r4")))
    assert (found.wrong, found.kept) == (0, 1)


async def test_superseded_lines_of_a_journal_are_normal(paths):
    lines = [
        line(1, "error"),
        line(1),
        line(2, request_id="1"),
        MANIFEST,
        line(2, request_id="2"),
        line(9, id="z"),
        line(3, id="z"),
    ]
    found = await verify(journal(paths, *lines))
    assert (found.lines, found.good, found.wrong) == (8, 8, 0)
    assert (found.superseded, found.paid_twice) == (3, 1)
    said = render_verified(found)
    assert "2 lines superseded by a later one" in said
    assert "1 line with an answer that was paid for twice" in said


async def test_only_the_first_findings_are_told(paths):
    found = await verify(sealed(paths, *(line(row, output="x").replace(b'"x"', b'"y"') for row in range(1, 41))))
    said = render_verified(found).splitlines()
    assert said[20] == "... and 20 more"
    assert said[21] == "40 lines: 0 good, 0 damaged, 40 changed, 0 doubled; 0 rows missing"
    assert len(verified_json(found)["findings"]) == 20


async def test_what_a_file_says_steers_no_terminal(paths):
    bad = b'{"id":"\\u001b[2J\\u202e","row":2,"status":"ok"\n'
    said = render_verified(await verify(sealed(paths, line(1), bad)))
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert "x1b[2J" in said


# With the input


def rows_file(paths, *rows):
    path = paths.directory / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


async def test_rows_at_the_end_of_the_input_are_missed(paths):
    given = rows_file(paths, "a", "b", "c", "d")
    found = await verify(sealed(paths, line(1), line(2)), given)
    assert [one.text for one in found.findings] == ["rows 3 to 4 have no line"]


async def test_row_with_another_id_is_named(paths):
    given = rows_file(paths, {"id": "a", "prompt": "x"}, {"id": "c", "prompt": "x"}, {"id": 3, "prompt": "x"})
    found = await verify(sealed(paths, line(1, id="a"), line(2, id="b"), line(3, id="3")), given)
    assert kinds(found) == [("other_id", None, 2), ("other_id", None, 3)]
    assert found.findings[0].text == "its id is 'b', and 'c' in the input"
    assert found.other_id == 2


async def test_bad_rows_of_the_input_have_lines_too(paths):
    given = rows_file(paths, {"id": "a", "prompt": "x"}, {"id": "a", "prompt": "x"}, {"id": [], "prompt": "x"})
    lines = line(1, id="a"), line(2, "error", id="a", key=None), line(3, "error", key=None)
    assert (await verify(sealed(paths, *lines), given)).wrong == 0


async def test_text_input_is_read_as_the_run_reads_it(paths):
    given = paths.directory / "in.txt"
    given.write_text("one\ntwo\n{three\n")
    assert (await verify(sealed(paths, line(1), line(2), line(3)), str(given))).wrong == 0
    given.rename(given.with_suffix(".log"))
    found = await verify(str(paths.out), str(given.with_suffix(".log")), "text")
    assert found.wrong == 0


async def test_rows_that_left_the_input_are_counted(paths):
    found = await verify(sealed(paths, line(1), line(2), line(3)), rows_file(paths, "a"))
    assert (found.wrong, found.kept) == (0, 2)


async def test_rows_of_an_unfinished_run_are_pending_and_not_missing(paths):
    given = rows_file(paths, *({"id": f"r{n}", "prompt": "x"} for n in range(1, 6)))
    lines = line(4, id="r4"), line(1, id="r2"), line(5, "error", id="r5", key=None)
    found = await verify(journal(paths, *lines), given)
    assert (found.pending, found.missing, found.wrong) == (2, 0, 0)
    assert "2 rows of the input not done yet" in render_verified(found)


# Which file


def test_both_names_mean_the_same_output(paths):
    with pytest.raises(InputError, match="no such file"):
        locate(str(paths.out))
    sealed(paths, line(1))
    assert locate(str(paths.out)) == locate(str(paths.partial)) == (paths, paths.out)
    journal(paths)
    assert locate(str(paths.out)) == locate(str(paths.partial)) == (paths, paths.partial)


def test_an_output_may_be_called_partial(paths):
    odd = OutputPaths.of(str(paths.partial))
    odd.partial.write_bytes(line(1))
    assert locate(str(odd.out)) == (odd, odd.partial)


def test_directory_and_pipe_are_no_outputs(paths):
    paths.out.mkdir()
    with pytest.raises(InputError, match="no file of results"):
        locate(str(paths.out))
    paths.out.rmdir()
    os.mkfifo(paths.out)
    with pytest.raises(InputError, match="no file of results"):
        locate(str(paths.out))


@pytest.mark.parametrize("content", [b"hello", b"hello\n", b'{"prompt":"x"}\n' * 300, b"\x89PNG\r\n"])
async def test_file_that_is_not_ours_is_refused(paths, content):
    with pytest.raises(OutputRefused, match="not a results file"):
        await verify(sealed(paths, content))


async def test_our_file_with_a_damaged_first_line_is_ours(paths):
    found = await verify(sealed(paths, b"garbage\n", line(2)))
    assert kinds(found) == [("damaged", 1, None), ("missing", None, 1)]


async def test_newer_format_is_refused(paths):
    with pytest.raises(OutputRefused, match=r"newer llmbatch \(9.0\)"):
        await verify(journal(paths, dump_line({"llmbatch": 2, "version": "9.0"})))


async def test_half_a_line_is_normal_while_a_run_writes(paths):
    name = journal(paths, line(1), line(2)[:30])
    with OutputLock.acquire(paths):
        found = await verify(name)
        assert (found.lines, found.good, found.wrong, found.findings) == (2, 2, 0, [])
        assert "a run is writing it: pid " in render_verified(found)
    assert (await verify(name)).damaged == 1


async def test_damage_in_the_middle_is_told_while_a_run_writes(paths):
    name = journal(paths, line(1), b"x\n", line(2), line(3)[:30])
    with OutputLock.acquire(paths):
        found = await verify(name)
        assert next_step(found).startswith("when that run has ended: llmbatch repair")
    assert kinds(found) == [("damaged", 3, None)]


async def test_nothing_is_changed_and_no_lock_is_left(paths):
    name = journal(paths, line(1), b"x\n", line(2)[:30])
    before = paths.partial.read_bytes()
    paths.lock.write_bytes(b'{"pid":1,"host":"h","started":"s"}\n')  # of a run that was killed
    found = await verify(name)
    assert found.held is None
    assert paths.partial.read_bytes() == before
    assert sorted(path.name for path in paths.directory.iterdir()) == ["out.jsonl.lock", "out.jsonl.partial"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (line(12, id="a"), (12, "a")),
        (line(12, id=2**70), (12, 2**70)),
        (b'{"id":null,"row":5,"status":"er', (5, None)),
        (b'{"id":1,"row":0,"status":"ok"', (None, 1)),
        (b'{"id":"\\ud800","row":5,"status":"ok"', (5, "\ud800")),
        (b'{"id":{"row":5,"x":1', (None, None)),
        (b"", (None, None)),
    ],
)
def test_row_is_told_from_the_start_of_a_damaged_line(data, expected):
    assert row_in(data) == expected


def test_reason_of_a_single_nul_is_no_plural():
    assert why_damaged(b"a\0b\n") == "1 NUL byte"
