"""A row that failed though its answers were paid for: what they cost is known, written and counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmbatch.errors import OptionsError
from llmbatch.events import RowEnded
from llmbatch.files.results import line_of
from llmbatch.identity import targets_of
from llmbatch.options import RunOptions
from llmbatch.providers.openai_chat import OpenAIChat
from llmbatch.records import Failure, Request, Trace, Usage
from llmbatch.rules.answer import MISMATCH
from llmbatch.rules.reasons import RowError
from llmbatch.scheduler import Job, Outcome, folded
from llmbatch.sender import Sender
from llmbatch.stopping import Stop
from llmbatch.tally import Tally

MISFIT = Failure("unusable", MISMATCH, "no", http_status=200, usage=Usage(1_000_000, 1_000_000))


@pytest.fixture
def sender(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Sender]:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789")

    def made(**settings: Any) -> Sender:
        options = RunOptions(input="-", model="openai/gpt-4.1-mini", **settings)
        return Sender(options, targets_of(options), lambda event: None, Stop())

    return made


def test_tokens_and_dollars_of_answers_that_do_not_fit(sender: Callable[..., Sender]) -> None:
    finished: list[tuple[Job, Outcome, Trace]] = []
    one = sender()
    one._finish = lambda job, outcome, trace: finished.append((job, outcome, trace))  # type: ignore[func-returns-value]
    one._finished(Job(1, None, "fp1:0", Request("gpt-4.1-mini")), MISFIT, Trace())
    result = folded(*finished[0])
    assert result.cost_usd == pytest.approx(0.4 + 1.6)
    line = line_of(result)
    assert (line["usage"]["input_tokens"], line["cost_usd"]) == (1_000_000, result.cost_usd)
    assert line["error"]["maybe_billed"] is False
    tally = Tally(lambda: 0.0)
    tally(RowEnded(result))
    summary = tally.summary(rows=1, pending=0, exit_code=1)
    assert (summary.tokens.input, summary.cost_usd, summary.ambiguous) == (1_000_000, result.cost_usd, 0)


def test_a_failure_without_usage_costs_what_nobody_knows(sender: Callable[..., Sender]) -> None:
    traces: list[Trace] = []
    one = sender()
    one._finish = lambda job, outcome, trace: traces.append(trace)  # type: ignore[func-returns-value]
    one._finished(Job(1, None, "fp1:0", Request("gpt-4.1-mini")), Failure("ambiguous", "timeout", ""), Trace())
    assert traces[0].cost_usd is None


def test_a_schema_that_the_dialect_can_not_say_is_refused_before_the_first_row(
    sender: Callable[..., Sender], monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(self: OpenAIChat, request: Request) -> Any:
        raise RowError("--schema can not be sent to this API: at $ nothing fits")

    monkeypatch.setattr(OpenAIChat, "encode", encode)
    with pytest.raises(OptionsError, match="at \\$ nothing fits"):
        sender(schema={"type": "object"})
    sender()
