"""The short form of the campaign: every case once; and a look that it would find what it looks for."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest

from campaigns.servers import RETRY, SHORT_RUNS, campaign
from llmbatch.calls.received import Received
from llmbatch.calls.wire import Wire
from llmbatch.rules.redact import Redactor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc, and has 127.0.0.2")


def test_every_row_gets_what_is_right_from_bad_servers() -> None:
    report = campaign(runs=SHORT_RUNS, seed=7)
    assert not report.broken, "\n".join(report.broken)
    assert report.runs == SHORT_RUNS


def leave_a_task(self: Wire, response: Any) -> None:
    self._lingering.add(asyncio.get_running_loop().create_task(asyncio.sleep(60)))
    response.close()


@pytest.mark.parametrize(
    ("planted", "case", "complaint"),
    [
        (
            mock.patch.dict("llmbatch.providers.openai_errors._STATUS", {502: ("rejected", True)}),
            "82 502 burst, mid, whole, uvloop",
            "rejected bad_gateway, not ambiguous",
        ),
        (
            mock.patch("campaigns.servers.RETRY", replace(RETRY, ambiguous=2)),
            "14 closes instead of an answer, mid, whole, uvloop",
            "sent 3 times, allowed are 2",
        ),
        (
            mock.patch.object(Received, "told", lambda self, failure: failure),
            "24 content-length too long, cut, mid, whole, uvloop",
            "it keeps b''",
        ),
        (mock.patch.object(Redactor, "text", lambda self, text: text), "83 401, first, whole, uvloop", "key got out"),
        (mock.patch.object(Wire, "_let_go", leave_a_task), "41 lines end in LF, first, whole, asyncio", "task is left"),
    ],
    ids=["wrong class", "one try too many", "lost bytes", "the key", "a task"],
)
def test_it_finds_a_planted_mistake(planted: Any, case: str, complaint: str) -> None:
    with planted:
        report = campaign(runs=1, seed=7, case=case)
    assert report.runs == 1 and complaint in "\n".join(report.broken)
