"""An ordinary Prefect flow for the tests, which does what its parameter says."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client

from tests.cluster.site import Site

FLOW = """\
import os
import signal
import time
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.runtime import flow_run


def wait_for(file):
    while not Path(file).exists():
        time.sleep(0.2)


@flow(retries=int(os.environ.get("RETRIES", "0")))
def work(how: str, marker: str = ""):
    said = (os.environ["SLURM_JOB_ID"], os.getcwd(), os.environ.get("SETTING"))
    get_run_logger().info("job %s in %s, setting %s", *said)
    print("printed by the flow", flush=True)
    if marker:
        Path(marker).touch()
    if how == "fail":
        raise ValueError("on purpose")
    if how == "die":
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "sleep":
        time.sleep(300)
    if how == "fail once":
        wait_for(f"{marker}.fail")
        if flow_run.run_count == 1:
            raise ValueError("on purpose")
    if how == "wait":
        wait_for(f"{marker}.end")
    return how
"""


async def deploy_flow(site: Site, folder: Path, **job_variables: Any) -> UUID:
    (folder / "work.py").write_text(FLOW)
    async with get_client() as client:
        flow_id = await client.create_flow_from_name("work")
        return await client.create_deployment(
            flow_id=flow_id,
            name=folder.name,
            work_pool_name=site.pool,
            entrypoint="work.py:work",
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(folder)}}],
            job_variables={"directory": str(site.jobs), "cpus_per_task": 1, **job_variables},
        )
