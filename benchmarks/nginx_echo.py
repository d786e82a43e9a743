"""nginx as a model server: the same chat completion of about 1 KB for every request, at once or after a delay.

    with nginx_echo(delay_s=4.0) as server:
        print(server.base_url)

Other servers would share the interpreter's limits with the client; nginx answers from C with one worker and
holds 10,000 sleeping requests. The delay needs the echo module (``echo_sleep``,
https://github.com/openresty/echo-nginx-module).
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_TIMEOUT_S = 5.0
WORKER_CONNECTIONS = 20_000
MODULE = "ngx_http_echo_module.so"
MODULE_FOLDERS = ("/usr/lib/nginx/modules", "/usr/share/nginx/modules", "/usr/lib64/nginx/modules")
MISSING = "nginx with the echo module is needed: apt-get install nginx libnginx-mod-http-echo"
_WORDS = "The parcel came late, which the writer minds, but what was in it works well, which weighs more. "
REPLY = {
    "id": "chatcmpl-bench00000000000000000000000",
    "object": "chat.completion",
    "created": 1750000000,
    "model": "bench",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": _WORDS * 5, "refusal": None, "annotations": []},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {
        "prompt_tokens": 31,
        "completion_tokens": 110,
        "total_tokens": 141,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    },
    "service_tier": "default",
    "system_fingerprint": "fp_bench",
}

_CONFIG = """
{load_module}
{user}
daemon off;
worker_processes 1;
worker_rlimit_nofile {files};
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections {connections}; multi_accept on; }}
http {{
    access_log off;
    default_type application/json;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} backlog=65535;
        location = /status {{ stub_status; }}
        location = /v1/chat/completions {{ {answer} }}
        location @reply {{ {reply} }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class EchoServer:
    """A running nginx on loopback."""

    port: int

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def chat_url(self) -> str:
        return f"{self.base_url}/chat/completions"

    def in_flight(self) -> int:
        """Requests read and not yet answered: stub_status' "Writing", less the one that asks."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/status", timeout=5) as response:
            return int(re.findall(r"Writing: (\d+)", response.read().decode())[0]) - 1


@contextmanager
def nginx_echo(delay_s: float = 0.0) -> Iterator[EchoServer]:
    """Run nginx on a free port; exit with code 2, naming the packages, if it is not installed."""
    binary, module = find_nginx(needs_echo=delay_s > 0)
    with tempfile.TemporaryDirectory(prefix="llmbatch-nginx-") as folder:
        port = free_port()
        config = Path(folder, "nginx.conf")
        config.write_text(config_text(folder, port, delay_s, module), encoding="utf-8")
        command = [binary, "-p", folder, "-e", f"{folder}/error.log", "-c", str(config)]
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        try:
            wait_until_open(port, process, Path(folder, "error.log"))
            yield EchoServer(port)
        finally:
            stop(process)


def find_nginx(*, needs_echo: bool) -> tuple[str, str | None]:
    """The binary, and the echo module's path unless it is not needed."""
    binary = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
    modules = [str(path) for folder in MODULE_FOLDERS if (path := Path(folder, MODULE)).exists()]
    if binary is None or (needs_echo and not modules):
        print(MISSING, file=sys.stderr)
        sys.exit(2)
    return binary, modules[0] if needs_echo else None


def config_text(folder: str, port: int, delay_s: float, module: str | None) -> str:
    """The configuration; a delayed answer ends in the same ``return``, so both have a Content-Length."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    body = json.dumps(REPLY, separators=(",", ":"))
    reply = f"add_header x-request-id $request_id; return 200 '{body}';"
    return _CONFIG.format(
        load_module=f"load_module {module};" if module else "",
        user="user root root;" if os.geteuid() == 0 else "",
        files=hard,
        connections=min(WORKER_CONNECTIONS, hard - 100),
        folder=folder,
        port=port,
        answer=f"echo_sleep {delay_s:g}; echo_exec @reply;" if delay_s > 0 else reply,
        reply=reply,
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def wait_until_open(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the port accepts; RuntimeError with nginx's own words if it never does."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.01)
    raise RuntimeError(f"nginx did not start: {log.read_text(errors='replace') if log.exists() else 'no log'}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the master to leave, then take the whole group."""
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
