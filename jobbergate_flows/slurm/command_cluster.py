"""A cluster reached by Slurm's own commands on this host."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
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
    SacctSteps,
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
from jobbergate_flows.slurm.errors import AnswerUntrue, ClusterUnreachable, SubmissionAmbiguous
from jobbergate_flows.slurm.jobs import Absent, JobRow, Known, Observation, Unreachable
from jobbergate_flows.slurm.states import MEANINGS, Finality
from jobbergate_flows.slurm.steps import JobRecord

QUERY_SECONDS = 30.0
_SLACK = timedelta(minutes=10)
_CANCEL_BATCH = 500
# Accounting needs up to two seconds for an end; of an array that ended at once it shows one task only until then.
_SETTLING = timedelta(seconds=10)
# So far back is looked for a job by which accounting shows that it answers.
_WITNESS_AGE = timedelta(days=7)


class CommandCluster:
    """sbatch, squeue, sacct and scancel of this host, acting as the door's user.

    Args:
        name: The cluster's name.
        door: The account that acts: submits, cancels, reads and writes files.
        watching: Who asks Slurm about jobs, if not the same account: whoever this process runs as.
        slurm_conf: Path of slurm.conf where it is not the system's.
        clusters: A name for `--clusters`, where a host serves several; it needs accounting.
    """

    def __init__(
        self,
        name: str,
        door: Door,
        *,
        watching: Door | None = None,
        slurm_conf: str | None = None,
        clusters: str | None = None,
    ) -> None:
        self._name = name
        self._door = door
        self._watching = watching or door
        self._clusters = clusters
        self._submitting = clean_environment(slurm_conf=slurm_conf)
        self._querying = clean_environment(slurm_conf=slurm_conf, query=True)
        self._memory: timedelta | None = None
        self._witness: JobRow | None = None

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
        ids = list(jobs)
        shown, trouble = await self._shown(ids, jobs)
        # An array's tasks that ended are forgotten by the controller while others still run.
        to_ask = [
            job_id
            for job_id in ids
            if shown is None or not _is_alive(rows := shown.get(job_id, [])) or rows[0].array_task_id is not None
        ]
        lost = {job_id for job_id in to_ask if shown is not None and job_id not in shown}
        accounted, silence = await self._accounted(to_ask, jobs, lost)
        now = datetime.now(UTC)
        remembered = await self._remembered(jobs, now) if shown else set()
        return {
            job_id: merge(
                None if shown is None else shown.get(job_id, []),
                None if job_id in silence else accounted.get(job_id, []),
                trouble or silence.get(job_id, ""),
                whole=job_id in remembered,
                now=now,
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
                    hint=_DATABASE_HINT,
                )
        return sorted(found.values(), key=lambda job: (job.submit or since, int(job.job_id)))

    async def submit(self, request: SubmitRequest) -> str:
        """See `Cluster.submit`."""
        command = Sbatch(request, self._clusters)
        command.check()
        try:
            result = await self._door.run(
                command.arguments(),
                environment=self._submitting,
                stdin=request.script,
                timeout=TIMEOUT_SECONDS,
            )
        except OSError as error:
            raise SubmissionAmbiguous(f"sbatch's answer was lost: {error}") from error
        job_id = command.parse(result)
        if self._watching is not self._door:
            await self._verify(request.job_name, job_id)
        return job_id

    async def cancel(self, job_ids: Sequence[str]) -> None:
        """See `Cluster.cancel`."""
        for start in range(0, len(job_ids), _CANCEL_BATCH):
            command = Scancel(job_ids[start : start + _CANCEL_BATCH], self._clusters)
            command.parse(await self._door.run(command.arguments(), environment=self._querying, timeout=QUERY_SECONDS))

    async def details(self, job_id: str, *, since: datetime) -> JobDetails:
        """See `Cluster.details`."""
        command = SacctDetails(job_id, since, self._clusters)
        return command.parse(await self._ask(command))

    async def steps(self, job_id: str, *, since: datetime | None = None) -> list[JobRecord]:
        """See `Cluster.steps`."""
        command = SacctSteps(job_id, since, self._clusters)
        return command.parse(await self._ask(command))

    async def check_directory(self, directory: str) -> None:
        """See `Cluster.check_directory`."""
        await self._door.check_directory(directory)

    async def write_files(
        self,
        directory: str,
        files: Mapping[str, str],
        *,
        ours: Mapping[str, str] | None = None,
        in_place: bool = False,
    ) -> dict[str, str]:
        """See `Cluster.write_files`."""
        return await self._door.write_files(directory, files, ours=ours, in_place=in_place)

    async def write_secret(self, directory: str, text: str) -> None:
        """See `Cluster.write_secret`."""
        await self._door.write_secret(directory, text)

    async def remove_files(self, directory: str, paths: Sequence[str], *, digests: Sequence[str] | None = None) -> None:
        """See `Cluster.remove_files`."""
        await self._door.remove_files(directory, paths, digests=digests)

    async def read(self, path: str, *, offset: int = 0, limit: int = 1 << 16) -> FileChunk | None:
        """See `Cluster.read`."""
        return await self._door.read(path, offset=offset, limit=limit)

    async def list_files(self, directory: str, *, limit: int = 1000) -> list[FileEntry]:
        """See `Cluster.list_files`."""
        return await self._door.list_files(directory, limit=limit)

    async def check(self) -> list[Finding]:
        """See `Cluster.check`."""
        versions = await asyncio.gather(*(self._check_version(c) for c in _VERSIONED))
        return [*versions, *await self.check_services()]

    async def check_services(self) -> list[Finding]:
        """The part of `check` that can change while this program runs: whether controller and accounting answer."""
        try:
            config = ShowConfig().parse(await self._ask(ShowConfig()))
        except ClusterUnreachable as error:
            hint = "see whether slurmctld runs, and whether SLURM_CONF names its slurm.conf"
            return [Finding("slurmctld", False, error.message, hint)]
        version = config.get("SLURM_VERSION", "?")
        findings = [Finding("slurmctld", True, f"answers; Slurm {version}, cluster {self.name}")]
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

    async def _verify(self, job_name: str, job_id: str) -> None:
        # The answer is its user's word. That the job is theirs, and this one, is Slurm's to say.
        named = SqueueFind(job_name, self.user, self._clusters)
        try:
            found = named.parse(await self._ask(named))
        except ClusterUnreachable as error:
            raise SubmissionAmbiguous(f"Slurm does not say whether job {job_id} is the one: {error.message}") from error
        if job_id not in {job.job_id for job in found}:
            raise AnswerUntrue(f"Slurm knows no job {job_id} named {job_name} of {self.user}")

    async def _shown(
        self, ids: Sequence[str], jobs: Mapping[str, datetime]
    ) -> tuple[dict[str, list[JobRow]] | None, str]:
        """squeue's rows of each job, None when it did not answer, and what it said then."""
        shown: dict[str, list[JobRow]] = {}
        try:
            for start in range(0, len(ids), BATCH):
                squeue = Squeue(ids[start : start + BATCH], self._clusters)
                shown |= rows_by_job(squeue.parse(await self._ask(squeue)), jobs)
        except ClusterUnreachable as error:
            return None, error.message
        return shown, ""

    async def _accounted(
        self, ids: Sequence[str], jobs: Mapping[str, datetime], lost: set[str]
    ) -> tuple[dict[str, list[JobRow]], dict[str, str]]:
        """sacct's rows of each job, and those jobs of which it said nothing, with the cause.

        Args:
            lost: The jobs that squeue does not show.
        """
        accounted: dict[str, list[JobRow]] = {}
        silence: dict[str, str] = {}
        for start in range(0, len(ids), BATCH):
            batch = ids[start : start + BATCH]
            try:
                rows = await self._sacct(batch, jobs)
                if not rows and not lost.isdisjoint(batch):
                    rows = await self._sacct_with_witness(batch, jobs)
            except ClusterUnreachable as error:
                silence |= dict.fromkeys(batch, error.message)
                continue
            of_batch = rows_by_job(rows, {job_id: jobs[job_id] for job_id in batch})
            accounted |= of_batch
            if not rows:
                silence |= dict.fromkeys(lost.intersection(batch), _NO_PROOF)
        return accounted, silence

    async def _sacct(self, ids: Sequence[str], jobs: Mapping[str, datetime]) -> list[JobRow]:
        """All rows of the answer: one that has none proves nothing, for its database may be failing."""
        asked, since = list(ids), min(jobs[job_id] for job_id in ids)
        if self._witness is not None and self._witness.submit is not None:
            asked.append(self._witness.array_job_id)
            since = min(since, self._witness.submit)
        sacct = Sacct(asked, since, self._clusters)
        rows = sacct.parse(await self._ask(sacct))
        self._witness = _newest(rows) or self._witness
        return rows

    async def _sacct_with_witness(self, ids: Sequence[str], jobs: Mapping[str, datetime]) -> list[JobRow]:
        since = min(jobs[job_id] for job_id in ids) - _WITNESS_AGE
        sacct = Sacct((), since, self._clusters, user=self.user)
        self._witness = _newest(sacct.parse(await self._ask(sacct)))
        return await self._sacct(ids, jobs) if self._witness is not None else []

    async def _remembered(self, jobs: Mapping[str, datetime], now: datetime) -> set[str]:
        """The jobs of which the controller has not yet forgotten any task."""
        try:
            memory = await self._controller_memory()
        except ClusterUnreachable:
            return set()
        return {job_id for job_id, since in jobs.items() if now - since < memory}

    async def _check_version(self, command: str) -> Finding:
        try:
            result = await self._watching.run((command, "--version"), environment=self._querying, timeout=QUERY_SECONDS)
        except ClusterUnreachable as error:
            return Finding(command, False, error.message, error.hint)
        return Finding(command, result.returncode == 0, result.words)

    async def _ask(
        self,
        command: Squeue | SqueueFind | Sacct | SacctFind | SacctDetails | SacctSteps | ShowConfig,
    ) -> CommandResult:
        return await self._watching.run(command.arguments(), environment=self._querying, timeout=QUERY_SECONDS)

    async def _controller_memory(self) -> timedelta:
        if self._memory is None:
            config = ShowConfig().parse(await self._ask(ShowConfig()))
            seconds = int(config.get("MinJobAge", "0").split()[0])
            # A job may have ended the moment it began, and the clock runs while we ask.
            self._memory = timedelta(seconds=max(seconds - 30, 0))
        return self._memory


