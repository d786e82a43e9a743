from dataclasses import replace
from typing import get_args

import pytest

from llmbatch.events import Binding
from llmbatch.rules.advice import Facts, advice
from llmbatch.rules.bottleneck import Shares

FACTS = Facts(allowed=10, mean_latency_s=0.8, median_latency_s=0.7, longest_latency_s=4.2)


def shares(**seconds: float) -> Shares:
    made = Shares()
    for name, s in seconds.items():
        made.add(name, s)  # type: ignore[arg-type]  # names of Binding
    return made


def said(cause: str, facts: Facts, share: float = 0.88) -> str | None:
    return advice(shares(**{cause: 100 * share, "idle": 100 * (1 - share)}), facts)


@pytest.mark.parametrize(
    ("cause", "facts", "words"),
    [
        (
            "requests",
            replace(FACTS, rpm=6000, given=frozenset({"requests"})),
            "request-bound 88% of the time: more in flight will not help; a --rpm above 6,000 would, if the provider "
            "allows it",
        ),
        (
            "requests",
            replace(FACTS, rpm=500),
            "request-bound 88% of the time: the provider allows 500 requests per minute; more in flight will not help; "
            "a higher limit from the provider would",
        ),
        (
            "requests",
            FACTS,
            "request-bound 88% of the time: more in flight will not help; a higher limit from the provider would",
        ),
        (
            "requests",
            replace(FACTS, given=frozenset({"requests"})),  # of several keys
            "request-bound 88% of the time: more in flight will not help; a higher --rpm would, if the provider allows "
            "it",
        ),
        (
            "output_tokens",
            replace(FACTS, given=frozenset({"requests", "tokens", "input_tokens"})),
            "bound by tokens of answers 88% of the time: a higher --rpm or shorter prompts will not help; a smaller "
            "max_tokens, or a higher limit from the provider would",
        ),
        (
            "day",
            FACTS,
            "held up by --rpd 88% of the time: nothing but a higher one will help, if the provider allows it",
        ),
        (
            "tokens",
            FACTS,
            "token-bound 88% of the time: a higher --rpm will not help; shorter prompts, a smaller max_tokens, or a "
            "higher limit from the provider would",
        ),
        (
            "tokens",
            replace(FACTS, given=frozenset({"tokens"})),
            "token-bound 88% of the time: a higher --rpm will not help; shorter prompts, a smaller max_tokens, or a "
            "higher --tpm if the provider allows it, would",
        ),
        (
            "input_tokens",
            replace(FACTS, given=frozenset({"input_tokens"})),
            "bound by tokens of prompts 88% of the time: a higher --rpm or a smaller max_tokens will not help; shorter "
            "prompts, or a higher --input-tpm if the provider allows it, would",
        ),
        (
            "output_tokens",
            FACTS,
            "bound by tokens of answers 88% of the time: a higher --rpm or shorter prompts will not help; a smaller "
            "max_tokens, or a higher limit from the provider would",
        ),
        (
            "concurrency",
            replace(FACTS, rpm=6000, given=frozenset({"requests"})),
            "limited by --concurrency 10 for 88% of the time: the server answered in 0.8 s on average, 120 in flight "
            "would use the limit of 6,000 per minute (or --concurrency auto)",
        ),
        (
            "concurrency",
            replace(FACTS, rpm=60, given=frozenset({"requests"})),  # by the mean ten are enough
            "limited by --concurrency 10 for 88% of the time: the server answered in 0.8 s on average; a higher "
            "--concurrency, or --concurrency auto, would help if the server bears it",
        ),
        (
            "concurrency",
            replace(FACTS, mean_latency_s=None),
            "limited by --concurrency 10 for 88% of the time: a higher --concurrency, or --concurrency auto, would "
            "help if the server bears it",
        ),
        (
            "concurrency",
            replace(FACTS, rpm=6000, mean_latency_s=None),
            "limited by --concurrency 10 for 88% of the time: a higher --concurrency, or --concurrency auto, would "
            "help if the server bears it",
        ),
        (
            "concurrency",
            replace(FACTS, window="auto", allowed=16, mean_latency_s=0.084),
            "limited by the 16 in flight of --concurrency auto for 88% of the time: the server answered in 84 ms on "
            "average; a higher --concurrency would help if the server bears it",
        ),
        (
            "concurrency",
            replace(FACTS, window="server", allowed=16, mean_latency_s=41.2),  # the window grew until near the end
            "limited by the 16 in flight of --concurrency auto for 88% of the time: the server answered in 41 s on "
            "average; a higher --concurrency would help if the server bears it",
        ),
        (
            "concurrency",
            replace(FACTS, window="max_concurrency", rpm=6000),
            "limited by --max-concurrency 10 for 88% of the time: the server answered in 0.8 s on average, 120 in "
            "flight would use the limit of 6,000 per minute",
        ),
        (
            "concurrency",
            replace(FACTS, window="max_concurrency"),
            "limited by --max-concurrency 10 for 88% of the time: the server answered in 0.8 s on average; a higher "
            "--max-concurrency would help if the server bears it",
        ),
        (
            "concurrency",
            replace(FACTS, window="descriptors", allowed=960, rpm=1e6),
            "limited by this machine's limit of open files (960 in flight) for 88% of the time: a higher one "
            "(`ulimit -n`), or a second machine, would help",
        ),
        (
            "server",
            replace(FACTS, window="server", allowed=64),
            "limited by the server's own speed for 88% of the time: it answers no faster with more than 64 in flight; "
            "a higher --concurrency will not help, a second server (--base-url twice) would",
        ),
        (
            "retries",
            replace(FACTS, retries=1240),
            "rows that waited to be tried again held up the run for 88% of the time (1,240 retries): more in flight "
            "will not help; the failures themselves (-v shows each) must be mended",
        ),
        (
            "provider",
            FACTS,
            "the provider failed, or was not there, for 88% of the time: no flag will help",
        ),
        (
            "provider",
            replace(FACTS, rate_limited=1),
            "paused by the provider for 88% of the time (1 rate limit answer): more in flight will not help; its "
            "limits as --rpm or --tpm would: requests then go at the pace that it allows",
        ),
        (
            "provider",
            replace(FACTS, rate_limited=1240, rpm=500, given=frozenset({"requests"})),
            "paused by the provider for 88% of the time (1,240 rate limit answers): more in flight will not help; a "
            "lower --rpm would",
        ),
        (
            "input",
            FACTS,
            "limited by the input for 88% of the time: rows came no faster than they were answered; no flag will help",
        ),
        (
            "disk",
            FACTS,
            "limited by the disk for 88% of the time: answers waited to be written; an output (-o) on a faster disk "
            "would help",
        ),
        (
            "disk",
            replace(FACTS, to_stdout=True),
            "limited by the output for 88% of the time: who reads standard output is slow; no flag will help, -o FILE "
            "would",
        ),
        (
            "hooks",
            replace(FACTS, hook=("before", 2.06)),
            "limited by the hooks for 88% of the time: a call of --before took 2.1 s on average; if they wait, a "
            "higher --concurrency would help, if they compute, plain functions with --hook-processes",
        ),
        (
            "hooks",
            FACTS,  # none of them has come to an end
            "limited by the hooks for 88% of the time: if they wait, a higher --concurrency would help, if they "
            "compute, plain functions with --hook-processes",
        ),
        (
            "cpu",
            FACTS,
            "limited by this machine's CPU for 88% of the time: more in flight will not help; two runs of half the "
            "input each would, as one uses one core (they share limits by --limit-group)",
        ),
        (
            "cpu",
            replace(FACTS, hook=("after", 0.01)),
            "limited by this machine's CPU for 88% of the time: more in flight will not help; hooks that compute would "
            "be out of the way as plain functions with --hook-processes",
        ),
        (
            "tenant",
            FACTS,
            "held up by the limits of tenants for 88% of the time: a higher --rpm or --concurrency will not help; a "
            "higher --tenant-rpm or --tenant-concurrency would",
        ),
        (
            "tail",
            FACTS,
            "nothing was left to send for 88% of the time: half of the answers came within 0.7 s, the last after 4.2 "
            "s; more in flight will not help, --hedge p95 would (both requests may be billed)",
        ),
        ("tail", replace(FACTS, hedged=True), None),
        ("tail", replace(FACTS, longest_latency_s=2.0), None),  # all are as slow: fewer rows than places
        ("tail", Facts(), None),  # no answer at all
        ("paused", FACTS, None),
        ("idle", FACTS, None),
    ],
)  # fmt: skip
def test_advice(cause: str, facts: Facts, words: str | None) -> None:
    assert said(cause, facts) == words


