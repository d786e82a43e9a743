"""Whatever a crash leaves behind, no good line is lost and no bad one is believed."""

import errno
import json
import os
import random

import pytest

from llmbatch.errors import OutputRefused, StorageError
from llmbatch.files import recovered as recovered_module
from llmbatch.files import recovery as recovery_module
from llmbatch.files.checksum import with_checksum
from llmbatch.files.paths import OutputPaths
from llmbatch.files.recovery import look, recover, reopen_sealed, scan

MANIFEST = {"llmbatch": 1, "version": "0.1", "model": "m"}


def dump(line):
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def result(row, status="ok", *, id=None, key="fp1:a", **more):
    return {"id": id, "row": row, "status": status, "key": key, **more}


@pytest.fixture
def paths(tmp_path):
    return OutputPaths.of(str(tmp_path / "out.jsonl"))


def journal(paths, *lines):
    paths.partial.write_bytes(b"".join(dump(line) for line in lines))


def mixed_records():
    """50 lines as they come: ids of all kinds, errors, separators that are no newlines, a big one, a bad row."""
    chance = random.Random(5)
    ids = ["a\u2028b", "\u0085", "r\r", 1, 1.0, "1", 2**70, None]
    lines = [MANIFEST]
    for row in range(1, 50):
        id = ids[row] if row < len(ids) else f"r{row}"
        more = {"output": "é\u2028x" * chance.randrange(3)} if row % 4 else {"error": {"type": "timeout"}}
        lines.append(result(row, "ok" if row % 4 else "error", id=id, key=f"fp1:{row}" if row % 9 else None, **more))
        if not row % 9:
            lines[-1]["status"] = "error"
    return lines


def test_no_journal_is_no_recovery(paths):
    assert recover(paths) is None


def test_empty_journal_is_ours(paths):
    journal(paths)
    with recover(paths) as found:
        assert (len(found), found.end, found.notices) == (0, 0, [])


def test_lines_are_found_by_identity_and_counted(paths):
    journal(paths, *mixed_records())
    with recover(paths) as found:
        assert found.manifest == MANIFEST
        assert found.ok + found.failed == len(found) == 49
        assert [found.find(id, 0).line["row"] for id in (1, 1.0, "1", 2**70)] == [3, 4, 5, 6]
        assert type(found.find(2**70, 6).line["id"]) is int
        assert found.find_unsent("r9", 9).line["status"] == "error"
        assert found.find("r9", 9) is None and found.find(None, 9) is None
        assert found.find("unknown", 1) is None
        assert found.end == paths.partial.stat().st_size


@pytest.mark.parametrize(
    "tail", [b"\0", b"\0" * 4096, b'{"id":1,"row"' + b"\0" * 8192, b"\xff\xfe garbage", b"{}", b"null\n", b"\n"]
)
def test_damaged_tail_is_moved_to_torn_and_said(paths, tail):
    journal(paths, MANIFEST, result(1))
    good = paths.partial.read_bytes()
    paths.partial.write_bytes(good + tail)
    with recover(paths) as found:
        assert found.notices == [
            f"1 torn record ({len(tail)} bytes) moved to out.jsonl.torn; its row will be sent again"
        ]
        assert (len(found), found.end) == (1, len(good))
    assert paths.partial.read_bytes() == good
    assert paths.torn.read_bytes() == tail
    assert paths.torn.stat().st_mode & 0o777 == 0o600


def test_second_torn_tail_is_added_to_the_first(paths):
    for tail in (b"one", b"two"):
        journal(paths, MANIFEST, result(1))
        with paths.partial.open("ab") as file:
            file.write(tail)
        recover(paths).close()
    assert paths.torn.read_bytes() == b"onetwo"


def test_whole_record_that_only_lacks_its_newline_is_kept(paths):
    journal(paths, MANIFEST, result(1))
    paths.partial.write_bytes(paths.partial.read_bytes()[:-1])
    with recover(paths) as found:
        assert (len(found), found.notices) == (1, [])
    assert paths.partial.read_bytes().endswith(b"}\n")
    assert not paths.torn.exists()


