"""A streamed response: its last event holds the whole answer.

Source: OpenAI API reference, "Streaming events" of Responses; the official SDK's event types.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmbatch.providers.json_text import loads_chunk, writable
from llmbatch.providers.openai_errors import broken_stream
from llmbatch.providers.openai_stream import cut_stream, start_of, unusable_stream
from llmbatch.providers.responses_reply import outcome_of
from llmbatch.records import Failure, Reply
from llmbatch.rules.nesting import nests_too_deeply
from llmbatch.rules.reasons import excerpt

_END = ("response.completed", "response.incomplete", "response.failed")
_TEXT = ("response.output_text.delta", "response.refusal.delta")


class ResponsesStream:
    """Reads the events of one response up to the one that ends it. Owned by one attempt.

    The answer is taken from that event alone; the pieces before it are for a stream that is cut.
    """

    def __init__(self) -> None:
        self.ended = False
        self._pieces: list[str] = []
        self._began = False
        self._response: Any = None
        self._failure: Failure | None = None

    def feed(self, data: str) -> bool:
        """Take one event's data. True if it carried a part of the answer."""
        if self.ended or data.startswith("[DONE]"):
            return False
        try:
            event = loads_chunk(data)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict) or nests_too_deeply(event, data.encode("utf-8", "replace")):
            return self._fail(
                unusable_stream("bad_stream", f"no JSON object, or one too deep, in the stream: {excerpt(data)}")
            )
        kind = event.get("type")
        if kind == "error" or event.get("error"):
            # The reference has the fields in the event itself; servers also send them as they do elsewhere.
            return self._fail(broken_stream(event.get("error") or event, data, began=self._began))
        if kind in _END:
            self.ended, self._response = True, writable(event.get("response"))
            return False
        return self._piece(kind, event.get("delta"))

    @property
    def text(self) -> str:
        """The text so far; of a refusal, its words. No more of it than is kept."""
        return str(writable(start_of(self._pieces)))

    def finish(self) -> Reply | Failure:
        """The whole answer; a Failure that keeps the text so far if there is no whole one."""
        outcome = self._failure or (outcome_of(self._response) if self.ended else self._cut())
        return replace(outcome, output_so_far=self.text or None) if isinstance(outcome, Failure) else outcome

    def _piece(self, kind: Any, delta: Any) -> bool:
        """Also thoughts and arguments come in pieces: the model is at work."""
        if not isinstance(kind, str) or not kind.endswith(".delta") or not isinstance(delta, str) or not delta:
            return False
        self._began = True
        if kind in _TEXT:
            self._pieces.append(delta)
        return True

    def _cut(self) -> Failure:
        return cut_stream(len(writable("".join(self._pieces))))

    def _fail(self, failure: Failure) -> bool:
        self._failure = failure
        self.ended = True
        return False
