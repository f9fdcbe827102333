"""`job metrics`: a job's samples as CSV."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from jobbergate_flows.cli.efficiency import read_records
from jobbergate_flows.cli.exits import BadInput, UsageError
from jobbergate_flows.cli.server import server_errors
from jobbergate_flows.slurm.ledger import Ledger
from jobbergate_flows.slurm.steps import allocations_of

if TYPE_CHECKING:
    from jobbergate_flows.metrics.model import JobMetrics
    from jobbergate_flows.metrics.reading import MetricsReader


def read_metrics(ledger: Ledger, word: str, access: str, block: str | None) -> JobMetrics:
    """All samples of a job, so far.

    Args:
        word, access: See `read_records`.
        block: The name of the InfluxMetrics block; otherwise the setting METRICS names it.

    Raises:
        UsageError: No block is named.
        ServerUnreachable, BadInput: The Prefect server, which holds the block, does not answer, or has none of the
            name.
        JobNotFound, ClusterUnreachable: See `read_records`.
        MetricsUnreachable, MetricsRefused: The database does not answer now, or refuses.
    """
    from jobbergate_flows.metrics import job_metrics

    reader = _reader(block)
    return asyncio.run(job_metrics(allocations_of(read_records(ledger, word, access)), reader))


def write_csv(metrics: JobMetrics, to: Path | None) -> None:
    """Write the samples to a file, or to standard output."""
    if to is None:
        metrics.to_csv(sys.stdout)
        return
    with to.open("w", newline="", encoding="utf-8") as file:
        metrics.to_csv(file)


def _reader(block: str | None) -> MetricsReader:
    with server_errors():
        from jobbergate_flows.blocks import InfluxMetrics
        from jobbergate_flows.settings import ReportSettings

        name = block or ReportSettings().metrics
        if name is None:
            raise UsageError(
                "no database of metrics is named",
                hint="name its block: --block, or PREFECT_INTEGRATIONS_JOBBERGATE_FLOWS_METRICS",
            )
        try:
            return cast(InfluxMetrics, InfluxMetrics.load(name)).reader()
        except ValueError as error:
            raise BadInput(
                f"there is no block influx-metrics/{name} that can be used",
                hint="`prefect block ls` shows those that there are",
            ) from error
