"""What the Jobbergate API is told of a job, for every state of Slurm's."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from jobbergate_flows.jobbergate.errors import JobbergateError
from jobbergate_flows.jobbergate.states import (
    ABORTED,
    ARRAY_TASKS,
    DONE,
    GOING_ON,
    is_end,
    job_data,
    slurm_job_id,
    submitted_data,
)
from jobbergate_flows.slurm.jobs import ExitCode, JobRow, JobStatus, Phase, SlurmJob
from jobbergate_flows.slurm.states import MEANINGS, Finality, summarize

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
JOB = SlurmJob(
    cluster="hill", job_id="17", key="abc", name="study", user="me", directory="/scratch/me", standard_output="/o",
    standard_error="/o", submitted_at=NOW,
)  # fmt: skip
# What jobbergate-api 5.8.0 takes; anything else is a 422.
STATES = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "CONFIGURING", "COMPLETING", "DEADLINE", "FAILED", "NODE_FAIL",
    "OUT_OF_MEMORY", "PENDING", "PREEMPTED", "RUNNING", "RESV_DEL_HOLD", "REQUEUE_FED", "REQUEUE_HOLD", "REQUEUED",
    "RESIZING", "REVOKED", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED", "SUSPENDED", "TIMEOUT", "UNKNOWN",
}  # fmt: skip


def status_of(state: str, *, gone_for: float | None = None, **row: Any) -> JobStatus:
    shown = JobRow(job_id="17", array_job_id="17", state=state, source="sacct" if gone_for else "squeue", **row)
    status = summarize([shown], gone_for=gone_for)
    assert status is not None
    return status


def test_every_state_of_the_api_is_an_end_or_goes_on_and_the_two_that_lie_are_never_told() -> None:
    assert ABORTED | GOING_ON | {DONE, "OUT_OF_MEMORY", "REVOKED"} == STATES
    assert not ABORTED & GOING_ON


@pytest.mark.parametrize("state", sorted(MEANINGS))
def test_a_state_that_is_final_in_slurm_ends_the_submission_and_no_other_does(state: str) -> None:
    final = MEANINGS[state].finality is not Finality.NEVER
    for gone_for in (None, 1e6):
        status = status_of(state, gone_for=gone_for)
        said = job_data(JOB, status)

        assert said.slurm_job_state in STATES
        assert is_end(said.slurm_job_state) == status.final
    assert status.final == final


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("COMPLETED", "COMPLETED"),
        ("CANCELLED", "CANCELLED"),
        ("TIMEOUT", "TIMEOUT"),
        ("DEADLINE", "DEADLINE"),
        ("NODE_FAIL", "NODE_FAIL"),
        ("BOOT_FAIL", "BOOT_FAIL"),
        ("PREEMPTED", "PREEMPTED"),
        ("FAILED", "FAILED"),
        ("OUT_OF_MEMORY", "FAILED"),
        ("REVOKED", "FAILED"),
        ("LAUNCH_FAILED", "FAILED"),
        ("RECONFIG_FAIL", "FAILED"),
    ],
)
def test_ends_are_told_in_a_word_that_the_api_takes_for_an_end(state: str, told: str) -> None:
    status = status_of(state, gone_for=1e6)
    said = job_data(JOB, status)

    assert said.slurm_job_state == told
    assert said.slurm_job_state_reason is not None
    assert said.slurm_job_state_reason.startswith(status.name)


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("PENDING", "PENDING"),
        ("RUNNING", "RUNNING"),
        ("SUSPENDED", "SUSPENDED"),
        ("COMPLETING", "COMPLETING"),
        # The API would take it for an end, and Slurm means that the job is held.
        ("SPECIAL_EXIT", "REQUEUE_HOLD"),
        ("EXPEDITING", "PENDING"),
        ("POWER_UP_NODE", "PENDING"),
        # Slurm may bring it back.
        ("PREEMPTED", "PENDING"),
        ("REVOKED", "PENDING"),
    ],
)
def test_a_job_that_goes_on_is_told_in_a_word_that_leaves_it_open(state: str, told: str) -> None:
    assert job_data(JOB, status_of(state)).slurm_job_state == told


def test_out_of_memory_says_so_in_its_reason() -> None:
    said = job_data(JOB, status_of("OUT_OF_MEMORY", gone_for=1.0, exit_code=ExitCode(0, 125)))

    assert said.slurm_job_state_reason == "OutOfMemory: the job used more memory than it asked for"
    assert json.loads(said.slurm_job_info)["job_state"] == "OUT_OF_MEMORY"


def test_a_completed_job_with_an_exit_code_has_failed() -> None:
    said = job_data(JOB, status_of("COMPLETED", gone_for=1.0, exit_code=ExitCode(3)))

    assert said.slurm_job_state == "FAILED"


def test_a_lost_job_is_unknown() -> None:
    said = job_data(JOB, JobStatus(Phase.CRASHED, "Lost", "Lost: nobody knows it", "LOST", final=True))

    assert (said.slurm_job_state, said.slurm_job_state_reason) == ("UNKNOWN", "Lost: nobody knows it")


def test_the_info_is_what_slurm_shows_by_slurms_names() -> None:
    said = job_data(
        JOB, status_of("RUNNING", start=NOW, nodes="n[1-2]", partition="main", node_count=2, cpus=4, time_limit=60)
    )

    assert said.slurm_job_id == 17
    assert json.loads(said.slurm_job_info) == {
        "job_id": "17", "cluster": "hill", "name": "study", "user_name": "me", "job_state": "RUNNING",
        "state_description": "Running on n[1-2]", "partition": "main", "nodes": "n[1-2]", "node_count": 2, "cpus": 4,
        "time_limit": 60, "submit_time": int(NOW.timestamp()), "start_time": int(NOW.timestamp()),
        "current_working_directory": "/scratch/me", "standard_output": "/o", "standard_error": "/o",
    }  # fmt: skip


def test_at_its_end_what_a_job_had_is_told_also_where_accounting_does_not_know_it_yet() -> None:
    running = status_of("RUNNING", start=NOW, nodes="n1", partition="main", node_count=1, cpus=4, time_limit=60)
    before = job_data(JOB, running)

    info = json.loads(job_data(JOB, status_of("COMPLETED", gone_for=1.0, cpus=2), before).slurm_job_info)

    assert (info["job_state"], info["partition"], info["time_limit"], info["cpus"]) == ("COMPLETED", "main", 60, 2)
    # It may have been requeued.
    queued = json.loads(job_data(JOB, status_of("PENDING"), before).slurm_job_info)
    assert "partition" not in queued
    assert "start_time" not in queued


def test_an_array_is_told_as_one_job_with_its_tasks_counted_and_the_first_listed() -> None:
    rows = [
        JobRow(
            job_id=f"17_{task}", array_job_id="17", array_task_id=task, source="sacct",
            state="COMPLETED" if task else "OUT_OF_MEMORY",
        )
        for task in range(ARRAY_TASKS + 50)
    ]  # fmt: skip
    status = summarize(rows, gone_for=1e6)
    assert status is not None

    said = job_data(JOB.model_copy(update={"array": True}), status)

    info = json.loads(said.slurm_job_info)
    assert (said.slurm_job_id, said.slurm_job_state) == (17, "FAILED")
    assert info["array_task_states"] == {"OUT_OF_MEMORY": 1, "COMPLETED": ARRAY_TASKS + 49}
    assert [task["array_task_id"] for task in info["array_tasks"]] == list(range(ARRAY_TASKS))


def test_a_partly_ended_array_goes_on() -> None:
    rows = [
        JobRow(job_id=f"17_{task}", array_job_id="17", array_task_id=task, source="squeue", state=state)
        for task, state in enumerate(["FAILED", "PENDING"])
    ]
    status = summarize(rows)
    assert status is not None

    assert job_data(JOB, status).slurm_job_state == "RUNNING"


def test_a_reason_holds_nothing_that_the_api_cannot_keep() -> None:
    said = job_data(JOB, JobStatus(Phase.FAILED, "Failed", "Failed: \0\udc80", "FAILED", final=True))

    assert said.slurm_job_state_reason == "Failed: �?"


def test_a_job_that_slurm_has_just_got_is_pending() -> None:
    said = submitted_data(JOB)

    assert (said.slurm_job_id, said.slurm_job_state) == (17, "PENDING")


@pytest.mark.parametrize(("text", "number"), [("17", 17), ("17_3", 17), ("2147483647", 2147483647)])
def test_the_id_of_an_array_is_the_arrays(text: str, number: int) -> None:
    assert slurm_job_id(text) == number


@pytest.mark.parametrize("text", ["2147483648", "", "x17"])
def test_an_id_that_the_api_has_no_place_for_is_an_error(text: str) -> None:
    with pytest.raises(JobbergateError, match="no place"):
        slurm_job_id(text)
