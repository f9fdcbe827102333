"""Jobs as processes of this machine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobbergate_flows.slurm.cluster import Cluster, SubmitRequest
from jobbergate_flows.slurm.errors import DirectoryRefused, SubmissionRefused
from jobbergate_flows.slurm.jobs import Absent, JobStatus, Known, Phase
from jobbergate_flows.slurm.local_cluster import LocalCluster
from jobbergate_flows.slurm.local_runner import process_start
from jobbergate_flows.slurm.states import summarize
from tests.cluster.waiting import await_until, wait_until


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def cluster(tmp_path: Path) -> LocalCluster:
    return LocalCluster(root=tmp_path / "state", max_parallel=2)


async def submit(cluster: LocalCluster, work: Path, body: str, *arguments: str, name: str = "study-k1") -> str:
    request = SubmitRequest(f"#!/bin/bash\n{body}\n", arguments, name, "k1", str(work))
    return await cluster.submit(request)


async def look(cluster: LocalCluster, job_id: str) -> JobStatus:
    observation = (await cluster.query({job_id: datetime.now(UTC)}))[job_id]
    assert isinstance(observation, Known)
    status = summarize(observation.rows, requeue=False)
    assert status is not None
    return status


async def reach(cluster: LocalCluster, job_id: str, wanted: Callable[[JobStatus], bool]) -> JobStatus:
    async def there() -> JobStatus | None:
        status = await look(cluster, job_id)
        return status if wanted(status) else None

    status = await await_until(there, 30, f"job {job_id}", 0.05)
    assert status is not None
    return status


async def end(cluster: LocalCluster, job_id: str) -> JobStatus:
    return await reach(cluster, job_id, lambda status: status.final)


def test_it_is_a_cluster(cluster: LocalCluster) -> None:
    assert isinstance(cluster, Cluster)


async def test_a_script_runs_in_its_directory_and_its_output_is_slurms(cluster: LocalCluster, work: Path) -> None:
    job_id = await submit(cluster, work, "pwd; echo $SLURM_JOB_ID $SLURM_JOB_NAME $SLURM_NTASKS; echo oh >&2", "-n3")

    status = await end(cluster, job_id)

    assert (status.phase, str(status.exit_code)) == (Phase.COMPLETED, "0:0")
    assert status.start is not None
    assert status.end is not None
    assert (work / f"slurm-{job_id}.out").read_text() == f"{work}\n{job_id} study-k1 3\noh\n"


async def test_output_and_error_go_where_the_script_or_the_arguments_say(cluster: LocalCluster, work: Path) -> None:
    body = "#SBATCH --output=%x.out --error=script.err\necho one; echo two >&2"

    await end(cluster, await submit(cluster, work, body, "--error=%j.err"))

    assert (work / "study-k1.out").read_text() == "one\n"
    assert (work / "1.err").read_text() == "two\n"


@pytest.mark.parametrize(("body", "message"), [("exit 3", "Failed: exit code 3"), ("kill -9 $$", "Failed: signal 9")])
async def test_a_job_fails_as_its_script_does(cluster: LocalCluster, work: Path, body: str, message: str) -> None:
    assert (await end(cluster, await submit(cluster, work, body))).message == message


async def test_a_job_that_cannot_write_its_output_fails(cluster: LocalCluster, work: Path) -> None:
    job_id = await submit(cluster, work, "echo hello", "--output=missing/out")

    assert (await end(cluster, job_id)).phase is Phase.FAILED


async def test_the_time_limit_ends_a_job_with_all_it_started(cluster: LocalCluster, work: Path) -> None:
    # Time enough to start something.
    job_id = await submit(cluster, work, "#SBATCH --time=0:03\nsleep 300 & echo $! > child; wait")

    assert (await end(cluster, job_id)).name == "TimedOut"
    # It was sent the same signals; when it ends by them is the kernel's affair.
    wait_until(lambda: _is_over(int((work / "child").read_text())), 10, "the end of what it had started")


async def test_an_arrays_tasks_run_a_few_at_a_time_and_each_has_its_output(cluster: LocalCluster, work: Path) -> None:
    body = """
