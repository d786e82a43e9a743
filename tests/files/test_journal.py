"""A line handed over is in the file, or somewhere that the error names."""

import asyncio
import errno
import fcntl
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from llmbatch.errors import InternalError, OptionsError, StorageError
from llmbatch.files import journal as journal_module
from llmbatch.files.journal import DiskListener, Journal, manifest_line
from llmbatch.files.paths import OutputPaths
from llmbatch.files.recovery import recover
from llmbatch.files.space import Space
from llmbatch.files.spill import Spill, spill_directories
from llmbatch.files.takeback import take_back


def line(row, size=0):
    return b'{"id":null,"row":%d,"status":"ok","output":"%s","key":"fp1:a"}\n' % (row, b"x" * size)


@pytest.fixture
def paths(tmp_path):
    (tmp_path / "data").mkdir()
    return OutputPaths.of(str(tmp_path / "data" / "out.jsonl"))


@pytest.fixture
def spill_dir(tmp_path):
    return tmp_path / "state" / "llmbatch"


class Run:
    """A journal with what its owner saw: offsets in the order of ``written``, and failures."""

    def __init__(self, paths, spill_dirs):
        self.paths, self.spill_dirs = paths, spill_dirs
        self.offsets, self.failures, self.low, self.weak = {}, [], [], []

    async def open(self):
        self.journal = await Journal.open(
            self.paths,
            spill_dirs=self.spill_dirs,
            listener=DiskListener(self.failures.append, self.low.append, self.weak.append),
        )
        return self

    def append(self, *rows, size=0):
        for row in rows:
            self.journal.append(line(row, size), lambda offset, row=row: self.offsets.__setitem__(row, offset))

    async def until(self, condition):
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.001)


@asynccontextmanager
async def failing(run, match):
    """The disk fails in the body; close says so, once more when asked again."""
    yield
    for _ in range(2):
        with pytest.raises(StorageError, match=match) as failed:
            await run.journal.close()
    assert failed.value is run.journal.failed
    assert failed.value.exit_code == 5
    assert len(run.failures) == 1


@pytest.fixture
async def run(paths, spill_dir):
    return await Run(paths, [spill_dir]).open()


def spilled(spill_dir):
    """The lines after the first, which names the journal."""
    files = list(spill_dir.iterdir())
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    return b"".join(saved(file) for file in files)


def saved(file):
    first, rest = file.read_bytes().split(b"\n", 1)
    assert set(json.loads(first)) == {"llmbatch", "spill_of"}
    return rest


class CountingFile:
    """The real file, with every write noted and at most ``limit`` bytes taken by each."""

    def __init__(self, file, limit=1 << 30, room=1 << 30):
        self.file, self.limit, self.room, self.writes = file, limit, room, []

    async def write(self, data):
        take = min(self.limit, self.room, len(data))
        if not take:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= take
        self.writes.append(await self.file.write(data[:take]))
        return take

    def __getattr__(self, name):
        return getattr(self.file, name)


