"""What is asked for after an attempt that failed."""

from __future__ import annotations

from typing import Any

import pytest

from jobbergate_flows.slurm.errors import OptionRefused
from jobbergate_flows.slurm.jobs import AttemptEnd, ExitCode, JobRow
from jobbergate_flows.slurm.options import SlurmResources
from jobbergate_flows.slurm.retries import (
    GivenUp,
    Retry,
    RetryPolicy,
    check_policy,
    decide,
    end_of,
    request_after,
    retries_schema,
)
from jobbergate_flows.slurm.states import summarize
from jobbergate_flows.slurm.steps import JobRecord

THREE = RetryPolicy(attempts=3)


def asked(**values: Any) -> SlurmResources:
    return SlurmResources.model_validate(values)


def again(policy: RetryPolicy, resources: SlurmResources, *ends: AttemptEnd) -> Retry:
    decided = decide(policy, resources, ends)
    assert isinstance(decided, Retry), decided
    return decided


def given_up(policy: RetryPolicy, resources: SlurmResources, *ends: AttemptEnd) -> str | None:
    decided = decide(policy, resources, ends)
    assert isinstance(decided, GivenUp), decided
    return decided.reason


def test_after_out_of_memory_more_memory_is_asked_for_each_time() -> None:
    oom = AttemptEnd("OutOfMemory")

    first = again(THREE, asked(memory="3G", time_limit="10"), oom)
    second = again(THREE, asked(memory="3G", time_limit="10"), oom, oom)

    assert (first.resources.memory, second.resources.memory) == ("6G", "12G")
    assert first.resources.time_limit == "10"
    assert first.reason == "OutOfMemory with 3G, now with 6G: attempt 2 of 3"


def test_memory_per_cpu_grows_as_such() -> None:
    retry = again(THREE, asked(memory_per_cpu="500M"), AttemptEnd("OutOfMemory"))

    assert (retry.resources.memory_per_cpu, retry.resources.memory) == ("1000M", None)


def test_memory_grows_up_to_the_ceiling_and_then_no_more() -> None:
    policy = RetryPolicy(attempts=5, memory_factor=4, memory_ceiling="10G")
    oom = AttemptEnd("OutOfMemory")

    assert again(policy, asked(memory="4G"), oom).resources.memory == "10G"
    assert given_up(policy, asked(memory="4G"), oom, oom) == "10G is the most memory that its retries may ask for"


def test_a_job_that_got_the_partitions_default_asks_for_more_than_that() -> None:
    retry = again(THREE, asked(), AttemptEnd("OutOfMemory", memory="2000M", time_limit=60))

    assert retry.resources.memory == "4000M"


@pytest.mark.parametrize(
    ("resources", "end", "why"),
    [
        (asked(), AttemptEnd("OutOfMemory"), "how much memory it had is not known"),
        (asked(memory="0"), AttemptEnd("OutOfMemory"), "all the memory of its node"),
        (asked(extra={"mem-per-gpu": "4G"}), AttemptEnd("OutOfMemory"), "for each GPU"),
        (asked(), AttemptEnd("TimedOut"), "which time limit it had is not known"),
        (asked(time_limit="UNLIMITED"), AttemptEnd("TimedOut"), "which time limit it had is not known"),
    ],
)
def test_what_cannot_be_asked_for_ends_it_with_the_reason(resources: SlurmResources, end: AttemptEnd, why: str) -> None:
    assert why in (given_up(THREE, resources, end) or "")


def test_after_a_time_out_more_time_is_asked_for_up_to_the_ceiling() -> None:
    policy = RetryPolicy(attempts=4, time_factor=3, time_ceiling="2-00:00:00")
    late = AttemptEnd("TimedOut")

    first = again(policy, asked(time_limit="12:00:00"), late)
    second = again(policy, asked(time_limit="12:00:00"), late, late)

    assert (first.resources.time_limit, second.resources.time_limit) == ("1-12:00:00", "2-00:00:00")
    assert first.reason == "TimedOut after 12:00:00, now with 1-12:00:00: attempt 2 of 4"
    assert given_up(policy, asked(time_limit="12:00:00"), late, late, late) == (
        "2-00:00:00 is the longest time limit that its retries may ask for"
    )


def test_a_node_that_failed_is_left_out_from_then_on() -> None:
    resources = asked(memory="1G", extra={"exclude": "node1"})
    lost = AttemptEnd("NodeFail", bad_nodes="node[7-8]")

    retry = again(THREE, resources, lost)
    later = again(THREE, resources, lost, AttemptEnd("OutOfMemory"))

    assert retry.resources.extra["exclude"] == "node1,node[7-8]"
    assert (later.resources.extra["exclude"], later.resources.memory) == ("node1,node[7-8]", "2G")


def test_a_preempted_job_is_submitted_as_it_was() -> None:
    resources = asked(partition="spot", memory="1G")

    assert again(THREE, resources, AttemptEnd("Preempted")).resources == asked(
        partition="spot", memory="1G", requeue=False
    )


def test_a_plain_failure_is_retried_only_when_it_is_named() -> None:
    failed = AttemptEnd("Failed")

    assert given_up(THREE, asked(), failed) is None
    assert again(RetryPolicy(attempts=2, on=frozenset({"failure"})), asked(), failed)


@pytest.mark.parametrize("name", ["Completed", "Cancelled", "DeadlineMissed", "Revoked"])
def test_what_somebody_wanted_or_nothing_mends_is_never_retried(name: str) -> None:
    every = RetryPolicy(attempts=9, on=frozenset({"out-of-memory", "timeout", "node-failure", "preempted", "failure"}))

    assert given_up(every, asked(memory="1G"), AttemptEnd(name)) is None


