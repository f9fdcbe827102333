"""The artifacts of a run: what it shows in the Prefect UI beside its states and logs.

A key is the same for every run of a deployment, so that the UI shows the history across recurring runs.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal, Self
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
)
from prefect.client.schemas.objects import FlowRun
from prefect.context import AsyncClientContext
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

Kind = Literal["markdown", "progress"]
_JOB = "slurm.job"
_ONLY_ONE = ("", "job", "flow", "call-0")
_names: dict[UUID, str] = {}


def artifact_key(*words: str) -> str:
    """An artifact key (lowercase letters, digits, dashes) made of words."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


class RunArtifacts:
    """The artifacts of one job of a run. Several attempts of a run have each their own.

    Args:
        flow_run_id: The run; None outside of one, where nothing is published.
        prefix: What its keys begin with.
        suffix: What they end with, of a run that has several jobs.
        job: Names the attempt: the submission's key.
    """

    def __init__(self, flow_run_id: UUID | None, prefix: str, suffix: str, job: str) -> None:
        self._flow_run_id = flow_run_id
        self._prefix = prefix
        self._suffix = suffix
        self._job = job
        self._shown: dict[str, UUID] = {}
        self._said: dict[str, tuple[Any, str]] = {}

    @classmethod
    async def of(cls, flow_run: FlowRun | UUID | None, job: str, *, call: str = "") -> Self:
        """Those of a run: its keys begin with the name of its flow and, where that is another, its deployment.

        Args:
            flow_run: The run or its id; None outside of one.
            job: The submission's key.
            call: The submission's call, of several in a run.
        """
        suffix = "" if call in _ONLY_ONE else call
        if flow_run is None:
            return cls(None, "", suffix, job)
        if isinstance(flow_run, UUID):
            async with _client() as client:
                flow_run = await client.read_flow_run(flow_run)
        return cls(flow_run.id, await _prefix(flow_run), suffix, job)

    async def add(self, name: str, markdown: str, *, description: str, task_run_id: UUID | None = None) -> None:
        """Publish a page that does not change any more."""
        if self._flow_run_id is not None:
            async with _client() as client:
                await self._create(client, name, "markdown", markdown, description, task_run_id)

    async def show(self, name: str, data: str | float, *, description: str, kind: Kind = "markdown") -> None:
        """Publish what is current: made once for a job, also across restarts of this program, and then changed.

        Nothing is sent where nothing has changed.
        """
        if self._flow_run_id is None or self._said.get(name) == (data, description):
            return
        async with _client() as client:
            if name not in self._shown and (there := await self._find(client, name)) is not None:
                self._shown[name] = there
            shown = self._shown.get(name)
            if shown is None or not await change_artifact(client, shown, data, description):
                self._shown[name] = await self._create(client, name, kind, data, description, None)
        self._said[name] = (data, description)

    def _key(self, name: str) -> str:
        return artifact_key(self._prefix, name, self._suffix)

    async def _create(
        self, client: PrefectClient, name: str, kind: Kind, data: Any, description: str, task_run_id: UUID | None
    ) -> UUID:
        made = await client.create_artifact(
            ArtifactCreate(
                key=self._key(name),
                type=kind,
                description=description,
                data=data,
                metadata_={_JOB: self._job},
                flow_run_id=self._flow_run_id,
                task_run_id=task_run_id,
            )
        )
        return made.id

    async def _find(self, client: PrefectClient, name: str) -> UUID | None:
        assert self._flow_run_id is not None
        found = await client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[self._flow_run_id]),
                key=ArtifactFilterKey(any_=[self._key(name)]),
            )
        )
        return next((entry.id for entry in found if (entry.metadata_ or {}).get(_JOB) == self._job), None)


async def change_artifact(client: PrefectClient, artifact_id: UUID, data: Any, description: str) -> bool:
    """Change an artifact; False where somebody has deleted it."""
    try:
        await client.update_artifact(artifact_id, ArtifactUpdate(data=data, description=description))
    except ObjectNotFound:
        return False
    except PrefectHTTPStatusError as error:
        # Prefect 3.8 has no ObjectNotFound for this call.
        if error.response.status_code != 404:
            raise
        return False
    return True


@asynccontextmanager
async def _client() -> AsyncIterator[PrefectClient]:
    """The client of whoever runs the flow, whatever its settings; live pages would read the CAs each time otherwise."""
    async with AsyncClientContext.get_or_create() as context, context.client as client:
        yield client


async def _prefix(flow_run: FlowRun) -> str:
    # Asked once for each deployment and flow: names do not change.
    known = flow_run.deployment_id or flow_run.flow_id
    if known not in _names:
        async with _client() as client:
            flow = (await client.read_flow(flow_run.flow_id)).name
            own = ""
            if flow_run.deployment_id is not None:
                try:
                    own = (await client.read_deployment(flow_run.deployment_id)).name
                except ObjectNotFound:
                    # It was deleted while its run goes on.
                    own = ""
        _names[known] = artifact_key(flow) if own in ("", flow) else artifact_key(flow, own)
    return _names[known]
