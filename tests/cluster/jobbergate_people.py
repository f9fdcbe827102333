"""Ada, who works with the real Jobbergate API: what she submits, cancels and sees there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jobbergate_flows.jobbergate import calls
from jobbergate_flows.jobbergate.auth import JobbergateAuthHandler
from jobbergate_flows.jobbergate.client import JobbergateClient
from jobbergate_flows.jobbergate.models import FileType, JobSubmissionDetails, NewSubmission, SubmissionStatus
from tests.cluster.jobbergate_api import AGENT, PERSON, JobbergateApi
from tests.cluster.waiting import await_until

HELLO = "#!/bin/bash\necho hello from $PWD\n"


class Ada:
    """A person with a token of her own.

    Args:
        folder: Where her tokens are kept.
    """

    def __init__(self, api: JobbergateApi, folder: Path) -> None:
        auth = JobbergateAuthHandler(folder, api.provider.domain, PERSON, login_url_handler=lambda _: None)
        self.client = JobbergateClient(api.url, auth, timeout=60)

    def job_script(
        self,
        script: str | bytes | None = HELLO,
        files: Mapping[str, str | bytes] | None = None,
        *,
        name: str = "job.sh",
    ) -> int:
        """Make a job script; without an entrypoint where `script` is None."""
        made = self.client.send(calls.create_job_script("hello")).id
        if script is not None:
            self.client.send(calls.upload_job_script_file(made, FileType.ENTRYPOINT, name, _bytes(script)))
        for path, content in (files or {}).items():
            self.client.send(calls.upload_job_script_file(made, FileType.SUPPORT, path, _bytes(content)))
        return made

    def submit(
        self,
        directory: str | Path | None,
        script: str | bytes | None = HELLO,
        files: Mapping[str, str | bytes] | None = None,
        *,
        name: str = "hello",
        sbatch: Sequence[str] = (),
        job_script: int | None = None,
        slurm_job_id: int | None = None,
    ) -> int:
        """Submit to the cluster of `AGENT`, with a new job script unless there is one."""
        new = NewSubmission(
            name=name,
            job_script_id=job_script or self.job_script(script, files),
            execution_directory=None if directory is None else str(directory),
            client_id=AGENT,
            sbatch_arguments=tuple(sbatch) or None,
            slurm_job_id=slurm_job_id,
        )
        return self.client.send(calls.create_job_submission(new)).id

    def submission(self, submission_id: int) -> JobSubmissionDetails:
        return self.client.send(calls.get_job_submission(submission_id))

    def cancel(self, submission_id: int) -> None:
        self.client.send(calls.cancel_job_submission(submission_id))

    def progress(self, submission_id: int) -> list[str | None]:
        """The states that were told of a job, in their order."""
        return [entry.slurm_job_state for entry in self.client.items(calls.list_progress(submission_id))]

    async def until(self, submission_id: int, *statuses: SubmissionStatus) -> JobSubmissionDetails:
        """Wait until a submission has one of these statuses."""
        there = self.submission(submission_id)

        async def reached() -> bool:
            nonlocal there
            there = self.submission(submission_id)
            return there.status in statuses

        try:
            await await_until(reached, 180, f"submission {submission_id} to be {statuses}", 0.5)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; it is {there}") from error
        return there


def _bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content
