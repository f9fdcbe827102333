"""What Slurm's job states mean: one table, and the pure functions that read it.

The twelve base states are the same in Slurm 22.05 to 26.05. squeue and sacct print one word: a flag
(COMPLETING, REQUEUE_HOLD, ...) stands before the base state.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from jobbergate_flows.slurm.jobs import JobRow, JobStatus, Phase
from jobbergate_flows.slurm.reasons import explain, needs_person

ABSENCE_SECONDS = 300.0
"""So long must a job that Slurm may requeue be gone from squeue before a state such as NODE_FAIL is its end."""


class Finality(Enum):
    """When a state is a job's end."""

    NEVER = "never"
    AT_ONCE = "at once"
    AFTER_ABSENCE = "after continuous absence from squeue, unless the job may not be requeued"


@dataclass(frozen=True, slots=True)
class StateMeaning:
    """One row of the table."""

    phase: Phase
    name: str
    finality: Finality
    needs_person: bool = False


_QUEUED = StateMeaning(Phase.PENDING, "Queued", Finality.NEVER)
_HELD = StateMeaning(Phase.PENDING, "Held", Finality.NEVER, needs_person=True)
_RUNNING = StateMeaning(Phase.RUNNING, "Running", Finality.NEVER)


def _ended(phase: Phase, name: str) -> StateMeaning:
    return StateMeaning(phase, name, Finality.AT_ONCE)


def _perhaps_ended(name: str) -> StateMeaning:
    return StateMeaning(Phase.CRASHED, name, Finality.AFTER_ABSENCE)


MEANINGS: Mapping[str, StateMeaning] = {
    "PENDING": _QUEUED,
    # Nodes are being booted or set up for the job.
    "CONFIGURING": _QUEUED,
    "POWER_UP_NODE": _QUEUED,
    "EXPEDITING": _QUEUED,
    # Slurm will run it again under the same id.
    "REQUEUED": _QUEUED,
    "REQUEUE_FED": _QUEUED,
    # Each waits for somebody to release it.
    "REQUEUE_HOLD": _HELD,
    "SPECIAL_EXIT": _HELD,
    "RESV_DEL_HOLD": _HELD,
    "RUNNING": _RUNNING,
    # The processes are over, but epilog and file staging are not: the exit code is not final.
    "COMPLETING": _RUNNING,
    "STAGE_OUT": _RUNNING,
    "SIGNALING": _RUNNING,
    "RESIZING": _RUNNING,
    "STOPPED": _RUNNING,
    # It keeps its nodes, and Slurm resumes it: not what Prefect calls Paused.
    "SUSPENDED": StateMeaning(Phase.RUNNING, "Suspended", Finality.NEVER),
    "COMPLETED": _ended(Phase.COMPLETED, "Completed"),
    "FAILED": _ended(Phase.FAILED, "Failed"),
    "OUT_OF_MEMORY": _ended(Phase.FAILED, "OutOfMemory"),
    # Its exit code may be 0:0.
    "TIMEOUT": _ended(Phase.FAILED, "TimedOut"),
    "DEADLINE": _ended(Phase.FAILED, "DeadlineMissed"),
    "CANCELLED": _ended(Phase.CANCELLED, "Cancelled"),
    # Slurm requeues these by default, and sacct shows them for a moment while it does.
    "NODE_FAIL": _perhaps_ended("NodeFail"),
    "BOOT_FAIL": _perhaps_ended("BootFail"),
    "LAUNCH_FAILED": _perhaps_ended("LaunchFailed"),
    "RECONFIG_FAIL": _perhaps_ended("ReconfigFail"),
    "PREEMPTED": _perhaps_ended("Preempted"),
    # A sibling cluster of a federation runs it, or nobody does.
    "REVOKED": _perhaps_ended("Revoked"),
}

# Worst first: the order in which an array's tasks decide for the whole.
_WORST = (Phase.CRASHED, Phase.FAILED, Phase.CANCELLED, Phase.COMPLETED)


def classify(row: JobRow, *, requeue: bool = True) -> StateMeaning | None:
    """What one row's state means; None for a word that Slurm did not have when this was written.

    Args:
        requeue: Whether Slurm may requeue the job.
    """
    meaning = MEANINGS.get(row.state)
    if meaning is None:
        return None
    if meaning is _QUEUED and needs_person(row.reason):
        return _HELD
    if row.state == "COMPLETED" and row.exit_code is not None and str(row.exit_code) != "0:0":
        return MEANINGS["FAILED"]
    if requeue and meaning.finality is Finality.AFTER_ABSENCE and row.source == "squeue":
        # While squeue shows it, it may come back.
        return _QUEUED
    return meaning


def is_final(row: JobRow, *, gone_for: float | None, requeue: bool) -> bool:
    """Whether a row is its job's end.

    Args:
        gone_for: Seconds for which squeue has, without a break, not shown the job; None while it does.
        requeue: Whether Slurm may requeue the job.
    """
    meaning = classify(row, requeue=requeue)
    if meaning is None or meaning.finality is Finality.NEVER:
        return False
    if meaning.finality is Finality.AT_ONCE:
        return True
    return not requeue or (gone_for is not None and gone_for >= ABSENCE_SECONDS)


