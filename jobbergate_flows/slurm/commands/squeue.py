"""squeue: which jobs are alive."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from jobbergate_flows.slurm.cluster import FoundJob
from jobbergate_flows.slurm.commands.result import CommandResult, require_answer
from jobbergate_flows.slurm.errors import ClusterUnreachable
from jobbergate_flows.slurm.jobs import JobRow
from jobbergate_flows.slurm.states import parse_state

# No column that holds text of a user's: job names may contain pipes and newlines.
_FORMAT = "%i|%F|%K|%T|%r|%U|%V|%S|%N"
MAX_ARRAY_TASKS = 100_000


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
            "squeue", "-h", "-t", "all", "-o", "%F|%V|%T", f"--name={self.job_name}", f"--user={self.user}", *where,
        )  # fmt: skip

    def parse(self, result: CommandResult) -> list[FoundJob]:
        """The jobs found, arrays once.

        Raises:
            ClusterUnreachable
        """
        found: dict[str, FoundJob] = {}
        for line in require_answer("squeue", result).splitlines():
            fields = line.split("|")
            if len(fields) == 3 and fields[0].isdigit():
                found.setdefault(fields[0], FoundJob(fields[0], time_of(fields[1]), fields[2]))
        return list(found.values())


def time_of(text: str) -> datetime | None:
    """A time that Slurm prints as seconds since the epoch; None for `Unknown`, `None`, `N/A` or 0."""
    return datetime.fromtimestamp(int(text), UTC) if text.isdigit() and int(text) else None


def expand_tasks(text: str) -> Iterator[int]:
    """The task numbers of `0-3,7,9-11:2%4`.

    Raises:
        ClusterUnreachable: The text is shortened ("...") or is none: it names no tasks.
    """
    count = 0
    for part in text.split("%")[0].split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if match is None:
            raise ClusterUnreachable(f"squeue names array tasks as {text!r}")
        first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
        for task in range(first, last + 1, max(step, 1)):
            count += 1
            if count > MAX_ARRAY_TASKS:
                raise ClusterUnreachable(f"squeue names more than {MAX_ARRAY_TASKS} array tasks")
            yield task


def _rows(line: str) -> Iterator[JobRow]:
    fields = line.split("|")
    if len(fields) != 9:
        raise ClusterUnreachable(f"squeue printed a line that is none of ours: {line!r}")
    job_id, array_id, task, state_text, reason, uid, submit, start, nodes = fields
    state, by = parse_state(state_text)
    pending = re.fullmatch(r"\d+_\[(.*)\]", job_id)
    tasks: Iterator[int | None]
    if pending:
        tasks = iter(expand_tasks(pending[1]))
    else:
        tasks = iter((int(task),) if task.isdigit() and "_" in job_id else (None,))
    for number in tasks:
        yield JobRow(
            job_id=array_id if number is None else f"{array_id}_{number}",
            array_job_id=array_id,
            array_task_id=number,
            state=state,
            source="squeue",
            reason=reason if reason and reason != "None" else None,
            cancelled_by=by,
            user_id=int(uid) if uid.isdigit() else None,
            submit=time_of(submit),
            # Of a pending job it is when Slurm expects to start it.
            start=time_of(start) if state not in ("PENDING", "CONFIGURING") else None,
            nodes=nodes or None,
        )
