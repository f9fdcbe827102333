"""A run keeps its slot under its deployment's concurrency limit, and gives it back once."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling

from agent_worker import slots
from agent_worker.configuration import SlurmJobConfiguration
from agent_worker.kinds import Kind
from agent_worker.slots import lease_of
from jobbergate_flows.slots import take_slot
from tests.agent_worker.conftest import Workshop
from tests.cluster.site import script_application, waiting_for
from tests.cluster.slots import forget_lease, from_queue, taken_slots
from tests.cluster.waiting import await_until


async def limited(workshop: Workshop, folder: Path, limit: int = 1) -> FlowRun:
    """A run of a deployment with that limit, which waits for `go-on` of its folder; Pending, with its slot's lease."""
    deployed = await workshop.deploy(
        script_application(folder, f"one-{uuid4().hex[:8]}", waiting_for(folder / "go-on")), concurrency_limit=limit
    )
    async with get_client() as client:
        return await from_queue(client, (await workshop.launch(deployed)).id)


async def held_slots(run: FlowRun) -> int:
    assert run.deployment_id is not None
    async with get_client() as client:
        return await taken_slots(client, run.deployment_id)


async def await_job(workshop: Workshop, run: FlowRun) -> None:
    async def submitted() -> bool:
        return any(row.job_id for row in workshop.ledger.of_flow_run(str(run.id)))

    await await_until(submitted, 30, "the run's job")


@pytest.mark.parametrize("kind", ["application", "flow"])
@pytest.mark.parametrize("forgotten", [False, True], ids=["known", "forgotten by the server"])
async def test_a_run_has_its_slot_without_a_lease_until_it_ends(
    workshop: Workshop, tmp_path: Path, kind: Kind, forgotten: bool
) -> None:
    run = await limited(workshop, tmp_path)
    async with get_client() as client:
        if forgotten:
            await forget_lease(client, run)
        command = f"sh -c 'until [ -e {tmp_path}/go-on ]; do sleep 0.1; done'"
        configuration = SlurmJobConfiguration(command=command, directory=str(workshop.folder))
        await workshop.supervisor.hold(run, kind, configuration)
        await await_job(workshop, run)
        now = await client.read_flow_run(run.id)

    assert lease_of(now) is None
    assert await held_slots(run) == 1
    (tmp_path / "go-on").touch()
    await workshop.end(run.id)
    assert await held_slots(run) == 0


async def test_a_run_whose_slot_another_one_got_in_between_waits_for_the_next(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "_AGAIN_SECONDS", 0.2)
    (tmp_path / "go-on").touch()
    run = await limited(workshop, tmp_path)
    release = PrefectClient.release_concurrency_slots_with_lease
    refused = 0

    async def released_and_taken(client: PrefectClient, lease: UUID) -> httpx.Response:
        answer = await release(client, lease)
        assert await take_slot(run.deployment_id)
        return answer

    async def noted(deployment_id: UUID | None) -> bool:
        nonlocal refused
        taken = await take_slot(deployment_id)
        refused += not taken
        return taken

    async def waits() -> bool:
        return refused > 1

    monkeypatch.setattr(PrefectClient, "release_concurrency_slots_with_lease", released_and_taken)
    monkeypatch.setattr(slots, "take_slot", noted)
    await workshop.supervisor.hold(run, "application")
    await await_until(waits, 30, "the run to wait for a slot")
    assert workshop.ledger.of_flow_run(str(run.id)) == []
    async with get_client() as client:
        await client._client.post(
            "/v2/concurrency_limits/decrement", json={"slots": 1, "names": [f"deployment:{run.deployment_id}"]}
        )

    assert (await workshop.end(run.id)).state_name == "Completed"
    assert await held_slots(run) == 0


async def test_a_run_that_is_cancelled_meanwhile_stays_so(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await limited(workshop, tmp_path)
    release = PrefectClient.release_concurrency_slots_with_lease

    async def released_and_cancelled(client: PrefectClient, lease: UUID) -> httpx.Response:
        await client.set_flow_run_state(run.id, Cancelling())
        return await release(client, lease)

    monkeypatch.setattr(PrefectClient, "release_concurrency_slots_with_lease", released_and_cancelled)
    async with get_client() as client:
        now = await slots.without_lease(run)

        assert now.state is not None
        assert now.state.is_cancelling()
        assert (await client.read_flow_run(run.id)).state_name == "Cancelling"


async def test_a_slot_is_not_asked_for_twice_where_the_answer_was_lost(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await limited(workshop, tmp_path, limit=5)
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def lost(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        answer = await send(transport, request)
        if request.url.path.endswith("/increment"):
            raise httpx.ReadError("the connection was reset")
        return answer

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", lost)
    assert await take_slot(run.deployment_id)
    assert await held_slots(run) == 2


async def test_a_slot_of_a_server_that_is_away_is_not_taken(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await limited(workshop, tmp_path, limit=5)

    async def away(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    with monkeypatch.context() as patch:
        patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", away)
        assert not await take_slot(run.deployment_id)
    assert await held_slots(run) == 1