_VERSIONED = ("sbatch", "squeue", "sacct", "scancel")
_NO_PROOF = "accounting's empty answer proves nothing: it shows no job at all"
_DATABASE_HINT = "see whether slurmdbd reaches its database"


def merge(
    shown: Sequence[JobRow] | None,
    accounted: Sequence[JobRow] | None,
    trouble: str,
    *,
    whole: bool,
    now: datetime,
) -> Observation:
    """One job's observation from what squeue and sacct say. Pure.

    Args:
        shown: squeue's rows; None when squeue did not answer.
        accounted: sacct's rows; None when sacct did not answer, or its empty answer proves nothing.
        trouble: What the one that did not answer said.
        whole: The controller cannot have forgotten any of an array's tasks yet.
        now: The time of the answers.
    """
    if shown:
        rows, confirmed = _completed(shown, accounted or ())
        is_array = shown[0].array_task_id is not None
        if is_array and not whole and not confirmed and all(map(_has_ended, rows)):
            # Tasks that ended long ago may be missing, and one of them may have failed.
            return Unreachable(trouble or "accounting does not know yet how the array's tasks ended")
        return Known(tuple(rows))
    if accounted:
        if shown is None and not all(_has_ended(row) and _ends_at_once(row) for row in accounted):
            # Accounting lags behind the controller, who alone knows who is alive, and who comes back.
            return Unreachable(trouble)
        if any(row.end is not None and timedelta(0) <= now - row.end < _SETTLING for row in accounted):
            return Unreachable(trouble or "accounting is still taking in how the job ended")
        return Known(tuple(_ordered(accounted)))
    if shown is None or accounted is None:
        return Unreachable(trouble)
    return Absent()


