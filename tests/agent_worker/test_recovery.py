"""Which of a pool's unfinished runs a worker takes up."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Pending, Running

from agent_worker.configuration import FlowJobConfiguration
from agent_worker.recovery import LOST_AFTER, is_left_behind, recover_runs
from jobbergate_flows.slurm.ledger import SubmissionStatus
from jobbergate_flows.slurm.submission import SECRET_FILE
from tests.agent_worker.conftest import Workshop
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
