"""One comparison, from the rows to the figures of every case."""

from __future__ import annotations

import asyncio
import itertools
import os
import platform
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from pathlib import Path

from llmbatch.compare.certificate import has_openssl, make_certificate
from llmbatch.compare.job import Job, Work, key_of, refuse_proxy
from llmbatch.compare.measure import Bench, NotMeasured
from llmbatch.compare.options import DEFAULT_ROWS, CompareOptions
from llmbatch.errors import InputError, OptionsError
from llmbatch.files.jsonl import parse_line, text_line
from llmbatch.files.readers import open_input
from llmbatch.files.sniff import FormatOption
from llmbatch.identity import target_of
from llmbatch.machine import raise_descriptors
from llmbatch.options import STDIO
from llmbatch.prepare import Images, builder_of
from llmbatch.providers.target import Target
from llmbatch.records import BadRow, Request, Row
from llmbatch.rules.comparison import (
    REAL_PARTS,
    Case,
    Compared,
    Comparison,
    Measured,
    again_for_longer,
    cases,
    real_cases,
)
from llmbatch.rules.reasons import RowError

MOST_TRIES = 2
_ASYNC = "compare asks a server on an event loop; docs/serving.md compares the two modes"
# Options of the simulated provider that a comparison decides, and why.
_OWN_SIM = {
    "latency": "compare sets it itself; there is --latency",
    "port": "compare takes a free one",
    "drain": "compare sets it itself",
    "mode": _ASYNC,
    "threads": _ASYNC,
}

Told = Callable[[Case, int, int], None]


def compare(options: CompareOptions, tell: Told = lambda case, number, of: None, made_by: str = "") -> Comparison:
    """Measure every case ``options.runs`` times, all in turn, so that a slow minute of the machine meets them all.

    ``tell`` hears before each run of a case which it is, and of how many.
    Raises OptionsError, before anything is sent, for what can not be compared, or would cost money unsaid.
    """
    target = target_of(options.run)
    if any(part == "cpu" for part in options.parts):
        Work(options.work, options.run)
    read = asyncio.run(_read(options, target))
    planned, left_out = _planned(options, target, len(read))
    with ExitStack() as stack:
        bench = _bench(options, planned, stack)
        found: dict[Case, list[Measured]] = {case: [] for case in planned}
        problems: dict[Case, str] = {}
        turns = [case for _ in range(options.runs) for case in planned]
        for number, case in enumerate(turns, 1):
            if case in problems:
                continue
            tell(case, number, len(turns))
            try:
                found[case].append(_measured(bench, _job(case, options, read)))
            except NotMeasured as error:
                problems[case] = str(error)
    return Comparison(
        endpoint="the simulated provider" if target.simulated else target.url,
        made_by=made_by,
        date=date.today().isoformat(),
        machine=this_machine(),
        compared=tuple(Compared(case, tuple(runs), problems.get(case)) for case, runs in found.items()),
        notes=(*_notes(options, planned, len(read)), *left_out),
    )


def _measured(bench: Bench, job: Job) -> Measured:
    """A busy machine may need more time until all requests are under way at once. Raises NotMeasured."""
    for _ in range(MOST_TRIES):
        measured = bench.measure(job)
        longer = again_for_longer(job.case, measured)
        if longer is None:
            break
        job = replace(job, case=longer)
    return measured


