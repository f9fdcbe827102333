"""An application as a Prefect flow, whose own signature is the form."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.deployments.runner import RunnerDeployment
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Failed
from prefect.types.entrypoint import EntrypointType
from prefect.utilities.asyncutils import run_coro_as_sync
from prefect.utilities.callables import parameter_schema
from pydantic import Field, WithJsonSchema, validate_call

from jobbergate_flows.applications import Application
from jobbergate_flows.blocks.application import (
    ApplicationNotStored,
    aload_application,
    astore_application,
    pin,
    pin_of_form,
)
from jobbergate_flows.errors import JobbergateFlowsError
from jobbergate_flows.sessions import entered_session, session_for
from jobbergate_flows.slurm.errors import SubmissionCancelled
from jobbergate_flows.slurm.jobs import SlurmJob
from jobbergate_flows.slurm.options import SlurmResources, resources_schema
from jobbergate_flows.slurm.retries import retries_schema
from jobbergate_flows.states import JobFailed, state_after, state_for
from jobbergate_flows.tasks import (
    apublish_results,
    arender_job_script,
    asubmit_job_script,
    await_for_job,
)

ENTRYPOINT = "jobbergate_flows.flows.run_application"
"""The entrypoint of a deployed application. Our worker runs what has it resident, in its own process."""
CALL = "job"
"""The key of the one submission of a run that is about one job."""

_PARAMETERS = """
    Args:
        application: The application and the digest of its files. Deploy again to use another version.
        answers: The application's own questions.
        resources: What Slurm is asked for. Empty fields keep what the job script says.
        retries: When the job is submitted again, and with how much more.
        directory: An existing directory of the cluster. The job runs in a new directory below it.
        job_name: The job's name in Slurm. Empty: the application's own.
"""


async def _run(
    load: Callable[[], Awaitable[Application]],
    answers: Any,
    resources: Any,
    directory: str,
    job_name: str,
    retries: Any,
) -> State[Any]:
    async def submit() -> SlurmJob:
        script = await arender_job_script(await load(), answers or {}, job_name=job_name or None)
        job: SlurmJob = await asubmit_job_script(
            script, resources=resources, directory=directory, key=CALL, retries=retries
        )
        return job

    return await run_job(submit)


async def run_job(submit: Callable[[], Awaitable[SlurmJob]]) -> State[Any]:
    """Submit the one job of this flow run, follow it to its end and publish what it left.

    Args:
        submit: Submits it with `CALL` as its key. It is not called where an earlier life of the run has done that.

    Returns:
        The run's state, as the job ended; or the one in which it waits for its next attempt.
    """
    try:
        # What an earlier life of the run submitted is only followed: its code has run already, and may be gone.
        job = await _submitted_before() or await submit()
    except SubmissionCancelled as error:
        return Cancelled(message=str(error))
    except JobbergateFlowsError as error:
        return Failed(message=str(error), data=error)
    ended = await await_for_job(job, follow_state=True, return_state=True)
    outcome = await ended.aresult(raise_on_failure=False)
    if not isinstance(outcome, JobFailed) and not ended.is_completed():
        return Failed(message=f"Slurm job {job.job_id} could not be followed: {outcome}", data=outcome)
    await apublish_results(job, return_state=True)
    status = outcome.status if isinstance(outcome, JobFailed) else outcome
    session = await session_for()
    decided = await session.next_attempt(job, status, on_wait=get_run_logger().warning)
    if entered_session() is None:
        # Our worker does that itself, once the server has the run's end.
        await session.mark_told(job)
    return state_after(state_for(status, job), job, decided, datetime.now(UTC))


async def _submitted_before() -> SlurmJob | None:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return None
    return await (await session_for()).job_of(str(context.flow_run.id), CALL)


async def _run_stored(
    *,
    application: str = "",
    answers: dict[str, Any] | None = None,
    resources: dict[str, Any] | None = None,
    directory: str = "~",
    job_name: str = "",
    retries: dict[str, Any] | None = None,
) -> State[Any]:
    """Render a stored application, submit it to Slurm and follow the job to its end.

    Args:
        application: Its pin; otherwise the one that the deployment's form is made for.
    """

    async def load() -> Application:
        # A worker fetches for others what anybody may have named.
        return await aload_application(application or await _pin_of_deployment(), remote=entered_session() is not None)

    return await _run(load, answers, resources, directory, job_name, retries)


async def _pin_of_deployment() -> str:
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None and context.flow_run.deployment_id is not None:
        async with get_client() as client:
            deployment = await client.read_deployment(context.flow_run.deployment_id)
        if pinned := pin_of_form(deployment.parameter_openapi_schema):
            return pinned
    raise ApplicationNotStored("the run names no application", hint="deploy the application again")


# Validated by the function itself: our worker has no use for what else Prefect's validation does.
run_application = Flow(validate_call(_run_stored), name="run-application", retries=0, persist_result=False)
"""Any stored application by its pin: what a worker other than ours loads for a deployed application."""


class ApplicationFlow(Flow[..., Any]):
    """The flow of one application.

    It is deployed like any flow (`serve`, `deploy`, `to_deployment`). Deploying stores the application as a block
    first, and the deployment's runs load it from there.
    """

    application: Application

    async def ato_deployment(  # type: ignore[override]
        self, name: str, **options: Any
    ) -> RunnerDeployment:
        """As `Flow.ato_deployment`, with the application stored and its README as the description."""
        await astore_application(self.application)
        return self._as_deployment(name, **options)

    def to_deployment(  # type: ignore[override]
        self, name: str, **options: Any
    ) -> RunnerDeployment:
        """As `Flow.to_deployment`, with the application stored and its README as the description."""
        run_coro_as_sync(astore_application(self.application))
        return self._as_deployment(name, **options)

    def _as_deployment(self, name: str, **options: Any) -> RunnerDeployment:
        options["entrypoint_type"] = EntrypointType.MODULE_PATH
        deployment = RunnerDeployment.from_flow(self, name=name, **options)
        deployment.entrypoint = ENTRYPOINT
        return deployment


def application_flow(application: Application) -> ApplicationFlow:
    """The flow of an application: named after it, with its questions in its signature.

    Args:
        application: The application; its digest is pinned in the flow's `application` parameter.

    Raises:
        ApplicationError: The application's questions cannot be found out.
    """
    flow = ApplicationFlow(
        _with_form(application),
        name=application.name,
        description=application.description or None,
        version=application.digest.removeprefix("sha256:")[:16],
        retries=0,
        persist_result=False,
        validate_parameters=True,
    )
    flow.application = application
    return flow


def form_of(flow: ApplicationFlow) -> dict[str, Any]:
    """The JSON Schema of the parameters of the flow's deployments, as `prefect deploy` makes it: the form."""
    return parameter_schema(flow).model_dump(exclude_unset=True)


