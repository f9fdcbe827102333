"""What a run shows, looked at in Prefect's UI."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact
from prefect.client.schemas.sorting import ArtifactSort
from prefect.context import FlowRunContext

from jobbergate_flows.applications import Application, JobScript
from jobbergate_flows.artifacts import artifact_key
from jobbergate_flows.blocks import InfluxMetrics
from jobbergate_flows.blocks import SlurmCluster as ClusterBlock
from jobbergate_flows.health_report import KEY, report_site_health
from jobbergate_flows.tasks import apublish_results, asubmit_job_script, await_for_job
from tests.browser.chromium import Chromium
from tests.cluster.influxdb import DATABASE, InfluxServer
from tests.cluster.prefect_server import PrefectServer
from tests.cluster.site import Site, message, script_application
from tests.cluster.slurm import SlurmCluster
from tests.cluster.waiting import await_until, wait_until

pytestmark = [pytest.mark.browser, pytest.mark.slurm]

EXAMPLES = Path(__file__).parents[2] / "examples"
# A carriage return and what is no UTF-8 in between.
LONG = """#!/bin/bash
#SBATCH --time=10 --mem=200M
echo reading the mesh
printf 'step 1\\rstep 2\\rstep 3 of 9\\n'
printf 'temperature 20 \\xb0C\\n'
until [ -e {folder}/go ]; do read -t 0.2 <> <(:) || true; done
"""
# Holds 100 MiB, then 300 MiB, and counts.
SHAPE = """\
import time
mib = 1024 * 1024
held = [bytearray(100 * mib)]
held[0][::4096] = b"x" * len(held[0][::4096])
began = time.monotonic()
while time.monotonic() - began < 4:
    sum(range(1000))
held.append(bytearray(200 * mib))
held[1][::4096] = b"x" * len(held[1][::4096])
time.sleep(4)
"""


async def artifact(run_id: UUID, name: str) -> Artifact:
    """The run's artifact of that name, once there is one."""

    async def there() -> list[Artifact]:
        async with get_client() as client:
            found = await client.read_artifacts(
                artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
            )
        return [one for one in found if str(one.key).endswith(f"-{name}")]

    [found] = await await_until(there, 120, f"the page {name}")
    return found


async def latest(key: str) -> Artifact:
    """The newest artifact of a key, once there is one."""

    async def there() -> list[Artifact]:
        only = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
        async with get_client() as client:
            return await client.read_artifacts(artifact_filter=only, sort=ArtifactSort.CREATED_DESC, limit=1)

    [found] = await await_until(there, 120, f"an artifact {key}")
    return found


async def test_a_running_jobs_page_shows_what_squeue_and_tail_would(
    site: Site, browser: Chromium, prefect_server: PrefectServer, tmp_path: Path, pictures: Path | None
) -> None:
    deployed = await site.deploy(script_application(tmp_path, "heat-flow", LONG.format(folder=tmp_path)))
    run_id = await site.start(deployed)
    await site.logged(run_id, "temperature 20")

    async def said() -> bool:
        return any("step 3 of 9" in page for page in await site.pages(run_id, "live"))

    await await_until(said, 120, "the output on the page")
    page = await artifact(run_id, "live")
    text = browser.open(f"{prefect_server.url}/artifacts/artifact/{page.id}", "The last lines of its output", "Nodes")
    if pictures:
        browser.screenshot(pictures / "live.png", 900)
    bar = await artifact(run_id, "progress")
    said_of_bar = browser.open(f"{prefect_server.url}/artifacts/artifact/{bar.id}", "Running for 00:0", "%")
    if pictures:
        browser.screenshot(pictures / "progress.png", 400)
    (tmp_path / "go").touch()
    ended = await site.end(run_id)

    assert ended.state_name == "Completed", message(ended)
    assert "of 00:10:00" in text
    assert "step 3 of 9" in text
    assert "step 1" not in text
    assert "temperature 20 \ufffdC" in text
    assert " of 00:10:00" in said_of_bar
    browser.open(f"{prefect_server.url}/artifacts/artifact/{bar.id}", "100%")
    browser.open(f"{prefect_server.url}/artifacts/artifact/{page.id}", "heat-flow: Completed")
    [submission] = site.submissions(run_id)
    summary = await artifact(run_id, "job-summary")
    told = browser.open(f"{prefect_server.url}/artifacts/artifact/{summary.id}", "Exit code", "To look further")
    if pictures:
        browser.screenshot(pictures / "job-summary.png", 1050)
    assert f"jobbergate-flows job show {submission.job_id}" in told
    assert submission.directory in told
    script = await artifact(run_id, "job-script")
    browser.open(f"{prefect_server.url}/artifacts/artifact/{script.id}", "#SBATCH --time=10 --mem=200M", "Digest")


