"""How fast requests go: paced, as many at once as was said, and never before the provider's Retry-After."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from .processes import Llmbatch, Running, StartSim, assert_answers, prompts, read_lines, until, write_rows


def test_rpm_is_even_and_meets_no_429(llmbatch: Llmbatch, sim: StartSim) -> None:
    """The provider's bucket holds three requests: whoever sends in bursts is refused."""
    ledger = llmbatch.directory / "ledger.jsonl"
    server = sim("--rpm", "600", "--burst", "0.3", "--latency", "uniform:low=0.02,high=0.3", "--ledger", str(ledger))
    write_rows(llmbatch.directory / "in.jsonl", prompts(40))
    done = llmbatch("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "--rpm", "600")
    assert done.code == 0, done.err
    assert server.ledger()["rejected"] == {}
    assert 3.7 < done.seconds < 9  # 39 intervals of 0.1 s, and the start of the process
    assert server.ledger()["peak_in_flight"] <= 6  # 10 a second for 0.3 s at most, and a timer's lateness


@pytest.mark.parametrize("width", [1, 10, 150])
def test_concurrency_is_what_was_said_with_no_hidden_limit(llmbatch: Llmbatch, sim: StartSim, width: int) -> None:
    server = sim("--latency", "0.3" if width > 100 else "0.02")
    asked = prompts(min(4 * width + 6, 400))
    write_rows(llmbatch.directory / "in.jsonl", asked)
    done = llmbatch("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "-c", str(width))
    assert done.code == 0, done.err
    assert server.ledger()["peak_in_flight"] == width
    assert server.ledger()["peak_connections"] <= width
    assert_answers(read_lines(llmbatch.directory / "in.results.jsonl"), asked)


def test_429_storm_ends_well_and_nobody_comes_before_retry_after(llmbatch: Llmbatch, sim: StartSim) -> None:
    """20 requests at once, then 5 a second; a client that knows no limit learns it from the 429s."""
    server = sim("--rpm", "300", "--burst", "4", "--no-headers")
    asked = prompts(30)
    write_rows(llmbatch.directory / "in.jsonl", asked)
    done = llmbatch(
        "run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "-c", "30", "--summary-json", "sum.json"
    )
    assert done.code == 0, done.err
    assert_answers(read_lines(llmbatch.directory / "in.results.jsonl"), asked)
    refused = server.ledger()["rejected"]["429"]
    assert refused <= 10 + 8  # the first wave, and one at a time after it
    assert json.loads((llmbatch.directory / "sum.json").read_text())["rate_limited"] == refused


def test_retry_after_is_waited_for_by_all_rows(llmbatch: Llmbatch, sim: StartSim) -> None:
    script = llmbatch.directory / "script.jsonl"
    script.write_text('{"n": 5, "fault": "429"}\n')
    server = sim("--script", str(script), "--retry-after", "1", "--latency", "0.02")
    write_rows(llmbatch.directory / "in.jsonl", prompts(40))
    running = llmbatch.start("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "-c", "4")
    until(lambda: server.ledger()["rejected"], "the 429")
    refused_s = time.monotonic()
    time.sleep(0.15)
    standing = server.ledger()["received"]
    assert standing <= 5 + 4
    while time.monotonic() < refused_s + 0.8:
        assert server.ledger()["received"] == standing
        time.sleep(0.05)
    assert running.end().code == 0
    assert server.ledger()["billed"] == 40


@pytest.mark.parametrize(
    ("retry_after", "words"), [("86400", "86,400 s"), ("9999999999", "9,999,999,999 s")], ids=["a day", "300 years"]
)
def test_absurd_retry_after_stops_with_3_instead_of_hanging(
    llmbatch: Llmbatch, sim: StartSim, retry_after: str, words: str
) -> None:
    server = sim("--fault", "429=1", "--retry-after", retry_after)
    write_rows(llmbatch.directory / "in.jsonl", prompts(10))
    done = llmbatch("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, within_s=20)
    assert done.code == 3, done.err
    assert f"asks to wait {words}" in done.err
    assert "0 failed" in done.err


def big_file(path: Path) -> None:
    block = b'{"prompt": "one of very many rows of a very large file"}\n' * 20_000
    with path.open("wb") as file:
        for _ in range(180):
            file.write(block)


def test_first_request_of_200_megabytes_goes_out_at_once(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "10")

    def first_request(name: str) -> tuple[Running, float]:
        before, began_s = server.ledger()["received"], time.monotonic()
        running = llmbatch.start("run", name, "-m", "m", "--base-url", server.base_url)
        until(lambda: server.ledger()["received"] > before, "the first request")
        return running, time.monotonic() - began_s

    write_rows(llmbatch.directory / "small.jsonl", prompts(1))
    big_file(llmbatch.directory / "in.jsonl")
    small, small_s = first_request("small.jsonl")
    small.signal(signal.SIGKILL)
    small.end()
    running, big_s = first_request("in.jsonl")
    assert big_s < 2 * small_s + 1.0  # reading it all would take several seconds
    with open(f"/proc/{running.process.pid}/status") as status:
        peak_kb = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    assert peak_kb < 150_000


def test_row_deadline_does_not_count_the_time_before_the_first_try(llmbatch: Llmbatch, sim: StartSim) -> None:
    """Twenty rows at ten a second wait up to two seconds for their turn; none of them may fail for that."""
    server = sim("--latency", "0.01")
    write_rows(llmbatch.directory / "in.jsonl", prompts(20))
    done = llmbatch(
        "run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "-c", "20", "--rpm", "600", "--row-deadline", "1s"
    )
    assert done.code == 0, done.err
