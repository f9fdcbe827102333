"""Limits on what a run may ask Slurm for.

They bound what the run's own options say, which go over the script's `#SBATCH` lines. What a script says beside them is
its application's affair: whoever consents to an application's digest consents to its script. So a limited quantity that
the run leaves to the script is refused, and so is every option that could reach the same quantity by another way.
Whoever submits may check the script's own lines and the run's options together once the script is rendered, by the same
`exceeded`. Limits hold for one job; where there are any, an array needs `max-array`. They bind no code: a job
may submit further jobs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

from jobbergate_flows.slurm.arrays import expand_tasks
from jobbergate_flows.slurm.options import SlurmResources
from jobbergate_flows.slurm.units import gpu_count, memory_kib, nodes_at_most, time_seconds

# Options beyond the model's own fields that change none of the limited quantities.
_HARMLESS = {
    "begin", "deadline", "delay-boot", "distribution", "error", "gpu-bind", "gpu-freq", "gres-flags", "hold", "input",
    "mem-bind", "nice", "no-kill", "open-mode", "output", "priority", "profile", "signal", "switches", "time-min",
    "wait-all-nodes", "wckey",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one job may ask for; None is no limit.

    Args:
        nodes: Nodes in all; of a range its upper end.
        tasks: Tasks in all.
        cpus: CPUs in all: tasks times CPUs per task.
        memory: KiB on a node.
        gpus: GPUs in all.
        time: Seconds.
        array: Tasks of an array.
        partitions, accounts: One of these, and no other.
    """

    nodes: int | None = None
    tasks: int | None = None
    cpus: int | None = None
    memory: float | None = None
    gpus: int | None = None
    time: float | None = None
    array: int | None = None
    partitions: tuple[str, ...] | None = None
    accounts: tuple[str, ...] | None = None

    @property
    def exist(self) -> bool:
        """Whether there is a limit at all."""
        return any(getattr(self, field.name) is not None for field in fields(self))


NO_LIMITS = Limits()


def exceeded(limits: Limits, resources: SlurmResources) -> str | None:
    """Why what is asked for is more than the limits allow, or may be; None when it is within them."""
    try:
        return next(_excesses(limits, resources), None)
    except ValueError as error:
        return str(error)


def _excesses(limits: Limits, asked: SlurmResources) -> Iterator[str]:
    if not limits.exist:
        return
    yield from _at_most("nodes", "--nodes", limits.nodes, None if asked.nodes is None else nodes_at_most(asked.nodes))
    yield from _at_most("tasks", "--ntasks", limits.tasks, asked.tasks)
    cpus = asked.tasks * asked.cpus_per_task if asked.tasks and asked.cpus_per_task else None
    yield from _at_most("CPUs", "--ntasks and --cpus-per-task", limits.cpus, cpus)
    memory = None
    if asked.memory is not None:
        memory = memory_kib(asked.memory)
    elif asked.memory_per_cpu is not None and cpus is not None:
        memory = memory_kib(asked.memory_per_cpu) * cpus
    yield from _at_most(
        "KiB of memory on a node",
        "--mem (or --mem-per-cpu with --ntasks and --cpus-per-task)",
        limits.memory,
        memory,
    )
    gpus = None if asked.gpus is None else gpu_count(asked.gpus)
    yield from _at_most("GPUs", "--gpus", limits.gpus, gpus)
    if limits.gpus is not None and asked.gres:
        yield "the GPUs of --gres cannot be counted: ask with --gpus"
    time = None if asked.time_limit is None else time_seconds(asked.time_limit)
    yield from _at_most("seconds", "--time", limits.time, time)
    if limits.array is None and asked.array:
        yield "limits are of one job, and an array is many: allow it with max-array"
    array = None if asked.array is None else len(expand_tasks(asked.array))
    yield from _at_most("array tasks", "--array", limits.array, array)
    yield from _one_of("partition", limits.partitions, asked.partition)
    yield from _one_of("account", limits.accounts, asked.account)
    yield from _ways_round(limits, asked)


def _at_most(what: str, options: str, limit: float | None, asked: float | None) -> Iterator[str]:
    if limit is None:
        return
    if asked is None:
        yield f"at most {limit:.0f} {what} are allowed, and the run does not say how many it takes: state {options}"
    elif asked > limit:
        number = "all" if math.isinf(asked) else f"{asked:.0f}"
        yield f"at most {limit:.0f} {what} are allowed, and the run asks for {number}"


def _one_of(what: str, allowed: tuple[str, ...] | None, asked: str | None) -> Iterator[str]:
    if allowed is None:
        return
    if asked is None:
        yield f"the run does not say its {what}: state --{what}={'|'.join(allowed)}"
    # sbatch takes several partitions, separated by commas, and uses any of them.
    elif not set(asked.split(",")) <= set(allowed):
        yield f"{what} {asked} is not allowed, only {'|'.join(allowed)}"


def _ways_round(limits: Limits, asked: SlurmResources) -> Iterator[str]:
    counted = (limits.nodes, limits.tasks, limits.cpus, limits.memory, limits.gpus)
    if all(limit is None for limit in counted):
        return
    if asked.exclusive:
        yield "with --exclusive a job gets all that its nodes have, whatever the limits say"
    for name in asked.extra:
        if name not in _HARMLESS:
            yield f"--{name} may change a quantity that is limited"
