"""How well a worker is: what is known of it, who is told, and when it should be started again.

That Slurm is away is for people: an artifact and an event say so. That a loop hangs is for whoever watches the process
(`prefect worker start --with-healthcheck`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.events.related import object_as_related_resource
from prefect.events.schemas.events import Event, RelatedResource, Resource

from jobbergate_flows.artifacts import artifact_key, change_artifact
from jobbergate_flows.markdown import text, time_of
from jobbergate_flows.reporting import EventOutbox
from jobbergate_flows.slurm.cluster import Finding
from jobbergate_flows.slurm.command_cluster import CommandCluster
from jobbergate_flows.slurm.jobs import Phase
from jobbergate_flows.slurm.ledger import SubmissionStatus

if TYPE_CHECKING:
    from agent_worker.supervisor import Supervisor

_logger = logging.getLogger(__name__)
HEALTHY = "slurm.worker.healthy"
UNHEALTHY = "slurm.worker.unhealthy"
HANGING_SECONDS = 60.0
"""So long the runs' event loop may not answer before the worker counts as hanging."""
OVERDUE_SECONDS = 600.0
"""So long jobs may wait for Slurm to be asked; a worker asks at least every two minutes."""
_BEAT_SECONDS = 5.0
_LOOKS = 5


@dataclass(frozen=True, slots=True)
class WorkerHealth:
    """One look at a worker. Times are aware (UTC).

    Args:
        since: When it started.
        findings: What was found of controller, accounting and ledger.
        silence: Why Slurm gives no word of jobs; None while it does.
        jobs: State's name -> followed jobs.
        queue: Partition -> followed jobs that wait there.
        runs: Kind -> runs that live in it.
        unsubmitted: Submissions that Slurm does not have yet; a limit of Slurm's may hold them back for long.
        oldest: When the oldest of them was begun.
        untold: Jobs whose end was not told yet.
        last_query_at: When Slurm was last asked about jobs.
        last_query_seconds: How long that took.
        queries: How often it was asked.
    """

    worker: str
    work_pool: str
    cluster: str
    since: datetime
    findings: tuple[Finding, ...] = ()
    silence: str | None = None
    jobs: Mapping[str, int] = field(default_factory=dict)
    queue: Mapping[str, int] = field(default_factory=dict)
    runs: Mapping[str, int] = field(default_factory=dict)
    unsubmitted: int = 0
    oldest: datetime | None = None
    untold: int = 0
    last_query_at: datetime | None = None
    last_query_seconds: float = 0.0
    queries: int = 0

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, for people; empty for a worker that is well."""
        found = [f"{finding.subject}: {finding.detail}" for finding in self.findings if not finding.ok]
        if self.silence is not None and not found:
            found.append(f"Slurm gives no word of jobs: {self.silence}")
        return tuple(found)

    @property
    def summary(self) -> str:
        """One line."""
        problems = self.problems
        counts = f"{sum(self.runs.values())} runs, {sum(self.jobs.values())} jobs"
        return f"Unhealthy: {'; '.join(problems)}" if problems else f"Healthy: {counts}"


def hanging(beat_age: float, overdue: float) -> str | None:
    """Why a worker should be started again; None for one that goes on. Pure.

    Args:
        beat_age: Seconds since the runs' event loop last answered.
        overdue: See `JobTracker.overdue`.
    """
    if beat_age > HANGING_SECONDS:
        return f"the event loop of its runs has not answered for {beat_age:.0f} s"
    if overdue > OVERDUE_SECONDS:
        return f"Slurm has not been asked about jobs for {overdue:.0f} s"
    return None


def health_markdown(health: WorkerHealth) -> str:
    """The artifact's text."""
    rows = {
        "Work pool": health.work_pool,
        "Cluster": health.cluster,
        "Runs here": _counts(health.runs),
        "Jobs followed": _counts(health.jobs),
        "Waiting, by partition": _counts(health.queue),
        "Submissions not made yet": f"{health.unsubmitted}, the oldest since {time_of(health.oldest)}"
        if health.oldest
        else "none",
        "Ends not told yet": str(health.untold or "none"),
        "Slurm last asked": f"{time_of(health.last_query_at)}, {health.last_query_seconds:.2f} s"
        if health.last_query_at
        else "not yet: there was no job",
        "Since": time_of(health.since),
        "Version": f"jobbergate-flows {version('jobbergate-flows')}, Prefect {version('prefect')}",
    }
    parts = [f"# {text(health.worker)}", text(health.summary)]
    parts.append("\n".join(["| | |", "|---|---|", *(f"| {label} | {text(said)} |" for label, said in rows.items())]))
    checks = ["| | | |", "|---|---|---|"]
    for finding in health.findings:
        mend = f"; {finding.hint}" if finding.hint and not finding.ok else ""
        what = "well" if finding.ok else "**not well**"
        checks.append(f"| {text(finding.subject)} | {what} | {text(finding.detail + mend)} |")
    return "\n\n".join([*parts, "\n".join(checks)])


