"""The automations of `deployments/automations`, each applied from its file to a real server, and seen to act."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import yaml
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import Event, Resource, ResourceSpecification
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import AwaitingRetry, Completed, Crashed, Running

from jobbergate_flows.reporting import EventOutbox, JobReporter
from jobbergate_flows.slurm.jobs import JobRow, JobStatus, SlurmJob
from jobbergate_flows.slurm.states import summarize
from jobbergate_flows.states import state_for
from tests.cluster.events import read_events
from tests.cluster.http_server import Post, answering
from tests.cluster.prefect_server import PrefectServer
from tests.cluster.waiting import await_until

FILES = Path(__file__).parents[1] / "deployments" / "automations"


@dataclass(frozen=True, slots=True)
class Receiver:
    """What a webhook got: subjects and bodies."""

    block_id: UUID
    posts: Sequence[Post]

    @property
    def got(self) -> list[dict[str, str]]:
        """What has come so far."""
        return [json.loads(post.body) for post in self.posts]

    async def subjects(self, count: int) -> list[str]:
        """Wait until so many notifications have come, and return all subjects."""

        async def enough() -> bool:
            return len(self.got) >= count

        await await_until(enough, 60, f"{count} notifications, of which came {self.got}")
        return [one["subject"] for one in self.got]


@pytest.fixture(scope="module")
def server() -> Iterator[PrefectServer]:
    """One of their own: its automations see no other test's events, and a test may restart it."""
    with PrefectServer() as started, temporary_settings({PREFECT_API_URL: started.api_url}):
        yield started


@pytest.fixture
async def receiver(server: PrefectServer) -> AsyncIterator[Receiver]:
    with answering() as (url, posts):
        block = CustomWebhookNotificationBlock(
            name="ops", url=url, json_data={"subject": "{{subject}}", "body": "{{body}}"}
        )
        yield Receiver(await block.save(f"ops-{uuid4().hex}"), posts)


@asynccontextmanager
async def applied(
    server: PrefectServer, folder: Path, name: str, block_id: UUID | None = None, **changes: int
) -> AsyncIterator[None]:
    """An automation from its file, by the command that the docs name; `changes` are of its trigger."""
    text = (FILES / f"{name}.yaml").read_text()
    assert ("BLOCK_ID" in text) is (block_id is not None)
    document = yaml.safe_load(text.replace("BLOCK_ID", str(block_id)))
    document["trigger"] |= changes
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "prefect", "automation", "create", "--from-file", str(file)]
    environment = os.environ | {"PREFECT_API_URL": server.api_url}
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    try:
        await loaded()
        yield
    finally:
        async with get_client() as client:
            for automation in await client.read_automations_by_name(document["name"]):
                await client.delete_automation(automation.id)


