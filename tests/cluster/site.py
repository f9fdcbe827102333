"""A whole site for tests: real Slurm, a real Prefect server, a work pool, a worker, and what a user does with them."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, Log, State, TaskRun
from prefect.client.schemas.sorting import LogSort
from prefect.exceptions import ObjectAlreadyExists
from prefect.states import AwaitingRetry, Cancelling

from jobbergate_flows.applications import Application
from jobbergate_flows.deployments import DeployedApplication, adeploy_application
from jobbergate_flows.slurm.ledger import Ledger, Submission, SubmissionStatus
from tests.cluster.prefect_server import PrefectServer
from tests.cluster.slurm import SlurmCluster
from tests.cluster.waiting import await_until
from tests.cluster.worker import WorkerProcess

# Where Prefect's server has SQLite, it now and then answers nobody for a minute.
END_SECONDS = 150
API_KEY = "the-workers-own-key"

_PAGE = re.compile(r"^.*?-(?=job-script|job-submission|job-summary|results|live|progress|efficiency|plots)")


@dataclass
class Site:
    slurm: SlurmCluster
    folder: Path
    pool: str
    worker: WorkerProcess
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def ledger_path(self) -> Path:
        return self.folder / "ledger.sqlite3"

    @property
    def jobs(self) -> Path:
        return self.folder / "jobs"

    @property
    def programs(self) -> Path:
        """A folder that comes first on the worker's PATH."""
        return self.folder / "bin"

    async def make_pool(self) -> None:
        async with get_client() as client:
            try:
                await client.create_work_pool(WorkPoolCreate(name=self.pool, type=self.worker.kind))
            except ObjectAlreadyExists:
                return

    async def deploy(self, application: Application, **options: Any) -> DeployedApplication:
        return await adeploy_application(application, work_pool=self.pool, **options)

    async def start(self, deployed: DeployedApplication | UUID, **parameters: Any) -> UUID:
        deployment = deployed if isinstance(deployed, UUID) else deployed.id
        if not isinstance(deployed, UUID):
            parameters.setdefault("directory", str(self.jobs))
        async with get_client() as client:
            run = await client.create_flow_run_from_deployment(deployment, parameters=parameters)
            return run.id

    async def run(self, run_id: UUID) -> FlowRun:
        async with get_client() as client:
            return await client.read_flow_run(run_id)

    async def states(self, run_id: UUID) -> list[State[Any]]:
        async with get_client() as client:
            states = await client.read_flow_run_states(run_id)
        return sorted(states, key=lambda state: state.timestamp)

    async def until(self, run_id: UUID, *names: str, timeout: float = END_SECONDS) -> FlowRun:
        """Wait until the run's state has one of these names."""

        async def reached() -> FlowRun | None:
            run = await self.run(run_id)
            if run.state_name in names:
                return run
            if run.state is not None and run.state.is_final():
                raise AssertionError(f"the run ended {run.state_name}: {message(run)}\n{self.worker_log()}")
            return None

        return await await_until(reached, timeout, f"a state of {names}") or await self.run(run_id)

    async def end(self, run_id: UUID, timeout: float = END_SECONDS) -> FlowRun:
        """Wait until the run is final."""

        async def ended() -> FlowRun | None:
            run = await self.run(run_id)
            return run if run.state is not None and run.state.is_final() else None

        found = await await_until(ended, timeout, "the run's end")
        assert found is not None
        return found

    async def settled(self, run_id: UUID, timeout: float = END_SECONDS) -> FlowRun:
        """Wait until the run is final, and as the worker says of its jobs.

        A flow's engine may say that it crashed while its job is being killed: it is the worker who tells how.
        """
        await self.end(run_id, timeout)
        without = (SubmissionStatus.REFUSED, SubmissionStatus.CANCELLED)

        async def told() -> bool:
            return all(row.told or row.status in without for row in self.submissions(run_id))

        await await_until(told, END_SECONDS, "the worker to tell the ends of the run's jobs", 0.5)
        return await self.run(run_id)

    async def cancel(self, run_id: UUID) -> None:
        """As the UI and `prefect flow-run cancel` do it."""
        async with get_client() as client:
            await client.set_flow_run_state(run_id, Cancelling(), force=False)

    async def retry(self, run_id: UUID) -> None:
        """As the UI's Retry does it, and wait until the run has left its final state."""
        async with get_client() as client:
            await client.set_flow_run_state(run_id, AwaitingRetry(), force=False)

        async def left() -> bool:
            run = await self.run(run_id)
            return not (run.state and run.state.is_final())

        await await_until(left, 120, "the run's new life")

    async def logs(self, run_id: UUID) -> list[str]:
        return [log.message for log in await self.log_entries(run_id)]

    async def log_entries(self, run_id: UUID) -> list[Log]:
        async with get_client() as client:
            return await client.read_logs(
                LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id])), limit=200, sort=LogSort.TIMESTAMP_ASC
            )

    async def logged(self, run_id: UUID, text: str, timeout: float = 120) -> list[str]:
        """Wait for a line in the run's logs: they reach the server some seconds later."""

        async def there() -> list[str]:
            lines = await self.logs(run_id)
            return lines if any(text in line for line in lines) else []

        return await await_until(there, timeout, f"{text!r} in the run's logs")

    async def artifacts(self, run_id: UUID) -> dict[str, Any]:
        """The run's artifacts by their keys, without the name of the deployment in front."""
        async with get_client() as client:
            found = await client.read_artifacts(
                artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
            )
        # Those without a key are Prefect's own, of what a flow raised.
        return {_PAGE.split(artifact.key, maxsplit=1)[1]: artifact.data for artifact in found if artifact.key}

    async def artifact_keys(self, run_id: UUID) -> set[str]:
        async with get_client() as client:
            found = await client.read_artifacts(
                artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
            )
        return {str(artifact.key) for artifact in found}

    async def pages(self, run_id: UUID, name: str) -> list[str]:
        """What all artifacts of that name say, the oldest first: each attempt has its own."""
        async with get_client() as client:
            found = await client.read_artifacts(
                artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
            )
        made = sorted((artifact for artifact in found if artifact.created), key=lambda artifact: str(artifact.created))
        return [str(artifact.data) for artifact in made if _PAGE.split(str(artifact.key), maxsplit=1)[1] == name]

    async def task_runs(self, run_id: UUID) -> list[TaskRun]:
        async with get_client() as client:
            return await client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])))

    async def tasks_end(self, run_id: UUID, timeout: float = 120) -> None:
        """Wait until no task run of the run is left begun: the server hears of their ends apart from the run's."""

        async def ended() -> bool:
            return not {task.state_name for task in await self.task_runs(run_id)} & {"Running", "Pending"}

        await await_until(ended, timeout, "the end of the run's tasks")

    @contextmanager
    def another_sbatch(self, commands: str) -> Iterator[None]:
        """Let the worker find a Bash program where sbatch was. In it `real_sbatch "$@"` submits."""
        program = self.programs / "sbatch"
        made = program.with_suffix(".new")
        # Which version it is, the worker asks now and then to know whether all is well.
        version = '[ "$1" != --version ] || { real_sbatch --version; exit; }'
        made.write_text(f'#!/bin/bash\nreal_sbatch() {{ PATH=${{PATH#*:}} sbatch "$@"; }}\n{version}\n{commands}\n')
        made.chmod(0o755)
        made.rename(program)
        try:
            yield
        finally:
            program.unlink()

    def submissions(self, run_id: UUID) -> list[Submission]:
        ledger = Ledger.open(self.ledger_path)
        try:
            return ledger.of_flow_run(str(run_id))
        finally:
            ledger.close()

    def slurm_jobs(self, run_id: UUID) -> list[str]:
        """The ids of all jobs that Slurm has of a run, by their names: however often they were submitted."""
        names = [row.name_in_slurm for row in self.submissions(run_id)]
        # Other tests' jobs have names of any kind, or none.
        shown = [
            line.strip().partition(" ")
            for line in self.slurm.run("squeue", "-h", "-t", "all", "-o", "%F %j").splitlines()
        ]
        return sorted({job_id for job_id, _, name in shown if name in names})

    def worker_log(self) -> str:
        return self.worker.log.read_text(errors="replace")[-4000:]


