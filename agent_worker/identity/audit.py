"""The audit log: one line of JSON for each decision, to the system's log, out of the worker's reach.

Whoever can read what is logged there is told who ran what, and never what was answered: of a request only the hash.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass, replace
from datetime import datetime
from logging.handlers import SysLogHandler
from typing import Literal

from agent_worker.identity.facts import RequestRefused, RunFacts, request_hash
from agent_worker.identity.policy import Allowed, Decision, Denied, IdentityPolicy, NeedsConsent
from jobbergate_flows.errors import JobbergateFlowsError

Word = Literal["allowed", "denied", "needs-consent", "submitted"]
IDENT = "jobbergate-flows"
MAX_LINE = 4096
"""No line is longer, in bytes: rsyslog and journald take 8 KiB."""

_MAX_FIELD = 300


class AuditUnavailable(JobbergateFlowsError):
    """Nobody takes the audit log's lines. What cannot be logged must not be done."""


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One decision.

    Args:
        time: When, with its zone.
        decision: `allowed`, `denied`, `needs-consent`, or `submitted` once Slurm has the job. That last one is written
            at least once: again by each worker that takes a run up with its job, as the one that submitted it may
            have died before it wrote.
        policy: The site's policy.
        account: As whom; None where that is not known.
        proof: Whose run it is by what: the table's entry, the mapper with the identity, the line of consent.
        flow_run, deployment, application, request: What; the request by its hash.
        job: Slurm's job id, once there is one.
        reason: Why not.
    """

    time: datetime
    decision: Word
    policy: str
    account: str | None
    proof: str | None
    flow_run: str
    deployment: str | None
    application: str | None
    request: str | None
    job: str | None = None
    reason: str | None = None

    def line(self) -> str:
        """One line of ASCII; long fields are cut, and what is empty is left out."""
        fields: dict[str, str | None] = {
            "time": self.time.isoformat(timespec="milliseconds"),
            "decision": self.decision,
            "policy": self.policy,
            "account": self.account,
            "proof": self.proof,
            "flow_run": self.flow_run,
            "deployment": self.deployment,
            "application": self.application,
            "request": self.request,
            "job": self.job,
            "reason": self.reason,
        }
        return json.dumps({name: _cut(value) for name, value in fields.items() if value is not None})


def record_of(facts: RunFacts, policy: IdentityPolicy, decision: Decision, now: datetime) -> AuditRecord:
    """The record of a decision. Pure.

    Args:
        now: When, with its zone.
    """
    word: Word
    account: str | None
    proof: str | None
    reason: str | None
    match decision:
        case Allowed():
            word, account, proof, reason = "allowed", decision.account, decision.proof, None
        case NeedsConsent():
            word, account, proof, reason = "needs-consent", decision.account, decision.proof, decision.why
        case Denied():
            word, account, proof, reason = "denied", decision.account, decision.proof, decision.reason
    return AuditRecord(
        time=now,
        decision=word,
        policy=policy.name,
        account=account,
        proof=proof,
        flow_run=facts.flow_run_id,
        deployment=facts.deployment_name or facts.deployment_id,
        application=facts.application,
        request=_hash(facts),
        reason=reason,
    )


def record_of_unread(
    flow_run_id: str, deployment_id: str | None, policy: IdentityPolicy, denied: Denied, now: datetime
) -> AuditRecord:
    """The record that a run is refused of which nothing more than its ids can be read. Pure."""
    return AuditRecord(
        time=now,
        decision="denied",
        policy=policy.name,
        account=denied.account,
        proof=denied.proof,
        flow_run=flow_run_id,
        deployment=deployment_id,
        application=None,
        request=None,
        reason=denied.reason,
    )


def record_of_job(facts: RunFacts, policy: IdentityPolicy, allowed: Allowed, job: str, now: datetime) -> AuditRecord:
    """The record that Slurm has the job of a run that was allowed. Pure."""
    return replace(record_of(facts, policy, allowed, now), decision="submitted", job=job)


def record_of_taken_up(flow_run_id: str, policy: IdentityPolicy, account: str, job: str, now: datetime) -> AuditRecord:
    """The record that Slurm has the job of a run that is taken up again. Pure.

    What the run asks for may have been changed since: that stands in the record of its decision.
    """
    return AuditRecord(
        time=now,
        decision="submitted",
        policy=policy.name,
        account=account,
        proof="the ledger",
        flow_run=flow_run_id,
        deployment=None,
        application=None,
        request=None,
        job=job,
    )


class AuditLog:
    """Writes records to the system's log, facility authpriv.

    Args:
        address: The socket of syslog or of the journal, or of what the site has in its place.
        patience: Seconds to wait for one that is busy.
    """

    def __init__(self, address: str = "/dev/log", *, patience: float = 2.0) -> None:
        self.address = address
        self.patience = patience

    def write(self, record: AuditRecord) -> None:
        """Hand a record over.

        Raises:
            AuditUnavailable: Nobody takes it: whoever calls must let nothing happen then.
        """
        level = SysLogHandler.LOG_INFO if record.decision in ("allowed", "submitted") else SysLogHandler.LOG_NOTICE
        priority = SysLogHandler.LOG_AUTHPRIV << 3 | level
        message = f"<{priority}>{IDENT}[{os.getpid()}]: {record.line()}".encode("ascii")
        # logging's own handler drops what it cannot send.
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(self.patience)
                sender.connect(self.address)
                sender.send(message)
        except OSError as error:
            raise AuditUnavailable(
                f"the audit log takes no line: {error.strerror or error}",
                where=self.address,
                hint="start syslog or the journal; nothing runs without its line",
            ) from error


def _hash(facts: RunFacts) -> str | None:
    try:
        return request_hash(facts)
    except RequestRefused:
        return None


def _cut(value: str) -> str:
    """The text, or as much of its beginning as takes `_MAX_FIELD` bytes once it is written."""
    if len(json.dumps(value)) <= _MAX_FIELD:
        return value
    end = 0
    size = len('"..."')
    for character in value:
        size += len(json.dumps(character)) - 2
        if size > _MAX_FIELD:
            break
        end += 1
    return f"{value[:end]}..."
