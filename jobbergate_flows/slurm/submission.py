"""Submitting exactly once.

sbatch's answer can be lost while the job exists ("Socket timed out on send/recv operation"), and a worker can die
between sbatch and its record. So the intent is committed first, the job bears its key in its name, and whatever the
ledger does not know is looked up on the cluster before anything is submitted again. "Ambiguous" is never a resting
state.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import PurePath, PurePosixPath
from weakref import WeakKeyDictionary

from cachetools import LRUCache

from jobbergate_flows.applications.job_script import JobScript
from jobbergate_flows.errors import JobbergateFlowsError
from jobbergate_flows.slurm import deputy
from jobbergate_flows.slurm.cluster import Cluster, FoundJob, SubmitRequest, Witness
from jobbergate_flows.slurm.directives import parse_arguments, parse_directives
from jobbergate_flows.slurm.errors import (
    AnswerUntrue,
    ClusterUnreachable,
    DirectoryRefused,
    FileRefused,
    SlurmError,
    SubmissionAmbiguous,
    SubmissionCancelled,
    SubmissionHeld,
    SubmissionRefused,
)
from jobbergate_flows.slurm.jobs import AttemptEnd, SlurmJob
from jobbergate_flows.slurm.ledger import Ledger, Submission, SubmissionKey, SubmissionStatus, slurm_name
from jobbergate_flows.slurm.options import SlurmResources, resources_of
from jobbergate_flows.slurm.paths import output_paths
from jobbergate_flows.slurm.patience import RETRY_SECONDS, patiently
from jobbergate_flows.slurm.retries import NO_RETRIES, RetryPolicy, request_after

_logger = logging.getLogger(__name__)
GRACE_SECONDS = 15.0
"""So long a job must not be found before it was never submitted: MessageTimeout (10 s) and accounting's lag (2 s)."""

_LOOK_SECONDS = 2.0
_HELD_SECONDS = (30.0, 60.0, 120.0, 300.0)
_CLAIM_SECONDS = 0.5
_UNTRUE_ANSWERS = 3
_MAX_DIRECTORIES = 10_000
_PLACE = ("account", "partition", "qos", "reservation")
_WITNESS_NAME = "jobbergate-flows-witness"
# Below, the controller itself remembers a job; above, accounting may have forgotten it.
_WITNESS_NEEDED_AFTER = timedelta(minutes=1)
_WITNESS_GOOD_FOR = timedelta(days=1)
SECRET_FILE = deputy.SECRET_FILE
"""Of a flow's job: the file, in the job's directory, that holds what must not be in the script."""


def home_expanded(directory: str | PurePath) -> str:
    """A directory with `~` replaced by the own account's home."""
    return os.path.expanduser(str(directory))


@dataclass(frozen=True, slots=True)
class SubmissionOrder:
    """What is to be submitted, once, under one key.

    Args:
        script: The job script with its supporting files.
        resources: Options that override the script's.
        directory: The base directory, absolute on the cluster.
        key: What the submission is.
        job_name: The job's name as the user sees it; otherwise the script's.
        in_place: Run in `directory` itself, instead of a new directory in it.
        flow_run_id: The run that it belongs to.
        kind: `application`, or `flow` for a flow that runs as the job.
        secret: Text for `SECRET_FILE`.
        retries: By which policy another attempt is made; see `retries.request_after`.
        ends: How the attempts ended because of which this one is made.
    """

    script: JobScript
    resources: SlurmResources
    directory: str
    key: SubmissionKey
    job_name: str | None = None
    in_place: bool = False
    flow_run_id: str | None = None
    kind: str = "application"
    secret: str | None = field(default=None, repr=False)
    retries: RetryPolicy = NO_RETRIES
    ends: tuple[AttemptEnd, ...] = ()

    @property
    def name(self) -> str:
        """The job's name as the user sees it."""
        return self.job_name or self.script.name

    @property
    def asked(self) -> SlurmResources:
        """What the first attempt asks for: with a policy for retries, the script's own lines included."""
        if not self.retries.retries:
            return self.resources
        return self.resources.over(resources_of(parse_directives(self.script.text)))

    @property
    def request(self) -> SlurmResources:
        """What this attempt asks for."""
        return request_after(self.retries, self.asked, self.ends)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments for sbatch. Whether the job may be requeued is always said; the script may say it too."""
        resources = self.request
        scripts_own = parse_directives(self.script.text).options
        if "requeue" in scripts_own and "requeue" not in resources.model_fields_set:
            resources = resources.model_copy(update={"requeue": True})
        return resources.to_arguments()

    @property
    def run_directory(self) -> str:
        """Where the job runs."""
        if self.in_place:
            return self.directory
        return str(PurePosixPath(self.directory) / f"{slurm_name(self.name)}-{self.key.token}")

    @property
    def script_file(self) -> str:
        """The name of the job script's file in that directory: for people; sbatch reads the script from its input."""
        name = slurm_name(self.name)
        return f"{name}.sh" if f"{name}.sh" not in self.script.files else f"{name}-{self.key.token}.sh"


