"""What goes in, what comes out: the promises of the README that need no accident to be seen."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from llmbatch.sim.answers import expected_answer

from .processes import GOOD_KEY, Llmbatch, Sim, StartSim, assert_answers, prompts, read_lines, write_rows


def batch_line(number: int, prompt: str) -> dict[str, object]:
    body = {"model": "row-model", "messages": [{"role": "user", "content": prompt}]}
    return {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


JSON_FORMS = {
    "prompt": lambda number, prompt: {"id": f"r{number}", "prompt": prompt},
    "bare_string": lambda number, prompt: prompt,
    "messages": lambda number, prompt: {"messages": [{"role": "user", "content": prompt}]},
    "parts": lambda number, prompt: {"messages": [{"role": "user", "content": [{"type": "text", "text": prompt}]}]},
    "batch_line": batch_line,
}


@pytest.mark.parametrize("form", JSON_FORMS)
def test_each_form_of_a_row_gets_its_answer_in_its_line(llmbatch: Llmbatch, plain_sim: Sim, form: str) -> None:
    asked = prompts(30, form)
    write_rows(llmbatch.directory / "in.jsonl", [JSON_FORMS[form](n, prompt) for n, prompt in enumerate(asked, 1)])
    done = llmbatch("run", "in.jsonl", "-m", "sim-model", "--base-url", plain_sim.base_url)
    assert done.code == 0, done.err
    assert done.out == b""
    assert_answers(read_lines(llmbatch.directory / "in.results.jsonl"), asked)


def test_fields_text_and_gzip_are_read_as_they_are(llmbatch: Llmbatch, plain_sim: Sim) -> None:
    fields = [{"id": n, "text": f"text {n}", "model": "data, not the model"} for n in (1, 2, 3)]
    (llmbatch.directory / "in.jsonl.gz").write_bytes(
        gzip.compress("".join(f"{json.dumps(f)}\n" for f in fields).encode())
    )
    done = llmbatch("run", "in.jsonl.gz", "-t", "Sum up: {{ text }}", "-m", "m", "--base-url", plain_sim.base_url)
    assert done.code == 0, done.err
    lines = read_lines(llmbatch.directory / "in.results.jsonl")
    assert_answers(lines, [f"Sum up: text {n}" for n in (1, 2, 3)])
    assert [line["id"] for line in lines] == [1, 2, 3]
    (llmbatch.directory / "plain.txt").write_text("one\n\ntwo\r\nthree")
    assert llmbatch("run", "plain.txt", "-m", "m", "--base-url", plain_sim.base_url).code == 0
    assert_answers(read_lines(llmbatch.directory / "plain.results.jsonl"), ["one", "two", "three"])


def test_pipe_in_pipe_out_with_data_on_stdout_only(llmbatch: Llmbatch, plain_sim: Sim) -> None:
    asked = prompts(40)
    rows = "".join(f"{json.dumps({'prompt': prompt})}\n" for prompt in asked).encode()
    done = llmbatch("run", "-", "-m", "m", "--base-url", plain_sim.base_url, "--order", "input", stdin=rows)
    assert done.code == 0
    assert_answers(done.lines, asked)
    assert "40 rows = 40 ok" in done.err
    assert llmbatch.journals() == []


def test_bad_rows_become_error_lines_and_cost_nothing(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim()
    bad = ["{broken", '{"prompt": ""}', "[1]", '{"prompt": "x", "api_key": "k"}', '{"question": "x"}', '{"prompt": 5}']
    text = '{"prompt": "good 1"}\n' + "\n".join(bad) + '\n{"prompt": "good 2"}\n'
    (llmbatch.directory / "in.jsonl").write_text(text)
    done = llmbatch("run", "in.jsonl", "-m", "m", "--base-url", server.base_url)
    assert done.code == 1
    lines = read_lines(llmbatch.directory / "in.results.jsonl")
    assert [line["row"] for line in lines] == list(range(1, 9))
    assert [line["status"] for line in lines] == ["ok", *["error"] * 6, "ok"]
    for number, line in enumerate(lines[1:7], 2):
        assert line["error"]["type"] == "invalid_row"
        assert f"line {number}:" in line["error"]["message"]
        assert line["attempts"] == 0
    assert server.ledger()["received"] == 2


def test_duplicate_id_is_an_error_line_that_names_the_id(llmbatch: Llmbatch, plain_sim: Sim) -> None:
    rows = [
        {"id": "a", "prompt": "one"},
        {"id": "a", "prompt": "two"},
        {"id": 1, "prompt": "3"},
        {"id": "1", "prompt": "4"},
    ]
    write_rows(llmbatch.directory / "in.jsonl", rows)
    command = ("run", "in.jsonl", "-m", "m", "--base-url", plain_sim.base_url)
    assert llmbatch(*command).code == 1
    for _ in range(2):  # and so it stays when the command is run again
        lines = read_lines(llmbatch.directory / "in.results.jsonl")
        assert [line["status"] for line in lines] == ["ok", "error", "ok", "ok"]
        assert lines[1]["error"]["type"] == "duplicate_id"
        assert "'a'" in lines[1]["error"]["message"]
        assert llmbatch(*command).code == 1


def test_limit_params_system_and_input_reach_request_and_result(llmbatch: Llmbatch, plain_sim: Sim) -> None:
    rows = [{"id": n, "prompt": f"a long enough prompt number {n}", "tag": "t"} for n in range(1, 9)]
    write_rows(llmbatch.directory / "in.jsonl", rows)
    flags = ("-m", "m", "--base-url", plain_sim.base_url, "--limit", "3", "--include-input", "-o", "out.jsonl")
    done = llmbatch("run", "in.jsonl", *flags, "-p", "max_tokens=2", "-s", "Be {{ tag }}.")
    assert done.code == 0, done.err
    lines = read_lines(llmbatch.directory / "out.jsonl")
    assert [line["input"] for line in lines] == rows[:3]
    for row, line in zip(rows, lines, strict=False):
        assert line["output"] == expected_answer(str(row["prompt"]))[:8]  # two tokens of four characters
        assert line["finish_reason"] == "length"
    without_system = llmbatch("run", "in.jsonl", *flags, "-p", "max_tokens=2", "--restart")
    assert without_system.code == 0
    shorter = read_lines(llmbatch.directory / "out.jsonl")
    assert shorter[0]["usage"]["input_tokens"] < lines[0]["usage"]["input_tokens"]


def test_limit_lifted_runs_only_the_rest(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim()
    asked = prompts(20)
    write_rows(llmbatch.directory / "in.jsonl", asked)
    flags = ("run", "in.jsonl", "-m", "m", "--base-url", server.base_url)
    assert llmbatch(*flags, "--limit", "5").code == 0
    assert len(read_lines(llmbatch.directory / "in.results.jsonl")) == 5
    assert llmbatch(*flags).code == 0
    assert_answers(read_lines(llmbatch.directory / "in.results.jsonl"), asked)
    assert server.ledger()["received"] == 20


def test_row_system_params_and_model_win_over_the_command_line(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--models", "from-row")
    write_rows(llmbatch.directory / "in.jsonl", [{"prompt": "hello there you", "model": "from-row", "max_tokens": 1}])
    done = llmbatch("run", "in.jsonl", "-m", "unknown", "--base-url", server.base_url, "-p", "max_tokens=9")
    assert done.code == 0, done.err
    assert len(read_lines(llmbatch.directory / "in.results.jsonl")[0]["output"]) == 4


def test_summary_json_adds_up_and_counts_what_happened(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--fault", "503=0.3", "--retry-after", "0")
    rows = [*prompts(40), {"prompt": ""}]
    write_rows(llmbatch.directory / "in.jsonl", rows)
    done = llmbatch("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "--summary-json", "sum.json")
    assert done.code == 1
    summary = json.loads((llmbatch.directory / "sum.json").read_text())
    ledger = server.ledger()
    assert (summary["rows"], summary["ok"], summary["failed"], summary["pending"]) == (41, 40, 1, 0)
    assert summary["adds_up"] is True
    assert summary["exit_code"] == 1
    assert summary["requests"] == ledger["received"]
    assert summary["retries"] == ledger["rejected"]["503"] > 0
    assert summary["output_tokens"] == ledger["billed_completion_tokens"]
    assert summary["input_tokens"] == ledger["billed_prompt_tokens"]
    assert summary["errors"][0]["type"] == "invalid_row"


def test_summary_json_on_stdout_is_the_only_thing_there(llmbatch: Llmbatch, plain_sim: Sim) -> None:
    write_rows(llmbatch.directory / "in.jsonl", prompts(3))
    done = llmbatch("run", "in.jsonl", "-m", "m", "--base-url", plain_sim.base_url, "--summary-json", "-", "-q")
    assert done.code == 0
    assert json.loads(done.out)["ok"] == 3
    assert done.err == ""


def test_dry_run_sends_nothing_and_leaves_nothing(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim()
    write_rows(llmbatch.directory / "in.jsonl", [*prompts(7), {"prompt": ""}])
    before = sorted(path.name for path in llmbatch.directory.iterdir())
    done = llmbatch("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "--dry-run", "--rpm", "60")
    assert done.code == 1  # as the run would end
    assert "7 to send" in done.err
    assert "1 unusable" in done.err
    assert done.out == b""
    assert server.ledger()["received"] == 0
    assert sorted(path.name for path in llmbatch.directory.iterdir()) == before


def test_dry_run_of_a_pipeline_leaves_nothing_in_the_state_directory(llmbatch: Llmbatch) -> None:
    done = llmbatch("run", "-", "-m", "sim/x", "--dry-run", stdin=b'{"prompt": "a"}\n')
    assert done.code == 0, done.err
    assert [path for path in llmbatch.directory.rglob("*") if path.is_file()] == []


def test_default_output_stands_beside_the_input_and_is_private(llmbatch: Llmbatch, plain_sim: Sim) -> None:
    folder = llmbatch.directory / "data"
    folder.mkdir()
    write_rows(folder / "my.rows.jsonl", prompts(2))
    assert llmbatch("run", "data/my.rows.jsonl", "-m", "m", "--base-url", plain_sim.base_url).code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["my.rows.jsonl", "my.rows.results.jsonl"]
    assert (folder / "my.rows.results.jsonl").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"\n\n  \n"])
def test_input_without_rows_is_complete_at_once(llmbatch: Llmbatch, content: bytes) -> None:
    (llmbatch.directory / "in.jsonl").write_bytes(content)
    done = llmbatch("run", "in.jsonl", "-m", "sim/x")
    assert done.code == 0, done.err
    assert (llmbatch.directory / "in.results.jsonl").read_bytes() == b"" or read_lines(
        llmbatch.directory / "in.results.jsonl"
    ) == []


def test_quiet_says_nothing_and_verbose_says_each_failed_attempt(llmbatch: Llmbatch, sim: StartSim) -> None:
    script = llmbatch.directory / "script.jsonl"
    script.write_text('{"prompt": "prompt 2", "fault": "500", "times": 1}\n')
    server = sim("--script", str(script))
    write_rows(llmbatch.directory / "in.jsonl", prompts(3))
    command = ("run", "in.jsonl", "-m", "m", "--base-url", server.base_url)
    verbose = llmbatch(*command, "-v")
    assert verbose.code == 0
    assert "again in" in verbose.err
    assert llmbatch(*command, "-q", "--restart").err == ""


@pytest.mark.parametrize("kind", ["rich", "plain", "json", "none"])
def test_each_kind_of_progress_goes_to_stderr_only(llmbatch: Llmbatch, kind: str) -> None:
    rows = b"".join(b'{"prompt": "p %d"}\n' % number for number in range(20))
    done = llmbatch("run", "-", "-m", "sim/x", "--sim", "latency=0.3", "--progress", kind, "-c", "20", stdin=rows)
    assert done.code == 0, done.err
    assert len(done.lines) == 20
    assert "20 rows = 20 ok" in done.err
    if kind == "json":
        events = [json.loads(line) for line in done.err.splitlines() if line.startswith("{")]
        assert [events[0]["event"], events[-1]["event"]] == ["start", "end"]
        assert events[-1]["done"] == 20  # the last word is not an old one


def test_key_is_sent_and_stands_nowhere(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--api-key", GOOD_KEY)
    write_rows(llmbatch.directory / "in.jsonl", prompts(3))
    command = ("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "-v", "--summary-json", "sum.json")
    done = llmbatch(*command, "--key-env", "MY_KEY", env={"MY_KEY": GOOD_KEY})
    assert done.code == 0, done.err
    written = b"".join(path.read_bytes() for path in llmbatch.directory.rglob("*") if path.is_file())
    assert GOOD_KEY.encode() not in written + done.out + done.err.encode()


def test_version_and_help_answer_without_a_run(llmbatch: Llmbatch) -> None:
    assert llmbatch("--version").out.startswith(b"llmbatch ")
    for command in ((), ("run",), ("sim",)):
        done = llmbatch(*command, "--help")
        assert done.code == 0
        assert b"Usage" in done.out
    assert b"Exit codes" in llmbatch("run", "--help").out


def test_symlinked_output_keeps_its_link(llmbatch: Llmbatch, plain_sim: Sim) -> None:
    write_rows(llmbatch.directory / "in.jsonl", prompts(2))
    Path(llmbatch.directory / "link.jsonl").symlink_to("target.jsonl")
    assert llmbatch("run", "in.jsonl", "-o", "link.jsonl", "-m", "m", "--base-url", plain_sim.base_url).code == 0
    assert (llmbatch.directory / "link.jsonl").is_symlink()
    assert_answers(read_lines(llmbatch.directory / "target.jsonl"), prompts(2))
