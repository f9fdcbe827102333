"""`jobbergate applications|job-scripts|job-submissions|clusters`: what the API holds, listed and shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from jobbergate_flows.cli.exits import UsageError, say
from jobbergate_flows.cli.terminal import print_fields, print_json, print_table, shortened

if TYPE_CHECKING:
    from jobbergate_flows.jobbergate.calls import Call, Listing, Selection
    from jobbergate_flows.jobbergate.models import ClusterStatus, JobScriptFile, Model, Resource, TemplateFile

    M = TypeVar("M", bound=Model)

_PAGE = 100
# Ids are integers of PostgreSQL's: the API fails on larger ones.
_MAX_ID = 2**31 - 1
# In the path of a URL they are other places.
_NO_NAMES = ("", ".", "..")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Id = Annotated[int, typer.Argument(metavar="ID", min=1, max=_MAX_ID, help="Its id.", show_default=False)]
Limit = Annotated[int, typer.Option(min=1, help="How many.")]
Search = Annotated[
    str | None,
    typer.Option(metavar="WORDS", help="Only those with one of these words, in name, description, owner and the like."),
]
UserOnly = Annotated[bool, typer.Option("--user-only", help="Only your own.")]
Archived = Annotated[bool, typer.Option("--include-archived", help="Also those that are archived.")]
By = typer.Option(help="By which field.")
Ascending = Annotated[bool, typer.Option("--ascending", help="The smallest first; otherwise the largest, or newest.")]

applications = typer.Typer(help="Applications, which the API calls job script templates.", no_args_is_help=True)
job_scripts = typer.Typer(help="Job scripts.", no_args_is_help=True)
job_submissions = typer.Typer(help="Job submissions.", no_args_is_help=True)
clusters = typer.Typer(help="The clusters whose agents report to the API.", no_args_is_help=True)


@applications.command(name="list")
def list_applications(
    context: typer.Context,
    search: Search = None,
    user_only: UserOnly = False,
    include_archived: Archived = False,
    sort: Annotated[
        Literal["id", "name", "identifier", "owner_email", "created_at", "updated_at"],
        By,
    ] = "id",
    ascending: Ascending = False,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List applications."""
    from jobbergate_flows.jobbergate import calls

    selection = _selection(search, user_only, include_archived, sort, ascending, limit)
    _list(
        context,
        calls.list_applications(selection),
        limit,
        as_json,
        lambda one: {
            "id": one.id,
            "identifier": one.identifier,
            "name": shortened(one.name),
            "owner": one.owner_email,
            "updated": _minute(one.updated_at),
            "description": shortened(one.description or ""),
        },
    )


