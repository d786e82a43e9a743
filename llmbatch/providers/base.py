"""What a dialect is: pure functions between our nouns and bytes. No I/O; only calls/wire.py sends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from llmbatch.records import Failure, Reply, Request


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


class Provider(Protocol):
    """One dialect."""

    name: str
    path: str
    """The endpoint's path below the base URL."""

    def encode(self, request: Request) -> Mapping[str, Any]:
        """The JSON body of ``request``; its fingerprint is the row's identity, so it holds no transport detail."""
        ...

    def streamed(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The same body, asking for a streamed answer."""
        ...

    def decode(self, status: int, headers: Mapping[str, str], body: bytes) -> Reply | Failure:
        """A whole HTTP answer."""
        ...

    def stream_decoder(self) -> StreamDecoder: ...
