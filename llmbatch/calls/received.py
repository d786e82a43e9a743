"""What has come of one answer's body, kept for the case that no more comes: it may have been paid for."""

from __future__ import annotations

import contextlib
import io
import zlib
from dataclasses import replace

from llmbatch.options import MAX_BODY_BYTES
from llmbatch.providers.base import StreamDecoder
from llmbatch.records import CallFailed, Failure
from llmbatch.rules.kept import with_body
from llmbatch.rules.reasons import excerpt

# zlib's word for: gzip or zlib, whichever the header says.
_GZIP_OR_ZLIB = zlib.MAX_WBITS + 32


class Received:
    """The body of one answer, as far as it has come. ``keep_bytes`` of it are kept; ``answer`` reads it if it is a
    stream. Owned by one attempt.

    No answer is asked for in a compressed form. One that comes in gzip or deflate is decompressed here, where a cut
    is seen and what came before it is kept; of any other the raw bytes are.
    """

    __slots__ = ("_parts", "_raw", "_size", "_unknown", "_unpack", "answer", "keep_bytes")

    def __init__(self) -> None:
        self.keep_bytes = MAX_BODY_BYTES
        self.answer: StreamDecoder | None = None
        self._parts: list[bytes] = []
        self._raw: list[bytes] = []
        self._size = 0
        self._unpack: zlib._Decompress | None = None
        self._unknown = ""

    def encoded_as(self, encoding: str) -> None:
        """Before the first bytes: the answer's Content-Encoding."""
        encoding = encoding.strip().lower()
        if encoding in ("gzip", "x-gzip", "deflate"):
            self._unpack = zlib.decompressobj(_GZIP_OR_ZLIB)
        elif encoding not in ("", "identity"):
            self._unknown = excerpt(encoding, 40)

    def add(self, data: bytes) -> bytes:
        """Take what came; its plain bytes. Raises CallFailed for more than MAX_BODY_BYTES and for broken gzip."""
        if self._unpack is not None:
            self._raw.append(data)
            data = self._unpacked(self._unpack, data)
        self._keep(data)
        if self._size > MAX_BODY_BYTES:
            raise CallFailed(_unusable("answer_too_large", f"the answer is larger than {MAX_BODY_BYTES // 2**20} MiB"))
        return data

    def add_unparsed(self, error: BaseException) -> None:
        """Take what came in one piece with what broke the framing, if ``error`` is that: as it came, headers too."""
        if data := getattr(error.__cause__, "unparsed", b""):
            self._keep(data)

    @property
    def readable(self) -> bool:
        """False if it comes packed in a way that is not known here."""
        return not self._unknown

    def whole(self) -> bytes:
        """The body, once its end has come. Raises CallFailed if it was packed and its own end is missing."""
        if self._unknown:
            raise CallFailed(_unusable("bad_encoding", f"the answer is packed as {self._unknown}, unasked"))
        if self._unpack is not None and self._raw and not self._unpack.eof:
            raise CallFailed(_broken())
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def told(self, failure: Failure) -> Failure:
        """``failure`` with what came: of packed bytes that could not be unpacked, themselves."""
        if self.answer is not None:
            failure = replace(failure, output_so_far=self.answer.text or None)
        if self._raw and not self._size:
            return with_body(failure, self._raw, sum(map(len, self._raw)))
        return with_body(failure, self._parts, self._size)

    def _keep(self, data: bytes) -> None:
        if self._size < self.keep_bytes:
            self._parts.append(data)
        self._size += len(data)

    def _unpacked(self, unpack: zlib._Decompress, data: bytes) -> bytes:
        before = unpack.copy()
        try:
            return unpack.decompress(data, MAX_BODY_BYTES - self._size + 1)
        except zlib.error:
            self._keep(_good_start(before, data))
            raise CallFailed(_broken()) from None


def _good_start(unpack: zlib._Decompress, data: bytes) -> bytes:
    """What comes out of ``data``, which is broken, up to the byte that is wrong; less than was asked for at once."""
    out = io.BytesIO()
    with contextlib.suppress(zlib.error):
        out.writelines(unpack.decompress(data[at : at + 1]) for at in range(len(data)))
    return out.getvalue()


def _broken() -> Failure:
    return _unusable("bad_encoding", "the answer came compressed, unasked, and is broken or cut short")


def _unusable(word: str, message: str) -> Failure:
    return Failure("unusable", word, message, http_status=200, retryable=True)
