"""A session with a cluster: submit, wait with states and output, cancel, and go on after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobbergate_flows.applications.job_script import JobScript
from jobbergate_flows.slurm import patience
from jobbergate_flows.slurm import session as session_module
from jobbergate_flows.slurm.errors import (
    ClusterUnreachable,
    JobNotFound,
    SubmissionCancelled,
    SubmissionHeld,
    SubmissionRefused,
)
from jobbergate_flows.slurm.jobs import AttemptEnd, JobStatus, Phase, SlurmJob, Unreachable
from jobbergate_flows.slurm.ledger import Ledger, SubmissionStatus
from jobbergate_flows.slurm.options import SlurmResources
from jobbergate_flows.slurm.output import OutputLine
from jobbergate_flows.slurm.retries import GivenUp, Retry, RetryPolicy
from jobbergate_flows.slurm.session import ClusterSession
from jobbergate_flows.slurm.states import summarize
from jobbergate_flows.slurm.steps import JobRecord
from jobbergate_flows.slurm.submission import SECRET_FILE, SubmissionOrder
from tests.cluster.waiting import await_until
from tests.slurm.fakes import FaultyCluster, ScriptedCluster, a_job, a_row, raising


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[FaultyCluster]:
    faulty = FaultyCluster(tmp_path / "jobs")
    yield faulty
    await faulty.cancel([str(number) for number in range(1, 10)])


@pytest.fixture
def session(cluster: FaultyCluster, ledger: Ledger) -> ClusterSession:
    return ClusterSession(cluster, ledger, grace=0.05)


class Site:
    """A base directory, and scripts that wait for a word."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def order(self, session_key: object, text: str, **options: object) -> SubmissionOrder:
        script = JobScript(name="test", text=f"#!/bin/sh\n{text}\n")
        return SubmissionOrder(script, SlurmResources(), str(self.folder), session_key, **options)  # type: ignore[arg-type]

    def waits_for(self, word: str) -> str:
        return f"while [ ! -e {self.folder}/{word} ]; do sleep 0.05; done"

    def has_secrets(self) -> bool:
        return any(self.folder.rglob(SECRET_FILE))

    def say(self, word: str) -> None:
        (self.folder / word).touch()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    folder = tmp_path / "work"
    folder.mkdir()
    return Site(folder)


async def test_a_job_is_followed_to_its_end_and_the_ledger_knows_it(
    session: ClusterSession, ledger: Ledger, site: Site
) -> None:
    order = site.order(await session.key("run", "script"), f"echo out\necho err >&2\n{site.waits_for('end')}\nexit 4")
    job = await session.submit(order)
    statuses: list[JobStatus] = []
    lines: list[OutputLine] = []

    async def show_status(status: JobStatus) -> None:
        statuses.append(status)
        if status.phase is Phase.RUNNING:
            site.say("end")

    async def show_output(found: Sequence[OutputLine]) -> None:
        lines.extend(found)

    final = await session.wait(job, on_status=show_status, on_output=show_output)

    assert [status.name for status in statuses][-2:] == ["Running", "Failed"]
    assert final == statuses[-1]
    assert str(final.exit_code) == "4:0"
    assert sorted(line.text for line in lines) == ["err", "out"]
    row = ledger.get(job.key)
    assert row is not None
    assert (row.status, row.final_state, row.message) == (SubmissionStatus.FINAL, "Failed", final.message)
    assert sum(row.output_offsets.values()) == len("out\nerr\n")


class Observer:
    """Keeps what it is told, and fails if it is to."""

    def __init__(self, *, fails: bool = False) -> None:
        self.heard: list[str] = []
        self._fails = fails

    async def submitting(self, order: SubmissionOrder) -> None:
        self._hear("submitting", order.key.token)

    async def submitted(self, order: SubmissionOrder, job: SlurmJob) -> None:
        self._hear("submitted", order.key.token, job.job_id)

    async def told(self, job: SlurmJob, status: JobStatus) -> None:
        self._hear(status.name, job.key, job.job_id)

    def _hear(self, *words: str) -> None:
        self.heard.append(" ".join(words))
        if self._fails:
            raise RuntimeError("nobody may notice")


