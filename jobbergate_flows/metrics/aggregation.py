"""What people look at: lines over time for each node, step or task, peaks, fewer points, an array's distribution.

Tasks are sampled at different moments. To add them up, a sample counts from its time until the task's next one; where
the next is far off (a requeue), or there is none, it counts for its own second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np

from jobbergate_flows.metrics.model import (
    MEASUREMENTS,
    NAMES,
    FloatArray,
    IntArray,
    JobMetrics,
    Kind,
    Series,
    moment,
)
from jobbergate_flows.metrics.reading import sampling_seconds

By = Literal["job", "host", "step", "task"]

# A gap between two samples of a task that is longer than so many usual ones, and than so many seconds, is no sampling.
_GAP_SAMPLES = 10
_GAP_SECONDS = 120
_BAND_POINTS = 200


@dataclass(frozen=True, eq=False)
class Line:
    """A value over time: each counts from its time until the next.

    Args:
        time: Seconds since the epoch, ascending, shape (n,).
        value: Shape (n,); NaN where there is none until the next time.
    """

    label: str
    time: IntArray
    value: FloatArray


@dataclass(frozen=True, eq=False)
class Band:
    """Between which values many lines lie over time; arrays of one shape (n,), NaN where there is no line."""

    label: str
    time: IntArray
    low: FloatArray
    high: FloatArray


@dataclass(frozen=True, slots=True)
class Peak:
    """The largest value, in the unit of its line, and when it was first reached."""

    value: float
    time: datetime


@dataclass(frozen=True, slots=True)
class Distribution:
    """One number for each of several jobs, such as the tasks of an array, in the measurement's unit.

    `values` is by the job's id; the others are its quantiles.
    """

    values: Mapping[str, float]
    minimum: float
    lower_quartile: float
    median: float
    upper_quartile: float
    maximum: float


def lines(metrics: JobMetrics, measurement: str, by: By) -> list[Line]:
    """A measurement over time: the sum over the tasks of each job, host (of a job), step (on all hosts) or task.

    What is counted between two samples (`CPUTime`, `ReadMB`, `WriteMB`) becomes a rate a second; a frequency is the
    tasks' mean. A line for which there is no value is left out.

    Args:
        measurement: One of `NAMES`.
        by: What becomes a line.

    Returns:
        The lines in the order of jobs, hosts, steps and tasks; values in the measurement's unit, or that a second.
    """
    metrics = metrics.of_tasks()
    labels, codes = _groups(metrics.series, by)
    there = ~np.isnan(metrics[measurement])
    values, index, time = metrics[measurement][there], metrics.index[there], metrics.time[there]
    if not len(values):
        return []
    if _measurement_kind(measurement) is Kind.AMOUNT:
        begin, end, values, index = _rates(values, index, time)
    else:
        begin, end = time, _ends(index, time, sampling_seconds(metrics))
    groups = codes[index]
    return [
        Line(labels[group], *_sum(begin[chosen], end[chosen], values[chosen], mean=measurement == "CPUFrequency"))
        for group, chosen in _split(groups, len(labels))
        if chosen.size
    ]


def peaks(metrics: JobMetrics, measurement: str, by: By) -> dict[str, Peak]:
    """The largest value of each of `lines`, by its label."""
    found = {}
    for line in lines(metrics, measurement, by):
        if not np.isnan(line.value).all():
            place = int(np.nanargmax(line.value))
            found[line.label] = Peak(float(line.value[place]), moment(int(line.time[place])))
    return found


def totals(metrics: JobMetrics, measurement: str, by: By) -> dict[str, float]:
    """The sum of what is counted between samples (`CPUTime` in s, `ReadMB` and `WriteMB` in MiB), by label."""
    metrics = metrics.of_tasks()
    labels, codes = _groups(metrics.series, by)
    there = ~np.isnan(metrics[measurement])
    if not there.any():
        return {}
    groups = codes[metrics.index[there]]
    sums = np.bincount(groups, weights=metrics[measurement][there], minlength=len(labels))
    present = np.bincount(groups, minlength=len(labels)) > 0
    return {label: float(total) for label, total, some in zip(labels, sums, present, strict=True) if some}


def distribution(metrics: JobMetrics, measurement: str) -> Distribution | None:
    """A measurement over the jobs, such as the tasks of an array: each one's peak, or total of what is counted.

    None where no job has a value.
    """
    if _measurement_kind(measurement) is Kind.AMOUNT:
        values = totals(metrics, measurement, "job")
    else:
        values = {job: peak.value for job, peak in peaks(metrics, measurement, "job").items()}
    if not values:
        return None
    quantiles = np.quantile(list(values.values()), [0, 0.25, 0.5, 0.75, 1])
    return Distribution(values, *(float(quantile) for quantile in quantiles))


def thin(line: Line, most: int) -> Line:
    """The line with at most `most` points (8 or more): the first and last, and each part's smallest and largest value.

    Raises:
        ValueError: `most` is less than 8.
    """
    if most < 8:
        raise ValueError(f"a line needs 8 points or more, not {most}")
    count = len(line.time)
    if count <= most:
        return line
    buckets = most // 2 - 1
    edges = np.linspace(0, count, buckets + 1).astype(np.int64)
    width = int(np.diff(edges).max())
    # Rows of one width, the last value of a short one twice.
    places = np.minimum(edges[:-1, None] + np.arange(width), edges[1:, None] - 1)
    values = line.value[places]
    hidden = np.isnan(values)
    low = np.where(hidden, np.inf, values).argmin(axis=1)
    high = np.where(hidden, -np.inf, values).argmax(axis=1)
    rows = np.arange(buckets)
    kept = np.unique(np.concatenate([[0, count - 1], places[rows, low], places[rows, high]]))
    return Line(line.label, line.time[kept], line.value[kept])


def spread(line: Line, parts: int) -> tuple[Line, Band]:
    """A line's mean, and between which values it lies, in so many parts of equally many points.

    A part without any value is NaN in both. Unlike `thin` this stays readable where values go up and down all the time.
    """
    edges = np.unique(np.linspace(0, len(line.time), parts + 1).astype(np.int64))[:-1]
    there = ~np.isnan(line.value)
    counts = np.add.reduceat(there.astype(np.float64), edges)
    sums = np.add.reduceat(np.where(there, line.value, 0), edges)
    mean = np.divide(sums, counts, out=np.full(len(edges), np.nan), where=counts > 0)
    low, high = np.fmin.reduceat(line.value, edges), np.fmax.reduceat(line.value, edges)
    # The last part ends where the line does.
    time = np.append(line.time[edges], line.time[-1])
    mean, low, high = (np.append(values, values[-1]) for values in (mean, low, high))
    return Line(line.label, time, mean), Band(line.label, time, low, high)


def folded(found: Sequence[Line], most: int, what: str) -> tuple[list[Line], Band | None]:
    """At most `most` lines, those with the largest peaks in their order; and where there are more, the band of all.

    Args:
        what: What the lines are, for the band's label: `hosts`.
    """
    if len(found) <= most:
        return list(found), None
    by_peak = sorted(found, key=lambda line: -_largest(line))
    chosen = {id(line) for line in by_peak[:most]}
    start = min(int(line.time[0]) for line in found)
    stop = max(int(line.time[-1]) for line in found)
    time = np.unique(np.linspace(start, stop, _BAND_POINTS).astype(np.int64))
    low, high = np.full(len(time), np.inf), np.full(len(time), -np.inf)
    for line in found:
        # A peak between two points of the band counts for the point before it.
        smallest, largest = _extremes(line, time)
        low, high = np.fmin(low, smallest), np.fmax(high, largest)
    hidden = ~np.isfinite(low)
    low[hidden], high[hidden] = np.nan, np.nan
    return [line for line in found if id(line) in chosen], Band(f"all {len(found)} {what}", time, low, high)


def _measurement_kind(measurement: str) -> Kind:
    if measurement not in NAMES:
        raise KeyError(f"{measurement!r} is no measurement; they are {', '.join(NAMES)}")
    return MEASUREMENTS[NAMES.index(measurement)].kind


def _groups(series: Sequence[Series], by: By) -> tuple[list[str], IntArray]:
    """The labels of the groups, in order, and the group of each series."""
    several = len({one.job for one in series}) > 1
    hosts = len({one.host for one in series}) > 1
    steps = len({one.step for one in series}) > 1

    def label(one: Series) -> str:
        words = [f"job {one.job}"] if several or by == "job" else []
        if by == "host" or (by == "task" and hosts):
            words.append(one.host)
        if by == "step" or (by == "task" and steps):
            words.append(one.step if not one.step.isdecimal() else f"step {one.step}")
        if by == "task":
            words.append(f"task {one.task}")
        return " ".join(words)

    found = [label(one) for one in series]
    labels = list(dict.fromkeys(found))
    places = {text: place for place, text in enumerate(labels)}
    return labels, np.array([places[text] for text in found], dtype=np.int64)


def _ends(index: IntArray, time: IntArray, usual: float) -> IntArray:
    """Until when each sample counts."""
    longest = _GAP_SECONDS if math.isnan(usual) else max(_GAP_SECONDS, _GAP_SAMPLES * usual)
    end = time + 1
    goes_on = (np.diff(index) == 0) & (np.diff(time) <= longest)
    end[:-1][goes_on] = time[1:][goes_on]
    return end


def _rates(values: FloatArray, index: IntArray, time: IntArray) -> tuple[IntArray, IntArray, FloatArray, IntArray]:
    """From when until when each sample's amount was used, how much a second, and the series."""
    follows = np.flatnonzero(np.diff(index) == 0) + 1
    begin, end = time[follows - 1], time[follows]
    return begin, end, values[follows] / (end - begin), index[follows]


