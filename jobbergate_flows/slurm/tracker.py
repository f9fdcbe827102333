"""Following jobs: one loop asks Slurm about all of them at once, and wakes whoever waits.

What a command's failure means (no information), how long a job must be gone before it is lost, and how often to ask
are decided by pure functions at the end of this file.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pwd
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Self

from jobbergate_flows.slurm.cluster import Cluster
from jobbergate_flows.slurm.jobs import Absent, JobRow, JobStatus, Known, Observation, Phase, SlurmJob, Unreachable
from jobbergate_flows.slurm.states import MEANINGS, Finality, summarize

_logger = logging.getLogger(__name__)
FIRST_SECONDS = 2.0
LONGEST_SECONDS = 60.0
_GROWTH = 1.5
_SHARE = 10.0
_TOGETHER_SECONDS = 0.2
HURRIED_SECONDS = 5.0
"""The longest wait of those who are in a hurry: a cancelled run is to end within 30 s, whatever the last question cost.

A controller that comes back lets a single question take many seconds.
"""
_SILENT_SECONDS = 15.0
DETAIL_SECONDS = 60.0
"""So long accounting may take to know how a job ended that the controller says is over."""
LOST_SECONDS = 600.0
"""So long a job must be unknown to controller and accounting, both answering, before it counts as lost."""


@dataclass(frozen=True, slots=True)
class Tracked:
    """What is known of one followed job. Times are the tracker's clock's, in seconds."""

    job: SlurmJob
    status: JobStatus | None = None
    gone_since: float | None = None
    absent_since: float | None = None
    ended_since: float | None = None
    unknown_state: str | None = None


@dataclass(frozen=True, slots=True)
class Statistics:
    """What following has cost so far."""

    queries: int = 0
    last_query_seconds: float = 0.0
    jobs: int = 0
    last_query_at: datetime | None = None


@dataclass
class Watch:
    """One follower of a job: an asynchronous iterator of its statuses, each different from the one before."""

    job: SlurmJob
    _tracker: JobTracker = field(repr=False)
    _changed: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    @property
    def current(self) -> JobStatus | None:
        """The newest status; None before the first answer."""
        return self._tracker.status_of(self.job.job_id)

    async def __aiter__(self) -> AsyncIterator[JobStatus]:
        shown: JobStatus | None = None
        while True:
            self._changed.clear()
            current = self.current
            if current is not None and (shown is None or _visible(current) != _visible(shown)):
                shown = current
                yield current
                if current.final:
                    return
            await self._changed.wait()

    async def final(self) -> JobStatus:
        """The status with which the job ends."""
        async for status in self:
            if status.final:
                return status
        raise RuntimeError("the tracker was stopped")

    def close(self) -> None:
        """Stop following."""
        self._tracker._leave(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _wake(self) -> None:
        self._changed.set()


class JobTracker:
    """Follows the jobs of one cluster, in one event loop.

    It starts with the first watch and rests when nobody watches.

    Args:
        cluster: Whom to ask.
        clock: Monotonic seconds.
    """

    def __init__(self, cluster: Cluster, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._cluster = cluster
        self._clock = clock
        self._tracked: dict[str, Tracked] = {}
        self._watches: dict[str, list[Watch]] = {}
        self._loop_task: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._interval = FIRST_SECONDS
        self._shortest = _TOGETHER_SECONDS
        self._silent: frozenset[str] = frozenset()
        self._due_since = clock()
        self.statistics = Statistics()
        self.problem: str | None = None
        """Why Slurm is not known to be reachable; None while it answers."""

    def watch(self, job: SlurmJob) -> Watch:
        """Follow a job. Close the watch when it is no longer needed."""
        watch = Watch(job, self)
        if not self._unfinished():
            self._due_since = self._clock()
        self._watches.setdefault(job.job_id, []).append(watch)
        self._tracked.setdefault(job.job_id, Tracked(job))
        self.wake()
        if self._loop_task is None or self._loop_task.done():
            self._loop_task = asyncio.create_task(self._run())
        return watch

    def wake(self) -> None:
        """Ask soon: something was done to a job."""
        self._interval = FIRST_SECONDS
        self._hurry.set()

    def status_of(self, job_id: str) -> JobStatus | None:
        """The newest status of a followed job."""
        tracked = self._tracked.get(job_id)
        return tracked.status if tracked else None

    @property
    def followed(self) -> Mapping[str, JobStatus | None]:
        """The jobs that are followed now, by their ids, with their newest statuses."""
        return {job_id: tracked.status for job_id, tracked in self._tracked.items()}

    @property
    def overdue(self) -> float:
        """Seconds for which jobs that are not over have waited for Slurm to be asked; 0 while there are none."""
        return self._clock() - self._due_since if self._unfinished() else 0.0

    def _unfinished(self) -> dict[str, datetime]:
        """Job id -> when it was submitted."""
        return {
            job_id: tracked.job.submitted_at
            for job_id, tracked in self._tracked.items()
            if not (tracked.status and tracked.status.final)
        }

    def _leave(self, watch: Watch) -> None:
        watches = self._watches.get(watch.job.job_id, [])
        if watch in watches:
            watches.remove(watch)
        if not watches:
            self._watches.pop(watch.job.job_id, None)
            self._tracked.pop(watch.job.job_id, None)
            if not self._tracked:
                # There is nothing left to wait for.
                self._hurry.set()

    async def _run(self) -> None:
        while self._tracked:
            self._hurry.clear()
            asking = self._unfinished()
            if asking:
                await self._look(asking)
            try:
                await asyncio.wait_for(self._hurry.wait(), self._interval if asking else None)
                if self._tracked:
                    await asyncio.sleep(self._shortest)
            except TimeoutError:
                pass

    async def _look(self, asking: dict[str, datetime]) -> None:
        begun = self._clock()
        try:
            observations = await self._cluster.query(asking)
        except Exception as error:
            _logger.exception("Asking Slurm failed")
            observations = dict.fromkeys(asking, Unreachable(f"{type(error).__name__}: {error}"))
        now = self._due_since = self._clock()
        cost = now - begun
        self.statistics = Statistics(self.statistics.queries + 1, cost, len(asking), datetime.now(UTC))
        silent = {job_id: seen.cause for job_id, seen in observations.items() if isinstance(seen, Unreachable)}
        # Once is none yet: for a moment after a job's end accounting does not know what to say.
        lasting = [cause for job_id, cause in silent.items() if job_id in self._silent]
        self._note_problem(lasting[0] if lasting else None)
        changed = not silent.keys() <= self._silent
        self._silent = frozenset(silent)
        for job_id, observation in observations.items():
            try:
                changed |= self._note(job_id, observation, now)
            except Exception:
                # One job's odd answer must not end the watch over all others.
                _logger.exception("What Slurm says of job %s was not understood: %s", job_id, observation)
        limited = any("Rate limit exceeded" in cause for cause in silent.values())
        # A silent controller costs time, but it is no burden to anybody.
        burden = 0.0 if silent else min(cost * _SHARE, LONGEST_SECONDS)
        self._interval = next_interval(
            self._interval, changed=changed, burden=burden, limited=limited, silent=bool(silent)
        )
        self._shortest = hurried_interval(self._interval, burden=burden, limited=limited)

    def _note(self, job_id: str, observation: Observation, now: float) -> bool:
        """Keep one observation, and wake those whom it concerns; whether anything changed."""
        before = self._tracked.get(job_id)
        if before is None:
            return False
        after = advance(before, observation, now, user_names([observation]))
        self._tracked[job_id] = after
        if after.unknown_state != before.unknown_state and after.unknown_state:
            _logger.warning("Job %s is in a state unknown to us: %s", job_id, after.unknown_state)
        if after.status is not None and (before.status is None or _visible(after.status) != _visible(before.status)):
            for watch in self._watches.get(job_id, ()):
                watch._wake()
        # A job that has just left squeue is asked for again soon, too.
        return after != before

    def _note_problem(self, cause: str | None) -> None:
        if cause != self.problem:
            if cause is not None and self.problem is None:
                _logger.warning("Slurm does not answer: %s", cause)
            elif cause is None:
                _logger.info("Slurm answers again")
            self.problem = cause


def next_interval(interval: float, *, changed: bool, burden: float, limited: bool, silent: bool = False) -> float:
    """Seconds until the next question: soon after a change, later and later without, never a burden. Pure.

    Args:
        interval: The seconds before.
        burden: Seconds that must pass for the question to be little work.
        limited: Slurm said that it is asked too often.
        silent: Slurm does not answer.
    """
    if limited:
        return min(interval * 2, LONGEST_SECONDS * 2)
    longest = _SILENT_SECONDS if silent else LONGEST_SECONDS
    return max(FIRST_SECONDS if changed else min(interval * _GROWTH, longest), burden)


def hurried_interval(interval: float, *, burden: float, limited: bool) -> float:
    """Seconds for which also those wait who are in a hurry; several submissions in a row are one question. Pure.

    Args:
        interval: The seconds without hurry.
        burden, limited: As for `next_interval`.
    """
    return interval if limited else max(_TOGETHER_SECONDS, min(burden, HURRIED_SECONDS))


def user_names(observations: Iterable[Observation]) -> dict[int, str]:
    """The names of those who cancelled jobs, as far as this host knows them."""
    names: dict[int, str] = {}
    for observation in observations:
        for row in observation.rows if isinstance(observation, Known) else ():
            if row.cancelled_by is not None:
                with contextlib.suppress(KeyError):
                    names[row.cancelled_by] = pwd.getpwuid(row.cancelled_by).pw_name
    return names


def advance(tracked: Tracked, observation: Observation, now: float, users: Mapping[int, str] | None = None) -> Tracked:
    """What is known of a job after one more observation; `users` names those who cancel. Pure."""
    if isinstance(observation, Unreachable):
        return tracked
    if isinstance(observation, Absent):
        return _absent(tracked, now)
    assert isinstance(observation, Known)
    rows = observation.rows
    shown = any(row.source == "squeue" for row in rows)
    gone_since = None if shown else (tracked.gone_since if tracked.gone_since is not None else now)
    gone_for = None if gone_since is None else now - gone_since
    status = summarize(rows, gone_for=gone_for, requeue=tracked.job.requeue, users=users)
    unknown = next((row.state for row in rows if row.state not in MEANINGS), None)
    tracked = replace(tracked, gone_since=gone_since, absent_since=None, unknown_state=unknown)
    if status is None:
        return tracked
    if not status.final or not _lacks_details(rows):
        return replace(tracked, status=status, ended_since=None)
    # The controller says that it is over; how, accounting says a moment later.
    ended_since = tracked.ended_since if tracked.ended_since is not None else now
    tracked = replace(tracked, ended_since=ended_since)
    return replace(tracked, status=status) if now - ended_since >= DETAIL_SECONDS else tracked


def _absent(tracked: Tracked, now: float) -> Tracked:
    absent_since = tracked.absent_since if tracked.absent_since is not None else now
    gone_since = tracked.gone_since if tracked.gone_since is not None else now
    tracked = replace(tracked, absent_since=absent_since, gone_since=gone_since)
    if now - absent_since < LOST_SECONDS:
        return tracked
    message = (
        f"Lost: neither Slurm's controller nor its accounting has known the job for {LOST_SECONDS / 60:.0f} minutes"
    )
    return replace(tracked, status=JobStatus(Phase.CRASHED, "Lost", message, "LOST", final=True))


def _lacks_details(rows: tuple[JobRow, ...]) -> bool:
    return any(
        row.source == "squeue" and row.exit_code is None and MEANINGS[row.state].finality is not Finality.NEVER
        for row in rows
        if row.state in MEANINGS
    )


def _visible(status: JobStatus) -> tuple[object, ...]:
    return status.phase, status.name, status.message, status.final
