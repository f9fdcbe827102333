"""The ways in which talking to Slurm goes wrong, told apart by what may be done next."""

from __future__ import annotations

from jobbergate_flows.errors import JobbergateFlowsError


class SlurmError(JobbergateFlowsError):
    """The base of this module's errors."""


class ClusterUnreachable(SlurmError):
    """Nothing was done and nothing is known: asking again later is safe."""


class SubmissionRefused(SlurmError):
    """Slurm will not take this job, now or later. The message holds sbatch's own words."""


class SubmissionHeld(SlurmError):
    """A limit of Slurm's is reached (submitted jobs of a user or account): submitting later is safe."""


class SubmissionAmbiguous(SlurmError):
    """sbatch's answer was lost: the job may exist. It must be looked up before it is submitted again."""


class AnswerUntrue(SubmissionAmbiguous):
    """Who submitted the job names one that is not this user's of this name, as Slurm itself knows it."""


class SubmissionCancelled(SlurmError):
    """The submission was cancelled before Slurm had the job."""


class DirectoryRefused(SlurmError):
    """The directory is missing, not a directory, not absolute, or not writable by the user."""


class FileRefused(SlurmError):
    """A file is not ours or was changed since we wrote it, is too large, or lies outside the directory."""


class OptionRefused(SlurmError):
    """An sbatch option is unknown, not allowed, or its value is malformed."""


class JobNotFound(SlurmError):
    """No such job is known."""


class ConsentRefused(SlurmError):
    """The user's file of authorized deployments cannot be trusted."""


class RequestRefused(SlurmError):
    """A deputy does not do what it was asked for: it is malformed, too large, or nothing that a deputy does."""


class LedgerError(JobbergateFlowsError):
    """The ledger cannot be opened."""


class LedgerUnreachable(LedgerError):
    """The ledger's database does not answer, or does not let us in."""
