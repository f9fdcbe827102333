"""sacct: what a job and its steps used."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from jobbergate_flows.slurm.arrays import expand_tasks
from jobbergate_flows.slurm.commands.result import CommandResult, require_answer
from jobbergate_flows.slurm.commands.sacct import since_argument
from jobbergate_flows.slurm.commands.squeue import number_of, time_of
from jobbergate_flows.slurm.errors import ClusterUnreachable
from jobbergate_flows.slurm.jobs import ExitCode
from jobbergate_flows.slurm.states import parse_state
from jobbergate_flows.slurm.steps import JobRecord, StepRecord

# No column that holds text of a user's: the names of jobs and steps may contain pipes and newlines.
_COLUMNS = (
    "JobID", "JobIDRaw", "State", "ExitCode", "Submit", "Eligible", "Start", "End", "ElapsedRaw", "TimelimitRaw",
    "AllocCPUS", "NNodes", "NTasks", "ReqTRES", "AllocTRES", "TotalCPU", "UserCPU", "SystemCPU", "MaxRSS", "MaxRSSNode",
    "MaxRSSTask", "AveRSS", "TRESUsageInMax", "TRESUsageInTot", "TRESUsageInAve", "ConsumedEnergyRaw",
)  # fmt: skip
_SCALE = {letter: 1024**power for power, letter in enumerate(" KMGTPE")}


@dataclass(frozen=True, slots=True)
class SacctSteps:
    """A job, or all tasks of an array, with all steps. Read once, at the end.

    Args:
        job_id: `123`, or `123_4` for one task.
        since: The submission, from which on all lives of the job are shown (requeues). None, where it is not known: the
            last life of the newest job of that id, for Slurm reuses ids.
    """

    job_id: str
    since: datetime | None = None
    cluster: str | None = None

    def arguments(self) -> tuple[str, ...]:
        """The command line."""
        where = (f"--clusters={self.cluster}",) if self.cluster else ()
        lives = ("-D", f"--starttime={since_argument(self.since)}") if self.since is not None else ()
        return (
            "sacct", "-n", "-P", "--noconvert", f"--format={','.join(_COLUMNS)}", f"--jobs={self.job_id}", *lives,
            *where,
        )  # fmt: skip

    def parse(self, result: CommandResult) -> list[JobRecord]:
        """The job's lives in sacct's order, the steps of each with it; pending array tasks each as one.

        Raises:
            ClusterUnreachable
        """
        records: list[tuple[JobRecord, list[StepRecord]]] = []
        for line in require_answer("sacct", result).splitlines():
            values = line.split("|")
            if len(values) != len(_COLUMNS):
                raise ClusterUnreachable(f"sacct printed a line that is none of ours: {line!r}")
            fields = dict(zip(_COLUMNS, values, strict=True))
            job_id, dot, step_id = fields["JobID"].partition(".")
            if not dot:
                records += [(record, []) for record in _jobs(job_id, fields)]
            elif records and records[-1][0].job_id == job_id:
                records[-1][1].append(_step(step_id, fields))
        return [replace(record, steps=tuple(steps)) for record, steps in records]


def _jobs(job_id: str, fields: Mapping[str, str]) -> Iterator[JobRecord]:
    record = JobRecord(
        job_id=job_id,
        raw_id=fields["JobIDRaw"],
        state=parse_state(fields["State"])[0],
        exit_code=ExitCode.parse(fields["ExitCode"]),
        submit=time_of(fields["Submit"]),
        eligible=time_of(fields["Eligible"]),
        start=time_of(fields["Start"]),
        end=time_of(fields["End"]),
        elapsed=number_of(fields["ElapsedRaw"]) or 0,
        # Also a word: UNLIMITED, Partition_Limit.
        time_limit=number_of(fields["TimelimitRaw"]),
        cpus=number_of(fields["AllocCPUS"]) or 0,
        nodes=number_of(fields["NNodes"]) or 0,
        total_cpu=_seconds(fields["TotalCPU"]),
        requested=_resources(fields["ReqTRES"]),
        allocated=_resources(fields["AllocTRES"]),
        energy=_energy(fields),
    )
    array_id, _, task = job_id.partition("_")
    if not task.startswith("["):
        yield record
        return
    # The pending tasks of an array are one row; a list that cannot be read stays one.
    with contextlib.suppress(ValueError):
        for number in expand_tasks(task.strip("[]")):
            yield replace(record, job_id=f"{array_id}_{number}")
        return
    yield record


def _step(step_id: str, fields: Mapping[str, str]) -> StepRecord:
    return StepRecord(
        step_id=step_id,
        state=parse_state(fields["State"])[0],
        start=time_of(fields["Start"]),
        end=time_of(fields["End"]),
        elapsed=number_of(fields["ElapsedRaw"]) or 0,
        cpus=number_of(fields["AllocCPUS"]) or 0,
        nodes=number_of(fields["NNodes"]) or 0,
        tasks=number_of(fields["NTasks"]),
        total_cpu=_seconds(fields["TotalCPU"]),
        user_cpu=_seconds(fields["UserCPU"]),
        system_cpu=_seconds(fields["SystemCPU"]),
        max_rss=_amount(fields["MaxRSS"]),
        max_rss_node=fields["MaxRSSNode"] or None,
        max_rss_task=number_of(fields["MaxRSSTask"]),
        average_rss=_amount(fields["AveRSS"]),
        usage_max=_resources(fields["TRESUsageInMax"]),
        usage_total=_resources(fields["TRESUsageInTot"]),
        usage_average=_resources(fields["TRESUsageInAve"]),
        energy=_energy(fields),
    )


def _resources(text: str) -> dict[str, int]:
    """`cpu=4,mem=4000M,gres/gpu:a100=2` as numbers, sizes in bytes, times in seconds; without what is neither."""
    found = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        amount = _amount(value) if ":" not in value else _seconds(value)
        if amount is not None:
            found[name] = int(amount)
    return found


def _amount(text: str) -> int | None:
    """A number with or without a unit of 1024s."""
    found = re.fullmatch(r"([0-9]{1,19}(?:\.[0-9]{1,9})?)([KMGTPE]?)", text)
    return int(float(found[1]) * _SCALE[found[2] or " "]) if found else None


def _seconds(text: str) -> float | None:
    """`[DD-[HH:]]MM:SS[.mmm]`, as sacct prints CPU times."""
    found = re.fullmatch(r"(?:([0-9]{1,9})-)?(?:([0-9]{1,9}):)?([0-9]{1,2}):([0-9]{1,2}(?:\.[0-9]{1,9})?)", text)
    if found is None:
        return None
    days, hours, minutes = (int(part or 0) for part in found.groups()[:3])
    return ((days * 24 + hours) * 60 + minutes) * 60 + float(found[4])


def _energy(fields: Mapping[str, str]) -> int | None:
    # 0 is what sites without a meter have.
    return number_of(fields["ConsumedEnergyRaw"]) or None
