"""A run's slot under its deployment's concurrency limit, and what the server forgets of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from uuid import UUID

import pytest
from httpx import Response
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.states import Pending, Scheduled

from agent_worker.slots import lease_of
from jobbergate_flows.slots import limit_of, take_slot


async def from_queue(client: PrefectClient, run_id: UUID) -> FlowRun:
    """The run, Pending as one that comes from its queue: it has a slot, and a lease of it."""
    await client.set_flow_run_state(run_id, Scheduled(), force=True)
    await client.set_flow_run_state(run_id, Pending())
    run = await client.read_flow_run(run_id)
    assert lease_of(run) is not None
    return run


async def forget_lease(client: PrefectClient, run: FlowRun) -> None:
    """As a restart of the server does, which keeps leases in memory: the slot stays taken, without a lease."""
    lease = lease_of(run)
    assert lease is not None
    await client.release_concurrency_slots_with_lease(lease)
    assert await take_slot(client, run.deployment_id)


def when_given_up(monkeypatch: pytest.MonkeyPatch, act: Callable[[PrefectClient], Awaitable[None]]) -> None:
    """Have something done each time that a run has given up the lease of its slot."""
    release = PrefectClient.release_concurrency_slots_with_lease

    async def released(client: PrefectClient, lease: UUID) -> Response:
        answer = await release(client, lease)
        await act(client)
        return answer

    monkeypatch.setattr(PrefectClient, "release_concurrency_slots_with_lease", released)


async def taken_slots(client: PrefectClient, deployment_id: UUID | None) -> int:
    """How many of the deployment's slots are taken."""
    limit = await limit_of(client, deployment_id)
    assert limit is not None
    return limit.active_slots
