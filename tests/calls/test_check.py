"""Answers that do not fit the schema: asked for again with what is wrong, each one paid for."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from llmbatch.calls.check import Check
from llmbatch.events import AttemptFailed, Event
from llmbatch.records import Attempt, CallFailed, Failure, Reply, Request, Stopped, Trace, Usage
from llmbatch.rules.schema import AnswerSchema

SCHEMA = AnswerSchema({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
ASK = Request("m", [{"role": "user", "content": "how many?"}], schema=SCHEMA.schema)
DOWN = Failure("rejected", "overloaded", "busy", http_status=503, retryable=True)
GOOD, BAD = '{"n":1}', '{"n":"one"}'


class Bench:
    """A check around outcomes in their order."""

    def __init__(self, *outcomes: Reply | BaseException | str, retries: int = 2) -> None:
        self.outcomes = list(outcomes)
        self.asked: list[Request] = []
        self.events: list[Event] = []
        self.trace = Trace()
        self.check = Check(self, SCHEMA, retries, self.events.append)

    async def __call__(self, request: Request, trace: Trace, /) -> Reply:
        outcome = self.outcomes[len(self.asked)]
        self.asked.append(request)
        if isinstance(outcome, Stopped):
            raise outcome
        trace.attempts.append(Attempt(0.0, request_id=f"req_{len(self.asked)}"))
        if isinstance(outcome, CallFailed):
            trace.attempts[-1].failure = outcome.failure
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome if isinstance(outcome, Reply) else Reply(outcome, "stop", "m1", Usage(10, 5, reasoning_tokens=1))

    def run(self, request: Request = ASK) -> Reply | Failure:
        async def main() -> Reply | Failure:
            try:
                return await self.check(request, self.trace)
            except CallFailed as failed:
                return failed.failure

        return asyncio.run(main())

    @property
    def told(self) -> list[tuple[str, bool]]:
        return [
            (event.failure.type, event.retry_in_s is not None)
            for event in self.events
            if isinstance(event, AttemptFailed)
        ]


def messages(request: Request) -> Sequence[Mapping[str, Any]]:
    return request.messages


def test_a_good_answer_is_parsed_and_nothing_else_happens() -> None:
    bench = Bench(GOOD)
    assert bench.run() == Reply({"n": 1}, "stop", "m1", Usage(10, 5, reasoning_tokens=1))
    assert bench.asked == [ASK] and not bench.events


def test_what_is_wrong_is_said_and_every_try_is_paid() -> None:
    bench = Bench(BAD, GOOD)
    reply = bench.run()
    assert isinstance(reply, Reply)
    assert (reply.output, reply.usage) == ({"n": 1}, Usage(20, 10, reasoning_tokens=2))
    again = messages(bench.asked[1])
    assert again[0] == ASK.messages[0] and again[1] == {"role": "assistant", "content": BAD}
    assert '$.n: "one" is not of type "integer"' in again[2]["content"]
    assert bench.asked[1].schema is ASK.schema
    assert bench.told == [("schema_mismatch", True)]


def test_each_further_try_shows_the_last_answer_only() -> None:
    bench = Bench(BAD, '{"m":2}', GOOD)
    bench.run()
    assert [message["content"] for message in messages(bench.asked[2])][1] == '{"m":2}'
    assert len(messages(bench.asked[2])) == 3


def test_a_row_that_never_fits() -> None:
    bench = Bench(BAD, BAD, '{"n":null}', GOOD)
    failure = bench.run()
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.type, failure.retryable) == ("unusable", "schema_mismatch", False)
    assert failure.message.startswith("the answer does not fit the schema (asked 3 times): $.n: ")
    assert (failure.output_so_far, failure.usage) == ('{"n":null}', Usage(30, 15, reasoning_tokens=3))
    assert failure.request_id == "req_3"
    assert [attempt.failure.type for attempt in bench.trace.attempts if attempt.failure] == ["schema_mismatch"] * 3
    assert bench.told == [("schema_mismatch", True)] * 2 + [("schema_mismatch", False)]
    assert bench.trace.ambiguous == 0  # paid for, and known to be


def test_no_retries() -> None:
    bench = Bench(BAD, GOOD, retries=0)
    failure = bench.run()
    assert isinstance(failure, Failure) and "asked" not in failure.message
    assert len(bench.asked) == 1 and bench.told == [("schema_mismatch", False)]


@pytest.mark.parametrize(
    ("finish_reason", "type", "kind"),
    [("length", "schema_mismatch", "unusable"), ("content_filter", "content_filter", "permanent")],
)
def test_what_can_not_be_mended_is_not_asked_again(finish_reason: str, type: str, kind: str) -> None:
    bench = Bench(Reply('{"n":', finish_reason, "m1", Usage(10, 5)), GOOD)
    failure = bench.run()
    assert isinstance(failure, Failure)
    assert (failure.type, failure.kind, failure.usage) == (type, kind, Usage(10, 5))
    assert len(bench.asked) == 1


def test_draining_asks_nothing_further() -> None:
    failure = Bench(BAD, Stopped()).run()
    assert isinstance(failure, Failure)
    assert (failure.type, failure.usage) == ("schema_mismatch", Usage(10, 5, reasoning_tokens=1))


def test_a_row_that_was_not_sent_at_all_stays_pending() -> None:
    bench = Bench(Stopped())
    with pytest.raises(Stopped):
        bench.run()


def test_a_first_failure_passes_unchanged() -> None:
    assert Bench(CallFailed(DOWN)).run() is DOWN


def test_a_failure_of_a_further_try_keeps_what_was_paid_before() -> None:
    failure = Bench(BAD, CallFailed(DOWN)).run()
    assert failure == replace(DOWN, usage=Usage(10, 5, reasoning_tokens=1), output_so_far=BAD)
    paid = replace(DOWN, usage=Usage(1, 1), output_so_far="cut")
    failure = Bench(BAD, CallFailed(paid)).run()
    assert failure == replace(paid, usage=Usage(11, 6, reasoning_tokens=1))


@pytest.mark.parametrize(("first", "second", "sum"), [(0.5, 0.25, 0.75), (None, 0.25, None), (0.5, None, None)])
def test_prices_that_the_server_named(first: float | None, second: float | None, sum: float | None) -> None:
    answers = [Reply(text, "stop", "m1", Usage(), charged_usd=usd) for text, usd in ((BAD, first), (GOOD, second))]
    reply = Bench(*answers).run()
    assert isinstance(reply, Reply) and reply.charged_usd == sum


def test_a_row_with_a_whole_body_is_asked_again_as_a_conversation() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "how many?"}], "temperature": 0}
    bench = Bench(BAD, GOOD)
    bench.run(Request("m", body=body, schema=SCHEMA.schema))
    assert bench.asked[0].body is body
    assert bench.asked[1].body is None and bench.asked[1].params == {"temperature": 0}
    assert messages(bench.asked[1])[0] == body["messages"][0]  # type: ignore[index]


def test_texts_to_embed_are_no_answers() -> None:
    bench = Bench(GOOD)
    failure = bench.run(Request("m", input="text"))
    assert isinstance(failure, Failure) and failure.type == "invalid_row" and not bench.asked


def test_a_body_that_can_not_be_asked_again_fails_with_what_was_paid() -> None:
    body = {
        "model": "m",
        "max_tokens": 9,
        "thinking": {"type": "adaptive"},
        "messages": [{"role": "user", "content": "?"}],
    }
    bench = Bench(BAD)
    outcome = bench.run(Request("m", body=body, api="anthropic", schema=SCHEMA.schema))
    assert isinstance(outcome, Failure)
    assert (outcome.type, outcome.usage) == ("schema_mismatch", Usage(10, 5, reasoning_tokens=1))
    assert len(bench.asked) == 1
