"""What `llmbatch repair` moves, what it keeps, and that it may be cut off anywhere."""

import json
from pathlib import Path

import pytest

from llmbatch.errors import InputError, OutputRefused, StorageError
from llmbatch.files import repair as repair_module
from llmbatch.files.checksum import with_checksum
from llmbatch.files.journal import manifest_line
from llmbatch.files.lock import OutputLock
from llmbatch.files.paths import OutputPaths
from llmbatch.files.recovery import recover
from llmbatch.files.repair import repair
from llmbatch.files.results import dump_line
from llmbatch.files.seal import seal
from llmbatch.views.verified import render_repaired

MANIFEST = manifest_line({"version": "0.1", "model": "m"})
TORN = b'{"id":"r3","row":3,"status":"ok","outp\n'


def line(row, status="ok", *, id=None, key="fp1:a", **more):
    return with_checksum(dump_line({"id": id, "row": row, "status": status, "key": key, **more}))


def changed(row, **more):
    return line(row, output="x", **more).replace(b'"x"', b'"y"')


@pytest.fixture
def paths(tmp_path):
    return OutputPaths.of(str(tmp_path / "out.jsonl"))


def files(paths):
    return {path.name: path.read_bytes() for path in paths.directory.iterdir()}


def test_journal_keeps_every_good_line_as_it_is(paths):
    good = [MANIFEST, line(2), line(1, output="é\u2028"), line(9), dump_line({"llmbatch": 1}), changed(4)]
    bad = [TORN, b"\0" * 50 + b"\n", b"garbage\n", b"\n"]
    paths.partial.write_bytes(
        b"".join([good[0], bad[0], good[1], bad[1], bad[2], good[2], good[3], bad[3], good[4], good[5]])
    )
    repaired = repair(str(paths.out))
    assert files(paths) == {"out.jsonl.partial": b"".join(good), "out.jsonl.torn": b"".join(bad)}
    assert (repaired.kept, repaired.moved, repaired.moved_bytes) == (6, 4, len(b"".join(bad)))
    assert (repaired.again, repaired.again_count, repaired.untold) == ([(3, "r3")], 1, 3)
    assert (repaired.path, repaired.torn, repaired.in_flight) == (paths.partial, paths.torn, 0)
    assert not repaired.reopened
    assert repaired.found.unfinished
    with recover(paths) as found:
        assert (len(found), found.notices[-1][:6]) == (4, "line 6")


def test_damaged_sealed_file_is_unfinished_again(paths):
    lines = [line(1), line(2), TORN, b"???\n", line(5), line(6), b'{"id":null,"row":7,"status":"ok","o']
    paths.out.write_bytes(b"".join(lines))
    paths.out.chmod(0o640)
    repaired = repair(str(paths.out))
    assert files(paths) == {
        "out.jsonl.partial": b"".join([lines[0], lines[1], lines[4], lines[5]]),
        "out.jsonl.torn": b"".join([lines[2], lines[3], lines[6]]),
    }
    assert paths.partial.stat().st_mode & 0o777 == 0o640
    assert paths.torn.stat().st_mode & 0o777 == 0o600
    assert repaired.reopened
    assert repaired.again == [(3, "r3"), (4, None), (7, None)]
    assert (repaired.again_count, repaired.untold) == (3, 0)
    said = render_repaired(repaired)
    assert "will be sent again: row 3, id 'r3'\nwill be sent again: row 4\nwill be sent again: row 7\n" in said
    assert "3 lines (" in said
    assert "out.jsonl is unfinished now: out.jsonl.partial" in said
    assert said.endswith("run the same command again: it sends only what is missing\n")


@pytest.mark.parametrize("name", ["out", "partial"])
def test_nothing_wrong_changes_nothing(paths, name):
    path = getattr(paths, name)
    path.write_bytes(MANIFEST + line(1) + changed(3) + line(5))
    before = path.stat()
    repaired = repair(str(paths.out))
    assert repaired.changed_nothing
    assert "nothing to repair in 4 lines" in render_repaired(repaired)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert list(files(paths)) == [path.name]


def test_changed_lines_go_only_when_asked(paths):
    paths.out.write_bytes(line(1) + changed(2) + line(3) + dump_line(json.loads(line(4)) | {"crc": None}))
    assert repair(str(paths.out)).changed_nothing
    repaired = repair(str(paths.out), drop_changed=True)
    assert repaired.again == [(2, None)]
    assert files(paths)["out.jsonl.torn"] == changed(2)
    assert files(paths)["out.jsonl.partial"].startswith(line(1) + line(3))


