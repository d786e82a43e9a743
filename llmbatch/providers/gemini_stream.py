"""A streamed answer of Gemini: Server-Sent Events without an end marker, and errors without framing.

Source: Gemini API reference, "streamGenerateContent"; the official SDK's ``_api_client.py`` (errors in mid-stream come
as raw JSON lines, which it collects until the braces balance).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from llmbatch.providers.gemini_answer import GeminiAnswer
from llmbatch.providers.gemini_errors import gemini_failure, status_in
from llmbatch.providers.json_text import loads_chunk, writable
from llmbatch.providers.openai_errors import broken_off
from llmbatch.providers.sse import EventDecoder
from llmbatch.records import Failure, Reply
from llmbatch.rules.kept import KEPT_TEXT_CHARS
from llmbatch.rules.reasons import excerpt

# An error of Google's has a few hundred bytes.
RAW_JSON_BYTES = 64 * 1024

# A line that begins like JSON, and the beginning of a line at the end of what has come.
_JSON_LINE = re.compile(rb"[\r\n][ \t]*([{\[])")
_OPEN_LINE = re.compile(rb"[\r\n][ \t]*\Z")


class GeminiEvents:
    """The data of each event, and each raw JSON value that stands between them. Owned by one attempt."""

    def __init__(self) -> None:
        self._events = EventDecoder()
        self._json: _RawJson | None = None
        self._at_line_start = True

    def feed(self, chunk: bytes) -> Iterator[str]:
        """The data of each event that ``chunk`` completes. Raises UnicodeDecodeError on bytes that are not UTF-8."""
        while chunk:
            if self._json is None:
                start = self._start_of_json(chunk)
                yield from self._events.feed(chunk[:start])
                chunk = chunk[start:]
                if chunk:
                    yield from self._events.feed(b"\n\n")  # ends an event that was not ended
                    self._json = _RawJson()
            else:
                chunk = chunk[self._json.take(chunk) :]
                if self._json.whole:
                    raw, self._json = self._json, None
                    self._at_line_start = False
                    yield raw.data.decode()

    def _start_of_json(self, chunk: bytes) -> int:
        """Where in ``chunk`` a line begins like JSON; its end if none does."""
        seen = (b"\n" if self._at_line_start else b" ") + chunk
        found = _JSON_LINE.search(seen)
        self._at_line_start = found is None and _OPEN_LINE.search(seen) is not None
        return len(chunk) if found is None else found.start(1) - 1


class _RawJson:
    """Collects one JSON value, which is whole when its braces balance, or when it is longer than any error."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.whole = False
        self._depth = 0
        self._in_text = self._escaped = False

    def take(self, chunk: bytes) -> int:
        """Take what belongs to the value; how many bytes that is."""
        room = RAW_JSON_BYTES - len(self.data)
        taken = next((place for place, byte in enumerate(chunk[:room], 1) if self._closed_by(byte)), None)
        self.whole = taken is not None or len(chunk) >= room
        taken = min(len(chunk), room) if taken is None else taken
        self.data += chunk[:taken]
        return taken

    def _closed_by(self, byte: int) -> bool:
        if self._escaped:
            self._escaped = False
        elif self._in_text:
            self._escaped = byte == ord("\\")
            self._in_text = byte != ord('"')
        elif byte == ord('"'):
            self._in_text = True
        elif byte in b"{[":
            self._depth += 1
        elif byte in b"}]":
            self._depth -= 1
            return self._depth == 0
        return False


class GeminiStream:
    """Reads the responses of one streamed answer. Owned by one attempt.

    There is no end marker: the answer is complete if its finish reason came before the stream closed.
    """

    def __init__(self) -> None:
        self.ended = False
        self._answer = GeminiAnswer()
        self._failure: Failure | None = None

    def feed(self, data: str) -> bool:
        """Take one event's data. True if it carried a part of the answer."""
        if self.ended or data.startswith("[DONE]"):  # proxies add it
            return False
        try:
            response = loads_chunk(data)
        except (ValueError, RecursionError):
            response = None
        if isinstance(response, list) and len(response) == 1:
            response = response[0]
        if not isinstance(response, dict):
            return self._fail(_unusable("bad_stream", f"not a JSON object in the stream: {excerpt(data)}"))
        if response.get("error"):
            return self._fail(self._error(response["error"], data))
        return self._answer.take(response)

    @property
    def text(self) -> str:
        """The text so far, no more of it than is kept."""
        return str(writable("".join(self._answer.text)[:KEPT_TEXT_CHARS]))

    def finish(self) -> Reply | Failure:
        """The whole answer; a Failure that keeps the text so far if there is no whole one."""
        outcome = self._failure or self._answer.ended(self._cut())
        if isinstance(outcome, Failure):
            return replace(outcome, output_so_far=self.text or None)
        return outcome

    def _cut(self) -> Failure:
        characters = sum(map(len, self._answer.text))
        return _unusable(
            "stream_cut", f"the stream ended before its finish reason came, after {characters:,} characters"
        )

    def _error(self, error: Any, data: str) -> Failure:
        """Before any part of the answer an error counts as its own status; after it, that may have been billed."""
        fields: Mapping[str, Any] = error if isinstance(error, dict) else {}
        status = status_in(fields)
        if status is None:
            return broken_off(error)
        if self._answer.begun:
            return broken_off({**fields, "code": status})
        return gemini_failure(status, {}, data.encode("utf-8", "replace"))

    def _fail(self, failure: Failure) -> bool:
        self._failure = failure
        self.ended = True
        return False


def _unusable(word: str, message: str) -> Failure:
    return Failure("unusable", word, message, http_status=200, retryable=True)
