"""A run's state follows its job's, also past the server's rules; what somebody else says meanwhile is not lost."""

from __future__ import annotations

import pytest
from prefect import flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Completed, Failed, Paused, Pending, Running

from jobbergate_flows.following import overwrite_state, tell_state
from jobbergate_flows.slurm.jobs import JobStatus, Phase
from jobbergate_flows.states import state_for
from tests.cluster.prefect_server import PrefectServer
from tests.cluster.slots import from_queue, taken_slots


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
        assert (await client.read_flow_run(run.id)).run_count == 2


async def test_an_earlier_life_of_the_run_is_not_its_end(prefect_server: PrefectServer) -> None:
    async with get_client() as client:
        run = await running(client)
        await client.set_flow_run_state(run.id, Failed())
        await client.set_flow_run_state(run.id, Running(), force=True)
        await overwrite_state(client, await client.read_flow_run(run.id), queued("Priority"))

        assert await now(client, run) == ("Queued", "Priority")


async def test_that_its_job_runs_is_no_other_run_of_it(prefect_server: PrefectServer) -> None:
    async with get_client() as client:
        run = await running(client)
        for state in (Running(message="on node1"), queued("BeginTime"), Running(message="on node2")):
            await tell_state(run.id, state)

        assert await now(client, run) == ("Running", "on node2")
        assert (await client.read_flow_run(run.id)).run_count == 1


@pytest.mark.parametrize(
    ("current", "told"),
    [
        (Pending(name="Submitted"), ("Starting", "on node1")),
        (Running(), ("Running", "on node1")),
        (Running(name="JobSuspended"), ("Running", "on node1")),
    ],
    ids=["not begun", "begun", "suspended by Slurm before"],
)
async def test_an_engine_on_a_node_says_itself_that_it_runs(
    prefect_server: PrefectServer, current: State[None], told: tuple[str, str]
) -> None:
    async with get_client() as client:
        run = await client.create_flow_run(study, state=current)
        await tell_state(run.id, Running(message="on node1"), engine_on_node=True)

        assert await now(client, run) == told


def test_of_slurms_suspension_no_engine_is_told_that_waits_for_prefects() -> None:
    status = JobStatus(Phase.RUNNING, "Suspended", "Suspended on node1", "SUSPENDED", False)

    assert state_for(status).name == "JobSuspended"


async def test_a_flow_keeps_the_retries_of_its_own(prefect_server: PrefectServer) -> None:
    async with get_client() as client:
        run = await client.create_flow_run(study.with_options(retries=1))
        said = []
        attempts: list[State[None]] = [Running(), Failed(), Running(), Failed()]
        for attempt in attempts:
            await client.set_flow_run_state(run.id, attempt)
            await tell_state(run.id, Running(message="on node1"), engine_on_node=True)
            said.append(await now(client, run))

    assert [name for name, _ in said] == ["Running", "AwaitingRetry", "Running", "Failed"]
    assert [message for _, message in said if message] == ["on node1", "on node1"]


@pytest.mark.parametrize(
    "said",
    [
        [Paused(message="by its engine")],
        [Failed(), AwaitingRetry(message="by alice")],
        [Failed(), AwaitingRetry(), Pending(message="by its worker")],
    ],
    ids=["paused", "retried", "taken from its queue"],
)
async def test_a_run_that_was_paused_or_retried_meanwhile_stays_so(
    prefect_server: PrefectServer, said: list[State[None]]
) -> None:
    async with get_client() as client:
        deployment = await client.create_deployment(await client.create_flow(study), "study")
        run = await client.create_flow_run_from_deployment(deployment)
        await client.set_flow_run_state(run.id, Running(), force=True)
        run = await client.read_flow_run(run.id)
        for state in said:
            await client.set_flow_run_state(run.id, state, force=state.is_paused())
        await overwrite_state(client, run, Running(message="on node1"))

        assert await now(client, run) == (said[-1].name, said[-1].message)


async def test_a_run_whose_engine_waits_for_its_own_retry_goes_on(prefect_server: PrefectServer) -> None:
    async with get_client() as client:
        run = await client.create_flow_run(study.with_options(retries=1), state=Running())
        run = await client.read_flow_run(run.id)
        await client.set_flow_run_state(run.id, Failed())
        assert await now(client, run) == ("AwaitingRetry", None)
        await overwrite_state(client, run, Running(message="on node1"))

        assert await now(client, run) == ("Running", "on node1")


@flow(persist_result=True)
def answer() -> int:
    return 42


async def test_a_run_that_completed_meanwhile_keeps_its_result(prefect_server: PrefectServer) -> None:
    ended: State[int] = answer(return_state=True)
    async with get_client() as client:
        assert ended.state_details.flow_run_id is not None
        run = await client.read_flow_run(ended.state_details.flow_run_id)
        began = next(state for state in await client.read_flow_run_states(run.id) if state.is_running())
        await overwrite_state(client, run.model_copy(update={"state": began}), Running(message="on node1"))

        state = (await client.read_flow_run(run.id)).state
        assert state is not None
        assert state.name == "Completed"
        assert await state.result() == 42


async def test_a_run_that_ended_meanwhile_gives_its_slot_back_once(prefect_server: PrefectServer) -> None:
    async with get_client() as client:
        deployment = await client.create_deployment(await client.create_flow(study), "study", concurrency_limit=2)
        ids = [(await client.create_flow_run_from_deployment(deployment)).id for _ in range(2)]
        run, _other = [await from_queue(client, run_id) for run_id in ids]
        await client.set_flow_run_state(run.id, Completed())
        await overwrite_state(client, run, queued("Priority"))

        assert await now(client, run) == ("Completed", None)
        assert await taken_slots(client, deployment) == 1
