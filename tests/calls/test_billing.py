"""Whole runs: what answers cost, what may have been paid for nothing, and the limit on that."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from raw_server import Script, http, read_request, serve

import llmbatch
from llmbatch.errors import OptionsError
from llmbatch.options import RetryLimits
from llmbatch.prices import Prices
from llmbatch.stopping import Stop, StopReason
from llmbatch.summary import Summary
from llmbatch.views.text import render_summary

OPENAI = "https://api.openai.com/v1/chat/completions"
ANSWER = json.dumps(
    {
        "model": "gpt-4o-2024-08-06",
        "choices": [{"message": {"content": "pong"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100},
    }
).encode()


@pytest.fixture
def priced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server on loopback costs what OpenAI does."""
    monkeypatch.setattr("llmbatch.sender.Prices", lambda url: Prices(OPENAI))


def cuts(first: int) -> Script:
    """A server that cuts the connection at each of the ``first`` requests, and then answers."""
    left = [first]

    async def script(reader: Any, writer: Any) -> None:
        while await read_request(reader):
            left[0] -= 1
            if left[0] >= 0:
                return
            writer.write(http(ANSWER))

    return script


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    async def run(script: Script, rows: int = 1, **settings: Any) -> tuple[Summary, list[dict[str, Any]]]:
        source = tmp_path / "in.jsonl"
        source.write_text("".join(json.dumps({"prompt": f"prompt {n}"}) + "\n" for n in range(rows)))
        settings = {"model": "gpt-4o", "concurrency": 1, "retry": RetryLimits(base_s=0.001), **settings}
        async with serve(script) as server:
            base_url = server.url.removesuffix("/chat/completions")
            summary = await llmbatch.arun(str(source), base_url=base_url, **settings)
        lines = [json.loads(line) for line in Path(str(summary.output)).read_text().splitlines()]
        return summary, [line for line in lines if "llmbatch" not in line]

    return run


@pytest.mark.usefixtures("priced")
async def test_the_cost_of_each_answer_and_of_all(run: Callable[..., Any]) -> None:
    summary, lines = await run(cuts(0), rows=3)
    assert [line["cost_usd"] for line in lines] == [0.0035] * 3
    assert summary.cost_usd == pytest.approx(0.0105) and summary.answers_without_price == 0
    assert (summary.ambiguous_bound.usd, summary.to_json()["maybe_billed_twice_usd"]) == (0.0, 0.0)


@pytest.mark.usefixtures("priced")
async def test_what_may_have_been_paid_twice_is_priced_from_above(run: Callable[..., Any]) -> None:
    summary, _ = await run(cuts(2), params={"max_tokens": 1000})
    assert (summary.failed, summary.maybe_billed_twice, summary.ambiguous) == (1, 1, 2)
    shown = summary.to_json()
    # 1,000 tokens out at $10 a million and up; the input is a few bytes and a constant.
    assert 0.01 <= shown["maybe_billed_twice_usd"] < shown["ambiguous_usd"] < 0.1
    assert (shown["maybe_billed_twice_output_tokens"], shown["ambiguous_output_tokens"]) == (1000, 2000)
    assert "1 request may have been billed twice, at most $0.0" in render_summary(summary)


@pytest.mark.usefixtures("priced")
async def test_without_max_tokens_no_sum_is_made_up(run: Callable[..., Any]) -> None:
    summary, _ = await run(cuts(1))
    assert summary.ok == 1 and summary.to_json()["maybe_billed_twice_usd"] is None
    assert "out not bounded: set max_tokens" in render_summary(summary)


async def test_a_server_of_ones_own_has_no_price(run: Callable[..., Any]) -> None:
    summary, lines = await run(cuts(1), params={"max_tokens": 9})
    assert lines[0]["cost_usd"] is None and summary.cost_usd is None
    assert summary.to_json()["maybe_billed_twice_usd"] is None
    assert "1 request may have been billed twice; at most " in render_summary(summary)


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize(
    ("limit_usd", "max_tokens", "ambiguous"),
    [(0.001, 1000, 1), (0.03, 1000, 2), (100.0, None, 1)],  # an unknown sum passes every limit
)
async def test_the_run_stops_when_too_much_may_have_been_paid_for_nothing(
    run: Callable[..., Any], limit_usd: float, max_tokens: int | None, ambiguous: int
) -> None:
    params = {} if max_tokens is None else {"max_tokens": max_tokens}
    summary, _ = await run(cuts(99), rows=9, params=params, max_ambiguous_cost_usd=limit_usd)
    assert summary.exit_code == 4 and summary.pending and summary.adds_up
    assert ambiguous <= summary.ambiguous <= ambiguous + 1  # one may be in flight then
    assert any("--max-ambiguous-cost" in notice for notice in summary.notices)
    assert "To continue, run the same command again" in render_summary(summary)


@pytest.mark.usefixtures("priced")
async def test_the_same_command_continues_after_the_limit(run: Callable[..., Any]) -> None:
    settings = {"rows": 3, "params": {"max_tokens": 1000}, "max_ambiguous_cost_usd": 0.001}
    assert (await run(cuts(1), **settings))[0].exit_code == 4
    summary, lines = await run(cuts(0), **settings)
    assert (summary.exit_code, summary.ok, len(lines)) == (0, 3, 3)


@pytest.mark.usefixtures("priced")
async def test_below_the_limit_nothing_stops(run: Callable[..., Any]) -> None:
    summary, _ = await run(cuts(1), rows=3, params={"max_tokens": 1000}, max_ambiguous_cost_usd=1.0)
    assert (summary.exit_code, summary.ok) == (0, 3)


@pytest.mark.parametrize("limit_usd", [0, -1, float("nan"), float("inf")])
async def test_a_limit_that_is_none_is_refused(run: Callable[..., Any], limit_usd: float) -> None:
    with pytest.raises(OptionsError, match="--max-ambiguous-cost"):
        await run(cuts(0), max_ambiguous_cost_usd=limit_usd)


@pytest.mark.usefixtures("priced")
async def test_what_is_given_up_in_flight_is_bounded_too(run: Callable[..., Any]) -> None:
    stop = Stop()

    async def silent(reader: Any, writer: Any) -> None:
        await read_request(reader)
        stop.request(StopReason("enough", 130))
        stop.abandon()
        await reader.read()

    summary, _ = await run(silent, params={"max_tokens": 1000}, stop=stop)
    assert (summary.exit_code, summary.pending, summary.ambiguous) == (130, 1, 1)
    assert summary.ambiguous_bound.output_tokens == 1000 and summary.ambiguous_bound.usd is not None
