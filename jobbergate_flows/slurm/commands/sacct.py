"""sacct: how jobs ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from jobbergate_flows.slurm.cluster import FoundJob, JobDetails, Witness
from jobbergate_flows.slurm.commands.result import CommandResult, require_answer
from jobbergate_flows.slurm.commands.squeue import time_of
from jobbergate_flows.slurm.errors import ClusterUnreachable
from jobbergate_flows.slurm.jobs import ExitCode, JobRow
from jobbergate_flows.slurm.states import parse_state

BATCH = 1000
_COLUMNS = "JobID,State,ExitCode,Submit,Start,End,NodeList,UID,Reason"
_DETAILS = (
    "JobID", "User", "Account", "Partition", "QOS", "State", "ExitCode", "DerivedExitCode", "Reason", "NodeList",
    "NNodes", "NCPUS", "Submit", "Start", "End", "Elapsed", "Timelimit", "ReqTRES", "AllocTRES", "TotalCPU",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sacct:
    """The accounting rows of some jobs: of each job, or of each array task, the newest.

    Args:
        job_ids: At most `BATCH` ids.
        since: The earliest submission among them.
    """

    job_ids: Sequence[str]
    since: datetime
    cluster: str | None = None

    def arguments(self) -> tuple[str, ...]:
        """The command line. `-D` shows a job's requeues as well: ids are reused, and told apart by `Submit`."""
        where = (f"--clusters={self.cluster}",) if self.cluster else ()
        return (
            "sacct", "-X", "-D", "-n", "-P", f"--format={_COLUMNS}", f"--jobs={','.join(self.job_ids)}",
            f"--starttime={since_argument(self.since)}", *where,
        )  # fmt: skip

    def parse(self, result: CommandResult) -> list[JobRow]:
        """The rows, in sacct's order.

        Raises:
            ClusterUnreachable
        """
        return [_row(line) for line in require_answer("sacct", result).splitlines() if line]


@dataclass(frozen=True, slots=True)
class SacctFind:
    """One user's jobs of one name, and the witness that shows that accounting answers at all."""

    job_name: str
    user: str
    since: datetime
    witness: Witness | None = None
    cluster: str | None = None

    def arguments(self) -> tuple[str, ...]:
        """The command line."""
        where = (f"--clusters={self.cluster}",) if self.cluster else ()
        names, since = [self.job_name], self.since
        if self.witness is not None:
            names.append(self.witness.job_name)
            since = min(since, self.witness.submitted_at)
        return (
            "sacct", "-X", "-D", "-n", "-P", "--format=JobID,Submit,State", f"--name={','.join(names)}",
            f"--user={self.user}", f"--starttime={since_argument(since)}", *where,
        )  # fmt: skip

    def parse(self, result: CommandResult) -> tuple[list[FoundJob], bool]:
        """The jobs found, arrays once; and whether the witness's row came back with them.

        Raises:
            ClusterUnreachable
        """
        found: dict[str, FoundJob] = {}
        for line in require_answer("sacct", result).splitlines():
            fields = line.split("|")
            if len(fields) != 3:
                raise ClusterUnreachable(f"sacct printed a line that is none of ours: {line!r}")
            job_id = fields[0].split("_")[0]
            found.setdefault(job_id, FoundJob(job_id, time_of(fields[1]), parse_state(fields[2])[0]))
        witnessed = self.witness is not None and found.pop(self.witness.job_id, None) is not None
        return list(found.values()), witnessed


@dataclass(frozen=True, slots=True)
class SacctDetails:
    """Everything about one job, read once. Its columns are separated by a character that no name can hold."""

    job_id: str
    since: datetime
    cluster: str | None = None

    def arguments(self) -> tuple[str, ...]:
        """The command line."""
        where = (f"--clusters={self.cluster}",) if self.cluster else ()
        return (
            "sacct", "-X", "-P", "-n", "--delimiter=\x1f", f"--format={','.join(_DETAILS)}",
            f"--jobs={self.job_id}", f"--starttime={since_argument(self.since)}", *where,
        )  # fmt: skip

    def parse(self, result: CommandResult) -> JobDetails:
        """The fields of the job's first row; empty when accounting has none.

        Raises:
            ClusterUnreachable
        """
        for line in require_answer("sacct", result).splitlines():
            values = line.split("\x1f")
            if len(values) == len(_DETAILS):
                return JobDetails(dict(zip(_DETAILS, values, strict=True)))
        return JobDetails()


def since_argument(since: datetime) -> str:
    """A point of time for `--starttime`, which takes no bare epoch, with ten minutes' slack: clocks differ."""
    return f"uts{int(since.timestamp()) - 600}"


def _row(line: str) -> JobRow:
    fields = line.split("|")
    if len(fields) != 9:
        raise ClusterUnreachable(f"sacct printed a line that is none of ours: {line!r}")
    job_id, state_text, exit_code, submit, start, end, nodes, uid, reason = fields
    state, by = parse_state(state_text)
    array_id, _, task = job_id.partition("_")
    return JobRow(
        job_id=job_id,
        array_job_id=array_id,
        array_task_id=int(task) if task.isdigit() else None,
        state=state,
        source="sacct",
        reason=reason if reason and reason != "None" else None,
        exit_code=ExitCode.parse(exit_code),
        cancelled_by=by,
        user_id=int(uid) if uid.isdigit() else None,
        submit=time_of(submit),
        start=time_of(start),
        end=time_of(end),
        nodes=nodes if nodes and nodes != "None assigned" else None,
    )
