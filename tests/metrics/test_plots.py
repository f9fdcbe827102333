"""What plots show, and that they are small, readable on white and on black, and drawn elsewhere."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from xml.etree import ElementTree

import numpy as np
import pytest

from jobbergate_flows.metrics import DrawingFailed
from jobbergate_flows.metrics.drawing import COLOURS, INK, LIMIT, adraw, draw, image
from jobbergate_flows.metrics.model import JobMetrics
from jobbergate_flows.metrics.plots import FOLDED, POINTS, TOTAL, Plot, Subject, over_tasks, over_time, plots, size
from jobbergate_flows.slurm.steps import Allocation
from tests.cluster.waiting import with_turns
from tests.metrics.samples import START, piece

GIB = 1024**3
# Backgrounds of Prefect's pages, light and dark, old and new UI.
BACKGROUNDS = ("#ffffff", "#f5f5f5", "#1d1d20", "#26272b", "#303136")


def allocation(
    job: str = "7", *, nodes: int = 1, cpus: int = 4, memory: int | None = 8 * GIB, gpus: int = 0
) -> Allocation:
    return Allocation(job, job, datetime.fromtimestamp(START, UTC), None, nodes, cpus, memory, gpus)


def large(hosts: int, tasks: int, samples: int, *, jobs: Sequence[str] = ("7",)) -> JobMetrics:
    """A large job with much going on."""
    random = np.random.default_rng(4)
    names = ("RSS", "CPUUtilization", "GPUUtilization", "GPUMemMB", "ReadMB", "WriteMB")
    times = np.arange(samples) * 30
    return JobMetrics.of(
        piece(
            dict(zip(names, random.uniform(1, 1e6, (len(names), samples)), strict=True)),
            times.tolist(),
            job=job,
            host=f"node{host}",
            task=str(task),
        )
        for job in jobs
        for host in range(hosts)
        for task in range(tasks)
    )


def texts(svg: str) -> list[str]:
    return [
        "".join(element.itertext()) for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    ]


def test_one_task_is_one_line_with_what_was_requested() -> None:
    metrics = JobMetrics.of([piece({"RSS": [1024**2, 3 * 1024**2], "CPUUtilization": [0, 90]}, [0, 30])])
    memory = over_time(Subject.MEMORY, metrics, [allocation()])
    assert memory is not None
    assert memory.unit == "GiB"
    assert [(line.label, line.times, line.values) for line in memory.lines] == [("task 0", (START, START + 30), (1, 3))]
    assert (memory.limit, memory.limit_label) == (8, "8 GiB requested")
    cpu = over_time(Subject.CPU, metrics, [allocation()])
    assert cpu is not None
    assert (cpu.unit, cpu.limit, cpu.limit_label) == ("% of one CPU", 400, "4 CPUs allocated")
    assert cpu.text == "CPU over time: at most 90 % of one CPU of one of 1 line; 4 CPUs allocated"


def test_the_sum_of_several_tasks_is_shown_because_it_is_what_is_limited() -> None:
    metrics = JobMetrics.of([piece({"RSS": [1024]}, [0]), piece({"RSS": [2048]}, [0], task="1")])
    memory = over_time(Subject.MEMORY, metrics, [allocation(memory=4096 * 1024)])
    assert memory is not None
    assert [(line.label, line.values) for line in memory.lines] == [(TOTAL, (3,)), ("task 0", (1,)), ("task 1", (2,))]


def test_several_hosts_are_a_line_each_with_a_nodes_share_as_the_limit() -> None:
    metrics = JobMetrics.of([piece({"RSS": [1024**2]}, [0]), piece({"RSS": [1024**2 * 2]}, [0], host="n2", task="1")])
    memory = over_time(Subject.MEMORY, metrics, [allocation(nodes=2, memory=8 * GIB)])
    assert memory is not None
    assert [line.label for line in memory.lines] == ["n1", "n2"]
    assert (memory.limit, memory.limit_label) == (4, "4 GiB requested a node")


def test_reading_and_writing_are_rates() -> None:
    metrics = JobMetrics.of([piece({"ReadMB": [0, 30], "WriteMB": [0, 60]}, [0, 30])])
    disk = over_time(Subject.DISK, metrics, [allocation()])
    assert disk is not None
    assert disk.unit == "MiB/s"
    assert [(line.label, line.values) for line in disk.lines] == [("task 0, read", (1,)), ("task 0, written", (2,))]
    assert disk.limit is None


def test_there_is_no_plot_of_what_there_is_not() -> None:
    metrics = JobMetrics.of([piece({"RSS": [1], "GPUUtilization": [0], "GPUMemMB": [0]}, [0])])
    assert [plot.title for plot in plots(metrics)] == ["Memory"]
    assert plots(JobMetrics.empty()) == []


def test_an_array_is_a_distribution_over_its_tasks() -> None:
    metrics = JobMetrics.of(
        piece({"RSS": [0, task * 1024**2], "ReadMB": [0, 1], "WriteMB": [0, 2]}, [0, 1], job=f"7_{task}")
        for task in range(1, 10)
    )
    memory = over_tasks(Subject.MEMORY, metrics, [allocation(f"7_{task}") for task in range(1, 10)])
    assert memory is not None
    assert memory.bars is not None
    assert sum(memory.bars.counts) == 9
    assert (memory.bars.edges[0], memory.bars.edges[-1]) == (0, 9)
    assert dict(memory.bars.quantiles)["median"] == 5
    assert memory.limit == 8
    assert memory.text == "Memory of 9 tasks, peak: median 5 GiB, from 1 GiB to 9 GiB; 8 GiB requested"
    disk = over_tasks(Subject.DISK, metrics)
    assert disk is not None
    assert dict(disk.bars.quantiles if disk.bars else ())["median"] == 3
    assert next(plot.title for plot in plots(metrics)) == "Memory, peak of each task"


def test_many_lines_are_folded_and_many_points_are_parts() -> None:
    metrics = large(30, 2, POINTS + 50)
    memory = over_time(Subject.MEMORY, metrics, [allocation()])
    assert memory is not None
    assert len(memory.lines) == FOLDED
    assert memory.band is not None
    assert memory.band.label == "all 30 hosts"
    assert max(len(line.times) for line in memory.lines) < POINTS
    peak = max(value for value in memory.band.high if value is not None)
    # Two tasks of each host, the largest of all.
    sums = metrics["RSS"].reshape(30, 2, -1).sum(axis=1)
    assert peak * 1024**2 == pytest.approx(sums.max(), rel=1e-6) or peak * 1024 == pytest.approx(sums.max(), rel=1e-6)
    disk = over_time(Subject.DISK, metrics)
    assert disk is not None
    assert [line.label for line in disk.lines] == [f"{TOTAL}, read", f"{TOTAL}, written"]


@pytest.mark.parametrize(
    "metrics", [large(100, 4, 500), large(1, 7, 2000), large(1, 1, 20, jobs=[f"7_{task}" for task in range(300)])]
)
def test_pictures_are_small_whatever_the_size_of_the_job(metrics: JobMetrics) -> None:
    svgs = draw(plots(metrics, [allocation(gpus=2)]))
    assert len(svgs) == 5
    assert max(map(len, svgs)) < 200_000


def test_a_picture_has_its_words_as_text_and_no_script_and_no_background() -> None:
    metrics = JobMetrics.of(piece({"RSS": [1e6, 2e6]}, [0, 30], host="$n<1>$&_", task=str(task)) for task in range(2))
    (plot,) = plots(metrics, [allocation()])
    (svg,) = draw([plot], zone="Europe/Zurich")
    words = texts(svg)
    assert {"Memory", "GiB", TOTAL, "task 0", "8 GiB requested", "from 2026-09-21 16:13, times in CEST"} <= set(words)
    (of_host,) = draw([over_time(Subject.MEMORY, metrics, by="host") or pytest.fail("no plot")])
    assert "$n<1>$&_" in texts(of_host)
    assert "<script" not in svg
    assert "fill: #ffffff" not in svg
    assert "<image" not in svg
    assert draw([plot], zone="Europe/Zurich") == [svg]


def test_a_single_sample_can_be_seen() -> None:
    (plot,) = plots(JobMetrics.of([piece({"RSS": [1e6]}, [0])]))
    (svg,) = draw([plot], zone="UTC")
    # Its axis is of seconds, not of years.
    assert {"15", "20", "25"} <= set(texts(svg))
    assert "times in UTC" in svg


@pytest.mark.parametrize("colour", [INK, LIMIT, *COLOURS])
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_colours_have_contrast_on_light_and_dark_pages(colour: str, background: str) -> None:
    # WCAG 2.1, 1.4.11: graphics need 3:1.
    assert contrast(colour, background) >= 3


def contrast(one: str, other: str) -> float:
    """WCAG's contrast of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_an_image_of_markdown_holds_the_picture() -> None:
    markdown = image("<svg/>", "a [b] \\ c\nd")
    assert markdown == "![a \\[b\\] \\\\ c d](data:image/svg+xml;base64,PHN2Zy8+)"
    assert base64.b64decode(markdown.split("base64,")[1][:-1]) == b"<svg/>"


