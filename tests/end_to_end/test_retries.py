"""A job that ended for a known reason is submitted again with what it lacked."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.states import Crashed

from tests.cluster.events import await_events, names
from tests.cluster.prefect_server import PrefectServer
from tests.cluster.site import Site, message, running_site, script_application
from tests.cluster.slurm import SlurmCluster
from tests.cluster.waiting import await_until
from tests.end_to_end.flows import deploy_flow

THREE = {"attempts": 3}


def hungry(folder: Path, needs: int) -> str:
    """A script that runs until it is ended, unless it has so many MB of memory."""
    return f"""#!/bin/bash
#SBATCH --mem=100M
touch {folder}/began-$SLURM_JOB_ID-$SLURM_MEM_PER_NODE
[ $SLURM_MEM_PER_NODE -ge {needs} ] || exec sleep 300
"""


@pytest.fixture
async def two_nodes(
    slurm_cluster: SlurmCluster, prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Site]:
    """A site whose Slurm has two nodes, and a partition whose jobs take the place of others."""
    folder = tmp_path_factory.mktemp("two")
    with SlurmCluster(f"{slurm_cluster.name}two", nodes=("node1", "node2"), preempts=True) as slurm:
        async with running_site(slurm, prefect_server, folder, "two-nodes") as made:
            yield made


@pytest.fixture
async def limited(
    memory_limits: None, prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Site]:
    """A site where the kernel ends what uses more memory than it asked for."""
    name = f"limits{os.getpid()}"
    with SlurmCluster(name, nodes=[name], limits_memory=True) as slurm:
        async with running_site(slurm, prefect_server, tmp_path_factory.mktemp("limited"), "limited") as made:
            yield made


async def told(run_id: UUID, *endings: str) -> list[str]:
    """The ends of a run's jobs as events, once there are so many."""

    def all_of_them(events: object) -> bool:
        return len(ended(events)) >= len(endings)

    def ended(events: object) -> list[str]:
        assert isinstance(events, list)
        return [name for name in names(events) if name not in ("pending", "running")]

    related = f"prefect.flow-run.{run_id}"
    return ended(await await_events(f"events {endings}", all_of_them, related=related, name="slurm.job.*"))


async def pages_of_each_attempt(site: Site, run_id: UUID) -> None:
    """See that no attempt's pages were overwritten by the next one's."""
    rows = site.submissions(run_id)
    for name in ("job-script", "job-summary", "live", "progress", "efficiency"):
        assert len(await site.pages(run_id, name)) == len(rows), name
    for name in ("job-summary", "live", "efficiency"):
        pages = await site.pages(run_id, name)
        for row, page in zip(rows, pages, strict=True):
            assert f"| Job | {row.job_id}" in page
    for row, page in zip(rows, await site.pages(run_id, "live"), strict=True):
        assert row.final_state is not None
        assert row.final_state in page


async def began(folder: Path, megabytes: int) -> str:
    """The id of the job that runs with so much memory, once there is one."""

    async def there() -> list[Path]:
        return await asyncio.to_thread(lambda: list(folder.glob(f"began-*-{megabytes}")))

    [marker] = await await_until(there, 150, f"a job with {megabytes} MB")
    return marker.name.split("-")[1]


def jobs(site: Site, run_id: UUID) -> list[str]:
    """The ids of all attempts' jobs, the first one's first."""
    return [row.job_id or "" for row in site.submissions(run_id)]


async def run_out(site: Site, slurm: SlurmCluster, folder: Path, run_id: UUID, *megabytes: int) -> None:
    """Let the attempts with so much memory end for the lack of it."""
    for size in megabytes:
        job_id = await began(folder, size)
        await site.until(run_id, "Running")
        await asyncio.to_thread(slurm.end_out_of_memory, job_id)


