"""The tasks: render a job script, submit it, wait for the job, cancel it, publish what it left.

Each has an async twin whose name begins with `a`, as Prefect names them: `submit_job_script` in sync flows,
`asubmit_job_script` in async ones. They need no worker and no server of ours: a flow of anybody's may call them, on any
host that reaches the cluster.

    from prefect import flow
    from jobbergate_flows.tasks import render_job_script, submit_job_script, wait_for_job

    @flow
    def study(steps: int):
        script = render_job_script("examples/parameter-study", {"steps": steps})
        job = submit_job_script(script, directory="/scratch/me")
        return wait_for_job(job)
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Failed
from prefect.utilities.asyncutils import run_coro_as_sync

from jobbergate_flows.applications import Application, load_application
from jobbergate_flows.applications.job_script import JobScript
from jobbergate_flows.artifacts import RunArtifacts
from jobbergate_flows.blocks.application import aload_application
from jobbergate_flows.blocks.cluster import SlurmCluster
from jobbergate_flows.errors import JobbergateFlowsError
from jobbergate_flows.following import RunFollower
from jobbergate_flows.job_pages import job_script_markdown
from jobbergate_flows.job_task import job_task
from jobbergate_flows.live import live_report
from jobbergate_flows.publishing import publish_job
from jobbergate_flows.reporting import JobReporter
from jobbergate_flows.run_labels import label_run
from jobbergate_flows.run_logs import send_output
from jobbergate_flows.sessions import entered_session, session_for
from jobbergate_flows.slurm.errors import ClusterUnreachable, SubmissionCancelled
from jobbergate_flows.slurm.jobs import JobStatus, SlurmJob
from jobbergate_flows.slurm.options import SlurmResources, check_resources
from jobbergate_flows.slurm.output import OutputLine
from jobbergate_flows.slurm.patience import patiently
from jobbergate_flows.slurm.retries import RetryPolicy, check_policy
from jobbergate_flows.slurm.submission import SubmissionOrder
from jobbergate_flows.states import JobFailed, state_for

Cluster = SlurmCluster | str | None
T = TypeVar("T")
_RENDERINGS = 3


class ParallelSubmissions(JobbergateFlowsError):
    """Two submissions of one flow run overlap, and call order does not tell them apart."""


class WrongArgument(JobbergateFlowsError):
    """A task was called with something of another type."""


# Not the event loop's own threads: they are few, and applications that take their time would hold up everything.
_rendering = ThreadPoolExecutor(4, thread_name_prefix="render-job-script")


async def _render_job_script(
    application: Application | str | Path,
    answers: Mapping[str, Any] | None,
    job_name: str | None,
    sbatch: Sequence[str],
) -> JobScript:
    if isinstance(application, str) and "@sha256:" in application:
        application = await aload_application(application)
    elif not isinstance(application, Application | str | Path):
        raise WrongArgument(
            f"the application is {type(application).__name__}",
            where="application",
            hint="name its folder or git reference, or load it with Application.load",
        )
    elif not isinstance(application, Application):
        application = await asyncio.to_thread(load_application, application)
    session = entered_session()
    job_name, sbatch = job_name or None, tuple(sbatch)
    if session is not None and session.serve is not None:
        return await application.render_elsewhere(session.serve, answers, job_name=job_name, sbatch=sbatch)
    render = partial(copy_context().run, application.render, answers, job_name=job_name, sbatch=sbatch)
    return await asyncio.get_running_loop().run_in_executor(_rendering, render)


async def _rendered(
    application: Application | str | Path,
    answers: Mapping[str, Any] | None,
    job_name: str | None,
    sbatch: Sequence[str],
) -> JobScript:
    """Render, once the account that it is done as can be reached, however long that takes."""
    session = entered_session()
    tries = 0
    while True:
        if session is not None and session.serve is not None:
            # A small request first: what fails after it is more likely the application's doing than an outage.
            await _patiently("Not rendered yet", partial(session.expanded, "~"))
        try:
            return await _render_job_script(application, answers, job_name, sbatch)
        except ClusterUnreachable as error:
            tries += 1
            if tries == _RENDERINGS:
                raise
            _logger().warning("The rendering was lost, and is tried again: %s", error)


async def _submit_job_script(
    script: JobScript,
    resources: SlurmResources | Mapping[str, Any] | None,
    directory: str | Path,
    job_name: str | None,
    in_place: bool,
    cluster: Cluster,
    key: str | None,
    retries: RetryPolicy | Mapping[str, Any] | None,
) -> SlurmJob:
    _expect(JobScript, script=script, made_by="render_job_script")
    session = await session_for(cluster)
    logger = _logger()
    with _call_identity(key) as call:
        flow_run = _flow_run_id()
        own_key = await session.key(str(flow_run) if flow_run else None, call)
        order = SubmissionOrder(
            script=script,
            resources=check_resources(resources),
            directory=await _patiently("Not submitted yet", partial(session.expanded, directory)),
            in_place=in_place,
            job_name=job_name or script.name,
            key=own_key,
            flow_run_id=str(flow_run) if flow_run else None,
            retries=check_policy(retries),
            ends=await session.ends_before(own_key),
        )
        job = await session.submit(order, on_wait=lambda why: logger.warning("Not submitted yet: %s", why))
    logger.info(
        "Submitted %s as Slurm job %s on %s; its job script is %s/%s",
        job.name,
        job.job_id,
        job.cluster,
        job.directory,
        order.script_file,
    )
    artifacts = await _artifacts(job, call)
    await artifacts.add(
        "job-script",
        job_script_markdown(script, order.arguments),
        description="The job script as it was submitted",
        task_run_id=_task_run_id(),
    )
    if flow_run is not None:
        await label_run(flow_run, job, script.result_files)
    return job


async def _wait_for_job(job: SlurmJob, follow_state: bool, cluster: Cluster) -> JobStatus | State[Any]:
    _expect(SlurmJob, job=job, made_by="submit_job_script")
    session = await session_for(cluster)
    logger = _logger()
    follower = RunFollower.here() if follow_state else None
    report = await live_report(session, job, _flow_run())
    reporter = JobReporter.here(job)
    shown: JobStatus | None = None

    async def show_status(status: JobStatus) -> None:
        nonlocal shown
        if shown is None or (status.name, status.message) != (shown.name, shown.message):
            logger.info("Job %s: %s", job.job_id, status.message)
        shown = status
        await reporter.tell(status)
        if follower is not None and not status.final:
            await follower.tell(state_for(status, job))
        if report is not None:
            report.tell(status)

    async def show_output(lines: Sequence[OutputLine]) -> None:
        if report is not None:
            report.heard()
        await send_output(logger, lines, _flow_run_id(), _task_run_id())

    try:
        status = await session.wait(job, on_status=show_status, on_output=show_output)
    finally:
        if follower is not None:
            await follower.settle()
        if report is not None:
            await report.close()
    await reporter.settle()
    if state_for(status).is_completed():
        return status
    return state_for(status, job, data=JobFailed(job, status))


async def _cancel_job(job: SlurmJob, cluster: Cluster) -> None:
    _expect(SlurmJob, job=job, made_by="submit_job_script")
    session = await session_for(cluster)
    await session.cancel(job)
    _logger().info("Asked Slurm to cancel job %s on %s", job.job_id, job.cluster)


async def _publish_results(job: SlurmJob, cluster: Cluster) -> None:
    _expect(SlurmJob, job=job, made_by="submit_job_script")
    session = await session_for(cluster)
    status = await session.status(job)
    row = await asyncio.to_thread(session.ledger.get, job.key)
    artifacts = await _artifacts(job, row.call if row is not None else "")
    if (flow_run := _flow_run_id()) is not None and row is not None:
        # Whoever submitted it may have died before it said so.
        await label_run(flow_run, job, row.result_files)
    await publish_job(session, job, status, artifacts, _logger(), task_run_id=_task_run_id())


@job_task("render_job_script")
async def arender_job_script(
    application: Application | str | Path,
    answers: Mapping[str, Any] | None = None,
    *,
    job_name: str | None = None,
    sbatch: Sequence[str] = (),
) -> JobScript:
    """Render an application's job script. The async twin of `render_job_script`."""
    return await _ending_in_words(_rendered(application, answers, job_name, sbatch))


