"""Deploying applications: their form, their pinned digest, their schedules."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import (
    SCHEDULE_TYPES,
    CronSchedule,
    IntervalSchedule,
    RRuleSchedule,
)
from prefect.utilities.asyncutils import run_coro_as_sync

from jobbergate_flows.applications import Application, load_application
from jobbergate_flows.blocks.application import astore_application
from jobbergate_flows.errors import JobbergateFlowsError
from jobbergate_flows.flows import ENTRYPOINT, application_flow, form_of
from jobbergate_flows.folders import PREFIX

DEFAULT_WORK_POOL = "slurm"


class DeploymentRefused(JobbergateFlowsError):
    """The deployment cannot be made as asked for."""


@dataclass(frozen=True, slots=True)
class DeployedApplication:
    """A deployment of an application: its id, `<flow>/<deployment>`, and the pin that its runs load."""

    id: UUID
    name: str
    application: str


def is_application(entrypoint: str | None, pull_steps: Sequence[Mapping[str, Any]] | None) -> bool:
    """Whether a deployment's runs are application runs: our own entrypoint, and no step that fetches code."""
    return not pull_steps and (entrypoint == ENTRYPOINT or (entrypoint or "").startswith(PREFIX))


def schedule(
    *, cron: str | None = None, interval: float | None = None, rrule: str | None = None, timezone: str = "UTC"
) -> SCHEDULE_TYPES | None:
    """The Prefect schedule of one of the three kinds; None without any.

    Args:
        cron: A cron expression.
        interval: Seconds between two starts.
        rrule: An iCalendar recurrence rule.
        timezone: The zone in which the schedule is meant.

    Raises:
        DeploymentRefused: More than one kind, or a value that is none.
    """
    given = [kind for kind in (cron, interval, rrule) if kind is not None]
    if len(given) > 1:
        raise DeploymentRefused("more than one schedule", hint="give one of cron, interval and rrule")
    try:
        if cron is not None:
            return CronSchedule(cron=cron, timezone=timezone)
        if interval is not None:
            return IntervalSchedule(interval=interval, timezone=timezone)  # type: ignore[arg-type]
        if rrule is not None:
            return RRuleSchedule(rrule=rrule, timezone=timezone)
    except ValueError as error:
        raise DeploymentRefused(f"{given[0]!r} is no schedule: {error}") from error
    return None


async def adeploy_application(
    application: Application | str | Path,
    *,
    name: str | None = None,
    work_pool: str = DEFAULT_WORK_POOL,
    work_queue: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    tags: Sequence[str] = (),
    description: str | None = None,
    cron: str | None = None,
    interval: float | None = None,
    rrule: str | None = None,
    timezone: str = "UTC",
    paused: bool = False,
    concurrency_limit: int | None = None,
    job_variables: Mapping[str, Any] | None = None,
) -> DeployedApplication:
    """Deploy an application. The async twin of `deploy_application`."""
    if not isinstance(application, Application):
        application = await asyncio.to_thread(load_application, application)
    when = schedule(cron=cron, interval=interval, rrule=rrule, timezone=timezone)
    flow = await asyncio.to_thread(application_flow, application)
    pinned = await astore_application(application)
    async with get_client() as client:
        flow_id = await client.create_flow_from_name(flow.name)
        deployment_id = await client.create_deployment(
            flow_id=flow_id,
            name=name or application.name,
            version=flow.version,
            description=description or application.description or None,
            tags=list(tags),
            parameters={**(parameters or {}), "application": pinned},
            entrypoint=ENTRYPOINT,
            pull_steps=None,
            work_pool_name=work_pool,
            work_queue_name=work_queue,
            paused=paused,
            schedules=[DeploymentScheduleCreate(schedule=when, active=True)] if when else [],
            concurrency_limit=concurrency_limit,
            job_variables=dict(job_variables or {}),
            parameter_openapi_schema=form_of(flow),
            enforce_parameter_schema=True,
        )
    return DeployedApplication(deployment_id, f"{flow.name}/{name or application.name}", pinned)


def deploy_application(
    application: Application | str | Path,
    *,
    name: str | None = None,
    work_pool: str = DEFAULT_WORK_POOL,
    work_queue: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    tags: Sequence[str] = (),
    description: str | None = None,
    cron: str | None = None,
    interval: float | None = None,
    rrule: str | None = None,
    timezone: str = "UTC",
    paused: bool = False,
    concurrency_limit: int | None = None,
    job_variables: Mapping[str, Any] | None = None,
) -> DeployedApplication:
    """Deploy an application: store it as a block, and make (or renew) a deployment with its form.

    Args:
        application: The application, a folder, or `git+URL@REF#FOLDER`.
        name: The deployment's name; otherwise the application's.
        work_pool: The work pool, of type `jobbergate-slurm`; a process pool works too.
        work_queue: The pool's queue; otherwise its default.
        parameters: Defaults of the form: `answers`, `resources`, `directory`, `job_name`.
        tags: Tags of the runs.
        description: Otherwise the application's README.
        cron, interval, rrule, timezone: At most one schedule; the interval in seconds.
        paused: Whether the schedule waits to be switched on.
        concurrency_limit: How many runs may be queued or running at once.
        job_variables: Overrides of the pool's job variables.

    Raises:
        ApplicationError: The application cannot be loaded.
        DeploymentRefused: The schedule is none.
        prefect.exceptions.ObjectNotFound: There is no such work pool.
    """
    return run_coro_as_sync(
        adeploy_application(
            application,
            name=name,
            work_pool=work_pool,
            work_queue=work_queue,
            parameters=parameters,
            tags=tags,
            description=description,
            cron=cron,
            interval=interval,
            rrule=rrule,
            timezone=timezone,
            paused=paused,
            concurrency_limit=concurrency_limit,
            job_variables=job_variables,
        )
    )


async def store_application(path: str) -> dict[str, str]:
    """A build step of `prefect.yaml`: store the application of a folder or git reference.

    Returns:
        `application`: its pin.
    """
    application = await asyncio.to_thread(load_application, path)
    return {"application": await astore_application(application)}


__all__ = [
    "DeployedApplication",
    "DeploymentRefused",
    "adeploy_application",
    "deploy_application",
    "is_application",
    "schedule",
    "store_application",
]
