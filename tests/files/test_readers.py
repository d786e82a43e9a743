"""The input is streamed: at once from a pipe, within bounded memory from a file, twice if it must be."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import os
import random
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbatch.errors import InputError, StorageError
from llmbatch.files import readers, sources
from llmbatch.files.lines import LineSplitter
from llmbatch.files.readers import InputFile, open_input
from llmbatch.records import Line

GOOD = b'{"prompt":"hi"}\n'


async def lines_of(source: InputFile) -> list[Line]:
    return [line async for batch in source.batches() for line in batch]


async def read(path: Path, **options: object) -> tuple[list[Line], InputFile]:
    source = await open_input(str(path), **options)  # type: ignore[arg-type]
    try:
        return await lines_of(source), source
    finally:
        source.close()


@contextlib.contextmanager
def piped_stdin() -> Iterator[int]:
    """Standard input is a pipe; gives its writing end."""
    reading, writing = os.pipe()
    saved = os.dup(0)
    os.dup2(reading, 0)
    os.close(reading)
    try:
        yield writing
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        with contextlib.suppress(OSError):
            os.close(writing)


@given(st.lists(st.sampled_from([b"", b" ", b"\r", b"a", b"{}\r", b"x" * 30, "é".encode()])), st.data())
def test_chunks_do_not_change_the_lines(parts: list[bytes], data: st.DataObject) -> None:
    content = b"\n".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)))))
    splitter = LineSplitter(20)
    lines = []
    for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
        if start < end:
            lines += splitter.feed(content[start:end])
    lines += splitter.finish()
    kept = [(number, part) for number, part in enumerate(parts, 1) if part.strip()]
    assert [line.number for line in lines] == [number for number, _ in kept]
    for line, (_, part) in zip(lines, kept, strict=True):
        assert line.oversize == (len(part) > 20)
        assert line.data == part
        assert content[line.offset : line.offset + len(part)] == part
        assert line.complete == (line.offset + len(part) < len(content))


async def test_lines_of_a_large_file_come_in_order_with_their_offsets(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    rows = [b'{"prompt":"%s"}' % (b"x" * random.Random(number).randrange(3000)) for number in range(2000)]
    path.write_bytes(b"\n".join(rows) + b"\n")
    lines, source = await read(path)
    assert [line.data for line in lines] == rows
    assert lines[-1].offset == path.stat().st_size - len(rows[-1]) - 1
    assert source.bytes_read == source.size_bytes == path.stat().st_size
    assert source.warnings == []


async def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt":"%s"}\n' % (b"x" * 300) * 100_000))  # 31 MB in 90 KB
    tracemalloc.start()
    try:
        source = await open_input(str(path))
        count = 0
        async for batch in source.batches():
            count += len(batch)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    source.close()
    assert count == 100_000
    assert peak < 3_000_000


async def test_a_reader_that_nobody_hurries_stays_within_its_read_ahead(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(GOOD * 500_000)
    source = await open_input(str(path))
    batches = source.batches()
    await anext(batches)
    await asyncio.sleep(0.1)
    # Taken, queued, and the one in the thread's hand.
    assert source.bytes_read <= (readers.QUEUED_BATCHES + 2) * sources.CHUNK_BYTES
    await batches.aclose()
    source.close()


async def test_a_line_from_a_slow_pipe_is_delivered_at_once() -> None:
    with piped_stdin() as writing:
        os.write(writing, GOOD + b'{"prom')
        source = await open_input("-")
        assert source.size_bytes is None
        batches = source.batches()
        assert [line.data for line in await asyncio.wait_for(anext(batches), 5)] == [GOOD.strip()]
        os.write(writing, b'pt":"2"}\n')
        assert [line.data for line in await asyncio.wait_for(anext(batches), 5)] == [b'{"prompt":"2"}']
        os.close(writing)
        assert [batch async for batch in batches] == []


async def test_a_line_of_a_slow_gzip_pipe_is_delivered_at_once() -> None:
    with piped_stdin() as writing:
        out = io.BytesIO()
        with gzip.GzipFile(fileobj=out, mode="wb") as packer:
            packer.write(GOOD)
            packer.flush()
            os.write(writing, out.getvalue())
            source = await open_input("-")
            batches = source.batches()
            assert [line.data for line in await asyncio.wait_for(anext(batches), 5)] == [GOOD.strip()]
        source.close()
        assert [batch async for batch in batches] == []


async def test_close_wakes_a_reader_that_waits_for_a_silent_pipe() -> None:
    with piped_stdin() as writing:
        os.write(writing, GOOD)
        source = await open_input("-")
        reading = asyncio.create_task(lines_of(source))
        await asyncio.sleep(0.02)
        assert not reading.done()
        source.close()
        assert len(await asyncio.wait_for(reading, 5)) == 1


def test_a_silent_pipe_does_not_keep_the_process_from_exiting() -> None:
    script = (
        "import asyncio\n"
        "from llmbatch.files.readers import open_input\n"
        "async def main():\n"
        "    source = await open_input('-')\n"
        "    batches = source.batches()\n"
        "    print(len(await anext(batches)), flush=True)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(GOOD)
        process.stdin.flush()
        assert process.wait(20) == 0


async def test_a_named_pipe_is_opened_without_blocking_the_loop(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    opening = asyncio.create_task(open_input(str(path)))
    await asyncio.sleep(0.02)
    await asyncio.to_thread(path.write_bytes, GOOD)
    source = await asyncio.wait_for(opening, 5)
    assert not source.reopenable
    assert len(await lines_of(source)) == 1


async def test_a_non_blocking_pipe_is_waited_for() -> None:
    with piped_stdin() as writing:
        os.set_blocking(0, False)
        opening = asyncio.create_task(open_input("-"))
        await asyncio.sleep(0.02)
        os.write(writing, GOOD)
        source = await opening
        os.close(writing)
        assert len(await lines_of(source)) == 1


async def test_a_file_can_be_read_twice_even_if_its_name_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD * 2)
    source = await open_input(str(path))
    planned = await lines_of(source)
    path.unlink()
    again = source.reopen()
    assert await lines_of(again) == planned
    assert planned[0].offset == 3
    again.close()
    source.close()


async def test_a_pipe_is_spooled_and_then_read_twice(tmp_path: Path) -> None:
    rows = b"".join(b'{"prompt":"%d"}\n' % number for number in range(20_000))
    with piped_stdin() as writing:
        feeder = asyncio.create_task(asyncio.to_thread(lambda: (os.write(writing, rows), os.close(writing))))
        source = await open_input("-")
        assert not source.reopenable
        with pytest.raises(InputError):
            source.reopen()
        spooled = await source.spool(tmp_path)
        await feeder
    assert list(tmp_path.iterdir()) == []
    assert spooled.size_bytes == len(rows)
    first = await lines_of(spooled)
    twin = spooled.reopen()
    assert b"\n".join(line.data for line in first) + b"\n" == rows
    assert await lines_of(twin) == first
    assert spooled.warnings == []
    twin.close()
    spooled.close()


async def test_a_full_disk_stops_the_spooling_with_a_storage_error() -> None:
    with piped_stdin() as writing:
        os.write(writing, GOOD)
        os.close(writing)
        source = await open_input("-")
        with pytest.raises(StorageError, match="cannot write a copy"):
            await source.spool(Path("/nonexistent"))
        source.close()


async def test_standard_input_from_a_file_starts_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(GOOD + b'{"prompt":"2"}\n')
    saved = os.dup(0)
    fd = os.open(path, os.O_RDONLY)
    try:
        os.lseek(fd, len(GOOD), os.SEEK_SET)
        os.dup2(fd, 0)
        source = await open_input("-")
        assert source.reopenable
        assert [line.data for line in await lines_of(source)] == [b'{"prompt":"2"}']
        assert [line.data for line in await lines_of(source.reopen())] == [b'{"prompt":"2"}']
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(fd)


async def test_a_growing_file_is_read_to_the_size_it_had(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(GOOD)
    source = await open_input(str(path))
    with path.open("ab") as more:
        more.write(GOOD)
    assert len(await lines_of(source)) == 1
    assert ["grew" in warning for warning in source.warnings] == [True]
    assert not source.truncated
    source.close()


async def test_a_shrunk_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(GOOD * 3)
    source = await open_input(str(path))
    os.truncate(path, len(GOOD))
    assert len(await lines_of(source)) == 1
    assert source.truncated
    assert "shrank" in source.warnings[0]
    source.close()


async def test_a_replaced_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(GOOD)
    source = await open_input(str(path))
    (tmp_path / "new").write_bytes(GOOD)
    (tmp_path / "new").replace(path)
    assert len(await lines_of(source)) == 1
    assert "replaced" in source.warnings[0]
    source.close()


@pytest.mark.parametrize("cut", [-1, -6, -30])
async def test_a_cut_gzip_gives_its_rows_and_says_that_it_is_cut(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "in.jsonl.gz"
    rows = b"".join(b'{"prompt":"%d"}\n' % random.Random(number).getrandbits(60) for number in range(200))
    path.write_bytes(gzip.compress(rows)[:cut])
    lines, source = await read(path)
    assert source.truncated
    assert "cut short" in source.warnings[0]
    assert 150 < len(lines) <= 200


async def test_damage_inside_gzip_is_told(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.gz"
    packed = bytearray(gzip.compress(GOOD * 10_000))
    packed[-6] ^= 1  # the checksum
    path.write_bytes(packed)
    lines, source = await read(path)
    assert source.truncated
    assert "damaged gzip" in source.warnings[0]
    assert 4000 < len(lines) <= 10_000


async def test_gzip_damaged_where_it_starts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.gz"
    packed = bytearray(gzip.compress(GOOD))
    packed[-6] ^= 1
    path.write_bytes(packed)
    with pytest.raises(InputError, match="damaged gzip"):
        await open_input(str(path))


async def test_garbage_after_gzip_is_told(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD) + b"garbage")
    lines, source = await read(path)
    assert len(lines) == 1
    assert "garbage" in source.warnings[0]


async def test_a_read_error_half_way_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(GOOD * 20_000)
    source = await open_input(str(path))
    real = os.pread

    def failing(fd: int, size: int, position: int) -> bytes:
        if position > 100_000:
            raise OSError(5, "Input/output error")
        return real(fd, size, position)

    monkeypatch.setattr(os, "pread", failing)
    count = 0
    with pytest.raises(StorageError, match="Input/output error; the same command continues"):
        async for batch in source.batches():
            count += len(batch)
    assert count > 4000
    source.close()


async def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        await open_input(str(tmp_path / "none.jsonl"))
    with pytest.raises(InputError, match=r"directory: cat .*\.jsonl \| llmbatch run -"):
        await open_input(str(tmp_path))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with pytest.raises(InputError, match="socket"):
            await open_input(str(tmp_path / "s"))


async def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in.jsonl"
    path.touch()

    def denied(path: str, flags: int) -> int:  # root, in a container, may read every file
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(InputError, match="chmod u\\+r"):
        await open_input(str(path))


@pytest.mark.parametrize(
    ("name", "content", "option", "found"),
    [
        ("a.jsonl", b"x\n", "auto", "jsonl"),
        ("a.NDJSON", b"", "auto", "jsonl"),
        ("a.txt", b"{}\n", "auto", "text"),
        ("a.txt.gz", b"x\n", "auto", "text"),
        ("a.txt", b"{}\n", "jsonl", "jsonl"),
        ("a.jsonl", b"{}\n", "text", "text"),
        ("a", b"\n \n{}\n", "auto", "jsonl"),
        ("a", b'"x"\n', "auto", "jsonl"),
        ("a", b"", "auto", "jsonl"),
    ],
)
async def test_the_format_is_told_by_option_then_suffix_then_content(
    tmp_path: Path, name: str, content: bytes, option: str, found: str
) -> None:
    (tmp_path / name).write_bytes(content)
    source = await open_input(str(tmp_path / name), input_format=option)  # type: ignore[arg-type]
    assert source.format == found
    source.close()


async def test_plain_text_without_a_suffix_asks_for_the_option(tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    path.write_bytes(b"Hello, world\n")
    with pytest.raises(InputError, match=r"'Hello, world'.*--input-format text"):
        await open_input(str(path))


async def test_json_rows_read_as_text_are_doubted(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_bytes(GOOD)
    _, source = await read(path)
    assert "--input-format jsonl" in source.warnings[0]


async def test_blank_lines_are_counted_and_lines_over_the_cap_are_not_held(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n" + GOOD + b" \n" + b"x" * 300_000 + b"\n" + GOOD)
    lines, source = await read(path, max_line_bytes=1000)
    assert source.blank_lines == 2
    assert [(line.number, line.oversize) for line in lines] == [(2, False), (4, True), (5, False)]
    assert len(lines[1].data) == 200


async def test_an_input_is_read_only_once(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(GOOD)
    source = await open_input(str(path))
    await lines_of(source)
    with pytest.raises(RuntimeError):
        await lines_of(source)
    source.close()


async def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(GOOD)
    before = len(os.listdir("/dev/fd"))
    for _ in range(3):
        await read(path)
        (await open_input(str(path))).close()
    with contextlib.suppress(InputError):
        await open_input(str(tmp_path))
    assert len(os.listdir("/dev/fd")) == before
