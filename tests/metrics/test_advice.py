"""What to ask for the next time."""

from __future__ import annotations

from typing import Any

import pytest

from jobbergate_flows.metrics.advice import advise
from jobbergate_flows.metrics.efficiency import Usage, efficiency
from jobbergate_flows.metrics.report import efficiency_markdown
from jobbergate_flows.slurm.steps import JobRecord
from jobbergate_flows.slurm.units import memory_kib, time_seconds
from tests.metrics.records import GIB, MIB, a_job, a_step

WELL_ASKED = {"cpus": 1, "limit": 90, "mem": 1536 * MIB}


def said(*records: JobRecord, **known: Any) -> tuple[str, ...]:
    return advise(efficiency(records, **known))


def well(*steps: Any, **changed: Any) -> JobRecord:
    """A job that used what it asked for, but for what is changed."""
    return a_job(*(steps or (a_step(),)), **{**WELL_ASKED, **changed})


def test_a_job_that_used_what_it_asked_for_is_left_alone() -> None:
    assert said(well()) == ()


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        (
            well(a_step(rss=int(3.1 * GIB)), mem=64 * GIB),
            "asked for 64 GiB, used at most 3.1 GiB: `--mem=4G` would do",
        ),
        (well(a_step(rss=40 * MIB), mem=4 * GIB), "asked for 4 GiB, used at most 40 MiB: `--mem=100M` would do"),
        (
            well(a_step("0", rss=GIB, tasks=4, nodes=2, cpu=4 * 3600), mem=64 * GIB, nodes=2, cpus=4),
            "asked for 32 GiB on each node, used at most 2 GiB: `--mem=3G` would do",
        ),
        (
            well(a_step(cpu=4000), cpus=16),
            "asked for 16 CPUs, at most 1.1 were busy on average: `--ntasks=1 --cpus-per-task=2` would do",
        ),
        (
            well(a_step("0", tasks=4, cpu=4 * 3600, rss=GIB // 4), cpus=32),
            "asked for 8 CPUs for each of 4 tasks, at most 1.0 were busy on average: `--cpus-per-task=2` would do",
        ),
        (
            well(limit=1440),
            "asked for 1-00:00:00, ran for at most 01:00:00: `--time=01:15:00` would do, and short jobs start sooner",
        ),
        (
            well(a_step(elapsed=200000, cpu=200000), elapsed=200000, limit=10 * 1440),
            "asked for 10-00:00:00, ran for at most 2-07:33:20: `--time=2-22:00:00` would do, and short jobs start"
            " sooner",
        ),
        (
            well(state="TIMEOUT", limit=60),
            "the job was ended by its time limit of 01:00:00: ask for more, for example `--time=01:30:00`",
        ),
        (
            well(a_step(state="OUT_OF_MEMORY", rss=GIB), state="OUT_OF_MEMORY", mem=4 * GIB),
            "the job ran out of its memory of 4 GiB: ask for more, for example `--mem=6G`",
        ),
        (
            well(a_step(rss=None), state="OUT_OF_MEMORY", mem=None),
            "the job ran out of its memory: ask for more (`--mem`)",
        ),
        (
            well(a_step(usage_max={"gres/gpuutil": 0}), allocated={"cpu": 1, "gres/gpu": 2}),
            "accounting never saw that its 2 GPUs were in use: see whether the program uses them, or leave out"
            " `--gpus`",
        ),
    ],
)
def test_less_or_more_is_advised_with_numbers(record: JobRecord, sentence: str) -> None:
    assert said(record) == (sentence,)


@pytest.mark.parametrize(("samples", "advised"), [(1, False), (2, False), (3, True), (None, True)])
def test_less_is_not_advised_from_one_or_two_samples(samples: int | None, advised: bool) -> None:
    record = well(a_step(rss=10 * MIB), mem=64 * GIB, allocated={"cpu": 1, "mem": 64 * GIB, "gres/gpu": 1})
    usage = Usage("6", "n1", memory=10 * MIB, gpus=(0.03,), samples=samples)

    sentences = said(record, usages=[usage])

    assert [any(word in sentence for sentence in sentences) for word in ("--mem=", "--gpus")] == [advised, advised]
    report = efficiency_markdown(efficiency([record], usages=[usage]))
    assert ("few samples: it may have been more" in report) is not advised
    assert ("of the time (few samples)" in report) is not advised


