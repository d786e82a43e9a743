"""The short form of the stalls."""

import pytest

from campaigns import stalls


@pytest.mark.skipif(stalls.why_not() is not None, reason=str(stalls.why_not()))
def test_no_answer_is_thrown_away_because_nobody_looked():
    report = stalls.campaign(12, seed=26)
    assert report.broken == []
    assert all(report.counted[f"runs {kind}"] for kind in set(stalls.KINDS))
    assert report.counted["answers sent while nobody could look"] > 0
