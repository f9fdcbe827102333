"""Standing in for `jobbergate-agent`: looking at the API again and again, and doing what is to be done.

What is told about a submission is queued in the ledger, and told by the teller; so whatever dies meanwhile, each is
told once.
"""

from __future__ import annotations

import asyncio
import logging
import pwd
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from agent_worker.accounts import AccountSessions
from agent_worker.identity.mapping import MapperBroken, MapperUnavailable
from agent_worker.identity.policy import Denied, IdentityPolicy
from agent_worker.jobbergate.decisions import (
    OVER,
    Act,
    CancelRun,
    Close,
    Follow,
    Look,
    Reject,
    Run,
    Start,
    decide,
)
from agent_worker.jobbergate.garbage import GarbageCollection
from agent_worker.jobbergate.job_scripts import UNKNOWN_OWNER
from agent_worker.jobbergate.submission import API, Submissions, ensure_deployment, start_run
from agent_worker.runs import runs_of_ids
from jobbergate_flows.jobbergate import calls
from jobbergate_flows.jobbergate.errors import JobbergateError
from jobbergate_flows.jobbergate.links import Link
from jobbergate_flows.jobbergate.links import State as JobState
from jobbergate_flows.jobbergate.models import (
    ActiveSubmission,
    JobData,
    JobSubmissionDetails,
    PendingSubmission,
    SubmissionStatus,
)
from jobbergate_flows.jobbergate.states import job_data
from jobbergate_flows.slurm.accounts import AccountRefused
from jobbergate_flows.slurm.cluster import Finding
from jobbergate_flows.slurm.errors import SlurmError
from jobbergate_flows.slurm.jobs import JobStatus, SlurmJob
from jobbergate_flows.slurm.ledger import SubmissionStatus as LedgerStatus

_logger = logging.getLogger(__name__)
NO_JOB = "Job was cancelled by the user before a slurm job was created"
"""The agent's words for a submission that was cancelled while it waited."""
# Prefect's server on SQLite takes no more.
_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Looked:
    """What a look came to.

    Args:
        pending, active: How many submissions the API listed.
        started, rejected, cancelled, followed: How many of each.
        problems: What went wrong, for people.
    """

    pending: int = 0
    active: int = 0
    started: int = 0
    rejected: int = 0
    cancelled: int = 0
    followed: int = 0
    problems: tuple[str, ...] = ()