def test_without_a_policy_nothing_is_retried_and_the_request_is_as_it_was() -> None:
    resources = asked(memory="1G", requeue=True)

    assert given_up(RetryPolicy(), resources, AttemptEnd("OutOfMemory")) is None
    assert request_after(RetryPolicy(), resources, ()) is resources


def test_the_attempts_are_counted() -> None:
    lost = AttemptEnd("Preempted")

    assert given_up(THREE, asked(), lost, lost, lost) == "it was attempt 3 of 3"


def test_slurms_own_requeue_is_off_where_the_policy_is_ours() -> None:
    first = request_after(THREE, asked(memory="1G", requeue=True), ())

    assert "--no-requeue" in first.to_arguments()


def test_of_an_array_only_the_tasks_that_did_not_complete_run_again() -> None:
    end = AttemptEnd("OutOfMemory", unfinished=(3, 5, 6, 7))

    retry = again(THREE, asked(memory="1G", array="0-9%4"), end)

    assert (retry.resources.array, retry.resources.memory) == ("3,5-7%4", "2G")


def test_what_an_arrays_tasks_lacked_is_all_asked_for() -> None:
    end = AttemptEnd("OutOfMemory", unfinished=(1, 2), others=("TimedOut",))

    retry = again(THREE, asked(memory="1G", time_limit="10", array="0-3"), end)

    assert (retry.resources.memory, retry.resources.time_limit, retry.resources.array) == ("2G", "00:20:00", "1-2")
    assert "OutOfMemory with 1G, now with 2G; TimedOut after 00:10:00, now with 00:20:00" in retry.reason


@pytest.mark.parametrize("other", ["Failed", "Cancelled"])
def test_an_array_is_not_retried_where_one_of_its_tasks_would_not_be(other: str) -> None:
    array = asked(memory="1G", array="0-3")

    assert given_up(THREE, array, AttemptEnd("OutOfMemory", unfinished=(1, 2), others=(other,))) is None
    assert given_up(THREE, array, AttemptEnd(other, unfinished=(1, 2), others=("OutOfMemory",))) is None


def test_the_request_of_an_attempt_is_the_one_that_was_decided() -> None:
    resources = asked(memory="1G", time_limit="60", array="0-3")
    ends = (AttemptEnd("OutOfMemory", unfinished=(1, 2)), AttemptEnd("TimedOut", unfinished=(2,)))

    assert request_after(THREE, resources, ends) == again(THREE, resources, *ends).resources


def a_record(**values: Any) -> JobRecord:
    return JobRecord("6", "6", "FAILED", **values)


def test_what_an_attempt_had_is_read_from_accounting() -> None:
    rows = [
        JobRow("6_1", "6", "COMPLETED", "sacct", array_task_id=1, exit_code=ExitCode(0)),
        JobRow("6_2", "6", "OUT_OF_MEMORY", "sacct", array_task_id=2, exit_code=ExitCode(0, 125)),
    ]
    status = summarize(rows, requeue=False)
    assert status is not None
    two_nodes = a_record(allocated={"cpu": 4, "mem": 3 << 30}, requested={"mem": 9 << 30}, nodes=2, time_limit=90)
    never_started = a_record(requested={"cpu": 4, "mem": 1 << 30}, nodes=1)
    without_memory = a_record(allocated={"cpu": 4}, requested={"mem": 1 << 30}, nodes=1)

    assert end_of(status, [never_started, two_nodes]) == AttemptEnd(
        "OutOfMemory", memory="1536M", time_limit=5400, unfinished=(2,)
    )
    assert end_of(status, [never_started]) == AttemptEnd("OutOfMemory", memory="1G", unfinished=(2,))
    for records in ([], [without_memory]):
        assert end_of(status, records) == AttemptEnd("OutOfMemory", unfinished=(2,))


@pytest.mark.parametrize(
    ("nodes", "bad"),
    [
        (["node7"], "node7"),
        (["node[7-8]"], None),
        (["node7,node9"], None),
        (["node9", "node7", "node[1-2]", None], "node7,node9"),
    ],
)
def test_a_node_is_known_to_be_bad_where_what_failed_with_it_was_on_no_other(
    nodes: list[str | None], bad: str | None
) -> None:
    failed = [
        JobRow(f"6_{task}", "6", "NODE_FAIL", "sacct", array_task_id=task, nodes=name)
        for task, name in enumerate(nodes, 1)
    ]
    others = [
        JobRow("6_8", "6", "COMPLETED", "sacct", array_task_id=8, nodes="good"),
        JobRow("6_9", "6", "TIMEOUT", "sacct", array_task_id=9, nodes="slow"),
    ]
    status = summarize([*failed, *others], requeue=False)
    assert status is not None

    assert end_of(status).bad_nodes == bad


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"attempts": 0}, "retries.attempts"),
        ({"attempts": 3, "on": ["bad-luck"]}, "retries.on"),
        ({"memory_factor": 1}, "retries.memory_factor"),
        ({"memory_ceiling": "much"}, "retries.memory_ceiling"),
        ({"trys": 2}, "retries.trys"),
        ([3], "retries"),
    ],
)
def test_a_wrong_policy_is_refused_with_the_place(values: Any, where: str) -> None:
    with pytest.raises(OptionRefused) as refused:
        check_policy(values)

    assert (refused.value.where or "").startswith(where)
    assert refused.value.hint


def test_the_forms_emptied_fields_count_as_not_given() -> None:
    assert check_policy({"attempts": 3, "memory_ceiling": "", "time_ceiling": None}) == THREE


def test_the_form_has_every_field_with_its_default() -> None:
    schema = retries_schema()

    assert list(schema["properties"]) == list(RetryPolicy.model_fields)
    assert schema["properties"]["attempts"]["default"] == 1
    assert "failure" not in schema["properties"]["on"]["default"]
