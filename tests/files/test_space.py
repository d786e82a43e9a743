"""When there is too little room to send more."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmbatch.errors import StorageError
from llmbatch.files.space import Space, megabytes, refuse_full_disk

MB, GB = 10**6, 10**9


@pytest.mark.parametrize(
    ("total_bytes", "in_flight", "longest_line_bytes", "reserve_bytes"),
    [
        (1000 * GB, 0, 0, 256 * MB),
        (12 * GB, 0, 0, 240 * MB),
        (1 * GB, 0, 0, 20 * MB),
        (64 * MB, 0, 0, 1_280_000),
        (1000 * GB, 100, 2_000, 256 * MB),
        (1000 * GB, 1_000, 1 * MB, 4 * GB),
        (64 * MB, 100, 10_000, 4 * MB),
    ],
)
def test_what_must_stay_free_is_room_for_what_is_in_flight_and_a_share_of_the_disk(
    total_bytes: int, in_flight: int, longest_line_bytes: int, reserve_bytes: int
) -> None:
    assert Space(0, total_bytes).reserve_bytes(in_flight, longest_line_bytes) == reserve_bytes
    assert Space(reserve_bytes - 1, total_bytes).is_low(in_flight, longest_line_bytes)
    assert not Space(reserve_bytes, total_bytes).is_low(in_flight, longest_line_bytes)


def test_file_system_that_tells_no_size_is_never_low() -> None:
    assert not Space(0, 0).is_low(1_000, 1 * MB)


def test_space_is_what_df_says_and_unknown_where_nothing_is(tmp_path: Path) -> None:
    space = Space.of(tmp_path)
    assert 0 < space.free_bytes <= space.total_bytes
    assert Space.of(tmp_path / "missing") == Space(0, 0)


def test_full_disk_is_refused_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Space, "of", lambda file: Space(3 * MB, 1 * GB))
    with pytest.raises(StorageError, match=r"3\.0 MB are free, 20 MB are needed .*; nothing was sent\. Make room"):
        refuse_full_disk(tmp_path)


@pytest.mark.parametrize(
    ("size", "said"),
    [(0, "0.0 MB"), (250_000, "0.2 MB"), (9_900_000, "9.9 MB"), (20_000_000, "20 MB"), (12_345_678_901, "12,346 MB")],
)
def test_sizes_are_said_in_megabytes(size: int, said: str) -> None:
    assert megabytes(size) == said
