"""The composition root: everything a run opens is opened here, in order, and closed in the reverse one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar

from llmbatch.control import ControlServer, RunControls
from llmbatch.desk import Desk, InFlight
from llmbatch.errors import InternalError, OptionsError, StorageError
from llmbatch.events import (
    AttemptFailed,
    ControlOpened,
    CutOff,
    Event,
    Listener,
    Notice,
    RowEnded,
    RowKept,
    RunEnded,
    RunStarted,
)
from llmbatch.feed import Reading, RowFeed
from llmbatch.files.control_socket import open_first, places
from llmbatch.files.journal import DiskListener
from llmbatch.files.readers import InputFile, open_input
from llmbatch.files.recovered import Recovered
from llmbatch.files.spill import spill_directories, state_directory
from llmbatch.identity import Identity, RowIdentity, targets_of
from llmbatch.manifest import manifest, pipe_identity
from llmbatch.opening import look_at_file, look_at_stdout, open_file_output, open_stdout_output, refuse_streams
from llmbatch.options import STDIO, RunOptions
from llmbatch.output import Output
from llmbatch.plan import Planned, plan, refuse_changes
from llmbatch.prepare import Images, Preparation, builder_of, hooks_of
from llmbatch.records import Stopped
from llmbatch.rules.advice import Facts, advice
from llmbatch.rules.bottleneck import Moment
from llmbatch.sampler import Sampler
from llmbatch.sender import PROVIDER_STOPPED, Sender
from llmbatch.stopping import Stop
from llmbatch.summary import Snapshot, Summary
from llmbatch.tally import Tally

T = TypeVar("T")

_CUT_OFF = "the last run ({}) was cut off with {:,} in flight; their rows are sent again and may be paid for twice"
_SHARED = (
    "{} is on a network file system ({}): two machines that append to it may corrupt it, and the lock may not hold "
    "between them"
)


class Run:
    """One run, from file to file. ``execute`` it once; look at ``snapshot`` meanwhile.

    ``control`` is the path of its socket for ``llmbatch ctl``, once it has one.
    """

    def __init__(self, options: RunOptions, *, listen: Listener | None = None, stop: Stop | None = None) -> None:
        self.options = options
        self.started = False
        self.control: str | None = None
        self.tally = Tally(time.monotonic, options.rpm, options.accounts)
        self._listen = listen
        self._stop = stop or Stop()
        self._targets = targets_of(options)
        self._target = self._targets[0]
        self._builder = builder_of(options, self._target)
        self._key_of = Identity(self._target, options.generation)
        self._images = Images(options, self._target)
        self._hooks = hooks_of(options, lambda text: self._tell(Notice("warning", text)))
        self._in_vain = 0
        self._in_flight = InFlight(self._count_in_flight, lambda number: self._output.note_in_flight(number))
        self._desk = Desk(
            self._stop,
            self._tell,
            include_input=options.keeps_input,
            in_flight=self._in_flight,
            after=None if self._hooks is None else self._hooks.after_or_none,
        )
        self._output: Output
        self._sender: Sender
        self._sampler = Sampler(self._moment)
        self._ending = False

    @property
    def model(self) -> str | None:
        """What is asked for at the endpoint; None if each row says it."""
        return self._target.model

    @property
    def endpoint(self) -> str:
        """Where requests go, for people."""
        if self._target.simulated:
            return "the simulated provider"
        others = len(self._targets) - 1
        return self._target.url + (f" and {others:,} more" if others else "")

    def snapshot(self) -> Snapshot:
        """The numbers of this moment, once ``started``."""
        return self.tally.snapshot(self._sender.status(self._sampler.binding))

    async def execute(self, command: str | None = None) -> Summary:
        """Run until every row has its line, or until stopped. ``command`` is what the user may type to go on.

        Raises an LlmbatchError if nothing can be sent at all. Everything else is in the Summary.
        """
        async with AsyncExitStack() as stack:
            try:
                source, planned = await self._unless_stopped(self._prepare(stack))
            except Stopped:
                return self._stopped_early(command)
            if planned is not None and planned.nothing_to_do and self._stands(planned):
                if await self._output.renew(planned.rows):
                    self._tell(Notice("info", f"{self._output.name} was made again"))
                return self._already_complete(planned, command)
            await self._output.begin(manifest(self.options, self._target))
            self._tell_start(source, planned)
            await stack.enter_async_context(self._sampler)
            reading = self._reading(source, self._output.recovered)
            self._stop.when_requested(reading.interrupt)
            self._stop.when_abandoned(self._output.abandon)
            self._stop.when_abandoned(self._desk.abandon)
            if self._hooks is not None:
                await stack.enter_async_context(self._hooks)
                if self._to_stdout:
                    stack.enter_context(contextlib.redirect_stdout(sys.stderr))  # what hooks print is no result
            feed = RowFeed(
                reading,
                self._desk,
                include_input=self.options.keeps_input,
                ready=self._desk.room,
                hooked=self.options.after is not None,
                preparation=self._preparation(),
                tenant_field=self.options.tenant_column,
                tenant_expected=self.options.tenant_field is not None,
            )
            self._desk.open(self._output, feed)
            try:
                await self._sender.send(feed, self._desk.finish)
                await self._desk.settle()
            except BaseException:
                await self._save_what_came()
                raise
            return await self._end(reading, feed.taken - self._desk.answered, command)

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
        self._sender = Sender(self.options, self._targets, self._tell, self._stop, self._in_flight.changed)
        self._output = self._open_output(stack, source)
        await self._open_control(stack)
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
        for note in source.notes:
            self._tell(Notice("info", note))
        if self.model is None and b'"model"' not in source.first_line:
            raise OptionsError('no model: add -m, such as -m openai/gpt-4.1-mini, or a "model" to each row')
        return source

    def _open_output(self, stack: AsyncExitStack, source: InputFile) -> Output:
        output = self._lock_output(source)
        stack.callback(output.release)
        if output.cut_off is not None and output.cut_off.in_flight:
            self._tell(CutOff(output.cut_off.in_flight))
            self._tell(Notice("warning", _CUT_OFF.format(output.cut_off, output.cut_off.in_flight)))
        if output.shared_file_system is not None:
            self._tell(Notice("warning", _SHARED.format(output.name, output.shared_file_system)))
        return output

    async def _open_control(self, stack: AsyncExitStack) -> None:
        """For ``llmbatch ctl``, which a run can do without."""
        beside = self._output.ctl
        if beside is None:
            self._tell(ControlOpened(None, "--no-journal keeps nothing on disk, no socket either"))
            return
        opened, problems = open_first(places(beside, os.environ))
        if opened is None:
            self._tell(ControlOpened(None, "; ".join(problems)))
            return
        for problem in problems:
            self._tell(Notice("info", f"{problem}; llmbatch ctl finds this run at {opened.path}"))
        self.control = str(opened.path)
        controls = RunControls(
            self._sender,
            self._stop,
            self._tell,
            lambda: self.snapshot() if self.started else None,
            {
                "output": self._output.name,
                "socket": self.control,
                "model": self.model,
                "endpoint": self.endpoint,
            },
            self.control if self._to_stdout else self._output.name,
        )
        await stack.enter_async_context(ControlServer(opened, controls))
        self._tell(ControlOpened(self.control))

    def _lock_output(self, source: InputFile) -> Output:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        listener = DiskListener(self._desk.disk_failed, self._desk.disk_low, self._desk.disk_weak)
        if not self._to_stdout:
            return open_file_output(self.options, listener, stamp)
        return open_stdout_output(
            self.options,
            state_directory(os.environ),
            pipe_identity(self.options, self._target, source.first_line),
            listener,
            self._desk.stdout_failed,
            stamp,
        )

    def _look_at_output(self, source: InputFile) -> Recovered | None:
        if not self._to_stdout:
            return look_at_file(self.options)
        return look_at_stdout(
            self.options, state_directory(os.environ), pipe_identity(self.options, self._target, source.first_line)
        )

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
        refuse_changes(planned, recovered, manifest(self.options, self._target))
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
            self._key_of,
            recovered=recovered,
            on_change=on_change,
            limit=self.options.limit,
            images=self._images,
            row_key=None if self.options.before is None else RowIdentity(self.options, self._target),
        )

    def _preparation(self) -> Preparation | None:
        if self._hooks is None or self.options.before is None:
            return None
        return Preparation(self._hooks.before, self._builder, self._key_of, self._images)

    def _stands(self, planned: Planned) -> bool:
        """Whether OUT is what this run would write. The line of a row that came back may stand behind others'."""
        recovered, output = self._output.recovered, self._output
        in_order = self.options.order == "completion" or recovered is None or recovered.begins_with(planned.rows)
        return output.sealed and in_order

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
            lines=self._output.lines_name,
            next_command=command if code else None,
        )

    def _stopped_early(self, command: str | None) -> Summary:
        reason = self._stop.reason
        assert reason is not None, "only a stop ends the preparation"
        self._tell(RunEnded(reason.exit_code))
        return self.tally.summary(
            rows=0, pending=0, exit_code=reason.exit_code, input_complete=False, next_command=command
        )

    def _tell_start(self, source: InputFile, planned: Planned | None) -> None:
        self._tell(
            RunStarted(
                model=self.model or "as each row says",
                endpoint=self.endpoint,
                output=self._output.name,
                rows=None if planned is None else planned.rows,
                input_bytes=None if source.packed or self.options.limit else source.size_bytes,
                done_before=0 if planned is None else planned.resume.done,
                failed_before=0 if planned is None else planned.resume.failed_again,
            )
        )
        self.started = True

    def _count_in_flight(self) -> int:
        """What a kill would cost now: answers on their way, and tries in vain of rows that have no line yet."""
        return self._sender.in_flight + self._desk.unwritten + self._desk.unwritten_parts + self._in_vain

    def _moment(self) -> Moment:
        """Where rows wait now."""
        moment, desk = self._sender.moment(), self._desk
        preparing = moment.loading if self.options.before is not None else 0
        return replace(
            moment,
            loading=moment.loading - preparing,
            in_hooks=preparing + desk.in_hooks,
            writing=desk.unwritten + desk.unwritten_parts,
            waits_for_output=self._ending or desk.waits_for_output,
        )

    # Ending

    async def _save_what_came(self) -> None:
        """Cancelled, or a bug: the journal is closed under the lock, with every answer that was handed over."""
        self._output.abandon()
        with contextlib.suppress(StorageError):
            await self._output.close()

    async def _end(self, reading: Reading, pending: int, command: str | None) -> Summary:
        self._ending = True
        try:
            await self._output.close()
        except StorageError as error:
            self._desk.disk_failed(error)
        pending += self._desk.unwritten + self._desk.unwritten_refusals  # after a failure: saved elsewhere, or lost
        complete = reading.exhausted and not pending and self._output.delivered and not self._failed_as_a_whole
        for warning in reading.warnings:
            self._tell(Notice("warning", warning))
        if complete:
            await self._output.complete(reading.rows, self.tally.failed)
        code = self._exit_code(complete, reading)
        self._sampler.look()
        self._tell(RunEnded(code))
        summary = self.tally.summary(
            rows=reading.rows,
            pending=pending,
            exit_code=code,
            input_complete=reading.exhausted,
            input_truncated=reading.source.truncated,
            output=STDIO if self._to_stdout else self._output.name if complete else self._output.unfinished_name,
            lines=self._output.lines_name if complete else self._output.unfinished_name,
            next_command=command if code else None,
            binding_shares=self._sampler.shares.by_share(),
            hooks={} if self._hooks is None else self._hooks.spent,
        )
        if not summary.adds_up and self._desk.disk_error is None:
            raise InternalError(f"the counts do not add up: {summary.to_json()}; please report this")
        return replace(summary, advice=advice(self._sampler.shares, self._facts(summary)))

    def _facts(self, summary: Summary) -> Facts:
        latency, moment, limits = summary.latency_s, self._sender.moment(), self._sender.paced_by()
        longest = max(summary.hooks.items(), key=lambda hook: hook[1].seconds, default=None)
        return Facts(
            allowed=moment.allowed,
            window=moment.window,
            rpm=None if "requests" not in limits else limits["requests"][0],
            given=frozenset(kind for kind, (_, given) in limits.items() if given),
            mean_latency_s=self.tally.mean_latency_s,
            median_latency_s=None if latency is None else latency.p50,
            longest_latency_s=None if latency is None else latency.max,
            rate_limited=summary.rate_limited,
            retries=summary.retries,
            hedged=self.options.hedge is not None,
            to_stdout=self._to_stdout,
            hook=None
            if longest is None or not longest[1].calls
            else (longest[0], longest[1].seconds / longest[1].calls),
        )

    @property
    def _failed_as_a_whole(self) -> bool:
        """The disk failed; or the provider refused every row there is, and they are to be asked again."""
        reason = self._stop.reason
        refused = reason is not None and reason.exit_code == PROVIDER_STOPPED
        return self._desk.disk_error is not None or (refused and self.tally.ok + self.tally.kept_ok == 0)

    def _exit_code(self, complete: bool, reading: Reading) -> int:
        if self._desk.disk_error is not None:
            return self._desk.disk_error.exit_code
        reason = self._stop.reason
        if reason is not None and not complete:
            return reason.exit_code
        return 1 if self.tally.failed or reading.source.truncated else 0

    def _tell(self, event: Event) -> None:
        self.tally(event)
        if isinstance(event, AttemptFailed):
            self._in_vain += event.failure.maybe_billed
            self._in_flight.changed()
        elif isinstance(event, RowEnded) and event.result.ambiguous:
            self._in_vain -= event.result.ambiguous
            self._in_flight.fell()
        if self._listen is not None:
            self._listen(event)
        if isinstance(event, RowEnded) and event.result.key is None and event.result.failure is not None:
            self._sender.refused(event.result.failure)


def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
