"""The disk is full: what was paid for is saved elsewhere, and the same command takes it back."""

from __future__ import annotations

import resource
from pathlib import Path

from .processes import Llmbatch, StartSim, assert_answers, prompts, read_lines, write_rows

LIMIT_BYTES = 30_000


def files_of_30_kilobytes_at_most() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, resource.RLIM_INFINITY))


def spills(llmbatch: Llmbatch) -> list[Path]:
    return sorted(llmbatch.state.glob("*.spill*"))


def filled_disk(llmbatch: Llmbatch, flags: tuple[str, ...]) -> None:
    done = llmbatch(*flags, preexec_fn=files_of_30_kilobytes_at_most)
    assert done.code == 5, done.err
    assert "File too large" in done.err
    assert len(spills(llmbatch)) == 1, done.err


def test_same_command_takes_back_what_was_saved_elsewhere(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.05")
    write_rows(llmbatch.directory / "in.jsonl", prompts(200))
    flags = ("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "-c", "30")
    filled_disk(llmbatch, flags)
    paid = server.ledger()["billed"]
    before = {path.name: path.read_bytes() for path in llmbatch.directory.iterdir() if path.is_file()}
    rehearsed = llmbatch(*flags, "--dry-run")
    assert "saved elsewhere" in rehearsed.err
    assert {path.name: path.read_bytes() for path in llmbatch.directory.iterdir() if path.is_file()} == before
    done = llmbatch(*flags)
    assert done.code == 0, done.err
    assert f"{paid} rows done before" in done.err
    assert "taken back" in done.err
    assert_answers(read_lines(llmbatch.directory / "in.results.jsonl"), prompts(200))
    assert server.ledger()["billed"] == 200
    assert server.ledger()["billed_twice"] == 0
    assert spills(llmbatch) == []


def test_pipeline_takes_back_what_was_saved_elsewhere(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.05")
    write_rows(llmbatch.directory / "in.jsonl", prompts(200))
    flags = ("run", "in.jsonl", "-o", "-", "--order", "input", "-m", "m", "--base-url", server.base_url, "-c", "30")
    filled_disk(llmbatch, flags)
    done = llmbatch(*flags)
    assert done.code == 0, done.err
    assert_answers(done.lines, prompts(200))
    assert server.ledger()["billed_twice"] == 0
    assert spills(llmbatch) == []


def test_saved_answers_of_another_output_are_left_alone(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.05")
    (llmbatch.directory / "other").mkdir()
    rows = write_rows(llmbatch.directory / "in.jsonl", prompts(200))
    common = ("run", rows, "-m", "m", "--base-url", server.base_url, "-c", "30")
    filled_disk(llmbatch, (*common, "-o", "out.jsonl"))  # type: ignore[arg-type]
    assert llmbatch(*common, "-o", "other/out.jsonl").code == 0
    assert len(spills(llmbatch)) == 1


def test_restart_moves_saved_answers_aside_too(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.05")
    write_rows(llmbatch.directory / "in.jsonl", prompts(200))
    flags = ("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "-c", "30")
    filled_disk(llmbatch, flags)
    paid = server.ledger()["billed"]
    assert llmbatch(*flags, "--restart").code == 0
    assert server.ledger()["billed"] == paid + 200
    (aside,) = spills(llmbatch)
    assert ".spill.bak-" in aside.name
