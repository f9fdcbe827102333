"""Whether a run may go on, and as whom: the site's policy, asked until it has an answer, and what the run is told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Failed

from agent_worker.accounts import AccountSessions
from agent_worker.configuration import FlowJobConfiguration
from agent_worker.identity.audit import (
    AuditLog,
    AuditRecord,
    AuditUnavailable,
    record_of,
    record_of_job,
    record_of_taken_up,
    record_of_unread,
)
from agent_worker.identity.bindings import Bindings, BindingsBroken, BindingsFile
from agent_worker.identity.consent import Consent, parse
from agent_worker.identity.facts import RequestRefused
from agent_worker.identity.limits import exceeded
from agent_worker.identity.mapping import Mapped, Mapper, MapperBroken, MapperUnavailable, Word, map_creator
from agent_worker.identity.policy import Allowed, Decision, Denied, IdentityPolicy, NeedsConsent, consented, owner_of
from agent_worker.kinds import SUBMISSION_FLOW, Kind
from agent_worker.run_facts import ReadRun, RunOver, read_run_facts
from agent_worker.runs import force_state, read_run
from jobbergate_flows.errors import JobbergateFlowsError
from jobbergate_flows.following import tell_state
from jobbergate_flows.jobbergate.errors import JobbergateError
from jobbergate_flows.slurm.accounts import AccountRefused
from jobbergate_flows.slurm.directives import has_foreign_lines, parse_directives
from jobbergate_flows.slurm.errors import ConsentRefused, OptionRefused, SlurmError
from jobbergate_flows.slurm.jobs import SlurmJob
from jobbergate_flows.slurm.options import resources_of
from jobbergate_flows.slurm.session import ClusterSession
from jobbergate_flows.slurm.submission import SubmissionOrder

_logger = logging.getLogger(__name__)
NEEDS_CONSENT = "Needs consent"
UNDECIDED = "Undecided"
# Nothing is known, or nothing may be done, until somebody mends it: the run waits, and nothing is lost. A SlurmError is
# what the deputy says instead of an answer, or that it does not answer.
_WAITING = (MapperUnavailable, MapperBroken, BindingsBroken, AuditUnavailable, SlurmError, JobbergateError)


@dataclass(frozen=True, slots=True)
class Admitted:
    """A run that may go on.

    Args:
        session: As whom.
        parameters: An application's or a submission's, as they were decided about; None for what the run itself has.
    """

    session: ClusterSession
    parameters: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """What the site has set.

    Args:
        policy: Whose runs are.
        bindings: The table, for `owner`.
        mapper: Who knows the accounts of people, for `owner`; it gets `word` of a run's creator.
        audit: Where each decision is written; None only for a worker that acts as its own account for everybody.
        consent_seconds: So long a run waits for its user's consent.
        poll_seconds: Seconds between two looks while a run waits.
    """

    policy: IdentityPolicy
    bindings: BindingsFile | None = None
    mapper: Mapper | None = None
    word: Word = "id"
    audit: AuditLog | None = None
    consent_seconds: float = 86400.0
    poll_seconds: float = 15.0


class Submissions(Protocol):
    """Who knows the runs that are Jobbergate's job submissions; see `jobbergate.submission`."""

    flow: Flow[..., Any]

    async def read(self, flow_run: FlowRun, work_pool: str) -> ReadRun:
        """What a run asks for."""

    async def owner(self, read: ReadRun, policy: IdentityPolicy) -> Allowed | Denied:
        """Whose run it is."""

    async def reject(self, flow_run_id: str, reason: str) -> None:
        """Have Jobbergate told why the submission is not run."""


