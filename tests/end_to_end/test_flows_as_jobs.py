"""An ordinary Prefect flow runs as a Slurm job, and cannot die unseen."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate

from tests.cluster.prefect_server import PrefectServer
from tests.cluster.site import Site, message
from tests.cluster.waiting import await_until
from tests.end_to_end.flows import deploy_flow

CANCEL_SECONDS = 30


@pytest.mark.slurm
async def test_a_flow_runs_on_a_node_with_its_environment_and_leaves_no_secret(site: Site, tmp_path: Path) -> None:
    deployment = await deploy_flow(
        site,
        tmp_path,
        env={"SETTING": "se'cret"},
        setup_commands=["export PREPARED=yes"],
        working_directory=str(tmp_path),
    )
    run_id = await site.start(deployment, how="well")
    run = await site.end(run_id, 120)
    assert run.state_name == "Completed", f"{run.state} {await site.logs(run_id)}"
    (submission,) = site.submissions(run_id)
    await site.logged(run_id, f"job {submission.job_id} in {tmp_path}, setting se'cret")
    # The engine sends its log, the worker what else the job writes: each comes once.
    logs = await site.logged(run_id, "printed by the flow")
    assert len([line for line in logs if "printed by the flow" in line]) == 1
    assert len([line for line in logs if f"job {submission.job_id} in" in line]) == 1
    assert (await site.artifacts(run_id))["job-script"].count("prefect flow-run execute") == 1
    assert "se'cret" not in (await site.artifacts(run_id))["job-script"]
    # The flow told its end a moment before its job's.
    await await_until(lambda: _is_gone(Path(submission.secret_path or "")), 150, "the removal of the secrets")
    assert "Requeue=0" in site.slurm.run("scontrol", "show", "job", submission.job_id or "")


@pytest.mark.slurm
@pytest.mark.parametrize(("how", "type_", "words"), [("fail", "FAILED", "on purpose"), ("die", "FAILED", "signal 9")])
async def test_a_flow_that_fails_or_is_killed_ends_its_run(
    site: Site, tmp_path: Path, how: str, type_: str, words: str
) -> None:
    run_id = await site.start(await deploy_flow(site, tmp_path), how=how)
    run = await site.end(run_id, 120)
    assert run.state is not None
    assert run.state.type.value == type_
    assert words in message(run)


@pytest.mark.slurm
async def test_a_flow_that_runs_says_where_and_keeps_the_retries_of_its_own(site: Site, tmp_path: Path) -> None:
    marker = tmp_path / "runs"
    deployment = await deploy_flow(site, tmp_path, env={"RETRIES": "1"})
    run_id = await site.start(deployment, how="fail once", marker=str(marker))
    await await_until(lambda: _runs_on_a_node(site, run_id), 150, "the run to say where it runs")
    marker.with_suffix(".fail").touch()
    run = await site.end(run_id, 120)
    assert run.state_name == "Completed", message(run)
    assert run.run_count == 2
    assert "AwaitingRetry" in [state.name for state in await site.states(run_id)]
    assert len(site.submissions(run_id)) == 1


@pytest.mark.slurm
async def test_a_queued_flow_keeps_its_concurrency_slot_while_the_prefect_server_is_restarted(
    site: Site, prefect_server: PrefectServer, tmp_path: Path
) -> None:
    marker = tmp_path / "runs"
    deployment = await deploy_flow(site, tmp_path, extra={"hold": ""})
    async with get_client() as client:
        await client.update_deployment(deployment, DeploymentUpdate(concurrency_limit=1))
    runs = [await site.start(deployment, how="wait", marker=str(marker)) for _ in range(2)]
    first, second = await await_until(lambda: _in_states(site, runs, "Held", "AwaitingConcurrencySlot"), 120, "a slot")
    prefect_server.stop()
    prefect_server.start()
    (held,) = site.submissions(first)
    site.slurm.run("scontrol", "release", held.job_id or "")
    await await_until(lambda: _runs_on_a_node(site, first), 150, "the first to run")
    assert site.submissions(second) == []
    marker.with_suffix(".end").touch()
    run = await site.end(first, 120)
    assert run.state_name == "Completed", message(run)
    await site.until(second, "Held", timeout=120)
    await site.cancel(second)
    assert (await site.end(second, CANCEL_SECONDS)).state_name == "Cancelled"


@pytest.mark.slurm
async def test_cancelling_a_running_flow_cancels_its_job(site: Site, tmp_path: Path) -> None:
    marker = tmp_path / "runs"
    run_id = await site.start(await deploy_flow(site, tmp_path), how="sleep", marker=str(marker))
    await await_until(lambda: _exists(marker), 150, "the flow to run")
    await site.cancel(run_id)
    run = await site.settled(run_id, CANCEL_SECONDS)
    assert run.state_name == "Cancelled"
    (submission,) = site.submissions(run_id)
    assert site.slurm.run("sacct", "-X", "-n", "-P", "-o", "State", "-j", submission.job_id or "").startswith(
        "CANCELLED"
    )


@pytest.mark.slurm
async def test_cancelling_a_queued_flow_cancels_its_job(site: Site, tmp_path: Path) -> None:
    run_id = await site.start(await deploy_flow(site, tmp_path, extra={"hold": ""}), how="well")
    await site.until(run_id, "Held")
    await site.cancel(run_id)
    assert (await site.end(run_id, CANCEL_SECONDS)).state_name == "Cancelled"


@pytest.mark.slurm
async def test_a_killed_worker_takes_its_flows_jobs_up_again(site: Site, tmp_path: Path) -> None:
    queued = await site.start(await deploy_flow(site, tmp_path, extra={"hold": ""}), how="die")
    await site.until(queued, "Held")
    site.worker.kill()
    site.worker.start()
    (submission,) = site.submissions(queued)
    site.slurm.run("scontrol", "release", submission.job_id or "")
    run = await site.end(queued, 120)
    assert "signal 9" in message(run)
    assert len(site.slurm_jobs(queued)) == 1


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"directory": "/no/such/folder"}, "no such directory"),
        ({"partition": "nowhere"}, "Invalid partition"),
        ({"modules": ["gcc; rm -rf /"]}, "no module name"),
    ],
    ids=["directory", "refused by Slurm", "module"],
)
async def test_what_cannot_be_submitted_ends_the_run_with_the_reason(
    site: Site, tmp_path: Path, variables: dict[str, Any], words: str
) -> None:
    run = await site.end(await site.start(await deploy_flow(site, tmp_path, **variables), how="well"))
    assert run.state is not None
    assert run.state.type.value in ("FAILED", "CRASHED")
    assert words in message(run)


async def _in_states(site: Site, runs: list[UUID], *names: str) -> list[UUID]:
    """The runs in the order of the names of their states, once they have these."""
    found = {(await site.run(run_id)).state_name: run_id for run_id in runs}
    return [found[name] for name in names] if found.keys() == set(names) else []


async def _runs_on_a_node(site: Site, run_id: UUID) -> bool:
    run = await site.run(run_id)
    return run.state_name == "Running" and "node1" in message(run)


async def _is_gone(path: Path) -> bool:
    return not await asyncio.to_thread(path.exists)


async def _exists(path: Path) -> bool:
    return await asyncio.to_thread(path.exists)
