"""The short form of the canary, and a look that the search finds a key however it is written."""

from __future__ import annotations

import json
import random
import sys

import pytest

from campaigns import canary

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc, and has 127.0.0.2")


def test_the_key_is_nowhere_after_everything() -> None:
    report = canary.campaign(canary.SHORT_RUNS, seed=1)
    assert report.broken == []
    assert report.runs == canary.SHORT_RUNS


@pytest.mark.parametrize("shape", ["long", "short", "dirty", "padded", "plain"])
@pytest.mark.parametrize("spelling", canary.SPELLINGS)
def test_the_search_finds_every_spelling_whole_and_cut(shape: str, spelling: str) -> None:
    key = canary.make_key(shape, random.Random(3))
    hunt = canary.Hunt(key)
    told = canary.SPELLINGS[spelling](key)
    assert hunt.seen(json.dumps({"body": f"no [key] {json.dumps(told)}"}).encode())
    assert hunt.seen(told[: len(told) * 9 // 10].encode())
    assert hunt.seen(f"\0{told}".encode("utf-16-le"))
    assert hunt.seen(b"Bearer [key] of a length that is no key's own, and sk-proj-, gsk_ and sk- too") is None


def test_a_leak_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "cases", lambda: [canary.Case("a leak", "short", "variable", leak)])
    report = canary.campaign(1, seed=1)
    assert "the key is in work/left.txt" in report.broken[0]


def leak(stage: canary.Stage) -> None:
    (stage.work / "left.txt").write_text(f"a {stage.key[:12]} b")
