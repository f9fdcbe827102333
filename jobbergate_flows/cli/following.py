"""Submitting a job and following it on the terminal; and the output of jobs that are there."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal

from jobbergate_flows.applications.job_script import JobScript
from jobbergate_flows.cli.exits import Exit, say
from jobbergate_flows.slurm.cluster import Cluster
from jobbergate_flows.slurm.connect import connect
from jobbergate_flows.slurm.errors import SubmissionCancelled
from jobbergate_flows.slurm.jobs import JobStatus, Known, Phase, SlurmJob
from jobbergate_flows.slurm.ledger import Ledger, SubmissionKey
from jobbergate_flows.slurm.options import SlurmResources
from jobbergate_flows.slurm.output import OutputFollower, OutputLimits, OutputLine, with_task
from jobbergate_flows.slurm.paths import task_path
from jobbergate_flows.slurm.session import ClusterSession
from jobbergate_flows.slurm.states import summarize
from jobbergate_flows.slurm.submission import SubmissionOrder
from jobbergate_flows.slurm.tracker import JobTracker

_LOOK_SECONDS = 1.0
_RUN_LIMITS = OutputLimits(round=1 << 20, total=64 << 20)
_NO_LIMITS = OutputLimits(round=1 << 20, total=sys.maxsize)


def run_job(
    script: JobScript,
    resources: SlurmResources,
    *,
    directory: Path,
    in_place: bool,
    access: str,
    detach: bool,
) -> Exit:
    """Submit a job and follow it to its end: its output on standard output and error, its states on standard error.

    The first interrupt before Slurm has the job gives the submission up; after that it leaves the job alone.

    Args:
        directory: An existing directory, absolute.
        in_place: Run in it, instead of in a new directory below it.
        access: As for `connect`.
        detach: Print the job's id, and do not follow it.

    Raises:
        DirectoryRefused, FileRefused, SubmissionRefused, ClusterUnreachable, LedgerError
    """
    session = ClusterSession(connect(access), Ledger.open(), output_limits=_RUN_LIMITS)
    order = SubmissionOrder(
        script=script,
        resources=resources,
        directory=str(directory),
        key=SubmissionKey.once(),
        in_place=in_place,
    )
    return asyncio.run(_run_job(session, order, detach))


async def print_output(
    cluster: Cluster, job: SlurmJob, stream: Literal["stdout", "stderr"], *, lines: int, follow: bool
) -> None:
    """Print the last lines of one of a job's streams, and with `follow` what comes, until the job ends."""
    status = await _status(cluster, job)
    follower = OutputFollower(cluster, job, await _starts(cluster, job, status, lines), _NO_LIMITS)

    def show(found: Sequence[OutputLine]) -> None:
        for text in with_task([line for line in found if line.stream == stream]):
            print(text, flush=True)

    if follow:
        with JobTracker(cluster).watch(job) as watch:
            final = asyncio.create_task(watch.final())
            while not final.done():
                show(await follower.read(watch.current))
                await asyncio.wait({final}, timeout=_LOOK_SECONDS)
            status = await final
    show(await follower.read(status, to_the_end=True))


async def _run_job(session: ClusterSession, order: SubmissionOrder, detach: bool) -> Exit:
    with _interrupts() as interrupted:
        job = await _submit(session, order, interrupted)
        if job is None:
            return Exit.INTERRUPTED
        where = f"job {job.job_id} on {job.cluster}"
        say(f"{_now()} Submitted {where}, in {job.directory}")
        if detach:
            print(job.job_id)
            say(f"Hint: `jobbergate-flows job logs -f {job.job_id}` follows it")
            return Exit.OK
        status = await _follow(session, job, interrupted)
        if status is None:
            say(f"{where.capitalize()} goes on.")
            say(
                f"Hint: `jobbergate-flows job cancel {job.job_id}` cancels it, "
                f"`jobbergate-flows job logs -f {job.job_id}` follows it"
            )
            return Exit.INTERRUPTED
        await session.mark_told(job)
        return Exit.OK if status.phase is Phase.COMPLETED else Exit.FAILED