def test_damage_with_good_lines_after_it_is_refused_and_named(paths):
    first, last = dump(MANIFEST), dump(result(2))
    whole = first + b'{"id":null,"ro\n' + last
    paths.partial.write_bytes(whole)
    with pytest.raises(StorageError, match=rf"line 2 \(byte {len(first)}\)") as refused:
        recover(paths)
    assert refused.value.exit_code == 5
    assert paths.partial.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    [
        b"hello",
        b"hello\n",
        b'{"prompt":"x"}\n',
        b"[1]",
        b'{"id":"a","row":0,"status":"ok","key":null}\n',
        b'{"llmbatch":"x"}\n',
        b"\x89PNG\r\n",
    ],
)
def test_file_that_is_not_ours_is_refused_and_untouched(paths, content):
    paths.partial.write_bytes(content)
    with pytest.raises(OutputRefused) as refused:
        recover(paths)
    said = f"{paths.partial} is not a results file of llmbatch; move it away or choose another --output"
    assert str(refused.value) == said
    assert paths.partial.read_bytes() == content
    assert not paths.torn.exists()


def test_journal_of_a_newer_format_is_refused(paths):
    journal(paths, {"llmbatch": 2, "version": "9.0"}, {"new": "shape"})
    with pytest.raises(OutputRefused) as refused:
        recover(paths)
    assert str(refused.value) == f"{paths.partial} was written by a newer llmbatch (9.0); upgrade"


def test_last_manifest_wins_and_none_is_needed(paths):
    journal(paths, result(1), MANIFEST, result(2), {**MANIFEST, "model": "n"})
    with recover(paths) as found:
        assert (found.manifest["model"], len(found)) == ("n", 2)
    journal(paths, result(1))
    with recover(paths) as found:
        assert found.manifest is None


@pytest.mark.parametrize(
    ("lines", "standing", "ok", "failed", "paid_twice"),
    [
        ([result(1, request_id="1"), result(1, request_id="2")], 0, 1, 0, 1),
        ([result(1, "error"), result(1)], 1, 1, 0, 0),
        ([result(1), result(1, "error")], 0, 1, 0, 0),
        ([result(1, "error"), result(1, "error", n=2)], 1, 0, 1, 0),
        ([result(1), result(1, key="fp1:b")], 1, 1, 0, 0),
        ([result(1), result(1, "error", key="fp1:b")], 1, 0, 1, 0),
        ([result(1, "error", key=None), result(1)], 1, 1, 0, 0),
        # the copy with a new number stands, and a second answer does not displace it
        ([result(1, id="a"), result(2, id="a"), result(2, id="a", request_id="2")], 1, 1, 0, 1),
    ],
)
def test_one_line_stands_for_each_row(paths, lines, standing, ok, failed, paid_twice):
    journal(paths, *lines)
    with recover(paths) as found:
        assert found.find(lines[0]["id"], 1).line == lines[standing]
        assert (found.ok, found.failed, found.paid_twice) == (ok, failed, paid_twice)


@pytest.mark.parametrize(
    ("lines", "id", "row"),
    [
        ([result(1, "error"), result(1)], None, 1),
        ([result(1, "error", id="a"), result(2, "error", id="a")], "a", 2),
        # a moved on; the number that it had left before stays with b
        ([result(1, "error", id="a"), result(1, id="b"), result(2, "error", id="a")], "b", 1),
    ],
)
def test_line_that_stands_holds_its_number_and_can_be_read_again(paths, lines, id, row):
    journal(paths, MANIFEST, *lines)
    with recover(paths) as recovered:
        found = recovered.find(id, row)
        assert found.holds_number
        assert found.line["row"] == row
        assert recovered.read(found.offset) == found.line


