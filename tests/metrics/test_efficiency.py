"""How much of what a job asked for it used, from records of accounting."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobbergate_flows.metrics.advice import advise
from jobbergate_flows.metrics.efficiency import Efficiency, JobEfficiency, Usage, efficiency
from jobbergate_flows.metrics.report import efficiency_json, efficiency_markdown
from jobbergate_flows.slurm.commands import SacctSteps
from jobbergate_flows.slurm.steps import JobRecord, StepRecord
from tests.metrics.records import BEGIN, GIB, MIB, a_job, a_step, at
from tests.slurm.recorded import recorded


def of(*records: JobRecord, **known: Any) -> JobEfficiency:
    [job] = efficiency(records, **known).jobs
    return job


def from_accounting(job_id: str) -> Efficiency:
    records = SacctSteps(job_id, datetime(2026, 11, 21, tzinfo=UTC)).parse(recorded("sacct-steps"))
    return efficiency([record for record in records if record.job_id.partition("_")[0] == job_id])


def test_shares_are_of_what_the_job_had() -> None:
    job = of(a_job(a_step(cpu=7200, rss=GIB), cpus=4))

    assert (job.busy_cpus, job.cpu, job.memory_share, job.time) == (2.0, 0.5, 0.25, 0.5)
    assert job.memory is not None
    assert (job.memory.used, job.memory.sampled) == (GIB, False)


def test_steps_one_after_another_need_the_memory_of_the_largest_and_steps_at_once_of_all() -> None:
    first, second = (
        a_step("0", elapsed=1800, rss=GIB, cpu=100),
        a_step("1", begin=1800, elapsed=1800, rss=2 * GIB, cpu=50),
    )
    beside = a_step("2", begin=900, elapsed=2000, rss=3 * GIB, cpu=25)

    one_by_one, at_once = of(a_job(first, second)), of(a_job(second, beside, first))

    assert one_by_one.memory is not None
    assert at_once.memory is not None
    assert (one_by_one.memory.used, one_by_one.cpu_time) == (2 * GIB, 150)
    assert (at_once.memory.used, at_once.cpu_time) == (5 * GIB, 175)


def test_the_script_runs_at_once_with_all_its_steps() -> None:
    job = of(a_job(a_step(rss=MIB), a_step("0", elapsed=1800, rss=GIB), a_step("1", begin=1800, elapsed=1800, rss=GIB)))

    assert job.memory is not None
    assert job.memory.used == GIB + MIB


def test_many_tasks_are_taken_to_peak_together_and_a_node_to_have_the_largest() -> None:
    step = a_step("0", rss=GIB, tasks=6, nodes=2, usage_total={"mem": 5 * GIB})

    memory = of(a_job(step, nodes=2, cpus=6)).memory

    assert memory is not None
    assert (memory.used, memory.on_a_node, memory.largest_task) == (5 * GIB, 3 * GIB, GIB)
    assert memory.basis == "tasks' largest samples summed up"


def test_without_the_sum_it_is_the_largest_task_times_their_number() -> None:
    memory = of(a_job(a_step("0", rss=GIB, tasks=4, usage_total={}))).memory

    assert memory is not None
    assert memory.used == 4 * GIB


def test_what_was_measured_more_closely_is_taken_before_accountings_samples() -> None:
    record = a_job(a_step("0", rss=GIB, tasks=2, nodes=2), nodes=2, elapsed=10)
    hosts = [Usage("6", "n1", memory=3 * GIB, gpus=(0.5, 0.1)), Usage("6", "n2", memory=2 * GIB, gpus=(0.3, 0.3))]
    tasks = [Usage("6", "n1", task=task, memory=GIB) for task in range(2)] + [Usage("6", "n2", task=2, memory=2 * GIB)]

    by_host, by_task, of_another = (
        of(record, usages=hosts),
        of(record, usages=tasks),
        of(record, usages=[Usage("7", "n1", memory=9 * GIB)]),
    )

    assert by_host.memory is not None
    assert (by_host.memory.used, by_host.memory.on_a_node, by_host.memory.sampled) == (5 * GIB, 3 * GIB, False)
    assert by_host.gpu == pytest.approx(0.3)
    assert by_task.memory is not None
    assert (by_task.memory.used, by_task.memory.on_a_node, by_task.memory.largest_task) == (4 * GIB, 2 * GIB, 2 * GIB)
    assert of_another.memory is not None
    assert of_another.memory.used == 2 * GIB


def test_samples_that_missed_the_peak_are_not_taken_before_accountings() -> None:
    record = a_job(a_step(rss=4 * GIB))

    missed, a_little = (of(record, usages=[Usage("6", "n1", memory=memory)]).memory for memory in (MIB, 4 * GIB - MIB))

    assert missed is not None
    assert (missed.used, missed.basis) == (4 * GIB, "largest sample")
    assert a_little is not None
    assert (a_little.used, a_little.basis) == (4 * GIB - MIB, "measured on each node")


def test_a_memory_of_few_samples_says_so() -> None:
    record = a_job(a_step(elapsed=59), elapsed=59)

    assert of(record).memory is not None
    assert [of(record, sample_seconds=every).memory.sampled for every in (30, 10)] == [True, False]  # type: ignore[union-attr]


def test_a_job_of_a_second_is_too_short_and_not_idle() -> None:
    [job] = from_accounting("4").jobs

    assert (job.cpu, job.memory, job.memory_share) == (None, None, None)
    assert job.cpu_unknown == job.memory_unknown == "too short to be measured (0 s)"
    assert "not known: too short to be measured" in efficiency_markdown(from_accounting("4"))
    assert of(a_job(a_step(elapsed=1, cpu=0.9), elapsed=1)).cpu is None


def test_a_running_job_has_so_far_its_time_and_no_use() -> None:
    [job] = from_accounting("8").jobs

    assert (job.started, job.ended, job.elapsed, job.time) == (True, False, 15, 15 / 3600)
    assert (job.cpu_unknown, job.memory_unknown) == ("known when it has ended", "known when it has ended")
    assert efficiency_markdown(from_accounting("8")).count("so far") == 1
    # A step that is over says nothing of the whole, but what was measured elsewhere does.
    record = a_job(a_step("0", elapsed=60), state="RUNNING", end=None)
    assert (of(record).cpu, of(record).memory) == (None, None)
    assert of(record, usages=[Usage("6", "n1", memory=GIB)]).memory_share == 0.25


def test_a_job_that_never_started_used_nothing_and_no_share_is_told() -> None:
    [cancelled] = from_accounting("7").jobs
    waiting = from_accounting("9").jobs

    assert (cancelled.started, cancelled.start, cancelled.time) == (False, None, None)
    assert cancelled.cpu_unknown == cancelled.memory_unknown == "it never started"
    assert [(job.job_id, job.cpu_unknown) for job in waiting] == [
        (f"9_{task}", "it has not started yet") for task in (3, 4, 5)
    ]


def test_only_the_last_life_of_a_requeued_job_counts_and_the_others_are_named() -> None:
    first = a_job(a_step(cpu=9999), state="NODE_FAIL", elapsed=600)
    last = a_job(a_step(cpu=360), submit=at(600))

    job = of(last, first)

    assert (job.state, job.cpu, job.earlier) == ("COMPLETED", 0.1, (first,))
    assert "NODE\\_FAIL after 00:10:00" in efficiency_markdown(efficiency([first, last]))
    assert [life.state for life in from_accounting("6").jobs[0].earlier] == ["REQUEUED"]


def test_an_array_is_told_by_task_and_over_all() -> None:
    cpu = {0: 3600.0, 10: 360.0, 2: 1800.0}
    records = [a_job(a_step(cpu=used), job_id=f"6_{task}") for task, used in cpu.items()]
    short = a_job(a_step(elapsed=0, cpu=0, rss=None), job_id="6_3", elapsed=0)

    report = efficiency([*records, short])

    assert [job.job_id for job in report.jobs] == ["6_0", "6_2", "6_3", "6_10"]
    assert report.job_id == "6"
    assert report.cpu is not None
    assert (report.cpu.minimum, report.cpu.median, report.cpu.maximum) == (0.1, 0.5, 1.0)
    assert (report.cpu.worst, report.cpu.known) == ("6_10", 3)


def test_memory_that_is_not_shared_out_has_no_share() -> None:
    job = of(a_job(a_step(), mem=None))

    assert job.memory is not None
    assert job.memory_share is None


def test_gpus_are_counted_and_their_use_is_what_accounting_saw() -> None:
    had = {"cpu": 1, "gres/gpu:a100": 1, "gres/gpu:h100": 2}

    assert of(a_job(a_step(), allocated=had)).gpus == 3
    assert of(a_job(a_step(), allocated=had)).gpu_peak is None
    assert of(a_job(a_step(usage_max={"gres/gpuutil": 93}), allocated=had | {"gres/gpu": 3})).gpu_peak == 0.93


def test_a_job_with_thousands_of_steps_is_summed_up_too() -> None:
    steps = [a_step(str(n), begin=n, elapsed=1, cpu=0.5, rss=MIB) for n in range(5000)]

    job = of(a_job(*steps, elapsed=5000))

    assert job.memory is not None
    assert (job.memory.used, job.cpu) == (MIB, 0.5)


def test_without_records_there_is_no_report() -> None:
    with pytest.raises(ValueError, match="no record"):
        efficiency([])


STEPS = st.builds(
    StepRecord, step_id=st.sampled_from(["batch", "extern", "0"]),
    state=st.sampled_from(["COMPLETED", "OUT_OF_MEMORY", "NEW"]),
    start=st.none() | st.just(BEGIN), end=st.none() | st.just(at(5)), elapsed=st.sampled_from([0, 5, 10**9]),
    tasks=st.none() | st.sampled_from([0, 1, 3]), nodes=st.sampled_from([0, 1, 2]), total_cpu=st.none() | st.just(1.5),
    max_rss=st.none() | st.sampled_from([0, 10**12]),
    usage_total=st.dictionaries(st.just("mem"), st.sampled_from([0, 5])),
    usage_max=st.dictionaries(st.just("gres/gpuutil"), st.just(0)),
)  # fmt: skip
JOBS = st.builds(
    JobRecord, job_id=st.sampled_from(["6", "6_0", "6_1", "6+0", "6_[3..."]), raw_id=st.just("6"),
    state=st.sampled_from(["COMPLETED", "RUNNING", "PENDING", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "HIBERNATING"]),
    submit=st.none() | st.just(BEGIN), start=st.none() | st.just(BEGIN), end=st.none() | st.just(at(5)),
    elapsed=st.sampled_from([0, 1, 5, 10**9]), time_limit=st.none() | st.sampled_from([0, 1, 10**6]),
    cpus=st.sampled_from([0, 1, 64]), nodes=st.sampled_from([0, 1, 2]), total_cpu=st.none() | st.just(0.0),
    allocated=st.dictionaries(st.sampled_from(["mem", "cpu", "gres/gpu"]), st.sampled_from([0, 1, 10**12])),
    steps=st.lists(STEPS, max_size=3).map(tuple),
)  # fmt: skip


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(JOBS, min_size=1, max_size=4))
def test_whatever_accounting_has_becomes_a_report(records: list[JobRecord]) -> None:
    report = efficiency(records)

    assert efficiency_markdown(report).startswith("# Efficiency of ")
    assert efficiency_json(report)["advice"] == list(advise(report))
