"""sacct: what a job, or each task of an array, was given, and when; and its raw id, by which its metrics go."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from jobbergate_flows.slurm.cluster import Allocation
from jobbergate_flows.slurm.commands.result import CommandResult, require_answer
from jobbergate_flows.slurm.commands.sacct import since_argument
from jobbergate_flows.slurm.commands.squeue import number_of, time_of
from jobbergate_flows.slurm.errors import ClusterUnreachable
from jobbergate_flows.slurm.units import gpu_count, memory_kib

_COLUMNS = ("JobID", "JobIDRaw", "Submit", "Start", "End", "NNodes", "NCPUS", "ReqMem", "AllocTRES")
_SLACK = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class SacctAllocations:
    """The allocations of one job or array: of a job that was requeued the last.

    Args:
        since: When it was submitted.
    """

    job_id: str
    since: datetime
    cluster: str | None = None

    def arguments(self) -> tuple[str, ...]:
        """The command line."""
        where = (f"--clusters={self.cluster}",) if self.cluster else ()
        return (
            "sacct", "-X", "-D", "-n", "-P", "--noconvert", f"--format={','.join(_COLUMNS)}", f"--jobs={self.job_id}",
            f"--starttime={since_argument(self.since)}", *where,
        )  # fmt: skip

    def parse(self, result: CommandResult) -> list[Allocation]:
        """Those that have begun, by their raw ids' order.

        Raises:
            ClusterUnreachable
        """
        newest: dict[str, tuple[datetime, Allocation]] = {}
        for line in require_answer("sacct", result).splitlines():
            fields = line.split("|")
            if len(fields) != len(_COLUMNS):
                raise ClusterUnreachable(f"sacct printed a line that is none of ours: {line!r}")
            row = dict(zip(_COLUMNS, fields, strict=True))
            submit, start = time_of(row["Submit"]), time_of(row["Start"])
            # Slurm uses ids again: what was submitted before is another job.
            if start is None or submit is None or submit < self.since - _SLACK:
                continue
            if row["JobID"] not in newest or newest[row["JobID"]][0] <= start:
                newest[row["JobID"]] = start, _allocation(row, start)
        return sorted((found for _, found in newest.values()), key=lambda one: (len(one.raw_id), one.raw_id))


def _allocation(row: dict[str, str], start: datetime) -> Allocation:
    resources = dict(part.split("=", 1) for part in row["AllocTRES"].split(",") if "=" in part)
    # Where Slurm does not hand out memory, there is only what was asked for. Up to 20.11 a letter says of what.
    memory = resources.get("mem", "0")
    try:
        kib = memory_kib(memory if memory != "0" else row["ReqMem"])
    except ValueError:
        kib = 0
    try:
        gpus = gpu_count(resources["gres/gpu"]) if "gres/gpu" in resources else 0
    except ValueError:
        gpus = 0
    return Allocation(
        job_id=row["JobID"],
        raw_id=row["JobIDRaw"],
        start=start,
        end=time_of(row["End"]),
        nodes=number_of(row["NNodes"]) or 1,
        cpus=number_of(row["NCPUS"]) or 1,
        memory=int(kib) * 1024 if kib not in (0, float("inf")) else None,
        gpus=gpus,
    )