def test_row_number_that_a_later_line_took_is_told(paths):
    """Rows a and b swapped places and swapped back: a's line has the right number, but b's came later."""
    journal(paths, MANIFEST, result(1, id="a"), result(1, id="b"))
    with recover(paths) as found:
        assert found.find("a", 1).holds_number is False
        assert found.find("b", 1).holds_number is True


def test_bad_row_gives_up_its_place_when_its_number_is_answered(paths):
    """Its id could not be trusted, so it is known by number; a mended row answers for it."""
    journal(paths, MANIFEST, result(1, "error", id="a", key=None), result(1, id="a"))
    with recover(paths) as found:
        assert (found.ok, found.failed, found.unrendered) == (1, 0, 0)
        assert found.find("a", 1).line["status"] == "ok"


def test_two_rows_with_the_same_hash_are_both_found(paths, monkeypatch):
    monkeypatch.setattr(recovered_module, "identity_hash", lambda text, salt=0: salt)
    journal(paths, *(result(row, id=f"r{row}") for row in range(1, 6)), result(2, id="r2", request_id="again"))
    with recover(paths) as found:
        assert [found.find(f"r{row}", row).line["row"] for row in range(1, 6)] == [1, 2, 3, 4, 5]
        assert (len(found), found.paid_twice) == (5, 1)
        assert found.find("r6", 6) is None


def test_answer_with_a_lone_surrogate_is_no_damage(paths):
    journal(paths, MANIFEST)
    with paths.partial.open("ab") as file:
        file.write(b'{"id":"\\ud800","row":1,"status":"ok","key":"fp1:a","output":"\\udfff"}\n')
    with recover(paths) as found:
        assert found.find("\ud800", 1).line["output"] == "\udfff"


def test_lines_longer_than_one_read_come_whole(paths):
    journal(paths, *(result(row, output="x" * size) for row, size in enumerate((0, 4000, 5000, 300_000), start=1)))
    with recover(paths) as found:
        assert [len(found.find(None, row).line["output"]) for row in range(1, 5)] == [0, 4000, 5000, 300_000]


def test_scan_of_a_sealed_output_changes_nothing(paths):
    paths.out.write_bytes(dump(result(1)) + dump(result(2, "error"))[:-1])
    before = paths.out.read_bytes()
    with scan(paths.out) as found:
        assert (found.ok, found.failed, found.manifest) == (1, 1, None)
        assert found.find(None, 2).line == result(2, "error")
    assert paths.out.read_bytes() == before
    paths.out.write_bytes(before + b"\nx")
    with pytest.raises(StorageError, match="line 3"):
        scan(paths.out)


def test_reopened_output_is_the_journal_again(paths):
    paths.out.write_bytes(dump(result(1)) + dump(result(2, "error")))
    paths.out.chmod(0o644)
    with reopen_sealed(paths) as found:
        assert (found.ok, found.failed, found.path) == (1, 1, paths.partial)
    assert not paths.out.exists()
    assert paths.partial.stat().st_mode & 0o777 == 0o644


def test_damaged_output_is_not_reopened(paths):
    paths.out.write_bytes(dump(result(1)) + b"x")
    with pytest.raises(StorageError, match="line 2"):
        reopen_sealed(paths)
    assert paths.out.exists()


def test_reopened_output_without_a_last_newline_can_be_appended_to(paths):
    paths.out.write_bytes(dump(result(1))[:-1])
    with reopen_sealed(paths) as found:
        assert found.end == paths.partial.stat().st_size == len(dump(result(1)))


def test_foreign_output_is_not_reopened(paths):
    paths.out.write_bytes(b'{"prompt":"x"}\n')
    with pytest.raises(OutputRefused):
        reopen_sealed(paths)
    assert paths.out.exists()
    assert not paths.partial.exists()


def test_interrupted_seal_is_finished(paths):
    """The crash came between the rename and the removal of the journal."""
    journal(paths, MANIFEST, result(2, "error"), result(1), result(2), result(9, "error", key=None))
    paths.out.write_bytes(dump(result(1)) + dump(result(2)))
    assert recover(paths) is None
    assert not paths.partial.exists()
    assert paths.out.exists()


