"""What may change between two runs, case by case: what continues, what is refused by name, what is sent again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmbatch.cli.app import app
from llmbatch.errors import ChangedRows, OptionsError, OutputRefused
from llmbatch.events import Event, Notice, RowEnded
from llmbatch.options import RetryLimits, RunOptions, Timeouts
from llmbatch.runner import Run
from llmbatch.stopping import Stop, StopReason
from llmbatch.summary import Summary

from .processes import Sim, prompts, read_lines, write_rows


@dataclass
class Ran:
    """One run in this process: its summary, what it said, and the numbers of the rows that were sent."""

    summary: Summary
    said: list[str]
    sent: list[int]


class Folder:
    """An input, its output, and runs of it; with ``stop_after`` rows the run is interrupted."""

    def __init__(self, directory: Path) -> None:
        self.input = directory / "in.jsonl"
        self.out = directory / "in.results.jsonl"
        self.journal = directory / "in.results.jsonl.partial"

    async def run(self, rows: list[Any] | None = None, *, stop_after: int = 0, **settings: Any) -> Ran:
        if rows is not None:
            write_rows(self.input, rows)
        stop, said, sent = Stop(), [], []

        def listen(event: Event) -> None:
            if isinstance(event, Notice):
                said.append(event.text)
            elif isinstance(event, RowEnded):
                sent.append(event.result.row)
                if len(sent) == stop_after:
                    stop.request(StopReason("enough", 130))

        if stop_after:
            settings["concurrency"] = 1
        options = RunOptions(str(self.input), **{"model": "sim/x", **settings})
        summary = await Run(options, listen=listen, stop=stop).execute()
        return Ran(summary, said, sorted(sent))

    def lines(self) -> list[dict[str, Any]]:
        return read_lines(self.out)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return Folder(tmp_path)


ROWS: list[Any] = [{"id": f"r{n}", "prompt": f"prompt {n}", "style": "short"} for n in range(1, 7)]


async def test_nothing_changed(folder: Folder) -> None:
    assert (await folder.run(ROWS, stop_after=3)).summary.exit_code == 130
    done = len(read_lines(folder.journal))
    again = await folder.run()
    assert f"{done} rows done before, not sent again" in again.said
    assert (len(again.sent), again.summary.exit_code) == (6 - done, 0)
    last = await folder.run()
    assert (last.sent, last.said[-1]) == ([], "every row was done before: nothing was sent")


async def test_rows_appended(folder: Folder) -> None:
    await folder.run(ROWS[:4])
    assert (await folder.run(ROWS)).sent == [5, 6]


async def test_rows_reordered_with_ids(folder: Folder) -> None:
    await folder.run(ROWS)
    before = {line["id"]: line["request_id"] for line in folder.lines()}
    again = await folder.run([*ROWS[3:], *ROWS[:3]])
    assert (again.sent, again.summary.exit_code) == ([], 0)
    assert [line["id"] for line in folder.lines()] == ["r4", "r5", "r6", "r1", "r2", "r3"]
    assert {line["id"]: line["request_id"] for line in folder.lines()} == before


async def test_rows_reordered_without_ids(folder: Folder) -> None:
    await folder.run(list(prompts(5)))
    with pytest.raises(ChangedRows, match=r"3 finished rows changed.*input has no ids and changed; rows 3\.\. differ"):
        await folder.run(["prompt 1", "prompt 2", "prompt 5", "prompt 3", "prompt 4"])


async def test_rows_removed(folder: Folder) -> None:
    await folder.run(ROWS)
    again = await folder.run(ROWS[:4])
    assert (again.sent, again.summary.exit_code) == ([], 0)
    assert [line["row"] for line in folder.lines()] == [1, 2, 3, 4, 5, 6]


async def test_text_of_a_row_edited(folder: Folder) -> None:
    await folder.run(ROWS)
    edited = [ROWS[0], {**ROWS[1], "prompt": "another"}, *ROWS[2:]]
    with pytest.raises(ChangedRows, match=r"1 finished row changed.*--on-change rerun.*--on-change keep"):
        await folder.run(edited)
    assert (await folder.run(edited, on_change="keep")).sent == []
    assert (await folder.run(edited, on_change="rerun")).sent == [2]


async def test_field_that_the_request_does_not_use_edited(folder: Folder) -> None:
    await folder.run(ROWS, template="Say {{ prompt }}")
    again = await folder.run([{**row, "style": "long"} for row in ROWS], template="Say {{ prompt }}")
    assert again.sent == []


CHANGED: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model": "sim/y"}, "model: x -> y"),
    "temperature": ({"params": {"max_tokens": 50, "temperature": 0.5}}, "temperature: not set -> 0.5"),
    "max_tokens": ({"params": {"max_tokens": 60}}, "max_tokens: 50 -> 60"),
    "template": ({"template": "Tell {{ prompt }}"}, "template changed"),
    "system": ({"system": "Be brief"}, "system prompt changed"),
    "endpoint": (
        {"model": "x", "base_url": "http://127.0.0.1:9/v1"},
        r"endpoint: \S+ -> http://127.0.0.1:9/v1/chat/completions",
    ),
    "generation": ({"generation": 1}, "generation: 0 -> 1"),
}


@pytest.mark.parametrize("what", CHANGED)
async def test_setting_of_the_request_changed(folder: Folder, what: str) -> None:
    before: dict[str, Any] = {"template": "Say {{ prompt }}", "params": {"max_tokens": 50}}
    settings, words = CHANGED[what]
    await folder.run(ROWS, stop_after=2, **before)
    journal = folder.journal.read_bytes()
    done = len(read_lines(folder.journal))
    with pytest.raises(ChangedRows, match=rf"^{done} finished rows changed.*{words}"):
        await folder.run(**{**before, **settings})
    assert folder.journal.read_bytes() == journal
    assert len((await folder.run(**before)).sent) == 6 - done


async def test_template_changed_that_renders_the_same(folder: Folder) -> None:
    await folder.run(ROWS, template="Say {{ prompt }}")
    again = await folder.run(template="{# a comment #}Say {{ prompt | trim }}")
    assert (again.sent, again.summary.exit_code) == ([], 0)


async def test_settings_beside_the_request_changed(folder: Folder) -> None:
    await folder.run(ROWS)
    again = await folder.run(
        concurrency=3, rpm=6000.0, timeouts=Timeouts(total_s=9), retry=RetryLimits(attempts=2), row_deadline_s=60
    )
    assert (again.sent, again.summary.exit_code) == ([], 0)


async def test_key_changed(folder: Folder, plain_sim: Sim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRST_KEY", "sk-first-0123456789")
    monkeypatch.setenv("SECOND_KEY", "sk-second-9876543210")
    server = {"model": "m", "base_url": plain_sim.base_url}
    assert (await folder.run(ROWS, key_env="FIRST_KEY", **server)).sent == [1, 2, 3, 4, 5, 6]
    assert (await folder.run(key_env="SECOND_KEY", **server)).sent == []


async def test_failed_rows(folder: Folder) -> None:
    await folder.run([*ROWS[:2], {"id": "r3", "prompt": ""}, *ROWS[3:]])
    assert [line["status"] for line in folder.lines()].count("error") == 1
    again = await folder.run(ROWS)
    assert (again.sent, again.summary.exit_code) == ([3], 0)


async def test_line_of_the_output_removed_by_hand(folder: Folder) -> None:
    await folder.run(ROWS)
    lines = folder.out.read_bytes().splitlines(keepends=True)
    folder.out.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    again = await folder.run()
    assert "5 rows done before, not sent again" in again.said
    assert again.sent == [3]
    assert folder.out.read_bytes().splitlines(keepends=True)[:2] == lines[:2]
    assert [line["row"] for line in folder.lines()] == [1, 2, 3, 4, 5, 6]


async def test_answer_in_the_output_mended_by_hand(folder: Folder) -> None:
    """The mended line stands, the user is told, and nobody pays again."""
    await folder.run(ROWS)
    mended = folder.out.read_bytes().replace(b"prompt 4", b"PROMPT 4")
    folder.out.write_bytes(mended)
    again = await folder.run()
    assert again.sent == []
    assert folder.out.read_bytes() == mended
    assert again.said[0].startswith("line 4 was changed since it was written; it stands as it is: llmbatch verify ")


@pytest.mark.parametrize("name", ["out", "journal"])
async def test_output_of_another_program(folder: Folder, name: str) -> None:
    path: Path = getattr(folder, name)
    path.write_text('{"prompt": "not ours"}\n')
    with pytest.raises(OutputRefused, match="not a results file of llmbatch"):
        await folder.run(ROWS)
    assert path.read_text() == '{"prompt": "not ours"}\n'


async def test_output_of_a_newer_format(folder: Folder) -> None:
    folder.journal.write_text('{"llmbatch":2,"version":"9.0"}\n{"new":"shape"}\n')
    with pytest.raises(OutputRefused, match=r"written by a newer llmbatch \(9\.0\); upgrade"):
        await folder.run(ROWS)


async def test_output_of_an_older_version_without_checksums(folder: Folder) -> None:
    await folder.run(ROWS, stop_after=3)
    lines = [json.loads(line) for line in folder.journal.read_bytes().splitlines()]
    for line in lines:
        assert line.pop("crc")
    write_rows(folder.journal, lines)
    again = await folder.run()
    assert len(again.sent) == 6 - (len(lines) - 1)
    assert not [text for text in again.said if "changed" in text]


# Another sample


async def test_another_generation_asks_every_row_anew_when_told_to(folder: Folder) -> None:
    await folder.run(ROWS)
    keys = [line["key"] for line in folder.lines()]
    with pytest.raises(ChangedRows, match="6 finished rows changed"):
        await folder.run(generation=2)
    assert (await folder.run(generation=2, on_change="rerun")).sent == [1, 2, 3, 4, 5, 6]
    assert not set(keys) & {line["key"] for line in folder.lines()}
    assert (await folder.run(generation=2)).sent == []
    with pytest.raises(ChangedRows):
        await folder.run()


def test_generations_count_from_0(folder: Folder) -> None:
    write_rows(folder.input, ROWS)
    done = CliRunner().invoke(app, ["run", str(folder.input), "-m", "sim/x", "--generation", "-1"])
    assert done.exit_code == 2
    assert "--generation counts from 0, not -1" in done.output
    with pytest.raises(OptionsError):
        RunOptions("in.jsonl", generation=-3)


NOTHING: dict[str, Any] = {"nothing": ""}  # a row that can not be sent


async def test_row_that_can_not_be_sent_takes_no_answer_of_a_row_without_an_id(folder: Folder) -> None:
    await folder.run(["one", "two"])
    before = folder.lines()
    ran = await folder.run([{"id": "a", **NOTHING}, "two"], on_change="keep")
    assert ran.summary.exit_code == 1
    refused, kept, gone = folder.lines()
    assert (refused["id"], refused["status"]) == ("a", "error")
    assert (kept, gone) == (before[1], before[0])


async def test_row_that_can_not_be_sent_is_not_taken_for_another_one_with_its_number(folder: Folder) -> None:
    await folder.run([{"id": "a", **NOTHING}, {"id": "b", **NOTHING}, "three"])
    await folder.run([{"id": "b", **NOTHING}, "three"], on_change="rerun")
    assert [line["id"] for line in folder.lines()[:2]] == ["b", None]


async def test_rows_that_come_back_get_their_place_back(folder: Folder) -> None:
    rows = [{"id": name, "prompt": name} for name in "ab"]
    await folder.run([*rows, "three", "four"])
    await folder.run(rows)
    await folder.run([*rows, {"id": "c", "prompt": "c"}])
    await folder.run([*rows, {"id": "c", "prompt": "c"}, "four"])
    assert [line["row"] for line in folder.lines()[:4]] == [1, 2, 3, 4]
    assert [line["id"] for line in folder.lines()[:4]] == ["a", "b", "c", None]


async def test_two_restarts_in_one_second_keep_both(folder: Folder) -> None:
    for _ in range(3):
        await folder.run(["one"], restart=True)
    assert len(list(folder.out.parent.glob("in.results.jsonl.bak-*"))) == 2