@job_task("render_job_script")
def render_job_script(
    application: Application | str | Path,
    answers: Mapping[str, Any] | None = None,
    *,
    job_name: str | None = None,
    sbatch: Sequence[str] = (),
) -> JobScript:
    """Render an application's job script.

    The application's own code runs in a separate process with limits on time, memory and output.

    Args:
        application: The application, a folder, `git+URL@REF#FOLDER`, or the pin of a stored one (`NAME@sha256:...`).
        answers: Variable name -> answer; what is missing takes its default.
        job_name: The job's name; otherwise the application's.
        sbatch: Options injected as `#SBATCH` lines, such as `--time=5`.

    Raises:
        ApplicationError: The application cannot be loaded, an answer is missing, unknown or wrong, or the template
            does not render. The error names the file and line, or the question.
    """
    return run_coro_as_sync(_ending_in_words(_rendered(application, answers, job_name, sbatch)))


@job_task("submit_job_script")
async def asubmit_job_script(
    script: JobScript,
    *,
    resources: SlurmResources | Mapping[str, Any] | None = None,
    directory: str | Path = "~",
    job_name: str | None = None,
    in_place: bool = False,
    cluster: SlurmCluster | str | None = None,
    key: str | None = None,
    retries: RetryPolicy | Mapping[str, Any] | None = None,
) -> SlurmJob:
    """Submit a job script, once. The async twin of `submit_job_script`."""
    return await _ending_in_words(
        _submit_job_script(script, resources, directory, job_name, in_place, cluster, key, retries)
    )


