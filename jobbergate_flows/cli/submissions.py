"""Submissions of the ledger with what their clusters say of them now."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobbergate_flows.cli.exits import say
from jobbergate_flows.errors import JobbergateFlowsError
from jobbergate_flows.slurm.cluster import Cluster
from jobbergate_flows.slurm.connect import connect
from jobbergate_flows.slurm.errors import ClusterUnreachable, JobNotFound
from jobbergate_flows.slurm.jobs import JobStatus, Known, SlurmJob, Unreachable
from jobbergate_flows.slurm.ledger import Ledger, Submission, SubmissionStatus
from jobbergate_flows.slurm.results import fetch
from jobbergate_flows.slurm.session import ClusterSession
from jobbergate_flows.slurm.states import summarize

_SEARCHED = 100_000
_RUN = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Shown:
    """A submission and its state for people; `live` is what the cluster says now, where it was asked."""

    row: Submission
    state: str
    message: str | None
    live: JobStatus | None = None

    @property
    def is_final(self) -> bool:
        """Whether nothing will change any more."""
        alive = self.row.status in (SubmissionStatus.INTENT, SubmissionStatus.SUBMITTED)
        return not alive or (self.live is not None and self.live.final)

    def as_json(self) -> dict[str, Any]:
        """What scripts get of it."""
        row, live = self.row, self.live
        return {
            "key": row.key,
            "job_id": row.job_id,
            "cluster": row.cluster,
            "user": row.user,
            "name": row.job_name,
            "state": self.state,
            "final": self.is_final,
            "message": self.message,
            "nodes": live.nodes if live else None,
            "exit_code": str(live.exit_code) if live and live.exit_code else None,
            "submitted_at": row.submitted_at,
            "started_at": live.start if live else None,
            "ended_at": (live.end if live else None) or row.final_at,
            "directory": row.directory,
            "standard_output": row.standard_output,
            "standard_error": row.standard_error,
            "flow_run_id": row.flow_run_id,
            "script_digest": row.script_digest,
        }


def find(ledger: Ledger, word: str) -> Submission:
    """The submission with that key or job id.

    Raises:
        JobNotFound: There is none, or several clusters have a job of that id.
    """
    found = {row.cluster: row for row in matching(ledger, word)}
    if not found:
        raise JobNotFound(
            f"no job {word} was submitted from here", hint="`jobbergate-flows job list` shows those that were"
        )
    if len(found) > 1:
        keys = ", ".join(f"{row.key} ({cluster})" for cluster, row in found.items())
        raise JobNotFound(f"several clusters have a job {word}", hint=f"give its key: {keys}")
    return next(iter(found.values()))


def matching(ledger: Ledger, word: str) -> list[Submission]:
    """The submission with that key, or the newest of each cluster with that job id; perhaps none."""
    by_key = ledger.get(word)
    if by_key is not None:
        return [by_key]
    found: dict[str, Submission] = {}
    for row in ledger.recent(limit=_SEARCHED):
        if row.job_id == word:
            # Newest first: Slurm reuses ids.
            found.setdefault(row.cluster, row)
    return list(found.values())


def find_job(ledger: Ledger, word: str) -> tuple[Submission, SlurmJob]:
    """The submission with that key or id, and its job.

    Raises:
        JobNotFound: As `find`, or Slurm never had the job.
    """
    row = find(ledger, word)
    if row.job is None:
        raise JobNotFound(f"the submission {row.key} has no job: it is {row.status.value}", hint=row.message or None)
    return row, row.job


def cluster_of(name: str) -> Cluster:
    """The cluster of that name, reached from this host.

    Raises:
        ClusterUnreachable: This host reaches another one, or none.
    """
    local = connect("local")
    if name == local.name:
        return local
    slurm = connect("slurm")
    if slurm.name != name:
        raise ClusterUnreachable(
            f"this host reaches the cluster {slurm.name}, not {name}",
            hint="go to a host of that cluster, or set SLURM_CONF",
        )
    return slurm


def fetch_files(word: str, patterns: Sequence[str], to: str, *, overwrite: bool) -> list[Path]:
    """Bring the result files of a job, or of a flow run.

    Args:
        word: A job's id or key, or a flow run's id.
        patterns: Which; otherwise the application's.

    Raises:
        JobNotFound, RunHasNoJob, FileRefused, ClusterUnreachable
    """
    ledger = Ledger.open()
    if _RUN.fullmatch(word):
        rows = [row for row in ledger.of_flow_run(word) if row.job is not None]
        if not rows:
            # Another's ledger has it: the server says where it is.
            from jobbergate_flows.results import fetch_results

            return fetch_results(word, patterns, to, overwrite=overwrite)
        word = rows[-1].key
    _row, job = find_job(ledger, word)
    return asyncio.run(_fetch(ClusterSession(cluster_of(job.cluster), ledger), job, patterns, Path(to), overwrite))


async def _fetch(
    session: ClusterSession, job: SlurmJob, patterns: Sequence[str], to: Path, overwrite: bool
) -> list[Path]:
    found = await session.results(job, patterns, digest_below=0)
    return await fetch(session.cluster, job, found.files, to, overwrite=overwrite)


def look(ledger: Ledger, rows: Sequence[Submission]) -> list[Shown]:
    """What is known of submissions now. A cluster that does not answer is told on standard error."""
    jobs: defaultdict[str, list[SlurmJob]] = defaultdict(list)
    for row in rows:
        if row.status is SubmissionStatus.SUBMITTED and row.job is not None:
            jobs[row.cluster].append(row.job)
    live: dict[str, JobStatus] = {}
    for name, of_cluster in jobs.items():
        try:
            live |= asyncio.run(_ask(cluster_of(name), of_cluster))
        except JobbergateFlowsError as error:
            say(f"Warning: cluster {name}: {error.message}")
    return [_shown(ledger, row, live) for row in rows]


def account(row: Submission) -> dict[str, str]:
    """What accounting says of an ended job; empty where it does not answer."""
    if row.job_id is None:
        return {}
    try:
        cluster = cluster_of(row.cluster)
        details = asyncio.run(cluster.details(row.job_id, since=row.submitted_at or row.intent_at))
    except ClusterUnreachable as error:
        say(f"Warning: cluster {row.cluster}: {error.message}")
        return {}
    return {name: value for name, value in details.fields.items() if value}


def cancel_submissions(ledger: Ledger, rows: Sequence[Submission]) -> list[str]:
    """Ask for the end of submissions, and say of each what was done.

    One that Slurm has not answered yet is given up by whoever makes it; its job is looked up, as that may have died.

    Raises:
        ClusterUnreachable: A cluster does not answer. The ledger then holds the wish for those that have no job yet.
    """
    said = []
    ended = [shown for shown in look(ledger, rows) if shown.is_final and shown.row.job_id is not None]
    for shown in ended:
        said.append(f"Job {shown.row.job_id} on {shown.row.cluster} has ended already: {shown.state}")
    rows = [row for row in rows if row.key not in {shown.row.key for shown in ended}]
    for row in rows:
        ledger.request_cancel(row.key)
    for name in dict.fromkeys(row.cluster for row in rows):
        cluster = cluster_of(name)
        jobs = {row.key: [row.job_id] for row in rows if row.cluster == name and row.job_id is not None}
        for row in rows:
            if row.cluster == name and row.status is SubmissionStatus.INTENT:
                witness = ledger.witness(row.cluster, row.user)
                found = asyncio.run(cluster.find(row.name_in_slurm, since=row.intent_at, witness=witness))
                jobs[row.key] = [job.job_id for job in found]
        ids = [job_id for of_key in jobs.values() for job_id in of_key]
        if ids:
            asyncio.run(cluster.cancel(ids))
        for key, of_key in jobs.items():
            said.append(f"Asked to cancel job {', '.join(of_key)} on {name}" if of_key else f"Gave up {key} on {name}")
        said += [
            f"{row.key} on {name} has no job: it is {row.status.value}"
            for row in rows
            if row.cluster == name and row.key not in jobs
        ]
    return said


async def _ask(cluster: Cluster, jobs: Sequence[SlurmJob]) -> dict[str, JobStatus]:
    answers = await cluster.query({job.job_id: job.submitted_at for job in jobs})
    found: dict[str, JobStatus] = {}
    silent = ""
    for job in jobs:
        answer = answers[job.job_id]
        if isinstance(answer, Unreachable):
            silent = answer.cause
        elif isinstance(answer, Known) and (status := summarize(answer.rows, requeue=job.requeue)):
            found[job.key] = status
    if silent:
        say(f"Warning: cluster {cluster.name}: {silent}")
    return found


def _shown(ledger: Ledger, row: Submission, live: Mapping[str, JobStatus]) -> Shown:
    match row.status:
        case SubmissionStatus.FINAL:
            return Shown(row, row.final_state or "Final", row.message)
        case SubmissionStatus.INTENT:
            return Shown(row, "Submitting", row.message)
        case SubmissionStatus.REFUSED | SubmissionStatus.CANCELLED:
            return Shown(row, row.status.value.capitalize(), row.message)
    status = live.get(row.key)
    if status is None:
        return Shown(row, "Unknown", "Slurm does not show it now")
    if status.final and row.flow_run_id is None:
        # Nobody else follows it; a run's worker keeps its own books.
        accounted = any(found.source == "sacct" for found in status.rows)
        ledger.mark_final(row.key, status.name, status.message, accounted=accounted)
    return Shown(row, status.name, status.message, status)
