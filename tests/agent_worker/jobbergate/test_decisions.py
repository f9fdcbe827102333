"""What a look at Jobbergate's submissions means: each case, without anybody asked."""

from __future__ import annotations

from typing import Any

import pytest
from prefect.client.schemas.objects import StateType

from agent_worker.jobbergate.decisions import CancelRun, Close, Follow, Look, Reject, Run, Start, decide
from jobbergate_flows.jobbergate.links import Link
from jobbergate_flows.jobbergate.models import ActiveSubmission, JobScriptDetails, PendingSubmission, SubmissionStatus

RUN = "11111111-1111-4111-8111-111111111111"
RUNNING = {RUN: Run(StateType.RUNNING, "Running")}
SCRIPT = JobScriptDetails.model_validate(
    {"id": 1, "name": "hello", "owner_email": "a@x", "created_at": "2026-01-01", "updated_at": "2026-01-01"}
)
PENDING = PendingSubmission(id=7, name="hello", owner_email="ada@example.org", job_script=SCRIPT)


def link(flow_run_id: str | None = RUN, **more: Any) -> Link:
    values: dict[str, Any] = {
        "id": 3, "api": "", "submission_id": 7, "job_script_id": None, "flow_run_id": flow_run_id, "key": None,
        "bridged": True, "closed": False, "trouble": None,
    }  # fmt: skip
    return Link(**values | more)


def pending(found: Link | None, **more: Any) -> list[Any]:
    return decide(Look(pending=[PENDING], links={7: found} if found else {}, **more))


def active(found: Link | None, status: str = "SUBMITTED", job: int | None = 42, **more: Any) -> list[Any]:
    one = submission(status, job)
    return decide(Look(active=[one], links={7: found} if found else {}, **more))


def submission(status: str = "SUBMITTED", job: int | None = 42) -> ActiveSubmission:
    return ActiveSubmission(id=7, name="hello", status=SubmissionStatus(status), slurm_job_id=job)


def test_what_waits_gets_a_run() -> None:
    assert pending(None) == [Start(PENDING)]


def test_a_run_that_could_not_be_made_or_noted_is_made_again() -> None:
    assert pending(link(None)) == [Start(PENDING)]


def test_what_has_a_run_that_goes_on_gets_no_other() -> None:
    assert pending(link(), runs=RUNNING) == []
    assert pending(link(), runs={RUN: Run(StateType.SCHEDULED, "Scheduled")}) == []


def test_a_run_that_was_given_up_in_prefect_is_told_with_its_words() -> None:
    over = {RUN: Run(StateType.CANCELLED, "Cancelled", "by a person")}
    reason = "Its flow run ended as Cancelled before its job was submitted: by a person"
    assert pending(link(), runs=over) == [Reject(link(), reason)]


def test_a_run_that_was_deleted_is_told() -> None:
    (act,) = pending(link())
    assert isinstance(act, Reject)
    assert act.reason == "Its flow run was deleted before its job was submitted"


def test_what_waits_to_be_told_is_not_told_again() -> None:
    over = {RUN: Run(StateType.FAILED, "Failed")}
    assert pending(link(), runs=over, untold=frozenset({3})) == []


def test_a_list_that_was_read_before_the_job_was_there_rejects_nothing() -> None:
    over = {RUN: Run(StateType.COMPLETED, "Completed")}
    assert pending(link(), runs=over, with_job=frozenset({RUN})) == []


def test_what_is_told_as_over_and_yet_waits_is_not_passed_over() -> None:
    (act,) = pending(link(closed=True, trouble="refused: 422"), runs={RUN: Run(StateType.FAILED, "Failed")})
    assert isinstance(act, Reject)
    assert "refused: 422" in act.reason


def test_a_job_that_its_run_follows_is_left_to_it() -> None:
    assert active(link(key="abc"), runs=RUNNING) == []


def test_the_old_agents_job_is_followed() -> None:
    assert active(None) == [Follow(submission(), None, cancel=False)]
    assert active(link(None)) == [Follow(submission(), link(None), cancel=False)]


def test_a_job_that_a_mirror_tells_of_is_not_followed_twice() -> None:
    assert active(None, mirrored=frozenset({42})) == []


def test_a_job_whose_run_was_deleted_is_followed_and_one_of_which_something_is_to_be_told_not_yet() -> None:
    assert active(link(key="abc"), with_job=frozenset({RUN})) == [Follow(submission(), link(key="abc"), cancel=False)]
    assert active(link(key="abc"), with_job=frozenset({RUN}), untold=frozenset({3})) == []


def test_what_is_cancelled_cancels_its_run_once() -> None:
    assert active(link(), "CANCELLED", None, runs=RUNNING) == [CancelRun(RUN)]
    assert active(link(key="abc"), "CANCELLED", 42, runs=RUNNING) == [CancelRun(RUN)]
    assert active(link(), "CANCELLED", None, runs={RUN: Run(StateType.CANCELLING, "Cancelling")}) == []


@pytest.mark.parametrize("found", [None, link(None)])
def test_what_was_cancelled_before_it_had_a_run_is_closed(found: Link | None) -> None:
    assert active(found, "CANCELLED", None) == [Close(7)]


def test_what_was_cancelled_is_closed_when_its_run_is_over_without_a_job() -> None:
    over = {RUN: Run(StateType.CANCELLED, "Cancelled")}
    assert active(link(), "CANCELLED", None, runs=over) == [Close(7)]
    assert active(link(), "CANCELLED", None, runs=over, untold=frozenset({3})) == []
    # Its job's id is on its way to the API.
    assert active(link(), "CANCELLED", None, runs=over, with_job=frozenset({RUN})) == []


def test_the_old_agents_job_that_is_cancelled_is_cancelled_in_slurm() -> None:
    one = submission("CANCELLED")
    assert active(None, "CANCELLED") == [Follow(one, None, cancel=True)]


def test_what_was_cancelled_while_its_rejection_was_told_is_closed() -> None:
    refused = link(closed=True, trouble="only CREATED ones can be rejected")
    assert active(refused, "CANCELLED", None) == [Close(7)]
    assert active(link(closed=True, ended=True), "CANCELLED", None) == []


def test_what_is_over_and_still_listed_is_left_alone() -> None:
    assert active(link(ended=True, closed=True, key="abc")) == []
