"""What accounting keeps of a job and of its steps: what was asked for, what was used, and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from jobbergate_flows.slurm.jobs import ExitCode


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of a job. None is what accounting does not know; of a running step it knows no use at all.

    `step_id` is `batch` (the job script itself), `extern`, or the number of an srun ("0"). `elapsed` and the CPU times
    are seconds, sizes bytes. `tasks` is how many it had. Accounting samples memory (JobAcctGatherFrequency): `max_rss`
    is the largest sample of one task, `average_rss` the mean of all tasks' largest ones. `usage_max` (one task's),
    `usage_total` (all tasks' largest ones together) and `usage_average` are by Slurm's names of trackable resources:
    `mem` in bytes, `cpu` in seconds, `gres/gpuutil` in percent, `gres/gpumem` in bytes.
    """

    step_id: str
    state: str
    start: datetime | None = None
    end: datetime | None = None
    elapsed: int = 0
    cpus: int = 0
    nodes: int = 0
    tasks: int | None = None
    total_cpu: float | None = None
    user_cpu: float | None = None
    system_cpu: float | None = None
    max_rss: int | None = None
    max_rss_node: str | None = None
    max_rss_task: int | None = None
    average_rss: int | None = None
    usage_max: Mapping[str, int] = field(default_factory=dict)
    usage_total: Mapping[str, int] = field(default_factory=dict)
    usage_average: Mapping[str, int] = field(default_factory=dict)
    energy: int | None = None


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One life of a job or of an array task: a requeue begins another one of the same `job_id`.

    `job_id` is `123`, or `123_4` for an array task; `raw_id` is Slurm's own number of the task,
    and empty where there is no Slurm. `elapsed` and
    `total_cpu` are seconds, `time_limit` minutes (None: none, or not known), `energy` joules. `requested` and
    `allocated` are by Slurm's names of trackable resources, `mem` in bytes for the whole job; `allocated` holds no
    `mem` where the site shares out CPUs only, and nothing at all for what never started.
    """

    job_id: str
    raw_id: str
    state: str
    exit_code: ExitCode | None = None
    submit: datetime | None = None
    eligible: datetime | None = None
    start: datetime | None = None
    end: datetime | None = None
    elapsed: int = 0
    time_limit: int | None = None
    cpus: int = 0
    nodes: int = 0
    total_cpu: float | None = None
    requested: Mapping[str, int] = field(default_factory=dict)
    allocated: Mapping[str, int] = field(default_factory=dict)
    energy: int | None = None
    steps: tuple[StepRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class Allocation:
    """What a job, or one task of an array, was given, from its start until its end (None: it runs).

    `job_id` is `123` or `123_4`; `raw_id` Slurm's own number of it, by which its metrics go. `memory` is in bytes, on
    all nodes together; None where it is not limited.
    """

    job_id: str
    raw_id: str
    start: datetime
    end: datetime | None
    nodes: int = 1
    cpus: int = 1
    memory: int | None = None
    gpus: int = 0


def allocations_of(records: Sequence[JobRecord]) -> list[Allocation]:
    """What these jobs were given, those that have begun: of one that was requeued, its last life. Pure."""
    # For a second accounting knows when a job began, but not yet with what: it is still PENDING there.
    begun = [record for record in records if record.start is not None and record.raw_id and record.state != "PENDING"]
    last = {record.job_id: record for record in begun}
    return [
        Allocation(
            job_id=record.job_id,
            raw_id=record.raw_id,
            start=record.start,
            end=record.end,
            nodes=record.nodes or 1,
            cpus=record.cpus or 1,
            # Where Slurm does not hand out memory, there is only what was asked for.
            memory=record.allocated.get("mem") or record.requested.get("mem") or None,
            gpus=record.allocated.get("gres/gpu", 0),
        )
        for record in last.values()
        if record.start is not None
    ]
