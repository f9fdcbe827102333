"""The demo: a server, a worker, a deployed application and one run of it, on this machine, followed to its end."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.sorting import LogSort
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, PREFECT_UI_URL, temporary_settings
from prefect.states import Cancelling
from rich.console import Console

from jobbergate_flows.applications.skeleton import create_application
from jobbergate_flows.deployments import adeploy_application
from jobbergate_flows.errors import JobbergateFlowsError

_POOL = "slurm"
_START_SECONDS = 120
_LOGS_SECONDS = 15
_CANCEL_SECONDS = 30
_console = Console(highlight=False, soft_wrap=True)


class DemoFailed(JobbergateFlowsError):
    """Something that the demo starts did not come up."""


@dataclass
class _Demo:
    folder: Path
    port: int
    environment: dict[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    running: UUID | None = None
    """The run, while it is not over."""

    @property
    def server_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a Prefect command with its output in a file of the demo's folder."""
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "prefect", *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def stop(self) -> None:
        """End what was started, in the opposite order."""
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def run_demo(keep: bool = False, cluster: str = "local") -> int:
    """Run the demo and return its exit code: 0 only if the run is Completed.

    Args:
        keep: Leave the server and the worker running, and print how to reach and to stop them.
        cluster: `local`, or `slurm` for the Slurm that this machine has.

    Raises:
        DemoFailed: The server or the worker did not come up; the message holds the end of its log.
    """
    folder = Path(tempfile.mkdtemp(prefix="jobbergate-flows-demo-"))
    port = _free_port()
    demo = _Demo(folder, port, _environment(folder, port, cluster))
    kept = False
    try:
        settings = {
            PREFECT_API_URL: f"{demo.server_url}/api",
            PREFECT_UI_URL: demo.server_url,
            PREFECT_HOME: folder / "prefect",
        }
        # Whoever ends the demo ends what it started as well.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with temporary_settings(settings):
            try:
                completed = asyncio.run(_demonstrate(demo))
            finally:
                if demo.running is not None:
                    asyncio.run(_cancel(demo.running))
        kept = keep
        return 0 if completed else 1
    finally:
        if kept:
            _say_what_is_kept(demo)
        else:
            demo.stop()
            shutil.rmtree(folder, ignore_errors=True)
            _console.print("Stopped the worker and the server, and removed their folder.")


async def _demonstrate(demo: _Demo) -> bool:
    _console.print(f"[bold]Starting a Prefect server[/] on SQLite in {demo.folder}")
    server = demo.start("server", "server", "start", "--host", "127.0.0.1", "--port", str(demo.port))
    await _healthy(demo, server)
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=_POOL, type="jobbergate-slurm"))
        _console.print("[bold]Starting a worker[/] of type jobbergate-slurm")
        worker = demo.start("worker", "worker", "start", "--pool", _POOL, "--type", "jobbergate-slurm")
        await _online(demo, worker, client)
        application = _example(demo.folder)
        deployed = await adeploy_application(application, work_pool=_POOL)
        _console.print(f"[bold]Deployed[/] {application.name} as {deployed.name}")
        jobs = demo.folder / "jobs"
        jobs.mkdir()
        run = await client.create_flow_run_from_deployment(deployed.id, parameters={"directory": str(jobs)})
        url = f"{demo.server_url}/runs/flow-run/{run.id}"
        _console.print(f"[bold]Started a run[/] of it: {run.name}\n  in the UI: {url}")
        demo.running = run.id
        completed = await _follow(client, run.id)
        demo.running = None
        async for artifact in _artifacts(client, run.id):
            _console.print(f"  artifact: {artifact}")
        _console.print(f"  the run in the UI: {url}")
        return completed


async def _follow(client: PrefectClient, run_id: UUID) -> bool:
    shown_states: set[UUID] = set()
    shown_logs = 0
    said_all = False
    ended_at: float | None = None
    while True:
        states = await client.read_flow_run_states(run_id)
        logs = await client.read_logs(
            LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id])),
            offset=shown_logs,
            sort=LogSort.TIMESTAMP_ASC,
        )
        shown_logs += len(logs)
        lines: list[tuple[datetime, str]] = [(log.timestamp, f"  {log.message}") for log in logs]
        for state in states:
            if state.id not in shown_states:
                shown_states.add(state.id)
                said = f": {state.message}" if state.message else ""
                lines.append((state.timestamp, f"[bold cyan]{state.name}[/]{_plain(said)}"))
        for moment, line in sorted(lines, key=lambda entry: entry[0]):
            text = line if line.startswith("[bold") else _plain(line)
            _console.print(f"[dim]{moment.astimezone():%H:%M:%S}[/] {text}")
        last = max(states, key=lambda state: state.timestamp)
        # Logs reach the server some seconds after the state; this is the engine's last one.
        said_all = said_all or any(
            log.message.startswith("Finished in state") and log.task_run_id is None for log in logs
        )
        now = asyncio.get_running_loop().time()
        if last.is_final():
            ended_at = ended_at or now
            if said_all or now - ended_at > _LOGS_SECONDS:
                return last.is_completed()
        await asyncio.sleep(0.5)


