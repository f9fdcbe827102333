"""Runs of both kinds are job submissions in the real Jobbergate API too, made and kept up to date by the worker."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from pydantic import SecretStr

from jobbergate_flows.blocks import InfluxMetrics, JobbergateAPI
from jobbergate_flows.jobbergate import calls
from jobbergate_flows.jobbergate.calls import Selection
from jobbergate_flows.jobbergate.client import JobbergateClient
from jobbergate_flows.jobbergate.errors import JobbergateResponseError
from jobbergate_flows.jobbergate.links import Link, Links
from jobbergate_flows.jobbergate.models import JobSubmissionDetails, SubmissionStatus
from jobbergate_flows.slurm.ledger import Ledger
from tests.cluster.influxdb import DATABASE, InfluxServer
from tests.cluster.jobbergate_api import MIRROR, JobbergateApi
from tests.cluster.prefect_server import PrefectServer
from tests.cluster.secrets import SECRETS, VALUE
from tests.cluster.site import Site, message, running_site, script_application, waiting_for
from tests.cluster.slurm import SlurmCluster
from tests.cluster.waiting import await_until
from tests.end_to_end.flows import deploy_flow
from tests.end_to_end.test_measured_runs import PROGRAM
from tests.jobbergate.oidc import SECRET

BLOCK = "the-mirrors-api"
# An API that was away for a minute is tried once a minute.
TOLD_SECONDS = 120
_SETTINGS = "PREFECT_INTEGRATIONS_JOBBERGATE_FLOWS_"


def block_of(api: JobbergateApi, folder: Path) -> JobbergateAPI:
    return JobbergateAPI(
        base_url=api.url,
        login_domain=api.provider.domain,
        client_id=MIRROR,
        client_secret=SecretStr(SECRET),
        cache_directory=str(folder / "tokens"),
    )


@pytest.fixture(scope="module")
async def mirrored(
    slurm_cluster: SlurmCluster,
    prefect_server: PrefectServer,
    jobbergate_api: JobbergateApi,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Site]:
    """A site whose deployments may name a Jobbergate API."""
    folder = tmp_path_factory.mktemp("mirrored")
    await block_of(jobbergate_api, folder).save(BLOCK, overwrite=True)
    more = {f"{_SETTINGS}JOBBERGATE_SECONDS": "1"}
    async with running_site(slurm_cluster, prefect_server, folder, "slurm-mirrored", more) as made:
        yield made


@pytest.fixture
def api(jobbergate_api: JobbergateApi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobbergateClient]:
    with block_of(jobbergate_api, tmp_path_factory.mktemp("own")).client() as client:
        yield client


async def start_both(site: Site, folder: Path, *, ends: bool = False, **variables: Any) -> dict[str, UUID]:
    """Start a run of each kind, whose job sleeps for minutes unless it `ends` at once."""
    script = f"#!/bin/bash\ntouch {folder}/application-runs\n" + ("" if ends else "exec sleep 300\n")
    application = await site.deploy(
        script_application(folder, folder.name, script), job_variables={"jobbergate": BLOCK}
    )
    flow = await deploy_flow(site, folder, jobbergate=BLOCK, **variables)
    return {
        "application": await site.start(application),
        "flow": await site.start(flow, how="well" if ends else "sleep", marker=f"{folder}/flow-runs"),
    }


async def until(condition: Callable[[], object], what: str, timeout: float = TOLD_SECONDS) -> None:
    async def met() -> bool:
        return bool(await asyncio.to_thread(condition))

    await await_until(met, timeout, what)


async def until_running(folder: Path) -> None:
    await until(lambda: len(list(folder.glob("*-runs"))) == 2, "both jobs to run", 150)


async def until_told_running(api: JobbergateClient, site: Site, run_id: UUID) -> None:
    """Wait until Jobbergate knows that the run's job runs: the worker comes to know it after the job itself."""
    await until(
        lambda: any("RUNNING" in states_of(api, one) for one in all_of(api, site, run_id)), "the job to run there"
    )


def links_of(site: Site, run_id: UUID) -> list[Link]:
    ledger = Ledger.open(site.ledger_path)
    try:
        return Links(ledger).of_flow_run(str(run_id))
    finally:
        ledger.close()


def all_of(api: JobbergateClient, site: Site, run_id: UUID) -> list[JobSubmissionDetails]:
    """The job submissions that Jobbergate has of a run, the oldest first, whatever the ledger knows of them."""
    found: list[JobSubmissionDetails] = []
    for row in site.submissions(run_id):
        named = api.items(calls.list_job_submissions(Selection(search=row.key)))
        found += [api.send(calls.get_job_submission(one.id)) for one in named]
    return found


