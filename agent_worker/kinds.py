"""What kinds of runs a worker has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jobbergate_flows.deployments import is_application

Kind = Literal["application", "submission", "flow"]
"""`application`: of a deployed application. `submission`: of a job submission of Jobbergate's. Both live in the worker.
`flow`: an ordinary flow, which runs as a Slurm job."""

SUBMISSION_FLOW = "jobbergate-submission"
"""The flow of the runs that are Jobbergate's job submissions; its deployments are named after the work pools."""
SUBMISSION_ENTRYPOINT = "agent_worker.jobbergate.submission.run_submission"
"""The entrypoint of the deployment whose runs are Jobbergate's job submissions."""


def kind_of(entrypoint: str | None, pull_steps: Sequence[Mapping[str, Any]] | None) -> Kind:
    """What a deployment's runs are."""
    if is_application(entrypoint, pull_steps):
        return "application"
    return "submission" if entrypoint == SUBMISSION_ENTRYPOINT and not pull_steps else "flow"


def submitted_as(kind: Kind) -> str:
    """The word for the jobs of such runs in the ledger, which knows two: submitted by the worker, or a flow itself."""
    return "flow" if kind == "flow" else "application"
