"""Deploying applications: their form, their pinned digest, their schedules."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import (
    SCHEDULE_TYPES,
    CronSchedule,
    IntervalSchedule,
    RRuleSchedule,
)
from prefect.utilities.asyncutils import run_coro_as_sync
from pydantic import ValidationError

from jobbergate_flows.applications import Application, load_application
from jobbergate_flows.blocks.application import astore_application
from jobbergate_flows.errors import JobbergateFlowsError
from jobbergate_flows.flows import ENTRYPOINT, application_flow, form_of
from jobbergate_flows.folders import PREFIX
from jobbergate_flows.slurm.options import check_resources
from jobbergate_flows.slurm.retries import check_policy

DEFAULT_WORK_POOL = "slurm"
_LONGEST_INTERVAL = 100 * 365 * 24 * 3600
_SCHEDULE_HINTS = {
    "cron": "write minute, hour, day, month and weekday, as '0 2 * * *'",
    "interval": "write seconds, as 3600",
    "rrule": "write an iCalendar rule, as FREQ=DAILY;BYHOUR=2",
}
_MOST_RUNS = 2**31 - 1


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
    given = {
        name: value for name, value in {"cron": cron, "interval": interval, "rrule": rrule}.items() if value is not None
    }
    if len(given) > 1:
        raise DeploymentRefused("more than one schedule", hint="give one of cron, interval and rrule")
    try:
        ZoneInfo(timezone)
    except (ValueError, OSError, ZoneInfoNotFoundError) as error:
        raise DeploymentRefused(
            f"{timezone!r} is no time zone", where="timezone", hint="name one such as Europe/Berlin"
        ) from error
    for name, value in given.items():
        try:
            return _schedule(name, value, timezone)
        except (ValueError, TypeError, OverflowError) as error:
            raise DeploymentRefused(
                f"{value!r} is no schedule: {_reason(error)}", where=name, hint=_SCHEDULE_HINTS[name]
            ) from error
    return None


def _schedule(kind: str, value: Any, timezone: str) -> SCHEDULE_TYPES:
    if kind == "cron":
        return CronSchedule(cron=value, timezone=timezone)
    if kind == "rrule":
        return RRuleSchedule(rrule=value, timezone=timezone)
    if not 0 < value <= _LONGEST_INTERVAL:
        raise ValueError(f"the seconds are more than 0 and at most {_LONGEST_INTERVAL}")
    return IntervalSchedule(interval=timedelta(seconds=value), timezone=timezone)


def _reason(error: Exception) -> str:
    """Why, in one line: pydantic's own text has four."""
    said = str(error.errors()[0]["msg"]) if isinstance(error, ValidationError) else str(error)
    return " ".join(said.removeprefix("Value error, ").split())


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
    _check_names(name=name, work_pool=work_pool, work_queue=work_queue, tags=tags)
    if concurrency_limit is not None and not 1 <= concurrency_limit <= _MOST_RUNS:
        raise DeploymentRefused(
            f"{concurrency_limit} is no number of runs", where="concurrency_limit", hint="write a small number, as 1"
        )
    parameters = await asyncio.to_thread(_checked, application, parameters or {})
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
            parameters={**parameters, "application": pinned},
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
        parameters: Defaults of the form: `answers`, `resources`, `directory`, `job_name`, `retries`.
        tags: Tags of the runs.
        description: Otherwise the application's README.
        cron, interval, rrule, timezone: At most one schedule; the interval in seconds.
        paused: Whether the schedule waits to be switched on.
        concurrency_limit: How many runs may be queued or running at once.
        job_variables: Overrides of the pool's job variables.

    Raises:
        ApplicationError: The application cannot be loaded, or one of its answers is none.
        OptionRefused: One of the resources, or of the settings for retries, is none.
        DeploymentRefused: A name or the schedule is none.
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


def _checked(application: Application, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The form's defaults, with the answers as the form wants them."""
    checked = dict(parameters)
    if checked.get("answers"):
        checked["answers"] = application.check_answers(checked["answers"])
    if "resources" in checked:
        check_resources(checked["resources"])
    if "retries" in checked:
        check_policy(checked["retries"])
    if checked.get("directory") == "":
        raise DeploymentRefused("the directory is empty", where="directory", hint="name one, or leave it out")
    return checked


def _check_names(*, name: str | None, work_pool: str, work_queue: str | None, tags: Sequence[str]) -> None:
    named = [("name", name), ("work_pool", work_pool), ("work_queue", work_queue), *(("tags", tag) for tag in tags)]
    for where, text in named:
        if text is not None and (not text.strip() or not text.isprintable()):
            raise DeploymentRefused(f"{text!r} is no name", where=where, hint="write a word or more on one line")
    # What Prefect bans, as such a name would be part of an address.
    if name is not None and (banned := [character for character in "/%&<>" if character in name]):
        raise DeploymentRefused(
            f"a deployment's name has no {banned[0]!r}: {name!r}", where="name", hint="leave that character out"
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
