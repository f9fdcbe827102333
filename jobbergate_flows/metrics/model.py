"""A job's metrics as columns: what Slurm's `acct_gather_profile/influxdb` measures, one row for each sample of a task.

The measurements and their units are those of Slurm's `jobacct_gather` plugins (`_record_profile` in Slurm's source, and
measured on 22.05). A sample covers one task of one step on one host.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Self, TextIO

import numpy as np
import numpy.typing as npt

from jobbergate_flows.metrics.errors import LibraryMissing

if TYPE_CHECKING:
    import pandas

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
TextArray = npt.NDArray[np.str_]

_CSV_ROWS = 10_000


class Kind(StrEnum):
    """What one value of a measurement says."""

    LEVEL = "level"
    """How it is at the sample's time."""
    AMOUNT = "amount"
    """How much was used since the task's sample before; 0 in its first one."""
    COUNT = "count"
    """How many since the task's start."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One of Slurm's measurements, by Slurm's name for it."""

    name: str
    unit: str
    kind: Kind


MEASUREMENTS = (
    Measurement("CPUFrequency", "MHz", Kind.LEVEL),
    Measurement("CPUTime", "s", Kind.AMOUNT),
    Measurement("CPUUtilization", "% of one CPU", Kind.LEVEL),
    Measurement("GPUMemMB", "MiB", Kind.LEVEL),
    Measurement("GPUUtilization", "% of one GPU", Kind.LEVEL),
    Measurement("Pages", "major page faults", Kind.COUNT),
    Measurement("RSS", "KiB", Kind.LEVEL),
    Measurement("ReadMB", "MiB", Kind.AMOUNT),
    Measurement("VMSize", "KiB", Kind.LEVEL),
    Measurement("WriteMB", "MiB", Kind.AMOUNT),
)
"""In the order of Jobbergate's metrics. `CPUUtilization` is of the time since the sample before."""

NAMES = tuple(measurement.name for measurement in MEASUREMENTS)

ALWAYS = "RSS"
"""What no sample of a task is without: Slurm writes all its measurements at once (`_record_profile`)."""

_STEPS = {-4: "extern", -5: "batch", -6: "interactive"}


def step_name(tag: str) -> str:
    """Slurm's name of a step by the tag that its profile writes.

    Slurm 22.05 writes the batch step as `-5`, later versions as `4294967291`, and with `grouped_fields` as `batch`;
    the extern step is -4, the interactive one -6 (`SLURM_EXTERN_CONT`, `SLURM_INTERACTIVE_STEP`).
    """
    if not re.fullmatch(r"-?[0-9]{1,10}", tag):
        return tag
    number = int(tag)
    return _STEPS.get(number - 2**32 if number >= 2**31 else number, tag)


def step_number(name: str) -> int | None:
    """The number that Slurm's C code has for a step of this name: `batch` is -5; None where it is no step's name."""
    for number, special in _STEPS.items():
        if name == special:
            return number
    return int(name) if re.fullmatch(r"-?[0-9]{1,10}", name) else None


@dataclass(frozen=True, slots=True)
class Series:
    """Whose samples they are.

    `job` is the id as sacct shows it (`123`, or `123_4` for an array task), where it is known, else the raw one.
    `step` is `batch`, `extern`, `interactive` or a number. `task` is the task's number in its step; what a node's file
    systems did is written with the task `Filesystem`.
    """

    job: str
    host: str
    step: str
    task: str

    @property
    def of_a_task(self) -> bool:
        """Whether these are a task's samples, and no second count of them for the whole node."""
        return self.task.isdecimal()

    @property
    def order(self) -> tuple[object, ...]:
        """What to sort by: numbers as numbers, batch before the steps that it starts."""
        step = int(self.step) if self.step.isdecimal() else -1
        task = int(self.task) if self.task.isdecimal() else -1
        return _natural(self.job), _natural(self.host), step, self.step, task, self.task


@dataclass(frozen=True, slots=True)
class Piece:
    """Samples as they come from a database.

    Args:
        times: Seconds since the epoch, shape (n,).
        names: The measurements that `values` holds.
        values: Shape (len(names), n); NaN where a sample lacks one.
    """

    series: Series
    times: IntArray
    names: tuple[str, ...]
    values: FloatArray


