"""A run's concurrency slot, held so that neither the server nor a worker can lose it while the run goes on."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging.loggers import flow_run_logger

from jobbergate_flows.following import overwrite_state
from jobbergate_flows.slots import take_slot

LEASE_SECONDS = 300
_AGAIN_SECONDS = 5.0


def lease_of(flow_run: FlowRun) -> UUID | None:
    """The lease of the run's slot under its deployment's concurrency limit, where it has one."""
    return flow_run.state.state_details.deployment_concurrency_lease_id if flow_run.state else None


async def without_lease(flow_run: FlowRun) -> FlowRun:
    """Have a Pending run hold its deployment's concurrency slot until it ends, whoever is away meanwhile.

    With a slot the server gives a lease. It keeps that in its memory, and takes a slot back whose lease nobody renews
    for five minutes; it then cancels a run that begins to run, and an engine whose lease is not renewed, as while the
    server is away, ends its flow. A slot without a lease is counted in the server's database. It is given back when
    its run ends or is deleted, and all runs that a worker has come to their end.

    To be called before anything is submitted: a lease is given up by giving up its slot, and in the moment until that
    is taken again another run may get it. The run then waits for the next one.

    Returns:
        The run as it is then.
    """
    lease = lease_of(flow_run)
    if lease is None or flow_run.state is None or not flow_run.state.is_pending():
        return flow_run
    async with get_client() as client:
        # Where the server has forgotten the lease, the slot is taken without it.
        if await _is_known(client, lease):
            await client.release_concurrency_slots_with_lease(lease)
            if not await take_slot(flow_run.deployment_id):
                await _wait_for_slot(flow_run)
        bare = _bare(flow_run.state)
        await overwrite_state(client, flow_run.model_copy(update={"state": bare}), bare)
        return await client.read_flow_run(flow_run.id)


async def _wait_for_slot(flow_run: FlowRun) -> None:
    flow_run_logger(flow_run).info("Waiting for a slot under the deployment's concurrency limit")
    while True:
        await asyncio.sleep(_AGAIN_SECONDS)
        if await take_slot(flow_run.deployment_id):
            return


async def _is_known(client: PrefectClient, lease: UUID) -> bool:
    try:
        await client.renew_concurrency_lease(lease, LEASE_SECONDS)
    except PrefectHTTPStatusError as error:
        if error.response.status_code != HTTPStatus.GONE:
            raise
        return False
    return True


def _bare(state: State) -> State:
    details = state.state_details.model_copy(update={"deployment_concurrency_lease_id": None})
    # A copy is a new state without a time of its own: overwriting asks what came after this one.
    return state.model_copy(update={"state_details": details, "timestamp": state.timestamp})
