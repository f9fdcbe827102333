"""What survives the death of the worker, of Slurm's services and of the Prefect server."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from uuid import UUID

import pytest

from tests.cluster.prefect_server import PrefectServer
from tests.cluster.service import ServiceFailed
from tests.cluster.site import Site, message, script_application, waiting_for
from tests.cluster.waiting import await_until
from tests.cluster.worker import WorkerProcess


@pytest.mark.slurm
async def test_a_killed_workers_jobs_are_taken_up_again(site: Site, tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    script = waiting_for(go_on, then="echo went on")
    deployed = await site.deploy(script_application(tmp_path, "survivor", script))
    waiting = await site.start(deployed, resources={"extra": {"hold": ""}})
    running = await site.start(deployed)
    await site.until(waiting, "Held")
    await await_until(lambda: _runs_on_a_node(site, running), 120, "the job to run")
    site.worker.kill()
    site.worker.start()
    (held,) = site.submissions(waiting)
    site.slurm.run("scontrol", "release", held.job_id or "")
    # The first worker never saw it there.
    await await_until(lambda: _runs_on_a_node(site, waiting), 120, "the second worker to tell that the job runs")
    go_on.touch()
    for run_id in (waiting, running):
        run = await site.end(run_id)
        assert run.state_name == "Completed", run.state
        assert len(site.submissions(run_id)) == len(site.slurm_jobs(run_id)) == 1
        await site.tasks_end(run_id)


@pytest.mark.slurm
async def test_sigterm_leaves_jobs_and_runs_alone(site: Site, tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    script = waiting_for(go_on)
    deployed = await site.deploy(script_application(tmp_path, "left-alone", script))
    run_id = await site.start(deployed)
    await await_until(lambda: _runs_on_a_node(site, run_id), 120, "the job to run")
    site.worker.stop()
    assert (await site.run(run_id)).state_name == "Running"
    (submission,) = site.submissions(run_id)
    assert "RUNNING" in site.slurm.run("squeue", "-h", "-o", "%T", "-j", submission.job_id or "")
    site.worker.start()
    go_on.touch()
    run = await site.end(run_id)
    assert run.state_name == "Completed"
    assert len(site.slurm_jobs(run_id)) == 1


@pytest.mark.slurm
async def test_a_controller_that_stops_during_the_submission_gets_exactly_one_job(site: Site, tmp_path: Path) -> None:
    deployed = await site.deploy(script_application(tmp_path, "once", "#!/bin/bash\ntrue\n"))
    site.slurm.pause("slurmctld")
    try:
        run_id = await site.start(deployed)
        await site.logged(run_id, "answer was lost", timeout=120)
    finally:
        site.slurm.resume("slurmctld")
    run = await site.end(run_id, 120)
    assert run.state_name == "Completed"
    assert len(site.slurm_jobs(run_id)) == 1


@pytest.mark.slurm
@pytest.mark.parametrize("away", ["slurmdbd", "mariadbd"])
async def test_accounting_may_be_away_while_jobs_end(site: Site, tmp_path: Path, away: str) -> None:
    # Without its database slurmdbd answers, and knows of no job.
    go_on = tmp_path / "go-on"
    script = waiting_for(go_on, then="exit 5")
    deployed = await site.deploy(script_application(tmp_path, "unaccounted", script))
    run_id = await site.start(deployed)
    await await_until(lambda: _runs_on_a_node(site, run_id), 120, "the job to run")
    site.slurm.stop_service(away)
    try:
        go_on.touch()
        (submission,) = site.submissions(run_id)
        await await_until(lambda: _left_the_queue(site, submission.job_id or ""), 30, "the job's end")
        assert (await site.run(run_id)).state_name == "Running"
    finally:
        site.slurm.start_service(away)
    run = await site.end(run_id, 120)
    assert run.state_name == "Failed"
    assert "exit code 5" in message(run)


@pytest.mark.slurm
async def test_a_retry_gets_a_new_job_also_when_the_worker_died_while_it_told_the_end(
    site: Site, tmp_path: Path
) -> None:
    deployed = await site.deploy(script_application(tmp_path, "told-late", "#!/bin/bash\nexit 3\n"))
    run_id = await site.start(deployed)
    assert (await site.end(run_id)).state_name == "Failed"
    await await_until(lambda: _was_told(site, run_id), 120, "the ledger's note")
    site.worker.kill()
    # As it is when the server has the run's end, and the worker dies before it could note that.
    with contextlib.closing(sqlite3.connect(site.ledger_path)) as ledger, ledger:
        ledger.execute("UPDATE submissions SET told = 0 WHERE flow_run_id = ?", (str(run_id),))
    site.worker.start()
    await site.retry(run_id)
    assert (await site.end(run_id)).state_name == "Failed"
    assert len(site.submissions(run_id)) == len(site.slurm_jobs(run_id)) == 2


@pytest.mark.slurm
async def test_the_prefect_server_may_be_away_while_jobs_run_and_end(
    site: Site, prefect_server: PrefectServer, tmp_path: Path
) -> None:
    go_on = tmp_path / "go-on"
    script = waiting_for(go_on)
    deployed = await site.deploy(script_application(tmp_path, "unserved", script))
    run_id = await site.start(deployed)
    await await_until(lambda: _runs_on_a_node(site, run_id), 120, "the job to run")
    (submission,) = site.submissions(run_id)
    prefect_server.stop()
    try:
        go_on.touch()
        await await_until(lambda: _is_final(site, run_id), 120, "the job's end in the ledger")
    finally:
        prefect_server.start()
    run = await site.end(run_id, 120)
    assert run.state_name == "Completed"
    assert site.slurm_jobs(run_id) == [submission.job_id]


@pytest.mark.slurm
async def test_a_second_worker_of_one_name_is_refused(site: Site, tmp_path: Path) -> None:
    second = WorkerProcess(site.pool, tmp_path, site.environment)
    with pytest.raises(ServiceFailed, match="another worker named"):
        second.start()


async def _runs_on_a_node(site: Site, run_id: UUID) -> bool:
    return any("node1" in (state.message or "") for state in await site.states(run_id))


async def _left_the_queue(site: Site, job_id: str) -> bool:
    return not site.slurm.run("squeue", "-h", "-t", "running,completing", "-j", job_id, check=False).strip()


async def _was_told(site: Site, run_id: UUID) -> bool:
    return all(row.told for row in site.submissions(run_id))


async def _is_final(site: Site, run_id: UUID) -> bool:
    return all(row.status == "final" for row in site.submissions(run_id))