async def _cancel(run_id: UUID) -> None:
    """End the run and its job, which the worker's end would leave alone."""
    _console.print("Cancelling the run and its job")
    try:
        async with asyncio.timeout(_CANCEL_SECONDS), get_client() as client:
            await client.set_flow_run_state(run_id, Cancelling())
            while True:
                run = await client.read_flow_run(run_id)
                if run.state is not None and run.state.is_final():
                    return
                await asyncio.sleep(0.5)
    except (TimeoutError, httpx.HTTPError, PrefectException) as error:
        _console.print(f"The run could not be cancelled, its job may go on: {_plain(str(error) or 'no answer')}")


async def _artifacts(client: PrefectClient, run_id: UUID) -> AsyncIterator[str]:
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    for artifact in await client.read_artifacts(
        artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
    ):
        yield f"{artifact.key}: {artifact.description}"


async def _healthy(demo: _Demo, server: subprocess.Popen[bytes]) -> None:
    async with _within(demo, server, "server"), httpx.AsyncClient() as http:
        while True:
            try:
                if (await http.get(f"{demo.server_url}/api/health")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            _alive(demo, server, "server")
            await asyncio.sleep(0.3)


async def _online(demo: _Demo, worker: subprocess.Popen[bytes], client: PrefectClient) -> None:
    async with _within(demo, worker, "worker"):
        while not await client.read_workers_for_work_pool(work_pool_name=_POOL):
            _alive(demo, worker, "worker")
            await asyncio.sleep(0.3)


@asynccontextmanager
async def _within(demo: _Demo, process: subprocess.Popen[bytes], name: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(_START_SECONDS):
            yield
    except TimeoutError as error:
        raise DemoFailed(
            f"the {name} did not come up in {_START_SECONDS} s; its log ends:\n{_log_end(demo, name)}"
        ) from error


def _alive(demo: _Demo, process: subprocess.Popen[bytes], name: str) -> None:
    if process.poll() is not None:
        raise DemoFailed(f"the {name} ended with exit code {process.returncode}; its log ends:\n{_log_end(demo, name)}")


def _log_end(demo: _Demo, name: str) -> str:
    return (demo.folder / f"{name}.log").read_text(errors="replace")[-2000:]


def _example(folder: Path) -> Any:
    from jobbergate_flows.applications import Application

    example = Path(__file__).parents[2] / "examples" / "parameter-study"
    if not (example / "jobbergate.yaml").is_file():
        example = folder / "example"
        create_application(example, "example")
    return Application.from_path(example)


def _environment(folder: Path, port: int, cluster: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "SLURM_JOB"))}
    own = {
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5",
        "PREFECT_WORKER_PREFETCH_SECONDS": "5",
        "PREFECT_INTEGRATIONS_JOBBERGATE_FLOWS_CLUSTER": cluster,
        "JOBBERGATE_FLOWS_STATE_DIR": str(folder / "state"),
        "JOBBERGATE_FLOWS_LEDGER": str(folder / "state" / "ledger.sqlite3"),
    }
    return kept | own


def _free_port() -> int:
    """A port that nobody listens on; below those that the kernel may give to others before the server has it."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise JobbergateFlowsError("no free port was found for the Prefect server", where="127.0.0.1:20000-31999")


def _say_what_is_kept(demo: _Demo) -> None:
    pids = " ".join(str(process.pid) for process in reversed(demo.processes))
    _console.print(
        "[bold]Everything stays up.[/]\n"
        f"  UI:     {demo.server_url}\n"
        f"  API:    export PREFECT_API_URL={demo.server_url}/api\n"
        f"  folder: {demo.folder}\n"
        f"  stop:   kill {pids}"
    )


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
