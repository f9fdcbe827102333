"""From an application that is created in the real Jobbergate API to the metrics of its jobs there.

Nothing is faked: the API renders the job script, this worker runs it on the real Slurm, whose own profiles go to the
real InfluxDB.
"""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from jobbergate_flows.jobbergate import calls
from jobbergate_flows.jobbergate.models import FileType, MetricsPoint, Rendering, SubmissionStatus
from tests.cluster.influxdb import DATABASE, InfluxServer
from tests.cluster.jobbergate_api import JobbergateApi, agent_environment
from tests.cluster.jobbergate_people import Ada
from tests.cluster.prefect_server import PrefectServer
from tests.cluster.site import running_site
from tests.cluster.slurm import SlurmCluster
from tests.cluster.waiting import await_until
from tests.end_to_end.test_bridge import SETTING
from tests.end_to_end.test_measured_runs import PROGRAM

pytestmark = pytest.mark.slurm
TEMPLATE = """#!/bin/bash
#SBATCH --time=10 --mem=500M
srun -n1 {{ data.python }} program.py
exit {{ data.code }}
"""


@dataclass
class Way:
    """The API with Ada's application in it, and a worker for what she submits."""

    ada: Ada
    application: int

    def submit(self, folder: Path, code: int, **options: str) -> int:
        folder.mkdir()
        rendering = Rendering(
            template_output_name_mapping={"job.sh.j2": "job.sh", "program.py.j2": "program.py"},
            param_dict={"data": {"python": sys.executable, "code": code, **options}},
        )
        script = self.ada.client.send(calls.render_job_script(self.application, rendering, name=folder.name))
        return self.ada.submit(folder, job_script=script.id, name=folder.name)

    async def metrics(self, submission: int) -> tuple[MetricsPoint, ...]:
        """Of the steps that `srun` started, once the API has them."""
        since = int(time.time()) // 600 * 600 - 600

        async def there() -> tuple[MetricsPoint, ...]:
            asked = calls.get_metrics(submission, start_time=since, sample_rate=10)
            return tuple(point for point in self.ada.client.send(asked) if point.memory_rss > 0)

        return cast("tuple[MetricsPoint, ...]", await await_until(there, 150, f"metrics of submission {submission}", 1))


@pytest.fixture
async def way(
    profiled_cluster: SlurmCluster,
    influx_server: InfluxServer,
    prefect_server: PrefectServer,
    jobbergate_api: JobbergateApi,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Way]:
    folder = tmp_path_factory.mktemp("whole-way")
    influx = f"influxdb://{influx_server.url.removeprefix('http://')}/{DATABASE}"
    environment = agent_environment(jobbergate_api, folder) | {
        "JOBBERGATE_AGENT_INFLUX_DSN": influx,
        f"{SETTING}BRIDGE": "service",
        f"{SETTING}JOBBERGATE_SECONDS": "1",
    }
    ada = Ada(jobbergate_api, folder / "ada")
    made = ada.client.send(calls.create_application("Whole way", identifier="whole-way"))
    for kind, name, text in (
        (FileType.ENTRYPOINT, "job.sh.j2", TEMPLATE),
        (FileType.SUPPORT, "program.py.j2", PROGRAM),
    ):
        ada.client.send(calls.upload_template(made.id, kind, name, text.encode()))
    async with running_site(profiled_cluster, prefect_server, folder, "whole-way", environment):
        yield Way(ada, made.id)


async def test_an_application_made_in_jobbergate_ends_there_with_its_metrics(way: Way, tmp_path: Path) -> None:
    done = way.submit(tmp_path / "done", 0)
    aborted = way.submit(tmp_path / "aborted", 3)
    rejected = way.submit(tmp_path / "rejected", 0)
    (tmp_path / "rejected").rmdir()

    there = await way.ada.until(rejected, SubmissionStatus.REJECTED)
    assert "DirectoryRefused" in (there.report_message or "")
    assert (await way.ada.until(done, SubmissionStatus.DONE)).slurm_job_state == "COMPLETED"
    there = await way.ada.until(aborted, SubmissionStatus.ABORTED)
    assert "exit code 3" in (there.report_message or "")
    for submission in (done, aborted):
        points = await way.metrics(submission)
        # PROGRAM holds 200 MiB; Slurm writes KiB, and the API gives the mean of the steps.
        assert max(point.memory_rss for point in points) * 1024 > 50 << 20
        times = way.ada.client.send(calls.get_metrics_times(submission))
        assert times.min <= times.max
