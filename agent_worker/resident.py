"""The life of an application's run: a coroutine in the supervisor's loop, run again until it is told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import Abort
from prefect.logging.loggers import flow_run_logger
from prefect.states import Crashed

from agent_worker.engine import run_resident
from agent_worker.runs import end_task_runs, force_state, mark_cancelled, read_run
from jobbergate_flows.flows import CALL, run_application
from jobbergate_flows.reporting import JobReporter
from jobbergate_flows.sessions import session_for
from jobbergate_flows.slurm.ledger import Submission, SubmissionStatus
from jobbergate_flows.slurm.session import ClusterSession

_logger = logging.getLogger(__name__)
_RETRY_SECONDS = (1.0, 5.0, 15.0, 30.0, 60.0)
MAX_DEATHS = 20
"""So often a run's coroutine may die before the run is given up as Crashed."""


async def live(
    flow_run: FlowRun,
    parameters: Mapping[str, Any] | None = None,
    *,
    flow: Flow[..., Any] = run_application,
    recovered: bool = False,
) -> State[Any] | None:
    """Bring an application's run to its end, whatever happens to its coroutine on the way.

    Returns when the run is final on the server, or was handed back to its queue, or is gone. Cancelling this coroutine
    leaves the run as it is.

    Returns:
        The state in which the run goes back to its queue for another attempt, which is to be set when this has ended,
        and before the job's end is marked told; None otherwise.

    Args:
        flow_run: The run.
        parameters: What is run, where that was decided about; otherwise the run's own.
        flow: What is run with them, where it is no application.
        recovered: Whether an earlier worker began it: the task runs of its first life are ended first.
    """
    deaths = 0
    while True:
        if recovered or deaths:
            await end_task_runs(flow_run.id, "The worker was restarted; another task run goes on with this.")
        state: State[Any] | None = None
        try:
            state = await _run_once(flow, flow_run, flow_run.parameters if parameters is None else parameters)
            death: BaseException | None = None
        except Abort as error:
            death = error
        except Exception as error:
            death = error
            _logger.exception("The coroutine of flow run %s died", flow_run.id)
        current = await read_run(flow_run.id)
        if current is None or current.state is None or current.state.is_final():
            await (await session_for()).mark_run_told(str(flow_run.id), "application")
            return None
        if current.state.is_scheduled() or current.state.is_paused():
            return None
        if current.state.is_cancelling():
            rows = await asyncio.to_thread((await session_for()).ledger.of_flow_run, str(flow_run.id))
            submitted = any(row.job is not None for row in rows)
            await mark_cancelled(
                flow_run.id, "Cancelled with its job" if submitted else "Cancelled before the job was submitted"
            )
            return None
        if state is not None and state.is_scheduled():
            return state
        deaths += 1
        if deaths >= MAX_DEATHS:
            await force_state(flow_run.id, Crashed(message=f"The run died {deaths} times in the worker: {death}"))
            return None
        await asyncio.sleep(_RETRY_SECONDS[min(deaths, len(_RETRY_SECONDS)) - 1])
        flow_run = current


async def finish_jobs(session: ClusterSession, flow_run: FlowRun) -> None:
    """Wait for the end of the jobs of a run that is over itself, and leave nothing of them open.

    A submission whose job nobody knows is given up, or its job cancelled: nobody waits for it any more.
    """
    for row in await asyncio.to_thread(session.ledger.of_flow_run, str(flow_run.id)):
        if row.told or row.status in (SubmissionStatus.REFUSED, SubmissionStatus.CANCELLED):
            continue
        await _finish(session, flow_run, row)


async def finish_cancelling(session: ClusterSession, flow_run: FlowRun) -> None:
    """Wait for the end of a cancelled run's jobs, and end the run. For runs without a coroutine of their own."""
    for row in await session.cancel_flow_run(str(flow_run.id)):
        await _finish(session, flow_run, row)
    await mark_cancelled(flow_run.id, "Cancelled with its job")


async def _finish(session: ClusterSession, flow_run: FlowRun, row: Submission) -> None:
    """Wait for the end of one submission, whose job may have to be found first, and leave nothing of it open."""
    job = row.job or await session.settle_cancelled(row)
    if job is not None:
        await session.wait(job, on_status=JobReporter(job, flow_run.id).tell)
        await session.remove_secret(job)
        await session.mark_told(job)


async def _run_once(flow: Flow[..., Any], flow_run: FlowRun, parameters: Mapping[str, Any]) -> State[Any]:
    async with get_client() as client:
        name = (await client.read_flow(flow_run.flow_id)).name
    # The flow looks at its parameters itself: Prefect's validation would put blocks in the place of answers' "$ref".
    flow = flow.with_options(name=name, validate_parameters=False)
    flow_run_logger(flow_run, flow).debug("Running resident in the worker")
    job = await (await session_for()).job_of(str(flow_run.id), CALL)
    # Whose job exists is only followed, whatever the run asks for by now.
    return await run_resident(flow, flow_run, {} if job is not None else dict(parameters))
