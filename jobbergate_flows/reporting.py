"""Telling a job's events to the server, without holding up or failing the run that they are about.

Not by Prefect's `emit_event`: where the server is away when it connects, what its queue holds after its eleven tries is
lost. Here events are sent by plain requests, in batches and in their order, again and again until the server has them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from uuid import UUID

import httpx
from cachetools import TTLCache
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.events.filters import EventFilter, EventIDFilter, EventOccurredFilter
from prefect.events.related import object_as_related_resource, tags_as_related_resources
from prefect.events.schemas.events import Event, RelatedResource
from prefect.exceptions import ObjectNotFound
from prefect.utilities.slugify import slugify

from jobbergate_flows.events import Told, job_events
from jobbergate_flows.outbox import Outbox
from jobbergate_flows.slurm.jobs import JobStatus, SlurmJob

_logger = logging.getLogger(__name__)
_RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 15.0)
_BATCH = 50
_SETTLE_SECONDS = 5.0
_FRESH = timedelta(seconds=60)
_MAX_RELATED = 100  # what a server takes unless it is set up otherwise
QUEUE_LIMIT = 10_000
"""So many events wait for the server at most; then the oldest are dropped, and the log says so."""


class JobReporter:
    """Tells the events of one job as its statuses come in.

    Args:
        flow_run_id: The run that the events are related to, and with it its flow, deployment, pool, worker and tags.
    """

    def __init__(self, job: SlurmJob, flow_run_id: UUID | None) -> None:
        self._job = job
        self._flow_run_id = flow_run_id
        self._told = Told()
        # Whoever follows an older job may not be the first who does.
        self._again = datetime.now(UTC) - job.submitted_at > _FRESH

    @classmethod
    def here(cls, job: SlurmJob) -> Self:
        """A reporter for a job of this context's flow run."""
        context = FlowRunContext.get()
        return cls(job, context.flow_run.id if context and context.flow_run else None)

    async def tell(self, status: JobStatus) -> None:
        """Have the events of a status sent, soon. Never waits for the server, and never fails."""
        try:
            self._told, events = job_events(self._job, self._told, status, datetime.now(UTC))
            outbox = EventOutbox.here()
            for event in events:
                outbox.put(event, flow_run_id=self._flow_run_id, again=self._again)
        except Exception:
            _logger.exception("The events of job %s were not told", self._job.job_id)

    async def settle(self) -> None:
        """Give the last events some seconds to be sent: a short program may end right after its job."""
        await EventOutbox.here().settle(_SETTLE_SECONDS)


@dataclass(frozen=True, slots=True)
class _Waiting:
    event: Event
    flow_run_id: UUID | None
    again: bool


class EventOutbox(Outbox[_Waiting]):
    """Events on their way to the server, sent one batch after another by one task of the event loop.

    Args:
        limit: So many may wait.
    """

    def __init__(self, limit: int = QUEUE_LIMIT) -> None:
        super().__init__()
        self._limit = limit
        self._empty = asyncio.Event()
        self._empty.set()
        self._lost = 0
        self._attempt = 0
        self._relations = Relations()

    def put(self, event: Event, *, flow_run_id: UUID | None = None, again: bool = False) -> None:
        """Have an event sent, after those that wait already.

        Args:
            flow_run_id: Its run, flow, deployment, pool, worker and tags are related to the event.
            again: The event may have been sent by an earlier life of this program; the server is asked first.
        """
        if len(self._waiting) >= self._limit:
            self._waiting.popleft()
            self._lost += 1
            if self._lost == 1:
                _logger.error("More than %s events wait for the Prefect server; dropping the oldest", self._limit)
        self._empty.clear()
        self._add(_Waiting(event, flow_run_id, again))

    async def settle(self, seconds: float) -> None:
        """Wait until all events are sent, at most so long."""
        try:
            await asyncio.wait_for(self._empty.wait(), seconds)
        except TimeoutError:
            _logger.info("%s events wait for the Prefect server", len(self._waiting))

    async def _send_some(self, client: PrefectClient) -> None:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _BATCH))]
        try:
            await self._send(client, batch)
        except BaseException as error:
            self._waiting.extendleft(reversed(batch))
            if not isinstance(error, Exception):
                raise
            if self._attempt == 0:
                _logger.warning("Events could not be sent (%s); trying again", error)
            await asyncio.sleep(_RETRY_SECONDS[min(self._attempt, len(_RETRY_SECONDS) - 1)])
            self._attempt += 1
        else:
            if self._lost:
                _logger.error("%s events were dropped while the Prefect server was away", self._lost)
            self._attempt = self._lost = 0
            if not self._waiting:
                self._empty.set()

    def _failed(self, error: BaseException) -> None:
        _logger.error("Events cannot be sent: %s", error)

    async def _send(self, client: PrefectClient, batch: Sequence[_Waiting]) -> None:
        known = await _known(client, [waiting.event for waiting in batch if waiting.again])
        events = []
        for waiting in batch:
            if waiting.event.id not in known:
                related = await self._relations.of(client, waiting.flow_run_id)
                events.append(waiting.event.model_copy(update={"related": [*waiting.event.related, *related]}))
        await _post(client, events)


