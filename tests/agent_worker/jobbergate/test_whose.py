"""Whose a job submission is: its owner's in Jobbergate, with a line in the audit log; told where it is refused."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import Pending
from pydantic import SecretStr

from agent_worker.accounts import AccountSessions
from agent_worker.admission import NEEDS_CONSENT, UNDECIDED, Admission, Rules
from agent_worker.identity.audit import AuditLog
from agent_worker.identity.mapping import MapperUnavailable
from agent_worker.identity.policy import IdentityPolicy
from agent_worker.jobbergate.agent_settings import AgentSettings
from agent_worker.jobbergate.bridge import Bridge
from agent_worker.jobbergate.submission import Submissions, ensure_deployment, start_run
from agent_worker.kinds import kind_of
from jobbergate_flows.jobbergate.links import Link, Links, Rejected
from jobbergate_flows.jobbergate.models import SubmissionStatus
from jobbergate_flows.slurm.session import ClusterSession
from tests.agent_worker.conftest import Workshop
from tests.cluster.audit import AuditSocket
from tests.cluster.jobbergate_api import AGENT, JobbergateApi
from tests.cluster.jobbergate_people import Ada
from tests.cluster.site import message
from tests.cluster.waiting import await_until
from tests.jobbergate.oidc import SECRET

ME = getpass.getuser()
OWNER = IdentityPolicy("owner")


@dataclass
class Directory:
    """A mapper that can be down."""

    table: dict[str, str] = field(default_factory=lambda: {"ada@example.org": ME})
    down: bool = False
    name: str = "directory"

    def account(self, identity: str) -> str | None:
        if self.down:
            raise MapperUnavailable("the directory is down")
        return self.table.get(identity)


class Consenting(AccountSessions):
    """Sessions of users who have all the same file."""

    text = ""

    async def read_consent(self, account: str) -> str | None:
        return self.text


@dataclass
class Office:
    """A worker's admission, with its bridge to the real API."""

    workshop: Workshop
    ada: Ada
    directory: Directory
    submissions: Submissions
    accounts: Consenting
    audit: AuditSocket

    def admission(self, policy: IdentityPolicy = OWNER, **rules: Any) -> Admission:
        log = AuditLog(str(self.audit.path))
        made = Rules(policy, audit=log, poll_seconds=0.1, **rules)
        return Admission(self.accounts, made, self.workshop.pool, self.submissions)

    async def run_of(self, submission: int, policy: IdentityPolicy = OWNER, *, troubled: bool = False) -> FlowRun:
        """The run that a look makes of a submission, come from its queue.

        Args:
            troubled: Whether the look may have trouble with others: what other tests have left active.
        """
        looked = await Bridge(self.submissions, self.accounts, policy, self.workshop.pool).look()
        assert troubled or looked.problems == ()
        link = self.submissions.links.of_submission("", submission)
        assert link is not None
        assert link.flow_run_id is not None
        return await from_its_queue(UUID(link.flow_run_id))

    def rejections(self, submission: int) -> list[str]:
        waiting = self.submissions.links.waiting("")
        return [
            one.message.reason
            for one in waiting
            if isinstance(one.message, Rejected) and one.link.submission_id == submission
        ]

    def decisions(self, run: FlowRun) -> list[tuple[str, str | None, str | None]]:
        return [(line["decision"], line.get("account"), line.get("proof")) for line in self.audit.records(run.id)]


@pytest.fixture
def office(workshop: Workshop, jobbergate_api: JobbergateApi, tmp_path: Path) -> Iterator[Office]:
    agent = AgentSettings(
        base_api_url=jobbergate_api.url,
        oidc_domain=jobbergate_api.provider.domain.removeprefix("http://"),
        oidc_use_https=False,
        oidc_client_id=AGENT,
        oidc_client_secret=SecretStr(SECRET),
        cache_dir=tmp_path / "agent",
    )
    directory, audit = Directory(), AuditSocket(tmp_path / "log")
    submissions = Submissions(agent, agent.client(), Links(workshop.ledger), directory)
    accounts = Consenting(ClusterSession(workshop.cluster, workshop.ledger, grace=0.05))
    yield Office(workshop, Ada(jobbergate_api, tmp_path / "ada"), directory, submissions, accounts, audit)
    audit.close()


