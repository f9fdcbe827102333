"""Keeping a run's live pages current while its job lives, without ever holding up the run.

Something is sent when what is shown has changed, and not by the clock; output and usage alone at most every
`LivePace.seconds`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import UUID

from prefect.client.schemas.objects import FlowRun

from jobbergate_flows.artifacts import RunArtifacts
from jobbergate_flows.live_page import LINES, LiveJob, LiveUsage, live_markdown, next_change, progress_of
from jobbergate_flows.live_usage import UsageNow
from jobbergate_flows.settings import ReportSettings
from jobbergate_flows.slurm.jobs import JobStatus, Phase, SlurmJob
from jobbergate_flows.slurm.latest_output import LatestOutput
from jobbergate_flows.slurm.ledger import SubmissionKey
from jobbergate_flows.slurm.retries import RetryPolicy
from jobbergate_flows.slurm.session import ClusterSession

_logger = logging.getLogger(__name__)
_CLOSING_SECONDS = 20.0
_LOOK_SECONDS = 10.0
PROGRESS = "progress"
PAGE = "live"

ReadLines = Callable[[JobStatus], Awaitable[Sequence[str]]]
"""The last lines of the job's output."""

ReadUsage = Callable[[JobStatus], Awaitable[LiveUsage | None]]
"""What the job uses now; None where nobody knows."""


@dataclass(frozen=True, slots=True)
class LivePace:
    """How often things are looked at.

    Args:
        seconds: Between two updates for output and usage.
        usage_seconds: Between two questions for the usage.
        estimate_seconds: Between two looks at the estimated start of a job that waits.
    """

    seconds: float = 15.0
    usage_seconds: float = 60.0
    estimate_seconds: float = 60.0


class LiveReport:
    """The live pages of one job of a run.

    Args:
        open_artifacts: Where they are shown; asked when there is something to show.
        job: The job.
        newest: Its newest status, where that is newer than the one told last: an estimated start changes often.
        read_lines: Says what it wrote last; None where nobody looks.
        read_usage: Says what it uses; None where there are no metrics.
        pace: How often.
        attempt, attempts: Which of how many there may be; counted from 1.
    """

    def __init__(
        self,
        open_artifacts: Callable[[], Awaitable[RunArtifacts]],
        job: SlurmJob,
        *,
        newest: Callable[[], JobStatus | None] = lambda: None,
        read_lines: ReadLines | None = None,
        read_usage: ReadUsage | None = None,
        pace: LivePace | None = None,
        attempt: int = 1,
        attempts: int = 1,
    ) -> None:
        self._open_artifacts = open_artifacts
        self._artifacts: RunArtifacts | None = None
        self._job = job
        self._newest = newest
        self._attempt, self._attempts = attempt, attempts
        self._read_lines = read_lines
        self._read_usage = read_usage
        self._pace = pace or LivePace()
        self._status: JobStatus | None = None
        self._limit: int | None = None
        self._lines: Sequence[str] = ()
        self._usage: LiveUsage | None = None
        self._usage_at = -float("inf")
        self._happened = asyncio.Event()
        self._heard = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def tell(self, status: JobStatus) -> None:
        """The job's newest status."""
        self._status = status
        self._happened.set()
        if self._task is None:
            self._task = asyncio.create_task(self._keep_current())

    def heard(self) -> None:
        """The job has written something."""
        self._heard.set()

    async def close(self) -> None:
        """Show how it ended, and stop. A server that is away holds this up for 20 seconds at most."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled() and (error := self._task.exception()) is not None:
            # The run goes on without.
            _logger.error("The live pages of the run were not kept current", exc_info=error)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING_SECONDS):
                await self._look_at_output()
                await self._show()

    async def _keep_current(self) -> None:
        while self._status is not None and not self._status.final:
            self._happened.clear()
            self._heard.clear()
            await self._look_at_output()
            await self._look_at_usage()
            await self._show()
            await self._wait()

    async def _wait(self) -> None:
        """Until something happened, what is shown differs by itself, or there is output and the pace allows it."""
        assert self._status is not None
        changes = next_change(self._known(), datetime.now(UTC))
        if self._status.phase is Phase.PENDING:
            changes = self._pace.estimate_seconds
        else:
            # Of what it uses nobody tells, nor of output past the limit of what goes into the logs.
            changes = min(changes or self._pace.usage_seconds, self._pace.usage_seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(changes):
                await _first(self._happened, self._heard)
                if not self._happened.is_set():
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._happened.wait(), self._pace.seconds)

    async def _look_at_usage(self) -> None:
        assert self._status is not None
        now = asyncio.get_running_loop().time()
        running = self._status.phase is Phase.RUNNING
        if self._read_usage is None or not running or now - self._usage_at < self._pace.usage_seconds * 0.9:
            return
        self._usage_at = now
        try:
            # While it is waited for, nothing else is shown.
            async with asyncio.timeout(_LOOK_SECONDS):
                self._usage = await self._read_usage(self._status)
        except Exception as error:
            _logger.info("What the job uses cannot be read now: %s", str(error) or type(error).__name__)

    async def _look_at_output(self) -> None:
        assert self._status is not None
        if self._read_lines is None or self._status.phase is Phase.PENDING:
            return
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                self._lines = await self._read_lines(self._status)
        except Exception as error:
            _logger.info("What the job writes cannot be read now: %s", str(error) or type(error).__name__)

    def _known(self) -> LiveJob:
        assert self._status is not None
        status, newest = self._status, self._newest()
        if newest is not None and not newest.final and not status.final:
            status = newest
        if status.final and self._limit is not None and status.time_limit is None:
            # Accounting's rows have none.
            status = replace(status, time_limit=self._limit)
        self._limit = status.time_limit
        return LiveJob(
            self._job,
            status,
            usage=self._usage,
            lines=self._lines,
            attempt=self._attempt,
            attempts=self._attempts,
        )

    async def _show(self) -> None:
        try:
            live, now = self._known(), datetime.now(UTC)
            progress = progress_of(live, now)
            if self._artifacts is None:
                self._artifacts = await self._open_artifacts()
            await self._artifacts.show(PROGRESS, progress.percent, description=progress.words, kind="progress")
            await self._artifacts.show(PAGE, live_markdown(live, now), description=live.status.message)
        except Exception as error:
            # What is shown is a service; the run itself tells its states in another way, again and again.
            _logger.warning("The live pages of the run are not current: %s", error)


async def live_report(session: ClusterSession, job: SlurmJob, flow_run: FlowRun | UUID | None) -> LiveReport | None:
    """The live pages of a run's job; None outside of a run, and where the settings want none."""
    settings = ReportSettings()
    if flow_run is None or not settings.live:
        return None
    row = await asyncio.to_thread(session.ledger.get, job.key)
    attempt, attempts, call = 1, 1, ""
    if row is not None:
        before = await session.ends_before(SubmissionKey(row.scope, row.call, row.attempt))
        attempt, call = len(before) + 1, row.call
        attempts = RetryPolicy.model_validate(row.retries).attempts if row.retries else 1
    return LiveReport(
        lambda: RunArtifacts.of(flow_run, job.key, call=call),
        job,
        newest=lambda: session.tracker.status_of(job.job_id),
        read_lines=LatestOutput(session.cluster, job, LINES).look,
        read_usage=UsageNow(session, job) if settings.metrics is not None else None,
        pace=LivePace(settings.live_seconds, settings.usage_seconds),
        attempt=attempt,
        attempts=attempts,
    )


async def _first(*events: asyncio.Event) -> None:
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in waiting:
            one.cancel()