async def loaded() -> None:
    """Wait until the server reacts by what was applied before.

    It answers as soon as an automation is written, and takes it up some time later; what happens until then is nothing
    to it. It takes them up one after the other: the last one does nothing.
    """
    thing = f"probe.{uuid4().hex}"
    last = AutomationCore(
        name=thing,
        trigger=EventTrigger(
            expect={"probe"},
            match=ResourceSpecification({"prefect.resource.id": thing}),
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[],
    )
    async with get_client() as client:
        last_id = await client.create_automation(last)

    async def reacts() -> bool:
        EventOutbox.here().put(Event(event="probe", resource=Resource({"prefect.resource.id": thing})))
        return bool(await read_events(resource=f"prefect.automation.{last_id}", name="prefect.automation.triggered"))

    await await_until(reacts, 120, "the server to react by its automations", 0.5)
    async with get_client() as client:
        await client.delete_automation(last_id)


def a_job(name: str, age: timedelta = timedelta()) -> SlurmJob:
    return SlurmJob(
        cluster="hpc", job_id=str(uuid4().int)[:9], key="abcdefghij", name=name, user="alice", directory="/work/study",
        standard_output=None, standard_error=None, submitted_at=datetime.now(UTC) - age,
    )  # fmt: skip


def status(state: str, reason: str | None = None) -> JobStatus:
    now = datetime.now(UTC)
    found = summarize(
        [
            JobRow(
                "1",
                "1",
                state,
                "squeue" if state == "PENDING" else "sacct",
                reason=reason,
                submit=now,
                start=now,
                end=now,
            )
        ]
    )
    assert found is not None
    return found


async def tell(name: str, state: str, *, run: FlowRun | None = None, reason: str | None = None) -> None:
    await JobReporter(a_job(name), run.id if run else None).tell(status(state, reason))


async def a_run(deployment_tags: tuple[str, ...] = ()) -> FlowRun:
    async with get_client() as client:
        flow_id = await client.create_flow_from_name("study")
        deployment = await client.create_deployment(
            flow_id=flow_id,
            name=f"study-{uuid4().hex[:8]}",
            tags=list(deployment_tags),
            schedules=[DeploymentScheduleCreate(schedule=IntervalSchedule(interval=timedelta(days=1)))],
        )
        return await client.create_flow_run_from_deployment(deployment)


def worker_event(event: str, worker: str) -> Event:
    resource = {"prefect.resource.id": f"prefect.worker.jobbergate-slurm.{worker}", "prefect.resource.name": worker}
    return Event(
        event=event, resource=Resource(resource), payload={"summary": "slurmctld: no answer", "cluster": "hpc"}
    )


async def test_a_failed_job_notifies_once_for_each_job(
    server: PrefectServer, receiver: Receiver, tmp_path: Path
) -> None:
    run = await a_run()
    async with applied(server, tmp_path, "failed-job", receiver.block_id):
        await tell("well", "COMPLETED", run=run)
        await tell("mine", "FAILED", run=run)
        await tell("slow", "TIMEOUT", run=run)
        subjects = await receiver.subjects(2)

    assert sorted(subjects) == ["mine of alice: Failed", "slow of alice: TimedOut"]
    assert all(f"Run: {run.name} http" in one["body"] and str(run.id) in one["body"] for one in receiver.got)


async def test_a_failed_run_notifies_once_whatever_attempts_it_had(
    server: PrefectServer, receiver: Receiver, tmp_path: Path
) -> None:
    run, fine, lost = [await a_run() for _ in range(3)]
    async with applied(server, tmp_path, "failed-run", receiver.block_id), get_client() as client:
        await client.set_flow_run_state(fine.id, Completed(), force=True)
        for _ in range(2):
            await client.set_flow_run_state(run.id, Running(), force=True)
            await tell("large", "OUT_OF_MEMORY", run=run)
            await client.set_flow_run_state(run.id, AwaitingRetry(), force=True)
        await client.set_flow_run_state(run.id, state_for(status("OUT_OF_MEMORY")), force=True)
        await client.set_flow_run_state(lost.id, Crashed(), force=True)
        subjects = await receiver.subjects(2)

    assert sorted(subjects) == sorted([f"{run.name}: OutOfMemory", f"{lost.name}: Crashed"])
    assert any("used more memory" in one["body"] and str(run.id) in one["body"] for one in receiver.got)


async def test_out_of_memory_notifies(server: PrefectServer, receiver: Receiver, tmp_path: Path) -> None:
    async with applied(server, tmp_path, "out-of-memory", receiver.block_id):
        await tell("other", "FAILED")
        await tell("large", "OUT_OF_MEMORY")
        assert await receiver.subjects(1) == ["large of alice needs more memory"]


async def test_a_job_that_cannot_start_notifies(server: PrefectServer, receiver: Receiver, tmp_path: Path) -> None:
    async with applied(server, tmp_path, "needs-attention", receiver.block_id):
        await tell("waits", "PENDING", reason="Priority")
        await tell("never", "PENDING", reason="DependencyNeverSatisfied")
        assert await receiver.subjects(1) == ["never of alice cannot start"]
    assert "hpc: DependencyNeverSatisfied" in receiver.got[0]["body"]


async def test_three_failures_pause_a_recurring_deployment_and_no_other(server: PrefectServer, tmp_path: Path) -> None:
    failing, fine, other = await a_run(("recurring",)), await a_run(("recurring",)), await a_run()
    async with applied(server, tmp_path, "pause-failing-deployment"):
        for run, times in ((other, 4), (fine, 2), (failing, 3)):
            for _ in range(times):
                await tell("nightly", "FAILED", run=run)
        await await_until(lambda: _paused(failing), 60, "the deployment to be paused")
        assert not await _paused(fine)
        assert not await _paused(other)


async def test_an_unhealthy_worker_notifies_once_in_a_while(
    server: PrefectServer, receiver: Receiver, tmp_path: Path
) -> None:
    async with applied(server, tmp_path, "unhealthy-worker", receiver.block_id):
        outbox = EventOutbox.here()
        for worker in ("first", "first", "second"):
            outbox.put(worker_event("slurm.worker.unhealthy", worker))
        subjects = await receiver.subjects(2)
    assert sorted(subjects) == ["Worker first is not well", "Worker second is not well"]


async def test_a_silent_worker_notifies_and_one_that_was_stopped_does_not(
    server: PrefectServer, receiver: Receiver, tmp_path: Path
) -> None:
    async with applied(server, tmp_path, "silent-worker", receiver.block_id, within=10):
        outbox = EventOutbox.here()
        last = worker_event("slurm.worker.healthy", "stopped")
        outbox.put(last)
        # The server looks at two events at a time, and so perhaps first at the later one.
        outbox.put(worker_event("prefect.worker.stopped", "stopped").model_copy(update={"follows": last.id}))
        outbox.put(worker_event("slurm.worker.healthy", "silent"))
        assert await receiver.subjects(1) == ["Worker silent is silent"]
    assert "Last word: slurmctld: no answer" in receiver.got[0]["body"]


async def test_a_job_that_is_followed_again_by_a_restarted_worker_notifies_no_second_time(
    server: PrefectServer, receiver: Receiver, tmp_path: Path
) -> None:
    """The server forgets within minutes, or when it is restarted, which events it has seen."""
    job, ended = a_job("mine", timedelta(hours=1)), status("FAILED")
    async with applied(server, tmp_path, "failed-job", receiver.block_id):
        await JobReporter(job, None).tell(ended)
        await receiver.subjects(1)
        await await_until(lambda: _written(job), 30, "the event")
        server.stop()
        server.start()
        await loaded()
        await JobReporter(job, None).tell(ended)
        for number, name in enumerate(("another", "a third"), 2):
            await tell(name, "FAILED")
            subjects = await receiver.subjects(number)
    assert subjects == ["mine of alice: Failed", "another of alice: Failed", "a third of alice: Failed"]


async def _written(job: SlurmJob) -> bool:
    return bool(await read_events(resource=f"slurm.job.hpc.{job.job_id}"))


async def _paused(run: FlowRun) -> bool:
    assert run.deployment_id is not None
    async with get_client() as client:
        return bool((await client.read_deployment(run.deployment_id)).paused)
