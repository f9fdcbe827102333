"""sbatch: submitting, and what its answers allow to be done next."""

from __future__ import annotations

import re
from dataclasses import dataclass

from jobbergate_flows.slurm.cluster import SubmitRequest
from jobbergate_flows.slurm.commands.result import CommandResult
from jobbergate_flows.slurm.directives import parse_directives
from jobbergate_flows.slurm.errors import (
    ClusterUnreachable,
    SlurmError,
    SubmissionAmbiguous,
    SubmissionHeld,
    SubmissionRefused,
)

TIMEOUT_SECONDS = 150.0
"""sbatch tries again by itself for 120 s when Slurm's queue is full."""

_REFUSED = {
    "test-only": "it submits nothing",
    "wait": "the run itself waits for the job",
    "clusters": "the cluster is chosen by the run",
    "uid": "the job is submitted by its own user",
    "gid": "the job is submitted by its own user",
}
# By text, in this order; what matches none is permanent. The request may have reached the controller:
_AMBIGUOUS = re.compile(
    r"Socket timed out on send/recv|Zero Bytes were transmitted|Unexpected message received"
    r"|Unable to contact slurm controller \((send|receive) failure\)|Connection (timed out|reset)",
    re.IGNORECASE,
)
# It did not:
_RETRY = re.compile(
    r"Unable to contact slurm controller|backup controller|standby|Rate limit exceeded"
    r"|Connection refused|Munge encode failed|Slurm is (temporarily )?down",
    re.IGNORECASE,
)
_HELD = re.compile(
    r"AssocMaxSubmitJobLimit|QOSMaxSubmitJob|AssocGrpSubmitJobs|QOSGrpSubmitJobs|MaxSubmit"
    r"|violates accounting/QOS policy|job queue full|temporarily unable to accept job",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Sbatch:
    """One submission; the script goes to standard input.

    Its environment is built from nothing, and sbatch hands it on to the job whole (`--export=ALL` is what it does by
    itself): the job starts as after a login, and a script may still say `--export` itself.
    """

    request: SubmitRequest
    cluster: str | None = None

    def arguments(self) -> tuple[str, ...]:
        """The command line."""
        request = self.request
        where = (f"--clusters={self.cluster}",) if self.cluster else ()
        return (
            "sbatch",
            "--parsable",
            f"--job-name={request.job_name}",
            f"--comment={request.key}",
            f"--chdir={request.directory}",
            # The submitting process's limits are not the job's.
            "--propagate=NONE",
            *where,
            *request.arguments,
        )

    def check(self) -> None:
        """Look for what a script may not say, because the job could then not be followed.

        Raises:
            SubmissionRefused
        """
        options = parse_directives(self.request.script).options
        for name, why in _REFUSED.items():
            if name in options and not (name == "clusters" and options[name] == self.cluster):
                raise SubmissionRefused(f"the script says #SBATCH --{name}: {why}", hint="take that line out of it")

    def parse(self, result: CommandResult) -> str:
        """The job's id.

        Raises:
            SubmissionAmbiguous, ClusterUnreachable, SubmissionHeld, SubmissionRefused
        """
        if result.returncode == 0:
            lines = result.stdout.strip().splitlines()
            job_id = lines[-1].split(";")[0].strip() if lines else ""
            if job_id.isascii() and job_id.isdigit():
                return job_id
            raise SubmissionAmbiguous(f"sbatch did not name a job: {result.words}")
        if result.returncode is None or result.returncode < 0:
            raise SubmissionAmbiguous("sbatch did not answer in time, or was killed")
        raise classify_refusal(result.words)


def classify_refusal(words: str) -> SlurmError:
    """The error that sbatch's words stand for."""
    said = re.sub(r"\bsbatch: (error: )?", "", words)
    if _AMBIGUOUS.search(words):
        return SubmissionAmbiguous(said)
    if _HELD.search(words):
        return SubmissionHeld(said)
    if _RETRY.search(words):
        return ClusterUnreachable(said)
    hint = None
    if "Pathname of a file, directory or other parameter too long" in words:
        hint = "the script is larger than Slurm takes (max_script_size)"
    return SubmissionRefused(said, hint=hint)
