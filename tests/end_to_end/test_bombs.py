"""Small things that unpack to large ones: neither an input nor an answer may take the memory of the machine."""

from __future__ import annotations

import gzip
import io
import re
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from .processes import COMMAND, PATIENCE_S, Llmbatch, prompts, read_lines, write_rows

MIB = 2**20
# Runs a command and says the most memory that it had, in MiB.
MEASURED = (
    "import resource, subprocess, sys\n"
    "code = subprocess.run(sys.argv[1:]).returncode\n"
    "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
    "print('peak', peak // (1024 * 1024 if sys.platform == 'darwin' else 1024), file=sys.stderr)\n"
    "sys.exit(code)\n"
)


def measured(llmbatch: Llmbatch, *args: str | Path) -> tuple[int, str, int]:
    """(exit code, what it said, peak MiB)."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *COMMAND, *map(str, args)],
        cwd=llmbatch.directory,
        env=llmbatch.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    peak = re.search(r"peak (\d+)", done.stderr)
    assert peak is not None, done.stderr
    return done.returncode, done.stderr, int(peak[1])


@pytest.fixture(scope="module")
def blanks() -> bytes:
    """A quarter of a GiB of blanks in a quarter of a MiB of gzip: one deflated block (RFC 1951), over and over."""
    step, times = b" " * (16 * MIB), 16
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(step) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = 0
    for _ in range(times):
        checksum = zlib.crc32(step, checksum)
    head = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # RFC 1952
    return head + block * times + packer.flush() + struct.pack("<II", checksum, len(step) * times)


def test_a_line_that_unpacks_to_a_quarter_of_a_gib_is_a_failed_row_and_the_others_go_on(
    llmbatch: Llmbatch, blanks: bytes
) -> None:
    good = gzip.compress(b'{"prompt": "first"}\n{"prompt": "')
    after = gzip.compress(b'"}\n{"prompt": "last"}\n')
    (llmbatch.directory / "in.jsonl.gz").write_bytes(good + blanks + after)
    code, told, peak = measured(llmbatch, "run", "in.jsonl.gz", "-m", "sim/x", "-o", "out.jsonl")
    assert code == 1, told
    lines = read_lines(llmbatch.directory / "out.jsonl")
    assert [line["status"] for line in lines] == ["ok", "error", "ok"]
    assert peak < 150, peak


class _Bomb(BaseHTTPRequestHandler):
    packed = b""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Accept-Encoding"] is None
        self.send_response(200)
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(self.packed)))
        self.end_headers()
        with io.BytesIO(self.packed) as left:
            try:
                while part := left.read(65536):
                    self.wfile.write(part)
            except OSError:
                self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def bomb(blanks: bytes) -> Iterator[str]:
    _Bomb.packed = blanks
    with ThreadingHTTPServer(("127.0.0.1", 0), _Bomb) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_answer_that_unpacks_to_a_quarter_of_a_gib_is_cut_at_the_cap(llmbatch: Llmbatch, bomb: str) -> None:
    write_rows(llmbatch.directory / "in.jsonl", prompts(1))
    flags = ("--max-attempts", "1")
    code, told, peak = measured(llmbatch, "run", "in.jsonl", "-m", "m", "--base-url", bomb, "-o", "out.jsonl", *flags)
    assert code in (1, 3), told
    (line,) = read_lines(next(llmbatch.directory.glob("out.jsonl*")))
    assert (line["status"], line["error"]["type"]) == ("error", "answer_too_large")
    assert peak < 250, peak
