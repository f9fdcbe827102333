"""The report on real jobs, compared with what Slurm's own `seff` makes of the same rows.

No package of Debian's has `seff` (it is in `contribs` of Slurm's sources): its formulas are written down here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobbergate_flows.metrics.efficiency import Efficiency, efficiency
from jobbergate_flows.slurm.command_cluster import CommandCluster
from jobbergate_flows.slurm.door import OwnAccountDoor
from jobbergate_flows.slurm.steps import JobRecord
from tests.cli.command_line import run
from tests.cluster.slurm import SlurmCluster
from tests.cluster.waiting import wait_until

MIB = 1024**2
# `use MIB SECONDS` takes memory, and keeps a processor busy.
USE = """\
use() { python3 -c '
import sys, time
memory = bytearray(int(sys.argv[1]) << 20)
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end: sum(range(1000))
' "$@"; }
export -f use
"""


class Jobs:
    """Submits jobs, and reads what accounting has of them once they have ended."""

    def __init__(self, slurm: SlurmCluster) -> None:
        self.slurm = slurm
        self.since = datetime.now(UTC)
        self.cluster = CommandCluster(slurm.name, OwnAccountDoor(), slurm_conf=str(slurm.conf))

    def submit(self, body: str, *options: str) -> str:
        command = ("sbatch", "--parsable", "--output=/dev/null", *options)
        return self.slurm.run(*command, stdin=f"#!/bin/bash\n{USE}{body}\n").strip()

    def records(self, job_id: str, wanted: Callable[[list[JobRecord]], bool]) -> list[JobRecord]:
        def there() -> list[JobRecord]:
            records = asyncio.run(self.cluster.steps(job_id, since=self.since))
            return records if records and wanted(records) else []

        return wait_until(there, 90, f"job {job_id} in accounting", 0.5)

    def ended(self, job_id: str) -> Efficiency:
        def over(records: list[JobRecord]) -> bool:
            return all(record.end and all(step.end for step in record.steps) for record in records)

        return efficiency(self.records(job_id, over), sample_seconds=2)

    def by_seff(self, job_id: str) -> tuple[float, int]:
        """What `seff` says: CPU efficiency, and the memory of the step that has the most, in bytes."""
        columns = "JobID,ElapsedRaw,AllocCPUS,TotalCPU,TRESUsageInTot%200"
        command = ("sacct", "-n", "-P", "--noconvert", f"--format={columns}", f"--jobs={job_id}")
        job, *steps = (line.split("|") for line in self.slurm.run(*command).splitlines())
        cpu = sum(
            int(minutes) * 60 + float(seconds) for minutes, seconds in (step[3].split(":")[-2:] for step in steps)
        )
        memory = [part for step in steps for part in step[4].split(",") if part.startswith("mem=")]
        return cpu / (int(job[1]) * int(job[2])), max(int(part.removeprefix("mem=")) for part in memory)


@pytest.fixture
def jobs(slurm_cluster: SlurmCluster) -> Iterator[Jobs]:
    yield Jobs(slurm_cluster)
    slurm_cluster.run("scancel", "--user=root")


@pytest.mark.slurm
def test_a_job_is_told_as_seff_tells_it(jobs: Jobs) -> None:
    job_id = jobs.submit("use 100 6", "--mem=500M", "--time=10", "--cpus-per-task=4")

    [job] = jobs.ended(job_id).jobs

    cpu, memory = jobs.by_seff(job_id)
    assert job.cpu == pytest.approx(cpu, abs=0.001)
    assert job.memory is not None
    assert (job.memory.used, job.memory_allocated) == (memory, 500 * MIB)
    assert 100 * MIB < memory < 200 * MIB
    assert (job.cpus, job.time_limit, job.state) == (4, 600, "COMPLETED")
    assert 0.01 < cpu < 0.3


@pytest.mark.slurm
def test_steps_at_once_need_more_than_the_one_that_seff_takes(jobs: Jobs) -> None:
    step = "srun --exact -n1 --mem=200M bash -c 'use {} 6'"
    at_once = jobs.submit(f"{step.format(80)} & {step.format(60)} & wait", "-n2", "--mem=600M")
    one_by_one = jobs.submit(f"{step.format(80)}; {step.format(60)}", "-n2", "--mem=600M")
    tasks = jobs.submit("srun -n2 bash -c 'use 80 6'", "-n2", "--mem=600M")

    [parallel], [serial], [many] = (jobs.ended(job_id).jobs for job_id in (at_once, one_by_one, tasks))

    assert parallel.memory is not None
    assert serial.memory is not None
    assert many.memory is not None
    # Beside the steps runs the script, with its sruns.
    assert 140 * MIB < jobs.by_seff(at_once)[1] + 60 * MIB < parallel.memory.used < 250 * MIB
    assert jobs.by_seff(one_by_one)[1] < serial.memory.used < 140 * MIB
    assert 160 * MIB < jobs.by_seff(tasks)[1] < many.memory.used < 280 * MIB
    assert (many.tasks, many.memory.basis) == (2, "tasks' largest samples summed up")
    for job, job_id in ((parallel, at_once), (serial, one_by_one), (many, tasks)):
        assert job.cpu == pytest.approx(jobs.by_seff(job_id)[0], abs=0.001)


@pytest.mark.slurm
def test_an_array_a_job_of_no_time_a_requeued_one_and_one_that_never_began(jobs: Jobs) -> None:
    array = jobs.submit("use $((20 + 40 * SLURM_ARRAY_TASK_ID)) 6", "--array=0-1", "--mem=400M")
    short, never = jobs.submit("true"), jobs.submit("true", "--hold")
    requeued = jobs.submit("sleep 300", "--requeue")
    jobs.slurm.run("scancel", never)
    jobs.records(requeued, lambda records: records[0].state == "RUNNING")
    jobs.slurm.run("scontrol", "requeue", requeued)

    report = jobs.ended(array)
    assert [job.job_id for job in report.jobs] == [f"{array}_0", f"{array}_1"]
    assert report.memory is not None
    assert report.memory.worst == f"{array}_0"
    assert 0.05 < report.memory.minimum < 0.15 < report.memory.maximum < 0.3
    [quick] = jobs.ended(short).jobs
    assert (quick.state, quick.cpu, quick.memory) == ("COMPLETED", None, None)
    [cancelled] = jobs.ended(never).jobs
    assert (cancelled.state, cancelled.cpu_unknown) == ("CANCELLED", "it never started")
    # Slurm starts it again after two minutes.
    [again] = efficiency(jobs.records(requeued, lambda records: len(records) == 2)).jobs
    assert (again.state, again.cpu_unknown) == ("PENDING", "it has not started yet")
    assert [life.state for life in again.earlier] == ["REQUEUED"]


@pytest.mark.slurm
def test_the_command_tells_of_jobs_that_were_submitted_elsewhere(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOBBERGATE_FLOWS_LEDGER", str(tmp_path / "ledger.sqlite3"))
    env = {"SLURM_CONF": str(jobs.slurm.conf)}
    array = jobs.submit("use 40 6", "--array=3-4", "--mem=600M")
    report = jobs.ended(array)

    whole = run("job", "efficiency", array, "--cluster=slurm", "--json", env=env)
    one = run("job", "efficiency", f"{array}_4", "--cluster=slurm", env=env)
    none = run("job", "efficiency", "987654", "--cluster=slurm", env=env)

    assert [job["cpu_efficiency"] for job in json.loads(whole.out)["jobs"]] == [job.cpu for job in report.jobs]
    assert f"Job              {array}_4" in one.out
    assert "MiB of 600 MiB" in one.out
    assert "For the next time:" in one.out
    assert (none.code, none.out) == (3, "")
    assert "accounting has no job 987654" in none.err
