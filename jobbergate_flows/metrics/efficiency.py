"""How much a job used of what it asked for. All of it pure; `advice` says what to ask for the next time.

The figures are accounting's (`slurm/steps.py`), which samples memory: what was measured more closely elsewhere can be
given as `Usage`. What is not known is None and says why: it is never 0.
"""

from __future__ import annotations

import heapq
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from jobbergate_flows.slurm.states import MEANINGS, Finality
from jobbergate_flows.slurm.steps import JobRecord, StepRecord

SHORTEST_SECONDS = 5
"""Elapsed time is in whole seconds: of a shorter job no share of it can be told."""

SAMPLE_SECONDS = 30.0
"""Between two samples of memory, unless the site says otherwise (JobAcctGatherFrequency)."""

FEW_SAMPLES = 3
"""Of fewer samples no peak and no mean can be told."""

_CLEARLY = 1.1


@dataclass(frozen=True, slots=True)
class Usage:
    """What was measured of a job on one host, more closely than by accounting.

    Args:
        job_id: `123`, or `123_4` for an array task.
        host: The node's name.
        task: The task's number within its step; None where the figures are for all of the job's tasks on the host.
        memory: The most at one time, in bytes. Of several tasks on a host their sum is taken.
        gpus: For each GPU of the job there, its mean share of time in use, 0 to 1.
        samples: On how many samples that rests; None where it was measured without pause.
    """

    job_id: str
    host: str
    task: int | None = None
    memory: int | None = None
    gpus: tuple[float, ...] = ()
    samples: int | None = None

    @property
    def sampled(self) -> bool:
        """Whether it rests on so few samples that a peak may be missing."""
        return self.samples is not None and self.samples < FEW_SAMPLES


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Memory in bytes.

    `used` is the most that the job had at one time, `on_a_node` the most on one of its nodes, `largest_task` that of
    one task. `basis` says how they are known; `sampled` that there are few samples, so that a peak may be missing.
    """

    used: int
    on_a_node: int
    largest_task: int | None
    basis: str
    sampled: bool


@dataclass(frozen=True, slots=True)
class JobEfficiency:
    """One job or one array task, in its last life; `earlier` are the ones before a requeue, oldest first.

    `elapsed`, `time_limit` (None: none) and `cpu_time` are seconds, `memory_allocated` bytes of the whole job (None
    where memory is not shared out), `energy` joules. `cpus` counts as Slurm does: hardware threads, where it gives
    those out. `tasks` is the largest number of tasks of a step. `gpu` is the mean share of time in which the job's GPUs
    were in use, `gpu_sampled` that it rests on few samples, `gpu_peak` the largest share that accounting saw in a
    sample. Where `cpu_time` or `memory` is None, `cpu_unknown` or `memory_unknown` says why.
    """

    job_id: str
    state: str
    started: bool
    ended: bool
    start: datetime | None
    end: datetime | None
    elapsed: int
    time_limit: int | None
    cpus: int
    nodes: int
    tasks: int
    gpus: int
    cpu_time: float | None
    cpu_unknown: str | None
    memory: MemoryUse | None
    memory_allocated: int | None
    memory_unknown: str | None
    out_of_memory: bool
    gpu: float | None
    gpu_sampled: bool
    gpu_peak: float | None
    energy: int | None
    earlier: tuple[JobRecord, ...]

    @property
    def busy_cpus(self) -> float | None:
        """How many CPUs were busy on average."""
        return self.cpu_time / self.elapsed if self.cpu_time is not None and self.elapsed else None

    @property
    def cpu(self) -> float | None:
        """CPU time of elapsed time x CPUs."""
        busy = self.busy_cpus
        return busy / self.cpus if busy is not None and self.cpus else None

    @property
    def memory_share(self) -> float | None:
        """Memory used of allocated; above 1 where the site lets jobs use more than they asked for."""
        return self.memory.used / self.memory_allocated if self.memory and self.memory_allocated else None

    @property
    def time(self) -> float | None:
        """Elapsed time of the time limit."""
        return self.elapsed / self.time_limit if self.time_limit and self.started else None


@dataclass(frozen=True, slots=True)
class Spread:
    """How a share lies over an array's tasks; `worst` is the task with the smallest, `known` how many are known."""

    minimum: float
    median: float
    maximum: float
    worst: str
    known: int


