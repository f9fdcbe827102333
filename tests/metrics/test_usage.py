"""What samples say of a job's use: of an ended one for its efficiency, of a running one by its newest."""

from __future__ import annotations

from jobbergate_flows.metrics.model import JobMetrics
from jobbergate_flows.metrics.usage import newest_of, usages_of
from tests.metrics.samples import piece


def test_steps_that_are_sampled_at_other_moments_count_together() -> None:
    newest = newest_of(
        JobMetrics.of(
            [
                piece({"RSS": [900, 1000], "CPUUtilization": [90, 100]}, [0, 30], step="0"),
                piece({"RSS": [10, 10], "CPUUtilization": [0, 1]}, [10, 40], step="batch"),
            ]
        )
    )

    assert newest is not None
    assert (newest.memory, newest.cpus) == (1010 * 1024, 1.01)


def test_a_step_that_is_over_does_not_count() -> None:
    newest = newest_of(
        JobMetrics.of(
            [
                piece({"RSS": [900, 900]}, [0, 30], step="0"),
                piece({"RSS": [10, 10, 10, 10, 10]}, [0, 30, 60, 90, 120], step="1"),
            ]
        )
    )

    assert newest is not None
    assert (newest.memory, newest.cpus) == (10 * 1024, None)


def test_of_several_hosts_the_fullest_counts() -> None:
    newest = newest_of(
        JobMetrics.of(
            [
                piece({"RSS": [5], "CPUUtilization": [100]}, [0], host="n1"),
                piece({"RSS": [7], "CPUUtilization": [50]}, [1], host="n2"),
            ]
        )
    )

    assert newest is not None
    assert (newest.memory, newest.cpus) == (7 * 1024, 1.5)


def test_without_samples_nothing_is_known() -> None:
    assert newest_of(JobMetrics.empty()) is None
    assert usages_of(JobMetrics.empty()) == []


def test_of_an_ended_job_each_hosts_peak_is_known_and_on_how_many_samples_it_rests() -> None:
    first, second = usages_of(
        JobMetrics.of(
            [
                piece({"RSS": [900, 1000], "GPUUtilization": [20, 40]}, [0, 1], host="n1", step="0"),
                piece({"RSS": [10] * 9}, range(9), host="n1", step="batch"),
                piece({"RSS": [5, 7, 6]}, [0, 1, 2], host="n2"),
            ]
        )
    )

    assert (first.host, first.memory, first.gpus) == ("n1", 1010 * 1024, (0.3,))
    assert (second.host, second.memory, second.gpus) == ("n2", 7 * 1024, ())
    # Those of the largest task: its script may have many more.
    assert [(one.samples, one.sampled) for one in (first, second)] == [(2, True), (3, False)]
