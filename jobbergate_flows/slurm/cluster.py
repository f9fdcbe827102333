"""The protocol of a cluster: few questions, few acts.

Watching needs no user's rights. Acting is done as one user, through the cluster's door (`door.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, runtime_checkable

from jobbergate_flows.slurm.jobs import JobRow, Observation
from jobbergate_flows.slurm.steps import JobRecord


@dataclass(frozen=True, slots=True)
class SubmitRequest:
    """One sbatch.

    Args:
        script: The job script's text; goes to standard input.
        arguments: Validated `--option=value` arguments of the user's and the site's, without the ones below.
        job_name: `<name>-<key>`: the name by which the job is found again.
        key: Also the job's comment.
        directory: Absolute; becomes `--chdir`.
    """

    script: str
    arguments: tuple[str, ...]
    job_name: str
    key: str
    directory: str


@dataclass(frozen=True, slots=True)
class FoundJob:
    """A job that bears the name that was looked up."""

    job_id: str
    submit: datetime | None
    state: str


@dataclass(frozen=True, slots=True)
class Witness:
    """A job that accounting is known to hold, by which an answer proves that accounting answers at all."""

    job_id: str
    job_name: str
    submitted_at: datetime


@dataclass(frozen=True, slots=True)
class FileChunk:
    """A piece of a file. `size` is the whole file's size in bytes when it was read."""

    data: bytes
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a directory, with its path relative to it; `size` in bytes."""

    path: str
    size: int
    modified: datetime


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `cluster check`: what was looked at, whether it is well, what was seen, how to mend it."""

    subject: str
    ok: bool
    detail: str
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class JobDetails:
    """What is read once, when a job is final. `fields` are sacct's, by their sacct names."""

    fields: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class Cluster(Protocol):
    """A cluster, acting as one user.

    Every method may raise `ClusterUnreachable`, except `query`, which says so for each job.
    """

    @property
    def name(self) -> str:
        """The cluster's name, as the ledger and Prefect know it."""

    @property
    def user(self) -> str:
        """The Unix account in whose name this object acts."""

    async def query(self, jobs: Mapping[str, datetime]) -> dict[str, Observation]:
        """Ask about many jobs at once.

        Args:
            jobs: Job id (of a job or a whole array) -> when it was submitted (aware; bounds accounting's search).

        Returns:
            An observation for every id asked for.
        """

    async def find(self, job_name: str, *, since: datetime, witness: Witness | None = None) -> list[FoundJob]:
        """Find this user's jobs of exactly that name, alive or ended, oldest first.

        An empty list is a proof of absence at this moment. Where it can be none (accounting down, or up with its
        database failing), `ClusterUnreachable` is raised.

        Args:
            since: The intent's time.
            witness: A job that accounting is known to hold: an empty answer counts only if its row comes back from
                the same query. Without one, an empty answer counts only while Slurm's controller itself
                still remembers every job since `since` (MinJobAge).
        """

    async def submit(self, request: SubmitRequest) -> str:
        """Submit once and return the job id.

        Raises:
            SubmissionRefused, SubmissionHeld, SubmissionAmbiguous, ClusterUnreachable: see `errors`.
        """

    async def cancel(self, job_ids: Sequence[str]) -> None:
        """Ask Slurm to cancel jobs; done when the query says so. Unknown and ended ids are no error."""

    async def details(self, job_id: str, *, since: datetime) -> JobDetails:
        """Names, times and resources of an ended job, for its summary. Empty where accounting has none."""

    async def steps(self, job_id: str, *, since: datetime | None = None) -> list[JobRecord]:
        """What accounting has of a job, or of all tasks of an array, with its steps; empty where it has none.

        Args:
            job_id: Of a job, an array, or one array task ("123_4").
            since: When it was submitted: the job's earlier lives (requeues) are then there as well, oldest first. None:
                only the last life of the newest job of that id.
        """

    async def check_directory(self, directory: str) -> None:
        """Raise `DirectoryRefused` unless the directory is absolute, exists and is writable by the user."""

    async def write_files(
        self,
        directory: str,
        files: Mapping[str, str],
        *,
        ours: Mapping[str, str] | None = None,
        in_place: bool = False,
    ) -> dict[str, str]:
        """Write text files below a directory, which is made (mode 0700) when its parent exists.

        A file that exists is left when its content is the same, replaced when its digest is the one in `ours`, and
        otherwise refused; nothing is written when one of them is refused.

        Args:
            files: Relative path -> text.
            ours: Relative path -> `sha256:...` of what we wrote there before.
            in_place: Anybody's directory will do; otherwise it is refused, like a folder below it, when it is there
                and belongs to somebody else.

        Returns:
            Relative path -> digest of all files of the call.

        Raises:
            FileRefused, DirectoryRefused
        """

    async def write_secret(self, directory: str, text: str) -> None:
        """Write `SECRET_FILE`, mode 0600, into an existing run's directory of the user's own, replacing it atomically.

        Raises:
            FileRefused: Among others, there is something that is not as we make it.
            DirectoryRefused
        """

    async def remove_files(self, directory: str, paths: Sequence[str], *, digests: Sequence[str] | None = None) -> None:
        """Remove files below a run's directory, by their relative paths; missing ones are no error.

        Args:
            digests: Only files with one of these (see `write_files`); otherwise whatever has the name.

        Raises:
            FileRefused, DirectoryRefused
        """

    async def read(self, path: str, *, offset: int = 0, limit: int = 1 << 16) -> FileChunk | None:
        """Read at most `limit` bytes; None when there is no such file (yet)."""

    async def list_files(self, directory: str, *, limit: int = 1000) -> list[FileEntry]:
        """The regular files below a directory, ordered by path, at most `limit`."""

    async def check(self) -> list[Finding]:
        """What is reachable, in which version, what is missing and how to mend it."""


__all__ = [
    "Cluster",
    "FileChunk",
    "FileEntry",
    "Finding",
    "FoundJob",
    "JobDetails",
    "JobRow",
    "SubmitRequest",
    "Witness",
]
