"""A worker's inside, in this process: real runs on a real server, and a cluster that can be made to fail."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import get_settings_context
from prefect.states import Pending

from agent_worker.accounts import AccountSessions
from agent_worker.admission import Admission, Rules
from agent_worker.identity.policy import IdentityPolicy
from agent_worker.supervisor import Supervisor
from jobbergate_flows.applications import Application
from jobbergate_flows.applications.job_script import JobScript
from jobbergate_flows.deployments import DeployedApplication, adeploy_application
from jobbergate_flows.slurm.jobs import SlurmJob
from jobbergate_flows.slurm.ledger import Ledger, Submission
from jobbergate_flows.slurm.options import SlurmResources
from jobbergate_flows.slurm.session import ClusterSession
from jobbergate_flows.slurm.submission import SubmissionOrder
from tests.cluster.prefect_server import PrefectServer
from tests.cluster.waiting import await_until
from tests.slurm.fakes import FaultyCluster

ME = IdentityPolicy("single-user", getpass.getuser())


@dataclass
class Workshop:
    """The supervisor of a worker, with its runs, its ledger and its cluster."""

    folder: Path
    pool: str
    cluster: FaultyCluster
    session: ClusterSession
    supervisor: Supervisor
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def ledger(self) -> Ledger:
        return self.session.ledger

    def background(self, service: Coroutine[Any, Any, None]) -> None:
        """Have one of the worker's services run; to be called in the supervisor's loop."""
        self.tasks.add(asyncio.create_task(service))

    async def close(self) -> None:
        """End what is left, and stop: coroutines that are still alive would be thrown away at any later moment."""
        # By its class: a test may have put something else in the place of `cancel`.
        await FaultyCluster.cancel(self.cluster, [row.job_id for row in self.ledger.recent() if row.job_id])

        async def all_gone() -> bool:
            return not self.supervisor.held

        async def end_services() -> None:
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)

        await self.supervisor.do(end_services())
        await await_until(all_gone, 30, "the end of all runs")
        await self.supervisor.stop()

    async def deploy(self, application: Application, **options: Any) -> DeployedApplication:
        return await adeploy_application(application, work_pool=self.pool, **options)

    async def launch(
        self,
        deployed: DeployedApplication,
        state: State[Any] | None = None,
        *,
        cluster: str | None = None,
        **parameters: Any,
    ) -> FlowRun:
        """A run in that state, with whatever parameters, as any client can make it."""
        async with get_client() as client:
            answer = await client._client.post(
                f"/deployments/{deployed.id}/create_flow_run",
                json={"parameters": parameters, "enforce_parameter_schema": False},
            )
            run_id = UUID(answer.json()["id"])
            # First: without it the server cancels at once what is to be Cancelling.
            await client.update_flow_run(run_id, infrastructure_pid=f"{cluster or self.cluster.name}:{run_id}")
            await client.set_flow_run_state(run_id, state or Pending(), force=True)
            return await client.read_flow_run(run_id)

    async def submit(self, run_id: UUID, text: str, *, call: str = "job", **options: Any) -> SlurmJob:
        """Submit a job of a run, as an earlier life of it would have done."""
        order = SubmissionOrder(
            JobScript(name="earlier", text=f"#!/bin/sh\n{text}\n"),
            SlurmResources(),
            str(self.folder),
            await self.session.key(str(run_id), call),
            flow_run_id=str(run_id),
            **options,
        )
        return await self.supervisor.do(self.session.submit(order))

    async def submission(self, run_id: UUID) -> Submission:
        (row,) = self.ledger.of_flow_run(str(run_id))
        return row

    async def end(self, run_id: UUID, timeout: float = 60) -> FlowRun:
        """Wait until the run is final."""

        async def ended() -> FlowRun | None:
            async with get_client() as client:
                run = await client.read_flow_run(run_id)
            return run if run.state is not None and run.state.is_final() else None

        found = await await_until(ended, timeout, "the run's end")
        assert found is not None
        return found


async def started(admission: Admission, pool: str) -> Supervisor:
    """A supervisor whose thread talks to the tests' server."""
    settings = get_settings_context()

    async def make_admission() -> Admission:
        # Threads begin without the tests' settings; this one keeps them to its end.
        settings.model_copy().__enter__()
        return admission

    supervisor = Supervisor(make_admission, pool)
    await supervisor.start()
    return supervisor


@pytest.fixture
def cluster(tmp_path: Path) -> FaultyCluster:
    return FaultyCluster(tmp_path / "cluster")


@pytest.fixture
async def workshop(prefect_server: PrefectServer, tmp_path: Path, cluster: FaultyCluster) -> AsyncIterator[Workshop]:
    ledger = Ledger.open(tmp_path / "ledger.sqlite3")
    session = ClusterSession(cluster, ledger, grace=0.05)
    pool = f"workshop-{uuid4().hex[:8]}"
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=pool, type="jobbergate-slurm"))
    folder = tmp_path / "work"
    folder.mkdir()
    supervisor = await started(Admission(AccountSessions(session), Rules(ME), pool), pool)
    made = Workshop(folder, pool, cluster, session, supervisor)
    yield made
    await made.close()
    ledger.close()
