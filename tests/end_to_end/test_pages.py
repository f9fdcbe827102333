"""What a run shows in the Prefect UI beside its states and logs: while its job lives, and at its end."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from uuid import UUID

import pytest

from jobbergate_flows.applications import Application
from tests.cluster.site import Site, message, script_application
from tests.cluster.waiting import await_until
from tests.end_to_end.flows import deploy_flow

EXAMPLES = Path(__file__).parents[2] / "examples"


def waiting(folder: Path) -> str:
    """A script that says a line, and another when there is a file `go`."""
    return f"""#!/bin/bash
#SBATCH --time=10
echo the first line
until [ -e {folder}/go ]; do read -t 0.2 <> <(:) || true; done
echo the last line
"""


async def shown(site: Site, run_id: UUID, name: str, text: str) -> str:
    """Wait until that page of the run says so."""

    async def there() -> str:
        pages = await site.pages(run_id, name)
        return next((page for page in pages if text in page), "")

    return await await_until(there, 150, f"{text!r} in the page {name}") or ""


async def progress(site: Site, run_id: UUID) -> list[float]:
    """Where the run's bars are, of which there should be one. A server on PostgreSQL says `50.0`, on SQLite `50`."""
    return [float(bar) for bar in await site.pages(run_id, "progress")]


@pytest.mark.slurm
async def test_at_the_end_a_run_shows_summary_efficiency_and_results(site: Site) -> None:
    deployed = await site.deploy(Application.from_path(EXAMPLES / "parameter-study"))
    run_id = await site.start(deployed)
    run = await site.end(run_id)

    assert run.state_name == "Completed", message(run)
    pages = await site.artifacts(run_id)
    assert {"job-script", "job-summary", "efficiency", "results", "progress", "live"} <= set(pages)
    assert "CPU efficiency" in pages["efficiency"]
    assert "| results.csv |" in pages["results"]
    assert "| damping | stiffness |" in pages["results"]
    assert "by Slurm's accounting alone" in pages["efficiency"]
    assert pages["progress"] == 100


@pytest.mark.slurm
async def test_a_running_jobs_page_is_current_and_the_next_workers_goes_on_with_it(site: Site, tmp_path: Path) -> None:
    deployed = await site.deploy(script_application(tmp_path, tmp_path.name, waiting(tmp_path)))
    run_id = await site.start(deployed)

    page = await shown(site, run_id, "live", "the first line")
    assert "of 00:10:00" in page
    assert "| Nodes | node1 |" in page
    site.worker.kill()
    site.worker.start()
    await site.logged(run_id, "the first line")
    (tmp_path / "go").touch()
    run = await site.end(run_id)

    assert run.state_name == "Completed", message(run)
    [page] = await site.pages(run_id, "live")
    assert "Completed" in page
    assert "the last line" in page
    assert await progress(site, run_id) == [100]


@pytest.mark.slurm
async def test_a_waiting_job_says_why(site: Site, tmp_path: Path) -> None:
    script = "#!/bin/bash\n#SBATCH --hold\ntrue\n"
    deployed = await site.deploy(script_application(tmp_path, tmp_path.name, script))
    run_id = await site.start(deployed)

    page = await shown(site, run_id, "live", "JobHeldUser")
    assert "It will not go on by itself." in page
    [submission] = site.submissions(run_id)
    await asyncio.to_thread(site.slurm.run, "scontrol", "release", submission.job_id or "")
    assert (await site.end(run_id)).state_name == "Completed"


@pytest.mark.slurm
async def test_of_an_array_the_ended_tasks_are_counted(site: Site, tmp_path: Path) -> None:
    script = f"""#!/bin/bash
#SBATCH --array=0-3
echo task $SLURM_ARRAY_TASK_ID speaks
until [ $SLURM_ARRAY_TASK_ID -lt 2 ] || [ -e {tmp_path}/go ]; do read -t 0.2 <> <(:) || true; done
"""
    deployed = await site.deploy(script_application(tmp_path, tmp_path.name, script))
    run_id = await site.start(deployed)

    async def half() -> bool:
        return await progress(site, run_id) == [50]

    await await_until(half, 150, "half of the tasks")
    await site.logged(run_id, "[1] task 1 speaks")
    (tmp_path / "go").touch()
    assert (await site.end(run_id)).state_name == "Completed"
    assert await progress(site, run_id) == [100]
    assert "4 tasks" in (await site.artifacts(run_id))["efficiency"]


