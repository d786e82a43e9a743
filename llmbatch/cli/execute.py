"""One run from the command line: the loop, the signals, the display, the summary, the exit code."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from llmbatch.cli import scrub
from llmbatch.cli.summary_file import SummaryFile
from llmbatch.events import AttemptFailed, ControlOpened, Draining, Event, KeysLoaded, LimitsLearned, Notice, RunStarted
from llmbatch.machine import fast_loop, keep_memory_private, patient_collector
from llmbatch.options import STDIO, RunOptions
from llmbatch.runner import Run
from llmbatch.stopping import Stop, signal_shows, signals_stop
from llmbatch.summary import Summary
from llmbatch.views.printer import Printer
from llmbatch.views.safe import safe

REFRESH_S = 0.2


@dataclass(frozen=True, slots=True)
class Shown:
    """What the user wants to see, and where the summary goes."""

    progress: str
    quiet: bool
    verbose: bool
    summary_file: SummaryFile


def run_command(options: RunOptions, shown: Shown) -> int:
    """Run, show, and return the exit code."""
    with patient_collector(), asyncio.Runner(loop_factory=fast_loop()) as runner:
        summary = runner.run(_run(options, shown))
    from llmbatch.views.text import render_summary

    _say(render_summary(summary, quiet=shown.quiet))
    shown.summary_file.write(summary.to_json())
    return summary.exit_code


def dry_run_command(options: RunOptions, shown: Shown) -> int:
    """Read and check every row, say what a run would do, send nothing."""
    from llmbatch.estimate import estimate
    from llmbatch.views.estimate import render_estimate

    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        found = runner.run(estimate(options))
    if not shown.quiet:
        _say(render_estimate(found))
    shown.summary_file.write(found.to_json())
    return found.exit_code


async def _run(options: RunOptions, shown: Shown) -> Summary:
    stop = Stop()
    printer = _printer(shown)
    run = Run(options, listen=_Told(printer, shown.verbose), stop=stop)
    loop = asyncio.get_running_loop()
    with signals_stop(stop, loop), signal_shows(lambda: _show_status(run, printer, shown), loop), _stopping(printer):
        ticker = asyncio.create_task(_tick(run, printer))
        try:
            summary = await run.execute(command=_this_command())
            stop.exit_code = summary.exit_code
            return summary
        finally:
            ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ticker
            if run.started:
                printer.refresh(run.snapshot())


async def _tick(run: Run, printer: Printer) -> None:
    while True:
        await asyncio.sleep(REFRESH_S)
        if run.started:
            printer.refresh(run.snapshot())


def _show_status(run: Run, printer: Printer, shown: Shown) -> None:
    """One line for who asks with SIGUSR1, whatever the display; but quiet is quiet."""
    from llmbatch.views.plain import progress_line
    from llmbatch.views.printer import Sink

    text = progress_line(run.snapshot()) if run.started else "starting: nothing was sent yet"
    if run.control is not None and run.options.output_path == STDIO:
        text += f"; llmbatch ctl {shlex.quote(run.control)}"  # which nobody could guess
    if shown.progress == "none" and not shown.quiet:
        Sink(sys.stderr).line(f"llmbatch: {text}")
    else:
        printer.note(text)


class _Told:
    """Passes on to the display what is worth a line there."""

    def __init__(self, printer: Printer, verbose: bool) -> None:
        self._printer = printer
        self._verbose = verbose

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._printer.start(event)
        elif isinstance(event, Notice):
            self._printer.note(safe(event.text), event.level)
        elif isinstance(event, Draining):
            self._printer.draining(event)
        elif isinstance(event, KeysLoaded):
            scrub.learn(event.hide)
            keep_memory_private()
        elif self._verbose and isinstance(event, LimitsLearned):
            self._printer.note(f"the server's limits: {safe(event.text)}")
        elif self._verbose and isinstance(event, ControlOpened):
            at = None if event.path is None else f"asked and steered with: llmbatch ctl {shlex.quote(event.path)}"
            self._printer.note(safe(at or f"no llmbatch ctl for this run: {event.why}"))
        elif self._verbose and isinstance(event, AttemptFailed):
            again = "not again" if event.retry_in_s is None else f"again in {event.retry_in_s:.1f} s"
            said = safe(f"{event.failure.type}: {event.failure.message}", 300)
            self._printer.note(f"{said} ({again}: {safe(event.reason, 100)})" if event.reason else f"{said} ({again})")


def _printer(shown: Shown) -> Printer:
    from llmbatch.views.plain import PlainLines

    if shown.quiet or shown.progress == "none":
        from llmbatch.views.printer import Silent

        return Silent(sys.stderr, quiet=shown.quiet)
    if shown.progress == "json":
        from llmbatch.views.json_lines import JsonLines

        return JsonLines(sys.stderr)
    if shown.progress == "plain" or (shown.progress == "auto" and not sys.stderr.isatty()):
        return PlainLines(sys.stderr)
    from llmbatch.views.live import LiveBar, can_draw

    return LiveBar(sys.stderr) if shown.progress == "rich" or can_draw(sys.stderr) else PlainLines(sys.stderr)


@contextlib.contextmanager
def _stopping(printer: Printer) -> Iterator[None]:
    try:
        yield
    finally:
        printer.stop()


def _this_command() -> str:
    return shlex.join(["llmbatch", *sys.argv[1:]])


def _say(text: str) -> None:
    if not text:
        return
    with contextlib.suppress(OSError):
        sys.stderr.write(text.rstrip("\n") + "\n")
        sys.stderr.flush()
