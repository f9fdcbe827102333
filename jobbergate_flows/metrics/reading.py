"""What a reader of metrics is, and reading a job's metrics while it runs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

import numpy as np

from jobbergate_flows.metrics.errors import MetricsRefused
from jobbergate_flows.metrics.model import JobMetrics, Piece, Series

SLACK = timedelta(minutes=1)
"""So far outside a job's start and end its samples are looked for: clocks of nodes and of the controller differ."""

# A slurmstepd keeps up to 16 KiB of samples to itself (22.05: until they are full or a task ends; from 23.11 on at most
# ProfileInfluxDBFrequency, 30 s by default). One of a task has 500 bytes or more, with grouped_fields 250.
_KEPT_SAMPLES = 64
_SHORTEST_OVERLAP = 120
# Longer than samples of five minutes are kept: where only the newest are wanted, nothing older is read.
_LATEST = timedelta(hours=6)


@dataclass(frozen=True, slots=True)
class JobSpan:
    """One job's life, for which samples are read.

    Slurm uses ids again: only its times tell a job's samples from those of an older job with its id.

    Args:
        raw_id: Slurm's own number of the job: for an array task sacct's `JobIDRaw`, not `123_4`.
        since: When it started or, if that is not known, was submitted; aware.
        until: When it ended; aware.
        name: What the samples' `Series.job` shall say, if not the raw id.
    """

    raw_id: str
    since: datetime
    until: datetime
    name: str = ""

    def __post_init__(self) -> None:
        if not (self.raw_id.isascii() and self.raw_id.isdecimal()):
            raise MetricsRefused(
                f"{self.raw_id!r} is no raw job id",
                hint="metrics go by sacct's JobIDRaw, a number",
            )
        for moment in (self.since, self.until):
            if moment.tzinfo is None:
                raise MetricsRefused(f"{moment} has no time zone", hint="give aware datetimes")

    def bounds(self, slack: timedelta) -> tuple[int, int]:
        """The first and the last second, since the epoch, of which samples are the job's."""
        return math.floor((self.since - slack).timestamp()), math.ceil((self.until + slack).timestamp())


@dataclass(frozen=True, slots=True)
class Extent:
    """From when to when there are samples of a series: the times of its first and its last, in seconds since 1970."""

    first: int
    last: int


class MetricsReader(Protocol):
    """Reads the samples that Slurm wrote of jobs."""

    async def read(self, job_id: str, since: datetime, until: datetime) -> JobMetrics:
        """All samples of one job, known to Slurm by this raw id from `since` to `until` (both aware).

        No samples are no error: a job may be too short for one, or its cluster may not write any.

        Raises:
            MetricsUnreachable: The database does not answer now.
            MetricsRefused: It refuses; the message holds its words.
        """

    async def read_many(self, jobs: Sequence[JobSpan]) -> JobMetrics:
        """The samples of several jobs, such as the tasks of an array; `Series.job` tells them apart."""

    async def extents(self, jobs: Sequence[JobSpan]) -> dict[Series, Extent]:
        """From when to when tasks of these jobs were sampled, by what is there now; few points are read for it.

        Series that the jobs' names make one are one. Where several jobs are asked for, an older job with an id of
        theirs is told only by the time of all of them. What has no `model.ALWAYS` is no task.
        """


class MetricsFollower:
    """Reads a running job's samples as they come, each once.

    Slurm's nodes send late: in 22.05 a task's samples wait until there are about thirty of them, or the task ends. So
    each update reads the newest part again, and what is late comes in; `finish` reads all.

    Args:
        job: The job; its `until` does not matter.
        only_newest: Whether only the newest part is kept, the one that is read again: all samples of many tasks over
            days are hundreds of megabytes.
    """

    def __init__(self, reader: MetricsReader, job: JobSpan, *, only_newest: bool = False) -> None:
        self._reader = reader
        self._job = job
        self._only_newest = only_newest
        self.metrics = JobMetrics.empty()
        """What was read by now."""

    async def update(self, now: datetime) -> JobMetrics:
        """Read what came since the last call, and return all that there is by now."""
        since = self._job.since
        if self._only_newest:
            since = max(since, now - _LATEST)
        if len(self.metrics):
            newest = float(self.metrics.time.max())
            since = max(since, datetime.fromtimestamp(newest - _overlap(self.metrics), since.tzinfo))
        return await self._read(since, now)

    async def finish(self, until: datetime) -> JobMetrics:
        """Read all of the ended job, and return it."""
        return await self._read(self._job.since, until)

    async def _read(self, since: datetime, until: datetime) -> JobMetrics:
        span = JobSpan(self._job.raw_id, since, until, self._job.name)
        newer = await self._reader.read_many([span])
        self.metrics = await asyncio.to_thread(self._merged, newer)
        return self.metrics

    def _merged(self, newer: JobMetrics) -> JobMetrics:
        merged = self.metrics.merged(newer)
        if not self._only_newest or not len(merged):
            return merged
        return merged.only(merged.time >= float(merged.time.max()) - _overlap(merged))


def sampling_seconds(metrics: JobMetrics) -> float:
    """How long it usually is from one sample of a task to its next, in seconds; NaN where no task has two."""
    same = np.diff(metrics.index) == 0
    gaps = np.diff(metrics.time)[same]
    return float(np.median(gaps)) if len(gaps) else math.nan


def within(pieces: Iterable[Piece], jobs: Sequence[JobSpan], slack: timedelta) -> Iterable[Piece]:
    """The pieces' samples that are of these jobs by id and time, with the jobs' names."""
    by_id: dict[str, list[JobSpan]] = {}
    for job in jobs:
        by_id.setdefault(job.raw_id, []).append(job)
    for piece in pieces:
        for job in by_id[piece.series.job]:
            first, last = job.bounds(slack)
            inside = (piece.times >= first) & (piece.times <= last)
            if inside.any():
                series = replace(piece.series, job=job.name or job.raw_id)
                yield Piece(series, piece.times[inside], piece.names, piece.values[:, inside])


def extents_of(pieces: Iterable[Piece]) -> dict[Series, Extent]:
    """From when to when there are samples in these pieces."""
    found: dict[Series, Extent] = {}
    for piece in pieces:
        first, last = int(piece.times.min()), int(piece.times.max())
        if known := found.get(piece.series):
            first, last = min(first, known.first), max(last, known.last)
        found[piece.series] = Extent(first, last)
    return found


def _overlap(metrics: JobMetrics) -> float:
    usual = sampling_seconds(metrics)
    return max(_SHORTEST_OVERLAP, 0 if math.isnan(usual) else _KEPT_SAMPLES * usual)
