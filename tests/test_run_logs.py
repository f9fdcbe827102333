"""Lines for a run's logs: sent together, and known to have arrived."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.schemas.actions import LogCreate
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

from jobbergate_flows.run_logs import LogOutbox

RUN = uuid4()


def a_line(text: str, run: UUID = RUN) -> LogCreate:
    return LogCreate.model_validate(
        {"name": "n", "level": 20, "message": text, "timestamp": datetime.now(UTC), "flow_run_id": run}
    )


@contextmanager
def a_server(*answers: int) -> Iterator[list[list[str]]]:
    """A server that takes logs with these answers, the last one for ever; and what each request held."""
    asked: list[list[str]] = []
    left = list(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # As a server without protection against forgery says it.
            self._say(404 if "csrf" in self.path else 200, b'"3.8.0"')

        def do_POST(self) -> None:
            body: Any = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append([log["message"] for log in body])
            self._say(left.pop(0) if len(left) > 1 else left[0], b"{}")

        def _say(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    settings = {PREFECT_API_URL: f"http://127.0.0.1:{server.server_port}/api", PREFECT_LOGGING_TO_API_ENABLED: True}
    try:
        with temporary_settings(settings):
            yield asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_lines_of_many_jobs_are_one_request() -> None:
    with a_server(201) as asked:
        await asyncio.gather(*(LogOutbox.here().send([a_line(f"job {number}", uuid4())]) for number in range(50)))

    assert [sorted(request) for request in asked] == [sorted(f"job {number}" for number in range(50))]


async def test_what_a_server_did_not_take_is_sent_again() -> None:
    with a_server(500, 201) as asked:
        await LogOutbox.here().send([a_line("hello")])

    assert asked == [["hello"], ["hello"]]


async def test_a_refusal_is_raised_and_the_next_lines_are_sent_all_the_same() -> None:
    with a_server(422, 201) as asked:
        with pytest.raises(httpx.HTTPStatusError):
            await LogOutbox.here().send([a_line("one")])
        await LogOutbox.here().send([a_line("two")])

    assert asked == [["one"], ["two"]]


async def test_nothing_is_sent_where_no_logs_are_wanted() -> None:
    with a_server(201) as asked, temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: False}):
        await LogOutbox.here().send([a_line("hello")])

    assert asked == []