@pytest.mark.parametrize(
    "out",
    [
        [],
        [result(1)],
        [result(1), result(2, output="other")],
        [result(1), result(2), result(3)],
        [result(1), {"a": 1}],
        [MANIFEST],
    ],
)
def test_output_that_is_not_made_from_the_journal_is_refused(paths, out):
    journal(paths, MANIFEST, result(2), result(1))
    paths.out.write_bytes(b"".join(map(dump, out)))
    with pytest.raises(OutputRefused, match="both"):
        recover(paths)
    assert paths.partial.exists()
    assert paths.out.exists()


def checked(line):
    return with_checksum(dump(line))


def test_lines_that_were_changed_stand_and_are_told_once(paths):
    lines = [MANIFEST, result(1), result(2, output="x"), result(3, output="x"), result(4)]
    paths.partial.write_bytes(b"".join(map(checked, lines)).replace(b'"x"', b'"y"'))
    with recover(paths) as found:
        assert found.find(None, 2).line["output"] == "y"
        assert found.notices == [
            "2 lines, the first of them line 3, were changed since they were written; they stand as they are: "
            f"llmbatch verify {paths.partial}"
        ]
    paths.partial.rename(paths.out)
    with scan(paths.out) as found:
        assert len(found) == 4
        assert f"llmbatch verify {paths.out}" in found.notices[0]


def test_lines_with_a_good_checksum_or_none_are_not_told(paths):
    paths.partial.write_bytes(checked(MANIFEST) + checked(result(1)) + dump(result(2)) + checked(result(3))[:-1])
    with recover(paths) as found:
        assert (len(found), found.notices) == (3, [])


def test_copy_with_another_checksum_is_no_second_payment(paths):
    paths.partial.write_bytes(checked(result(1, id="a")) + checked(result(5, id="a")) + checked(result(5, id="a")))
    with recover(paths) as found:
        assert (len(found), found.paid_twice) == (1, 0)


@pytest.mark.parametrize("first", [b"garbage\n", b"\n", b'{"llmbatch":1,"ver\n', b"\0\0\n"])
def test_our_file_with_a_damaged_first_line_is_to_be_repaired(paths, first):
    """It holds answers that were paid for: nobody should be told to move it away."""
    paths.partial.write_bytes(first + dump(result(1)))
    with pytest.raises(StorageError, match=r"line 1 \(byte 0\) is damaged.* llmbatch repair "):
        recover(paths)


def test_line_that_is_half_a_manifest_is_no_bug(paths):
    """Two lines that damage has made one may be good JSON, with members of both."""
    paths.partial.write_bytes(dump(result(1, llmbatch="x")) + dump({"llmbatch": 1, "key": "k"}) + dump(result(2)))
    with recover(paths) as found:
        assert len(found) == 1


def test_foreign_file_is_not_read_to_its_end(paths, monkeypatch):
    read = []
    real = recovery_module.parse_line
    monkeypatch.setattr(recovery_module, "parse_line", lambda data: read.append(data) or real(data))
    paths.partial.write_bytes(b'{"prompt":"x"}\n' * 5000)
    with pytest.raises(OutputRefused, match="not a results file"):
        recover(paths)
    assert len(read) == 100


def test_answer_that_was_paid_for_twice_is_told(paths):
    journal(paths, MANIFEST, result(1), result(1, request_id="again"), result(2))
    with recover(paths) as found:
        assert found.notices == ["1 answer was paid for twice; the first one stands"]


def test_nothing_is_told_where_nothing_was_paid_for_twice(paths):
    journal(paths, MANIFEST, result(1, "error", error={}), result(1), result(2))
    with recover(paths) as found:
        assert found.notices == []