def states_of(api: JobbergateClient, submission: JobSubmissionDetails) -> list[str | None]:
    """What was told of a job, in order; without the clean-up at its end, in which it may or may not have been seen."""
    told = [one.slurm_job_state for one in api.items(calls.list_progress(submission.id))]
    return [state for state in told if state != "COMPLETING"]


async def the_end_of(api: JobbergateClient, site: Site, run_id: UUID) -> JobSubmissionDetails:
    """The one job submission of a run, once all was told of it."""
    await until(
        lambda: (links := links_of(site, run_id)) and all(link.closed for link in links), "all to be told to Jobbergate"
    )
    (submission,) = all_of(api, site, run_id)
    (link,) = links_of(site, run_id)
    assert link.trouble is None
    assert link.submission_id == submission.id
    return submission


async def test_runs_of_both_kinds_are_submissions_with_their_scripts_that_end_done(
    mirrored: Site, api: JobbergateClient, tmp_path: Path
) -> None:
    await Secret(value=VALUE).save("a-mirrored-token", overwrite=True)
    runs = await start_both(
        mirrored, tmp_path, ends=True, env={"TOKEN": "{{ prefect.blocks.secret.a-mirrored-token }}"}
    )
    for kind, run_id in runs.items():
        run = await mirrored.end(run_id)
        assert run.state_name == "Completed", message(run)
        submission = await the_end_of(api, mirrored, run_id)
        (row,) = mirrored.submissions(run_id)
        assert (submission.status, str(submission.slurm_job_id)) == (SubmissionStatus.DONE, row.job_id)
        assert submission.execution_directory == row.directory
        assert states_of(api, submission)[-1] == "COMPLETED"
        assert json.loads(submission.slurm_job_info or "")["exit_code"] == "0:0"
        # The run's page, and the way back.
        assert (submission.description or "").endswith(f"/runs/flow-run/{run_id}")
        url = f"{api.base_url}/jobbergate/job-submissions/{submission.id}"

        async def linked(run_id: UUID = run_id, url: str = url) -> bool:
            page = (await mirrored.artifacts(run_id)).get("job-submission", "")
            return url in page and (await mirrored.run(run_id)).labels.get("jobbergate.submission") == url

        await await_until(linked, TOLD_SECONDS, "the run to name its submission")
        script = api.send(calls.get_job_script(submission.job_script_id or 0))
        contents = [api.send(calls.download_job_script_file(script.id, file.filename)) for file in script.files or ()]
        expected = b"prefect flow-run execute" if kind == "flow" else b"application-runs"
        assert any(expected in content for content in contents)
        told = [*contents, submission.model_dump_json().encode(), script.model_dump_json().encode()]
        assert not [secret for secret in SECRETS for text in told if secret in text]


async def test_a_job_without_memory_ends_its_submission_aborted_and_says_why(
    mirrored: Site, api: JobbergateClient, tmp_path: Path
) -> None:
    runs = await start_both(mirrored, tmp_path)
    await until_running(tmp_path)
    for run_id in runs.values():
        await until_told_running(api, mirrored, run_id)
        (row,) = mirrored.submissions(run_id)
        await asyncio.to_thread(mirrored.slurm.end_out_of_memory, row.job_id or "")
    for run_id in runs.values():
        assert (await mirrored.settled(run_id)).state_name == "OutOfMemory"
        submission = await the_end_of(api, mirrored, run_id)
        assert (submission.status, submission.slurm_job_state) == (SubmissionStatus.ABORTED, "FAILED")
        assert "more memory than it asked for" in (submission.report_message or "")
        assert states_of(api, submission)[-2:] == ["RUNNING", "FAILED"]


@pytest.mark.parametrize("where", ["Prefect", "Jobbergate"])
async def test_a_job_is_cancelled_from_either_side_and_both_say_so(
    mirrored: Site, api: JobbergateClient, tmp_path: Path, where: str
) -> None:
    runs = await start_both(mirrored, tmp_path)
    await until_running(tmp_path)
    for run_id in runs.values():
        if where == "Prefect":
            await mirrored.cancel(run_id)
        else:
            await until(partial(all_of, api, mirrored, run_id), "the submission")
            (submission,) = all_of(api, mirrored, run_id)
            api.send(calls.cancel_job_submission(submission.id))
    for run_id in runs.values():
        assert (await mirrored.settled(run_id)).state_name == "Cancelled"
        submission = await the_end_of(api, mirrored, run_id)
        assert (submission.status, submission.slurm_job_state) == (SubmissionStatus.ABORTED, "CANCELLED")
        (job_id,) = mirrored.slurm_jobs(run_id)
        assert "JobState=CANCELLED" in mirrored.slurm.run("scontrol", "show", "job", job_id)


