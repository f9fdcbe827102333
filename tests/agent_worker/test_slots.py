"""A run keeps its slot under its deployment's concurrency limit, and gives it back once."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling

from agent_worker.configuration import SlurmJobConfiguration
from agent_worker.kinds import Kind
from agent_worker.slots import keep_slot, lease_of
from jobbergate_flows.slots import take_slot
from tests.agent_worker.conftest import Workshop
from tests.cluster.site import script_application, waiting_for
from tests.cluster.slots import forget_lease, from_queue, taken_slots, when_given_up
from tests.cluster.waiting import await_until


async def limited(workshop: Workshop, folder: Path, limit: int = 1) -> FlowRun:
    """A run of a deployment with that limit, which waits for `go-on` of its folder; Pending, with its slot's lease."""
    application = script_application(folder, f"limited-{uuid4().hex[:8]}", waiting_for(folder / "go-on"))
    deployed = await workshop.deploy(application, concurrency_limit=limit)
    async with get_client() as client:
        return await from_queue(client, (await workshop.launch(deployed)).id)


async def read(run: FlowRun) -> FlowRun:
    async with get_client() as client:
        return await client.read_flow_run(run.id)


async def slots_of(run: FlowRun) -> int:
    async with get_client() as client:
        return await taken_slots(client, run.deployment_id)


@pytest.mark.parametrize("kind", ["application", "flow"])
@pytest.mark.parametrize("forgotten", [False, True], ids=["known", "forgotten by the server"])
@pytest.mark.parametrize("recovered", [False, True], ids=["from its queue", "left behind"])
async def test_a_run_has_its_slot_without_a_lease_until_it_ends(
    workshop: Workshop, tmp_path: Path, kind: Kind, forgotten: bool, recovered: bool
) -> None:
    run = await limited(workshop, tmp_path)
    if forgotten:
        async with get_client() as client:
            await forget_lease(client, run)
    if not recovered:
        assert await keep_slot(run)
    command = f"sh -c 'until [ -e {tmp_path}/go-on ]; do sleep 0.1; done'"
    configuration = SlurmJobConfiguration(command=command, directory=str(workshop.folder))
    await workshop.supervisor.hold(run, kind, configuration, recovered=recovered)

    async def submitted() -> bool:
        return any(row.job_id for row in workshop.ledger.of_flow_run(str(run.id)))

    await await_until(submitted, 30, "the run's job")
    assert lease_of(await read(run)) is None
    assert await slots_of(run) == 1
    (tmp_path / "go-on").touch()
    await workshop.end(run.id)
    assert await slots_of(run) == 0


async def test_a_run_whose_slot_another_one_got_in_between_is_back_in_its_queue(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await limited(workshop, tmp_path)

    async def taken(client: PrefectClient) -> None:
        assert await take_slot(client, run.deployment_id)

    when_given_up(monkeypatch, taken)

    assert not await keep_slot(run)
    assert (await read(run)).state_name == "AwaitingConcurrencySlot"
    assert await slots_of(run) == 1


async def test_a_run_that_is_cancelled_meanwhile_stays_so(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await limited(workshop, tmp_path)

    async def cancelled(client: PrefectClient) -> None:
        await client.set_flow_run_state(run.id, Cancelling())

    when_given_up(monkeypatch, cancelled)
    await keep_slot(run)

    assert (await read(run)).state_name == "Cancelling"


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
    async with get_client() as client:
        assert await take_slot(client, run.deployment_id)
    assert await slots_of(run) == 2


async def test_a_slot_of_a_server_that_is_away_is_not_taken(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await limited(workshop, tmp_path, limit=5)
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def away(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/increment"):
            raise httpx.ConnectError("connection refused")
        return await send(transport, request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", away)
    async with get_client() as client:
        assert not await take_slot(client, run.deployment_id)
    assert await slots_of(run) == 1
