"""The short form of the states campaign, always the same stories, and the stories that once ended badly."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from campaigns.states import Fate, States, campaign


def test_short_form() -> None:
    report = campaign(25, seed=1, steps=20)
    assert not report.broken, report.broken[0]
    assert int(report.counted["deaths"]) > 10


@pytest.fixture
def story() -> Iterator[States]:
    states = States()
    yield states
    states.every_standing_answer_is_on_disk()
    states.files_of_others_are_as_they_were()
    states.teardown()


def test_answers_of_removed_rows_do_not_open_a_complete_output_again(story: States) -> None:
    story.append_row(True, 1)
    story.append_row(True, 1)
    story.run_to_the_end("keep")
    story.remove_row(0)
    story.run_to_the_end("keep")
    before = story.out.stat()
    story.run_to_the_end("keep")
    assert story.out.stat() == before


def test_lock_that_was_being_signed_when_its_holder_was_killed_holds_nobody_up(story: States) -> None:
    story.append_row(True, 1)
    story.run_and_be_killed(Fate(die_at=2, died_within=0.5), None, 1)  # 1 empties the lock, 2 signs it
    assert 0 < (story.work / "out.jsonl.lock").stat().st_size < 60
    story.run_to_the_end("keep")
    assert story.out.exists()