@pytest.mark.slurm
async def test_out_of_memory_is_answered_with_more_until_it_is_enough(
    site: Site, slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    deployed = await site.deploy(
        script_application(tmp_path, tmp_path.name, hungry(tmp_path, 400)), parameters={"retries": THREE}
    )
    run_id = await site.start(deployed)
    await run_out(site, slurm_cluster, tmp_path, run_id, 100, 200)
    run = await site.end(run_id)

    assert run.state_name == "Completed", message(run)
    said = [state.message for state in await site.states(run_id) if state.name == "AwaitingRetry"]
    assert [(text or "").partition(" (after")[0] for text in said] == [
        "OutOfMemory with 100M, now with 200M: attempt 2 of 3",
        "OutOfMemory with 200M, now with 400M: attempt 3 of 3",
    ]
    rows = site.submissions(run_id)
    assert [row.final_state for row in rows] == ["OutOfMemory", "OutOfMemory", "Completed"]
    assert len(site.slurm_jobs(run_id)) == 3
    await pages_of_each_attempt(site, run_id)
    assert await told(run_id, "out-of-memory", "out-of-memory", "completed") == [
        "out-of-memory",
        "out-of-memory",
        "completed",
    ]


@pytest.mark.slurm
async def test_what_the_kernel_ends_for_its_memory_runs_again_with_more(limited: Site, tmp_path: Path) -> None:
    program = "held = bytearray(300 << 20); held[::4096] = b'x' * len(held[::4096]); print('it was enough')"
    script = f'#!/bin/bash\n#SBATCH --mem=100M\nexec {sys.executable} -c "{program}"\n'
    deployed = await limited.deploy(script_application(tmp_path, tmp_path.name, script))
    run_id = await limited.start(deployed, retries={**THREE, "memory_factor": 4})
    run = await limited.end(run_id)

    assert run.state_name == "Completed", message(run)
    await limited.logged(run_id, "it was enough")
    assert [row.final_state for row in limited.submissions(run_id)] == ["OutOfMemory", "Completed"]
    asked = [
        limited.slurm.run("sacct", "-X", "-n", "-P", "-o", "ReqMem,State", "-j", job) for job in jobs(limited, run_id)
    ]
    assert [line.strip() for line in asked] == ["100M|OUT_OF_MEMORY", "400M|COMPLETED"]
    assert "ran out of its memory of 100 MiB: ask for more" in (await limited.pages(run_id, "efficiency"))[0]
    await pages_of_each_attempt(limited, run_id)
    assert await told(run_id, "out-of-memory", "completed") == ["out-of-memory", "completed"]


@pytest.mark.slurm
async def test_a_time_out_is_answered_with_more_time(site: Site, tmp_path: Path) -> None:
    script = f"""#!/bin/bash
#SBATCH --time=1
[ -e {tmp_path}/second ] || {{ touch {tmp_path}/second; exec sleep 300; }}
"""
    deployed = await site.deploy(script_application(tmp_path, tmp_path.name, script))
    run_id = await site.start(deployed, retries={"attempts": 2})
    # Slurm's grain is a minute.
    run = await site.end(run_id, 240)

    assert run.state_name == "Completed", message(run)
    said = [state.message or "" for state in await site.states(run_id) if state.name == "AwaitingRetry"]
    assert [text.partition(" (after")[0] for text in said] == [
        "TimedOut after 00:01:00, now with 00:02:00: attempt 2 of 2"
    ]
    limits = [
        site.slurm.run("sacct", "-X", "-n", "-P", "-o", "Timelimit,State", "-j", job).strip()
        for job in jobs(site, run_id)
    ]
    assert limits == ["00:01:00|TIMEOUT", "00:02:00|COMPLETED"]
    await pages_of_each_attempt(site, run_id)
    assert await told(run_id, "timeout", "completed") == ["timeout", "completed"]


@pytest.mark.slurm
async def test_after_a_failed_node_the_job_runs_on_another(two_nodes: Site, tmp_path: Path) -> None:
    site = two_nodes
    script = f"#!/bin/bash\ntouch {tmp_path}/on-$SLURMD_NODENAME\n[ $SLURMD_NODENAME != node1 ] || exec sleep 300\n"
    deployed = await site.deploy(script_application(tmp_path, tmp_path.name, script))
    run_id = await site.start(deployed, retries=THREE)

    async def on_the_first() -> bool:
        return (tmp_path / "on-node1").exists()

    await await_until(on_the_first, 120, "the job on node1")
    await site.until(run_id, "Running")
    await asyncio.to_thread(site.slurm.lose_node)
    await site.until(run_id, "AwaitingRetry", "Queued", "Completed")
    # It would take the job again if it were not left out.
    await asyncio.to_thread(site.slurm.regain_node)
    run = await site.end(run_id)

    assert run.state_name == "Completed", message(run)
    said = [state.message or "" for state in await site.states(run_id) if state.name == "AwaitingRetry"]
    assert [text.partition(" (after")[0] for text in said] == ["NodeFail, now without node1: attempt 2 of 3"]
    first, second = (site.slurm.run("scontrol", "show", "job", job).split() for job in jobs(site, run_id))
    assert {"JobState=NODE_FAIL", "Requeue=0", "NodeList=node1"} <= set(first)
    assert {"JobState=COMPLETED", "Requeue=0", "NodeList=node2", "ExcNodeList=node1"} <= set(second)
    await pages_of_each_attempt(site, run_id)
    assert await told(run_id, "node-fail", "completed") == ["node-fail", "completed"]


@pytest.mark.slurm
async def test_a_preempted_job_runs_again_as_it_was(two_nodes: Site, tmp_path: Path) -> None:
    site = two_nodes
    script = f"""#!/bin/bash
#SBATCH --nodes=2 --exclusive
[ -e {tmp_path}/began ] || {{ touch {tmp_path}/began; exec sleep 300; }}
"""
    deployed = await site.deploy(script_application(tmp_path, tmp_path.name, script))
    run_id = await site.start(deployed, retries=THREE)
    await await_until(lambda: asyncio.to_thread((tmp_path / "began").exists), 120, "the first attempt")
    await site.until(run_id, "Running")
    urgent = ["sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true"]
    await asyncio.to_thread(site.slurm.run, *urgent)
    run = await site.end(run_id, 120)

    assert run.state_name == "Completed", message(run)
    said = [state.message or "" for state in await site.states(run_id) if state.name == "AwaitingRetry"]
    assert [text.partition(" (after")[0] for text in said] == ["Preempted, now with the same request: attempt 2 of 3"]
    states = [site.slurm.run("sacct", "-X", "-n", "-P", "-o", "State", "-j", job).strip() for job in jobs(site, run_id)]
    assert states == ["PREEMPTED", "COMPLETED"]
    assert [row.final_state for row in site.submissions(run_id)] == ["Preempted", "Completed"]


@pytest.mark.slurm
async def test_the_last_attempts_end_is_the_runs_and_says_why_there_is_no_other(
    site: Site, slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    retries = {"attempts": 5, "memory_ceiling": "150M"}
    deployed = await site.deploy(script_application(tmp_path, tmp_path.name, hungry(tmp_path, 400)))
    run_id = await site.start(deployed, retries=retries)
    await run_out(site, slurm_cluster, tmp_path, run_id, 100, 150)
    run = await site.end(run_id)

    assert (run.state_type, run.state_name) == (StateType.FAILED, "OutOfMemory")
    assert "not retried: 150M is the most memory that its retries may ask for" in message(run)
    assert len(site.slurm_jobs(run_id)) == 2


@pytest.mark.slurm
async def test_a_plain_failure_is_not_retried(site: Site, tmp_path: Path) -> None:
    deployed = await site.deploy(script_application(tmp_path, tmp_path.name, "#!/bin/bash\nexit 3\n"))
    run_id = await site.start(deployed, retries=THREE)
    run = await site.end(run_id)

    assert run.state_name == "Failed"
    assert "retried" not in message(run)
    assert len(site.submissions(run_id)) == 1


@pytest.mark.slurm
async def test_an_attempt_that_ended_while_no_worker_lived_is_followed_by_one_other(
    site: Site, slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    deployed = await site.deploy(script_application(tmp_path, tmp_path.name, hungry(tmp_path, 200)))
    run_id = await site.start(deployed, retries=THREE)
    job_id = await began(tmp_path, 100)
    await site.until(run_id, "Running")
    site.worker.kill()
    slurm_cluster.end_out_of_memory(job_id)
    site.worker.start()
    run = await site.end(run_id, 180)

    assert run.state_name == "Completed", message(run)
    assert len(site.slurm_jobs(run_id)) == 2


@pytest.mark.slurm
async def test_of_an_array_only_what_failed_runs_again(site: Site, tmp_path: Path) -> None:
    script = f"""#!/bin/bash
#SBATCH --array=0-4
echo >> {tmp_path}/ran-$SLURM_ARRAY_TASK_ID
[ $(wc -l < {tmp_path}/ran-$SLURM_ARRAY_TASK_ID) -gt $((SLURM_ARRAY_TASK_ID % 2)) ]
"""
    deployed = await site.deploy(script_application(tmp_path, tmp_path.name, script))
    run_id = await site.start(deployed, retries={"attempts": 2, "on": ["failure"]})
    run = await site.end(run_id)

    assert run.state_name == "Completed", message(run)
    assert [len((tmp_path / f"ran-{task}").read_text()) for task in range(5)] == [1, 2, 1, 2, 1]


@pytest.mark.slurm
async def test_a_run_that_waits_for_its_retry_can_be_cancelled_and_begun_anew(
    site: Site, slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    deployed = await site.deploy(script_application(tmp_path, tmp_path.name, hungry(tmp_path, 400)))
    run_id = await site.start(deployed, retries=THREE)
    await run_out(site, slurm_cluster, tmp_path, run_id, 100)
    await site.until(run_id, "AwaitingRetry")
    await site.cancel(run_id)
    run = await site.end(run_id)

    assert run.state_name == "Cancelled"
    assert len(site.slurm_jobs(run_id)) == 1

    (tmp_path / f"began-{site.submissions(run_id)[0].job_id}-100").unlink()
    await site.retry(run_id)
    await began(tmp_path, 100)
    await site.cancel(run_id)
    assert (await site.end(run_id)).state_name == "Cancelled"


@pytest.mark.slurm
@pytest.mark.parametrize("lives", [True, False], ids=["worker lives", "worker dies"])
async def test_a_flows_job_that_was_killed_for_its_memory_runs_again_with_more(
    site: Site, slurm_cluster: SlurmCluster, tmp_path: Path, lives: bool
) -> None:
    deployment = await deploy_flow(site, tmp_path, memory="1000M", retries={"attempts": 2})
    run_id = await site.start(deployment, how="sleep", marker=str(tmp_path / "began"))

    async def running() -> bool:
        return (tmp_path / "began").exists()

    await await_until(running, 150, "the flow")
    [first] = site.submissions(run_id)
    if not lives:
        site.worker.kill()
    await asyncio.to_thread(slurm_cluster.end_out_of_memory, first.job_id or "")
    (tmp_path / "began").unlink()
    if not lives:
        # What the engine says while it is being killed, where it still can.
        async with get_client() as client:
            await client.set_flow_run_state(run_id, Crashed(), force=True)
        site.worker.start()
    await await_until(running, 120, "the flow's second attempt")
    [_, second] = site.submissions(run_id)
    shown = slurm_cluster.run("squeue", "-h", "-j", second.job_id or "", "-o", "%m")
    await site.cancel(run_id)

    assert shown.strip() == "2000M"
    assert (await site.settled(run_id)).state_name == "Cancelled"
    assert not await asyncio.to_thread(os.path.lexists, second.secret_path or "")
