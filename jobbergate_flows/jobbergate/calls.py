"""The endpoints of the Jobbergate API as data: what is asked, and what the answer is. A client sends them.

client.send(calls.get_job_script(7))          # a JobScriptDetails
client.items(calls.list_job_scripts())        # all of them, page by page
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeAlias, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel

from jobbergate_flows.jobbergate.models import (
    ActiveSubmission,
    ClusterStatus,
    FileType,
    JobData,
    JobScript,
    JobScriptDetails,
    JobScriptFile,
    JobScriptTemplate,
    JobScriptTemplateDetails,
    JobSubmission,
    JobSubmissionDetails,
    MetricsMark,
    MetricsPoint,
    MetricsTimes,
    NewSubmission,
    Page,
    PendingSubmission,
    Progress,
    Rendering,
    SubmissionStatus,
    TemplateFile,
    WorkflowFile,
)

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
Changes = Any
"""Fields of an entry that are to be changed; those that are not named stay."""

MAX_FILE_BYTES = 5 << 20
"""A larger file the API does not take (413)."""
MAX_METRICS_ROWS = 2047
"""So many rows of metrics it takes in one call: 16 parameters each, and PostgreSQL's driver takes 32767 of them."""
MAX_TEXT = 255
"""So long names, descriptions, directories and single sbatch arguments may be."""
_PAGE = 100
PREFIX = "/jobbergate"


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request.

    Args:
        method: GET, POST, PUT or DELETE.
        path: Behind the API's base URL.
        read: Makes the answer's value of a response of success.
        params: Of the query; None is left out.
        repeatable: Whether it does no harm to send it again when nobody knows what became of it.
    """

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    read: Callable[[httpx.Response], T]
    params: Mapping[str, Any] = field(default_factory=dict)
    json: Any = None
    form: Mapping[str, str] | None = None
    files: Mapping[str, tuple[str, bytes]] | None = None
    content: bytes | None = field(default=None, repr=False)
    repeatable: bool = True

    def build(self, base_url: str) -> httpx.Request:
        """The request."""
        headers = {"Accept": "application/json"}
        if self.content is not None:
            headers["Content-Type"] = "application/octet-stream"
        request = httpx.Request(
            self.method,
            base_url + PREFIX + self.path,
            params={name: value for name, value in self.params.items() if value is not None},
            json=self.json,
            data=self.form,
            files=self.files,
            content=self.content,
            headers=headers,
        )
        # An upload too can be sent again then, when its token is refused.
        request.read()
        return request


Program: TypeAlias = Generator[Call[Any], Any, T]
"""What takes several calls: it yields each, and gets its answer, or its error raised."""


@dataclass(frozen=True)
class Listing(Generic[T]):
    """A list that comes in pages.

    Args:
        call: Its first page.
        identify: What tells two items apart.
    """

    call: Call[Page[T]]
    identify: Callable[[T], Any]

    def page(self, number: int) -> Call[Page[T]]:
        """The call of one page, from 1."""
        return replace(self.call, params={**self.call.params, "page": number})


@dataclass(frozen=True, slots=True)
class Selection:
    """Which entries of a list, and in which order.

    Args:
        search: Words; an entry counts that has one of them in its name, description, owner, or identifier.
        sort_field: By which field; `id` is the one order in which no entry is lost while others are made.
        user_only: Only the caller's own.
        size: Entries a page, at most 100.
    """

    search: str | None = None
    sort_field: str = "id"
    sort_ascending: bool = True
    user_only: bool = False
    include_archived: bool = False
    size: int = _PAGE

    def params(self) -> dict[str, Any]:
        """As the API's query has them."""
        return {
            "search": self.search,
            "sort_field": self.sort_field,
            "sort_ascending": self.sort_ascending,
            "user_only": self.user_only,
            "include_archived": self.include_archived,
            "size": self.size,
        }


ALL = Selection()


# Applications


def list_applications(selection: Selection = ALL, *, without_identifier: bool = True) -> Listing[JobScriptTemplate]:
    """Applications.

    Args:
        without_identifier: Also those that have none.
    """
    params = {**selection.params(), "include_null_identifier": without_identifier}
    return _listing(JobScriptTemplate, "/job-script-templates", params)


def get_application(identifier: int | str) -> Call[JobScriptTemplateDetails]:
    """An application, by id or identifier, with its files' names."""
    return _get(JobScriptTemplateDetails, _application(identifier))


