"""From lines of the input to jobs: each row is read, rendered, fingerprinted, and held against earlier runs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

from llmbatch.errors import StorageError
from llmbatch.files.index import IdentitySet, identity_hash, identity_text
from llmbatch.files.jsonl import parse_line, text_line
from llmbatch.files.readers import InputFile
from llmbatch.files.recovered import Recovered
from llmbatch.parts import UNPREPARED, Group, Part, known_parts, prepared_job, split, whole_of
from llmbatch.prepare import ANSWER, Images, Preparation
from llmbatch.records import BadRow, Line, Request, Row
from llmbatch.rules.fair import tenant_of
from llmbatch.rules.fingerprint import Unwritable
from llmbatch.rules.reasons import RowError
from llmbatch.rules.request import RequestBuilder
from llmbatch.rules.resume import Decision, OnChange, Verdict, decide
from llmbatch.scheduler import Job

LARGE_ROW_BYTES = 2**20

SENT = frozenset({Verdict.DO, Verdict.RERUN_FAILED, Verdict.CHANGED_RERUN})


class Rendered:
    """One row as it was found: what it asks for, or why it can not be sent, and what earlier runs say of it.

    A row with tasks has ``parts``; its ``request`` is then that of the first that can be sent.
    """

    __slots__ = ("decision", "key", "line", "parts", "recorded", "request", "row")

    def __init__(
        self,
        line: Line,
        row: Row | BadRow,
        request: Request | BadRow,
        key: str | None,
        decision: Decision,
        recorded: Mapping[str, Any] | None,
        parts: Mapping[str, Part] | None = None,
    ) -> None:
        self.parts = parts
        self.line = line
        self.row = row
        self.request = request
        self.key = key
        self.decision = decision
        self.recorded = recorded

    @property
    def failed_before(self) -> bool:
        return self.decision.verdict is Verdict.RERUN_FAILED


class Reading:
    """Renders the lines of one input, in order. Used by the run, and before it by the plan; owned by one task.

    ``key_of`` gives a request's identity across runs. ``row_key`` is set if a hook makes the requests: it gives that
    of a row, or of one of its tasks.
    """

    def __init__(
        self,
        source: InputFile,
        builder: RequestBuilder,
        key_of: Callable[[Request], str],
        *,
        recovered: Recovered | None,
        on_change: OnChange,
        limit: int | None,
        images: Images,
        row_key: Callable[..., str] | None = None,
    ) -> None:
        self.images = images
        self._row_key = row_key
        self.source = source
        self.builder = builder
        self.rows = 0
        self.exhausted = False
        self._interrupted = False
        self._parse = text_line if source.format == "text" else parse_line
        self._key_of = key_of
        self._recovered = recovered
        self._on_change = on_change
        self._limit = limit
        self._seen = IdentitySet()
        self._batches: AsyncIterator[list[Line]] | None = None
        self._parsed: dict[int, Row | BadRow] = {}
        self._with_id = self._without_id = False

    @property
    def warnings(self) -> list[str]:
        """What is worth saying once about this input; whole at its end."""
        mixed = ["some rows have an id and some have none: those without go by their row number"]
        own = mixed if self._with_id and self._without_id else []
        return [*self.source.warnings, *sorted(self.builder.warnings), *own]

    async def more(self) -> list[Line]:
        """The next lines, at most as many as the limit leaves; empty at the end."""
        if self.exhausted or self._interrupted:
            return []
        if self._batches is None:
            self._batches = self.source.batches()
        room = None if self._limit is None else self._limit - self.rows
        lines = [] if room == 0 else await anext(self._batches, [])
        if not lines:
            self.exhausted = not self._interrupted
            self.source.close()
            self._seen = IdentitySet()  # the sealing pass needs the memory
        lines = lines[:room]
        await self._parse_large(lines)
        return lines

    async def _parse_large(self, lines: list[Line]) -> None:
        """A row of tens of megabytes takes half a second to parse: in a thread, it holds nobody up."""
        self._parsed.clear()
        for number, line in enumerate(lines, self.rows + 1):
            if len(line.data) > LARGE_ROW_BYTES:
                self._parsed[line.number] = await asyncio.to_thread(self._parse, line, number)

    def _warn(self, line: Line, row: Row | BadRow) -> None:
        """Once each: what a provider may refuse, and what makes a row hard to find again."""
        if b"\\u0000" in line.data:
            self.builder.warnings.add("some prompts hold a NUL character (\\u0000), which some providers refuse")
        if isinstance(row, Row):
            self._with_id |= row.id is not None
            self._without_id |= row.id is None

    def interrupt(self) -> None:
        """Read no more; whoever waits for a silent pipe is woken."""
        self._interrupted = True
        self.source.close()

    def render(self, line: Line) -> Rendered:
        """Count one more row, and say what it is."""
        self.rows += 1
        row = self._parsed.get(line.number) or self._parse(line, self.rows)
        self._warn(line, row)
        parts = None
        if isinstance(row, BadRow):
            asked = Part(row, None)
        elif (twin := self._twin(row, line)) is not None:
            asked = Part(twin, None)
        elif (parts := self._parts(row, line)) is not None:
            asked = whole_of(parts)
        elif self._row_key is not None:
            asked = self._unprepared(row, line)
        else:
            asked = self._keyed(self.builder.build(row, line.offset), row, line)
        rendered = Rendered(line, row, asked.request, asked.key, _NEW, None, parts)
        if self._recovered is not None:
            self._compare(rendered, self._recovered)
        return rendered

    def known(self, rendered: Rendered) -> dict[str, Mapping[str, Any]]:
        """The good answers that earlier runs have got to parts of this row, by name."""
        if self._recovered is None or not isinstance(rendered.row, Row):
            return {}
        kept = self._recovered.parts(rendered.row.id, rendered.row.index)
        return known_parts(rendered.recorded, kept)

    def requests_of(self, rendered: Rendered) -> int:
        """How many requests this row needs that earlier runs have not had answered."""
        known = {(name, line["key"]) for name, line in self.known(rendered).items()}
        parts = rendered.parts or {ANSWER: Part(rendered.request, rendered.key)}
        return sum(part.key is not None and (name, part.key) not in known for name, part in parts.items())

    def _parts(self, row: Row, line: Line) -> dict[str, Part] | None:
        if self._row_key is not None:
            names = self.builder.names(row)
            return {name: self._unprepared(row, line, name) for name in names} if names else None
        built = self.builder.parts(row, line.offset)
        if built is None:
            return None
        return {name: self._keyed(request, row, line) for name, request in built.items()}

    def _keyed(self, request: Request | BadRow, row: Row, line: Line) -> Part:
        if isinstance(request, BadRow):
            return Part(request, None)
        try:
            request = self.images.stamped(request)
            return Part(request, self._key_of(request))
        except (RowError, Unwritable) as error:
            return Part(BadRow(row.index, row.line, line.offset, f"line {row.line}: {error}", row.id), None)

    def _unprepared(self, row: Row, line: Line, task: str | None = None) -> Part:
        """A row whose request a hook will make."""
        assert self._row_key is not None, "asked for by its caller"
        try:
            return Part(UNPREPARED, self._row_key(row.fields, task))
        except Unwritable as error:
            return Part(BadRow(row.index, row.line, line.offset, f"line {row.line}: {error}", row.id), None)

    def _twin(self, row: Row, line: Line) -> BadRow | None:
        if row.id is None or self._seen.add(identity_hash(identity_text(row.id, row.index))):
            return None
        reason = f"line {row.line}: an earlier row has the same id {row.id!r:.120}; ids must differ"
        return BadRow(row.index, row.line, line.offset, reason, row.id, "duplicate_id")

    def _compare(self, rendered: Rendered, recovered: Recovered) -> None:
        row = rendered.row
        bad = rendered.request if isinstance(rendered.request, BadRow) else None
        found = None if bad and bad.type == "duplicate_id" else recovered.find(row.id, row.index)
        if found is None and bad:
            found = recovered.find_unsent(row.id, row.index)
        if found is None:
            return
        rendered.recorded = found.line
        rendered.decision = decide(
            found.line,
            row=row.index,
            key=rendered.key,
            on_change=self._on_change,
            holds_number=found.holds_number,
        )


_NEW = decide(None, row=0, key=None, on_change="refuse")


class NotSent(Protocol):
    """Who deals with the rows that are not sent."""

    def refuse(self, bad: BadRow, fields: Mapping[str, Any] | None) -> None:
        """A row that can not be sent becomes an error line."""
        ...

    def keep(self, rendered: Rendered) -> None:
        """A row that an earlier run finished."""
        ...

    def complete(self, group: Group) -> Any:
        """A row whose parts all have ended before."""
        ...

    def broken(self, error: StorageError) -> None:
        """The input can not be read on."""
        ...


class RowFeed:
    """Jobs for the scheduler. Rows that are not sent go to the desk on the way.

    ``taken`` counts rows, ``offset`` is where the next line begins. ``hooked``: answers are still worked on when they
    are here, so they are kept apart until then. ``tenant_field`` names the field that says whose row it is,
    which all rows should have if ``tenant_expected``.
    """

    def __init__(
        self,
        reading: Reading,
        desk: NotSent,
        *,
        include_input: bool,
        ready: Callable[[], Any],
        hooked: bool = False,
        preparation: Preparation | None = None,
        tenant_field: str | None = None,
        tenant_expected: bool = False,
    ) -> None:
        self._tenant_field = tenant_field
        self._tenant_expected = tenant_expected
        self._preparation = preparation
        self._reading = reading
        self._desk = desk
        self._include_input = include_input
        self._ready = ready
        self._hooked = hooked
        self._lines: list[Line] = []
        self._next = 0
        self._jobs: deque[Job] = deque()
        self.taken = 0
        self.offset = 0

    def take(self) -> Job | None:
        """The next request to be sent of the lines at hand."""
        while not self._jobs:
            if self._next == len(self._lines):
                return None
            line = self._lines[self._next]
            self._next += 1
            self.offset = line.offset + len(line.data) + 1
            self._take(self._reading.render(line))
        return self._jobs.popleft()

    async def refill(self) -> bool:
        """Wait until the output has room, then for further lines. False at the end of the input."""
        await self._ready()
        self._lines, self._next = [], 0
        try:
            self._lines = await self._reading.more()
        except StorageError as error:
            self._desk.broken(error)
        return bool(self._lines)

    def _tenant_of(self, fields: Mapping[str, Any]) -> str | None:
        tenant = tenant_of(fields, self._tenant_field)
        if tenant is None and self._tenant_expected:
            self._reading.builder.warnings.add(
                f"some rows have no text or number in {self._tenant_field!r:.60} (--tenant-field): they take turns as "
                "one tenant"
            )
        return tenant

    def _take(self, rendered: Rendered) -> None:
        if rendered.decision.verdict not in SENT:
            self._desk.keep(rendered)
            return
        fields = rendered.row.fields if isinstance(rendered.row, Row) else None
        if isinstance(rendered.request, BadRow):
            self._desk.refuse(rendered.request, fields)
            return
        assert rendered.key is not None, "a row that renders has a key"
        self.taken += 1
        row, shown = rendered.row, fields if self._include_input else None
        keeps = self._include_input or self._hooked or self._preparation is not None or rendered.parts is not None
        job = Job(
            row.index,
            row.id,
            rendered.key,
            rendered.request,
            shown,
            rendered.failed_before,
            tenant=self._tenant_of(fields or {}),
            kept_bytes=len(rendered.line.data) if keeps else 0,
        )
        prepared = None
        if self._preparation is not None:
            assert isinstance(row, Row), "a row that renders is none that is bad"
            prepared = self._preparation.of(row)
        known = self._reading.known(rendered)
        if rendered.parts is None and not self._hooked and not known:
            self._jobs.append(prepared_job(job, prepared, self._reading.images, ANSWER))
            return
        parts = rendered.parts or {ANSWER: Part(rendered.request, rendered.key)}
        images, tasks = self._reading.images, rendered.parts is not None
        group, jobs = split(job, parts, fields or {}, known, prepared, images, tasks=tasks)
        self._jobs.extend(jobs)
        if group.complete:
            self._desk.complete(group)
