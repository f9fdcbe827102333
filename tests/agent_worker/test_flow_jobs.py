"""How a flow's run is settled with the end of its Slurm job."""

from datetime import UTC, datetime

import pytest
from prefect.client.schemas.objects import State
from prefect.states import AwaitingRetry, Cancelling, Completed, Crashed, Failed, Running

from agent_worker.flow_jobs import settled
from jobbergate_flows.slurm.jobs import ExitCode, JobStatus, Phase, SlurmJob

JOB = SlurmJob(
    cluster="c", job_id="7", key="k", name="n", user="u", directory="/d", standard_output=None,
    standard_error=None, submitted_at=datetime(2026, 1, 1, tzinfo=UTC),
)  # fmt: skip


def ended(phase: Phase, name: str, code: int = 0, signal: int = 0) -> JobStatus:
    return JobStatus(phase, name, f"{name}: said", name.upper(), True, exit_code=ExitCode(code, signal))


OK = ended(Phase.COMPLETED, "Completed")
FAILED = ended(Phase.FAILED, "Failed", 1)
KILLED = ended(Phase.FAILED, "Failed", 0, 9)
TIMED_OUT = ended(Phase.FAILED, "TimedOut")
CANCELLED = ended(Phase.CANCELLED, "Cancelled")
NODE_FAIL = ended(Phase.CRASHED, "NodeFail")


@pytest.mark.parametrize(
    ("current", "status", "result"),
    [
        (Completed(), OK, None),
        (Failed(), FAILED, None),
        (Completed(), TIMED_OUT, None),
        (Crashed(), TIMED_OUT, "TimedOut"),
        (Crashed(), CANCELLED, "Cancelled"),
        (Running(), KILLED, "Failed"),
        (Running(), TIMED_OUT, "TimedOut"),
        (Running(), NODE_FAIL, "NodeFail"),
        (Running(), CANCELLED, "Cancelled"),
        (Running(), OK, "Crashed"),
        (Cancelling(), FAILED, "Cancelled"),
        (AwaitingRetry(), OK, None),
    ],
)
def test_slurms_named_end_wins_over_what_a_dying_engine_said(
    current: State, status: JobStatus, result: str | None
) -> None:
    state = settled(current, status, JOB)
    assert (state.name if state else None) == result
