"""The dry run: what a run would do, and that it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmbatch.errors import InputError, OutputRefused
from llmbatch.estimate import Estimate, estimate
from llmbatch.options import RunOptions
from llmbatch.runner import Run
from llmbatch.views.estimate import render_estimate


def options(folder: Path, rows: list[Any], **settings: Any) -> RunOptions:
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RunOptions(str(path), **{"model": "sim/x", **settings})


async def test_it_counts_and_leaves_no_file(tmp_path: Path) -> None:
    found = await estimate(options(tmp_path, ["abcdefgh"] * 9 + [{"prompt": ""}], rpm=60))
    assert (found.rows, found.to_send, found.bad, found.done) == (10, 9, 1, 0)
    assert found.seconds_at_rpm == 9
    assert found.input_tokens > 0
    assert found.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    assert json.loads(json.dumps(found.to_json()))["to_send"] == 9


@pytest.mark.parametrize(
    ("settings", "at_rpm", "at_tpm", "first_day"),
    [
        ({}, None, None, None),
        ({"rpm": 60.0}, 30, None, None),
        ({"rpm": 60.0, "key_env": ["K1", "K2", "K3"]}, 10, None, None),
        ({"rpm": 60.0, "base_url": ["http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1"]}, 15, None, None),
        ({"tpm": 100.0}, None, 0.6, None),
        ({"tpm": 100.0, "input_tpm": 50.0}, None, 1.2, None),
        ({"output_tpm": 50.0}, None, None, None),
        ({"rpd": 29}, None, None, 29),
        ({"rpd": 30}, None, None, None),
        ({"rpd": 14, "key_env": ["K1", "K2"]}, None, None, 28),
    ],
)
async def test_what_the_limits_of_each_key_allow(
    tmp_path: Path, settings: dict[str, Any], at_rpm: float | None, at_tpm: float | None, first_day: int | None
) -> None:
    server = {"model": "m", "base_url": "http://127.0.0.1:1/v1"}
    found = await estimate(options(tmp_path, ["abcdefgh"] * 30, **{**server, **settings}))
    assert (found.seconds_at_rpm, found.first_day) == (at_rpm, first_day)
    assert found.seconds_at_tpm == (None if at_tpm is None else pytest.approx(at_tpm * found.input_tokens))
    assert len(render_estimate(found).splitlines()) == 7 + sum(
        value is not None for value in (at_rpm, at_tpm, first_day)
    )


async def test_it_needs_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    found = await estimate(options(tmp_path, ["a"], model="openai/gpt-4.1-mini"))
    assert (found.model, found.exit_code) == ("gpt-4.1-mini", 0)


async def test_after_a_run_it_says_what_is_left_and_changes_nothing(tmp_path: Path) -> None:
    await Run(options(tmp_path, ["a", "b"])).execute()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "in.jsonl"}
    found = await estimate(options(tmp_path, ["a", "B", "c"]))
    assert (found.done, found.changed, found.to_send, found.exit_code) == (1, 1, 1, 2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "in.jsonl"} == before


async def test_it_refuses_what_the_run_would_refuse(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        await estimate(RunOptions(str(tmp_path / "no.jsonl"), model="sim/x"))
    (tmp_path / "in.results.jsonl").write_text("somebody's\n")
    with pytest.raises(OutputRefused, match="not a results file"):
        await estimate(options(tmp_path, ["a"]))


async def test_restart_is_only_rehearsed(tmp_path: Path) -> None:
    await Run(options(tmp_path, ["a"])).execute()
    before = sorted(path.name for path in tmp_path.iterdir())
    found = await estimate(options(tmp_path, ["a"], restart=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert found.to_send == 1


@pytest.mark.parametrize(("changed", "bad", "code"), [(0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 2)])
def test_exit_code_is_that_of_the_run(changed: int, bad: int, code: int) -> None:
    assert Estimate(3, 3, 0, 0, changed, bad, 1, None, "m", "e", "o").exit_code == code