async def submit_once(
    cluster: Cluster,
    ledger: Ledger,
    order: SubmissionOrder,
    *,
    on_wait: Callable[[str], None] | None = None,
    grace: float = GRACE_SECONDS,
) -> SlurmJob:
    """Submit an order, unless that was done before, and return its job.

    Outages and limits of Slurm's are waited out. Being cancelled (as a coroutine) leaves a state from which the next
    call with the same order goes on. Of several calls with one key at once, in this process or another, one submits
    and all return its job. Of a submission that was refused only its directory is left, with
    what others put there.

    Args:
        on_wait: Told, once for each cause, why it takes longer.
        grace: Seconds; see `GRACE_SECONDS`.

    Raises:
        OptionRefused, DirectoryRefused, FileRefused: before anything was submitted.
        SubmissionRefused: with sbatch's own words.
        SubmissionCancelled: `ledger.request_cancel` came before Slurm had the job.
    """
    return await _Submitting(cluster, ledger, order, on_wait or _nobody, grace).run()


async def settle_cancelled(
    cluster: Cluster, ledger: Ledger, row: Submission, *, grace: float = GRACE_SECONDS
) -> SlurmJob | None:
    """End an intent whose cancellation was requested, once nobody is submitting it any more.

    Returns:
        The job that Slurm turned out to have, which is then being cancelled; None when it was never submitted.

    Raises:
        ClusterUnreachable: The job is found, but could not be cancelled; call again.
    """
    async with _claimed(ledger, row.key, _nobody):
        current = await asyncio.to_thread(ledger.get, row.key) or row
        if current.status is not SubmissionStatus.INTENT:
            if current.status is SubmissionStatus.SUBMITTED and current.job_id is not None:
                await cluster.cancel([current.job_id])
            return current.job
        found = await _find_for(grace, cluster, ledger, row, (), _nobody)
        if not found:
            await remove_secret(cluster, row)
            await asyncio.to_thread(ledger.mark_cancelled, row.key)
            return None
        await cluster.cancel([job.job_id for job in found])
        first = found[0]
        await asyncio.to_thread(ledger.mark_submitted, row.key, first.job_id, first.submit or row.intent_at, None, None)
        settled = await asyncio.to_thread(ledger.get, row.key)
        return settled.job if settled is not None else None


async def remove_secret(cluster: Cluster, row: Submission, digests: Sequence[str] | None = None) -> None:
    """Remove the file that held what must not be in a submission's script.

    Where that cannot be done, the log names the file: nothing else is held up by it.

    Args:
        digests: Only one with one of these.
    """
    if row.secret_path is None:
        return
    try:
        await cluster.remove_files(row.directory, [SECRET_FILE], digests=digests)
    except JobbergateFlowsError as error:
        _logger.error("The secrets of %s are left in %s: %s", row.name_in_slurm, row.secret_path, error)


