"""Slurm by its commands: what squeue and sacct together mean, and the real thing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobbergate_flows.slurm.cluster import Cluster, SubmitRequest, Witness
from jobbergate_flows.slurm.command_cluster import CommandCluster, merge, rows_by_job
from jobbergate_flows.slurm.door import OwnAccountDoor
from jobbergate_flows.slurm.errors import ClusterUnreachable, SubmissionRefused
from jobbergate_flows.slurm.jobs import Absent, ExitCode, JobRow, JobStatus, Known, Observation, Unreachable
from jobbergate_flows.slurm.states import summarize
from tests.cluster.slurm import CPUS, SlurmCluster
from tests.cluster.waiting import await_until

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
LONG_AGO = NOW - timedelta(hours=1)


def row(state: str, source: Any, task: int | None = None, code: str | None = None, **more: Any) -> JobRow:
    job_id = "6" if task is None else f"6_{task}"
    ended = source == "sacct" and state not in ("RUNNING", "PENDING")
    known = {"submit": LONG_AGO, "end": LONG_AGO if ended else None, **more}
    exit_code = ExitCode.parse(code or "0:0") if source == "sacct" else None
    return JobRow(job_id, "6", state, source, array_task_id=task, exit_code=exit_code, **known)


def shown(state: str, task: int | None = None, **more: Any) -> JobRow:
    return row(state, "squeue", task, **more)


def accounted(state: str, task: int | None = None, **more: Any) -> JobRow:
    return row(state, "sacct", task, **more)


def merged(squeue: list[JobRow] | None, sacct: list[JobRow] | None, *, whole: bool = True) -> Observation:
    return merge(squeue, sacct, "connection refused", whole=whole, now=NOW)


@pytest.mark.parametrize(
    ("squeue", "sacct", "expected"),
    [
        # Who is alive, the controller says; a new job is not in accounting yet, which lags behind a requeue too.
        ([shown("PENDING")], [], [shown("PENDING")]),
        ([shown("RUNNING")], [accounted("PENDING")], [shown("RUNNING")]),
        ([shown("PENDING")], [accounted("NODE_FAIL")], [shown("PENDING")]),
        ([shown("RUNNING")], None, [shown("RUNNING")]),
        # How it ended, accounting says, as soon as it knows.
        ([shown("FAILED")], [accounted("FAILED", code="3:0")], [accounted("FAILED", code="3:0")]),
        ([shown("FAILED")], [accounted("RUNNING")], [shown("FAILED")]),
        ([shown("FAILED")], [], [shown("FAILED")]),
        ([shown("FAILED")], None, [shown("FAILED")]),
        ([], [accounted("FAILED", code="3:0")], [accounted("FAILED", code="3:0")]),
        (None, [accounted("FAILED", code="3:0")], [accounted("FAILED", code="3:0")]),
        # The end of the run before a requeue is not this one's.
        (
            [shown("COMPLETED", submit=NOW)],
            [accounted("NODE_FAIL", submit=LONG_AGO)],
            [shown("COMPLETED", submit=NOW)],
        ),
        # What Slurm may requeue stays squeue's as long as squeue shows it.
        (
            [shown("PREEMPTED")],
            [accounted("PREEMPTED", code="0:15")],
            [JobRow("6", "6", "PREEMPTED", "squeue", exit_code=ExitCode(0, 15), submit=LONG_AGO, end=LONG_AGO)],
        ),
        # Tasks that the controller forgot while others run.
        (
            [shown("RUNNING", 1), shown("PENDING", 2)],
            [accounted("FAILED", 0), accounted("RUNNING", 1)],
            [accounted("FAILED", 0), shown("RUNNING", 1), shown("PENDING", 2)],
        ),
        # For a moment, accounting shows an array that ended at once as its last task alone.
        (
            [shown("FAILED", 0), shown("COMPLETED", 1)],
            [accounted("COMPLETED")],
            [shown("FAILED", 0), shown("COMPLETED", 1)],
        ),
    ],
)
def test_squeue_knows_who_is_alive_and_sacct_how_it_ended(
    squeue: list[JobRow] | None, sacct: list[JobRow] | None, expected: list[JobRow]
) -> None:
    assert merged(squeue, sacct) == Known(tuple(expected))


@pytest.mark.parametrize(
    ("squeue", "sacct"),
    [
        (None, None),
        (None, []),
        ([], None),
        # Without the controller nobody knows whether it still runs.
        (None, [accounted("RUNNING")]),
        (None, [accounted("COMPLETED", 0), accounted("PENDING", 1)]),
        # Nor whether Slurm brings it back.
        (None, [accounted("NODE_FAIL")]),
        # When slurmdbd comes back, it knows for some seconds that a job failed, but neither when nor how.
        (None, [accounted("FAILED", end=None)]),
        # Accounting has not taken in the whole end yet.
        ([], [accounted("COMPLETED", end=NOW - timedelta(seconds=1))]),
        (None, [accounted("COMPLETED", end=NOW - timedelta(seconds=1))]),
    ],
)
def test_what_cannot_be_known_is_neither_absent_nor_ended(
    squeue: list[JobRow] | None, sacct: list[JobRow] | None
) -> None:
    assert isinstance(merged(squeue, sacct), Unreachable)


@pytest.mark.parametrize("sacct", [None, [], [accounted("COMPLETED")], [accounted("RUNNING", 7)]])
def test_an_array_is_over_only_when_no_task_can_have_been_forgotten(sacct: list[JobRow] | None) -> None:
    last = [shown("COMPLETED", 7)]

    assert isinstance(merged(last, sacct, whole=False), Unreachable)
    assert merged(last, sacct, whole=True) == Known((shown("COMPLETED", 7),))
    known = merged(last, [accounted("FAILED", 0), accounted("COMPLETED", 7)], whole=False)
    assert known == Known((accounted("FAILED", 0), accounted("COMPLETED", 7)))


def test_a_job_that_both_do_not_have_is_absent() -> None:
    assert merged([], []) == Absent()


def test_rows_of_an_older_job_with_the_same_id_are_not_this_jobs() -> None:
    old = accounted("FAILED", submit=LONG_AGO)
    new = accounted("RUNNING", submit=NOW)

    assert rows_by_job([new, old], {"6": NOW}) == {"6": [new]}
    assert rows_by_job([old], {"6": NOW}) == {}
    # Clocks differ, and times are whole seconds.
    assert rows_by_job([old], {"6": LONG_AGO + timedelta(minutes=9)}) == {"6": [old]}


def test_of_a_requeued_job_the_newest_run_counts() -> None:
    first = accounted("NODE_FAIL", submit=LONG_AGO)
    again = accounted("PENDING", submit=LONG_AGO + timedelta(minutes=5))

    assert rows_by_job([again, first], {"6": LONG_AGO}) == {"6": [again]}
    assert rows_by_job([first, again], {"6": LONG_AGO}) == {"6": [again]}


def test_an_array_with_tasks_whose_numbers_cannot_be_read_is_not_over() -> None:
    rows = rows_by_job([accounted("COMPLETED", 0), accounted("PENDING")], {"6": LONG_AGO})["6"]

    assert {row.state for row in rows} == {"COMPLETED", "PENDING"}
    assert rows_by_job([accounted("COMPLETED", 0), accounted("COMPLETED")], {"6": LONG_AGO})["6"] == [
        accounted("COMPLETED", 0)
    ]


def test_it_is_a_cluster() -> None:
    assert isinstance(CommandCluster("hill", OwnAccountDoor()), Cluster)


async def test_without_slurms_commands_nothing_is_known_and_the_check_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    cluster = CommandCluster("hill", OwnAccountDoor())

    assert isinstance((await cluster.query({"1": NOW}))["1"], Unreachable)
    with pytest.raises(ClusterUnreachable):
        await cluster.submit(SubmitRequest("#!/bin/sh\n", (), "n", "k", "/"))
    findings = await cluster.check()
    assert not any(finding.ok for finding in findings)
    assert {"sbatch", "squeue", "sacct", "scancel"} <= {finding.subject for finding in findings}
    assert all(finding.hint for finding in findings)


class Site:
    """The real Slurm, asked through a CommandCluster."""

    def __init__(self, slurm: SlurmCluster, work: Path) -> None:
        self.slurm = slurm
        self.work = work
        self.cluster = CommandCluster(slurm.name, OwnAccountDoor(), slurm_conf=str(slurm.conf))
        self.since = datetime.now(UTC)

    async def submit(self, body: str, *arguments: str, name: str = "test-k1") -> str:
        request = SubmitRequest(f"#!/bin/bash\n{body}\n", arguments, name, "k1", str(self.work))
        return await self.cluster.submit(request)

    async def observe(self, job_id: str) -> Observation:
        return (await self.cluster.query({job_id: self.since}))[job_id]

    async def reach(self, job_id: str, wanted: Callable[[JobStatus], bool], timeout: float = 40) -> JobStatus:
        async def there() -> JobStatus | None:
            observation = await self.observe(job_id)
            status = summarize(observation.rows, requeue=False) if isinstance(observation, Known) else None
            return status if status and wanted(status) else None

        status = await await_until(there, timeout, f"job {job_id}", 0.3)
        assert status is not None
        return status

    async def end(self, job_id: str) -> JobStatus:
        """The job's end as accounting has it."""
        return await self.reach(
            job_id, lambda status: status.final and all(row.source == "sacct" for row in status.rows)
        )

    async def witness(self, name: str) -> Witness:
        """A job that accounting holds, with its name: it may lack that for a moment."""
        job_id = await self.submit("true", name=name)

        async def held() -> bool:
            return name in self.slurm.run("sacct", "-X", "-n", "-P", "-o", "JobName", "-j", job_id)

        await await_until(held, 30, "the witness in accounting")
        return Witness(job_id, name, self.since)

    @contextmanager
    def without(self, service: str) -> Iterator[None]:
        self.slurm.stop_service(service)
        try:
            yield
        finally:
            self.slurm.start_service(service)

    @contextmanager
    def without_job_table(self) -> Iterator[None]:
        """The database as slurmdbd finds it when it fails in the middle: it answers, without a single job."""
        table = f"{self.slurm.name}_job_table"
        self._sql(f"RENAME TABLE {table} TO away")
        try:
            yield
        finally:
            self._sql(f"RENAME TABLE away TO {table}")

    def _sql(self, statement: str) -> None:
        socket = self.slurm.folder / "mysql" / "mysql.sock"
        self.slurm.run("mariadb", "--no-defaults", f"--socket={socket}", "slurm", "-e", statement)


