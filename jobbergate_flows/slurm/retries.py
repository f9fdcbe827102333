"""Retries that know why a job ended: whether it is submitted again, and what is then asked for. Pure.

Slurm's own requeue starts a job again with what it had, so with the same memory that was too little. Here each end has
its own answer. What an attempt asks for follows from the policy and from how the attempts before it ended, and from
nothing else: so it is the same whenever it is asked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobbergate_flows.slurm.arrays import parse_array, spec_of
from jobbergate_flows.slurm.errors import OptionRefused
from jobbergate_flows.slurm.jobs import AttemptEnd, JobRow, JobStatus, Phase
from jobbergate_flows.slurm.options import MemoryText, SlurmResources, TimeText, form_properties
from jobbergate_flows.slurm.states import classify
from jobbergate_flows.slurm.steps import JobRecord
from jobbergate_flows.slurm.units import memory_kib, memory_text, time_seconds, time_text

Cause = Literal["out-of-memory", "timeout", "node-failure", "preempted", "failure"]
CAUSES: Mapping[str, Cause] = {
    "OutOfMemory": "out-of-memory",
    "TimedOut": "timeout",
    "NodeFail": "node-failure",
    "BootFail": "node-failure",
    "LaunchFailed": "node-failure",
    "ReconfigFail": "node-failure",
    "Preempted": "preempted",
    "Failed": "failure",
}
"""The name of a final state (`states.MEANINGS`) -> what a policy calls it; others are never retried."""


_ONE_NODE = re.compile(r"[A-Za-z0-9_.-]+")


class RetryPolicy(BaseModel):
    """When a job that ended otherwise than Completed is submitted again, and with what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempts: int = Field(
        default=1,
        ge=1,
        le=20,
        title="Attempts",
        description="How often the job is submitted at most. 1: it is not retried.",
    )
    on: frozenset[Cause] = Field(
        default=frozenset({"out-of-memory", "timeout", "node-failure", "preempted"}),
        title="Retry on",
        description="The ends after which it is. A plain failure (an exit code) only if it is named here.",
    )
    memory_factor: float = Field(
        default=2.0,
        gt=1,
        le=16,
        title="Memory factor",
        description="After out of memory the job asks for so many times the memory.",
    )
    memory_ceiling: MemoryText | None = Field(
        default=None, title="Memory ceiling", description="The most memory that a retry asks for, such as 64G."
    )
    time_factor: float = Field(
        default=2.0,
        gt=1,
        le=16,
        title="Time factor",
        description="After a time-out the job asks for so many times the time.",
    )
    time_ceiling: TimeText | None = Field(
        default=None, title="Time ceiling", description="The longest time limit of a retry, such as 1-00:00:00."
    )

    @property
    def retries(self) -> bool:
        """Whether it retries anything at all."""
        return self.attempts > 1 and bool(self.on)


NO_RETRIES = RetryPolicy()


def end_of(status: JobStatus, records: Sequence[JobRecord] = (), node_list: str = "") -> AttemptEnd:
    """How an attempt ended, by its final status and what accounting keeps of it.

    Which of several nodes failed, Slurm 22.05's accounting does not say: only a single one is known to be bad.

    Args:
        records: All lives of the job, or of all tasks of the array; none where accounting says nothing.
        node_list: The nodes of a job that is no array, as accounting has them: squeue names none of a failed one.
    """
    failed = [row for row in status.rows if row.array_task_id is not None and not _completed(row)]
    # Of a requeued job the last life counts; the tasks of an array have all been given the same.
    last = records[-1] if records else None
    lost = {row.nodes for row in status.rows if row.nodes and _cause(row) == "node-failure"}
    if not lost and last is not None and last.nodes == 1 and is_node_failure(status):
        lost = {node_list}
    return AttemptEnd(
        name=status.name,
        memory=None if last is None else _memory_per_node(last),
        time_limit=None if last is None or last.time_limit is None else last.time_limit * 60.0,
        bad_nodes=",".join(sorted(filter(_ONE_NODE.fullmatch, lost))) or None,
        unfinished=tuple(row.array_task_id for row in failed if row.array_task_id is not None),
        others=tuple(sorted({meaning.name for row in failed if (meaning := classify(row))} - {status.name})),
    )


