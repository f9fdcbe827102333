"""A run of a deployed application follows its job on real Slurm, and ends as the job ended."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.client.schemas.objects import StateType

from jobbergate_flows.applications import Application
from tests.cluster.site import END_SECONDS, Site, message, script_application, waiting_for
from tests.cluster.waiting import await_until

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slurm
@pytest.mark.parametrize("name", ["parameter-study", "multi-task", "array-over-files", "nested-questions"])
async def test_each_example_runs_to_completed_through_its_deployment(site: Site, name: str) -> None:
    deployed = await site.deploy(Application.from_path(EXAMPLES / name))
    run_id = await site.start(deployed)
    run = await site.end(run_id)
    assert run.state_name == "Completed", f"{run.state}\n{await site.logs(run_id)}\n{site.worker_log()}"
    (submission,) = site.submissions(run_id)
    assert submission.job is not None
    assert submission.job.job_id in message(run)
    assert f"{site.slurm.name}:{run_id}" == run.infrastructure_pid
    names = [state.name for state in await site.states(run_id)]
    assert names[-1] == "Completed"
    assert "Queued" in names or "Running" in names
    artifacts = await site.artifacts(run_id)
    assert "#SBATCH" in artifacts["job-script"]
    assert submission.job.job_id in artifacts["job-summary"]
    assert "node1" in artifacts["job-summary"]


@pytest.mark.slurm
async def test_output_and_errors_arrive_in_the_runs_logs(site: Site, tmp_path: Path) -> None:
    script = "#!/bin/bash\necho to the output\necho to the errors >&2\n"
    deployed = await site.deploy(script_application(tmp_path, "talkative", script))
    run_id = await site.start(deployed)
    await site.end(run_id)
    logs = await site.logged(run_id, "to the errors")
    assert any("to the output" in line for line in logs)


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("script", "name", "words"),
    [
        ("#!/bin/bash\nexit 3\n", "Failed", "exit code 3"),
        ("#!/bin/bash\nkill -9 $$\n", "Failed", "signal 9"),
    ],
    ids=["exit code", "signal"],
)
async def test_a_failing_job_ends_the_run_failed_and_says_how(
    site: Site, tmp_path: Path, script: str, name: str, words: str
) -> None:
    deployed = await site.deploy(script_application(tmp_path, f"failing-{words.replace(' ', '-')}", script))
    run = await site.end(await site.start(deployed))
    assert run.state_name == name
    assert words in message(run)


@pytest.mark.slurm
async def test_an_array_with_one_failing_task_fails_and_counts_its_tasks(site: Site, tmp_path: Path) -> None:
    script = "#!/bin/bash\n#SBATCH --array=0-3\ntest $SLURM_ARRAY_TASK_ID != 2\n"
    deployed = await site.deploy(script_application(tmp_path, "array", script))
    run_id = await site.start(deployed)
    run = await site.end(run_id)
    assert run.state_name == "Failed"
    assert "4 tasks: 3 COMPLETED, 1 FAILED" in message(run)
    assert len(site.slurm_jobs(run_id)) == 1


@pytest.mark.slurm
async def test_the_queue_is_pending_with_slurms_reason_and_then_running_with_its_nodes(
    site: Site, tmp_path: Path
) -> None:
    go_on = tmp_path / "go-on"
    script = waiting_for(go_on)
    deployed = await site.deploy(script_application(tmp_path, "held", script))
    run_id = await site.start(deployed, resources={"extra": {"hold": ""}})
    queued = await site.until(run_id, "Held")
    assert queued.state_type is StateType.PENDING
    assert "JobHeldUser" in message(queued)
    (submission,) = site.submissions(run_id)
    site.slurm.run("scontrol", "release", submission.job_id or "")
    running = await site.until(run_id, "Running")
    assert "node1" in message(running)
    go_on.touch()
    run = await site.end(run_id)
    assert run.state_name == "Completed"


@pytest.mark.slurm
async def test_of_a_job_that_waits_the_run_says_slurms_newest_reason(site: Site, tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    script = waiting_for(go_on, "#SBATCH --exclusive")
    deployed = await site.deploy(script_application(tmp_path, "alone", script))
    first = await site.start(deployed)
    await site.until(first, "Running")
    second = await site.start(deployed)

    async def says(reason: str) -> None:
        async def said() -> bool:
            run = await site.run(second)
            return run.state_name == "Queued" and reason in message(run)

        await await_until(said, END_SECONDS, f"{reason} as the second run's state")

    await says("waiting for free nodes")
    (submission,) = site.submissions(second)
    site.slurm.run("scontrol", "update", f"JobId={submission.job_id}", "StartTime=now+1hour")
    await says("waiting for the time from which it may begin")
    site.slurm.run("scontrol", "update", f"JobId={submission.job_id}", "StartTime=now")
    go_on.touch()
    for run_id in (first, second):
        assert (await site.end(run_id)).state_name == "Completed"


@pytest.mark.slurm
async def test_retry_after_failed_submits_exactly_one_new_job(site: Site, tmp_path: Path) -> None:
    marker = tmp_path / "second-time"
    script = f"#!/bin/bash\ntest -e {marker} && exit 0\ntouch {marker}\nexit 1\n"
    deployed = await site.deploy(script_application(tmp_path, "retried", script))
    run_id = await site.start(deployed)
    assert (await site.end(run_id)).state_name == "Failed"
    await site.retry(run_id)
    run = await site.end(run_id)
    assert run.state_name == "Completed", run.state
    assert len(site.submissions(run_id)) == len(site.slurm_jobs(run_id)) == 2