async def from_its_queue(run_id: UUID) -> FlowRun:
    """The run, as a worker gets it."""
    async with get_client() as client:
        await client.set_flow_run_state(run_id, Pending(), force=True)
    return await read(run_id)


async def read(run_id: UUID) -> FlowRun:
    async with get_client() as client:
        return await client.read_flow_run(run_id)


async def until(run: FlowRun, name: str) -> FlowRun:
    async def named() -> bool:
        return (await read(run.id)).state_name == name

    await await_until(named, 30, f"the run to be {name}")
    return await read(run.id)


async def test_it_is_the_account_of_its_owner_in_jobbergate(office: Office, tmp_path: Path) -> None:
    run = await office.run_of(office.ada.submit(tmp_path))
    admitted = await office.admission().admit(run, "submission")
    assert admitted is not None
    assert admitted.session.cluster.user == ME
    assert admitted.parameters is not None
    assert admitted.parameters["submission"].details.execution_directory == str(tmp_path)
    assert office.decisions(run) == [("allowed", ME, "directory: owner_email ada@example.org")]


async def test_an_owner_whom_nobody_knows_is_rejected_once(office: Office, tmp_path: Path) -> None:
    office.directory.table.clear()
    submission = office.ada.submit(tmp_path)
    run = await office.run_of(submission)
    for _ in range(2):
        assert await office.admission().admit(run, "submission") is None
    assert office.rejections(submission) == ["Username could not be resolved from owner email"]
    ended = await read(run.id)
    assert ended.state_name == "Failed"
    assert "Username could not be resolved from owner email" in message(ended)
    assert office.decisions(run)[0] == ("denied", None, "directory: owner_email ada@example.org")


async def test_an_account_that_is_not_acted_for_is_rejected_with_the_reason(office: Office, tmp_path: Path) -> None:
    office.directory.table["ada@example.org"] = "somebody-else"
    submission = office.ada.submit(tmp_path)
    run = await office.run_of(submission)
    assert await office.admission().admit(run, "submission") is None
    (reason,) = office.rejections(submission)
    assert reason.startswith(f"this worker acts as {ME} only")


async def test_while_the_directory_is_down_it_waits_and_is_not_rejected(office: Office, tmp_path: Path) -> None:
    office.directory.down = True
    submission = office.ada.submit(tmp_path)
    run = await office.run_of(submission, troubled=True)
    admitting = asyncio.create_task(office.admission().admit(run, "submission"))
    assert "the directory is down" in message(await until(run, UNDECIDED))
    assert office.rejections(submission) == []
    office.directory.down = False
    assert await asyncio.wait_for(admitting, 30) is not None


async def test_it_waits_for_a_consent_to_all_of_jobbergates_submissions(office: Office, tmp_path: Path) -> None:
    asking = IdentityPolicy("owner", consent=True)
    run = await office.run_of(office.ada.submit(tmp_path), asking)
    admitting = asyncio.create_task(office.admission(asking).admit(run, "submission"))
    waits = await until(run, NEEDS_CONSENT)
    name = f"jobbergate-submission/{office.workshop.pool}"
    assert f"jobbergate-flows consent add {name} --flows-any" in message(waits)
    office.accounts.text = f"{name} flows=any\n"
    admitted = await asyncio.wait_for(admitting, 30)
    assert admitted is not None
    assert office.decisions(run)[-1][0] == "allowed"


async def test_without_consent_in_time_it_is_rejected(office: Office, tmp_path: Path) -> None:
    asking = IdentityPolicy("owner", consent=True)
    submission = office.ada.submit(tmp_path)
    run = await office.run_of(submission, asking)
    assert await office.admission(asking, consent_seconds=0.01).admit(run, "submission") is None
    (reason,) = office.rejections(submission)
    assert reason.startswith(f"{ME} has not consented")


async def test_one_that_was_cancelled_meanwhile_ends_cancelled(office: Office, tmp_path: Path) -> None:
    submission = office.ada.submit(tmp_path)
    run = await office.run_of(submission)
    office.ada.cancel(submission)
    assert await office.admission().admit(run, "submission") is None
    assert (await read(run.id)).state_name == "Cancelled"
    assert office.rejections(submission) == []


