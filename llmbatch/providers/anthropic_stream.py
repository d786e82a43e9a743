"""A streamed message, folded into a whole one.

Source: Anthropic guide "Streaming messages"; the official SDK 2.11 (``_streaming.py``, ``types/raw_*``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from llmbatch.providers.anthropic_answer import reply_of
from llmbatch.providers.anthropic_errors import stream_failure
from llmbatch.providers.json_text import loads_chunk, writable
from llmbatch.records import Failure, Reply
from llmbatch.rules.kept import KEPT_TEXT_CHARS
from llmbatch.rules.nesting import MAX_NESTING, nests_too_deeply
from llmbatch.rules.reasons import excerpt

# The type of a delta -> the type of its block, and the member with the news. Signatures and citations are not read.
_DELTAS = {
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "thinking"),
    "input_json_delta": ("tool_use", "partial_json"),
}
# What is kept of the start of a block.
_KEPT = ("type", "text", "thinking", "id", "name")
# The member of a whole block in which its deltas come together.
_MEMBERS = {"text": "text", "thinking": "thinking", "tool_use": "input"}


@dataclass(slots=True)
class _Block:
    start: Mapping[str, str]
    parts: list[str] = field(default_factory=list)

    def whole(self) -> dict[str, str]:
        member = _MEMBERS.get(self.start.get("type", ""))
        if member is None or not self.parts:
            return dict(self.start)
        begun = self.start.get(member, "") if member != "input" else ""
        return {**self.start, member: begun + "".join(self.parts)}


class MessagesStream:
    """Reads the events of one streamed message up to ``message_stop``, or to an error. Owned by one attempt.

    Only ``message_stop`` after a stop reason makes the answer complete. Events of unknown types are passed over, as
    the API's rules for its versions demand.
    """

    def __init__(self) -> None:
        self.ended = False
        self._message: Mapping[str, Any] = {}
        self._blocks: list[_Block] = []
        self._open: dict[int, _Block] = {}
        self._closing: dict[str, Any] = {}
        self._usage: dict[str, Any] = {}
        self._stopped = False
        self._failure: Failure | None = None

    def feed(self, data: str) -> bool:
        """Take one event's data. True if it carried a part of the answer."""
        if self.ended:
            return False
        try:
            event = loads_chunk(data)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict):
            return self._fail(_unusable("bad_stream", f"not a JSON object in the stream: {excerpt(data)}"))
        if event.get("type") == "error" or event.get("error"):
            return self._fail(stream_failure(event, data, begun=bool(self._blocks)))
        return self._event(event, data)

    @property
    def text(self) -> str:
        """The text so far, no more of it than is kept."""
        texts = (block.whole().get("text", "") for block in self._blocks if block.start.get("type") == "text")
        return str(writable("".join(texts)[:KEPT_TEXT_CHARS]))

    def finish(self) -> Reply | Failure:
        """The whole answer; a Failure that keeps the text so far if there is no whole one."""
        outcome = self._failure or self._missing() or reply_of(self._folded())
        if isinstance(outcome, Failure):
            return replace(outcome, output_so_far=self.text or None)
        return outcome

    def _event(self, event: Mapping[str, Any], data: str) -> bool:
        kind = event.get("type")
        if kind == "content_block_delta":
            return self._delta(event)
        if kind == "content_block_start":
            return self._start(event, data)
        if kind == "message_start":
            self._message = _object(event.get("message"))
            self._count(self._message.get("usage"))
        elif kind == "message_delta":
            self._closing.update(_said(event.get("delta")))
            self._count(event.get("usage"))
        elif kind == "message_stop":
            self._stopped = self.ended = True
        return False

    def _start(self, event: Mapping[str, Any], data: str) -> bool:
        begun = _object(event.get("content_block"))
        block = {name: value for name in _KEPT if isinstance(value := begun.get(name), str)}
        if begun.get("input"):  # empty in the API itself; servers that imitate it may have it all here
            if nests_too_deeply(event, data.encode("utf-8", "replace")):
                message = f"the arguments of a tool nest deeper than {MAX_NESTING} levels"
                return self._fail(_unusable("bad_stream", message))
            block["input"] = orjson.dumps(writable(begun["input"])).decode()
        self._begin(_index(event), _Block(block))
        return block.get("type") == "tool_use" or bool(block.get("text") or block.get("thinking"))

    def _delta(self, event: Mapping[str, Any]) -> bool:
        delta = _object(event.get("delta"))
        kind, member = _DELTAS.get(str(delta.get("type")), ("", ""))
        news = delta.get(member)
        if not isinstance(news, str) or not news:
            return False
        index = _index(event)
        block = self._open.get(index) or self._begin(index, _Block({"type": kind}))
        if block.start.get("type") != kind:  # the arguments of a tool that the server itself calls
            return False
        block.parts.append(news)
        return True

    def _begin(self, index: int, block: _Block) -> _Block:
        """Blocks stand in the order in which they began; the later deltas of ``index`` belong to this one."""
        self._blocks.append(block)
        self._open[index] = block
        return block

    def _count(self, usage: Any) -> None:
        """Numbers of later events are totals: they replace the earlier ones."""
        self._usage.update(_said(usage))

    def _folded(self) -> dict[str, Any]:
        return {
            "model": writable(_text(self._message.get("model"))),
            "stop_reason": writable(self._closing["stop_reason"]),
            "stop_details": {
                name: writable(_text(value)) for name, value in _object(self._closing.get("stop_details")).items()
            },
            "usage": self._usage,
            "content": [writable(block.whole()) for block in self._blocks],
        }

    def _missing(self) -> Failure | None:
        if self._stopped and isinstance(self._closing.get("stop_reason"), str):
            return None
        message = f"the stream ended before its end marker, after {len(self.text):,} characters"
        return _unusable("stream_cut", message)

    def _fail(self, failure: Failure) -> bool:
        self._failure = failure
        self.ended = True
        return False


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _said(value: Any) -> Mapping[str, Any]:
    """The members of an object that are not null: those say nothing new."""
    return {name: member for name, member in _object(value).items() if member is not None}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _index(event: Mapping[str, Any]) -> int:
    index = event.get("index")
    return index if isinstance(index, int) else 0


def _unusable(word: str, message: str) -> Failure:
    return Failure("unusable", word, message, http_status=200, retryable=True)
