"""Limits on what a run may ask Slurm for."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from agent_worker.identity.consent import parse_line
from agent_worker.identity.limits import exceeded
from jobbergate_flows.slurm.directives import parse_directives
from jobbergate_flows.slurm.options import SlurmResources, resources_of
from jobbergate_flows.slurm.units import gpu_count, memory_kib, nodes_at_most, time_seconds


def why(options: str, **asked: Any) -> str | None:
    line = parse_line(f"a/b flows=any,{options}")
    assert line is not None
    return exceeded(line.limits, SlurmResources.model_validate(asked))


@pytest.mark.parametrize(
    ("limit", "asked"),
    [
        ("max-nodes=4", {"nodes": "4"}),
        ("max-nodes=4", {"nodes": "1-4"}),
        ("max-tasks=8", {"tasks": 8}),
        ("max-cpus=8", {"tasks": 4, "cpus_per_task": 2}),
        ("max-memory=64G", {"memory": "64G"}),
        ("max-memory=64G", {"memory": "65536"}),
        ("max-memory=64G", {"memory_per_cpu": "8G", "tasks": 4, "cpus_per_task": 2}),
        ("max-gpus=2", {"gpus": "2"}),
        ("max-gpus=2", {"gpus": "a100:2"}),
        ("max-time=2-00:00:00", {"time_limit": "2880"}),
        ("max-time=2-00:00:00", {"time_limit": "48:00:00"}),
        ("max-time=2-00:00:00", {"time_limit": "2-0"}),
        ("max-time=60,max-array=10", {"time_limit": "60", "array": "0-9%4"}),
        ("partition=debug|small", {"partition": "small"}),
        ("partition=debug|small", {"partition": "small,debug"}),
        ("account=physics", {"account": "physics"}),
        ("max-nodes=4", {"nodes": "4", "extra": {"output": "out.txt", "nice": "5"}}),
        ("max-time=60", {"time_limit": "60", "exclusive": True}),
    ],
    ids=str,
)
def test_within_the_limit(limit: str, asked: dict[str, Any]) -> None:
    assert why(limit, **asked) is None


@pytest.mark.parametrize(
    ("limit", "asked"),
    [
        ("max-nodes=4", {"nodes": "5"}),
        ("max-nodes=4", {"nodes": "1-5"}),
        ("max-tasks=8", {"tasks": 9}),
        ("max-cpus=8", {"tasks": 3, "cpus_per_task": 3}),
        ("max-memory=64G", {"memory": "1T"}),
        ("max-memory=64G", {"memory": "65537"}),
        ("max-memory=64G", {"memory_per_cpu": "8G", "tasks": 3, "cpus_per_task": 3}),
        ("max-gpus=2", {"gpus": "a100:3"}),
        ("max-time=2-00:00:00", {"time_limit": "2881"}),
        ("max-time=2-00:00:00", {"time_limit": "2-00:00:01"}),
        ("max-time=60,max-array=10", {"time_limit": "60", "array": "0-10"}),
        ("partition=debug|small", {"partition": "large"}),
        ("partition=debug|small", {"partition": "small,large"}),
        ("account=physics", {"account": "chemistry"}),
    ],
    ids=str,
)
def test_beyond_the_limit(limit: str, asked: dict[str, Any]) -> None:
    assert "allowed" in (why(limit, **asked) or "")


@pytest.mark.parametrize(
    ("limit", "option"),
    [
        ("max-nodes=4", "--nodes"),
        ("max-tasks=4", "--ntasks"),
        ("max-cpus=4", "--cpus-per-task"),
        ("max-memory=4G", "--mem"),
        ("max-gpus=4", "--gpus"),
        ("max-time=4", "--time"),
        ("max-array=4", "--array"),
        ("partition=debug", "--partition=debug"),
        ("account=physics", "--account=physics"),
    ],
)
def test_what_is_limited_must_be_said(limit: str, option: str) -> None:
    assert option in (why(limit) or "")


@pytest.mark.parametrize(
    ("limit", "asked"),
    [
        # For sbatch zero means all there is.
        ("max-memory=64G", {"memory": "0"}),
        ("max-memory=64G", {"memory_per_cpu": "0", "tasks": 1, "cpus_per_task": 1}),
        ("max-time=60", {"time_limit": "0"}),
        ("max-time=60", {"time_limit": "0:00"}),
        ("max-time=60", {"time_limit": "UNLIMITED"}),
        ("max-cpus=8", {"tasks": 8}),
        ("max-cpus=8", {"cpus_per_task": 8}),
        ("max-memory=64G", {"memory_per_cpu": "1G"}),
        ("max-nodes=4", {"nodes": "4", "exclusive": True}),
        ("max-nodes=4", {"nodes": "4", "extra": {"nodelist": "node[1-99]"}}),
        ("max-cpus=4", {"tasks": 2, "cpus_per_task": 2, "extra": {"mincpus": "64"}}),
        ("max-cpus=4", {"tasks": 2, "cpus_per_task": 2, "extra": {"hint": "nomultithread"}}),
        ("max-memory=4G", {"memory": "4G", "extra": {"mem-per-gpu": "64G"}}),
        ("max-gpus=1", {"gpus": "1", "extra": {"gpus-per-node": "8"}}),
        ("max-gpus=1", {"gpus": "1", "gres": "gpu:8"}),
        ("max-time=60", {"time_limit": "60", "array": "0-9999"}),
        # What looks like digits to Python is none to sbatch.
    ],
    ids=ascii,
)
def test_no_way_round(limit: str, asked: dict[str, Any]) -> None:
    assert why(limit, **asked) is not None


@pytest.mark.parametrize(
    "asked",
    [{"nodes": "1\u0664"}, {"memory": "\uff14G"}, {"time_limit": "\uff13\uff10"}],
    ids=["nodes", "memory", "time"],
)
def test_odd_digits_are_not_even_asked_for(asked: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SlurmResources.model_validate(asked)


def test_without_limits_everything_may_be_asked() -> None:
    assert why("expires=2030-01-01", exclusive=True, array="0-9999") is None


def test_a_rendered_script_can_be_checked_as_well() -> None:
    line = parse_line("a/b flows=any,max-nodes=4")
    assert line is not None
    script = "#!/bin/bash\n#SBATCH --nodes=64\n#SBATCH --time=5\nhostname\n"
    asked = SlurmResources(time_limit="30").over(resources_of(parse_directives(script)))

    assert exceeded(line.limits, asked) == "at most 4 nodes are allowed, and the run asks for 64"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1800),
        ("1:30", 90),
        ("1:30:00", 5400),
        ("2-3", 183_600),
        ("2-3:30", 185_400),
        ("2-3:30:15", 185_415),
        ("0", float("inf")),
        ("INFINITE", float("inf")),
    ],
)
def test_times_are_sbatchs(text: str, seconds: float) -> None:
    assert time_seconds(text) == seconds


def test_memory_is_in_megabytes_without_a_unit() -> None:
    assert [memory_kib(text) for text in ("1", "1M", "1024K", "1g", "1GB", "1T")] == [
        1024,
        1024,
        1024,
        1024**2,
        1024**2,
        1024**3,
    ]


@pytest.mark.parametrize("text", ["", "G", "-1", "1.5G", "1 G", "\u0661", "1G\n"])
def test_nonsense_is_no_quantity(text: str) -> None:
    for read in (memory_kib, time_seconds, nodes_at_most, gpu_count):
        with pytest.raises(ValueError, match="is no"):
            read(text)
