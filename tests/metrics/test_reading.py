"""Following a running job's samples."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from jobbergate_flows.metrics.model import JobMetrics, Series
from jobbergate_flows.metrics.reading import Extent, JobSpan, MetricsFollower
from tests.metrics.samples import SINCE, START, piece


class Recorded:
    """A database with a sample a minute; it keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, float]] = []

    async def read(self, job_id: str, since: datetime, until: datetime) -> JobMetrics:
        return await self.read_many([JobSpan(job_id, since, until)])

    async def read_many(self, jobs: Sequence[JobSpan]) -> JobMetrics:
        [job] = jobs
        first, last = (int(moment.timestamp()) - START for moment in (job.since, job.until))
        self.asked.append((first, last))
        times = range(first - first % -60, last + 1, 60)
        return JobMetrics.of([piece({"RSS": [float(time) for time in times]}, times)])

    async def extents(self, jobs: Sequence[JobSpan]) -> dict[Series, Extent]:
        raise NotImplementedError


async def test_of_a_long_job_only_the_newest_samples_are_kept() -> None:
    reader = Recorded()
    follower = MetricsFollower(reader, JobSpan("7", SINCE, SINCE), only_newest=True)
    day = 24 * 3600

    first = await follower.update(SINCE + timedelta(days=1))
    second = await follower.update(SINCE + timedelta(days=1, minutes=1))

    assert reader.asked == [(day - 6 * 3600, day), (day - 64 * 60, day + 60)]
    assert len(first) == len(second) == 65
    assert second["RSS"].max() == day + 60
