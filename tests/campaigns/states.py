"""Runs, kills, power cuts and edits in any order: what was promised holds after each of them.

A Hypothesis state machine plays the user and fate: it edits the input (with ids and without), changes the model and
the template, removes a line of the output by hand, and starts runs, which answer, fail, are stopped, meet another
run's lock, or die at any step of any file operation, between two bytes of a write too; after a death the power may
fail as well, and then what was not yet made durable is cut off anywhere, zeroed, or has its old name again.

A run is the real one from file to file (runner, retries, journal, recovery, seal), in a forked child that can truly
die; only the wire is a model that keeps a ledger, and only syncing is not done but noted.

Kept if no answer that was reported done (after a power cut: and was durable) is ever missing from the disk or asked
for again, no more than what was in flight at a crash is asked for twice, the output exists if and only if a run
completed, with one line for each row in order and what was answered for removed rows behind, the counts add up, and a
refused run sent nothing and changed nothing. Counted: steps and runs, deaths and power cuts.
"""

from __future__ import annotations

import asyncio
import contextlib
import encodings.idna  # noqa: F401  else each child imports it
import gc
import io
import itertools
import json
import os
import re
import shutil
import signal
import stat
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import aiofiles.threadpool
import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from campaigns.campaign import Report
from llmbatch.errors import LlmbatchError
from llmbatch.events import Event, RowEnded
from llmbatch.files.lock import OutputLock
from llmbatch.files.paths import OutputPaths
from llmbatch.options import RetryLimits, RunOptions
from llmbatch.records import Attempt, CallFailed, Failure, Reply, Request, Trace, Usage
from llmbatch.runner import Run
from llmbatch.stopping import Stop, StopReason

LONG_RUNS = 500  # examples
STEPS = 50
ENDPOINT = "http://127.0.0.1:9/v1"  # nobody is asked there
EXIT_CRASHED = 99

FAILURES = {
    "error": Failure("permanent", "bad_request", "no", http_status=400),
    "ambiguous": Failure("ambiguous", "timeout", "nothing came", retryable=True),
}


# The child: one run that may die


@dataclass(frozen=True)
class Fate:
    """What befalls a run: how its calls end, in turn; after how many it is stopped; at which file operation it dies.

    ``died_within`` is how far that operation had come, from 0 to 1. What goes to a thread begins after some turns of
    the loop, ``pauses`` in turn.
    """

    outcomes: tuple[str, ...] = ("ok",)
    stop_after: int | None = None
    die_at: int | None = None
    died_within: float = 0.0
    pauses: tuple[int, ...] = (0,)


class OneThread(asyncio.SelectorEventLoop):
    """What goes to a thread is done here some turns later: what is written while something syncs is no chance."""

    def __init__(self, pauses: Sequence[int]) -> None:
        super().__init__()
        self._pauses = itertools.cycle(pauses)

    def run_in_executor(self, executor: Any, act: Any, *args: Any) -> Any:
        done = self.create_future()
        self._later(next(self._pauses), done, lambda: act(*args))
        return done

    def _later(self, turns: int, done: asyncio.Future[Any], act: Callable[[], Any]) -> None:
        if turns:
            self.call_soon(self._later, turns - 1, done, act)
            return
        try:
            done.set_result(act())
        except Exception as error:
            done.set_exception(error)


