"""A job's metrics for users, as columns and as plots.

    from jobbergate_flows.job_metrics import job_metrics

    job = submit_job_script(script, directory="/scratch/me")
    wait_for_job(job)
    metrics = job_metrics(job)
    print(metrics.to_csv())

Each has an async twin whose name begins with `a`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from prefect.utilities.asyncutils import run_coro_as_sync

from jobbergate_flows import metrics as lower
from jobbergate_flows.blocks.cluster import SlurmCluster
from jobbergate_flows.blocks.metrics import InfluxMetrics
from jobbergate_flows.sessions import session_for
from jobbergate_flows.settings import ReportSettings
from jobbergate_flows.slurm.jobs import SlurmJob
from jobbergate_flows.slurm.steps import allocations_of

if TYPE_CHECKING:
    from jobbergate_flows.metrics.model import JobMetrics
    from jobbergate_flows.metrics.reading import MetricsReader
    from jobbergate_flows.slurm.steps import Allocation


async def ajob_metrics(
    job: SlurmJob, *, metrics: InfluxMetrics | str | None = None, cluster: SlurmCluster | str | None = None
) -> JobMetrics:
    """All samples that Slurm took of a job, or of an array's tasks, so far.

    Args:
        job: The job, running or ended.
        metrics: The block of the database to which the job's cluster writes, or the block's name; otherwise the setting
            `METRICS` names it.
        cluster: The job's cluster, where it is not the machine's own (see `submit_job_script`).

    Returns:
        Columns; empty where there is no sample (see `jobbergate_flows.metrics.job_metrics`).

    Raises:
        ValueError: There is no block of that name, or none is named.
        ClusterUnreachable: Slurm's accounting, which knows the job's raw ids and times, does not answer.
        MetricsUnreachable, MetricsRefused: The database does not answer now, or refuses.
    """
    found, _ = await _read(job, metrics, cluster)
    return found


def job_metrics(
    job: SlurmJob, *, metrics: InfluxMetrics | str | None = None, cluster: SlurmCluster | str | None = None
) -> JobMetrics:
    """See `ajob_metrics`."""
    return cast("JobMetrics", run_coro_as_sync(ajob_metrics(job, metrics=metrics, cluster=cluster)))


async def configured_reader() -> MetricsReader | None:
    """The reader of the metrics that the settings name; None where they name none.

    Raises:
        ValueError: There is no block of that name.
    """
    name = ReportSettings().metrics
    return None if name is None else cast(InfluxMetrics, await InfluxMetrics.aload(name)).reader()


async def ametrics_markdown(
    job: SlurmJob,
    *,
    metrics: InfluxMetrics | str | None = None,
    cluster: SlurmCluster | str | None = None,
    zone: str | None = None,
) -> str:
    """A job's plots as markdown with embedded images, for an artifact: memory, CPU, GPU and disk, where there are any.

    Args:
        zone: The IANA name of the times' zone, such as `Europe/Zurich`; otherwise this host's. For the others see
            `ajob_metrics`.

    Raises:
        DrawingFailed: The plots could not be drawn. For the others see `ajob_metrics`.
    """
    found, allocations = await _read(job, metrics, cluster)
    return await plots_markdown(job, found, allocations, zone=zone)


async def plots_markdown(
    job: SlurmJob, metrics: JobMetrics, allocations: Sequence[Allocation], *, zone: str | None = None
) -> str:
    """As `ametrics_markdown`, of metrics that were read already.

    Args:
        allocations: What the job was given: the limits that are drawn.

    Raises:
        DrawingFailed
    """
    from jobbergate_flows.metrics.drawing import adraw, image
    from jobbergate_flows.metrics.plots import plots

    made = await asyncio.to_thread(plots, metrics, allocations)
    if not made:
        return f"# Metrics of job {job.job_id}\n\nThere is no sample of it: it was too short for one, or none came yet."
    svgs = await adraw(made, zone=zone)
    images = [image(svg, plot.text) for svg, plot in zip(svgs, made, strict=True)]
    as_data = f"As data: `jobbergate-flows job metrics {job.job_id} --to metrics.csv`"
    return "\n\n".join([f"# Metrics of job {job.job_id}", *images, as_data])


def metrics_markdown(
    job: SlurmJob,
    *,
    metrics: InfluxMetrics | str | None = None,
    cluster: SlurmCluster | str | None = None,
    zone: str | None = None,
) -> str:
    """See `ametrics_markdown`."""
    return cast(str, run_coro_as_sync(ametrics_markdown(job, metrics=metrics, cluster=cluster, zone=zone)))


async def _read(
    job: SlurmJob, metrics: InfluxMetrics | str | None, cluster: SlurmCluster | str | None
) -> tuple[JobMetrics, list[Allocation]]:
    if isinstance(metrics, str):
        metrics = cast(InfluxMetrics, await InfluxMetrics.aload(metrics))
    reader = await configured_reader() if metrics is None else metrics.reader()
    if reader is None:
        raise ValueError(
            "no database of metrics is named: give `metrics`, the name of an InfluxMetrics block, or set "
            "PREFECT_INTEGRATIONS_JOBBERGATE_FLOWS_METRICS"
        )
    session = await session_for(cluster)
    allocations = allocations_of(await session.cluster.steps(job.job_id, since=job.submitted_at))
    return await lower.job_metrics(allocations, reader), allocations