@pytest.mark.slurm
async def test_a_flows_job_has_its_pages_too(site: Site, tmp_path: Path) -> None:
    run_id = await site.start(await deploy_flow(site, tmp_path), how="well")
    run = await site.end(run_id)
    assert run.state_name == "Completed", message(run)

    pages = await shown(site, run_id, "efficiency", "Memory")
    assert "CPU efficiency" in pages
    assert {"job-script", "job-summary", "live", "progress"} <= set(await site.artifacts(run_id))


@pytest.mark.slurm
async def test_pages_have_the_keys_of_their_deployment(site: Site, tmp_path: Path) -> None:
    made = script_application(tmp_path, tmp_path.name, "#!/bin/bash\ntrue\n")
    deployed = await site.deploy(made, name="Every Night")
    first, second = await site.start(deployed), await site.start(deployed)
    for run_id in (first, second):
        assert (await site.end(run_id)).state_name == "Completed"

    keys = await site.artifact_keys(first)
    assert all(key.endswith("every-night-job-summary") for key in keys if "summary" in key)
    assert keys == await site.artifact_keys(second)


@pytest.mark.slurm
async def test_a_killed_worker_skips_and_doubles_no_line(site: Site, tmp_path: Path) -> None:
    script = f"""#!/bin/bash
#SBATCH --error=errors.txt
for n in $(seq 1 40); do echo line $n.; done
echo trouble 1. >&2
until [ -e {tmp_path}/go ]; do read -t 0.2 <> <(:) || true; done
for n in $(seq 41 80); do echo line $n.; done
echo trouble 2. >&2
"""
    deployed = await site.deploy(script_application(tmp_path, tmp_path.name, script))
    run_id = await site.start(deployed)

    async def handed_over() -> bool:
        found = site.submissions(run_id)
        return bool(found) and sum(found[0].output_offsets.values()) > 300

    await await_until(handed_over, 120, "the first lines", 0.02)
    site.worker.kill()
    site.worker.start()
    (tmp_path / "go").touch()
    assert (await site.end(run_id)).state_name == "Completed"
    await site.logged(run_id, "trouble 2.")

    found = [(log.level, line) for log in await site.log_entries(run_id) for line in log.message.splitlines()]
    assert sorted(line for _, line in found if line.startswith("line ")) == sorted(f"line {n}." for n in range(1, 81))
    assert [line for level, line in found if level == logging.WARNING and line.startswith(("line", "trouble"))] == [
        "trouble 1.",
        "trouble 2.",
    ]


@pytest.mark.slurm
async def test_of_a_flood_of_output_the_run_has_a_bounded_part(site: Site, tmp_path: Path) -> None:
    script = """#!/bin/bash
printf 'part 1\\rpart 2\\rpart 3\\n'
head -c 1000000 /dev/urandom
yes 'a line of many' | head -c 100000000
echo the end
"""
    deployed = await site.deploy(script_application(tmp_path, tmp_path.name, script))
    run_id = await site.start(deployed)
    run = await site.end(run_id, 180)

    assert run.state_name == "Completed", message(run)
    lines = await site.logged(run_id, "part 3")
    assert not any("part 1" in line for line in lines)
    [submission] = site.submissions(run_id)
    output = Path(submission.standard_output or "")
    assert (await asyncio.to_thread(output.stat)).st_size > 101_000_000
    assert sum(submission.output_offsets.values()) < 3_000_000
    assert "slurm-" in (await site.artifacts(run_id))["results"]
    live = (await site.artifacts(run_id))["live"]
    assert "the end" in live
    assert len(live) < 20_000


@pytest.mark.slurm
async def test_an_array_of_fifty_is_one_run(site: Site, tmp_path: Path) -> None:
    script = "#!/bin/bash\n#SBATCH --array=0-49\n[ $SLURM_ARRAY_TASK_ID != 7 ]\n"
    deployed = await site.deploy(script_application(tmp_path, tmp_path.name, script))
    run_id = await site.start(deployed)
    run = await site.end(run_id, 180)

    assert run.state_name == "Failed"
    assert "49 COMPLETED" in message(run)
    assert await progress(site, run_id) == [100]
    summary = (await site.artifacts(run_id))["job-summary"]
    assert "| 7 | FAILED | 1:0 |" in summary
    assert "50 tasks" in (await site.artifacts(run_id))["efficiency"]
