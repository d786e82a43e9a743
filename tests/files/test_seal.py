"""OUT appears whole or not at all, with exactly one line per row."""

import errno
import json
import os
import subprocess
import sys

import pytest

from llmbatch.errors import InternalError, StorageError
from llmbatch.files import seal as seal_module
from llmbatch.files.index import RowTable
from llmbatch.files.paths import OutputPaths
from llmbatch.files.recovery import recover, reopen_sealed, scan
from llmbatch.files.seal import Sealed, seal
from llmbatch.files.winners import Winners

MANIFEST = {"llmbatch": 1, "version": "0.1"}


def dump(line):
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def result(row, status="ok", *, id=None, key="fp1:a", **more):
    return {"id": id, "row": row, "status": status, "key": key, **more}


@pytest.fixture
def paths(tmp_path):
    return OutputPaths.of(str(tmp_path / "out.jsonl"))


def journal(paths, *lines):
    paths.partial.write_bytes(b"".join(dump(line) for line in lines))
    paths.partial.chmod(0o600)


def sealed_lines(paths):
    return [json.loads(line) for line in paths.out.read_bytes().splitlines()]


def test_sealed_output_has_one_line_per_row_in_input_order_and_no_journal(paths):
    lines = [result(3), result(1, "error"), result(2, output="x" * 10_000), result(1)]
    journal(paths, MANIFEST, lines[0], lines[1], MANIFEST, lines[2], lines[3])
    assert seal(paths, 3) == Sealed(lines=3, kept=0)
    assert sealed_lines(paths) == [lines[3], lines[2], lines[0]]
    assert sorted(os.listdir(paths.directory)) == ["out.jsonl"]
    assert paths.out.stat().st_mode & 0o777 == 0o600


def test_first_answer_stands_where_one_was_paid_for_twice(paths):
    first, again = result(1, request_id="1"), result(1, request_id="2")
    journal(paths, MANIFEST, first, again, result(1, "error"))
    assert seal(paths, 1) == Sealed(1, 0)
    assert sealed_lines(paths) == [first]


def test_lines_are_copied_byte_for_byte(paths):
    odd = b'{ "id": "\\u00e9",  "row": 1, "status": "ok", "key": "k", "cost": 1.0e-5 }\n'
    paths.partial.write_bytes(odd)
    seal(paths, 1)
    assert paths.out.read_bytes() == odd


def test_completion_order_skips_the_sort_but_not_the_choice(paths):
    lines = [result(3), result(1, "error"), result(2), result(1)]
    journal(paths, MANIFEST, *lines)
    assert seal(paths, 3, "completion") == Sealed(3, 0)
    assert sealed_lines(paths) == [lines[0], lines[2], lines[3]]


def test_rows_no_longer_in_the_input_are_kept_after_the_others_in_their_old_order(paths):
    gone = [result(9, id="g9"), result(2, id="g2"), result(7, id="g7", status="error")]
    lines = [result(1, id="a"), result(2, id="b")]
    journal(paths, MANIFEST, *gone, *lines, result(8, "error", key=None))
    assert seal(paths, 2) == Sealed(lines=5, kept=3)
    assert sealed_lines(paths) == [*lines, *gone]


def test_moved_rows_stand_at_their_new_number_only(paths):
    """a and b swapped; the runner appended both again."""
    journal(paths, MANIFEST, result(1, id="a"), result(2, id="b"), result(2, id="a"), result(1, id="b"))
    assert seal(paths, 2) == Sealed(2, 0)
    assert [(line["id"], line["row"]) for line in sealed_lines(paths)] == [("b", 1), ("a", 2)]


def test_rows_kept_by_an_earlier_seal_stay_behind_whatever_their_numbers_are(paths):
    """They have the numbers that they had in an older input, which are other rows' now."""
    lines = [result(1, id="a"), result(2, "error", id="b"), result(2, id="gone"), result(1, id="gone too")]
    again = result(2, id="b", request_id="2")
    journal(paths, *lines, MANIFEST, again)
    assert seal(paths, 2) == Sealed(lines=4, kept=2)
    assert sealed_lines(paths) == [lines[0], again, lines[2], lines[3]]


