"""Input files for the benchmarks: N prompts of about 150 bytes, with or without ids.

python benchmarks/rows.py prompts.jsonl -n 1000 --ids
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

_TEXT = "Say in one word whether this review is positive or negative: the parcel came late, but it works well"


def lines(count: int, *, ids: bool) -> Iterator[str]:
    """JSONL rows, each with a prompt of its own, so that no client may answer one row from another."""
    for number in range(1, count + 1):
        identity = f'"id":"row-{number:09d}",' if ids else ""
        yield f'{{{identity}"prompt":"{_TEXT} ({number})."}}\n'


def write_rows(path: Path, count: int, *, ids: bool = False) -> Path:
    """Write ``count`` rows to ``path`` and return it."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(lines(count, ids=ids))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("-n", "--count", type=int, default=1000)
    parser.add_argument("--ids", action="store_true", help="give each row an id")
    options = parser.parse_args()
    write_rows(options.output, options.count, ids=options.ids)


if __name__ == "__main__":
    main()
