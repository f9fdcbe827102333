"""The efficiency of a job for people and for scripts: fields, Markdown, JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobbergate_flows.markdown import table, time_of
from jobbergate_flows.metrics.advice import advise, percent
from jobbergate_flows.metrics.efficiency import Efficiency, JobEfficiency, Spread
from jobbergate_flows.slurm.units import duration_text, size_text

LISTED_TASKS = 1000
TASK_HEADERS = ("Task", "State", "CPU", "Memory", "Elapsed")
SPREAD_HEADERS = ("", "Lowest", "Median", "Highest", "Lowest in", "Known of")


def efficiency_markdown(report: Efficiency) -> str:
    """The report as Markdown: its figures in tables, and the advice."""
    if len(report.jobs) == 1:
        [job] = report.jobs
        parts = [f"# Efficiency of job {report.job_id}", table(("", ""), list(job_fields(job).items()))]
    else:
        parts = [
            f"# Efficiency of the {len(report.jobs)} tasks of job {report.job_id}",
            table(SPREAD_HEADERS, spread_rows(report)),
            "## Tasks",
            table(TASK_HEADERS, task_rows(report)),
        ]
        if len(report.jobs) > LISTED_TASKS:
            parts.append(f"And {len(report.jobs) - LISTED_TASKS} more.")
    if advice := advise(report):
        parts += ["## For the next time", "\n".join(f"- {sentence}" for sentence in advice)]
    return "\n\n".join(parts)


def job_fields(job: JobEfficiency) -> dict[str, str]:
    """One job's figures, by what they are called."""
    fields = {
        "Job": job.job_id,
        "State": job.state + ("" if job.ended or not job.started else " (so far)"),
        "Started": time_of(job.start),
        "Ended": time_of(job.end) if job.ended else "",
        "Elapsed": _elapsed(job),
        "CPUs": f"{job.cpus}" + (f" on {job.nodes} nodes" if job.nodes > 1 else "") if job.started else "",
        "CPU efficiency": _cpu(job),
        "Memory": _memory(job),
        "GPUs": _gpus(job),
        "Energy": f"{job.energy / 1000:.1f} kJ" if job.energy else "",
        "Requeued": "; ".join(
            f"{life.state} after {duration_text(life.elapsed)}, started {time_of(life.start) or 'never'}"
            for life in job.earlier
        ),
    }
    return {name: value for name, value in fields.items() if value}


def spread_rows(report: Efficiency) -> list[tuple[str, ...]]:
    """How an array's shares lie over its tasks: the columns of `SPREAD_HEADERS`."""
    spreads = {"CPU efficiency": report.cpu, "Memory": report.memory, "Time limit": report.time}
    return [
        (
            name,
            *(percent(share) for share in (spread.minimum, spread.median, spread.maximum)),
            spread.worst,
            f"{spread.known} of {len(report.jobs)}",
        )
        if spread
        else (name, "not known", "", "", "", f"0 of {len(report.jobs)}")
        for name, spread in spreads.items()
    ]


def task_rows(report: Efficiency) -> list[tuple[str, ...]]:
    """The first `LISTED_TASKS` tasks: the columns of `TASK_HEADERS`."""
    return [
        (job.job_id, job.state, _cpu(job, short=True), _memory(job, short=True), _elapsed(job))
        for job in report.jobs[:LISTED_TASKS]
    ]


def efficiency_json(report: Efficiency) -> dict[str, Any]:
    """The report for scripts: seconds, bytes, joules, and shares from 0 to 1; null for what is not known."""
    return {
        "job_id": report.job_id,
        "cpu_efficiency": _spread_json(report.cpu),
        "memory_efficiency": _spread_json(report.memory),
        "time_share": _spread_json(report.time),
        "advice": list(advise(report)),
        "jobs": [_job_json(job) for job in report.jobs],
    }


def _job_json(job: JobEfficiency) -> dict[str, Any]:
    memory = job.memory
    return {
        "job_id": job.job_id,
        "state": job.state,
        "started_at": job.start,
        "ended_at": job.end,
        "elapsed": job.elapsed,
        "time_limit": job.time_limit,
        "time_share": job.time,
        "nodes": job.nodes,
        "cpus": job.cpus,
        "cpu_time": job.cpu_time,
        "cpu_efficiency": job.cpu,
        "cpu_unknown": job.cpu_unknown,
        "memory_used": memory.used if memory else None,
        "memory_used_on_a_node": memory.on_a_node if memory else None,
        "memory_of_largest_task": memory.largest_task if memory else None,
        "memory_basis": memory.basis if memory else None,
        "memory_allocated": job.memory_allocated,
        "memory_efficiency": job.memory_share,
        "memory_unknown": job.memory_unknown,
        "gpus": job.gpus,
        "gpu_utilization": job.gpu,
        "energy": job.energy,
        "earlier": [
            {"state": life.state, "submitted_at": life.submit, "started_at": life.start, "elapsed": life.elapsed}
            for life in job.earlier
        ],
    }


def _spread_json(spread: Spread | None) -> Mapping[str, Any] | None:
    if spread is None:
        return None
    return {
        "min": spread.minimum,
        "median": spread.median,
        "max": spread.maximum,
        "worst": spread.worst,
        "known": spread.known,
    }


def _cpu(job: JobEfficiency, *, short: bool = False) -> str:
    if job.cpu_time is None or job.cpu is None or job.busy_cpus is None:
        return f"not known: {job.cpu_unknown}"
    if short:
        return percent(job.cpu)
    return (
        f"{percent(job.cpu)}: {job.busy_cpus:.1f} of {job.cpus} busy on average"
        f" ({duration_text(job.cpu_time)} of {duration_text(job.elapsed * job.cpus)})"
    )


def _memory(job: JobEfficiency, *, short: bool = False) -> str:
    if job.memory is None:
        return f"not known: {job.memory_unknown}"
    text = size_text(job.memory.used)
    if job.memory_allocated and job.memory_share is not None:
        text += f" of {size_text(job.memory_allocated)}, {percent(job.memory_share)}"
    if short:
        return text
    if job.nodes > 1:
        text += f"; on one node at most {size_text(job.memory.on_a_node)}"
    if job.tasks > 1 and job.memory.largest_task:
        text += f"; the largest of {job.tasks} tasks {size_text(job.memory.largest_task)}"
    missed = "; few samples: it may have been more" if job.memory.sampled else ""
    return f"{text} ({job.memory.basis}{missed})"


def _elapsed(job: JobEfficiency) -> str:
    if not job.started:
        return ""
    share = f", {percent(job.time)}" if job.time is not None else ""
    return duration_text(job.elapsed) + (f" of {duration_text(job.time_limit)}{share}" if job.time_limit else "")


def _gpus(job: JobEfficiency) -> str:
    if not job.gpus:
        return ""
    if job.gpu is not None:
        few = " (few samples)" if job.gpu_sampled else ""
        return f"{job.gpus}, in use {percent(job.gpu)} of the time{few}"
    seen = f", at most {percent(job.gpu_peak)} in use in a sample" if job.gpu_peak is not None else ""
    return f"{job.gpus}{seen or ', use not known'}"