def summarize(
    rows: Sequence[JobRow],
    *,
    gone_for: float | None = None,
    requeue: bool = True,
    users: Mapping[int, str] | None = None,
) -> JobStatus | None:
    """What a job's rows mean for the job: the worst of an array's tasks, once all are final.

    Args:
        rows: The job's row, or those of its array tasks.
        gone_for, requeue: As for `is_final`.
        users: Names for user ids, for "Cancelled by".

    Returns:
        None when no row's state is known to us: keep the last status.
    """
    known = [(row, meaning) for row in rows if (meaning := classify(row, requeue=requeue)) is not None]
    if not known:
        return None
    final = len(known) == len(rows) and all(is_final(row, gone_for=gone_for, requeue=requeue) for row in rows)
    row, meaning = _deciding(known, final)
    phase, name = meaning.phase, meaning.name
    if not final and meaning.finality is not Finality.NEVER:
        # Ended as it seems, but Slurm may still bring it back; or the other tasks go on.
        phase, name = (Phase.PENDING, "Queued") if len(rows) == 1 else (Phase.RUNNING, "Running")
    message = _message(row, meaning, users or {})
    if row.array_task_id is not None or len(rows) > 1:
        message = f"{len(rows)} {'task' if len(rows) == 1 else 'tasks'}: {_counts(rows)}" + (
            f"; {message}" if final or phase is Phase.PENDING else ""
        )
    return JobStatus(
        phase=phase,
        name=name,
        message=message,
        state=row.state,
        final=final,
        needs_person=not final and all(meaning.needs_person for _, meaning in known),
        reason=row.reason,
        exit_code=row.exit_code,
        cancelled_by=row.cancelled_by,
        submit=min((row.submit for row, _ in known if row.submit), default=None),
        start=min((row.start for row, _ in known if row.start), default=None),
        end=max((row.end for row, _ in known if row.end), default=None) if final else None,
        nodes=row.nodes,
        expected_start=min((row.expected_start for row, _ in known if row.expected_start), default=None),
        time_limit=row.time_limit,
        node_count=row.node_count,
        cpus=row.cpus,
        partition=row.partition,
        rows=tuple(rows),
    )


def _deciding(known: Sequence[tuple[JobRow, StateMeaning]], final: bool) -> tuple[JobRow, StateMeaning]:
    if final:
        return min(known, key=lambda entry: _WORST.index(entry[1].phase))
    for phase in (Phase.RUNNING, Phase.PENDING):
        for entry in known:
            if entry[1].phase is phase and entry[1].finality is Finality.NEVER:
                ended = any(meaning.finality is not Finality.NEVER for _, meaning in known)
                if phase is Phase.PENDING and ended:
                    return entry[0], _RUNNING
                return entry
    return known[0]


def _message(row: JobRow, meaning: StateMeaning, users: Mapping[int, str]) -> str:
    reason = explain(row.reason) if row.reason and row.reason != "None" else None
    match meaning.name:
        case "Queued" | "Held":
            return f"Pending: {reason or ('not scheduled yet' if row.state == 'PENDING' else row.state)}"
        case "Running" | "Suspended":
            where = f" on {row.nodes}" if row.nodes else ""
            return f"{meaning.name}{where}" + ("" if row.state in ("RUNNING", "SUSPENDED") else f" ({row.state})")
        case "Completed":
            return "Completed: exit code 0"
        case "Cancelled":
            return f"Cancelled{_by(row.cancelled_by, users)}"
        case "TimedOut":
            return "TimedOut: the time limit was reached"
        case "OutOfMemory":
            return "OutOfMemory: the job used more memory than it asked for"
    ended = ""
    if (code := row.exit_code) is not None and (meaning.phase is Phase.FAILED or code.code or code.signal):
        ended = f"signal {code.signal}" if code.signal else f"exit code {code.code}"
    return f"{meaning.name}: " + ", ".join(filter(None, (ended, reason))) if ended or reason else meaning.name


def _by(user_id: int | None, users: Mapping[int, str]) -> str:
    if user_id is None:
        return ""
    return f" by uid {user_id} ({users[user_id]})" if user_id in users else f" by uid {user_id}"


def _counts(rows: Sequence[JobRow]) -> str:
    counts = Counter(row.state for row in rows)
    return ", ".join(f"{count} {state}" for state, count in counts.most_common())


def parse_state(text: str) -> tuple[str, int | None]:
    """Slurm's state field as its word and, for `CANCELLED by 1001`, the number of who did it."""
    text = text.strip()
    word = re.split(r"[\s+]", text, maxsplit=1)[0]
    by = re.search(r"\bby ([0-9]{1,18})$", text)
    return word, int(by[1]) if by else None