@applications.command(name="get")
def get_application(
    context: typer.Context,
    application: Annotated[
        str, typer.Argument(metavar="ID|IDENTIFIER", help="Its id or its identifier.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Show an application."""
    from jobbergate_flows.jobbergate import calls

    if application in _NO_NAMES or (application.isdecimal() and not _is_id(application)):
        raise UsageError(
            f"{application!r} is no application's id", hint="`... applications list` shows those there are"
        )
    _get(
        context,
        calls.get_application(application),
        as_json,
        lambda one: {
            **_common(one),
            "identifier": one.identifier,
            "templates": _files(one.template_files),
            "workflow": ", ".join(file.filename for file in one.workflow_files or ()),
        },
    )


@job_scripts.command(name="list")
def list_job_scripts(
    context: typer.Context,
    search: Search = None,
    user_only: UserOnly = False,
    include_archived: Archived = False,
    from_application: Annotated[
        int | None, typer.Option(metavar="ID", min=1, max=_MAX_ID, help="Only those of this application.")
    ] = None,
    sort: Annotated[
        Literal["id", "name", "parent_template_id", "owner_email", "created_at", "updated_at"],
        By,
    ] = "id",
    ascending: Ascending = False,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List job scripts."""
    from jobbergate_flows.jobbergate import calls

    selection = _selection(search, user_only, include_archived, sort, ascending, limit)
    _list(
        context,
        calls.list_job_scripts(selection, of_application=from_application),
        limit,
        as_json,
        lambda one: {
            "id": one.id,
            "name": shortened(one.name),
            "application": shortened(one.template.name) if one.template else None,
            "owner": one.owner_email,
            "updated": _minute(one.updated_at),
            "description": shortened(one.description or ""),
        },
    )


@job_scripts.command(name="get")
def get_job_script(context: typer.Context, job_script: Id, as_json: AsJson = False) -> None:
    """Show a job script."""
    from jobbergate_flows.jobbergate import calls

    _get(
        context,
        calls.get_job_script(job_script),
        as_json,
        lambda one: {**_common(one), "application": one.parent_template_id, "files": _files(one.files)},
    )


@job_submissions.command(name="list")
def list_job_submissions(
    context: typer.Context,
    search: Search = None,
    status: Annotated[
        Literal["CREATED", "SUBMITTED", "REJECTED", "DONE", "ABORTED", "CANCELLED"] | None,
        typer.Option(help="Only those with this status.", case_sensitive=False),
    ] = None,
    from_job_script: Annotated[
        int | None, typer.Option(metavar="ID", min=1, max=_MAX_ID, help="Only those of this job script.")
    ] = None,
    slurm_job_ids: Annotated[
        str | None, typer.Option(metavar="ID,...", help="Only those with one of these Slurm job ids.")
    ] = None,
    user_only: UserOnly = False,
    include_archived: Archived = False,
    sort: Annotated[
        Literal[
            "id",
            "name",
            "status",
            "job_script_id",
            "slurm_job_id",
            "slurm_job_state",
            "client_id",
            "owner_email",
            "created_at",
            "updated_at",
        ],
        By,
    ] = "id",
    ascending: Ascending = False,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List job submissions, with their jobs' states as their clusters last told them."""
    from jobbergate_flows.jobbergate import calls
    from jobbergate_flows.jobbergate.models import SubmissionStatus

    selection = _selection(search, user_only, include_archived, sort, ascending, limit)
    listing = calls.list_job_submissions(
        selection,
        status=SubmissionStatus(status) if status else None,
        slurm_job_ids=_slurm_job_ids(slurm_job_ids),
        of_job_script=from_job_script,
    )
    _list(
        context,
        listing,
        limit,
        as_json,
        lambda one: {
            "id": one.id,
            "name": shortened(one.name),
            "status": one.status,
            "cluster": one.client_id,
            "Slurm id": one.slurm_job_id,
            "Slurm state": one.slurm_job_state,
            "job script": one.job_script_id,
            "owner": one.owner_email,
            "created": _minute(one.created_at),
        },
    )


@job_submissions.command(name="get")
def get_job_submission(context: typer.Context, job_submission: Id, as_json: AsJson = False) -> None:
    """Show a job submission. What Slurm said of its job is in the JSON only."""
    from jobbergate_flows.jobbergate import calls

    _get(
        context,
        calls.get_job_submission(job_submission),
        as_json,
        lambda one: {
            **_common(one),
            "status": one.status,
            "message": one.report_message,
            "cluster": one.client_id,
            "slurm_job_id": one.slurm_job_id,
            "slurm_job_state": one.slurm_job_state,
            "job_script": one.job_script_id,
            "directory": one.execution_directory,
            "sbatch_arguments": " ".join(one.sbatch_arguments or ()),
        },
    )


@clusters.command(name="list")
def list_clusters(context: typer.Context, limit: Limit = 100, as_json: AsJson = False) -> None:
    """List the clusters, and whether their agents still report."""
    from jobbergate_flows.jobbergate import calls

    _list(context, calls.list_clusters(), limit, as_json, _cluster)


@clusters.command(name="get")
def get_cluster(
    context: typer.Context,
    client_id: Annotated[
        str, typer.Argument(metavar="CLIENT_ID", help="The OIDC client of its agent.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Show a cluster."""
    from jobbergate_flows.jobbergate import calls

    if client_id in _NO_NAMES:
        raise UsageError(f"{client_id!r} is no cluster's client", hint="`... clusters list` shows those there are")
    _get(context, calls.get_cluster(client_id), as_json, _cluster)


def _list(
    context: typer.Context,
    listing: Listing[M],
    limit: int,
    as_json: bool,
    row: Callable[[M], Mapping[str, object]],
) -> None:
    from jobbergate_flows.cli.jobbergate_access import asking

    with asking(context.obj) as api:
        # One more tells whether there are more.
        found = list(islice(api.items(listing), limit + 1))
    shown = found[:limit]
    if as_json:
        print_json([one.model_dump(mode="json") for one in shown])
    elif shown:
        rows = [row(one) for one in shown]
        print_table(list(rows[0]), [list(one.values()) for one in rows])
    else:
        say("There is none.")
    if len(found) > limit:
        say(f"There are more than {limit}: --limit shows them.")


def _get(context: typer.Context, call: Call[M], as_json: bool, fields: Callable[[M], Mapping[str, object]]) -> None:
    from jobbergate_flows.cli.jobbergate_access import asking

    with asking(context.obj) as api:
        found = api.send(call)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        print_fields(fields(found))


def _selection(
    search: str | None, user_only: bool, include_archived: bool, sort: str, ascending: bool, limit: int
) -> Selection:
    from jobbergate_flows.jobbergate.calls import Selection

    return Selection(
        search=search,
        sort_field=sort,
        sort_ascending=ascending,
        user_only=user_only,
        include_archived=include_archived,
        size=min(limit + 1, _PAGE),
    )


def _slurm_job_ids(text: str | None) -> Sequence[int]:
    if text is None:
        return ()
    words = [word.strip() for word in text.split(",")]
    if not all(map(_is_id, words)):
        raise UsageError(f"--slurm-job-ids {text!r} is no list of job ids", hint="for example --slurm-job-ids 17,18")
    return [int(word) for word in words]


def _is_id(word: str) -> bool:
    # Python reads no number of thousands of digits.
    return word.isascii() and word.isdecimal() and len(word) <= len(str(_MAX_ID)) and int(word) <= _MAX_ID


def _common(entry: Resource) -> dict[str, object]:
    return {
        "id": entry.id,
        "name": entry.name,
        "owner": entry.owner_email,
        "created": _minute(entry.created_at),
        "updated": _minute(entry.updated_at),
        "archived": "yes" if entry.is_archived else None,
        "description": entry.description,
        "cloned_from": entry.cloned_from_id,
    }


def _cluster(cluster: ClusterStatus) -> dict[str, object]:
    return {
        "cluster": cluster.client_id,
        "healthy": "yes" if cluster.is_healthy else "NO",
        "last reported": _minute(cluster.last_reported),
        "every": f"{cluster.interval} s",
    }


def _files(files: Sequence[TemplateFile | JobScriptFile] | None) -> str:
    return ", ".join(
        file.filename if file.file_type == "SUPPORT" else f"{file.filename} (entrypoint)" for file in files or ()
    )


def _minute(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"
