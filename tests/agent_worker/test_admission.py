"""A run that waits until it may go on, and one that is taken up again with its job."""

from __future__ import annotations

import asyncio
import getpass
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Cancelled, Completed, Failed

from agent_worker.accounts import AccountSessions
from agent_worker.admission import NEEDS_CONSENT, UNDECIDED, Admission, Admitted, Rules, asked_since
from agent_worker.identity.audit import AuditLog, AuditRecord
from agent_worker.identity.policy import IdentityPolicy
from jobbergate_flows.applications.job_script import JobScript
from jobbergate_flows.slurm.accounts import AccountRules
from jobbergate_flows.slurm.deputy_door import DeputyDoor, Root
from jobbergate_flows.slurm.errors import FileRefused, OptionRefused, SlurmError
from jobbergate_flows.slurm.jobs import AttemptEnd
from jobbergate_flows.slurm.ledger import SubmissionKey
from jobbergate_flows.slurm.options import SlurmResources
from jobbergate_flows.slurm.retries import RetryPolicy
from jobbergate_flows.slurm.session import ClusterSession
from jobbergate_flows.slurm.submission import SubmissionOrder
from tests.agent_worker.conftest import ME, Workshop
from tests.cluster.audit import AuditSocket
from tests.cluster.site import message, script_application
from tests.cluster.waiting import await_until

ASKING = IdentityPolicy("single-user", getpass.getuser(), consent=True)


def asked(name: str, minute: int, kind: StateType = StateType.PENDING) -> State[Any]:
    return State(type=kind, name=name, timestamp=datetime(2026, 11, 21, 12, minute, tzinfo=UTC))


@pytest.mark.parametrize(
    ("states", "minute"),
    [
        ([], None),
        ([asked("Pending", 1)], None),
        ([asked("Pending", 1), asked(NEEDS_CONSENT, 2), asked(NEEDS_CONSENT, 9)], 2),
        ([asked(NEEDS_CONSENT, 9), asked(NEEDS_CONSENT, 2), asked("Pending", 1)], 2),
        ([asked(UNDECIDED, 1), asked(NEEDS_CONSENT, 3), asked(UNDECIDED, 5)], 3),
        ([asked(NEEDS_CONSENT, 1), asked("Failed", 2, StateType.FAILED), asked("Pending", 3)], None),
        (
            [
                asked(NEEDS_CONSENT, 1),
                asked("AwaitingRetry", 2, StateType.SCHEDULED),
                asked("Pending", 3),
                asked(NEEDS_CONSENT, 4),
            ],
            4,
        ),
    ],
)
def test_a_wait_for_consent_counts_from_its_first_message(states: list[State[Any]], minute: int | None) -> None:
    since = asked_since(states)

    assert (None if since is None else since.minute) == minute


class Accounts(AccountSessions):
    """Sessions of users who have allowed nothing."""

    async def read_consent(self, account: str) -> str | None:
        return None