@dataclass(frozen=True, slots=True)
class Efficiency:
    """A job, or an array with its tasks in order."""

    job_id: str
    jobs: tuple[JobEfficiency, ...]

    @property
    def cpu(self) -> Spread | None:
        """Of CPU time."""
        return _spread((job.cpu, job.job_id) for job in self.jobs)

    @property
    def memory(self) -> Spread | None:
        """Of memory."""
        return _spread((job.memory_share, job.job_id) for job in self.jobs)

    @property
    def time(self) -> Spread | None:
        """Of the time limit; of ended tasks only."""
        return _spread((job.time if job.ended else None, job.job_id) for job in self.jobs)


def efficiency(
    records: Sequence[JobRecord], *, usages: Sequence[Usage] = (), sample_seconds: float = SAMPLE_SECONDS
) -> Efficiency:
    """The report on one job or array.

    Args:
        records: All that `Cluster.steps` gives of it.
        usages: What was measured elsewhere; a job's memory is taken from there when any is given for it, and so are
            its GPUs.
        sample_seconds: The site's interval between samples of memory; a peak may be missing from steps of less than
            two of them.

    Raises:
        ValueError: There are no records.
    """
    if not records:
        raise ValueError("no job to report on: accounting has no record of it")
    measured: defaultdict[str, list[Usage]] = defaultdict(list)
    for usage in usages:
        measured[usage.job_id].append(usage)
    lives: defaultdict[str, list[JobRecord]] = defaultdict(list)
    for record in records:
        lives[record.job_id].append(record)
    jobs = []
    for job_id, of_job in lives.items():
        *earlier, last = sorted(of_job, key=lambda life: life.submit.timestamp() if life.submit else 0.0)
        jobs.append(_job(last, tuple(earlier), measured[job_id], sample_seconds))
    jobs.sort(key=lambda job: _task_number(job.job_id))
    name = jobs[0].job_id if len(jobs) == 1 else jobs[0].job_id.partition("_")[0].partition("+")[0]
    return Efficiency(name, tuple(jobs))


def _job(
    record: JobRecord, earlier: tuple[JobRecord, ...], usages: Sequence[Usage], sample_seconds: float
) -> JobEfficiency:
    meaning = MEANINGS.get(record.state)
    ended = meaning is not None and meaning.finality is not Finality.NEVER
    # A job that was cancelled while it waited has a start, but got nothing.
    started = record.start is not None and bool(record.steps or record.elapsed or record.allocated)
    unknown = _unknown(record, started=started, ended=ended)
    cpu_times = [step.total_cpu for step in record.steps if step.total_cpu is not None]
    cpu_time = sum(cpu_times) if cpu_times else record.total_cpu
    cpu_unknown = unknown or _too_short(record) or ("accounting has none" if cpu_time is None else None)
    # What accounting has of a running job are the steps that are over.
    memory = _memory(record if ended else replace(record, steps=()), usages, sample_seconds) if started else None
    memory_unknown = None if memory else unknown or _too_short(record) or "accounting has no sample of it"
    gpu_shares = [share for usage in usages for share in usage.gpus]
    peaks = [step.usage_max["gres/gpuutil"] for step in record.steps if "gres/gpuutil" in step.usage_max]
    return JobEfficiency(
        job_id=record.job_id,
        state=record.state,
        started=started,
        ended=ended,
        start=record.start if started else None,
        end=record.end if started else None,
        elapsed=record.elapsed,
        time_limit=record.time_limit * 60 if record.time_limit else None,
        cpus=record.cpus,
        nodes=record.nodes,
        tasks=max((step.tasks or 1 for step in record.steps), default=1),
        gpus=_gpus(record),
        cpu_time=None if cpu_unknown else cpu_time,
        cpu_unknown=cpu_unknown,
        memory=memory,
        memory_allocated=record.allocated.get("mem") or None,
        memory_unknown=memory_unknown,
        out_of_memory="OUT_OF_MEMORY" in (record.state, *(step.state for step in record.steps)),
        gpu=statistics.fmean(gpu_shares) if gpu_shares else None,
        gpu_sampled=any(usage.sampled for usage in usages if usage.gpus),
        gpu_peak=max(peaks) / 100 if peaks and not unknown else None,
        energy=record.energy or max((step.energy or 0 for step in record.steps), default=0) or None,
        earlier=earlier,
    )