@job_task("submit_job_script")
def submit_job_script(
    script: JobScript,
    *,
    resources: SlurmResources | Mapping[str, Any] | None = None,
    directory: str | Path = "~",
    job_name: str | None = None,
    in_place: bool = False,
    cluster: SlurmCluster | str | None = None,
    key: str | None = None,
    retries: RetryPolicy | Mapping[str, Any] | None = None,
) -> SlurmJob:
    """Submit a job script, once.

    A flow run that is run again after a crash gets the job that its first life submitted; one that is retried after
    its job ended submits a new one. Limits of Slurm's (submitted jobs of a user) and outages are waited out.

    Args:
        script: What `render_job_script` returned, or a `JobScript` of your own.
        resources: sbatch options that override the script's `#SBATCH` lines.
        directory: The base, which must exist; the job runs in `<directory>/<job name>-<key>`.
        job_name: The job's name; otherwise the script's.
        in_place: Run in `directory` itself.
        cluster: A `SlurmCluster` block or its name; otherwise this machine's cluster.
        key: Tells apart submissions that a flow makes in parallel; needed for those only.
        retries: When, and with how much more, the next submission of a flow run that is run again is made: what an
            application's flow does by itself.

    Raises:
        OptionRefused, DirectoryRefused, FileRefused: before anything is submitted.
        SubmissionRefused: with sbatch's own words.
        SubmissionCancelled: the run was cancelled first.
        ParallelSubmissions: parallel calls without a `key`.
    """
    return run_coro_as_sync(
        _ending_in_words(_submit_job_script(script, resources, directory, job_name, in_place, cluster, key, retries))
    )


@job_task("wait_for_job")
async def await_for_job(
    job: SlurmJob, *, follow_state: bool = False, cluster: SlurmCluster | str | None = None
) -> JobStatus:
    """Wait until a job is final. The async twin of `wait_for_job`."""
    return await _wait_for_job(job, follow_state, cluster)  # type: ignore[return-value]


@job_task("wait_for_job")
def wait_for_job(job: SlurmJob, *, follow_state: bool = False, cluster: SlurmCluster | str | None = None) -> JobStatus:
    """Wait until a job is final, with its states and its output in the run's logs.

    Args:
        job: What `submit_job_script` returned.
        follow_state: Let the flow run's own state follow the job's: Pending while it waits in Slurm's queue.
            For flows that are about one job.
        cluster: As for `submit_job_script`.

    Returns:
        The final status of a job that is Completed.

    Raises:
        JobFailed: The job ended otherwise; the task run ends in the state that says how (`OutOfMemory`, `TimedOut`,
            `Cancelled`, ...).
    """
    return run_coro_as_sync(_wait_for_job(job, follow_state, cluster))