def test_torn_records_are_counted(paths):
    journal(paths, MANIFEST, result(1))
    with paths.partial.open("ab") as file:
        file.write(b"x\n\0\0\nhalf")
    with recover(paths) as found:
        assert found.notices == ["3 torn records (9 bytes) moved to out.jsonl.torn; their rows will be sent again"]


def test_answers_that_were_paid_for_twice_are_counted(paths):
    journal(paths, MANIFEST, *(result(1, request_id=str(n)) for n in range(1003)))
    with recover(paths) as found:
        assert found.notices == ["1,002 answers were paid for twice; the first one stands"]


@pytest.mark.parametrize("first", [b"\0" * 4096, b'{"llmb' + b"\0" * 100, b'{"llmb', b'{"llmbatch":1,"version":"0'])
def test_journal_that_was_cut_off_in_its_first_line_begins_anew(paths, first):
    paths.partial.write_bytes(first)
    with recover(paths) as found:
        assert (len(found), found.end) == (0, 0)
    assert paths.partial.read_bytes() == b""
    assert paths.torn.read_bytes() == first


@pytest.mark.parametrize("find", [recover, lambda paths: scan(paths.partial), look])
def test_way_out_of_damage_can_be_pasted(tmp_path, find):
    paths = OutputPaths.of(str(tmp_path / "my out.jsonl"))
    good = dump(MANIFEST) + dump(result(1))
    paths.partial.write_bytes(good + b"x\n" + dump(result(2)))
    with pytest.raises(StorageError) as refused:
        find(paths)
    assert str(refused.value) == (
        f"{paths.partial}: line 3 (byte {len(good)}) is damaged; nothing was sent. llmbatch repair '{paths.partial}' "
        "moves it aside and keeps the others; its row is then sent again"
    )


@pytest.mark.parametrize("find", [lambda paths: scan(paths.out), reopen_sealed, look])
def test_damaged_end_of_a_finished_output_is_for_repair_too(paths, find):
    good = dump(result(1))
    paths.out.write_bytes(good + b"x")
    before = os.listdir("/dev/fd")
    with pytest.raises(StorageError) as refused:
        find(paths)
    said = f"{paths.out}: line 2 (byte {len(good)}) is damaged; nothing was sent. llmbatch repair {paths.out} moves"
    assert str(refused.value).startswith(said)
    assert os.listdir("/dev/fd") == before


def test_look_finds_what_is_there(paths):
    assert look(paths) is None
    paths.out.write_bytes(dump(result(1)))
    with look(paths) as found:
        assert (found.path, len(found)) == (paths.out, 1)
    paths.out.unlink()
    journal(paths, MANIFEST, result(1), result(2))
    with look(paths) as found:
        assert (found.path, len(found), found.notices) == (paths.partial, 2, [])


def test_look_changes_nothing(paths):
    """The dry run tells of a torn tail, of an interrupted seal, and of two files that are not of one run."""
    journal(paths, MANIFEST, result(1))
    whole = paths.partial.read_bytes()
    torn = whole + b"x\ny"
    paths.partial.write_bytes(torn)
    with look(paths) as found:
        assert found.notices == ["2 torn records at the end of out.jsonl.partial would be sent again"]
    assert paths.partial.read_bytes() == torn
    paths.out.write_bytes(dump(result(1)))
    with look(paths) as found:
        assert (found.path, found.notices) == (paths.out, [])
    paths.out.write_bytes(dump(result(2)))
    before = os.listdir("/dev/fd")
    with pytest.raises(OutputRefused, match="both"):
        look(paths)
    assert os.listdir("/dev/fd") == before
    assert sorted(os.listdir(paths.directory)) == ["out.jsonl", "out.jsonl.partial"]
    assert paths.partial.read_bytes() == torn


def test_journal_that_can_not_be_opened_or_read_is_told(paths, monkeypatch):
    (paths.directory / "real").write_bytes(dump(MANIFEST))
    paths.partial.symlink_to("real")
    with pytest.raises(StorageError) as refused:
        recover(paths)
    assert str(refused.value) == f"cannot read {paths.partial}: Too many levels of symbolic links"
    paths.partial.unlink()
    paths.partial.mkdir()
    before = os.listdir("/dev/fd")
    with pytest.raises(StorageError) as refused:
        recover(paths)
    assert str(refused.value) == f"cannot read {paths.partial}: Is a directory; nothing was sent"
    assert os.listdir("/dev/fd") == before


