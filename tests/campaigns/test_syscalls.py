"""The short form of the syscalls campaign."""

from __future__ import annotations

import pytest

from campaigns.syscalls import campaign, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def test_short_form() -> None:
    report = campaign(8, seed=1, rows=60)
    assert not report.broken, "\n".join(report.broken)
    assert int(report.counted["faults met"]) > 6
