"""Following jobs: what an observation means, how often Slurm is asked, and who is woken."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobbergate_flows.slurm.cluster import SubmitRequest
from jobbergate_flows.slurm.jobs import Absent, JobRow, JobStatus, Known, Observation, Phase, SlurmJob, Unreachable
from jobbergate_flows.slurm.local_cluster import LocalCluster
from jobbergate_flows.slurm.tracker import (
    DETAIL_SECONDS,
    FIRST_SECONDS,
    HURRIED_SECONDS,
    LONGEST_SECONDS,
    LOST_SECONDS,
    JobTracker,
    Tracked,
    advance,
    hurried_interval,
    next_interval,
)
from tests.cluster.waiting import await_until
from tests.slurm.fakes import ScriptedCluster, a_job, seen

SILENCE = Unreachable("slurmctld is away")
Story = Sequence[tuple[float, Observation]]


def after(story: Story, *, requeue: bool = False) -> JobStatus | None:
    """The status at the end of a story of observations, each with its time in seconds."""
    tracked = Tracked(a_job(requeue=requeue))
    for now, observation in story:
        tracked = advance(tracked, observation, now)
    return tracked.status


@pytest.mark.parametrize(
    ("story", "name", "final"),
    [
        pytest.param([(0, seen("PENDING"))], "Queued", False, id="in the queue"),
        pytest.param([(0, seen("PENDING")), (9, seen("RUNNING"))], "Running", False, id="running"),
        pytest.param(
            [(0, seen("RUNNING")), (9, SILENCE), (9000, SILENCE)], "Running", False, id="silence says nothing"
        ),
        pytest.param(
            [(0, seen("RUNNING")), (9, Absent()), (9 + LOST_SECONDS - 1, Absent())],
            "Running",
            False,
            id="out of sight for less than ten minutes",
        ),
        pytest.param(
            [(0, seen("RUNNING")), (9, Absent()), (9 + LOST_SECONDS, Absent())], "Lost", True, id="known to nobody"
        ),
        pytest.param(
            [(0, Absent()), (5, seen("RUNNING")), (LOST_SECONDS + 9, Absent())],
            "Running",
            False,
            id="not seen yet, then seen, then out of sight",
        ),
        pytest.param([(0, Absent()), (60, Absent())], None, False, id="not seen yet"),
        pytest.param(
            [(0, seen("COMPLETED", "sacct", exit_code="0:0"))], "Completed", True, id="ended, says accounting"
        ),
        pytest.param(
            [(0, seen("RUNNING")), (5, seen("FAILED")), (5 + DETAIL_SECONDS - 1, seen("FAILED"))],
            "Running",
            False,
            id="ended, says the controller, and accounting is waited for",
        ),
        pytest.param(
            [(0, seen("RUNNING")), (5, seen("FAILED")), (7, seen("OUT_OF_MEMORY", "sacct", exit_code="0:125"))],
            "OutOfMemory",
            True,
            id="ended, and accounting says how",
        ),
        pytest.param(
            [(0, seen("RUNNING")), (5, seen("FAILED")), (5 + DETAIL_SECONDS, seen("FAILED"))],
            "Failed",
            True,
            id="ended, and accounting stays silent",
        ),
        pytest.param(
            [(0, seen("FAILED")), (5, seen("PENDING")), (DETAIL_SECONDS + 9, seen("FAILED"))],
            "Queued",
            False,
            id="ended, came back, ended again: the wait begins anew",
        ),
        pytest.param(
            [(0, seen("RUNNING")), (5, seen("QUANTUM_TUNNELLING"))], "Running", False, id="a state of the future"
        ),
        pytest.param([(0, seen("NODE_FAIL", "sacct"))], "NodeFail", True, id="not requeued: a node's failure ends it"),
    ],
)
def test_what_a_story_of_observations_means(story: Story, name: str | None, final: bool) -> None:
    status = after(story)

    assert (status.name if status else None, bool(status and status.final)) == (name, final)


@pytest.mark.parametrize(
    ("story", "final"),
    [
        pytest.param([(0, seen("NODE_FAIL", "sacct")), (299, seen("NODE_FAIL", "sacct"))], False, id="gone for less"),
        pytest.param([(0, seen("NODE_FAIL", "sacct")), (300, seen("NODE_FAIL", "sacct"))], True, id="gone for long"),
        pytest.param(
            [(0, seen("NODE_FAIL", "sacct")), (200, seen("PENDING")), (400, seen("NODE_FAIL", "sacct"))],
            False,
            id="came back in between",
        ),
        pytest.param([(0, seen("PREEMPTED")), (900, seen("PREEMPTED"))], False, id="squeue still shows it"),
    ],
)
def test_a_job_that_slurm_may_requeue_ends_only_after_five_minutes_of_absence(story: Story, final: bool) -> None:
    status = after(story, requeue=True)

    assert status is not None
    assert status.final is final
    assert status.phase is (Phase.CRASHED if final else Phase.PENDING)


@pytest.mark.parametrize(
    ("interval", "said", "expected"),
    [
        (2.0, {}, 3.0),
        (50.0, {}, LONGEST_SECONDS),
        (60.0, {}, LONGEST_SECONDS),
        (60.0, {"changed": True}, FIRST_SECONDS),
        (2.0, {"burden": 20.0}, 20.0),
        (2.0, {"changed": True, "burden": 20.0}, 20.0),
        (8.0, {"limited": True, "changed": True}, 16.0),
        (100.0, {"limited": True}, 2 * LONGEST_SECONDS),
        (60.0, {"silent": True}, 15.0),
    ],
)
def test_slurm_is_asked_soon_after_a_change_and_less_and_less_without(
    interval: float, said: dict[str, float], expected: float
) -> None:
    told = {"changed": False, "burden": 0.0, "limited": False} | said
    assert next_interval(interval, **told) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, 0.2),
        ({"burden": 3.0}, 3.0),
        ({"burden": LONGEST_SECONDS}, HURRIED_SECONDS),
        ({"limited": True, "burden": LONGEST_SECONDS}, 40.0),
    ],
    ids=["several submissions are one question", "no burden", "not for as long as that", "Slurm's own limit"],
)
def test_who_is_in_a_hurry_waits_for_seconds_only(said: dict[str, float], expected: float) -> None:
    told = {"burden": 0.0, "limited": False} | said
    assert hurried_interval(40.0, **told) == expected  # type: ignore[arg-type]


async def test_two_thousand_jobs_are_one_question_and_no_task_each(tmp_path: Path) -> None:
    jobs = [a_job(str(number)) for number in range(2000)]
    cluster = ScriptedCluster(tmp_path, {job.job_id: _named("RUNNING", job) for job in jobs})
    tracker = JobTracker(cluster)
    # Those of others may end meanwhile.
    others = asyncio.all_tasks()

    watches = [tracker.watch(job) for job in jobs]
    await await_until(lambda: _true(watches[-1].current), 10, "an answer")

    assert cluster.asked == [frozenset(job.job_id for job in jobs)]
    assert len(asyncio.all_tasks() - others) <= 2
    assert (tracker.statistics.queries, tracker.statistics.jobs) == (1, 2000)
    for watch in watches:
        watch.close()
    await await_until(lambda: _true(not asyncio.all_tasks() - others), 10, "the tracker's rest")


async def test_a_watch_tells_each_status_once_and_ends_with_the_job(tmp_path: Path) -> None:
    cluster = ScriptedCluster(tmp_path, {"1": seen("PENDING")})
    tracker = JobTracker(cluster)
    names = []

    with tracker.watch(a_job()) as watch:
        async for status in watch:
            names.append(status.name)
            next_state = {"Queued": seen("RUNNING"), "Running": seen("COMPLETED", "sacct", exit_code="0:0")}
            cluster.says["1"] = next_state.get(status.name, SILENCE)
            tracker.wake()

        assert names == ["Queued", "Running", "Completed"]
        with tracker.watch(a_job()) as second:
            # A late comer is told at once.
            assert (await asyncio.wait_for(second.final(), 0.1)).name == "Completed"


async def test_final_jobs_are_not_asked_for_any_more(tmp_path: Path) -> None:
    cluster = ScriptedCluster(tmp_path, {"1": seen("COMPLETED", "sacct", exit_code="0:0"), "2": seen("RUNNING")})
    cluster.says["2"] = _named("RUNNING", a_job("2"))
    tracker = JobTracker(cluster)
    with tracker.watch(a_job("1")) as ended, tracker.watch(a_job("2")):
        await ended.final()
        tracker.wake()
        await await_until(lambda: _true(len(cluster.asked) > 1), 10, "the next question")

    assert cluster.asked == [{"1", "2"}, {"2"}]


async def test_a_lasting_silence_is_told_until_slurm_answers_again(tmp_path: Path) -> None:
    cluster = ScriptedCluster(tmp_path, {"1": SILENCE})
    tracker = JobTracker(cluster)
    with tracker.watch(a_job()) as watch:
        await await_until(lambda: _true(len(cluster.asked) == 1), 10, "the first question")
        assert tracker.problem is None
        await await_until(lambda: _true(tracker.problem), 10, "the problem")
        assert tracker.problem == "slurmctld is away"
        assert watch.current is None

        cluster.says["1"] = seen("RUNNING")
        tracker.wake()
        await await_until(lambda: _true(watch.current), 10, "the answer")
        assert tracker.problem is None


async def test_an_unknown_state_is_warned_about_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cluster = ScriptedCluster(tmp_path, {"1": seen("QUANTUM_TUNNELLING")})
    tracker = JobTracker(cluster)

    async def asked_thrice() -> bool:
        tracker.wake()
        return len(cluster.asked) >= 3

    with tracker.watch(a_job()) as watch:
        await await_until(asked_thrice, 10, "the third question")
        assert watch.current is None

    warnings = [record.getMessage() for record in caplog.records if "QUANTUM_TUNNELLING" in record.getMessage()]
    assert len(warnings) == 1
    assert "Job 1" in warnings[0]


async def test_a_cluster_that_breaks_does_not_end_the_watch(tmp_path: Path) -> None:
    class Broken(ScriptedCluster):
        async def query(self, jobs: object) -> dict[str, Observation]:
            if not self.asked:
                self.asked.append(frozenset())
                raise RuntimeError("a bug")
            return {"1": seen("RUNNING"), "unheard-of": seen("RUNNING")}

    tracker = JobTracker(Broken(tmp_path))
    with tracker.watch(a_job()) as watch:
        async for status in watch:
            assert status.name == "Running"
            break


async def test_a_real_job_is_followed_to_its_end(tmp_path: Path) -> None:
    cluster = LocalCluster(root=tmp_path / "jobs")
    script = f"#!/bin/sh\nwhile [ ! -e {tmp_path}/go-on ]; do sleep 0.1; done\nexit 3\n"
    job_id = await cluster.submit(SubmitRequest(script, (), "test-key", "key", str(tmp_path)))
    job = a_job(job_id).model_copy(update={"submitted_at": datetime.now(UTC)})
    tracker = JobTracker(cluster)

    names = []
    with tracker.watch(job) as watch:
        async for status in watch:
            names.append(status.name)
            if status.name == "Running":
                (tmp_path / "go-on").touch()
                tracker.wake()

    assert names[-2:] == ["Running", "Failed"]
    assert str(status.exit_code) == "3:0"


def _named(state: str, job: SlurmJob) -> Known:
    return Known((JobRow(job.job_id, job.job_id, state, "squeue"),))


async def _true(value: object) -> bool:
    return bool(value)


async def test_jobs_that_wait_for_slurm_to_be_asked_are_overdue(tmp_path: Path) -> None:
    now, answered = 100.0, asyncio.Event()

    class Hanging(ScriptedCluster):
        async def query(self, jobs: Mapping[str, datetime]) -> dict[str, Observation]:
            await answered.wait()
            return await super().query(jobs)

    tracker = JobTracker(Hanging(tmp_path, {"1": seen("COMPLETED", "sacct")}), clock=lambda: now)
    now = 500.0
    assert tracker.overdue == 0
    with tracker.watch(a_job()) as watch:
        now = 560.0
        assert tracker.overdue == 60
        assert tracker.followed == {"1": None}
        answered.set()
        assert (await watch.final()).name == "Completed"
        # Nobody has to be asked about a job that is over.
        assert tracker.overdue == 0
        assert tracker.statistics.last_query_at is not None