class _Submitting:
    def __init__(
        self, cluster: Cluster, ledger: Ledger, order: SubmissionOrder, on_wait: Callable[[str], None], grace: float
    ) -> None:
        self._cluster = cluster
        self._ledger = ledger
        self._order = order
        self._on_wait = on_wait
        self._grace = grace
        self._told: str | None = None
        self._claim = _Claim()
        # Whether the secret's file that is there is ours; otherwise only one of the same content is.
        self._secret_is_ours = False
        options = {
            **parse_directives(order.script.text).options,
            **parse_arguments(order.arguments).options,
        }
        self._options = options
        # Where a job may run at all; what else the order asks for, a witness does without.
        self._place = tuple(f"--{name}={options[name]}" for name in _PLACE if options.get(name))

    async def run(self) -> SlurmJob:
        key = self._order.key.token
        there = await asyncio.to_thread(self._ledger.get, key)
        if there is not None and there.job is not None:
            return there.job
        async with _claimed(self._ledger, key, self._say) as self._claim:
            # While we waited for our turn, somebody else may have submitted it.
            there = await asyncio.to_thread(self._ledger.get, key)
            if there is not None:
                return await self._take_up(there)
            await patiently(lambda: self._cluster.check_directory(self._order.directory), self._say)
            intent = await asyncio.to_thread(self._ledger.intend, self._intent())
            return await self._submit(intent)

    async def _take_up(self, row: Submission) -> SlurmJob:
        if row.job is not None:
            return row.job
        if row.status is SubmissionStatus.CANCELLED:
            raise SubmissionCancelled("the submission was cancelled")
        begun = row.user, row.directory
        if begun != (self._cluster.user, self._order.run_directory):
            # Going on would submit the job as somebody else, or where nothing of it is.
            raise SubmissionRefused(
                f"the submission was begun as {row.user} in {row.directory}", hint="cancel the run, and start another"
            )
        if row.status is SubmissionStatus.REFUSED:
            raise SubmissionRefused(row.message or "the submission was refused")
        if row.script_digest != self._order.script.digest:
            _logger.warning("The script of submission %s is another than when it was intended", row.name_in_slurm)
        # An intent without an id: sbatch may have run.
        self._secret_is_ours = True
        job = await self._look_up(row)
        return job if job is not None else await self._submit(row)

    async def _submit(self, row: Submission) -> SlurmJob:
        held = tries = untrue = 0
        while True:
            await self._give_up_if_cancelled(row)
            try:
                await self._write_files(row)
                return await self._sbatch(row)
            except SubmissionAmbiguous as error:
                untrue += isinstance(error, AnswerUntrue)
                self._say(f"sbatch's answer was lost ({error.message}); looking the job up")
                job = await self._look_up(row)
                if job is not None:
                    return job
                if untrue == _UNTRUE_ANSWERS:
                    refused = SubmissionRefused(f"sbatch's answers do not hold: {error.message}", where=row.directory)
                    await self._refuse(row, refused)
                    raise refused from error
            except SubmissionHeld as error:
                self._say(f"a limit of Slurm's is reached: {error.message}")
                await self._pause(_HELD_SECONDS[min(held, len(_HELD_SECONDS) - 1)], row)
                held += 1
            except ClusterUnreachable as error:
                self._say(f"Slurm does not answer: {error.message}")
                await self._pause(RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)], row)
                tries += 1
            except (SubmissionRefused, DirectoryRefused, FileRefused) as error:
                await self._refuse(row, error)
                raise

    async def _sbatch(self, row: Submission) -> SlurmJob:
        order = self._order
        request = SubmitRequest(
            script=order.script.text,
            arguments=order.arguments,
            job_name=row.name_in_slurm,
            key=row.key,
            directory=row.directory,
        )

        async def submit_and_record() -> SlurmJob:
            job_id = await self._cluster.submit(request)
            return await self._record(row, job_id, datetime.now(UTC))

        # Its answer is recorded even when whoever waits for it goes away; until then the key stays claimed.
        answer = asyncio.ensure_future(submit_and_record())
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            if not answer.done():
                answer.add_done_callback(_retrieve)
                self._claim.until = answer
            raise

    async def _look_up(self, row: Submission) -> SlurmJob | None:
        """The job of an intent, if Slurm has one; None once its absence is proved for the whole grace."""
        found = await _find_for(self._grace, self._cluster, self._ledger, row, self._place, self._say)
        if found:
            return await self._adopt(row, found)
        await self._give_up_if_cancelled(row)
        return None

    async def _adopt(self, row: Submission, found: list[FoundJob]) -> SlurmJob:
        oldest, *others = found
        if others:
            _logger.warning("Job %s was submitted %d times; the oldest is kept", row.name_in_slurm, len(found))
            await patiently(lambda: self._cluster.cancel([job.job_id for job in others]), self._say)
        return await self._record(row, oldest.job_id, oldest.submit or row.intent_at)

    async def _record(self, row: Submission, job_id: str, at: datetime) -> SlurmJob:
        output, error = output_paths(
            self._options,
            directory=row.directory,
            job_id=job_id,
            job_name=row.name_in_slurm,
            user=row.user,
            array=row.array,
        )
        await asyncio.to_thread(self._ledger.mark_submitted, row.key, job_id, at, output, error)
        recorded = await asyncio.to_thread(self._ledger.get, row.key)
        if recorded is None or recorded.job is None:
            raise SlurmError(f"the ledger lost job {job_id}", where=row.key)
        if recorded.cancel_requested:
            # It came while sbatch ran.
            await patiently(lambda: self._cluster.cancel([job_id]), self._say)
        return recorded.job

    def _intent(self) -> Submission:
        order = self._order
        return Submission(
            key=order.key.token,
            scope=order.key.scope,
            call=order.key.call,
            attempt=order.key.attempt,
            cluster=self._cluster.name,
            user=self._cluster.user,
            job_name=order.name,
            script_digest=order.script.digest,
            directory=order.run_directory,
            intent_at=datetime.now(UTC),
            flow_run_id=order.flow_run_id,
            kind=order.kind,
            array="array" in self._options,
            requeue="--requeue" in order.arguments,
            secret_path=f"{order.run_directory}/{SECRET_FILE}" if order.secret is not None else None,
            result_files=order.script.result_files,
            asked=order.asked.model_dump(mode="json", exclude_unset=True) if order.retries.retries else None,
            retries=order.retries.model_dump(mode="json") if order.retries.retries else None,
        )

    async def _write_files(self, row: Submission) -> None:
        order = self._order
        files = {**order.script.files, order.script_file: order.script.text}
        writers = _Writers.of(row.cluster, row.directory) if order.in_place else _Writers()
        try:
            # One after the other in each directory: who writes knows then what the others wrote.
            async with writers.turn:
                ours = await asyncio.to_thread(self._ledger.files_we_wrote, row.cluster, row.directory)
                ours |= writers.wrote
                written = await self._cluster.write_files(row.directory, files, ours=ours, in_place=order.in_place)
                await asyncio.to_thread(self._ledger.mark_written, row.key, written)
                writers.wrote |= written
            if order.secret is not None and row.secret_path is not None:
                try:
                    await self._cluster.write_secret(row.directory, order.secret)
                    self._secret_is_ours = True
                except FileRefused:
                    self._secret_is_ours = False
                    raise
        except OSError as error:
            raise FileRefused(
                f"the run's files cannot be written: {error.strerror or error}", where=row.directory
            ) from error

    async def _refuse(self, row: Submission, error: SlurmError) -> None:
        await self._remove_files(row)
        await asyncio.to_thread(self._ledger.mark_refused, row.key, str(error))

    async def _give_up_if_cancelled(self, row: Submission) -> None:
        current = await asyncio.to_thread(self._ledger.get, row.key)
        if current is not None and current.cancel_requested:
            await self._remove_files(row)
            await asyncio.to_thread(self._ledger.mark_cancelled, row.key)
            raise SubmissionCancelled("the submission was cancelled before Slurm had the job")

    async def _remove_files(self, row: Submission) -> None:
        order = self._order
        # First, and before the ledger has the end: what it has as ended nobody looks after any more.
        secret = [deputy.digest_of((order.secret or "").encode())]
        await remove_secret(self._cluster, row, None if self._secret_is_ours else secret)
        if order.in_place:
            return
        # What an earlier life wrote, the ledger has; what this one wrote and could not record is of these contents.
        current = await asyncio.to_thread(self._ledger.get, row.key) or row
        files = {**order.script.files, order.script_file: order.script.text}
        digests = {*current.written_files.values(), *(deputy.digest_of(text.encode()) for text in files.values())}
        try:
            await self._cluster.remove_files(
                row.directory, sorted({*files, *current.written_files}), digests=sorted(digests)
            )
        except SlurmError as error:
            _logger.warning("Files of a submission that was given up are left in %s: %s", row.directory, error)

    async def _pause(self, seconds: float, row: Submission) -> None:
        """Sleep, but notice a cancellation within two seconds."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while (left := until - loop.time()) > 0:
            await self._give_up_if_cancelled(row)
            await asyncio.sleep(min(left, 2.0))

    def _say(self, why: str) -> None:
        if why != self._told:
            self._told = why
            self._on_wait(why)


@dataclass
class _Writers:
    """Who writes into one directory, and what was written there last: the ledger has that in the order of intents."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    wrote: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, cluster: str, directory: str) -> _Writers:
        """Those of this event loop."""
        known = _writers.setdefault(asyncio.get_running_loop(), LRUCache(_MAX_DIRECTORIES))
        return known.setdefault((cluster, directory), cls())


