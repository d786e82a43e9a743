"""Answers saved elsewhere come back once, and only to their own journal."""

import json
import os
import random
from pathlib import Path

import pytest

from llmbatch.errors import StorageError
from llmbatch.files import takeback
from llmbatch.files.checksum import with_checksum
from llmbatch.files.paths import OutputPaths
from llmbatch.files.recovery import recover
from llmbatch.files.spill import Held, Spill, header, spill_directories, state_directory
from llmbatch.files.takeback import find_spills, set_spills_aside, take_back


def line(row):
    return json.dumps({"id": None, "row": row, "status": "ok", "key": f"fp1:{row}"}).encode() + b"\n"


@pytest.fixture
def paths(tmp_path):
    return OutputPaths.of(str(tmp_path / "out.jsonl"))


@pytest.fixture
def spill_dir(tmp_path):
    return tmp_path / "spills"


def spill(journal, spill_dir, *rows):
    saved = Spill(journal, [spill_dir])
    assert saved.save(None, [line(row) for row in rows])
    return saved.files[0]


def test_lines_of_all_spills_are_added_to_the_journal(paths, spill_dir):
    paths.partial.write_bytes(line(1))
    spill(paths.partial, spill_dir, 2, 3)
    spill(paths.partial, spill_dir, 4)
    with take_back(paths, recover(paths), [spill_dir, spill_dir]) as found:
        assert (found.ok, found.manifest, len(found.notices)) == (4, None, 2)
    assert list(spill_dir.iterdir()) == []


def test_without_a_spill_the_journal_is_what_it_was(paths, spill_dir):
    paths.partial.write_bytes(line(1))
    assert take_back(paths, None, [spill_dir]) is None
    with recover(paths) as found:
        assert take_back(paths, found, [spill_dir]) is found


def test_journal_that_is_gone_is_made_anew(paths, spill_dir):
    spill(paths.partial, spill_dir, 1, 2)
    with take_back(paths, None, [spill_dir]) as found:
        assert found.ok == 2
    assert paths.partial.stat().st_mode & 0o777 == 0o600


def test_killed_before_the_spill_is_removed_counts_each_line_once(paths, spill_dir):
    file = spill(paths.partial, spill_dir, 1, 2)
    kept = file.read_bytes()
    take_back(paths, None, [spill_dir]).close()
    file.write_bytes(kept)
    with take_back(paths, recover(paths), [spill_dir]) as found:
        assert (found.ok, found.paid_twice) == (2, 0)


def test_what_can_not_be_read_is_kept_under_another_name(paths, spill_dir):
    file = spill(paths.partial, spill_dir, 1)
    with file.open("ab") as torn:
        torn.write(b'{"id": null, "row"')
    with take_back(paths, None, [spill_dir]) as found:
        assert found.ok == 1
    assert [path.suffix for path in spill_dir.iterdir()] == [".torn"]
    assert find_spills(paths.partial, [spill_dir]) == []


