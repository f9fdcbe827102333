"""A flow run's state following its job's, told to the server when it can be reached."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound

from jobbergate_flows.states import keeping_slot, states_since

_logger = logging.getLogger(__name__)
_RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 15.0)


class RunFollower:
    """Tells the newest state of one flow run, in order, without holding up whoever reports it.

    What could not be told (the server is away) is told later; states that were overtaken in the meantime are left
    out.
    """

    def __init__(self, flow_run_id: UUID) -> None:
        self.flow_run_id = flow_run_id
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
                await tell_state(self.flow_run_id, state)
            except Exception as error:
                delay = _RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)]
                attempt += 1
                _logger.warning("The run's state could not be told yet (%s); trying again", error)
                await asyncio.sleep(delay)
            else:
                attempt = 0
                if self._next is state:
                    self._next = None


async def tell_state(flow_run_id: UUID, state: State[Any]) -> None:
    """Set a run that is Pending or Running to `state`, which is one of these as well.

    A run that says so already is left alone, as is one that does not go on: it is over, paused, in its queue, to be
    cancelled, or deleted.

    Raises:
        httpx.HTTPError: The server cannot be reached.
    """
    async with get_client() as client:
        try:
            run = await client.read_flow_run(flow_run_id)
            current = run.state
            if current is None or not (current.is_pending() or current.is_running()):
                return
            if (current.name, current.message) == (state.name, state.message):
                return
            if _is_against_the_rules(current, state):
                await overwrite_state(client, run, state)
            else:
                await client.set_flow_run_state(flow_run_id, keeping_slot(state, current))
        except ObjectNotFound:
            return


def _is_against_the_rules(current: State[Any], state: State[Any]) -> bool:
    """Whether the server may not take what Slurm says of a run that goes on.

    It refuses Pending after Running, and after a Pending of the same name; and it cancels a run that begins to run when
    it has forgotten the lease of its slot, as it does when it is restarted.
    """
    if current.is_running():
        return state.is_pending()
    return state.is_running() or current.name == state.name


async def overwrite_state(client: PrefectClient, run: FlowRun, state: State[Any]) -> None:
    """Set a run that goes on to `state`, past the server's rules, keeping its concurrency slot.

    The rules also keep a run that is to be cancelled from being set to anything else, and one that runs from being set
    to Pending. So does this: where the run was cancelled, ended or began to run since `run` was read, that is set
    again.

    Args:
        client: Talks to the server.
        run: The run as it was when this was decided.
        state: What it is set to; none that ends the run.
    """
    result = await client.set_flow_run_state(run.id, keeping_slot(state, run.state), force=True)
    if run.state is None or result.state is None:
        return
    lost = overwritten(await client.read_flow_run_states(run.id), run.state, result.state)
    if lost is not None:
        await client.set_flow_run_state(run.id, keeping_slot(lost, run.state), force=True)


def overwritten(states: Iterable[State[Any]], seen: State[Any], put: State[Any]) -> State[Any] | None:
    """What came between two states of a run and is more than the later one: an end, Cancelling, Running. Pure.

    None without such a one, and where the run has gone on from `put`: then somebody knew of it.

    Args:
        states: All states of the run, in any order.
        seen: The one that was the newest before.
        put: The one that was put in its place.
    """
    since = states_since(states, seen)
    if not since or since[-1].id != put.id:
        return None
    more = [state for state in since[:-1] if state.is_final() or state.is_cancelling() or state.is_running()]
    return more[-1] if more else None
