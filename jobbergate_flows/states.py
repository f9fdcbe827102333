"""Slurm's job states as Prefect states. Pure: nothing here talks to a server."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from prefect.client.schemas.objects import State, StateType
from prefect.states import AwaitingRetry

from jobbergate_flows.errors import JobbergateFlowsError
from jobbergate_flows.slurm.jobs import JobStatus, Phase, SlurmJob
from jobbergate_flows.slurm.retries import GivenUp, Retry

RETRY_SECONDS = 10
"""So long after an attempt's end the next may begin: whoever ran it has ended by then."""

_TYPES = {
    Phase.PENDING: StateType.PENDING,
    Phase.RUNNING: StateType.RUNNING,
    Phase.COMPLETED: StateType.COMPLETED,
    Phase.FAILED: StateType.FAILED,
    Phase.CRASHED: StateType.CRASHED,
    Phase.CANCELLED: StateType.CANCELLED,
}


class JobFailed(JobbergateFlowsError):
    """A job ended otherwise than Completed.

    `status` says how, `job` which one.
    """

    def __init__(self, job: SlurmJob, status: JobStatus) -> None:
        super().__init__(f"job {job.job_id}: {status.message}")
        self.job = job
        self.status = status


_NAMES = {"Suspended": "JobSuspended"}
"""Slurm's Suspended is Prefect's for a run whose engine is to end: engines listen for a state of that name."""


def state_for(status: JobStatus, job: SlurmJob | None = None, *, data: Any = None) -> State[Any]:
    """The Prefect state that says what `status` says.

    Its type is the phase, its name the status's (`Queued`, `Running`, `OutOfMemory`, ...; but `JobSuspended`), its
    message Slurm's reason, exit code and the job's id.
    """
    message = status.message if job is None else f"{status.message} (Slurm job {job.job_id} on {job.cluster})"
    name = _NAMES.get(status.name, status.name)
    return State(type=_TYPES[status.phase], name=name, message=message, data=data)


def says(current: State[Any] | None, state: State[Any]) -> bool:
    """Whether a run that is `current` says already what `state` does: setting it again would be another event of it."""
    return current is not None and (current.name, current.message) == (state.name, state.message)


def state_after(state: State[Any], job: SlurmJob, decided: Retry | GivenUp, now: datetime) -> State[Any]:
    """The state of a run whose job has ended: AwaitingRetry, or `state` with why there is no retry."""
    if isinstance(decided, Retry):
        due = now + timedelta(seconds=RETRY_SECONDS)
        return AwaitingRetry(message=f"{decided.reason} (after Slurm job {job.job_id})", scheduled_time=due)
    if decided.reason is not None:
        state = state.model_copy(update={"message": f"{state.message}; not retried: {decided.reason}"})
    return state


def states_since(states: Iterable[State[Any]], before: State[Any]) -> list[State[Any]]:
    """Those of a run's states, in any order, that came after `before`, the first one first.

    The server mints their times, no two of a run the same.
    """
    return sorted((state for state in states if state.timestamp > before.timestamp), key=lambda state: state.timestamp)


def keeping_slot(state: State[Any], current: State[Any] | None) -> State[Any]:
    """`state` with the deployment's concurrency slot of the run's current state.

    A forced state that does not carry the lease drops the slot, and another run of the deployment could start.
    """
    if current is None:
        return state
    lease = current.state_details.deployment_concurrency_lease_id
    if lease is None:
        return state
    details = state.state_details.model_copy(update={"deployment_concurrency_lease_id": lease})
    return state.model_copy(update={"state_details": details})
