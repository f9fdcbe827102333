"""What a run shows of a job whose metrics Slurm writes to InfluxDB: while it runs, and at its end."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jobbergate_flows.blocks import InfluxMetrics
from tests.cluster.influxdb import DATABASE, InfluxServer
from tests.cluster.prefect_server import PrefectServer
from tests.cluster.site import Site, message, running_site, script_application
from tests.cluster.slurm import SlurmCluster
from tests.end_to_end.test_pages import shown

# Holds 200 MiB, and counts.
PROGRAM = """\
import time
held = bytearray(200 * 1024 * 1024)
held[::4096] = b"x" * len(held[::4096])
began = time.monotonic()
while time.monotonic() - began < 6:
    sum(range(1000))
"""


@pytest.fixture
async def measured(
    profiled_cluster: SlurmCluster,
    influx_server: InfluxServer,
    prefect_server: PrefectServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Site]:
    """A site whose worker knows where the metrics are."""
    block = InfluxMetrics(url=influx_server.url, database=DATABASE, retention_policy="autogen")
    await block.asave("measured", overwrite=True)
    settings = {"METRICS": "measured", "USAGE_SECONDS": "2", "LIVE_SECONDS": "1"}
    more = {f"PREFECT_INTEGRATIONS_JOBBERGATE_FLOWS_{name}": value for name, value in settings.items()}
    folder = tmp_path_factory.mktemp("measured")
    async with running_site(profiled_cluster, prefect_server, folder, "measured", more) as made:
        yield made


async def test_what_a_job_uses_is_shown_while_it_runs_and_drawn_at_its_end(measured: Site, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    # Slurm 22.05 sends a step's samples when it ends: so that there are some while the job runs.
    script = f"""#!/bin/bash
#SBATCH --time=10 --mem=500M --cpus-per-task=2
srun -n1 {sys.executable} {tmp_path}/program.py
until [ -e {tmp_path}/go ]; do read -t 0.2 <> <(:) || true; done
"""
    deployed = await measured.deploy(script_application(tmp_path, tmp_path.name, script))
    run_id = await measured.start(deployed)

    page = await shown(measured, run_id, "live", "| Memory |")
    (tmp_path / "go").touch()
    run = await measured.end(run_id)

    assert run.state_name == "Completed", message(run)
    found = re.search(r"\| Memory \| ([0-9.]+) MiB of 500 MiB, at 20\S+ \S+ \S+ \|", page)
    assert found is not None, page
    # The interpreter itself has some 10 MiB.
    assert float(found[1]) == pytest.approx(210, rel=0.1)
    assert re.search(r"\| CPUs \| [0-9.]+ in use of 2, at ", page), page
    pages = await measured.artifacts(run_id)
    assert pages["plots"].count("](data:image/svg+xml;base64,") == 3
    assert "500 MiB requested" in pages["plots"]
    found = re.search(
        r"\| Memory \| ([0-9.]+) MiB of 500 MiB, 4[0-9] % \(measured on each node\) \|", pages["efficiency"]
    )
    assert found is not None, pages["efficiency"]
    # The script's srun has another 12.
    assert float(found[1]) == pytest.approx(222, rel=0.1)
    assert "--mem=" in pages["efficiency"]
