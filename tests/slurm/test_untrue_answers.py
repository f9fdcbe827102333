"""Who submits as a user may lie about the job. What Slurm itself says of it counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from jobbergate_flows.applications import JobScript
from jobbergate_flows.slurm.command_cluster import CommandCluster
from jobbergate_flows.slurm.commands.result import CommandResult
from jobbergate_flows.slurm.door import OwnAccountDoor
from jobbergate_flows.slurm.errors import SubmissionRefused
from jobbergate_flows.slurm.ledger import Ledger, SubmissionKey, SubmissionStatus
from jobbergate_flows.slurm.options import SlurmResources
from jobbergate_flows.slurm.submission import SubmissionOrder, submit_once
from tests.cluster.slurm import SlurmCluster

pytestmark = pytest.mark.slurm


class LyingDoor(OwnAccountDoor):
    """Answers every submission with the id of somebody else's job, whether or not it hands it over."""

    def __init__(self, names: str, *, submits: bool) -> None:
        super().__init__()
        self.names = names
        self.submits = submits

    async def run(
        self, arguments: Sequence[str], *, environment: Mapping[str, str], stdin: str = "", timeout: float
    ) -> CommandResult:
        if arguments[0] != "sbatch":
            return await super().run(arguments, environment=environment, stdin=stdin, timeout=timeout)
        if self.submits:
            await super().run(arguments, environment=environment, stdin=stdin, timeout=timeout)
        return CommandResult(f"{self.names}\n", "", 0)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(tmp_path / "ledger.sqlite3")
    yield opened
    opened.close()


@pytest.fixture
def somebody_elses(slurm_cluster: SlurmCluster) -> Iterator[str]:
    job_id = slurm_cluster.run("sbatch", "--parsable", "--hold", "--job-name=another", "--wrap=true").strip()
    yield job_id
    slurm_cluster.run("scancel", job_id)


def order(base: Path) -> SubmissionOrder:
    script = JobScript(name="mine", text="#!/bin/sh\ntrue\n")
    return SubmissionOrder(script, SlurmResources(), str(base), SubmissionKey(base.name, "job", 0))


def cluster(slurm: SlurmCluster, door: LyingDoor) -> CommandCluster:
    return CommandCluster(slurm.name, door, watching=OwnAccountDoor(), slurm_conf=str(slurm.conf))


async def test_the_job_that_slurm_knows_by_the_name_is_taken_instead_of_the_one_that_was_named(
    slurm_cluster: SlurmCluster, ledger: Ledger, tmp_path: Path, somebody_elses: str
) -> None:
    lying = cluster(slurm_cluster, LyingDoor(somebody_elses, submits=True))

    job = await submit_once(lying, ledger, order(tmp_path))

    assert job.job_id != somebody_elses
    row = ledger.get(job.key)
    assert row is not None
    shown = slurm_cluster.run("squeue", "-h", "-t", "all", "-o", "%A", f"--name={row.name_in_slurm}").split()
    assert shown == [job.job_id]


async def test_who_only_ever_lies_is_refused_and_the_other_job_left_alone(
    slurm_cluster: SlurmCluster, ledger: Ledger, tmp_path: Path, somebody_elses: str
) -> None:
    lying = cluster(slurm_cluster, LyingDoor(somebody_elses, submits=False))
    ordered = order(tmp_path)

    with pytest.raises(SubmissionRefused, match="do not hold"):
        await submit_once(lying, ledger, ordered, grace=0.5)

    row = ledger.get(ordered.key.token)
    assert row is not None
    assert row.status is SubmissionStatus.REFUSED
    assert slurm_cluster.run("squeue", "-h", "-o", "%T", "-j", somebody_elses).strip() == "PENDING"