async def _submit(session: ClusterSession, order: SubmissionOrder, interrupted: asyncio.Event) -> SlurmJob | None:
    submitting = asyncio.create_task(session.submit(order, on_wait=lambda why: say(f"{_now()} {why}")))
    if await _first(submitting, interrupted):
        return await submitting
    key = order.key.token
    say("Giving up the submission; another interrupt leaves it as it is.")
    interrupted.clear()
    await asyncio.to_thread(session.ledger.request_cancel, key)
    if not await _first(submitting, interrupted):
        submitting.cancel()
        say(f"Hint: Slurm may have the job; `jobbergate-flows job cancel {key}` looks it up and cancels it")
        return None
    try:
        await session.cancel(await submitting)
    except SubmissionCancelled:
        say("Nothing was submitted.")
    return None


async def _follow(session: ClusterSession, job: SlurmJob, interrupted: asyncio.Event) -> JobStatus | None:
    unread = asyncio.Event()

    async def show_status(status: JobStatus) -> None:
        say(f"{_now()} {status.message}")

    async def show_output(lines: Sequence[OutputLine]) -> None:
        for line, text in zip(lines, with_task(lines), strict=True):
            try:
                print(text, file=sys.stderr if line.stream == "stderr" else sys.stdout, flush=True)
            except BrokenPipeError:
                # The session would take it for an output that is to be handed over again.
                unread.set()
                return

    async def show_problems() -> None:
        told: str | None = None
        while True:
            problem = session.tracker.problem
            if problem != told:
                say(f"{_now()} {f'Slurm does not answer: {problem}' if problem else 'Slurm answers again'}")
                told = problem
            await asyncio.sleep(_LOOK_SECONDS)

    waiting = asyncio.create_task(session.wait(job, on_status=show_status, on_output=show_output))
    problems = asyncio.create_task(show_problems())
    try:
        ended = await _first(waiting, interrupted, unread)
        if unread.is_set():
            raise BrokenPipeError("nobody reads the output any more")
        return await waiting if ended else None
    finally:
        waiting.cancel()
        problems.cancel()


async def _first(task: asyncio.Task[object], *events: asyncio.Event) -> bool:
    """Wait for the task or one of the events; whether it was the task."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait({task, *waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for event in waiting:
            event.cancel()
    return task.done()


@contextmanager
def _interrupts() -> Iterator[asyncio.Event]:
    # asyncio's own way with an interrupt cancels everything at once, also a submission half made.
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, interrupted.set)
    try:
        yield interrupted
    finally:
        loop.remove_signal_handler(signal.SIGINT)


async def _status(cluster: Cluster, job: SlurmJob) -> JobStatus | None:
    observation = (await cluster.query({job.job_id: job.submitted_at}))[job.job_id]
    return summarize(observation.rows, requeue=job.requeue) if isinstance(observation, Known) else None


async def _starts(cluster: Cluster, job: SlurmJob, status: JobStatus | None, lines: int) -> dict[str, int]:
    """Path -> where the last lines of the file begin, in bytes."""
    tasks = [row.array_task_id for row in status.rows] if job.array and status is not None else [None]
    patterns = {job.standard_output, job.standard_error} - {None}
    starts = {}
    for path in {task_path(str(pattern), task) for pattern in patterns for task in tasks}:
        probe = await cluster.read(path, offset=0, limit=0)
        if probe is None:
            continue
        window = min(probe.size, lines * 400 + 4096)
        chunk = await cluster.read(path, offset=probe.size - window, limit=window)
        starts[path] = probe.size - window + _beginning(chunk.data if chunk else b"", lines)
    return starts


def _beginning(data: bytes, lines: int) -> int:
    """Where the last lines of the data begin."""
    position = len(data) - data.endswith(b"\n")
    for _ in range(lines):
        position = data.rfind(b"\n", 0, position)
        if position < 0:
            return 0
    return min(position + 1, len(data)) if lines else len(data)


def _now() -> str:
    return f"{datetime.now():%H:%M:%S}"
