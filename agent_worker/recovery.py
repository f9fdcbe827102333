"""Taking up the runs that an earlier worker left behind, however it ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound

from agent_worker.configuration import FlowJobConfiguration
from agent_worker.runs import infrastructure_pid
from agent_worker.supervisor import Supervisor
from jobbergate_flows.deployments import is_application

_logger = logging.getLogger(__name__)
_PAGE = 200
_UNFINISHED = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
_FINAL = [StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED]
LOST_AFTER = timedelta(seconds=60)
"""A run that has been Pending for so long, without an infrastructure_pid, was lost between the two."""


async def recover_runs(
    supervisor: Supervisor,
    work_pool: str,
    worker_name: str,
    configure: Callable[[FlowRun], Awaitable[FlowJobConfiguration]],
    seconds: float,
) -> None:
    """Take up left-behind runs now and every `seconds`, so that those of a dead worker go on as well.

    Args:
        configure: Gives the job configuration of an ordinary flow's run.
    """
    while True:
        try:
            for run in await _left_behind(supervisor, work_pool, worker_name):
                try:
                    await _take_up(supervisor, run, configure)
                except Exception:
                    # One run that cannot be taken up holds up no other.
                    _logger.exception("Run %s could not be taken up; trying again", run.id)
            for run in await _ended_alone(supervisor):
                await supervisor.hold(run, "ended")
        except Exception:
            _logger.exception("Looking for runs to take up failed; trying again")
        await asyncio.sleep(seconds)


def is_left_behind(run: FlowRun, *, pid: str, worker_name: str, online: set[str], now: datetime) -> bool:
    """Whether a run of the pool is this worker's to take up. Pure.

    Args:
        pid: What the run's infrastructure_pid is where its cluster is ours.
        online: The names of the pool's workers that the server has heard of lately.
    """
    owner = run.labels.get("prefect.worker.name")
    ours = owner in (None, worker_name) or owner not in online
    if run.infrastructure_pid == pid:
        return ours
    if run.infrastructure_pid or run.state is None or not run.state.is_pending():
        return False
    return ours and now - run.state.timestamp > LOST_AFTER


async def _left_behind(supervisor: Supervisor, work_pool: str, worker_name: str) -> list[FlowRun]:
    session = supervisor.session
    async with get_client() as client:
        runs = await _unfinished(client, work_pool)
        workers = await client.read_workers_for_work_pool(work_pool_name=work_pool)
    online = {worker.name for worker in workers if worker.status == "ONLINE"}
    held = supervisor.held
    return [
        run
        for run in runs
        if run.id not in held
        and is_left_behind(
            run,
            pid=infrastructure_pid(session.cluster.name, run.id),
            worker_name=worker_name,
            online=online,
            now=datetime.now(UTC),
        )
    ]


async def _ended_alone(supervisor: Supervisor) -> list[FlowRun]:
    """Runs that are over while the ledger still has their jobs: a flow on a node tells its end without its worker."""
    held = {str(run_id) for run_id in supervisor.held}
    open_ = sorted(await supervisor.session.unfinished_flow_runs() - held)
    ended: list[FlowRun] = []
    async with get_client() as client:
        for start in range(0, len(open_), _PAGE):
            ids = [UUID(run_id) for run_id in open_[start : start + _PAGE]]
            ended += await client.read_flow_runs(
                flow_run_filter=FlowRunFilter(
                    id=FlowRunFilterId(any_=ids), state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_FINAL))
                ),
                limit=_PAGE,
            )
    return ended


async def _take_up(
    supervisor: Supervisor,
    run: FlowRun,
    configure: Callable[[FlowRun], Awaitable[FlowJobConfiguration]],
) -> None:
    if run.state is not None and run.state.is_cancelling():
        return  # cancelling watches for these
    if run.deployment_id is None:
        return
    async with get_client() as client:
        try:
            deployment = await client.read_deployment(run.deployment_id)
        except ObjectNotFound:
            return
        if not run.infrastructure_pid:
            pid = infrastructure_pid(supervisor.session.cluster.name, run.id)
            await client.update_flow_run(run.id, infrastructure_pid=pid)
    _logger.info("Taking up flow run %s again", run.id)
    if is_application(deployment.entrypoint, deployment.pull_steps):
        await supervisor.hold(run, "application", recovered=True)
    else:
        await supervisor.hold(run, "flow", await configure(run), recovered=True)


async def _unfinished(client: PrefectClient, work_pool: str) -> list[FlowRun]:
    runs: list[FlowRun] = []
    while True:
        page: list[Any] = await client.read_flow_runs(
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[work_pool])),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_UNFINISHED))),
            limit=_PAGE,
            offset=len(runs),
        )
        runs += page
        if len(page) < _PAGE:
            return runs
