"""A run's facts, read from the Prefect server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent_worker.identity.facts import Creator, RequestRefused, RunFacts

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun, State


@dataclass(frozen=True, slots=True)
class ReadRun:
    """What was read of a run.

    Any client of the API can change the run and its deployment at any moment. So what is decided about is what
    must be run: these facts, and for an application these parameters and no others.

    Args:
        facts: To be decided about.
        pin: The application's `NAME@sha256:DIGEST`; None for an ordinary flow, and for a run that names none.
        parameters: An application's, with the pin and all that `facts` holds; an ordinary flow's as they are.
    """

    facts: RunFacts
    pin: str | None
    parameters: Mapping[str, Any]


class RunOver(Exception):
    """A run has no more to do, and how it ends."""

    def __init__(self, state: State[Any]) -> None:
        super().__init__(state.message)
        self.state = state


async def read_run_facts(
    client: PrefectClient,
    flow_run: FlowRun,
    *,
    work_pool: str,
    resources: Mapping[str, Any] | None = None,
    directory: str = "~",
    retries: Mapping[str, Any] | None = None,
) -> ReadRun:
    """Read what is known of a run: one or two requests.

    Args:
        client: The Prefect server.
        flow_run: The run, as it was read.
        work_pool: The pool that the worker serves. What the run says of pools does not count.
        resources, directory, retries: An ordinary flow's, as the worker's configuration for it has them. An
            application's are among its parameters.

    Raises:
        RequestRefused: A parameter of the application's run is of a type that it cannot have.
        prefect.exceptions.ObjectNotFound: The deployment is gone.
    """
    from jobbergate_flows.blocks.application import pin_of_form
    from jobbergate_flows.deployments import is_application

    deployment = None
    name = None
    if flow_run.deployment_id is not None:
        deployment = await client.read_deployment(flow_run.deployment_id)
        # The deployment's own flow: a run that is made by hand may claim another one.
        name = f"{(await client.read_flow(deployment.flow_id)).name}/{deployment.name}"
    common: dict[str, Any] = {
        "flow_run_id": str(flow_run.id),
        "deployment_id": None if deployment is None else str(deployment.id),
        "deployment_name": name,
        "work_pool": work_pool,
        "work_queue": flow_run.work_queue_name,
        "created_by": _creator(flow_run),
    }
    if deployment is None or not is_application(deployment.entrypoint, deployment.pull_steps):
        facts = RunFacts(
            **common,
            kind="flow",
            application=None,
            answers=flow_run.parameters,
            resources=dict(resources or {}),
            directory=directory,
            job_name="",
            retries=dict(retries or {}),
        )
        return ReadRun(facts, None, flow_run.parameters)
    given = _Parameters(flow_run)
    pin = given.text("application") or pin_of_form(deployment.parameter_openapi_schema)
    asked: dict[str, Any] = {
        "answers": given.mapping("answers"),
        "resources": given.mapping("resources"),
        "directory": given.text("directory") or "~",
        "job_name": given.text("job_name"),
        "retries": given.mapping("retries"),
    }
    facts = RunFacts(**common, **asked, kind="application", application=_digest(pin))
    return ReadRun(facts, pin or None, {"application": pin, **asked})


class _Parameters:
    """A run's parameters, of which any client may have made anything."""

    def __init__(self, flow_run: FlowRun) -> None:
        self._values = flow_run.parameters
        self._where = f"flow run {flow_run.id}"

    def text(self, name: str) -> str:
        value = self._values.get(name)
        if value is not None and not isinstance(value, str):
            raise self._refused(name, value)
        return value or ""

    def mapping(self, name: str) -> dict[str, Any]:
        value = self._values.get(name)
        if value is not None and not isinstance(value, dict):
            raise self._refused(name, value)
        return value or {}

    def _refused(self, name: str, value: object) -> RequestRefused:
        return RequestRefused(
            f"parameter {name} is {value!a:.100}", where=self._where, hint="start a run with the deployment's form"
        )


def _digest(pin: str) -> str | None:
    from jobbergate_flows.blocks.application import ApplicationNotStored, block_name

    try:
        block_name(pin)
    except ApplicationNotStored:
        return None
    return pin.rpartition("@")[2]


def _creator(flow_run: FlowRun) -> Creator | None:
    created_by = flow_run.created_by
    if created_by is None or created_by.id is None:
        return None
    return Creator(str(created_by.id), created_by.type or "", created_by.display_value or "")