class Child:
    """Runs, and writes what it does into a pipe, at once, so that its death can hide nothing."""

    def __init__(self, pipe: int, options: RunOptions, fate: Fate, first_token: int, attic: Path) -> None:
        self._pipe = pipe
        self._options = options
        self._fate = fate
        self._token = first_token
        self._attic = attic
        self._operations = 0
        self._calls = 0
        self._stop = Stop()
        self._journal = -1  # its inode
        self._write, self._rename, self._unlink, self._truncate = os.write, os.rename, os.unlink, os.ftruncate

    def live(self) -> None:
        """Never returns."""
        gc.disable()  # it would touch, and so copy, all memory of the parent
        try:
            with self._world():
                loop = OneThread(self._fate.pauses)
                run = Run(self._options, listen=self._heard, stop=self._stop)
                summary = loop.run_until_complete(run.execute())
            self._tell("ended", summary.to_json())
        except LlmbatchError as error:
            self._tell("refused", type(error).__name__, str(error))
        except BaseException:
            self._tell("crashed", traceback.format_exc())
        os._exit(0)

    def _tell(self, *what: Any) -> None:
        self._write(self._pipe, json.dumps(what).encode() + b"\n")

    def _heard(self, event: Event) -> None:
        if isinstance(event, RowEnded):
            self._tell("done", event.result.row, event.result.output)

    @contextlib.contextmanager
    def _world(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for name, act in {
                "write": self._os_write,
                "rename": self._os_rename,
                "replace": self._os_rename,
                "unlink": self._os_unlink,
                "ftruncate": self._os_truncate,
                "fdatasync": self._sync,
                "fsync": self._sync,
            }.items():
                stack.enter_context(mock.patch.object(os, name, act))
            stack.enter_context(mock.patch.object(aiofiles.threadpool, "sync_open", self._open))
            stack.enter_context(mock.patch("llmbatch.sender.Wire", lambda *args, **more: self._call))
            yield

    # The provider

    async def _call(self, request: Request, trace: Trace) -> Reply:
        attempt = Attempt(sent_s=0.0)
        trace.attempts.append(attempt)
        outcome = self._fate.outcomes[self._calls % len(self._fate.outcomes)]
        self._calls += 1
        self._token += 1
        token = self._token
        self._tell("billed", token, asked(request.model, request.messages[-1]["content"]), outcome == "ok")
        await asyncio.sleep(0)
        if self._calls == self._fate.stop_after:
            self._stop.request(StopReason("stopped by SIGINT", 130))
        if outcome != "ok":
            attempt.failure = FAILURES[outcome]
            raise CallFailed(attempt.failure)
        return Reply(token, "stop", request.model, Usage())

    # The disk

    def _dies(self, of: int) -> int | None:
        """Counts one more operation. How many of its parts are still done if it is the last one."""
        self._operations += 1
        return None if self._operations != self._fate.die_at else round(of * self._fate.died_within)

    def _die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _os_write(self, fd: int, data: Any) -> int:
        if (part := self._dies(len(data))) is not None:
            self._write(fd, bytes(data)[:part])
            self._die()
        return self._write(fd, data)

    def _os_rename(self, source: Any, target: Any) -> None:
        part = self._dies(1)
        if part != 0:
            if Path(target).name not in SOCKETS:  # which holds nothing that a power cut could take away
                self._tell("renamed", str(source), str(target))
            self._rename(source, target)
        if part is not None:
            self._die()

    def _os_unlink(self, path: Any) -> None:
        part = self._dies(1)
        if part != 0:
            kept = self._attic / str(len(os.listdir(self._attic)))
            with contextlib.suppress(FileNotFoundError):
                if not SOCKETS & {Path(path).name, Path(path).parent.name}:
                    os.link(path, kept)
                    self._tell("removed", str(path), str(kept))
            self._unlink(path)
        if part is not None:
            self._die()

    def _os_truncate(self, fd: int, size: int) -> None:
        part = self._dies(1)
        if part != 0:
            self._truncate(fd, size)
        if part is not None:
            self._die()

    def _sync(self, fd: int) -> None:
        status = os.fstat(fd)
        if status.st_ino == self._journal:
            self._tell("journal sync begins")
        part = self._dies(1)
        if part != 0:
            kind = "names" if stat.S_ISDIR(status.st_mode) else "journal" if status.st_ino == self._journal else "file"
            self._tell(f"{kind} synced", status.st_ino, status.st_size)
        if part is not None:
            self._die()

    def _open(self, file: Any, *, opener: Any, **how: Any) -> io.FileIO:
        child = self

        class Mortal(io.FileIO):
            def write(self, data: Any, /) -> int:
                return child._os_write(self.fileno(), data)

        opened = Mortal(file, "ab", opener=opener)
        self._journal = os.fstat(opened.fileno()).st_ino
        return opened


def asked(model: str, text: str) -> str:
    """What tells two requests apart."""
    return f"{model}: {text}"


# The parent: what it knows, and what must hold


@dataclass
class InputRow:
    """``name`` never changes; ``version`` 0 can not be sent."""

    name: str
    has_id: bool
    version: int

    @property
    def prompt(self) -> str:
        return f"{self.name} v{self.version}"

    @property
    def fields(self) -> dict[str, str]:
        asks = {"prompt": self.prompt} if self.version else {"nothing": ""}
        return {"id": self.name, **asks} if self.has_id else asks

    def identity(self, number: int) -> str:
        return self.name if self.has_id else f"#{number}"


@dataclass(frozen=True)
class Answer:
    """``token`` is what was answered, and never twice the same."""

    asked: str
    token: int


@dataclass
class Told:
    """What a run let its parent know until it ended or died."""

    billed: list[tuple[int, str]] = field(default_factory=list)
    answered: set[str] = field(default_factory=set)  # what of it got an answer
    done: list[tuple[int, int | None]] = field(default_factory=list)
    durable: int = 0  # so many of ``done`` came before the last sync began that ended
    synced: bool = False  # the journal, once: what earlier runs left in it is durable with it
    sizes: dict[int, int] = field(default_factory=dict)
    names: list[tuple[str, str, str]] = field(default_factory=list)  # changes that no sync of a directory followed
    ended: dict[str, Any] | None = None
    refused: tuple[str, str] | None = None
    _begun: int = 0

    def hear(self, what: str, *values: Any) -> None:
        match what:
            case "billed":
                self.billed.append((values[0], values[1]))
                self.answered |= {values[1]} if values[2] else set()
            case "done":
                self.done.append((values[0], values[1]))
            case "journal sync begins":
                self._begun = len(self.done)
            case "journal synced":
                self.durable = self._begun
                self.synced = True
                self.sizes[values[0]] = values[1]
            case "file synced":
                self.sizes[values[0]] = values[1]
            case "names synced":
                self.names.clear()
            case "renamed" | "removed":
                self.names.append((what, values[0], values[1]))
            case "ended":
                self.ended = values[0]
            case "refused":
                self.refused = (values[0], values[1])
            case _:
                raise AssertionError(f"{what}: {values}")

    @property
    def died(self) -> bool:
        return self.ended is None and self.refused is None


PROMPT = re.compile(r"(\w+) v\d+$")
TEMPLATES = (None, "Please: {{ prompt }}")
# The one for llmbatch ctl, and the directory in which it is made.
SOCKETS = {"out.jsonl.ctl", ".out.jsonl.ctl"}
SOMEBODY_ELSES = {"notes.txt": b"mine", "out.jsonl.partial.old": b"{}", ".out.jsonl.sealing2": b"", "other.lock": b"x"}

outcomes = st.lists(st.sampled_from(["ok", "ok", "ok", "error", "ambiguous"]), min_size=1, max_size=5).map(tuple)
pauses = st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple)
lives = st.builds(Fate, outcomes, stop_after=st.none() | st.integers(1, 6), pauses=pauses)
deaths = st.builds(
    Fate,
    outcomes,
    stop_after=st.none() | st.integers(1, 6),
    die_at=st.integers(1, 30),
    died_within=st.sampled_from([0, 0.3, 0.6, 1]),
    pauses=pauses,
)
on_changes = st.sampled_from([None, "rerun", "keep"])


