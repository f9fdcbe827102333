"""What the worker takes from its pool, and what its pool asks for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import jsonschema
import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.workers.base import BaseWorker

from agent_worker.slots import lease_of
from agent_worker.worker import JobbergateSlurmWorker
from jobbergate_flows.slurm.options import SlurmResources
from tests.agent_worker.conftest import Workshop
from tests.cluster.site import script_application
from tests.cluster.slots import taken_slots, when_given_up


@pytest.mark.parametrize(("limit", "asking", "taken"), [(3, 0, 1), (3, 1, 2), (2, 0, 0), (None, 0, 3)])
async def test_runs_that_wait_for_consent_take_no_place(
    limit: int | None, asking: int, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def three(_worker: object) -> list[str]:
        return ["first", "second", "third"]

    monkeypatch.setattr(BaseWorker, "_get_scheduled_flow_runs", three)
    held = {uuid4(): None for _ in range(2)}
    worker = JobbergateSlurmWorker("pool", limit=limit)
    stub: Any = SimpleNamespace(held=held, admission=SimpleNamespace(asking=frozenset(list(held)[:asking])))
    worker.supervisor = stub

    assert len(await worker._get_scheduled_flow_runs()) == taken


async def test_a_run_that_comes_gets_no_slot_of_one_that_comes_just_now(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed = await workshop.deploy(script_application(tmp_path, "limited", "#!/bin/sh\n"), concurrency_limit=1)
    worker = JobbergateSlurmWorker(workshop.pool)
    worker.supervisor = workshop.supervisor
    coming: list[asyncio.Task[bool]] = []

    async def another_one_comes(client: PrefectClient) -> None:
        if len(coming) == 1:
            coming.append(asyncio.create_task(worker._propose_pending_state(second)))
            # So long it would have had the time to get it.
            for _ in range(60):
                await client.hello()

    when_given_up(monkeypatch, another_one_comes)
    async with get_client() as client:
        worker._client = client
        first, second = [await client.create_flow_run_from_deployment(deployed.id) for _ in range(2)]
        coming.append(asyncio.create_task(worker._propose_pending_state(first)))

        assert await coming[0]
        assert not await coming[1]
        assert [(await client.read_flow_run(run.id)).state_name for run in (first, second)] == [
            "Pending",
            "AwaitingConcurrencySlot",
        ]
        assert lease_of(await client.read_flow_run(first.id)) is None
        assert await taken_slots(client, deployed.id) == 1


def test_every_field_of_a_pools_form_says_what_it_is() -> None:
    variables = JobbergateSlurmWorker.get_default_base_job_template()["variables"]

    for form in (variables, *variables["definitions"].values()):
        for name, field in form["properties"].items():
            assert field.get("title"), name
            assert field.get("description"), name


def test_a_pool_takes_every_resource_but_what_would_start_a_flow_twice() -> None:
    template = JobbergateSlurmWorker.get_default_base_job_template()
    twice = {"array", "requeue"}

    for fields in (template["variables"]["properties"], template["job_configuration"]):
        assert set(SlurmResources.model_fields) - twice <= set(fields)
        assert not twice & set(fields)


@pytest.mark.parametrize(
    ("field", "good", "wrong"),
    [
        ("tasks", 1_000_000, 1_000_001),
        ("tasks_per_node", 1, 0),
        ("cpus_per_task", 4, "many"),
        ("time_limit", "1-00:00:00", "soon"),
        ("nodes", "2-4", "0"),
        ("memory", "4G", "4 G"),
        ("memory_per_cpu", "512M", "-1"),
        ("gpus", "a100:2", "a100:-1"),
        ("partition", "debug", "de bug"),
        ("constraint", "skylake&ssd", "$(id)"),
        ("mail_user", "me@example.org", "me@example.org\n#SBATCH --uid=0"),
        ("start_within", 1, 0),
        ("retries", {"attempts": 20}, {"attempts": 21}),
    ],
)
def test_a_pools_form_refuses_what_slurm_cannot_be_asked_for(field: str, good: object, wrong: object) -> None:
    schema = JobbergateSlurmWorker.get_default_base_job_template()["variables"]

    jsonschema.validate({field: good}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({field: wrong}, schema)
