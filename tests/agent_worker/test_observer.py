"""What is written down for Jobbergate of a run's jobs."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

from agent_worker.jobbergate.observer import JobbergateObserver
from jobbergate_flows.applications.job_script import JobScript
from jobbergate_flows.jobbergate.links import Create, Links, State, Submitted
from jobbergate_flows.slurm.jobs import JobStatus, Phase, SlurmJob
from jobbergate_flows.slurm.ledger import Ledger, Submission, SubmissionKey
from jobbergate_flows.slurm.options import SlurmResources
from jobbergate_flows.slurm.submission import SubmissionOrder

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
RUNNING = JobStatus(Phase.RUNNING, "Running", "Running on node1", "RUNNING", final=False)
FAILED = JobStatus(Phase.FAILED, "OutOfMemory", "OutOfMemory: too little", "OUT_OF_MEMORY", final=True)
DONE = JobStatus(Phase.COMPLETED, "Completed", "Completed: exit code 0", "COMPLETED", final=True)


def order(attempt: int = 0) -> SubmissionOrder:
    return SubmissionOrder(
        JobScript(name="study", text="#!/bin/sh\n"), SlurmResources(), "/scratch", SubmissionKey("run", "job", attempt)
    )


def job(ledger: Ledger, attempt: int = 0, job_id: str = "17") -> SlurmJob:
    key = order(attempt).key
    ledger.intend(
        Submission(
            key=key.token, scope=key.scope, call=key.call, attempt=attempt, cluster="hill", user="me", job_name="study",
            script_digest="", directory="/", intent_at=NOW,
        )
    )  # fmt: skip
    ledger.mark_submitted(key.token, job_id, NOW, None, None)
    row = ledger.get(key.token)
    assert row is not None
    assert row.job is not None
    return row.job


def told(links: Links) -> list[str]:
    """What waits: its kind, and the job's state."""
    return [
        f"{one.message.kind} {one.message.job.slurm_job_state}"
        if isinstance(one.message, State | Submitted)
        else one.message.kind
        for one in links.waiting()
    ]


async def test_a_run_without_an_api_leaves_nothing(links: Links, ledger: Ledger) -> None:
    observer = JobbergateObserver(links, "run", None, None)

    await observer.submitting(order())
    await observer.submitted(order(), job(ledger))
    await observer.told(job(ledger), DONE)

    assert links.open() == []


async def test_a_mirror_is_made_before_the_submission_and_told_of_with_its_states(links: Links, ledger: Ledger) -> None:
    observer = JobbergateObserver(links, "run", "site", "http://prefect/run")

    await observer.submitting(order())
    assert told(links) == []
    submitted = job(ledger)
    await observer.submitted(order(), submitted)
    for status in (RUNNING, RUNNING, DONE):
        await observer.told(submitted, status)

    assert told(links) == ["create", "state RUNNING", "state COMPLETED"]
    create = links.waiting()[0].message
    assert isinstance(create, Create)
    assert create.description == f"jobbergate-flows {submitted.key}: http://prefect/run"


async def test_the_end_says_also_what_was_known_of_the_running_job(links: Links, ledger: Ledger) -> None:
    observer = JobbergateObserver(links, "run", "site", None)
    await observer.submitting(order())
    submitted = job(ledger)
    for status in (replace(RUNNING, partition="main"), DONE):
        await observer.told(submitted, status)

    end = links.waiting()[-1].message
    assert isinstance(end, State)
    assert json.loads(end.job.slurm_job_info)["partition"] == "main"


async def test_each_attempt_is_a_mirror_of_its_own(links: Links, ledger: Ledger) -> None:
    observer = JobbergateObserver(links, "run", "site", None)
    for attempt, (job_id, end) in enumerate([("17", FAILED), ("18", DONE)]):
        await observer.submitting(order(attempt))
        await observer.told(job(ledger, attempt, job_id), end)

    assert told(links) == ["create", "state FAILED", "create", "state COMPLETED"]
    assert [one.slurm_job_id for one in links.waiting()] == ["17", "17", "18", "18"]


async def test_whoever_takes_a_run_up_goes_on_with_its_mirror_whatever_api_it_is_given(
    links: Links, ledger: Ledger
) -> None:
    await JobbergateObserver(links, "run", "site", None).submitting(order())

    # It died before it was told that Slurm had the job.
    await JobbergateObserver(links, "run", None, None).told(job(ledger), DONE)

    assert told(links) == ["create", "state COMPLETED"]


async def test_a_run_from_jobbergate_is_told_of_there_and_not_mirrored(links: Links, ledger: Ledger) -> None:
    bridged = links.bridge("", 7, "run")
    observer = JobbergateObserver(links, "run", "site", None)

    await observer.submitting(order())
    submitted = job(ledger)
    await observer.submitted(order(), submitted)
    for status in (RUNNING, DONE):
        await observer.told(submitted, status)

    assert [link.id for link in links.open()] == [bridged.id]
    assert told(links) == ["submitted PENDING", "state RUNNING", "state COMPLETED"]
    known = links.get(bridged.id)
    assert known is not None
    assert known.key == submitted.key


async def test_of_a_run_from_jobbergate_that_was_taken_up_the_submission_is_told_first(
    links: Links, ledger: Ledger
) -> None:
    links.bridge("", 7, "run")

    await JobbergateObserver(links, "run", None, None).told(job(ledger), DONE)

    assert told(links) == ["submitted PENDING", "state COMPLETED"]


async def test_a_later_attempt_of_a_run_from_jobbergate_is_none_of_its_submission(links: Links, ledger: Ledger) -> None:
    links.bridge("", 7, "run")
    observer = JobbergateObserver(links, "run", None, None)
    await observer.told(job(ledger), FAILED)

    await observer.submitted(order(1), job(ledger, 1, "18"))
    await observer.told(job(ledger, 1, "18"), DONE)

    assert told(links) == ["submitted PENDING", "state FAILED"]


async def test_a_job_that_jobbergate_has_no_place_for_is_not_told_and_its_link_says_why(
    links: Links, ledger: Ledger
) -> None:
    observer = JobbergateObserver(links, "run", "site", None)
    await observer.submitting(order())

    await observer.told(job(ledger, job_id=str(2**31)), DONE)

    (link,) = links.of_flow_run("run")
    assert link.closed
    assert "no place" in (link.trouble or "")
    assert told(links) == []
