"""A small file that several processes change in turn: whole contents, no waiting, nobody else's."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from llmbatch.files.shared_file import MAX_BYTES, SharedFile


def replace(file: SharedFile, content: bytes) -> bytes:
    """What was there."""
    seen = []
    assert file.change(lambda before: (seen.append(before), content)[1])
    return seen[0]


def test_contents_are_replaced_whole_also_by_shorter_ones(tmp_path: Path) -> None:
    first, second = SharedFile(tmp_path, "a"), SharedFile(tmp_path, "a")
    contents = [b"", b"x" * 1000, b"y", b"z" * 256, b"", b"w" * 257]
    seen = [replace((first, second)[at % 2], content) for at, content in enumerate(contents[1:])]
    assert seen == contents[:-1]
    assert first.path.stat().st_size == 1024


def test_a_content_that_is_too_large_is_cut_and_replaced(tmp_path: Path) -> None:
    file = SharedFile(tmp_path, "a")
    file.path.write_bytes(b"x" * 2 * MAX_BYTES)
    assert len(replace(file, b"small")) == MAX_BYTES + 1
    assert file.path.read_bytes().rstrip() == b"small"


def test_an_edit_that_fails_changes_nothing_and_lets_go(tmp_path: Path) -> None:
    first, second = SharedFile(tmp_path, "a"), SharedFile(tmp_path, "a")
    replace(first, b"before")
    with pytest.raises(ZeroDivisionError):
        first.change(lambda content: b"" if 1 // 0 else content)
    assert replace(second, b"after") == b"before"


def test_while_another_holds_the_lock_nothing_is_changed(tmp_path: Path) -> None:
    file = SharedFile(tmp_path, "a")
    replace(file, b"before")
    other = os.open(file.path, os.O_RDWR)
    fcntl.flock(other, fcntl.LOCK_EX)
    assert not file.change(lambda content: b"after")
    os.close(other)
    assert replace(file, b"after") == b"before"


def test_new_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        file = SharedFile(tmp_path / "state", "a")
    finally:
        os.umask(umask)
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert file.path.parent.stat().st_mode & 0o777 == 0o700
    assert file.path.parent.parent.stat().st_mode & 0o777 == 0o700


def test_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SharedFile(tmp_path, "a").close()
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.raises(OSError, match="not yours alone"):
        SharedFile(tmp_path, "a")


def test_closing_twice_does_nothing(tmp_path: Path) -> None:
    file = SharedFile(tmp_path, "a")
    file.close()
    file.close()
