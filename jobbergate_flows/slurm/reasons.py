"""Slurm's reasons: why a job waits or failed, in words for people who do not know Slurm.

The names are those of Slurm's `job_reason_string` (22.05 to 25.05), the sentences those that its controller writes in
their place (`state_desc`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Meaning:
    words: str
    needs_person: bool = False


def explain(reason: str) -> str:
    """A reason in words, with Slurm's own in brackets: `waiting for free nodes (Resources)`.

    A reason that is not known here, and one that is a sentence of Slurm's, comes back as it is.
    """
    meaning = _meaning(reason)
    return reason if meaning is None else f"{meaning.words} ({_own_word(reason)})"


def needs_person(reason: str | None) -> bool:
    """Whether a job that waits for this reason will wait until somebody does something about it."""
    meaning = _meaning(reason) if reason else None
    return meaning is not None and meaning.needs_person


def _meaning(reason: str) -> _Meaning | None:
    for pattern, words, stuck in _SENTENCES:
        if found := pattern.fullmatch(reason):
            return _Meaning(words.format(*found.groups()), stuck)
    # `RaisedSignal:9(Killed)` names the signal as well.
    return _REASONS.get(word := re.split(r"[:(,]", reason, maxsplit=1)[0]) or _limit(word)


def _own_word(reason: str) -> str:
    return "ReqNodeNotAvail" if reason.startswith("ReqNodeNotAvail") else reason


def _limit(word: str) -> _Meaning | None:
    """What a limit's name says: whose it is, of what, and for whom."""
    found = _LIMIT.fullmatch(word)
    if found is None:
        return None
    what = _RESOURCES[found["what"]]
    owner = "account" if found["owner"] == "Assoc" else "QOS"
    minutes = f"{what.removesuffix('s')} minutes"
    match found["kind"], found["minutes"], found["scope"]:
        case _ if found["what"] == "Wall" and found["kind"] == "Grp":
            return _Meaning(f"the wall time of your {owner} is used up")
        case "Grp", "", _:
            return _Meaning(f"the jobs of your {owner} together have reached its limit of {what}")
        case "Grp", "Minutes", _:
            return _Meaning(f"the {minutes} of your {owner} are used up")
        case "Grp", _, _:
            return _Meaning(f"running jobs have reserved all {minutes} of your {owner}")
        case "Min", _, _:
            return _Meaning(f"asks for less than the least that your {owner} takes of {what}", needs_person=True)
        case "Max", _, "PerAccount":
            return _Meaning(f"the jobs of your account have reached the limit of {what} in this QOS")
        case "Max", "", "PerUser" | "":
            return _Meaning(f"your jobs have reached the limit of {what} of your {owner}")
        case "Max", "", scope:
            whom = "a node" if scope == "PerNode" else "a job"
            return _Meaning(f"asks for more {what} than your {owner} allows {whom}", needs_person=True)
    return _Meaning(f"asks for more {minutes} than your {owner} allows a job", needs_person=True)


_RESOURCES = {
    "BB": "burst buffers",
    "Billing": "billing units",
    "CPU": "CPUs",
    "Cpu": "CPUs",
    "Energy": "energy",
    "GRES": "devices",
    "Job": "running jobs",
    "Jobs": "running jobs",
    "License": "licenses",
    "Mem": "memory",
    "Memory": "memory",
    "Node": "nodes",
    "SubmitJob": "submitted jobs",
    "SubmitJobs": "submitted jobs",
    "Unknown": "another resource",
    "Wall": "wall time",
    "WallDuration": "wall time",
}
# QOSGrpCPURunMinutesLimit, AssocMaxCpuPerJobLimit, QOSMinCpuNotSatisfied, MaxJobsPerAccount, ...
_LIMIT = re.compile(
    rf"(?P<owner>Assoc|QOS|)(?P<kind>Grp|Max|Min)(?P<what>{'|'.join(sorted(_RESOURCES, key=len, reverse=True))})"
    r"(?P<minutes>(?:Run)?Minutes|)(?P<scope>Per(?:Job|Node|User|Account)|)(?:Limit|NotSatisfied)?"
)