@pytest.fixture
async def site(slurm_cluster: SlurmCluster, tmp_path: Path) -> AsyncIterator[Site]:
    yield Site(slurm_cluster, tmp_path)
    slurm_cluster.run("scancel", "--user=root")


async def test_a_job_is_followed_from_the_queue_to_its_exit_code(site: Site) -> None:
    job_id = await site.submit("while [ ! -e go ]; do sleep 0.1; done; exit 3", "--hold")
    held = await site.reach(job_id, lambda status: True)
    assert (held.name, held.needs_person, held.start) == ("Held", True, None)

    site.slurm.run("scontrol", "release", job_id)
    running = await site.reach(job_id, lambda status: status.name == "Running")
    assert running.message == "Running on node1"
    assert running.start is not None
    (site.work / "go").touch()
    ended = await site.end(job_id)

    assert ended.message == "Failed: exit code 3"
    assert ended.rows[0].user_id == os.getuid()
    assert ended.submit is not None
    assert ended.end is not None
    details = (await site.cluster.details(job_id, since=site.since)).fields
    assert (details["JobID"], details["User"], details["State"]) == (job_id, "root", "FAILED")


async def test_a_running_job_shows_what_it_has(site: Site) -> None:
    job_id = await site.submit("sleep 300", "--time=7", "--ntasks=3")

    running = await site.reach(job_id, lambda status: status.name == "Running")

    assert (running.time_limit, running.node_count, running.cpus, running.expected_start) == (7, 1, 3, None)


