import shlex
from dataclasses import replace

import pytest

from llmbatch.summary import ErrorCount, Exposure, Percentiles, Summary, Tokens
from llmbatch.views.text import render_summary

GOOD = Summary(
    rows=1,
    ok=1,
    failed=0,
    skipped=0,
    pending=0,
    exit_code=0,
    seconds=0.4,
    rows_per_s=2.5,
    requests=1,
    latency_s=Percentiles(0.0841, 0.0841, 0.0841, 0.0841, 0.0841),
    tokens=Tokens(31, 1),
    finish_reasons={"stop": 1},
    output="a.jsonl",
)
MIXED = Summary(
    rows=1000,
    ok=990,
    failed=10,
    skipped=0,
    pending=0,
    exit_code=1,
    seconds=123.4,
    rows_per_s=8.1,
    ok_before=400,
    failed_before=2,
    requests=1012,
    retries=14,
    rate_limited=1,
    ambiguous=5,
    maybe_billed_twice=4,
    in_flight_at_kill=12,
    latency_s=Percentiles(0.84, 1.2, 2.1, 4.0, 14.2),
    first_token_s=Percentiles(0.2, 0.3, 0.4, 0.4, 0.9),
    tokens=Tokens(31_020, 12_400, 2_048, 300, 3),
    errors=(
        ErrorCount("context_length_exceeded", 7, "too long\n\x1b[31m" + "x" * 500),
        ErrorCount("timeout", 3, "late"),
    ),
    finish_reasons={"stop": 980, "length": 10},
    binding_shares={"concurrency": 0.2, "requests": 0.7961, "idle": 0.0039},
    advice="request-bound 80% of the time: a higher --rpm would help",
    output="my results/in.results.jsonl",
    next_command="llmbatch run in.jsonl",
    notices=("the server names another model",),
)
GOOD_TEXT = """\
Done: every row is ok.
1 row = 1 ok + 0 failed + 0 skipped + 0 pending

time        0.40 s, 2.5 rows/s
requests    1, 0 retries
latency     p50 84 ms, p95 84 ms, max 84 ms
tokens      31 in, 1 out
cost        unknown

Results: a.jsonl
To look at them:
  jq -c '{id, output}' a.jsonl | head
"""
MIXED_TEXT = f"""\
Done, but some rows failed.
1,000 rows = 990 ok + 10 failed + 0 skipped + 0 pending
(400 ok and 2 failed came from earlier runs)

time        2 min 03 s, 8.1 rows/s
requests    1,012, 14 retries, 1 rate limit answer
latency     p50 0.84 s, p95 2.10 s, max 14.2 s
            first token p50 0.20 s, p95 0.40 s, max 0.90 s
tokens      31,020 in (2,048 cached), 12,400 out (300 reasoning); 3 answers without usage
cost        unknown
cached      7% of input tokens
billed?     4 requests may have been billed twice
            1 request may have been billed without an answer
            12 requests in flight when the last run was killed
finished    980 stop, 10 length
limited by  the request rate 80%, the concurrency 20%
advice      request-bound 80% of the time: a higher --rpm would help

errors
  7  context_length_exceeded  too long\\n\\e[31m{"x" * 83}…
  3  timeout                  late

warning: the server names another model

Results: my results/in.results.jsonl
To see the failed rows:
  jq -c 'select(.status == "error") | {{id, row, error}}' 'my results/in.results.jsonl'
To try the failed rows once more, run the same command again:
  llmbatch run in.jsonl
"""


