"""A run's concurrency slot, held so that neither the server nor a worker can lose it while the run goes on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Scheduled

from jobbergate_flows.following import overwrite_state
from jobbergate_flows.slots import take_slot

LEASE_SECONDS = 300
WAIT_SECONDS = 30
"""So long a run waits for a slot before it asks again: the server's own time."""


def lease_of(flow_run: FlowRun) -> UUID | None:
    """The lease of the run's slot under its deployment's concurrency limit, where it has one."""
    return flow_run.state.state_details.deployment_concurrency_lease_id if flow_run.state else None


async def keep_slot(flow_run: FlowRun, *, submitted: bool = False) -> bool:
    """Have a run hold its deployment's concurrency slot until it ends, whoever is away meanwhile.

    With a slot the server gives a lease. It keeps that in its memory, and takes a slot back whose lease nobody renews
    for five minutes; it then cancels a run that begins to run, and an engine whose lease is not renewed, as while the
    server is away, ends its flow. A slot without a lease is counted in the server's database. It is given back when
    its run ends or is deleted, and all runs that a worker has come to their end.

    A lease is given up by giving up its slot: in the moment until that is taken again another run may get it, of
    another worker, as one worker lets one run at a time come from its queue.

    Args:
        flow_run: A run that has come from its queue.
        submitted: Whether it has a job: then it goes on without a slot.

    Returns:
        False where another run has got the slot: this one is back in its queue.
    """
    lease = lease_of(flow_run)
    if lease is None or flow_run.state is None:
        return True
    async with get_client() as client:
        # Where the server has forgotten the lease, the slot is counted without it.
        if await _is_known(client, lease):
            await client.release_concurrency_slots_with_lease(lease)
            if not await take_slot(client, flow_run.deployment_id) and not submitted:
                await _back_to_queue(client, flow_run)
                return False
        bare = _bare(flow_run.state)
        await overwrite_state(client, flow_run.model_copy(update={"state": bare}), bare)
    return True


async def _back_to_queue(client: PrefectClient, flow_run: FlowRun) -> None:
    again = datetime.now(UTC) + timedelta(seconds=WAIT_SECONDS)
    await client.set_flow_run_state(flow_run.id, Scheduled(name="AwaitingConcurrencySlot", scheduled_time=again))
    # For what is Pending no more the server gives a slot back, which was another run's.
    await take_slot(client, flow_run.deployment_id)


async def _is_known(client: PrefectClient, lease: UUID) -> bool:
    try:
        await client.renew_concurrency_lease(lease, LEASE_SECONDS)
    except PrefectHTTPStatusError as error:
        if error.response.status_code != HTTPStatus.GONE:
            raise
        return False
    return True


def _bare(state: State[Any]) -> State[Any]:
    details = state.state_details.model_copy(update={"deployment_concurrency_lease_id": None})
    # A copy is a new state without a time of its own: overwriting asks what came after this one.
    return state.model_copy(update={"state_details": details, "timestamp": state.timestamp})
