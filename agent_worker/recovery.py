"""Taking up the runs that an earlier worker left behind, however it ended."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound

from agent_worker.configuration import FlowJobConfiguration
from agent_worker.kinds import kind_of
from agent_worker.runs import LOST_AFTER, engine_waits, infrastructure_pid, runs_of_ids, runs_of_pool
from agent_worker.supervisor import Supervisor

_logger = logging.getLogger(__name__)
_UNFINISHED = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


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
    # One for all looks: what a client costs is reading the CAs.
    async with get_client() as client:
        missing: frozenset[str] = frozenset()
        while True:
            try:
                # Also takes the claim again that a database lost when it was restarted.
                await asyncio.to_thread(supervisor.session.ledger.is_claimed, worker_claim(worker_name))
                online, missing = await _online(client, supervisor, work_pool, missing)
                for run in await _left_behind(client, supervisor, work_pool, worker_name, online):
                    try:
                        await _take_up(client, supervisor, run, configure)
                    except Exception:
                        # One run that cannot be taken up holds up no other.
                        _logger.exception("Run %s could not be taken up; trying again", run.id)
                for run in await _ended_alone(client, supervisor, work_pool, worker_name, online):
                    await supervisor.hold(run, "ended")
            except Exception:
                _logger.exception("Looking for runs to take up failed; trying again")
            await asyncio.sleep(seconds)


def is_left_behind(run: FlowRun, *, pid: str, worker_name: str, online: set[str], now: datetime) -> bool:
    """Whether a run of the pool is this worker's to take up. Pure.

    Args:
        pid: What the run's infrastructure_pid is where its cluster is ours.
        online: The names of the pool's workers that may live, as the server or the ledger knows.
    """
    ours = _is_ours(run, worker_name, online)
    if run.infrastructure_pid == pid:
        return ours
    if run.infrastructure_pid or run.state is None or not run.state.is_pending():
        return False
    return ours and now - run.state.timestamp > LOST_AFTER


def _is_ours(run: FlowRun, worker_name: str, online: set[str]) -> bool:
    owner = run.labels.get("prefect.worker.name")
    return owner in (None, worker_name) or owner not in online


async def _online(
    client: PrefectClient, supervisor: Supervisor, work_pool: str, missing: frozenset[str]
) -> tuple[set[str], frozenset[str]]:
    """The names of the pool's workers that may live, and of those that were not seen to, now or before.

    Where the server or the ledger's database was away it takes them all for dead, until each has told again that it
    lives: one is gone when that is so in two looks.

    Args:
        missing: The names of those that were not seen to live by the look before.
    """
    workers = await client.read_workers_for_work_pool(work_pool_name=work_pool)
    ledger = supervisor.session.ledger
    unseen = {
        worker.name
        for worker in workers
        if worker.status != "ONLINE" and not await asyncio.to_thread(ledger.is_claimed, worker_claim(worker.name))
    }
    return {worker.name for worker in workers} - (unseen & missing), frozenset(unseen)


def worker_claim(name: str) -> str:
    """The claim by which the ledger knows that a worker of that name lives: it ends with the worker's process."""
    return f"worker-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


async def _left_behind(
    client: PrefectClient, supervisor: Supervisor, work_pool: str, worker_name: str, online: set[str]
) -> list[FlowRun]:
    session = supervisor.session
    runs = await runs_of_pool(client, work_pool, _UNFINISHED)
    held = supervisor.held
    return [
        run
        for run in runs
        if run.id not in held
        and run.id not in supervisor.coming
        and is_left_behind(
            run,
            pid=infrastructure_pid(session.cluster.name, run.id),
            worker_name=worker_name,
            online=online,
            now=datetime.now(UTC),
        )
    ]


async def _ended_alone(
    client: PrefectClient, supervisor: Supervisor, work_pool: str, worker_name: str, online: set[str]
) -> list[FlowRun]:
    """Runs that are over, or wait in the process of their engine, while the ledger still has their jobs.

    A flow on a node tells its end without its worker: whoever holds it may still bring it to another attempt, so what
    another worker or another pool's has is left to that. What the server does not know any more was deleted; of that
    only flows that ran as a job count, as no worker but ours submits those: other submissions in the ledger may be of
    runs of another server.
    """
    held = {str(run_id) for run_id in supervisor.held}
    rows = [row for row in await supervisor.session.unfinished() if row.flow_run_id and row.flow_run_id not in held]
    open_ = sorted({UUID(row.flow_run_id) for row in rows if row.flow_run_id})
    flows = {UUID(row.flow_run_id) for row in rows if row.flow_run_id and row.kind == "flow"}
    known = await runs_of_ids(client, open_)
    ended = [
        run
        for run in known
        if run.state is not None
        and (run.state.is_final() or (run.id in flows and engine_waits(run)))
        and (run.id not in flows or (run.work_pool_name in (None, work_pool) and _is_ours(run, worker_name, online)))
    ]
    # Nobody looks at more than their ids.
    return ended + [FlowRun(id=run_id, flow_id=run_id) for run_id in flows - {run.id for run in known}]


async def _take_up(
    client: PrefectClient,
    supervisor: Supervisor,
    run: FlowRun,
    configure: Callable[[FlowRun], Awaitable[FlowJobConfiguration]],
) -> None:
    if run.state is not None and run.state.is_cancelling():
        return  # cancelling watches for these
    if run.deployment_id is None:
        return
    try:
        deployment = await client.read_deployment(run.deployment_id)
    except ObjectNotFound:
        return
    if not run.infrastructure_pid:
        pid = infrastructure_pid(supervisor.session.cluster.name, run.id)
        await client.update_flow_run(run.id, infrastructure_pid=pid)
    _logger.info("Taking up flow run %s again", run.id)
    kind = kind_of(deployment.entrypoint, deployment.pull_steps)
    match kind:
        case "flow":
            await supervisor.hold(run, kind, await configure(run), recovered=True)
        case "application":
            await supervisor.hold(run, kind, await _perhaps(configure, run), recovered=True)
        case "submission":
            await supervisor.hold(run, kind, recovered=True)


async def _perhaps(
    configure: Callable[[FlowRun], Awaitable[FlowJobConfiguration]], run: FlowRun
) -> FlowJobConfiguration | None:
    """What an application's run does not need for its job: only where it is mirrored."""
    try:
        return await configure(run)
    except Exception:
        _logger.exception("The job variables of run %s are not understood; what it submits is not mirrored", run.id)
        return None
