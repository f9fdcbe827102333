"""What samples say of a job's use: for its efficiency, and while it runs. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from jobbergate_flows.metrics.aggregation import peaks
from jobbergate_flows.metrics.efficiency import Usage
from jobbergate_flows.metrics.model import JobMetrics, moment
from jobbergate_flows.metrics.reading import sampling_seconds

_KIB = 1024
_NOW_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Newest:
    """What a job used when it was last sampled.

    Args:
        memory: Bytes, on the node that used most.
        cpus: CPUs in use, over all nodes.
        at: When that was.
    """

    memory: float | None
    cpus: float | None
    at: datetime


def usages_of(metrics: JobMetrics) -> list[Usage]:
    """The most that each job used at one time on each of its hosts, and its GPUs' mean use there."""
    found = []
    for job, host in dict.fromkeys((one.job, one.host) for one in metrics.series):
        there = metrics.only((metrics.job == job) & (metrics.host == host)).of_tasks()
        most = peaks(there, "RSS", "host")
        memory = int(max(peak.value for peak in most.values()) * _KIB) if most else None
        found.append(Usage(job, host, memory=memory, gpus=tuple(_gpus(there)), samples=_samples(there)))
    return found


def newest_of(metrics: JobMetrics) -> Newest | None:
    """What was used last; None where there is no sample of a task's."""
    tasks = metrics.of_tasks()
    if not len(tasks):
        return None
    at = float(tasks.time.max())
    usual = sampling_seconds(tasks)
    # Each step is sampled at moments of its own: whose last sample is no older than one of them is still there.
    recent = tasks.only(tasks.time >= at - min(_NOW_SECONDS, math.inf if math.isnan(usual) else 1.5 * usual))
    memory, cpus = _last_on_hosts(recent, "RSS"), _last_on_hosts(recent, "CPUUtilization")
    return Newest(
        memory=max(memory.values()) * _KIB if memory else None,
        cpus=sum(cpus.values()) / 100 if cpus else None,
        at=moment(at),
    )


def _last_on_hosts(metrics: JobMetrics, measurement: str) -> dict[str, float]:
    """The sum over each host's tasks of their last values."""
    metrics = metrics.only(~np.isnan(metrics[measurement]))
    found: dict[str, float] = {}
    if len(metrics):
        for row in np.flatnonzero(np.append(np.diff(metrics.index) != 0, [True])):
            host = metrics.series[metrics.index[row]].host
            found[host] = found.get(host, 0.0) + float(metrics[measurement][row])
    return found


def _samples(metrics: JobMetrics) -> int | None:
    """How many samples there are of the task that had the most memory; None where no task was sampled."""
    if not len(metrics):
        return None
    memory = np.nan_to_num(metrics["RSS"], nan=-1.0)
    return int(np.count_nonzero(metrics.index == metrics.index[memory.argmax()]))


def _gpus(metrics: JobMetrics) -> Iterator[float]:
    used = metrics["GPUUtilization"]
    if np.isnan(used).all() or not np.nanmax(used, initial=0.0) > 0:
        return
    # Slurm has one number for all of a task's GPUs.
    yield float(np.nanmean(used)) / 100
