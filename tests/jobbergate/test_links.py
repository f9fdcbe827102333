"""The ledger's links with Jobbergate, on real SQLite and real PostgreSQL: what waits to be told, in which order."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from jobbergate_flows.jobbergate.links import Create, Link, Links, Message, Rejected, State, Submitted, cancelled
from jobbergate_flows.jobbergate.models import ActiveSubmission, JobData, SubmissionStatus
from jobbergate_flows.slurm.ledger import Ledger, Submission, SubmissionKey

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
CREATE = Create("study", "jobbergate-flows abc", "study.sh", "#!/bin/sh\n", "/scratch/me", {"a.txt": "é\0\n"}, ("-n1",))


@pytest.fixture
def ledger_place(any_ledger_place: str) -> str:
    return any_ledger_place


def intended(ledger: Ledger, run: str = "run", job_id: str | None = None) -> str:
    key = SubmissionKey(run, "job").token
    ledger.intend(
        Submission(
            key=key, scope=run, call="job", attempt=0, cluster="hill", user="me", job_name="study", directory="/",
            script_digest="", intent_at=NOW, flow_run_id=run, job_id=job_id, submitted_at=NOW if job_id else None,
        )
    )  # fmt: skip
    return key


def data(state: str, reason: str | None = None) -> JobData:
    return JobData(slurm_job_id=7, slurm_job_state=state, slurm_job_info="{}", slurm_job_state_reason=reason)


def told(links: Links, api: str | None = None) -> list[Message]:
    return [one.message for one in links.waiting(api)]


def test_a_job_submission_of_an_api_has_one_link_however_often_it_is_bridged(links: Links) -> None:
    first = links.bridge("", 17, "run-1")

    assert links.bridge("", 17, "run-2") == first
    assert first == Link(first.id, "", 17, None, "run-1", None, bridged=True, closed=False, trouble=None)
    assert links.bridge("other", 17) != first
    assert links.of_submission("", 17) == first
    assert links.of_submission("", 18) is None


def test_several_who_bridge_one_submission_at_once_get_one_link(ledger_place: str) -> None:
    ledgers = [Ledger.open(ledger_place) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for number in range(10):
            made = list(pool.map(lambda ledger, n=number: Links(ledger).bridge("", n), ledgers))
            assert len(set(made)) == 1
    for ledger in ledgers:
        ledger.close()


def test_an_attempt_of_a_run_has_one_mirror_and_its_creation_is_queued_once(links: Links, ledger: Ledger) -> None:
    key = intended(ledger, job_id="7")
    first = links.mirror("site", key, "run", CREATE)

    assert links.mirror("site", key, "run", CREATE) == first
    assert told(links) == [CREATE]
    assert links.of_key(key) == first
    assert links.of_flow_run("run") == [first]


def test_what_waits_comes_back_as_it_was_queued_and_in_order_also_after_a_restart(
    ledger_place: str, links: Links
) -> None:
    link = links.bridge("", 17)
    queued: list[Message] = [
        Submitted(data("PENDING")), State(data("RUNNING", "on é\n")), State(data("COMPLETED")), Rejected("no user"),
    ]  # fmt: skip
    for message in queued:
        links.queue(link.id, message)

    again = Ledger.open(ledger_place)

    assert told(Links(again)) == queued
    again.close()


def test_what_was_told_waits_no_longer_and_its_number_is_never_used_again(links: Links) -> None:
    link = links.bridge("", 17)
    links.queue(link.id, State(data("RUNNING")))
    first = links.waiting()[0].id
    links.sent(first)
    links.queue(link.id, State(data("COMPLETED")))

    links.sent(first)

    assert told(links) == [State(data("COMPLETED"))]


def test_what_says_the_same_of_a_job_is_queued_once_also_after_it_was_told(links: Links) -> None:
    link = links.bridge("", 17)
    links.queue(link.id, Submitted(data("PENDING")))
    links.queue(link.id, State(data("PENDING")))
    links.sent(links.waiting()[0].id)
    links.queue(link.id, State(data("PENDING")))

    assert told(links) == []
    assert links.newest(link.id) == data("PENDING")
    assert links.newest(links.bridge("", 18).id) is None


@pytest.mark.parametrize("end", ["COMPLETED", "FAILED"])
def test_of_a_job_that_has_ended_nothing_more_is_queued(links: Links, end: str) -> None:
    link = links.bridge("", 17)
    links.queue(link.id, State(data(end)))
    links.queue(link.id, State(data("RUNNING")))
    links.queue(link.id, Submitted(data("PENDING")))

    assert told(links) == [State(data(end))]


def test_of_the_words_in_one_state_that_wait_only_the_newest_is_kept(links: Links) -> None:
    link, other = links.bridge("", 17), links.bridge("", 18)
    for said in ("1 of 9", "2 of 9"):
        links.queue(link.id, State(data("RUNNING", said)))
        links.queue(other.id, State(data("RUNNING", said)))
    links.queue(link.id, State(data("SUSPENDED")))
    links.queue(link.id, State(data("RUNNING", "3 of 9")))

    assert [(one.link.submission_id, one.message) for one in links.waiting()] == [
        (17, State(data("RUNNING", "2 of 9"))),
        (18, State(data("RUNNING", "2 of 9"))),
        (17, State(data("SUSPENDED"))),
        (17, State(data("RUNNING", "3 of 9"))),
    ]


def test_a_word_that_is_being_told_while_a_newer_one_takes_its_place_does_not_take_that_along(links: Links) -> None:
    link = links.bridge("", 17)
    links.queue(link.id, State(data("RUNNING", "old")))
    being_told = links.waiting()[0]
    links.queue(link.id, State(data("RUNNING", "new")))

    links.sent(being_told.id)

    assert told(links) == [State(data("RUNNING", "new"))]


def test_a_mirror_is_told_of_when_slurm_has_its_job(links: Links, ledger: Ledger) -> None:
    key = intended(ledger)
    links.mirror("site", key, "run", CREATE)
    assert links.waiting() == []

    ledger.mark_submitted(key, "4711", NOW, None, None)

    assert [(one.message, one.slurm_job_id) for one in links.waiting()] == [(CREATE, "4711")]


def test_of_a_submission_that_never_got_a_job_nothing_is_left(links: Links, ledger: Ledger) -> None:
    refused, cancelled_, open_, other = (intended(ledger, run) for run in "abcd")
    for key in (refused, cancelled_, open_):
        links.mirror("site", key, None, CREATE)
    ledger.mark_refused(refused, "no")
    ledger.mark_cancelled(cancelled_)
    ledger.mark_cancelled(other)

    assert links.forget_unsubmitted("elsewhere") == 0
    assert links.forget_unsubmitted("hill") == 2
    assert [link.key for link in links.open()] == [open_]
    ledger.mark_submitted(open_, "7", NOW, None, None)
    assert told(links) == [CREATE]


def test_messages_are_asked_for_by_api(links: Links) -> None:
    for api in ("", "site"):
        links.queue(links.bridge(api, 17).id, State(data("RUNNING", api)))

    assert told(links, "site") == [State(data("RUNNING", "site"))]
    assert told(links, "") == [State(data("RUNNING", ""))]
    assert len(told(links)) == 2
    assert links.apis_waiting() == ["", "site"]


def test_some_of_what_waits_can_be_asked_for_without_certain_links(links: Links) -> None:
    made = [links.bridge("", number) for number in range(3)]
    for link in made:
        links.queue(link.id, State(data("RUNNING")))

    assert [one.link for one in links.waiting(limit=2)] == made[:2]
    assert [one.link for one in links.waiting(limit=2, without=[made[0].id])] == made[1:]


def test_how_often_a_message_was_begun_to_be_sent_is_kept(ledger_place: str, links: Links) -> None:
    links.queue(links.bridge("", 17).id, Rejected("no"))
    links.trying(links.waiting()[0].id)

    again = Ledger.open(ledger_place)

    assert Links(again).waiting()[0].tries == 1
    again.close()


def test_what_becomes_known_of_a_link_is_kept_and_the_rest_stays(links: Links) -> None:
    link = links.bridge("", 17, "run")

    links.attach(link.id, key="abc", job_script_id=3)
    links.attach(link.id, trouble="it was deleted", shown=True)

    found = links.get(link.id)
    assert found == Link(link.id, "", 17, 3, "run", "abc", True, False, "it was deleted", False, True)


def test_a_closed_link_is_not_open_takes_nothing_and_forgets_what_waits(links: Links) -> None:
    link, other = links.bridge("", 17), links.bridge("", 18)
    for one in (link, other):
        links.queue(one.id, State(data("RUNNING")))

    links.close(link.id, "the submission was deleted")
    links.queue(link.id, State(data("COMPLETED")))

    assert [one.link.submission_id for one in links.waiting()] == [18]
    assert links.open() == links.open("") == [other]
    closed = links.get(link.id)
    assert closed is not None
    assert (closed.closed, closed.trouble) == (True, "the submission was deleted")


def test_only_jobs_that_somebody_cancelled_in_jobbergate_and_that_go_on_are_to_be_cancelled(links: Links) -> None:
    running, wished, over, foreign = (links.bridge("", number) for number in (1, 2, 3, 4))
    links.attach(over.id, ended=True)
    active = [
        ActiveSubmission(id=1, name="a", status=SubmissionStatus.SUBMITTED, slurm_job_id=11),
        *(ActiveSubmission(id=n, name="a", status=SubmissionStatus.CANCELLED, slurm_job_id=10 + n) for n in (2, 3, 4)),
    ]

    assert [link.id for link in cancelled(active, [link for link in links.open() if link != foreign])] == [wished.id]
    assert running.id != wished.id
