"""The key stays home: out of every file, every stream and every report of Python's own, whatever goes wrong."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest

from .processes import GOOD_KEY, PATIENCE_S, Done, Llmbatch, StartSim, prompts, until, write_rows

KEY = "sk-canary/0123+456789=="


def base64_at(offset: int) -> str:
    """The characters of a base64 text that hold bits of the key alone, if ``offset`` bytes stand before it."""
    return b64encode(bytes(offset) + KEY.encode())[-(-offset * 8 // 6) : (offset + len(KEY)) * 8 // 6].decode()


SPELLINGS = [KEY, quote(KEY, safe=""), KEY.encode().hex(), *map(base64_at, range(3))]
SHOWN = {"Authorization": f"Bearer {KEY}", "and": SPELLINGS[1:]}

# A program around the command in which everything that can go wrong does, and tells the headers of its requests.
DRIVER = """
import asyncio, logging, sys, threading, warnings
from llmbatch import __main__, sender
from llmbatch.errors import StorageError
from llmbatch.events import Notice
from llmbatch.rules.redact import Redactor

shown = {shown!r}

def unscrubbed(self, text):
    return text

if {unscrubbed}:
    Redactor.text = unscrubbed

class Finalized:
    def __del__(self):
        raise RuntimeError(f"of-finalizer {{shown}}")

class Spoken(Exception):
    def __repr__(self):
        return f"Spoken('of-task {{shown}}')"

async def fails():
    raise Spoken

def fails_in_thread():
    raise RuntimeError(f"of-thread {{shown}}")

def finished(self, *args):
    thread = threading.Thread(target=fails_in_thread)
    thread.start()
    thread.join()
    Finalized()
    asyncio.get_running_loop().create_task(fails())
    warnings.warn(f"of-warning {{shown}}")
    logging.getLogger("any").error("of-logging %s", shown)
    print(f"of-stderr {{shown}}", file=sys.stderr)
    print(f"of-stdout {{shown}}")
    self._listen(Notice("warning", f"of-notice {{shown}}"))
    return before(self, *args)

async def send(self, *args):
    await sending(self, *args)
    raise {error}(f"of-error {{shown}}")

def leave(code):
    from llmbatch.cli.summary_file import SummaryFile

    SummaryFile("planted.json").write({{"of-summary": [shown]}})
    raise RuntimeError(f"of-exit {{shown}} {{code}}")