def _with_form(application: Application) -> Callable[..., Awaitable[State[Any]]]:
    interface = application.describe()
    loaded = application
    pinned = pin(loaded)

    async def load() -> Application:
        return loaded

    answers = Annotated[dict[str, Any], WithJsonSchema(interface.form)]
    resources = Annotated[dict[str, Any], WithJsonSchema(resources_schema(interface.directives))]
    retries = Annotated[dict[str, Any], WithJsonSchema(retries_schema())]

    async def run(
        application: str = pinned,
        answers: dict[str, Any] | None = None,
        resources: dict[str, Any] | None = None,
        directory: str = "~",
        job_name: str = "",
        retries: dict[str, Any] | None = None,
    ) -> State[Any]:
        return await _run(load, answers, resources, directory, job_name, retries)

    run.__name__ = run.__qualname__ = re.sub(r"\W+", "_", application.name)
    run.__doc__ = f"Run {application.name} on Slurm.\n{_PARAMETERS}"
    needed: Any = {} if not interface.form.get("required") else inspect.Parameter.empty
    # In the order of the form: what people fill in first, what they cannot change last.
    fields: list[tuple[str, str, Any, Any]] = [
        ("answers", "Answers", answers, needed),
        ("directory", "Directory", str, "~"),
        ("job_name", "Job name", str, ""),
        ("resources", "Resources", resources, {}),
        ("retries", "Retries", retries, {}),
        ("application", "Application", Literal[pinned], pinned),
    ]
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                # Prefect replaces a field's own title with the parameter's name, but not this one.
                annotation=Annotated[annotation, Field(json_schema_extra={"title": title})],
                default=default,
            )
            for name, title, annotation, default in fields
        ]
    )
    return run


__all__ = ["CALL", "ENTRYPOINT", "ApplicationFlow", "SlurmResources", "application_flow", "form_of", "run_job"]
