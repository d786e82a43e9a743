"""Standard output: a reader that leaves, one that is slow, one that is not there."""

from __future__ import annotations

import json
import signal
import time

from .processes import Llmbatch, StartSim, assert_answers, prompts, read_lines, until, whole_lines, write_rows


def test_reader_that_leaves_ends_the_run_quietly_and_nothing_is_paid_twice(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.02")
    write_rows(llmbatch.directory / "in.jsonl", prompts(300))
    command = f"llmbatch run in.jsonl -o - -q -m m --base-url {server.base_url} -c 5"
    first = llmbatch.shell(f"{command} | head -1; echo ${{PIPESTATUS[@]}}")
    line, codes = first.out.decode().splitlines()
    assert codes == "141 0"
    assert json.loads(line)["status"] == "ok"
    assert "Traceback" not in first.err
    assert "Exception ignored" not in first.err
    (journal,) = llmbatch.journals()
    recorded = len(whole_lines(journal))
    assert recorded == server.ledger()["billed"] < 300
    second = llmbatch.shell(f"{command} --order input")
    assert second.code == 0, second.err
    assert_answers(second.lines, prompts(300))
    assert server.ledger()["billed"] == 300
    assert llmbatch.journals() == []


def test_order_input_sorts_and_completion_does_not_wait(llmbatch: Llmbatch, sim: StartSim) -> None:
    script = llmbatch.directory / "script.jsonl"
    script.write_text('{"prompt": "prompt 1 ", "fault": "500", "times": 1}\n')
    server = sim("--latency", "uniform:low=0,high=0.2")
    write_rows(llmbatch.directory / "in.jsonl", prompts(60))
    flags = ("run", "in.jsonl", "-o", "-", "-m", "m", "--base-url", server.base_url, "-c", "60")
    assert_answers(llmbatch(*flags, "--order", "input").lines, prompts(60))
    completed = [line["row"] for line in llmbatch(*flags).lines]
    assert sorted(completed) == list(range(1, 61))
    assert completed != sorted(completed)


def test_slow_reader_loses_nothing(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--output-tokens", "5000")
    write_rows(llmbatch.directory / "in.jsonl", prompts(1500, "a prompt with many words " * 8))
    running = llmbatch.start("run", "in.jsonl", "-o", "-", "-q", "-m", "m", "--base-url", server.base_url, "-c", "50")
    until(lambda: settled(server), "the run waits for its reader")
    assert server.ledger()["received"] < 1500
    done = running.end()
    assert done.code == 0
    assert sorted(line["row"] for line in done.lines) == list(range(1, 1501))


def settled(server: object) -> bool:
    before = server.ledger()["received"]  # type: ignore[attr-defined]
    time.sleep(0.2)
    return before > 0 and server.ledger()["received"] == before  # type: ignore[attr-defined]


def test_reader_that_never_reads_can_be_left_with_two_interrupts(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--output-tokens", "5000")
    write_rows(llmbatch.directory / "in.jsonl", prompts(100))
    flags = ("run", "in.jsonl", "-o", "-", "-q", "-m", "m", "--base-url", server.base_url)
    running = llmbatch.start(*flags)
    until(lambda: server.ledger()["billed"] == 100, "all answers")
    time.sleep(0.1)
    running.signal(signal.SIGINT)
    time.sleep(0.2)
    running.signal(signal.SIGINT)
    assert running.process.wait(5) == 130
    done = llmbatch(*flags, "--order", "input")
    assert [line["row"] for line in done.lines] == list(range(1, 101))
    assert server.ledger()["billed"] == 100


def test_full_disk_behind_stdout_is_5_and_the_journal_keeps_the_answers(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim()
    write_rows(llmbatch.directory / "in.jsonl", prompts(20))
    command = f"llmbatch run in.jsonl -o - -m m --base-url {server.base_url}"
    full = llmbatch.shell(f"{command} > /dev/full")
    assert full.code == 5, full.err
    assert "No space left on device" in full.err
    assert "Traceback" not in full.err
    billed = server.ledger()["billed"]
    (journal,) = llmbatch.journals()
    assert len(whole_lines(journal)) == billed
    again = llmbatch.shell(f"{command} --order input")
    assert again.code == 0
    assert_answers(again.lines, prompts(20))
    assert server.ledger()["billed"] == 20


def test_failed_rows_of_a_pipeline_keep_its_journal_for_the_same_command(llmbatch: Llmbatch, sim: StartSim) -> None:
    script = llmbatch.directory / "script.jsonl"
    script.write_text('{"prompt": "prompt 3", "fault": "400", "times": 1}\n')
    server = sim("--script", str(script))
    rows = "".join(f'"{prompt}"\n' for prompt in prompts(5)).encode()
    flags = ("run", "-", "-m", "m", "--base-url", server.base_url, "--order", "input")
    first = llmbatch(*flags, stdin=rows)
    assert first.code == 1
    assert [line["status"] for line in first.lines] == ["ok", "ok", "error", "ok", "ok"]
    second = llmbatch(*flags, stdin=rows)
    assert second.code == 0
    assert_answers(second.lines, prompts(5))
    assert server.ledger()["received"] == 6
    assert llmbatch.journals() == []


def test_no_journal_leaves_nothing_behind(llmbatch: Llmbatch, sim: StartSim) -> None:
    script = llmbatch.directory / "script.jsonl"
    script.write_text('{"prompt": "prompt 3", "fault": "400"}\n')
    server = sim("--script", str(script))
    rows = "".join(f'"{prompt}"\n' for prompt in prompts(5)).encode()
    done = llmbatch(*("run", "-", "-m", "m", "--base-url", server.base_url, "--no-journal"), stdin=rows)
    assert done.code == 1
    assert len(done.lines) == 5
    assert llmbatch.journals() == []


def test_closed_descriptors_do_not_mix_output_into_files(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim()
    write_rows(llmbatch.directory / "in.jsonl", prompts(5))
    command = f"llmbatch run in.jsonl -m m --base-url {server.base_url}"
    done = llmbatch.shell(f"{command} <&- >&- 2>&-")
    assert done.code == 0
    assert_answers(read_lines(llmbatch.directory / "in.results.jsonl"), prompts(5))
    closed_in = llmbatch.shell(f"llmbatch run - -m m --base-url {server.base_url} <&-")
    assert closed_in.out == b""
    assert "Traceback" not in closed_in.err
    closed_out = llmbatch.shell(f"{command} -o - >&-")
    assert closed_out.code == 5, closed_out.err  # nobody would ever see what is paid for
    assert "cannot write standard output" in closed_out.err


def test_two_pipelines_of_the_same_words_do_not_disturb_each_other(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.3")
    flags = ("run", "-", "-m", "m", "--base-url", server.base_url, "--order", "input", "-q")
    rows = "".join(f'"{prompt}"\n' for prompt in prompts(10)).encode()
    both = [llmbatch.start(*flags), llmbatch.start(*flags)]
    for running in both:
        assert running.process.stdin is not None
        running.process.stdin.write(rows)
        running.process.stdin.flush()
    for running in both:
        done = running.end()
        assert done.code == 0, done.err
        assert_answers(done.lines, prompts(10))
    assert llmbatch.journals() == []


def test_gone_stderr_does_not_stop_a_run(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.05")
    write_rows(llmbatch.directory / "in.jsonl", prompts(20))
    done = llmbatch.shell(
        f"llmbatch run in.jsonl -m m --base-url {server.base_url} --progress json 2>&1 >/dev/null | true; "
        "echo ${PIPESTATUS[0]}"
    )
    assert done.out.strip() == b"0"
    assert_answers(read_lines(llmbatch.directory / "in.results.jsonl"), prompts(20))