def test_tail_that_can_not_be_mended_is_told_and_left(paths, monkeypatch):
    def full(fd, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    journal(paths, MANIFEST, result(1))
    with paths.partial.open("ab") as file:
        file.write(b"half")
    before = paths.partial.read_bytes()
    monkeypatch.setattr(recovery_module, "write_all", full)
    with pytest.raises(StorageError) as failed:
        recover(paths)
    assert str(failed.value) == f"cannot mend {paths.partial}: No space left on device; nothing was sent"
    assert paths.partial.read_bytes() == before


def test_line_that_changes_while_it_is_used_is_told(paths):
    journal(paths, MANIFEST, result(1))
    with recover(paths) as found:
        offset = found.find(None, 1).offset
        paths.partial.write_bytes(bytes(found.end))
        with pytest.raises(StorageError) as failed:
            found.find(None, 1)
    assert str(failed.value) == (
        f"{paths.partial}: the line at byte {offset} changed under us; stop whatever else writes it"
    )


def test_closing_twice_closes_nobody_elses_file(paths):
    journal(paths, MANIFEST, result(1))
    before = os.listdir("/dev/fd")
    with recover(paths) as found:
        assert os.listdir("/dev/fd") != before
    found.close()
    assert os.listdir("/dev/fd") == before


def test_line_of_a_row_that_left_the_input_holds_no_number(paths):
    """A sealed file keeps lines of rows that left the input: their numbers are those of other rows."""
    paths.out.write_bytes(dump(result(1, id="a")) + dump(result(1, id="gone")))
    with scan(paths.out) as found:
        assert found.find("a", 1).holds_number
        assert not found.find("gone", 1).holds_number


def part(name, row, *, id=None, status="ok", key="fp1:p"):
    return {"llmbatch": 1, "part": name, "id": id, "row": row, "status": status, "key": key, "output": name}


def test_answers_of_a_row_that_is_not_complete_are_found_by_their_task(paths):
    journal(paths, MANIFEST, part("a", 1), part("b", 1), part("a", 2, id="x"), part("b", 1, key="fp1:q"), result(3))
    with recover(paths) as found:
        assert len(found) == 1 and found.find(None, 1) is None
        assert {name: line["key"] for name, line in found.parts(None, 1).items()} == {"a": "fp1:p", "b": "fp1:q"}
        assert list(found.parts("x", 9)) == ["a"]
        assert found.parts(None, 2) == found.parts(None, 3) == {}
        assert found.manifest == MANIFEST


def test_a_rows_own_line_stands_for_its_parts(paths):
    journal(paths, MANIFEST, part("a", 1), result(1, "error"), part("b", 2), result(2))
    with recover(paths) as found:
        assert found.parts(None, 1) == found.parts(None, 2) == {}
        assert (found.ok, found.failed) == (1, 1)


def test_a_skipped_row_is_no_failed_one(paths):
    journal(paths, MANIFEST, result(1, "skipped"), result(2, "error"))
    with recover(paths) as found:
        assert (found.ok, found.failed) == (1, 1)


@pytest.mark.parametrize(
    ("rows", "asked", "in_order"),
    [([1, 2, 3], 3, True), ([1, 2, 3], 2, True), ([1, 2], 3, False), ([2, 1], 2, False), ([1, 3, 2], 2, False)],
)
def test_whether_the_rows_of_a_sealed_file_stand_first_and_in_order(paths, rows, asked, in_order):
    paths.out.write_bytes(b"".join(dump(result(row, id=f"r{row}")) for row in rows))
    with scan(paths.out) as found:
        assert found.begins_with(asked) is in_order
