"""The base job template: what a deployment of an ordinary flow may set for its Slurm job."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from prefect.client.schemas.objects import FlowRun
from prefect.workers.base import BaseJobConfiguration, BaseVariables
from pydantic import Field, create_model, field_validator

from jobbergate_flows.slurm.options import SlurmResources
from jobbergate_flows.slurm.retries import NO_RETRIES, RetryPolicy

_RESOURCES: dict[str, Any] = {
    name: (field.annotation, field)
    for name, field in SlurmResources.model_fields.items()
    # A flow's job is never requeued, nor an array: its engine would start twice.
    if name not in ("requeue", "array")
}

_MODULES: Any = Field(
    default_factory=list,
    title="Environment modules",
    description="Modules to load on the node before the flow starts, such as `gcc/12`.",
)
_SETUP: Any = Field(
    default_factory=list,
    title="Setup commands",
    description="A list of shell commands that run on the node before the flow starts, in this order.",
)
_DIRECTORY: Any = Field(
    default="~",
    title="Directory",
    description="An existing directory of the cluster, below which the job gets a directory of its own.",
)
_WORKING_DIRECTORY: Any = Field(
    default=None,
    title="Working directory",
    description="Where the flow starts. Empty: the job's own directory.",
)
_START_WITHIN: Any = Field(
    default=None,
    ge=1,
    title="Start within",
    description="Seconds. A scheduled run that the worker gets later than this after its time is cancelled, "
    "so that starts missed during an outage are not made up for. Empty: it runs however late.",
)
_RETRIES: Any = Field(
    default=NO_RETRIES,
    title="Retries",
    description="When a flow's job that was killed is submitted again, and with how much more.",
)
_JOBBERGATE: Any = Field(
    default=None,
    title="Jobbergate API",
    description="The name of a `JobbergateAPI` block: each job is a job submission in Jobbergate, too. Empty: none is.",
)

SlurmVariables: type[BaseVariables] = create_model(
    "SlurmVariables",
    __base__=BaseVariables,
    modules=(list[str], _MODULES),
    setup_commands=(list[str], _SETUP),
    directory=(str, _DIRECTORY),
    working_directory=(str | None, _WORKING_DIRECTORY),
    start_within=(int | None, _START_WITHIN),
    retries=(RetryPolicy, _RETRIES),
    jobbergate=(str | None, _JOBBERGATE),
    **_RESOURCES,
)
"""The variables of the work pool: Prefect's own, every Slurm resource, and how the flow's environment is set up."""

# What the engine on the node needs of the worker's settings; paths and ports of the worker's host stay here.
_PASSED = re.compile(
    r"PREFECT_(API_(URL|KEY|AUTH_STRING|TLS_INSECURE_SKIP_VERIFY|SSL_CERT_FILE|ENABLE_HTTP2|REQUEST_TIMEOUT)"
    r"|CLIENT_\w+|LOGGING_LEVEL|DEBUG_MODE|_\w+)$"
)

_CREDENTIALS = {"PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"}


class FlowJobConfiguration(BaseJobConfiguration):
    """One flow run's job, as template, deployment and run say it; `SlurmJobConfiguration` adds the resources."""

    # As Prefect has it, but for its repr: what is in it is nobody's to read.
    env: dict[str, str | None] = Field(
        default_factory=dict,
        title="Environment Variables",
        description="Environment variables to set when starting a flow run.",
        repr=False,
    )
    modules: list[str] = _MODULES
    setup_commands: list[str] = _SETUP
    directory: str = _DIRECTORY
    working_directory: str | None = _WORKING_DIRECTORY
    start_within: int | None = _START_WITHIN
    retries: RetryPolicy = _RETRIES
    jobbergate: str | None = _JOBBERGATE

    @field_validator("modules")
    @classmethod
    def _check_modules(cls, modules: list[str]) -> list[str]:
        for module in modules:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+/-]*", module):
                raise ValueError(f"{module!r} is no module name: letters, digits and . _ + / - only")
        return modules

    def prepare_for_flow_run(self, flow_run: FlowRun, *args: Any, **kwargs: Any) -> None:
        """As Prefect does it, and then without what belongs to the worker's host only.

        Where the deployment names credentials of its own, the worker's are not passed on beside them.
        """
        own = dict(self.env)
        super().prepare_for_flow_run(flow_run, *args, **kwargs)
        kept = {name for name in self.env if name in own or _PASSED.fullmatch(name)}
        if not _CREDENTIALS.isdisjoint(own):
            kept -= _CREDENTIALS - own.keys()
        self.env = {name: value for name, value in self.env.items() if name in kept}

    def missed(self, flow_run: FlowRun, now: datetime) -> bool:
        """Whether a scheduled run comes too late to be started."""
        due = flow_run.expected_start_time
        if self.start_within is None or due is None or not flow_run.auto_scheduled or flow_run.run_count:
            return False
        return now - due > timedelta(seconds=self.start_within)

    def resources(self) -> SlurmResources:
        """The sbatch options of the job. `--no-requeue` always: a flow's engine must not start twice.

        Raises:
            ValueError: A value is none that Slurm takes.
        """
        given: Mapping[str, Any] = {name: getattr(self, name, None) for name in _RESOURCES}
        return SlurmResources.model_validate(
            {name: value for name, value in given.items() if value is not None} | {"requeue": False}
        )

    def flow_command(self) -> str:
        """The command that runs the flow on the node: the pool's, or this Python's `prefect flow-run execute`."""
        if self.command and self.command != self._base_flow_run_command():
            return str(self.command)
        return f"{sys.executable} -m prefect flow-run execute"


SlurmJobConfiguration: type[FlowJobConfiguration] = create_model(
    "SlurmJobConfiguration", __base__=FlowJobConfiguration, **_RESOURCES
)
"""The configuration that the worker makes of a run: the resources are fields of it, named as in `SlurmResources`."""