async def test_pending_jobs_begin_when_slurm_thinks_that_the_ones_before_have_ended(site: Site) -> None:
    running = await site.submit("sleep 300", f"--ntasks={CPUS}", "--time=10")
    started = (await site.reach(running, lambda status: status.name == "Running")).start
    waiting = await site.submit("true", f"--ntasks={CPUS}", "--time=10")
    array = await site.submit("true", f"--ntasks={CPUS}", "--time=10", "--array=0-1")
    held = await site.submit("true", "--hold")
    asked = [running, waiting, array, held, "99999"]

    async def planned() -> dict[str, tuple[JobRow, ...]] | None:
        observed = await site.cluster.query(dict.fromkeys(asked, site.since))
        rows = {job_id: seen.rows for job_id, seen in observed.items() if isinstance(seen, Known)}
        return rows if _starts(rows).keys() >= {waiting, array} else None

    rows = await await_until(planned, 90, "the backfill scheduler's plan", 0.5)

    assert rows is not None
    assert started is not None
    starts = _starts(rows)
    assert set(starts) == {waiting, array}
    # The planner counts in steps of a minute and a half at most.
    assert timedelta(0) <= starts[waiting] - (started + timedelta(minutes=10)) < timedelta(seconds=90)
    assert starts[array] >= starts[waiting] + timedelta(minutes=10)
    # Of the same answer: the next may be of another plan.
    status = summarize(rows[waiting], requeue=False)
    assert status is not None
    assert status.expected_start == starts[waiting]


