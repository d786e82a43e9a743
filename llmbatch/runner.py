"""The composition root: everything a run opens is opened here, in order, and closed in the reverse one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

from llmbatch._version import __version__
from llmbatch.errors import InternalError, OptionsError, StorageError
from llmbatch.events import Event, Listener, Notice, RowEnded, RowKept, RunEnded, RunStarted
from llmbatch.feed import Reading, Rendered, RowFeed
from llmbatch.files.readers import InputFile, open_input
from llmbatch.files.recovered import Recovered
from llmbatch.files.results import result_line
from llmbatch.files.spill import spill_directories, state_directory
from llmbatch.opening import look_at_file, look_at_stdout, open_file_output, open_stdout_output, refuse_streams
from llmbatch.options import STDIO, RunOptions
from llmbatch.output import Output
from llmbatch.plan import Planned, plan, refuse_changes
from llmbatch.providers.target import resolve
from llmbatch.records import BadRow, Failure, Reply, Result, Stopped, Trace
from llmbatch.rules.fingerprint import Fingerprinter
from llmbatch.rules.request import RequestBuilder
from llmbatch.scheduler import Job, folded
from llmbatch.sender import PROVIDER_STOPPED, Sender
from llmbatch.stopping import Stop, StopReason
from llmbatch.summary import Snapshot, Summary
from llmbatch.tally import Tally

T = TypeVar("T")


class Run:
    """One run, from file to file. ``execute`` it once; look at ``snapshot`` meanwhile."""

    def __init__(self, options: RunOptions, *, listen: Listener | None = None, stop: Stop | None = None) -> None:
        self.options = options
        self.started = False
        self.tally = Tally(time.monotonic, options.rpm)
        self._listen = listen
        self._stop = stop or Stop()
        self._target = resolve(options.model, options.base_url)
        self._builder = RequestBuilder(
            model=self._target.model, template=options.template, system=options.system, params=options.params
        )
        self._fingerprint = Fingerprinter(self._target.url)
        self._disk_error: StorageError | None = None
        self._answered = 0
        self._unwritten: set[asyncio.Future[None]] = set()
        self._output: Output
        self._sender: Sender
        self._feed: RowFeed

    @property
    def model(self) -> str | None:
        """What is asked for at the endpoint; None if each row says it."""
        return self._target.model

    @property
    def endpoint(self) -> str:
        """Where requests go."""
        return "the simulated provider" if self._target.simulated else self._target.url

    def snapshot(self) -> Snapshot:
        """The numbers of this moment, once ``started``."""
        return self.tally.snapshot(self._sender.status())

    async def execute(self, command: str | None = None) -> Summary:
        """Run until every row has its line, or until stopped. ``command`` is what the user may type to go on.

        Raises an LlmbatchError if nothing can be sent at all. Everything else is in the Summary.
        """
        async with AsyncExitStack() as stack:
            try:
                source, planned = await self._unless_stopped(self._prepare(stack))
            except Stopped:
                return self._stopped_early(command)
            if planned is not None and planned.nothing_to_do and self._output.sealed:
                return self._already_complete(planned, command)
            await self._output.begin(self._manifest())
            self._tell_start(source, planned)
            reading = self._reading(source, self._output.recovered)
            self._stop.when_requested(reading.interrupt)
            self._stop.when_abandoned(self._output.abandon)
            self._feed = RowFeed(reading, self, include_input=self.options.include_input, ready=self._output.room)
            try:
                await self._sender.send(self._feed, self._finish)
            except BaseException:
                await self._save_what_came()
                raise
            return await self._end(reading, command)

    async def rehearse(self) -> tuple[Planned, list[str]]:
        """Everything of ``execute`` up to the first request: the plan, and what there is to warn of."""
        async with AsyncExitStack() as stack:
            source = await self._open_source(stack)
            recovered = self._look_at_output(source)
            if recovered is not None:
                stack.callback(recovered.close)
            planned = await plan(self._reading(source, recovered))
            return planned, [*(() if recovered is None else recovered.notices), *planned.warnings]

    # Opening

    @property
    def _to_stdout(self) -> bool:
        return self.options.output_path == STDIO

    async def _unless_stopped(self, preparing: Coroutine[Any, Any, T]) -> T:
        """A silent pipe or a long plan must not hold up Ctrl-C: nothing is in flight yet. Raises Stopped."""
        task = asyncio.ensure_future(preparing)
        self._stop.when_requested(lambda: _cancel(task))
        try:
            return await task
        except asyncio.CancelledError:
            if not self._stop.requested:
                raise
            raise Stopped from None

    async def _prepare(self, stack: AsyncExitStack) -> tuple[InputFile, Planned | None]:
        """Everything that may be refused, and then the plan."""
        source = await self._open_source(stack)
        self._sender = Sender(self.options, self._target, self._tell, self._stop)
        self._output = self._open_output(stack, source)
        source, planned = await self._continue(source)
        stack.callback(source.close)
        return source, planned

    async def _open_source(self, stack: AsyncExitStack) -> InputFile:
        options = self.options
        refuse_streams(options)
        if options.input == STDIO and os.isatty(0):
            self._tell(Notice("info", "reading from the terminal; end with Ctrl-D"))
        source = await open_input(
            options.input, input_format=options.input_format, max_line_bytes=options.max_line_bytes
        )
        stack.callback(source.close)
        if self.model is None and b'"model"' not in source.first_line:
            raise OptionsError('no model: add -m, such as -m openai/gpt-4.1-mini, or a "model" to each row')
        return source

    def _open_output(self, stack: AsyncExitStack, source: InputFile) -> Output:
        output = self._lock_output(source)
        stack.callback(output.release)
        return output

    def _lock_output(self, source: InputFile) -> Output:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        if not self._to_stdout:
            return open_file_output(self.options, self._disk_failed, stamp)
        return open_stdout_output(
            self.options,
            state_directory(os.environ),
            self._identity(source),
            self._disk_failed,
            self._stdout_failed,
            stamp,
        )

    def _look_at_output(self, source: InputFile) -> Recovered | None:
        if not self._to_stdout:
            return look_at_file(self.options)
        return look_at_stdout(self.options, state_directory(os.environ), self._identity(source))

    def _identity(self, source: InputFile) -> dict[str, Any]:
        """What tells a run to standard output from others."""
        return {
            **self._settings(),
            "input": self.options.input,
            "directory": _working_directory(),
            "first_line": blake2b(source.first_line, digest_size=8).hexdigest(),
        }

    def _settings(self) -> dict[str, Any]:
        return {
            "provider": "sim" if self._target.simulated else self._target.origin,
            "model": self.model,
            "api": self._target.provider.name,
            "endpoint": self._target.url,
            "template_hash": _hash(self.options.template),
            "system_hash": _hash(self.options.system),
            "params": dict(self.options.params),
        }

    def _manifest(self) -> dict[str, Any]:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        return {
            "version": __version__,
            "started": started,
            **self._settings(),
            "input": _described(self.options.input),
        }

    # Continuing

    async def _continue(self, source: InputFile) -> tuple[InputFile, Planned | None]:
        """Hold the whole input against what earlier runs left, before anything is sent."""
        recovered = self._output.recovered
        if recovered is None:
            return source, None
        for notice in recovered.notices:
            self._tell(Notice("warning", notice))
        if not source.reopenable:
            self._tell(Notice("info", f"reading all of standard input first, {self._why_first()}"))
            source = await source.spool(spill_directories(os.environ)[-1])
        planned = await plan(self._reading(source.reopen(), recovered))
        refuse_changes(planned, recovered, self._manifest())
        for sentence in planned.sentences(len(recovered)):
            self._tell(Notice("info", sentence))
        return source, planned

    def _why_first(self) -> str:
        skip = "--restart or --no-journal skips" if self._to_stdout else "--restart skips"
        return f"to compare it with an earlier run; {skip} this"

    def _reading(self, source: InputFile, recovered: Recovered | None) -> Reading:
        # To standard output nothing old is overwritten: what changed is simply asked anew.
        on_change = self.options.on_change or ("rerun" if self._to_stdout else "refuse")
        return Reading(
            source,
            self._builder,
            self._target.provider.encode,
            self._fingerprint,
            recovered=recovered,
            on_change=on_change,
            limit=self.options.limit,
        )

    def _already_complete(self, planned: Planned, command: str | None) -> Summary:
        """The output stands as it is: every row is done, or can still not be sent."""
        self._tell(RunStarted(str(self.model), self.endpoint, self._output.name, planned.rows))
        for number in range(planned.rows):
            self._tell(RowKept(ok=number >= planned.settled))
        for warning in planned.warnings:
            self._tell(Notice("warning", warning))
        others = " other" if planned.settled else ""
        self._tell(Notice("info", f"every{others} row was done before: nothing was sent"))
        code = 1 if planned.settled or planned.truncated else 0
        self._tell(RunEnded(code))
        return self.tally.summary(
            rows=planned.rows,
            pending=0,
            exit_code=code,
            input_truncated=planned.truncated,
            output=self._output.name,
            next_command=command if code else None,
        )

    def _stopped_early(self, command: str | None) -> Summary:
        reason = self._stop.reason
        assert reason is not None, "only a stop ends the preparation"
        self._tell(RunEnded(reason.exit_code))
        return self.tally.summary(
            rows=0, pending=0, exit_code=reason.exit_code, input_complete=False, next_command=command
        )

    # Rows on their way

    def _tell_start(self, source: InputFile, planned: Planned | None) -> None:
        self._tell(
            RunStarted(
                model=self.model or "as each row says",
                endpoint=self.endpoint,
                output=self._output.name,
                rows=None if planned is None else planned.rows,
                input_bytes=None if source.gzip or self.options.limit else source.size_bytes,
                done_before=0 if planned is None else planned.resume.done,
                failed_before=0 if planned is None else planned.resume.failed_again,
            )
        )
        self.started = True

    def _finish(self, job: Job, outcome: Reply | Failure, trace: Trace) -> asyncio.Future[None]:
        """From here to the journal there is no await: an answer that is in memory is written. Done when it is."""
        result = folded(job, outcome, trace)
        self._answered += 1
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unwritten.add(written)
        self._put(result, written)
        if self._disk_error is not None:
            self._give_up_waiting()
        return written

    def refuse(self, bad: BadRow, fields: Mapping[str, Any] | None) -> None:
        """A row that can not be sent becomes an error line."""
        failure = Failure("permanent", bad.type, bad.reason)
        shown = fields if self.options.include_input else None
        self._put(Result(bad.index, bad.id, None, None, failure, 0, None, None, None, input=shown))

    def keep(self, rendered: Rendered) -> None:
        """A row that an earlier run finished."""
        assert rendered.recorded is not None, "only a recorded row is kept"
        self._output.keep(rendered.row.index, rendered.recorded, reappend=rendered.decision.reappend)
        self._tell(RowKept(ok=True, input_offset=self._feed.offset))

    def broken(self, error: StorageError) -> None:
        """The input can not be read on: what is in flight is waited for, and written."""
        self._disk_failed(error)

    def _put(self, result: Result, written: asyncio.Future[None] | None = None) -> None:
        def done() -> None:
            self._tell(RowEnded(result, self._feed.offset))
            if written is not None:
                self._unwritten.discard(written)
                _set(written)

        self._output.put(result.row, result_line(result), done)

    def _give_up_waiting(self) -> None:
        """The disk failed: nobody need wait for it; the journal saves elsewhere what it was given."""
        while self._unwritten:
            _set(self._unwritten.pop())

    # Ending

    async def _save_what_came(self) -> None:
        """Cancelled, or a bug: the journal is closed under the lock, with every answer that was handed over."""
        self._output.abandon()
        with contextlib.suppress(StorageError):
            await self._output.close()

    async def _end(self, reading: Reading, command: str | None) -> Summary:
        try:
            await self._output.close()
        except StorageError as error:
            self._disk_failed(error)
        pending = self._feed.taken - self._answered
        complete = reading.exhausted and not pending and self._output.delivered and not self._failed_as_a_whole
        for warning in reading.warnings:
            self._tell(Notice("warning", warning))
        if complete:
            await self._output.complete(reading.rows, self.tally.failed)
        code = self._exit_code(complete, reading)
        self._tell(RunEnded(code))
        summary = self.tally.summary(
            rows=reading.rows,
            pending=pending,
            exit_code=code,
            input_complete=reading.exhausted,
            input_truncated=reading.source.truncated,
            output=STDIO if self._to_stdout else self._output.name + ("" if complete else ".partial"),
            next_command=command if code else None,
        )
        if not summary.adds_up and self._disk_error is None:
            raise InternalError(f"the counts do not add up: {summary.to_json()}; please report this")
        return summary

    @property
    def _failed_as_a_whole(self) -> bool:
        """The disk failed; or the provider refused every row there is, and they are to be asked again."""
        reason = self._stop.reason
        refused = reason is not None and reason.exit_code == PROVIDER_STOPPED
        return self._disk_error is not None or (refused and self.tally.ok + self.tally.kept_ok == 0)

    def _exit_code(self, complete: bool, reading: Reading) -> int:
        if self._disk_error is not None:
            return self._disk_error.exit_code
        reason = self._stop.reason
        if reason is not None and not complete:
            return reason.exit_code
        return 1 if self.tally.failed or reading.source.truncated else 0

    def _disk_failed(self, error: StorageError) -> None:
        if self._disk_error is None:
            self._disk_error = error
            self._give_up_waiting()
            self._tell(Notice("warning", str(error)))
            self._stop.request(StopReason("the disk failed", error.exit_code))

    def _stdout_failed(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError | ConnectionResetError):
            self._stop.request(StopReason("nobody reads standard output any more", 141))
        else:
            self._disk_failed(StorageError(f"cannot write standard output: {error.strerror}"))

    def _tell(self, event: Event) -> None:
        self.tally(event)
        if self._listen is not None:
            self._listen(event)


def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _hash(text: str | None) -> str | None:
    return None if text is None else blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _working_directory() -> str | None:
    try:
        return str(Path.cwd())
    except FileNotFoundError:  # deleted; whoever pipes rows through does not need it
        return None


def _described(path: str) -> dict[str, Any]:
    """Enough of an input file to say later that it is another one."""
    if path == STDIO:
        return {"path": STDIO}
    try:
        status = Path(path).stat()
    except OSError:  # removed since it was opened; it is read all the same
        return {"path": path}
    return {"path": path, "size": status.st_size, "mtime": status.st_mtime}