@job_task("cancel_job")
async def acancel_job(job: SlurmJob, *, cluster: SlurmCluster | str | None = None) -> None:
    """Ask Slurm to cancel a job. The async twin of `cancel_job`."""
    await _cancel_job(job, cluster)


@job_task("cancel_job")
def cancel_job(job: SlurmJob, *, cluster: SlurmCluster | str | None = None) -> None:
    """Ask Slurm to cancel a job; `wait_for_job` tells when it is over. An ended job is no error."""
    run_coro_as_sync(_cancel_job(job, cluster))


@job_task("publish_results")
async def apublish_results(job: SlurmJob, *, cluster: SlurmCluster | str | None = None) -> None:
    """Publish what an ended job has left, as artifacts. The async twin of `publish_results`."""
    await _publish_results(job, cluster)


@job_task("publish_results")
def publish_results(job: SlurmJob, *, cluster: SlurmCluster | str | None = None) -> None:
    """Publish what an ended job has left, as artifacts of the run.

    Its summary (ids, partition, nodes, times, exit code, reason), its efficiency with advice for the next time, plots
    of its metrics where the setting `metrics` names a block, and its result files.
    """
    run_coro_as_sync(_publish_results(job, cluster))


async def _ending_in_words(act: Coroutine[Any, Any, T]) -> T:
    """End the task run with the error's words instead of a traceback; who called the task still gets the error."""
    try:
        return await act
    except SubmissionCancelled as error:
        return cast(T, Cancelled(message=str(error), data=error))
    except JobbergateFlowsError as error:
        return cast(T, Failed(message=str(error), data=error))


async def _patiently(what: str, act: Callable[[], Awaitable[T]]) -> T:
    logger = _logger()
    return await patiently(act, lambda why: logger.warning("%s: %s", what, why))


def _expect(kind: type, *, made_by: str, **named: object) -> None:
    for name, value in named.items():
        if not isinstance(value, kind):
            raise WrongArgument(
                f"{name} is {type(value).__name__}, not {kind.__name__}", where=name, hint=f"{made_by} returns one"
            )


_calls: Counter[tuple[UUID, int]] = Counter()
_submitting: set[UUID] = set()


@contextmanager
def _call_identity(key: str | None) -> Iterator[str]:
    """The name of this submission within its flow run: its key, or its place in the order of calls."""
    context = FlowRunContext.get()
    run = _flow_run_id()
    if key is not None or run is None:
        yield key or "script"
        return
    if run in _submitting:
        raise ParallelSubmissions(
            "two submissions of this flow run overlap",
            hint="give each parallel call of submit_job_script a key= of its own",
        )
    count = (run, context.flow_run.run_count if context and context.flow_run else 0)
    _submitting.add(run)
    try:
        yield f"call-{_calls[count]}"
        _calls[count] += 1
    finally:
        _submitting.discard(run)


async def _artifacts(job: SlurmJob, call: str) -> RunArtifacts:
    return await RunArtifacts.of(_flow_run(), job.key, call=call)


def _flow_run() -> FlowRun | UUID | None:
    context = FlowRunContext.get()
    return (context.flow_run if context is not None else None) or _flow_run_id()


def _flow_run_id() -> UUID | None:
    flow = FlowRunContext.get()
    if flow is not None and flow.flow_run is not None:
        return flow.flow_run.id
    running = TaskRunContext.get()
    return running.task_run.flow_run_id if running is not None else None


def _task_run_id() -> UUID | None:
    running = TaskRunContext.get()
    return running.task_run.id if running is not None else None


def _logger() -> logging.Logger | logging.LoggerAdapter[logging.Logger]:
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("jobbergate_flows")


__all__ = [
    "JobFailed",
    "ParallelSubmissions",
    "SubmissionCancelled",
    "WrongArgument",
    "acancel_job",
    "apublish_results",
    "arender_job_script",
    "asubmit_job_script",
    "await_for_job",
    "cancel_job",
    "publish_results",
    "render_job_script",
    "submit_job_script",
    "wait_for_job",
]