async def test_a_job_starts_in_an_environment_of_its_own(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "no-such-partition")
    monkeypatch.setenv("PREFECT_API_KEY", "secret")

    await site.end(await site.submit("umask; pwd; env", "--output=out"))

    lines = (site.work / "out").read_text().splitlines()
    assert lines[:2] == ["0077", str(site.work)]
    assert "HOME=/root" in lines
    assert "USER=root" in lines
    assert not any("secret" in line or line.startswith("SBATCH_") for line in lines)


async def test_each_task_of_an_array_is_followed_by_its_number(site: Site) -> None:
    body = "while [ ! -e go ]; do sleep 0.1; done; exit $SLURM_ARRAY_TASK_ID"
    job_id = await site.submit(body, "--array=0-2,7%1")

    running = await site.reach(job_id, lambda status: status.name == "Running")
    assert running.message == "4 tasks: 3 PENDING, 1 RUNNING"
    assert [row.job_id for row in running.rows] == [f"{job_id}_{task}" for task in (0, 1, 2, 7)]
    (site.work / "go").touch()
    ended = await site.end(job_id)

    assert ended.message == "4 tasks: 3 FAILED, 1 COMPLETED; Failed: exit code 1"
    assert [str(row.exit_code) for row in ended.rows] == ["0:0", "1:0", "2:0", "7:0"]


async def test_the_worst_task_of_a_quick_array_is_never_missed(site: Site) -> None:
    job_id = await site.submit("exit $((SLURM_ARRAY_TASK_ID == 0))", "--array=0-3")

    final = await site.reach(job_id, lambda status: status.final)

    assert final.name == "Failed"
    assert (await site.end(job_id)).message == "4 tasks: 3 COMPLETED, 1 FAILED; Failed: exit code 1"


async def test_a_sparse_array_is_known_by_all_its_tasks(site: Site) -> None:
    numbers = [number * number for number in range(31)]

    job_id = await site.submit("true", f"--array={','.join(map(str, numbers))}", "--hold")
    pending = await site.reach(job_id, lambda status: True)

    assert [row.array_task_id for row in pending.rows] == numbers


async def test_a_cancelled_job_says_by_whom(site: Site) -> None:
    job_id = await site.submit("sleep 300")

    await site.cluster.cancel([job_id])
    ended = await site.end(job_id)
    await site.cluster.cancel([job_id, "99999999"])

    assert ended.message == f"Cancelled by uid {os.getuid()}"


async def test_a_requeued_job_is_waiting_and_not_over(site: Site) -> None:
    job_id = await site.submit("sleep 300", "--requeue")
    await site.reach(job_id, lambda status: status.name == "Running")

    site.slurm.run("scontrol", "requeue", job_id)

    again = await site.reach(job_id, lambda status: status.name != "Running")
    assert (again.name, again.final) == ("Queued", False)


async def test_a_job_name_cannot_forge_a_row(site: Site) -> None:
    job_id = await site.submit("sleep 300")
    await site.reach(job_id, lambda status: status.name == "Running")
    of_sacct = f"{job_id}|COMPLETED|0:0|1|2|3|node1|debug|0|None"
    forged = f"x|y\n{of_sacct}\n{job_id}|{job_id}|N/A|COMPLETED|0|1|2|3|node1|debug|None"
    other = site.slurm.run(
        "sbatch", "--parsable", f"--job-name={forged}", f"--comment={forged}", "--output=/dev/null",
        stdin="#!/bin/sh\n",
    ).strip()  # fmt: skip

    assert (await site.end(other)).name == "Completed"
    both = await site.cluster.query({job_id: site.since, other: site.since})
    assert [row.state for row in _rows(both[job_id])] == ["RUNNING"]
    assert [row.state for row in _rows(both[other])] == ["COMPLETED"]


async def test_a_job_is_found_by_exactly_its_name(site: Site) -> None:
    wanted = await site.submit("true", name="find_me-k1")
    for name in ("FIND_ME-k1", "findXme-k1", "find_me-k12", "x\nfind_me-k1", "find_me-k1|x"):
        site.slurm.run("sbatch", f"--job-name={name}", "--output=/dev/null", stdin="#!/bin/sh\n")
    await site.end(wanted)

    assert [job.job_id for job in await site.cluster.find("find_me-k1", since=site.since)] == [wanted]
    assert await site.cluster.find("nobody-k1", since=site.since) == []


async def test_a_job_that_was_cancelled_before_it_might_begin_is_found(site: Site) -> None:
    job_id = await site.submit("true", "--begin=now+1hour", name="later-k1")
    await site.cluster.cancel([job_id])
    await site.end(job_id)

    listed = site.cluster.find("later-k1", since=site.since, witness=Witness(job_id, "later-k1", site.since))
    assert [job.job_id for job in await listed] == [job_id]


