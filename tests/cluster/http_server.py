"""Fake HTTP servers; `answering` answers every POST as it was told, and keeps what was posted."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True, slots=True)
class Post:
    """What was posted; names of headers as the client wrote them."""

    path: str
    headers: Mapping[str, str]
    body: bytes


class Handler(BaseHTTPRequestHandler):
    """Answers with a body, and logs nothing."""

    def say(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Answer."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nowhere."""


@contextmanager
def answering(
    body: bytes = b"",
    *,
    status: int | Sequence[int] = 200,
    kind: str = "text/plain",
    pages: Mapping[str, bytes] | None = None,
) -> Iterator[tuple[str, list[Post]]]:
    """Its URL, and what it was posted so far.

    Args:
        status: Of several the last one is for all further posts.
        pages: What it answers to GET, by the path; nothing else is there.
    """
    posts: list[Post] = []
    statuses = [status] if isinstance(status, int) else list(status)

    class Told(Handler):
        def do_GET(self) -> None:
            page = (pages or {}).get(self.path)
            self.say(404 if page is None else 200, page or b"", {"Content-Type": kind})

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            posts.append(Post(self.path, dict(self.headers), self.rfile.read(length)))
            self.say(statuses.pop(0) if len(statuses) > 1 else statuses[0], body, {"Content-Type": kind})

    with serving(Told) as url:
        yield url, posts


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve on a port of its own; the URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
