"""The state table, and what a job's rows mean for it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from jobbergate_flows.slurm.jobs import ExitCode, JobRow, JobStatus, Phase
from jobbergate_flows.slurm.states import ABSENCE_SECONDS, MEANINGS, parse_state, summarize


def row(state: str, *, source: Any = "sacct", task: int | None = None, code: str = "0:0", **more: Any) -> JobRow:
    job_id = "6" if task is None else f"6_{task}"
    return JobRow(job_id, "6", state, source, array_task_id=task, exit_code=ExitCode.parse(code), **more)


def status(*rows: JobRow, **known: Any) -> JobStatus:
    found = summarize(rows, **known)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("given", "phase", "name", "message", "final"),
    [
        (
            row("PENDING", reason="Resources"),
            Phase.PENDING,
            "Queued",
            "Pending: waiting for free nodes (Resources)",
            False,
        ),
        (row("PENDING"), Phase.PENDING, "Queued", "Pending: not scheduled yet", False),
        (row("CONFIGURING"), Phase.PENDING, "Queued", "Pending: CONFIGURING", False),
        (row("REQUEUED"), Phase.PENDING, "Queued", "Pending: REQUEUED", False),
        (row("PENDING", reason="JobHeldUser"), Phase.PENDING, "Held", "Pending: held by you (JobHeldUser)", False),
        (
            row("PENDING", reason="QOSMaxCpuPerJobLimit"),
            Phase.PENDING,
            "Held",
            "Pending: asks for more CPUs than your QOS allows a job (QOSMaxCpuPerJobLimit)",
            False,
        ),
        (row("PENDING", reason="New"), Phase.PENDING, "Queued", "Pending: New", False),
        # Measured on Slurm 22.05: what `scontrol requeuehold` leaves is PENDING, with words in the reason's place.
        (
            row("PENDING", source="squeue", reason="job requeued in held state"),
            Phase.PENDING,
            "Held",
            "Pending: held: it was requeued so (job requeued in held state)",
            False,
        ),
        (
            row("PENDING", source="squeue", reason="launch_failed_requeued_held"),
            Phase.PENDING,
            "Held",
            "Pending: held: it could not be launched (launch_failed_requeued_held)",
            False,
        ),
        (row("SPECIAL_EXIT"), Phase.PENDING, "Held", "Pending: SPECIAL_EXIT", False),
        (row("RUNNING", nodes="node[1-2]"), Phase.RUNNING, "Running", "Running on node[1-2]", False),
        (row("COMPLETING", nodes="node1"), Phase.RUNNING, "Running", "Running on node1 (COMPLETING)", False),
        (row("SUSPENDED", nodes="node1"), Phase.RUNNING, "Suspended", "Suspended on node1", False),
        (row("COMPLETED"), Phase.COMPLETED, "Completed", "Completed: exit code 0", True),
        (row("COMPLETED", code="1:0"), Phase.FAILED, "Failed", "Failed: exit code 1", True),
        (row("FAILED", code="3:0"), Phase.FAILED, "Failed", "Failed: exit code 3", True),
        (row("FAILED", code="0:9"), Phase.FAILED, "Failed", "Failed: signal 9", True),
        (
            row("FAILED", code="0:9", reason="JobLaunchFailure"),
            Phase.FAILED,
            "Failed",
            "Failed: signal 9, it could not be launched: look at its script, its directory and the node"
            " (JobLaunchFailure)",
            True,
        ),
        (row("TIMEOUT"), Phase.FAILED, "TimedOut", "TimedOut: the time limit was reached", True),
        (row("DEADLINE"), Phase.FAILED, "DeadlineMissed", "DeadlineMissed: exit code 0", True),
        (row("CANCELLED", cancelled_by=1001), Phase.CANCELLED, "Cancelled", "Cancelled by uid 1001", True),
    ],
)
def test_a_row_is_told_in_prefects_words(given: JobRow, phase: Phase, name: str, message: str, final: bool) -> None:
    found = status(given)

    assert (found.phase, found.name, found.message, found.final) == (phase, name, message, final)
    assert found.needs_person == (name == "Held")


def test_out_of_memory_says_what_happened_and_not_its_strange_signal() -> None:
    found = status(row("OUT_OF_MEMORY", code="0:125"))

    assert (found.phase, found.name) == (Phase.FAILED, "OutOfMemory")
    assert "memory" in found.message
    assert "125" not in found.message


def test_who_cancelled_is_named_where_the_name_is_known() -> None:
    found = status(row("CANCELLED", cancelled_by=1001), users={1001: "alice"})

    assert found.message == "Cancelled by uid 1001 (alice)"


@pytest.mark.parametrize(
    ("state", "name"),
    [("NODE_FAIL", "NodeFail"), ("BOOT_FAIL", "BootFail"), ("LAUNCH_FAILED", "LaunchFailed"),
     ("RECONFIG_FAIL", "ReconfigFail"), ("PREEMPTED", "Preempted"), ("REVOKED", "Revoked")],
)  # fmt: skip
def test_what_slurm_may_requeue_is_an_end_only_after_a_while_of_absence(state: str, name: str) -> None:
    for gone_for in (None, 0.0, ABSENCE_SECONDS - 1):
        waiting = status(row(state), gone_for=gone_for, requeue=True)
        assert (waiting.phase, waiting.final) == (Phase.PENDING, False)

    gone = status(row(state), gone_for=ABSENCE_SECONDS, requeue=True)
    assert (gone.phase, gone.name, gone.final) == (Phase.CRASHED, name, True)

    never_requeued = status(row(state), requeue=False)
    assert (never_requeued.phase, never_requeued.name, never_requeued.final) == (Phase.CRASHED, name, True)


def test_a_preempted_job_that_squeue_shows_comes_back_unless_it_may_not() -> None:
    shown = row("PREEMPTED", source="squeue")

    assert status(shown, gone_for=ABSENCE_SECONDS).phase is Phase.PENDING
    assert status(shown, requeue=False).name == "Preempted"


def test_a_state_that_slurm_did_not_have_yet_is_never_an_end() -> None:
    assert summarize([row("HIBERNATING")], gone_for=1e6, requeue=False) is None
    assert not status(row("COMPLETED", task=0), row("HIBERNATING", task=1)).final


@pytest.mark.parametrize(
    ("state", "phase", "name"),
    [
        ("POWER_UP_NODE", Phase.PENDING, "Queued"),
        ("EXPEDITING", Phase.PENDING, "Queued"),
        ("REQUEUE_FED", Phase.PENDING, "Queued"),
        ("REQUEUE_HOLD", Phase.PENDING, "Held"),
        ("RESV_DEL_HOLD", Phase.PENDING, "Held"),
        ("STAGE_OUT", Phase.RUNNING, "Running"),
        ("SIGNALING", Phase.RUNNING, "Running"),
        ("RESIZING", Phase.RUNNING, "Running"),
        ("STOPPED", Phase.RUNNING, "Running"),
    ],
)
def test_a_state_on_the_way_is_never_an_end_and_held_ones_need_a_person(state: str, phase: Phase, name: str) -> None:
    # However long squeue has not shown it, and whether or not the job may be requeued.
    found = status(row(state), gone_for=2 * ABSENCE_SECONDS, requeue=False)

    assert (found.phase, found.name, found.final) == (phase, name, False)
    assert found.needs_person == (name == "Held")


def test_every_state_of_slurms_is_in_the_table() -> None:
    base = {"PENDING", "RUNNING", "SUSPENDED", "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED",
            "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY"}  # fmt: skip
    flags = {"CONFIGURING", "POWER_UP_NODE", "EXPEDITING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT",
             "RESV_DEL_HOLD", "COMPLETING", "STAGE_OUT", "SIGNALING", "RESIZING", "STOPPED", "LAUNCH_FAILED",
             "RECONFIG_FAIL", "REVOKED"}  # fmt: skip

    assert set(MEANINGS) == base | flags


@pytest.mark.parametrize(
    ("states", "phase", "name", "final"),
    [
        ("COMPLETED COMPLETED", Phase.COMPLETED, "Completed", True),
        ("COMPLETED FAILED CANCELLED", Phase.FAILED, "Failed", True),
        ("COMPLETED CANCELLED", Phase.CANCELLED, "Cancelled", True),
        ("FAILED TIMEOUT NODE_FAIL", Phase.CRASHED, "NodeFail", True),
        ("FAILED RUNNING PENDING", Phase.RUNNING, "Running", False),
        ("FAILED PENDING", Phase.RUNNING, "Running", False),
        ("PENDING PENDING", Phase.PENDING, "Queued", False),
        ("RUNNING PENDING", Phase.RUNNING, "Running", False),
    ],
)
def test_an_array_is_as_its_worst_task_once_all_have_ended(states: str, phase: Phase, name: str, final: bool) -> None:
    found = status(*(row(state, task=task) for task, state in enumerate(states.split())), requeue=False)

    assert (found.phase, found.name, found.final) == (phase, name, final)


def test_an_arrays_message_counts_its_tasks() -> None:
    states = ["COMPLETED"] * 5 + ["RUNNING"] * 2 + ["FAILED"]

    assert status(*(row(s, task=i) for i, s in enumerate(states))).message == (
        "8 tasks: 5 COMPLETED, 2 RUNNING, 1 FAILED"
    )
    waiting = status(*(row("PENDING", task=task, reason="Priority") for task in range(2)))
    assert waiting.message == "2 tasks: 2 PENDING; Pending: other jobs go first (Priority)"
    ended = status(row("COMPLETED", task=0), row("FAILED", task=1, code="7:0"))
    assert ended.message == "2 tasks: 1 COMPLETED, 1 FAILED; Failed: exit code 7"
    assert status(row("COMPLETED", task=4)).message.startswith("1 task: 1 COMPLETED")


def test_an_array_lasts_from_its_first_start_to_its_last_end() -> None:
    times = [datetime(2026, 1, 1, 0, minute, tzinfo=UTC) for minute in range(4)]
    tasks = [
        row("COMPLETED", task=0, submit=times[0], start=times[1], end=times[3]),
        row("COMPLETED", task=1, submit=times[0], start=times[2], end=times[2]),
    ]

    found = status(*tasks)

    assert (found.submit, found.start, found.end) == (times[0], times[1], times[3])
    assert found.rows == tuple(tasks)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("CANCELLED by 1001", ("CANCELLED", 1001)), ("CANCELLED", ("CANCELLED", None)), ("TIMEOUT", ("TIMEOUT", None)),
     ("RUNNING+", ("RUNNING", None))],
)  # fmt: skip
def test_the_state_field_is_a_word_and_perhaps_an_uid(text: str, parsed: tuple[str, int | None]) -> None:
    assert parse_state(text) == parsed
