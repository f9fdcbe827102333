"""How a flow's run is settled with the end of its Slurm job."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePath
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, FlowRunPolicy, State
from prefect.states import AwaitingRetry, Cancelling, Completed, Crashed, Failed, Paused, Pending, Running, Suspended

from agent_worker.configuration import SlurmJobConfiguration
from agent_worker.flow_jobs import begun_anew, settled
from jobbergate_flows.slurm import patience
from jobbergate_flows.slurm.accounts import DirectoryDown
from jobbergate_flows.slurm.errors import FileRefused
from jobbergate_flows.slurm.jobs import ExitCode, JobStatus, Phase, SlurmJob
from tests.agent_worker.conftest import Workshop
from tests.cluster.site import message, script_application
from tests.cluster.waiting import await_until

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


def run_in(state: State) -> FlowRun:
    return FlowRun(flow_id=uuid4(), state=state)


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
        (Suspended(), OK, None),
        (Paused(), TIMED_OUT, "TimedOut"),
    ],
)
def test_slurms_named_end_wins_over_what_a_dying_engine_said(
    current: State, status: JobStatus, result: str | None
) -> None:
    state = settled(run_in(current), status, JOB)
    assert (state.name if state else None) == result


@pytest.mark.parametrize(("status", "result"), [(OK, "Crashed"), (TIMED_OUT, "TimedOut"), (CANCELLED, "Cancelled")])
def test_an_engine_that_waits_for_its_own_retry_dies_with_its_job(status: JobStatus, result: str) -> None:
    run = run_in(AwaitingRetry())
    run.empirical_policy.retry_type = "in_process"
    state = settled(run, status, JOB)
    assert state is not None
    assert state.name == result


def refusing_to_remove(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(_directory: str, _paths: Sequence[str], **_digests: object) -> None:
        raise FileRefused("this is a link")

    monkeypatch.setattr(workshop.cluster, "remove_files", refuse)


async def was_told(workshop: Workshop, flow_run: FlowRun) -> None:
    async def told() -> bool:
        return (await workshop.submission(flow_run.id)).told

    await await_until(told, 30, "the ledger's note")


async def test_a_flows_job_waits_for_the_user_directory_and_its_end_is_told_whatever_becomes_of_its_secrets(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow_run = await workshop.launch(await workshop.deploy(script_application(tmp_path, "flow", "#!/bin/sh\n")))
    refusing_to_remove(workshop, monkeypatch)
    monkeypatch.setattr(patience, "RETRY_SECONDS", (0.01,))
    asked: list[str] = []

    async def expanded(directory: str | PurePath) -> str:
        asked.append(str(directory))
        if len(asked) < 3:
            raise DirectoryDown("the user directory does not answer")
        return str(directory)

    monkeypatch.setattr(workshop.session, "expanded", expanded)
    configuration = SlurmJobConfiguration(command="true", env={"WORD": "s3cret"}, directory=str(workshop.folder))

    await workshop.supervisor.hold(flow_run, "flow", configuration)

    ended = await workshop.end(flow_run.id)
    assert "the flow did not report its end" in message(ended)
    assert len(asked) == 3
    await was_told(workshop, flow_run)


async def test_a_flows_job_is_followed_whatever_its_configuration_is_by_now(workshop: Workshop, tmp_path: Path) -> None:
    flow_run = await workshop.launch(await workshop.deploy(script_application(tmp_path, "flow", "#!/bin/sh\n")))
    job = await workshop.submit(flow_run.id, "exit 3", call="flow", kind="flow", secret="s3cret")

    await workshop.supervisor.hold(flow_run, "flow", SlurmJobConfiguration(env={"no name": "x"}, directory="/nowhere"))

    ended = await workshop.end(flow_run.id)
    assert "exit code 3" in message(ended)
    await was_told(workshop, flow_run)
    assert (await workshop.submission(flow_run.id)).job_id == job.job_id


async def test_a_cancelled_run_ends_whatever_becomes_of_its_secrets(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed = await workshop.deploy(script_application(tmp_path, "flow", "#!/bin/sh\n"))
    flow_run = await workshop.launch(deployed, Cancelling())
    await workshop.submit(flow_run.id, "exec sleep 300", call="flow", kind="flow", secret="s3cret")
    refusing_to_remove(workshop, monkeypatch)

    await workshop.supervisor.hold(flow_run, "cancelled")

    assert (await workshop.end(flow_run.id)).state_name == "Cancelled"
    await was_told(workshop, flow_run)


async def begins(flow_run: FlowRun) -> None:
    """Let its engine begin, and wait until the worker has said where: it says no more of that then."""

    async def said() -> bool:
        now = await client.read_flow_run(flow_run.id)
        return "Slurm job" in message(now) and now.state_name == state

    async with get_client() as client:
        state = "Starting"
        await await_until(said, 30, "the worker to say that the job runs")
        await client.set_flow_run_state(flow_run.id, Running())
        state = "Running"
        await await_until(said, 30, "the worker to say where the flow runs")


async def test_a_run_whose_engine_dies_while_it_waits_for_its_own_retry_ends_as_its_job(
    workshop: Workshop, tmp_path: Path
) -> None:
    flow_run = await workshop.launch(await workshop.deploy(script_application(tmp_path, "flow", "#!/bin/sh\n")))
    dies = tmp_path / "dies"
    command = f"sh -c 'until [ -e {dies} ]; do sleep 0.1; done; kill -9 $$'"
    await workshop.supervisor.hold(
        flow_run, "flow", SlurmJobConfiguration(command=command, directory=str(workshop.folder))
    )
    async with get_client() as client:
        await client.update_flow_run(flow_run.id, empirical_policy=FlowRunPolicy(retries=1, retry_delay=300))
        await begins(flow_run)
        state: State | None = (await client.set_flow_run_state(flow_run.id, Failed())).state
        assert state is not None
        assert state.name == "AwaitingRetry"
    dies.touch()

    assert "signal 9" in message(await workshop.end(flow_run.id))
    await was_told(workshop, flow_run)
    # Otherwise the server gives it to no worker when it is retried.
    assert (await workshop.end(flow_run.id)).empirical_policy.retry_type is None


@pytest.mark.parametrize("polled", [False, True], ids=["back in its queue", "come from its queue"])
async def test_a_run_that_is_retried_before_slurm_told_its_end_gets_another_job(
    workshop: Workshop, tmp_path: Path, polled: bool
) -> None:
    flow_run = await workshop.launch(await workshop.deploy(script_application(tmp_path, "flow", "#!/bin/sh\n")))
    first_ends = tmp_path / "first-ends"
    command = f"sh -c 'until [ -e {first_ends} ]; do sleep 0.1; done; exit 3'"
    configuration = SlurmJobConfiguration(command=command, directory=str(workshop.folder))
    await workshop.supervisor.hold(flow_run, "flow", configuration)

    async def let_go() -> bool:
        return flow_run.id not in workshop.supervisor.held

    await begins(flow_run)
    said: list[State] = [Failed(), AwaitingRetry()]
    async with get_client() as client:
        for state in [*said, Pending()] if polled else said:
            await client.set_flow_run_state(flow_run.id, state)
        first_ends.touch()
        await await_until(let_go, 60, "the end of its first life")
        assert (await client.read_flow_run(flow_run.id)).state_name == ("Pending" if polled else "AwaitingRetry")
        await was_told(workshop, flow_run)
        if not polled:
            await client.set_flow_run_state(flow_run.id, Pending())
        again = await client.read_flow_run(flow_run.id)
    await workshop.supervisor.hold(again, "flow", configuration, recovered=polled)

    assert "exit code 3" in message(await workshop.end(flow_run.id))
    assert [row.attempt for row in workshop.ledger.of_flow_run(str(flow_run.id))] == [0, 1]


@pytest.mark.parametrize(
    ("before", "since", "anew"),
    [
        (Pending(), [Running(), Failed(), AwaitingRetry()], True),
        (Pending(), [Running(), Failed(), AwaitingRetry(), Pending()], True),
        (Failed(), [AwaitingRetry(), Pending()], True),
        (Pending(), [Running(), Failed()], False),
        (Pending(), [Running(), AwaitingRetry(), Running(), AwaitingRetry()], False),
        (Pending(), [Running(), Crashed(), Running(), Pending()], False),
        (AwaitingRetry(), [Pending(), Running(), Pending()], False),
    ],
    ids=lambda value: ", ".join(state.name for state in value) if isinstance(value, list) else str(value),
)
def test_who_puts_an_ended_run_into_its_queue_begins_it_anew(before: State, since: list[State], anew: bool) -> None:
    states = [before, *since]
    for minute, state in enumerate(states):
        state.timestamp = datetime(2026, 1, 1, 12, minute, tzinfo=UTC)

    assert begun_anew(reversed(states), before) is anew
