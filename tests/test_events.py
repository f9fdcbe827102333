"""Which events a job's statuses make, and what they say."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.events.schemas.events import Event

from jobbergate_flows.events import EVENTS, Told, job_events
from jobbergate_flows.slurm.jobs import ExitCode, JobRow, JobStatus, SlurmJob
from jobbergate_flows.slurm.states import MEANINGS, summarize

ROOT = Path(__file__).parents[1]
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
JOB = SlurmJob(
    cluster="hpc", job_id="6", key="abcdefghij", name="study", user="alice", directory="/work/study-abcdefghij",
    standard_output=None, standard_error=None, submitted_at=START, requeue=True,
)  # fmt: skip
ARRAY = JOB.model_copy(update={"array": True})


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def row(state: str, *, source: Any = "squeue", task: int | None = None, **more: Any) -> JobRow:
    job_id = "6" if task is None else f"6_{task}"
    return JobRow(job_id, "6", state, source, array_task_id=task, **{"submit": START, **more})


def status(*rows: JobRow, **known: Any) -> JobStatus:
    found = summarize(rows, **known)
    assert found is not None
    return found


QUEUED = status(row("PENDING", reason="Priority"))
HELD = status(row("PENDING", reason="DependencyNeverSatisfied"))
RUNNING = status(row("RUNNING", start=at(10), nodes="node1", partition="debug"))
SUSPENDED = status(row("SUSPENDED", start=at(10), nodes="node1"))
FAILED = status(
    row("FAILED", source="sacct", start=at(10), end=at(70), exit_code=ExitCode(3), nodes="node1", partition="debug")
)


def tell(*statuses: JobStatus, job: SlurmJob = JOB, now: float = 1000) -> list[Event]:
    """All events of one follower that sees these statuses, ten seconds apart."""
    told = Told()
    events: list[Event] = []
    for number, seen in enumerate(statuses):
        told, new = job_events(job, told, seen, at(now + 10 * number))
        events += new
    return events


def names(events: list[Event]) -> list[str]:
    return [event.event.removeprefix("slurm.job.") for event in events]


def test_each_state_is_told_once_and_follows_the_one_before() -> None:
    events = tell(QUEUED, status(row("PENDING", reason="Resources")), RUNNING, RUNNING, FAILED)

    assert names(events) == ["pending", "running", "failed"]
    assert [event.follows for event in events] == [None, events[0].id, events[1].id]


def test_an_event_occurred_when_slurm_says_so() -> None:
    assert [event.occurred for event in tell(QUEUED, RUNNING, FAILED)] == [at(0), at(10), at(70)]


def test_no_event_is_from_the_future_or_older_than_the_one_before() -> None:
    slow = status(row("FAILED", source="sacct", start=at(10), end=at(9999)))
    at_once = status(row("FAILED", source="sacct", start=at(10), end=at(10)))

    assert tell(slow, now=100)[0].occurred == at(100)
    running, failed = tell(RUNNING, at_once)
    assert running.occurred < failed.occurred < at(11)


def test_what_is_long_after_follows_nothing() -> None:
    """As Prefect's own events: the server holds back what follows an event that it does not remember."""
    late = status(row("FAILED", source="sacct", start=at(10), end=at(900)))

    assert tell(RUNNING, late)[1].follows is None


def test_a_second_follower_makes_the_same_events() -> None:
    first = tell(QUEUED, RUNNING, FAILED)
    second = tell(RUNNING, FAILED, now=5000)

    assert [event.id for event in second] == [event.id for event in first[1:]]


def test_other_jobs_and_other_attempts_have_other_events() -> None:
    others = [
        JOB.model_copy(update=change) for change in ({"key": "bbbbbbbbbb"}, {"cluster": "other"}, {"job_id": "7"})
    ]

    assert len({tell(RUNNING, job=job)[0].id for job in (JOB, *others)}) == 4


def test_a_requeued_job_lives_twice() -> None:
    again: Any = {"submit": at(30)}
    second = [
        status(row("PENDING", reason="BeginTime", **again)),
        status(row("RUNNING", start=at(150), **again)),
        status(row("COMPLETED", source="sacct", start=at(150), end=at(160), exit_code=ExitCode(0), **again)),
    ]
    events = tell(QUEUED, RUNNING, *second)

    assert names(events) == ["pending", "running", "requeued", "running", "completed"]
    assert len({event.id for event in events}) == 5
    assert events[2].occurred == at(30)
    assert tell(second[1], now=9999)[0].id == events[3].id


def test_a_requeue_that_was_seen_only_by_its_new_time_of_submission_is_told_too() -> None:
    later = status(row("RUNNING", submit=at(30), start=at(150)))

    assert names(tell(RUNNING, later)) == ["running", "requeued", "running"]
    assert names(tell(QUEUED, status(row("PENDING", submit=at(30))))) == ["pending", "requeued"]


def test_a_requeued_job_that_is_held_needs_attention() -> None:
    held = status(row("PENDING", submit=at(30), reason="job requeued in held state"))

    assert names(tell(RUNNING, held)) == ["running", "requeued", "needs-attention"]


