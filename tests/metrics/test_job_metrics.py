"""Metrics of real jobs: Slurm samples them and writes to a real InfluxDB, and users read them by a block's name."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from jobbergate_flows.blocks import InfluxMetrics
from jobbergate_flows.blocks import SlurmCluster as ClusterBlock
from jobbergate_flows.job_metrics import ajob_metrics, ametrics_markdown, job_metrics
from jobbergate_flows.metrics.aggregation import distribution, lines, peaks, totals
from jobbergate_flows.metrics.influxql import InfluxQLReader
from jobbergate_flows.metrics.reading import JobSpan, MetricsFollower
from jobbergate_flows.slurm.jobs import SlurmJob
from tests.cli.command_line import run
from tests.cluster.influxdb import DATABASE, InfluxServer
from tests.cluster.prefect_server import PrefectServer
from tests.cluster.service import free_ports
from tests.cluster.slurm import SlurmCluster
from tests.cluster.waiting import await_until, wait_until

# Holds 200 MiB, then 400 MiB, for some samples each; writes and counts in between. It is Slurm that takes samples by
# the clock: no event tells a job of one.
MEMORY = """\
import sys, time
mib = 1024 * 1024
held = bytearray(200 * mib)
held[::4096] = b"x" * len(held[::4096])
time.sleep(3)
with open(sys.argv[1], "wb") as file:
    file.write(bytes(64 * mib))
more = bytearray(200 * mib)
more[::4096] = b"x" * len(more[::4096])
began = time.process_time()
while time.process_time() - began < 3:
    sum(range(1000))
time.sleep(1.5)
"""
# How much memory a task has: its number and one, times 60 MiB.
BY_TASK = """\
import os, time
size = (int(os.environ.get("SLURM_ARRAY_TASK_ID") or os.environ["SLURM_PROCID"]) + 1) * 60 * 1024 * 1024
held = bytearray(size)
held[::4096] = b"x" * len(held[::4096])
time.sleep(4)
"""


@pytest.fixture
def block(influx_server: InfluxServer) -> InfluxMetrics:
    return InfluxMetrics(url=influx_server.url, database=DATABASE, retention_policy="autogen")


@pytest.fixture
def cluster(profiled_cluster: SlurmCluster) -> ClusterBlock:
    return ClusterBlock(access="slurm", slurm_conf=str(profiled_cluster.conf))


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    (tmp_path / "memory.py").write_text(MEMORY)
    (tmp_path / "by_task.py").write_text(BY_TASK)
    return tmp_path


def submit(slurm: SlurmCluster, script: str, *options: str, array: bool = False) -> SlurmJob:
    submitted = datetime.now(UTC)
    job_id = slurm.run("sbatch", "--parsable", "--output=/dev/null", *options, stdin=f"#!/bin/sh\n{script}\n").strip()
    return SlurmJob(
        cluster=slurm.name,
        job_id=job_id,
        key="k",
        name="n",
        user="root",
        directory="/tmp",
        standard_output=None,
        standard_error=None,
        submitted_at=submitted,
        array=array,
    )


def ended(slurm: SlurmCluster, job: SlurmJob) -> None:
    """Wait until accounting has the job's end: then the nodes have sent all samples as well."""

    def over() -> bool:
        rows = slurm.run("sacct", "-X", "-n", "-P", "-o", "State,End", "-j", job.job_id).split()
        return bool(rows) and all(row.startswith("COMPLETED|") and not row.endswith("Unknown") for row in rows)

    wait_until(over, 60, f"the end of job {job.job_id}")


