"""What a running job uses now, by its newest samples."""

from __future__ import annotations

from jobbergate_flows.metrics.model import JobMetrics
from jobbergate_flows.metrics.usage import newest_of
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