_writers: WeakKeyDictionary[asyncio.AbstractEventLoop, LRUCache[tuple[str, str], _Writers]] = WeakKeyDictionary()


async def _find_for(
    grace: float,
    cluster: Cluster,
    ledger: Ledger,
    row: Submission,
    place: Sequence[str],
    say: Callable[[str], None],
) -> list[FoundJob]:
    """The jobs of an intent; an empty list once their absence was proved for the whole grace.

    Args:
        place: Arguments that a witness needs to be accepted, should one have to be submitted.
    """
    loop = asyncio.get_running_loop()
    absent_since: float | None = None
    tries = 0
    maker = _WitnessMaker(cluster, ledger, place)
    while True:
        witness = await asyncio.to_thread(ledger.witness, row.cluster, row.user)
        try:
            found = await cluster.find(row.name_in_slurm, since=row.intent_at, witness=witness)
        except ClusterUnreachable as error:
            absent_since = None
            say(f"cannot find out whether the job was submitted: {error.message}")
            if not _needs_witness(row, witness, datetime.now(UTC)) or not await maker.advance():
                await asyncio.sleep(RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)])
                tries += 1
            continue
        now = loop.time()
        absent_since = now if absent_since is None else absent_since
        if found or now - absent_since >= grace:
            return found
        await asyncio.sleep(min(_LOOK_SECONDS, max(grace / 3, 0.01)))


