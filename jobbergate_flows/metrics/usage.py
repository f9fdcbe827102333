"""What samples say of a job's use: for its efficiency, and while it runs. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from jobbergate_flows.metrics.aggregation import lines, peaks
from jobbergate_flows.metrics.efficiency import Usage
from jobbergate_flows.metrics.model import JobMetrics, moment

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
        found.append(Usage(job, host, memory=memory, gpus=tuple(_gpus(there))))
    return found


def newest_of(metrics: JobMetrics) -> Newest | None:
    """What was used last; None where there is no sample of a task's."""
    tasks = metrics.of_tasks()
    if not len(tasks):
        return None
    at = float(tasks.time.max())
    recent = tasks.only(tasks.time >= at - _NOW_SECONDS)
    memory = [line.value[~np.isnan(line.value)] for line in lines(recent, "RSS", "host")]
    cpus = [line.value[~np.isnan(line.value)] for line in lines(recent, "CPUUtilization", "host")]
    last_memory = [float(values[-1]) for values in memory if len(values)]
    last_cpus = [float(values[-1]) for values in cpus if len(values)]
    return Newest(
        memory=max(last_memory) * _KIB if last_memory else None,
        cpus=sum(last_cpus) / 100 if last_cpus else None,
        at=moment(at),
    )


def _gpus(metrics: JobMetrics) -> Iterator[float]:
    used = metrics["GPUUtilization"]
    if np.isnan(used).all() or not np.nanmax(used, initial=0.0) > 0:
        return
    # Slurm has one number for all of a task's GPUs.
    yield float(np.nanmean(used)) / 100
