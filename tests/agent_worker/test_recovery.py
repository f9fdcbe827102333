"""Which of a pool's unfinished runs a worker takes up."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun, FlowRunPolicy, State
from prefect.states import AwaitingRetry, Cancelling, Completed, Crashed, Failed, Pending, Running

from agent_worker.configuration import FlowJobConfiguration, SlurmJobConfiguration
from agent_worker.recovery import is_left_behind, recover_runs, worker_claim
from agent_worker.runs import LOST_AFTER, hand_back
from jobbergate_flows.slurm.ledger import Ledger, Submission, SubmissionStatus
from jobbergate_flows.slurm.retries import RetryPolicy
from jobbergate_flows.slurm.submission import SECRET_FILE
from tests.agent_worker.conftest import Workshop
from tests.cluster.site import message, script_application
from tests.cluster.waiting import await_until
from tests.slurm.fakes import raising

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
PID = "cluster:run"


def run(state: State, pid: str | None = PID, owner: str = "me", age: timedelta = timedelta(0)) -> FlowRun:
    state.timestamp = NOW - age
    return FlowRun(flow_id=uuid4(), state=state, infrastructure_pid=pid, labels={"prefect.worker.name": owner})


@pytest.mark.parametrize(
    ("left_behind", "why", "flow_run"),
    [
        (True, "mine, Running", run(Running())),
        (True, "mine, Queued", run(Pending())),
        (True, "of a worker that is gone", run(Running(), owner="gone")),
        (False, "of a worker that lives", run(Running(), owner="other")),
        (False, "on another cluster", run(Running(), pid="elsewhere:run")),
        (False, "just about to be handed over", run(Pending(), pid=None)),
        (True, "lost on its way to me", run(Pending(), pid=None, age=LOST_AFTER * 2)),
        (False, "Running elsewhere, without a pid", run(Running(), pid=None, age=LOST_AFTER * 2)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_run_is_taken_up_when_nobody_else_has_it(left_behind: bool, why: str, flow_run: FlowRun) -> None:
    decided = is_left_behind(flow_run, pid=PID, worker_name="me", online={"me", "other"}, now=NOW)
    assert decided is left_behind, why


async def configure(_flow_run: FlowRun) -> FlowJobConfiguration:
    raise AssertionError("nothing is to be submitted")


async def recover(workshop: Workshop) -> None:
    workshop.background(recover_runs(workshop.supervisor, workshop.pool, "me", configure, 0.1))


@pytest.mark.parametrize("since", [Completed(), Cancelling(), AwaitingRetry()], ids=lambda state: str(state.name))
async def test_what_went_on_without_us_since_it_was_found_is_not_run_again(
    workshop: Workshop, tmp_path: Path, since: State
) -> None:
    found = await workshop.launch(
        await workshop.deploy(script_application(tmp_path, "study", "#!/bin/sh\n")), Running()
    )
    async with get_client() as client:
        await client.set_flow_run_state(found.id, since, force=True)

    await workshop.supervisor.hold(found, "application", recovered=True)

    async def let_go() -> bool:
        return found.id not in workshop.supervisor.held

    await await_until(let_go, 30, "the end of its life here")
    async with get_client() as client:
        assert (await client.read_flow_run(found.id)).state_name == since.name
    assert workshop.ledger.of_flow_run(str(found.id)) == []


def secrets(folder: Path) -> list[Path]:
    return list(folder.rglob(SECRET_FILE))


async def test_of_flows_that_were_deleted_nothing_stays_open_and_no_secret(workshop: Workshop) -> None:
    submitted, begun, foreign = uuid4(), uuid4(), uuid4()
    await workshop.submit(submitted, "true", call="flow", kind="flow", secret="s3cret")
    # A flow of the same account's that tells another server of itself.
    await workshop.submit(foreign, "true")
    workshop.cluster.before_submit = raising(RuntimeError("died"))
    with pytest.raises(RuntimeError, match="died"):
        await workshop.submit(begun, "true", call="flow", kind="flow", secret="s3cret")
    assert len(secrets(workshop.folder)) == 2

    await workshop.supervisor.do(recover(workshop))

    async def closed() -> bool:
        rows = [await workshop.submission(run_id) for run_id in (submitted, begun)]
        return rows[0].told and rows[1].status is SubmissionStatus.CANCELLED

    await await_until(closed, 30, "the end of what was deleted")
    assert secrets(workshop.folder) == []
    assert not (await workshop.submission(foreign)).told
    assert foreign not in workshop.supervisor.held


TWICE = RetryPolicy(attempts=2, on=frozenset({"failure"}))
KILLED = "kill -9 $$"


async def killed_flow(workshop: Workshop, folder: Path, said: State) -> FlowRun:
    """A flow whose job was killed while no worker lived, and whose engine could still say that."""
    run = await workshop.launch(await workshop.deploy(script_application(folder, "flow", "#!/bin/sh\n")), said)
    await workshop.submit(run.id, KILLED, call="flow", kind="flow", retries=TWICE)
    return run


async def back_in_the_queue(workshop: Workshop, run: FlowRun) -> Submission:
    """The one submission of a run that waits for its next attempt, once nobody holds it any more."""

    async def waits() -> str:
        async with get_client() as client:
            now = await client.read_flow_run(run.id)
        waiting = now.state_name == "AwaitingRetry" and run.id not in workshop.supervisor.held
        return message(now) if waiting else ""

    assert "attempt 2 of 2" in await await_until(waits, 30, "the run's next attempt")
    return await workshop.submission(run.id)


@pytest.mark.parametrize("said", [Crashed(), Failed()], ids=lambda state: str(state.name))
async def test_a_flow_whose_engine_told_its_end_without_a_worker_runs_again(
    workshop: Workshop, tmp_path: Path, said: State
) -> None:
    run = await killed_flow(workshop, tmp_path, said)

    await workshop.supervisor.do(recover(workshop))

    row = await back_in_the_queue(workshop, run)
    assert (row.retried, row.told) == (True, True)


async def test_a_flow_whose_job_dies_without_a_worker_while_it_waits_for_its_own_retry_runs_again(
    workshop: Workshop, tmp_path: Path
) -> None:
    run = await killed_flow(workshop, tmp_path, Running())
    async with get_client() as client:
        await client.update_flow_run(run.id, empirical_policy=FlowRunPolicy(retries=1, retry_delay=300))
        await client.set_flow_run_state(run.id, Failed())
        waiting = await client.read_flow_run(run.id)
    assert (waiting.state_name, waiting.empirical_policy.retry_type) == ("AwaitingRetry", "in_process")

    await workshop.supervisor.do(recover(workshop))

    assert (await back_in_the_queue(workshop, run)).told
    async with get_client() as client:
        # Otherwise the server gives it to no worker.
        assert (await client.read_flow_run(run.id)).empirical_policy.retry_type != "in_process"


async def test_a_flow_that_could_not_be_handed_back_is_handed_back_later(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await killed_flow(workshop, tmp_path, Crashed())
    fail = raising(RuntimeError("died"))

    async def dying_first(run_id: UUID, state: State) -> None:
        await fail()
        await hand_back(run_id, state)

    monkeypatch.setattr("agent_worker.supervisor.hand_back", dying_first)

    await workshop.supervisor.hold(run, "ended")
    await workshop.supervisor.do(recover(workshop))

    assert (await back_in_the_queue(workshop, run)).told


async def test_a_flow_that_was_handed_back_by_a_worker_that_died_then_makes_its_next_attempt(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await killed_flow(workshop, tmp_path, Crashed())

    async def die(_run_id: str, _kind: str) -> None:
        raise RuntimeError("died")

    with monkeypatch.context() as dying:
        dying.setattr(workshop.session, "mark_run_told", die)
        await workshop.supervisor.hold(run, "ended")
        row = await back_in_the_queue(workshop, run)
    assert (row.retried, row.told) == (True, False)

    async with get_client() as client:
        await client.set_flow_run_state(run.id, Pending(), force=True)
    configuration = SlurmJobConfiguration(command="true", directory=str(workshop.folder))
    await workshop.supervisor.hold(run, "flow", configuration)

    await workshop.end(run.id)
    rows = workshop.ledger.of_flow_run(str(run.id))
    assert [row.attempt for row in rows] == [0, 1]


async def seen_offline(workshop: Workshop, name: str) -> None:
    """A worker of which the server has not heard for too long."""
    async with get_client() as client:
        await client.send_worker_heartbeat(workshop.pool, name, heartbeat_interval_seconds=1, get_worker_id=False)

        async def offline() -> bool:
            workers = await client.read_workers_for_work_pool(workshop.pool)
            return [worker.status for worker in workers if worker.name == name] == ["OFFLINE"]

        await await_until(offline, 90, "the worker to be offline")


@pytest.mark.parametrize("owner", ["another worker", "one that cannot tell that it lives", "another pool"])
async def test_a_flow_that_another_worker_may_hold_is_left_to_it(
    workshop: Workshop, tmp_path: Path, ledger_of_another: Ledger, owner: str
) -> None:
    theirs, ours = [await killed_flow(workshop, tmp_path, Crashed()) for _ in range(2)]
    async with get_client() as client:
        if owner != "another pool":
            await client.update_flow_run_labels(theirs.id, {"prefect.worker.name": "other"})
        if owner == "another worker":
            await client.send_worker_heartbeat(workshop.pool, "other", get_worker_id=False)
        elif owner == "one that cannot tell that it lives":
            assert ledger_of_another.claim(worker_claim("other"))
            await seen_offline(workshop, "other")
        else:
            workshop.pool = f"{workshop.pool}-2"
            await client.create_work_pool(WorkPoolCreate(name=workshop.pool, type="jobbergate-slurm"))
            ours = await killed_flow(workshop, tmp_path, Crashed())

    await workshop.supervisor.do(recover(workshop))

    await back_in_the_queue(workshop, ours)
    assert theirs.id not in workshop.supervisor.held
    row = await workshop.submission(theirs.id)
    assert (row.retried, row.told) == (False, False)


async def test_the_runs_of_a_worker_that_is_gone_are_taken_up(
    workshop: Workshop, tmp_path: Path, ledger_of_another: Ledger
) -> None:
    run = await killed_flow(workshop, tmp_path, Crashed())
    assert ledger_of_another.claim(worker_claim("other"))
    async with get_client() as client:
        await client.update_flow_run_labels(run.id, {"prefect.worker.name": "other"})
    await seen_offline(workshop, "other")
    ledger_of_another.close()

    await workshop.supervisor.do(recover(workshop))

    await back_in_the_queue(workshop, run)


@pytest.fixture
def ledger_of_another(workshop: Workshop) -> Iterator[Ledger]:
    """The same ledger, as another worker has it."""
    ledger = Ledger.open(workshop.ledger.engine.url.database)
    yield ledger
    ledger.close()
