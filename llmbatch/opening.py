"""Which output a run gets: refused, or locked and recovered; for a dry run only looked at.

Everything here happens before anything is sent.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import Any

from llmbatch.errors import OptionsError, OutputRefused
from llmbatch.files.export import Export
from llmbatch.files.journal import DiskListener
from llmbatch.files.lock import OutputLock
from llmbatch.files.paths import OutputPaths, is_stream, sync_directory
from llmbatch.files.recovered import Recovered
from llmbatch.files.recovery import look
from llmbatch.files.results import dump_line
from llmbatch.files.spill import spill_directories
from llmbatch.files.stdout import STDOUT_FD, is_same_file
from llmbatch.files.takeback import find_spills, set_spills_aside
from llmbatch.options import STDIO, RunOptions
from llmbatch.output import FileOutput, StdoutOutput

# Pipelines that start with the same words and the same first line get journals of their own up to this number.
MAX_SAME_PIPELINES = 100
_WITHOUT_STATE = "--no-journal keeps none, and -o FILE keeps it beside FILE"


def refuse_streams(options: RunOptions) -> None:
    """Raise OptionsError where a file is needed and a pipe or a device is named, before either is opened."""
    if options.output is not None and options.output != STDIO and is_stream(options.output):
        raise OptionsError(f"--output {options.output} is no file; -o - writes to standard output")
    if options.output is None and options.input != STDIO and is_stream(options.input):
        raise OptionsError(f"{options.input} is no file: name the output with -o FILE, or - for standard output")


def open_file_output(options: RunOptions, listener: DiskListener, stamp: str) -> FileOutput:
    """Lock and recover ``options.output_path``. Raises OptionsError, OutputRefused or StorageError.

    ``stamp`` names what ``--restart`` moves aside.
    """
    export = _export(options)
    paths = _file_paths(options, export)
    lock = OutputLock.acquire(paths)
    try:
        if options.restart:
            _set_aside(paths, stamp, *([] if export is None else [export.out]))
        if export is not None:
            export.refuse_foreign()
        return FileOutput(paths, lock, options, listener, export)
    except BaseException:
        lock.release()
        raise


def open_stdout_output(
    options: RunOptions,
    state_directory: Path | None,
    identity: Mapping[str, Any],
    listener: DiskListener,
    on_stdout_error: Callable[[OSError], None],
    stamp: str,
) -> StdoutOutput:
    """Standard output, with its journal in ``state_directory``, named by what the run is: ``identity``.

    A run of the same words on the same data finds it again; while one runs, another one gets a journal of its own.
    """
    _refuse_stdout_onto_input(options)
    if not options.journal_stdout:
        return StdoutOutput(None, None, options, listener, on_stdout_error)
    for paths in _stdout_paths(_created(state_directory), identity):
        try:
            lock = OutputLock.acquire(paths)
        except OutputRefused:
            continue
        except OptionsError as error:
            raise OptionsError(f"{error}; {_WITHOUT_STATE}") from error
        try:
            if options.restart:
                _set_aside(paths, stamp)
            return StdoutOutput(paths, lock, options, listener, on_stdout_error)
        except BaseException:
            lock.release()
            raise
    raise OutputRefused(f"{MAX_SAME_PIPELINES} runs of this very command are under way")


def look_at_file(options: RunOptions) -> Recovered | None:
    """What ``open_file_output`` would find, or its refusal; nothing is changed and nothing held."""
    export = _export(options)
    paths = _file_paths(options, export)
    OutputLock.check(paths)
    if options.restart:
        return None
    if export is not None:
        export.refuse_foreign()
    return _look(paths)


def look_at_stdout(options: RunOptions, state_directory: Path | None, identity: Mapping[str, Any]) -> Recovered | None:
    """What ``open_stdout_output`` would find, or its refusal; nothing is changed and nothing held."""
    _refuse_stdout_onto_input(options)
    if not options.journal_stdout or options.restart or state_directory is None:
        return None
    for paths in _stdout_paths(state_directory, identity) if state_directory.is_dir() else ():
        try:
            OutputLock.check(paths)
        except OutputRefused:
            continue
        return _look(paths)
    return None


def _look(paths: OutputPaths) -> Recovered | None:
    found = look(paths)
    if found is not None and found.path == paths.partial:
        for spill in find_spills(paths.partial, spill_directories(os.environ)):
            found.notices.append(f"{spill} holds answers saved elsewhere; a run takes them back and sends less")
    return found


def _export(options: RunOptions) -> Export | None:
    return None if options.results_format == "jsonl" else Export.of(options.output_path, options.results_format)


def _file_paths(options: RunOptions, export: Export | None) -> OutputPaths:
    paths = OutputPaths.of(options.output_path) if export is None else export.lines
    for path in (paths.out, paths.partial) if export is None else (export.out, paths.out, paths.partial):
        _refuse_input_as_output(options, path)
        if path.is_dir():
            raise OptionsError(f"--output {path} is a directory; name a file in it")
    return paths


def _stdout_paths(state_directory: Path, identity: Mapping[str, Any]) -> Iterator[OutputPaths]:
    name = blake2b(dump_line(dict(identity)), digest_size=10).hexdigest()
    for number in range(1, MAX_SAME_PIPELINES):
        yield OutputPaths.of(str(state_directory / (name if number == 1 else f"{name}-{number}")))


def _created(directory: Path | None) -> Path:
    if directory is None:
        raise OptionsError(f"no home directory to keep a journal in: set XDG_STATE_HOME; {_WITHOUT_STATE}")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
    except OSError as error:
        raise OptionsError(f"cannot create {directory} for the journal: {error.strerror}; {_WITHOUT_STATE}") from error
    if status.st_uid != os.geteuid() or status.st_mode & stat.S_IWOTH:
        raise OptionsError(
            f"{directory} is not yours alone, so no journal is kept there: chmod 700 it, or set XDG_STATE_HOME; "
            f"{_WITHOUT_STATE}"
        )
    return directory


def _refuse_stdout_onto_input(options: RunOptions) -> None:
    if options.input != STDIO and is_same_file(options.input, STDOUT_FD):
        raise OptionsError(f"standard output is the input file {options.input}; write to another file")


def _refuse_input_as_output(options: RunOptions, path: Path) -> None:
    same = is_same_file(str(path), 0) if options.input == STDIO else _same(path, options.input)
    if same and stat.S_ISREG(path.stat().st_mode):
        raise OptionsError(f"{path} is the input itself; choose another --output")


def _stamps(stamp: str) -> Iterator[str]:
    """The second, and what tells apart those who begin in the same one."""
    yield stamp
    yield from (f"{stamp}-{number}" for number in count(2))


def _same(path: Path, other: str) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False


def _set_aside(paths: OutputPaths, stamp: str, *made: Path) -> None:
    stamp = next(
        one for one in _stamps(stamp) if not any(paths.directory.glob(f"{glob.escape(paths.out.name)}*.bak-{one}"))
    )
    for path in (*made, paths.out, paths.partial):
        if path.exists():
            path.rename(path.with_name(f"{path.name}.bak-{stamp}"))
    set_spills_aside(paths.partial, spill_directories(os.environ), stamp)
    sync_directory(paths.directory)