@dataclass(frozen=True, eq=False)
class JobMetrics:
    """A job's samples as columns, ordered by job, host, step, task and time, each (series, time) once.

    Args:
        series: Whose samples there are.
        index: For each row its place in `series`, shape (n,).
        time: Seconds since the epoch (UTC), shape (n,).
        values: Shape (10, n), in the order of `MEASUREMENTS` and in their units; NaN where there is no value.
    """

    series: tuple[Series, ...]
    index: IntArray
    time: IntArray
    values: FloatArray

    def __post_init__(self) -> None:
        for array in (self.index, self.time, self.values):
            array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.time)

    def __getitem__(self, measurement: str) -> FloatArray:
        """One measurement's column, shape (n,), in its unit.

        Raises:
            KeyError: Slurm has no such measurement.
        """
        if measurement not in NAMES:
            raise KeyError(f"{measurement!r} is no measurement; they are {', '.join(NAMES)}")
        column: FloatArray = self.values[NAMES.index(measurement)]
        return column

    @cached_property
    def job(self) -> TextArray:
        """The job of each row, shape (n,)."""
        return self._texts("job")

    @cached_property
    def host(self) -> TextArray:
        """The host of each row, shape (n,)."""
        return self._texts("host")

    @cached_property
    def step(self) -> TextArray:
        """The step of each row, shape (n,)."""
        return self._texts("step")

    @cached_property
    def task(self) -> TextArray:
        """The task of each row, shape (n,)."""
        return self._texts("task")

    def _texts(self, name: str) -> TextArray:
        return np.array([getattr(series, name) for series in self.series], dtype=np.str_)[self.index]

    @classmethod
    def empty(cls) -> Self:
        """No samples."""
        return cls((), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((len(NAMES), 0)))

    @classmethod
    def of(cls, pieces: Iterable[Piece]) -> Self:
        """Put pieces together; several values of one measurement, series and time are summed, as Jobbergate does."""
        found = [piece for piece in pieces if len(piece.times)]
        if not found:
            return cls.empty()
        series = sorted({piece.series for piece in found}, key=lambda one: one.order)
        codes = {one: code for code, one in enumerate(series)}
        first = min(int(piece.times.min()) for piece in found)
        span = max(int(piece.times.max()) for piece in found) - first + 1
        # A row is one number: to find the rows of many pieces is then to sort numbers.
        by_names: dict[tuple[str, ...], list[tuple[IntArray, FloatArray]]] = {}
        for piece in found:
            rows = codes[piece.series] * span + (piece.times - first)
            by_names.setdefault(piece.names, []).append((rows, piece.values))
        del found
        groups = {names: np.concatenate([rows for rows, _ in group]) for names, group in by_names.items()}
        distinct = [np.unique(rows) for rows in groups.values()]
        rows = distinct[0] if len(distinct) == 1 else np.unique(np.concatenate(distinct))
        values = np.full((len(NAMES), len(rows)), np.nan)
        for names, group in by_names.items():
            places = np.searchsorted(rows, groups.pop(names))
            for number, name in enumerate(names):
                _add(values[NAMES.index(name)], places, np.concatenate([part[number] for _, part in group]))
        return cls(tuple(series), rows // span, rows % span + first, values)

    def merged(self, newer: JobMetrics) -> JobMetrics:
        """These samples and newer ones of the same job, each (series, time) once.

        Where both have a row, what the newer has of it counts.
        """
        if not len(self) or not len(newer):
            return newer if not len(self) else self
        series = sorted({*self.series, *newer.series}, key=lambda one: one.order)
        codes = {one: code for code, one in enumerate(series)}
        first = min(int(self.time.min()), int(newer.time.min()))
        span = max(int(self.time.max()), int(newer.time.max())) - first + 1

        def numbered(metrics: JobMetrics) -> IntArray:
            own = np.array([codes[one] for one in metrics.series], dtype=np.int64)
            return own[metrics.index] * span + (metrics.time - first)

        old, new = numbered(self), numbered(newer)
        rows = np.union1d(old, new)
        values = np.full((len(NAMES), len(rows)), np.nan)
        values[:, np.searchsorted(rows, old)] = self.values
        places = np.searchsorted(rows, new)
        values[:, places] = np.where(np.isnan(newer.values), values[:, places], newer.values)
        return JobMetrics(tuple(series), rows // span, rows % span + first, values)

    def only(self, wanted: npt.NDArray[np.bool_]) -> JobMetrics:
        """The rows for which `wanted`, shape (n,), is true; series without any are left out."""
        kept, index = np.unique(self.index[wanted], return_inverse=True)
        series = tuple(self.series[code] for code in kept)
        return JobMetrics(series, index.astype(np.int64), self.time[wanted], self.values[:, wanted])

    def of_tasks(self) -> JobMetrics:
        """The rows of tasks alone, which may be added up (see `Series.of_a_task`)."""
        if all(series.of_a_task for series in self.series):
            return self
        return self.only(np.array([series.of_a_task for series in self.series], dtype=np.bool_)[self.index])

    def to_csv(self, file: TextIO | None = None) -> str:
        """CSV with a header: time (UTC, ISO 8601), job, host, step, task, and the measurements with their units.

        Args:
            file: Where to write it, opened with `newline=""`; nothing is returned then.
        """
        target = file if file is not None else io.StringIO()
        writer = csv.writer(target, lineterminator="\n")
        units = [f"{measurement.name} ({measurement.unit})" for measurement in MEASUREMENTS]
        writer.writerow(["time", "job", "host", "step", "task", *units])
        keys = [(one.job, one.host, one.step, one.task) for one in self.series]
        for start in range(0, len(self), _CSV_ROWS):
            rows = slice(start, start + _CSV_ROWS)
            times = np.datetime_as_string(self.time[rows].astype("datetime64[s]"), timezone="UTC").tolist()
            columns = self.values[:, rows].T.tolist()
            writer.writerows(
                [time, *keys[code], *map(_csv_number, numbers)]
                for time, code, numbers in zip(times, self.index[rows].tolist(), columns, strict=True)
            )
        return "" if file is not None else target.getvalue()  # type: ignore[attr-defined]

    def to_dataframe(self) -> pandas.DataFrame:
        """A pandas data frame: `time` (UTC), categories `job`, `host`, `step`, `task`, and the measurements.

        Raises:
            LibraryMissing: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise LibraryMissing(
                "a data frame needs pandas, which is not installed", hint="pip install pandas, or use to_csv"
            ) from error
        columns: dict[str, object] = {"time": pandas.to_datetime(self.time, unit="s", utc=True)}
        for name in ("job", "host", "step", "task"):
            words = [str(getattr(series, name)) for series in self.series]
            distinct: list[str] = list(dict.fromkeys(words))
            codes = np.array([distinct.index(word) for word in words], dtype=np.int64)
            columns[name] = pandas.Categorical.from_codes(codes[self.index], categories=pandas.Index(distinct))
        columns |= {name: self.values[number] for number, name in enumerate(NAMES)}
        return pandas.DataFrame(columns)


def moment(seconds: float) -> datetime:
    """A sample's time as an aware datetime (UTC)."""
    return datetime.fromtimestamp(seconds, UTC)


def _add(column: FloatArray, places: IntArray, values: FloatArray) -> None:
    """Write values into their places of an empty column; those of one place are summed, NaN adds nothing."""
    there = ~np.isnan(values)
    if not there.all():
        places, values = places[there], values[there]
    counts = np.bincount(places, minlength=len(column))
    if len(counts) and counts.max() > 1:
        sums: FloatArray = np.bincount(places, weights=values, minlength=len(column)).astype(np.float64)
        places = np.flatnonzero(counts).astype(np.int64)
        values = sums[places]
    before = column[places]
    column[places] = np.where(np.isnan(before), values, before + values)


def _natural(text: str) -> tuple[tuple[int, str], ...]:
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", text))


def _csv_number(value: float) -> str | int | float:
    if value != value:
        return ""
    return int(value) if value.is_integer() else value


__all__: Sequence[str] = (
    "ALWAYS",
    "MEASUREMENTS",
    "NAMES",
    "FloatArray",
    "IntArray",
    "JobMetrics",
    "Kind",
    "Measurement",
    "Piece",
    "Series",
    "moment",
    "step_name",
    "step_number",
)