@contextmanager
def file_size_limit(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_lines_are_written_in_order_and_their_offsets_told(run, paths):
    run.append(1, 2, 3)
    await run.journal.close()
    assert paths.partial.read_bytes() == line(1) + line(2) + line(3)
    assert run.offsets == {1: 0, 2: len(line(1)), 3: 2 * len(line(1))}


async def test_idle_line_is_written_at_once_without_close_or_sync(run, paths):
    run.append(1)
    await run.until(lambda: 1 in run.offsets)
    assert paths.partial.read_bytes() == line(1)
    await run.journal.close()


async def test_written_is_told_only_when_the_line_is_in_the_file(run, paths):
    seen = []
    run.journal.append(line(1), lambda offset: seen.append(paths.partial.read_bytes()))
    await run.journal.close()
    assert seen == [line(1)]


async def test_lines_that_wait_together_share_one_write(run):
    run.journal._file = counting = CountingFile(run.journal._file)
    run.append(*range(1, 101))
    await run.journal.close()
    assert counting.writes == [sum(len(line(row)) for row in range(1, 101))]


async def test_short_writes_are_continued(run, paths):
    run.journal._file = CountingFile(run.journal._file, limit=7)
    run.append(1, 2)
    await run.journal.close()
    assert paths.partial.read_bytes() == line(1) + line(2)


async def test_existing_journal_is_continued(run, paths, spill_dir):
    run.append(1)
    await run.journal.close()
    again = await Run(paths, [spill_dir]).open()
    again.append(2)
    await again.journal.close()
    assert paths.partial.read_bytes() == line(1) + line(2)
    assert again.offsets == {2: len(line(1))}


@pytest.mark.parametrize("umask", [0, 0o777])
async def test_journal_is_private_and_not_inherited(paths, spill_dir, umask):
    before = os.umask(umask)
    try:
        run = await Run(paths, [spill_dir]).open()
    finally:
        os.umask(before)
    assert paths.partial.stat().st_mode & 0o777 == 0o600
    fd = run.journal._file.fileno()
    assert fd > 2
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
    await run.journal.close()


async def test_new_file_and_its_name_are_durable_before_anything_is_sent(paths, spill_dir, monkeypatch):
    synced = []
    monkeypatch.setattr(journal_module, "sync_data", lambda fd: synced.append("file"))
    monkeypatch.setattr(journal_module, "sync_directory", synced.append)
    run = await Run(paths, [spill_dir]).open()
    assert synced == ["file", paths.directory]
    await run.journal.close()


async def test_journal_in_a_missing_directory_is_bad_usage_and_leaves_no_thread(tmp_path):
    with pytest.raises(OptionsError, match="create the directory"):
        await Run(OutputPaths.of(str(tmp_path / "missing" / "out")), []).open()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("journal")]


async def test_real_file_size_limit_keeps_whole_lines_and_saves_the_rest(run, paths, spill_dir):
    """A full disk shows as a short write, then as an error; the journal must end with a whole line."""
    size = len(line(1, 5000))
    async with failing(run, "cannot write .*out.jsonl.partial: File too large"):
        with file_size_limit(3 * size + 99):
            run.append(1, 2, 3, 4, 5, size=5000)
            spill_dir.mkdir(parents=True)
            await run.until(lambda: run.offsets.keys() == {1, 2, 3})
            await run.until(lambda: run.failures)
    assert paths.partial.read_bytes() == line(1, 5000) + line(2, 5000) + line(3, 5000)
    assert spilled(spill_dir) == line(4, 5000) + line(5, 5000)


async def test_answers_that_arrive_while_draining_are_saved_too_in_the_same_file(run, paths, spill_dir):
    async with failing(run, "No space left on device"):
        run.journal._file = CountingFile(run.journal._file, room=len(line(1)) + 5)
        run.append(1, 2)
        await run.until(lambda: run.failures)
        run.journal._file.room = 1 << 30
        run.append(3)
        await run.journal.room()
    assert run.offsets == {1: 0}
    assert paths.partial.read_bytes() == line(1)
    assert spilled(spill_dir) == line(2) + line(3)
    assert len(list(spill_dir.iterdir())) == 1
    assert spill_dir.stat().st_mode & 0o777 == 0o700


async def test_saved_answers_are_found_and_taken_back(run, paths, spill_dir):
    async with failing(run, "the same command continues, and takes them back"):
        run.journal._file = CountingFile(run.journal._file, room=len(line(1)) + 5)
        run.append(1, 2, 3)
    with take_back(paths, recover(paths), [spill_dir]) as found:
        assert found.ok == 3
        assert "2 answers" in found.notices[0]
    assert list(spill_dir.iterdir()) == []
    with recover(paths) as found:
        assert (found.ok, found.notices) == (3, [])


async def test_next_directory_takes_what_the_first_does_not(paths, tmp_path):
    (tmp_path / "file").write_text("no directory")
    run = await Run(paths, [tmp_path / "file" / "x", tmp_path / "second"]).open()
    async with failing(run, str(tmp_path / "second")):
        run.journal._file = CountingFile(run.journal._file, room=0)
        run.append(1)
    assert spilled(tmp_path / "second") == line(1)