@pytest.mark.parametrize("word", ["NODE_FAIL", "PREEMPTED"])
def test_while_slurm_may_bring_a_job_back_its_failure_is_not_told(word: str) -> None:
    lost = status(row(word, start=at(10)))
    back = status(row("PENDING", submit=at(30), reason="BeginTime"))
    events = tell(RUNNING, lost, back)

    assert names(events) == ["running", "requeued"]
    assert events[1].payload["previous_state"] == word


def test_a_failed_node_is_told_once_the_job_does_not_come_back() -> None:
    lost = row("NODE_FAIL", source="sacct", start=at(10), end=at(60))

    assert names(tell(RUNNING, status(lost, gone_for=10.0), status(lost, gone_for=300.0))) == ["running", "node-fail"]


def test_what_comes_again_in_one_life_is_told_again() -> None:
    events = tell(RUNNING, SUSPENDED, RUNNING, SUSPENDED, RUNNING)

    assert names(events) == ["running", "suspended", "running", "suspended", "running"]
    assert len({event.id for event in events}) == 5
    assert events[2].occurred == at(1020)


def test_a_held_job_needs_attention_and_is_pending_when_it_was_released() -> None:
    assert names(tell(HELD, QUEUED)) == ["needs-attention", "pending"]


def test_an_array_is_one_job_with_the_counts_of_its_tasks() -> None:
    some = status(row("RUNNING", task=0, start=at(10)), *(row("PENDING", task=number) for number in range(1, 10_000)))
    over = status(
        *(row("COMPLETED", source="sacct", task=number, end=at(70)) for number in range(9_999)),
        row("TIMEOUT", source="sacct", task=9_999, end=at(90)),
    )
    events = tell(some, over, job=ARRAY)

    assert names(events) == ["running", "timeout"]
    assert events[0].payload["array_tasks"] == {"RUNNING": 1, "PENDING": 9_999}
    assert events[1].payload["array_tasks"] == {"COMPLETED": 9_999, "TIMEOUT": 1}
    assert events[1].occurred == at(90)
    assert events[1].size_bytes < 2_000


def test_a_requeued_task_does_not_requeue_its_array() -> None:
    before = status(row("RUNNING", task=0, start=at(10)), row("RUNNING", task=1, start=at(10)))
    after = status(row("PENDING", task=0, submit=at(30)), row("RUNNING", task=1, submit=at(30), start=at(40)))

    assert names(tell(before, after, job=ARRAY)) == ["running"]


def test_an_event_names_its_job_and_says_how_it_ended() -> None:
    """Also its partition, which accounting does not know of a short job at first."""
    event = tell(QUEUED, RUNNING, FAILED)[-1]

    assert event.resource.root == {
        "prefect.resource.id": "slurm.job.hpc.6",
        "prefect.resource.name": "study",
        "slurm.cluster": "hpc",
        "slurm.job-id": "6",
        "slurm.user": "alice",
        "slurm.state": "FAILED",
        "slurm.partition": "debug",
    }
    assert event.payload == {
        "cluster": "hpc",
        "job_id": "6",
        "key": "abcdefghij",
        "name": "study",
        "user": "alice",
        "partition": "debug",
        "directory": "/work/study-abcdefghij",
        "status": "Failed",
        "state": "FAILED",
        "message": "Failed: exit code 3",
        "previous": "Running",
        "previous_state": "RUNNING",
        "final": True,
        "exit_code": "3:0",
        "submitted": "2026-03-01T12:00:00+00:00",
        "started": "2026-03-01T12:00:10+00:00",
        "ended": "2026-03-01T12:01:10+00:00",
        "waited_seconds": 10.0,
        "ran_seconds": 60.0,
        "nodes": "node1",
    }
    json.dumps(event.payload)


def test_long_words_of_slurms_are_cut() -> None:
    event = tell(status(row("RUNNING", start=at(10), nodes=",".join(f"node{number}" for number in range(10_000)))))[0]

    assert len(event.payload["nodes"]) == len(event.payload["message"]) == 1000
    assert event.payload["nodes"].endswith("...")


def test_every_state_of_the_table_has_an_event() -> None:
    assert {meaning.name for meaning in MEANINGS.values()} | {"Lost"} == set(EVENTS)


def test_every_event_and_every_field_is_documented() -> None:
    documented = set(re.findall(r"`([^`\n]+)`", (ROOT / "docs" / "events.md").read_text()))
    cancelled = status(*(row("CANCELLED", source="sacct", task=task, cancelled_by=1) for task in range(2)))
    fields = {
        field
        for event in [*tell(QUEUED, RUNNING, FAILED), *tell(HELD, cancelled, job=ARRAY)]
        for field in event.payload
    }

    assert {name for name in EVENTS.values() if {name, f".{name}", f"slurm.job.{name}"}.isdisjoint(documented)} == set()
    assert len(fields) == 23
    assert fields <= documented
