"""The short form of the cuts."""

from campaigns import cut


def test_cut_anywhere_no_whole_record_is_lost_and_no_piece_is_believed():
    report = cut.campaign(1_500, seed=1)
    assert report.broken == []
    assert report.runs == 1_500
    assert report.counted["lines"] == cut.LINES
