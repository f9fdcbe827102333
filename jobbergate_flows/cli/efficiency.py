"""`job efficiency`: the report, read and printed."""

from __future__ import annotations

import asyncio
import re

from jobbergate_flows.cli.submissions import cluster_of, find_job, matching
from jobbergate_flows.cli.terminal import print_fields, print_table
from jobbergate_flows.metrics.advice import advise
from jobbergate_flows.metrics.efficiency import Efficiency
from jobbergate_flows.metrics.report import SPREAD_HEADERS, TASK_HEADERS, job_fields, spread_rows, task_rows
from jobbergate_flows.slurm.connect import connect
from jobbergate_flows.slurm.errors import JobNotFound
from jobbergate_flows.slurm.ledger import Ledger
from jobbergate_flows.slurm.steps import JobRecord


def read_records(ledger: Ledger, word: str, access: str) -> list[JobRecord]:
    """What accounting has of a job.

    Args:
        word: A job's id or key, or an array task's id.
        access: How a cluster is reached for a job that the ledger does not have; see `connect`.

    Raises:
        JobNotFound: Neither the ledger nor accounting has it, or it is no id of a job.
        ClusterUnreachable: The cluster does not answer, or is reached from other hosts.
    """
    task = re.fullmatch(r"([0-9]{1,18})_[0-9]{1,18}", word)
    own = task[1] if task else word
    if matching(ledger, own) or not own.isdecimal():
        _, job = find_job(ledger, own)
        cluster, since = cluster_of(job.cluster), job.submitted_at
        job_id = word if task else job.job_id
    else:
        cluster, since, job_id = connect(access), None, word
    records = asyncio.run(cluster.steps(job_id, since=since))
    if not records:
        raise JobNotFound(
            f"accounting has no job {job_id}",
            where=cluster.name,
            hint="look at its id; accounting has a job some seconds after its submission",
        )
    return records


def print_report(report: Efficiency) -> None:
    """Print the figures, and the advice below them."""
    if len(report.jobs) == 1:
        print_fields(job_fields(report.jobs[0]))
    else:
        print_table(SPREAD_HEADERS, spread_rows(report))
        print()
        print_table(TASK_HEADERS, task_rows(report))
    if advice := advise(report):
        print("\nFor the next time:")
        for sentence in advice:
            print(f"- {sentence}")
