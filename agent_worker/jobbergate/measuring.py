"""Jobbergate gets the metrics of the jobs that it knows, where Slurm writes them to an InfluxDB."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from agent_worker.jobbergate.clients import JobbergateClients
from agent_worker.supervisor import Supervisor
from jobbergate_flows.errors import JobbergateFlowsError
from jobbergate_flows.job_metrics import configured_reader
from jobbergate_flows.jobbergate import calls
from jobbergate_flows.jobbergate.links import Link, Links
from jobbergate_flows.slurm.jobs import SlurmJob
from jobbergate_flows.slurm.ledger import Submission
from jobbergate_flows.slurm.steps import allocations_of

if TYPE_CHECKING:
    from jobbergate_flows.metrics.reading import JobSpan, MetricsReader

_logger = logging.getLogger(__name__)
_AT_ONCE = 2
# Nodes send their last samples late; see `jobbergate.metrics.unsent`.
_LAST_LOOK = timedelta(seconds=90)
_GIVE_UP = timedelta(days=1)


class Measures:
    """Sends each link's new rows again and again, and closes it when its job's end was told and nothing more comes.

    Args:
        supervisor: The worker's.
        clients: Its clients.
        seconds: Between two looks.
        reader_of: Gives the reader of Slurm's metrics; None where there is none.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        clients: JobbergateClients,
        seconds: float,
        reader_of: Callable[[], Awaitable[MetricsReader | None]] = configured_reader,
    ) -> None:
        self._reader_of = reader_of
        self._supervisor = supervisor
        self._clients = clients
        self._seconds = seconds
        self._begun: dict[int, list[JobSpan]] = {}
        self._troubled: set[int] = set()

    async def run(self) -> None:
        """Do it for ever. To be run in the supervisor's loop."""
        reader: MetricsReader | None = None
        while True:
            try:
                if reader is None:
                    reader = await self._reader_of()
                if reader is not None:
                    await self._look(reader)
            except Exception:
                _logger.exception("Sending metrics to Jobbergate failed; trying again")
                # Its block may be mended meanwhile.
                reader = None
            await asyncio.sleep(self._seconds)

    async def _look(self, reader: MetricsReader) -> None:
        session = self._supervisor.session
        links, turns = Links(session.ledger), asyncio.Semaphore(_AT_ONCE)
        open_ = await asyncio.to_thread(links.open)
        self._begun = {link.id: self._begun[link.id] for link in open_ if link.id in self._begun}
        self._troubled &= {link.id for link in open_}

        async def in_turn(link: Link) -> None:
            async with turns:
                await self._measure(reader, links, link)

        ours = [link for link in open_ if link.submission_id is not None and self._clients.has(link.api)]
        await asyncio.gather(*(in_turn(link) for link in ours))

    async def _measure(self, reader: MetricsReader, links: Links, link: Link) -> None:
        row = None
        if link.key is not None:
            row = await asyncio.to_thread(self._supervisor.session.ledger.get, link.key)
        if row is None or row.job is None:
            if link.ended:
                # A rejected one, or one whose job is no run's.
                await asyncio.to_thread(links.close, link.id)
            return
        if row.cluster != self._supervisor.session.cluster.name or (row.array and not link.ended):
            return
        over = link.ended and _since(row) > _LAST_LOOK
        try:
            sent = await self._send(reader, link, row.job)
        except JobbergateFlowsError as error:
            if link.id not in self._troubled:
                self._troubled.add(link.id)
                _logger.warning("The metrics of job %s do not get to Jobbergate now: %s", row.job_id, error)
            if link.ended and _since(row) > _GIVE_UP:
                await asyncio.to_thread(links.close, link.id, f"without all of its metrics: {error.message}")
            return
        self._troubled.discard(link.id)
        if over and not sent:
            await asyncio.to_thread(links.close, link.id)

    async def _send(self, reader: MetricsReader, link: Link, job: SlurmJob) -> int:
        """Send what is new, and return in how many calls."""
        from jobbergate_flows.jobbergate.metrics import batches, unsent

        assert link.submission_id is not None
        spans = await self._spans(link, job)
        if not spans:
            return 0
        client = await self._clients(link.api)
        mark = await client.asend(calls.get_metrics_mark(link.submission_id))
        count = 0
        async for part in unsent(reader, spans, mark.max_times, ended=link.ended):
            for packed in await asyncio.to_thread(list, batches(part)):
                await client.asend(calls.send_metrics(link.submission_id, packed))
                count += 1
        return count

    async def _spans(self, link: Link, job: SlurmJob) -> Sequence[JobSpan]:
        from jobbergate_flows.metrics.reading import JobSpan

        now = datetime.now(UTC)
        if not link.ended and link.id in self._begun:
            # When it began does not change: accounting is not asked again while it runs.
            return [JobSpan(one.raw_id, one.since, now, one.name) for one in self._begun[link.id]]
        records = await self._supervisor.session.cluster.steps(job.job_id, since=job.submitted_at)
        spans = [JobSpan(one.raw_id, one.start, one.end or now, one.job_id) for one in allocations_of(records)]
        if spans:
            self._begun[link.id] = spans
        return spans


def _since(row: Submission) -> timedelta:
    """How long a job's end is ago."""
    return datetime.now(UTC) - row.final_at if row.final_at is not None else timedelta(0)
