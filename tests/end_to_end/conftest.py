"""The site that all end-to-end tests share."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cluster.prefect_server import PrefectServer
from tests.cluster.slurm import SlurmCluster
from tests.cluster.worker import WorkerProcess
from tests.end_to_end.site import Site


@pytest.fixture(scope="session")
def site_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("site")


@pytest.fixture(scope="session")
async def site(slurm_cluster: SlurmCluster, prefect_server: PrefectServer, site_folder: Path) -> AsyncIterator[Site]:
    environment = {
        "PREFECT_API_URL": prefect_server.api_url,
        "PREFECT_HOME": str(site_folder / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5",
        "PREFECT_INTEGRATIONS_JOBBERGATE_FLOWS_CLUSTER": "slurm",
        "PREFECT_INTEGRATIONS_JOBBERGATE_FLOWS_LEDGER": str(site_folder / "ledger.sqlite3"),
        "PREFECT_INTEGRATIONS_JOBBERGATE_FLOWS_RECOVERY_POLL_SECONDS": "5",
        "SLURM_CONF": str(slurm_cluster.conf),
        "HOME": os.environ.get("HOME", "/root"),
    }
    worker = WorkerProcess("slurm-test", site_folder, environment)
    made = Site(slurm_cluster, site_folder, "slurm-test", worker, environment)
    made.jobs.mkdir()
    await made.make_pool()
    worker.start()
    try:
        yield made
    finally:
        worker.stop()


@pytest.fixture(autouse=True)
def a_worker_that_runs(site: Site) -> None:
    """A test may have ended it."""
    if site.worker.process is None:
        site.worker.start()
