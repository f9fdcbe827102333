"""Slurm's reasons in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobbergate_flows.slurm.reasons import explain, needs_person

# All that `job_reason_string` of that version's library gives.
OF_22_05 = (Path(__file__).parent / "recorded" / "22.05" / "reasons.txt").read_text().split()
OF_LATER = ["ReservationInvalid", "Constraints", "RaisedSignal"]
# Of a machine that no longer exists (Blue Gene).
UNEXPLAINED = {"BlockMaxError", "BlockFreeAction"}


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Resources", "waiting for free nodes (Resources)"),
        ("Priority", "other jobs go first (Priority)"),
        ("JobHeldUser", "held by you (JobHeldUser)"),
        ("DependencyNeverSatisfied", "a dependency failed: will never start (DependencyNeverSatisfied)"),
        ("AssocGrpCpuLimit", "the jobs of your account together have reached its limit of CPUs (AssocGrpCpuLimit)"),
        ("AssocGrpCPUMinutesLimit", "the CPU minutes of your account are used up (AssocGrpCPUMinutesLimit)"),
        (
            "QOSGrpMemoryRunMinutes",
            "running jobs have reserved all memory minutes of your QOS (QOSGrpMemoryRunMinutes)",
        ),
        (
            "QOSMaxJobsPerUserLimit",
            "your jobs have reached the limit of running jobs of your QOS (QOSMaxJobsPerUserLimit)",
        ),
        (
            "MaxGRESPerAccount",
            "the jobs of your account have reached the limit of devices in this QOS (MaxGRESPerAccount)",
        ),
        (
            "QOSMaxWallDurationPerJobLimit",
            "asks for more wall time than your QOS allows a job (QOSMaxWallDurationPerJobLimit)",
        ),
        ("QOSMinCpuNotSatisfied", "asks for less than the least that your QOS takes of CPUs (QOSMinCpuNotSatisfied)"),
        (
            "ReqNodeNotAvail, UnavailableNodes:node_[1-2],gpu3",
            "nodes that it needs are not available: node_[1-2],gpu3 (ReqNodeNotAvail)",
        ),
        (
            "ReqNodeNotAvail,_UnavailableNodes:node_1",
            "nodes that it needs are not available: node_1 (ReqNodeNotAvail)",
        ),
        ("launch_failed_requeued_held", "held: it could not be launched (launch_failed_requeued_held)"),
        ("RaisedSignal:9(Killed)", "a signal ended it (RaisedSignal:9(Killed))"),
    ],
)
def test_a_reason_is_words_with_slurms_own_in_brackets(reason: str, words: str) -> None:
    assert explain(reason) == words


@pytest.mark.parametrize("reason", ["QuantumFlux", "AssocGrpTeaLimit", "QOSMax", "Job is at or exceeds QOS x's limit"])
def test_a_reason_that_is_not_known_is_shown_as_it_is(reason: str) -> None:
    assert explain(reason) == reason
    assert not needs_person(reason)


@pytest.mark.parametrize("reason", OF_22_05 + OF_LATER)
def test_every_reason_that_slurm_has_is_explained(reason: str) -> None:
    assert explain(reason) == reason if reason in UNEXPLAINED else explain(reason).endswith(f" ({reason})")


@pytest.mark.parametrize(
    "reason",
    ["JobHeldUser", "JobHeldAdmin", "JobHoldMaxRequeue", "DependencyNeverSatisfied", "PartitionTimeLimit", "InvalidQOS",
     "AssocMaxCpuPerJobLimit", "QOSMaxMemoryPerNode", "QOSMaxCpuMinutesPerJobLimit", "QOSMinGRES", "ReservationDeleted",
     "launch failed requeued held", "job_requeued_in_held_state"],
)  # fmt: skip
def test_what_no_time_will_mend_needs_a_person(reason: str) -> None:
    assert needs_person(reason)


@pytest.mark.parametrize(
    "reason",
    [None, "None", "Resources", "Priority", "Dependency", "BeginTime", "PartitionDown", "PartitionNodeLimit",
     "QOSMaxJobsPerUserLimit", "QOSMaxCpuPerUserLimit", "AssocGrpCpuLimit", "AssocMaxJobsLimit", "MaxJobsPerAccount",
     "AssocGrpCPUMinutesLimit", "ReqNodeNotAvail, UnavailableNodes:node1"],
)  # fmt: skip
def test_what_time_may_mend_needs_nobody(reason: str | None) -> None:
    assert not needs_person(reason)