def create_application(
    name: str,
    *,
    identifier: str | None = None,
    description: str | None = None,
    template_vars: Mapping[str, Any] | None = None,
) -> Call[JobScriptTemplateDetails]:
    """A new application without files. An identifier that is taken is a 409, one of digits only a 422."""
    body = _given(name=name, identifier=identifier, description=description, template_vars=template_vars)
    return _post(JobScriptTemplateDetails, "/job-script-templates", body)


def update_application(identifier: int | str, **changes: Changes) -> Call[JobScriptTemplateDetails]:
    """Change an application: `name`, `identifier`, `description`, `template_vars`, `is_archived`."""
    return _put(JobScriptTemplateDetails, _application(identifier), changes)


def clone_application(identifier: int | str, **changes: Changes) -> Call[JobScriptTemplateDetails]:
    """A copy of an application, for the caller; without an identifier unless `changes` has one."""
    return _post(JobScriptTemplateDetails, f"/job-script-templates/clone/{_quoted(identifier)}", changes)


def delete_application(identifier: int | str) -> Call[None]:
    """Delete an application."""
    return Call("DELETE", _application(identifier), _nothing)


def upload_template(
    identifier: int | str, file_type: FileType, filename: str, content: bytes, *, previous: str | None = None
) -> Call[TemplateFile]:
    """Give an application a template, or another content of it.

    Args:
        content: UTF-8 text, at most `MAX_FILE_BYTES`.
        previous: The name that the file had.
    """
    path = f"{_application(identifier)}/upload/template/{file_type}"
    return _upload(TemplateFile, path, filename, content, previous)


def download_template(identifier: int | str, filename: str) -> Call[bytes]:
    """A template's content."""
    return Call("GET", f"{_application(identifier)}/upload/template/{_quoted(filename)}", _content)


def delete_template(identifier: int | str, filename: str) -> Call[None]:
    """Delete a template."""
    return Call("DELETE", f"{_application(identifier)}/upload/template/{_quoted(filename)}", _nothing)


def upload_workflow(identifier: int | str, content: bytes, runtime_config: Mapping[str, Any]) -> Call[WorkflowFile]:
    """Give an application its `jobbergate.py`, and the `jobbergate_config` of its `jobbergate.yaml`."""
    return replace(
        _upload(WorkflowFile, f"{_application(identifier)}/upload/workflow", "jobbergate.py", content),
        params={},
        form={"runtime_config": json.dumps(dict(runtime_config))},
    )


def download_workflow(identifier: int | str) -> Call[bytes]:
    """The content of an application's `jobbergate.py`."""
    return Call("GET", f"{_application(identifier)}/upload/workflow", _content)


def delete_workflow(identifier: int | str) -> Call[None]:
    """Delete an application's `jobbergate.py`."""
    return Call("DELETE", f"{_application(identifier)}/upload/workflow", _nothing)


# Job scripts


def list_job_scripts(selection: Selection = ALL, *, of_application: int | None = None) -> Listing[JobScript]:
    """Job scripts; those of one application only where its id is given."""
    params = {**selection.params(), "include_parent": True, "from_job_script_template_id": of_application}
    return _listing(JobScript, "/job-scripts", params)


def get_job_script(job_script_id: int) -> Call[JobScriptDetails]:
    """A job script with its files' names."""
    return _get(JobScriptDetails, f"/job-scripts/{job_script_id}")


def create_job_script(name: str, description: str | None = None) -> Call[JobScriptDetails]:
    """A new job script without files."""
    return _post(JobScriptDetails, "/job-scripts", _given(name=name, description=description))


def render_job_script(
    identifier: int | str, rendering: Rendering, *, name: str, description: str | None = None
) -> Call[JobScriptDetails]:
    """A job script that the API renders of an application's templates."""
    body = {
        "create_request": _given(name=name, description=description),
        "render_request": rendering.model_dump(mode="json", exclude_none=True),
    }
    return _post(JobScriptDetails, f"/job-scripts/render-from-template/{_quoted(identifier)}", body)


def update_job_script(job_script_id: int, **changes: Changes) -> Call[JobScriptDetails]:
    """Change a job script: `name`, `description`, `is_archived`."""
    return _put(JobScriptDetails, f"/job-scripts/{job_script_id}", changes)


def clone_job_script(job_script_id: int, **changes: Changes) -> Call[JobScriptDetails]:
    """A copy of a job script, for the caller."""
    return _post(JobScriptDetails, f"/job-scripts/clone/{job_script_id}", changes)


def delete_job_script(job_script_id: int) -> Call[None]:
    """Delete a job script; its submissions that wait for an agent are then rejected by the API."""
    return Call("DELETE", f"/job-scripts/{job_script_id}", _nothing)


