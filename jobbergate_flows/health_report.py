"""A flow for a recurring deployment: how the site's work pools and workers are, as a table artifact.

`deployments/health-report.yaml` deploys it. It needs the Prefect server only, and runs best where no Slurm is needed to
run it: on a process pool, or by `python -m jobbergate_flows.health_report`, which serves it every hour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from prefect import flow
from prefect.artifacts import acreate_table_artifact
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactCollectionFilter,
    ArtifactCollectionFilterKey,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import State, StateType, Worker, WorkPool
from prefect.states import Completed

from jobbergate_flows.artifacts import artifact_key

KEY = "slurm-site-health"
POOL_TYPE = "jobbergate-slurm"
_PAGE = 200


@dataclass(frozen=True, slots=True)
class PoolHealth:
    """A work pool with its workers.

    Args:
        said: Worker's name -> what it last said of itself (`agent_worker/health.py`); a worker of another type says
            nothing.
        late: Runs that should have started already; at most 200 are counted, as of the next two.
        pending: Runs that a worker holds and whose jobs wait.
        running: Runs that run.
    """

    pool: WorkPool
    workers: Sequence[Worker] = ()
    said: Mapping[str, str] | None = None
    late: int = 0
    pending: int = 0
    running: int = 0

    @property
    def problems(self) -> list[str]:
        """What is wrong, for people."""
        online = [worker for worker in self.workers if worker.status == "ONLINE"]
        found = [] if online else [f"{self.pool.name} has no worker that is online"]
        if self.pool.is_paused:
            found.append(f"{self.pool.name} is paused")
        if self.late:
            found.append(f"{self.pool.name} has {_count(self.late)} late runs")
        for worker in online:
            said = (self.said or {}).get(worker.name, "")
            if said.startswith("Unhealthy"):
                found.append(f"{worker.name}: {said.removeprefix('Unhealthy: ')}")
        return found


def table(pools: Sequence[PoolHealth], now: datetime) -> list[dict[str, Any]]:
    """The artifact's rows: one for each worker, and one for each pool without any. Pure."""
    rows = []
    for health in pools:
        workers: Sequence[Worker | None] = health.workers or [None]
        for worker in workers:
            seen = worker.last_heartbeat_time if worker else None
            status = worker.status.value if worker and worker.status else ""
            rows.append(
                {
                    "Work pool": health.pool.name,
                    "Type": health.pool.type,
                    "Paused": "yes" if health.pool.is_paused else "no",
                    "Worker": worker.name if worker else "none",
                    "Status": status.lower(),
                    "Last heard of": f"{(now - seen).total_seconds():.0f} s ago" if seen else "",
                    "Says": (health.said or {}).get(worker.name, "") if worker else "",
                    "Running": _count(health.running),
                    "Pending": _count(health.pending),
                    "Late": _count(health.late),
                }
            )
    return rows


@flow(name="site-health-report")
async def report_site_health(every_type: bool = False) -> State[Any]:
    """Write down how the site's work pools and workers are.

    Args:
        every_type: Report on pools of other types than `jobbergate-slurm` as well.
    """
    async with get_client() as client:
        pools = [
            await _health(client, pool)
            for pool in await client.read_work_pools(limit=_PAGE)
            if every_type or pool.type == POOL_TYPE
        ]
    problems = [problem for health in pools for problem in health.problems]
    summary = "; ".join(problems) if problems else f"All is well: {len(pools)} work pools"
    await acreate_table_artifact(table(pools, datetime.now(UTC)), key=KEY, description=summary)
    return Completed(name="Problems" if problems else "Completed", message=summary)


async def _health(client: PrefectClient, pool: WorkPool) -> PoolHealth:
    workers = await client.read_workers_for_work_pool(pool.name)
    keys = {artifact_key("slurm-worker", worker.name): worker.name for worker in workers}
    said = {}
    if keys:
        for artifact in await client.read_latest_artifacts(
            artifact_filter=ArtifactCollectionFilter(key=ArtifactCollectionFilterKey(any_=list(keys)))
        ):
            said[keys[str(artifact.key)]] = artifact.description or ""
    return PoolHealth(
        pool=pool,
        workers=sorted(workers, key=lambda worker: worker.name),
        said=said,
        late=await _runs(client, pool, FlowRunFilterState(name=FlowRunFilterStateName(any_=["Late"]))),
        pending=await _runs(client, pool, FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PENDING]))),
        running=await _runs(client, pool, FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING]))),
    )


async def _runs(client: PrefectClient, pool: WorkPool, state: FlowRunFilterState) -> int:
    found = await client.read_flow_runs(
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool.name])),
        flow_run_filter=FlowRunFilter(state=state),
        limit=_PAGE,
    )
    return len(found)


def _count(runs: int) -> str:
    return f"{runs} or more" if runs >= _PAGE else str(runs)


if __name__ == "__main__":
    report_site_health.serve(name="hourly", cron="0 * * * *")