def health_event(health: WorkerHealth, resource: Mapping[str, str], related: Sequence[RelatedResource] = ()) -> Event:
    """The event `slurm.worker.healthy` or `.unhealthy`, with the resource that Prefect's own events of workers have."""
    return Event(
        event=UNHEALTHY if health.problems else HEALTHY,
        resource=Resource(dict(resource)),
        related=list(related),
        payload={
            "summary": health.summary,
            "problems": list(health.problems),
            "cluster": health.cluster,
            "jobs": dict(health.jobs),
            "queue": dict(health.queue),
            "runs": dict(health.runs),
            "unsubmitted": health.unsubmitted,
            "untold": health.untold,
            "since": health.since.isoformat(),
        },
    )


class Pulse:
    """Whether an event loop goes on: it beats there, and is felt from any thread."""

    def __init__(self) -> None:
        self._last: float | None = None

    async def beat(self) -> None:
        """Beat for ever. To be run in the loop."""
        while True:
            self._last = time.monotonic()
            await asyncio.sleep(_BEAT_SECONDS)

    @property
    def age(self) -> float:
        """Seconds since the last beat; 0 before the first."""
        return 0.0 if self._last is None else time.monotonic() - self._last


class HealthWatch:
    """Looks at a worker again and again, and tells when it changes, and that it lives.

    Args:
        supervisor: The worker's.
        worker, work_pool: Their names.
        resource: The worker's, as its events have it.
        more: Gives what else is found of the worker.
        seconds: The artifact is written at most so often, and an event tells at least so often that the worker lives.
            A worker whose health changes says so at its next look, of which there are five in that time.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        worker: str,
        work_pool: str,
        resource: Mapping[str, str],
        seconds: float,
        more: Callable[[], Sequence[Finding]] = tuple,
    ) -> None:
        self._supervisor = supervisor
        self._worker = worker
        self._work_pool = work_pool
        self._resource = resource
        self._related: list[RelatedResource] | None = None
        self._seconds = seconds
        self._more = more
        self._since = datetime.now(UTC)
        self._told: WorkerHealth | None = None
        self._told_at = 0.0
        self._written: WorkerHealth | None = None
        self._written_at = 0.0
        self._artifact: UUID | None = None

    async def watch(self) -> None:
        """Do it for ever. To be run in the supervisor's loop."""
        while True:
            try:
                await self._look()
            except Exception:
                _logger.exception("The worker's health was not told; trying again")
            await asyncio.sleep(self._seconds / _LOOKS)

    async def _look(self) -> None:
        health = await look(self._supervisor, self._worker, self._work_pool, self._since, self._more())
        now = time.monotonic()
        turned = self._told is None or bool(health.problems) != bool(self._told.problems)
        if turned or now - self._told_at >= self._seconds:
            if turned and (health.problems or self._told is not None):
                _logger.log(logging.WARNING if health.problems else logging.INFO, "%s", health.summary)
            if self._related is None:
                async with get_client() as client:
                    pool = await client.read_work_pool(self._work_pool)
                self._related = [object_as_related_resource("work-pool", "work-pool", pool)]
            EventOutbox.here().put(health_event(health, self._resource, self._related))
            self._told, self._told_at = health, now
        changed = self._written is None or _lasting(health) != _lasting(self._written)
        if turned or (changed and now - self._written_at >= self._seconds):
            await self._write(health)
            self._written, self._written_at = health, now

    async def _write(self, health: WorkerHealth) -> None:
        text, summary = health_markdown(health), health.summary
        async with get_client() as client:
            if self._artifact is not None and await change_artifact(client, self._artifact, text, summary):
                return
            made = await client.create_artifact(
                ArtifactCreate(
                    key=artifact_key("slurm-worker", health.worker), type="markdown", data=text, description=summary
                )
            )
            self._artifact = made.id


async def look(
    supervisor: Supervisor, worker: str, work_pool: str, since: datetime, more: Sequence[Finding] = ()
) -> WorkerHealth:
    """What is known of a worker now. Asks Slurm's controller and its accounting once, by some short commands.

    Args:
        more: What else was found.
    """
    session = supervisor.session
    tracker, statistics = session.tracker, session.tracker.statistics
    cluster = session.cluster
    # Asked every minute: the versions of Slurm's commands are no news.
    findings = await (cluster.check_services() if isinstance(cluster, CommandCluster) else cluster.check())
    try:
        rows = await session.unfinished()
    except Exception as error:
        rows = []
        findings.append(
            Finding("ledger", False, f"it cannot be read: {error}", "see whether its disk or database is well")
        )
    statuses = tracker.followed.values()
    waiting = [row for row in rows if row.status is SubmissionStatus.INTENT]
    return WorkerHealth(
        worker=worker,
        work_pool=work_pool,
        cluster=cluster.name,
        since=since,
        findings=(*findings, *more),
        silence=tracker.problem if statuses else None,
        jobs=Counter(status.name if status else "Unknown" for status in statuses),
        queue=Counter(status.partition or "?" for status in statuses if status and status.phase is Phase.PENDING),
        runs=Counter(held.kind for held in supervisor.held.values()),
        unsubmitted=len(waiting),
        oldest=min((row.intent_at for row in waiting), default=None),
        untold=sum(row.status is SubmissionStatus.FINAL for row in rows),
        last_query_at=statistics.last_query_at,
        last_query_seconds=statistics.last_query_seconds,
        queries=statistics.queries,
    )


def _lasting(health: WorkerHealth) -> WorkerHealth:
    """What makes a new artifact worth writing: not that time has passed."""
    return replace(health, last_query_at=None, last_query_seconds=0.0, queries=0)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"
