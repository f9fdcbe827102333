"""A run's state set past the server's rules, while somebody else sets another."""

from __future__ import annotations

import pytest
from prefect import flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Cancelled, Cancelling, Crashed, Failed, Running

from jobbergate_flows.following import overwrite_state
from tests.cluster.prefect_server import PrefectServer

QUEUED = State(type=StateType.PENDING, name="Queued", message="Priority")


@flow
def study() -> None: ...


async def running(client: PrefectClient) -> FlowRun:
    run = await client.create_flow_run(study, state=Running())
    return await client.read_flow_run(run.id)


async def now(client: PrefectClient, run: FlowRun) -> tuple[str, str | None]:
    state = (await client.read_flow_run(run.id)).state
    assert state is not None
    return state.name or "", state.message


async def test_a_running_run_is_queued(prefect_server: PrefectServer) -> None:
    async with get_client() as client:
        run = await running(client)
        await overwrite_state(client, run, QUEUED)

        assert await now(client, run) == ("Queued", "Priority")


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
        await overwrite_state(client, run, QUEUED)

        assert await now(client, run) == (said[-1].name, "by alice")


async def test_an_end_overtakes_a_cancellation(prefect_server: PrefectServer) -> None:
    async with get_client() as client:
        run = await running(client)
        await client.set_flow_run_state(run.id, Cancelling())
        await overwrite_state(client, run, Crashed(message="its node is gone"))

        assert await now(client, run) == ("Crashed", "its node is gone")


async def test_an_earlier_life_of_the_run_is_not_its_end(prefect_server: PrefectServer) -> None:
    async with get_client() as client:
        run = await running(client)
        await client.set_flow_run_state(run.id, Failed())
        await client.set_flow_run_state(run.id, Running(), force=True)
        await overwrite_state(client, await client.read_flow_run(run.id), QUEUED)

        assert await now(client, run) == ("Queued", "Priority")
