"""The worked example does what it says, as a user starts it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from llmbatch.hooks.calling import Hooks

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    lines = (ROOT / "samples" / "questions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


async def test_the_sample_retrieves_for_all_rows_at_the_same_time(rows: list[dict[str, Any]]) -> None:
    notices: list[str] = []
    async with Hooks("samples.retrieve:with_facts", None, notice=notices.append) as hooks:
        given = await asyncio.gather(*map(hooks.before, rows))
    asked = dict(zip([row["id"] for row in rows], given, strict=True))
    assert asked["moon"] is None
    assert "Venus turns once" in asked["slow"][0]["content"]
    assert "A day on Mars" in asked["slow"][0]["content"]
    assert "(none found)" in asked["none"][0]["content"]
    assert asked["float"][1] == {"role": "user", "content": "Would Saturn float?"}
    assert notices == []