def test_changed_lines_stand_beside_damaged_ones(paths):
    paths.out.write_bytes(line(1) + changed(2) + b"x\n")
    repair(str(paths.out))
    assert files(paths)["out.jsonl.partial"] == line(1) + changed(2)


def test_doubled_rows_are_left_to_the_next_run(paths):
    content = line(1) + line(2) + line(2)
    paths.out.write_bytes(content)
    repaired = repair(str(paths.out))
    assert repaired.reopened
    assert files(paths) == {"out.jsonl.partial": content}
    assert "1 line of rows that have one already" in render_repaired(repaired)
    with recover(paths) as found:
        assert len(found) == 2


def test_row_that_has_a_good_line_too_is_not_sent_again(paths):
    paths.partial.write_bytes(MANIFEST + TORN + line(3, id="r3"))
    assert repair(str(paths.out)).again == []


def test_last_line_gets_its_newline(paths):
    paths.partial.write_bytes(MANIFEST + b"x\n" + line(1)[:-1])
    repair(str(paths.out))
    assert paths.partial.read_bytes() == MANIFEST + line(1)


def test_many_rows_are_counted_and_the_first_told(paths):
    lines = [b"x\n" if 2 <= row <= 41 else line(row) for row in range(1, 51)]
    paths.out.write_bytes(b"".join(lines))
    repaired = repair(str(paths.out))
    assert (len(repaired.again), repaired.again_count, repaired.untold) == (20, 40, 0)
    assert "... and 20 more rows" in render_repaired(repaired)


def test_gaps_that_removed_rows_left_are_not_taken_for_theirs(paths):
    paths.out.write_bytes(line(1, id="r3") + b"x\n" + line(1, id="r1") + line(2, id="r2") + line(4, id="r4"))
    repaired = repair(str(paths.out))
    assert (repaired.again, repaired.untold) == ([], 1)


def test_second_repair_adds_to_what_was_moved(paths):
    for _ in range(2):
        paths.partial.write_bytes(MANIFEST + TORN + line(1))
        repair(str(paths.partial))
    assert paths.torn.read_bytes() == TORN * 2


def test_line_that_is_half_a_manifest_is_no_bug(paths):
    odd = dump_line({"llmbatch": 1, "key": "k"}) + dump_line(json.loads(line(1)) | {"llmbatch": "x"})
    paths.partial.write_bytes(MANIFEST + odd + b"x\n" + line(2))
    repair(str(paths.out))
    assert paths.partial.read_bytes() == MANIFEST + odd + line(2)


@pytest.mark.parametrize("content", [b"hello\n", b'{"prompt":"x"}\n' * 200])
def test_file_that_is_not_ours_is_untouched(paths, content):
    paths.out.write_bytes(content)
    with pytest.raises(OutputRefused, match="not a results file"):
        repair(str(paths.out))
    assert files(paths) == {"out.jsonl": content}


def test_newer_format_is_untouched(paths):
    content = dump_line({"llmbatch": 2, "version": "9.0"}) + b'{"new":"shape"}\n'
    paths.partial.write_bytes(content)
    with pytest.raises(OutputRefused, match="newer"):
        repair(str(paths.out))
    assert files(paths) == {"out.jsonl.partial": content}


def test_nothing_there_leaves_nothing(paths):
    with pytest.raises(InputError, match="no such file"):
        repair(str(paths.out))
    assert files(paths) == {}


def test_output_that_a_run_holds_is_refused(paths):
    paths.partial.write_bytes(MANIFEST + TORN + line(1))
    with OutputLock.acquire(paths), pytest.raises(OutputRefused, match="another run holds"):
        repair(str(paths.out))
    assert not paths.torn.exists()


def test_what_a_killed_run_left_in_the_lock_is_told_before_it_goes(paths):
    paths.partial.write_bytes(MANIFEST + TORN + line(1))
    paths.lock.write_bytes(b'{"pid":1,"host":"h","started":"s","in_flight":        12}\n')
    said = render_repaired(repair(str(paths.out)))
    assert "12 requests in flight" in said
    assert not paths.lock.exists()


class Cut(BaseException):
    """The process ends here."""


STEPS = ["write_all", "sync_data", "sync_directory"]


