"""Who submits as a user may lie about the job. What Slurm itself says of it counts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobbergate_flows.applications import JobScript
from jobbergate_flows.slurm.command_cluster import CommandCluster
from jobbergate_flows.slurm.commands.result import CommandResult
from jobbergate_flows.slurm.deputy_door import DeputyDoor
from jobbergate_flows.slurm.door import OwnAccountDoor
from jobbergate_flows.slurm.errors import SubmissionRefused
from jobbergate_flows.slurm.ledger import Ledger, SubmissionKey, SubmissionStatus, slurm_name
from jobbergate_flows.slurm.options import SlurmResources
from jobbergate_flows.slurm.submission import SubmissionOrder, submit_once
from tests.cluster.accounts import Accounts
from tests.cluster.slurm import SlurmCluster

pytestmark = pytest.mark.slurm


class LyingDeputy:
    """The door to a user's deputy, whose user makes it name a job of somebody else's for every submission."""

    def __init__(self, door: DeputyDoor, names: str, *, submits: bool) -> None:
        self._door = door
        self.names = names
        self.submits = submits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._door, name)

    async def run(
        self, arguments: Sequence[str], *, environment: Mapping[str, str], stdin: str = "", timeout: float
    ) -> CommandResult:
        said = CommandResult("", "", 0)
        if arguments[0] != "sbatch" or self.submits:
            said = await self._door.run(arguments, environment=environment, stdin=stdin, timeout=timeout)
        return CommandResult(f"{self.names}\n", "", 0) if arguments[0] == "sbatch" else said


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
def somebody_elses(slurm_cluster: SlurmCluster) -> Iterator[str]:
    job_id = slurm_cluster.run("sbatch", "--parsable", "--hold", "--job-name=another", "--wrap=true").strip()
    yield job_id
    slurm_cluster.run("scancel", job_id)


@pytest.fixture
def bobs(slurm_cluster: SlurmCluster, accounts: Accounts) -> Iterator[Callable[[str], str]]:
    """Makes jobs of Bob's, which nobody starts."""
    accounts.admit(slurm_cluster)

    def submit(name: str) -> str:
        command = (
            f"SLURM_CONF={slurm_cluster.conf} sbatch --parsable --hold --output=/dev/null --job-name={name} --wrap=true"
        )
        return accounts.run_as("bob", "sh", "-c", command).strip()

    yield submit
    slurm_cluster.run("scancel", "--user=bob")
    slurm_cluster.run("scancel", "--user=alice")


@pytest.fixture
async def alice(slurm_cluster: SlurmCluster, accounts: Accounts) -> AsyncIterator[DeputyDoor]:
    door = accounts.door("alice", slurm_conf=str(slurm_cluster.conf))
    yield door
    await door.close()


def order(base: Path) -> SubmissionOrder:
    script = JobScript(name="mine", text="#!/bin/sh\ntrue\n")
    return SubmissionOrder(script, SlurmResources(), str(base), SubmissionKey(base.name, "job", 0))


def cluster(slurm: SlurmCluster, door: Any) -> CommandCluster:
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


async def test_a_deputy_that_names_somebody_elses_job_is_refused_and_that_job_left_alone(
    slurm_cluster: SlurmCluster, ledger: Ledger, alice: DeputyDoor, bobs: Callable[[str], str]
) -> None:
    ordered = order(Path(await alice.home()))
    # Even one that bears the very name.
    job_id = bobs(f"{slurm_name(ordered.name)}-{ordered.key.token}")
    lying = cluster(slurm_cluster, LyingDeputy(alice, job_id, submits=False))
    assert lying.user == "alice"

    with pytest.raises(SubmissionRefused, match="do not hold"):
        await submit_once(lying, ledger, ordered, grace=0.5)

    row = ledger.get(ordered.key.token)
    assert row is not None
    assert (row.status, row.job_id) == (SubmissionStatus.REFUSED, None)
    assert slurm_cluster.run("squeue", "-h", "-o", "%T %u", "-j", job_id).split() == ["PENDING", "bob"]


async def test_the_users_own_job_is_taken_instead_of_somebody_elses_that_was_named(
    slurm_cluster: SlurmCluster, ledger: Ledger, alice: DeputyDoor, bobs: Callable[[str], str]
) -> None:
    ordered = replace(order(Path(await alice.home())), key=SubmissionKey("taken", "job", 0))
    job_id = bobs(f"{slurm_name(ordered.name)}-{ordered.key.token}")

    job = await submit_once(cluster(slurm_cluster, LyingDeputy(alice, job_id, submits=True)), ledger, ordered)

    assert job.job_id != job_id
    assert slurm_cluster.run("squeue", "-h", "-t", "all", "-o", "%u", "-j", job.job_id).split() == ["alice"]
    assert slurm_cluster.run("squeue", "-h", "-o", "%T %u", "-j", job_id).split() == ["PENDING", "bob"]
