"""`--summary-json`: never over the data, never stale, never half."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .processes import Llmbatch, StartSim, prompts, read_lines, until, write_rows


@pytest.fixture
def rows(llmbatch: Llmbatch) -> Path:
    return write_rows(llmbatch.directory / "in.jsonl", prompts(3))


def summary(llmbatch: Llmbatch) -> dict[str, object]:
    found = json.loads((llmbatch.directory / "sum.json").read_text())
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    "flags",
    [
        ["--summary-json", "in.jsonl"],
        ["--summary-json", "./in.results.jsonl"],
        ["--summary-json", "in.results.jsonl.partial"],
        ["--summary-json", "-", "-o", "-"],
        ["--summary-json", "/dev/stdout", "-o", "-"],
        ["--summary-json", "."],
        ["--summary-json", "no/such/directory.json"],
    ],
    ids=["input", "output", "journal", "stdout", "stdout_by_name", "directory", "missing_directory"],
)
def test_bad_place_is_refused_before_anything_is_sent(
    llmbatch: Llmbatch, rows: Path, sim: StartSim, flags: list[str]
) -> None:
    server, before = sim(), rows.read_bytes()
    done = llmbatch("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, *flags)
    assert done.code == 2, done.err
    assert "--summary-json" in done.err
    assert done.out == b""
    assert server.ledger()["received"] == 0
    assert rows.read_bytes() == before
    assert [path.name for path in llmbatch.directory.rglob("*") if path.is_file()] == ["in.jsonl"]


@pytest.mark.parametrize(
    "flags", [["-m", "sim/x", "-c", "0"], ["-m", "openai/gpt-4.1-mini"], []], ids=["flag", "key", "model"]
)
def test_refused_run_leaves_no_stale_summary(llmbatch: Llmbatch, rows: Path, flags: list[str]) -> None:
    (llmbatch.directory / "sum.json").write_text('{"exit_code": 0, "ok": 3}\n')
    done = llmbatch("run", "in.jsonl", *flags, "--summary-json", "sum.json")
    assert done.code == 2
    found = summary(llmbatch)
    assert found.keys() == {"exit_code", "error"}
    assert found["exit_code"] == 2
    assert str(found["error"]) in done.err


def test_refusing_the_place_does_not_write_there_either(llmbatch: Llmbatch, rows: Path) -> None:
    before = rows.read_bytes()
    assert llmbatch("run", "in.jsonl", "-m", "sim/x", "-c", "0", "--summary-json", "in.jsonl").code == 2
    assert rows.read_bytes() == before


def test_summary_that_can_not_be_written_hides_nothing(llmbatch: Llmbatch, rows: Path, sim: StartSim) -> None:
    server, place = sim("--latency", "0.5"), llmbatch.directory / "place"
    place.mkdir()
    flags = ("-m", "m", "--base-url", server.base_url, "--summary-json", "place/sum.json")
    running = llmbatch.start("run", "in.jsonl", *flags)
    until(lambda: server.ledger()["received"] == 3, "3 requests")
    place.rmdir()
    done = running.end()
    assert done.code == 5
    assert "3 rows = 3 ok" in done.err
    assert "--summary-json place/sum.json" in done.err
    assert len(read_lines(llmbatch.directory / "in.results.jsonl")) == 3


def test_a_new_summary_is_for_its_owner_alone_and_an_old_one_keeps_its_mode(llmbatch: Llmbatch, rows: Path) -> None:
    new, old = llmbatch.directory / "new.json", llmbatch.directory / "old.json"
    old.touch()
    old.chmod(0o644)
    for path in (new, old):
        assert llmbatch("run", "in.jsonl", "-m", "sim/x", "-o", "-", "--summary-json", path, umask=0).code == 0
    assert [path.stat().st_mode & 0o7777 for path in (new, old)] == [0o600, 0o644]


def test_a_link_planted_beside_the_summary_is_not_written_through(llmbatch: Llmbatch, rows: Path) -> None:
    victim = llmbatch.directory / "victim"
    victim.write_text("mine")
    running = llmbatch.start("run", "-", "-m", "sim/x", "-o", "-", "--summary-json", "sum.json")
    (llmbatch.directory / f".sum.json.{running.process.pid}").symlink_to(victim)
    assert running.end(rows.read_bytes()).code == 0
    assert victim.read_text() == "mine"
    assert summary(llmbatch)["ok"] == 3


def test_summary_is_replaced_as_a_whole_through_a_link(llmbatch: Llmbatch, rows: Path) -> None:
    (llmbatch.directory / "real.json").write_text("old")
    (llmbatch.directory / "sum.json").symlink_to("real.json")
    inode = (llmbatch.directory / "real.json").stat().st_ino
    assert llmbatch("run", "in.jsonl", "-m", "sim/x", "--summary-json", "sum.json").code == 0
    assert (llmbatch.directory / "sum.json").is_symlink()
    assert (llmbatch.directory / "real.json").stat().st_ino != inode
    assert summary(llmbatch)["ok"] == 3
    assert sorted(path.name for path in llmbatch.directory.iterdir() if path.is_file()) == [
        "in.jsonl",
        "in.results.jsonl",
        "real.json",
        "sum.json",
    ]