mkdir running.$SLURM_ARRAY_TASK_ID
while [ ! -e go ]; do sleep 0.05; done
set -- running.*; echo $#
rmdir running.$SLURM_ARRAY_TASK_ID
exit $SLURM_ARRAY_TASK_ID"""

    job_id = await submit(cluster, work, body, "--array=0-3,5%8")
    await reach(cluster, job_id, lambda status: status.message == "5 tasks: 3 PENDING, 2 RUNNING")
    (work / "go").touch()
    status = await end(cluster, job_id)

    assert status.message == "5 tasks: 4 FAILED, 1 COMPLETED; Failed: exit code 1"
    assert [row.job_id for row in status.rows] == [f"{job_id}_{task}" for task in (0, 1, 2, 3, 5)]
    counts = [int((work / f"slurm-{job_id}_{task}.out").read_text()) for task in (0, 1, 2, 3, 5)]
    assert max(counts) <= 2


@pytest.mark.parametrize("array", ["5-1", "0-3:0", "0-1001", "99999999999999999999", "0-9;rm", "1,,2"])
@pytest.mark.parametrize("place", ["argument", "script"])
async def test_an_array_that_slurm_would_refuse_is_refused(
    cluster: LocalCluster, work: Path, array: str, place: str
) -> None:
    body, arguments = ("", [f"--array={array}"]) if place == "argument" else (f"#SBATCH --array={array}", [])

    with pytest.raises(SubmissionRefused, match="Invalid job array specification"):
        await submit(cluster, work, body, *arguments)


async def test_a_line_that_sbatch_could_not_read_is_refused(cluster: LocalCluster, work: Path) -> None:
    with pytest.raises(SubmissionRefused, match=r"invalid directive found: b\.txt"):
        await submit(cluster, work, "#SBATCH --output=a b.txt")


async def test_a_path_with_blanks_is_one_path(cluster: LocalCluster, work: Path) -> None:
    await end(cluster, await submit(cluster, work, "echo one", "--output=a b.txt"))
    await end(cluster, await submit(cluster, work, '#SBATCH --output="c d.txt"\necho two'))

    assert (work / "a b.txt").read_text() == "one\n"
    assert (work / "c d.txt").read_text() == "two\n"


async def test_cancelling_ends_all_tasks_at_once_even_those_that_do_not_want_it(
    cluster: LocalCluster, work: Path
) -> None:
    job_id = await submit(cluster, work, "trap '' TERM; touch $SLURM_ARRAY_TASK_ID; while :; do sleep 1; done", "-a0-3")
    await reach(cluster, job_id, lambda _: (work / "0").exists() and (work / "1").exists())

    await cluster.cancel([job_id, "4711"])
    status = await end(cluster, job_id)

    assert status.message == f"4 tasks: 4 CANCELLED; Cancelled by uid {os.getuid()}"


async def test_a_job_is_found_by_its_whole_name_and_only_there(cluster: LocalCluster, work: Path) -> None:
    first = await submit(cluster, work, "", name="study-k1")
    await submit(cluster, work, "", name="study-k12")
    again = await submit(cluster, work, "", name="study-k1")

    found = await cluster.find("study-k1", since=datetime.now(UTC))

    assert [job.job_id for job in found] == [first, again]
    assert await cluster.find("study", since=datetime.now(UTC)) == []


async def test_an_unknown_job_is_absent(cluster: LocalCluster) -> None:
    assert await cluster.query({"4711": datetime.now(UTC), "../x": datetime.now(UTC)}) == {
        "4711": Absent(),
        "../x": Absent(),
    }


async def test_a_job_outlives_whoever_submitted_it(cluster: LocalCluster, work: Path, tmp_path: Path) -> None:
    submitting = f"""
import asyncio, os, signal
from pathlib import Path
from jobbergate_flows.slurm.cluster import SubmitRequest
from jobbergate_flows.slurm.local_cluster import LocalCluster

