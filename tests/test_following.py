"""A run's state follows its job's, also past the server's rules; what somebody else says meanwhile is not lost."""

from __future__ import annotations

import pytest
from prefect import flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Cancelled, Cancelling, Completed, Failed, Running

from jobbergate_flows.following import overwrite_state, tell_state
from tests.cluster.prefect_server import PrefectServer
from tests.cluster.slots import forget_lease, take_slot


@flow
def study() -> None: ...


def queued(reason: str) -> State[None]:
    return State(type=StateType.PENDING, name="Queued", message=reason)


async def running(client: PrefectClient) -> FlowRun:
    run = await client.create_flow_run(study, state=Running())
    return await client.read_flow_run(run.id)


async def now(client: PrefectClient, run: FlowRun) -> tuple[str, str | None]:
    state = (await client.read_flow_run(run.id)).state
    assert state is not None
    return state.name or "", state.message


async def test_a_running_run_is_queued_and_told_each_reason_once(prefect_server: PrefectServer) -> None:
    async with get_client() as client:
        run = await running(client)
        for reason in ("Priority", "Resources", "Resources", "Priority"):
            await tell_state(run.id, queued(reason))
        states = await client.read_flow_run_states(run.id)

    said = [state.message for state in sorted(states, key=lambda state: state.timestamp) if state.name == "Queued"]
    assert said == ["Priority", "Resources", "Priority"]


@pytest.mark.parametrize("end", [Completed(), Cancelling()], ids=["ended", "cancelling"])
async def test_a_run_that_does_not_go_on_is_left_alone(prefect_server: PrefectServer, end: State[None]) -> None:
    async with get_client() as client:
        run = await running(client)
        await client.set_flow_run_state(run.id, end)
        for state in (queued("Priority"), Running(message="on node1")):
            await tell_state(run.id, state)

        assert await now(client, run) == (end.name, None)


async def test_a_run_that_was_deleted_is_left_alone(prefect_server: PrefectServer) -> None:
    async with get_client() as client:
        run = await running(client)
        await client.delete_flow_run(run.id)
    await tell_state(run.id, queued("Priority"))


@pytest.mark.parametrize(
    "said",
    [[Cancelling(message="by alice")], [Cancelling(), Cancelled(message="by alice")], [Failed(message="by alice")]],
    ids=["cancelling", "cancelled", "failed"],
)
async def test_a_run_that_was_cancelled_or_ended_meanwhile_stays_so(
    prefect_server: PrefectServer, said: list[State[None]]
) -> None:
    async with get_client() as client:
        run = await running(client)
        for state in said:
            await client.set_flow_run_state(run.id, state)
        await overwrite_state(client, run, queued("Priority"))

        assert await now(client, run) == (said[-1].name, "by alice")


async def test_a_run_that_began_to_run_meanwhile_stays_so(prefect_server: PrefectServer) -> None:
    async with get_client() as client:
        run = await running(client)
        await tell_state(run.id, queued("Priority"))
        waiting = await client.read_flow_run(run.id)
        await client.set_flow_run_state(run.id, Running(message="by its engine"))
        await overwrite_state(client, waiting, queued("Resources"))

        assert await now(client, run) == ("Running", "by its engine")


async def test_an_earlier_life_of_the_run_is_not_its_end(prefect_server: PrefectServer) -> None:
    async with get_client() as client:
        run = await running(client)
        await client.set_flow_run_state(run.id, Failed())
        await client.set_flow_run_state(run.id, Running(), force=True)
        await overwrite_state(client, await client.read_flow_run(run.id), queued("Priority"))

        assert await now(client, run) == ("Queued", "Priority")


async def test_a_run_begins_whose_slot_the_server_has_forgotten(prefect_server: PrefectServer) -> None:
    async with get_client() as client:
        deployment = await client.create_deployment(await client.create_flow(study), "study", concurrency_limit=1)
        run = await take_slot(client, (await client.create_flow_run_from_deployment(deployment)).id)
        await forget_lease(client, run)
        await tell_state(run.id, queued("Priority"))
        await tell_state(run.id, Running(message="on node1"))

        assert await now(client, run) == ("Running", "on node1")