async def test_answers_that_nothing_takes_are_counted_and_tried_again_at_the_end(paths, tmp_path):
    run = await Run(paths, [tmp_path / "file" / "x"]).open()
    (tmp_path / "file").write_text("no directory")
    async with failing(run, "No space"):
        run.journal._file = CountingFile(run.journal._file, room=0)
        run.append(1)
        await run.until(lambda: run.failures)
        assert "1 answer could not be saved anywhere" in str(run.failures[0])
        (tmp_path / "file").unlink()
    assert "could not be saved" not in str(run.journal.failed)
    assert spilled(tmp_path / "file" / "x") == line(1)


async def test_sync_returns_when_all_is_durable_and_is_quick_when_asked(run, monkeypatch):
    synced = []
    real = journal_module.sync_data
    monkeypatch.setattr(journal_module, "sync_data", lambda fd: (synced.append(os.fstat(fd).st_size), real(fd)))
    run.append(1, 2)
    async with asyncio.timeout(0.5):
        await run.journal.sync()
    assert synced[-1] == 2 * len(line(1))
    await run.journal.sync()
    await run.journal.close()


@pytest.mark.parametrize(("rows", "size"), [(256, 0), (5, 2**20)], ids=["lines", "bytes"])
async def test_many_lines_or_bytes_are_made_durable_before_the_second_is_over(run, monkeypatch, rows, size):
    synced = []
    monkeypatch.setattr(journal_module, "sync_data", lambda fd: synced.append(1))
    run.append(*range(rows - 1))
    await run.until(lambda: len(run.offsets) == rows - 1)
    assert not synced
    run.append(rows, size=size)
    run.append(*range(rows + 1, rows + 5), size=size)
    async with asyncio.timeout(0.5):
        await run.until(lambda: synced)
    await run.journal.close()


@pytest.mark.parametrize(("name", "limit"), [("SYNC_AFTER_LINES", 3), ("SYNC_AFTER_BYTES", 3 * len(line(1)))])
async def test_every_so_many_lines_or_bytes_share_one_sync(run, monkeypatch, name, limit):
    synced = []
    monkeypatch.setattr(journal_module, "sync_data", lambda fd: synced.append(1))
    monkeypatch.setattr(journal_module, name, limit)
    for first in (1, 4, 7):
        synced.clear()
        run.append(first, first + 1)
        await run.until(lambda last=first + 1: last in run.offsets)
        await asyncio.sleep(0.02)
        assert not synced
        run.append(first + 2)
        async with asyncio.timeout(0.5):
            await run.until(lambda: run.journal._durable == run.journal._end)
        assert synced == [1]
    await run.journal.close()


async def test_few_lines_are_made_durable_in_time(run, monkeypatch):
    monkeypatch.setattr(journal_module, "SYNC_AFTER_S", 0.05)
    synced = asyncio.Event()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(journal_module, "sync_data", lambda fd: loop.call_soon_threadsafe(synced.set))
    run.append(1)
    async with asyncio.timeout(0.5):
        await synced.wait()
    await run.journal.close()


