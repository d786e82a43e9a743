"""CSV in, CSV and OpenAI Batch output out: complete or not there, continued, made again, never over somebody's work."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from llmbatch.sim.answers import expected_answer

from .processes import Llmbatch, Sim, read_lines

ROWS = 'id;text\na;"one\ntwo"\nb;=2+2\nc;three\n'


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def files(llmbatch: Llmbatch) -> list[str]:
    return sorted(path.name for path in llmbatch.directory.iterdir() if path.is_file())


@pytest.fixture
def table(llmbatch: Llmbatch) -> Path:
    path = llmbatch.directory / "in.csv"
    path.write_text(ROWS)
    return path


def test_csv_in_csv_out_made_again_without_sending(llmbatch: Llmbatch, plain_sim: Sim, table: Path) -> None:
    command = ["run", "in.csv", "-t", "{{ text }}", "-m", "m", "--base-url", plain_sim.base_url, "-o", "out.csv"]
    done = llmbatch(*command)
    assert done.code == 0, done.err
    assert "read as CSV, with semicolons" in done.err
    rows = read_csv(llmbatch.directory / "out.csv")
    assert [(row["text"], row["output"]) for row in rows] == [
        ("one\ntwo", expected_answer("one\ntwo")),
        ("'=2+2", expected_answer("=2+2")),
        ("three", expected_answer("three")),
    ]
    assert [row["llmbatch_id"] for row in rows] == ["a", "b", "c"]
    before = (llmbatch.directory / "out.csv").read_bytes()
    assert set(files(llmbatch)) >= {"in.csv", "out.csv", "out.csv.jsonl"}
    (llmbatch.directory / "out.csv").unlink()
    again = llmbatch(*command)
    assert again.code == 0
    assert "made again" in again.err and "nothing was sent" in again.err
    assert (llmbatch.directory / "out.csv").read_bytes() == before


def test_finished_csv_with_failed_rows_runs_just_those(llmbatch: Llmbatch, plain_sim: Sim, table: Path) -> None:
    command = ["run", "in.csv", "-t", "{{ text }}", "-m", "m", "--base-url", plain_sim.base_url, "-o", "out.csv"]
    table.write_text(ROWS.replace("c;three", "c"))
    assert llmbatch(*command).code == 1
    assert [row["status"] for row in read_csv(llmbatch.directory / "out.csv")] == ["ok", "ok", "error"]
    table.write_text(ROWS)
    done = llmbatch(*command)
    assert done.code == 0, done.err
    rows = read_csv(llmbatch.directory / "out.csv")
    assert [row["status"] for row in rows] == ["ok"] * 3
    assert rows[2]["output"] == expected_answer("three")
    assert [row["attempts"] for row in rows] == ["1"] * 3


def test_csv_that_was_edited_is_not_written_over(llmbatch: Llmbatch, plain_sim: Sim, table: Path) -> None:
    command = ["run", "in.csv", "-t", "{{ text }}", "-m", "m", "--base-url", plain_sim.base_url, "-o", "out.csv"]
    assert llmbatch(*command).code == 0
    (llmbatch.directory / "out.csv").write_text("my labels\n")
    assert llmbatch(*command).code == 0
    with table.open("a") as file:
        file.write("d;four\n")
    done = llmbatch(*command)
    assert done.code == 6, done.err
    assert "was changed since it was made" in done.err
    assert (llmbatch.directory / "out.csv").read_text() == "my labels\n"
    assert llmbatch(*command, "--restart").code == 0
    assert len(read_csv(llmbatch.directory / "out.csv")) == 4
    kept = list(llmbatch.directory.glob("out.csv.bak-*"))
    assert [path.read_text() for path in kept] == ["my labels\n"]


def test_csv_of_somebody_else_and_the_input_itself_are_refused(llmbatch: Llmbatch, table: Path) -> None:
    (llmbatch.directory / "out.csv").write_text("mine\n")
    done = llmbatch("run", "in.csv", "-t", "{{ text }}", "-m", "sim/x", "-o", "out.csv")
    assert done.code == 6, done.err
    assert (llmbatch.directory / "out.csv").read_text() == "mine\n"
    done = llmbatch("run", "in.csv", "-t", "{{ text }}", "-m", "sim/x", "-o", "in.csv")
    assert done.code == 2 and "is the input itself" in done.err
    assert table.read_text() == ROWS


@pytest.mark.parametrize("output", [[], ["-o", "-"]])
def test_openai_batch_output(llmbatch: Llmbatch, plain_sim: Sim, table: Path, output: list[str]) -> None:
    done = llmbatch(
        "run", "in.csv", "-t", "{{ text }}", "-m", "m", "--base-url", plain_sim.base_url, "--format", "openai-batch",
        *output,
    )  # fmt: skip
    assert done.code == 0, done.err
    lines = done.lines if output else read_lines(llmbatch.directory / "in.batch.jsonl")
    answers = {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines}
    assert answers == {"a": expected_answer("one\ntwo"), "b": expected_answer("=2+2"), "c": expected_answer("three")}


def test_verify_of_a_csv_names_the_lines(llmbatch: Llmbatch, plain_sim: Sim, table: Path) -> None:
    assert llmbatch("run", "in.csv", "-t", "{{ text }}", "-m", "sim/x", "-o", "out.csv").code == 0
    done = llmbatch("verify", "out.csv")
    assert done.code == 2 and "out.csv.jsonl" in done.err
    assert llmbatch("verify", "out.csv.jsonl", "--input", "in.csv").code == 0


def test_table_on_standard_output_is_refused(llmbatch: Llmbatch, table: Path) -> None:
    done = llmbatch("run", "in.csv", "-m", "sim/x", "-o", "-", "--format", "csv")
    assert done.code == 2 and "-o FILE" in done.err