def _unknown(record: JobRecord, *, started: bool, ended: bool) -> str | None:
    if not started:
        return "it never started" if ended else "it has not started yet"
    return None if ended else "known when it has ended"


def _too_short(record: JobRecord) -> str | None:
    if record.elapsed >= SHORTEST_SECONDS:
        return None
    return f"too short to be measured ({record.elapsed} s)"


def _memory(record: JobRecord, usages: Sequence[Usage], sample_seconds: float) -> MemoryUse | None:
    by_host: defaultdict[str, int] = defaultdict(int)
    for usage in usages:
        by_host[usage.host] += usage.memory or 0
    largest_task = max((step.max_rss or 0 for step in record.steps), default=0)
    # Where accounting saw clearly more in a single task, the samples have missed the peak: a short job may have
    # only the one at its start.
    if any(by_host.values()) and _CLEARLY * max(by_host.values()) >= largest_task:
        tasks = [usage.memory for usage in usages if usage.task is not None and usage.memory]
        summed = "tasks' peaks, measured and summed up" if tasks else "measured on each node"
        return MemoryUse(
            sum(by_host.values()),
            max(by_host.values()),
            max(tasks, default=None),
            summed,
            sampled=any(usage.sampled for usage in usages if usage.memory),
        )
    sized = [step for step in record.steps if _step_memory(step)]
    if not sized:
        return None
    largest = max(sized, key=_step_memory)
    used = _at_once(sized, _step_memory)
    return MemoryUse(
        used=used,
        on_a_node=min(used, _at_once(sized, _step_memory_on_a_node)),
        largest_task=max((step.max_rss for step in sized if step.max_rss), default=None),
        basis="tasks' largest samples summed up" if (largest.tasks or 1) > 1 else "largest sample",
        sampled=largest.elapsed < 2 * sample_seconds,
    )


def _step_memory(step: StepRecord) -> int:
    """All tasks' largest samples together, as if they had been at the same moment: 0 where there is none."""
    return step.usage_total.get("mem") or (step.max_rss or 0) * (step.tasks or 1)


def _step_memory_on_a_node(step: StepRecord) -> int:
    """The largest task as often as the fullest node may have tasks."""
    per_node = math.ceil((step.tasks or 1) / (step.nodes or 1))
    return min(_step_memory(step), (step.max_rss or _step_memory(step)) * per_node)


def _at_once(steps: Iterable[StepRecord], size: Callable[[StepRecord], int]) -> int:
    """The largest sum over steps that ran at the same time; of steps one after another, the largest."""
    alive: list[tuple[float, int]] = []
    now = most = 0
    for step in sorted(steps, key=lambda step: step.start.timestamp() if step.start else 0.0):
        start = step.start.timestamp() if step.start else 0.0
        while alive and alive[0][0] <= start:
            now -= heapq.heappop(alive)[1]
        heapq.heappush(alive, (step.end.timestamp() if step.end else math.inf, size(step)))
        now += size(step)
        most = max(most, now)
    return most


def _gpus(record: JobRecord) -> int:
    if "gres/gpu" in record.allocated:
        return record.allocated["gres/gpu"]
    return sum(count for name, count in record.allocated.items() if name.startswith("gres/gpu:"))


def _spread(shares: Iterable[tuple[float | None, str]]) -> Spread | None:
    known = [(share, job_id) for share, job_id in shares if share is not None]
    if not known:
        return None
    values = [share for share, _ in known]
    return Spread(min(values), statistics.median(values), max(values), min(known, key=lambda k: k[0])[1], len(known))


def _task_number(job_id: str) -> tuple[int, str]:
    task = job_id.partition("_")[2]
    return (int(task), job_id) if task.isdigit() else (-1, job_id)
