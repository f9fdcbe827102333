"""The daily clean-up of a Jobbergate API."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent_worker.jobbergate.garbage import GarbageCollection
from jobbergate_flows.jobbergate.client import JobbergateApiError
from tests.cluster.jobbergate_api import AGENT, JobbergateApi
from tests.jobbergate.test_client import connect, failing_api, failing_client

HOUR = 3


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, HOUR, 10, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


async def test_it_is_asked_for_once_a_day_in_its_hour() -> None:
    clock = Clock()
    with failing_api(*[(204, "")] * 9) as api:
        async with failing_client(api) as client:
            collection = GarbageCollection(client, HOUR, clock)
            for _ in range(2):
                await collection.look()
            assert api.asked == [
                ("DELETE", "/jobbergate/job-script-templates/upload/garbage-collector"),
                ("DELETE", "/jobbergate/job-scripts/upload/garbage-collector"),
                ("DELETE", "/jobbergate/job-scripts/clean-unused-entries"),
            ]
            clock.now = datetime(2026, 1, 2, HOUR - 1, 59, tzinfo=UTC)
            await collection.look()
            assert len(api.asked) == 3
            clock.now = datetime(2026, 1, 2, HOUR, 0, tzinfo=UTC)
            await collection.look()
            assert len(api.asked) == 6


async def test_without_an_hour_it_is_never_asked_for() -> None:
    with failing_api() as api:
        async with failing_client(api) as client:
            await GarbageCollection(client, None, Clock()).look()
    assert api.asked == []


async def test_what_fails_is_tried_again() -> None:
    with failing_api((500, "away")) as api:
        async with failing_client(api, retries=0) as client:
            collection = GarbageCollection(client, HOUR, Clock())
            with pytest.raises(JobbergateApiError, match="away"):
                await collection.look()
            await collection.look()
    assert len(api.asked) == 4


async def test_an_api_that_has_none_any_more_is_no_trouble_and_says_so_once(
    jobbergate_api: JobbergateApi, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    async with connect(jobbergate_api, AGENT, tmp_path) as client:
        collection = GarbageCollection(client, HOUR, clock)
        with caplog.at_level(logging.INFO, "agent_worker.jobbergate.garbage"):
            await collection.look()
            clock.now = datetime(2026, 1, 2, HOUR, 0, tzinfo=UTC)
            await collection.look()
    said = [record.getMessage() for record in caplog.records if "no clean-up of" in record.getMessage()]
    assert len(said) == 3
