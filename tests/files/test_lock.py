"""One run per output, and a dead run holds nobody up."""

import errno
import os
import subprocess
import sys

import orjson
import pytest

from llmbatch.errors import OptionsError, OutputRefused
from llmbatch.files.lock import OutputLock, Signature
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


def killed_with(paths, in_flight):
    """The lock file of a holder that was killed; the kernel has let go of its flock."""
    lock = OutputLock.acquire(paths)
    lock.note_in_flight(in_flight)
    left = paths.lock.read_bytes()
    lock.release()
    paths.lock.write_bytes(left)


@pytest.mark.parametrize("in_flight", [0, 1, 12, 10_000])
def test_what_was_in_flight_at_a_kill_is_known_to_the_next_holder(paths, in_flight):
    killed_with(paths, in_flight)
    with OutputLock.acquire(paths) as lock:
        assert (lock.cut_off.pid, lock.cut_off.in_flight) == (os.getpid(), in_flight)


def test_the_number_is_changed_in_place_and_the_signature_is_whole_at_every_moment(paths):
    with OutputLock.acquire(paths) as lock:
        size = paths.lock.stat().st_size
        for number in (1, 123_456, 7, 0):
            lock.note_in_flight(number)
            assert orjson.loads(paths.lock.read_bytes())["in_flight"] == number
            assert paths.lock.stat().st_size == size


def test_holder_that_is_killed_before_it_sends_hands_the_number_on(paths):
    killed_with(paths, 7)
    with OutputLock.acquire(paths) as lock:
        assert orjson.loads(paths.lock.read_bytes())["in_flight"] == 7
        lock.note_in_flight(1)
        assert orjson.loads(paths.lock.read_bytes())["in_flight"] == 1


def test_lock_without_the_number_is_ours_too(paths):
    paths.lock.write_text('{"pid": 1, "host": "h", "started": "then"}\n')
    with OutputLock.acquire(paths) as lock:
        assert lock.cut_off == Signature(1, "h", "then", 0)


def test_new_lock_has_nothing_to_tell_and_a_released_one_notes_nothing(paths):
    with OutputLock.acquire(paths) as lock:
        assert lock.cut_off is None
    lock.note_in_flight(3)
    assert not paths.lock.exists()


def test_number_that_can_not_be_noted_hurts_nobody(paths, monkeypatch):
    def broken(fd, data, offset):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with OutputLock.acquire(paths) as lock:
        monkeypatch.setattr(os, "pwrite", broken)
        lock.note_in_flight(3)
        assert orjson.loads(paths.lock.read_bytes())["in_flight"] == 0


def test_child_that_outlives_a_killed_holder_does_not_hold_its_lock(paths):
    lock = OutputLock.acquire(paths)
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
    os.close(lock._fd)  # as the kernel does at a kill: the file stays
    try:
        OutputLock.acquire(paths).release()
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
@pytest.mark.parametrize("act", [OutputLock.acquire, OutputLock.check])
def test_file_system_without_locks_is_refused_with_the_way_out(paths, monkeypatch, act, number):
    paths.lock.touch()

    def no_locks(fd, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(OptionsError, match="put the output on a local disk"):
        act(paths)
