"""A cluster reached by Slurm's own commands on this host."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from jobbergate_flows.slurm.cluster import (
    FileChunk,
    FileEntry,
    Finding,
    FoundJob,
    JobDetails,
    SubmitRequest,
    Witness,
)
from jobbergate_flows.slurm.commands import (
    CommandResult,
    Sacct,
    SacctDetails,
    SacctFind,
    Sbatch,
    Scancel,
    ShowConfig,
    Squeue,
    SqueueFind,
    clean_environment,
)
from jobbergate_flows.slurm.commands.sacct import BATCH
from jobbergate_flows.slurm.commands.sbatch import TIMEOUT_SECONDS
from jobbergate_flows.slurm.door import Door
from jobbergate_flows.slurm.errors import ClusterUnreachable, SubmissionAmbiguous
from jobbergate_flows.slurm.jobs import Absent, JobRow, Known, Observation, Unreachable
from jobbergate_flows.slurm.states import Finality, classify

QUERY_SECONDS = 60.0
_SLACK = timedelta(minutes=10)
_CANCEL_BATCH = 500


class CommandCluster:
    """sbatch, squeue, sacct and scancel of this host, acting as the door's user.

    Args:
        name: The cluster's name.
        door: The account that acts.
        slurm_conf: Path of slurm.conf where it is not the system's.
        clusters: A name for `--clusters`, where a host serves several; it needs accounting.
    """

    def __init__(self, name: str, door: Door, *, slurm_conf: str | None = None, clusters: str | None = None) -> None:
        self._name = name
        self._door = door
        self._clusters = clusters
        self._submitting = clean_environment(slurm_conf=slurm_conf)
        self._querying = clean_environment(slurm_conf=slurm_conf, query=True)
        self._memory: timedelta | None = None

    @property
    def name(self) -> str:
        """The cluster's name."""
        return self._name

    @property
    def user(self) -> str:
        """The account in whose name this object acts."""
        return self._door.user

    async def query(self, jobs: Mapping[str, datetime]) -> dict[str, Observation]:
        """See `Cluster.query`: one squeue for all, then one sacct for those that are not alive there."""
        if not jobs:
            return {}
        ids = list(jobs)
        trouble = ""
        shown: dict[str, list[JobRow]] = {}
        accounted: dict[str, list[JobRow]] = {}
        controller = accounting = True
        try:
            for start in range(0, len(ids), BATCH):
                squeue = Squeue(ids[start : start + BATCH], self._clusters)
                shown |= rows_by_job(squeue.parse(await self._ask(squeue)), jobs)
        except ClusterUnreachable as error:
            controller, trouble, shown = False, error.message, {}
        # An array's tasks that ended are forgotten by the controller while others still run.
        to_ask = [
            job_id
            for job_id in ids
            if not _is_alive(rows := shown.get(job_id, [])) or rows[0].array_task_id is not None
        ]
        try:
            for start in range(0, len(to_ask), BATCH):
                batch = to_ask[start : start + BATCH]
                sacct = Sacct(batch, min(jobs[job_id] for job_id in batch), self._clusters)
                rows = sacct.parse(await self._ask(sacct))
                accounted |= rows_by_job(rows, {job_id: jobs[job_id] for job_id in batch})
        except ClusterUnreachable as error:
            accounting, trouble, accounted = False, trouble or error.message, {}
        return {
            job_id: merge(
                shown.get(job_id, []) if controller else None,
                accounted.get(job_id, []) if accounting else None,
                trouble,
            )
            for job_id in ids
        }

    async def find(self, job_name: str, *, since: datetime, witness: Witness | None = None) -> list[FoundJob]:
        """See `Cluster.find`."""
        squeue = SqueueFind(job_name, self.user, self._clusters)
        found = {job.job_id: job for job in squeue.parse(await self._ask(squeue))}
        remembered = datetime.now(UTC) - since < await self._controller_memory()
        try:
            sacct = SacctFind(job_name, self.user, since, witness, self._clusters)
            ended, witnessed = sacct.parse(await self._ask(sacct))
        except ClusterUnreachable:
            if not found and not remembered:
                raise
        else:
            found |= {job.job_id: job for job in ended if job.job_id not in found}
            if not found and not witnessed and not remembered:
                raise ClusterUnreachable(
                    "accounting's empty answer proves nothing: it did not show a job that it is known to hold",
                    hint="see whether slurmdbd reaches its database",
                )
        return sorted(found.values(), key=lambda job: (job.submit or since, int(job.job_id)))

    async def submit(self, request: SubmitRequest) -> str:
        """See `Cluster.submit`."""
        command = Sbatch(request)
        try:
            result = await self._door.run(
                command.arguments(),
                environment=self._submitting,
                stdin=request.script,
                timeout=TIMEOUT_SECONDS,
            )
        except OSError as error:
            raise SubmissionAmbiguous(f"sbatch's answer was lost: {error}") from error
        return command.parse(result)

    async def cancel(self, job_ids: Sequence[str]) -> None:
        """See `Cluster.cancel`."""
        for start in range(0, len(job_ids), _CANCEL_BATCH):
            command = Scancel(job_ids[start : start + _CANCEL_BATCH], self._clusters)
            command.parse(await self._ask(command))

    async def details(self, job_id: str, *, since: datetime) -> JobDetails:
        """See `Cluster.details`."""
        command = SacctDetails(job_id, since, self._clusters)
        return command.parse(await self._ask(command))

    async def check_directory(self, directory: str) -> None:
        """See `Cluster.check_directory`."""
        await self._door.check_directory(directory)

    async def write_files(
        self, directory: str, files: Mapping[str, str], *, ours: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """See `Cluster.write_files`."""
        return await self._door.write_files(directory, files, ours=ours)

    async def write_secret(self, path: str, text: str) -> None:
        """See `Cluster.write_secret`."""
        await self._door.write_secret(path, text)

    async def remove_files(self, paths: Sequence[str]) -> None:
        """See `Cluster.remove_files`."""
        await self._door.remove_files(paths)

    async def read(self, path: str, *, offset: int = 0, limit: int = 1 << 16) -> FileChunk | None:
        """See `Cluster.read`."""
        return await self._door.read(path, offset=offset, limit=limit)

    async def list_files(self, directory: str, *, limit: int = 1000) -> list[FileEntry]:
        """See `Cluster.list_files`."""
        return await self._door.list_files(directory, limit=limit)

    async def check(self) -> list[Finding]:
        """See `Cluster.check`."""
        findings = list(await asyncio.gather(*(self._check_version(c) for c in _VERSIONED)))
        try:
            config = ShowConfig().parse(await self._ask(ShowConfig()))
        except ClusterUnreachable as error:
            hint = "see whether slurmctld runs, and whether SLURM_CONF names its slurm.conf"
            return [*findings, Finding("slurmctld", False, error.message, hint)]
        version = config.get("SLURM_VERSION", "?")
        findings.append(Finding("slurmctld", True, f"answers; Slurm {version}, cluster {self.name}"))
        private = config.get("PrivateData", "none")
        findings.append(Finding("PrivateData", True, private, None if private == "none" else "only own jobs are seen"))
        try:
            now = datetime.now(UTC)
            probe = SacctFind("jobbergate-flows-check", self.user, now, None, self._clusters)
            probe.parse(await self._ask(probe))
        except ClusterUnreachable as error:
            hint = "start slurmdbd; without accounting nobody can tell how jobs ended"
            findings.append(Finding("accounting", False, error.message, hint))
        else:
            findings.append(Finding("accounting", True, "answers"))
        return findings

    async def _check_version(self, command: str) -> Finding:
        try:
            result = await self._door.run((command, "--version"), environment=self._querying, timeout=QUERY_SECONDS)
        except ClusterUnreachable as error:
            return Finding(command, False, error.message, error.hint)
        return Finding(command, result.returncode == 0, result.words)

    async def _ask(
        self, command: Squeue | SqueueFind | Sacct | SacctFind | SacctDetails | Scancel | ShowConfig
    ) -> CommandResult:
        return await self._door.run(command.arguments(), environment=self._querying, timeout=QUERY_SECONDS)

    async def _controller_memory(self) -> timedelta:
        if self._memory is None:
            config = ShowConfig().parse(await self._ask(ShowConfig()))
            seconds = int(config.get("MinJobAge", "0").split()[0])
            # A job may have ended the moment it began, and the clock runs while we ask.
            self._memory = timedelta(seconds=max(seconds - 30, 0))
        return self._memory


_VERSIONED = ("sbatch", "squeue", "sacct", "scancel")


def merge(shown: Sequence[JobRow] | None, accounted: Sequence[JobRow] | None, trouble: str) -> Observation:
    """One job's observation from what squeue and sacct say. Pure.

    Args:
        shown: squeue's rows; None when squeue did not answer.
        accounted: sacct's rows; None when sacct did not answer.
        trouble: What the one that did not answer said.
    """
    if shown:
        # What has ended, accounting knows better: its exit code, a moment later.
        ended = {row.job_id: row for row in accounted or () if _has_ended(row)}
        alive = {row.job_id: row for row in shown if not _has_ended(row)}
        return Known(tuple(_ordered(({row.job_id: row for row in shown} | ended | alive).values())))
    if accounted:
        rows = tuple(_ordered(accounted))
        if shown is None and not all(_has_ended(row) for row in rows):
            # Accounting lags behind the controller, who alone knows who is alive.
            return Unreachable(trouble)
        return Known(rows)
    if shown is None or accounted is None:
        return Unreachable(trouble)
    return Absent()


def rows_by_job(rows: Sequence[JobRow], jobs: Mapping[str, datetime]) -> dict[str, list[JobRow]]:
    """The rows of each job asked for, one for each array task: the newest of those not older than its submission.

    Slurm reuses ids: a row that was submitted before the job is another's.
    """
    newest: dict[str, dict[str, JobRow]] = {}
    for row in rows:
        since = jobs.get(row.array_job_id)
        if since is None or (row.submit is not None and row.submit < since - _SLACK):
            continue
        of_job = newest.setdefault(row.array_job_id, {})
        before = of_job.get(row.job_id)
        if before is None or (row.submit or since) >= (before.submit or since):
            of_job[row.job_id] = row
    return {job_id: _whole(list(by_id.values())) for job_id, by_id in newest.items()}


def _whole(rows: list[JobRow]) -> list[JobRow]:
    tasks = [row for row in rows if row.array_task_id is not None]
    return tasks or rows


def _ordered(rows: Iterable[JobRow]) -> list[JobRow]:
    return sorted(rows, key=lambda row: (row.array_task_id or 0, row.job_id))


def _is_alive(rows: Sequence[JobRow]) -> bool:
    return bool(rows) and not all(_has_ended(row) for row in rows)


def _has_ended(row: JobRow) -> bool:
    meaning = classify(row)
    return meaning is not None and meaning.finality is not Finality.NEVER