def upload_job_script_file(
    job_script_id: int, file_type: FileType, filename: str, content: bytes, *, previous: str | None = None
) -> Call[JobScriptFile]:
    """Give a job script a file; see `upload_template`. A second entrypoint is a 422."""
    return _upload(JobScriptFile, f"/job-scripts/{job_script_id}/upload/{file_type}", filename, content, previous)


def download_job_script_file(job_script_id: int, filename: str) -> Call[bytes]:
    """The content of a job script's file."""
    return Call("GET", f"/job-scripts/{job_script_id}/upload/{_quoted(filename)}", _content)


def delete_job_script_file(job_script_id: int, filename: str) -> Call[None]:
    """Delete a file of a job script."""
    return Call("DELETE", f"/job-scripts/{job_script_id}/upload/{_quoted(filename)}", _nothing)


# Job submissions


def list_job_submissions(
    selection: Selection = ALL,
    *,
    status: SubmissionStatus | None = None,
    slurm_job_ids: Sequence[int] = (),
    of_job_script: int | None = None,
) -> Listing[JobSubmission]:
    """Job submissions; those with a status, with one of some Slurm ids, or of one job script, where given."""
    params = {
        **selection.params(),
        "submit_status": status,
        "slurm_job_ids": ",".join(map(str, slurm_job_ids)) or None,
        "from_job_script_id": of_job_script,
    }
    return _listing(JobSubmission, "/job-submissions", params)


def get_job_submission(submission_id: int) -> Call[JobSubmissionDetails]:
    """A job submission."""
    return _get(JobSubmissionDetails, f"/job-submissions/{submission_id}")


def create_job_submission(submission: NewSubmission) -> Call[JobSubmissionDetails]:
    """A new job submission."""
    return _post(JobSubmissionDetails, "/job-submissions", submission.model_dump(mode="json", exclude_none=True))


def update_job_submission(submission_id: int, **changes: Changes) -> Call[JobSubmissionDetails]:
    """Change a job submission: `name`, `description`, `execution_directory`, `status`, `is_archived`."""
    return _put(JobSubmissionDetails, f"/job-submissions/{submission_id}", changes)


def clone_job_submission(submission_id: int) -> Call[JobSubmissionDetails]:
    """The same submission once more, CREATED."""
    return _post(JobSubmissionDetails, f"/job-submissions/clone/{submission_id}", None)


def cancel_job_submission(submission_id: int) -> Call[JobSubmissionDetails]:
    """Have a submission cancelled that is CREATED or SUBMITTED; its agent cancels the job."""
    # What is cancelled cannot be cancelled once more.
    return replace(_put(JobSubmissionDetails, f"/job-submissions/cancel/{submission_id}", None), repeatable=False)


def delete_job_submission(submission_id: int) -> Call[None]:
    """Delete a job submission."""
    return Call("DELETE", f"/job-submissions/{submission_id}", _nothing)


def list_progress(submission_id: int) -> Listing[Progress]:
    """The states that a submission's job came into, oldest first."""
    return _listing(Progress, f"/job-submissions/{submission_id}/progress", {"size": _PAGE, "sort_field": "id"})


def get_metrics(
    submission_id: int,
    *,
    start_time: float,
    end_time: float | None = None,
    node: str | None = None,
    sample_rate: Literal[10, 60, 600, 3600, 604800] = 600,
) -> Call[tuple[MetricsPoint, ...]]:
    """The metrics of a submission.

    Args:
        start_time, end_time: Seconds since 1970; intervals count that begin between them.
        node: Of one node only; otherwise of all together.
        sample_rate: The length of an interval, in seconds.
    """
    params = {"start_time": start_time, "end_time": end_time, "node": node, "sample_rate": sample_rate}
    return Call("GET", f"/job-submissions/{submission_id}/metrics", _read_many(MetricsPoint), params)


def get_metrics_times(submission_id: int) -> Call[MetricsTimes]:
    """When a submission's metrics begin and end; a 404 without any."""
    return _get(MetricsTimes, f"/job-submissions/{submission_id}/metrics/timestamps")


# For agents: of the caller's own client only


def list_pending(size: int = _PAGE) -> Listing[PendingSubmission]:
    """Submissions that wait to be submitted. The API gives them in no order, and drops those that were told of."""
    return _listing(PendingSubmission, "/job-submissions/agent/pending", {"size": size})


def list_active(size: int = _PAGE) -> Listing[ActiveSubmission]:
    """Submissions whose jobs are to be followed, or cancelled."""
    return _listing(ActiveSubmission, "/job-submissions/agent/active", {"size": size})


