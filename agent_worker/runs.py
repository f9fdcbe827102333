"""What the worker does to a run's record on the server, shared by both kinds of runs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed

from jobbergate_flows.states import keeping_slot

PAGE = 200
"""So many runs the server gives at once."""
LOST_AFTER = timedelta(seconds=60)
"""A run that has come from its queue so long ago, without an infrastructure_pid, was lost between the two."""


def infrastructure_pid(cluster: str, flow_run_id: UUID) -> str:
    """`<cluster>:<flow run id>`: which cluster's worker holds a run. Job and user are in the ledger only."""
    return f"{cluster}:{flow_run_id}"


async def read_run(flow_run_id: UUID) -> FlowRun | None:
    """The run as the server has it; None when it was deleted."""
    async with get_client() as client:
        try:
            return await client.read_flow_run(flow_run_id)
        except ObjectNotFound:
            return None


async def runs_of_pool(client: PrefectClient, work_pool: str, types: Sequence[StateType]) -> list[FlowRun]:
    """All runs of a pool whose state is of one of these types."""
    runs: list[FlowRun] = []
    while True:
        page = await client.read_flow_runs(
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[work_pool])),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types)))),
            limit=PAGE,
            offset=len(runs),
        )
        runs += page
        if len(page) < PAGE:
            return runs


async def runs_of_ids(
    client: PrefectClient, ids: Sequence[UUID], types: Sequence[StateType] | None = None
) -> list[FlowRun]:
    """Those of some runs that the server still has, and whose state is of one of these types."""
    runs: list[FlowRun] = []
    state = None if types is None else FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types)))
    for start in range(0, len(ids), PAGE):
        some = FlowRunFilterId(any_=list(ids[start : start + PAGE]))
        runs += await client.read_flow_runs(flow_run_filter=FlowRunFilter(id=some, state=state), limit=PAGE)
    return runs


async def force_state(flow_run_id: UUID, state: State[Any]) -> None:
    """End a run with `state`, whatever it was before. Of a run that goes on `tell_state` tells."""
    async with get_client() as client:
        try:
            run = await client.read_flow_run(flow_run_id)
            await client.set_flow_run_state(flow_run_id, keeping_slot(state, run.state), force=True)
            await _let_workers_have(client, run)
        except ObjectNotFound:
            return


async def _let_workers_have(client: PrefectClient, run: FlowRun) -> None:
    """Have the server give workers a run again whose own engine was to run it once more, and is dead.

    What it has left keeps the run from them for ever, also when somebody retries it by force, as the UI does.
    """
    if run.empirical_policy.retry_type == "in_process":
        policy = run.empirical_policy.model_copy(update={"retry_type": None})
        await client.update_flow_run(run.id, empirical_policy=policy)


async def hand_back(flow_run_id: UUID, state: State[Any]) -> None:
    """Let a run go back to its queue, unless it has ended meanwhile, or is to be cancelled."""
    run = await read_run(flow_run_id)
    if run is None or run.state is None or run.state.is_cancelling():
        return
    # That Slurm's word wins over the engine's was decided before.
    if run.state.is_final() and not may_be_killed(run.state):
        return
    async with get_client() as client:
        try:
            await _let_workers_have(client, run)
            await client.set_flow_run_state(flow_run_id, state)
        except ObjectNotFound:
            return


def engine_waits(run: FlowRun) -> bool:
    """Whether a run waits in its engine's process, for the engine's own retry or for the end of a pause. Pure."""
    if run.state is None:
        return False
    if run.state.is_paused():
        return not run.state.state_details.pause_reschedule
    return run.state.name == "AwaitingRetry" and run.empirical_policy.retry_type == "in_process"


def may_be_killed(state: State[Any] | None) -> bool:
    """Whether an engine on a node may have said that while its job was being killed. Pure.

    Crashed is what it says then, and Failed where only a part of the job was killed (out of memory).
    """
    return state is not None and (state.is_crashed() or state.is_failed())


async def mark_cancelled(flow_run_id: UUID, message: str) -> None:
    """End a run as Cancelled, unless it has ended already, and the task runs that it leaves.

    Last of all the run: whoever dies before that is followed by another try.
    """
    await end_task_runs(flow_run_id, "The run was cancelled.")
    run = await read_run(flow_run_id)
    if run is not None and not (run.state and run.state.is_final()):
        await force_state(flow_run_id, Cancelled(message=message))


async def end_task_runs(flow_run_id: UUID, message: str) -> None:
    """End the task runs that a dead coroutine left running."""
    async with get_client() as client:
        for task_run in await _unfinished_task_runs(client, flow_run_id):
            await client.set_task_run_state(task_run, Crashed(message=message), force=True)


async def _unfinished_task_runs(client: PrefectClient, flow_run_id: UUID) -> list[UUID]:
    runs = await client.read_task_runs(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])),
        task_run_filter=TaskRunFilter(
            state=TaskRunFilterState(type=TaskRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING]))
        ),
    )
    return [run.id for run in runs]
