"""Where results can not go: devices, pipes, other people's lock files, names that promise another format."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from .processes import Llmbatch, prompts, read_lines, write_rows


@pytest.fixture
def rows(llmbatch: Llmbatch) -> Path:
    return write_rows(llmbatch.directory / "in.jsonl", prompts(3))


def files(llmbatch: Llmbatch) -> list[str]:
    return sorted(path.name for path in llmbatch.directory.rglob("*") if not path.is_dir())


def test_pipe_as_output_is_refused_and_left_alone(llmbatch: Llmbatch, rows: Path) -> None:
    os.mkfifo(llmbatch.directory / "fifo")
    done = llmbatch("run", "in.jsonl", "-m", "sim/x", "-o", "fifo", within_s=10)
    assert done.code == 2, done.err
    assert "-o -" in done.err
    assert files(llmbatch) == ["fifo", "in.jsonl"]
    assert stat.S_ISFIFO((llmbatch.directory / "fifo").stat().st_mode)


# No real device is named here: a run that takes it for a file would rename it, and as root it may.
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("target", ["| cat", "> there.jsonl"])
def test_standard_output_by_another_name_is_refused_with_its_own_name(
    llmbatch: Llmbatch, rows: Path, name: str, target: str
) -> None:
    done = llmbatch.shell(f"{{ llmbatch run in.jsonl -m sim/x -o {name}; echo code $? >&2; }} {target}")
    assert "code 2" in done.err
    assert "-o -" in done.err
    assert done.out == b""


def test_lock_file_of_something_else_is_refused_and_left_as_it_is(llmbatch: Llmbatch, rows: Path) -> None:
    lock = llmbatch.directory / "poetry.lock"
    lock.write_text("[[package]]\n")
    done = llmbatch("run", "in.jsonl", "-m", "sim/x", "-o", "poetry")
    assert done.code == 6, done.err
    assert "poetry.lock" in done.err
    assert lock.read_text() == "[[package]]\n"
    assert files(llmbatch) == ["in.jsonl", "poetry.lock"]


@pytest.mark.parametrize("name", ["out.TSV", "out.jsonl.gz", "out.jsonl.zst"])
def test_name_of_another_format_is_refused(llmbatch: Llmbatch, rows: Path, name: str) -> None:
    done = llmbatch("run", "in.jsonl", "-m", "sim/x", "-o", name)
    assert done.code == 2, done.err
    assert "JSONL" in done.err
    assert files(llmbatch) == ["in.jsonl"]


@pytest.mark.parametrize("given", ["<(cat in.jsonl)", "/dev/stdin < in.jsonl", "/dev/fd/0 < in.jsonl", "fifo"])
def test_input_without_a_name_of_its_own_needs_a_named_output(llmbatch: Llmbatch, rows: Path, given: str) -> None:
    os.mkfifo(llmbatch.directory / "fifo")
    done = llmbatch.shell(f"llmbatch run -m sim/x {given}; echo code $?")
    assert b"code 2" in done.out, done.err
    assert "-o FILE" in done.err
    assert files(llmbatch) == ["fifo", "in.jsonl"]


def test_process_substitution_with_a_named_output_is_run(llmbatch: Llmbatch, rows: Path) -> None:
    assert llmbatch.shell("llmbatch run -m sim/x <(cat in.jsonl) -o out.jsonl").code == 0
    assert len(read_lines(llmbatch.directory / "out.jsonl")) == 3


def test_unwritable_state_directory_is_named_with_the_ways_around_it(llmbatch: Llmbatch, rows: Path) -> None:
    (llmbatch.directory / "file").write_text("no directory\n")
    environment = {"XDG_STATE_HOME": str(llmbatch.directory / "file")}
    done = llmbatch("run", "in.jsonl", "-m", "sim/x", "-o", "-", env=environment)
    assert done.code == 2, done.err
    assert str(llmbatch.directory / "file" / "llmbatch") in done.err
    assert "--no-journal" in done.err
    assert "-o FILE" in done.err
    assert llmbatch("run", "in.jsonl", "-m", "sim/x", "-o", "-", "--no-journal", env=environment).code == 0


def test_deleted_working_directory_is_no_bug(llmbatch: Llmbatch, rows: Path) -> None:
    where = f"mkdir gone; cd gone; rmdir ../gone; export PYTHONPATH={Path(__file__).parents[2]}"
    relative = llmbatch.shell(f"{where}; llmbatch run ../in.jsonl -m sim/x -o out.jsonl")
    assert relative.code == 2, relative.err
    absolute = llmbatch.shell(f"{where}; llmbatch run {rows} -m sim/x -o {llmbatch.directory}/out.jsonl")
    assert absolute.code == 0, absolute.err
    piped = llmbatch.shell(f"{where}; llmbatch run - -m sim/x < {rows}")
    assert piped.code == 0, piped.err
    assert "Traceback" not in relative.err + absolute.err + piped.err
