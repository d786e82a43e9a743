"""A process that counts requests of a day: ``DIRECTORY PER_DAY``. Prints a line for each once it is counted."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from llmbatch.files.daily_count import DailyCount


def main(directory: str, per_day: str) -> None:
    daily = DailyCount.open("account", int(per_day), Path(directory), lambda text: print("warning", text, flush=True))
    while daily.left(now_s := time.time()):
        daily.take(now_s)
        print("sent", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
