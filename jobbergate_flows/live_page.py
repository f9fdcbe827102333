"""What a run shows while its job lives: a progress bar and a page, and when they next differ. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from jobbergate_flows.markdown import code, table, text, time_of
from jobbergate_flows.slurm.jobs import JobRow, JobStatus, Phase, SlurmJob
from jobbergate_flows.slurm.states import MEANINGS, Finality
from jobbergate_flows.slurm.units import duration_text, size_text

LINES = 20
"""So many of the last lines of output are shown."""
_STEP = 0.01
_MIN_STEP = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class LiveUsage:
    """What a job uses now.

    Args:
        memory: Bytes, on the node that uses most.
        memory_limit: Bytes that it may use there.
        cpus: CPUs in use, over all nodes.
        at: When that was measured.
    """

    memory: float | None = None
    memory_limit: float | None = None
    cpus: float | None = None
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class LiveJob:
    """All that is known of a job at a moment.

    Args:
        lines: The last lines of its output.
        attempt: Counted from 1, and `attempts` that there may be.
    """

    job: SlurmJob
    status: JobStatus
    usage: LiveUsage | None = None
    lines: Sequence[str] = ()
    attempt: int = 1
    attempts: int = 1

    @property
    def time_limit(self) -> timedelta | None:
        """The job's, where it has one."""
        return None if self.status.time_limit is None else timedelta(minutes=self.status.time_limit)


@dataclass(frozen=True, slots=True)
class Progress:
    """A progress bar: percent, and what they are of."""

    percent: float
    words: str


def progress_of(live: LiveJob, now: datetime) -> Progress:
    """How far a job is: of an array the tasks that have ended, of another job the time against its limit.

    A job that waits is at 0, one that is Completed at 100; one that ended otherwise stays where it was.
    """
    status = live.status
    if status.phase is Phase.COMPLETED:
        return Progress(100.0, status.message)
    if len(status.rows) > 1 or live.job.array:
        ended, all_ = _tasks(status.rows)
        percent = 100.0 * ended / all_ if all_ else 0.0
        said = f"{ended} of {all_} tasks have ended"
        return Progress(round(percent, 1), f"{said}: {status.message}" if status.final else said)
    if status.phase is Phase.PENDING:
        start = f"; starts at about {time_of(live.status.expected_start)}" if live.status.expected_start else ""
        return Progress(0.0, f"{status.message}{start}")
    elapsed = _elapsed(status, now)
    share = min(elapsed / live.time_limit, 1.0) if live.time_limit else 0.0
    share = int(share / _STEP) * _STEP
    if status.final:
        return Progress(round(100 * share, 1), status.message)
    of = f" of {_duration(live.time_limit)}" if live.time_limit else ""
    return Progress(round(100 * share, 1), f"Running for {_rounded(elapsed, live.time_limit)}{of}")


def next_change(live: LiveJob, now: datetime) -> float | None:
    """Seconds after which a running job's progress differs although nothing has happened; None if never."""
    status = live.status
    array = len(status.rows) > 1 or live.job.array
    if status.final or status.phase is not Phase.RUNNING or array or not live.time_limit or status.start is None:
        return None
    step = max(live.time_limit * _STEP, _MIN_STEP)
    elapsed = _elapsed(status, now)
    return (step - elapsed % step) / timedelta(seconds=1) if elapsed < live.time_limit else None


def live_markdown(live: LiveJob, now: datetime) -> str:
    """The page of a job that lives, or has just ended."""
    job, status = live.job, live.status
    rows: dict[str, str] = {
        "Job": f"{job.job_id} on {job.cluster}",
        "Attempt": f"{live.attempt} of {live.attempts}" if live.attempts > 1 else "",
        "State": status.message,
        "Needs you": "It will not go on by itself." if status.needs_person else "",
        "Submitted": time_of(status.submit or job.submitted_at),
        "Starts at about": time_of(live.status.expected_start) if status.phase is Phase.PENDING else "",
        "Started": time_of(status.start) if status.phase is not Phase.PENDING else "",
        "Ended": time_of(status.end) if status.final else "",
        "Time": _time(live, now),
        "Nodes": status.nodes or "",
        "Memory": _memory(live.usage),
        "CPUs": _cpus(live),
        "Tasks": _task_counts(status.rows) if job.array else "",
    }
    parts = [
        f"# {text(job.name)}: {text(status.name)}",
        table(["", ""], [[label, value] for label, value in rows.items() if value]),
    ]
    if live.lines:
        parts += ["## The last lines of its output", code("\n".join(live.lines[-LINES:]))]
    return "\n\n".join(parts)


def _time(live: LiveJob, now: datetime) -> str:
    status = live.status
    if status.start is None or status.phase is Phase.PENDING:
        return f"at most {_duration(live.time_limit)}" if live.time_limit else ""
    of = f" of {_duration(live.time_limit)}" if live.time_limit else ""
    return f"{_rounded(_elapsed(status, now), None if status.final else live.time_limit)}{of}"


def _memory(usage: LiveUsage | None) -> str:
    if usage is None or usage.memory is None:
        return ""
    of = f" of {size_text(usage.memory_limit)}" if usage.memory_limit else ""
    return f"{size_text(usage.memory)}{of}{_at(usage)}"


def _cpus(live: LiveJob) -> str:
    usage = live.usage
    if usage is None or usage.cpus is None:
        return str(live.status.cpus or "")
    of = f" of {live.status.cpus}" if live.status.cpus else ""
    return f"{usage.cpus:.1f} in use{of}{_at(usage)}"


def _at(usage: LiveUsage) -> str:
    return f", at {time_of(usage.at)}" if usage.at else ""


def _tasks(rows: Sequence[JobRow]) -> tuple[int, int]:
    return sum(_has_ended(row) for row in rows), len(rows)


def _has_ended(row: JobRow) -> bool:
    meaning = MEANINGS.get(row.state)
    return meaning is not None and meaning.finality is not Finality.NEVER


def _task_counts(rows: Sequence[JobRow]) -> str:
    return ", ".join(f"{count} {state}" for state, count in Counter(row.state for row in rows).most_common())


def _elapsed(status: JobStatus, now: datetime) -> timedelta:
    if status.start is None:
        return timedelta(0)
    return max((status.end if status.final and status.end else now) - status.start, timedelta(0))


def _rounded(elapsed: timedelta, limit: timedelta | None) -> str:
    """As far as it is told: a page that says each second would change each second."""
    if limit is None:
        return _duration(elapsed)
    step = max(limit * _STEP, _MIN_STEP)
    return _duration(elapsed // step * step)


def _duration(duration: timedelta) -> str:
    return duration_text(duration / timedelta(seconds=1))