async def test_how_a_worker_is_can_be_read_in_the_ui(
    site: Site, browser: Chromium, prefect_server: PrefectServer, pictures: Path | None
) -> None:
    worker = artifact_key("slurm-worker", socket.gethostname(), site.pool)
    page = await latest(worker)
    shown = browser.open(f"{prefect_server.url}/artifacts/artifact/{page.id}", "slurmctld", "Slurm last asked")
    if pictures:
        browser.screenshot(pictures / "worker-health.png", 1050)
    assert "accounting" in shown
    assert "not well" not in shown
    assert site.pool in shown

    await report_site_health()
    report = await latest(KEY)
    table = browser.open(f"{prefect_server.url}/artifacts/artifact/{report.id}", "Last heard of", "Healthy: ")
    assert site.pool in table
    assert "online" in table


async def test_results_and_efficiency_are_read_in_the_ui(
    site: Site, browser: Chromium, prefect_server: PrefectServer, pictures: Path | None
) -> None:
    deployed = await site.deploy(Application.from_path(EXAMPLES / "parameter-study"))
    run_id = await site.start(deployed, answers={"damping_points": 12})
    ended = await site.end(run_id)
    assert ended.state_name == "Completed", message(ended)

    results = await artifact(run_id, "results")
    shown = browser.open(f"{prefect_server.url}/artifacts/artifact/{results.id}", "results.csv", "sha256:")
    if pictures:
        browser.press("results.csv")
        browser.screenshot(pictures / "results.png", 1100)
    efficiency = await artifact(run_id, "efficiency")
    said = browser.open(f"{prefect_server.url}/artifacts/artifact/{efficiency.id}", "CPU efficiency")

    assert "To bring them here" in shown
    assert "Memory" in said
    browser.open(f"{prefect_server.url}/runs/flow-run/{run_id}", "Completed")
    browser.press("Artifacts")
    browser.wait_for_text("job-script", "job-summary", "efficiency", "results", "live", "progress")


async def test_a_jobs_plots_are_drawn_in_the_ui(
    profiled_cluster: SlurmCluster,
    influx_server: InfluxServer,
    prefect_server: PrefectServer,
    browser: Chromium,
    tmp_path: Path,
    pictures: Path | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    block = InfluxMetrics(url=influx_server.url, database=DATABASE, retention_policy="autogen")
    await block.asave("plots", overwrite=True)
    monkeypatch.setenv("PREFECT_INTEGRATIONS_JOBBERGATE_FLOWS_METRICS", "plots")
    cluster = ClusterBlock(access="slurm", slurm_conf=str(profiled_cluster.conf))
    program = tmp_path / "shape.py"
    program.write_text(SHAPE)

    @flow(name="heat-flow")
    async def heat_flow() -> UUID:
        script = JobScript(name="heat-flow", text=f"#!/bin/sh\n{sys.executable} {program}\n")
        job = await asubmit_job_script(
            script, resources={"memory": "500M", "cpus_per_task": 2}, directory=tmp_path, cluster=cluster
        )
        await await_for_job(job, cluster=cluster)
        await apublish_results(job, cluster=cluster)
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        return context.flow_run.id

    run_id = await heat_flow()

    plots = await artifact(run_id, "plots")
    browser.open(f"{prefect_server.url}/artifacts/artifact/{plots.id}", "Metrics of job")
    drawn = "return [...document.querySelectorAll('img')].filter(image => image.naturalWidth > 0).length"
    wait_until(lambda: browser.driver.execute_script(drawn) >= 3, 120, "three drawn plots")
    if pictures:
        browser.screenshot(pictures / "plots.png", 1500)
    assert all(len(part) < 200_000 for part in str(plots.data).split("](data:")[1:])
    efficiency = await artifact(run_id, "efficiency")
    browser.open(f"{prefect_server.url}/artifacts/artifact/{efficiency.id}", "CPU efficiency", "of 500 MiB")
    if pictures:
        browser.screenshot(pictures / "efficiency.png", 1000)
    # 300 MiB were held, and Python has some of its own.
    assert "of 500 MiB" in str(efficiency.data)
    used = float(str(efficiency.data).split("| Memory | ")[1].split(" MiB")[0])
    assert used == pytest.approx(310, rel=0.1)
