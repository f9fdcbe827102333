"""The worker in the place of jobbergate-agent: from a submission in the real Jobbergate API to its end there."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.client.schemas.objects import FlowRun

from jobbergate_flows.jobbergate import calls
from jobbergate_flows.jobbergate.calls import Selection
from jobbergate_flows.jobbergate.models import SubmissionStatus
from jobbergate_flows.jobbergate.tokens import Token, TokenType
from tests.cluster.jobbergate_api import AGENT, JobbergateApi, agent_environment
from tests.cluster.jobbergate_cli import JobbergateCli
from tests.cluster.jobbergate_people import Ada
from tests.cluster.prefect_server import PrefectServer
from tests.cluster.site import Site, message, running_site, waiting_for
from tests.cluster.slurm import SlurmCluster
from tests.cluster.waiting import await_until, wait_until
from tests.jobbergate.oidc import SECRET

pytestmark = pytest.mark.slurm
POOL = "bridged"
EXAMPLES = Path(__file__).parents[2] / "examples"
INTERVAL = 10
ABORTED, CANCELLED, CREATED, DONE, REJECTED, SUBMITTED = (
    SubmissionStatus(word) for word in ("ABORTED", "CANCELLED", "CREATED", "DONE", "REJECTED", "SUBMITTED")
)
SETTING = "PREFECT_INTEGRATIONS_JOBBERGATE_FLOWS_"


@dataclass
class BridgedSite(Site):
    """A site whose worker stands in for the agent."""

    api: JobbergateApi = None  # type: ignore[assignment]
    ada: Ada = None  # type: ignore[assignment]

    async def runs_of(self, submission: int) -> list[FlowRun]:
        """All runs that were made of a submission."""
        async with get_client() as client:
            runs = await client.read_flow_runs(
                deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[POOL])), limit=200
            )
        return [run for run in runs if run.parameters == {"submission": submission}]

    async def run_of(self, submission: int) -> FlowRun:
        async def made() -> list[FlowRun]:
            return await self.runs_of(submission)

        (run,) = await await_until(made, 120, f"a run of submission {submission}")
        return run

    async def ended(self, submission: int, *statuses: SubmissionStatus) -> str:
        """Wait for a submission's end and its run's; what the report says."""
        there = await self.ada.until(submission, *statuses)
        (run,) = await self.runs_of(submission)
        await self.end(run.id)
        return there.report_message or ""


@pytest.fixture(scope="module")
async def bridged(
    slurm_cluster: SlurmCluster,
    prefect_server: PrefectServer,
    jobbergate_api: JobbergateApi,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[BridgedSite]:
    folder = tmp_path_factory.mktemp("bridged")
    environment = agent_environment(jobbergate_api, folder, interval=INTERVAL) | {f"{SETTING}BRIDGE": "service"}
    ada = Ada(jobbergate_api, folder / "ada")
    async with running_site(slurm_cluster, prefect_server, folder, POOL, environment) as site:
        yield BridgedSite(site.slurm, site.folder, site.pool, site.worker, site.environment, jobbergate_api, ada)
        for submission in ada.client.items(calls.list_job_submissions(Selection(user_only=True))):
            if submission.status in (CREATED, SUBMITTED):
                ada.cancel(submission.id)


@pytest.fixture
def site(bridged: BridgedSite) -> Iterator[BridgedSite]:
    """The module's, in the place of the session's; its worker runs."""
    if bridged.worker.process is None:
        bridged.worker.start()
    yield bridged
    if bridged.worker.process is None:
        bridged.worker.start()


@pytest.fixture
def ada(site: BridgedSite) -> Ada:
    return site.ada


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


async def test_a_submission_becomes_a_job_in_its_directory_and_ends_done(
    site: BridgedSite, ada: Ada, work: Path
) -> None:
    script = "#!/bin/bash\n#SBATCH --output=out.txt\ncat data; pwd\n"
    submission = ada.submit(work, script, {"data": "its data\n"}, sbatch=["--comment=why", "--time=7"])
    there = await ada.until(submission, DONE)
    run = await site.run_of(submission)
    ended = await site.end(run.id)
    assert ended.state_name == "Completed", message(ended)
    assert (work / "out.txt").read_text() == f"its data\n{work}\n"
    (row,) = site.submissions(run.id)
    assert str(there.slurm_job_id) == row.job_id
    assert site.slurm_jobs(run.id) == [row.job_id]
    assert "TimeLimit=00:07:00" in site.slurm.run("scontrol", "show", "job", row.job_id or "")
    told = ada.progress(submission)
    assert (told[0], told[-1]) == ("PENDING", "COMPLETED")
    await site.logged(run.id, "Submitted hello as Slurm job")
    assert ended.name == f"hello ({submission})"


async def test_what_jobbergates_own_command_line_submits_is_run(
    site: BridgedSite, ada: Ada, jobbergate_cli: JobbergateCli, work: Path
) -> None:
    application = jobbergate_cli.create_application(EXAMPLES / "parameter-study", "study-for-the-bridge")
    script = jobbergate_cli.create_job_script(application)
    made = jobbergate_cli.submit(script["job_script_id"], work, sbatch=["--comment=why"])
    there = await ada.until(made["job_submission_id"], DONE)
    assert (work / "results.csv").read_text()
    # It shows its user what became of it.
    shown = jobbergate_cli.submission(made["job_submission_id"])
    assert (shown["status"], shown["slurm_job_id"], shown["slurm_job_state"]) == (
        "DONE",
        there.slurm_job_id,
        "COMPLETED",
    )
    endless = jobbergate_cli.submit(script["job_script_id"], work, name="endless", sbatch=["--begin=now+1hour"])
    await ada.until(endless["job_submission_id"], SUBMITTED)
    jobbergate_cli.cancel(endless["job_submission_id"])
    assert "Cancelled" in await site.ended(endless["job_submission_id"], ABORTED)


async def test_no_token_and_no_secret_of_jobbergates_is_told_with_a_run(
    site: BridgedSite, ada: Ada, work: Path
) -> None:
    submission = ada.submit(work, "#!/bin/bash\nenv\n")
    await ada.until(submission, DONE)
    run = await site.run_of(submission)
    run = await site.end(run.id)
    secrets = [SECRET, *texts(site.folder.rglob("*.token"))]
    assert len(secrets) > 1
    told = [run.model_dump_json(), *await site.logs(run.id), str(await site.artifacts(run.id))]
    # In the ledger is what waits to be told.
    told += texts([*work.iterdir(), site.worker.log, *site.folder.glob("ledger.sqlite3*")])  # noqa: ASYNC240
    assert not [text for text in told if any(secret in text for secret in secrets)]


def texts(paths: Iterable[Path]) -> list[str]:
    return [path.read_text(errors="replace") for path in paths if path.is_file()]


async def test_how_a_job_ended_is_told(site: BridgedSite, ada: Ada, work: Path) -> None:
    failing = ada.submit(work, "#!/bin/bash\nexit 3\n", name="failing")
    nowhere = site.folder / f"home-of-{os.environ.get('USER', 'root')}"
    nowhere.mkdir(exist_ok=True)
    without = ada.submit(None, "#!/bin/bash\npwd > where\n", name="without-directory")
    assert "exit code 3" in await site.ended(failing, ABORTED)
    await site.ended(without, DONE)
    assert (nowhere / "where").read_text().strip() == str(nowhere)


async def test_what_cannot_be_run_is_rejected_once_with_the_reason(site: BridgedSite, ada: Ada, work: Path) -> None:
    (work / "theirs").write_text("of somebody else\n")
    job_script = ada.job_script(files={"data": "x"})
    scriptless = ada.submit(work, job_script=job_script)
    # At once: the bridge may look at any moment.
    ada.client.send(calls.delete_job_script_file(job_script, "job.sh"))
    rejected = {
        scriptless: "Error processing job-script files -- SubmissionRejected: Could not",
        ada.submit("/nowhere/at/all"): "Execution directory is invalid -- DirectoryRefused: /nowhere/at/all:",
        ada.submit("relative"): "Execution directory must be an absolute path",
        ada.submit(work, files={"theirs": "ours"}): "Error processing job-script files -- FileRefused: ",
        ada.submit(work, sbatch=["--partition=nowhere"]): "Failed to submit job to slurm -- SubmissionRefused: ",
        ada.submit(work, sbatch=["--uid=root"]): "Failed to submit job to slurm -- ",
        ada.submit(work, "echo no shebang\n"): "Failed to submit job to slurm -- ",
    }
    reasons = {}
    for submission, words in rejected.items():
        reasons[submission] = await site.ended(submission, REJECTED)
        assert words in reasons[submission]
        # The run says the same.
        assert message(await site.run_of(submission)) == reasons[submission]
    await _after_another_look(site)
    for submission in rejected:
        assert ada.progress(submission) == ["REJECTED"]
        assert len(await site.runs_of(submission)) == 1
    assert (work / "theirs").read_text() == "of somebody else\n"


async def test_each_has_one_run_and_one_job_though_lists_change_while_they_are_read_and_the_worker_is_killed(
    site: BridgedSite, ada: Ada, work: Path
) -> None:
    job_script = ada.job_script("#!/bin/bash\nsleep 1\n")
    submissions = [ada.submit(work, job_script=job_script) for _ in range(9)]
    await site.run_of(submissions[3])
    site.worker.kill()
    submissions += [ada.submit(work, job_script=job_script) for _ in range(3)]
    site.worker.start()
    for submission in submissions:
        await ada.until(submission, DONE)
        (run,) = await site.runs_of(submission)
        assert len(site.slurm_jobs(run.id)) == len(site.submissions(run.id)) == 1
        assert ada.progress(submission).count("COMPLETED") == 1
    jobs = {ada.submission(submission).slurm_job_id for submission in submissions}
    assert len(jobs) == len(submissions)


async def test_what_is_cancelled_in_jobbergate_is_cancelled_in_slurm(site: BridgedSite, ada: Ada, work: Path) -> None:
    running = ada.submit(work, "#!/bin/bash\nexec sleep 600\n", name="long")
    held = ada.submit(work, "#!/bin/bash\n#SBATCH --hold\ntrue\n", name="held")
    for submission in (running, held):
        await ada.until(submission, SUBMITTED)
        ada.cancel(submission)
    for submission in (running, held):
        there = await ada.until(submission, ABORTED)
        assert there.slurm_job_state == "CANCELLED"
        run = await site.run_of(submission)
        assert (await site.end(run.id)).state_name == "Cancelled"
        shown = site.slurm.run("squeue", "-h", "-t", "all", "-o", "%T", "-j", str(there.slurm_job_id))
        assert shown.strip() in ("CANCELLED", "COMPLETING")


async def test_what_is_cancelled_before_anybody_looked_never_runs_and_is_closed(
    site: BridgedSite, ada: Ada, work: Path
) -> None:
    site.worker.stop()
    submission = ada.submit(work, "#!/bin/bash\ntouch ran\n")
    ada.cancel(submission)
    site.worker.start()
    there = await ada.until(submission, ABORTED)
    assert there.report_message == "Job was cancelled by the user before a slurm job was created"
    assert await site.runs_of(submission) == []
    assert there.slurm_job_id is None
    assert not (work / "ran").exists()


async def test_what_is_given_up_in_prefect_is_told_in_jobbergate(site: BridgedSite, ada: Ada, work: Path) -> None:
    async with get_client() as client:
        await client._client.patch(f"/work_pools/{POOL}", json={"is_paused": True})
        try:
            cancelled, deleted, meanwhile = (ada.submit(work, "#!/bin/bash\ntouch ran\n") for _ in range(3))
            await site.cancel((await site.run_of(cancelled)).id)
            await client.delete_flow_run((await site.run_of(deleted)).id)
            await site.run_of(meanwhile)
            ada.cancel(meanwhile)
            given_up = await ada.until(cancelled, REJECTED)
            gone = await ada.until(deleted, REJECTED)
            closed = await ada.until(meanwhile, ABORTED)
        finally:
            await client._client.patch(f"/work_pools/{POOL}", json={"is_paused": False})
    assert "Its flow run ended as Cancelled before its job was submitted" in (given_up.report_message or "")
    assert gone.report_message == "Its flow run was deleted before its job was submitted"
    assert closed.slurm_job_id is None
    assert (await site.end((await site.run_of(meanwhile)).id)).state_name == "Cancelled"
    assert not (work / "ran").exists()


async def test_nobody_else_can_make_a_run_of_a_submission_nor_run_it_again(
    site: BridgedSite, ada: Ada, work: Path
) -> None:
    submission = ada.submit(work, "#!/bin/bash\necho once >> ran\n")
    await ada.until(submission, DONE)
    run = await site.run_of(submission)
    await site.end(run.id)
    async with get_client() as client:
        assert run.deployment_id is not None
        forged = await client.create_flow_run_from_deployment(run.deployment_id, parameters={"submission": submission})
    ended = await site.end(forged.id)
    assert ended.state_name == "Failed"
    assert "the bridge has made no such run" in message(ended)
    await site.retry(run.id)
    again = await site.end(run.id)
    assert again.state_name == "Failed"
    assert f"job submission {submission} is DONE in Jobbergate" in message(again)
    assert (work / "ran").read_text() == "once\n"
    assert ada.submission(submission).status is DONE


async def test_the_cluster_is_reported_as_alive(site: BridgedSite, ada: Ada) -> None:
    site.worker.stop()
    site.worker.start()

    async def alive() -> bool:
        found = ada.client.send(calls.get_cluster(AGENT))
        return found.is_healthy and found.interval == INTERVAL

    await await_until(alive, 120, "the cluster to be healthy", 0.5)


async def test_the_api_may_be_away_while_a_job_runs_and_ends(site: BridgedSite, ada: Ada, work: Path) -> None:
    go_on = work / "go-on"
    submission = ada.submit(work, waiting_for(go_on), name="away")
    await ada.until(submission, SUBMITTED)
    run = await site.run_of(submission)
    site.api.stop()
    try:
        go_on.touch()
        assert (await site.end(run.id)).state_name == "Completed"
    finally:
        site.api.start()
    await ada.until(submission, DONE)
    told = ada.progress(submission)
    assert told[-1] == "COMPLETED"
    assert told.count("COMPLETED") == 1


async def test_tokens_may_expire_and_their_provider_be_away_while_a_job_runs_and_ends(
    site: BridgedSite, work: Path, tmp_path: Path
) -> None:
    provider = site.api.provider
    # With a new token, which lasts until the provider is back.
    ada = Ada(site.api, tmp_path / "ada")
    script = "#!/bin/bash\nuntil [ -e go ]; do sleep 0.2; done\n"
    submission = ada.submit(work, script)
    await ada.until(submission, SUBMITTED)
    run = await site.run_of(submission)
    token = Token(site.folder / "agent" / "cluster-api", TokenType.ACCESS)
    valid = provider.lifetime
    provider.lifetime = 3
    try:
        # From now on it has tokens that live for seconds, many times during the job.
        site.worker.kill()
        token.file_path.unlink()
        site.worker.start()
        given = provider.given["client_credentials"]
        await _until(lambda: provider.given["client_credentials"] >= given + 3, "tokens to be renewed")
        provider.failing = 503, "away"
        asked = len(provider.forms)
        await _until(lambda: len(provider.forms) > asked, "the provider to be asked in vain")
        await _until(lambda: token.load_from_cache().is_expired(), "the last token to expire")
        (work / "go").touch()
        assert (await site.end(run.id)).state_name == "Completed"
        # Nobody could tell it.
        assert ada.submission(submission).status is SUBMITTED
    finally:
        provider.failing, provider.lifetime = None, valid
    await ada.until(submission, DONE)
    told = ada.progress(submission)
    assert (told[0], told[-1], told.count("COMPLETED")) == ("PENDING", "COMPLETED", 1)


async def _until(condition: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(wait_until, condition, 150, what)


async def test_the_old_agents_jobs_are_taken_over(site: BridgedSite, ada: Ada, work: Path) -> None:
    go_on = work / "go-on"
    wait = f"while [ ! -e {go_on} ]; do sleep 0.2; done"
    jobs = [
        int(site.slurm.run("sbatch", "--parsable", "-D", str(work), "--wrap", command).strip())
        for command in (wait, "sleep 600")
    ]
    job_script = ada.job_script()
    ending, cancelled = (ada.submit(work, job_script=job_script, slurm_job_id=job) for job in jobs)

    async def followed() -> bool:
        return all(ada.submission(one).slurm_job_state == "RUNNING" for one in (ending, cancelled))

    await await_until(followed, 120, "both jobs to be told of", 0.5)
    ada.cancel(cancelled)
    go_on.touch()
    await ada.until(ending, DONE)
    there = await ada.until(cancelled, ABORTED)
    assert there.slurm_job_state == "CANCELLED"
    assert await site.runs_of(ending) == []


async def test_a_recurring_deployment_does_it_as_well(site: BridgedSite, ada: Ada, work: Path) -> None:
    site.worker.stop()
    before = dict(site.worker.environment)
    site.worker.environment |= {f"{SETTING}BRIDGE": "deployment"}
    code = (
        "import asyncio\nfrom agent_worker.jobbergate.one_look import look_at_jobbergate\n"
        f"print(asyncio.run(look_at_jobbergate({POOL!r}, return_state=True)).message)"
    )
    submission = ada.submit(work)
    try:
        site.worker.start()
        for _ in range(2):
            done = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-c", code],
                env=site.worker.environment,
                capture_output=True,
                text=True,
                check=True,
            )
            assert "runs made" in done.stdout
        await site.ended(submission, DONE)
    finally:
        site.worker.stop()
        site.worker.environment.clear()
        site.worker.environment |= before
        site.worker.start()


async def _after_another_look(site: BridgedSite) -> None:
    """A submission that came after all that was seen so far is over."""
    folder = site.folder / "another-look"
    folder.mkdir(exist_ok=True)
    await site.ended(site.ada.submit(folder), DONE)
