"""The slots of a deployment's concurrency limit that a worker keeps for its runs."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest
from httpx import Response
from prefect.client.orchestration import PrefectClient, get_client
from prefect.states import Running

from agent_worker import supervisor
from agent_worker.runs import lease_of
from jobbergate_flows.states import keeping_slot
from tests.agent_worker.conftest import Workshop
from tests.cluster.site import message, script_application
from tests.cluster.slots import forget_lease, take_slot
from tests.cluster.waiting import await_until


async def test_the_lease_is_renewed_that_a_run_has_by_now(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed: set[UUID] = set()
    renew = PrefectClient.renew_concurrency_lease

    async def noted(client: PrefectClient, lease: UUID, seconds: float) -> Response:
        answer = await renew(client, lease, seconds)
        renewed.add(lease)
        return answer

    monkeypatch.setattr(PrefectClient, "renew_concurrency_lease", noted)
    one_at_a_time = await workshop.deploy(script_application(tmp_path, "one", "#!/bin/sh\n"), concurrency_limit=2)
    async with get_client() as client:
        first, other = [await take_slot(client, (await workshop.launch(one_at_a_time)).id) for _ in range(2)]
    await workshop.submit(first.id, "exec sleep 300")
    await workshop.supervisor.hold(first, "application", recovered=True)

    async def job_runs() -> bool:
        run = await client.read_flow_run(first.id)
        return run.state_name == "Running" and "Slurm job" in message(run)

    async def was_renewed() -> bool:
        return lease in renewed

    lease = lease_of(first)
    await await_until(was_renewed, 30, "its first lease to be renewed")
    async with get_client() as client:
        # From then on nobody tells of it but this test.
        await await_until(job_runs, 30, "the run to say that its job runs")
        await forget_lease(client, first)
        await client.set_flow_run_state(first.id, keeping_slot(Running(), other.state), force=True)
    lease = lease_of(other)
    await await_until(was_renewed, 30, "its new lease to be renewed")


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_LEASE_RENEWAL_SECONDS", 0.2)
