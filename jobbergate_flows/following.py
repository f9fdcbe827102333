"""A flow run's state following its job's, told to the server when it can be reached."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas import OrchestrationResult
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound

from jobbergate_flows.slots import take_slot
from jobbergate_flows.states import keeping_slot, says, states_since

_logger = logging.getLogger(__name__)
_RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 15.0)


class RunFollower:
    """Tells the newest state of one flow run, in order, without holding up whoever reports it.

    What could not be told (the server is away) is told later; states that were overtaken in the meantime are left
    out.
    """

    def __init__(self, flow_run_id: UUID, *, engine_on_node: bool = False) -> None:
        """For the run `flow_run_id`; the other argument is `tell_state`'s."""
        self.flow_run_id = flow_run_id
        self._engine_on_node = engine_on_node
        self._next: State[Any] | None = None
        self._telling: asyncio.Task[None] | None = None

    @classmethod
    def here(cls) -> RunFollower | None:
        """A follower for the flow run of this context; None outside of one."""
        context = FlowRunContext.get()
        if context is None or context.flow_run is None:
            return None
        return cls(context.flow_run.id)

    async def tell(self, state: State[Any]) -> None:
        """Have the run set to `state`, soon."""
        self._next = state
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell_all())

    async def settle(self) -> None:
        """Wait for the state that is being told; what has not been begun is dropped, as the end overtakes it."""
        self._next = None
        if self._telling is not None:
            await self._telling

    async def _tell_all(self) -> None:
        attempt = 0
        while (state := self._next) is not None:
            try:
                await tell_state(self.flow_run_id, state, engine_on_node=self._engine_on_node)
            except Exception as error:
                delay = _RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)]
                attempt += 1
                _logger.warning("The run's state could not be told yet (%s); trying again", error)
                await asyncio.sleep(delay)
            else:
                attempt = 0
                if self._next is state:
                    self._next = None


async def tell_state(flow_run_id: UUID, state: State[Any], *, engine_on_node: bool = False) -> None:
    """Set a run that is Pending or Running to `state`, which is one of these as well.

    A run that says so already is left alone, as is one that does not go on: it is over, paused, in its queue, to be
    cancelled, or deleted.

    Args:
        engine_on_node: Whether the run's engine runs in the job itself: then it alone lets the run begin, and until it
            has, the run of a job that runs is told as Starting.

    Raises:
        httpx.HTTPError: The server cannot be reached.
    """
    async with get_client() as client:
        try:
            run = await client.read_flow_run(flow_run_id)
            current = run.state
            if current is None or not (current.is_pending() or current.is_running()):
                return
            if engine_on_node:
                state = beside_engine(state, current)
            if says(current, state):
                return
            await overwrite_state(client, run, state)
        except ObjectNotFound:
            return


def beside_engine(state: State[Any], current: State[Any]) -> State[Any]:
    """What to tell of a job that says `state`, in which the engine of a run runs that is `current`. Pure.

    That the flow runs is the engine's to say: only where is added.
    """
    if state.is_running() and current.is_pending():
        return State(type=StateType.PENDING, name="Starting", message=state.message)
    return state


async def overwrite_state(client: PrefectClient, run: FlowRun, state: State[Any]) -> None:
    """Set a run that goes on to `state`, past the server's rules, keeping its concurrency slot.

    They refuse Pending after Running, and after a Pending of the same name, and count each Running as another run. But
    they let a run be Pending that has ended since, or is in its queue again. So where the run was cancelled, paused,
    ended or began to run since `run` was read, that is set again.

    Args:
        client: Talks to the server.
        run: The run as it was when this was decided.
        state: What it is set to; none that ends the run. Running does not count as another run of it.
    """
    put = await _put(client, run, keeping_slot(state, run.state))
    if run.state is None or put is None:
        return
    lost = overwritten(await client.read_flow_run_states(run.id), run.state, put)
    if lost is None:
        return
    if lost.is_final() or lost.is_scheduled() or lost.is_paused():
        # It gave the slot back, and will again.
        await take_slot(client, run.deployment_id)
    await _put(client, run, lost)


async def _put(client: PrefectClient, run: FlowRun, state: State[Any]) -> State[Any] | None:
    """Set a state by force, with where its result is: the client alone leaves that out of one that the server had.

    Running does not count as another run.
    """
    if state.is_running():
        # The server's only way not to count one, for runs that go on after a pause; it ends with that Running.
        policy = run.empirical_policy.model_copy(update={"resuming": True})
        await client.update_flow_run(run.id, empirical_policy=policy)
    fields = state.model_dump(mode="json", include={"type", "name", "message", "data", "state_details"})
    answer = await client.request(
        "POST", "/flow_runs/{id}/set_state", path_params={"id": run.id}, json={"state": fields, "force": True}
    )
    return OrchestrationResult[Any].model_validate(answer.json()).state


def overwritten(states: Iterable[State[Any]], seen: State[Any], put: State[Any]) -> State[Any] | None:
    """What a run was right before it was put into a state, if that came unseen and is more than the later one. Pure.

    None without such a one, and where the run has gone on from `put`: then somebody knew of it. Pending is not more,
    nor is what an engine says that goes on: Running for a Running, and the wait for its own retry. But what follows an
    end in between is another life of the run.

    Args:
        states: All states of the run, in any order.
        seen: The one that was the newest before.
        put: The one that was put in its place.
    """
    since = states_since(states, seen)
    if len(since) < 2 or since[-1].id != put.id:
        return None
    *before, lost = since[:-1]
    if any(state.is_final() for state in before):
        return lost
    if lost.is_pending() or lost.is_scheduled() or (lost.is_running() and put.is_running()):
        return None
    return lost
