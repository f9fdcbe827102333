"""The `jobbergate-slurm` worker."""

from __future__ import annotations

import asyncio
import os
import socket
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import anyio.abc
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import InfrastructureNotAvailable
from prefect.workers.base import BaseWorker, BaseWorkerResult

from agent_worker.accounts import AccountSessions
from agent_worker.admission import Admission
from agent_worker.cancellation import cancel, watch_for_cancellations
from agent_worker.configuration import FlowJobConfiguration, SlurmJobConfiguration, SlurmVariables
from agent_worker.health import HealthWatch, Pulse, hanging
from agent_worker.jobbergate.bridge import Bridge
from agent_worker.jobbergate.clients import JobbergateClients
from agent_worker.jobbergate.mirror import add_mirror, observer_of
from agent_worker.jobbergate.setup import agent_settings, make_bridge
from agent_worker.jobbergate.tasks import TaskScheduler, site_tasks
from agent_worker.kinds import Kind, kind_of
from agent_worker.recovery import recover_runs, worker_claim
from agent_worker.runs import infrastructure_pid, mark_cancelled
from agent_worker.settings import WorkerSettings
from agent_worker.site import WorkerRefused, door_opener, rules_of
from agent_worker.slots import keep_slot
from agent_worker.supervisor import Supervisor
from agent_worker.updates import DAY_SECONDS, UpdateWatch
from jobbergate_flows.slurm.cluster import Finding
from jobbergate_flows.slurm.command_cluster import CommandCluster
from jobbergate_flows.slurm.connect import connect
from jobbergate_flows.slurm.ledger import Ledger
from jobbergate_flows.slurm.session import ClusterSession

if TYPE_CHECKING:
    from prefect.client.schemas.responses import WorkerFlowRunResponse


_STARTS_AT_ONCE = 2
_CLAIM_AGAIN = (0.2, 0.2)


class JobbergateSlurmResult(BaseWorkerResult):
    """What the worker says when it holds a run."""


