"""A worker whose bridge was turned off: what its bridge has begun comes to its end."""

from __future__ import annotations

from prefect.client.orchestration import get_client
from prefect.states import Running

from agent_worker.jobbergate.submission import ensure_deployment
from jobbergate_flows.flows import CALL
from tests.agent_worker.conftest import Workshop
from tests.cluster.waiting import await_until


async def test_a_submissions_run_whose_job_goes_on_is_followed_to_its_end(workshop: Workshop) -> None:
    async with get_client() as client:
        deployment = await ensure_deployment(client, workshop.pool)
        run = await client.create_flow_run_from_deployment(deployment, parameters={"submission": 1})
        await client.set_flow_run_state(run.id, Running(), force=True)
        run = await client.read_flow_run(run.id)
    await workshop.submit(run.id, "true", call=CALL)
    await workshop.supervisor.hold(run, "submission", recovered=True)
    assert (await workshop.end(run.id)).state_name == "Completed"

    async def told() -> bool:
        return (await workshop.submission(run.id)).told

    await await_until(told, 30, "the job's end to be told")
