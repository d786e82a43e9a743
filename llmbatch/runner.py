"""The composition root: everything a run opens is opened here, in order, and closed in the reverse one."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

from llmbatch._version import __version__
from llmbatch.calls.deadlines import Watch
from llmbatch.calls.stack import Stack, build
from llmbatch.calls.wire import Wire, open_session
from llmbatch.errors import InternalError, OptionsError, StorageError
from llmbatch.events import Draining, Event, Listener, Notice, RowEnded, RowKept, RunEnded, RunStarted, Status
from llmbatch.feed import Reading, Rendered, RowFeed
from llmbatch.files.spill import spill_directories
from llmbatch.files.readers import InputFile, open_input
from llmbatch.files.results import result_line
from llmbatch.keys import Secret, load_key
from llmbatch.machine import raise_descriptors
from llmbatch.options import DEFAULT_CONCURRENCY, STDIO, RunOptions
from llmbatch.output import Output, open_file_output, open_stdout_output
from llmbatch.plan import Planned, plan, refuse_changes
from llmbatch.providers.target import resolve
from llmbatch.records import BadRow, Failure, Reply, Result, Trace
from llmbatch.rules.fingerprint import Fingerprinter
from llmbatch.rules.fuse import Fuse
from llmbatch.rules.pace import Pace
from llmbatch.rules.request import RequestBuilder
from llmbatch.rules.window import window_for
from llmbatch.scheduler import Job, Scheduler
from llmbatch.stopping import Stop, StopReason
from llmbatch.summary import Snapshot, Summary
from llmbatch.tally import Tally

SILENT_STATUS = Status(0, 0, 0, 0.0, "idle")


class Run:
    """One run, from file to file. ``execute`` it once; look at ``snapshot`` meanwhile."""

    def __init__(self, options: RunOptions, *, listen: Listener | None = None, stop: Stop | None = None) -> None:
        self.options = options
        self.stop = stop or Stop()
        self.started = False
        self.tally = Tally(time.monotonic, options.rpm)
        self._listen = listen
        self._fuse = Fuse()
        self._target = resolve(options.model, options.base_url)
        self._builder = RequestBuilder(
            model=self._target.model, template=options.template, system=options.system, params=options.params
        )
        self._fingerprint = Fingerprinter(self._target.url)
        self._disk_error: StorageError | None = None
        self._answered = 0
        self._output: Output
        self._feed: RowFeed
        self._stack: Stack | None = None
        self._scheduler: Scheduler

    def snapshot(self) -> Snapshot:
        """The numbers of this moment."""
        if self._stack is None:
            return self.tally.snapshot(SILENT_STATUS)
        return self.tally.snapshot(self._stack.limiter.status(self._scheduler.resting))

    async def execute(self, command: str | None = None) -> Summary:
        """Run until every row has its line, or until stopped. ``command`` is what the user may type to go on.

        Raises an LlmbatchError if nothing can be sent at all. Everything else is in the Summary.
        """
        async with AsyncExitStack() as stack:
            headers = self._headers()
            source = await open_input(
                self.options.input,
                input_format=self.options.input_format,
                max_line_bytes=self.options.max_line_bytes,
            )
            stack.callback(source.close)
            self._output = self._open_output(source)
            stack.callback(self._output.release)
            source, planned = await self._plan(source)
            stack.callback(source.close)
            if planned is not None and planned.nothing_to_do and not self._to_stdout:
                return self._already_complete(planned)
            await self._output.begin(self._manifest())
            reading = self._reading(source)
            self._feed = RowFeed(reading, self, include_input=self.options.include_input, ready=self._output.room)
            self._tell_start(source, planned)
            await self._send(stack, headers)
            return await self._end(reading, command)

    # Opening

    @property
    def _to_stdout(self) -> bool:
        return self.options.output_path == STDIO

    def _headers(self) -> dict[str, str]:
        """Fixed headers of every request, the key among them: it is bound to the target's origin by the session."""
        headers = {"Content-Type": "application/json", "User-Agent": f"llmbatch/{__version__}"}
        key = self._key()
        if key is not None:
            headers["Authorization"] = f"Bearer {key.reveal()}"
        return headers

    def _key(self) -> Secret | None:
        target, options = self._target, self.options
        if target.simulated:
            return None
        named = options.key_env is not None or options.key_file is not None
        key = load_key(
            key_env=options.key_env, key_file=options.key_file, default_env=target.key_env, environment=os.environ
        )
        if key is None and target.needs_key:
            raise OptionsError(
                f"no key for {target.origin}: set {target.key_env}, or name its variable with --key-env NAME, "
                "or its file with --key-file FILE. To try without a key: -m sim/demo"
            )
        if key is not None and target.base_url.startswith("http://") and not (target.is_loopback or options.allow_http):
            if named:
                raise OptionsError(
                    f"the key would go unencrypted to {target.origin}; --allow-http sends it all the same"
                )
            self._tell(Notice("info", f"{key.source} is not sent to {target.origin}, which is not https"))
            return None
        return key

    def _open_output(self, source: InputFile) -> Output:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        if not self._to_stdout:
            return open_file_output(self.options, self._disk_failed, stamp)
        state = spill_directories(os.environ)[0]
        identity = {**self._settings(), "input": self.options.input, "directory": str(Path.cwd())}
        identity["first_line"] = blake2b(source.first_line, digest_size=8).hexdigest()
        return open_stdout_output(self.options, state, identity, self._disk_failed, self._reader_gone, stamp)

    def _settings(self) -> dict[str, Any]:
        return {
            "provider": "sim" if self._target.simulated else self._target.origin,
            "model": self._target.model,
            "api": self._target.provider.name,
            "endpoint": self._target.url,
            "template_hash": _hash(self.options.template),
            "system_hash": _hash(self.options.system),
            "params": dict(self.options.params),
        }

    def _manifest(self) -> dict[str, Any]:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        return {"version": __version__, "started": started, **self._settings(), "input": _described(self.options.input)}

    # Continuing

    async def _plan(self, source: InputFile) -> tuple[InputFile, Planned | None]:
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
        self._tell(RunStarted(str(self._target.model), self._target.url, self._output.name, planned.rows))
        for _ in range(planned.rows):
            self._tell(RowKept(ok=True))
        self._tell(RunEnded(0))
        self._tell(Notice("info", "every row was done before: nothing was sent"))
        return self.tally.summary(rows=planned.rows, pending=0, exit_code=0, output=self._output.name)

    # Sending

    def _tell_start(self, source: InputFile, planned: Planned | None) -> None:
        self._tell(
            RunStarted(
                model=self._target.model or "as each row says",
                endpoint="the simulated provider" if self._target.simulated else self._target.url,
                output=self._output.name,
                rows=None if planned is None else planned.rows,
                input_bytes=None if source.gzip else source.size_bytes,
                done_before=0 if planned is None else planned.resume.done,
                failed_before=0 if planned is None else planned.resume.failed_again,
            )
        )
        self.started = True

    async def _send(self, stack: AsyncExitStack, headers: Mapping[str, str]) -> None:
        options = self.options
        url = await self._start_simulator(stack) if self._target.simulated else self._target.url
        ceiling = raise_descriptors()
        if options.concurrency is not None and options.concurrency > ceiling:
            self._tell(
                Notice(
                    "warning",
                    f"--concurrency {options.concurrency:,} needs more open files than this "
                    f"machine allows: {ceiling:,} are used; raise `ulimit -n`",
                )
            )
        clock = asyncio.get_running_loop().time
        watch = Watch(min(options.timeouts.total_s, options.timeouts.idle_s, options.timeouts.first_token_s))
        self._scheduler = Scheduler(self._feed, self._finish, clock, row_deadline_s=options.row_deadline_s)
        session = await stack.enter_async_context(open_session(headers, options.timeouts))
        self._stack = build(
            Wire(session, self._target.provider, url, options.timeouts, watch, clock, stream=options.stream),
            window=window_for(options.concurrency, options.rpm, DEFAULT_CONCURRENCY, ceiling),
            pace=None if options.rpm is None else Pace(options.rpm),
            retry=options.retry,
            rest=self._scheduler.rest,
            clock=clock,
            chance=random.random,
            listen=self._tell,
        )
        watching = asyncio.create_task(watch.run())
        stack.callback(watching.cancel)
        self.stop.when_requested(self._drain)
        self.stop.when_abandoned(self._scheduler.abandon)
        limiter = self._stack.limiter
        await self._scheduler.run(self._stack.call, lambda: limiter.window.size)

    async def _start_simulator(self, stack: AsyncExitStack) -> str:
        from llmbatch.sim.options import sim_options_from
        from llmbatch.sim.server import SimServer

        try:
            sim = sim_options_from({name: str(value) for name, value in self.options.sim.items()})
        except ValueError as error:
            raise OptionsError(f"--sim {error}") from error
        server = await stack.enter_async_context(SimServer(replace(sim, port=0)))
        return server.base_url + self._target.provider.path

    def _drain(self) -> None:
        assert self._stack is not None and self.stop.reason is not None, "draining comes after the start"
        self._scheduler.stop()
        self._stack.limiter.close()
        in_flight = self._stack.limiter.in_flight
        self._tell(Draining(in_flight, self.options.drain_s, self.stop.reason.why))
        asyncio.get_running_loop().call_later(self.options.drain_s, self.stop.abandon)

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
            ambiguous=trace.ambiguous if len(trace.attempts) > 1 or failure is not None else 0,
            input=job.input,
        )
        self._put(result, job.offset)
        self._answered += 1
        if failure is None:
            self._fuse.good()
        elif self._fuse.blows(failure):
            self.stop.request(StopReason(f"every request fails: {failure.message}", 3))

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
        complete = reading.exhausted and self._feed.taken == self._answered and self._disk_error is None
        for warning in [*reading.source.warnings, *sorted(self._builder.warnings)]:
            self._tell(Notice("warning", warning))
        where = self._output.name
        if complete:
            await self._output.complete(reading.rows, self.tally.failed)
        else:
            where = f"{where}.partial" if not self._to_stdout else where
        code = self._exit_code(complete, reading)
        self._tell(RunEnded(code))
        summary = self.tally.summary(
            rows=reading.rows,
            pending=self._feed.taken - self._answered,
            exit_code=code,
            input_complete=reading.exhausted,
            output=where,
            next_command=command if code not in (0, 2) else None,
        )
        if not summary.adds_up and self._disk_error is None:
            raise InternalError(f"the counts do not add up: {summary.to_json()}")
        return summary

    def _exit_code(self, complete: bool, reading: Reading) -> int:
        if self._disk_error is not None:
            return self._disk_error.exit_code
        if self.stop.reason is not None and (not complete or self.stop.reason.exit_code == 141):
            return self.stop.reason.exit_code
        return 1 if self.tally.failed or reading.source.truncated else 0

    def _disk_failed(self, error: StorageError) -> None:
        if self._disk_error is None:
            self._disk_error = error
            self._tell(Notice("warning", str(error)))
            self.stop.request(StopReason("the disk failed", error.exit_code))

    def _reader_gone(self, error: OSError) -> None:
        self.stop.request(StopReason("nobody reads standard output any more", 141))

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


async def arun(options: RunOptions, *, listen: Listener | None = None, stop: Stop | None = None) -> Summary:
    """Run ``options`` from file to file; what ``llmbatch run`` calls."""
    return await Run(options, listen=listen, stop=stop).execute()
