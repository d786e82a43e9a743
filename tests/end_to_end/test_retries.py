"""Every way an answer can fail to come: which are asked again, and what is said of those that may have been billed."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from llmbatch.sim.answers import expected_answer

from .processes import Llmbatch, Sim, StartSim, assert_answers, prompts, read_lines, write_rows

# Of each kind: may the failed try have been billed?
AGAIN = {
    "429": False,
    "500": False,
    "503": False,
    "529": False,
    "502": True,
    "reset-before": True,
    "reset-after": True,
    "truncate": True,
    "html": True,
    "empty": True,
    "garbage-json": True,
    "error200": True,
}
PERMANENT = ("400", "context")


def scripted(llmbatch: Llmbatch, sim: StartSim, rule: str, *more: str) -> Sim:
    script = llmbatch.directory / "script.jsonl"
    script.write_text(rule + "\n")
    return sim("--script", str(script), "--retry-after", "0", *more)


@pytest.fixture(scope="module")
def failing_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sim]:
    """The second row of each kind fails in that way, the first time."""
    script = tmp_path_factory.mktemp("sim") / "script.jsonl"
    script.write_text("".join(f'{{"prompt": "{kind}: 2", "fault": "{kind}", "times": 1}}\n' for kind in AGAIN))
    server = Sim("--script", str(script), "--retry-after", "0")
    yield server
    server.stop()


@pytest.mark.parametrize("kind", AGAIN)
def test_row_whose_first_try_fails_gets_its_answer(llmbatch: Llmbatch, failing_once: Sim, kind: str) -> None:
    ambiguous, server, asked = AGAIN[kind], failing_once, prompts(3, f"{kind}:")
    before = server.ledger()
    write_rows(llmbatch.directory / "in.jsonl", asked)
    done = llmbatch("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "--summary-json", "sum.json")
    assert done.code == 0, done.err
    lines = read_lines(llmbatch.directory / "in.results.jsonl")
    assert_answers(lines, asked)
    assert [line["attempts"] for line in lines] == [1, 2, 1]
    assert lines[1].get("ambiguous", 0) == ambiguous
    summary = json.loads((llmbatch.directory / "sum.json").read_text())
    assert summary["ambiguous"] == summary["maybe_billed_twice"] == ambiguous
    assert ("may have been billed twice" in done.err) == ambiguous
    after = server.ledger()
    assert after["received"] - before["received"] == 4
    assert after["billed_twice"] - before["billed_twice"] <= ambiguous


@pytest.mark.parametrize("kind", ["reset-after", "truncate", "html"])
def test_what_may_have_been_billed_is_asked_only_once_more(llmbatch: Llmbatch, sim: StartSim, kind: str) -> None:
    server = scripted(llmbatch, sim, f'{{"prompt": "prompt 2", "fault": "{kind}"}}')
    write_rows(llmbatch.directory / "in.jsonl", prompts(3))
    done = llmbatch("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "--summary-json", "sum.json")
    assert done.code == 1
    line = read_lines(llmbatch.directory / "in.results.jsonl")[1]
    assert line["status"] == "error"
    assert line["error"]["maybe_billed"] is True
    assert (line["attempts"], line["ambiguous"]) == (2, 2)
    summary = json.loads((llmbatch.directory / "sum.json").read_text())
    assert (summary["ambiguous"], summary["maybe_billed_twice"]) == (2, 1)


def test_attempts_are_bounded_and_not_multiplied(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = scripted(llmbatch, sim, '{"prompt": "prompt 2", "fault": "500"}')
    write_rows(llmbatch.directory / "in.jsonl", prompts(3))
    done = llmbatch("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "--max-attempts", "3")
    assert done.code == 1
    assert read_lines(llmbatch.directory / "in.results.jsonl")[1]["attempts"] == 3
    assert server.ledger()["received"] == 2 + 3


@pytest.mark.parametrize("kind", PERMANENT)
def test_permanent_failure_is_asked_once(llmbatch: Llmbatch, sim: StartSim, kind: str) -> None:
    server = scripted(llmbatch, sim, f'{{"prompt": "prompt 2", "fault": "{kind}"}}')
    write_rows(llmbatch.directory / "in.jsonl", prompts(8))
    done = llmbatch("run", "in.jsonl", "-m", "m", "--base-url", server.base_url)
    assert done.code == 1
    line = read_lines(llmbatch.directory / "in.results.jsonl")[1]
    assert line["error"]["http_status"] == 400
    assert line["error"]["retryable"] is False
    assert server.ledger()["received"] == 8


@pytest.mark.parametrize("flags", [(), ("--stream",)], ids=["whole", "stream"])
def test_storm_of_every_fault_mixes_no_answers_up(llmbatch: Llmbatch, sim: StartSim, flags: tuple[str, ...]) -> None:
    kinds = ["500", "502", "503", "529", "reset-before", "reset-after", "truncate", "html", "empty", "error200"]
    faults = [flag for kind in kinds for flag in ("--fault", f"{kind}=0.02")]
    server = sim(*faults, "--retry-after", "0", "--latency", "uniform:low=0,high=0.03", "--output-tokens", "12")
    asked = prompts(400)
    write_rows(llmbatch.directory / "in.jsonl", asked)
    done = llmbatch(
        "run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "-c", "40", "--summary-json", "sum.json", *flags
    )
    lines = read_lines(llmbatch.directory / "in.results.jsonl")
    answered = [line for line in lines if line["status"] == "ok"]
    assert [line["row"] for line in lines] == list(range(1, 401))
    assert len(answered) >= 380
    for line in answered:
        assert line["output"] == expected_answer(asked[line["row"] - 1], 12)
    summary = json.loads((llmbatch.directory / "sum.json").read_text())
    assert summary["adds_up"]
    assert summary["ambiguous"] == sum(line.get("ambiguous", 0) for line in lines)
    assert server.ledger()["billed"] - len(answered) <= summary["ambiguous"]
    assert done.code == (0 if len(answered) == 400 else 1)


def test_streamed_answers_are_whole_and_their_first_token_is_timed(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--first-token", "0.1", "--latency", "0.3", "--output-tokens", "20")
    write_rows(llmbatch.directory / "in.jsonl", prompts(5))
    done = llmbatch("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "--stream")
    assert done.code == 0, done.err
    for line in read_lines(llmbatch.directory / "in.results.jsonl"):
        assert 0.09 < line["first_token_s"] < line["latency_s"]
        assert line["usage"]["output_tokens"] == 20


def test_stall_is_ended_by_the_limit_that_binds(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = scripted(llmbatch, sim, '{"prompt": "prompt 2", "fault": "stall"}')
    write_rows(llmbatch.directory / "in.jsonl", prompts(3))
    flags = ("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "--max-attempts", "1", "--restart")
    whole = llmbatch(*flags, "--timeout", "0.4s")
    assert whole.code == 1
    assert read_lines(llmbatch.directory / "in.results.jsonl")[1]["error"]["type"] == "timeout"
    streamed = llmbatch(*flags, "--stream", "--first-token-timeout", "0.4s", "--idle-timeout", "0.4s")
    assert streamed.code == 1
    failed = read_lines(llmbatch.directory / "in.results.jsonl")[1]
    assert failed["error"]["type"] in ("first_token_timeout", "idle_timeout")
    assert failed["error"]["maybe_billed"] is True
