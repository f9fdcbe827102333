"""The runs that are Jobbergate's job submissions: what they are made of, whose they are, and what they do.

Such a run's parameters only name a submission, for people. What is run, and as whom, the worker reads from the API when
it admits the run, and only for the one run that the ledger ties to the submission: whoever can write to the Prefect API
can run nothing by this.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Failed

from agent_worker.identity.facts import Creator, RequestRefused, RunFacts
from agent_worker.identity.mapping import Mapper
from agent_worker.identity.policy import Allowed, Denied, IdentityPolicy
from agent_worker.jobbergate.agent_settings import AgentSettings
from agent_worker.jobbergate.job_scripts import (
    UNKNOWN_OWNER,
    SubmissionRejected,
    check_directory,
    check_files,
    job_script,
    rejection,
)
from agent_worker.kinds import SUBMISSION_ENTRYPOINT, SUBMISSION_FLOW
from agent_worker.run_facts import ReadRun, RunOver
from jobbergate_flows.errors import JobbergateFlowsError
from jobbergate_flows.flows import CALL, run_job
from jobbergate_flows.jobbergate import calls
from jobbergate_flows.jobbergate.client import JobbergateClient
from jobbergate_flows.jobbergate.errors import (
    AuthenticationError,
    JobbergateApiError,
    JobbergateError,
    JobbergateResponseError,
)
from jobbergate_flows.jobbergate.links import Link, Links, Rejected
from jobbergate_flows.jobbergate.models import JobScriptFile, JobSubmissionDetails, SubmissionStatus
from jobbergate_flows.sessions import session_for
from jobbergate_flows.slurm.errors import LedgerError, SubmissionCancelled
from jobbergate_flows.slurm.jobs import SlurmJob
from jobbergate_flows.slurm.patience import RETRY_SECONDS
from jobbergate_flows.tasks import asubmit_job_script

_logger = logging.getLogger(__name__)
API = ""
"""The worker's own API, in the ledger's links."""
_CLONE = "clone the submission to run its job once more"
_FORM = {
    "title": "Parameters",
    "type": "object",
    "properties": {
        "submission": {
            "title": "Job submission",
            "type": "integer",
            "description": "Its id in Jobbergate. The bridge makes these runs; one that is made by hand does nothing.",
        }
    },
}


async def ensure_deployment(client: PrefectClient, work_pool: str) -> UUID:
    """The deployment of a pool's submissions; made, or set right, where need be.

    Raises:
        prefect.exceptions.ObjectNotFound: There is no such pool.
    """
    try:
        found = await client.read_deployment_by_name(f"{SUBMISSION_FLOW}/{work_pool}")
        if found.entrypoint == SUBMISSION_ENTRYPOINT and found.work_pool_name == work_pool and not found.pull_steps:
            return found.id
    except ObjectNotFound:
        pass
    flow_id = await client.create_flow_from_name(SUBMISSION_FLOW)
    return await client.create_deployment(
        flow_id=flow_id,
        name=work_pool,
        description="Job submissions of Jobbergate, which the worker's bridge makes runs of.",
        entrypoint=SUBMISSION_ENTRYPOINT,
        work_pool_name=work_pool,
        # Named, as what is not named stays as somebody has set it.
        pull_steps=[],
        parameter_openapi_schema=_FORM,
        enforce_parameter_schema=True,
        tags=["jobbergate"],
    )


@dataclass(frozen=True, slots=True)
class SubmissionToRun:
    """A job submission that is run, as the API had it when it was decided about."""

    details: JobSubmissionDetails
    files: tuple[JobScriptFile, ...]


class Submissions:
    """What the worker knows of the runs that are job submissions.

    Args:
        settings: The agent's.
        client: Of the API, as the agent.
        links: The ledger's.
        mapper: Who knows the accounts of owners, by their mail addresses; None with `single-user`.
    """

    def __init__(self, settings: AgentSettings, client: JobbergateClient, links: Links, mapper: Mapper | None) -> None:
        self.settings = settings
        self.client = client
        self.links = links
        self._mapper = mapper
        # Not validated: it gets what was decided about, not what the run's record says.
        self.flow: Flow[..., Any] = Flow(
            _running(self), name=SUBMISSION_FLOW, retries=0, persist_result=False, validate_parameters=False
        )

    # For admission

    async def read(self, flow_run: FlowRun, work_pool: str) -> ReadRun:
        """What a run asks for, as the API has it now.

        Returns:
            With a `SubmissionToRun` among its parameters.

        Raises:
            RequestRefused: It is no submission's run, or the submission no longer waits to be run, or had its job.
            RunOver: The submission was cancelled.
            JobbergateApiError, AuthenticationError: The API cannot be asked now.
        """
        link = await self.link_of(str(flow_run.id))
        if link is None or link.submission_id is None:
            if await self._is_being_made(flow_run):
                raise JobbergateError("the bridge is making this run")
            raise RequestRefused("the bridge has made no such run", hint="submit the job in Jobbergate")
        details = await self.details(link.submission_id)
        if details is None:
            reason = f"job submission {link.submission_id} was deleted in Jobbergate"
            await asyncio.to_thread(self.links.close, link.id, reason)
            raise RequestRefused(reason)
        if details.status is SubmissionStatus.CANCELLED:
            raise RunOver(Cancelled(message="Cancelled in Jobbergate"))
        if details.status is not SubmissionStatus.CREATED or link.closed:
            reason = f"job submission {details.id} is {details.status} in Jobbergate"
            if details.status is not SubmissionStatus.SUBMITTED:
                await asyncio.to_thread(self.links.close, link.id)
            raise RequestRefused(reason, hint=_CLONE)
        if link.key is not None:
            # Jobbergate may not have been told yet.
            raise RequestRefused(f"job submission {details.id} had its job already", hint=_CLONE)
        if details.client_id != self.settings.oidc_client_id:
            raise RequestRefused(f"job submission {details.id} is for the client {details.client_id}")
        script = None
        if details.job_script_id is not None:
            script = await self.client.asend(calls.get_job_script(details.job_script_id))
        files = script.files or () if script is not None else ()
        facts = RunFacts(
            flow_run_id=str(flow_run.id),
            deployment_id=None if flow_run.deployment_id is None else str(flow_run.deployment_id),
            deployment_name=f"{SUBMISSION_FLOW}/{work_pool}",
            application=None,
            answers={
                "submission": details.id,
                "api": self.client.base_url,
                "job_script": details.job_script_id,
                "sbatch_arguments": list(details.sbatch_arguments or ()),
            },
            resources={},
            directory=details.execution_directory or self.settings.default_slurm_work_dir,
            job_name=details.name,
            work_pool=work_pool,
            work_queue=flow_run.work_queue_name,
            created_by=Creator(details.owner_email, "JOBBERGATE", details.owner_email),
            kind="flow",
        )
        return ReadRun(facts, None, {"submission": SubmissionToRun(details, tuple(files))})

    async def _is_being_made(self, flow_run: FlowRun) -> bool:
        """Whether the bridge has this run made, and had no time yet to note its id, or has just noted it."""
        named = flow_run.parameters.get("submission")
        if not isinstance(named, int) or flow_run.idempotency_key != self.key_of(named):
            return False
        link = await asyncio.to_thread(self.links.of_submission, API, named)
        return link is not None and not link.closed and link.flow_run_id in (None, str(flow_run.id))

    def key_of(self, submission_id: int) -> str:
        """The key by which a submission has one run on the Prefect server, whose other clients cannot guess it."""
        secret = self.settings.oidc_client_secret.get_secret_value().encode()
        named = f"{self.client.base_url}\n{self.settings.oidc_client_id}\n{submission_id}"
        return f"jobbergate-{submission_id}-{hmac.new(secret, named.encode(), hashlib.sha256).hexdigest()[:40]}"

    async def owner(self, read: ReadRun, policy: IdentityPolicy) -> Allowed | Denied:
        """Whose run it is; see `owner_of`."""
        assert read.facts.created_by is not None
        return await self.owner_of(read.facts.created_by.id, policy)

    async def owner_of(self, email: str, policy: IdentityPolicy) -> Allowed | Denied:
        """Whose a submission is: the one account's, or whom the mapper knows by the owner's mail address.

        Raises:
            MapperUnavailable, MapperBroken
        """
        if policy.account is not None:
            return Allowed(policy.account, "single-user")
        assert self._mapper is not None
        proof = f"{self._mapper.name}: owner_email {email}"
        account = await asyncio.to_thread(self._mapper.account, email)
        if account is None:
            return Denied(UNKNOWN_OWNER, "", proof=proof)
        return Allowed(account, proof)

    async def reject(self, flow_run_id: str, reason: str) -> None:
        """Have Jobbergate told, once, why the submission of a run is not run."""
        link = await self.link_of(flow_run_id)
        if link is not None:
            await asyncio.to_thread(self.reject_link, link, reason)

    def reject_link(self, link: Link, reason: str) -> None:
        """See `reject`. Blocks."""
        current = self.links.get(link.id)
        if current is None or current.closed or link.id in self.rejected():
            return
        _logger.warning("Job submission %s is rejected: %s", link.submission_id, reason)
        self.links.queue(link.id, Rejected(reason))

    def rejected(self) -> set[int]:
        """The links whose rejection waits to be told. Blocks."""
        return {waiting.link.id for waiting in self.links.waiting(API) if isinstance(waiting.message, Rejected)}

    async def link_of(self, flow_run_id: str) -> Link | None:
        """The link by which a run is a submission's; None where it is none's."""
        found = await asyncio.to_thread(self.links.of_flow_run, flow_run_id)
        return next((link for link in found if link.bridged and link.api == API), None)

    async def details(self, submission_id: int) -> JobSubmissionDetails | None:
        """A submission as the API has it now; None when it was deleted.

        Raises:
            JobbergateApiError, AuthenticationError
        """
        try:
            return await self.client.asend(calls.get_job_submission(submission_id))
        except JobbergateResponseError as error:
            if error.status == 404:
                return None
            raise

    # For the run

    async def submit(self, submission: SubmissionToRun) -> SlurmJob:
        """Fetch a submission's job script and submit it, within its run.

        Raises:
            SubmissionRejected: It cannot be submitted; Jobbergate gets the reason.
            SubmissionCancelled: The run was cancelled first.
        """
        try:
            return await self._submit(submission)
        except (SubmissionCancelled, LedgerError):
            raise
        except JobbergateFlowsError as error:
            reason = rejection(error)
            run = FlowRunContext.get()
            if run is not None and run.flow_run is not None:
                await self.reject(str(run.flow_run.id), reason)
            raise SubmissionRejected(reason) from error

    async def _submit(self, submission: SubmissionToRun) -> SlurmJob:
        details, files = submission.details, submission.files
        session = await session_for()
        directory = details.execution_directory or self.settings.work_dir(session.cluster.user)
        check_directory(directory)
        check_files(files, write=self.settings.write_submission_files)
        contents = {file.filename: await self._fetched(file) for file in files}
        script = job_script(details.name, files, contents, details.sbatch_arguments or ())
        job: SlurmJob = await asubmit_job_script(script, directory=directory, in_place=True, key=CALL)
        return job

    async def _fetched(self, file: JobScriptFile) -> bytes:
        """A file's content, however long the API is away."""
        tries = 0
        while True:
            try:
                return await self.client.asend(calls.download_job_script_file(file.parent_id, file.filename))
            except (JobbergateApiError, AuthenticationError) as error:
                if isinstance(error, JobbergateResponseError) and not error.passing and error.status not in (401, 403):
                    raise SubmissionRejected(
                        f"the API does not give the file: {error.detail}", where=file.filename
                    ) from error
                get_run_logger().warning("Not submitted yet: %s", error)
            await asyncio.sleep(RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)])
            tries += 1


