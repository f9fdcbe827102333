"""Metrics for the Jobbergate API: rows as `jobbergate-agent` 5.12.0 sends them, made of what Slurm writes to InfluxDB.

The API tells of each host, step and task the time of its newest row, and nothing else. So nothing may be sent that is
later than something unsent of the same place: what is read is bounded by what was there before it was read, and rows go
in the order of their times. Whatever interrupts it, what is left is still new at the next look.

    mark = await client.asend(calls.get_metrics_mark(submission_id))
    async for part in unsent(reader, [job], mark.max_times, ended=False):
        for packed in batches(part):
            await client.asend(calls.send_metrics(submission_id, packed))

A row that was sent cannot be changed. Slurm 22.05 writes a sample at a task's end again where one of the same second is
there already; so a place's last second waits for a minute, or for the job's end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import msgpack  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt

from jobbergate_flows.jobbergate.calls import MAX_METRICS_ROWS
from jobbergate_flows.jobbergate.models import MaxTime
from jobbergate_flows.metrics.model import MEASUREMENTS, JobMetrics, Series, moment, step_number
from jobbergate_flows.metrics.reading import Extent, JobSpan, MetricsReader

WAIT = 60
"""Seconds for which a place's last sample waits while the job runs."""

Row: TypeAlias = tuple[int, str, int, int, float, float, float, int, float, int, int, int, int, int]
"""Time in seconds since 1970, host, step, task, and the values of `MEASUREMENTS` in their order and units.

Slurm's batch step is -5, its extern step -4, an interactive one -6.
"""

# Those that the API keeps as a number of 64 bits; steps and tasks have 32 there. More is answered with 500.
_WHOLE = frozenset({"GPUMemMB", "Pages", "RSS", "ReadMB", "VMSize", "WriteMB"})
_ABOVE, _ABOVE_PLACE = 2.0**63, 2**31
# About how many rows are read at once. How densely a job is sampled shows only when it is read; at most it is each
# second.
_READ_ROWS = 100_000
_SHORTEST, _LONGEST = 60, 24 * 3600


