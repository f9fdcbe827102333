"""What a run shows while its job lives."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jobbergate_flows.live_page import LiveJob, LiveUsage, live_markdown, next_change, progress_of
from jobbergate_flows.slurm.jobs import ExitCode, JobRow, SlurmJob
from jobbergate_flows.slurm.states import summarize

BEGAN = datetime(2026, 3, 1, 12, tzinfo=UTC)
LIMIT = timedelta(hours=2)


def live(*states: str, limit: timedelta | None = LIMIT, more: dict[str, Any] | None = None, **row: Any) -> LiveJob:
    array = len(states) > 1
    rows = [
        JobRow(
            f"6_{task}" if array else "6", "6", state, "squeue", array_task_id=task if array else None,
            **({"start": BEGAN, "submit": BEGAN, "time_limit": limit and limit // timedelta(minutes=1)} | row),
        )
        for task, state in enumerate(states)
    ]  # fmt: skip
    status = summarize(rows, requeue=False)
    assert status is not None
    job = SlurmJob(
        cluster="hpc", job_id="6", key="k", name="study", user="me", directory="/scratch", standard_output=None,
        standard_error=None, submitted_at=BEGAN, array=array,
    )  # fmt: skip
    return LiveJob(job, status, **(more or {}))


def after(minutes: float) -> datetime:
    return BEGAN + timedelta(minutes=minutes)


def test_a_waiting_job_is_at_zero_and_says_why_and_when_it_may_start() -> None:
    waiting = live("PENDING", start=None, reason="Resources", expected_start=after(30))

    shown = progress_of(waiting, after(5))

    assert shown.percent == 0
    assert "Resources" in shown.words
    assert f"{after(30).astimezone():%Y-%m-%d %H:%M:%S %Z}" in shown.words


def test_a_running_job_is_as_far_as_its_time_limit() -> None:
    shown = progress_of(live("RUNNING"), after(60))

    assert (shown.percent, shown.words) == (50.0, "Running for 01:00:00 of 02:00:00")


def test_without_a_limit_nobody_knows_how_far_it_is() -> None:
    running = live("RUNNING", limit=None)

    assert progress_of(running, after(60)).percent == 0
    assert next_change(running, after(60)) is None


def test_progress_changes_by_the_percent_and_not_by_the_second() -> None:
    running = live("RUNNING")
    moment = after(60) + timedelta(seconds=3)

    wait = next_change(running, moment) or 0.0

    assert wait == pytest.approx(72 - 3)
    assert progress_of(running, moment) == progress_of(running, moment + timedelta(seconds=60))
    assert progress_of(running, moment) != progress_of(running, moment + timedelta(seconds=wait + 0.01))
    assert live_markdown(running, moment) == live_markdown(running, moment + timedelta(seconds=60))


def test_a_job_beyond_its_limit_is_at_its_end_and_stays_there() -> None:
    running = live("RUNNING")

    assert progress_of(running, after(125)).percent == 100
    assert next_change(running, after(125)) is None


def test_of_an_array_the_ended_tasks_count() -> None:
    array = live("COMPLETED", "FAILED", "RUNNING", "PENDING")

    shown = progress_of(array, after(1))

    assert (shown.percent, shown.words) == (50.0, "2 of 4 tasks have ended")
    assert next_change(array, after(1)) is None


def test_a_completed_job_is_done_and_another_end_stays_where_it_was() -> None:
    done = live("COMPLETED", end=after(10), exit_code=ExitCode(0))
    late = live("TIMEOUT", end=after(120), exit_code=ExitCode(0))
    early = live("FAILED", end=after(30), exit_code=ExitCode(3))

    assert progress_of(done, after(99)).percent == 100
    assert progress_of(late, after(200)).percent == 100
    assert (progress_of(early, after(200)).percent, progress_of(early, after(200)).words) == (
        25.0,
        early.status.message,
    )


def test_the_page_says_what_squeue_and_tail_would() -> None:
    usage = LiveUsage(memory=3 << 30, memory_limit=8 << 30, cpus=3.97, at=after(59))
    running = live(
        "RUNNING", nodes="node[1-2]", cpus=4, more={"usage": usage, "lines": [f"step {n}" for n in range(50)]}
    )

    page = live_markdown(running, after(60))

    assert "| Time | 01:00:00 of 02:00:00 |" in page
    assert "| Nodes | node\\[1-2\\] |" in page
    assert f"| Memory | 3 GiB of 8 GiB, at {after(59).astimezone():%Y-%m-%d %H:%M:%S %Z} |" in page
    assert f"| CPUs | 4.0 in use of 4, at {after(59).astimezone():%Y-%m-%d %H:%M:%S %Z} |" in page
    assert "step 30\n" in page
    assert "step 29\n" not in page


def test_the_page_says_when_a_person_is_needed() -> None:
    held = live("PENDING", start=None, reason="JobHeldUser")

    assert "It will not go on by itself." in live_markdown(held, after(1))
    assert "It will not go on by itself." not in live_markdown(live("RUNNING"), after(1))


def test_output_cannot_become_markup() -> None:
    page = live_markdown(live("RUNNING", more={"lines": ["```", "# heading"]}), after(1))

    assert "````\n```\n# heading\n````" in page


def test_later_attempts_are_counted() -> None:
    assert "| Attempt | 2 of 3 |" in live_markdown(live("RUNNING", more={"attempt": 2, "attempts": 3}), after(1))
