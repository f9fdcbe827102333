"""What sacct shows of allocations, as models."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from jobbergate_flows.slurm.cluster import Allocation
from jobbergate_flows.slurm.commands import CommandResult, SacctAllocations
from jobbergate_flows.slurm.errors import ClusterUnreachable

SINCE = datetime.fromtimestamp(1_790_000_000, UTC)
GIB = 1024**3


def parsed(*rows: str) -> list[Allocation]:
    return SacctAllocations("3", SINCE).parse(CommandResult("".join(f"{row}\n" for row in rows), "", 0))


def after(seconds: int) -> datetime:
    return SINCE + timedelta(seconds=seconds)


def test_the_tasks_of_an_array_have_their_raw_ids() -> None:
    # As Slurm 22.05 printed it; the array's last task has its id.
    assert parsed(
        "3_1|5|1790000000|1790000001|1790000009|1|1|4000M|billing=1,cpu=1,node=1",
        "3_3|3|1790000000|1790000002|1790000005|1|1|4000M|billing=1,cpu=1,node=1",
    ) == [
        Allocation("3_3", "3", after(2), after(5), 1, 1, 4000 * 1024**2),
        Allocation("3_1", "5", after(1), after(9), 1, 1, 4000 * 1024**2),
    ]


def test_what_was_given_counts_before_what_was_asked_for() -> None:
    (found,) = parsed(
        "3|3|1790000000|1790000001|1790000009|2|64|1G|billing=64,cpu=64,gres/gpu=4,gres/gpu:a100=4,mem=16G,node=2"
    )
    assert (found.nodes, found.cpus, found.memory, found.gpus) == (2, 64, 16 * GIB, 4)


@pytest.mark.parametrize(("asked", "given"), [("0", "cpu=1,mem=0,node=1"), ("4Gn", "cpu=1,node=1"), ("", "")])
def test_unlimited_memory_and_what_cannot_be_read_are_no_limit(asked: str, given: str) -> None:
    (found,) = parsed(f"3|3|1790000000|1790000001|1790000009|1|1|{asked}|{given}")
    assert found.memory is None


def test_a_running_job_has_no_end_and_a_pending_one_is_none() -> None:
    assert [found.end for found in parsed("3|3|1790000000|1790000001|Unknown|1|1|1G|cpu=1")] == [None]
    assert parsed("3|3|1790000000|Unknown|Unknown|1|1|1G|") == []
    assert parsed() == []


def test_of_a_requeued_job_the_last_life_counts_and_of_an_id_used_again_the_newer_job() -> None:
    (found,) = parsed(
        "3|3|1789000000|1789000001|1789000009|1|1|1G|cpu=9",
        "3|3|1790000000|1790000001|1790000009|1|1|1G|cpu=1",
        "3|3|1790000009|1790000050|1790000099|1|1|1G|cpu=1",
    )
    assert (found.start, found.end) == (after(50), after(99))
    assert parsed("3|3|1789000000|1789000001|1789000009|1|1|1G|cpu=9") == []


def test_what_is_none_of_ours_is_no_answer() -> None:
    with pytest.raises(ClusterUnreachable, match="none of ours"):
        parsed("slurm_load: something")
    with pytest.raises(ClusterUnreachable):
        SacctAllocations("3", SINCE).parse(CommandResult("", "sacct: error: slurmdbd is down", 1))


def test_no_column_holds_a_users_text() -> None:
    arguments = SacctAllocations("3", SINCE, "alpha").arguments()
    assert arguments[:6] == ("sacct", "-X", "-D", "-n", "-P", "--noconvert")
    assert "Name" not in arguments[6]
    assert arguments[-1] == "--clusters=alpha"