async def test_writes_do_not_wait_behind_a_slow_disk_but_sending_does(run, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(journal_module, "sync_data", lambda fd: gate.wait(5))
    monkeypatch.setattr(journal_module, "MAX_UNDURABLE_BYTES", 2 * len(line(1)))
    run.append(1, 2)
    await run.journal.room()
    durable = asyncio.create_task(run.journal.sync())
    run.append(3)
    await run.until(lambda: len(run.offsets) == 3)
    waiting = asyncio.create_task(run.journal.room())
    await asyncio.sleep(0.02)
    assert not waiting.done()
    assert not durable.done()
    gate.set()
    async with asyncio.timeout(5):
        await asyncio.gather(waiting, durable)
    await run.journal.close()


@pytest.mark.parametrize("ending", ["sync", "close"])
async def test_line_written_during_a_sync_is_made_durable_by_another_one(run, monkeypatch, ending):
    gate, begun = threading.Event(), []

    def slow(fd):
        begun.append(os.fstat(fd).st_size)
        gate.wait(5)

    monkeypatch.setattr(journal_module, "sync_data", slow)
    run.append(1)
    first = asyncio.create_task(run.journal.sync())
    await run.until(lambda: begun)
    run.append(2)
    last = asyncio.create_task(getattr(run.journal, ending)())
    await run.until(lambda: 2 in run.offsets)
    gate.set()
    await asyncio.gather(first, last)
    assert begun == [len(line(1)), 2 * len(line(1))]
    await run.journal.close()


def test_spill_file_that_fails_keeps_whole_lines_and_the_next_directory_takes_over(tmp_path, monkeypatch):
    spill = Spill(tmp_path / "out", [tmp_path / "a", tmp_path / "b"])
    assert spill.save(None, [line(1)])
    errors = [errno.ENOSPC, errno.ENOSPC]

    def sync(fd):
        if errors:
            raise OSError(errors.pop(), "full")

    monkeypatch.setattr("llmbatch.files.spill.sync_data", sync)
    assert spill.save(None, [line(2), line(3)])
    assert [(file.parent.name, saved(file)) for file in spill.files] == [
        ("a", line(1)),
        ("b", line(2) + line(3)),
    ]
    assert len(list((tmp_path / "a").iterdir())) == 1


@pytest.mark.parametrize(
    ("environ", "first"),
    [
        ({"XDG_STATE_HOME": "/s", "HOME": "/h", "TMPDIR": "/t"}, "/s/llmbatch"),
        ({"HOME": "/h", "TMPDIR": "/t"}, "/h/.local/state/llmbatch"),
    ],
)
def test_spill_goes_to_the_state_directory_then_to_tmpdir(environ, first):
    assert spill_directories(environ) == (Path(first), Path("/t"))


async def test_failed_sync_is_never_retried_and_saves_what_may_be_gone(run, spill_dir, monkeypatch):
    run.append(1)
    await run.journal.sync()
    calls = []

    def broken(fd):
        calls.append(1)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(journal_module, "sync_data", broken)
    async with failing(run, "durable: Input/output error"):
        run.append(2)
        with pytest.raises(StorageError):
            await run.journal.sync()
        run.append(3)
    assert calls == [1]
    assert spilled(spill_dir) == line(2) + line(3)


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EIO, errno.EFBIG, errno.ESTALE])
async def test_write_that_fails_is_not_tried_again_and_its_lines_are_saved(run, paths, spill_dir, number):
    """A quota, a broken disk, a size limit, a network file system that lost the file: all are one."""
    run.append(1)
    await run.until(lambda: run.offsets)
    tries = []

    async def broken(data):
        tries.append(data)
        raise OSError(number, os.strerror(number))

    async with failing(run, f"cannot write .*: {os.strerror(number)}"):
        run.journal._file = file = CountingFile(run.journal._file)
        file.write = broken
        run.append(2)
        await run.until(lambda: run.failures)
        run.append(3)
    assert tries == [line(2)]
    assert paths.partial.read_bytes() == line(1)
    assert spilled(spill_dir) == line(2) + line(3)


async def test_error_of_close_hurts_nobody_for_all_is_durable_by_then(run, paths, monkeypatch):
    real, synced = run.journal._file, []
    monkeypatch.setattr(journal_module, "sync_data", lambda fd: synced.append(os.fstat(fd).st_size))

    async def broken():
        assert synced[-1] == len(line(1))
        await real.close()
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    run.journal._file = file = CountingFile(real)
    file.close = broken
    run.append(1)
    await run.journal.close()
    assert run.failures == []


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
async def test_file_system_that_knows_no_fsync_is_told_once_and_is_no_error(paths, spill_dir, monkeypatch, number):
    def unknown(fd):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("llmbatch.files.paths._sync", unknown)
    run = await Run(paths, [spill_dir]).open()
    run.append(1, 2)
    await run.journal.sync()
    run.append(3)
    await run.journal.close()
    assert paths.partial.read_bytes() == line(1) + line(2) + line(3)
    assert run.failures == []
    (told,) = run.weak
    assert "cannot make files durable" in told


async def test_low_space_is_told_once_and_lines_are_written_on(run, paths, monkeypatch):
    answers = 4 * 10 * len(line(1))
    space = Space(answers, 1000)
    monkeypatch.setattr(Space, "of", lambda file: space)
    run.journal.in_flight = 10
    run.append(1)
    await run.journal.sync()
    assert run.low == []
    space = Space(answers - 1, 1000)
    for row in (2, 3):
        run.append(row)
        await run.journal.sync()
    await run.journal.close()
    (told,) = run.low
    assert told.exit_code == 5
    assert "no new request is sent. Make room, then the same command continues" in str(told)
    assert run.failures == []
    assert paths.partial.read_bytes() == line(1) + line(2) + line(3)


