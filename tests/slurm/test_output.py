"""Following what a job writes: whole lines, each once, within limits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobbergate_flows.slurm.jobs import JobRow, JobStatus, Phase, SlurmJob
from jobbergate_flows.slurm.local_cluster import LocalCluster
from jobbergate_flows.slurm.output import OutputFollower, OutputLimits, OutputLine, in_entries, tail, with_task
from tests.slurm.fakes import SUBMITTED, a_job


@pytest.fixture
def cluster(tmp_path: Path) -> LocalCluster:
    return LocalCluster(root=tmp_path / "jobs")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def job(out: Path) -> SlurmJob:
    return a_job().model_copy(update={"standard_output": str(out), "standard_error": str(out)})


async def texts(follower: OutputFollower, *, to_the_end: bool = False) -> list[str]:
    return [line.text for line in await follower.read(None, to_the_end=to_the_end)]


def append(path: Path, data: bytes | str) -> None:
    with path.open("ab") as file:
        file.write(data if isinstance(data, bytes) else data.encode())


async def test_lines_come_when_they_are_complete_and_each_once(cluster: LocalCluster, job: SlurmJob, out: Path) -> None:
    follower = OutputFollower(cluster, job)
    assert await texts(follower) == []

    append(out, "one\ntw")
    assert await texts(follower) == ["one"]
    assert await texts(follower) == []

    append(out, "o\n\nthree")
    assert await texts(follower) == ["two", ""]
    assert await texts(follower, to_the_end=True) == ["three"]
    assert await texts(follower, to_the_end=True) == []


async def test_after_a_restart_it_goes_on_where_it_was(cluster: LocalCluster, job: SlurmJob, out: Path) -> None:
    append(out, "one\ntwo\nthr")
    first = OutputFollower(cluster, job)
    assert await texts(first) == ["one", "two"]

    append(out, "ee\n")

    assert await texts(OutputFollower(cluster, job, first.offsets)) == ["three"]


async def test_standard_error_is_told_apart_where_it_has_a_file_of_its_own(
    cluster: LocalCluster, job: SlurmJob, out: Path, tmp_path: Path
) -> None:
    append(out, "fine\n")
    append(tmp_path / "err", "bad\n")
    apart = job.model_copy(update={"standard_error": str(tmp_path / "err")})

    assert await OutputFollower(cluster, apart).read(None) == [
        OutputLine("fine", "stdout"),
        OutputLine("bad", "stderr"),
    ]
    assert await OutputFollower(cluster, job).read(None) == [OutputLine("fine", "stdout")]


async def test_a_progress_bar_is_its_last_state(cluster: LocalCluster, job: SlurmJob, out: Path) -> None:
    append(out, "10 %\r50 %\r100 %\r\nready\r\n")

    assert await texts(OutputFollower(cluster, job)) == ["100 %", "ready"]


async def test_bytes_that_are_no_text_are_shown_as_such(cluster: LocalCluster, job: SlurmJob, out: Path) -> None:
    append(out, b"a\xff\x00b\n")

    assert await texts(OutputFollower(cluster, job)) == ["a\ufffdb"]


async def test_characters_are_never_cut_apart(cluster: LocalCluster, job: SlurmJob, out: Path) -> None:
    follower = OutputFollower(cluster, job)
    text = "x" + "€" * 50_000
    found = ""
    # A line that does not end comes in pieces, and each piece ends where a character does.
    for start in range(0, len(text.encode()), 10_000):
        append(out, text.encode()[start : start + 10_000])
        found += "".join(await texts(follower))
    found += "".join(await texts(follower, to_the_end=True))

    assert found == text


async def test_a_very_long_line_comes_in_pieces(cluster: LocalCluster, job: SlurmJob, out: Path) -> None:
    append(out, "y" * 20_000 + "\nshort\n")

    *pieces, last = await texts(OutputFollower(cluster, job))

    assert "".join(pieces) == "y" * 20_000
    assert max(map(len, pieces)) <= 8192
    assert last == "short"


async def test_a_round_brings_a_bounded_amount_and_the_next_the_rest(
    cluster: LocalCluster, job: SlurmJob, out: Path
) -> None:
    lines = [f"line {number:06}" for number in range(3000)]
    append(out, "".join(f"{line}\n" for line in lines))
    follower = OutputFollower(cluster, job, limits=OutputLimits(round=10_000))

    first = await texts(follower)
    assert 0 < len("\n".join(first)) <= 10_000 + 8192
    rest = [line for _ in range(4) for line in await texts(follower)]

    assert first + rest == lines


async def test_past_the_total_one_line_says_where_the_rest_is(cluster: LocalCluster, job: SlurmJob, out: Path) -> None:
    append(out, "0123456789\n" * 5000)
    follower = OutputFollower(cluster, job, limits=OutputLimits(total=20_000))

    shown = await texts(follower) + await texts(follower) + await texts(follower, to_the_end=True)
    later = OutputFollower(cluster, job, follower.offsets, OutputLimits(total=20_000))

    assert [line for line in shown if str(out) in line] == [shown[-1]]
    assert 20_000 <= len("\n".join(shown[:-1])) < 20_000 + 8192
    assert await texts(later, to_the_end=True) == []


async def test_a_file_that_was_begun_anew_is_read_anew(cluster: LocalCluster, job: SlurmJob, out: Path) -> None:
    follower = OutputFollower(cluster, job)
    append(out, "first life\n")
    assert await texts(follower) == ["first life"]

    os.truncate(out, 0)
    append(out, "second\n")

    assert await texts(follower) == ["second"]


async def test_array_tasks_are_told_apart_once_they_have_begun(
    cluster: LocalCluster, job: SlurmJob, tmp_path: Path
) -> None:
    pattern = str(tmp_path / "out-%a")
    array = job.model_copy(update={"array": True, "standard_output": pattern, "standard_error": pattern})
    for task in (3, 4):
        append(tmp_path / f"out-{task}", f"I am {task}\n")
    append(tmp_path / "out-5", "left by somebody before\n")
    rows = tuple(
        JobRow(f"1_{task}", "1", state, "squeue", task, start=SUBMITTED if state == "RUNNING" else None)
        for task, state in ((3, "RUNNING"), (4, "RUNNING"), (5, "PENDING"))
    )
    status = JobStatus(Phase.RUNNING, "Running", "", "RUNNING", final=False, rows=rows)

    assert with_task(await OutputFollower(cluster, array).read(status)) == ["[3] I am 3", "[4] I am 4"]


async def test_of_a_large_array_every_task_has_its_turn(cluster: LocalCluster, job: SlurmJob, tmp_path: Path) -> None:
    pattern = str(tmp_path / "out-%a")
    array = job.model_copy(update={"array": True, "standard_output": pattern, "standard_error": pattern})
    for task in range(120):
        append(tmp_path / f"out-{task}", "here\n")
    rows = tuple(JobRow(f"1_{task}", "1", "RUNNING", "squeue", task, start=SUBMITTED) for task in range(120))
    status = JobStatus(Phase.RUNNING, "Running", "", "RUNNING", final=False, rows=rows)
    follower = OutputFollower(cluster, array)

    rounds = [await follower.read(status) for _ in range(3)]

    assert all(len(lines) <= 50 for lines in rounds)
    assert sorted(line.task or 0 for lines in rounds for line in lines) == list(range(120))


async def test_what_is_no_file_is_passed_over(cluster: LocalCluster, job: SlurmJob, out: Path) -> None:
    os.mkfifo(out)

    assert await texts(OutputFollower(cluster, job), to_the_end=True) == []


@pytest.mark.parametrize(("lines", "found"), [(2, ["8", "9"]), (0, []), (50, [str(number) for number in range(10)])])
async def test_the_tail_of_a_file(cluster: LocalCluster, out: Path, lines: int, found: list[str]) -> None:
    append(out, "".join(f"{number}\n" for number in range(10)))

    assert await tail(cluster, str(out), lines) == found
    assert await tail(cluster, str(out) + "-not-there", lines) == []


async def test_the_tail_of_a_large_file_is_whole_lines(cluster: LocalCluster, out: Path) -> None:
    append(out, "".join(f"{'z' * 300} {number}\n" for number in range(1000)))

    assert await tail(cluster, str(out), 3) == [f"{'z' * 300} {number}" for number in (997, 998, 999)]


def test_a_flood_of_short_lines_is_few_entries_and_nothing_is_lost() -> None:
    flood = [OutputLine(f"line {number}", "stdout") for number in range(5000)]
    other = [OutputLine("oh", "stderr"), OutputLine("task", "stdout", 3)]

    entries = in_entries([*flood, *other])

    assert len(entries) < 12
    assert [line for entry in entries for line in entry.text.split("\n")] == [line.text for line in [*flood, *other]]
    assert [(entry.stream, entry.task) for entry in entries[-2:]] == [("stderr", None), ("stdout", 3)]
    assert all(len(entry.text) <= 8192 for entry in entries)


def test_few_lines_are_an_entry_each() -> None:
    lines = [OutputLine(str(number), "stdout") for number in range(100)]

    assert in_entries(lines) == lines
    assert in_entries([]) == []