@dataclass(frozen=True, slots=True)
class Retry:
    """The next attempt: what it asks for, and why it is made."""

    resources: SlurmResources
    reason: str


@dataclass(frozen=True, slots=True)
class GivenUp:
    """There is no next attempt; `reason` is None where none was asked for."""

    reason: str | None


def check_policy(values: RetryPolicy | Mapping[str, Any] | None) -> RetryPolicy:
    """A validated policy from a mapping, as a form or a flow gives it.

    Raises:
        OptionRefused: naming the field, and what would be right.
    """
    if isinstance(values, RetryPolicy):
        return values
    if not isinstance(values, Mapping | None):
        raise OptionRefused(
            f"the retries are {type(values).__name__}, no mapping", where="retries", hint='write {"attempts": 3}'
        )
    # A form's emptied field may be sent as an empty text.
    given = {name: value for name, value in (values or {}).items() if value is not None and value != ""}
    try:
        return RetryPolicy.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else ""
        known = RetryPolicy.model_fields.get(field)
        raise OptionRefused(
            str(first["msg"]) if known else "there is no such setting",
            where=".".join(["retries", *map(str, first["loc"])]),
            hint=known.description if known else f"known are {', '.join(RetryPolicy.model_fields)}",
        ) from error


def request_after(policy: RetryPolicy, asked: SlurmResources, ends: Sequence[AttemptEnd]) -> SlurmResources:
    """What the attempt after these ends asks for; `asked` itself where there are none.

    Args:
        asked: What the first attempt asked for, the script's own lines included.
        ends: The ends of all attempts before it, oldest first, each of which was retried.
    """
    resources = asked
    for end in ends:
        decided = _grown(policy, resources, end)
        resources = decided.resources if isinstance(decided, Retry) else resources
    # Slurm's requeue beside ours would run the job twice.
    return resources.model_copy(update={"requeue": False}) if policy.retries else resources


def refusal(policy: RetryPolicy, ends: Sequence[AttemptEnd]) -> GivenUp | None:
    """Why there is no other attempt, whatever the ones before had; None where that decides. Arguments as `decide`'s."""
    causes = {CAUSES.get(name) for name in ends[-1].names}
    if not policy.retries or not causes <= policy.on:
        return GivenUp(None)
    if len(ends) >= policy.attempts:
        return GivenUp(f"it was attempt {len(ends)} of {policy.attempts}")
    return None


def decide(policy: RetryPolicy, asked: SlurmResources, ends: Sequence[AttemptEnd]) -> Retry | GivenUp:
    """Whether there is another attempt after these ends, of which the last is new.

    Args:
        asked: What the first attempt asked for, the script's own lines included.
        ends: The ends of all attempts, oldest first; at least one.
    """
    *before, last = ends
    if (refused := refusal(policy, ends)) is not None:
        return refused
    decided = _grown(policy, request_after(policy, asked, before), last)
    if isinstance(decided, GivenUp):
        return decided
    count = f"attempt {len(ends) + 1} of {policy.attempts}"
    return Retry(decided.resources.model_copy(update={"requeue": False}), f"{decided.reason}: {count}")


def _grown(policy: RetryPolicy, resources: SlurmResources, end: AttemptEnd) -> Retry | GivenUp:
    if end.unfinished and resources.array is not None:
        array = spec_of(end.unfinished, parse_array(resources.array).at_once)
        resources = _changed(resources, array=array)
    reasons = []
    for name in end.names:
        grown = _answered(policy, resources, replace(end, name=name))
        if isinstance(grown, GivenUp):
            return grown
        resources = grown.resources
        reasons.append(grown.reason)
    return Retry(resources, "; ".join(dict.fromkeys(reasons)))


