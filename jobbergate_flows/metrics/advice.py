"""What to ask for the next time, in sentences with numbers. All of it pure.

Less is advised only where at most half was used, for what every task has shown, with at least 20 % above it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from jobbergate_flows.metrics.efficiency import Efficiency, JobEfficiency
from jobbergate_flows.slurm.units import duration_text, size_text

_ENOUGH = 0.5
_HEADROOM = 1.25
_MORE = 1.5
_IDLE = 0.1
_GIB, _HUNDRED_MIB = 1024**3, 100 * 1024**2


def advise(report: Efficiency) -> tuple[str, ...]:
    """Sentences on one job or array; none while any of it waits or runs, and none without the figures for it."""
    if not all(job.ended for job in report.jobs):
        return ()
    jobs = [job for job in report.jobs if job.started]
    done = [job for job in jobs if job.state == "COMPLETED"]
    return (*_memory(jobs, done), *_cpus(done), *_time(jobs, done), *_gpus(done))


def percent(share: float) -> str:
    """A share as `7 %`, `0.4 %`."""
    return f"{share * 100:.0f} %" if share >= 0.1 or share == 0 else f"{share * 100:.1f} %"


def _memory(jobs: Sequence[JobEfficiency], done: Sequence[JobEfficiency]) -> Iterator[str]:
    if killed := [job for job in jobs if job.out_of_memory]:
        job = max(killed, key=_asked_on_a_node)
        asked = max(_asked_on_a_node(job), float(job.memory.on_a_node) if job.memory else 0.0)
        more = f", for example `--mem={_mem_option(asked * _MORE)}`" if asked else " (`--mem`)"
        had = f" of {size_text(_asked_on_a_node(job))}{_each_node(job)}" if _asked_on_a_node(job) else ""
        yield f"{_name(job, jobs)} ran out of its memory{had}: ask for more{more}"
        return
    used = [job.memory for job in jobs if job.memory and not job.memory.sampled]
    if not done or len(used) < len(jobs):
        return
    most = max(memory.on_a_node for memory in used)
    asked = min(_asked_on_a_node(job) for job in jobs)
    if 0 < most <= asked * _ENOUGH and _mem_size(most * _HEADROOM) < asked:
        yield (
            f"{_asked(jobs)} {size_text(asked)}{_each_node(jobs[0])}, used at most {size_text(most)}:"
            f" `--mem={_mem_option(most * _HEADROOM)}` would do"
        )


def _cpus(done: Sequence[JobEfficiency]) -> Iterator[str]:
    busy = [job.busy_cpus / job.tasks for job in done if job.busy_cpus is not None]
    tasks = {job.tasks for job in done}
    if not done or len(busy) < len(done) or len(tasks) > 1:
        return
    [number] = tasks
    has = min(job.cpus / number for job in done)
    enough = max(1, math.ceil(max(busy) * _HEADROOM))
    # One task has one node: a job of several that shows no more than one may have started others in its own way.
    if max(busy) > has * _ENOUGH or enough >= has or any(job.nodes > number for job in done):
        return
    option = f"--cpus-per-task={enough}" if number > 1 else f"--ntasks=1 --cpus-per-task={enough}"
    whose = f" for each of {number} tasks" if number > 1 else ""
    yield f"{_asked(done)} {has:g} CPUs{whose}, at most {max(busy):.1f} were busy on average: `{option}` would do"


def _time(jobs: Sequence[JobEfficiency], done: Sequence[JobEfficiency]) -> Iterator[str]:
    if late := [job for job in jobs if job.state == "TIMEOUT" and job.time_limit]:
        job = late[0]
        assert job.time_limit is not None
        option = duration_text(_time_option(job.time_limit * _MORE))
        yield (
            f"{_name(job, jobs)} was ended by its time limit of {duration_text(job.time_limit)}: ask for more, for"
            f" example `--time={option}`"
        )
        return
    limits = [job.time_limit for job in done if job.time_limit]
    if not done or len(limits) < len(done):
        return
    longest, limit = max(job.elapsed for job in done), min(limits)
    enough = _time_option(longest * _HEADROOM)
    if longest <= limit * _ENOUGH and enough < limit:
        yield (
            f"{_asked(done)} {duration_text(limit)}, ran for at most {duration_text(longest)}:"
            f" `--time={duration_text(enough)}` would do, and short jobs start sooner"
        )


def _gpus(done: Sequence[JobEfficiency]) -> Iterator[str]:
    having = [job for job in done if job.gpus]
    if not having:
        return
    what = "GPU was" if having[0].gpus == 1 else f"{having[0].gpus} GPUs were"
    if any(job.gpu_sampled for job in having):
        return
    shares = [job.gpu for job in having if job.gpu is not None]
    if len(shares) == len(having):
        if max(shares) < _IDLE:
            yield (
                f"its {what} in use {percent(max(shares))} of the time: see whether the program uses them, or ask for"
                " fewer with `--gpus`"
            )
    elif not shares and all(job.gpu_peak == 0 for job in having):
        yield f"accounting never saw that its {what} in use: see whether the program uses them, or leave out `--gpus`"


def _name(job: JobEfficiency, jobs: Sequence[JobEfficiency]) -> str:
    return "the job" if len(jobs) == 1 else f"task {job.job_id}"


def _asked(jobs: Sequence[JobEfficiency]) -> str:
    return "asked for" if len(jobs) == 1 else "each task asked for"


def _asked_on_a_node(job: JobEfficiency) -> float:
    return (job.memory_allocated or 0) / (job.nodes or 1)


def _each_node(job: JobEfficiency) -> str:
    return " on each node" if job.nodes > 1 else ""


def _mem_size(size: float) -> int:
    step = _GIB if size > 2 * _GIB else _HUNDRED_MIB
    return math.ceil(size / step) * step


def _mem_option(size: float) -> str:
    rounded = _mem_size(size)
    return f"{rounded // _GIB}G" if rounded % _GIB == 0 else f"{rounded // 1024**2}M"


def _time_option(seconds: float) -> int:
    step = 300 if seconds <= 2 * 3600 else 900 if seconds <= 12 * 3600 else 3600
    return math.ceil(seconds / step) * step
