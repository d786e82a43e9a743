"""The short form of the kills."""

import pytest

from campaigns import kill


@pytest.mark.skipif(kill.why_not() is not None, reason=str(kill.why_not()))
def test_killed_anywhere_nothing_is_lost_and_nothing_done_is_paid_again():
    report = kill.campaign(15, seed=1)
    assert report.broken == []
    assert report.runs == 15
