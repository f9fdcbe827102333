"""What the Jobbergate API has and takes, with its own names (jobbergate-api 5.8.0). Fields that it adds are ignored."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

T = TypeVar("T")


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


Moment = Annotated[datetime, AfterValidator(_aware)]
"""The API's times are UTC, with a zone or without."""


class FileType(StrEnum):
    """What a file is to its application or job script: what is submitted, or what lies beside it."""

    ENTRYPOINT = "ENTRYPOINT"
    SUPPORT = "SUPPORT"


class SubmissionStatus(StrEnum):
    """Where a job submission is. REJECTED, DONE and ABORTED are ends; CANCELLED is one once its job has ended."""

    CREATED = "CREATED"
    SUBMITTED = "SUBMITTED"
    REJECTED = "REJECTED"
    DONE = "DONE"
    ABORTED = "ABORTED"
    CANCELLED = "CANCELLED"


class Model(BaseModel):
    """The base of all."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Resource(Model):
    """What every entry has."""

    id: int
    name: str
    owner_email: str
    created_at: Moment
    updated_at: Moment
    is_archived: bool = False
    description: str | None = None
    cloned_from_id: int | None = None


class TemplateFile(Model):
    """A template of an application."""

    parent_id: int
    filename: str
    file_type: FileType


class WorkflowFile(Model):
    """An application's `jobbergate.py`; `runtime_config` is the `jobbergate_config` of its `jobbergate.yaml`."""

    parent_id: int
    filename: str
    runtime_config: Mapping[str, Any] | None = None


class JobScriptTemplate(Resource):
    """An application, as lists have it."""

    identifier: str | None = None


class JobScriptTemplateDetails(JobScriptTemplate):
    """An application with its files' names; `template_vars` is the `application_config` of its `jobbergate.yaml`."""

    template_vars: Mapping[str, Any] | None = None
    template_files: tuple[TemplateFile, ...] | None = None
    workflow_files: tuple[WorkflowFile, ...] | None = None


class JobScriptFile(Model):
    """A file of a job script."""

    parent_id: int
    filename: str
    file_type: FileType


class JobScript(Resource):
    """A job script, as lists have it."""

    parent_template_id: int | None = None
    template: JobScriptTemplate | None = None


class JobScriptDetails(JobScript):
    """A job script with its files' names."""

    files: tuple[JobScriptFile, ...] | None = None


class JobSubmission(Resource):
    """A job submission, as lists have it. `slurm_job_state` is the newest that its agent told."""

    job_script_id: int | None = None
    slurm_job_id: int | None = None
    client_id: str
    status: SubmissionStatus
    slurm_job_state: str | None = None


class JobSubmissionDetails(JobSubmission):
    """A job submission. `report_message` says why it was rejected or aborted."""

    execution_directory: str | None = None
    report_message: str | None = None
    slurm_job_info: str | None = None
    sbatch_arguments: tuple[str, ...] | None = None


class PendingSubmission(Model):
    """A submission that waits for its cluster's agent."""

    id: int
    name: str
    owner_email: str
    execution_directory: str | None = None
    job_script: JobScriptDetails
    sbatch_arguments: tuple[str, ...] | None = None


class ActiveSubmission(Model):
    """A submission whose job its agent follows; one that was cancelled before it had a job has no `slurm_job_id`."""

    id: int
    name: str
    status: SubmissionStatus
    slurm_job_id: int | None = None


class Progress(Model):
    """A state that a submission's job came into."""

    id: int
    job_submission_id: int
    timestamp: Moment
    slurm_job_state: str | None = None
    additional_info: str | None = None


class ClusterStatus(Model):
    """When a cluster's agent last reported; healthy while that is no longer ago than `interval` seconds."""

    client_id: str
    last_reported: Moment
    interval: int
    is_healthy: bool


class MaxTime(Model):
    """The newest sample that the API has of one host, step and task, in seconds since 1970."""

    max_time: int
    node_host: str
    step: int
    task: int


class MetricsMark(Model):
    """How far the metrics of a submission have come."""

    job_submission_id: int
    max_times: tuple[MaxTime, ...] = ()


class MetricsPoint(Model):
    """The metrics of a submission in one interval that begins at `time` (seconds since 1970)."""

    time: int
    node_host: str
    step: int | None = None
    task: int | None = None
    cpu_frequency: float
    cpu_time: float
    cpu_utilization: float
    gpu_memory: float
    gpu_utilization: float
    page_faults: float
    memory_rss: float
    memory_virtual: float
    disk_read: float
    disk_write: float


class MetricsTimes(Model):
    """The first and the last sample of a submission, in seconds since 1970."""

    min: int
    max: int


class Page(Model, Generic[T]):
    """A part of a list."""

    items: tuple[T, ...]
    total: int
    page: int
    size: int
    pages: int


class Rendering(Model):
    """What a job script is rendered with by the API itself.

    Args:
        template_output_name_mapping: Template -> the name of what it renders to; exactly one is the entrypoint.
        param_dict: What templates see.
        sbatch_params: Injected as `#SBATCH` lines.
    """

    template_output_name_mapping: Mapping[str, str]
    param_dict: Mapping[str, Any] = Field(default_factory=dict)
    sbatch_params: tuple[str, ...] | None = None


class NewSubmission(Model):
    """A job submission to be made. With a `slurm_job_id` it is SUBMITTED at once, without one CREATED.

    Args:
        client_id: The OIDC client of the cluster's agent; otherwise the own one.
    """

    name: str
    job_script_id: int
    description: str | None = None
    slurm_job_id: int | None = None
    execution_directory: str | None = None
    client_id: str | None = None
    sbatch_arguments: tuple[str, ...] | None = None


class JobData(Model):
    """What an agent tells of a job.

    Args:
        slurm_job_id: Must be the one that the API has, None where it has none.
        slurm_job_state: One of the API's states; see `states.told_state`.
        slurm_job_info: Any text about the job; agents send JSON.
        slurm_job_state_reason: Why the job is in that state, for people.
    """

    slurm_job_id: int | None
    slurm_job_state: str
    slurm_job_info: str
    slurm_job_state_reason: str | None = None
