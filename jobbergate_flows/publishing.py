"""The pages of an ended job: its summary, its efficiency, its plots, its results."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import UUID

from jobbergate_flows.artifacts import RunArtifacts
from jobbergate_flows.errors import JobbergateFlowsError
from jobbergate_flows.job_metrics import configured_reader, plots_markdown
from jobbergate_flows.job_pages import summary_markdown
from jobbergate_flows.metrics.advice import advise
from jobbergate_flows.metrics.efficiency import Usage, efficiency
from jobbergate_flows.metrics.report import efficiency_markdown
from jobbergate_flows.results_page import results_markdown
from jobbergate_flows.slurm.jobs import JobStatus, SlurmJob
from jobbergate_flows.slurm.session import ClusterSession
from jobbergate_flows.slurm.steps import JobRecord, allocations_of

_BY_ACCOUNTING = (
    "This is by Slurm's accounting alone. Closer peaks and plots over time need samples of the job: an `InfluxMetrics` "
    "block, named in the worker's setting `METRICS`, and a job that lives for some of them."
)
_METRICS_SECONDS = 300.0
Logger = logging.Logger | logging.LoggerAdapter[Any]


async def publish_job(
    session: ClusterSession,
    job: SlurmJob,
    status: JobStatus,
    artifacts: RunArtifacts,
    logger: Logger,
    *,
    results: bool = True,
    task_run_id: UUID | None = None,
) -> None:
    """Publish the pages of an ended job.

    One that cannot be made (accounting, the database of metrics or the job's directory cannot be reached) holds up no
    other: the run's log says why.

    Args:
        results: Whether the job's files are listed.
    """
    details = await session.details(job)
    await artifacts.add(
        "job-summary",
        summary_markdown(job, status, details.fields),
        description=f"Slurm job {job.job_id}: {status.message}",
        task_run_id=task_run_id,
    )

    async def page(what: str, make: Callable[[], Awaitable[None]]) -> None:
        try:
            await make()
        except Exception as error:
            logger.warning("Job %s has no %s: %s", job.job_id, what, _words(error))

    async def publish_use() -> None:
        records = await session.records(job)
        usages: Sequence[Usage] = ()
        if records:
            try:
                usages = await _publish_plots(job, records, artifacts, task_run_id)
            except Exception as error:
                logger.warning("Job %s has no plots: %s", job.job_id, _words(error))
            report = efficiency(records, usages=usages)
            advice = advise(report)
            await artifacts.add(
                "efficiency",
                "\n\n".join([efficiency_markdown(report), *([] if usages else [_BY_ACCOUNTING])]),
                description=f"Slurm job {job.job_id}: {advice[0] if advice else 'no advice'}",
                task_run_id=task_run_id,
            )

    async def publish_results() -> None:
        found = await session.results(job)
        row = await asyncio.to_thread(session.ledger.get, job.key)
        if found.files or (row is not None and row.result_files):
            await artifacts.add(
                "results",
                await results_markdown(session.cluster, job, found, without=_outputs(job)),
                description=f"{len(found.files)} files of Slurm job {job.job_id}",
                task_run_id=task_run_id,
            )

    await page("efficiency report", publish_use)
    if results:
        await page("list of results", publish_results)


async def _publish_plots(
    job: SlurmJob, records: Sequence[JobRecord], artifacts: RunArtifacts, task_run_id: UUID | None
) -> list[Usage]:
    reader = await configured_reader()
    allocations = allocations_of(records)
    if reader is None or not allocations:
        return []
    from jobbergate_flows.metrics import job_metrics

    # A database that answers byte by byte is never silent for as long as its own limit.
    async with asyncio.timeout(_METRICS_SECONDS):
        metrics = await job_metrics(allocations, reader)
    from jobbergate_flows.metrics.usage import usages_of

    await artifacts.add(
        "plots",
        await plots_markdown(job, metrics, allocations),
        description=f"Memory, CPU, GPU and disk of Slurm job {job.job_id} over time",
        task_run_id=task_run_id,
    )
    return await asyncio.to_thread(usages_of, metrics) if len(metrics) else []


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, JobbergateFlowsError | ValueError) else f"{type(error).__name__}: {error}"


def _outputs(job: SlurmJob) -> set[str]:
    """The files of a job's output, which is in the run's logs, relative to its directory."""
    given = (job.standard_output or "", job.standard_error or "")
    return {path.removeprefix(f"{job.directory}/") for path in given}
