"""sacct: how jobs ended."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from jobbergate_flows.slurm.cluster import FoundJob, JobDetails, Witness
from jobbergate_flows.slurm.commands.result import CommandResult, require_answer
from jobbergate_flows.slurm.commands.squeue import number_of, rows_of, time_of
from jobbergate_flows.slurm.errors import ClusterUnreachable
from jobbergate_flows.slurm.jobs import ExitCode, JobRow
from jobbergate_flows.slurm.states import parse_state

BATCH = 1000
_A_YEAR = timedelta(days=365)
_COLUMNS = "JobID,State,ExitCode,Submit,Start,End,NodeList,Partition,UID,Reason"
_DETAILS = (
    "JobID", "User", "Account", "Partition", "QOS", "State", "ExitCode", "DerivedExitCode", "Reason", "NodeList",
    "NNodes", "NCPUS", "Submit", "Start", "End", "Elapsed", "Timelimit", "ReqTRES", "AllocTRES", "TotalCPU", "MaxRSS",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sacct:
    """The accounting rows of some jobs, or of all jobs of one account.

    Args:
        job_ids: At most `BATCH` ids.
        since: The earliest submission among them.
        user: The account, where no ids are given.
    """

    job_ids: Sequence[str]
    since: datetime
    cluster: str | None = None
    user: str | None = None

    def arguments(self) -> tuple[str, ...]:
        """The command line. `-D` shows a job's requeues as well: ids are reused, and told apart by `Submit`."""
        where = (f"--clusters={self.cluster}",) if self.cluster else ()
        which = f"--jobs={','.join(self.job_ids)}" if self.job_ids else f"--user={self.user}"
        return (
            "sacct", "-X", "-D", "-n", "-P", f"--format={_COLUMNS}", which,
            f"--starttime={since_argument(self.since)}", *where,
        )  # fmt: skip

    def parse(self, result: CommandResult) -> list[JobRow]:
        """The rows, in sacct's order.

        Raises:
            ClusterUnreachable
        """
        return [row for line in require_answer("sacct", result).splitlines() if line for row in _rows(line)]


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
            "sacct", "-X", "-D", "-n", "-P", "--format=JobID,Submit,State,JobName", f"--name={','.join(names)}",
            f"--user={self.user}", f"--starttime={since_argument(since)}",
            # A job that was cancelled before its --begin is listed at that time.
            f"--endtime=uts{int((since + _A_YEAR).timestamp())}", *where,
        )  # fmt: skip

    def parse(self, result: CommandResult) -> tuple[list[FoundJob], bool]:
        """The jobs found, arrays once; and whether the witness's row came back with them.

        Raises:
            ClusterUnreachable
        """
        found: dict[str, FoundJob] = {}
        witnessed = False
        for line in require_answer("sacct", result).splitlines():
            job_id, submit, state, name = (*line.split("|", 3), "", "", "")[:4]
            job_id = job_id.split("_")[0]
            if self.witness is not None and job_id == self.witness.job_id:
                witnessed = True
            # Accounting takes names that differ in case for the same.
            if name == self.job_name and number_of(job_id) is not None:
                found.setdefault(job_id, FoundJob(job_id, time_of(submit), parse_state(state)[0]))
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
            "sacct", "-P", "-n", "--delimiter=\x1f", f"--format={','.join(_DETAILS)}",
            f"--jobs={self.job_id}", f"--starttime={since_argument(self.since)}", *where,
        )  # fmt: skip

    def parse(self, result: CommandResult) -> JobDetails:
        """The fields of the job's row, with the largest `MaxRSS` of its steps; empty when accounting has none.

        Times are seconds since the epoch.

        Raises:
            ClusterUnreachable
        """
        lines = (line.split("\x1f") for line in require_answer("sacct", result).splitlines())
        rows = [dict(zip(_DETAILS, values, strict=True)) for values in lines if len(values) == len(_DETAILS)]
        if not rows:
            return JobDetails()
        largest = max((row["MaxRSS"] for row in rows), key=_bytes)
        return JobDetails({**rows[0], "MaxRSS": largest})


def since_argument(since: datetime) -> str:
    """A point of time for `--starttime`, which takes no bare epoch, with ten minutes' slack: clocks differ."""
    return f"uts{int(since.timestamp()) - 600}"


def _bytes(size: str) -> float:
    found = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)([KMGTP]?)", size)
    return float(found[1]) * 1024.0 ** " KMGTP".index(found[2] or " ") if found else 0.0


def _rows(line: str) -> Iterator[JobRow]:
    fields = line.split("|", 9)
    if len(fields) != 10:
        raise ClusterUnreachable(f"sacct printed a line that is none of ours: {line!r}")
    job_id, state_text, exit_code, submit, start, end, nodes, partition, uid, reason = fields
    state, by = parse_state(state_text)
    row = JobRow(
        job_id=job_id,
        array_job_id=job_id,
        state=state,
        source="sacct",
        # Of a job that has begun it is still why it once waited.
        reason=reason if state == "PENDING" and reason != "None" else None,
        exit_code=ExitCode.parse(exit_code),
        cancelled_by=by,
        user_id=number_of(uid),
        submit=time_of(submit),
        start=time_of(start),
        end=time_of(end),
        nodes=nodes if nodes and nodes != "None assigned" else None,
        partition=partition or None,
    )
    yield from rows_of(job_id, row)
