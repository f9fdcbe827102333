"""A cluster with its ledger and its tracker: what tasks, the worker and the command line work with.

What is guaranteed: a key is submitted once, whatever dies meanwhile; a job that Slurm has is found again; its output
is delivered once; and a job's end is told again until `mark_told` says that it was told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from pathlib import PurePath, PurePosixPath
from typing import NoReturn, Protocol

from jobbergate_flows.applications.isolation import Serve
from jobbergate_flows.slurm.cluster import Cluster, JobDetails
from jobbergate_flows.slurm.errors import ClusterUnreachable, DirectoryRefused, JobNotFound, SlurmError
from jobbergate_flows.slurm.jobs import AttemptEnd, JobStatus, Known, SlurmJob, Unreachable
from jobbergate_flows.slurm.ledger import Ledger, Submission, SubmissionKey, SubmissionStatus
from jobbergate_flows.slurm.options import SlurmResources
from jobbergate_flows.slurm.output import OutputFollower, OutputLimits, OutputLine
from jobbergate_flows.slurm.patience import patiently
from jobbergate_flows.slurm.results import DIGEST_BELOW, Results, find_results
from jobbergate_flows.slurm.retries import GivenUp, Retry, RetryPolicy, decide, end_of, is_node_failure, refusal
from jobbergate_flows.slurm.states import summarize
from jobbergate_flows.slurm.steps import JobRecord
from jobbergate_flows.slurm.submission import (
    GRACE_SECONDS,
    SubmissionOrder,
    home_expanded,
    remove_secret,
    settle_cancelled,
    submit_once,
)
from jobbergate_flows.slurm.tracker import JobTracker

_logger = logging.getLogger(__name__)
RECORDS_SECONDS = 300.0
"""So long accounting is waited for before it is decided without it whether a job is submitted again."""
_OUTPUT_SECONDS = 3.0
_ACCOUNTING_TRIES = 4


class SessionObserver(Protocol):
    """Somebody who wants to know what becomes of a session's jobs. An error of his is logged, and holds up nothing."""

    async def submitting(self, order: SubmissionOrder) -> None:
        """An order is about to be submitted; it may have been before."""

    async def submitted(self, order: SubmissionOrder, job: SlurmJob) -> None:
        """Slurm has an order's job. Not told where the program dies just then; `told` is."""

    async def told(self, job: SlurmJob, status: JobStatus) -> None:
        """A followed job has come to that; the first one after a restart may have been told before."""


