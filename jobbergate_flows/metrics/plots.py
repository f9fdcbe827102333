"""What a plot of metrics shows: memory, CPU, GPU and disk over time, or their distribution over an array's tasks.

Pure: metrics go in, what is to be drawn comes out, small whatever the size of the job (`drawing` makes SVG of it).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from jobbergate_flows.metrics.aggregation import Band, By, Line, distribution, folded, lines, spread, totals
from jobbergate_flows.metrics.model import JobMetrics
from jobbergate_flows.slurm.steps import Allocation

LINES = 7
"""So many lines a plot has; of more only the `FOLDED` with the largest peaks, and the band of all."""

FOLDED = 4

TOTAL = "all together"
"""The label of the sum of a plot's lines."""

POINTS = 400
"""So many points a line has; of more there are the mean and the range of `PARTS` parts."""

PARTS = 150

_BARS = 30
_MIB = 1024.0**2


class Subject(StrEnum):
    """What a plot is about."""

    MEMORY = "Memory"
    CPU = "CPU"
    GPU = "GPU"
    GPU_MEMORY = "GPU memory"
    DISK = "Disk"


@dataclass(frozen=True, slots=True)
class _Quantity:
    """A measurement as a plot's quantity: `scale` times its value is in `unit`."""

    measurement: str
    unit: str
    scale: float = 1
    what: str = ""


_QUANTITIES = {
    Subject.MEMORY: (_Quantity("RSS", "B", 1024),),
    Subject.CPU: (_Quantity("CPUUtilization", "% of one CPU"),),
    Subject.GPU: (_Quantity("GPUUtilization", "% of one GPU"),),
    Subject.GPU_MEMORY: (_Quantity("GPUMemMB", "B", _MIB),),
    Subject.DISK: (_Quantity("ReadMB", "B/s", _MIB, "read"), _Quantity("WriteMB", "B/s", _MIB, "written")),
}
_BINARY = ((1024.0**4, "TiB"), (1024.0**3, "GiB"), (1024.0**2, "MiB"), (1024.0, "KiB"), (1.0, "B"))


@dataclass(frozen=True, slots=True)
class DrawnLine:
    """One line: values in the plot's unit, each from its time (seconds since the epoch) until the next; None: none.

    Where one value stands for many, `low` and `high` are their range.
    """

    label: str
    times: tuple[int, ...]
    values: tuple[float | None, ...]
    low: tuple[float | None, ...] | None = None
    high: tuple[float | None, ...] | None = None