async def test_sync_that_fails_only_at_the_end_is_told(run, spill_dir, monkeypatch):
    run.append(1)
    await run.until(lambda: run.offsets)
    monkeypatch.setattr(journal_module, "sync_data", lambda fd: os.fdatasync(10**6))
    async with failing(run, "durable: Bad file descriptor"):
        pass
    assert spilled(spill_dir) == line(1)


async def test_truncation_seen_only_at_the_end_is_told(run, paths):
    run.append(1)
    await run.until(lambda: run.offsets)
    async with failing(run, "was truncated by someone"):
        os.truncate(paths.partial, 3)


@pytest.mark.parametrize("when", ["while the others are saved", "at the end"])
async def test_sync_that_fails_after_a_write_failed_saves_what_may_be_gone_too(run, spill_dir, monkeypatch, when):
    """The lines before the failed write are in the file, but not durable."""
    begun, gate, real = threading.Event(), threading.Event(), Spill.save

    def slow(spill, held, lines):
        begun.set()
        assert gate.wait(5)
        return real(spill, held, lines)

    def broken(fd):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Spill, "save", slow)
    run.append(1)
    await run.until(lambda: run.offsets)
    async with failing(run, "No space left on device"):
        run.journal._file = CountingFile(run.journal._file, room=0)
        run.append(2)
        await run.until(begun.is_set)
        monkeypatch.setattr(journal_module, "sync_data", broken)
        if when == "at the end":
            gate.set()
            await run.until(lambda: run.failures)
        else:
            durable = asyncio.create_task(run.journal.sync())
            await run.until(lambda: not run.journal._can_sync)
            gate.set()
            with pytest.raises(StorageError):
                await durable
    assert spilled(spill_dir) == line(2) + line(1)


async def test_write_that_takes_nothing_is_a_full_disk(run, paths, spill_dir):
    async def nothing(data):
        return 0

    async with failing(run, "cannot write .*: No space left on device; "):
        run.journal._file = file = CountingFile(run.journal._file)
        file.write = nothing
        run.append(1)
    assert spilled(spill_dir) == line(1)


async def test_torn_line_that_can_not_be_cut_off_is_mended_by_the_next_run(run, paths, spill_dir):
    async def refused(size):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async with failing(run, "No space left on device"):
        run.journal._file = file = CountingFile(run.journal._file, room=len(line(1)) + 5)
        file.truncate = refused
        run.append(1, 2)
    assert paths.partial.read_bytes() == line(1) + line(2)[:5]
    with take_back(paths, recover(paths), [spill_dir]) as found:
        assert found.ok == 2


async def test_disk_is_touched_by_two_threads_of_its_own_only(paths, spill_dir, monkeypatch):
    """A disk that hangs must not hold up the loop, nor what else runs in the loop's own threads."""
    threads = {}

    def noting(name, real):
        def noted(*args):
            threads.setdefault(name, set()).add(threading.current_thread().name)
            return real(*args)

        return noted

    for name in ("open_private", "can_sync", "sync_data"):
        monkeypatch.setattr(journal_module, name, noting(name, getattr(journal_module, name)))
    monkeypatch.setattr(Spill, "save", noting("save", Spill.save))
    run = await Run(paths, [spill_dir]).open()
    threads.pop("sync_data")
    async with failing(run, "No space"):
        run.append(1)
        await run.journal.sync()
        run.journal._file = CountingFile(run.journal._file, room=0)
        run.append(2)
    assert threads == {
        "open_private": {"journal-write_0"},
        "can_sync": {"journal-sync_0"},
        "sync_data": {"journal-sync_0"},
        "save": {"journal-write_0"},
    }


