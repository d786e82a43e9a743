"""What a dialect is: pure functions between our nouns and bytes. No I/O; only calls/wire.py sends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from llmbatch.records import Failure, Reply, Request
from llmbatch.rules.limits import Limits


class StreamDecoder(Protocol):
    """Reads the events of one streamed answer. Owned by one attempt."""

    def feed(self, data: str) -> bool:
        """Take the data of one event. True if it carried a part of the answer (the first one is the first token)."""
        ...

    @property
    def ended(self) -> bool:
        """True once the protocol's own end marker was seen, or an error event."""
        ...

    @property
    def text(self) -> str:
        """The text of the answer as far as it has come."""
        ...

    def finish(self) -> Reply | Failure:
        """The whole answer, or what is missing of it."""
        ...


class Events(Protocol):
    """Cuts the bytes of one streamed answer into the data of its events. Owned by one attempt."""

    def feed(self, chunk: bytes) -> Iterator[str]:
        """The data of each event that ``chunk`` completes. Raises UnicodeDecodeError on bytes that are not UTF-8."""
        ...


class Provider(Protocol):
    """One dialect.

    ``headers`` go with every request (never a key). ``streams`` is False for what can only be asked for as a whole,
    ``embeds`` True for what answers with vectors.
    ``max_body_bytes`` is the longest request that the server takes, None if that is not known.
    """

    name: str
    headers: Mapping[str, str]
    streams: bool
    embeds: bool
    max_body_bytes: int | None

    def path(self, model: str, *, stream: bool = False) -> str:
        """The endpoint's path, and query, below the base URL."""
        ...

    def encode(self, request: Request) -> Mapping[str, Any]:
        """The JSON body of ``request``; its fingerprint is the row's identity, so it holds no transport detail.

        Raises RowError for what this dialect has no word for: nothing is dropped silently.
        """
        ...

    def streamed(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The same body, asking for a streamed answer."""
        ...

    def decode(self, status: int, headers: Mapping[str, str], body: bytes) -> Reply | Failure:
        """A whole HTTP answer."""
        ...

    def events(self) -> Events: ...

    def stream_decoder(self) -> StreamDecoder: ...

    def limits(self, headers: Mapping[str, str], time_s: float) -> Limits:
        """What the headers of an answer say of the limits. ``time_s`` is the Unix time, for servers that say dates."""
        ...