@pytest.mark.parametrize(("summary", "text"), [(GOOD, GOOD_TEXT), (MIXED, MIXED_TEXT)], ids=["good", "mixed"])
def test_the_whole_summary(summary: Summary, text: str) -> None:
    assert render_summary(summary) == text


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"hedges": 40, "hedges_won": 9, "requests": 1040}, "40 requests asked twice (4.0%), 9 won by the second"),
        ({"hedges": 1, "hedges_won": 0, "requests": 2}, "1 request asked twice (100.0%), 0 won by the second"),
        ({"hedges": 1, "hedges_won": 0, "requests": 1}, "1 request asked twice, 0 won by the second"),  # cut off
    ],
)
def test_second_requests_are_told(changes: dict[str, int], line: str) -> None:
    assert f"\nhedged      {line}\n" in render_summary(replace(GOOD, **changes))  # type: ignore[arg-type]
    assert "hedged" not in render_summary(GOOD)


def test_an_interrupted_run_says_how_to_continue() -> None:
    summary = replace(GOOD, rows=5000, pending=4999, exit_code=130, input_complete=False, next_command="llmbatch run x")
    text = render_summary(replace(summary, output="a.jsonl.partial"))
    assert text.startswith("Interrupted.\n5,000 rows read = 1 ok + ")
    assert "The rest of the input was not read.\n" in text
    assert text.endswith(
        "Results so far: a.jsonl.partial\nTo continue, run the same command again:\n  llmbatch run x\n"
    )


@pytest.mark.parametrize(
    ("cached", "saved_usd", "line"),
    [
        (0, None, None),
        (0, 0.0, None),
        (620, None, "cached      62% of input tokens\n"),
        (620, 0.12, "cached      62% of input tokens, $0.12 saved\n"),
        (620, -0.12, "cached      62% of input tokens; writing them cost $0.12 more than was saved\n"),
        (0, -0.12, "cached      0% of input tokens; writing them cost $0.12 more than was saved\n"),
    ],
)
def test_what_the_cache_gave(cached: int, saved_usd: float | None, line: str | None) -> None:
    text = render_summary(replace(GOOD, tokens=Tokens(1000, 1, cached), cache_saved_usd=saved_usd))
    assert line is None or line in text
    assert ("of input tokens" in text) == (line is not None)


def test_without_a_command_it_is_said_in_words() -> None:
    assert render_summary(replace(MIXED, next_command=None)).endswith("run the same command again.\n")


def test_results_on_standard_output_are_not_looked_for_in_a_file() -> None:
    text = render_summary(replace(MIXED, output="-"))
    assert "jq" not in text
    assert "Results" not in text


def test_counts_that_do_not_add_up_are_called_a_bug_even_when_quiet() -> None:
    wrong = replace(GOOD, rows=2)
    for quiet in (False, True):
        text = render_summary(wrong, quiet=quiet)
        assert "2 rows is NOT 1 ok + 0 failed" in text
        assert "this is a bug" in text


def test_quiet_says_nothing_but_errors() -> None:
    assert render_summary(GOOD, quiet=True) == ""
    text = render_summary(MIXED, quiet=True)
    assert "context_length_exceeded" in text
    assert "latency" not in text
    assert "jq" not in text


def test_the_sixth_type_of_error_is_only_counted() -> None:
    errors = tuple(ErrorCount(f"type_{i}", 10 - i, "") for i in range(7))
    text = render_summary(replace(MIXED, errors=errors))
    assert "type_4" in text
    assert "type_5" not in text
    assert "  9 more of 2 other types\n" in text


@pytest.mark.parametrize(
    ("cost", "unpriced", "words"),
    [
        (None, 5, "unknown"),
        (0.0, 0, "$0.00"),
        (0.43, 0, "$0.43"),
        (0.43, 1, "$0.43, without 1 answer of unknown price"),
    ],
)
def test_an_unknown_cost_is_not_zero(cost: float | None, unpriced: int, words: str) -> None:
    text = render_summary(replace(GOOD, cost_usd=cost, answers_without_price=unpriced))
    assert f"cost        {words}\n" in text


