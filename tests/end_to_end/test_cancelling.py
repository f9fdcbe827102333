"""Cancelling a run, in the UI or by its command, ends its job; cancelling a job ends its run."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest

from jobbergate_flows.applications import Application
from tests.cluster.site import Site, message, script_application
from tests.cluster.waiting import await_until

SLEEP = "#!/bin/bash\nexec sleep 300\n"
CANCEL_SECONDS = 30


def slurm_state(site: Site, job_id: str) -> str:
    return site.slurm.run("sacct", "-X", "-n", "-P", "-o", "State", "-j", job_id).strip()


@pytest.mark.slurm
async def test_cancelling_a_running_run_cancels_its_job(site: Site, tmp_path: Path) -> None:
    deployed = await site.deploy(script_application(tmp_path, "cancelled-running", SLEEP))
    run_id = await site.start(deployed)
    await site.until(run_id, "Running")

    async def in_slurm() -> bool:
        return any("node1" in (state.message or "") for state in await site.states(run_id))

    await await_until(in_slurm, 120, "the job to run")
    await site.cancel(run_id)
    run = await site.end(run_id, CANCEL_SECONDS)
    assert run.state_name == "Cancelled"
    (submission,) = site.submissions(run_id)
    assert slurm_state(site, submission.job_id or "").startswith("CANCELLED")


@pytest.mark.slurm
async def test_cancelling_a_queued_run_cancels_its_job(site: Site, tmp_path: Path) -> None:
    deployed = await site.deploy(script_application(tmp_path, "cancelled-queued", SLEEP))
    run_id = await site.start(deployed, resources={"extra": {"hold": ""}})
    await site.until(run_id, "Held")
    await site.cancel(run_id)
    run = await site.end(run_id, CANCEL_SECONDS)
    assert run.state_name == "Cancelled"
    (submission,) = site.submissions(run_id)
    assert slurm_state(site, submission.job_id or "").startswith("CANCELLED")


@pytest.mark.slurm
async def test_prefects_own_command_cancels_a_runs_job(site: Site, tmp_path: Path) -> None:
    deployed = await site.deploy(script_application(tmp_path, "cancelled-by-command", SLEEP))
    run_id = await site.start(deployed, resources={"extra": {"hold": ""}})
    await site.until(run_id, "Held")
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "prefect", "flow-run", "cancel", str(run_id)],
        env=site.worker.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (await site.end(run_id, CANCEL_SECONDS)).state_name == "Cancelled"
    (submission,) = site.submissions(run_id)
    assert slurm_state(site, submission.job_id or "").startswith("CANCELLED")


@pytest.mark.slurm
async def test_cancelling_while_the_script_is_rendered_submits_nothing(site: Site, tmp_path: Path) -> None:
    rendering = tmp_path / "rendering"
    # The form is found by following the default; only the answer makes it slow.
    workflow = (
        "import pathlib, time\n"
        "from jobbergate_cli.subapps.applications.application_base import JobbergateApplicationBase\n"
        "from jobbergate_cli.subapps.applications.questions import Text\n\n\n"
        "class JobbergateApplication(JobbergateApplicationBase):\n"
        "    def mainflow(self, data):\n"
        "        data['nextworkflow'] = 'second'\n"
        "        return [Text('pace', 'Pace', default='quick')]\n\n"
        "    def second(self, data):\n"
        "        if data['pace'] == 'slow':\n"
        f"            pathlib.Path({str(rendering)!r}).touch()\n"
        "            time.sleep(25)\n"
        "        return []\n"
    )
    script_application(tmp_path, "cancelled-rendering", SLEEP)
    (tmp_path / "cancelled-rendering" / "jobbergate.py").write_text(workflow)
    deployed = await site.deploy(Application.from_path(tmp_path / "cancelled-rendering"))
    run_id = await site.start(deployed, answers={"pace": "slow"})
    await await_until(lambda: _exists(rendering), 120, "the rendering")
    await site.cancel(run_id)
    run = await site.end(run_id, CANCEL_SECONDS)
    assert run.state_name == "Cancelled"
    assert site.submissions(run_id) == []
    await site.tasks_end(run_id)


@pytest.mark.slurm
async def test_scancel_ends_the_run_cancelled_and_says_by_whom(site: Site, tmp_path: Path) -> None:
    deployed = await site.deploy(script_application(tmp_path, "scancelled", SLEEP))
    run_id = await site.start(deployed)
    await site.until(run_id, "Queued", "Running")
    job_id = await await_until(lambda: _job_id(site, run_id), 120, "the job's id")
    assert job_id
    site.slurm.run("scancel", job_id)
    run = await site.end(run_id)
    assert run.state_name == "Cancelled"
    assert "by uid 0 (root)" in message(run)


async def _exists(path: Path) -> bool:
    return await asyncio.to_thread(path.exists)


async def _job_id(site: Site, run_id: UUID) -> str | None:
    return next((row.job_id for row in site.submissions(run_id)), None)
