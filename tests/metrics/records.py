"""Records of jobs as accounting has them, with what a test does not care about filled in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from jobbergate_flows.slurm.steps import JobRecord, StepRecord

BEGIN = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
MIB, GIB = 1024**2, 1024**3


def at(seconds: float) -> datetime:
    return BEGIN + timedelta(seconds=seconds)


def a_step(
    name: str = "batch",
    *,
    begin: float = 0,
    elapsed: int = 3600,
    cpu: float | None = 3600,
    rss: int | None = GIB,
    tasks: int = 1,
    nodes: int = 1,
    **more: Any,
) -> StepRecord:
    """`rss` is the largest task's; all tasks have had as much."""
    total = {} if rss is None else {"mem": rss * tasks}
    known = {"state": "COMPLETED", "usage_total": total, **more}
    return StepRecord(
        name, start=at(begin), end=at(begin + elapsed), elapsed=elapsed, tasks=tasks, nodes=nodes, total_cpu=cpu,
        max_rss=rss, **known,
    )  # fmt: skip


def a_job(
    *steps: StepRecord,
    job_id: str = "6",
    state: str = "COMPLETED",
    elapsed: int = 3600,
    limit: int | None = 120,
    cpus: int = 1,
    nodes: int = 1,
    mem: int | None = 4 * GIB,
    **more: Any,
) -> JobRecord:
    """A job of an hour with a limit of two, one CPU and 4 GiB; `limit` is in minutes."""
    allocated = {"cpu": cpus, "node": nodes} | ({"mem": mem} if mem else {})
    known = {"submit": BEGIN, "start": BEGIN, "end": at(elapsed), "allocated": allocated, **more}
    return JobRecord(
        job_id, job_id, state, elapsed=elapsed, time_limit=limit, cpus=cpus, nodes=nodes, steps=steps, **known
    )