@pytest.mark.parametrize("name", ["can_sync", "sync_data", "sync_directory"])
async def test_disk_that_fails_at_the_start_leaves_no_thread_and_no_open_file(paths, spill_dir, monkeypatch, name):
    def broken(what):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(journal_module, name, broken)
    before = os.listdir("/dev/fd")
    with pytest.raises(StorageError, match=r"cannot write .*: Input/output error; nothing was sent"):
        await Run(paths, [spill_dir]).open()
    assert os.listdir("/dev/fd") == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("journal")]


def replace(path):
    path.rename(path.with_suffix(".aside"))
    path.write_bytes(b"other")


@pytest.mark.parametrize(
    ("act", "said", "saved"),
    [
        (Path.unlink, "was deleted", line(1) + line(2)),
        (lambda path: path.rename(path.with_suffix(".aside")), "was moved away", line(1) + line(2)),
        (replace, "was replaced", line(1) + line(2)),
        (lambda path: os.truncate(path, 3), "was truncated", b""),
    ],
    ids=["deleted", "moved", "replaced", "truncated"],
)
async def test_journal_taken_away_while_running_stops_the_run_and_is_saved(run, paths, spill_dir, act, said, saved):
    run.append(1)
    await run.journal.sync()
    async with failing(run, f"^{re.escape(str(paths.partial))} {said} by someone while running; "):
        act(paths.partial)
        run.append(2)
        with pytest.raises(StorageError, match=said):
            await run.journal.sync()
        run.append(3)
    assert spilled(spill_dir) == saved + line(3)


async def test_callback_that_raises_stops_no_other_line_and_is_raised_at_the_end(run, paths):
    run.append(1)
    run.journal.append(line(2), lambda offset: 1 // 0)
    run.append(3)
    with pytest.raises(ZeroDivisionError):
        await run.journal.close()
    assert run.offsets.keys() == {1, 3}
    assert paths.partial.read_bytes() == line(1) + line(2) + line(3)


async def test_bug_in_the_writer_lets_nobody_wait_for_ever(run, monkeypatch):
    async def broken(data):
        raise RuntimeError("bug")

    monkeypatch.setattr(run.journal._file, "write", broken)
    run.append(1)
    with pytest.raises(StorageError, match="bug"):
        await run.journal.sync()
    with pytest.raises(ExceptionGroup):
        await run.journal.close()


async def test_cancelled_close_still_writes_everything(run, paths):
    run.append(*range(100))
    closing = asyncio.create_task(run.journal.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await run.journal.close()
    assert len(run.offsets) == 100


async def test_line_after_close_is_a_bug_and_no_silent_loss(run):
    await run.journal.close()
    with pytest.raises(InternalError, match=r"^a line came after the journal was closed; please report this$"):
        run.append(1)


async def test_manifest_is_recognised(run, paths):
    run.journal.append(manifest_line({"version": "0.1", "model": "m"}), lambda offset: None)
    await run.journal.close()
    assert paths.partial.read_bytes().startswith(b'{"llmbatch":1,"version":"0.1","model":"m"')
    with recover(paths) as found:
        assert found.manifest["model"] == "m"


KILLED = """
import asyncio, os, sys
from llmbatch.files.journal import DiskListener, Journal
from llmbatch.files.paths import OutputPaths

def done(row):
    return lambda offset: os.write(1, b"%d\\n" % row)

async def main():
    journal = await Journal.open(OutputPaths.of(sys.argv[1]), spill_dirs=(), listener=DiskListener(print, print, print))
    row = 0
    while True:
        for _ in range(7):
            row += 1
            line = b'{"id":null,"row":%d,"status":"ok","output":"%s","key":"k"}\\n' % (row, b"x" * (row % 5000))
            journal.append(line, done(row))
        await asyncio.sleep(0)

asyncio.run(main())
"""


def test_kill_loses_nothing_that_was_counted_as_done(paths):
    for rows in (1, 500, 3000):
        paths.partial.unlink(missing_ok=True)
        child = subprocess.Popen([sys.executable, "-c", KILLED, str(paths.out)], stdout=subprocess.PIPE)
        told = b"".join(child.stdout.readline() for _ in range(rows))
        child.send_signal(signal.SIGKILL)
        told += child.stdout.read()
        child.stdout.close()
        child.wait()
        with recover(paths) as found:
            assert all(found.find(None, int(row)) for row in told.split())
            assert found.ok >= len(told.split()) >= rows