async def test_a_worker_without_a_bridge_runs_none(office: Office, tmp_path: Path) -> None:
    run = await office.run_of(office.ada.submit(tmp_path))
    plain = Admission(office.accounts, Rules(IdentityPolicy("single-user", ME)), office.workshop.pool)
    assert await plain.admit(run, "submission") is None
    assert "this worker has no bridge to Jobbergate" in message(await read(run.id))


async def test_however_often_it_looks_a_submission_has_one_run(office: Office, tmp_path: Path) -> None:
    submission = office.ada.submit(tmp_path)
    first = await office.run_of(submission)
    assert (await office.run_of(submission)).id == first.id


async def test_a_run_that_could_not_be_noted_waits_and_is_the_submissions_after_the_next_look(
    office: Office, tmp_path: Path
) -> None:
    submission = office.ada.submit(tmp_path)
    office.submissions.links.bridge("", submission)
    async with get_client() as client:
        run_id = await start_run(
            client,
            await ensure_deployment(client, office.workshop.pool),
            submission_id=submission,
            name="hello",
            idempotency_key=office.submissions.key_of(submission),
        )
    admission = office.admission()
    admitting = asyncio.create_task(admission.admit(await from_its_queue(run_id), "submission"))
    assert "the bridge is making this run" in message(await until(await read(run_id), UNDECIDED))
    # The worker's limit does not count it.
    assert admission.asking == {run_id}
    assert (await office.run_of(submission)).id == run_id
    assert await asyncio.wait_for(admitting, 30) is not None
    assert admission.asking == frozenset()


async def test_a_run_that_is_noted_while_it_is_looked_for_is_its_submissions(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await office.run_of(office.ada.submit(tmp_path))
    looked: list[str] = []
    of_flow_run = Links.of_flow_run

    def noted_a_moment_later(links: Links, flow_run_id: str) -> list[Link]:
        looked.append(flow_run_id)
        return of_flow_run(links, flow_run_id) if len(looked) > 1 else []

    monkeypatch.setattr(Links, "of_flow_run", noted_a_moment_later)

    assert await office.admission().admit(run, "submission") is not None
    assert office.rejections(run.parameters["submission"]) == []


async def test_one_that_had_its_job_gets_no_other_though_jobbergate_was_not_told_yet(
    office: Office, tmp_path: Path
) -> None:
    submission = office.ada.submit(tmp_path)
    run = await office.run_of(submission)
    link = office.submissions.links.of_submission("", submission)
    assert link is not None
    office.submissions.links.attach(link.id, key="k" * 32)
    assert office.ada.submission(submission).status is SubmissionStatus.CREATED
    assert await office.admission().admit(run, "submission") is None
    assert f"job submission {submission} had its job already" in message(await read(run.id))
    assert office.rejections(submission) == []


async def test_other_code_in_its_deployment_is_refused_and_the_bridge_sets_the_deployment_right(
    office: Office, tmp_path: Path
) -> None:
    everybody = IdentityPolicy("single-user", ME)
    bridge = Bridge(office.submissions, office.accounts, everybody, office.workshop.pool)
    run = await office.run_of(office.ada.submit(tmp_path))
    assert (await bridge.look()).problems == ()
    async with get_client() as client:
        assert run.deployment_id is not None
        changed = {"entrypoint": "mine.py:evil", "pull_steps": [{"prefect.deployments.steps.run_shell_script": {}}]}
        await client._client.patch(f"/deployments/{run.deployment_id}", json=changed)

    assert await office.admission(everybody).admit(run, "flow") is None

    assert "its deployment is that of Jobbergate's submissions, and was changed" in message(await read(run.id))
    assert office.decisions(run)[-1][0] == "denied"
    office.ada.submit(tmp_path)
    assert (await bridge.look()).started == 1
    async with get_client() as client:
        deployment = await client.read_deployment(run.deployment_id)
    assert kind_of(deployment.entrypoint, deployment.pull_steps) == "submission"