class JobbergateSlurmWorker(BaseWorker[FlowJobConfiguration, Any, JobbergateSlurmResult]):
    """Runs deployed applications resident, and other flows as Slurm jobs.

    `run` only hands a run over to the supervisor; the supervisor's thread brings it to its end.
    """

    type = "jobbergate-slurm"
    job_configuration = SlurmJobConfiguration
    job_configuration_variables = SlurmVariables
    _description = "Run Slurm applications, and flows as Slurm jobs, from a host of the cluster."
    _display_name = "Slurm (Jobbergate)"

    def __init__(self, work_pool_name: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(work_pool_name, *args, **kwargs)
        if not kwargs.get("name"):
            # A name that survives a restart: the next worker of this host takes up this one's runs at once.
            self.name = f"{socket.gethostname()} {work_pool_name}"
        # Prefect's own worker starts all runs of a poll at once, and its server on SQLite then locks itself up.
        self._starting = asyncio.Semaphore(_STARTS_AT_ONCE)
        self._coming = asyncio.Lock()
        self.settings = WorkerSettings()
        self.supervisor = Supervisor(self._make_admission, work_pool_name, observer_of)
        self.supervisor.add_service(
            lambda: watch_for_cancellations(self.supervisor, work_pool_name, self.settings.cancel_poll_seconds)
        )
        self.supervisor.add_service(
            lambda: recover_runs(
                self.supervisor,
                work_pool_name,
                self.name,
                self._configure,
                self.settings.recovery_poll_seconds,
            )
        )
        self.supervisor.add_service(
            lambda: self.supervisor.slot_audit.watch(
                self.supervisor.session.ledger, self.settings.recovery_poll_seconds
            )
        )
        self._pulse = Pulse()
        self.supervisor.add_service(self._pulse.beat)
        self.bridge: Bridge | None = None
        self._agent = agent_settings(self.settings) if self.settings.bridge != "off" else None
        self._updates = self._update_watch()
        health = HealthWatch(
            self.supervisor,
            self.name,
            work_pool_name,
            worker_resource(self),
            self.settings.health_seconds,
            self._more_findings,
        )
        self.supervisor.add_service(health.watch)
        self.jobbergate_clients = JobbergateClients(self._agent.client if self._agent is not None else None)
        agents_metrics = self._agent.metrics() if self._agent is not None else None
        add_mirror(self.supervisor, self.jobbergate_clients, self.settings, agents_metrics)
        if self._updates is not None:
            self.supervisor.add_service(self._updates.watch)
        self._tasks: TaskScheduler | None = None
        if self.settings.bridge == "service":
            self.supervisor.add_service(self._serve_bridge)
            if tasks := site_tasks():
                self._tasks = TaskScheduler(tasks)

    async def setup(self) -> None:
        """As Prefect does it, and start the supervisor."""
        await self.supervisor.start()
        if self._tasks is not None:
            self._tasks.start()
        await super().setup()

    async def teardown(self, *exc_info: Any) -> None:
        """As Prefect does it; the jobs go on, and the runs stay as they are for the next worker."""
        if self._tasks is not None:
            await asyncio.to_thread(self._tasks.stop)
        await self.supervisor.stop()
        await super().teardown(*exc_info)

    def is_worker_still_polling(self, query_interval_seconds: float) -> bool:
        """What the health check server asks: whether this worker goes on, with its runs and with their jobs."""
        why = hanging(self._pulse.age, self.supervisor.overdue)
        if why is not None:
            self._logger.error("The worker should be started again: %s", why)
        return super().is_worker_still_polling(query_interval_seconds) and why is None

    async def run(
        self,
        flow_run: FlowRun,
        configuration: FlowJobConfiguration,
        task_status: anyio.abc.TaskStatus[Any] | None = None,
    ) -> JobbergateSlurmResult:
        """Hand a run over to the supervisor. A run that it holds already is left alone."""
        pid = infrastructure_pid(self.supervisor.session.cluster.name, flow_run.id)
        # Before anything is submitted: a run without it would be cancelled behind our back.
        await self.client.update_flow_run(flow_run.id, infrastructure_pid=pid)
        current = await self.client.read_flow_run(flow_run.id)
        if task_status is not None:
            task_status.started(pid)
        if configuration.missed(current, datetime.now(UTC)):
            await mark_cancelled(flow_run.id, f"Missed its start at {current.expected_start_time}")
        elif current.state is not None and current.state.is_pending():
            kind = await self._kind(current)
            await self.supervisor.hold(current, kind, None if kind == "submission" else configuration)
        return JobbergateSlurmResult(status_code=0, identifier=pid)

    async def kill_infrastructure(
        self, infrastructure_pid: str, configuration: FlowJobConfiguration, grace_seconds: int = 30
    ) -> None:
        """Cancel a run's job by what the ledger says of it, not by what the run's record says."""
        cluster, _, flow_run_id = infrastructure_pid.rpartition(":")
        if cluster != self.supervisor.session.cluster.name:
            raise InfrastructureNotAvailable(f"the run belongs to a worker of cluster {cluster!r}")
        run = await self.client.read_flow_run(UUID(flow_run_id))
        await self.supervisor.do(cancel(self.supervisor, run))

    async def _submit_run(self, flow_run: FlowRun) -> None:
        async with self._starting:
            self.supervisor.coming.add(flow_run.id)
            try:
                await super()._submit_run(flow_run)
            finally:
                self.supervisor.coming.discard(flow_run.id)

    async def _propose_pending_state(self, flow_run: FlowRun) -> bool:
        self.supervisor.slot_audit.note(flow_run.deployment_id)
        # One at a time: none gets the slot of another one that changes it.
        async with self._coming:
            if not await super()._propose_pending_state(flow_run):
                return False
            try:
                return await keep_slot(await self.client.read_flow_run(flow_run.id))
            except Exception:
                self._logger.exception("The slot of run %s could not be kept; it is taken up again", flow_run.id)
                return False

    async def _get_scheduled_flow_runs(self) -> list[WorkerFlowRunResponse]:
        runs = await super()._get_scheduled_flow_runs()
        if self._limit is None:
            return runs
        # Neither who does not consent nor an API that is down must keep others' runs waiting. One that may go on then
        # is not held back.
        working = self.supervisor.held.keys() - self.supervisor.admission.asking
        free = self._limit - len(working) - len(self._submitting_flow_run_ids)
        return runs[: max(free, 0)]

    async def _configure(self, flow_run: FlowRun) -> FlowJobConfiguration:
        async with get_client() as client:
            return await SlurmJobConfiguration.resolve_for_flow_run(
                flow_run,
                client=client,
                work_pool=await client.read_work_pool(self._work_pool_name),
                worker_name=self.name,
                worker_id=self.backend_id,
            )

    async def _kind(self, flow_run: FlowRun) -> Kind:
        if flow_run.deployment_id is None:
            return "flow"
        deployment = await self.client.read_deployment(flow_run.deployment_id)
        return kind_of(deployment.entrypoint, deployment.pull_steps)

    async def _serve_bridge(self) -> None:
        assert self.bridge is not None
        await self.bridge.serve()

    def _update_watch(self) -> UpdateWatch | None:
        if self.settings.update_index is None:
            return None
        seconds = self._agent.task_self_update_interval_seconds if self._agent is not None else None
        return UpdateWatch(self.settings.update_index, worker_resource(self), seconds or DAY_SECONDS)

    def _more_findings(self) -> list[Finding]:
        bridge = self.bridge if self.settings.bridge == "service" else None
        found = [bridge.finding if bridge else None, self._updates.finding if self._updates else None]
        return [finding for finding in found if finding is not None]

    async def _make_admission(self) -> Admission:
        settings = self.settings
        rules, open_door = rules_of(settings), door_opener(settings)
        cluster = await asyncio.to_thread(
            connect, settings.cluster, name=settings.cluster_name, slurm_conf=settings.slurm_conf
        )
        ledger = await asyncio.to_thread(Ledger.open, settings.ledger)
        if not await _claim(ledger, worker_claim(self.name)):
            raise WorkerRefused(
                f"another worker named {self.name!r} works with this ledger",
                hint="give this one another --name, and a ledger of its own where it is for another cluster",
            )
        if open_door is not None and not isinstance(cluster, CommandCluster):
            raise WorkerRefused(
                "only Slurm's jobs can be other accounts'", hint="set `cluster` to slurm, or `acting` to none"
            )
        accounts = AccountSessions(
            ClusterSession(cluster, ledger, output_limits=settings.output_limits),
            open_door,
            settings.slurm_conf or os.environ.get("SLURM_CONF"),
        )
        if self._agent is not None:
            self.bridge = make_bridge(self._agent, rules, accounts, self._work_pool_name)
        submissions = self.bridge.submissions if self.bridge is not None else None
        return Admission(accounts, rules, self._work_pool_name, submissions)


def worker_resource(worker: JobbergateSlurmWorker) -> dict[str, str]:
    """The resource that Prefect's own events of a worker are about."""
    return dict(worker._event_resource())  # type: ignore[no-untyped-call]


async def _claim(ledger: Ledger, key: str) -> bool:
    for seconds in _CLAIM_AGAIN:
        if await asyncio.to_thread(ledger.claim, key):
            return True
        # Another worker that asks whether this one lives has it for a moment.
        await asyncio.sleep(seconds)
    return await asyncio.to_thread(ledger.claim, key)
