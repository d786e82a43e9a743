"""One run per output, and a dead run holds nobody up."""

import os
import subprocess
import sys

import pytest

from llmbatch.errors import OptionsError, OutputRefused
from llmbatch.files.lock import OutputLock
from llmbatch.files.paths import OutputPaths, open_private


@pytest.fixture
def paths(tmp_path):
    return OutputPaths.of(str(tmp_path / "out.jsonl"))


def test_second_run_is_refused_and_told_who_holds_the_output(paths):
    with OutputLock.acquire(paths), pytest.raises(OutputRefused) as refused:
        OutputLock.acquire(paths)
    assert f"pid {os.getpid()} on {os.uname().nodename}, started 20" in str(refused.value)
    assert refused.value.exit_code == 6


def test_released_lock_can_be_taken_again_and_leaves_no_file(paths):
    with OutputLock.acquire(paths):
        assert paths.lock.exists()
    assert not paths.lock.exists()
    OutputLock.acquire(paths).release()


def test_second_release_does_nothing(paths):
    lock = OutputLock.acquire(paths)
    lock.release()
    with OutputLock.acquire(paths):
        lock.release()
        assert paths.lock.exists()


def test_lock_file_of_a_killed_run_holds_nobody_up(paths):
    script = (
        "import os, signal, sys\n"
        "from llmbatch.files.lock import OutputLock\n"
        "from llmbatch.files.paths import OutputPaths\n"
        "OutputLock.acquire(OutputPaths.of(sys.argv[1]))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(paths.out)]).returncode == -9
    assert paths.lock.exists()
    with OutputLock.acquire(paths):
        assert f'"pid":{os.getpid()}' in paths.lock.read_text()


def test_lock_removed_while_we_wait_for_it_is_not_taken_for_ours(paths, monkeypatch):
    """Its holder unlinks between our open and our flock: we would hold a file that has no name."""
    real, opened = open_private, []

    def open_then_lose_the_name(path, flags):
        opened.append(fd := real(path, flags))
        if len(opened) == 1:
            paths.lock.unlink()
        return fd

    monkeypatch.setattr("llmbatch.files.lock.open_private", open_then_lose_the_name)
    with OutputLock.acquire(paths):
        assert len(opened) == 2
        assert os.path.samestat(os.fstat(opened[1]), paths.lock.stat())


def test_release_leaves_a_lock_file_that_is_not_ours(paths):
    lock = OutputLock.acquire(paths)
    paths.lock.unlink()
    with OutputLock.acquire(paths):
        lock.release()
        assert paths.lock.exists()


def test_unsigned_lock_is_refused_as_well(paths):
    with OutputLock.acquire(paths):
        paths.lock.write_bytes(b"")
        with pytest.raises(OutputRefused, match="not signed"):
            OutputLock.acquire(paths)


@pytest.mark.parametrize("content", [b"[[package]]\n", b"{}", b"1234\n", b"[1]", b"\n"])
@pytest.mark.parametrize("act", [OutputLock.acquire, OutputLock.check])
def test_lock_file_of_another_tool_is_refused_and_untouched(paths, act, content):
    paths.lock.write_bytes(content)
    with pytest.raises(OutputRefused, match="not a lock of llmbatch"):
        act(paths)
    assert paths.lock.read_bytes() == content


def test_check_refuses_what_acquire_would_and_creates_nothing(paths, tmp_path):
    OutputLock.check(paths)
    assert not paths.lock.exists()
    with pytest.raises(OptionsError, match="create the directory"):
        OutputLock.check(OutputPaths.of(str(tmp_path / "missing" / "out.jsonl")))
    with OutputLock.acquire(paths), pytest.raises(OutputRefused, match="another run holds"):
        OutputLock.check(paths)


def test_missing_directory_is_bad_usage(tmp_path):
    with pytest.raises(OptionsError, match="create the directory") as refused:
        OutputLock.acquire(OutputPaths.of(str(tmp_path / "missing" / "out.jsonl")))
    assert refused.value.exit_code == 2


def test_symlink_is_followed_once_so_that_its_target_is_written(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "real" / "out.jsonl")
    paths = OutputPaths.of(str(tmp_path / "link.jsonl"))
    assert paths == OutputPaths.of(str(tmp_path / "real" / "out.jsonl"))
    assert paths.partial == tmp_path / "real" / "out.jsonl.partial"


@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
def test_files_are_private_whatever_the_umask(paths, umask):
    before = os.umask(umask)
    try:
        with OutputLock.acquire(paths):
            assert paths.lock.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_no_file_of_ours_becomes_standard_output():
    script = (
        "import os, sys\n"
        "from llmbatch.files.paths import open_private\n"
        "os.close(0); os.close(1)\n"
        "fd = open_private(sys.argv[1], os.O_RDWR)\n"
        "sys.exit(0 if fd > 2 and not os.get_inheritable(fd) else 1)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, __file__]).returncode == 0


def test_a_planted_symlink_is_not_followed(paths, tmp_path):
    (tmp_path / "victim").write_text("precious")
    paths.lock.symlink_to(tmp_path / "victim")
    with pytest.raises(OptionsError):
        OutputLock.acquire(paths)
    assert (tmp_path / "victim").read_text() == "precious"
