"""The short form of the soak."""

import pytest

from campaigns import soak


@pytest.mark.skipif(soak.why_not() is not None, reason=str(soak.why_not()))
def test_killed_twice_over_a_provider_that_fails_the_books_agree():
    report = soak.campaign(2_000, seed=1)
    assert report.broken == []
    assert report.counted["kills"] == 2
    assert report.counted["rows that can not be sent"] > 0
