"""Answers saved elsewhere come back once, and only to their own journal."""

import json

import pytest

from llmbatch.errors import StorageError
from llmbatch.files import takeback
from llmbatch.files.paths import OutputPaths
from llmbatch.files.recovery import recover
from llmbatch.files.spill import Spill, state_directory
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
