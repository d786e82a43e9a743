"""Images on the disk: named by a stamp first, read and checked when they are sent."""

from __future__ import annotations

import asyncio
import base64
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from llmbatch.files import images
from llmbatch.files.images import load, stamp, stamped, with_images
from llmbatch.records import Request
from llmbatch.rules.reasons import RowError

LIMIT = 10_000


def png() -> bytes:
    """One red pixel."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\x00\xff\x00\x00")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


URL = "data:image/png;base64," + base64.b64encode(png()).decode()


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    path = tmp_path / "cat 1%.png"
    path.write_bytes(png())
    return path


def asking(*parts: Any) -> Request:
    return Request("m", [{"role": "system", "content": "s"}, {"role": "user", "content": list(parts)}])


def content(request: Request) -> Any:
    return request.messages[1]["content"]


def test_a_stamp_says_path_size_and_time(cat: Path, tmp_path: Path) -> None:
    mtime_ns = cat.stat().st_mtime_ns
    wanted = f"file://{tmp_path}/cat%201%25.png?size={len(png())}&mtime_ns={mtime_ns}"
    assert stamp("cat 1%.png", tmp_path) == wanted
    assert stamp(str(cat), Path("/nowhere")) == wanted
    assert stamp(f"file://{tmp_path}/cat%201%25.png", Path("/nowhere")) == wanted


def test_a_stamp_follows_links_and_changes_with_the_file(cat: Path, tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to(cat)
    before = stamp("link.png", tmp_path)
    os.utime(cat, ns=(1, 1))
    assert stamp("link.png", tmp_path) != before


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("none.png", "image none.png: No such file"),
        (".", "no regular file"),
        ("pipe", "no regular file"),
        ("a\0b", "null byte"),
        ("file://example.org/a.png", "another machine"),
        ("loop", "loop: Too many levels"),
        ("file://[::1", "Invalid IPv6 URL"),
        ("file:cat.png", "says the whole path"),
    ],
)
def test_what_is_no_file_is_named(tmp_path: Path, path: str, words: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(RowError) as caught:
        stamp(path, tmp_path)
    assert words in str(caught.value)


def test_an_image_is_loaded_whole(cat: Path) -> None:
    assert load(cat, LIMIT) == URL
    assert load(cat, len(png())) == URL


def test_what_is_no_image_is_never_sent(tmp_path: Path) -> None:
    secret = tmp_path / "passwd.png"
    secret.write_text("hunter2:x:0:0\n")
    with pytest.raises(RowError, match=r"passwd\.png: it is no PNG") as caught:
        load(secret, LIMIT)
    assert "hunter2" not in str(caught.value)


def test_a_large_image_is_refused_before_it_is_read(cat: Path, tmp_path: Path) -> None:
    with pytest.raises(RowError, match=f"{len(png())} bytes are more than the provider takes"):
        load(cat, len(png()) - 1)
    huge = tmp_path / "huge.png"
    with huge.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(RowError, match="more than the provider takes"):
        load(huge, LIMIT)


def test_a_pipe_does_not_hold_the_thread(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RowError, match="no regular file"):
        load(tmp_path / "pipe", LIMIT)


def test_a_directory_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(RowError, match="Is a directory"):
        load(tmp_path, LIMIT)
    with pytest.raises(RowError, match="No such file"):
        load(tmp_path / "none.png", LIMIT)


def test_a_file_that_grows_while_it_is_read_is_refused(cat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fstat

    def fstat_then_grow(descriptor: int) -> os.stat_result:
        seen = real(descriptor)
        if os.path.samestat(seen, os.stat(cat)):
            with cat.open("ab") as file:
                file.write(b"more")
        return seen

    monkeypatch.setattr(images.os, "fstat", fstat_then_grow)
    with pytest.raises(RowError, match="its size changed while it was read"):
        load(cat, LIMIT)


async def test_files_of_a_request_are_stamped_then_read(cat: Path, tmp_path: Path) -> None:
    text, web = {"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    request = asking(text, web, {"type": "image", "path": cat.name, "detail": "low"})
    standing = stamped(request, tmp_path)
    assert content(standing)[:2] == [text, web]
    stand_in = content(standing)[2]["image_url"]
    assert stand_in == {"url": stamp(cat.name, tmp_path), "detail": "low"}
    sent = await with_images(standing, LIMIT, asyncio.Semaphore(1))
    assert content(sent) == [text, web, {"type": "image_url", "image_url": {"url": URL, "detail": "low"}}]
    assert content(standing)[2]["image_url"] == stand_in
    assert sent.messages[0] is request.messages[0]


async def test_a_request_without_files_is_not_copied(tmp_path: Path) -> None:
    for request in (asking({"type": "text", "text": "a"}), Request("m", body={"model": "m"})):
        assert stamped(request, tmp_path) is request
        assert await with_images(request, LIMIT, asyncio.Semaphore(1)) is request


async def test_an_image_that_changed_after_its_stamp_is_not_sent(cat: Path, tmp_path: Path) -> None:
    standing = stamped(asking({"type": "image", "path": cat.name}), tmp_path)
    os.utime(cat, ns=(1, 1))
    with pytest.raises(RowError, match="changed while the run was on"):
        await with_images(standing, LIMIT, asyncio.Semaphore(1))


async def test_an_image_that_stands_twice_is_read_once(
    cat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    monkeypatch.setattr(images, "load", lambda *args: read.append(args) or load(*args))
    part = {"type": "image", "path": cat.name}
    sent = await with_images(stamped(asking(part, part), tmp_path), LIMIT, asyncio.Semaphore(1))
    assert [part["image_url"]["url"] for part in content(sent)] == [URL, URL]
    assert len(read) == 1


async def test_reading_is_bounded(cat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    at_once, most, guard = 0, 0, threading.Lock()

    def counted(*args: Any) -> str:
        nonlocal at_once, most
        with guard:
            at_once += 1
            most = max(most, at_once)
        url = load(*args)
        with guard:
            at_once -= 1
        return url

    monkeypatch.setattr(images, "load", counted)
    standing = stamped(asking({"type": "image", "path": cat.name}), tmp_path)
    reading = asyncio.Semaphore(2)
    await asyncio.gather(*(with_images(standing, LIMIT, reading) for _ in range(20)))
    assert 1 <= most <= 2


def test_a_name_that_is_no_utf_8_can_be_stamped_and_read(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).write_bytes(png())
    url = stamp(name, tmp_path)
    assert "caf%E9.png" in url
    assert stamp(url.partition("?")[0], tmp_path) == url
