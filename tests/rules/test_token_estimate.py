"""How many tokens a request will take: by its length, and by the answers so far."""

from __future__ import annotations

from typing import Any

import pytest

from llmbatch.records import Request, Usage
from llmbatch.rules.pace import Cost
from llmbatch.rules.token_estimate import ASSUMED_OUTPUT_TOKENS, CHARS_PER_TOKEN, TokenEstimate, chars_of, used

ASK = Request("m", [{"role": "user", "content": "x" * 400}])
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}


@pytest.mark.parametrize(
    ("request_", "chars"),
    [
        (ASK, 400 + len("user")),
        (Request("m", [{"role": "user", "content": [{"type": "text", "text": "abc"}, PICTURE]}]), 4 + 4 + 3 + 9),
        (Request("m", input="abcd"), 4),
        (Request("m", input=["ab", "cd", ""]), 4),
        (Request("m", body={"contents": [{"parts": [{"text": "hello"}]}]}), 5),
        (Request("m", body={"n": 1, "stream": False, "x": None}), 0),
    ],
)
def test_the_characters_of_a_request(request_: Request, chars: int) -> None:
    assert chars_of(request_) == chars


@pytest.mark.parametrize(
    ("params", "output_tokens"),
    [
        ({}, ASSUMED_OUTPUT_TOKENS),
        ({"max_tokens": 50}, 50.0),
        ({"max_tokens": 5000}, ASSUMED_OUTPUT_TOKENS),  # the mean, not the most
        ({"max_tokens": 0}, ASSUMED_OUTPUT_TOKENS),
        ({"max_tokens": -1}, ASSUMED_OUTPUT_TOKENS),
        ({"max_tokens": True}, ASSUMED_OUTPUT_TOKENS),
        ({"max_tokens": "50"}, ASSUMED_OUTPUT_TOKENS),
        ({"max_tokens": None}, ASSUMED_OUTPUT_TOKENS),
    ],
)
def test_before_the_first_answer(params: dict[str, Any], output_tokens: float) -> None:
    assert TokenEstimate().of(Request("m", params=params), 400) == Cost(400 / CHARS_PER_TOKEN, output_tokens)


def test_vectors_are_no_tokens() -> None:
    assert TokenEstimate().of(Request("m", input="abcd"), 4) == Cost(1.0, 0.0)


def test_the_first_answer_replaces_what_was_assumed() -> None:
    estimate = TokenEstimate()
    estimate.learn(400, Usage(200, 30))
    assert estimate.of(ASK, 800) == Cost(400.0, 30.0)
    assert estimate.mean == Cost(200.0, 30.0)


def test_it_follows_the_answers_of_late() -> None:
    estimate = TokenEstimate()
    for _ in range(200):
        estimate.learn(400, Usage(100, 100))
    for _ in range(300):
        estimate.learn(400, Usage(200, 1000))
    cost = estimate.of(ASK, 400)
    assert cost.input_tokens == pytest.approx(200, rel=0.02) and cost.output_tokens == pytest.approx(1000, rel=0.02)


@pytest.mark.parametrize("usage", [Usage(), Usage(None, None)])
def test_an_answer_that_does_not_say_changes_nothing(usage: Usage) -> None:
    estimate = TokenEstimate()
    estimate.learn(400, usage)
    estimate.learn(400, Usage(None, 40))
    assert estimate.of(ASK, 400) == Cost(100.0, 40.0)


def test_a_request_of_no_characters_says_nothing_of_their_price() -> None:
    estimate = TokenEstimate()
    estimate.learn(0, Usage(1000, 10))
    assert estimate.of(ASK, 400) == Cost(100.0, 10.0)


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        (Usage(7, 8), Cost(7.0, 8.0)),
        (Usage(None, 8), Cost(1.0, 8.0)),
        (Usage(7, None), Cost(7.0, 2.0)),
        (Usage(0, 0), Cost(0.0, 0.0)),
        (Usage(), Cost(1.0, 2.0)),
    ],
)
def test_what_was_used_is_by_estimate_where_it_is_not_said(usage: Usage, cost: Cost) -> None:
    assert used(usage, Cost(1.0, 2.0)) == cost
