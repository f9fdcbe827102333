"""The last lines of what a job writes, for a page that shows them while it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobbergate_flows.slurm.cluster import FileChunk
from jobbergate_flows.slurm.errors import ClusterUnreachable
from jobbergate_flows.slurm.jobs import JobRow, JobStatus, Phase, SlurmJob
from jobbergate_flows.slurm.latest_output import LatestOutput
from jobbergate_flows.slurm.local_cluster import LocalCluster
from tests.slurm.fakes import SUBMITTED, a_job

RUNNING = JobStatus(Phase.RUNNING, "Running", "", "RUNNING", final=False)


class CountedCluster(LocalCluster):
    """Counts the bytes that were read, and is away when it is told to be."""

    away = False
    read_bytes = 0

    async def read(self, path: str, *, offset: int = 0, limit: int = 1 << 16) -> FileChunk | None:
        if self.away:
            raise ClusterUnreachable("no answer")
        chunk = await super().read(path, offset=offset, limit=limit)
        self.read_bytes += len(chunk.data) if chunk else 0
        return chunk


@pytest.fixture
def cluster(tmp_path: Path) -> CountedCluster:
    return CountedCluster(root=tmp_path / "jobs")


def job_with(output: Path, error: Path | None = None, *, array: bool = False) -> SlurmJob:
    files = {"standard_output": str(output), "standard_error": str(error or output), "array": array}
    return a_job().model_copy(update=files)


async def test_of_a_huge_output_it_is_the_end_with_the_state_of_a_progress_bar(
    cluster: CountedCluster, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    output.write_text("line\n" * 1_000_000 + "step 7\n10 %\r20 %")

    assert await LatestOutput(cluster, job_with(output), 3).look(RUNNING) == ("line", "step 7", "20 %")
    assert cluster.read_bytes < 10_000


async def test_what_has_not_changed_is_not_read_again(cluster: CountedCluster, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.write_text("one\n")
    latest = LatestOutput(cluster, job_with(output), 3)
    await latest.look(RUNNING)
    before = cluster.read_bytes

    assert await latest.look(RUNNING) == ("one",)
    assert cluster.read_bytes == before

    with output.open("a") as file:
        file.write("two\n")
    assert await latest.look(RUNNING) == ("one", "two")


async def test_each_file_has_its_share_and_what_changed_last_is_at_the_end(
    cluster: CountedCluster, tmp_path: Path
) -> None:
    output, error = tmp_path / "out", tmp_path / "err"
    output.write_text("1\n2\n3\n")
    latest = LatestOutput(cluster, job_with(output, error), 4)

    assert await latest.look(RUNNING) == ("1", "2", "3")
    error.write_text("a\nb\nc\n")
    assert await latest.look(RUNNING) == ("2", "3", "b", "c")
    output.write_text("1\n2\n3\n4\n")
    assert await latest.look(RUNNING) == ("b", "c", "3", "4")


async def test_an_arrays_tasks_say_who_they_are(cluster: CountedCluster, tmp_path: Path) -> None:
    rows = []
    for task in range(10):
        (tmp_path / f"out-{task}").write_text(f"first of {task}\nlast of {task}\n")
        rows.append(JobRow(f"1_{task}", "1", "RUNNING", "squeue", task, start=SUBMITTED if task != 5 else None))
    status = JobStatus(Phase.RUNNING, "Running", "", "RUNNING", final=False, rows=tuple(rows))
    latest = LatestOutput(cluster, job_with(tmp_path / "out-%a", array=True), 4)

    assert await latest.look(status) == tuple(f"[{task}] last of {task}" for task in (6, 7, 8, 9))


async def test_what_was_seen_stays_while_the_cluster_is_away(cluster: CountedCluster, tmp_path: Path) -> None:
    output = tmp_path / "out"
    latest = LatestOutput(cluster, job_with(output), 3)
    assert await latest.look(RUNNING) == ()
    output.write_text("one\n")
    assert await latest.look(RUNNING) == ("one",)

    cluster.away = True

    assert await latest.look(RUNNING) == ("one",)