def _needs_witness(row: Submission, witness: Witness | None, now: datetime) -> bool:
    if now - row.intent_at < _WITNESS_NEEDED_AFTER:
        return False
    return witness is None or now - witness.submitted_at > _WITNESS_GOOD_FOR


class _WitnessMaker:
    """Submits a job that does nothing and is cancelled at once, so that accounting has one that it can be asked for.

    It may be left behind at any moment: it ends by itself.
    """

    def __init__(self, cluster: Cluster, ledger: Ledger, place: Sequence[str]) -> None:
        self._cluster = cluster
        self._ledger = ledger
        self._place = place
        self._key = SubmissionKey.once().token
        self._begun: datetime | None = None
        self._job_id: str | None = None

    async def advance(self) -> bool:
        """Do what can be done now; whether the ledger has the witness."""
        name = f"{_WITNESS_NAME}-{self._key}"
        try:
            if self._job_id is None:
                self._job_id = await self._submitted(name)
                await self._cluster.cancel([self._job_id])
            begun = self._begun or datetime.now(UTC)
            if not (await self._cluster.details(self._job_id, since=begun)).fields:
                return False
        except SlurmError as error:
            _logger.info("No witness for accounting's answers yet: %s", error)
            return False
        witness = Witness(self._job_id, name, begun)
        await asyncio.to_thread(self._ledger.add_witness, self._cluster.name, self._cluster.user, witness, self._key)
        return True

    async def _submitted(self, name: str) -> str:
        if self._begun is not None:
            # The answer to the first attempt may have been lost.
            found = await self._cluster.find(name, since=self._begun)
            if found:
                return found[0].job_id
        self._begun = self._begun or datetime.now(UTC)
        arguments = (*self._place, "--time=1", "--no-requeue", "--output=/dev/null")
        return await self._cluster.submit(SubmitRequest("#!/bin/sh\nexit 0\n", arguments, name, self._key, "/"))


@dataclass
class _Claim:
    """A claimed key. It is let go at the end, or once `until`, which then nobody waits for, is done."""

    until: asyncio.Future[SlurmJob] | None = None


@asynccontextmanager
async def _claimed(ledger: Ledger, key: str, say: Callable[[str], None]) -> AsyncIterator[_Claim]:
    """Be the only one who submits a key; wait for one's turn."""
    while not await _try_claim(ledger, key):
        say("another call or process is submitting this")
        await asyncio.sleep(_CLAIM_SECONDS)
    claim = _Claim()
    try:
        yield claim
    finally:
        if claim.until is None:
            ledger.release(key)
        else:
            claim.until.add_done_callback(lambda _answer: ledger.release(key))


async def _try_claim(ledger: Ledger, key: str) -> bool:
    claiming = asyncio.ensure_future(asyncio.to_thread(ledger.claim, key))
    try:
        return await asyncio.shield(claiming)
    except asyncio.CancelledError:
        # The thread goes on; what it may still get is not kept.
        claiming.add_done_callback(lambda done: None if done.cancelled() or done.exception() else ledger.release(key))
        raise


def _retrieve(answer: asyncio.Future[SlurmJob]) -> None:
    if not answer.cancelled() and (error := answer.exception()) is not None:
        _logger.warning("A submission that was left alone ended with: %s", error)


def _nobody(_why: str) -> None:
    """Told why something takes longer; nobody listens."""
