"""A job's states as Prefect events: which there are, and what they say. Pure: nothing here talks to a server.

`docs/events.md` shows each event as automations see it; `reporting.py` sends them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

from prefect.events.schemas.events import Event, Resource

from jobbergate_flows.slurm.jobs import JobStatus, Phase, SlurmJob
from jobbergate_flows.slurm.states import MEANINGS, Finality

PREFIX = "slurm.job."
EVENTS: Mapping[str, str] = {
    "Queued": "pending",
    "Held": "needs-attention",
    "Running": "running",
    "Suspended": "suspended",
    "Completed": "completed",
    "Failed": "failed",
    "OutOfMemory": "out-of-memory",
    "TimedOut": "timeout",
    "DeadlineMissed": "deadline",
    "Cancelled": "cancelled",
    "NodeFail": "node-fail",
    "BootFail": "boot-fail",
    "LaunchFailed": "launch-failed",
    "ReconfigFail": "reconfig-fail",
    "Preempted": "preempted",
    "Revoked": "revoked",
    "Lost": "lost",
}
"""The last word of a state's event, by `JobStatus.name`. `requeued` is the one event that is no state's."""

_NAMESPACE = UUID("9f0a8c1e-2f0b-5a8e-9a39-5f7a2b3f6d11")
# As Prefect does it: what happened longer ago is in order by its time alone.
_TIGHT = timedelta(minutes=5)
_LONGEST = 1000


@dataclass(frozen=True, slots=True)
class Told:
    """What has been told of a job so far.

    `status` is the newest status that was looked at, `event` the newest event.
    """

    status: JobStatus | None = None
    event: Event | None = None
    ids: frozenset[UUID] = frozenset()


def job_events(job: SlurmJob, told: Told, status: JobStatus, now: datetime) -> tuple[Told, tuple[Event, ...]]:
    """The events of a job's newest status, oldest first; none where its state is no other than before.

    An event's id is made of the job's key, of the state and of Slurm's time of submission, which a requeue renews: a
    worker that is started again makes the same events, and the server drops them. It occurred when Slurm says that it
    did, as far as Slurm says so.

    Args:
        told: What the last call returned; `Told()` for the first.
        now: Aware; no event is later.

    Returns:
        What to call this with next, and the events.
    """
    events = []
    before = told.status
    told = replace(told, status=status)
    for name in _names(before, status):
        event = _event(job, name, told, before, status, now)
        told = replace(told, event=event, ids=told.ids | {event.id})
        events.append(event)
    return told, tuple(events)


def job_resource(job: SlurmJob, status: JobStatus, partition: str | None = None) -> Resource:
    """The resource `slurm.job.<cluster>.<job id>`, with the labels that an automation can match."""
    labels = {
        "prefect.resource.id": f"{PREFIX}{job.cluster}.{job.job_id}",
        "prefect.resource.name": job.name,
        "slurm.cluster": job.cluster,
        "slurm.job-id": job.job_id,
        "slurm.user": job.user,
        "slurm.state": status.state,
    }
    if partition:
        labels["slurm.partition"] = partition
    return Resource(labels)


def _names(before: JobStatus | None, status: JobStatus) -> tuple[str, ...]:
    if _undecided(status):
        return ()
    names = ["requeued"] if before is not None and _requeued(before, status) else []
    own = _own_name(status)
    # Back in the queue: that it waits there is what `requeued` says.
    if own == "pending" and names:
        return tuple(names)
    if names or before is None or _undecided(before) or _own_name(before) != own:
        names.append(own)
    return tuple(names)


def _own_name(status: JobStatus) -> str:
    if status.phase is Phase.PENDING:
        return "needs-attention" if status.needs_person else "pending"
    return EVENTS.get(status.name) or re.sub(r"(?<=[a-z])(?=[A-Z])", "-", status.name).lower()


def _undecided(status: JobStatus) -> bool:
    """Whether it may have ended, as NODE_FAIL says, or be brought back by Slurm: told is what comes of it."""
    meaning = MEANINGS.get(status.state)
    return not status.final and meaning is not None and meaning.finality is Finality.AFTER_ABSENCE


def _requeued(before: JobStatus, status: JobStatus) -> bool:
    if status.phase is Phase.PENDING and (before.phase is Phase.RUNNING or _undecided(before)):
        return True
    # Slurm submits a requeued job anew. Of an array's tasks some may be, and the others not.
    if len(before.rows) > 1 or len(status.rows) > 1 or before.submit is None or status.submit is None:
        return False
    return status.submit > before.submit


def _event(job: SlurmJob, name: str, told: Told, before: JobStatus | None, status: JobStatus, now: datetime) -> Event:
    life = int(status.submit.timestamp()) if status.submit else ""
    identity = f"{job.cluster}\n{job.key}\n{job.job_id}\n{life}\n{name}"
    event_id, repetition = uuid5(_NAMESPACE, identity), 0
    while event_id in told.ids:
        # Suspended again, released again: Slurm numbers these for nobody.
        repetition += 1
        event_id = uuid5(_NAMESPACE, f"{identity}\n{repetition}")
    occurred = now if repetition else min(_moment(name, status) or now, now)
    follows: UUID | None = None
    if told.event is not None:
        occurred = max(occurred, told.event.occurred + timedelta(microseconds=1))
        follows = told.event.id if occurred - told.event.occurred < _TIGHT else None
    # Of a short job accounting knows the state before the partition.
    partition = status.partition or (before.partition if before else None)
    return Event(
        event=PREFIX + name,
        id=event_id,
        occurred=occurred,
        resource=job_resource(job, status, partition),
        payload=_payload(job, before, status, partition),
        follows=follows,
    )


def _moment(name: str, status: JobStatus) -> datetime | None:
    if status.final:
        return status.end
    return {"pending": status.submit, "requeued": status.submit, "running": status.start}.get(name)


def _payload(job: SlurmJob, before: JobStatus | None, status: JobStatus, partition: str | None) -> dict[str, Any]:
    """What templates show. A field that Slurm says nothing of is left out: templates show nothing for it then."""
    waited = status.start - status.submit if status.start and status.submit else None
    ran = status.end - status.start if status.end and status.start else None
    fields: dict[str, Any] = {
        "cluster": job.cluster,
        "job_id": job.job_id,
        "key": job.key,
        "name": job.name,
        "user": job.user,
        "partition": partition,
        "directory": job.directory,
        "status": status.name,
        "state": status.state,
        "message": _short(status.message),
        "previous": before.name if before else None,
        "previous_state": before.state if before else None,
        "final": status.final,
        "reason": status.reason,
        "exit_code": str(status.exit_code) if status.exit_code else None,
        "cancelled_by_uid": status.cancelled_by,
        "submitted": status.submit.isoformat() if status.submit else None,
        "started": status.start.isoformat() if status.start else None,
        "ended": status.end.isoformat() if status.end else None,
        "waited_seconds": max(waited.total_seconds(), 0.0) if waited is not None else None,
        "ran_seconds": max(ran.total_seconds(), 0.0) if ran is not None else None,
        "nodes": _short(status.nodes) if status.nodes else None,
        "array_tasks": dict(Counter(row.state for row in status.rows).most_common()) if job.array else None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
