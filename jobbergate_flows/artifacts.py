"""What a run shows in the Prefect UI beside its states and logs."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Mapping
from datetime import datetime
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate

from jobbergate_flows.applications.job_script import JobScript
from jobbergate_flows.slurm.jobs import JobStatus, SlurmJob


def artifact_key(*words: str) -> str:
    """An artifact key (lowercase letters, digits, dashes) made of words."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


def job_script_markdown(script: JobScript) -> str:
    """The job script as submitted, and its supporting files folded below it."""
    parts = [f"# Job script of {script.name}", _code(script.text, "bash"), f"Digest: `{script.digest}`"]
    for path, text in script.files.items():
        parts.append(
            f"<details><summary>Supporting file {markdown_text(path)}</summary>\n\n{_code(text)}\n\n</details>"
        )
    return "\n\n".join(parts)


def summary_markdown(job: SlurmJob, status: JobStatus, fields: Mapping[str, str]) -> str:
    """The table of a job: ids, user, partition, nodes, times, exit code, reason, directory.

    Args:
        fields: sacct's fields of the ended job by their names; may be empty (no accounting, a local cluster).
    """
    rows = {
        "Job": job.job_id,
        "Cluster": job.cluster,
        "Name": job.name,
        "State": status.state,
        "User": fields.get("User") or job.user,
        "Account": fields.get("Account", ""),
        "Partition": fields.get("Partition", ""),
        "Nodes": status.nodes or fields.get("NodeList", ""),
        "Submitted": _time(status.submit or job.submitted_at),
        "Started": _time(status.start),
        "Ended": _time(status.end),
        "Elapsed": fields.get("Elapsed", "") or _elapsed(status),
        "Exit code": str(status.exit_code) if status.exit_code else "",
        "Reason": status.reason or "",
        "Directory": job.directory,
        "Standard output": job.standard_output or "",
        "Standard error": "" if job.standard_error == job.standard_output else (job.standard_error or ""),
    }
    table = ["| | |", "|---|---|"]
    table += [f"| {label} | {markdown_text(value)} |" for label, value in rows.items() if value]
    parts = [f"# {markdown_text(status.name)}: {markdown_text(status.message)}", "\n".join(table)]
    if job.array and status.rows:
        tasks = ["| Task | State | Exit code | Nodes |", "|---|---|---|---|"]
        tasks += [
            f"| {row.array_task_id} | {row.state} | {row.exit_code or ''} | {markdown_text(row.nodes or '')} |"
            for row in status.rows[:1000]
        ]
        parts.append("## Array tasks\n\n" + "\n".join(tasks))
    parts.append("To look further:\n\n" + _code(f"jobbergate-flows job show {job.job_id}", "bash"))
    return "\n\n".join(parts)


async def acreate_markdown(
    key: str, markdown: str, *, description: str, flow_run_id: UUID | None, task_run_id: UUID | None = None
) -> None:
    """Create a markdown artifact of a run."""
    async with get_client() as client:
        await client.create_artifact(
            ArtifactCreate(
                key=artifact_key(key),
                type="markdown",
                description=description,
                data=markdown,
                flow_run_id=flow_run_id,
                task_run_id=task_run_id,
            )
        )


def own_user() -> str:
    """The name of the account that this process runs as."""
    return pwd.getpwuid(os.geteuid()).pw_name


def _code(text: str, language: str = "") -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def markdown_text(value: str) -> str:
    """One table cell's text: Slurm lets users put pipes, newlines and markup into names."""
    value = " ".join(value.split())
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", value)


def _time(moment: datetime | None) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z") if moment else ""


def _elapsed(status: JobStatus) -> str:
    if status.start is None or status.end is None:
        return ""
    return str(status.end - status.start).split(".")[0]
