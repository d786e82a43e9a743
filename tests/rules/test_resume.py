"""What is done again, what is not, and what is refused."""

import pytest

from llmbatch.rules.resume import Decision, ResumePlan, Settled, Verdict, decide, manifest_differences, settle


def line(row=1, status="ok", key="fp1:a", **more):
    return {"id": "x", "row": row, "status": status, "key": key, **more}


@pytest.mark.parametrize(
    ("recorded", "row", "key", "on_change", "verdict", "reappend"),
    [
        (None, 1, "fp1:a", "refuse", Verdict.DO, False),
        (line(), 1, "fp1:a", "refuse", Verdict.SKIP_OK, False),
        (line(status="error"), 1, "fp1:a", "refuse", Verdict.RERUN_FAILED, False),
        # a failed row may be edited freely: nothing was paid that could be lost
        (line(status="error"), 1, "fp1:b", "refuse", Verdict.RERUN_FAILED, False),
        (line(status="error"), 2, "fp1:b", "keep", Verdict.RERUN_FAILED, False),
        (line(), 1, "fp1:b", "refuse", Verdict.CHANGED_REFUSE, False),
        (line(), 1, "fp1:b", "rerun", Verdict.CHANGED_RERUN, False),
        (line(), 1, "fp1:b", "keep", Verdict.CHANGED_KEEP, False),
        (line(), 2, "fp1:a", "refuse", Verdict.MOVED, True),
        # moved and changed: only an old answer that is kept needs its new number
        (line(), 2, "fp1:b", "refuse", Verdict.CHANGED_REFUSE, False),
        (line(), 2, "fp1:b", "rerun", Verdict.CHANGED_RERUN, False),
        (line(), 2, "fp1:b", "keep", Verdict.CHANGED_KEEP, True),
        # the row was good and now does not render
        (line(), 1, None, "refuse", Verdict.CHANGED_REFUSE, False),
    ],
)
def test_decision(recorded, row, key, on_change, verdict, reappend):
    decision = decide(recorded, row=row, key=key, on_change=on_change)
    assert (decision.verdict, decision.reappend) == (verdict, reappend)
    assert decision.reason


def test_row_whose_number_another_line_took_is_appended_again():
    assert decide(line(), row=1, key="fp1:a", on_change="refuse", holds_number=False).verdict is Verdict.MOVED


@pytest.mark.parametrize(
    ("earlier", "later", "expected"),
    [
        (line(request_id="1"), line(request_id="2"), Settled(False, paid_twice=True)),
        (line(), line(), Settled(True)),
        (line(row=1), line(row=2), Settled(True)),
        (line(row=1, crc="0"), line(row=2, crc="1"), Settled(True)),
        (line(row=1), line(row=2, crc="1"), Settled(True)),
        (line(row=1, request_id="1"), line(row=2, request_id="2"), Settled(False, paid_twice=True)),
        (line(status="error"), line(), Settled(True)),
        (line(status="error"), line(status="error"), Settled(True)),
        (line(), line(status="error"), Settled(False)),
        (line(), line(key="fp1:b"), Settled(True)),
        (line(), line(key="fp1:b", status="error"), Settled(True)),
        (line(key=None, status="error"), line(), Settled(True)),
    ],
    ids=[
        "twice",
        "copy",
        "moved",
        "moved-checksum",
        "moved-first-checksum",
        "twice-moved",
        "healed",
        "again",
        "late-error",
        "changed",
        "changed-error",
        "mended",
    ],
)
def test_which_line_stands(earlier, later, expected):
    assert settle(earlier, later) == expected


def plan_of(*rows):
    plan = ResumePlan()
    for row, verdict, has_id in rows:
        plan.count(Decision(verdict, "why"), row=row, has_id=has_id)
    return plan


def test_plan_adds_up_and_says_so():
    plan = plan_of(
        (1, Verdict.SKIP_OK, True),
        (2, Verdict.SKIP_OK, True),
        (3, Verdict.MOVED, True),
        (4, Verdict.RERUN_FAILED, True),
        (5, Verdict.DO, True),
        (6, Verdict.CHANGED_RERUN, True),
        (7, Verdict.CHANGED_KEEP, True),
    )
    assert (plan.done, plan.failed_again, plan.new, plan.changed, plan.to_send) == (4, 1, 1, 2, 3)
    assert plan.no_longer_in_input(recorded=8) == 2
    assert plan.sentences(recorded=8) == [
        "4 rows done before, not sent again",
        "1 row failed before, sent again",
        "1 row moved to another row number, not sent again",
        "1 row changed, sent again",
        "1 row changed, old answers kept",
        "2 rows no longer in the input, results kept",
    ]
    assert ResumePlan().sentences(recorded=0) == []


def test_refusal_of_rows_without_ids_names_the_first_that_differs():
    plan = plan_of((2, Verdict.SKIP_OK, False), (4, Verdict.CHANGED_REFUSE, False), (3, Verdict.CHANGED_REFUSE, False))
    assert plan.refusal() == (
        "2 finished rows changed; input has no ids and changed; rows 3.. differ; "
        "--on-change rerun sends them again, --on-change keep keeps the old answers"
    )


def test_refusal_names_the_difference_and_the_price():
    plan = plan_of(*[(row, Verdict.CHANGED_REFUSE, True) for row in range(1, 1204)])
    assert plan.refusal(["model: a -> b"], cost_usd=14.2) == (
        "1,203 finished rows changed (about $14.20 to run again); model: a -> b; "
        "--on-change rerun sends them again, --on-change keep keeps the old answers"
    )


MANIFEST = {
    "llmbatch": 1,
    "version": "0.1",
    "started": "2025-01-01",
    "provider": "openai",
    "model": "a",
    "api": "openai-chat",
    "endpoint": "https://x/v1",
    "template_hash": "t",
    "system_hash": None,
    "params": {"temperature": 0.2, "top_p": None},
    "input": {"path": "in.jsonl", "size": 10, "mtime": 1.5},
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"version": "0.2", "started": "2026-01-01"}, []),
        ({"model": "b", "endpoint": "https://y/v1"}, ["model: a -> b", "endpoint: https://x/v1 -> https://y/v1"]),
        ({"template_hash": "u"}, ["template changed"]),
        ({"system_hash": "s"}, ["system prompt changed"]),
        ({"generation": 0}, []),
        ({"generation": 1}, ["generation: 0 -> 1"]),
        ({"params": {"temperature": 0.7}}, ["temperature: 0.2 -> 0.7", "top_p: None -> not set"]),
        ({"params": None}, ["temperature: 0.2 -> not set", "top_p: None -> not set"]),
        ({"input": {"path": "in.jsonl", "size": 11, "mtime": 1.5}}, ["input file changed"]),
        ({"input": {"path": "b.jsonl", "size": 11, "mtime": 2}}, ["input: in.jsonl -> b.jsonl"]),
    ],
)
def test_manifest_differences(change, expected):
    assert manifest_differences(MANIFEST, {**MANIFEST, **change}) == expected


def test_no_difference_is_claimed_from_a_sealed_output_without_manifest():
    assert manifest_differences(None, MANIFEST) == []