def this_machine() -> dict[str, object]:
    return {
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _planned(options: CompareOptions, target: Target, rows: int) -> tuple[list[Case], list[str]]:
    """What is to be measured, and in words what can not be on this machine. Raises OptionsError if nothing can."""
    if not target.simulated:
        return _real(options, target, rows), []
    wanted = cases(options.parts, options.sizes, options.run.limit or DEFAULT_ROWS, options.latency_s)
    files, openssl = raise_descriptors(), has_openssl()
    planned = [case for case in wanted if case.in_flight <= files and (openssl or not case.server.tls)]
    left_out = []
    if any(case.in_flight > files for case in wanted):
        left_out.append(
            f"more than {files:,} requests in flight are left out: no more files may be open here (ulimit -n)"
        )
    if not openssl and any(case.server.tls for case in wanted):
        left_out.append("nothing over https: it needs the openssl command, for a certificate")
    if not planned:
        raise OptionsError(f"nothing can be compared here; {'; '.join(left_out)}")
    return planned, left_out


def _real(options: CompareOptions, target: Target, rows: int) -> list[Case]:
    """Refused unless all that it may cost is said."""
    if odd := [part for part in options.parts if part not in REAL_PARTS]:
        raise OptionsError(f"--part {odd[0]} needs the simulated provider (-m sim/NAME); with a real one there are: "
                           f"{', '.join(REAL_PARTS)}")  # fmt: skip
    if options.run.limit is None:
        raise OptionsError(f"every driver sends the rows again, to {target.origin}: say how many with --limit N")
    planned = real_cases(options.parts, options.sizes, rows)
    requests = sum(case.requests for case in planned) * options.runs
    if not options.paid:
        raise OptionsError(
            f"this sends {requests:,} requests to {target.url} ({len(planned)} cases, {rows:,} rows each"
            f"{f', {options.runs} times' if options.runs > 1 else ''}), and each may have to be paid: add --yes if "
            "that is meant, or leave -m out for the simulated provider"
        )
    refuse_proxy(target)
    key_of(target, options.run)
    return planned


def _bench(options: CompareOptions, planned: Iterable[Case], stack: ExitStack) -> Bench:
    from llmbatch.sim.options import sim_options_from

    sim = {name: str(value) for name, value in options.run.sim.items()}
    if reserved := [name for name in sim if name in _OWN_SIM]:
        raise OptionsError(f"--sim {reserved[0]}: {_OWN_SIM[reserved[0]]}")
    try:
        sim_options_from(sim)
    except ValueError as error:
        raise OptionsError(f"--sim {error}") from None
    if not any(case.server.tls for case in planned):
        return Bench(sim, None)
    return Bench(sim, make_certificate(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmbatch-")))))


def _notes(options: CompareOptions, planned: Iterable[Case], read: int) -> Iterable[str]:
    most = max(case.rows for case in planned)
    if most > read:
        yield f"the {read:,} rows of the input were sent again and again where more were needed"


# Rows


async def _read(options: CompareOptions, target: Target) -> list[tuple[Row, Request]]:
    """The rows that can be sent, at most ``limit`` of them, each with its request. Raises InputError."""
    run = options.run
    builder, images = builder_of(run, target), Images(run, target)
    most = run.limit or DEFAULT_ROWS
    found: list[tuple[Row, Request]] = []
    async for row in _rows(run.input, run.input_format):
        if isinstance(row, Row) and builder.parts(row) is not None:
            raise InputError(f"line {row.line} has tasks: compare sends one request for each row")
        request = builder.build(row) if isinstance(row, Row) else row
        if isinstance(request, BadRow):
            raise InputError(f"{request.reason}; compare wants rows that can all be sent")
        assert isinstance(row, Row), "else there is no request"
        try:
            found.append((row, await images.loaded(images.stamped(request))))
            target.dialect(request).encode(request)
        except RowError as error:
            raise InputError(f"line {row.line}: {error}") from None
        if len(found) == most:
            break
    if not found:
        raise InputError(f"{'standard input' if run.input == STDIO else run.input} has no rows")
    return found


async def _rows(path: str, input_format: FormatOption) -> AsyncIterator[Row | BadRow]:
    source = await open_input(path, input_format=input_format)
    parse = text_line if source.format == "text" else parse_line
    index = itertools.count(1)
    try:
        async for lines in source.batches():
            for line in lines:
                yield parse(line, next(index))
    finally:
        source.close()


def _job(case: Case, options: CompareOptions, read: list[tuple[Row, Request]]) -> Job:
    """With as many rows as the case has, from the beginning again where the input has fewer."""
    rows = list(itertools.islice(itertools.cycle(read), case.rows))
    job = Job(case, options.run, None, None, hook_processes=options.sizes.cores)
    if case.variant.startswith("hook"):
        return replace(job, rows=tuple(row for row, _ in rows), work=options.work)
    return replace(job, requests=tuple(request for _, request in rows))
