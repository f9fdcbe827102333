"""What holds for an application's run and for a flow that runs as a Slurm job alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.schemas.objects import FlowRun, StateType

from jobbergate_flows.slurm.ledger import Submission, SubmissionStatus
from tests.cluster.site import Site, message, script_application
from tests.cluster.slurm import SlurmCluster
from tests.cluster.waiting import await_until
from tests.end_to_end.flows import deploy_flow

CANCEL_SECONDS = 30


@dataclass(frozen=True)
class Pair:
    """A run of each kind, of the same behaviour."""

    site: Site
    folder: Path
    application: UUID
    flow: UUID

    @property
    def runs(self) -> tuple[UUID, UUID]:
        return self.application, self.flow

    @property
    def submissions(self) -> list[Submission]:
        """Of both, and of each exactly one."""
        each = [self.site.submissions(run_id) for run_id in self.runs]
        assert [len(rows) for rows in each] == [1, 1]
        return [row for rows in each for row in rows]

    async def until(self, condition: Callable[[], object], what: str, timeout: float = 150) -> None:
        async def met() -> bool:
            return bool(await asyncio.to_thread(condition))

        await await_until(met, timeout, what)

    async def until_running(self) -> None:
        """Wait until both jobs do what they are there for."""
        await self.until(lambda: len(list(self.folder.glob("*-runs"))) == 2, "both jobs to run")

    async def cancel(self) -> None:
        for run_id in self.runs:
            await self.site.cancel(run_id)

    async def end(self, timeout: float = 120) -> tuple[FlowRun, FlowRun]:
        first, second = await asyncio.gather(*(self.site.settled(run_id, timeout) for run_id in self.runs))
        return first, second


async def start_both(site: Site, folder: Path, *, ends: bool = False, time_limit: str | None = None) -> Pair:
    """Start a run of each kind, whose job sleeps for minutes unless it `ends` at once."""
    script = f"#!/bin/bash\ntouch {folder}/application-runs\n" + ("" if ends else "exec sleep 300\n")
    resources = {"time_limit": time_limit} if time_limit else {}
    application = await site.deploy(script_application(folder, folder.name, script))
    flow = await deploy_flow(site, folder, **resources)
    return Pair(
        site,
        folder,
        await site.start(application, resources=resources),
        await site.start(flow, how="well" if ends else "sleep", marker=f"{folder}/flow-runs"),
    )


@pytest.mark.slurm
async def test_a_job_beyond_its_time_limit_ends_its_run_timed_out(site: Site, tmp_path: Path) -> None:
    pair = await start_both(site, tmp_path, time_limit="1")
    # The limit ends them after 90 s at the latest, and the worker may look once a minute only.
    for run in await pair.end(240):
        assert (run.state_type, run.state_name) == (StateType.FAILED, "TimedOut"), run.state


@pytest.mark.slurm
async def test_a_lost_node_ends_its_jobs_runs(site: Site, slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    pair = await start_both(site, tmp_path)
    await pair.until_running()
    slurm_cluster.lose_node()
    try:
        for run in await pair.end():
            assert (run.state_type, run.state_name) == (StateType.CRASHED, "NodeFail"), run.state
    finally:
        slurm_cluster.regain_node()
    for run_id in pair.runs:
        assert len(site.slurm_jobs(run_id)) == 1


@pytest.mark.slurm
async def test_a_job_without_memory_ends_its_run(site: Site, slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    pair = await start_both(site, tmp_path)
    await pair.until_running()
    for submission in pair.submissions:
        slurm_cluster.end_out_of_memory(submission.job_id or "")
    for run in await pair.end():
        assert (run.state_type, run.state_name) == (StateType.FAILED, "OutOfMemory"), run.state
        assert "more memory than it asked for" in message(run)


@pytest.mark.slurm
async def test_scancel_ends_a_jobs_run_cancelled_and_says_by_whom(site: Site, tmp_path: Path) -> None:
    pair = await start_both(site, tmp_path)
    await pair.until_running()
    for submission in pair.submissions:
        site.slurm.run("scancel", submission.job_id or "")
    for run in await pair.end():
        assert (run.state_type, run.state_name) == (StateType.CANCELLED, "Cancelled"), run.state
        assert "by uid 0 (root)" in message(run)


@pytest.mark.slurm
async def test_a_worker_killed_between_sbatch_and_its_record_finds_its_job_again(site: Site, tmp_path: Path) -> None:
    # Both submissions get as far as that; the worker never sees their answers.
    killing = f"""
        real_sbatch "$@" >{tmp_path}/answer-$$ || exit
        touch {tmp_path}/submitted-$$
        until [ "$(ls {tmp_path} | grep -c submitted-)" = 2 ]; do sleep 0.05; done
        mkdir {tmp_path}/killed && kill -KILL $PPID
        while kill -0 $PPID; do sleep 0.05; done
    """
    assert site.worker.process is not None
    with site.another_sbatch(killing):
        pair = await start_both(site, tmp_path, ends=True)
        try:
            await asyncio.to_thread(site.worker.process.wait, 150)
        finally:
            site.worker.kill()
    assert [(row.status, row.job_id) for row in pair.submissions] == [(SubmissionStatus.INTENT, None)] * 2
    site.worker.start()
    for run in await pair.end():
        assert run.state_name == "Completed", f"{run.state}\n{site.worker_log()}"
    submitted = await asyncio.to_thread(_contents, tmp_path, "answer-*")
    assert sorted(row.job_id or "" for row in pair.submissions) == submitted
    assert sorted(job_id for run_id in pair.runs for job_id in site.slurm_jobs(run_id)) == submitted


@pytest.mark.slurm
async def test_cancelling_before_the_submission_submits_nothing(
    site: Site, slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    slurm_cluster.stop_service("slurmctld")
    try:
        pair = await start_both(site, tmp_path)
        for run_id in pair.runs:
            await site.logged(run_id, "Slurm does not answer", 150)
        await pair.cancel()
        for run in await pair.end(CANCEL_SECONDS):
            assert run.state_name == "Cancelled", run.state
    finally:
        slurm_cluster.start_service("slurmctld")
    assert [(row.status, row.job_id) for row in pair.submissions] == [(SubmissionStatus.CANCELLED, None)] * 2
    for run_id in pair.runs:
        assert site.slurm_jobs(run_id) == []


@pytest.mark.slurm
async def test_cancelling_while_sbatch_is_under_way_cancels_the_job_that_it_makes(site: Site, tmp_path: Path) -> None:
    waiting = f"""
        touch {tmp_path}/asked-$$
        until [ -e {tmp_path}/go-on ]; do sleep 0.05; done
        real_sbatch "$@"
    """
    with site.another_sbatch(waiting):
        pair = await start_both(site, tmp_path)
        await pair.until(lambda: len(list(tmp_path.glob("asked-*"))) == 2, "both submissions")
        await pair.cancel()
        await pair.until(lambda: all(row.cancel_requested for row in pair.submissions), "the wish in the ledger")
        (tmp_path / "go-on").touch()
        for run in await pair.end(CANCEL_SECONDS):
            assert run.state_name == "Cancelled", run.state
            assert "Slurm job" in message(run)
    for run_id in pair.runs:
        (job_id,) = site.slurm_jobs(run_id)
        assert "JobState=CANCELLED" in site.slurm.run("scontrol", "show", "job", job_id)
    # Otherwise a retry would attach to the cancelled job.
    await pair.until(lambda: all(row.told for row in pair.submissions), "the end of both being told", 20)


def _contents(folder: Path, pattern: str) -> list[str]:
    return sorted(path.read_text().strip() for path in folder.glob(pattern))