async def test_while_the_api_is_down_jobs_come_to_their_ends_and_it_hears_of_them_later_in_order(
    mirrored: Site, api: JobbergateClient, jobbergate_api: JobbergateApi, tmp_path: Path
) -> None:
    go_on = tmp_path / "go-on"
    script = waiting_for(go_on)
    deployed = await mirrored.deploy(
        script_application(tmp_path, tmp_path.name, script), job_variables={"jobbergate": BLOCK}
    )
    before = await mirrored.start(deployed)
    await until(lambda: all_of(api, mirrored, before), "the submission", 150)
    await asyncio.to_thread(jobbergate_api.stop)
    try:
        meanwhile = await mirrored.start(deployed, resources={"extra": {"hold": ""}})
        await mirrored.until(meanwhile, "Held")
        (row,) = mirrored.submissions(meanwhile)
        mirrored.slurm.run("scontrol", "release", row.job_id or "")
        await mirrored.until(meanwhile, "Running")
        go_on.touch()
        for run_id in (before, meanwhile):
            assert (await mirrored.end(run_id)).state_name == "Completed"
            assert not links_of(mirrored, run_id)[0].closed
    finally:
        await asyncio.to_thread(jobbergate_api.start)
    for run_id in (before, meanwhile):
        submission = await the_end_of(api, mirrored, run_id)
        assert submission.status is SubmissionStatus.DONE
    states = states_of(api, submission)
    assert states[0] == "PENDING"
    assert states[-2:] == ["RUNNING", "COMPLETED"]


async def test_a_killed_workers_mirrors_are_gone_on_with(mirrored: Site, api: JobbergateClient, tmp_path: Path) -> None:
    runs = await start_both(mirrored, tmp_path)
    await until_running(tmp_path)
    mirrored.worker.kill()
    for run_id in runs.values():
        (row,) = mirrored.submissions(run_id)
        mirrored.slurm.run("scancel", row.job_id or "")
    mirrored.worker.start()
    for run_id in runs.values():
        assert (await mirrored.settled(run_id)).state_name == "Cancelled"
        submission = await the_end_of(api, mirrored, run_id)
        assert (submission.status, submission.slurm_job_state) == (SubmissionStatus.ABORTED, "CANCELLED")


async def test_what_ends_while_no_worker_is_there_is_told_by_the_next(
    mirrored: Site, api: JobbergateClient, tmp_path: Path
) -> None:
    flow = await deploy_flow(mirrored, tmp_path, jobbergate=BLOCK, extra={"hold": ""})
    application = await mirrored.deploy(
        script_application(tmp_path, tmp_path.name, "#!/bin/bash\ntrue\n"), job_variables={"jobbergate": BLOCK}
    )
    alone = await mirrored.start(flow, how="well")
    cancelled = await mirrored.start(application, resources={"extra": {"hold": ""}})
    for run_id in (alone, cancelled):
        await mirrored.until(run_id, "Held")
    mirrored.worker.kill()
    await mirrored.cancel(cancelled)
    (row,) = mirrored.submissions(alone)
    mirrored.slurm.run("scontrol", "release", row.job_id or "")
    # The flow tells its end from its node.
    assert (await mirrored.end(alone)).state_name == "Completed"

    mirrored.worker.start()

    assert (await the_end_of(api, mirrored, alone)).status is SubmissionStatus.DONE
    assert (await mirrored.end(cancelled)).state_name == "Cancelled"
    assert (await the_end_of(api, mirrored, cancelled)).slurm_job_state == "CANCELLED"


async def test_each_attempt_is_a_submission_of_its_own(mirrored: Site, api: JobbergateClient, tmp_path: Path) -> None:
    marker = tmp_path / "second-time"
    script = f"#!/bin/bash\ntest -e {marker} && exit 0\ntouch {marker}\nexit 3\n"
    deployed = await mirrored.deploy(
        script_application(tmp_path, tmp_path.name, script), job_variables={"jobbergate": BLOCK}
    )
    run_id = await mirrored.start(deployed)
    assert (await mirrored.end(run_id)).state_name == "Failed"
    await mirrored.retry(run_id)
    assert (await mirrored.end(run_id)).state_name == "Completed"

    await until(
        lambda: len(links := links_of(mirrored, run_id)) == 2 and all(link.closed for link in links), "both ends"
    )
    first, second = all_of(api, mirrored, run_id)
    assert (first.status, first.report_message) == (SubmissionStatus.ABORTED, "Failed: exit code 3")
    assert second.status is SubmissionStatus.DONE
    assert first.slurm_job_id != second.slurm_job_id