def test_hostile_words_stay_on_their_line_and_escape_nothing() -> None:
    evil = "\x1b[2J\n\u202e"
    text = render_summary(
        replace(
            MIXED,
            errors=(ErrorCount(evil, 1, evil),),
            finish_reasons={evil: 1, "stop": 2},
            binding_shares={evil: 1.0},
            notices=(evil,),
            output=evil,
            next_command=evil,
        )
    )
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\n\\u202e" not in text


@pytest.mark.parametrize("path", ["it's.jsonl", "$(rm -rf x).jsonl", "a b.jsonl"])
def test_the_command_to_type_can_be_pasted(path: str) -> None:
    line = next(line for line in render_summary(replace(MIXED, output=path)).splitlines() if line.startswith("  jq"))
    assert shlex.split(line)[-1] == path


def test_a_name_with_a_dash_is_no_option() -> None:
    assert " ./-x.jsonl\n" in render_summary(replace(MIXED, output="-x.jsonl"))


@pytest.mark.parametrize(
    ("summary", "words"),
    [
        (replace(GOOD, rows=0, ok=0), "Warning: 0 rows: the input was empty."),
        (replace(GOOD, exit_code=1, input_truncated=True), "Done, but the input is cut short: rows are missing."),
        (replace(MIXED, input_truncated=True), "Done, but the input is cut short: rows are missing."),
        (replace(MIXED, failed_before=10), "Nothing to do, but some rows can not be sent."),
    ],
)
def test_headline_says_what_happened(summary: Summary, words: str) -> None:
    assert render_summary(summary).splitlines()[0] == words


def test_quiet_says_nothing_when_only_the_reader_left() -> None:
    assert render_summary(replace(GOOD, exit_code=141), quiet=True) == ""


@pytest.mark.parametrize(
    ("bound", "words"),
    [
        (Exposure(2, 300, 50, 0.31), "2 requests may have been billed twice, at most $0.31"),
        (Exposure(2, 300, 50, 0.3100001), "2 requests may have been billed twice, at most $0.32"),
        (Exposure(2, 300, 50, 0.00001), "2 requests may have been billed twice, at most $0.0001"),
        (Exposure(2, 300, 50, 0.09941), "2 requests may have been billed twice, at most $0.10"),
        (Exposure(2, 300, 50, 1234.561), "2 requests may have been billed twice, at most $1,234.57"),
        (Exposure(2, 48211, 50, None), "2 requests may have been billed twice; at most 48,211 tokens in, 50 out"),
        (
            Exposure(2, 48211, None, None),
            "2 requests may have been billed twice; at most 48,211 tokens in, out not bounded: set max_tokens",
        ),
        (Exposure(2, None, 50, None), "2 requests may have been billed twice; for how much is not known"),
    ],
)  # fmt: skip
def test_the_bound_of_a_double_payment_is_never_rounded_down(bound: Exposure, words: str) -> None:
    summary = replace(GOOD, ambiguous=3, maybe_billed_twice=2, maybe_billed_twice_bound=bound)
    shown = render_summary(replace(summary, ambiguous_bound=replace(bound, requests=3))).splitlines()
    at = next(n for n, line in enumerate(shown) if line.startswith("billed?"))
    assert shown[at] == f"billed?     {words}"
    assert shown[at + 1].startswith("            1 request may have been billed without an answer")


def test_odd_answers_have_a_line() -> None:
    shown = render_summary(replace(GOOD, flags={"empty": 2, "model_mismatch": 1, "choices_mismatch": 0}))
    assert "\nanswers     2 empty, 1 of another model than asked\n" in shown
    assert "answers" not in render_summary(GOOD)


@pytest.mark.parametrize(
    ("reasons", "shown"),
    [({"stop": 9}, False), ({"content_filter": 9}, True), ({"length": 9}, True), ({"none given": 9}, False)],
)
def test_how_answers_ended_is_told_when_it_was_not_by_themselves(reasons: dict[str, int], shown: bool) -> None:
    assert ("\nfinished " in render_summary(replace(GOOD, finish_reasons=reasons))) is shown
