"""What happens to a run's jobs, written down for Jobbergate."""

from __future__ import annotations

import asyncio
import logging

from jobbergate_flows.jobbergate.errors import JobbergateError
from jobbergate_flows.jobbergate.links import Link, Links, State, Submitted
from jobbergate_flows.jobbergate.states import is_end, job_data, slurm_job_id, submitted_data
from jobbergate_flows.jobbergate.telling import create_of
from jobbergate_flows.slurm.jobs import JobStatus, SlurmJob
from jobbergate_flows.slurm.submission import SubmissionOrder

_logger = logging.getLogger(__name__)


class JobbergateObserver:
    """A session's observer (`slurm.session.SessionObserver`) that queues in the ledger what Jobbergate is to be told.

    A run that came from Jobbergate is told of there: its first attempt, as a job submission has one job. Any other is
    mirrored where an API is named: each attempt is a job submission of its own.

    Args:
        links: The ledger's.
        flow_run_id: The run.
        api: The name of the `JobbergateAPI` block of mirrors; None for no mirror of what is yet to be submitted.
        page: The URL of the run's page.
    """

    def __init__(self, links: Links, flow_run_id: str, api: str | None, page: str | None) -> None:
        self._links = links
        self._flow_run_id = flow_run_id
        self._api = api
        self._page = page

    async def submitting(self, order: SubmissionOrder) -> None:
        """See `SessionObserver.submitting`."""
        await asyncio.to_thread(self._submitting, order)

    async def submitted(self, order: SubmissionOrder, job: SlurmJob) -> None:
        """See `SessionObserver.submitted`."""
        await asyncio.to_thread(self._submitted, job)

    async def told(self, job: SlurmJob, status: JobStatus) -> None:
        """See `SessionObserver.told`."""
        await asyncio.to_thread(self._told, job, status)

    def _submitting(self, order: SubmissionOrder) -> None:
        if self._api is not None and self._bridged() is None:
            self._links.mirror(self._api, order.key.token, self._flow_run_id, create_of(order, self._page))

    def _submitted(self, job: SlurmJob) -> None:
        link = self._link(job)
        if link is not None:
            self._say_submitted(link, job)

    def _told(self, job: SlurmJob, status: JobStatus) -> None:
        link = self._link(job)
        if link is not None and self._say_submitted(link, job):
            self._links.queue(link.id, State(job_data(job, status, self._links.newest(link.id))))

    def _say_submitted(self, link: Link, job: SlurmJob) -> bool:
        """Whether the job is one that the API has a place for; of a bridged one its beginning is told first."""
        try:
            slurm_job_id(job.job_id)
        except JobbergateError as error:
            _logger.error("Job %s is not told to Jobbergate: %s", job.job_id, error)
            self._links.close(link.id, error.message)
            return False
        if link.bridged:
            if link.key is None:
                self._links.attach(link.id, key=job.key)
            if self._links.newest(link.id) is None:
                self._links.queue(link.id, Submitted(submitted_data(job)))
        return True

    def _link(self, job: SlurmJob) -> Link | None:
        """The link that this job is told by, while there is anything to tell."""
        link = self._links.of_key(job.key)
        if link is None:
            bridged = self._bridged()
            # A later attempt's job is none of the submission's: the API takes one Slurm id only.
            link = bridged if bridged is not None and bridged.key is None else None
        if link is None or link.closed:
            return None
        newest = self._links.newest(link.id)
        return None if newest is not None and is_end(newest.slurm_job_state) else link

    def _bridged(self) -> Link | None:
        return next((link for link in self._links.of_flow_run(self._flow_run_id) if link.bridged), None)
