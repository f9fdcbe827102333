"""Cancelling: runs that the server says are to be cancelled, and what becomes of their jobs."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, StateType

from agent_worker.runs import LOST_AFTER, infrastructure_pid, mark_cancelled, runs_of_ids, runs_of_pool
from agent_worker.supervisor import Supervisor

_logger = logging.getLogger(__name__)


async def watch_for_cancellations(supervisor: Supervisor, work_pool: str, seconds: float) -> None:
    """Look, again and again, for runs of the pool that are Cancelling, and for held runs that are Cancelled.

    Prefect's own worker never cancels a run that was started, nor one whose Running state a worker set.
    """
    cancelling: dict[UUID, asyncio.Task[None]] = {}
    # One for all looks: what a client costs is reading the CAs.
    async with get_client() as client:
        while True:
            await asyncio.sleep(seconds)
            try:
                for run in await _to_cancel(client, work_pool, list(supervisor.held)):
                    # Each by itself: one whose user's deputy hangs holds up no other.
                    if run.id not in cancelling or cancelling[run.id].done():
                        cancelling[run.id] = asyncio.create_task(_try_to_cancel(supervisor, run))
            except Exception:
                _logger.exception("Looking for runs to cancel failed; trying again")
            cancelling = {run_id: task for run_id, task in cancelling.items() if not task.done()}


async def cancel(supervisor: Supervisor, run: FlowRun) -> None:
    """Cancel a run's job, or, where there is none yet, the run itself. Safe to repeat."""
    session = await supervisor.accounts.of_flow_run(str(run.id))
    held = supervisor.held.get(run.id)
    submissions = await session.cancel_flow_run(str(run.id))
    if submissions:
        # The run's coroutine sees the job's end and tells it; without one there is somebody for just that.
        await supervisor.hold(run, "cancelled")
        return
    if held is not None:
        # Nothing was submitted: the coroutine is still rendering, or on its way to it.
        held.life.cancel()
        await asyncio.wait([held.life])
    elif not _is_nobodys(run, infrastructure_pid(session.cluster.name, run.id), datetime.now(UTC)):
        return
    await mark_cancelled(run.id, "Cancelled before the job was submitted")


def _is_nobodys(run: FlowRun, pid: str, now: datetime) -> bool:
    """Whether no worker holds a run without a submission that is not held here. Pure.

    Where it was cancelled between its queue and its infrastructure_pid, which is `pid` where its cluster is ours, its
    worker is about to set that, or dead.
    """
    if run.infrastructure_pid:
        return run.infrastructure_pid == pid
    return run.state is not None and now - run.state.timestamp > LOST_AFTER


async def _try_to_cancel(supervisor: Supervisor, run: FlowRun) -> None:
    try:
        await cancel(supervisor, run)
    except Exception:
        _logger.exception("Run %s could not be cancelled; trying again", run.id)


async def _to_cancel(client: PrefectClient, work_pool: str, held: list[UUID]) -> list[FlowRun]:
    found = await runs_of_pool(client, work_pool, [StateType.CANCELLING])
    found += await runs_of_ids(client, held, [StateType.CANCELLED])
    return list({run.id: run for run in found}.values())
