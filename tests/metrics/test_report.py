"""The report as people and scripts see it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from jobbergate_flows.metrics.efficiency import efficiency
from jobbergate_flows.metrics.report import efficiency_json, efficiency_markdown
from jobbergate_flows.slurm.units import duration_text, size_text
from tests.metrics.records import GIB, MIB, a_job, a_step, at


@pytest.fixture(autouse=True)
def _zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


def test_a_job_is_a_table_and_advice() -> None:
    job = a_job(a_step(cpu=4000, rss=int(3.1 * GIB)), cpus=16, mem=64 * GIB, limit=1560, energy=12345)

    assert (
        efficiency_markdown(efficiency([job]))
        == """\
# Efficiency of job 6

|  |  |
|---|---|
| Job | 6 |
| State | COMPLETED |
| Started | 2026-11-21 13:00:00 CET |
| Ended | 2026-11-21 14:00:00 CET |
| Elapsed | 01:00:00 of 1-02:00:00, 3.8 % |
| CPUs | 16 |
| CPU efficiency | 6.9 %: 1.1 of 16 busy on average (01:06:40 of 16:00:00) |
| Memory | 3.1 GiB of 64 GiB, 4.8 % (largest sample) |
| Energy | 12.3 kJ |

## For the next time

- asked for 64 GiB, used at most 3.1 GiB: `--mem=4G` would do
- asked for 16 CPUs, at most 1.1 were busy on average: `--ntasks=1 --cpus-per-task=2` would do
- asked for 1-02:00:00, ran for at most 01:00:00: `--time=01:15:00` would do, and short jobs start sooner"""
    )


def test_memory_says_how_it_is_known() -> None:
    step = a_step("0", rss=GIB, tasks=6, nodes=2, elapsed=40)

    assert (
        "6 GiB of 64 GiB, 9.4 %; on one node at most 3 GiB; the largest of 6 tasks 1 GiB (tasks' largest samples summed"
        " up; few samples: it may have been more)"
    ) in efficiency_markdown(efficiency([a_job(step, nodes=2, mem=64 * GIB)]))


def test_an_array_is_a_table_over_all_and_one_of_its_tasks() -> None:
    tasks = [a_job(a_step(cpu=900 * (n + 1), rss=n * GIB or None), job_id=f"6_{n}", limit=90) for n in range(3)]

    markdown = efficiency_markdown(efficiency([*tasks, a_job(job_id="6_3", state="PENDING", start=None, allocated={})]))

    assert "| CPU efficiency | 25 % | 50 % | 75 % | 6\\_0 | 3 of 4 |" in markdown
    assert "| Memory | 25 % | 38 % | 50 % | 6\\_1 | 2 of 4 |" in markdown
    assert "| Time limit | 67 % | 67 % | 67 % | 6\\_0 | 3 of 4 |" in markdown
    assert "| 6\\_1 | COMPLETED | 50 % | 1 GiB of 4 GiB, 25 % | 01:00:00 of 01:30:00, 67 % |" in markdown
    assert "| 6\\_3 | PENDING | not known: it has not started yet | not known: it has not started yet |  |" in markdown


def test_scripts_get_numbers_and_null_for_what_is_not_known() -> None:
    report = efficiency([a_job(a_step(cpu=1800, rss=None), state="FAILED"), a_job(state="REQUEUED", submit=at(-60))])

    content = json.loads(json.dumps(efficiency_json(report), default=str))

    [job] = content["jobs"]
    assert (job["cpu_efficiency"], job["cpu_time"], job["elapsed"], job["time_limit"]) == (0.5, 1800, 3600, 7200)
    assert (job["memory_used"], job["memory_efficiency"]) == (None, None)
    assert job["memory_unknown"] == "accounting has no sample of it"
    assert job["memory_allocated"] == 4 * GIB
    assert content["memory_efficiency"] is None
    assert content["cpu_efficiency"] == {"min": 0.5, "median": 0.5, "max": 0.5, "worst": "6", "known": 1}
    assert [life["state"] for life in job["earlier"]] == ["REQUEUED"]


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (4096, "4 KiB"), (MIB, "1 MiB"), (int(1.55 * MIB), "1.5 MiB"), (1023 * MIB, "1023 MiB"),
     (int(3.14 * GIB), "3.1 GiB"), (2048 * GIB, "2 TiB")],
)  # fmt: skip
def test_sizes_have_units(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "00:00:00"), (59.6, "00:01:00"), (7384, "02:03:04"), (93784, "1-02:03:04")]
)
def test_times_are_slurms(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