def test_disk_that_is_still_full_changes_neither_file(paths, spill_dir, monkeypatch):
    paths.partial.write_bytes(line(1))
    file = spill(paths.partial, spill_dir, 2)
    before = file.read_bytes()

    def full(fd, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(takeback, "write_all", full)
    with pytest.raises(StorageError, match="nothing was sent"):
        take_back(paths, recover(paths), [spill_dir])
    assert (paths.partial.read_bytes(), file.read_bytes()) == (line(1), before)


def test_spills_of_other_journals_links_and_strangers_are_left_alone(paths, spill_dir, tmp_path, monkeypatch):
    other = spill(tmp_path / "elsewhere" / paths.partial.name, spill_dir, 1)
    (spill_dir / f"{paths.partial.name}.x.spill").symlink_to(other)
    (spill_dir / f"{paths.partial.name}.y.spill").write_bytes(line(1))
    assert find_spills(paths.partial, [spill_dir, tmp_path / "missing"]) == []
    ours = spill(paths.partial, spill_dir, 1)
    assert find_spills(paths.partial, [spill_dir]) == [ours]
    monkeypatch.setattr(takeback.os, "geteuid", lambda: 12345)
    assert find_spills(paths.partial, [spill_dir]) == []


def test_results_moved_aside_take_their_spills_with_them(paths, spill_dir):
    spill(paths.partial, spill_dir, 1)
    set_spills_aside(paths.partial, [spill_dir], "then")
    assert find_spills(paths.partial, [spill_dir]) == []
    assert [path.name.endswith(".spill.bak-then") for path in spill_dir.iterdir()] == [True]


def test_user_without_a_home_has_no_state_directory(monkeypatch):
    monkeypatch.setattr(takeback.Path, "expanduser", lambda path: (_ for _ in ()).throw(RuntimeError("no home")))
    assert state_directory({}) is None


def test_spills_are_added_oldest_first(paths, spill_dir):
    last, first = sorted(spill(paths.partial, spill_dir, row) for row in (1, 2))
    rows = [json.loads(path.read_bytes().splitlines()[1])["row"] for path in (first, last)]
    os.utime(first, ns=(0, 1))
    os.utime(last, ns=(0, 2))
    take_back(paths, None, [spill_dir]).close()
    lines = map(json.loads, paths.partial.read_bytes().splitlines())
    assert [line["row"] for line in lines if "row" in line] == rows


def test_notices_of_both_looks_at_the_journal_are_told_once_and_in_order(paths, spill_dir):
    changed = with_checksum(line(1)).replace(b"fp1:1", b"fp1:x")
    paths.partial.write_bytes(changed + line(2) + b"torn")
    file = spill(paths.partial, spill_dir, 3, 3)
    with file.open("ab") as more:
        more.write(line(2).replace(b"}", b',"request_id":"2"}'))
    with take_back(paths, recover(paths), [spill_dir]) as found:
        told, back, twice, altered = found.notices
    assert told.startswith("1 torn record (4 bytes)")
    assert back == f"3 answers that a full disk had kept out were taken back from {file}"
    assert twice == "1 answer was paid for twice; the first one stands"
    assert altered.startswith("line 1 was changed")


def test_spill_that_can_not_be_removed_stops_nothing(paths, spill_dir, monkeypatch):
    def refused(path, missing_ok=False):
        raise PermissionError(1, "Operation not permitted")

    file = spill(paths.partial, spill_dir, 1, 2)
    monkeypatch.setattr(takeback.Path, "unlink", refused)
    with take_back(paths, None, [spill_dir]) as found:
        assert found.ok == 2
    assert file.exists()


@pytest.mark.parametrize("step", range(5))
def test_spill_that_another_run_takes_back_at_this_moment_is_none(paths, spill_dir, monkeypatch, step):
    """Who only looks does so without the lock."""
    file = spill(paths.partial, spill_dir, 1)
    left = step

    def vanishing(real):
        def act(path, *args, **more):
            nonlocal left
            if path == file:
                left -= 1
                if left < 0:
                    file.unlink(missing_ok=True)
            return real(path, *args, **more)

        return act

    for name in ("lstat", "stat", "open"):
        monkeypatch.setattr(takeback.Path, name, vanishing(getattr(takeback.Path, name)))
    found = find_spills(paths.partial, [spill_dir])
    assert set(found) <= {file} and (found or not os.path.exists(file))


def test_damage_in_a_spill_costs_no_other_line(paths, spill_dir):
    """A record without its newline is not appended: the first of the next spill would become one with it."""
    first, second = spill(paths.partial, spill_dir, 1), spill(paths.partial, spill_dir, 4)
    with first.open("ab") as file:
        file.write(b"\0\0\n" + line(2) + line(3)[:-1])
    os.utime(first, ns=(0, 1))
    with take_back(paths, None, [spill_dir]) as found:
        assert [found.find(None, row) is not None for row in range(1, 5)] == [True, True, False, True]
        assert found.notices[0].startswith("2 answers")
    assert not second.exists()
    assert [path.read_bytes()[-len(line(3)) + 1 :] for path in spill_dir.iterdir()] == [line(3)[:-1]]


def test_spill_of_several_mebibytes_comes_back_whole(paths, spill_dir):
    long = [line(row).replace(b"}", b',"output":"%s"}' % (b"x" * 600_000)) for row in range(1, 6)]
    saved = Spill(paths.partial, [spill_dir])
    assert saved.save(None, long)
    take_back(paths, None, [spill_dir]).close()
    assert paths.partial.read_bytes() == b"".join([header(paths.partial), *long])


# Where the lines go


def test_home_of_the_user_who_runs_it_is_the_fallback(monkeypatch):
    monkeypatch.setenv("HOME", "/h")
    assert state_directory({}) == Path("/h/.local/state/llmbatch")


def test_without_a_home_only_tmpdir_is_left(monkeypatch):
    monkeypatch.setattr(takeback.Path, "expanduser", lambda path: (_ for _ in ()).throw(RuntimeError("no home")))
    assert spill_directories({"TMPDIR": "/t"}) == (Path("/t"),)


@pytest.mark.parametrize(("start", "end"), [(0, 10), (3, 10), (2**20 - 7, 2**20 + 9), (5, 3 * 2**20)])
def test_just_the_bytes_that_may_be_gone_are_copied_before_the_lines(tmp_path, spill_dir, start, end):
    content = random.Random(7).randbytes(3 * 2**20 + 100)
    (tmp_path / "held").write_bytes(content)
    saved = Spill(tmp_path / "out.partial", [spill_dir])
    with (tmp_path / "held").open("rb") as file:
        held = Held(file.fileno(), start, end)
        assert saved.save(None, [line(1)])
        assert saved.save(held, [line(2)])
        assert saved.save(held, [])
    (only,) = saved.files
    piece = content[start:end]
    assert only.read_bytes() == header(tmp_path / "out.partial") + line(1) + piece + line(2) + piece


@pytest.mark.parametrize(
    ("files", "unsaved", "said"),
    [
        ([], 0, "when that is mended, the same command continues"),
        (
            [],
            1,
            "1 answer could not be saved anywhere and will be sent again; when that is mended, the same command "
            "continues",
        ),
        (
            ["a", "b"],
            2,
            "2 answers could not be saved anywhere and will be sent again; answers that it does not hold are in a, b; "
            "when that is mended, the same command continues, and takes them back",
        ),
    ],
)
def test_next_step_is_said(files, unsaved, said):
    saved = Spill(Path("out"), [])
    saved.files = files
    assert saved.next_step(unsaved) == said