class Admission:
    """Decides for each run of a worker.

    Args:
        accounts: The worker's sessions.
        rules: The site's.
        work_pool: The pool that the worker serves.
        submissions: Where the worker has a bridge to Jobbergate.
    """

    def __init__(
        self, accounts: AccountSessions, rules: Rules, work_pool: str, submissions: Submissions | None = None
    ) -> None:
        self.accounts = accounts
        self.submissions = submissions
        self._rules = rules
        self._work_pool = work_pool
        self._asking: set[UUID] = set()

    @property
    def asking(self) -> frozenset[UUID]:
        """The runs that wait for their users' consent, or for Jobbergate's API, now."""
        return frozenset(self._asking)

    async def admit(
        self, flow_run: FlowRun, kind: Kind, configuration: FlowJobConfiguration | None = None
    ) -> Admitted | None:
        """Wait until a run may go on; None when it has ended instead, with the reason in its state.

        A run whose job Slurm has already is that job's user's, and is only followed. That its job was submitted is then
        written to the audit log, for the second time unless the worker that submitted it died before it could.

        Args:
            kind: What the worker takes the run for.
            configuration: An ordinary flow's.
        """
        with_job = await self.accounts.with_job(str(flow_run.id))
        if with_job is not None:
            session, job = with_job
            if self._rules.audit is None:
                return Admitted(session)
            await self._audit_done(
                record_of_taken_up(str(flow_run.id), self._rules.policy, job.user, job.job_id, datetime.now(UTC))
            )
            return Admitted(session.following())
        if self._rules.audit is None and kind != "submission":
            assert self._rules.policy.account is not None
            return Admitted(self.accounts.of(self._rules.policy.account))
        try:
            return await self._decided(flow_run, kind, configuration)
        finally:
            self._asking.discard(flow_run.id)

    async def _decided(
        self, flow_run: FlowRun, kind: Kind, configuration: FlowJobConfiguration | None
    ) -> Admitted | None:
        waiting = _Waiting(flow_run)
        audited: Decision | None = None
        while True:
            current = await read_run(flow_run.id)
            if current is None or (current.state is not None and current.state.is_final()):
                # Somebody else has ended it.
                return None
            try:
                try:
                    read = await self._read(current, kind, configuration)
                except RunOver as over:
                    await force_state(flow_run.id, over.state)
                    return None
                except (ObjectNotFound, RequestRefused) as error:
                    denied = _unreadable(error)
                    await self._audit_unread(current, denied)
                    await self._end(flow_run, f"Not run: {denied.reason}", denied.hint)
                    return None
                decision = await self._decide(read, kind)
                if decision != audited:
                    await self._audit(read, decision)
                    audited = decision
                if isinstance(decision, Allowed):
                    return Admitted(self._watched(read, decision), read.parameters if kind != "flow" else None)
                if isinstance(decision, Denied):
                    await self._reject(flow_run, kind, decision)
                    await self._end(flow_run, f"Not run: {decision.reason}", decision.hint)
                    return None
                if await waiting.seconds_for_consent() > self._rules.consent_seconds:
                    reason = f"{decision.account} has not consented: {decision.why}"
                    denied = Denied(reason, decision.command, decision.account, decision.proof)
                    await self._audit(read, denied)
                    await self._reject(flow_run, kind, denied)
                    await self._end(flow_run, reason, decision.command)
                    return None
                self._asking.add(flow_run.id)
                await waiting.say(
                    NEEDS_CONSENT, f"{decision.why}. To allow it, call as {decision.account}: {decision.command}"
                )
            except _WAITING as error:
                _logger.warning("Run %s waits: %s", flow_run.id, error)
                if isinstance(error, JobbergateError):
                    self._asking.add(flow_run.id)
                await waiting.say(UNDECIDED, f"Whose run this is cannot be decided now: {error.message}")
            await asyncio.sleep(self._rules.poll_seconds)

    async def _decide(self, read: ReadRun, kind: Kind) -> Decision:
        facts, policy = read.facts, self._rules.policy
        if facts.kind != (kind if kind != "submission" else "flow"):
            return Denied("its deployment was changed while it was taken up", "start it again")
        if kind != "submission" and (facts.deployment_name or "").startswith(f"{SUBMISSION_FLOW}/"):
            # What users have consented to by that name is what they submit in Jobbergate, and no other code.
            return Denied(
                "its deployment is that of Jobbergate's submissions, and was changed", "the bridge sets it right again"
            )
        owner = await self._owner(read, kind)
        if isinstance(owner, Denied):
            return owner
        consent = Consent((), ())
        try:
            if policy.consent:
                consent = parse(await self.accounts.read_consent(owner.account) or "")
            else:
                # Who is refused is refused before anything is done, and not only by what is done first.
                await self.accounts.of(owner.account).expanded("~")
        except ConsentRefused as error:
            command = f"jobbergate-flows consent add --run {facts.flow_run_id}"
            return NeedsConsent(owner.account, command, str(error), owner.proof)
        except AccountRefused as error:
            return Denied(error.message, error.hint or "", owner.account, owner.proof)
        decision = consented(facts, policy, owner, consent, datetime.now(UTC))
        if isinstance(decision, NeedsConsent) and kind == "submission":
            command = f"jobbergate-flows consent add {facts.deployment_name} --flows-any"
            return replace(decision, command=command)
        return decision

    async def _owner(self, read: ReadRun, kind: Kind) -> Allowed | Denied:
        facts, policy = read.facts, self._rules.policy
        if kind == "submission":
            assert self.submissions is not None
            return await self.submissions.owner(read, policy)
        bindings = await asyncio.to_thread(self._rules.bindings.current) if self._rules.bindings else Bindings(())
        mapped: Mapped | None = None
        if self._rules.mapper is not None:
            mapped = await asyncio.to_thread(map_creator, self._rules.mapper, facts.created_by, by=self._rules.word)
        return owner_of(facts, policy, bindings, mapped)

    async def _reject(self, flow_run: FlowRun, kind: Kind, denied: Denied) -> None:
        if kind == "submission" and self.submissions is not None:
            hint = f" ({denied.hint})" if denied.hint else ""
            await self.submissions.reject(str(flow_run.id), f"{denied.reason}{hint}")

    async def _read(self, flow_run: FlowRun, kind: Kind, configuration: FlowJobConfiguration | None) -> ReadRun:
        if kind == "submission":
            if self.submissions is None:
                raise RequestRefused("this worker has no bridge to Jobbergate", hint="set its `bridge`")
            return await self.submissions.read(flow_run, self._work_pool)
        asked: dict[str, Any] = {}
        if configuration is not None:
            try:
                resources = configuration.resources()
            except ValueError as error:
                raise RequestRefused(f"its job variables are none that Slurm takes: {error}") from error
            asked = {
                "resources": resources.model_dump(mode="json", exclude_unset=True, exclude_none=True),
                "directory": configuration.directory,
                "retries": configuration.retries.model_dump(mode="json", exclude_defaults=True),
            }
        async with get_client() as client:
            return await read_run_facts(client, flow_run, work_pool=self._work_pool, **asked)

    def _watched(self, read: ReadRun, allowed: Allowed) -> ClusterSession:
        refused: set[tuple[str, str]] = set()

        async def vet(order: SubmissionOrder) -> None:
            script = resources_of(parse_directives(order.script.text))
            reason = exceeded(allowed.limits, order.request.over(script))
            if allowed.limits.exist and has_foreign_lines(order.script.text):
                reason = "the script has #PBS or #BSUB lines, which sbatch obeys and no limit counts"
            if reason is None:
                return
            error = OptionRefused(f"more than {allowed.account} has consented to: {reason}", where=allowed.proof)
            # A task that is tried again asks for the same once more.
            if (order.key.token, reason) not in refused:
                refused.add((order.key.token, reason))
                denied = Denied(error.message, "", allowed.account, allowed.proof)
                await self._audit_done(record_of(read.facts, self._rules.policy, denied, datetime.now(UTC)))
            raise error

        async def submitted(job: SlurmJob) -> None:
            await self._audit_done(
                record_of_job(read.facts, self._rules.policy, allowed, job.job_id, datetime.now(UTC))
            )

        return self.accounts.of(allowed.account).watched(vet=vet, submitted=submitted)

    async def _audit(self, read: ReadRun, decision: Decision) -> None:
        await self._write(record_of(read.facts, self._rules.policy, decision, datetime.now(UTC)))

    async def _audit_unread(self, flow_run: FlowRun, denied: Denied) -> None:
        deployment = None if flow_run.deployment_id is None else str(flow_run.deployment_id)
        record = record_of_unread(str(flow_run.id), deployment, self._rules.policy, denied, datetime.now(UTC))
        await self._write(record)

    async def _audit_done(self, record: AuditRecord) -> None:
        """Write what follows from a decision that was written: it holds also where the log does not take it."""
        try:
            await self._write(record)
        except AuditUnavailable:
            what = f"job {record.job} was submitted" if record.job else f"it was refused: {record.reason}"
            _logger.exception("The audit log did not take of run %s that %s", record.flow_run, what)

    async def _write(self, record: AuditRecord) -> None:
        if self._rules.audit is None:
            return
        await asyncio.to_thread(self._rules.audit.write, record)

    async def _end(self, flow_run: FlowRun, reason: str, hint: str | None) -> None:
        # What an earlier life may have submitted is not left to itself.
        try:
            session = await self.accounts.of_flow_run(str(flow_run.id))
            for row in await session.cancel_flow_run(str(flow_run.id)):
                if row.job is None:
                    await session.settle_cancelled(row)
        except JobbergateFlowsError:
            _logger.exception("What run %s may have submitted could not be cancelled", flow_run.id)
        await force_state(flow_run.id, Failed(message=f"{reason} ({hint})" if hint else reason))