@asynccontextmanager
async def running_site(
    slurm: SlurmCluster,
    server: PrefectServer,
    folder: Path,
    pool: str,
    more_environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Site]:
    """A site whose worker runs, in a folder and with a pool of its own: two workers of one pool have one ledger."""
    environment = {
        "PREFECT_API_URL": server.api_url,
        # The open-source server takes any; a worker has one where a site's server asks for it.
        "PREFECT_API_KEY": API_KEY,
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5",
        "PREFECT_INTEGRATIONS_JOBBERGATE_FLOWS_CLUSTER": "slurm",
        "PREFECT_INTEGRATIONS_JOBBERGATE_FLOWS_LEDGER": str(folder / "ledger.sqlite3"),
        "PREFECT_INTEGRATIONS_JOBBERGATE_FLOWS_RECOVERY_POLL_SECONDS": "5",
        # Sooner than Prefect's own runner on the node ends a cancelled flow, which takes it two seconds.
        "PREFECT_INTEGRATIONS_JOBBERGATE_FLOWS_CANCEL_POLL_SECONDS": "1",
        # The worker looks at itself five times as often.
        "PREFECT_INTEGRATIONS_JOBBERGATE_FLOWS_HEALTH_SECONDS": "60",
        "SLURM_CONF": str(slurm.conf),
        "HOME": os.environ.get("HOME", "/root"),
        # Where a test may put another sbatch before Slurm's.
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        **(more_environment or {}),
    }
    worker = WorkerProcess(pool, folder, environment)
    made = Site(slurm, folder, pool, worker, environment)
    made.jobs.mkdir()
    made.programs.mkdir()
    async with working(made):
        yield made


@asynccontextmanager
async def working(site: Site) -> AsyncIterator[None]:
    """The site has its pool, and its worker runs."""
    await site.make_pool()
    site.worker.start()
    try:
        yield
    finally:
        site.worker.stop()


def waiting_for(file: Path, *directives: str, then: str = "") -> str:
    """A job script that runs until the file is there, and then does that."""
    lines = ["#!/bin/bash", *directives, f"while [ ! -e {file} ]; do sleep 0.2; done", *([then] if then else [])]
    return "\n".join(lines) + "\n"


def message(run: FlowRun) -> str:
    """What the run's state says."""
    return (run.state.message if run.state else None) or ""


def script_application(folder: Path, name: str, script: str, questions: str = "[]") -> Application:
    """An application of one job script, whose template is the text."""
    application = folder / name
    (application / "templates").mkdir(parents=True, exist_ok=True)
    (application / "jobbergate.yaml").write_text(
        "jobbergate_config:\n  default_template: templates/job.sh.j2\napplication_config: {}\n"
    )
    (application / "jobbergate.py").write_text(
        "from jobbergate_cli.subapps.applications.application_base import JobbergateApplicationBase\n"
        "from jobbergate_cli.subapps.applications.questions import *\n\n\n"
        "class JobbergateApplication(JobbergateApplicationBase):\n"
        f"    def mainflow(self, data):\n        return {questions}\n"
    )
    (application / "templates" / "job.sh.j2").write_text(script)
    return Application.from_path(application)
