"""Jobs that somebody has cancelled in Jobbergate are cancelled in Slurm."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from agent_worker.jobbergate.clients import OWN, JobbergateClients
from agent_worker.supervisor import Supervisor
from jobbergate_flows.jobbergate import calls
from jobbergate_flows.jobbergate.errors import JobbergateError
from jobbergate_flows.jobbergate.links import Link, Links, cancelled
from jobbergate_flows.slurm.ledger import SubmissionStatus

_logger = logging.getLogger(__name__)


async def watch_for_wishes(supervisor: Supervisor, clients: JobbergateClients, seconds: float) -> None:
    """Look each `seconds`, for ever, which jobs of mirrors are to be cancelled; a bridge looks for its own itself."""
    links = Links(supervisor.session.ledger)
    while True:
        try:
            open_ = [link for link in await asyncio.to_thread(links.open) if link.submission_id is not None]
            by_api: dict[str, list[Link]] = {}
            for link in open_:
                if link.api != OWN and not link.ended:
                    by_api.setdefault(link.api, []).append(link)
            # Each by itself: one that hangs holds up no other.
            await asyncio.gather(*(_look(supervisor, clients, api, own) for api, own in by_api.items()))
        except Exception:
            _logger.exception("Looking for jobs that were cancelled in Jobbergate failed; trying again")
        await asyncio.sleep(seconds)


async def cancel_in_slurm(supervisor: Supervisor, wished: Iterable[Link]) -> None:
    """Ask Slurm for the end of jobs of this worker's cluster; their runs tell it. Safe to repeat."""
    own = supervisor.session
    for link in wished:
        row = await asyncio.to_thread(own.ledger.get, link.key) if link.key is not None else None
        if row is None or row.job is None or row.cluster != own.cluster.name:
            continue
        if row.status is not SubmissionStatus.SUBMITTED:
            continue
        try:
            await supervisor.accounts.of(row.user).cancel(row.job)
            _logger.info("Job %s was cancelled in Jobbergate (job submission %s)", row.job_id, link.submission_id)
        except Exception:
            _logger.exception("Job %s, which was cancelled in Jobbergate, goes on; trying again", row.job_id)


async def _look(supervisor: Supervisor, clients: JobbergateClients, api: str, own: list[Link]) -> None:
    try:
        client = await clients(api)
        active = [submission async for submission in client.aitems(calls.list_active())]
    except JobbergateError as error:
        # The teller says it to people.
        _logger.debug("Which jobs were cancelled in the Jobbergate API %r is not known now: %s", api, error)
        return
    await cancel_in_slurm(supervisor, cancelled(active, own))