@pytest.mark.parametrize("cause", sorted(set(get_args(Binding)) - {"paused", "idle"}))
def test_it_is_one_sentence_that_says_how_much_of_the_time(cause: str) -> None:
    text = said(cause, replace(FACTS, rpm=6000), share=0.936)
    assert text is not None and "94% of the time" in text
    assert "\n" not in text and not text.endswith(".") and text[0].islower()


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ({"requests": 5.0}, True),
        ({"requests": 4.9}, False),  # too short
        ({"requests": 0.0}, False),
        ({}, False),
        ({"requests": 50.0, "tail": 50.0}, True),
        ({"requests": 49.0, "tail": 26.0, "cpu": 25.0}, False),  # no single cause
        ({"requests": 40.0, "tokens": 60.0}, True),
        ({"paused": 1000.0, "requests": 9.0, "tail": 1.0}, True),  # a night in which it was stopped says nothing
        ({"paused": 1000.0, "requests": 4.0}, False),
        ({"paused": 1000.0}, False),
    ],
)
def test_advice_is_given_when_one_cause_held_most_of_a_run_that_was_not_short(
    held: dict[str, float], told: bool
) -> None:
    assert (advice(shares(**held), replace(FACTS, rpm=500)) is not None) is told


def test_a_pause_of_the_user_is_left_out_of_the_share() -> None:
    text = advice(shares(paused=900.0, requests=90.0, tail=10.0), FACTS)
    assert text is not None and "90% of the time" in text