def _unreadable(error: ObjectNotFound | RequestRefused) -> Denied:
    if isinstance(error, RequestRefused):
        return Denied(error.message, error.hint or "")
    return Denied("its deployment is gone", "start one of another deployment")


def asked_since(states: Iterable[State[Any]]) -> datetime | None:
    """Since when a run has been waiting for consent, by its states in any order; None when it does not wait. Pure.

    Each new message of a waiting run is a state of its own. Whoever starts the run again begins a new wait.
    """
    since = None
    for state in sorted(states, key=lambda state: state.timestamp, reverse=True):
        if not state.is_pending():
            break
        if state.name == NEEDS_CONSENT:
            since = state.timestamp
    return since


class _Waiting:
    """A run that waits, and says why."""

    def __init__(self, flow_run: FlowRun) -> None:
        self._flow_run = flow_run
        state = flow_run.state
        self._since: datetime | None = None
        self._said = (state.name, state.message) if state is not None else None

    async def seconds_for_consent(self) -> float:
        """For how long it has been waiting for consent, in this worker's life and in earlier ones'."""
        if self._since is None:
            async with get_client() as client:
                states = await client.read_flow_run_states(self._flow_run.id)
            self._since = asked_since(states) or datetime.now(UTC)
        return (datetime.now(UTC) - self._since).total_seconds()

    async def say(self, name: str, message: str) -> None:
        if self._said == (name, message):
            return
        await tell_state(self._flow_run.id, State(type=StateType.PENDING, name=name, message=message))
        self._said = (name, message)