async def test_a_jobs_memory_cpu_and_disk_are_what_it_used(
    profiled_cluster: SlurmCluster, block: InfluxMetrics, cluster: ClusterBlock, programs: Path
) -> None:
    job = submit(profiled_cluster, f"{sys.executable} {programs}/memory.py {programs}/out", "--mem=1000", "-c1")
    ended(profiled_cluster, job)
    metrics = await ajob_metrics(job, metrics=block, cluster=cluster)
    assert {(series.job, series.host, series.step, series.task) for series in metrics.series} == {
        (job.job_id, "node1", "batch", "0")
    }
    # RSS is in KiB. The interpreter itself has some 10 MiB.
    assert metrics["RSS"].max() / 1024 == pytest.approx(400, rel=0.1)
    levels = metrics["RSS"] / 1024
    assert ((levels > 190) & (levels < 230)).sum() >= 2
    assert peaks(metrics, "RSS", "job")[f"job {job.job_id}"].value == metrics["RSS"].max()
    # CPUTime is in seconds since the sample before, CPUUtilization in percent of one CPU.
    assert 2 < totals(metrics, "CPUTime", "job")[f"job {job.job_id}"] < 6
    assert 60 < metrics["CPUUtilization"].max() < 130
    # WriteMB is in MiB since the sample before; the frequency in MHz.
    assert totals(metrics, "WriteMB", "job")[f"job {job.job_id}"] == pytest.approx(64, abs=2)
    assert 500 < metrics["CPUFrequency"].max() < 10_000
    # The samples are the job's, one each second.
    assert np.median(np.diff(metrics.time)) == 1
    markdown = await ametrics_markdown(job, metrics=block, cluster=cluster, zone="UTC")
    assert markdown.startswith(f"# Metrics of job {job.job_id}\n\n![Memory over time: at most 4")
    assert "1000 MiB requested](data:image/svg+xml;base64," in markdown
    assert markdown.count("data:image/svg+xml;base64,") == 3


async def test_steps_and_tasks_are_told_apart(
    profiled_cluster: SlurmCluster, block: InfluxMetrics, cluster: ClusterBlock, programs: Path
) -> None:
    program = f"{sys.executable} {programs}/by_task.py"
    job = submit(profiled_cluster, f"srun -n2 {program}\nsrun -n1 {program}", "-n2")
    ended(profiled_cluster, job)
    metrics = await ajob_metrics(job, metrics=block, cluster=cluster)
    by_task = {label: peak.value / 1024 for label, peak in peaks(metrics, "RSS", "task").items()}
    assert list(by_task) == ["batch task 0", "step 0 task 0", "step 0 task 1", "step 1 task 0"]
    assert by_task["step 0 task 0"] == pytest.approx(70, abs=10)
    assert by_task["step 0 task 1"] == pytest.approx(130, abs=10)
    assert by_task["step 1 task 0"] == pytest.approx(70, abs=10)
    by_step = {label: peak.value / 1024 for label, peak in peaks(metrics, "RSS", "step").items()}
    assert by_step["step 0"] == pytest.approx(200, abs=20)
    # One step after the other: their memory does not add up.
    (whole,) = lines(metrics, "RSS", "job")
    assert np.nanmax(whole.value) / 1024 == pytest.approx(by_step["step 0"] + by_task["batch task 0"], rel=0.05)


async def test_an_arrays_tasks_go_by_their_raw_ids(
    profiled_cluster: SlurmCluster, block: InfluxMetrics, cluster: ClusterBlock, programs: Path
) -> None:
    # So that the tasks' ids and raw ids differ by more than the task's number.
    first = submit(profiled_cluster, "true")
    job = submit(profiled_cluster, f"{sys.executable} {programs}/by_task.py", "--array=1-3", array=True)
    ended(profiled_cluster, first)
    ended(profiled_cluster, job)
    metrics = await ajob_metrics(job, metrics=block, cluster=cluster)
    spread = distribution(metrics, "RSS")
    assert spread is not None
    found = {label: value / 1024 for label, value in spread.values.items()}
    assert list(found) == [f"job {job.job_id}_{task}" for task in (1, 2, 3)]
    assert list(found.values()) == pytest.approx([130, 190, 250], abs=12)
    markdown = await ametrics_markdown(job, metrics=block, cluster=cluster)
    assert re.search(r"!\[Memory of 3 tasks, peak: median (18|19|20)\d", markdown)


async def test_a_job_of_an_instant_has_no_sample_and_that_is_said(
    profiled_cluster: SlurmCluster, block: InfluxMetrics, cluster: ClusterBlock
) -> None:
    job = submit(profiled_cluster, "true")
    ended(profiled_cluster, job)
    assert len(await ajob_metrics(job, metrics=block, cluster=cluster)) == 0
    markdown = await ametrics_markdown(job, metrics=block, cluster=cluster)
    assert f"job {job.job_id}" in markdown
    assert "too short" in markdown
    # Nor has one that accounting does not know.
    unknown = job.model_copy(update={"job_id": "4711"})
    assert len(await ajob_metrics(unknown, metrics=block, cluster=cluster)) == 0


