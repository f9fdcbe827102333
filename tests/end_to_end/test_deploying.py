"""The ways to deploy an application give the same deployment, and its runs go on any worker."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound

from jobbergate_flows.applications import Application
from jobbergate_flows.blocks.application import StoredApplication, block_name, pin
from jobbergate_flows.flows import ENTRYPOINT, application_flow
from jobbergate_flows.slots import take_slot
from tests.cluster.service import Service
from tests.cluster.site import Site, message, script_application, waiting_for
from tests.cluster.slots import taken_slots
from tests.cluster.waiting import await_until
from tests.cluster.worker import WorkerProcess

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "examples" / "parameter-study"


async def read(name: str) -> DeploymentResponse:
    async with get_client() as client:
        return await client.read_deployment_by_name(name)


def prefect(site: Site, *arguments: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        cwd=cwd, env=site.worker.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def serving(site: Site, folder: Path, *program: str) -> Iterator[None]:
    """Run a Python program that serves a flow, beside the worker and with a ledger of its own."""
    environment = site.worker.environment | {
        "JOBBERGATE_FLOWS_CLUSTER": "slurm",
        "JOBBERGATE_FLOWS_LEDGER": str(folder / "ledger.sqlite3"),
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
    }
    service = Service(
        "server of a flow", [sys.executable, *program], folder / "serving.log", environment, cwd=str(ROOT)
    )
    service.start()
    try:
        yield
    finally:
        service.stop(30)


@pytest.mark.slurm
async def test_prefect_deploy_all_deploys_the_examples_with_the_form_of_deploy_application(
    site: Site, tmp_path: Path
) -> None:
    entries = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    for entry in entries["deployments"]:
        entry["work_pool"]["name"] = site.pool
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(entries))
    await asyncio.to_thread(prefect, site, "deploy", "--all", "--prefect-file", str(tmp_path / "prefect.yaml"))
    for name in ("parameter-study", "multi-task", "array-over-files", "nested-questions"):
        deployed = await site.deploy(Application.from_path(ROOT / "examples" / name), name="by-python")
        by_prefect, by_python = await read(f"{name}/{name}"), await read(f"{name}/by-python")
        assert by_prefect.parameter_openapi_schema == by_python.parameter_openapi_schema
        assert by_prefect.parameter_openapi_schema
        assert by_prefect.parameter_openapi_schema["properties"]["application"]["const"] == deployed.application
        assert not by_prefect.pull_steps
        assert by_prefect.description == by_python.description
    nightly = await read("parameter-study/nightly")
    assert nightly.global_concurrency_limit is not None
    assert nightly.global_concurrency_limit.limit == 1
    assert [getattr(schedule.schedule, "cron", None) for schedule in nightly.schedules] == ["0 2 * * *"]
    assert nightly.job_variables["start_within"] == 600
    # What would overlap is not run.
    runs = [await site.start(nightly.id, directory=str(site.jobs)) for _ in range(2)]
    assert sorted([(await site.end(run_id)).state_name or "" for run_id in runs]) == ["Cancelled", "Completed"]
    run = await site.end(await site.start((await read("multi-task/multi-task")).id, directory=str(site.jobs)))
    assert run.state_name == "Completed", run.state


def test_the_recurring_deployment_of_its_folder_is_the_one_that_prefect_yaml_lists() -> None:
    listed = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    (own,) = yaml.safe_load((ROOT / "deployments" / "nightly-parameter-study.yaml").read_text())["deployments"]
    assert own == next(entry for entry in listed if entry["name"] == "nightly")


@pytest.mark.slurm
async def test_flow_deploy_gives_the_same_deployment(site: Site) -> None:
    flow = application_flow(Application.from_path(STUDY))
    deployment_id = await asyncio.to_thread(
        lambda: flow.deploy("by-flow", work_pool_name=site.pool, print_next_steps=False, ignore_warnings=True)
    )
    assert isinstance(deployment_id, UUID)
    async with get_client() as client:
        deployment = await client.read_deployment(deployment_id)
    assert deployment.entrypoint == ENTRYPOINT
    deployed = await site.deploy(Application.from_path(STUDY), name="by-python")
    assert deployment.parameter_openapi_schema == (await read(deployed.name)).parameter_openapi_schema
    run = await site.end(await site.start(deployment_id, directory=str(site.jobs)))
    assert run.state_name == "Completed", run.state


@pytest.mark.slurm
async def test_the_same_deployment_runs_on_a_process_worker_without_ours(site: Site, tmp_path: Path) -> None:
    environment = {
        **site.environment,
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "JOBBERGATE_FLOWS_CLUSTER": "slurm",
        "JOBBERGATE_FLOWS_LEDGER": str(tmp_path / "ledger.sqlite3"),
    }
    worker = WorkerProcess("processes", tmp_path, environment, kind="process")
    plain = Site(site.slurm, tmp_path, "processes", worker, environment)
    await plain.make_pool()
    deployed = await plain.deploy(Application.from_path(STUDY), name="on-processes")
    worker.start()
    try:
        run_id = await plain.start(deployed, directory=str(site.jobs))
        run = await plain.end(run_id)
        assert run.state_name == "Completed", f"{run.state} {plain.worker_log()}"
        assert "Slurm job" in message(run)
        failing = await plain.deploy(script_application(tmp_path, "exits", "#!/bin/bash\nexit 4\n"))
        run = await plain.end(await plain.start(failing, directory=str(site.jobs)))
        assert "exit code 4" in message(run)
    finally:
        worker.stop()


@pytest.mark.slurm
async def test_a_served_flow_chains_two_jobs(site: Site, tmp_path: Path) -> None:
    with serving(site, tmp_path, "examples/chain_two_jobs.py"):
        deployment = await await_until(lambda: _deployment("chain-two-jobs/chain-two-jobs"), 120, "the served flow")
        assert deployment
        run_id = await site.start(deployment, directory=str(site.jobs))
        run = await site.end(run_id, 120)
        assert run.state_name == "Completed", (tmp_path / "serving.log").read_text()
        logs = await site.logged(run_id, "damping,stiffness")
        assert sum("Submitted" in line for line in logs) == 2


@pytest.mark.slurm
async def test_flow_serve_shows_the_same_form_and_its_runs_complete(site: Site, tmp_path: Path) -> None:
    program = tmp_path / "serve.py"
    program.write_text(
        "import sys\n"
        "from jobbergate_flows.applications import Application\n"
        "from jobbergate_flows.flows import application_flow\n\n"
        "flow = application_flow(Application.from_path(sys.argv[1]))\n\n"
        # Prefect loads the program again for each run.
        "if __name__ == '__main__':\n"
        "    flow.serve('served')\n"
    )
    deployed = await site.deploy(Application.from_path(STUDY), name="by-python")
    with serving(site, tmp_path, str(program), str(STUDY)):
        deployment = await await_until(lambda: _deployment("parameter-study/served"), 120, "the served application")
        assert deployment
        served, by_python = await read("parameter-study/served"), await read("parameter-study/by-python")
        assert served.work_pool_name is None
        assert served.parameter_openapi_schema == by_python.parameter_openapi_schema
        assert (served.parameter_openapi_schema or {})["properties"]["application"]["const"] == deployed.application
        assert served.description == by_python.description
        with pytest.raises(Exception, match="0 is less than the minimum of 1"):
            await site.start(deployment, answers={"cpus": 0})
        run_id = await site.start(deployment, answers={"cpus": 1}, directory=str(site.jobs))
        run = await site.end(run_id)
        assert run.state_name == "Completed", "\n".join(await site.logs(run_id))
        assert "Slurm job" in message(run)


@pytest.mark.slurm
async def test_a_worker_is_found_by_its_pool_alone(site: Site) -> None:
    assert "--type" not in site.worker.command
    assert f"Discovered type 'jobbergate-slurm' for work pool '{site.pool}'" in site.worker.log.read_text()
    async with get_client() as client:
        (worker,) = await client.read_workers_for_work_pool(site.pool)
    assert worker.status == "ONLINE"


@pytest.mark.slurm
async def test_a_concurrency_limit_holds_through_queued_and_running(site: Site, tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    script = waiting_for(go_on)
    deployed = await site.deploy(script_application(tmp_path, "one-at-a-time", script), concurrency_limit=1)
    first = await site.start(deployed, resources={"extra": {"hold": ""}})
    await site.until(first, "Held")
    second = await site.start(deployed)
    await site.until(second, "AwaitingConcurrencySlot")
    (held,) = site.submissions(first)
    site.slurm.run("scontrol", "release", held.job_id or "")
    await await_until(lambda: _runs(site, first), 120, "the job to run")
    assert (await site.run(second)).state_name == "AwaitingConcurrencySlot"
    assert site.submissions(second) == []
    go_on.touch()
    assert (await site.end(first)).state_name == "Completed"
    assert (await site.end(second, 120)).state_name == "Completed"
    # As a worker leaves it that died between two requests.
    async with get_client() as client:
        assert await take_slot(client, deployed.id)
    await await_until(lambda: _gives_all_slots_back(deployed.id), 180, "the worker to mend the count")


@pytest.mark.slurm
async def test_a_scheduled_start_that_comes_too_late_is_not_made_up_for(site: Site, tmp_path: Path) -> None:
    application = script_application(tmp_path, "recurring", "#!/bin/bash\ntrue\n")
    site.worker.stop()
    deployed = await site.deploy(application, interval=2, job_variables={"start_within": 3})
    scheduled = await await_until(lambda: _scheduled(deployed.id), 120, "scheduled runs")
    (first,) = scheduled
    await await_until(lambda: _late(first.id), 120, "a run that is late")
    async with get_client() as client:
        await client.pause_deployment(deployed.id)
    site.worker.start()
    run = await site.end(first.id)
    assert run.state_name == "Cancelled"
    assert "Missed its start" in message(run)


@pytest.mark.slurm
async def test_what_the_form_refuses_starts_no_run(site: Site) -> None:
    deployed = await site.deploy(Application.from_path(STUDY))
    for parameters, words in (
        ({"answers": {"cpus": 0}}, "0 is less than the minimum of 1"),
        ({"answers": {"cpu": 1}}, "Additional properties"),
        ({"resources": {"tasks": -1}}, "-1 is less than the minimum of 1"),
        ({"resources": {"time_limit": "soon"}}, "does not match"),
        ({"resources": {"account": "a\nb"}}, "does not match"),
        ({"application": "another@sha256:" + "0" * 64}, "was expected"),
    ):
        with pytest.raises(Exception, match=words):
            await site.start(deployed, **parameters)


@pytest.mark.slurm
async def test_a_changed_block_is_not_run(site: Site, tmp_path: Path) -> None:
    application = script_application(tmp_path, "pinned", "#!/bin/bash\necho right\n")
    deployed = await site.deploy(application)
    other = script_application(tmp_path / "other", "pinned", "#!/bin/bash\necho wrong\n")
    await StoredApplication.of(other).asave(block_name(pin(application)), overwrite=True)
    run = await site.end(await site.start(deployed))
    assert run.state_name == "Failed"
    assert other.digest in message(run)
    assert "deploy the application again" in message(run)


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"directory": "/no/such/folder"}, "no such directory"),
        ({"resources": {"extra": {"wrap": "x"}}}, "wrap"),
        ({"resources": {"extra": {"output": "a\nb"}}}, r"'output' does not take 'a\nb'"),
        ({"resources": {"partition": "nowhere"}}, "Invalid partition"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_what_cannot_be_submitted_ends_the_run_failed_with_the_reason(
    site: Site, parameters: dict[str, Any], words: str
) -> None:
    deployed = await site.deploy(Application.from_path(STUDY))
    run_id = await site.start(deployed, **parameters)
    run = await site.end(run_id)
    assert run.state_name == "Failed"
    assert words in message(run)
    assert site.slurm_jobs(run_id) == []


async def _deployment(name: str) -> UUID | None:
    try:
        return (await read(name)).id
    except ObjectNotFound:
        return None


async def _runs(site: Site, run_id: UUID) -> bool:
    return any("node1" in (state.message or "") for state in await site.states(run_id))


async def _gives_all_slots_back(deployment_id: UUID) -> bool:
    async with get_client() as client:
        return await taken_slots(client, deployment_id) == 0


async def _scheduled(deployment_id: UUID) -> list[Any]:
    async with get_client() as client:
        return await client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id])),
            sort=FlowRunSort.EXPECTED_START_TIME_ASC,
            limit=1,
        )


async def _late(run_id: UUID) -> bool:
    async with get_client() as client:
        run = await client.read_flow_run(run_id)
    due = run.expected_start_time
    return due is not None and (datetime.now(UTC) - due).total_seconds() > 4
