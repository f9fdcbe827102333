"""What a running job uses now, for its live page."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from jobbergate_flows.job_metrics import configured_reader
from jobbergate_flows.live_page import LiveUsage
from jobbergate_flows.slurm.jobs import JobStatus, SlurmJob
from jobbergate_flows.slurm.session import ClusterSession
from jobbergate_flows.slurm.steps import allocations_of

if TYPE_CHECKING:
    from jobbergate_flows.metrics.reading import MetricsFollower


class UsageNow:
    """What a running job uses now, by its newest samples."""

    def __init__(self, session: ClusterSession, job: SlurmJob) -> None:
        self._session = session
        self._job = job
        self._follower: MetricsFollower | None = None
        self._limit: float | None = None

    async def __call__(self, status: JobStatus) -> LiveUsage | None:
        from jobbergate_flows.metrics.usage import newest_of

        if self._job.array:
            # Of many tasks no single number says anything.
            return None
        follower = self._follower or await self._begin()
        if follower is None:
            return None
        self._follower = follower
        metrics = await follower.update(datetime.now(UTC))
        newest = await asyncio.to_thread(newest_of, metrics)
        return None if newest is None else LiveUsage(newest.memory, self._limit, newest.cpus, newest.at)

    async def _begin(self) -> MetricsFollower | None:
        from jobbergate_flows.metrics.reading import JobSpan, MetricsFollower

        reader = await configured_reader()
        records = await self._session.cluster.steps(self._job.job_id, since=self._job.submitted_at)
        allocations = allocations_of(records)
        if reader is None or len(allocations) != 1:
            # Nor of the parts of a heterogeneous job.
            return None
        [own] = allocations
        self._limit = own.memory / own.nodes if own.memory else None
        span = JobSpan(own.raw_id, own.start, datetime.now(UTC), own.job_id)
        return MetricsFollower(reader, span, only_newest=True)
