"""One run of one case: a server if it needs one, a process for the driver, and what that cost."""

from __future__ import annotations

import pickle
import subprocess
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from llmbatch.compare.gauge import Held, can_look, look, resident_mb, watched
from llmbatch.compare.job import Job
from llmbatch.compare.server import Running, served, start, stop
from llmbatch.rules.comparison import Measured


class NotMeasured(Exception):
    """A case that this machine can not do, or a hook that fails. The words are for people."""


@dataclass(frozen=True, slots=True)
class Bench:
    """Where cases are measured: options of the simulated provider, and a certificate with its key for https."""

    sim: Mapping[str, str]
    certificate: tuple[Path, Path] | None

    def measure(self, job: Job) -> Measured:
        """Raises NotMeasured."""
        if job.case.server.latency_s is None:
            return _driven(job, None)
        with served(job.case.server, self.sim, self.certificate) as server:
            ca_file = self.certificate[0] if job.case.server.tls and self.certificate else None
            return _driven(replace(job, simulated_url=server.url, ca_file=ca_file), server)


def _driven(job: Job, server: Running | None) -> Measured:
    process = start("llmbatch.compare.drive")
    try:
        talk = _Talk(process)
        talk.give(job)
        talk.heard("ready")
        start_mb = resident_mb(process.pid) if can_look() else None
        with watched(process.pid) if can_look() else nullcontext([Held()]) as most:
            talk.go_on()
            sent = talk.heard("sent")
            held = most[0].at_least(look(process.pid)) if can_look() else None
        in_flight = None if server is None else server.peak_in_flight()
        talk.go_on()
        figures = talk.heard("done")
        return _measured(figures, sent, held, start_mb, in_flight)
    except BaseException:
        process.kill()
        raise
    finally:
        stop(process)


def _measured(
    figures: dict[str, Any], sent: dict[str, Any], held: Held | None, start_mb: float | None, in_flight: int | None
) -> Measured:
    figures.pop("state")
    return Measured(
        **figures,
        start_mb=start_mb,
        peak_mb=sent["rss_mb"] if held is None else held.mb,
        peak_threads=sent["threads"] if held is None else held.threads,
        peak_files=None if held is None else held.files,
        peak_processes=None if held is None else held.processes,
        in_flight=in_flight,
    )


class _Talk:
    """With the process of a driver, as drive.py has it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None, "a pipe"
        assert process.stdout is not None, "a pipe"
        self._in, self._out = process.stdin, process.stdout

    def give(self, job: Job) -> None:
        data = pickle.dumps(job)
        self._write(len(data).to_bytes(8, "big") + data)

    def go_on(self) -> None:
        self._write(b"\n")

    def heard(self, state: str) -> dict[str, Any]:
        """What it tells when it has come to ``state``. Raises NotMeasured."""
        line = self._out.readline()
        if not line:
            raise NotMeasured("the process of this driver ended in the middle (out of memory?)")
        told: dict[str, Any] = orjson.loads(line)
        if told["state"] == "failed":
            raise NotMeasured(told["why"])
        assert told["state"] == state, "they take turns"
        return told

    def _write(self, data: bytes) -> None:
        try:
            self._in.write(data)
            self._in.flush()
        except BrokenPipeError:
            raise NotMeasured("the process of this driver did not start; its error stands above") from None