class Bridge:
    """Stands in for the agent of a cluster.

    All of it happens in one event loop, the worker's.

    Args:
        submissions: What is known of their runs, with the agent's settings and its client.
        accounts: The worker's sessions.
        policy: Whose runs are.
        work_pool: The pool whose deployment the runs are of.
    """

    def __init__(
        self, submissions: Submissions, accounts: AccountSessions, policy: IdentityPolicy, work_pool: str
    ) -> None:
        self.submissions = submissions
        self._settings = submissions.settings
        self._links = submissions.links
        self._client = submissions.client
        self._accounts = accounts
        self._policy = policy
        self._work_pool = work_pool
        self._following: dict[int, asyncio.Task[None]] = {}
        self._told: dict[int, asyncio.Event] = {}
        self._theirs: dict[int, SlurmJob] = {}
        self._to_cancel: set[int] = set()
        self._deployment: UUID | None = None
        self._deploying = asyncio.Lock()
        self._garbage = GarbageCollection(self._client, self._settings.task_garbage_collection_hour)
        self._problems: tuple[str, ...] = ()
        self._last: Looked | None = None

    @property
    def finding(self) -> Finding:
        """How the bridge is, for the worker's health."""
        subject = "Jobbergate API"
        if self._last is None:
            return Finding(subject, True, f"{self._client.base_url}: not asked yet")
        if self._last.problems:
            return Finding(subject, False, "; ".join(self._last.problems[:3]), "nothing is lost: it is tried again")
        counts = f"{self._last.pending} pending, {self._last.active} active"
        return Finding(subject, True, f"{self._client.base_url}: {counts}")

    async def serve(self) -> None:
        """Look for ever, as often as the agent did. To be run in the worker's loop."""
        for warning in self._settings.warnings:
            _logger.warning("%s", warning)
        while True:
            begun = asyncio.get_running_loop().time()
            try:
                self._last = await self.look()
            except Exception as error:
                _logger.exception("Looking for Jobbergate's submissions failed; trying again")
                self._last = Looked(problems=(str(error),))
            self._say(self._last.problems)
            took = asyncio.get_running_loop().time() - begun
            await asyncio.sleep(max(1.0, self._settings.task_jobs_interval_seconds - took))

    async def look(self) -> Looked:
        """Look once: tell that the cluster is alive, and do what its submissions ask for.

        What fails is among the problems, and is tried again by the next look.
        """
        for submission_id in [one for one, task in self._following.items() if task.done()]:
            del self._following[submission_id], self._told[submission_id]
        # Looked at once in each look: anybody may have changed it.
        self._deployment = None
        problems: list[str] = []
        interval = self._settings.task_jobs_interval_seconds
        await self._try(problems, self._client.asend(calls.report_cluster(interval)))
        pending = await self._try(problems, self._listed(calls.list_pending(self._settings.items_per_page))) or []
        active = await self._try(problems, self._listed(calls.list_active(self._settings.items_per_page))) or []
        counts = dict.fromkeys((Start, Reject, CancelRun, Close, Follow), 0)
        if pending or active:
            look = await self._seen(pending, active)
            turns = asyncio.Semaphore(_AT_ONCE)

            async def in_turn(act: Act) -> None:
                async with turns:
                    if await self._try(problems, self._do(act)):
                        counts[type(act)] += 1

            await asyncio.gather(*(in_turn(act) for act in decide(look)))
        await self._try(problems, self._garbage.look())
        return Looked(
            len(pending), len(active), counts[Start], counts[Reject], counts[CancelRun] + counts[Close],
            counts[Follow], tuple(dict.fromkeys(problems)),
        )  # fmt: skip

    async def settle(self, seconds: float) -> None:
        """Wait until something is known of each job that is followed, at most so long, and follow them no more.

        For whoever looks once, and then ends.
        """
        waits = [asyncio.ensure_future(told.wait()) for told in self._told.values()]
        if waits:
            _, late = await asyncio.wait(waits, timeout=seconds)
            for wait in late:
                wait.cancel()
        for task in self._following.values():
            task.cancel()
        await asyncio.gather(*self._following.values(), return_exceptions=True)

    async def close(self) -> None:
        """Close the connections to the API."""
        await self._client.aclose()

    async def _listed(self, listing: calls.Listing[calls.T]) -> list[calls.T]:
        return [item async for item in self._client.aitems(listing)]

    async def _seen(self, pending: Sequence[PendingSubmission], active: Sequence[ActiveSubmission]) -> Look:
        ids = [*(submission.id for submission in pending), *(submission.id for submission in active)]
        slurm_ids = [submission.slurm_job_id for submission in active if submission.slurm_job_id is not None]
        links = await asyncio.to_thread(self._links_of, ids)
        run_ids = [UUID(link.flow_run_id) for link in links.values() if link.flow_run_id is not None]
        async with get_client() as client:
            found = await runs_of_ids(client, run_ids)
        runs = {str(run.id): _run(run.state) for run in found if run.state is not None}
        # After the runs: what an ended run had queued, and its job, are there by then.
        return await asyncio.to_thread(self._with_ledger, pending, active, runs, ids, slurm_ids)

    def _with_ledger(
        self,
        pending: Sequence[PendingSubmission],
        active: Sequence[ActiveSubmission],
        runs: Mapping[str, Run],
        ids: Sequence[int],
        slurm_ids: Sequence[int],
    ) -> Look:
        links = self._links_of(ids)
        over = [
            link.flow_run_id
            for link in links.values()
            if link.flow_run_id and ((run := runs.get(link.flow_run_id)) is None or run.type in OVER)
        ]
        return Look(
            pending=pending,
            active=active,
            links=links,
            runs=runs,
            with_job=frozenset(run for run in over if self._has_job(run)),
            untold=frozenset(waiting.link.id for waiting in self._links.waiting(API)),
            mirrored=frozenset(slurm_id for slurm_id in slurm_ids if self._is_mirrored(slurm_id)),
        )

    def _links_of(self, ids: Iterable[int]) -> dict[int, Link]:
        known = {link.submission_id: link for link in self._links.open(API)}
        found = {one: known.get(one) or self._links.of_submission(API, one) for one in ids}
        return {one: link for one, link in found.items() if link is not None}

    def _has_job(self, flow_run_id: str) -> bool:
        without = (LedgerStatus.REFUSED, LedgerStatus.CANCELLED)
        return any(row.status not in without for row in self._accounts.own.ledger.of_flow_run(flow_run_id))

    def _is_mirrored(self, slurm_job_id: int) -> bool:
        own = self._accounts.own
        row = own.ledger.of_job(own.cluster.name, str(slurm_job_id))
        return row is not None and self._links.of_key(row.key) is not None

    async def _do(self, act: Act) -> bool:
        """Do it; whether there was something to do."""
        match act:
            case Start(submission):
                await self._start(submission)
            case Reject(link, reason):
                return await self._reject(link, reason)
            case CancelRun(flow_run_id):
                async with get_client() as client:
                    await client.set_flow_run_state(UUID(flow_run_id), Cancelling(message="Cancelled in Jobbergate"))
            case Close(submission_id):
                link = await asyncio.to_thread(self._links.bridge, API, submission_id)
                gone = JobData(
                    slurm_job_id=None, slurm_job_state="CANCELLED", slurm_job_info="{}", slurm_job_state_reason=NO_JOB
                )
                if link.closed:
                    # It takes no message.
                    await self._client.asend(calls.tell_job(submission_id, gone))
                else:
                    await asyncio.to_thread(self._links.queue, link.id, JobState(gone))
            case Follow():
                return await self._follow(act)
        return True

    async def _start(self, submission: PendingSubmission) -> None:
        link = await asyncio.to_thread(self._links.bridge, API, submission.id)
        async with get_client() as client:
            try:
                run_id = await self._made(client, submission)
            except ObjectNotFound:
                self._deployment = None
                run_id = await self._made(client, submission)
        await asyncio.to_thread(self._links.attach, link.id, flow_run_id=str(run_id))
        _logger.info("Job submission %s (%s) is flow run %s", submission.id, submission.owner_email, run_id)

    async def _made(self, client: PrefectClient, submission: PendingSubmission) -> UUID:
        async with self._deploying:
            if self._deployment is None:
                self._deployment = await ensure_deployment(client, self._work_pool)
            deployment = self._deployment
        return await start_run(
            client,
            deployment,
            submission_id=submission.id,
            name=submission.name,
            idempotency_key=self.submissions.key_of(submission.id),
        )

    async def _reject(self, link: Link, reason: str) -> bool:
        assert link.submission_id is not None
        if not link.closed:
            await asyncio.to_thread(self.submissions.reject_link, link, reason)
            return True
        details = await self.submissions.details(link.submission_id)
        if details is None or details.status is not SubmissionStatus.CREATED:
            return False
        # A closed link takes no message.
        await self._client.asend(calls.tell_rejected(link.submission_id, reason))
        return True

    async def _follow(self, act: Follow) -> bool:
        submission_id = act.submission.id
        if act.cancel:
            self._to_cancel.add(submission_id)
        task = self._following.get(submission_id)
        if task is not None and not task.done():
            if act.cancel:
                await self._cancel(submission_id)
            return act.cancel
        link = act.link
        if link is None:
            link = await asyncio.to_thread(self._links.bridge, API, submission_id)
        job = await self._job_to_follow(link, act.submission)
        if job is not None:
            self._told[submission_id] = asyncio.Event()
            self._following[submission_id] = asyncio.create_task(self._tell_of(link, job, submission_id))
        return True

    async def _cancel(self, submission_id: int) -> None:
        """Cancel a followed job, once Slurm has said that it is its owner's: users of the API may name any."""
        job = self._theirs.get(submission_id)
        if job is not None:
            await self._accounts.of(job.user).cluster.cancel([job.job_id])
            self._accounts.own.tracker.wake()

    async def _job_to_follow(self, link: Link, active: ActiveSubmission) -> SlurmJob | None:
        """The job as its owner's; None where it is nobody's, which is told then."""
        if link.flow_run_id is not None:
            rows = await asyncio.to_thread(self._accounts.own.ledger.of_flow_run, link.flow_run_id)
            jobs = [row.job for row in rows if row.job is not None]
            if jobs:
                return jobs[-1]
        details = await self.submissions.details(active.id)
        if details is None:
            return None
        owner = await self._owner_of(details)
        if isinstance(owner, Denied):
            await self._tell_unknown(link, active, owner.reason)
            return None
        return SlurmJob(
            cluster=self._accounts.own.cluster.name,
            job_id=str(active.slurm_job_id),
            key="",
            name=details.name,
            user=owner,
            directory=details.execution_directory or self._settings.work_dir(owner),
            standard_output=None,
            standard_error=None,
            submitted_at=details.created_at,
            # Slurm's default, which the agent left as it is.
            requeue=True,
        )

    async def _owner_of(self, details: JobSubmissionDetails) -> str | Denied:
        owner = await self.submissions.owner_of(details.owner_email, self._policy)
        if isinstance(owner, Denied):
            return owner
        try:
            await self._accounts.of(owner.account).expanded("~")
        except AccountRefused as error:
            return Denied(f"{UNKNOWN_OWNER}: {error.message}", error.hint or "")
        return owner.account

    async def _tell_of(self, link: Link, job: SlurmJob, submission_id: int) -> None:
        """Follow a job to its end. Nothing is told of one that is another account's than its owner's."""
        uid = await asyncio.to_thread(_uid, job.user)
        try:
            with self._accounts.own.tracker.watch(job) as watch:
                async for status in watch:
                    if not _is_theirs(status, uid):
                        reason = f"Slurm job {job.job_id} is not {job.user}'s"
                        await self._tell_unknown(link, None, reason, int(job.job_id))
                        return
                    await asyncio.to_thread(self._links.queue, link.id, JobState(job_data(job, status)))
                    self._theirs[submission_id] = job
                    if submission_id in self._to_cancel and not status.final:
                        await self._cancel(submission_id)
                    self._told[submission_id].set()
        except Exception:
            _logger.exception("Job %s of submission %s is not followed; trying again", job.job_id, submission_id)
        finally:
            self._theirs.pop(submission_id, None)
            self._to_cancel.discard(submission_id)
            self._told[submission_id].set()

    async def _tell_unknown(
        self, link: Link, active: ActiveSubmission | None, reason: str, job_id: int | None = None
    ) -> None:
        slurm_job_id = job_id if active is None else active.slurm_job_id
        _logger.warning("Job submission %s is not followed: %s", link.submission_id, reason)
        gone = JobData(
            slurm_job_id=slurm_job_id, slurm_job_state="UNKNOWN", slurm_job_info="{}", slurm_job_state_reason=reason
        )
        await asyncio.to_thread(self._links.queue, link.id, JobState(gone))

    async def _try(self, problems: list[str], act: Awaitable[calls.T]) -> calls.T | None:
        try:
            return await act
        except (JobbergateError, MapperUnavailable, MapperBroken, SlurmError) as error:
            problems.append(str(error))
        except Exception as error:
            _logger.exception("A part of the look at Jobbergate failed; trying again")
            problems.append(f"{type(error).__name__}: {error}")
        return None

    def _say(self, problems: tuple[str, ...]) -> None:
        if problems != self._problems:
            for problem in problems:
                if problem not in self._problems:
                    _logger.warning("Bridge to Jobbergate: %s", problem)
            if not problems:
                _logger.info("The bridge to Jobbergate is well again")
        self._problems = problems


def _run(state: State[object]) -> Run:
    return Run(state.type, state.name or state.type.value.capitalize(), state.message or "")


def _uid(account: str) -> int | None:
    try:
        return pwd.getpwnam(account).pw_uid
    except KeyError:
        return None


def _is_theirs(status: JobStatus, uid: int | None) -> bool:
    return all(row.user_id in (None, uid) for row in status.rows)
