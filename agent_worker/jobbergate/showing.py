"""Runs name their job submissions in Jobbergate: on a page, and in their labels."""

from __future__ import annotations

import asyncio
import logging
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from agent_worker.jobbergate.clients import JobbergateClients
from agent_worker.supervisor import Supervisor
from jobbergate_flows.artifacts import RunArtifacts
from jobbergate_flows.jobbergate.errors import JobbergateError
from jobbergate_flows.jobbergate.links import Link, Links
from jobbergate_flows.markdown import table

_logger = logging.getLogger(__name__)
_SECONDS = 2.0
LABEL = "jobbergate.submission"
"""The label of a run with the URL of its job submission: of several attempts the newest."""


async def show_submissions(supervisor: Supervisor, clients: JobbergateClients) -> None:
    """Let each run name its job submission once that is made; for ever. Prefect being away holds up nothing else."""
    links = Links(supervisor.session.ledger)
    while True:
        try:
            for link in await asyncio.to_thread(links.unshown):
                if not clients.has(link.api):
                    continue
                await _show(link, clients)
                await asyncio.to_thread(links.attach, link.id, shown=True)
        except Exception:
            _logger.exception("A run does not name its job submission in Jobbergate yet; trying again")
        await asyncio.sleep(_SECONDS)


def submission_url(base_url: str, submission_id: int) -> str:
    """Where the API has a job submission. Pure."""
    return f"{base_url}/jobbergate/job-submissions/{submission_id}"


def submission_markdown(url: str, link: Link) -> str:
    """The page that names a job submission. Pure."""
    rows = [("Job submission", str(link.submission_id))]
    if link.job_script_id is not None:
        rows.append(("Job script", str(link.job_script_id)))
    if link.api:
        rows.append(("Jobbergate API", link.api))
    title = f"# Job submission {link.submission_id} in Jobbergate"
    return "\n\n".join([title, table(["", ""], rows), f"<{url}>"])


async def _show(link: Link, clients: JobbergateClients) -> None:
    assert link.flow_run_id is not None
    assert link.submission_id is not None
    try:
        base_url = (await clients(link.api)).base_url
    except JobbergateError as error:
        _logger.warning("Run %s does not name its job submission in Jobbergate: %s", link.flow_run_id, error)
        return
    run_id, url = UUID(link.flow_run_id), submission_url(base_url, link.submission_id)
    try:
        artifacts = await RunArtifacts.of(run_id, link.key or "")
        await artifacts.show(
            "job-submission", submission_markdown(url, link), description="The job submission in Jobbergate"
        )
        async with get_client() as client:
            await client.update_flow_run_labels(run_id, {LABEL: url})
    except ObjectNotFound:
        _logger.debug("Run %s was deleted", run_id)