def _completed(shown: Sequence[JobRow], accounted: Sequence[JobRow]) -> tuple[list[JobRow], bool]:
    """squeue's rows with what accounting knows better: how jobs ended. And whether it knows that of all that ended."""
    is_array = shown[0].array_task_id is not None
    rows = {row.job_id: row for row in shown}
    confirmed = True
    ended = {row.job_id: row for row in accounted if _has_ended(row) and (row.array_task_id is not None) == is_array}
    for job_id, seen in rows.items():
        known = ended.pop(job_id, None)
        if not _has_ended(seen):
            continue
        # Accounting may still show the end of the run before a requeue.
        if known is None or (known.submit and seen.submit and known.submit < seen.submit):
            confirmed = False
        elif MEANINGS[seen.state].finality is Finality.AT_ONCE:
            rows[job_id] = known
        else:
            # Slurm may yet bring it back: the row stays squeue's.
            rows[job_id] = replace(seen, exit_code=known.exit_code, end=known.end)
    return _ordered([*rows.values(), *ended.values()]), confirmed


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
    """The rows without the one that accounting, for a moment, has for an ended array as a whole."""
    if all(row.array_task_id is None for row in rows):
        return rows
    return [row for row in rows if row.array_task_id is not None or not _has_ended(row)]


def _newest(rows: Sequence[JobRow]) -> JobRow | None:
    return max((row for row in rows if row.submit), key=lambda row: (row.submit, row.job_id), default=None)


def _ordered(rows: Iterable[JobRow]) -> list[JobRow]:
    return sorted(rows, key=lambda row: (row.array_task_id or 0, row.job_id))


def _is_alive(rows: Sequence[JobRow]) -> bool:
    return bool(rows) and not all(map(_has_ended, rows))


def _has_ended(row: JobRow) -> bool:
    meaning = MEANINGS.get(row.state)
    if meaning is None or meaning.finality is Finality.NEVER:
        return False
    # When slurmdbd comes back, accounting knows for some seconds that a job failed, but neither when nor how (0:0).
    return row.source != "sacct" or row.end is not None


def _ends_at_once(row: JobRow) -> bool:
    return MEANINGS[row.state].finality is Finality.AT_ONCE
