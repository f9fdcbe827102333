"""What is known of a job: its identity, what Slurm shows of it, and what that means."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict


class SlurmJob(BaseModel):
    """A submitted job: all that is needed to follow it, and nothing that changes.

    `job_id` is Slurm's id of the job or of the whole array ("123"). `directory` is the job's working directory.
    `standard_output` and `standard_error` are absolute paths, in which `%a` stands for the array task's index when
    `array` is true, and are equal when both streams go to one file. `requeue` says whether Slurm may requeue it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cluster: str
    job_id: str
    key: str
    name: str
    user: str
    directory: str
    standard_output: str | None
    standard_error: str | None
    submitted_at: datetime
    array: bool = False
    requeue: bool = False


@dataclass(frozen=True, slots=True)
class ExitCode:
    """Slurm's `code:signal` pair."""

    code: int
    signal: int = 0

    def __str__(self) -> str:
        return f"{self.code}:{self.signal}"

    @classmethod
    def parse(cls, text: str) -> ExitCode | None:
        """Read `0:9`; None for an empty or odd field."""
        code, _, signal = text.strip().partition(":")
        try:
            return cls(int(code), int(signal or 0))
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class JobRow:
    """One job or one array task, as one of Slurm's commands shows it.

    `job_id` is `123`, or `123_4` for an array task. `state` is Slurm's own word (`CANCELLED by 1001` keeps its
    number in `cancelled_by`). Times are aware (UTC). `partition` is a list with commas while Slurm may still choose.
    The last four are squeue's and the local cluster's only: `expected_start` is when Slurm thinks to start a pending
    job, or its `--begin`; `time_limit` is in minutes, None for none; `node_count` and `cpus` are what it has, or asks
    for.
    """

    job_id: str
    array_job_id: str
    state: str
    source: Literal["squeue", "sacct", "local"]
    array_task_id: int | None = None
    reason: str | None = None
    exit_code: ExitCode | None = None
    cancelled_by: int | None = None
    user_id: int | None = None
    submit: datetime | None = None
    start: datetime | None = None
    end: datetime | None = None
    nodes: str | None = None
    partition: str | None = None
    # It moves with every look of Slurm's backfill scheduler: that alone is no change of the job.
    expected_start: datetime | None = field(default=None, compare=False)
    time_limit: int | None = None
    node_count: int | None = None
    cpus: int | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """Slurm knows the job. `rows` holds one row, or one for each array task, ordered by task."""

    rows: tuple[JobRow, ...]


@dataclass(frozen=True, slots=True)
class Absent:
    """Slurm was asked, answered, and does not have the job."""


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No information: a command failed, or its answer proves nothing."""

    cause: str


Observation = Known | Absent | Unreachable


class Phase(StrEnum):
    """Where a job is, in the words that Prefect has for it."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CRASHED = "crashed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class JobStatus:
    """What a job's rows mean, for the whole job: the worst of an array's tasks.

    `name` is the name of the state for people (`Queued`, `Running`, `OutOfMemory`, `TimedOut`, ...); `message` one
    line with Slurm's reason, exit code and, for an array, the count of states. `needs_person` says that the job
    will not go on by itself (held, dependency never satisfied). `expected_start` is the earliest that Slurm
    names for a pending task; `time_limit` (minutes), `node_count` and `cpus` are one task's, as in `JobRow`.
    """

    phase: Phase
    name: str
    message: str
    state: str
    final: bool
    needs_person: bool = False
    reason: str | None = None
    exit_code: ExitCode | None = None
    cancelled_by: int | None = None
    submit: datetime | None = None
    start: datetime | None = None
    end: datetime | None = None
    nodes: str | None = None
    partition: str | None = None
    # It moves with every look of Slurm's backfill scheduler: that alone is no change of the job.
    expected_start: datetime | None = field(default=None, compare=False)
    time_limit: int | None = None
    node_count: int | None = None
    cpus: int | None = None
    rows: tuple[JobRow, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """How an attempt ended.

    Args:
        name: The final state's name, as `JobStatus.name`.
        memory: The memory that it had on a node, as sbatch takes it: for jobs that name none and got the default.
        time_limit: The time limit that it had, in seconds.
        bad_nodes: A node list of Slurm's: what failed.
        unfinished: Of an array, the numbers of the tasks that did not complete.
        others: Of an array, the names of its tasks' other ends.
    """

    name: str
    memory: str | None = None
    time_limit: float | None = None
    bad_nodes: str | None = None
    unfinished: tuple[int, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all its ends that were none of success."""
        return (self.name, *self.others)