before, sending = sender.Sender._finished, sender.Sender.send
sender.Sender._finished, sender.Sender.send, __main__._leave = finished, send, leave
__main__.main()
"""
SOURCES = ("finalizer", "task", "thread", "warning", "logging", "stderr", "stdout", "notice", "error", "exit")


def all_told(llmbatch: Llmbatch, done: Done) -> str:
    """Everything a run leaves behind, on screens and on the disk."""
    files = [path for path in llmbatch.directory.rglob("*") if path.is_file() and path.suffix != ".py"]
    return "\n".join([done.err, done.out.decode(), *(path.read_text() for path in files)])


def planted(llmbatch: Llmbatch, sim: StartSim, error: str, *, unscrubbed: bool) -> str:
    driver = llmbatch.directory / "driver.py"
    driver.write_text(DRIVER.format(shown=SHOWN, error=error, unscrubbed=unscrubbed))
    write_rows(llmbatch.directory / "in.jsonl", prompts(1))
    command = ["run", "in.jsonl", "-m", "m", "--base-url", sim().base_url, "--summary-json", "sum.json"]
    environment = {**llmbatch.environment, "OPENAI_API_KEY": KEY, "PYTHONWARNINGS": "always"}
    done = subprocess.run(
        [sys.executable, driver, *command],
        cwd=llmbatch.directory,
        env=environment,
        capture_output=True,
        timeout=PATIENCE_S,
    )
    return all_told(llmbatch, Done(done.returncode, done.stdout, done.stderr.decode(), 0.0))


@pytest.mark.parametrize("error", ["RuntimeError", "StorageError"])
def test_no_bug_and_no_report_of_python_shows_the_key(llmbatch: Llmbatch, sim: StartSim, error: str) -> None:
    told = planted(llmbatch, sim, error, unscrubbed=False)
    silent = [source for source in (*SOURCES, "summary") if f"of-{source}" not in told]
    assert not silent, f"never planted: {silent}\n{told}"
    assert not [spelling for spelling in SPELLINGS if spelling in told], told
    assert "sk-canary" not in told and "[key]" in told


def test_without_the_scrubber_every_planted_bug_would_show_it(llmbatch: Llmbatch, sim: StartSim) -> None:
    told = planted(llmbatch, sim, "RuntimeError", unscrubbed=True)
    assert not [spelling for spelling in SPELLINGS if spelling not in told]
    for source in SOURCES:
        assert re.search(rf"of-{source}.*{re.escape(KEY)}", told), source
    assert re.search(rf'"of-summary": \[\s*\{{\s*"Authorization": "Bearer {re.escape(KEY)}', told)


class _Echo(BaseHTTPRequestHandler):
    """Refuses everything, and repeats the key in every way it knows."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        message = f"Incorrect API key provided: {self.headers['Authorization']}. {' '.join(SPELLINGS)}"
        body = json.dumps({"error": {"message": message, "code": "invalid_api_key"}}).encode()
        self.send_response(401)
        self.send_header("x-request-id", f"req-{KEY}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.mark.parametrize("progress", ["plain", "json", "rich", "none"])
def test_the_key_a_server_repeats_is_nowhere(llmbatch: Llmbatch, progress: str) -> None:
    write_rows(llmbatch.directory / "in.jsonl", prompts(3))
    with ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        flags = ("-m", "m", "--base-url", f"http://127.0.0.1:{server.server_port}", "-v", "--progress", progress)
        done = llmbatch("run", "in.jsonl", *flags, "--summary-json", "sum.json", env={"OPENAI_API_KEY": KEY})
        server.shutdown()
    assert done.code == 3, done.err
    told = all_told(llmbatch, done)
    assert "Incorrect API key provided: Bearer [key]" in told
    assert "sk-canary" not in told and not [spelling for spelling in SPELLINGS if spelling in told]


def test_the_memory_of_a_run_with_a_key_is_its_own(llmbatch: Llmbatch, sim: StartSim) -> None:
    if not Path("/proc/self/limits").exists():
        pytest.skip("reads Linux's /proc")
    write_rows(llmbatch.directory / "in.jsonl", prompts(1))
    server = sim("--latency", "5")
    running = llmbatch.start(
        "run", "in.jsonl", "-m", "m", "--base-url", server.base_url, env={"OPENAI_API_KEY": GOOD_KEY}
    )
    until(lambda: server.ledger()["received"], "a request")
    limits = Path(f"/proc/{running.process.pid}/limits").read_text()
    assert re.search(r"Max core file size +0 ", limits), limits
    running.signal(signal.SIGKILL)


def test_dumps_and_debuggers_are_refused() -> None:
    script = (
        "import ctypes, resource, sys\n"
        "from llmbatch.machine import keep_memory_private\n"
        "keep_memory_private()\n"
        "assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0\n"
        "assert sys.platform != 'linux' or ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 0\n"  # PR_GET_DUMPABLE
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


@pytest.mark.parametrize("name", ["SSLKEYLOGFILE", "PYTHONASYNCIODEBUG"])
def test_a_variable_that_makes_the_process_tell_is_warned_of(llmbatch: Llmbatch, sim: StartSim, name: str) -> None:
    write_rows(llmbatch.directory / "in.jsonl", prompts(1))
    command = ("run", "in.jsonl", "-m", "m", "--base-url", sim().base_url)
    environment = {name: str(llmbatch.directory / "1")}
    warned = llmbatch(*command, env={**environment, "OPENAI_API_KEY": GOOD_KEY})
    assert warned.code == 0 and f"{name} is set" in warned.err
    assert f"{name} is set" not in llmbatch(*command, "--restart", env=environment).err


@pytest.mark.parametrize("name", ["\x1b[31mred.jsonl", "a\nllmbatch: Done", "\u202egnp.jsonl"])
def test_an_error_about_a_file_does_not_let_its_name_act(llmbatch: Llmbatch, name: str) -> None:
    done = llmbatch("run", name, "-m", "sim/x")
    assert done.code == 2
    assert len(done.err.splitlines()) == 1 and name not in done.err
