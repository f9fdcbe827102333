"""The page of a job's results."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobbergate_flows.results_page import PreviewLimits, results_markdown
from jobbergate_flows.slurm.jobs import SlurmJob
from jobbergate_flows.slurm.local_cluster import LocalCluster
from jobbergate_flows.slurm.results import find_results

PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABh6FO1AAAAABJRU5ErkJggg=="
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "job").mkdir()
    return tmp_path / "job"


async def page(tmp_path: Path, *patterns: str, without: tuple[str, ...] = (), **limits: int) -> str:
    cluster = LocalCluster(root=tmp_path / "state")
    job = SlurmJob(
        cluster="local", job_id="17", key="k", name="study", user="me", directory=str(tmp_path / "job"),
        standard_output=None, standard_error=None, submitted_at=datetime.now(UTC),
    )  # fmt: skip
    results = await find_results(cluster, job, patterns)
    return await results_markdown(cluster, job, results, without=without, limits=PreviewLimits(**limits))


async def test_files_are_listed_with_size_time_and_checksum(folder: Path, tmp_path: Path) -> None:
    (folder / "big.bin").write_bytes(b"\0" * 2_621_440)

    shown = await page(tmp_path)

    assert shown.startswith("# 1 result file, 2.5 MiB\n")
    row = next(line for line in shown.splitlines() if line.startswith("| big.bin"))
    assert "| 2.5 MiB |" in row
    assert f"{datetime.now():%Y-%m-%d}" in row
    assert "sha256:" in row
    assert "jobbergate-flows job fetch 17" in shown


async def test_a_small_table_is_shown_as_one(folder: Path, tmp_path: Path) -> None:
    (folder / "sums.csv").write_text('step,sum\n1,"2,5"\n2,a|b\n')

    shown = await page(tmp_path)

    assert "| step | sum |\n|---|---|\n| 1 | 2,5 |\n| 2 | a\\|b |" in shown


async def test_what_is_called_a_table_and_is_none_is_shown_as_text(folder: Path, tmp_path: Path) -> None:
    (folder / "odd.csv").write_text("a,b\nonly one\n")

    assert "```\na,b\nonly one\n```" in await page(tmp_path)


async def test_of_a_long_text_only_whole_lines_of_its_start_are_shown(folder: Path, tmp_path: Path) -> None:
    (folder / "log.txt").write_text("".join(f"line {number}\n" for number in range(1000)))

    shown = await page(tmp_path, text=100)

    assert "line 10\n" in shown
    assert "line 12\n" in shown
    assert "line 13" not in shown
    assert "This is only its start." in shown


async def test_a_picture_is_inside_and_a_large_one_is_not(folder: Path, tmp_path: Path) -> None:
    (folder / "small.png").write_bytes(PICTURE)
    (folder / "large.png").write_bytes(PICTURE + b"\0" * 5000)

    shown = await page(tmp_path, picture=1000)

    assert f"![small.png](data:image/png;base64,{base64.b64encode(PICTURE).decode()})" in shown
    assert shown.count("data:image") == 1
    assert "| large.png |" in shown


async def test_binary_content_and_what_is_shown_elsewhere_is_only_listed(folder: Path, tmp_path: Path) -> None:
    (folder / "data.txt").write_bytes(b"\0\1\2 text")
    (folder / "latin.txt").write_bytes("grün und mehr".encode("latin-1"))
    (folder / "slurm-17.out").write_text("said already\n")

    shown = await page(tmp_path, without=("slurm-17.out",))

    assert "<details" not in shown
    assert "slurm-17.out" in shown


async def test_a_character_cut_at_the_end_is_no_reason_not_to_show_a_text(folder: Path, tmp_path: Path) -> None:
    (folder / "long.txt").write_text("ü" * 100)

    assert "üü" in await page(tmp_path, text=51)


async def test_names_and_content_cannot_become_markup(folder: Path, tmp_path: Path) -> None:
    (folder / "<img src=x>|.txt").write_text("```\n</details><script>\n")
    (folder / "](javascript:1).png").write_bytes(PICTURE)

    shown = await page(tmp_path)

    outside = shown.replace("````\n```\n</details><script>\n````", "")
    assert "<img" not in outside.replace("\\<img", "").replace("&lt;img", "")
    assert "<script>" not in outside
    assert "![__javascript:1_.png](data:image/png" in outside


async def test_a_run_without_results_says_so(folder: Path, tmp_path: Path) -> None:
    shown = await page(tmp_path, "*.csv")

    assert shown.startswith("# 0 result files, 0 B")
    assert "fetch" not in shown
