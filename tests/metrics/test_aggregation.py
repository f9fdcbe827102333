"""Lines, peaks, totals, fewer points, distributions."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobbergate_flows.metrics.aggregation import Line, distribution, folded, lines, peaks, spread, thin, totals
from jobbergate_flows.metrics.model import JobMetrics
from tests.metrics.samples import START, piece

TWO_STEPS = JobMetrics.of(
    [
        piece({"RSS": [10, 10, 10]}, [0, 60, 120], step="batch"),
        piece({"RSS": [100, 300]}, [10, 50], task="0"),
        piece({"RSS": [200, 150]}, [11, 51], task="1", host="n2"),
        piece({"RSS": [70]}, [100], step="1"),
        # What a node's file systems did is in no task's sum.
        piece({"RSS": [1e6], "ReadMB": [1e6]}, [50], task="Filesystem"),
    ]
)


def shown(line: Line) -> list[tuple[int, float | None]]:
    values = [None if value != value else value for value in line.value.tolist()]
    return list(zip((line.time - START).tolist(), values, strict=True))


def test_the_jobs_line_is_the_sum_of_what_its_tasks_have_at_a_time() -> None:
    (line,) = lines(TWO_STEPS, "RSS", "job")
    assert line.label == "job 7"
    assert shown(line) == [
        (0, 10),
        (10, 110),
        (11, 310),
        (50, 510),
        # A task's last sample counts for its second.
        (51, 160),
        (52, 10),
        (60, 10),
        (100, 80),
        (101, 10),
        (120, 10),
    ]


def test_lines_are_of_hosts_steps_or_tasks() -> None:
    assert [line.label for line in lines(TWO_STEPS, "RSS", "host")] == ["n1", "n2"]
    assert [line.label for line in lines(TWO_STEPS, "RSS", "step")] == ["batch", "step 0", "step 1"]
    assert [line.label for line in lines(TWO_STEPS, "RSS", "task")] == [
        "n1 batch task 0",
        "n1 step 0 task 0",
        "n1 step 1 task 0",
        "n2 step 0 task 1",
    ]
    assert lines(TWO_STEPS, "Pages", "host") == []
    with pytest.raises(KeyError, match="no measurement"):
        lines(TWO_STEPS, "Memory", "host")


def test_peaks_have_their_time() -> None:
    found = peaks(TWO_STEPS, "RSS", "step")
    assert {label: peak.value for label, peak in found.items()} == {"batch": 10, "step 0": 500, "step 1": 70}
    assert found["step 0"].time == datetime.fromtimestamp(START + 50, UTC)


def test_what_is_counted_between_samples_becomes_a_rate_and_a_total() -> None:
    metrics = JobMetrics.of(
        [piece({"ReadMB": [0, 20, 0, 5]}, [0, 10, 20, 21]), piece({"ReadMB": [0, 30]}, [5, 20], task="1")]
    )
    (line,) = lines(metrics, "ReadMB", "job")
    assert shown(line) == [(0, 2), (5, 4), (10, 2), (20, 5)]
    assert totals(metrics, "ReadMB", "task") == {"task 0": 25, "task 1": 30}
    assert totals(metrics, "WriteMB", "task") == {}


def test_a_frequency_is_no_sum() -> None:
    metrics = JobMetrics.of([piece({"CPUFrequency": [2000]}, [0]), piece({"CPUFrequency": [3000]}, [0], task="1")])
    assert shown(lines(metrics, "CPUFrequency", "job")[0]) == [(0, 2500)]


def test_a_requeue_is_a_gap() -> None:
    metrics = JobMetrics.of([piece({"RSS": [5, 6, 7, 8]}, [0, 10, 4000, 4010])])
    assert shown(lines(metrics, "RSS", "job")[0]) == [(0, 5), (10, 6), (11, None), (4000, 7), (4010, 8)]


samples = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 50), st.integers(0, 10**9)), min_size=1, unique_by=lambda s: s[:2]
)


@given(samples)
def test_a_sum_is_what_adding_up_second_by_second_gives(found: list[tuple[int, int, int]]) -> None:
    by_task: dict[int, list[tuple[int, int]]] = {}
    for task, time, value in found:
        by_task.setdefault(task, []).append((time, value))
    metrics = JobMetrics.of(
        piece({"RSS": [value for _, value in sorted(rows)]}, [time for time, _ in sorted(rows)], task=str(task))
        for task, rows in by_task.items()
    )
    (line,) = lines(metrics, "RSS", "job")
    for second in range(52):
        held = [max(rows_before)[1] for rows in by_task.values() if second <= max(rows)[0]
                and (rows_before := [row for row in rows if row[0] <= second])]  # fmt: skip
        at = np.searchsorted(line.time, START + second, side="right") - 1
        inside = at >= 0 and START + second <= line.time[-1]
        total = float(line.value[at]) if inside else float("nan")
        assert (total == sum(held)) if held else np.isnan(total)


def test_an_arrays_tasks_are_spread() -> None:
    metrics = JobMetrics.of(
        piece({"RSS": [1, task, 2], "ReadMB": [0, 1, task]}, [0, 1, 2], job=f"9_{task}") for task in range(1, 102)
    )
    memory = distribution(metrics, "RSS")
    assert memory is not None
    assert (memory.minimum, memory.lower_quartile, memory.median, memory.maximum) == (2, 26, 51, 101)
    assert memory.values["job 9_50"] == 50
    read = distribution(metrics, "ReadMB")
    assert read is not None
    assert read.maximum == 102
    assert distribution(metrics, "Pages") is None


@given(st.integers(1, 3000), st.integers(8, 300))
def test_a_thinned_line_keeps_its_ends_and_its_peaks(count: int, most: int) -> None:
    values = np.random.default_rng(count * most).normal(size=count)
    values[np.random.default_rng(most).random(count) < 0.2] = np.nan
    line = Line("x", np.arange(count, dtype=np.int64) * 3, values)
    thinned = thin(line, most)
    assert len(thinned.time) <= most
    assert (thinned.time[0], thinned.time[-1]) == (line.time[0], line.time[-1])
    assert (np.diff(thinned.time) > 0).all()
    if not np.isnan(values).all():
        assert np.nanmax(thinned.value) == np.nanmax(values)
        assert np.nanmin(thinned.value) == np.nanmin(values)


def test_a_line_needs_some_points() -> None:
    with pytest.raises(ValueError, match="8 points"):
        thin(lines(TWO_STEPS, "RSS", "job")[0], 7)


def test_a_spread_line_has_the_mean_and_the_range_of_each_part() -> None:
    values = np.array([1, 3, 5, 7, np.nan, np.nan, 9, 1])
    mean, band = spread(Line("x", np.arange(8, dtype=np.int64), values), 4)
    assert mean.time.tolist() == [0, 2, 4, 6, 7]
    assert mean.value[[0, 1, 3, 4]].tolist() == [2, 6, 5, 5]
    assert np.isnan(mean.value[2])
    assert band.low[[0, 1, 3]].tolist() == [1, 5, 1]
    assert band.high[[0, 1, 3]].tolist() == [3, 7, 9]


def test_of_many_lines_the_largest_stay_and_the_band_is_of_all() -> None:
    found = [
        Line(str(number), np.arange(1000, dtype=np.int64), np.full(1000, float(number))) for number in (5, 1, 4, 2, 3)
    ]
    # A peak of a single second.
    found[1].value[777] = 50
    kept, band = folded(found, 2, "hosts")
    assert [line.label for line in kept] == ["5", "1"]
    assert band is not None
    assert band.label == "all 5 hosts"
    assert np.nanmax(band.high) == 50
    assert np.nanmin(band.low) == 1
    assert folded(found, 5, "hosts") == (found, None)
