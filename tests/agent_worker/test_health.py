"""How well a worker is: what counts as wrong, and what it says of itself."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from agent_worker.health import (
    HANGING_SECONDS,
    HEALTHY,
    OVERDUE_SECONDS,
    UNHEALTHY,
    WorkerHealth,
    hanging,
    health_event,
    health_markdown,
)
from jobbergate_flows.slurm.cluster import Finding
from tests.cluster.events import await_events
from tests.cluster.prefect_server import PrefectServer
from tests.cluster.service import free_ports
from tests.cluster.waiting import await_until
from tests.cluster.worker import WorkerProcess

WELL = WorkerHealth(
    worker="hpc slurm",
    work_pool="slurm",
    cluster="hpc",
    since=datetime(2026, 3, 1, tzinfo=UTC),
    findings=(Finding("slurmctld", True, "answers"), Finding("accounting", True, "answers")),
    jobs={"Queued": 4, "Running": 2},
    queue={"long": 3, "debug": 1},
    runs={"application": 6},
)
NO_ACCOUNTING = replace(
    WELL,
    findings=(WELL.findings[0], Finding("accounting", False, "sacct: Connection refused", "start slurmdbd")),
    silence="sacct: Connection refused",
)
RESOURCE = {"prefect.resource.id": "prefect.worker.jobbergate-slurm.hpc-slurm"}
HANGING = "prefect.worker.jobbergate-slurm.hangs"


def test_a_worker_whose_cluster_answers_is_well() -> None:
    assert WELL.problems == ()
    assert WELL.summary == "Healthy: 6 runs, 6 jobs"


def test_what_does_not_answer_is_named_once() -> None:
    assert NO_ACCOUNTING.problems == ("accounting: sacct: Connection refused",)
    assert NO_ACCOUNTING.summary == "Unhealthy: accounting: sacct: Connection refused"


def test_slurm_may_answer_and_yet_give_no_word_of_jobs() -> None:
    assert replace(WELL, silence="timed out").problems == ("Slurm gives no word of jobs: timed out",)


def test_the_artifact_says_what_is_wrong_and_how_to_mend_it() -> None:
    text = health_markdown(NO_ACCOUNTING)

    assert "| accounting | **not well** | sacct: Connection refused; start slurmdbd |" in text
    assert "| Jobs followed | 4 Queued, 2 Running |" in text
    assert "| Waiting, by partition | 1 debug, 3 long |" in text
    assert "not yet: there was no job" in text


def test_the_event_is_about_the_worker() -> None:
    event = health_event(NO_ACCOUNTING, RESOURCE)

    assert event.event == UNHEALTHY
    assert event.resource.id == RESOURCE["prefect.resource.id"]
    assert event.payload["problems"] == ["accounting: sacct: Connection refused"]
    assert health_event(WELL, RESOURCE).event == HEALTHY


@pytest.mark.parametrize(
    ("beat_age", "overdue", "says"),
    [
        (HANGING_SECONDS - 1, OVERDUE_SECONDS - 1, None),
        (HANGING_SECONDS + 1, 0, "event loop of its runs has not answered for 61 s"),
        (0, OVERDUE_SECONDS + 1, "Slurm has not been asked about jobs for 601 s"),
    ],
)
def test_a_worker_that_does_not_go_on_should_be_started_again(
    beat_age: float, overdue: float, says: str | None
) -> None:
    found = hanging(beat_age, overdue)

    assert found is None if says is None else says in (found or "")


HANGING_WORKER = """
import signal, sys, threading
from pathlib import Path

from agent_worker import health
from agent_worker.supervisor import Supervisor

health.HANGING_SECONDS, health._BEAT_SECONDS = 1.0, 0.1
make = Supervisor.__init__


def note(supervisor, *arguments):
    make(supervisor, *arguments)

    def hang():
        while Path(sys.argv[0]).with_suffix(".hangs").exists():
            threading.Event().wait(0.1)

    signal.signal(signal.SIGUSR1, lambda *_: supervisor._loop.call_soon_threadsafe(hang))


Supervisor.__init__ = note
from prefect.cli import app

app()
"""


async def test_a_worker_tells_how_it_is_and_its_health_check_when_its_runs_hang(
    prefect_server: PrefectServer, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    environment = {
        "PREFECT_API_URL": prefect_server.api_url,
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_WORKER_WEBSERVER_PORT": str(port),
        "PREFECT_INTEGRATIONS_JOBBERGATE_FLOWS_CLUSTER": "local",
        "PREFECT_INTEGRATIONS_JOBBERGATE_FLOWS_LEDGER": str(tmp_path / "ledger.sqlite3"),
    }
    program = tmp_path / "worker.py"
    program.write_text(HANGING_WORKER)
    worker = WorkerProcess("hanging", tmp_path, environment)
    worker.command = (sys.executable, str(program), *worker.command[3:], "--with-healthcheck", "--name", "hangs")
    async with get_client() as client:
        pool = await client.create_work_pool(WorkPoolCreate(name="hanging", type="jobbergate-slurm"))
    worker.start()
    try:
        (said,) = await await_events("its first word", resource=HANGING, name="slurm.worker.*")
        await await_until(lambda: _answers(port, 200), 20, "the health check")
        program.with_suffix(".hangs").touch()
        assert worker.process is not None
        worker.process.send_signal(signal.SIGUSR1)
        await await_until(lambda: _answers(port, 503), 20, "the hanging to be seen")
        program.with_suffix(".hangs").unlink()
        await await_until(lambda: _answers(port, 200), 20, "the worker to go on")
    finally:
        worker.stop()

    # By this an automation knows that its silence is meant.
    assert len(await await_events("its last word", resource=HANGING, name="prefect.worker.stopped")) == 1
    assert said["event"] == HEALTHY
    assert [entry["prefect.resource.id"] for entry in said["related"]] == [f"prefect.work-pool.{pool.id}"]
    async with get_client() as client:
        (artifact,) = await client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["slurm-worker-hangs"]))
        )
    assert artifact.description == "Healthy: 0 runs, 0 jobs"
    assert "the event loop of its runs has not answered" in worker.log.read_text()


async def _answers(port: int, status: int) -> bool:
    async with httpx.AsyncClient() as client:
        try:
            return (await client.get(f"http://127.0.0.1:{port}/health", timeout=5)).status_code == status
        except httpx.TransportError:
            return False