async def test_samples_of_an_older_job_of_the_same_id_are_not_its(
    profiled_cluster: SlurmCluster, influx_server: InfluxServer, block: InfluxMetrics, cluster: ClusterBlock
) -> None:
    job = submit(profiled_cluster, "sleep 3")
    ended(profiled_cluster, job)
    long_ago = int(datetime.now(UTC).timestamp()) - 86400
    influx_server.write(
        "\n".join(f"RSS,job={job.job_id},step=-5,task=0,host=node1 value=99999999 {long_ago + n}" for n in range(50))
    )
    metrics = await ajob_metrics(job, metrics=block, cluster=cluster)
    assert len(metrics) > 0
    assert metrics["RSS"].max() < 99999999
    assert metrics.time.min() > long_ago + 50


async def test_a_running_job_is_followed(
    profiled_cluster: SlurmCluster, influx_server: InfluxServer, programs: Path
) -> None:
    program = f"{sys.executable} {programs}/by_task.py"
    job = submit(profiled_cluster, f"for n in 1 2 3; do srun -n1 {program}; done", "-n1")
    reader = InfluxQLReader(influx_server.url, DATABASE)
    follower = MetricsFollower(reader, JobSpan(job.job_id, job.submitted_at, job.submitted_at))

    async def first_step_came() -> bool:
        return len(await follower.update(datetime.now(UTC) + timedelta(seconds=5))) > 0

    await await_until(first_step_came, 60, "samples of a running job", 0.5)
    # Slurm 22.05 sends a task's samples at its end.
    assert {series.step for series in follower.metrics.series} == {"0"}
    ended(profiled_cluster, job)
    whole = await follower.finish(datetime.now(UTC))
    assert {series.step for series in whole.series} == {"batch", "0", "1", "2"}
    again = await reader.read(job.job_id, job.submitted_at, datetime.now(UTC))
    assert np.array_equal(whole.values, again.values, equal_nan=True)


def test_users_name_the_block(
    profiled_cluster: SlurmCluster,
    prefect_server: PrefectServer,
    block: InfluxMetrics,
    cluster: ClusterBlock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    block.save("site", overwrite=True)
    cluster.save("profiled", overwrite=True)
    job = submit(profiled_cluster, "sleep 3")
    ended(profiled_cluster, job)
    metrics = job_metrics(job, metrics="site", cluster="profiled")
    assert set(metrics.job.tolist()) == {job.job_id}
    with pytest.raises(ValueError, match="nowhere"):
        job_metrics(job, metrics="nowhere", cluster="profiled")
    with pytest.raises(ValueError, match="no database of metrics is named"):
        job_metrics(job, cluster="profiled")
    with monkeypatch.context() as patch:
        patch.setenv("PREFECT_INTEGRATIONS_JOBBERGATE_FLOWS_METRICS", "site")
        assert job_metrics(job, cluster="profiled").to_csv() == metrics.to_csv()

    env = {"SLURM_CONF": str(profiled_cluster.conf), "PREFECT_API_URL": prefect_server.api_url}
    setting = {"PREFECT_INTEGRATIONS_JOBBERGATE_FLOWS_METRICS": "site"}
    file = tmp_path / "metrics.csv"
    to_file = run("job", "metrics", job.job_id, "--block=site", "--to", file, "--cluster=slurm", env=env)
    shown = run("job", "metrics", job.job_id, "--cluster=slurm", env=env | setting)
    assert (to_file.code, to_file.out) == (0, "")
    assert shown.out == file.read_text() == metrics.to_csv()
    assert shown.out.startswith("time,job,host,step,task,")
    unnamed = run("job", "metrics", job.job_id, "--cluster=slurm", env=env)
    assert (unnamed.code, unnamed.out) == (2, "")
    assert "--block" in unnamed.err
    missing = run("job", "metrics", job.job_id, "--block=nowhere", "--cluster=slurm", env=env)
    assert (missing.code, missing.out) == (3, "")
    assert "influx-metrics/nowhere" in missing.err
    InfluxMetrics(url=f"http://127.0.0.1:{free_ports(1)[0]}").save("away", overwrite=True)
    away = run("job", "metrics", job.job_id, "--block=away", "--cluster=slurm", env=env)
    assert (away.code, away.out) == (4, "")
    assert "InfluxDB does not answer" in away.err
