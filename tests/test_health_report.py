"""The report on a site's work pools and workers, deployed from its file."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, WorkPoolCreate
from prefect.client.schemas.filters import ArtifactCollectionFilter, ArtifactCollectionFilterKey
from prefect.client.schemas.objects import FlowRun, Worker, WorkerStatus, WorkPool

from jobbergate_flows.health_report import KEY, PoolHealth, table
from tests.cluster.prefect_server import PrefectServer
from tests.cluster.service import Service
from tests.cluster.waiting import await_until
from tests.cluster.worker import WorkerProcess

ROOT = Path(__file__).parents[1]
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
POOL = WorkPool(name="slurm", type="jobbergate-slurm", default_queue_id=uuid4())


def worker(name: str, status: WorkerStatus = WorkerStatus.ONLINE, **more: Any) -> Worker:
    return Worker(name=name, work_pool_id=POOL.id, status=status, **more)


def test_a_pool_with_a_worker_that_is_well_has_no_problems() -> None:
    assert PoolHealth(POOL, [worker("hpc")], {"hpc": "Healthy: 3 runs, 2 jobs"}).problems == []


def test_what_is_wrong_is_said_of_pool_and_worker() -> None:
    paused = POOL.model_copy(update={"is_paused": True})
    off = worker("old", WorkerStatus.OFFLINE)
    said = {"hpc": "Unhealthy: slurmctld: no answer", "old": "Unhealthy: accounting: no answer"}

    assert PoolHealth(POOL, [off], said).problems == ["slurm has no worker that is online"]
    assert PoolHealth(paused, [worker("hpc"), off], said, late=200).problems == [
        "slurm is paused",
        "slurm has 200 or more late runs",
        "hpc: slurmctld: no answer",
    ]


def test_each_worker_has_a_row_and_so_has_a_pool_without_any() -> None:
    seen = worker("hpc", last_heartbeat_time=NOW - timedelta(seconds=20))
    rows = table([PoolHealth(POOL, [seen], {"hpc": "Healthy"}, late=1), PoolHealth(POOL)], NOW)

    assert [row["Worker"] for row in rows] == ["hpc", "none"]
    assert rows[0] == {
        "Work pool": "slurm",
        "Type": "jobbergate-slurm",
        "Paused": "no",
        "Worker": "hpc",
        "Status": "online",
        "Last heard of": "20 s ago",
        "Says": "Healthy",
        "Running": "0",
        "Pending": "0",
        "Late": "1",
    }


async def test_the_report_is_deployed_from_its_file_and_runs_on_a_process_pool(
    prefect_server: PrefectServer, tmp_path: Path
) -> None:
    environment = {"PREFECT_API_URL": prefect_server.api_url, "PREFECT_HOME": str(tmp_path)}
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name="site", type="process"))
        unattended = await client.create_work_pool(WorkPoolCreate(name="unattended", type="jobbergate-slurm"))
        await client.create_artifact(
            ArtifactCreate(key="slurm-worker-hpc-unattended", type="markdown", description="Unhealthy: no slurmctld")
        )
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    command += ["--prefect-file", "deployments/health-report.yaml"]
    deploy = Service("deploy", command, tmp_path / "deploy.log", os.environ | environment, cwd=str(ROOT))
    deploy.start()
    assert deploy.process is not None
    assert await asyncio.to_thread(deploy.process.wait, 120) == 0, deploy.log_end()
    process = WorkerProcess("site", tmp_path, environment, kind="process")
    process.start()
    try:
        async with get_client() as client:
            deployment = await client.read_deployment_by_name("site-health-report/hourly")
            assert [schedule.active for schedule in deployment.schedules] == [True]
            # For a minute and a half it counts as online.
            await client.send_worker_heartbeat(work_pool_name="unattended", worker_name="hpc unattended")
            run = await client.create_flow_run_from_deployment(deployment.id)
        ended = await await_until(lambda: _ended(run), 120, "the report")
    finally:
        process.stop()

    assert ended is not None
    assert ended.state_name == "Problems", f"{ended.state}\n{process.log_end()}"
    async with get_client() as client:
        (report,) = await client.read_latest_artifacts(
            artifact_filter=ArtifactCollectionFilter(key=ArtifactCollectionFilterKey(any_=[KEY]))
        )
    assert "hpc unattended: no slurmctld" in str(report.description)
    (row,) = (row for row in json.loads(str(report.data)) if row["Work pool"] == unattended.name)
    assert (row["Worker"], row["Status"], row["Says"]) == ("hpc unattended", "online", "Unhealthy: no slurmctld")


async def _ended(run: FlowRun) -> FlowRun | None:
    async with get_client() as client:
        found = await client.read_flow_run(run.id)
    return found if found.state is not None and found.state.is_final() else None
