"""A job's events on a real Prefect server: related to its run, sent once, and sent when the server is back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from prefect import flow, tags
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.events.schemas.events import Event, Resource
from prefect.settings import PREFECT_API_URL, temporary_settings

from jobbergate_flows.applications import JobScript
from jobbergate_flows.blocks import SlurmCluster
from jobbergate_flows.reporting import EventOutbox, JobReporter
from jobbergate_flows.slurm.jobs import JobRow, JobStatus, SlurmJob
from jobbergate_flows.slurm.states import summarize
from jobbergate_flows.tasks import asubmit_job_script, await_for_job, submit_job_script, wait_for_job
from tests.cluster.events import await_events, names
from tests.cluster.prefect_server import PrefectServer

LOCAL = SlurmCluster(access="local")


def script(text: str) -> JobScript:
    return JobScript(name="job", text=f"#!/bin/bash\n{text}\n")


def running(job: SlurmJob) -> JobStatus:
    status = summarize([JobRow(job.job_id, job.job_id, "RUNNING", "squeue", submit=job.submitted_at)])
    assert status is not None
    return status


def some_job(age: timedelta = timedelta()) -> SlurmJob:
    return SlurmJob(
        cluster="hpc", job_id=uuid4().hex[:8], key="abcdefghij", name="study", user="alice", directory="/",
        standard_output=None, standard_error=None, submitted_at=datetime.now(UTC) - age,
    )  # fmt: skip


def resource_of(job: SlurmJob) -> str:
    return f"slurm.job.{job.cluster}.{job.job_id}"


def this_run() -> FlowRun:
    """The run that it is called in."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    return context.flow_run


def event(name: str = "slurm.job.running") -> Event:
    return Event(event=name, resource=Resource({"prefect.resource.id": f"slurm.job.hpc.{uuid4().hex}"}))


@pytest.fixture(scope="module")
def own_server() -> Iterator[PrefectServer]:
    """One that a test may stop."""
    with PrefectServer() as server, temporary_settings({PREFECT_API_URL: server.api_url}):
        yield server


@pytest.mark.usefixtures("prefect_server")
class TestOnAServer:
    async def test_a_job_in_a_flow_is_told_with_what_it_belongs_to(self, tmp_path: Path) -> None:
        runs = []

        @flow(name="a study of harbours")
        async def study() -> None:
            runs.append(this_run())
            # Its start is noted when it has begun: a moment later, and it has run for less than it sleeps.
            job = await asubmit_job_script(script("sleep 1.5"), directory=tmp_path, cluster=LOCAL)
            await await_for_job(job, cluster=LOCAL)

        with tags("nightly", "harbour"):
            await study()
        (run,) = runs
        found = await await_events(
            "the end", lambda events: "completed" in names(events), related=f"prefect.flow-run.{run.id}", name="slurm.*"
        )

        assert names(found)[-1] == "completed"
        assert len(names(found)) == len(set(names(found)))
        for one in found:
            related = {(entry["prefect.resource.role"], entry.get("prefect.resource.name")) for entry in one["related"]}
            assert {("flow-run", run.name), ("flow", "a study of harbours")} <= related
            held = {entry["prefect.resource.id"] for entry in one["related"] if entry["prefect.resource.role"] == "tag"}
            assert held == {"prefect.tag.nightly", "prefect.tag.harbour"}
        assert found[-1]["payload"]["message"] == "Completed: exit code 0"
        assert found[-1]["payload"]["ran_seconds"] >= 1

    async def test_a_synchronous_flow_has_told_all_when_it_ends(self, tmp_path: Path) -> None:
        @flow
        def study() -> UUID:
            job: SlurmJob = submit_job_script(script("exit 3"), directory=tmp_path, cluster=LOCAL)
            state = wait_for_job(job, cluster=LOCAL, return_state=True)
            assert state.is_failed()
            return this_run().id

        run_id = await asyncio.to_thread(study)
        # By its run: other tests' local jobs have the same numbers.
        found = await await_events(
            "the end", lambda events: "failed" in names(events), related=f"prefect.flow-run.{run_id}", name="slurm.*"
        )
        assert found[-1]["payload"]["exit_code"] == "3:0"

    async def test_no_more_is_related_than_a_server_takes(self) -> None:
        """Its own events of such a run have not the run among them: they are one shorter."""

        @flow
        def tagged() -> UUID:
            return this_run().id

        with tags(*(f"tag-{number}" for number in range(99))):
            run_id = await asyncio.to_thread(tagged)
        job = some_job()
        reporter = JobReporter(job, run_id)
        await reporter.tell(running(job))
        (found,) = await await_events("the event", resource=resource_of(job))
        assert len(found["related"]) == 100

    async def test_an_event_of_a_run_that_was_deleted_is_sent_all_the_same(self) -> None:
        job, run_id = some_job(), uuid4()
        await JobReporter(job, run_id).tell(running(job))
        (found,) = await await_events("the event", resource=resource_of(job))
        assert [entry["prefect.resource.id"] for entry in found["related"]] == [f"prefect.flow-run.{run_id}"]

    async def test_an_event_that_the_server_refuses_holds_up_no_other(self, caplog: pytest.LogCaptureFixture) -> None:
        refused = event().model_copy(update={"resource": Resource.model_construct(root={})})
        before, after = event(), event()
        outbox = EventOutbox()
        with caplog.at_level(logging.ERROR, "jobbergate_flows.reporting"):
            for one in (before, refused, after):
                outbox.put(one)
            await outbox.settle(20)
        for one in (before, after):
            await await_events("the event", resource=one.resource.id)
        assert "refuses the event slurm.job.running" in caplog.text


async def test_a_status_that_cannot_be_told_fails_nobody(caplog: pytest.LogCaptureFixture) -> None:
    job = some_job()
    with caplog.at_level(logging.ERROR, "jobbergate_flows.reporting"):
        await JobReporter(job, None).tell(None)  # type: ignore[arg-type]
    assert f"events of job {job.job_id} were not told" in caplog.text


async def test_a_server_that_is_away_holds_up_nobody_and_gets_the_newest_events_when_it_is_back(
    own_server: PrefectServer, caplog: pytest.LogCaptureFixture
) -> None:
    own_server.stop()
    outbox = EventOutbox(limit=60)
    events = [event(f"slurm.job.number-{number:03}") for number in range(80)]
    with caplog.at_level(logging.WARNING, "jobbergate_flows.reporting"):
        for one in events:
            outbox.put(one)
        await outbox.settle(0.1)
    own_server.start()
    await outbox.settle(60)
    found = await await_events("the events", lambda seen: len(seen) >= 50, name="slurm.job.number-*", timeout=40)

    assert names(found) == [f"number-{number:03}" for number in range(20, 70)]
    assert "dropping the oldest" in caplog.text
