"""The composition root: everything a run opens is opened here, in order, and closed in the reverse one."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

from llmbatch._version import __version__
from llmbatch.errors import InternalError, OptionsError, StorageError
from llmbatch.events import Event, Listener, Notice, RowEnded, RowKept, RunEnded, RunStarted
from llmbatch.feed import Reading, Rendered, RowFeed
from llmbatch.files.readers import InputFile, open_input
from llmbatch.files.results import result_line
from llmbatch.files.spill import spill_directories
from llmbatch.options import STDIO, RunOptions
from llmbatch.output import Output, open_file_output, open_stdout_output
from llmbatch.plan import Planned, plan, refuse_changes
from llmbatch.providers.target import resolve
from llmbatch.records import BadRow, Failure, Reply, Result, Trace
from llmbatch.rules.fingerprint import Fingerprinter
from llmbatch.rules.request import RequestBuilder
from llmbatch.scheduler import Job
from llmbatch.sender import Sender
from llmbatch.stopping import Stop, StopReason
from llmbatch.summary import Snapshot, Summary
from llmbatch.tally import Tally


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
            source = await self._open(stack)
            self._sender = Sender(self.options, self._target, self._tell, self._stop)
            source, planned = await self._continue(source)
            stack.callback(source.close)
            if planned is not None and planned.nothing_to_do and not self._to_stdout:
                return self._already_complete(planned)
            await self._output.begin(self._manifest())
            self._tell_start(source, planned)
            reading = self._reading(source)
            self._feed = RowFeed(reading, self, include_input=self.options.include_input, ready=self._output.room)
            await self._sender.send(self._feed, self._finish)
            return await self._end(reading, command)

    async def rehearse(self) -> tuple[Planned, list[str]]:
        """Everything of ``execute`` up to the first request: the plan, and what there is to warn of."""
        async with AsyncExitStack() as stack:
            source = await self._open(stack)
            planned = await plan(self._reading(source))
            return planned, [*source.warnings, *sorted(self._builder.warnings)]

    # Opening

    @property
    def _to_stdout(self) -> bool:
        return self.options.output_path == STDIO

    async def _open(self, stack: AsyncExitStack) -> InputFile:
        options = self.options
        source = await open_input(
            options.input, input_format=options.input_format, max_line_bytes=options.max_line_bytes
        )
        stack.callback(source.close)
        if self.model is None and b'"model"' not in source.first_line:
            raise OptionsError('no model: add -m, such as -m openai/gpt-4.1-mini, or a "model" to each row')
        self._output = self._open_output(source)
        stack.callback(self._output.release)
        return source

    def _open_output(self, source: InputFile) -> Output:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        if not self._to_stdout:
            return open_file_output(self.options, self._disk_failed, stamp)
        identity = {
            **self._settings(),
            "input": self.options.input,
            "directory": str(Path.cwd()),
            "first_line": blake2b(source.first_line, digest_size=8).hexdigest(),
        }
        state = spill_directories(os.environ)[0]
        return open_stdout_output(self.options, state, identity, self._disk_failed, self._reader_gone, stamp)

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
            source = await source.spool(spill_directories(os.environ)[1])
        planned = await plan(self._reading(source.reopen()))
        refuse_changes(planned, recovered, self._manifest())
        for sentence in planned.resume.sentences(len(recovered)):
            self._tell(Notice("info", sentence))
        return source, planned

    def _reading(self, source: InputFile) -> Reading:
        # To standard output nothing old is overwritten: what changed is simply asked anew.
        on_change = self.options.on_change or ("rerun" if self._to_stdout else "refuse")
        return Reading(
            source,
            self._builder,
            self._target.provider.encode,
            self._fingerprint,
            recovered=self._output.recovered,
            on_change=on_change,
            limit=self.options.limit,
        )

    def _already_complete(self, planned: Planned) -> Summary:
        self._tell(RunStarted(str(self.model), self.endpoint, self._output.name, planned.rows))
        for _ in range(planned.rows):
            self._tell(RowKept(ok=True))
        self._tell(Notice("info", "every row was done before: nothing was sent"))
        self._tell(RunEnded(0))
        return self.tally.summary(rows=planned.rows, pending=0, exit_code=0, output=self._output.name)

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

    def _finish(self, job: Job, outcome: Reply | Failure, trace: Trace) -> None:
        """From here to the journal there is no await: an answer that is in memory is written."""
        reply, failure = (outcome, None) if isinstance(outcome, Reply) else (None, outcome)
        last = trace.attempts[-1]
        result = Result(
            row=job.row,
            id=job.id,
            key=job.key,
            reply=reply,
            failure=failure,
            attempts=len(trace.attempts),
            latency_s=last.latency_s,
            first_token_s=last.first_token_s,
            request_id=last.request_id,
            ambiguous=trace.ambiguous,
            input=job.input,
        )
        self._answered += 1
        self._put(result, job.offset)

    def refuse(self, bad: BadRow, fields: Mapping[str, Any] | None, offset: int) -> None:
        """A row that can not be sent becomes an error line."""
        failure = Failure("permanent", bad.type, bad.reason)
        shown = fields if self.options.include_input else None
        self._put(Result(bad.index, bad.id, None, None, failure, 0, None, None, None, input=shown), offset)

    def keep(self, rendered: Rendered) -> None:
        """A row that an earlier run finished."""
        assert rendered.recorded is not None, "only a recorded row is kept"
        self._output.keep(rendered.row.index, rendered.recorded, reappend=rendered.decision.reappend)
        self._tell(RowKept(ok=True, input_offset=self._feed.offset))

    def _put(self, result: Result, offset: int) -> None:
        self._output.put(result.row, result_line(result), lambda: self._tell(RowEnded(result, offset)))

    # Ending

    async def _end(self, reading: Reading, command: str | None) -> Summary:
        try:
            await self._output.close()
        except StorageError as error:
            self._disk_failed(error)
        pending = self._feed.taken - self._answered
        complete = reading.exhausted and not pending and self._disk_error is None
        for warning in [*reading.source.warnings, *sorted(self._builder.warnings)]:
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
            output=STDIO if self._to_stdout else self._output.name + ("" if complete else ".partial"),
            next_command=command if code else None,
        )
        if not summary.adds_up and self._disk_error is None:
            raise InternalError(f"the counts do not add up: {summary.to_json()}; please report this")
        return summary

    def _exit_code(self, complete: bool, reading: Reading) -> int:
        if self._disk_error is not None:
            return self._disk_error.exit_code
        reason = self._stop.reason
        if reason is not None and (not complete or reason.exit_code == 141):
            return reason.exit_code
        return 1 if self.tally.failed or reading.source.truncated else 0

    def _disk_failed(self, error: StorageError) -> None:
        if self._disk_error is None:
            self._disk_error = error
            self._tell(Notice("warning", str(error)))
            self._stop.request(StopReason("the disk failed", error.exit_code))

    def _reader_gone(self, error: OSError) -> None:
        self._stop.request(StopReason("nobody reads standard output any more", 141))

    def _tell(self, event: Event) -> None:
        self.tally(event)
        if self._listen is not None:
            self._listen(event)


def _hash(text: str | None) -> str | None:
    return None if text is None else blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _described(path: str) -> dict[str, Any]:
    """Enough of an input file to say later that it is another one."""
    if path == STDIO:
        return {"path": STDIO}
    status = Path(path).stat()
    return {"path": path, "size": status.st_size, "mtime": status.st_mtime}
