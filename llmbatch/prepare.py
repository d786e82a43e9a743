"""From a row to its requests just before they are sent: the user's hook prepares it, and images are read.

Finished rows never come here: their key is made of the row as it stands in the input.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmbatch.files.images import stamped, with_images
from llmbatch.hooks import HookError
from llmbatch.options import STDIO, RunOptions
from llmbatch.providers.target import Target
from llmbatch.records import BadRow, CallFailed, Failure, Request, Row, Skipped
from llmbatch.rules.fingerprint import Unwritable
from llmbatch.rules.images import MAX_IMAGE_BYTES
from llmbatch.rules.reasons import RowError
from llmbatch.rules.request import RequestBuilder

Before = Callable[[dict[str, Any]], Awaitable[Any]]
"""A hook: a row's fields in; a row, a prompt, a list of messages, or None to leave it out. Raises HookError."""


if TYPE_CHECKING:
    from llmbatch.hooks.calling import Hooks

# Each takes a thread, and three times its size in memory.
MOST_READ_TOGETHER = 4
# For servers that do not say what they take.
DEFAULT_IMAGE_BYTES = 20_000_000
# The name of the one request of a row that has no tasks.
ANSWER = "answer"


def builder_of(options: RunOptions, target: Target) -> RequestBuilder:
    """Builds the requests of a run. Raises OptionsError."""
    return RequestBuilder(
        model=target.model,
        template=options.template,
        system=options.system,
        params=options.params,
        schema=options.schema,
        tasks=options.tasks,
        nonce=secrets.token_hex(8),
    )


def hooks_of(options: RunOptions, notice: Callable[[str], None]) -> Hooks | None:
    """The user's functions, loaded; None if the run has none. Raises OptionsError."""
    if options.before is None and options.after is None:
        return None
    from llmbatch.hooks.calling import Hooks

    return Hooks(options.before, options.after, options.hook_processes, notice)


class Images:
    """The images of one run that are files: their stand-ins, and the bytes when a request is sent."""

    def __init__(self, options: RunOptions, target: Target) -> None:
        self._target = target
        self._base = Path() if options.input == STDIO else Path(options.input).parent
        self._reading: asyncio.Semaphore | None = None

    def stamped(self, request: Request) -> Request:
        """``request`` with a stand-in for each file. Raises RowError."""
        return stamped(request, self._base)

    async def loaded(self, request: Request) -> Request:
        """``request`` with the images themselves. Raises CallFailed."""
        if self._reading is None:
            self._reading = asyncio.Semaphore(MOST_READ_TOGETHER)
        most = MAX_IMAGE_BYTES.get(self._target.dialect(request).name, DEFAULT_IMAGE_BYTES)
        try:
            return await with_images(request, most, self._reading)
        except RowError as error:
            raise CallFailed(Failure("permanent", "invalid_image", str(error))) from None


class Preparation:
    """How the rows of one run are prepared. ``check`` raises RowError or Unwritable for what can not be sent."""

    def __init__(
        self, before: Before, builder: RequestBuilder, check: Callable[[Request], Any], images: Images
    ) -> None:
        self._images = images
        self._before = before
        self._builder = builder
        self._check = check

    def of(self, row: Row) -> Prepared:
        """The requests of ``row``, made when the first of them is wanted."""
        return Prepared(lambda: self._make(row), self._images)

    async def _make(self, row: Row) -> Mapping[str, Request | BadRow]:
        try:
            given = await self._before(dict(row.fields))
        except HookError as error:
            raise CallFailed(Failure("permanent", "hook_failed", str(error))) from None
        if given is None:
            raise Skipped
        if isinstance(given, str):
            return {ANSWER: self._sent_as_said(replace(row, fields={"prompt": given}))}
        if isinstance(given, list):
            return {ANSWER: self._sent_as_said(replace(row, fields={"messages": given}))}
        row = replace(row, fields=given)
        built = self._builder.parts(row) or {ANSWER: self._builder.build(row)}
        return {name: self._checked(request, row) for name, request in built.items()}

    def _sent_as_said(self, row: Row) -> Request | BadRow:
        """A conversation is no data for a template."""
        return self._checked(self._builder.build_said(row), row)

    def _checked(self, request: Request | BadRow, row: Row) -> Request | BadRow:
        if isinstance(request, Request):
            try:
                request = self._images.stamped(request)
                self._check(request)
            except (RowError, Unwritable) as error:
                return BadRow(row.index, row.line, 0, f"line {row.line}: after the hook: {error}", row.id)
        return request


def _none_for(name: str, made: Mapping[str, Request | BadRow]) -> Failure:
    """Why what the hook gave has no request for this task."""
    bad = next((request for request in made.values() if isinstance(request, BadRow)), None)
    if bad is not None:
        return Failure("permanent", bad.type, bad.reason)
    why = f"left no task {name!r} in the row" if name != ANSWER else "gave tasks to a row that has none in the input"
    return Failure("permanent", "hook_failed", f"the hook {why}")


class Prepared:
    """The requests of one row; the hook runs once for all of its tasks."""

    def __init__(self, make: Callable[[], Awaitable[Mapping[str, Request | BadRow]]], images: Images) -> None:
        self._make = make
        self._images = images
        self._making: asyncio.Lock = asyncio.Lock()
        self._made: Mapping[str, Request | BadRow] | Exception | None = None

    async def request(self, name: str) -> Request:
        """That of one task. Raises CallFailed if the hook or the row is no good, Skipped if the row is left out."""
        async with self._making:
            if self._made is None:
                try:
                    self._made = await self._make()
                except (CallFailed, Skipped) as error:
                    self._made = error
        if isinstance(self._made, Exception):
            raise self._made
        # A hook that gives a conversation means it for every task.
        request = self._made.get(name) or self._made.get(ANSWER)
        if request is None:
            raise CallFailed(_none_for(name, self._made))
        if isinstance(request, BadRow):
            raise CallFailed(Failure("permanent", request.type, request.reason))
        return await self._images.loaded(request)
