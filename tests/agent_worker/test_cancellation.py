"""Cancelling many runs: all of them, and none waits for another's."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Cancelling, Pending

from agent_worker import cancellation, runs
from agent_worker.cancellation import watch_for_cancellations
from jobbergate_flows.slurm.local_cluster import LocalCluster
from tests.agent_worker.conftest import Workshop
from tests.cluster.site import message, script_application
from tests.cluster.waiting import await_until


class HangingCancel:
    """A cluster's `cancel` that does not answer for the first job that it is called for, until `go_on`."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.calls: Counter[str] = Counter()
        self.hangs = ""
        self.go_on = asyncio.Event()
        self._cancel = cluster.cancel

    async def __call__(self, job_ids: Sequence[str]) -> None:
        self.hangs = self.hangs or job_ids[0]
        self.calls.update(job_ids)
        if self.hangs in job_ids:
            await self.go_on.wait()
        await self._cancel(job_ids)

    async def answer(self) -> None:
        self.go_on.set()


async def watch(workshop: Workshop) -> None:
    workshop.background(watch_for_cancellations(workshop.supervisor, workshop.pool, 0.1))


async def test_a_cancel_that_hangs_holds_up_no_other_and_is_not_begun_twice(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel = HangingCancel(workshop.cluster)
    monkeypatch.setattr(workshop.cluster, "cancel", cancel)
    deployed = await workshop.deploy(script_application(tmp_path, "hangs", "#!/bin/sh\n"))
    run_ids = [(await workshop.launch(deployed, Cancelling())).id for _ in range(3)]
    jobs = {(await workshop.submit(run_id, "exec sleep 300")).job_id: run_id for run_id in run_ids}

    await workshop.supervisor.do(watch(workshop))

    async def all_begun() -> bool:
        return len(cancel.calls) == len(jobs)

    await await_until(all_begun, 30, "a cancel of each job")
    for job_id, run_id in jobs.items():
        if job_id != cancel.hangs:
            assert (await workshop.end(run_id)).state_name == "Cancelled"
    assert cancel.calls[cancel.hangs] == 1
    await workshop.supervisor.do(cancel.answer())
    assert (await workshop.end(jobs[cancel.hangs])).state_name == "Cancelled"


async def test_runs_beyond_the_servers_first_page_are_cancelled_too(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "PAGE", 2)
    deployed = await workshop.deploy(script_application(tmp_path, "many", "#!/bin/sh\n"))
    # What is on another cluster stays Cancelling: whatever comes first, a page is full of these.
    not_ours = [await workshop.launch(deployed, Cancelling(), cluster="elsewhere") for _ in range(2)]
    ours = [await workshop.launch(deployed, Cancelling()) for _ in range(2)]
    not_ours += [await workshop.launch(deployed, Cancelling(), cluster="elsewhere") for _ in range(2)]

    await workshop.supervisor.do(watch(workshop))

    for run in ours:
        assert (await workshop.end(run.id)).state_name == "Cancelled"


async def test_a_run_that_was_cancelled_when_its_worker_died_before_it_said_so_is_cancelled(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancellation, "LOST_AFTER", timedelta(seconds=1))
    deployed = await workshop.deploy(script_application(tmp_path, "lost", "#!/bin/sh\n"))
    async with get_client() as client:
        run = await client.create_flow_run_from_deployment(deployed.id)
        await client.set_flow_run_state(run.id, Pending())
        await client.set_flow_run_state(run.id, Cancelling())
        assert (await client.read_flow_run(run.id)).infrastructure_pid is None

    await workshop.supervisor.do(watch(workshop))

    assert "before the job was submitted" in message(await workshop.end(run.id))
