"""Lines for a run's logs: sent together, and known to have arrived."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.schemas.actions import LogCreate
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

from jobbergate_flows.run_logs import LogOutbox
from tests.cluster.http_server import Post, answering

RUN = uuid4()


def a_line(text: str, run: UUID = RUN) -> LogCreate:
    return LogCreate.model_validate(
        {"name": "n", "level": 20, "message": text, "timestamp": datetime.now(UTC), "flow_run_id": run}
    )


@contextmanager
def a_server(*statuses: int) -> Iterator[list[Post]]:
    """A server that takes logs with these answers, the last one for ever; and what it was posted."""
    # A server without protection against forgery has no page for that.
    version = {"/api/admin/version": b'"3.8.0"'}
    with (
        answering(b"{}", status=statuses, kind="application/json", pages=version) as (url, posts),
        temporary_settings({PREFECT_API_URL: f"{url}/api", PREFECT_LOGGING_TO_API_ENABLED: True}),
    ):
        yield posts


def texts(posts: Sequence[Post]) -> list[list[str]]:
    return [[log["message"] for log in json.loads(post.body)] for post in posts]


async def test_lines_of_many_jobs_are_one_request() -> None:
    with a_server(201) as asked:
        await asyncio.gather(*(LogOutbox.here().send([a_line(f"job {number}", uuid4())]) for number in range(50)))

    assert [sorted(request) for request in texts(asked)] == [sorted(f"job {number}" for number in range(50))]


async def test_what_a_server_did_not_take_is_sent_again() -> None:
    with a_server(500, 201) as asked:
        await LogOutbox.here().send([a_line("hello")])

    assert texts(asked) == [["hello"], ["hello"]]


async def test_a_refusal_is_raised_and_the_next_lines_are_sent_all_the_same() -> None:
    with a_server(422, 201) as asked:
        with pytest.raises(httpx.HTTPStatusError):
            await LogOutbox.here().send([a_line("one")])
        await LogOutbox.here().send([a_line("two")])

    assert texts(asked) == [["one"], ["two"]]


async def test_lines_that_are_refused_hold_up_no_other_jobs() -> None:
    with a_server(422, 422, 201) as asked:
        refused, taken = await asyncio.gather(
            LogOutbox.here().send([a_line("odd")]), LogOutbox.here().send([a_line("fine")]), return_exceptions=True
        )

    assert isinstance(refused, httpx.HTTPStatusError)
    assert taken is None
    assert texts(asked) == [["odd", "fine"], ["odd"], ["fine"]]


async def test_nothing_is_sent_where_no_logs_are_wanted() -> None:
    with a_server(201) as asked, temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: False}):
        await LogOutbox.here().send([a_line("hello")])

    assert asked == []