def test_gpus_that_were_measured_to_idle_are_told() -> None:
    record = well(allocated={"cpu": 1, "gres/gpu": 1})

    idle = said(record, usages=[Usage("6", "n1", gpus=(0.03,))])
    busy = said(record, usages=[Usage("6", "n1", gpus=(0.6,))])

    assert idle == (
        "its GPU was in use 3.0 % of the time: see whether the program uses them, or ask for fewer with `--gpus`",
    )
    assert busy == ()
    # Accounting's zero is no proof: it may not be set up to see the GPUs.
    tasks = [
        well(a_step(usage_max={"gres/gpuutil": 0}), job_id=f"6_{task}", allocated={"cpu": 1, "gres/gpu": 1})
        for task in range(2)
    ]
    assert said(*tasks, usages=[Usage("6_0", "n1", gpus=(0.6,))]) == ()


@pytest.mark.parametrize(
    "record",
    [
        # A job that was ended or failed may have needed more later.
        *(well(a_step(cpu=10, rss=MIB), state=state, cpus=16, mem=64 * GIB, limit=9999) for state in
          ("FAILED", "CANCELLED", "NODE_FAIL", "PREEMPTED")),
        # So far.
        well(state="RUNNING", end=None, mem=64 * GIB, limit=9999),
        # Two samples are too few to see a peak.
        well(a_step(elapsed=59, rss=MIB, cpu=59), elapsed=59, mem=64 * GIB, limit=2),
        well(a_step(rss=None), mem=64 * GIB),
        # Nothing shares out memory, nothing limits time.
        well(mem=None, limit=None),
        # Where nodes have one task each, or the program starts its own, a CPU count for one task is no help.
        well(a_step(cpu=3600), cpus=64, nodes=4, mem=4 * GIB),
        # What could be spared is less than what is put on top.
        well(a_step(rss=90 * MIB), mem=100 * MIB),
        well(a_step(elapsed=130, cpu=130), elapsed=130, limit=5),
        # GPUs of which nothing is known.
        well(allocated={"cpu": 1, "gres/gpu": 2}),
    ],
)  # fmt: skip
def test_nothing_is_advised_that_the_figures_do_not_carry(record: JobRecord) -> None:
    assert said(record) == ()


def test_an_array_is_advised_by_its_largest_task_and_only_if_all_were_measured() -> None:
    small = [well(a_step(rss=100 * MIB), job_id=f"6_{task}", mem=64 * GIB) for task in range(3)]
    large = well(a_step(rss=5 * GIB), job_id="6_3", mem=64 * GIB)
    unmeasured = well(a_step(rss=None), job_id="6_4", mem=64 * GIB)
    waiting = well(job_id="6_5", state="PENDING", start=None, end=None, allocated={}, mem=64 * GIB)

    assert said(*small, large) == ("each task asked for 64 GiB, used at most 5 GiB: `--mem=7G` would do",)
    assert said(*small, large, unmeasured) == ()
    assert said(*small, large, waiting) == ()


def test_the_time_limit_of_an_array_is_for_its_longest_task() -> None:
    tasks = [well(a_step(elapsed=ran, cpu=ran), elapsed=ran, job_id=f"6_{ran}", limit=1440) for ran in (600, 7200, 60)]

    assert said(*tasks) == (
        "each task asked for 1-00:00:00, ran for at most 02:00:00: `--time=02:30:00` would do, and short jobs start"
        " sooner",
    )


def test_the_task_that_ran_out_of_memory_is_named_and_no_less_is_advised() -> None:
    small = well(a_step(rss=100 * MIB), job_id="6_0", mem=4 * GIB)
    killed = well(a_step(rss=GIB), job_id="6_1", state="OUT_OF_MEMORY", mem=4 * GIB)

    assert said(small, killed) == ("task 6_1 ran out of its memory of 4 GiB: ask for more, for example `--mem=6G`",)


@pytest.mark.parametrize("used", [MIB, 99 * MIB, 101 * MIB, 820 * MIB, GIB, int(3.3 * GIB), 100 * GIB])
def test_what_is_advised_is_at_least_a_fifth_above_what_was_used(used: int) -> None:
    (sentence,) = said(well(a_step(rss=used), mem=1024 * GIB))

    option = sentence.partition("--mem=")[2].partition("`")[0]
    assert used * 1.2 <= memory_kib(option) * 1024 <= max(used * 2.3, 100 * MIB)


@pytest.mark.parametrize("ran", [1, 59, 299, 300, 3600, 7300, 50000, 300000])
def test_the_time_that_is_advised_is_at_least_a_fifth_above_what_was_needed(ran: int) -> None:
    record = well(a_step(elapsed=ran, cpu=ran), elapsed=ran, limit=100_000)
    (sentence,) = [sentence for sentence in said(record) if "--time" in sentence]

    option = sentence.partition("--time=")[2].partition("`")[0]
    assert ran * 1.2 <= time_seconds(option) <= max(ran * 1.6, 600)
