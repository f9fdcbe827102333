"""Every example application runs, on this machine's processes and on real Slurm, and leaves what its README says."""

from __future__ import annotations

import asyncio
import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from jobbergate_flows.applications import Application
from jobbergate_flows.slurm.cluster import Cluster
from jobbergate_flows.slurm.connect import connect
from jobbergate_flows.slurm.jobs import JobStatus
from jobbergate_flows.slurm.ledger import Ledger, SubmissionKey
from jobbergate_flows.slurm.options import SlurmResources
from jobbergate_flows.slurm.session import ClusterSession
from jobbergate_flows.slurm.submission import SubmissionOrder

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/jobbergate.yaml"))
STATIONS = {"harbour", "island", "summit", "valley"}


@pytest.fixture(params=["local", pytest.param("slurm", marks=pytest.mark.slurm)])
def cluster(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setenv("JOBBERGATE_FLOWS_STATE_DIR", str(tmp_path / "state"))
    if request.param == "local":
        return connect("local")
    return connect("slurm", slurm_conf=str(request.getfixturevalue("slurm_cluster").conf))


async def run(
    name: str, cluster: Cluster, tmp_path: Path, answers: Mapping[str, Any] | None = None
) -> tuple[JobStatus, Path, str]:
    """Run an example; its final status, its directory, and its output."""
    script = await asyncio.to_thread(Application.load(EXAMPLES / name).render, answers or {})
    base = tmp_path / "jobs"
    base.mkdir()
    session = ClusterSession(cluster, Ledger.open(tmp_path / "ledger.sqlite3"))
    order = SubmissionOrder(script=script, resources=SlurmResources(), directory=str(base), key=SubmissionKey.once())
    job = await session.submit(order)
    status = await session.wait(job)
    return status, Path(job.directory), output_in(Path(job.directory))


def output_in(directory: Path) -> str:
    return "".join(path.read_text() for path in sorted(directory.glob("slurm-*.out")))


def test_there_are_four() -> None:
    assert NAMES == ["array-over-files", "multi-task", "nested-questions", "parameter-study"]


@pytest.mark.parametrize("name", NAMES)
def test_an_example_has_a_form_that_its_defaults_fill(name: str) -> None:
    application = Application.load(EXAMPLES / name)
    interface = application.describe()

    defaults = {
        variable: question["default"]
        for variable, question in interface.form["properties"].items()
        if "default" in question
    }
    jsonschema.Draft202012Validator(dict(interface.form)).validate(defaults)
    assert interface.complete
    assert interface.form.get("required", []) == []
    assert application.render(defaults).text == application.render({}).text
    assert application.description.startswith("# ")
    assert all(f"`{variable}`" in application.description for variable in interface.form["properties"])


async def test_the_parameter_study_finds_the_point_that_settles_fastest(cluster: Cluster, tmp_path: Path) -> None:
    status, directory, output = await run(
        "parameter-study", cluster, tmp_path, {"damping_points": 6, "stiffness_points": 4, "duration": 20}
    )

    assert status.name == "Completed", output
    with (directory / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    best = min(float(row["settling_time"]) for row in rows)
    assert json.loads((directory / "summary.json").read_text())["settling_time"] == pytest.approx(best, abs=1e-3)
    assert "24 of 24 points done" in output


@pytest.mark.parametrize("tasks", [1, 3])
async def test_the_tasks_count_the_same_primes_however_many_they_are(
    cluster: Cluster, tmp_path: Path, tasks: int
) -> None:
    status, directory, output = await run("multi-task", cluster, tmp_path, {"limit": 1_000_000, "ntasks": tasks})

    assert status.name == "Completed", output
    # Known: there are 78498, and the widest gap is that from 492113 to 492227.
    assert (directory / "result.txt").read_text() == (
        "primes below 1000000: 78498\nlargest prime: 999983\nwidest gap: 114\n"
    )
    assert len(list((directory / "parts").iterdir())) == tasks
    assert ("with srun" in output) == (cluster.name != "local")


async def test_each_task_of_the_array_handles_a_file(cluster: Cluster, tmp_path: Path) -> None:
    status, directory, output = await run("array-over-files", cluster, tmp_path)

    assert status.name == "Completed", output
    results = {path.name for path in directory.glob("result-*.csv")}
    assert results == {f"result-{station}-temperature.csv" for station in STATIONS}
    with (directory / "result-summit-temperature.csv").open() as file:
        [row] = csv.DictReader(file)
    assert (row["station"], row["values"]) == ("summit", "31")
    assert float(row["lowest"]) < float(row["mean"]) < float(row["highest"])


async def test_a_missing_column_fails_its_task_and_so_the_array(cluster: Cluster, tmp_path: Path) -> None:
    status, directory, output = await run("array-over-files", cluster, tmp_path, {"column": "wind", "at_once": 2})

    assert status.name == "Failed"
    assert "3 COMPLETED" in status.message
    assert "1 FAILED" in status.message
    assert str(status.exit_code) == "3:0"
    assert "valley.csv has no column wind" in output
    results = {path.name for path in directory.glob("result-*.csv")}
    assert results == {f"result-{station}-wind.csv" for station in STATIONS - {"valley"}}


async def test_the_nested_questions_draw_a_picture(cluster: Cluster, tmp_path: Path) -> None:
    answers = {
        "title": 'a "title"', "region": "own", "centre_x": "-0.75", "extent": "0.5", "quality": "final", "width": 48,
        "colour": True, "palette": "ice", "frame": True, "frame_width": 3, "iterations": 60,
    }  # fmt: skip
    status, directory, output = await run("nested-questions", cluster, tmp_path, answers)

    assert status.name == "Completed", output
    drawn = json.loads((directory / "picture.json").read_text())
    assert (drawn["centre"], drawn["extent"], drawn["samples"]) == ([-0.75, 0.0], 0.5, 2)
    assert (drawn["palette"], drawn["bands"], drawn["frame"]) == ("ice", 16, 3)
    picture = (directory / "picture.ppm").read_bytes()
    header = b"P6\n# 'a \"title\"'\n48 36\n255\n"
    assert picture.startswith(header)
    pixels = picture[len(header) :]
    assert len(pixels) == 48 * 36 * 3
    assert pixels[: 3 * 48 * 3] == b"\xff" * (3 * 48 * 3)


def test_the_nested_questions_take_what_they_are_not_told_from_elsewhere() -> None:
    application = Application.load(EXAMPLES / "nested-questions")

    def parameters(answers: Mapping[str, Any]) -> Any:
        return json.loads(application.render(answers).files["picture.json"])

    plain = parameters({})
    assert (plain["centre"], plain["iterations"], plain["samples"]) == ([-0.6, 0.0], 100, 1)
    assert plain["invert"] is False
    assert "palette" not in plain
    assert parameters({"region": "seahorses"})["iterations"] == 400
    assert parameters({"colour": True})["frame"] == 0