async def test_drawing_goes_on_beside_the_loop_and_not_in_this_process() -> None:
    made = plots(large(3, 2, 100))
    together, turns = await with_turns(asyncio.gather(*(adraw(made) for _ in range(3))))
    assert together[0] == together[1] == together[2]
    assert turns > 100


def test_this_process_never_imports_matplotlib() -> None:
    program = (
        "import sys\n"
        "from jobbergate_flows.metrics.drawing import draw\n"
        "from jobbergate_flows.metrics.plots import Plot, DrawnLine\n"
        "assert draw([Plot('t', 'B', (DrawnLine('x', (0, 1), (1, None)),))])[0].startswith('<svg')\n"
        "assert draw([]) == []\n"
        "print([name for name in sys.modules if name.startswith('matplotlib')])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_drawing_is_bounded_in_time_and_says_what_failed() -> None:
    plot = Plot("t", "B")
    with pytest.raises(DrawingFailed, match=r"more than 0\.001 s"):
        draw([plot], timeout=0.001)
    with pytest.raises(DrawingFailed, match=r"no time zone 'Mars/Base'.*Europe/Zurich"):
        draw([plot], zone="Mars/Base")
    with pytest.raises(DrawingFailed, match=r"drawing failed: .*min"):
        draw([plot])
    assert children() == []


def children() -> list[str]:
    """The drawing processes that are left of this one."""
    listed = subprocess.run(
        ["ps", "-o", "args=", "--ppid", str(os.getpid())], capture_output=True, text=True, check=True
    )
    return [line for line in listed.stdout.splitlines() if "metrics.drawing" in line]


@pytest.mark.parametrize(
    ("bytes_", "words"),
    [(0, "0 B"), (1023, "1023 B"), (1024**2 * 1.5, "1.5 MiB"), (4 * GIB, "4 GiB"), (2**41, "2 TiB")],
)
def test_sizes_are_for_people(bytes_: float, words: str) -> None:
    assert size(bytes_) == words
