"""`llmbatch sim` as a command."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from llmbatch.cli.simulate import sim

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "import typer; from llmbatch.cli.simulate import sim; typer.run(sim)"]


@contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command as a process, and its base URL."""
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith("sim: listening on http://127.0.0.1:")
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.communicate()


def post(base_url: str, prompt: str) -> dict[str, object]:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": prompt}]}).encode()
    request = urllib.request.Request(f"{base_url}/chat/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=5) as response:
        answer: dict[str, object] = json.load(response)
        return answer


@pytest.mark.parametrize("mode", ["async", "threads"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_signal_it_exits_0(number: signal.Signals, mode: str):
    with running("--mode", mode) as (process, base_url):
        assert post(base_url, "hello")["object"] == "chat.completion"
        process.send_signal(number)
        assert process.wait(5) == 0


def page(base_url: str, path: str) -> str:
    with urllib.request.urlopen(base_url.removesuffix("/v1") + path, timeout=5) as response:
        return str(response.read().decode())


def in_work(base_url: str, answer: Future[dict[str, object]]) -> None:
    """Return when the server works on the request."""
    while "llmbatch_sim_requests_in_flight 1\n" not in page(base_url, "/metrics"):
        assert not answer.done()


@pytest.mark.parametrize("mode", ["async", "threads"])
def test_sigterm_answers_what_is_in_flight_and_lets_nobody_in(mode: str):
    with (
        running("--mode", mode, "--latency", "1.5", "--drain", "10") as (process, base_url),
        ThreadPoolExecutor() as pool,
    ):
        answer = pool.submit(post, base_url, "hello")
        in_work(base_url, answer)
        process.terminate()
        with pytest.raises(OSError):
            while True:
                page(base_url, "/metrics")
        assert not answer.done(), "refused while the drain was on"
        assert answer.result(5)["object"] == "chat.completion"
        assert process.wait(5) == 0


@pytest.mark.parametrize("mode", ["async", "threads"])
def test_sigterm_waits_no_longer_than_the_grace(mode: str, tmp_path: Path):
    file = tmp_path / "bills.jsonl"
    arguments = ["--mode", mode, "--latency", "60", "--drain", "0.2", "--ledger", str(file)]
    with running(*arguments) as (process, base_url), ThreadPoolExecutor() as pool:
        answer = pool.submit(post, base_url, "hello")
        in_work(base_url, answer)
        process.terminate()
        assert process.wait(5) == 0
        with pytest.raises(OSError):
            answer.result(5)
    assert file.read_text() == "", "what was dropped is not billed"


@pytest.mark.parametrize("mode", ["async", "threads"])
def test_bills_survive_kill_9(tmp_path: Path, mode: str):
    file = tmp_path / "bills.jsonl"
    with running("--ledger", str(file), "--mode", mode) as (process, base_url):
        for i in range(3):
            post(base_url, f"{i}")
        process.kill()
        process.wait(5)
    assert [json.loads(line)["n"] for line in file.read_text().splitlines()] == [1, 2, 3]


def test_taken_port_exits_5():
    with running() as (_, base_url):
        port = base_url.removesuffix("/v1").rpartition(":")[2]
        second = subprocess.run([*COMMAND, "--port", port], cwd=ROOT, capture_output=True, text=True, timeout=10)
    assert second.returncode == 5
    assert port in second.stderr and "Traceback" not in second.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--latency", "soon"], "latency"),
        (["--fault", "teapot=0.1"], "teapot"),
        (["--fault", "429=0.1", "--fault", "500=2"], "at most 1"),
        (["--script", "/nonexistent"], "/nonexistent"),
        (["--mode", "fibres"], "async or threads"),
        (["--threads", "8"], "mode threads"),
        (["--mode", "threads", "--threads", "0"], "whole number from 1"),
    ],
)
def test_nonsense_exits_2_with_its_reason(arguments: list[str], says: str):
    result = CliRunner().invoke(app(), arguments)
    assert result.exit_code == 2
    assert says in result.output


def test_help_has_a_sentence_an_example_and_exit_codes():
    help_ = CliRunner().invoke(app(), ["--help"], env={"COLUMNS": "200"}).output
    for part in ("Run a simulated", "Example: llmbatch sim", "Exit codes:", "lognormal:median", "reset-after"):
        assert part in help_


def test_help_loads_no_server():
    code = "import sys, llmbatch.cli.simulate; print([m for m in sys.modules if m.startswith('llmbatch.sim')])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=dict(os.environ)
    )
    assert loaded.stdout.strip() == "[]"


def app() -> typer.Typer:
    typer_app = typer.Typer()
    typer_app.command()(sim)
    return typer_app
