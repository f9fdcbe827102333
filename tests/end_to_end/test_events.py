"""What happens to a job on real Slurm is told as Prefect events, whoever follows it."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import dropwhile, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactCollectionFilter, ArtifactCollectionFilterKey
from prefect.utilities.slugify import slugify

from tests.cluster.events import await_events, names
from tests.cluster.site import Site, script_application
from tests.cluster.waiting import await_until
from tests.end_to_end.flows import deploy_flow


async def events_of(site: Site, run_id: UUID, last: str, timeout: float = 120) -> list[dict[str, Any]]:
    """The events of a run's jobs, once the last one is there."""

    def there(events: Sequence[dict[str, Any]]) -> bool:
        return last in names(events)

    related = f"prefect.flow-run.{run_id}"
    return await await_events(f"event {last}", there, related=related, name="slurm.job.*", timeout=timeout)


@pytest.mark.slurm
async def test_an_applications_job_is_told_from_the_queue_to_its_end_also_by_the_next_worker(
    site: Site, tmp_path: Path
) -> None:
    questions = "[Text('word', message='A word')]"
    go = tmp_path / "go"
    script = f"#!/bin/bash\n# {{{{ word }}}}\nsleep 3\nuntil [ -e {go} ]; do read -t 0.2 <> <(:) || true; done\n"
    deployed = await site.deploy(script_application(tmp_path, "told", script, questions), tags=["harbour"])
    held = {"extra": {"hold": ""}}
    run_id = await site.start(deployed, resources=held, answers={"word": "confidential"})
    await events_of(site, run_id, "needs-attention", 120)
    await site.logged(run_id, "JobHeldUser")
    site.worker.kill()
    site.worker.start()
    (submission,) = site.submissions(run_id)
    await await_until(lambda: _followed_twice(site, run_id), 120, "the second worker to follow the job")
    site.slurm.run("scontrol", "release", submission.job_id or "")
    # The worker may look at Slurm once a minute only.
    await events_of(site, run_id, "running", 120)
    go.touch()
    run = await site.end(run_id)
    found = await events_of(site, run_id, "completed")

    # A state that was over between two looks at Slurm has no event.
    assert [name for name in names(found) if name != "pending"] == ["needs-attention", "running", "completed"]
    assert "confidential" not in str(found)
    for event in found:
        assert event["resource"]["prefect.resource.id"] == f"slurm.job.{site.slurm.name}.{submission.job_id}"
        assert event["resource"]["slurm.user"] == "root"
        assert event["resource"]["slurm.partition"] == "debug"
        related = {entry["prefect.resource.role"]: entry for entry in event["related"]}
        assert related["flow-run"]["prefect.resource.name"] == run.name
        assert related["deployment"]["prefect.resource.id"] == f"prefect.deployment.{deployed.id}"
        assert related["work-pool"]["prefect.resource.name"] == site.pool
        assert related["worker"]["prefect.resource.id"].startswith("prefect.worker.jobbergate-slurm.")
        assert {"flow", "work-queue"} <= set(related)
        assert "prefect.tag.harbour" in {entry["prefect.resource.id"] for entry in event["related"]}
    held_, *_, ended = found
    assert held_["payload"]["reason"] == "JobHeldUser"
    assert ended["payload"]["ran_seconds"] >= 3
    assert ended["payload"]["nodes"] == "node1"


@pytest.mark.slurm
async def test_a_requeued_array_that_is_cancelled_while_its_worker_is_away(site: Site, tmp_path: Path) -> None:
    script = "#!/bin/bash\n#SBATCH --array=0-2\nsleep 300\n"
    deployed = await site.deploy(script_application(tmp_path, "array-told", script))
    run_id = await site.start(deployed, resources={"requeue": True})
    (running, *_) = [event for event in await events_of(site, run_id, "running", 120) if "running" in event["event"]]
    (submission,) = site.submissions(run_id)
    site.slurm.run("scontrol", "requeue", submission.job_id or "")
    await events_of(site, run_id, "requeued", 150)
    site.worker.kill()
    await site.cancel(run_id)
    site.worker.start()
    await site.end(run_id)
    found = await events_of(site, run_id, "cancelled")

    told = [name for name in names(found) if name not in ("pending", "running")]
    assert told == ["requeued", "cancelled"]
    assert sum(running["payload"]["array_tasks"].values()) == 3
    assert found[-1]["payload"]["array_tasks"] == {"CANCELLED": 3}
    assert found[-1]["payload"]["cancelled_by_uid"] == 0


@pytest.mark.slurm
async def test_an_ordinary_flows_job_is_told_too(site: Site, tmp_path: Path) -> None:
    run_id = await site.start(await deploy_flow(site, tmp_path), how="die")
    await site.end(run_id, 120)
    found = await events_of(site, run_id, "failed")

    assert "running" in names(found)
    assert found[-1]["payload"]["exit_code"] == "0:9"
    assert {"flow-run", "flow", "deployment", "work-pool", "worker"} <= {
        entry["prefect.resource.role"] for entry in found[-1]["related"]
    }


@pytest.mark.slurm
async def test_a_worker_says_when_slurm_is_away_and_when_it_is_back(site: Site) -> None:
    worker = f"prefect.worker.jobbergate-slurm.{slugify(f'{socket.gethostname()} {site.pool}')}"
    asked: Any = {"resource": worker, "name": "slurm.worker.*"}
    await await_events("its first word", **asked)
    asked["since"] = datetime.now(UTC)
    site.slurm.stop_service("slurmctld")
    try:
        [away] = troubles(await await_events("trouble", troubles, timeout=150, **asked))
        assert away["event"] == "slurm.worker.unhealthy"
        assert "slurmctld" in away["payload"]["summary"]
        await await_until(lambda: _artifact_says(worker, "**not well**"), 120, "the artifact")
    finally:
        site.slurm.start_service("slurmctld")
    found = await await_events("the end of it", lambda events: len(troubles(events)) > 1, timeout=150, **asked)
    [_, back] = troubles(found)
    assert back["event"] == "slurm.worker.healthy"
    assert back["related"][0]["prefect.resource.name"] == site.pool


def troubles(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where a worker's health turned, from its first trouble on: each minute it says the same once more."""
    turns = [next(same) for _, same in groupby(events, itemgetter("event"))]
    return list(dropwhile(lambda event: event["event"] == "slurm.worker.healthy", turns))


async def _artifact_says(worker: str, text: str) -> bool:
    key = f"slurm-worker-{worker.rpartition('.')[2]}"
    async with get_client() as client:
        latest = await client.read_latest_artifacts(
            artifact_filter=ArtifactCollectionFilter(key=ArtifactCollectionFilterKey(any_=[key]))
        )
    return any(text in str(artifact.data) for artifact in latest)


async def _followed_twice(site: Site, run_id: UUID) -> bool:
    return sum("JobHeldUser" in line for line in await site.logs(run_id)) >= 2