@pytest.mark.parametrize(
    ("lines", "missing"),
    [
        ([result(1), result(3)], 2),
        ([result(2), result(3)], 1),
        ([result(1), result(2)], 3),
        ([result(1, id="a"), result(2, id="a"), result(3)], 1),
    ],
)
def test_row_without_a_line_is_a_bug_that_is_named(paths, lines, missing):
    journal(paths, MANIFEST, lines[0], MANIFEST, *lines[1:])
    with pytest.raises(InternalError, match=f"row {missing} has no line"):
        seal(paths, 3)
    assert paths.partial.exists()
    assert not paths.out.exists()


def test_empty_run_is_sealed_to_an_empty_output_that_is_ours(paths):
    journal(paths, MANIFEST)
    assert seal(paths, 0) == Sealed(0, 0)
    with scan(paths.out) as found:
        assert len(found) == 0


def test_mode_of_the_output_outlives_another_run(paths):
    journal(paths, result(1))
    seal(paths, 1)
    paths.out.chmod(0o640)
    reopen_sealed(paths).close()
    seal(paths, 1)
    assert paths.out.stat().st_mode & 0o777 == 0o640


def test_mode_of_an_output_that_is_replaced_is_kept(paths):
    paths.out.write_bytes(b"old")
    paths.out.chmod(0o664)
    journal(paths, result(1))
    seal(paths, 1)
    assert paths.out.stat().st_mode & 0o777 == 0o664


def test_damage_that_came_while_the_run_went_on_is_told(paths):
    journal(paths, MANIFEST, result(1))
    good = paths.partial.read_bytes()
    paths.partial.write_bytes(good + b"garbage\n" + dump(result(2)))
    said = f"{paths.partial} is damaged at byte {len(good)}, where this run wrote a good line"
    before = os.listdir("/dev/fd")
    with pytest.raises(StorageError) as failed:
        seal(paths, 2)
    assert str(failed.value) == said
    assert os.listdir("/dev/fd") == before
    assert not paths.out.exists()


def test_damage_that_comes_while_it_is_read_is_told(paths):
    journal(paths, MANIFEST, result(1), result(9))
    at = len(dump(MANIFEST) + dump(result(1)))
    with Winners(paths.partial, RowTable()) as winners:
        with paths.partial.open("r+b") as file:
            file.seek(at)
            file.write(b"\0")
        with pytest.raises(StorageError) as failed:
            winners.kept(1)
    assert str(failed.value) == f"{paths.partial} changed at byte {at} while it was read"


def test_directory_that_takes_no_copy_leaves_the_journal(paths, monkeypatch):
    def refused(path, flags):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    journal(paths, result(1))
    monkeypatch.setattr(seal_module, "open_private", refused)
    with pytest.raises(StorageError, match="Read-only file system; every answer is safe in"):
        seal(paths, 1)
    assert os.listdir(paths.directory) == ["out.jsonl.partial"]


def test_copy_left_by_a_crash_is_replaced(paths):
    paths.sealing.write_bytes(b"half")
    journal(paths, result(1))
    seal(paths, 1)
    assert sealed_lines(paths) == [result(1)]
    assert not paths.sealing.exists()