def cut_at(monkeypatch, step, error):
    """Raise ``error`` instead of the step-th thing that is done to the disk; the number of things done is returned."""
    done = []

    def counted(real):
        def act(*args):
            done.append(real)
            if len(done) == step:
                raise error
            return real(*args)

        return act

    for name in STEPS:
        monkeypatch.setattr(repair_module, name, counted(getattr(repair_module, name)))
    monkeypatch.setattr(Path, "rename", counted(Path.rename))
    monkeypatch.setattr(Path, "replace", counted(Path.replace))
    return done


@pytest.mark.parametrize("name", ["out", "partial"])
@pytest.mark.parametrize("step", range(1, 13))
def test_cut_off_anywhere_the_old_or_the_new_file_stands(paths, monkeypatch, name, step):
    old = MANIFEST + line(1) + TORN + line(2) + b"x\n" + line(4)
    new = MANIFEST + line(1) + line(2) + line(4)
    getattr(paths, name).write_bytes(old)
    paths.sealing.write_bytes(b"left by an earlier crash")
    with monkeypatch.context() as patch:
        done = cut_at(patch, step, Cut())
        try:
            repair(str(paths.out))
        except Cut:
            assert len(done) == step
        else:
            assert len(done) < step
    left = files(paths)
    (standing,) = {"out.jsonl", "out.jsonl.partial"} & set(left)
    assert left[standing] in (old, new)
    if left[standing] == new:
        assert left["out.jsonl.torn"] == TORN + b"x\n"
    repair(str(paths.out))
    assert paths.partial.read_bytes() == new
    assert paths.torn.read_bytes().endswith(TORN + b"x\n")
    assert not paths.out.exists()
    assert not paths.sealing.exists()


@pytest.mark.parametrize("step", range(1, 8))
def test_failing_disk_is_told_and_loses_nothing(paths, monkeypatch, step):
    old = MANIFEST + line(1) + TORN + line(2)
    paths.partial.write_bytes(old)
    with monkeypatch.context() as patch:
        cut_at(patch, step, OSError(28, "No space left on device"))
        with pytest.raises(StorageError, match="No space left") as failed:
            repair(str(paths.out))
    assert failed.value.exit_code == 5
    assert paths.partial.read_bytes() in (old, MANIFEST + line(1) + line(2))
    assert not paths.sealing.exists()
    repair(str(paths.out))
    assert paths.partial.read_bytes() == MANIFEST + line(1) + line(2)


def test_changed_line_that_is_dropped_tells_its_row(paths):
    odd = dump_line({"llmbatch": 1, "n": 1, "crc": "00000000"})
    paths.partial.write_bytes(MANIFEST + line(1) + changed(7, id="r7") + odd)
    repaired = repair(str(paths.out), drop_changed=True)
    assert (repaired.again, repaired.again_count, repaired.untold) == ([(7, "r7")], 1, 0)
    assert paths.partial.read_bytes() == MANIFEST + line(1)


def test_file_of_several_mebibytes_is_kept_whole(paths):
    good = [line(row, output="x" * 400_000) for row in range(1, 7)]
    paths.partial.write_bytes(b"".join([MANIFEST, *good[:3], TORN, *good[3:]]))
    assert repair(str(paths.out)).kept == 7
    assert paths.partial.read_bytes() == b"".join([MANIFEST, *good])


def test_copy_that_can_be_neither_written_nor_removed_is_told_once(paths, monkeypatch):
    real = Path.unlink

    def refused(path, missing_ok=False):
        if path == paths.sealing:
            raise OSError(5, "Input/output error")
        real(path, missing_ok)

    old = MANIFEST + TORN + line(1)
    paths.partial.write_bytes(old)
    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(StorageError, match=r"^cannot repair .*: Input/output error; no good line is lost$"):
        repair(str(paths.out))
    assert paths.partial.read_bytes() == old


def test_place_of_a_lost_manifest_stays_a_start(paths):
    """Rows 1 and 2 changed places in the run that began there: its lines must not pass for those of the seal before."""
    sealed = [line(1, id="a"), line(2, id="b")]
    moved = [line(1, id="b"), line(2, id="a")]
    paths.partial.write_bytes(b"".join(sealed) + b'{"llmb\x01tch":1}\n' + b"".join(moved))
    repair(str(paths.out))
    assert seal(paths, 2, failed=0).kept == 0
    assert [json.loads(one)["id"] for one in paths.out.read_bytes().splitlines()] == ["b", "a"]