async def test_an_observer_hears_of_a_job_from_before_its_submission_to_its_end(
    session: ClusterSession, site: Site
) -> None:
    observer = Observer()
    order = site.order(await session.key("run", "script"), "true")

    observed = session.observed(observer)
    job = await observed.submit(order)
    await observed.wait(job)

    about = f"{job.key} {job.job_id}"
    assert observer.heard[:2] == [f"submitting {job.key}", f"submitted {about}"]
    assert observer.heard[-1] == f"Completed {about}"
    before = list(observer.heard)
    await session.submit(site.order(await session.key("other", "script"), "true"))
    assert observer.heard == before


async def test_an_observer_hears_of_the_end_of_a_job_that_an_earlier_life_submitted(
    session: ClusterSession, site: Site
) -> None:
    job = await session.submit(site.order(await session.key("run", "script"), "true"))
    observer = Observer()

    await session.following().observed(observer).wait(job)

    assert observer.heard[-1] == f"Completed {job.key} {job.job_id}"


async def test_of_what_is_refused_an_observer_hears_only_that_it_was_to_be_submitted(
    session: ClusterSession, cluster: FaultyCluster, site: Site
) -> None:
    observer = Observer()
    cluster.before_submit = raising(SubmissionRefused("no"))
    order = site.order(await session.key("run", "script"), "true")

    with pytest.raises(SubmissionRefused):
        await session.observed(observer).submit(order)

    assert observer.heard == [f"submitting {order.key.token}"]


