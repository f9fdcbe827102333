"""What jobs were given, by accounting's records."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from jobbergate_flows.slurm.steps import Allocation, JobRecord, allocations_of

BEGAN = datetime(2026, 3, 1, 12, tzinfo=UTC)
GIB = 1024**3


def record(job_id: str = "3", raw_id: str = "3", **more: Any) -> JobRecord:
    values: dict[str, Any] = {"start": BEGAN, "nodes": 1, "cpus": 1} | more
    return JobRecord(job_id, raw_id, "COMPLETED", **values)


def test_the_tasks_of_an_array_go_by_their_raw_ids() -> None:
    assert [(one.job_id, one.raw_id) for one in allocations_of([record("3_1", "5"), record("3_3", "3")])] == [
        ("3_1", "5"),
        ("3_3", "3"),
    ]


def test_what_was_given_counts_before_what_was_asked_for() -> None:
    given = {"mem": 16 * GIB, "gres/gpu": 4}

    assert allocations_of([record(nodes=2, cpus=64, allocated=given, requested={"mem": GIB})]) == [
        Allocation("3", "3", BEGAN, None, 2, 64, 16 * GIB, 4)
    ]
    assert allocations_of([record(requested={"mem": GIB})])[0].memory == GIB
    assert allocations_of([record(allocated={"mem": 0})])[0].memory is None


def test_of_a_requeued_job_the_last_life_counts() -> None:
    later = BEGAN + timedelta(hours=1)

    [found] = allocations_of([record(), record(start=later, end=later + timedelta(minutes=1))])

    assert (found.start, found.end) == (later, later + timedelta(minutes=1))


def test_what_never_began_and_what_slurm_does_not_know_was_given_nothing() -> None:
    assert allocations_of([record(start=None), record(raw_id="")]) == []


def test_what_accounting_has_only_half_of_yet_has_not_begun() -> None:
    # Slurm 22.05 for a second after a job's start: a time, and no resources.
    assert allocations_of([replace(record(), state="PENDING")]) == []
