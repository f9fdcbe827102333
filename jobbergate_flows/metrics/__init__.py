"""What jobs used: of what they asked for, by accounting; and over time, by the InfluxDB to which Slurm writes it.

Importing this package imports nothing that is slow; its parts need numpy, `drawing` starts matplotlib in a process.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from jobbergate_flows.metrics.errors import (
    DrawingFailed,
    LibraryMissing,
    MetricsError,
    MetricsRefused,
    MetricsUnreachable,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobbergate_flows.metrics.model import JobMetrics
    from jobbergate_flows.metrics.reading import MetricsReader
    from jobbergate_flows.slurm.steps import Allocation


async def job_metrics(allocations: Sequence[Allocation], reader: MetricsReader) -> JobMetrics:
    """All samples of a job, or of an array's tasks, so far.

    Args:
        allocations: The job's, as `slurm.steps.allocations_of` makes them: its raw ids and times.
        reader: Of the database to which the job's cluster writes.

    Returns:
        Columns, empty where there is no sample: a job may have been too short for one, and those of a running job come
        late (see `MetricsFollower`). `Series.job` is the job's id as sacct shows it, `123_4` for an array's task.

    Raises:
        MetricsUnreachable: The database does not answer now.
        MetricsRefused: It refuses; the message holds its words.
    """
    from jobbergate_flows.metrics.model import JobMetrics
    from jobbergate_flows.metrics.reading import JobSpan

    if not allocations:
        return JobMetrics.empty()
    now = datetime.now(UTC)
    return await reader.read_many([JobSpan(one.raw_id, one.start, one.end or now, one.job_id) for one in allocations])


__all__ = [
    "DrawingFailed",
    "LibraryMissing",
    "MetricsError",
    "MetricsRefused",
    "MetricsUnreachable",
    "job_metrics",
]