@dataclass(frozen=True)
class PowerCut:
    """Of what was not durable, the share of bytes that stays, whether the rest is zeros, how many names go back."""

    stays: float
    zeros: bool
    names: int


power_cuts = st.builds(PowerCut, st.floats(0, 1), st.booleans(), st.integers(0, 3))


def identity_of(line: Mapping[str, Any]) -> str:
    """A line of the output belongs to the row with its id, else to a row number; so does a row that can not be sent."""
    if not line["id"]:
        return f"#{line['row']}"
    return line["id"] if line["key"] else f"!{line['row']}"


class States(RuleBasedStateMachine):
    """``standing`` is what must be there: by row identity, what was asked last and answered."""

    report = Report()

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.work, self.attic, self.input = self.root / "work", self.root / "attic", self.root / "in.jsonl"
        self.work.mkdir()
        self.attic.mkdir()
        for name, data in SOMEBODY_ELSES.items():
            (self.work / name).write_bytes(data)
        self.out, self.partial = self.work / "out.jsonl", self.work / "out.jsonl.partial"
        self.rows: list[InputRow] = []
        self.names = 0
        self.model, self.template = "m1", TEMPLATES[0]
        self.standing: dict[str, Answer] = {}
        self.tokens: dict[int, str] = {}
        self.durable_sizes: dict[int, int] = {}
        self.loose: set[int | None] = set()  # answers of killed runs that no sync has followed yet
        self.crashed = False  # since the last run that ended
        self.ever_crashed = False

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    # The user

    @initialize(rows=st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=1, max_size=5))
    def first_input(self, rows: list[tuple[bool, int]]) -> None:
        for has_id, version in rows:
            self.append_row(has_id, version)

    @rule(has_id=st.booleans(), version=st.integers(0, 4))
    def append_row(self, has_id: bool, version: int) -> None:
        self.names += 1
        self.rows.append(InputRow(f"r{self.names}", has_id, min(version, 1)))

    @precondition(lambda self: len(self.rows) > 1)
    @rule(at=st.integers(0, 9))
    def remove_row(self, at: int) -> None:
        self.rows.pop(at % len(self.rows))

    @rule(chance=st.randoms(use_true_random=False))
    def reorder_rows(self, chance: Any) -> None:
        chance.shuffle(self.rows)

    @rule(at=st.integers(0, 9), version=st.integers(0, 2))
    def edit_row(self, at: int, version: int) -> None:
        self.rows[at % len(self.rows)].version = version

    @rule(model=st.sampled_from(["m1", "m2"]))
    def change_model(self, model: str) -> None:
        self.model = model

    @rule(template=st.sampled_from(TEMPLATES))
    def change_template(self, template: str | None) -> None:
        self.template = template

    @rule(at=st.integers(0, 9))
    def remove_line_of_output(self, at: int) -> None:
        if not self.out.exists() or self.partial.exists():
            return
        lines = self.out.read_bytes().splitlines(keepends=True)
        if len(lines) > 1:
            gone = json.loads(lines.pop(at % len(lines)))
            self.out.write_bytes(b"".join(lines))
            self.durable_sizes[self.out.stat().st_ino] = len(b"".join(lines))
            self._forget(lambda answer: answer.token == gone.get("output"))

    # Runs

    @rule(fate=lives, on_change=on_changes, concurrency=st.integers(1, 3), order=st.sampled_from([None, "completion"]))
    def run(self, fate: Fate, on_change: Any, concurrency: int, order: Any) -> None:
        self._run(fate, on_change, concurrency, order, None)

    @rule(on_change=st.sampled_from(["rerun", "keep"]))
    def run_to_the_end(self, on_change: Any) -> None:
        self._run(Fate(), on_change, 2, None, None)

    @rule(fate=deaths, on_change=on_changes, concurrency=st.integers(1, 3))
    def run_and_be_killed(self, fate: Fate, on_change: Any, concurrency: int) -> None:
        self._run(fate, on_change, concurrency, None, None)

    @rule(fate=deaths, on_change=on_changes, concurrency=st.integers(1, 3), power_cut=power_cuts)
    def run_until_power_fails(self, fate: Fate, on_change: Any, concurrency: int, power_cut: PowerCut) -> None:
        self._run(fate, on_change, concurrency, None, power_cut)

    def _run(self, fate: Fate, on_change: Any, concurrency: int, order: Any, power_cut: PowerCut | None) -> None:
        before, changed = self._snapshot(), self._changed()
        told = self._told(fate, on_change, concurrency, order)
        self.report.count("runs")
        self._check_bill(told)
        self._learn(told)
        self.durable_sizes |= told.sizes
        if told.synced:
            self.loose.clear()
        if told.died:
            self._after_death(told, concurrency, power_cut)
            return
        if told.refused is not None:
            assert told.refused[0] == "ChangedRows", told.refused
            assert on_change is None
            assert not told.billed and not told.done
            assert changed or self.ever_crashed, told.refused
            assert self.crashed or self._snapshot() == before
        else:
            assert on_change is not None or not changed, f"{changed} changed, and nobody was asked"
            self._check_end(told, on_change)
        self.crashed = False

    @rule(fate=lives)
    def run_while_another_one_runs(self, fate: Fate) -> None:
        before = self._snapshot()
        with OutputLock.acquire(OutputPaths.of(str(self.out))):
            told = self._told(fate, "rerun", 1, None)
        assert told.died or (told.refused is not None and told.refused[0] == "OutputRefused"), told
        assert not told.billed
        assert self._snapshot() == before

    def _told(self, fate: Fate, on_change: Any, concurrency: int, order: Any) -> Told:
        lines = [row.fields for row in self.rows]
        self.input.write_text("".join(json.dumps(line) + "\n" for line in lines))
        options = RunOptions(
            str(self.input),
            output=str(self.out),
            model=self.model,
            base_url=ENDPOINT,
            template=self.template,
            concurrency=concurrency,
            on_change=on_change,
            order=order,
            retry=RetryLimits(base_s=0.0001),
        )
        read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a thread of another test may still be there: it holds nothing of ours
            child = os.fork()
        if child == 0:
            os.close(read)
            Child(write, options, fate, len(self.tokens), self.attic).live()
        os.close(write)
        told = Told()
        with open(read, "rb") as pipe:
            for line in pipe:
                told.hear(*json.loads(line))
        os.waitpid(child, 0)
        return told

    # What must hold

    def _check_bill(self, told: Told) -> None:
        """Nothing that stands is asked for again, and nothing twice in one run but what may have been lost."""
        for token, what in told.billed:
            self.tokens[token] = what
            standing = self.standing.get(self._identity_asked(what))
            assert standing is None or standing.asked != what, f"paid for again: {standing}"
        rows = [row for row, _ in told.done]
        assert len(rows) == len(set(rows)), "a row was reported done twice"

    def _learn(self, told: Told) -> None:
        """What a run reported done stands from now on; what it reported failed stands no more."""
        for number, token in told.done:
            identity = self._identity(number)
            if token is not None:
                self.standing[identity] = Answer(self.tokens[token], token)
            elif identity in self.standing:
                self.standing.pop(identity)

    def _after_death(self, told: Told, concurrency: int, power_cut: PowerCut | None) -> None:
        self.report.count("deaths")
        self.crashed = self.ever_crashed = True
        reported = {self._identity(number) for number, _ in told.done}
        unreported = {self._identity_asked(what) for _, what in told.billed} - reported
        lost = {self._identity_asked(what) for what in told.answered} - reported
        assert len(lost) <= concurrency, f"{len(lost)} answers lost with a concurrency of {concurrency}"
        unsure = unreported | {self._identity(at) for at, row in enumerate(self.rows, 1) if not row.version} - reported
        for identity in unsure:
            self.standing.pop(identity, None)  # another word on this row may be in the journal, or not
        self.every_standing_answer_is_on_disk()
        durable = {token for _, token in told.done[: told.durable]}
        self.loose |= {token for _, token in told.done} - durable
        if power_cut is not None:
            self.report.count("power cuts")
            self._forget(lambda answer: answer.token in self.loose)
            self.loose.clear()
            self._cut_power(told, power_cut)

    def _cut_power(self, told: Told, power_cut: PowerCut) -> None:
        """What was durable before this run is durable; the rest is where fate wants it."""
        for what, source, target in reversed(told.names[len(told.names) - min(power_cut.names, len(told.names)) :]):
            if what == "renamed":
                os.rename(target, source)
            else:
                Path(source).unlink(missing_ok=True)  # made anew under this name: that is undone with it
                os.link(target, source)
        for path in self.work.glob("*out.jsonl*"):
            status = path.stat()
            if path.name in SOMEBODY_ELSES or status.st_ino not in self.durable_sizes:
                continue
            loose = max(0, status.st_size - self.durable_sizes[status.st_ino])
            cut = status.st_size - loose + int(loose * power_cut.stays)
            os.truncate(path, cut)
            if power_cut.zeros:
                os.truncate(path, status.st_size)

    def _check_end(self, told: Told, on_change: Any) -> None:
        summary = told.ended
        assert summary is not None
        assert summary["adds_up"], summary
        assert not any((self.work / name).exists() for name in ("out.jsonl.lock", *SOCKETS))
        if summary["exit_code"] in (0, 1):
            self._check_output(summary, on_change)
        else:
            assert summary["exit_code"] == 130, summary
            assert not self.out.exists(), "the output is there, though rows are missing"

    def _check_output(self, summary: Mapping[str, Any], on_change: Any) -> None:
        assert not self.partial.exists()
        lines = [json.loads(line) for line in self.out.read_bytes().splitlines()]
        ours, kept = lines[: len(self.rows)], lines[len(self.rows) :]
        by_number = {line["row"]: line for line in ours}
        assert sorted(by_number) == list(range(1, len(self.rows) + 1)), "not one line for each row"
        for number, line in by_number.items():
            self._check_line(number, line, on_change)
        ok = sum(line["status"] == "ok" for line in ours)
        assert (summary["ok"], summary["failed"]) == (ok, len(ours) - ok), summary
        behind, here = [identity_of(line) for line in kept], {identity_of(line) for line in ours}
        assert len(set(behind)) == len(behind), f"kept twice: {behind}"
        assert set(self.standing) - here <= set(behind), f"answers of removed rows are gone: {behind}"
        assert not set(behind) & here, f"kept, though the row has a line: {behind}"

    def _check_line(self, number: int, line: Mapping[str, Any], on_change: Any) -> None:
        row, identity = self.rows[number - 1], identity_of(line)
        assert line["id"] == (row.name if row.has_id else None), line
        standing = self.standing.get(identity)
        if line["status"] == "ok":
            answer = Answer(self.tokens[line["output"]], line["output"])
            assert standing in (None, answer), f"{line} is not {standing}"
            assert on_change == "keep" or answer.asked == self._asked(row), f"{answer} does not answer {row}"
            self.standing[identity] = answer
        else:
            assert standing is None, f"{line}, but there is {standing}"

    @invariant()
    def every_standing_answer_is_on_disk(self) -> None:
        there = set()
        for path in (self.out, self.partial):
            for data in path.read_bytes().split(b"\n") if path.exists() else ():
                with contextlib.suppress(ValueError):
                    there.add(json.loads(data).get("output"))
        missing = [answer for answer in self.standing.values() if answer.token not in there]
        assert not missing, f"reported done, and nowhere: {missing}"

    @invariant()
    def files_of_others_are_as_they_were(self) -> None:
        self.report.count("steps")
        assert {name: (self.work / name).read_bytes() for name in SOMEBODY_ELSES} == SOMEBODY_ELSES

    # Words for the model

    def _asked(self, row: InputRow) -> str | None:
        if not row.version:
            return None
        return asked(self.model, (self.template or "{{ prompt }}").replace("{{ prompt }}", row.prompt))

    def _identity(self, number: int) -> str:
        """Of a line about this row: one that can not be sent goes by its number."""
        row = self.rows[number - 1]
        return f"!{number}" if row.has_id and not row.version else row.identity(number)

    def _identity_asked(self, what: str) -> str:
        match = PROMPT.search(what)
        assert match is not None, what
        (number,) = (at for at, row in enumerate(self.rows, 1) if row.name == match[1])
        return self._identity(number)

    def _changed(self) -> list[str]:
        """Rows that have an answer to something else than they ask now."""
        rows = {row.identity(number): self._asked(row) for number, row in enumerate(self.rows, 1)}
        return [name for name, what in rows.items() if name in self.standing and self.standing[name].asked != what]

    def _forget(self, gone: Callable[[Answer], bool]) -> None:
        self.standing = {name: answer for name, answer in self.standing.items() if not gone(answer)}

    def _snapshot(self) -> dict[str, bytes]:
        """All files but the lock and the socket, which may be left behind by a death."""
        left = {"out.jsonl.lock", *SOCKETS}
        return {path.name: path.read_bytes() for path in self.work.iterdir() if path.name not in left}


def campaign(runs: int, seed: int, case: str | None = None, *, steps: int = STEPS) -> Report:
    """``runs`` stories of up to ``steps`` steps. There is one case."""
    report = Report(runs=runs)
    machine = type("States", (States,), {"report": report})
    profile = settings(
        max_examples=runs,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        print_blob=True,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        verbosity=Verbosity.quiet,
    )
    try:
        run_state_machine_as_test(hypothesis.seed(seed)(machine), settings=profile)
    except Exception as error:
        story = "\n".join(["", f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
        report.broken.append(f"{story}\n  python tests/campaigns states --seed {seed} --runs {runs}")
    return report
