"""Which of a pool's unfinished runs a worker takes up."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Pending, Running

from agent_worker.recovery import LOST_AFTER, is_left_behind

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
