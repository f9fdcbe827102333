"""The life of an ordinary flow's run: a Slurm job that runs Prefect's engine, watched so that it cannot die unseen."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging.loggers import flow_run_logger
from prefect.states import Cancelled, Crashed, Failed

from agent_worker.configuration import FlowJobConfiguration
from agent_worker.flow_output import OwnOutput
from agent_worker.flow_script import environment_text, flow_job_script
from agent_worker.flow_states import FlowStates
from agent_worker.runs import engine_waits, force_state, read_run
from jobbergate_flows.applications.job_script import JobScript
from jobbergate_flows.artifacts import RunArtifacts
from jobbergate_flows.errors import JobbergateFlowsError
from jobbergate_flows.following import RunFollower
from jobbergate_flows.job_pages import job_script_markdown
from jobbergate_flows.live import live_report
from jobbergate_flows.publishing import publish_job
from jobbergate_flows.reporting import JobReporter
from jobbergate_flows.run_logs import send_output
from jobbergate_flows.sessions import session_for
from jobbergate_flows.slurm.errors import SubmissionCancelled
from jobbergate_flows.slurm.jobs import JobStatus, Phase, SlurmJob
from jobbergate_flows.slurm.output import OutputLine, tail
from jobbergate_flows.slurm.patience import patiently
from jobbergate_flows.slurm.session import ClusterSession
from jobbergate_flows.slurm.submission import SECRET_FILE, SubmissionOrder
from jobbergate_flows.states import says, state_after, state_for, states_since

_logger = logging.getLogger(__name__)
_TAIL_LINES = 40


async def live(flow_run: FlowRun, configuration: FlowJobConfiguration, states: FlowStates) -> State[Any] | None:
    """Submit the flow's job, follow it, and see to it that the run ends as the job did.

    What stops a submission (a bad option, a directory that is not there, sbatch's refusal) ends the run Failed.

    Args:
        flow_run: The run.
        configuration: Its job's.
        states: Tells the run what its job says.

    Returns:
        The state in which the run goes back to its queue for another attempt, which is to be set when this has ended,
        and before the job's end is marked told; None otherwise.
    """
    session = await session_for()
    logger = flow_run_logger(flow_run)
    begun = await read_run(flow_run.id)
    if begun is None:
        return None
    try:
        # What an earlier life of the run submitted is only followed, whatever its configuration is by now.
        job = await session.job_of(str(flow_run.id), "flow")
        if job is None:
            job = await _submit(session, flow_run, configuration, logger)
    except SubmissionCancelled as error:
        await force_state(flow_run.id, Cancelled(message=str(error)))
        return None
    except (JobbergateFlowsError, ValueError) as error:
        logger.error("The flow's job was not submitted: %s", error)
        await force_state(flow_run.id, Failed(message=f"The flow's job was not submitted: {error}"))
        return None
    return await follow(session, begun, job, states)


async def finish(session: ClusterSession, flow_run: FlowRun, states: FlowStates) -> State[Any] | None:
    """Settle a run that is over itself with its job, where that has one whose end was not told. Returns as `live`."""
    job = await session.job_of(str(flow_run.id), "flow")
    return None if job is None else await follow(session, flow_run, job, states)


async def follow(session: ClusterSession, flow_run: FlowRun, job: SlurmJob, states: FlowStates) -> State[Any] | None:
    """Follow a submitted flow's job to its end, and settle the run's state with it. Returns as `live` does.

    Args:
        flow_run: The run with the state that it had when this life of it began.
    """
    logger = flow_run_logger(flow_run)
    follower = RunFollower(flow_run.id, engine_on_node=True)
    report = await live_report(session, job, flow_run)
    reporter = JobReporter(job, flow_run.id)

    async def show(status: JobStatus) -> None:
        logger.info("Job %s: %s", job.job_id, status.message)
        await reporter.tell(status)
        if not status.final:
            await states.tell(follower, state_for(status, job))
        if report is not None:
            report.tell(status)

    own = OwnOutput()

    async def show_output(lines: Sequence[OutputLine]) -> None:
        if report is not None:
            report.heard()
        await send_output(logger, own.of(lines), flow_run.id)

    try:
        status = await session.wait(job, on_status=show, on_output=show_output)
    finally:
        states.forget(flow_run.id)
    await follower.settle()
    if report is not None:
        await report.close()
    await reporter.settle()
    await session.remove_secret(job)
    run = await read_run(flow_run.id)
    if run is None:
        return None
    # Where that has come from its queue already, it is taken up when it is held no more.
    ending = None if await _was_begun_anew(flow_run, run) else settled(run, status, job)
    if ending is not None:
        if status.phase is not Phase.COMPLETED:
            await _forward_tail(session, job, logger)
        if not ending.is_cancelled():
            decided = await session.next_attempt(job, status, on_wait=logger.warning)
            ending = state_after(ending, job, decided, datetime.now(UTC))
        is_news = not ending.is_scheduled() and not says(run.state, ending)
        # By now: accounting may have been waited for.
        if is_news and not await _was_begun_anew(flow_run, await read_run(flow_run.id)):
            await force_state(flow_run.id, ending)
    try:
        await publish_job(session, job, status, await RunArtifacts.of(flow_run, job.key), logger, results=False)
    except Exception:
        # The run's next attempt matters more than the pages of this one.
        logger.exception("Job %s has not all of its pages", job.job_id)
    if ending is not None and ending.is_scheduled():
        return ending
    await session.mark_told(job)
    return None


async def _was_begun_anew(before: FlowRun, now: FlowRun | None) -> bool:
    """Whether the run's state is not that of its old job any more; see `begun_anew`."""
    if before.state is None or now is None or now.state is None:
        return False
    if not (now.state.is_pending() or now.state.is_scheduled()):
        return False
    async with get_client() as client:
        return begun_anew(await client.read_flow_run_states(now.id), before.state)


def begun_anew(states: Iterable[State[Any]], before: State[Any]) -> bool:
    """Whether somebody has put a run back into its queue that has ended, since it had the state `before`. Pure.

    The engine on a node tells its end at once, Slurm's is seen up to a minute later; whoever retries the run does not
    wait for that. The engine's own retry waits in its process: it comes from no end.
    """
    has_ended = before.is_final()
    for state in states_since(states, before):
        if has_ended and state.is_scheduled():
            return True
        has_ended = has_ended or state.is_final()
    return False


def settled(run: FlowRun, status: JobStatus, job: SlurmJob) -> State[Any] | None:
    """The state that a run needs once its job is final; None where the run's own end stands.

    Slurm's named state wins over what the engine could still say while it was being killed. Pure.
    """
    current = run.state
    ended = current is not None and current.is_final()
    if status.phase is Phase.CANCELLED:
        return None if ended and current and not current.is_crashed() else state_for(status, job)
    killed = status.name not in ("Completed", "Failed") or bool(status.exit_code and status.exit_code.signal)
    if ended and current is not None:
        return state_for(status, job) if killed and not current.is_completed() else None
    if current is not None and current.is_cancelling():
        return Cancelled(message=f"{status.message} (Slurm job {job.job_id})")
    # An engine that waited has died with its job.
    if current is not None and (current.is_scheduled() or current.is_paused()) and not engine_waits(run):
        return None
    if status.phase is Phase.COMPLETED:
        return Crashed(message=f"Slurm job {job.job_id} is {status.message}, but the flow did not report its end")
    return state_for(status, job)


async def _submit(
    session: ClusterSession,
    flow_run: FlowRun,
    configuration: FlowJobConfiguration,
    logger: Any,
) -> SlurmJob:
    def say(why: str) -> None:
        logger.warning("Not submitted yet: %s", why)

    environment = environment_text(configuration.env)
    name = configuration.name or flow_run.name
    script = JobScript(
        name=name,
        text=flow_job_script(
            command=configuration.flow_command(),
            environment_file=f"./{SECRET_FILE}",
            modules=configuration.modules,
            setup_commands=configuration.setup_commands,
            working_directory=configuration.working_directory,
        ),
    )
    key = await session.key(str(flow_run.id), "flow")
    order = SubmissionOrder(
        script=script,
        resources=configuration.resources(),
        directory=await patiently(lambda: session.expanded(configuration.directory), say),
        key=key,
        flow_run_id=str(flow_run.id),
        kind="flow",
        secret=environment,
        retries=configuration.retries,
        ends=await session.ends_before(key),
    )
    job = await session.submit(order, on_wait=say)
    logger.info("Submitted as Slurm job %s on %s; it runs in %s", job.job_id, job.cluster, job.directory)
    artifacts = await RunArtifacts.of(flow_run, job.key)
    await artifacts.add(
        "job-script",
        job_script_markdown(order.script, order.arguments),
        description="The job script as it was submitted",
    )
    return job


async def _forward_tail(session: ClusterSession, job: SlurmJob, logger: Any) -> None:
    for path in dict.fromkeys(filter(None, (job.standard_output, job.standard_error))):
        try:
            lines = await tail(session.cluster, path, _TAIL_LINES)
        except JobbergateFlowsError as error:
            logger.warning("The end of %s cannot be shown: %s", path, error)
            continue
        if lines:
            logger.error(
                "The end of %s at %s:\n%s", path, datetime.now(UTC).isoformat(timespec="seconds"), "\n".join(lines)
            )