class ClusterSession:
    """One cluster as one user, in one event loop.

    Args:
        cluster: The cluster, acting as that user.
        ledger: Where submissions are kept.
        tracker: One that is shared with the sessions of other users; otherwise an own one.
        serve: Has applications rendered as that user, where that is another than this process's.
        home: The user's home directory, where that is another than this process's.
        grace: Seconds; see `submission.GRACE_SECONDS`.
        output_limits: How much of a job's output is delivered.
    """

    def __init__(
        self,
        cluster: Cluster,
        ledger: Ledger,
        *,
        tracker: JobTracker | None = None,
        serve: Serve | None = None,
        home: Callable[[], Awaitable[str]] | None = None,
        grace: float = GRACE_SECONDS,
        output_limits: OutputLimits | None = None,
    ) -> None:
        self.cluster = cluster
        self.ledger = ledger
        self.tracker = tracker or JobTracker(cluster)
        self.serve = serve
        self._home = home
        self._grace = grace
        self.output_limits = output_limits
        self._vet: Callable[[SubmissionOrder], Awaitable[None]] | None = None
        self._submitted: Callable[[SlurmJob], Awaitable[None]] | None = None
        self._observer: SessionObserver | None = None

    def watched(
        self, *, vet: Callable[[SubmissionOrder], Awaitable[None]], submitted: Callable[[SlurmJob], Awaitable[None]]
    ) -> ClusterSession:
        """This session for one run, whose submissions somebody looks at.

        Args:
            vet: Raises for an order that must not be submitted.
            submitted: Told each job that Slurm has.
        """
        session = copy(self)
        session._vet, session._submitted = vet, submitted
        return session

    def observed(self, observer: SessionObserver) -> ClusterSession:
        """This session for one run, of whose jobs somebody is told."""
        session = copy(self)
        session._observer = observer
        return session

    def following(self) -> ClusterSession:
        """This session for a run that has its job: it follows it, and renders and submits nothing more."""

        def refuse(*_anything: object) -> NoReturn:
            raise SlurmError("the run has a job already, and may not start another", hint="start another run")

        session = self.watched(vet=refuse, submitted=refuse)
        session.serve = refuse
        return session

    async def expanded(self, directory: str | PurePath) -> str:
        """A directory with `~` replaced by the user's home."""
        first, _, rest = str(directory).partition("/")
        if self._home is None or not first.startswith("~"):
            return home_expanded(directory)
        if first != "~":
            raise DirectoryRefused("the home of somebody else cannot be named like this", where=str(directory))
        return str(PurePosixPath(await self._home()) / rest)

    async def key(self, scope: str | None, call: str) -> SubmissionKey:
        """The key of a submission: its attempt is the ledger's to know. Without a scope it is a new one."""
        if scope is None:
            return SubmissionKey.once()
        attempt = await asyncio.to_thread(self.ledger.current_attempt, scope, call)
        return SubmissionKey(scope, call, attempt)

    async def submit(self, order: SubmissionOrder, *, on_wait: Callable[[str], None] | None = None) -> SlurmJob:
        """Submit an order once; see `submission.submit_once`."""
        if self._vet is not None:
            there = await asyncio.to_thread(self.ledger.get, order.key.token)
            if there is not None and there.job is not None:
                return there.job
            await self._vet(order)
        await self._observe(lambda observer: observer.submitting(order))
        job = await submit_once(self.cluster, self.ledger, order, on_wait=on_wait, grace=self._grace)
        await self._observe(lambda observer: observer.submitted(order, job))
        if self._submitted is not None:
            await self._submitted(job)
        return job

    async def job_of(self, scope: str, call: str) -> SlurmJob | None:
        """The job that an earlier life of a flow run submitted under that call, and whose end was not told yet."""
        key = await self.key(scope, call)
        row = await asyncio.to_thread(self.ledger.get, key.token)
        return row.job if row is not None else None

    async def wait(
        self,
        job: SlurmJob,
        *,
        on_status: Callable[[JobStatus], Awaitable[None]] | None = None,
        on_output: Callable[[Sequence[OutputLine]], Awaitable[None]] | None = None,
    ) -> JobStatus:
        """Follow a job to its end.

        Args:
            on_status: Told each status that differs from the one before, the final one included.
            on_output: Told the lines that the job writes; standard error apart from standard output where it has a
                file of its own.

        Returns:
            The final status, which the ledger then has as well.
        """
        row = await asyncio.to_thread(self.ledger.get, job.key)
        offsets = row.output_offsets if row is not None else None
        follower = OutputFollower(self.cluster, job, offsets, self.output_limits)
        ending = asyncio.Event()

        async def deliver(hand_over: Callable[[Sequence[OutputLine]], Awaitable[None]], *, to_the_end: bool) -> None:
            before = dict(follower.offsets)
            try:
                lines = await follower.read(self.tracker.status_of(job.job_id), to_the_end=to_the_end)
                if lines:
                    await hand_over(lines)
                    await asyncio.to_thread(self.ledger.set_offsets, job.key, follower.offsets)
            except Exception:
                # The job's life matters more than its output, which is in its file.
                follower.offsets = before
                _logger.exception("Output of job %s could not be handed over", job.job_id)

        async def deliver_all(hand_over: Callable[[Sequence[OutputLine]], Awaitable[None]]) -> None:
            last = False
            while not last:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ending.wait(), _OUTPUT_SECONDS)
                last = ending.is_set()
                await deliver(hand_over, to_the_end=last)

        delivering = asyncio.create_task(deliver_all(on_output)) if on_output is not None else None
        try:
            with self.tracker.watch(job) as watch:
                async for status in watch:
                    if status.final and delivering is not None:
                        # Not cancelled: what was read already would be lost.
                        ending.set()
                        await delivering
                    seen = status
                    await self._observe(lambda observer: observer.told(job, seen))  # noqa: B023
                    if on_status is not None:
                        await on_status(status)
                    if status.final:
                        break
        finally:
            if delivering is not None:
                delivering.cancel()
        if row is not None and row.status is not SubmissionStatus.FINAL:
            accounted = any(found.source == "sacct" for found in status.rows)
            await asyncio.to_thread(self.ledger.mark_final, job.key, status.name, status.message, accounted=accounted)
        return status

    async def status(self, job: SlurmJob) -> JobStatus:
        """A job's status now.

        Raises:
            JobNotFound: Slurm does not know it (any more).
            ClusterUnreachable: Slurm does not answer.
        """
        observation = (await self.cluster.query({job.job_id: job.submitted_at}))[job.job_id]
        if isinstance(observation, Unreachable):
            raise ClusterUnreachable(observation.cause)
        status = (
            summarize(observation.rows, requeue=job.requeue, gone_for=None) if isinstance(observation, Known) else None
        )
        if status is None:
            raise JobNotFound(f"Slurm does not know job {job.job_id}", where=self.cluster.name)
        return status

    async def details(self, job: SlurmJob) -> JobDetails:
        """What accounting says of an ended job, for its summary; empty where it does not answer.

        Accounting knows a short job's state before its partition and limits: it is asked again for some seconds.
        """
        details = JobDetails()
        for _ in range(_ACCOUNTING_TRIES):
            try:
                details = await self.cluster.details(job.job_id, since=job.submitted_at)
            except ClusterUnreachable:
                return details
            if details.fields.get("Partition") != "":
                return details
            await asyncio.sleep(1)
        return details

    async def records(self, job: SlurmJob) -> list[JobRecord]:
        """What accounting keeps of an ended job and of its steps; empty where it has nothing.

        It knows a short job's state before its request and the end of its steps: it is asked again for some seconds.

        Raises:
            ClusterUnreachable
        """
        records: list[JobRecord] = []
        for attempt in range(_ACCOUNTING_TRIES):
            if attempt:
                await asyncio.sleep(1)
            records = await self.cluster.steps(job.job_id, since=job.submitted_at)
            if records and all(_is_whole(record) for record in records):
                break
        return records

    async def results(
        self, job: SlurmJob, patterns: Sequence[str] = (), *, digest_below: int = DIGEST_BELOW
    ) -> Results:
        """The files that a job has left as its results; see `results.find_results`.

        Args:
            patterns: Which; otherwise those that its application names.
            digest_below: In bytes: smaller files get a checksum.

        Raises:
            FileRefused, ClusterUnreachable
        """
        row = await asyncio.to_thread(self.ledger.get, job.key)
        return await find_results(
            self.cluster,
            job,
            patterns or (row.result_files if row is not None else ()),
            written=row.written_files.keys() if row is not None else (),
            in_place=not job.directory.endswith(f"-{job.key}"),
            digest_below=digest_below,
        )

    async def ends_before(self, key: SubmissionKey) -> tuple[AttemptEnd, ...]:
        """How the attempts ended because of which this one is made; none where a person began it."""
        return await asyncio.to_thread(self.ledger.attempts_before, key.scope, key.call, key.attempt)

    async def next_attempt(
        self, job: SlurmJob, status: JobStatus, *, on_wait: Callable[[str], None] | None = None
    ) -> Retry | GivenUp:
        """Whether a job that has ended is submitted again, by the policy with which it was submitted.

        What the job had is asked of accounting, which is waited for, for `RECORDS_SECONDS` at most. The ledger keeps a
        retry: the next submission of its call asks for what is decided here.

        Args:
            on_wait: Told why it takes longer, and what is then missing; otherwise it is logged.
        """
        row = await asyncio.to_thread(self.ledger.get, job.key)
        if row is None or row.retries is None or row.asked is None or row.cancel_requested:
            return GivenUp(None)
        policy, asked = RetryPolicy.model_validate(row.retries), SlurmResources.model_validate(row.asked)
        ends = await asyncio.to_thread(self.ledger.attempts_before, row.scope, row.call, row.attempt)
        if (refused := refusal(policy, (*ends, end_of(status)))) is not None:
            return refused

        def say(why: str) -> None:
            (on_wait or _logger.warning)(f"Whether job {job.job_id} is retried is decided {why}")

        try:
            records = await patiently(
                lambda: self.records(job), lambda why: say(f"later: {why}"), seconds=RECORDS_SECONDS
            )
        except ClusterUnreachable as error:
            say(f"without what accounting knows of it: {error.message}")
            records = []
        node_list = (await self.details(job)).fields.get("NodeList", "") if is_node_failure(status) else ""
        end = end_of(status, records, node_list)
        decided = decide(policy, asked, (*ends, end))
        if isinstance(decided, Retry):
            # Again: what accounting knows may have been waited for.
            now = await asyncio.to_thread(self.ledger.get, job.key)
            if now is None or now.cancel_requested:
                return GivenUp(None)
            await asyncio.to_thread(self.ledger.mark_retried, job.key, end)
        return decided

    async def cancel(self, job: SlurmJob) -> None:
        """Ask for a job's end.

        Raises:
            ClusterUnreachable
        """
        await asyncio.to_thread(self.ledger.request_cancel, job.key)
        await self.cluster.cancel([job.job_id])
        self.tracker.wake()

    async def cancel_flow_run(self, flow_run_id: str) -> list[Submission]:
        """Ask for the end of all unfinished submissions of a flow run, and return them.

        One that Slurm does not have yet is given up, or cancelled as soon as it is found. One whose job is over but
        whose end was not told yet is returned too: whoever is telling it goes on. Retries that were decided before are
        forgotten: whoever starts the run again begins anew.
        """
        await asyncio.to_thread(self.ledger.forget_retries, flow_run_id)
        rows = []
        for row in await asyncio.to_thread(self.ledger.of_flow_run, flow_run_id):
            unfinished = row.status in (SubmissionStatus.INTENT, SubmissionStatus.SUBMITTED)
            if unfinished or (row.status is SubmissionStatus.FINAL and not row.told):
                # As it is after the wish was written: from then on whoever submits it cancels its job, and whoever
                # decides about its retry makes none.
                wished = await asyncio.to_thread(self.ledger.request_cancel, row.key)
                rows.append(wished if wished is not None else row)
        jobs = [row.job_id for row in rows if row.job_id is not None and row.status is not SubmissionStatus.FINAL]
        if jobs:
            await self.cluster.cancel(jobs)
            self.tracker.wake()
        return rows

    async def unfinished(self) -> list[Submission]:
        """Submissions of this cluster whose job is not final, or whose end was not told."""
        return await asyncio.to_thread(self.ledger.unfinished, self.cluster.name)

    async def settle_cancelled(self, row: Submission) -> SlurmJob | None:
        """End a cancelled intent that nobody is submitting; see `submission.settle_cancelled`."""
        return await settle_cancelled(self.cluster, self.ledger, row, grace=self._grace)

    async def mark_told(self, job: SlurmJob) -> None:
        """The job's end was told to whoever waits for it: the next submission of its call is a new attempt."""
        await asyncio.to_thread(self.ledger.mark_told, job.key)

    async def mark_run_told(self, flow_run_id: str, kind: str) -> None:
        """The ends of all of a flow run's jobs of that kind were told; see `mark_told`."""
        for row in await asyncio.to_thread(self.ledger.of_flow_run, flow_run_id):
            if row.kind == kind and row.status is SubmissionStatus.FINAL and row.job is not None and not row.told:
                await self.mark_told(row.job)

    async def _observe(self, tell: Callable[[SessionObserver], Awaitable[None]]) -> None:
        if self._observer is None:
            return
        try:
            await tell(self._observer)
        except Exception:
            _logger.exception("The observer of a run's jobs failed")

    async def remove_secret(self, job: SlurmJob) -> None:
        """Remove the file that held what must not be in the script, or see to it that the log names it."""
        row = await asyncio.to_thread(self.ledger.get, job.key)
        if row is not None:
            await remove_secret(self.cluster, row)


def _is_whole(record: JobRecord) -> bool:
    ended = record.end is not None or record.start is None
    # A job of no Slurm's has requested nothing.
    return ended and bool(record.requested or not record.raw_id)