@dataclass(frozen=True, slots=True)
class DrawnBand:
    """The space between two lines."""

    label: str
    times: tuple[int, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class DrawnBars:
    """A histogram: `counts` of `what` between the neighbours in `edges` (in the plot's unit), and some quantiles."""

    what: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    quantiles: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot: lines over time, or bars.

    `limit` is in the plot's unit, and `limit_label` says what it is.
    """

    title: str
    unit: str
    lines: tuple[DrawnLine, ...] = ()
    band: DrawnBand | None = None
    bars: DrawnBars | None = None
    limit: float | None = None
    limit_label: str = ""
    text: str = ""
    """What it shows in a sentence, for those who do not see it."""


def plots(metrics: JobMetrics, allocations: Sequence[Allocation] = (), *, by: By | None = None) -> list[Plot]:
    """All plots for which there are values: over time for one job, the distribution over its tasks for an array.

    Args:
        metrics: One job's, or those of an array's tasks.
        allocations: What the jobs were given: the limits.
        by: What becomes a line; otherwise hosts if there are several, else steps and tasks.
    """
    several = len({series.job for series in metrics.series}) > 1
    made = []
    for subject in Subject:
        plot = over_tasks(subject, metrics, allocations) if several else over_time(subject, metrics, allocations, by=by)
        if plot is not None:
            made.append(plot)
    return made


def over_time(
    subject: Subject, metrics: JobMetrics, allocations: Sequence[Allocation] = (), *, by: By | None = None
) -> Plot | None:
    """A plot over time; None where there is nothing to show: no values, or no GPU was used.

    Args:
        metrics: One job's.
        allocations: The job's, for the limit.
        by: What becomes a line; otherwise hosts if there are several, else steps and tasks.
    """
    by = by or ("host" if len({series.host for series in metrics.series}) > 1 else "task")
    quantities = _QUANTITIES[subject]
    found: list[Line] = []
    for quantity in quantities:
        of_one = lines(metrics, quantity.measurement, by)
        if by in ("task", "step") and len(of_one) > 1:
            # Only all together compare with what the job was given.
            of_one = [replace(line, label=TOTAL) for line in lines(metrics, quantity.measurement, "job")] + of_one
        if by == "job":
            of_one = [replace(line, label=TOTAL) for line in of_one]
        if quantity.what:
            of_one = [replace(line, label=f"{line.label}, {quantity.what}") for line in of_one]
        found += [Line(line.label, line.time, line.value * quantity.scale) for line in of_one]
    highest = max((_largest(line.value) for line in found), default=-math.inf)
    if highest < 0 or (subject in (Subject.GPU, Subject.GPU_MEMORY) and highest == 0):
        return None
    limit, limit_label = _limit(subject, allocations, by)
    divisor, unit = _unit(max(highest, limit or 0), quantities[0].unit)
    count, what = len(found), "line" if len(found) == 1 else "lines"
    band = None
    if len(found) > LINES:
        if len(quantities) > 1:
            # Peaks of many lines on top of each other tell nothing.
            return over_time(subject, metrics, allocations, by="job")
        found, band = folded(found, FOLDED, f"{by}s")
    return Plot(
        title=subject.value,
        unit=unit,
        lines=tuple(_drawn(line, divisor, alone=band is None) for line in found),
        band=None if band is None else _drawn_band(band, divisor),
        limit=None if limit is None else limit / divisor,
        limit_label=limit_label,
        text=f"{subject.value} over time: at most {_words(highest, quantities[0].unit)} of one of {count} {what}"
        + (f"; {limit_label}" if limit_label else ""),
    )


def over_tasks(subject: Subject, metrics: JobMetrics, allocations: Sequence[Allocation] = ()) -> Plot | None:
    """How an array's tasks are spread: each one's peak, or what it read and wrote; None where there is nothing to show.

    Args:
        metrics: Those of an array's tasks, told apart by `Series.job`.
        allocations: The tasks', for the limit.
    """
    quantity = _QUANTITIES[subject][0]
    if subject is Subject.DISK:
        read, written = (totals(metrics, name, "job") for name in ("ReadMB", "WriteMB"))
        values = np.array([read.get(job, 0) + written.get(job, 0) for job in {**read, **written}])
        unit_name = "B"
    else:
        spread = distribution(metrics, quantity.measurement)
        values = np.array([]) if spread is None else np.array(list(spread.values.values()))
        unit_name = quantity.unit
    if not len(values) or (subject in (Subject.GPU, Subject.GPU_MEMORY) and not values.max()):
        return None
    values = values * quantity.scale
    limit, limit_label = _limit(subject, allocations, "job")
    divisor, unit = _unit(max(float(values.max()), limit or 0), unit_name)
    words = [_words(float(quantile), unit_name) for quantile in np.quantile(values, [0, 0.5, 1])]
    values = values / divisor
    counts, edges = np.histogram(values, bins=_BARS, range=(0, float(values.max()) or 1))
    quantiles = tuple(
        (name, float(np.quantile(values, part))) for name, part in (("median", 0.5), ("95 % of the tasks below", 0.95))
    )
    what = "read and written" if subject is Subject.DISK else "peak"
    return Plot(
        title=f"{subject.value}, {what} of each task",
        unit=unit,
        bars=DrawnBars("tasks", tuple(edges.tolist()), tuple(counts.tolist()), quantiles),
        limit=None if limit is None else limit / divisor,
        limit_label=limit_label,
        text=f"{subject.value} of {len(values)} tasks, {what}: median {words[1]}, from {words[0]} to {words[2]}"
        + (f"; {limit_label}" if limit_label else ""),
    )


def size(value: float) -> str:
    """Bytes for people: `3.5 GiB`."""
    return _words(value, "B")


def _limit(subject: Subject, allocations: Sequence[Allocation], by: By) -> tuple[float | None, str]:
    """What a line of the plot may reach, in the quantity's base unit, and its label."""
    if not allocations:
        return None, ""
    # Of nodes that got different shares the mean: sacct knows the sum alone.
    share = allocations[-1].nodes if by == "host" else 1
    where = " a node" if share > 1 else ""
    memory = [one.memory / share for one in allocations if one.memory is not None]
    if subject is Subject.MEMORY and memory:
        return max(memory), f"{size(max(memory))} requested{where}"
    if subject is Subject.CPU:
        cpus = max(one.cpus for one in allocations) / share
        return 100 * cpus, f"{cpus:g} CPU{'' if cpus == 1 else 's'} allocated{where}"
    gpus = max(one.gpus for one in allocations) / share
    if subject is Subject.GPU and gpus:
        return 100 * gpus, f"{gpus:g} GPU{'' if gpus == 1 else 's'} allocated{where}"
    return None, ""


def _words(value: float, unit: str) -> str:
    divisor, unit = _unit(value, unit)
    return f"{value / divisor:.4g} {unit}"


def _unit(largest: float, unit: str) -> tuple[float, str]:
    """What to divide by, and the unit then."""
    if not unit.startswith("B"):
        return 1, unit
    for divisor, name in _BINARY:
        if largest >= divisor or divisor == 1:
            return divisor, name + unit[1:]
    raise AssertionError


def _largest(values: Sequence[float] | np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    array = np.asarray(values, dtype=np.float64)
    return -math.inf if np.isnan(array).all() else float(np.nanmax(array))


def _drawn(line: Line, divisor: float, *, alone: bool) -> DrawnLine:
    if len(line.time) <= POINTS:
        return DrawnLine(line.label, tuple(line.time.tolist()), _numbers(line.value / divisor))
    mean, band = spread(line, PARTS)
    # The band of all lines has their range already.
    low, high = (_numbers(band.low / divisor), _numbers(band.high / divisor)) if alone else (None, None)
    return DrawnLine(line.label, tuple(mean.time.tolist()), _numbers(mean.value / divisor), low, high)


def _drawn_band(band: Band, divisor: float) -> DrawnBand:
    return DrawnBand(band.label, tuple(band.time.tolist()), _numbers(band.low / divisor), _numbers(band.high / divisor))


def _numbers(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> tuple[float | None, ...]:
    # Seven digits are more than a picture shows.
    return tuple(None if value != value else float(f"{value:.7g}") for value in values.tolist())
