"""squeue: which jobs are alive."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from jobbergate_flows.slurm.arrays import expand_tasks
from jobbergate_flows.slurm.cluster import FoundJob
from jobbergate_flows.slurm.commands.result import CommandResult, require_answer
from jobbergate_flows.slurm.errors import ClusterUnreachable
from jobbergate_flows.slurm.jobs import JobRow, Phase
from jobbergate_flows.slurm.states import MEANINGS, Finality, parse_state
from jobbergate_flows.slurm.units import time_seconds

# No column that holds text of a user's: job names may contain pipes and newlines.
_LAST_SECOND = 253_402_300_799  # of the year 9999
# Nor memory: %m is per node for some jobs and per CPU for others, and does not say which.
_FORMAT = "%i|%F|%K|%T|%U|%V|%S|%e|%N|%P|%l|%D|%C|%r"


@dataclass(frozen=True, slots=True)
class Squeue:
    """The jobs of some ids, with those that ended a short while ago."""

    job_ids: Sequence[str]
    cluster: str | None = None

    def arguments(self) -> tuple[str, ...]:
        """The command line."""
        where = (f"--clusters={self.cluster}",) if self.cluster else ()
        return ("squeue", "-h", "-t", "all", "-o", _FORMAT, f"--jobs={','.join(self.job_ids)}", *where)

    def parse(self, result: CommandResult) -> list[JobRow]:
        """The jobs that squeue shows; pending tasks of an array, which are one line, each as a row.

        Raises:
            ClusterUnreachable
        """
        # With a single id that Slurm has forgotten, this is how it says so.
        if result.returncode == 1 and "Invalid job id specified" in result.stderr:
            return []
        output = require_answer("squeue", result)
        return [row for line in output.splitlines() for row in _rows(line)]


@dataclass(frozen=True, slots=True)
class SqueueFind:
    """One user's jobs of one name. The name holds no comma: squeue would split it."""

    job_name: str
    user: str
    cluster: str | None = None

    def arguments(self) -> tuple[str, ...]:
        """The command line."""
        where = (f"--clusters={self.cluster}",) if self.cluster else ()
        return (
            "squeue", "-h", "-t", "all", "-o", "%F|%V|%T|%j", f"--name={self.job_name}", f"--user={self.user}", *where,
        )  # fmt: skip

    def parse(self, result: CommandResult) -> list[FoundJob]:
        """The jobs found, arrays once.

        Raises:
            ClusterUnreachable
        """
        found: dict[str, FoundJob] = {}
        for line in require_answer("squeue", result).splitlines():
            job_id, submit, state, name = (*line.split("|", 3), "", "", "")[:4]
            # squeue takes names that differ in case for the same.
            if name == self.job_name and number_of(job_id) is not None:
                found.setdefault(job_id, FoundJob(job_id, time_of(submit), state))
        return list(found.values())


def number_of(text: str) -> int | None:
    """A number as Slurm prints it; None for all else, digits of other scripts too."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def time_of(text: str) -> datetime | None:
    """A time that Slurm prints as seconds since the epoch; None for 0, all that is no number, and far years."""
    seconds = number_of(text)
    return datetime.fromtimestamp(seconds, UTC) if seconds and seconds <= _LAST_SECOND else None


def rows_of(job_id: str, row: JobRow) -> Iterator[JobRow]:
    """The rows that a printed job id stands for: `6`, `6_0`, or `6_[0-3%2]` for an array's pending tasks."""
    array_id, _, task = job_id.partition("_")
    numbers: tuple[int | None, ...] = (number_of(task),)
    if task.startswith("["):
        # A list that cannot be read leaves one row without a number: the array is not over.
        with contextlib.suppress(ValueError):
            numbers = expand_tasks(task.strip("[]"))
    for number in numbers:
        own_id = array_id if number is None else f"{array_id}_{number}"
        yield replace(row, job_id=own_id, array_job_id=array_id, array_task_id=number)


def _rows(line: str) -> Iterator[JobRow]:
    fields = line.split("|", 13)
    if len(fields) != 14:
        raise ClusterUnreachable(f"squeue printed a line that is none of ours: {line!r}")
    job_id, array_id, _task, state_text, uid, submit, start, end, nodes, partition, *rest = fields
    limit, node_count, cpus, reason = rest
    state, by = parse_state(state_text)
    meaning = MEANINGS.get(state)
    ended = meaning is not None and meaning.finality is not Finality.NEVER
    # Of a pending job it is when Slurm expects to start it; and the end of a running one is its time limit.
    pends = meaning is not None and meaning.phase is Phase.PENDING
    row = JobRow(
        job_id=array_id,
        array_job_id=array_id,
        state=state,
        source="squeue",
        reason=reason if reason and reason != "None" else None,
        cancelled_by=by,
        user_id=number_of(uid),
        submit=time_of(submit),
        start=None if pends else time_of(start),
        end=time_of(end) if ended else None,
        nodes=nodes or None,
        expected_start=time_of(start) if pends else None,
        time_limit=_minutes(limit),
        node_count=number_of(node_count),
        cpus=number_of(cpus),
        partition=partition or None,
    )
    yield from rows_of(job_id, row)


def _minutes(limit: str) -> int | None:
    with contextlib.suppress(ValueError):
        seconds = time_seconds(limit)
        return None if math.isinf(seconds) else math.ceil(seconds / 60)
    # INVALID and NOT_SET.
    return None