async def test_a_run_that_is_cancelled_before_its_submission_leaves_nothing(
    mirrored: Site, api: JobbergateClient, tmp_path: Path
) -> None:
    mirrored.slurm.stop_service("slurmctld")
    try:
        runs = await start_both(mirrored, tmp_path)
        for run_id in runs.values():
            await mirrored.logged(run_id, "Slurm does not answer", 150)
            await mirrored.cancel(run_id)
        for run_id in runs.values():
            assert (await mirrored.end(run_id)).state_name == "Cancelled"
    finally:
        mirrored.slurm.start_service("slurmctld")
    for run_id in runs.values():
        (row,) = mirrored.submissions(run_id)
        assert row.job_id is None
        assert list(api.items(calls.list_job_scripts(Selection(search=row.key)))) == []


async def test_a_run_whose_block_is_not_there_goes_its_way_and_its_mirror_waits_for_it(
    mirrored: Site, api: JobbergateClient, jobbergate_api: JobbergateApi, tmp_path: Path
) -> None:
    name = "a-later-block"
    deployed = await mirrored.deploy(
        script_application(tmp_path, tmp_path.name, "#!/bin/bash\ntrue\n"), job_variables={"jobbergate": name}
    )
    run_id = await mirrored.start(deployed)
    assert (await mirrored.end(run_id)).state_name == "Completed"
    named = f"JobbergateAPI block '{name}'"
    await until(lambda: named in mirrored.worker.log.read_text(errors="replace"), "the worker to name the block")

    await block_of(jobbergate_api, tmp_path).save(name, overwrite=True)

    assert (await the_end_of(api, mirrored, run_id)).status is SubmissionStatus.DONE


@pytest.fixture
async def measured(
    profiled_cluster: SlurmCluster,
    influx_server: InfluxServer,
    prefect_server: PrefectServer,
    jobbergate_api: JobbergateApi,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Site]:
    """A site whose worker knows where the metrics are."""
    folder = tmp_path_factory.mktemp("mirrored-metrics")
    await InfluxMetrics(url=influx_server.url, database=DATABASE, retention_policy="autogen").save(
        "mirrored", overwrite=True
    )
    await block_of(jobbergate_api, folder).save(BLOCK, overwrite=True)
    more = {f"{_SETTINGS}JOBBERGATE_SECONDS": "1", f"{_SETTINGS}METRICS": "mirrored"}
    async with running_site(profiled_cluster, prefect_server, folder, "mirrored-metrics", more) as made:
        yield made


async def test_a_jobs_metrics_are_readable_through_jobbergate(
    measured: Site, api: JobbergateClient, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    script = f"#!/bin/bash\n#SBATCH --time=10 --mem=500M\nsrun -n1 {sys.executable} {tmp_path}/program.py\n"
    deployed = await measured.deploy(
        script_application(tmp_path, tmp_path.name, script), job_variables={"jobbergate": BLOCK}
    )
    run_id = await measured.start(deployed)
    run = await measured.end(run_id)
    assert run.state_name == "Completed", message(run)
    await until(lambda: [one.status for one in all_of(api, measured, run_id)] == [SubmissionStatus.DONE], "the end")
    (submission,) = all_of(api, measured, run_id)

    def memory() -> float:
        try:
            times = api.send(calls.get_metrics_times(submission.id))
        except JobbergateResponseError:
            # A 404: there is none yet.
            return 0.0
        begin = times.min - times.min % 10
        points = api.send(calls.get_metrics(submission.id, start_time=begin, end_time=times.max + 1, sample_rate=10))
        return max((point.memory_rss for point in points), default=0.0)

    # 200 MiB, in KiB: without a node's name the API gives the mean of the steps, of which the script's has little.
    await until(lambda: memory() > 90 * 1024, "the program's memory", 120)


async def test_a_work_pool_names_the_api_for_all_its_runs(
    mirrored: Site, api: JobbergateClient, tmp_path: Path
) -> None:
    async with get_client() as client:
        template = (await client.read_work_pool(mirrored.pool)).base_job_template
        named = deepcopy(template)
        named["variables"]["properties"]["jobbergate"]["default"] = BLOCK
        await client.update_work_pool(mirrored.pool, WorkPoolUpdate(base_job_template=named))
    try:
        deployed = await mirrored.deploy(script_application(tmp_path, tmp_path.name, "#!/bin/bash\ntrue\n"))
        run_id = await mirrored.start(deployed)
        assert (await mirrored.end(run_id)).state_name == "Completed"
    finally:
        async with get_client() as client:
            await client.update_work_pool(mirrored.pool, WorkPoolUpdate(base_job_template=template))

    assert (await the_end_of(api, mirrored, run_id)).status is SubmissionStatus.DONE
