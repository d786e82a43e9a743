"""A process that spends a limit group as fast as it may: ``NAME DIRECTORY PER_MINUTE SECONDS``.

Says "ready", begins when it is told to by a line on its standard input, and prints the monotonic time of each request.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from llmbatch.files.limit_group import LimitGroup


def main(name: str, directory: str, per_minute: str, seconds: str) -> None:
    group = LimitGroup.open(name, Path(directory), lambda text: print("warning", text, flush=True))
    meter = group.meter("account", "requests", float(per_minute))
    print("ready", flush=True)
    sys.stdin.readline()
    end_s = time.monotonic() + float(seconds)
    while (now_s := time.monotonic()) < end_s:
        if (wait_s := meter.wait_s(now_s)) > 0:
            time.sleep(wait_s)
        else:
            meter.take(now_s)
            print(f"{now_s:.6f}", flush=True)
    group.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