script = "#!/bin/bash\\nwhile [ ! -e go ]; do sleep 0.05; done; echo done\\n"
cluster = LocalCluster(root=Path({str(tmp_path / "state")!r}))
asyncio.run(cluster.submit(SubmitRequest(script, (), "n", "k", {str(work)!r})))
os.killpg(os.getpgid(0), signal.SIGKILL)
"""
    died = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", submitting], start_new_session=True, check=False
    )
    assert died.returncode == -signal.SIGKILL
    assert (await look(cluster, "1")).phase in (Phase.RUNNING, Phase.PENDING)

    (work / "go").touch()

    assert (await end(cluster, "1")).phase is Phase.COMPLETED
    assert (work / "slurm-1.out").read_text() == "done\n"


async def test_a_job_whose_runner_died_is_lost_like_one_whose_node_failed(
    cluster: LocalCluster, work: Path, tmp_path: Path
) -> None:
    job_id = await submit(cluster, work, "echo $$ > pid; while [ ! -e go ]; do sleep 0.05; done")
    await reach(cluster, job_id, lambda _: (work / "pid").exists())

    os.kill(json.loads((tmp_path / "state" / job_id / "state.json").read_text())["pid"], signal.SIGKILL)
    status = await end(cluster, job_id)

    assert (status.phase, status.name) == (Phase.CRASHED, "NodeFail")
    (work / "go").touch()


def test_a_process_that_nobody_has_waited_for_yet_is_over() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        assert process_start(process.pid) is not None
        process.kill()
        wait_until(lambda: process_start(process.pid) is None, 10, "the end of a process")
        assert process.returncode is None


async def test_what_the_script_and_its_children_used_is_known_once_it_has_ended(
    cluster: LocalCluster, work: Path
) -> None:
    using = "import time\nmemory = bytearray(100 << 20)\nwhile time.process_time() < 0.3: pass"
    job_id = await submit(cluster, work, f"{sys.executable} -c '{using}'; until [ -e go ]; do sleep 0.05; done", "-t5")
    await reach(cluster, job_id, lambda status: status.name == "Running")
    [running] = await cluster.steps(job_id)
    (work / "go").touch()
    await end(cluster, job_id)

    [record] = await cluster.steps(job_id)

    assert (running.state, running.end, running.steps[0].total_cpu) == ("RUNNING", None, None)
    assert (record.state, record.time_limit, record.cpus, record.allocated) == ("COMPLETED", 5, 1, {})
    [step] = record.steps
    assert step.total_cpu is not None
    assert step.max_rss is not None
    assert 0.3 <= step.total_cpu < 30
    assert 100 << 20 <= step.max_rss < 400 << 20


async def test_each_task_of_an_array_has_its_own_use(cluster: LocalCluster, work: Path) -> None:
    job_id = await submit(cluster, work, "exit $SLURM_ARRAY_TASK_ID", "--array=0-2", "--cpus-per-task=2")
    await end(cluster, job_id)

    assert [record.job_id for record in await cluster.steps(job_id)] == [f"{job_id}_{task}" for task in range(3)]
    [one] = await cluster.steps(f"{job_id}_2")
    assert (one.state, str(one.exit_code), one.cpus, len(one.steps)) == ("FAILED", "2:0", 2, 1)
    assert await cluster.steps("4711") == []


async def test_an_id_is_never_given_twice(cluster: LocalCluster, work: Path, tmp_path: Path) -> None:
    assert await submit(cluster, work, "") == "1"
    # As after a death between the folder and the count.
    (tmp_path / "state" / "2").mkdir()
    (tmp_path / "state" / "next").write_text("")

    assert await submit(LocalCluster(root=tmp_path / "state"), work, "") == "3"


@pytest.mark.parametrize("array", ["0-5000", "0-99999999"])
async def test_an_array_that_is_too_large_is_refused(cluster: LocalCluster, work: Path, array: str) -> None:
    with pytest.raises(SubmissionRefused, match="Invalid job array specification"):
        await submit(cluster, work, "", f"--array={array}")


async def test_what_is_no_script_is_refused_as_sbatch_does(cluster: LocalCluster, work: Path) -> None:
    with pytest.raises(SubmissionRefused, match="does not look like a batch script"):
        await cluster.submit(SubmitRequest("echo\n", (), "n", "k", str(work)))


async def test_files_go_through_the_own_accounts_door(cluster: LocalCluster, work: Path) -> None:
    await cluster.write_files(str(work / "run"), {"a": "1"})
    await cluster.write_secret(str(work / "run"), "2")

    chunk = await cluster.read(str(work / "run" / "a"))

    assert chunk is not None
    assert chunk.data == b"1"
    assert [entry.path for entry in await cluster.list_files(str(work / "run"))] == [".environment", "a"]
    await cluster.remove_files(str(work / "run"), [".environment"])
    assert [entry.path for entry in await cluster.list_files(str(work / "run"))] == ["a"]
    with pytest.raises(DirectoryRefused):
        await cluster.check_directory("relative")


async def test_it_says_of_itself_that_it_is_well(cluster: LocalCluster) -> None:
    assert all(finding.ok for finding in await cluster.check())


def _is_over(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True
