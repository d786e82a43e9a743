"""Pictures from the disk: named by rows and templates, sent as they are, a change of them noticed."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from dialects.features import png

from .processes import Llmbatch, read_lines, write_rows

ANSWER = {
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "a cat"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 90, "completion_tokens": 2},
}


class Recorder:
    """A server that keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                body = json.dumps(ANSWER).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    yield recorder
    recorder.close()


def flags(server: Recorder, *more: str) -> tuple[str, ...]:
    return ("run", "data/in.jsonl", "-o", "out.jsonl", "-m", "m", "--base-url", server.base_url, *more)


@pytest.fixture
def pictured(llmbatch: Llmbatch) -> Llmbatch:
    """Paths are relative to the input, wherever the command is given."""
    (llmbatch.directory / "data" / "img").mkdir(parents=True)
    (llmbatch.directory / "data" / "img" / "cat.png").write_bytes(png())
    return llmbatch


def url_of(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def test_a_part_with_a_path_is_sent_as_its_bytes(pictured: Llmbatch, recorder: Recorder) -> None:
    text = {"type": "text", "text": "What is it?"}
    parts = [text, {"type": "image", "path": "img/cat.png", "detail": "low"}]
    write_rows(pictured.directory / "data" / "in.jsonl", [{"messages": [{"role": "user", "content": parts}]}])
    done = pictured(*flags(recorder))
    assert done.code == 0, done.err
    url = url_of(pictured.directory / "data" / "img" / "cat.png")
    ((sent,),) = [[message["content"] for message in body["messages"]] for body in recorder.asked]
    assert sent == [text, {"type": "image_url", "image_url": {"url": url, "detail": "low"}}]
    assert pictured(*flags(recorder)).code == 0 and len(recorder.asked) == 1


def test_a_template_shows_images(pictured: Llmbatch, recorder: Recorder) -> None:
    write_rows(pictured.directory / "data" / "in.jsonl", [{"picture": "img/cat.png", "name": "[[image x 00]]"}])
    assert pictured(*flags(recorder, "-t", "Is {{ name }} here? {{ image(picture) }}")).code == 0
    assert [part["type"] for part in recorder.asked[0]["messages"][0]["content"]] == ["text", "image_url"]


def test_a_file_that_is_no_image_is_never_sent(pictured: Llmbatch, recorder: Recorder) -> None:
    (pictured.directory / "data" / "secret").write_text("root:x:0:0")
    rows = [{"picture": "secret"}, {"picture": "img/none.png"}, {"picture": "img"}, {"picture": "img/cat.png"}]
    write_rows(pictured.directory / "data" / "in.jsonl", rows)
    assert pictured(*flags(recorder, "-t", "Look: {{ image(picture) }}")).code == 1
    lines = read_lines(pictured.directory / "out.jsonl")
    assert [line["status"] for line in lines] == ["error", "error", "error", "ok"]
    for line, word in zip(lines, ("no PNG, JPEG, GIF or WebP", "No such file", "no regular file"), strict=False):
        assert word in line["error"]["message"]
    assert len(recorder.asked) == 1


def test_another_picture_under_the_same_name_is_another_request(pictured: Llmbatch, recorder: Recorder) -> None:
    write_rows(pictured.directory / "data" / "in.jsonl", [{"picture": "img/cat.png"}])
    command = flags(recorder, "-t", "Look: {{ image(picture) }}")
    assert pictured(*command).code == 0
    (pictured.directory / "data" / "img" / "cat.png").write_bytes(png(5, 5))
    refused = pictured(*command)
    assert refused.code == 2 and "1 finished row changed" in refused.err
    assert pictured(*command, "--on-change", "rerun").code == 0
    assert len(recorder.asked) == 2
