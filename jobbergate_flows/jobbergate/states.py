"""Slurm's job states in the words of the Jobbergate API, so that it takes each and none stays SUBMITTED for ever."""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import datetime
from typing import Any

from jobbergate_flows.jobbergate.errors import JobbergateError
from jobbergate_flows.jobbergate.models import JobData
from jobbergate_flows.slurm.jobs import JobRow, JobStatus, Phase, SlurmJob
from jobbergate_flows.slurm.states import MEANINGS

DONE = "COMPLETED"
"""The state that makes a submission DONE."""
ABORTED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "PREEMPTED", "SPECIAL_EXIT", "TIMEOUT", "UNKNOWN"}
)
"""The states that make it ABORTED; SPECIAL_EXIT too, which Slurm means as held."""
GOING_ON = frozenset(
    {
        "CONFIGURING", "COMPLETING", "PENDING", "RUNNING", "RESV_DEL_HOLD", "REQUEUE_FED", "REQUEUE_HOLD", "REQUEUED",
        "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED",
    }
)  # fmt: skip
"""The states that leave it SUBMITTED, and rightly so. OUT_OF_MEMORY and REVOKED, its others, are ends in Slurm."""
ARRAY_TASKS = 100
"""So many of an array's tasks are told one by one."""
_MAX_ID = 2**31 - 1
_LASTING = ("partition", "node_count", "cpus", "time_limit")


def job_data(job: SlurmJob, status: JobStatus, before: JobData | None = None) -> JobData:
    """What the API is told of a job. Pure.

    Args:
        before: What it was told last: for a moment accounting knows a job's end, but not what it had.

    Raises:
        JobbergateError: The API has no place for the job's id.
    """
    state = _state(status)
    said = status.message if status.message.startswith(status.name) else f"{status.name}: {status.message}"
    info = _info(job, status)
    if status.final and before is not None:
        known = json.loads(before.slurm_job_info)
        info |= {name: known[name] for name in _LASTING if name in known and name not in info}
    return JobData(
        slurm_job_id=slurm_job_id(job.job_id),
        slurm_job_state=state,
        slurm_job_info=json.dumps(info),
        slurm_job_state_reason=_taken(said),
    )


def submitted_data(job: SlurmJob) -> JobData:
    """What the API is told of a job that Slurm has just got. Pure.

    Raises:
        JobbergateError: The API has no place for the job's id.
    """
    return job_data(job, JobStatus(Phase.PENDING, "Queued", "Pending: just submitted", "PENDING", final=False))


def is_end(state: str) -> bool:
    """Whether a submission ends with that state. Pure."""
    return state == DONE or state in ABORTED


def slurm_job_id(job_id: str) -> int:
    """A job's or an array's id as the API has it. Pure.

    Raises:
        JobbergateError: It is none of Slurm's, or larger than the API's column (a federation's may be).
    """
    found = re.match(r"[0-9]+", job_id)
    if found is None or int(found[0]) > _MAX_ID:
        raise JobbergateError(f"the Jobbergate API has no place for the job id {job_id}")
    return int(found[0])


def _state(status: JobStatus) -> str:
    word = status.state
    if status.final:
        if status.phase is Phase.COMPLETED:
            return DONE
        if status.name == "Lost":
            return "UNKNOWN"
        # SPECIAL_EXIT is no end in Slurm, and a job that is over is never COMPLETED here.
        return word if word in ABORTED - {"SPECIAL_EXIT"} else "FAILED"
    meaning = MEANINGS.get(word)
    if word in GOING_ON and meaning is not None and meaning.phase is status.phase:
        return word
    if word == "SPECIAL_EXIT":
        return "REQUEUE_HOLD"
    # An array of which a part is over, or a job that Slurm may bring back.
    return "RUNNING" if status.phase is Phase.RUNNING else "PENDING"


def _info(job: SlurmJob, status: JobStatus) -> dict[str, Any]:
    """What Slurm shows of the job, by the names that `scontrol show job --json` has for it."""
    info: dict[str, Any] = {
        "job_id": job.job_id,
        "cluster": job.cluster,
        "name": job.name,
        "user_name": job.user,
        "job_state": status.state,
        "state_reason": status.reason,
        "state_description": status.message,
        "exit_code": str(status.exit_code) if status.exit_code is not None else None,
        "partition": status.partition,
        "nodes": status.nodes,
        "node_count": status.node_count,
        "cpus": status.cpus,
        "time_limit": status.time_limit,
        "submit_time": _seconds(status.submit or job.submitted_at),
        "start_time": _seconds(status.start),
        "end_time": _seconds(status.end),
        "current_working_directory": job.directory,
        "standard_output": job.standard_output,
        "standard_error": job.standard_error,
    }
    info = {name: _taken(value) if isinstance(value, str) else value for name, value in info.items()}
    if job.array and status.rows:
        info["array_task_states"] = dict(Counter(row.state for row in status.rows))
        info["array_tasks"] = [_task(row) for row in status.rows[:ARRAY_TASKS]]
    return {name: value for name, value in info.items() if value is not None}


def _task(row: JobRow) -> dict[str, Any]:
    return {
        "array_task_id": row.array_task_id,
        "job_state": row.state,
        "exit_code": str(row.exit_code) if row.exit_code is not None else None,
        "nodes": row.nodes,
    }


def _seconds(moment: datetime | None) -> int | None:
    return int(moment.timestamp()) if moment is not None else None


def _taken(text: str) -> str:
    # PostgreSQL has no place for NUL, and JSON none for half of a pair of surrogates.
    return text.replace("\0", "�").encode("utf-8", "replace").decode("utf-8")