class Place(NamedTuple):
    """What the API tells rows apart by, besides their time."""

    host: str
    step: int
    task: int


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be sent of a place: its rows later than `after` up to `until`, both in seconds since 1970."""

    after: int
    until: int


async def unsent(
    reader: MetricsReader, jobs: Sequence[JobSpan], max_times: Iterable[MaxTime], *, ended: bool
) -> AsyncIterator[JobMetrics]:
    """What the API does not have yet of a job, in parts, to be sent in this order by `batches`.

    One look at a running job. Of one that has ended, look until nothing comes, a minute or more after its end: nodes
    send late, and what comes during a look is the next one's. The next look needs the API's `max_times` anew.

    The tasks of an array have their hosts and steps in common, and the API does not tell them apart: their rows are
    summed up, and only once the array has ended.

    Args:
        jobs: The job from its first start until its end or now; of an array, all tasks.
        max_times: What the API has of the job's submission (`calls.get_metrics_mark`).
        ended: Whether all of it has ended.

    Raises:
        MetricsUnreachable: The database does not answer now.
        MetricsRefused: It refuses; the message holds its words.
    """
    if not jobs or (len(jobs) > 1 and not ended):
        return
    together = [JobSpan(job.raw_id, job.since, job.until, jobs[0].raw_id) for job in jobs]
    settled = None if ended else int(jobs[0].until.timestamp()) - WAIT
    dues = due(await reader.extents(together), max_times, settled=settled)
    if not dues:
        return
    begin, last = min(one.after for one in dues.values()) + 1, max(one.until for one in dues.values())
    width = min(max(_SHORTEST, _READ_ROWS // len(dues)), _LONGEST)
    while begin <= last:
        end = min(begin + width - 1, last)
        since, until = moment(begin), moment(end)
        found = await reader.read_many([JobSpan(job.raw_id, since, until, job.name) for job in together])
        rows = await asyncio.to_thread(new_rows, found, dues, begin, end)
        if len(rows):
            yield rows
        width = _next_width(width, len(found))
        begin = end + 1


def due(
    extents: Mapping[Series, Extent], max_times: Iterable[MaxTime], *, settled: int | None = None
) -> dict[Place, Due]:
    """Of which places there is more than the API has. Pure.

    Args:
        extents: From when to when there are samples; places that the API cannot have are left out.
        settled: The last second that no node writes to any more, as far as its clock tells; None where none does.
    """
    newest = {Place(one.node_host, one.step, one.task): one.max_time for one in max_times}
    found = {}
    for series, extent in extents.items():
        if (place := place_of(series)) is None:
            continue
        # A later sample of the same place would show that its second is over.
        until = extent.last if settled is None or extent.last <= settled else extent.last - 1
        after = newest.get(place, extent.first - 1)
        if until > after:
            found[place] = Due(after, until)
    return found


def new_rows(metrics: JobMetrics, dues: Mapping[Place, Due], begin: int, end: int) -> JobMetrics:
    """The samples that are due, from the second `begin` to the second `end` (since 1970). Pure."""
    nothing = Due(0, 0)
    bounds = [dues.get(place, nothing) if (place := place_of(one)) else nothing for one in metrics.series]
    after = np.array([max(one.after, begin - 1) for one in bounds], dtype=np.int64)[metrics.index]
    until = np.array([min(one.until, end) for one in bounds], dtype=np.int64)[metrics.index]
    return metrics.only((metrics.time > after) & (metrics.time <= until))


def batches(metrics: JobMetrics, size: int = MAX_METRICS_ROWS) -> Iterator[bytes]:
    """The rows of these samples in the order of their times, as msgpack: one for each `calls.send_metrics`.

    Args:
        size: The most rows of one.
    """
    columns = _columns(metrics)
    for start in range(0, len(columns[0]), size):
        yield msgpack.packb(_rows([column[start : start + size] for column in columns]))


def rows(metrics: JobMetrics) -> list[Row]:
    """The rows of these samples, ordered by time, host, step and task.

    They are those of the agent's `aggregate_influx_measures`: what was not measured is 0, and so is what Slurm writes
    where it has no number (2^64 - 2). Samples of no task's, as those of file systems, are left out.
    """
    return _rows(_columns(metrics))


def place_of(series: Series) -> Place | None:
    """Where the API has a series' rows; None where it can have none: its steps and tasks are numbers of 32 bits."""
    step = step_number(series.step)
    if step is None or not series.of_a_task:
        return None
    task = int(series.task)
    return Place(series.host, step, task) if abs(step) < _ABOVE_PLACE and task < _ABOVE_PLACE else None


def _columns(metrics: JobMetrics) -> list[npt.NDArray[Any]]:
    """Of each of a row's columns the values, ordered by time."""
    known = np.array([place_of(one) is not None for one in metrics.series], dtype=np.bool_)
    if not known.all():
        metrics = metrics.only(known[metrics.index])
    places = [place for one in metrics.series if (place := place_of(one))]
    order = np.lexsort((metrics.index, metrics.time))
    index = metrics.index[order]
    found = [metrics.time[order]]
    for number, kind in enumerate((object, np.int64, np.int64)):
        found.append(np.array([place[number] for place in places], dtype=kind)[index])
    for measurement, values in zip(MEASUREMENTS, metrics.values, strict=True):
        values = values[order]
        # Not a number: the API takes it, and from then on answers 500 to whoever reads the job's metrics.
        values[~(np.abs(values) < _ABOVE)] = 0
        found.append(values.astype(np.int64) if measurement.name in _WHOLE else values)
    return found


def _rows(columns: Sequence[npt.NDArray[Any]]) -> list[Row]:
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _next_width(width: int, count: int) -> int:
    """Of how many seconds to read next, after so many had so many rows."""
    factor = 4 if count * 4 < _READ_ROWS else 2 if count * 2 < _READ_ROWS else 0.5 if count > 2 * _READ_ROWS else 1
    return min(max(_SHORTEST, int(width * factor)), _LONGEST)


__all__: Sequence[str] = (
    "WAIT",
    "Due",
    "Place",
    "Row",
    "batches",
    "due",
    "new_rows",
    "place_of",
    "rows",
    "unsent",
)