def test_full_disk_leaves_the_journal_and_no_copy(paths, monkeypatch):
    def full(fd, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    journal(paths, result(1))
    monkeypatch.setattr(seal_module, "write_all", full)
    with pytest.raises(StorageError, match="No space left on device; every answer is safe in") as failed:
        seal(paths, 1)
    assert failed.value.exit_code == 5
    assert "it needs 0.0 MB once more, " in str(failed.value)
    assert " MB are free)" in str(failed.value)
    assert os.listdir(paths.directory) == ["out.jsonl.partial"]


def test_name_that_may_not_survive_a_power_cut_is_told_and_the_output_is_whole(paths, monkeypatch):
    def broken(directory):
        if not paths.partial.exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    journal(paths, result(1))
    monkeypatch.setattr(seal_module, "sync_directory", broken)
    with pytest.raises(StorageError) as failed:
        seal(paths, 1)
    said = f"{paths.out} is complete, but its name may not survive a power cut: Input/output error"
    assert str(failed.value) == said
    assert sealed_lines(paths) == [result(1)]


def test_many_lines_are_written_whole_about_a_mebibyte_at_a_time(paths, monkeypatch):
    written, real = [], seal_module.write_all
    monkeypatch.setattr(seal_module, "write_all", lambda fd, data: (written.append(len(data)), real(fd, data)))
    lines = [result(row, output="x" * 60_000) for row in range(50, 0, -1)]
    journal(paths, MANIFEST, *lines)
    seal(paths, 50)
    assert sealed_lines(paths) == lines[::-1]
    assert [size // 2**20 for size in written] == [1, 1, 0]


KILLED_AT_STEP = """
import os, signal, sys
from llmbatch.files.paths import OutputPaths
from llmbatch.files.seal import seal

left = int(sys.argv[2])

def die_at_step(event, args):
    global left
    if event in ("open", "os.rename", "os.remove"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

paths = OutputPaths.of(sys.argv[1])
sys.addaudithook(die_at_step)
seal(paths, 20)
os._exit(0)
"""


def test_kill_at_every_step_of_the_seal_loses_nothing(paths):
    """Killed before the n-th file operation, for all n: the next run has the journal, or OUT, and finishes."""
    lines = [result(row, output="x" * row) for row in (*range(20, 10, -1), *range(1, 11))]
    states = set()
    for step in range(20):
        for name in os.listdir(paths.directory):
            (paths.directory / name).unlink()
        journal(paths, MANIFEST, *lines)
        code = subprocess.run([sys.executable, "-c", KILLED_AT_STEP, str(paths.out), str(step)]).returncode
        states.add((paths.partial.exists(), paths.out.exists()))
        with recover(paths) or scan(paths.out) as found:
            assert (found.ok, found.notices) == (20, [])
        if paths.partial.exists():
            seal(paths, 20)
        assert [line["row"] for line in sealed_lines(paths)] == list(range(1, 21))
        assert os.listdir(paths.directory) == ["out.jsonl"]
        if code == 0:
            break
        assert code == -9
    assert states == {(True, False), (True, True), (False, True)}


def test_answer_of_a_later_try_stands_though_nothing_says_that_a_run_began(paths):
    """A manifest was lost; its lines look like those of an earlier seal."""
    lines = [result(1), result(2, "error"), result(2, output="paid")]
    journal(paths, *lines)
    assert seal(paths, 2, failed=0) == Sealed(2, 0)
    assert sealed_lines(paths) == [lines[0], lines[2]]


@pytest.mark.parametrize("failed", [0, 2])
def test_other_errors_than_were_counted_are_a_bug_and_the_journal_stays(paths, failed):
    journal(paths, MANIFEST, result(1), result(2, "error"), result(3, "error", id="gone"), result(2, "error"))
    before = paths.partial.read_bytes()
    with pytest.raises(InternalError, match=f"1 rows have an error line in .*, though {failed} failed"):
        seal(paths, 2, failed=failed)
    assert paths.partial.read_bytes() == before
    assert not paths.out.exists()
    assert seal(paths, 2, failed=1) == Sealed(3, 1)


def test_what_is_kept_of_tasks_is_left_out(paths):
    kept = {**MANIFEST, "part": "a", **result(1, output="x")}
    paths.partial.write_bytes(b"".join(map(dump, [MANIFEST, kept, result(1, key="fp1:b")])))
    assert seal(paths, 1, failed=0) == Sealed(1, 0)
    assert paths.out.read_bytes() == dump(result(1, key="fp1:b"))