async def test_what_slurm_does_not_have_is_absent_once_accounting_has_shown_that_it_answers(site: Site) -> None:
    await site.end(await site.submit("true"))

    assert await site.observe("99999") == Absent()
    both = await site.cluster.query({"99998": site.since, "99999": site.since})
    assert both == {"99998": Absent(), "99999": Absent()}


async def test_sbatchs_own_words_say_why_a_job_is_refused(site: Site) -> None:
    with pytest.raises(SubmissionRefused, match="Invalid partition name specified"):
        await site.submit("true", "--partition=nope")
    with pytest.raises(SubmissionRefused, match="test-only"):
        await site.submit("#SBATCH --test-only")


async def test_an_accounting_that_is_down_hides_no_job_and_invents_no_absence(site: Site) -> None:
    witness = await site.witness("witness-k1")
    long_ago = site.since - timedelta(days=1)
    with site.without("slurmdbd"):
        job_id = await site.submit("exit 3")
        ended = await site.reach(job_id, lambda status: status.final)
        assert (ended.name, ended.exit_code, ended.rows[0].source) == ("Failed", None, "squeue")
        assert isinstance(await site.observe("99999"), Unreachable)
        # So young is the intent that the controller itself would still know of the job.
        assert await site.cluster.find("nobody-k1", since=site.since) == []
        with pytest.raises(ClusterUnreachable):
            await site.cluster.find("nobody-k1", since=long_ago, witness=witness)
        accounting = next(f for f in await site.cluster.check() if f.subject == "accounting")
        assert not accounting.ok
        assert accounting.hint

    known = await site.reach(job_id, lambda status: status.rows[0].source == "sacct", timeout=90)
    assert known.message == "Failed: exit code 3"


async def test_an_accounting_whose_database_fails_proves_nothing_by_its_silence(site: Site) -> None:
    witness = await site.witness("witness-k2")
    long_ago = site.since - timedelta(days=1)
    restarted = CommandCluster(site.slurm.name, OwnAccountDoor(), slurm_conf=str(site.slurm.conf))
    with site.without_job_table():
        answer = site.slurm.run("sacct", "-X", "-n", "-P", f"--jobs={witness.job_id}", f"--starttime={long_ago:%F}")
        assert answer == "", "sacct does not fail, it says nothing"
        for cluster in (site.cluster, restarted):
            assert isinstance((await cluster.query({"99999": site.since}))["99999"], Unreachable)
            for given in (witness, None):
                with pytest.raises(ClusterUnreachable, match="proves nothing"):
                    await cluster.find("nobody-k1", since=long_ago, witness=given)

    for cluster in (site.cluster, restarted):
        assert (await cluster.query({"99999": site.since}))["99999"] == Absent()
        assert await cluster.find("nobody-k1", since=long_ago, witness=witness) == []


async def test_a_controller_that_does_not_answer_says_nothing_of_any_job(site: Site) -> None:
    job_id = await site.submit("sleep 300")
    await site.reach(job_id, lambda status: status.name == "Running")
    with site.without("slurmctld"):
        # At once, for each of Slurm's commands takes its time over it.
        observed, findings, *refused = await asyncio.gather(
            site.cluster.query({job_id: site.since, "99999": site.since}),
            site.cluster.check(),
            site.submit("true"),
            site.cluster.cancel([job_id]),
            site.cluster.find("test-k1", since=site.since),
            return_exceptions=True,
        )
        assert isinstance(observed, dict)
        assert [type(observation) for observation in observed.values()] == [Unreachable, Unreachable]
        assert isinstance(findings, list)
        assert not next(finding for finding in findings if finding.subject == "slurmctld").ok
        assert [type(answer) for answer in refused] == [ClusterUnreachable] * 3

    assert (await site.reach(job_id, lambda status: True)).name == "Running"


async def test_the_check_shows_what_is_well(site: Site) -> None:
    findings = {finding.subject: finding for finding in await site.cluster.check()}

    assert all(finding.ok for finding in findings.values())
    assert {"sbatch", "squeue", "sacct", "scancel", "slurmctld", "PrivateData", "accounting"} <= set(findings)


def _starts(rows: Mapping[str, Sequence[JobRow]]) -> dict[str, datetime]:
    return {job_id: row.expected_start for job_id, of_job in rows.items() for row in of_job if row.expected_start}


def _rows(observation: Observation) -> tuple[JobRow, ...]:
    assert isinstance(observation, Known)
    return observation.rows