def _answered(policy: RetryPolicy, resources: SlurmResources, end: AttemptEnd) -> Retry | GivenUp:
    match CAUSES.get(end.name):
        case "out-of-memory":
            return _with_more_memory(policy, resources, end)
        case "timeout":
            return _with_more_time(policy, resources, end)
        case "node-failure" if end.bad_nodes:
            excluded = ",".join(filter(None, (resources.extra.get("exclude"), end.bad_nodes)))
            extra = {**resources.extra, "exclude": excluded}
            return Retry(_changed(resources, extra=extra), f"{end.name}, now without {end.bad_nodes}")
    return Retry(resources, f"{end.name}, now with the same request")


def _with_more_memory(policy: RetryPolicy, resources: SlurmResources, end: AttemptEnd) -> Retry | GivenUp:
    field = "memory_per_cpu" if resources.memory_per_cpu else "memory"
    had: str | None = getattr(resources, field)
    if had is None:
        field, had = "memory", end.memory
    if "mem-per-gpu" in resources.extra:
        return GivenUp("more memory for each GPU cannot be asked for: state the memory per node")
    if had is None:
        return GivenUp("how much memory it had is not known: state the memory, so that more can be asked for")
    before, ceiling = memory_kib(had), _limit(policy.memory_ceiling, memory_kib)
    if math.isinf(before):
        return GivenUp("it had all the memory of its node")
    after = min(before * policy.memory_factor, ceiling)
    if after <= before:
        return GivenUp(f"{had} is the most memory that its retries may ask for")
    more = memory_text(after)
    return Retry(_changed(resources, **{field: more}), f"{end.name} with {had}, now with {more}")


def _with_more_time(policy: RetryPolicy, resources: SlurmResources, end: AttemptEnd) -> Retry | GivenUp:
    before = time_seconds(resources.time_limit) if resources.time_limit else end.time_limit
    if before is None or math.isinf(before):
        return GivenUp("which time limit it had is not known: state it, so that more can be asked for")
    after = min(before * policy.time_factor, _limit(policy.time_ceiling, time_seconds))
    if after <= before:
        return GivenUp(f"{time_text(before)} is the longest time limit that its retries may ask for")
    more = time_text(after)
    return Retry(_changed(resources, time_limit=more), f"{end.name} after {time_text(before)}, now with {more}")


def _completed(row: JobRow) -> bool:
    meaning = classify(row)
    return meaning is not None and meaning.phase is Phase.COMPLETED


def is_node_failure(status: JobStatus) -> bool:
    """Whether that is the end of a job (not of some of an array's tasks) whose node failed."""
    return CAUSES.get(status.name) == "node-failure" and all(row.array_task_id is None for row in status.rows)


def _cause(row: JobRow) -> Cause | None:
    meaning = classify(row)
    return CAUSES.get(meaning.name) if meaning is not None else None


def _memory_per_node(record: JobRecord) -> str | None:
    # Both are of the whole job.
    total = (record.allocated or record.requested).get("mem")
    return memory_text(total / 1024 / max(record.nodes, 1)) if total else None


def _limit(text: str | None, amount: Any) -> float:
    return math.inf if text is None else float(amount(text))


def _changed(resources: SlurmResources, **values: Any) -> SlurmResources:
    return SlurmResources.model_validate(resources.model_dump(exclude_unset=True) | values)


def retries_schema() -> dict[str, Any]:
    """The JSON Schema of a policy for a form: every field optional, with its default."""
    properties = form_properties(RetryPolicy)
    properties["on"]["default"] = sorted(RetryPolicy.model_fields["on"].default)
    return {"type": "object", "title": "Retries", "properties": properties, "additionalProperties": False}


__all__ = [
    "CAUSES",
    "NO_RETRIES",
    "Cause",
    "GivenUp",
    "Retry",
    "RetryPolicy",
    "check_policy",
    "decide",
    "end_of",
    "is_node_failure",
    "refusal",
    "request_after",
    "retries_schema",
]