class InThreads(AuditLog):
    """An audit log that keeps what it is told, and in which thread."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[tuple[str, bool]] = []

    def write(self, record: AuditRecord) -> None:
        self.written.append((record.decision, threading.current_thread() is threading.main_thread()))


@pytest.fixture
async def run(workshop: Workshop, tmp_path: Path) -> FlowRun:
    deployed = await workshop.deploy(script_application(tmp_path, "waits", "#!/bin/sh\n"))
    return await workshop.launch(deployed)


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[AuditSocket]:
    socket = AuditSocket(tmp_path / "log")
    yield socket
    socket.close()


def admission(workshop: Workshop, audit: AuditLog, policy: IdentityPolicy = ASKING, **rules: Any) -> Admission:
    session = ClusterSession(workshop.cluster, workshop.ledger, grace=0.05)
    return Admission(Accounts(session), Rules(policy, audit=audit, **rules), workshop.pool)


async def current(run_id: UUID) -> FlowRun:
    async with get_client() as client:
        return await client.read_flow_run(run_id)


async def until_it_asks(run_id: UUID) -> None:
    async def asks() -> bool:
        return (await current(run_id)).state_name == NEEDS_CONSENT

    await await_until(asks, 30, "the question for consent")


@pytest.mark.parametrize("ending", [Failed(message="theirs"), Cancelled(message="theirs"), Completed(message="theirs")])
async def test_a_waiting_run_that_somebody_else_ends_is_let_go(
    workshop: Workshop, run: FlowRun, ending: State[Any]
) -> None:
    waits = admission(workshop, InThreads(), poll_seconds=0.1)
    admitting = asyncio.create_task(waits.admit(run, "application"))
    await until_it_asks(run.id)
    assert waits.asking == {run.id}
    async with get_client() as client:
        await client.set_flow_run_state(run.id, ending, force=True)

    assert await asyncio.wait_for(admitting, 20) is None

    assert waits.asking == frozenset()
    ended = await current(run.id)
    assert (ended.state_name, message(ended)) == (ending.name, "theirs")


class Consenting(AccountSessions):
    """Sessions of users who have all the same file."""

    def __init__(self, own: ClusterSession, text: str) -> None:
        super().__init__(own)
        self.text = text

    async def read_consent(self, account: str) -> str | None:
        return self.text


class Denying(AccountSessions):
    """Sessions of users whose deputies say what nobody asked."""

    async def read_consent(self, account: str) -> str | None:
        raise FileRefused("there is no such file", where="/x")


async def test_a_run_whose_deputy_says_something_else_waits_and_says_so(workshop: Workshop, run: FlowRun) -> None:
    session = ClusterSession(workshop.cluster, workshop.ledger, grace=0.05)
    waits = Admission(Denying(session), Rules(ASKING, audit=InThreads(), poll_seconds=0.1), workshop.pool)
    admitting = asyncio.create_task(waits.admit(run, "application"))

    async def says_so() -> bool:
        return (await current(run.id)).state_name == UNDECIDED

    await await_until(says_so, 30, "the run to say why it waits")
    assert "there is no such file" in message(await current(run.id))
    assert not admitting.done()
    admitting.cancel()


@pytest.mark.parametrize("consent", [False, True])
@pytest.mark.parametrize(
    ("account", "reason"),
    [("root", "uid 0"), ("daemon", "uid 1:"), ("nobody", "may not log in"), ("no-such-person", "no such account")],
)
async def test_an_account_that_is_refused_has_its_line(
    workshop: Workshop, run: FlowRun, audit: AuditSocket, account: str, reason: str, consent: bool
) -> None:
    def open_door(name: str) -> DeputyDoor:
        return DeputyDoor(name, Root(), rules=AccountRules())

    accounts = AccountSessions(ClusterSession(workshop.cluster, workshop.ledger, grace=0.05), open_door)
    rules = Rules(IdentityPolicy("single-user", account, consent=consent), audit=AuditLog(str(audit.path)))

    assert await Admission(accounts, rules, workshop.pool).admit(run, "application") is None

    (record,) = audit.records(run.id)
    assert (record["decision"], record["account"], record["proof"]) == ("denied", account, "single-user")
    assert reason in record["reason"]
    assert record["application"].startswith("sha256:")
    assert record["request"].startswith("sha256:")
    assert reason in message(await current(run.id))


async def test_an_account_that_is_not_the_workers_own_has_its_line(
    workshop: Workshop, run: FlowRun, audit: AuditSocket
) -> None:
    session = ClusterSession(workshop.cluster, workshop.ledger, grace=0.05)
    rules = Rules(IdentityPolicy("single-user", "somebody"), audit=AuditLog(str(audit.path)))

    assert await Admission(AccountSessions(session), rules, workshop.pool).admit(run, "application") is None

    (record,) = audit.records(run.id)
    assert (record["decision"], record["account"]) == ("denied", "somebody")
    assert "acts as" in record["reason"]


async def test_a_request_that_cannot_be_read_has_its_line(
    workshop: Workshop, tmp_path: Path, audit: AuditSocket
) -> None:
    deployed = await workshop.deploy(script_application(tmp_path, "unreadable", "#!/bin/sh\n"))
    run = await workshop.launch(deployed, resources="many")

    assert await admission(workshop, AuditLog(str(audit.path)), ME).admit(run, "application") is None

    (record,) = audit.records(run.id)
    assert (record["decision"], record["deployment"]) == ("denied", str(deployed.id))
    assert "parameter resources is 'many'" in record["reason"]
    # It is not known whose it would have been, nor what it asks for.
    assert record.keys() == {"time", "decision", "policy", "flow_run", "deployment", "reason"}
    assert (await current(run.id)).state_name == "Failed"


async def test_a_deployment_that_is_gone_has_its_line(
    workshop: Workshop, run: FlowRun, audit: AuditSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read_before_it_was_gone(_run_id: UUID) -> FlowRun:
        return run

    monkeypatch.setattr("agent_worker.admission.read_run", read_before_it_was_gone)
    assert run.deployment_id is not None
    async with get_client() as client:
        await client.delete_deployment(run.deployment_id)

    assert await admission(workshop, AuditLog(str(audit.path)), ME).admit(run, "application") is None

    (record,) = audit.records(run.id)
    assert (record["decision"], record["deployment"]) == ("denied", str(run.deployment_id))
    assert record["reason"] == "its deployment is gone"
    ended = await current(run.id)
    assert (ended.state_name, "deployment is gone" in message(ended)) == ("Failed", True)


async def test_the_end_of_the_wait_for_consent_has_its_line(
    workshop: Workshop, run: FlowRun, audit: AuditSocket
) -> None:
    waits = admission(workshop, AuditLog(str(audit.path)), consent_seconds=0.5, poll_seconds=0.1)

    assert await asyncio.wait_for(waits.admit(run, "application"), 30) is None

    asked, ended = audit.records(run.id)
    assert (asked["decision"], ended["decision"]) == ("needs-consent", "denied")
    for name in ("account", "proof", "application", "request", "deployment", "policy"):
        assert ended[name] == asked[name]
    assert "has not consented" in ended["reason"]


@pytest.mark.parametrize("code", ["allowed", "waiting"])
async def test_nothing_is_done_while_the_audit_log_takes_no_line(
    workshop: Workshop, run: FlowRun, tmp_path: Path, code: str
) -> None:
    waits = admission(workshop, AuditLog(str(tmp_path / "late")), ME if code == "allowed" else ASKING,
                      poll_seconds=0.1, consent_seconds=0.0 if code == "waiting" else 600.0)  # fmt: skip
    admitting = asyncio.create_task(waits.admit(run, "application"))

    async def says_so() -> bool:
        return (await current(run.id)).state_name == UNDECIDED

    await await_until(says_so, 30, "the run to say why it waits")
    assert "audit log takes no line" in message(await current(run.id))
    assert not admitting.done()
    assert workshop.ledger.of_flow_run(str(run.id)) == []
    late = AuditSocket(tmp_path / "late")
    try:
        admitted = await asyncio.wait_for(admitting, 30)
        decisions = [record["decision"] for record in late.records(run.id)]
    finally:
        late.close()
    if code == "allowed":
        assert admitted is not None
        assert decisions == ["allowed"]
    else:
        assert admitted is None
        assert decisions == ["needs-consent", "denied"]


async def test_a_restarted_worker_lets_nobody_wait_anew(workshop: Workshop, run: FlowRun) -> None:
    first = asyncio.create_task(admission(workshop, InThreads()).admit(run, "application"))
    await until_it_asks(run.id)
    first.cancel()
    waiting = await current(run.id)
    assert waiting.state is not None
    waited = datetime.now(UTC) - waiting.state.timestamp
    # It looks only once.
    second = admission(workshop, InThreads(), consent_seconds=waited / timedelta(seconds=1), poll_seconds=3600)

    assert await asyncio.wait_for(second.admit(waiting, "application"), 20) is None

    ended = await current(run.id)
    assert ended.state_name == "Failed"
    assert "has not consented" in message(ended)


async def test_the_audit_log_is_told_again_of_a_job_whose_run_is_taken_up(
    workshop: Workshop, run: FlowRun, audit: AuditSocket
) -> None:
    job = await workshop.submit(run.id, "true")

    admitted = await admission(workshop, AuditLog(str(audit.path))).admit(run, "application")

    assert admitted is not None
    (record,) = audit.records(run.id)
    assert (record["decision"], record["account"], record["job"]) == ("submitted", job.user, job.job_id)
    await refuses_to_submit(admitted, workshop)


async def test_a_job_is_followed_also_where_the_audit_log_takes_no_line(
    workshop: Workshop, run: FlowRun, tmp_path: Path
) -> None:
    await workshop.submit(run.id, "true")

    admitted = await admission(workshop, AuditLog(str(tmp_path / "nobody"))).admit(run, "application")

    assert admitted is not None
    await refuses_to_submit(admitted, workshop)


async def test_the_audit_log_is_never_waited_for_in_the_event_loop(workshop: Workshop, run: FlowRun) -> None:
    log = InThreads()
    admitted = await admission(workshop, log, ME).admit(run, "application")
    assert admitted is not None

    await admitted.session.submit(an_order(workshop, str(run.id)))

    assert log.written == [("allowed", False), ("submitted", False)]


@pytest.mark.parametrize(
    "line", ["#SBATCH --array=1-9", "#SBATCH --exclusive", "#SBATCH --cpus-per-gpu=8", "#BSUB -x", "#PBS -l walltime=9"]
)
async def test_limits_of_consent_hold_for_the_scripts_own_lines(
    workshop: Workshop, tmp_path: Path, audit: AuditSocket, line: str
) -> None:
    deployed = await workshop.deploy(script_application(tmp_path, "limited", "#!/bin/sh\n"))
    run = await workshop.launch(deployed, resources={"tasks": 2})
    digest = deployed.application.rpartition("@")[2]
    session = ClusterSession(workshop.cluster, workshop.ledger, grace=0.05)
    accounts = Consenting(session, f"{deployed.id} {digest} answers=any,max-tasks=2\n")
    rules = Rules(ASKING, audit=AuditLog(str(audit.path)))
    admitted = await Admission(accounts, rules, workshop.pool).admit(run, "application")
    assert admitted is not None
    order = an_order(workshop, str(run.id), line)
    order = replace(order, resources=SlurmResources(tasks=2))

    # A task may be tried again: it is one decision.
    for _ in range(2):
        with pytest.raises(OptionRefused, match="has consented to"):
            await admitted.session.submit(order)

    assert workshop.ledger.get(order.key.token) is None
    allowed, refused = audit.records(run.id)
    assert (allowed["decision"], refused["decision"]) == ("allowed", "denied")
    for name in ("account", "proof", "application", "request", "deployment", "policy"):
        assert refused[name] == allowed[name]
    assert "has consented to" in refused["reason"]
    await admitted.session.submit(replace(order, script=an_order(workshop, "x").script))
    assert audit.records(run.id)[2]["decision"] == "submitted"


async def test_what_was_not_consented_to_is_refused_also_where_the_audit_log_takes_no_line(
    workshop: Workshop, tmp_path: Path, audit: AuditSocket
) -> None:
    deployed = await workshop.deploy(script_application(tmp_path, "limited", "#!/bin/sh\n"))
    run = await workshop.launch(deployed, resources={"tasks": 2})
    digest = deployed.application.rpartition("@")[2]
    accounts = Consenting(workshop.session, f"{deployed.id} {digest} answers=any,max-tasks=2\n")
    rules = Rules(ASKING, audit=AuditLog(str(audit.path)))
    admitted = await Admission(accounts, rules, workshop.pool).admit(run, "application")
    assert admitted is not None
    audit.close()
    order = an_order(workshop, str(run.id), "#SBATCH --exclusive")

    with pytest.raises(OptionRefused, match="has consented to"):
        await admitted.session.submit(order)

    assert workshop.ledger.get(order.key.token) is None


async def test_a_retry_may_not_ask_for_more_than_its_user_has_consented_to(workshop: Workshop, tmp_path: Path) -> None:
    deployed = await workshop.deploy(script_application(tmp_path, "hungry", "#!/bin/sh\n"))
    run = await workshop.launch(deployed, resources={"memory": "1G"}, retries={"attempts": 3})
    digest = deployed.application.rpartition("@")[2]
    session = ClusterSession(workshop.cluster, workshop.ledger, grace=0.05)
    accounts = Consenting(session, f"{deployed.id} {digest} answers=any,max-memory=2G\n")
    admitted = await Admission(accounts, Rules(ASKING, audit=InThreads()), workshop.pool).admit(run, "application")
    assert admitted is not None
    out_of_memory = AttemptEnd("OutOfMemory")
    order = replace(
        an_order(workshop, str(run.id)),
        resources=SlurmResources(memory="1G"),
        retries=RetryPolicy(attempts=3),
        ends=(out_of_memory, out_of_memory),
    )

    with pytest.raises(OptionRefused, match="has consented to"):
        await admitted.session.submit(order)

    assert workshop.ledger.get(order.key.token) is None
    await admitted.session.submit(replace(order, ends=(out_of_memory,)))


async def refuses_to_submit(admitted: Admitted, workshop: Workshop) -> None:
    order = an_order(workshop, "another")
    with pytest.raises(SlurmError, match="has a job already"):
        await admitted.session.submit(order)
    # Refused before, and not only complained of afterwards.
    assert workshop.ledger.get(order.key.token) is None


def an_order(workshop: Workshop, scope: str, line: str = "#") -> SubmissionOrder:
    script = JobScript(name="job", text=f"#!/bin/sh\n{line}\ntrue\n")
    return SubmissionOrder(script, SlurmResources(), str(workshop.folder), SubmissionKey(scope, "job"))
