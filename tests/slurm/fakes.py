"""Clusters for what neither real Slurm nor the machine's own processes can be made to say at a wanted moment.

`ScriptedCluster` gives written observations (five minutes of absence, a state word of the future, two thousand jobs).
`FaultyCluster` is a real cluster whose answers are lost on the way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from jobbergate_flows.slurm.cluster import FoundJob, SubmitRequest, Witness
from jobbergate_flows.slurm.jobs import Absent, ExitCode, JobRow, Known, Observation, SlurmJob
from jobbergate_flows.slurm.local_cluster import LocalCluster
from jobbergate_flows.slurm.steps import JobRecord

SUBMITTED = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def a_job(job_id: str = "1", *, requeue: bool = False, array: bool = False, directory: str = "/") -> SlurmJob:
    return SlurmJob(
        cluster="test", job_id=job_id, key=f"key{job_id}", name="test", user="me", directory=directory,
        standard_output=None, standard_error=None, submitted_at=SUBMITTED, requeue=requeue, array=array,
    )  # fmt: skip


def a_row(state: str, source: str = "squeue", *, exit_code: str | None = None, job_id: str = "1") -> JobRow:
    code = ExitCode.parse(exit_code) if exit_code else None
    return JobRow(job_id, job_id, state, source, exit_code=code)  # type: ignore[arg-type]


def seen(state: str, source: str = "squeue", *, exit_code: str | None = None) -> Known:
    return Known((a_row(state, source, exit_code=exit_code),))


class ScriptedCluster(LocalCluster):
    """Says of each job what `says` holds for its id, and counts how often it was asked."""

    def __init__(self, root: Path, says: Mapping[str, Observation] | None = None) -> None:
        super().__init__(root=root)
        self.says: dict[str, Observation] = dict(says or {})
        self.asked: list[frozenset[str]] = []

    async def query(self, jobs: Mapping[str, datetime]) -> dict[str, Observation]:
        self.asked.append(frozenset(jobs))
        return {job_id: self.says.get(job_id, Absent()) for job_id in jobs}


class FaultyCluster(LocalCluster):
    """`before_submit`, `after_submit`, `before_find` and `before_steps` are called there, each time; what they raise is
    the answer. `accounted` is what it says of the steps of every job, if anything.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root=root)
        self.before_submit: Callable[[], Awaitable[None]] = _nothing
        self.after_submit: Callable[[], Awaitable[None]] = _nothing
        self.before_find: Callable[[], Awaitable[None]] = _nothing
        self.before_steps: Callable[[], Awaitable[None]] = _nothing
        self.accounted: list[JobRecord] | None = None

    async def submit(self, request: SubmitRequest) -> str:
        await self.before_submit()
        job_id = await super().submit(request)
        await self.after_submit()
        return job_id

    async def find(self, job_name: str, *, since: datetime, witness: Witness | None = None) -> list[FoundJob]:
        await self.before_find()
        return await super().find(job_name, since=since, witness=witness)

    async def steps(self, job_id: str, *, since: datetime | None = None) -> list[JobRecord]:
        await self.before_steps()
        return await super().steps(job_id, since=since) if self.accounted is None else self.accounted


def raising(*errors: Exception) -> Callable[[], Awaitable[None]]:
    """Raises each error once, in order, and then no more."""
    left = list(errors)

    async def act() -> None:
        if left:
            raise left.pop(0)

    return act


async def _nothing() -> None:
    return