_REASONS: Mapping[str, _Meaning] = {
    # It waits, and will go on.
    "None": _Meaning("not scheduled yet"),
    "WaitingForScheduling": _Meaning("not scheduled yet"),
    "Resources": _Meaning("waiting for free nodes"),
    "Priority": _Meaning("other jobs go first"),
    "Dependency": _Meaning("waiting for another job"),
    "BeginTime": _Meaning("waiting for the time from which it may begin"),
    "JobArrayTaskLimit": _Meaning("as many of the array's tasks run as may at once"),
    "Licenses": _Meaning("waiting for licenses"),
    "Reservation": _Meaning("waiting for its reservation"),
    "ReqNodeNotAvail": _Meaning("nodes that it needs are not available"),
    "NodeDown": _Meaning("a node that it needs is down"),
    "FrontEndDown": _Meaning("no front end node is up"),
    "PartitionDown": _Meaning("the partition is down"),
    "PartitionInactive": _Meaning("the partition starts no jobs now"),
    "PartitionNodeLimit": _Meaning("asks for more nodes than the partition has or can use now"),
    "PartitionConfig": _Meaning("the partition cannot give what it asks for now"),
    "Prolog": _Meaning("its nodes are being prepared"),
    "Cleaning": _Meaning("still being cleaned up after its last run"),
    "SchedDefer": _Meaning("the scheduler looks at it later"),
    "BurstBufferResources": _Meaning("waiting for burst buffers"),
    "BurstBufferStageIn": _Meaning("its files are being staged in"),
    "PowerNotAvail": _Meaning("waiting for power"),
    "PowerReserved": _Meaning("waiting for power"),
    "FedJobLock": _Meaning("waiting for the federation's other clusters"),
    "AccountingPolicy": _Meaning("a limit of your account or QOS is reached"),
    "AssociationJobLimit": _Meaning("a limit of your account on jobs is reached"),
    "AssociationResourceLimit": _Meaning("a limit of your account is reached"),
    "AssociationTimeLimit": _Meaning("a time limit of your account is reached"),
    "QOSJobLimit": _Meaning("a limit of the QOS on jobs is reached"),
    "QOSResourceLimit": _Meaning("a limit of the QOS is reached"),
    "QOSTimeLimit": _Meaning("a time limit of the QOS is reached"),
    "QOSUsageThreshold": _Meaning("your account has used too much of late for this QOS"),
    # It waits for somebody.
    "JobHeldUser": _Meaning("held by you", needs_person=True),
    "JobHeldAdmin": _Meaning("held by an administrator", needs_person=True),
    "JobHoldMaxRequeue": _Meaning("held: it was requeued too often", needs_person=True),
    "DependencyNeverSatisfied": _Meaning("a dependency failed: will never start", needs_person=True),
    "ReservationDeleted": _Meaning("held: its reservation was deleted", needs_person=True),
    "ReservationInvalid": _Meaning("its reservation is not valid", needs_person=True),
    "BadConstraints": _Meaning("held: no node has the features that it asks for", needs_person=True),
    "Constraints": _Meaning("no node has the features that it asks for", needs_person=True),
    "PartitionTimeLimit": _Meaning("its time limit is longer than the partition's", needs_person=True),
    "MaxMemPerLimit": _Meaning("asks for more memory than a job may", needs_person=True),
    "InvalidAccount": _Meaning("its account is not valid (any more)", needs_person=True),
    "InvalidQOS": _Meaning("its QOS is not valid (any more)", needs_person=True),
    "AccountNotAllowed": _Meaning("the partition does not take its account", needs_person=True),
    "QOSNotAllowed": _Meaning("the partition does not take its QOS", needs_person=True),
    "BurstBufferOperation": _Meaning("held: its burst buffer failed", needs_person=True),
    # It has failed.
    "NonZeroExitCode": _Meaning("it ended with an exit code other than 0"),
    "RaisedSignal": _Meaning("a signal ended it"),
    "JobLaunchFailure": _Meaning("it could not be launched: look at its script, its directory and the node"),
    "SystemFailure": _Meaning("Slurm, a file system or the network failed"),
    "TimeLimit": _Meaning("the time limit was reached"),
    "DeadLine": _Meaning("its deadline passed"),
    "InactiveLimit": _Meaning("it was idle for longer than Slurm allows"),
    "OutOfMemory": _Meaning("it used more memory than it asked for"),
}


def _sentence(text: str, words: str, *, stuck: bool = False) -> tuple[re.Pattern[str], str, bool]:
    # Some versions of squeue print underscores for blanks.
    return re.compile(text.replace(" ", "[ _]")), words, stuck


_SENTENCES = (
    _sentence("ReqNodeNotAvail, UnavailableNodes:(.+)", "nodes that it needs are not available: {}"),
    _sentence("ReqNodeNotAvail, Reserved for maintenance", "the nodes are reserved for maintenance"),
    _sentence("ReqNodeNotAvail, May be reserved for other job", "the nodes may be reserved for another job"),
    _sentence("launch failed requeued held", "held: it could not be launched", stuck=True),
    _sentence("user env retrieval failed requeued held", "held: its environment could not be read", stuck=True),
    _sentence("job requeued in held state", "held: it was requeued so", stuck=True),
)