def _split(groups: IntArray, count: int) -> list[tuple[int, IntArray]]:
    """The rows of each group."""
    order = np.argsort(groups, kind="stable")
    edges = np.searchsorted(groups[order], np.arange(count + 1))
    return [(group, order[edges[group] : edges[group + 1]]) for group in range(count)]


def _sum(begin: IntArray, end: IntArray, values: FloatArray, *, mean: bool) -> tuple[IntArray, FloatArray]:
    """The sum over time of values that each count from a beginning to an end."""
    times, places = np.unique(np.concatenate([begin, end]), return_inverse=True)
    weights = np.concatenate([values, -values])
    count = np.cumsum(np.bincount(places, weights=np.repeat([1.0, -1.0], len(values))))
    total: FloatArray = np.cumsum(np.bincount(places, weights=weights)).astype(np.float64)
    # What is left of numbers that were added and taken away again is no value.
    total[np.abs(total) < 1e-9 * np.abs(values).max()] = 0
    if mean:
        total = np.divide(total, count, out=np.zeros_like(total), where=count > 0.5)
    total[count < 0.5] = np.nan
    return times[:-1].astype(np.int64), total[:-1]


def _largest(line: Line) -> float:
    return -math.inf if np.isnan(line.value).all() else float(np.nanmax(line.value))


def _extremes(line: Line, time: IntArray) -> tuple[FloatArray, FloatArray]:
    """The line's smallest and largest value from each time until the next."""
    last = len(line.time) - 1
    held = np.clip(np.searchsorted(line.time, time, side="right") - 1, 0, last)
    values = np.where((time >= line.time[0]) & (time <= line.time[-1]), line.value[held], np.nan)
    low, high = values.copy(), values.copy()
    bucket = np.searchsorted(time, line.time, side="right") - 1
    inside = (bucket >= 0) & ~np.isnan(line.value)
    np.fmin.at(low, bucket[inside], line.value[inside])
    np.fmax.at(high, bucket[inside], line.value[inside])
    return low, high