async def test_an_observer_that_fails_is_logged_and_holds_up_nothing(
    session: ClusterSession, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    observer = Observer(fails=True)
    observed = session.observed(observer)

    final = await observed.wait(await observed.submit(site.order(await session.key("run", "script"), "true")))

    assert final.name == "Completed"
    assert len(observer.heard) >= 3
    assert "nobody may notice" in caplog.text


async def test_a_run_that_died_gets_its_job_back_until_its_end_was_told(session: ClusterSession, site: Site) -> None:
    first = await session.submit(site.order(await session.key("run", "script"), "true"))
    await session.wait(first)

    again = await session.submit(site.order(await session.key("run", "script"), "true"))
    assert again == first

    await session.mark_told(first)
    retried = await session.submit(site.order(await session.key("run", "script"), "true"))
    assert retried.job_id != first.job_id
    assert (await session.key(None, "script")) != (await session.key(None, "script"))


async def test_runs_whose_end_was_not_told_are_unfinished(session: ClusterSession, site: Site) -> None:
    job = await session.submit(site.order(await session.key("run", "script"), "true", flow_run_id="run"))
    assert [row.flow_run_id for row in await session.unfinished()] == ["run"]

    await session.wait(job)
    assert [row.flow_run_id for row in await session.unfinished()] == ["run"]

    await session.mark_told(job)
    assert await session.unfinished() == []


async def test_output_goes_on_after_a_restart_where_it_was(
    session: ClusterSession, cluster: FaultyCluster, ledger: Ledger, site: Site
) -> None:
    script = f"echo before\n{site.waits_for('restart')}\necho after"
    job = await session.submit(site.order(await session.key("run", "script"), script))
    before: list[str] = []
    shown = asyncio.Event()

    async def show_before(lines: Sequence[OutputLine]) -> None:
        before.extend(line.text for line in lines)
        shown.set()

    first_life = asyncio.create_task(session.wait(job, on_output=show_before))
    await asyncio.wait_for(shown.wait(), 20)

    async def recorded() -> bool:
        row = ledger.get(job.key)
        return row is not None and bool(row.output_offsets)

    await await_until(recorded, 10, "the record of what was shown")
    first_life.cancel()
    site.say("restart")
    after: list[str] = []

    async def show_after(lines: Sequence[OutputLine]) -> None:
        after.extend(line.text for line in lines)

    await ClusterSession(cluster, ledger).wait(job, on_output=show_after)

    assert (before, after) == (["before"], ["after"])


async def test_output_that_could_not_be_handed_over_is_handed_over_later(session: ClusterSession, site: Site) -> None:
    job = await session.submit(site.order(await session.key("run", "script"), f"echo one\n{site.waits_for('end')}"))
    handed: list[str] = []
    tries = 0

    async def show(lines: Sequence[OutputLine]) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            site.say("end")
            raise ConnectionError("the server is away")
        handed.extend(line.text for line in lines)

    status = await session.wait(job, on_output=show)

    assert status.name == "Completed"
    assert handed == ["one"]


async def test_cancelling_ends_the_job_and_the_wait(session: ClusterSession, ledger: Ledger, site: Site) -> None:
    job = await session.submit(site.order(await session.key("run", "script"), "exec sleep 600"))
    waiting = asyncio.create_task(session.wait(job))

    await session.cancel(job)
    status = await asyncio.wait_for(waiting, 30)

    assert status.phase is Phase.CANCELLED
    row = ledger.get(job.key)
    assert row is not None
    assert (row.cancel_requested, row.final_state) == (True, "Cancelled")


async def test_cancelling_a_flow_run_reaches_all_that_it_submits(
    session: ClusterSession, cluster: FaultyCluster, site: Site
) -> None:
    running = await session.submit(site.order(await session.key("run", "one"), "exec sleep 600", flow_run_id="run"))
    done = await session.submit(site.order(await session.key("run", "done"), "true", flow_run_id="run"))
    await session.wait(done)
    await session.mark_told(done)
    cluster.before_submit = raising(SubmissionHeld("a limit"))
    held = asyncio.Event()
    submitting = asyncio.create_task(
        session.submit(
            site.order(await session.key("run", "two"), "true", flow_run_id="run"), on_wait=lambda _why: held.set()
        )
    )
    await asyncio.wait_for(held.wait(), 10)

    rows = await session.cancel_flow_run("run")

    assert {row.call: row.job_id for row in rows} == {"one": running.job_id, "two": None}
    with pytest.raises(SubmissionCancelled):
        await asyncio.wait_for(submitting, 10)
    assert (await asyncio.wait_for(session.wait(running), 30)).phase is Phase.CANCELLED
    settled = await session.settle_cancelled(next(row for row in rows if row.call == "two"))
    assert settled is None
    assert await session.cancel_flow_run("unheard-of") == []


async def test_cancelling_leaves_a_job_that_is_over_to_whoever_tells_its_end(
    session: ClusterSession, ledger: Ledger, site: Site
) -> None:
    job = await session.submit(site.order(await session.key("run", "one"), "true", flow_run_id="run"))
    await session.wait(job)

    assert [row.job_id for row in await session.cancel_flow_run("run")] == [job.job_id]

    row = ledger.get(job.key)
    assert row is not None
    assert (row.told, row.final_state) == (False, "Completed")
    await session.mark_told(job)
    assert await session.cancel_flow_run("run") == []


async def test_a_job_that_the_cluster_does_not_know_is_not_found(session: ClusterSession) -> None:
    with pytest.raises(JobNotFound, match="12345"):
        await session.status(a_job("12345"))


async def test_a_cluster_that_does_not_answer_is_said_to_be_unreachable(ledger: Ledger, tmp_path: Path) -> None:
    session = ClusterSession(ScriptedCluster(tmp_path, {"1": Unreachable("away")}), ledger)

    with pytest.raises(ClusterUnreachable, match="away"):
        await session.status(a_job())


OUT_OF_MEMORY = summarize([a_row("OUT_OF_MEMORY", "sacct")], requeue=False)
HAD_A_GIGABYTE = [JobRecord("1", "1", "OUT_OF_MEMORY", requested={"mem": 1 << 30}, allocated={"mem": 1 << 30}, nodes=1)]


async def an_ended_job(session: ClusterSession, site: Site, **policy: Any) -> SlurmJob:
    retries = RetryPolicy(**policy)
    job = await session.submit(site.order(await session.key("run", "job"), "true", flow_run_id="run", retries=retries))
    await session.wait(job)
    return job


async def next_attempt(session: ClusterSession, job: SlurmJob, says: list[str] | None = None) -> Retry | GivenUp:
    assert OUT_OF_MEMORY is not None
    return await session.next_attempt(job, OUT_OF_MEMORY, on_wait=says.append if says is not None else None)


async def test_the_next_attempt_of_a_job_that_named_no_memory_gets_more_than_accounting_says_it_had(
    session: ClusterSession, cluster: FaultyCluster, ledger: Ledger, site: Site
) -> None:
    job = await an_ended_job(session, site, attempts=2)
    cluster.accounted = HAD_A_GIGABYTE

    decided = await next_attempt(session, job)

    assert isinstance(decided, Retry)
    assert decided.resources.memory == "2G"
    await session.mark_told(job)
    assert await session.ends_before(await session.key("run", "job")) == (AttemptEnd("OutOfMemory", memory="1G"),)


async def test_accounting_that_only_knows_yet_that_a_job_has_ended_is_asked_again(
    session: ClusterSession, cluster: FaultyCluster, site: Site
) -> None:
    job = await an_ended_job(session, site, attempts=2)
    says = [[JobRecord("1", "1", "OUT_OF_MEMORY")], HAD_A_GIGABYTE]

    async def learn() -> None:
        cluster.accounted = says.pop(0)

    cluster.before_steps = learn

    assert isinstance(await next_attempt(session, job), Retry)


async def test_accounting_that_does_not_answer_when_a_job_has_ended_is_waited_for(
    session: ClusterSession, cluster: FaultyCluster, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "RETRY_SECONDS", (0.01,))
    job = await an_ended_job(session, site, attempts=2)
    cluster.accounted = HAD_A_GIGABYTE
    cluster.before_steps = raising(*[ClusterUnreachable("accounting is away")] * 3)
    says: list[str] = []

    decided = await next_attempt(session, job, says)

    assert isinstance(decided, Retry)
    assert ["accounting is away" in said for said in says] == [True]


async def test_accounting_that_does_not_come_back_is_not_waited_for_for_ever(
    session: ClusterSession, cluster: FaultyCluster, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "RETRY_SECONDS", (0.01,))
    monkeypatch.setattr(session_module, "RECORDS_SECONDS", 0.1)
    job = await an_ended_job(session, site, attempts=2)

    async def away() -> None:
        raise ClusterUnreachable("accounting is away")

    cluster.before_steps = away
    says: list[str] = []

    decided = await asyncio.wait_for(next_attempt(session, job, says), 30)

    assert isinstance(decided, GivenUp)
    assert "how much memory it had is not known" in (decided.reason or "")
    assert "without what accounting knows" in says[-1]


@pytest.mark.parametrize("what", ["the job", "its run"])
async def test_a_job_that_is_cancelled_while_its_retry_is_decided_has_none(
    session: ClusterSession, cluster: FaultyCluster, site: Site, what: str
) -> None:
    job = await an_ended_job(session, site, attempts=2)
    cluster.accounted = HAD_A_GIGABYTE

    async def cancelled_meanwhile() -> None:
        if what == "the job":
            await session.cancel(job)
        else:
            await session.cancel_flow_run("run")

    cluster.before_steps = cancelled_meanwhile

    assert await next_attempt(session, job) == GivenUp(None)


@pytest.mark.parametrize("policy", [{}, {"attempts": 2, "on": ["timeout"]}, {"attempts": 1}], ids=str)
async def test_accounting_is_not_asked_for_what_is_not_retried_anyway(
    session: ClusterSession, cluster: FaultyCluster, site: Site, policy: dict[str, Any]
) -> None:
    job = await an_ended_job(session, site, **policy)
    cluster.before_steps = raising(AssertionError("it was asked"))

    assert await next_attempt(session, job) == GivenUp(None)


@pytest.mark.parametrize("told", [True, False], ids=["back in the queue", "on its way there"])
async def test_a_run_that_is_cancelled_while_it_waits_for_its_retry_begins_anew_when_a_person_starts_it_again(
    session: ClusterSession, cluster: FaultyCluster, site: Site, told: bool
) -> None:
    job = await an_ended_job(session, site, attempts=2)
    cluster.accounted = HAD_A_GIGABYTE
    assert isinstance(await next_attempt(session, job), Retry)
    if told:
        await session.mark_told(job)

    await session.cancel_flow_run("run")

    await session.mark_told(job)
    again = await session.key("run", "job")
    assert (again.attempt, await session.ends_before(again)) == (1, ())
    second = await an_ended_job(session, site, attempts=2)
    assert second.job_id != job.job_id
    assert isinstance(await next_attempt(session, second), Retry)


async def test_a_secret_is_removed(session: ClusterSession, ledger: Ledger, site: Site) -> None:
    order = replace(site.order(await session.key("run", "script"), "true"), secret="s3cret")
    job = await session.submit(order)
    assert site.has_secrets()

    await session.remove_secret(job)
    await session.remove_secret(job)

    assert not site.has_secrets()
