"""Images on the disk: a stand-in while a row waits, the bytes when it is sent.

A row's key is made of what it asks, and rows are rendered long before they are sent. So a file first becomes a URL that
names it with its size and time; an image that was changed is then another request, and no finished row reads a byte.
"""

from __future__ import annotations

import asyncio
import os
import stat
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, unquote_to_bytes, urlsplit

from llmbatch.records import Request
from llmbatch.rules.images import data_url
from llmbatch.rules.reasons import RowError, excerpt

_STAND_IN = "file:///"


def stamped(request: Request, base: Path) -> Request:
    """``request`` with a stand-in for each image that is a file; paths are relative to ``base``. Raises RowError."""
    if not _has_parts(request):
        return request

    def stand_in(part: Mapping[str, Any]) -> Mapping[str, Any]:
        if part.get("type") != "image" or "path" not in part:
            return part
        others = {name: value for name, value in part.items() if name not in ("type", "path", "detail")}
        image = {"url": stamp(part["path"], base), **({"detail": part["detail"]} if "detail" in part else {})}
        return {"type": "image_url", "image_url": image, **others}

    return _with_parts(request, stand_in)


def as_data(request: Request) -> Request:
    """``request`` as its key is made of it: each stand-in as a data URL, which every dialect has a word for."""
    if not _has_parts(request):
        return request

    def named(part: Mapping[str, Any]) -> Mapping[str, Any]:
        url = _url_of(part)
        if url is None or not url.startswith(_STAND_IN):
            return part
        return _with_url(part, f"data:image/png;base64,{b64encode(url.encode()).decode('ascii')}")

    return _with_parts(request, named)


def has_stand_ins(request: Request) -> bool:
    """Whether an image of it is a file that must be read."""
    return _has_parts(request) and any(True for _ in _stand_ins(request))


def _has_parts(request: Request) -> bool:
    """Whether a message is more than text: most are not, and every row is asked, so no generator."""
    for message in request.messages:  # noqa: SIM110
        if isinstance(message.get("content"), list):
            return True
    return False


def stamp(path: str, base: Path) -> str:
    """``file:///absolute/path?size=BYTES&mtime_ns=TIME``, for a path or a URL of a file. Raises RowError."""
    found = _named(path, base)
    try:
        seen = found.stat()
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    if not stat.S_ISREG(seen.st_mode):
        raise RowError(f"image {excerpt(path)}: it is no regular file")
    return f"file://{quote(os.fsencode(found))}?{_stamp_of(seen)}"


def load(path: Path, max_bytes: int, wanted: str = "") -> str:
    """The data URL of an image; ``wanted`` is the stamp that it must still have. Blocks.

    Raises RowError for a file that is no image, too large, or changed since its stamp or while it is read.
    """
    name = f"image {excerpt(str(path))}"
    try:
        with open(path, "rb", opener=_without_waiting) as file:  # Path.open takes no opener
            seen = os.fstat(file.fileno())
            if not stat.S_ISREG(seen.st_mode):
                raise RowError(f"{name}: it is no regular file")
            if wanted and _stamp_of(seen) != wanted:
                raise RowError(f"{name}: it was changed while the run was on; the same command asks again")
            if seen.st_size > max_bytes:
                raise RowError(f"{name}: {seen.st_size:,} bytes are more than the provider takes ({max_bytes:,})")
            data = file.read(seen.st_size + 1)
    except (OSError, ValueError) as error:
        raise _unreadable(str(path), error) from None
    if len(data) != seen.st_size:
        raise RowError(f"{name}: its size changed while it was read")
    try:
        return data_url(data)
    except RowError as error:
        raise RowError(f"{name}: {error}") from None


async def with_images(request: Request, max_bytes: int, reading: asyncio.Semaphore) -> Request:
    """``request`` with the images themselves in place of their stand-ins. Raises RowError.

    ``reading`` bounds how many are read at the same time: each takes a thread, and its size three times in memory.
    """
    loaded = {}
    for url in set(_stand_ins(request)):
        parts = urlsplit(url)
        async with reading:
            loaded[url] = await asyncio.to_thread(load, _path_of(parts), max_bytes, parts.query)
    if not loaded:
        return request

    def image(part: Mapping[str, Any]) -> Mapping[str, Any]:
        url = _url_of(part)
        return part if url is None or url not in loaded else _with_url(part, loaded[url])

    return _with_parts(request, image)


def _stand_ins(request: Request) -> Iterator[str]:
    for message in request.messages:
        content = message.get("content")
        if isinstance(content, list):
            yield from (url for part in content if (url := _url_of(part)) is not None and url.startswith(_STAND_IN))


def _url_of(part: Mapping[str, Any]) -> str | None:
    image = part.get("image_url") if part.get("type") == "image_url" else None
    url = image.get("url") if isinstance(image, dict) else image
    return url if isinstance(url, str) else None


def _with_url(part: Mapping[str, Any], url: str) -> Mapping[str, Any]:
    return {**part, "image_url": {**part["image_url"], "url": url}}


def _with_parts(request: Request, change: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Request:
    """``request`` with every part of its messages changed; the same if none was."""
    messages = []
    changed = False
    for message in request.messages:
        content = message.get("content")
        if isinstance(content, list):
            parts = [change(part) for part in content]
            if any(new is not old for new, old in zip(parts, content, strict=True)):
                message, changed = {**message, "content": parts}, True
        messages.append(message)
    return replace(request, messages=messages) if changed else request


def _named(path: str, base: Path) -> Path:
    if path[:5].lower() == "file:":
        return _path_of(_file_url(path))
    return (base / path).absolute()


def _file_url(text: str) -> SplitResult:
    try:
        url = urlsplit(text)
    except ValueError as error:
        raise _unreadable(text, error) from None
    if url.netloc not in ("", "localhost"):
        raise RowError(f"image {excerpt(text)}: it is on another machine")
    if not url.path.startswith("/"):
        raise RowError(f"image {excerpt(text)}: a URL of a file says the whole path, file:///…; or give the path alone")
    return url


def _path_of(url: SplitResult) -> Path:
    return Path(os.fsdecode(unquote_to_bytes(url.path)))


def _without_waiting(path: str, flags: int) -> int:
    """A pipe that took the place of the file must not hold the thread."""
    return os.open(path, flags | os.O_NONBLOCK)


def _stamp_of(seen: os.stat_result) -> str:
    return f"size={seen.st_size}&mtime_ns={seen.st_mtime_ns}"


def _unreadable(path: str, error: OSError | ValueError) -> RowError:
    why = error.strerror if isinstance(error, OSError) else str(error)
    return RowError(f"image {excerpt(path)}: {why}")