async def _post(client: PrefectClient, events: Sequence[Event]) -> None:
    if not events:
        return
    try:
        await client.request("POST", "/events", json=[event.model_dump(mode="json") for event in events])
    except httpx.HTTPStatusError as error:
        if error.response.status_code >= 500 or error.response.status_code in (408, 429):
            raise
        if len(events) == 1:
            _logger.error("The Prefect server refuses the event %s: %s", events[0].event, error)
            return
        for event in events:
            await _post(client, [event])


async def _known(client: PrefectClient, events: Sequence[Event]) -> set[UUID]:
    """Those of the events that the server has. It drops them by itself only as long as it remembers their ids."""
    if not events:
        return set()
    earliest = min(event.occurred for event in events) - timedelta(days=1)
    asked = EventFilter(
        id=EventIDFilter(id=[event.id for event in events]), occurred=EventOccurredFilter(since=earliest)
    )
    page = await client.request(
        "POST", "/events/filter", json={"filter": asked.model_dump(mode="json"), "limit": _BATCH}
    )
    return {UUID(found["id"]) for found in page.json()["events"]}


class Relations:
    """What events of a run are related to: read once in ten minutes for each run, flow, deployment and pool."""

    def __init__(self) -> None:
        self._runs: TTLCache[UUID, list[RelatedResource]] = TTLCache(maxsize=2000, ttl=600)
        self._others: TTLCache[str, Any] = TTLCache(maxsize=500, ttl=600)

    async def of(self, client: PrefectClient, flow_run_id: UUID | None) -> list[RelatedResource]:
        """The related resources, in the roles that Prefect's own events have them in.

        They are the flow run, its flow, deployment, work queue, work pool and worker, and the tags of all of these.
        """
        if flow_run_id is None:
            return []
        if flow_run_id not in self._runs:
            self._runs[flow_run_id] = await self._read(client, flow_run_id)
        return self._runs[flow_run_id]

    async def _read(self, client: PrefectClient, flow_run_id: UUID) -> list[RelatedResource]:
        try:
            run = await client.read_flow_run(flow_run_id)
        except ObjectNotFound:
            return [_related("flow-run", f"prefect.flow-run.{flow_run_id}")]
        found: dict[str, Any] = {"flow-run": run}
        readers: dict[str, tuple[Callable[[Any], Awaitable[Any]], Any]] = {
            "flow": (client.read_flow, run.flow_id),
            "deployment": (client.read_deployment, run.deployment_id),
            "work-queue": (client.read_work_queue, run.work_queue_id),
            "work-pool": (client.read_work_pool, run.work_pool_name),
        }
        for kind, (read, name) in readers.items():
            if name is None:
                continue
            key = f"{kind}.{name}"
            if key not in self._others:
                try:
                    self._others[key] = await read(name)
                except ObjectNotFound:
                    continue
            found[kind] = self._others[key]
        related = [object_as_related_resource(kind, kind, thing) for kind, thing in found.items()]
        related += _worker_of(run)
        tags = {tag for thing in found.values() for tag in getattr(thing, "tags", None) or ()}
        return [*related, *tags_as_related_resources(tags)][:_MAX_RELATED]


def _worker_of(run: FlowRun) -> list[RelatedResource]:
    """The worker by the labels that Prefect's workers give to the runs that they take."""
    name, kind = run.labels.get("prefect.worker.name"), run.labels.get("prefect.worker.type")
    return [_related("worker", f"prefect.worker.{kind}.{slugify(str(name))}", str(name))] if name and kind else []


def _related(role: str, resource_id: str, name: str | None = None) -> RelatedResource:
    labels = {"prefect.resource.id": resource_id, "prefect.resource.role": role}
    return RelatedResource(labels | ({"prefect.resource.name": name} if name else {}))


__all__ = ["QUEUE_LIMIT", "EventOutbox", "JobReporter", "Relations"]
