"""A run's labels on the Prefect server that name its job: where its results are, for whoever has not its ledger.

Any client of the API can change them: they serve to find files with the rights of whoever asks, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun

from jobbergate_flows.errors import JobbergateFlowsError
from jobbergate_flows.slurm.jobs import SlurmJob

_JOB = "slurm.job"
_RESULT_FILES = "slurm.result-files"


class RunHasNoJob(JobbergateFlowsError):
    """A run has no job that could be found."""


async def label_run(flow_run_id: UUID, job: SlurmJob, result_files: Sequence[str]) -> None:
    """Let a run name its job; a later attempt's takes the place of an earlier one's."""
    labels: dict[str, Any] = {_JOB: job.model_dump_json(), _RESULT_FILES: json.dumps(list(result_files))}
    async with get_client() as client:
        await client.update_flow_run_labels(flow_run_id, labels)


def job_of(run: FlowRun) -> tuple[SlurmJob, tuple[str, ...]]:
    """The job that a run names, and the patterns of its results.

    Raises:
        RunHasNoJob
    """
    labels: Mapping[str, Any] = run.labels
    try:
        job = SlurmJob.model_validate_json(labels[_JOB])
        patterns = json.loads(labels.get(_RESULT_FILES, "[]"))
        if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
            raise ValueError("its patterns are no list of texts")
    except (KeyError, ValueError, TypeError) as error:
        raise RunHasNoJob(
            "the run names no job",
            where=f"flow run {run.id}",
            hint="it was not submitted yet, or not by this version of jobbergate-flows",
        ) from error
    return job, tuple(patterns)
