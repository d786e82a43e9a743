"""The real command and the simulated provider, each a process of its own; nothing is shared with the user's home."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from llmbatch.sim.answers import expected_answer, prompt_hash
from llmbatch.sim.options import sim_options_from
from llmbatch.sim.serve import serve

COMMAND = [sys.executable, "-m", "llmbatch"]
PATIENCE_S = 30.0
GOOD_KEY = "sk-canary-3f1c9d7e2b"


def until(condition: Callable[[], Any], what: str, within_s: float = PATIENCE_S) -> Any:
    """The first true value of ``condition``, asked often."""
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"not within {within_s:g} s: {what}")


def prompts(count: int, word: str = "prompt") -> list[str]:
    return [f"{word} {number}" for number in range(1, count + 1)]


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Results without manifests."""
    lines = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    return [line for line in lines if "llmbatch" not in line]


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """The same of a journal that is being written: without a last line that has no end yet."""
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    return [line for line in lines if "llmbatch" not in line]


def assert_answers(lines: list[dict[str, Any]], asked: list[str]) -> None:
    """One line per row, in input order, each with the answer to its own prompt."""
    assert [line["row"] for line in lines] == list(range(1, len(asked) + 1))
    assert [line.get("output") for line in lines] == [expected_answer(prompt) for prompt in asked]


# A provider is a process of its own, forked from one that has imported what it needs: half a second less for each.
_WARM = multiprocessing.get_context("forkserver")
_WARM.set_forkserver_preload(["llmbatch.sim.modes", "llmbatch.sim.serve"])


def _settings(flags: tuple[str, ...]) -> dict[str, str]:
    """The flags of `llmbatch sim` as settings by name."""
    settings = {"port": "0", "drain": "0.2"}
    words = iter(flags)
    for name in (word.removeprefix("--") for word in words):
        value = "true" if name == "no-headers" else next(words)
        joint = {"fault": ",", "at": ";"}.get(name)
        settings[name] = f"{settings[name]}{joint}{value}" if joint and name in settings else value
    return settings


def _serve(settings: dict[str, str], announced: Connection) -> None:
    serve(sim_options_from(settings), announced.send)


class Sim:
    """A running `llmbatch sim`."""

    def __init__(self, *flags: str) -> None:
        heard, announced = _WARM.Pipe(duplex=False)
        self._process = _WARM.Process(target=_serve, args=(_settings(flags), announced), daemon=True)
        self._process.start()
        announced.close()
        with heard:
            self.base_url: str = heard.recv()

    @property
    def port(self) -> str:
        return self.base_url.rsplit(":", 1)[1].removesuffix("/v1")

    def ledger(self, full: bool = False) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.base_url}/ledger{'?full' if full else ''}", timeout=10) as answer:
            return json.load(answer)  # type: ignore[no-any-return]

    def times_billed(self, prompt: str) -> int:
        return int(self.ledger(full=True)["billed_by_prompt"].get(prompt_hash(prompt), 0))

    def stop(self) -> None:
        self._process.kill()
        self._process.join()


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: bytes
    err: str
    seconds: float

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


class Running:
    """A command that runs. ``signal`` it, ``end`` it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._began_s = time.monotonic()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, stdin: bytes | None = None, within_s: float = PATIENCE_S) -> Done:
        try:
            out, err = self.process.communicate(stdin, timeout=within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            raise AssertionError(f"still running after {within_s:g} s: {err.decode()}") from None
        seconds = time.monotonic() - self._began_s
        return Done(self.process.returncode, out or b"", (err or b"").decode(), seconds)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


class Llmbatch:
    """Runs the real command in the test's directory, with a home of its own and no key."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.state = directory / "state" / "llmbatch"
        self._stack = stack
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory / "home"),
            "XDG_STATE_HOME": str(directory / "state"),
            "PYTHONWARNINGS": "error",
            "LC_ALL": "C.UTF-8",
            "SSL_CERT_FILE": os.devnull,  # read twice at each start, and no test asks who is not of its own making
        }

    def start(self, *args: str | Path, env: Mapping[str, str] | None = None, **popen: Any) -> Running:
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(
            [*COMMAND, *map(str, args)],
            cwd=self.directory,
            env={**self.environment, **(env or {})},
            **{**streams, **popen},
        )
        running = Running(process)
        self._stack.callback(running.close)
        return running

    def __call__(
        self,
        *args: str | Path,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        within_s: float = PATIENCE_S,
        **popen: Any,
    ) -> Done:
        done = self.start(*args, env=env, **popen).end(stdin, within_s)
        assert "Traceback" not in done.err, done.err
        return done

    def shell(self, script: str) -> Done:
        """A line of bash in which `llmbatch` is this command."""
        name = f'llmbatch() {{ {" ".join(COMMAND)} "$@"; }}\n'
        process = subprocess.Popen(
            ["bash", "-c", name + script],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        running = Running(process)
        self._stack.callback(running.close)
        return running.end()

    def journals(self) -> list[Path]:
        """The journals of runs to standard output."""
        return sorted(self.state.glob("*.partial"))


class SharedSim:
    """A plain provider that runs for all tests, as one of them sees it: counted from now on."""

    def __init__(self, server: Sim) -> None:
        self.base_url = server.base_url
        self._server = server
        self._before = server.ledger()

    def ledger(self) -> dict[str, int]:
        now = self._server.ledger()
        return {name: now[name] - self._before[name] for name in ("received", "billed")}


StartSim = Callable[..., Any]
