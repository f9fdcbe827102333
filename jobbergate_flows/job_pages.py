"""The pages of a job that are made once: its script, and its summary when it is over. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from jobbergate_flows.applications.job_script import JobScript
from jobbergate_flows.markdown import code, details, table, text, time_of
from jobbergate_flows.slurm.jobs import JobStatus, SlurmJob

ARRAY_TASKS = 1000
"""So many of an array's tasks are listed."""


def job_script_markdown(script: JobScript, arguments: Sequence[str] = ()) -> str:
    """The job script as submitted, and its supporting files folded below it.

    Args:
        arguments: The options that sbatch was given beside it: they count more than the script's own.
    """
    parts = [f"# Job script of {script.name}", code(script.text, "bash")]
    if arguments:
        given = code(shlex.join(["sbatch", *arguments]), "bash")
        parts.append(f"Submitted with options that count more than the script's own:\n\n{given}")
    parts.append(f"Digest: `{script.digest}`")
    parts += [details(f"Supporting file {path}", code(content)) for path, content in script.files.items()]
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
        "Submitted": time_of(status.submit or job.submitted_at),
        "Started": time_of(status.start),
        "Ended": time_of(status.end),
        "Elapsed": fields.get("Elapsed", "") or _elapsed(status),
        "Exit code": str(status.exit_code) if status.exit_code else "",
        "Reason": status.reason or "",
        "Directory": job.directory,
        "Standard output": job.standard_output or "",
        "Standard error": "" if job.standard_error == job.standard_output else (job.standard_error or ""),
    }
    shown = [(label, value) for label, value in rows.items() if value]
    said = status.message if status.message.startswith(status.name) else f"{status.name}: {status.message}"
    parts = [f"# {text(said)}", table(["", ""], shown)]
    if job.array and status.rows:
        tasks = [
            (str(row.array_task_id), row.state, str(row.exit_code or ""), row.nodes or "")
            for row in status.rows[:ARRAY_TASKS]
        ]
        parts.append("## Array tasks\n\n" + table(["Task", "State", "Exit code", "Nodes"], tasks))
    parts.append("To look further:\n\n" + code(f"jobbergate-flows job show {job.job_id}", "bash"))
    return "\n\n".join(parts)


def _elapsed(status: JobStatus) -> str:
    if status.start is None or status.end is None:
        return ""
    return str(status.end - status.start).split(".")[0]
