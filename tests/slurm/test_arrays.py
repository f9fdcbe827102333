"""Array specifications: the ones that Slurm takes."""

from __future__ import annotations

import pytest

from jobbergate_flows.slurm.arrays import MAX_TASK_NUMBER, expand_tasks, parse_array
from tests.cluster.slurm import SlurmCluster

TAKEN = ["0", "0-3", "0-0", "1,1", "0-3,2", "0-3:2%1", "0-3:9", "0-1%0", "0-1%99", "00-03", "1000", "7,3"]
REFUSED = ["5-1", "0-3:0", "3,5-1", "99999999999999999999", "0-3:99999999999", "0-3:-1", "x"]


@pytest.mark.parametrize(
    ("text", "tasks", "at_once"),
    [
        ("0-3,7,9-11:2%4", (0, 1, 2, 3, 7, 9, 11), 4),
        ("1,1,0-2", (0, 1, 2), None),
        ("0-1%0", (0, 1), None),
        ("3-3:2", (3,), None),
        (str(MAX_TASK_NUMBER), (MAX_TASK_NUMBER,), None),
    ],
)
def test_a_specification_names_tasks_and_how_many_run_at_once(
    text: str, tasks: tuple[int, ...], at_once: int | None
) -> None:
    spec = parse_array(text)

    assert (spec.tasks(), spec.at_once, spec.largest) == (tasks, at_once, tasks[-1])


@pytest.mark.parametrize("text", [*REFUSED, "", ",1", "1,,2", "%3", "0-3%", "٣", "0-1...", str(MAX_TASK_NUMBER + 1)])
def test_what_names_no_tasks_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="names no array tasks"):
        parse_array(text)


def test_more_tasks_than_anybody_has_are_not_spelled_out() -> None:
    with pytest.raises(ValueError, match="more than"):
        expand_tasks("0-4000000")


def test_slurm_takes_the_same(slurm_cluster: SlurmCluster) -> None:
    def takes(text: str) -> bool:
        job = slurm_cluster.run(
            "sbatch", "--parsable", "--hold", "--output=/dev/null", f"--array={text}", stdin="#!/bin/sh\n", check=False
        )
        if job:
            slurm_cluster.run("scancel", job.strip())
        return bool(job)

    assert {text: takes(text) for text in TAKEN + REFUSED} == dict.fromkeys(TAKEN, True) | dict.fromkeys(REFUSED, False)
    for text in TAKEN:
        parse_array(text)
