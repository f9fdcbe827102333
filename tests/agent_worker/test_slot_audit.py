"""Counts of concurrency slots that went wrong are mended, and right ones left alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
from prefect.client.schemas.objects import FlowRunPolicy
from prefect.states import Completed, Failed, Running

from agent_worker.slot_audit import SlotAudit
from jobbergate_flows.slots import give_slots_back, limit_of, take_slot
from jobbergate_flows.slurm.ledger import Ledger
from tests.cluster.prefect_server import PrefectServer
from tests.cluster.slots import from_queue, taken_slots

LIMIT = 3


@flow
def study() -> None: ...


@pytest.fixture
async def client(prefect_server: PrefectServer) -> AsyncIterator[PrefectClient]:
    async with get_client() as made:
        yield made


@pytest.fixture
async def pool(client: PrefectClient) -> str:
    name = f"audited-{uuid4().hex[:8]}"
    await client.create_work_pool(WorkPoolCreate(name=name, type="jobbergate-slurm"))
    return name


@pytest.fixture
async def deployment(client: PrefectClient, pool: str) -> UUID:
    flow_id = await client.create_flow(study)
    return await client.create_deployment(flow_id, pool, concurrency_limit=LIMIT, work_pool_name=pool)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.open(tmp_path / "ledger.sqlite3")


@pytest.fixture
def audit(deployment: UUID, pool: str) -> SlotAudit:
    made = SlotAudit(pool)
    made.note(deployment)
    return made


async def begun(client: PrefectClient, deployment: UUID) -> UUID:
    """A run that has begun, with its slot."""
    run = await from_queue(client, (await client.create_flow_run_from_deployment(deployment)).id)
    await client.set_flow_run_state(run.id, Running())
    return run.id


async def give_back(client: PrefectClient, deployment: UUID) -> None:
    limit = await limit_of(client, deployment)
    assert limit is not None
    await give_slots_back(client, limit, 1)


async def look_twice(audit: SlotAudit, ledger: Ledger) -> None:
    """As long as it takes to mend a count."""
    for _ in range(2):
        await audit.look(ledger)


@pytest.mark.parametrize("too_many", [1, 0, -1], ids=["one too many", "right", "one too few"])
async def test_a_count_that_stays_wrong_is_mended(
    client: PrefectClient, deployment: UUID, ledger: Ledger, audit: SlotAudit, too_many: int
) -> None:
    await begun(client, deployment)
    if too_many > 0:
        assert await take_slot(client, deployment)
    elif too_many < 0:
        await give_back(client, deployment)
    counts = []
    for _ in range(3):
        await audit.look(ledger)
        counts.append(await taken_slots(client, deployment))

    # In the first look it may be a run that just begins or ends.
    assert counts == [1 + too_many, 1, 1]


async def test_a_count_that_changes_is_left_alone(
    client: PrefectClient, deployment: UUID, ledger: Ledger, audit: SlotAudit
) -> None:
    assert await take_slot(client, deployment)
    await audit.look(ledger)
    assert await take_slot(client, deployment)
    await audit.look(ledger)

    assert await taken_slots(client, deployment) == 2


async def test_an_engine_that_waits_for_its_own_retry_has_its_slot(
    client: PrefectClient, deployment: UUID, ledger: Ledger, audit: SlotAudit
) -> None:
    run_id = await begun(client, deployment)
    await client.update_flow_run(run_id, empirical_policy=FlowRunPolicy(retries=1, retry_delay=300))
    await client.set_flow_run_state(run_id, Failed())
    assert (await client.read_flow_run(run_id)).state_name == "AwaitingRetry"
    await look_twice(audit, ledger)

    assert await taken_slots(client, deployment) == 1
    await client.set_flow_run_state(run_id, Completed(), force=True)
    await look_twice(audit, ledger)

    assert await taken_slots(client, deployment) == 0


async def test_one_worker_at_a_time_mends_a_count(
    client: PrefectClient, deployment: UUID, ledger: Ledger, audit: SlotAudit, tmp_path: Path
) -> None:
    assert await take_slot(client, deployment)
    await audit.look(ledger)
    another = Ledger.open(tmp_path / "ledger.sqlite3")
    assert another.claim(f"slots-{deployment}")
    await audit.look(ledger)

    assert await taken_slots(client, deployment) == 1


async def test_more_runs_than_the_limit_are_no_error(
    client: PrefectClient, deployment: UUID, ledger: Ledger, audit: SlotAudit
) -> None:
    runs = [(await client.create_flow_run_from_deployment(deployment)).id for _ in range(LIMIT + 1)]
    for run_id in runs:
        await client.set_flow_run_state(run_id, Running(), force=True)
    for _ in range(3):
        await audit.look(ledger)

    assert await taken_slots(client, deployment) == LIMIT


async def test_a_deployment_without_a_limit_has_no_count(
    client: PrefectClient, ledger: Ledger, audit: SlotAudit, pool: str
) -> None:
    audit.note(await client.create_deployment(await client.create_flow(study), f"{pool} unlimited"))
    await audit.look(ledger)


async def test_what_another_pools_run_has_lost_is_not_taken_for_it(
    client: PrefectClient, deployment: UUID, ledger: Ledger
) -> None:
    await begun(client, deployment)
    await give_back(client, deployment)
    audit = SlotAudit("another pool")
    audit.note(deployment)
    await look_twice(audit, ledger)

    assert await taken_slots(client, deployment) == 0


async def test_a_limit_that_several_share_is_left_alone(
    client: PrefectClient, deployment: UUID, ledger: Ledger, audit: SlotAudit, pool: str
) -> None:
    shared = await client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=pool, limit=LIMIT))
    await client.request(
        "PATCH",
        "/deployments/{id}",
        path_params={"id": deployment},
        json={"global_concurrency_limit_id": str(shared)},
    )
    assert await take_slot(client, deployment)
    await look_twice(audit, ledger)

    assert await taken_slots(client, deployment) == 1