def _running(submissions: Submissions | None) -> Any:
    async def run(submission: SubmissionToRun | None = None) -> State[Any]:
        async def submit() -> SlurmJob:
            if submission is None or submissions is None:
                raise SubmissionRejected("the run has no submission")
            return await submissions.submit(submission)

        return await run_job(submit)

    return run


only_followed: Flow[..., Any] = Flow(
    _running(None), name=SUBMISSION_FLOW, retries=0, persist_result=False, validate_parameters=False
)
"""What a worker without a bridge runs: it follows the job that the run has already, and submits none."""


async def _refuse(submission: int | None = None) -> State[Any]:
    """What any other worker than a bridge's runs."""
    return Failed(
        message=f"Job submission {submission} is not run here: its deployment belongs to the work pool of a "
        "jobbergate-slurm worker whose bridge is on"
    )


run_submission: Flow[..., Any] = Flow(_refuse, name=SUBMISSION_FLOW, retries=0, persist_result=False)
"""What the deployment's entrypoint names. The worker that has the bridge runs `Submissions.flow` in its place."""


async def start_run(
    client: PrefectClient, deployment: UUID, *, submission_id: int, name: str, idempotency_key: str
) -> UUID:
    """Make the run of a submission, or get the one that was made with that key.

    Raises:
        prefect.exceptions.ObjectNotFound: The deployment is gone.
    """
    run = await client.create_flow_run_from_deployment(
        deployment,
        parameters={"submission": submission_id},
        name=f"{name} ({submission_id})",
        idempotency_key=idempotency_key,
    )
    return run.id


__all__ = [
    "API",
    "SubmissionToRun",
    "Submissions",
    "ensure_deployment",
    "only_followed",
    "run_submission",
    "start_run",
]
