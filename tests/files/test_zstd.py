"""zstd input is unpacked as it is read, or refused with the commands that help where no library does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmbatch.errors import InputError
from llmbatch.files import sources
from llmbatch.files.readers import open_input


def library() -> Any:
    try:
        return sources.zstd_library("x")
    except InputError:
        return pytest.skip("no zstd library")


async def test_frames_are_read_one_after_another_and_a_cut_one_is_told(tmp_path: Path) -> None:
    zstd = library()
    rows = b'{"prompt":"a"}\n' * 5_000
    path = tmp_path / "in.jsonl.zst"
    for data, lines, cut in (
        (zstd.compress(rows) * 2, 10_000, False),
        (zstd.compress(rows)[:-4], None, True),
    ):
        path.write_bytes(data)
        source = await open_input(str(path))
        found = [line async for batch in source.batches() for line in batch]
        source.close()
        assert lines in (None, len(found))
        assert source.truncated == cut


async def test_without_a_library_both_ways_out_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> None:
        raise ImportError(name)

    path = tmp_path / "in.csv.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(20))
    monkeypatch.setattr(sources.importlib, "import_module", none)
    with pytest.raises(
        InputError, match=r"pip install 'llmbatch\[zstd\]', or zstdcat .*in\.csv\.zst \| llmbatch run -"
    ):
        await open_input(str(path))