def tell_submitted(submission_id: int, job: JobData) -> Call[None]:
    """A pending submission has its job. Told a second time it is a 400."""
    return Call(
        "POST",
        "/job-submissions/agent/submitted",
        _nothing,
        json={"id": submission_id, **job.model_dump(mode="json", exclude_none=True)},
    )


def tell_rejected(submission_id: int, report_message: str) -> Call[None]:
    """A pending submission is not submitted, and why. Told a second time it is a 400."""
    body = {"id": submission_id, "report_message": _without_nul(report_message)}
    return Call("POST", "/job-submissions/agent/rejected", _nothing, json=body)


def tell_job(submission_id: int, job: JobData) -> Call[None]:
    """What a submission's job has come to. After its end it is a 400; with another Slurm id than before, a 409."""
    body = job.model_dump(mode="json", exclude_none=True)
    return Call("PUT", f"/job-submissions/agent/{submission_id}", _nothing, json=body)


def get_metrics_mark(submission_id: int) -> Call[MetricsMark]:
    """How far a submission's metrics have been sent."""
    return _get(MetricsMark, f"/job-submissions/agent/metrics/{submission_id}")


def send_metrics(submission_id: int, rows: bytes) -> Call[None]:
    """Add metrics.

    Args:
        rows: At most `MAX_METRICS_ROWS`, in msgpack. One that the API has already is a 400, and then none is added.
    """
    path = f"/job-submissions/agent/metrics/{submission_id}"
    return Call("PUT", path, _nothing, content=rows, repeatable=False)


def report_cluster(interval: int) -> Call[None]:
    """The agent lives, and says so again within so many seconds."""
    return Call("PUT", "/clusters/status", _nothing, {"interval": interval})


# Clusters


def list_clusters() -> Listing[ClusterStatus]:
    """The clusters whose agents have reported."""
    listing = _listing(ClusterStatus, "/clusters/status", {"size": _PAGE})
    return Listing(listing.call, lambda cluster: cluster.client_id)


def get_cluster(client_id: str) -> Call[ClusterStatus]:
    """One cluster, by the OIDC client of its agent."""
    return _get(ClusterStatus, f"/clusters/status/{_quoted(client_id)}")


# The API itself


def get_health() -> Call[None]:
    """Whether it answers at all; needs no token."""
    return Call("GET", "/health", _nothing)


def collect_garbage(what: Literal["templates", "job-scripts", "unused-entries"]) -> Call[None]:
    """Have the API clean up. Removed in 5.7: then 404, or 422 for `unused-entries`."""
    paths = {
        "templates": "/job-script-templates/upload/garbage-collector",
        "job-scripts": "/job-scripts/upload/garbage-collector",
        "unused-entries": "/job-scripts/clean-unused-entries",
    }
    return Call("DELETE", paths[what], _nothing)


def _application(identifier: int | str) -> str:
    return f"/job-script-templates/{_quoted(identifier)}"


def _quoted(part: int | str) -> str:
    quoted = quote(str(part), safe="")
    # A segment of dots would be taken out of the path, and ask for something else.
    return quoted if quoted.strip(".") else quoted.replace(".", "%2E")


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _without_nul(text: str) -> str:
    # PostgreSQL has no place for it, and the API answers 500.
    return text.replace("\0", "�")


def _get(model: type[M], path: str) -> Call[M]:
    return Call("GET", path, _read(model))


def _post(model: type[M], path: str, body: Any) -> Call[M]:
    return Call("POST", path, _read(model), json=body, repeatable=False)


def _put(model: type[M], path: str, body: Any) -> Call[M]:
    return Call("PUT", path, _read(model), json=body)


def _upload(model: type[M], path: str, filename: str, content: bytes, previous: str | None = None) -> Call[M]:
    params = {"filename": filename, "previous_filename": previous}
    # A renamed file has no previous name any more.
    repeatable = previous is None
    return Call("PUT", path, _read(model), params, files={"upload_file": (filename, content)}, repeatable=repeatable)


def _listing(model: type[M], path: str, params: Mapping[str, Any]) -> Listing[M]:
    return Listing(Call("GET", path, _read(Page[model]), params), lambda item: item.id)  # type: ignore[valid-type]


def _read(model: type[M]) -> Callable[[httpx.Response], M]:
    return lambda answer: model.model_validate_json(answer.content)


def _read_many(model: type[M]) -> Callable[[httpx.Response], tuple[M, ...]]:
    return lambda answer: tuple(model.model_validate(item) for item in answer.json())


def _content(answer: httpx.Response) -> bytes:
    return answer.content


def _nothing(_answer: httpx.Response) -> None:
    return None
