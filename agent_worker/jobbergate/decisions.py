"""What a look at Jobbergate's submissions means for the worker that stands in for `jobbergate-agent`. Pure.

Nothing is decided because something is *not* listed: the API's pages have no order, and shift while they are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prefect.client.schemas.objects import StateType

from jobbergate_flows.jobbergate.links import Link
from jobbergate_flows.jobbergate.models import ActiveSubmission, PendingSubmission, SubmissionStatus

OVER = {StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED}
"""Of a run that is over."""


@dataclass(frozen=True, slots=True)
class Run:
    """Where the run of a submission is on the Prefect server; `message` is its state's."""

    type: StateType
    name: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """What is known after a look.

    Args:
        pending, active: What the API lists for the agent's client.
        links: Submission's id -> its link.
        runs: Flow run's id -> where it is; those that the server does not know are missing.
        with_job: Flow runs that have, or may have, a job, by the ledger.
        untold: Links of which something waits to be told.
        mirrored: Slurm ids of jobs that are ours, and are told of by their own links.
    """

    pending: Sequence[PendingSubmission] = ()
    active: Sequence[ActiveSubmission] = ()
    links: Mapping[int, Link] = field(default_factory=dict)
    runs: Mapping[str, Run] = field(default_factory=dict)
    with_job: frozenset[str] = frozenset()
    untold: frozenset[int] = frozenset()
    mirrored: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Start:
    """Make a run of a submission."""

    submission: PendingSubmission


@dataclass(frozen=True, slots=True)
class Reject:
    """Tell that a submission is not run, as its run is over and has no job."""

    link: Link
    reason: str


@dataclass(frozen=True, slots=True)
class CancelRun:
    """Have a submission's run cancelled, and with it its job."""

    flow_run_id: str


@dataclass(frozen=True, slots=True)
class Close:
    """Tell that a cancelled submission, which has no job, is over."""

    submission_id: int


@dataclass(frozen=True, slots=True)
class Follow:
    """Tell of a job that no run follows: the agent's before it was replaced, or one whose run was deleted.

    Args:
        link: Where there is one.
        cancel: Whether the job is to be cancelled.
    """

    submission: ActiveSubmission
    link: Link | None
    cancel: bool


Act = Start | Reject | CancelRun | Close | Follow


def decide(look: Look) -> list[Act]:
    """What is to be done. Pure; doing it twice does no harm."""
    acts: list[Act] = []
    for pending in look.pending:
        acts += _of_pending(look, pending)
    for active in look.active:
        acts += _of_active(look, active)
    return acts


def _of_pending(look: Look, pending: PendingSubmission) -> Iterable[Act]:
    link = look.links.get(pending.id)
    if link is None or (link.flow_run_id is None and not link.closed):
        yield Start(pending)
        return
    if link.flow_run_id in look.with_job or link.id in look.untold:
        return
    run = look.runs.get(link.flow_run_id or "")
    if link.closed:
        # Told before the list was read, or refused by the API: whoever does this asks the API once more.
        yield Reject(link, f"it was run before, and is told as over{f': {link.trouble}' if link.trouble else ''}")
    elif run is None:
        yield Reject(link, "Its flow run was deleted before its job was submitted")
    elif run.type in OVER:
        said = f": {run.message}" if run.message else ""
        yield Reject(link, f"Its flow run ended as {run.name} before its job was submitted{said}")


def _of_active(look: Look, active: ActiveSubmission) -> Iterable[Act]:
    link = look.links.get(active.id)
    cancelled = active.status is SubmissionStatus.CANCELLED
    if link is not None and (link.closed or link.ended):
        # Cancelled just when something else was told of it, which was refused then.
        if link.closed and not link.ended and cancelled and not _may_have_job(look, active, link):
            yield Close(active.id)
        return
    if link is None or link.flow_run_id is None:
        if active.slurm_job_id is None:
            if cancelled and (link is None or link.id not in look.untold):
                yield Close(active.id)
        elif link is not None or active.slurm_job_id not in look.mirrored:
            yield Follow(active, link, cancelled)
        return
    run = look.runs.get(link.flow_run_id)
    if run is not None and run.type not in OVER:
        if cancelled and run.type is not StateType.CANCELLING:
            yield CancelRun(link.flow_run_id)
    elif link.id in look.untold:
        return
    elif active.slurm_job_id is not None:
        yield Follow(active, link, cancelled)
    elif cancelled and link.flow_run_id not in look.with_job:
        yield Close(active.id)


def _may_have_job(look: Look, active: ActiveSubmission, link: Link) -> bool:
    return active.slurm_job_id is not None or link.key is not None or link.flow_run_id in look.with_job
