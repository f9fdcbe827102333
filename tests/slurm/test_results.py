"""What a job has left, and bringing it."""

from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jobbergate_flows.slurm.cluster import FileChunk, FileEntry
from jobbergate_flows.slurm.errors import FileRefused
from jobbergate_flows.slurm.jobs import SlurmJob
from jobbergate_flows.slurm.local_cluster import LocalCluster
from jobbergate_flows.slurm.results import ResultFile, check_patterns, fetch, find_results, read_start, select

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def entries(*paths: str, modified: datetime = NOW) -> list[FileEntry]:
    return [FileEntry(path, 1, modified) for path in paths]


def names(found: list[FileEntry]) -> list[str]:
    return [entry.path for entry in found]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "job" / "plots").mkdir(parents=True)
    (tmp_path / "job" / "sums.csv").write_text("a,b\n1,2\n")
    (tmp_path / "job" / "plots" / "x.png").write_bytes(b"\x89PNG" + b"\0" * 3_000_000)
    (tmp_path / "job" / "study.sh").write_text("#!/bin/sh\n")
    return tmp_path / "job"


@pytest.fixture
def cluster(tmp_path: Path) -> LocalCluster:
    return LocalCluster(root=tmp_path / "state")


@pytest.fixture
def job(folder: Path) -> SlurmJob:
    return SlurmJob(
        cluster="local", job_id="1", key="k", name="study", user="me", directory=str(folder),
        standard_output=None, standard_error=None, submitted_at=datetime.now(UTC),
    )  # fmt: skip


def test_patterns_are_those_of_gitignore() -> None:
    there = entries("a.csv", "deep/b.csv", "deep/tmp.csv", "plots/c.png", "other/plots/d.png")

    assert names(select(there, ["*.csv", "!tmp*", "/plots/"])) == ["a.csv", "deep/b.csv", "plots/c.png"]


def test_without_patterns_everything_counts_that_we_did_not_write() -> None:
    there = entries("a.csv", "study.sh", "input/mesh.txt", ".environment")

    assert names(select(there, [], written={"study.sh", "input/mesh.txt"})) == ["a.csv"]


def test_a_pattern_may_name_what_we_wrote() -> None:
    assert names(select(entries("study.sh"), ["*.sh"], written={"study.sh"})) == ["study.sh"]


def test_in_a_directory_that_was_there_before_only_what_changed_since_counts() -> None:
    there = [*entries("old", modified=NOW - timedelta(hours=1)), *entries("new", modified=NOW)]

    assert names(select(there, [], since=NOW)) == ["new"]


@pytest.mark.parametrize("pattern", ["!", "\\"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(FileRefused, match="no pattern"):
        check_patterns(["*.csv", pattern])


async def test_small_files_get_a_checksum(cluster: LocalCluster, job: SlurmJob, folder: Path) -> None:
    found = await find_results(cluster, job, written={"study.sh"}, digest_below=1000)

    assert [(file.path, file.size) for file in found.files] == [("plots/x.png", 3_000_004), ("sums.csv", 8)]
    assert found.files[0].digest is None
    assert found.files[1].digest == f"sha256:{hashlib.sha256((folder / 'sums.csv').read_bytes()).hexdigest()}"
    assert not found.more


async def test_files_are_brought_whole_with_their_times(
    cluster: LocalCluster, job: SlurmJob, folder: Path, tmp_path: Path
) -> None:
    os.utime(folder / "sums.csv", (NOW.timestamp(), NOW.timestamp()))
    found = await find_results(cluster, job, ["*.csv", "*.png"])

    paths = await fetch(cluster, job, found.files, tmp_path / "here")

    assert [str(path.relative_to(tmp_path / "here")) for path in paths] == ["plots/x.png", "sums.csv"]
    assert paths[0].read_bytes() == (folder / "plots" / "x.png").read_bytes()
    assert paths[1].stat().st_mtime == NOW.timestamp()
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["plots", "sums.csv"]


async def test_what_is_there_already_is_not_overwritten_unless_asked(
    cluster: LocalCluster, job: SlurmJob, tmp_path: Path
) -> None:
    found = await find_results(cluster, job, ["*.csv"])
    here = tmp_path / "here"
    here.mkdir()
    (here / "sums.csv").write_text("mine")

    with pytest.raises(FileRefused, match="already"):
        await fetch(cluster, job, found.files, here)
    assert (here / "sums.csv").read_text() == "mine"
    assert len(list(here.iterdir())) == 1

    await fetch(cluster, job, found.files, here, overwrite=True)
    assert (here / "sums.csv").read_text() == "a,b\n1,2\n"
    await fetch(cluster, job, found.files, here)


async def test_a_file_that_is_gone_leaves_nothing_behind(
    cluster: LocalCluster, job: SlurmJob, folder: Path, tmp_path: Path
) -> None:
    found = await find_results(cluster, job, ["*.csv"])
    (folder / "sums.csv").unlink()

    with pytest.raises(FileRefused, match="gone"):
        await fetch(cluster, job, found.files, tmp_path / "here")

    assert list((tmp_path / "here").iterdir()) == []


async def test_a_file_that_changes_while_it_is_read_is_not_brought(job: SlurmJob, tmp_path: Path) -> None:
    class Growing(LocalCluster):
        async def read(self, path: str, *, offset: int = 0, limit: int = 1 << 16) -> FileChunk | None:
            return FileChunk(b"x" if offset < 3 else b"", offset, offset + 2)

    with pytest.raises(FileRefused, match="changed"):
        await fetch(Growing(root=tmp_path), job, [ResultFile("log", 3, NOW)], tmp_path / "here")


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "a/../../b"])
async def test_a_listing_that_lies_does_not_lead_out_of_the_folder(
    cluster: LocalCluster, job: SlurmJob, tmp_path: Path, path: str
) -> None:
    with pytest.raises(FileRefused, match="outside"):
        await fetch(cluster, job, [ResultFile(path, 1, NOW)], tmp_path / "here")


async def test_the_start_of_a_file_is_read_as_far_as_asked(cluster: LocalCluster, job: SlurmJob) -> None:
    found = await find_results(cluster, job, ["*.png"])

    assert len(await read_start(cluster, job, found.files[0], 2_000_000)) == 2_000_000
    assert await read_start(cluster, job, ResultFile("gone", 9, NOW), 10) == b""
