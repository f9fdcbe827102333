"""Runs of several people: each as its owner, not as whom the run says, and with the owner's consent where wanted."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client

from jobbergate_flows.applications import Application
from jobbergate_flows.deployments import DeployedApplication
from tests.cluster.accounts import GROUP, USERS, WORKER, Accounts
from tests.cluster.audit import AuditSocket
from tests.cluster.prefect_server import PrefectServer
from tests.cluster.secrets import VALUE, command_lines_with_secrets, holding_secrets
from tests.cluster.site import API_KEY, Site, message, script_application, waiting_for, working
from tests.cluster.slurm import SlurmCluster
from tests.cluster.waiting import await_until
from tests.cluster.worker import WorkerProcess
from tests.end_to_end.flows import deploy_flow

pytestmark = pytest.mark.slurm
QUESTION = '[Text("word", "Which word?", default="hello")]'
SETTING = "PREFECT_INTEGRATIONS_JOBBERGATE_FLOWS_"


@dataclass
class SharedSite(Site):
    """A site whose worker acts for others, with the policy `owner`."""

    accounts: Accounts = None  # type: ignore[assignment]
    audit: AuditSocket = None  # type: ignore[assignment]
    server: str = ""

    def cli(self, *arguments: str, user: str | None = None) -> str:
        """Run `jobbergate-flows` as root, or as a user."""
        command = ["/usr/bin/python3", "-c", "from jobbergate_flows.cli import main; raise SystemExit(main())"]
        home = f"/home/{user}" if user else str(self.folder)
        done = subprocess.run(
            ([] if user is None else ["runuser", "-u", user, "--"]) + command + list(arguments),
            env=self.accounts.installation() | {"PREFECT_API_URL": self.server, "HOME": home},
            capture_output=True, text=True, check=False, cwd="/", stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def table(self) -> str:
        return str(self.folder.parent / "bindings.yaml")

    async def owned(self, application: Application, owner: str) -> DeployedApplication:
        """Deploy an application and bind it to its owner."""
        deployed = await self.deploy(application)
        self.cli(
            "worker", "bind", "--account", owner, "--deployment", str(deployed.id), "--application", application.digest,
            "--file", self.table,
        )  # fmt: skip
        return deployed

    async def launch(self, deployed: DeployedApplication, **parameters: Any) -> UUID:
        async with get_client() as client:
            run = await client.create_flow_run_from_deployment(deployed.id, parameters={"directory": "~", **parameters})
        return run.id

    def job(self, run_id: UUID) -> tuple[str, Path]:
        """Whose the run's one job is, as Slurm says it, and its directory."""
        (submission,) = self.submissions(run_id)
        users = self.slurm.run("sacct", "-X", "-n", "-P", "-o", "User", "-j", submission.job_id or "").split()
        assert users == [submission.user]
        return users[0], Path(submission.directory)


async def _site(
    acting: str, accounts: Accounts, slurm: SlurmCluster, server: PrefectServer, consent: bool
) -> AsyncIterator[SharedSite]:
    accounts.admit(slurm)
    folder = accounts.folder / acting
    folder.mkdir(mode=0o755)
    # Root's alone, although the worker's own folder beside it is the worker's.
    own = folder / "worker"
    own.mkdir()
    audit = AuditSocket(folder / "log")
    python, _ = accounts.renderer()
    environment = accounts.installation() | {
        "PREFECT_API_URL": server.api_url,
        "PREFECT_HOME": str(own / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5",
        "PREFECT_API_KEY": API_KEY,
        "SLURM_CONF": str(slurm.conf),
        "HOME": str(own),
        f"{SETTING}CLUSTER": "slurm",
        f"{SETTING}LEDGER": str(own / "ledger.sqlite3"),
        f"{SETTING}RECOVERY_POLL_SECONDS": "5",
        f"{SETTING}ACTING": acting,
        f"{SETTING}POLICY": "owner",
        f"{SETTING}CONSENT": str(consent).lower(),
        f"{SETTING}CONSENT_SECONDS": "600",
        f"{SETTING}DECISION_POLL_SECONDS": "1",
        f"{SETTING}GROUPS": GROUP,
        f"{SETTING}DEPUTY": str(accounts.deputy),
        f"{SETTING}DEPUTY_PYTHON": python,
        f"{SETTING}BINDINGS": str(folder / "bindings.yaml"),
        f"{SETTING}AUDIT": str(audit.path),
    }
    user = WORKER if acting == "sudo" else None
    if user is not None:
        record = pwd.getpwnam(user)
        os.chown(own, record.pw_uid, record.pw_gid)
    worker = WorkerProcess(f"people-{acting}", folder, environment, user=user, python="/usr/bin/python3")
    worker.environment = environment
    made = SharedSite(
        slurm, own, f"people-{acting}", worker, environment, accounts=accounts, audit=audit, server=server.api_url
    )
    with closing(audit):
        async with working(made):
            yield made


@pytest.fixture(scope="session")
async def by_root(
    accounts: Accounts, slurm_cluster: SlurmCluster, prefect_server: PrefectServer
) -> AsyncIterator[SharedSite]:
    """A worker that is root, with the policy `owner`."""
    async for site in _site("root", accounts, slurm_cluster, prefect_server, consent=False):
        yield site


@pytest.fixture(scope="session")
async def by_sudo(
    accounts: Accounts, slurm_cluster: SlurmCluster, prefect_server: PrefectServer
) -> AsyncIterator[SharedSite]:
    """An unprivileged worker with sudo, with the policy `owner` and its users' consent."""
    async for site in _site("sudo", accounts, slurm_cluster, prefect_server, consent=True):
        yield site


@pytest.fixture(autouse=True)
def _no_consent_stays() -> Iterator[None]:
    yield
    for name in USERS:
        shutil.rmtree(f"/home/{name}/.config/jobbergate-flows", ignore_errors=True)


LOOK = "#!/bin/bash\nid -un; id -G; env; umask\necho {{ word }}\n"


async def test_a_run_is_its_owners_whatever_it_says_of_itself(by_root: SharedSite, tmp_path: Path) -> None:
    deployed = await by_root.owned(script_application(tmp_path, "look", LOOK, QUESTION), "alice")
    async with get_client() as client:
        run = await client.create_flow_run_from_deployment(
            deployed.id,
            parameters={"directory": "~", "answers": {"word": "bob"}},
            tags=["user=bob", "bob"],
            job_variables={"user": "bob", "account": None, "env": {"USER": "bob"}},
        )
        await client.update_flow_run(run.id, infrastructure_pid=f"{by_root.slurm.name}:bob")
    ended = await by_root.end(run.id)
    assert ended.state_name == "Completed", message(ended)

    user, directory = by_root.job(run.id)
    assert user == "alice"
    assert directory.parent == Path("/home/alice")
    assert {path.owner() for path in directory.rglob("*")} | {directory.owner()} == {"alice"}
    assert {path.stat().st_mode & 0o077 for path in [directory, *directory.rglob("*")]} == {0}
    (output,) = directory.glob("slurm-*.out")
    lines = output.read_text().splitlines()
    assert lines[0] == "alice"
    assert sorted(lines[1].split()) == sorted(by_root.accounts.run_as("alice", "id", "-G").split())
    assert not [line for line in lines if API_KEY in line or line.startswith("PREFECT")]
    assert lines[-1] == "bob"
    await by_root.logged(run.id, "alice")
    assert [record["decision"] for record in by_root.audit.records(run.id)] == ["allowed", "submitted"]
    (submission,) = by_root.submissions(run.id)
    assert by_root.audit.records(run.id)[1]["job"] == submission.job_id


async def test_a_run_that_nobody_owns_does_not_run(by_root: SharedSite, tmp_path: Path) -> None:
    deployed = await by_root.deploy(script_application(tmp_path, "nobodys", LOOK, QUESTION))
    run_id = await by_root.launch(deployed)
    ended = await by_root.end(run_id)
    assert ended.state_name == "Failed"
    assert "nobody is known whose run this is" in message(ended)
    assert by_root.submissions(run_id) == []
    assert [record["decision"] for record in by_root.audit.records(run_id)] == ["denied"]


async def test_another_application_in_the_deployments_place_does_not_run(by_root: SharedSite, tmp_path: Path) -> None:
    deployed = await by_root.owned(script_application(tmp_path, "swapped", LOOK, QUESTION), "alice")
    swapped = await by_root.deploy(script_application(tmp_path, "swapped", "#!/bin/bash\necho swapped\n"))
    assert swapped.id == deployed.id
    run_id = await by_root.launch(swapped)
    ended = await by_root.end(run_id)
    assert ended.state_name == "Failed"
    assert "the site's table allows it" in message(ended)
    assert by_root.submissions(run_id) == []


async def test_an_account_that_is_nobodys_to_act_for_is_refused(by_root: SharedSite, tmp_path: Path) -> None:
    deployed = await by_root.owned(script_application(tmp_path, "as-root", LOOK, QUESTION), "root")
    run_id = await by_root.launch(deployed)
    ended = await by_root.end(run_id)
    assert ended.state_name == "Failed"
    assert "uid 0" in message(ended)
    (record,) = by_root.audit.records(run_id)
    assert (record["decision"], record["account"], record["application"]) == (
        "denied", "root", deployed.application.rpartition("@")[2],
    )  # fmt: skip
    assert "uid 0" in record["reason"]


async def test_a_cancelled_run_cancels_its_owners_job(by_root: SharedSite, tmp_path: Path) -> None:
    deployed = await by_root.owned(script_application(tmp_path, "long", "#!/bin/bash\nexec sleep 300\n"), "bob")
    run_id = await by_root.launch(deployed)

    async def on_node() -> bool:
        return any("node1" in (state.message or "") for state in await by_root.states(run_id))

    await await_until(on_node, 120, "the job to run")
    await by_root.cancel(run_id)
    assert (await by_root.end(run_id, 30)).state_name == "Cancelled"
    assert by_root.job(run_id)[0] == "bob"


async def test_a_killed_worker_takes_its_users_jobs_up_again(by_root: SharedSite, tmp_path: Path) -> None:
    go_on = by_root.accounts.folder / "go-on"
    script = waiting_for(go_on)
    deployed = await by_root.owned(script_application(tmp_path, "survivor", script), "carol")
    run_id = await by_root.launch(deployed, resources={"extra": {"hold": ""}})
    await by_root.until(run_id, "Held")
    assert _deputies(by_root) != []
    by_root.worker.kill()
    await await_until(lambda: asyncio.to_thread(lambda: not _deputies(by_root)), 30, "the end of the deputies")
    by_root.worker.start()
    go_on.touch()
    (submission,) = by_root.submissions(run_id)
    by_root.slurm.run("scontrol", "release", submission.job_id or "")
    ended = await by_root.end(run_id)
    assert ended.state_name == "Completed", message(ended)
    assert by_root.job(run_id)[0] == "carol"
    allowed, *submitted = by_root.audit.records(run_id)
    assert allowed["decision"] == "allowed"
    assert [(line["decision"], line["job"]) for line in submitted] == [("submitted", submission.job_id)] * 2


def _deputies(site: SharedSite) -> list[str]:
    """The deputies that run, by their processes."""
    program = str(site.accounts.deputy).encode()
    return [path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if program in _content(path).split(b"\0")]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        # It has ended by now.
        return b""


async def test_without_consent_a_run_waits_and_its_user_allows_just_that(by_sudo: SharedSite, tmp_path: Path) -> None:
    deployed = await by_sudo.owned(script_application(tmp_path, "asked", LOOK, QUESTION), "alice")
    run_id = await by_sudo.launch(deployed, answers={"word": "fine"})
    waiting = await by_sudo.until(run_id, "Needs consent")
    assert f"jobbergate-flows consent add --run {run_id}" in message(waiting)
    assert by_sudo.submissions(run_id) == []

    by_sudo.cli("consent", "add", "--run", str(run_id), "--yes", "--no-render", user="alice")
    ended = await by_sudo.end(run_id)
    assert ended.state_name == "Completed", message(ended)
    user, directory = by_sudo.job(run_id)
    assert (user, directory.owner()) == ("alice", "alice")
    assert [record["decision"] for record in by_sudo.audit.records(run_id)] == ["needs-consent", "allowed", "submitted"]

    other = await by_sudo.launch(deployed, answers={"word": "$(touch /tmp/owned)"})
    await by_sudo.until(other, "Needs consent")
    await by_sudo.cancel(other)
    assert (await by_sudo.end(other, 30)).state_name == "Cancelled"
    assert by_sudo.submissions(other) == []


async def test_a_consent_file_that_others_could_have_written_allows_nothing(
    by_sudo: SharedSite, tmp_path: Path
) -> None:
    application = script_application(tmp_path, "forged", LOOK, QUESTION)
    deployed = await by_sudo.owned(application, "bob")
    by_sudo.cli("consent", "add", str(deployed.id), "--application", application.digest, "--answers-any", user="bob")
    file = Path("/home/bob/.config/jobbergate-flows/authorized_deployments")
    os.chmod(file, 0o660)
    run_id = await by_sudo.launch(deployed)
    waiting = await by_sudo.until(run_id, "Needs consent")
    assert str(file) in message(waiting)
    os.chmod(file, 0o600)
    ended = await by_sudo.end(run_id)
    assert ended.state_name == "Completed", message(ended)
    assert by_sudo.job(run_id)[0] == "bob"


async def test_a_limit_of_consent_holds_for_what_the_script_itself_asks_for(
    by_sudo: SharedSite, tmp_path: Path
) -> None:
    script = "#!/bin/bash\n{% if word == 'many' %}#SBATCH --array=1-9\n{% endif %}id -un\n"
    application = script_application(tmp_path, "greedy", script, QUESTION)
    deployed = await by_sudo.owned(application, "carol")
    by_sudo.cli(
        "consent", "add", str(deployed.id), "--application", application.digest, "--answers-any", "--max-tasks", "2",
        user="carol",
    )  # fmt: skip
    # The run itself is within the limit, and so was allowed: only the rendered script asks for more.
    greedy = await by_sudo.launch(deployed, answers={"word": "many"}, resources={"tasks": 2})
    ended = await by_sudo.end(greedy)
    assert ended.state_name == "Failed"
    assert "more than carol has consented to: limits are of one job, and an array is many" in message(ended)
    assert by_sudo.submissions(greedy) == []
    assert [record["decision"] for record in by_sudo.audit.records(greedy)] == ["allowed", "denied"]

    modest = await by_sudo.launch(deployed, resources={"tasks": 2})
    ended = await by_sudo.end(modest)
    assert ended.state_name == "Completed", message(ended)


async def test_what_a_line_of_consent_limits_must_be_said_by_the_run(by_sudo: SharedSite, tmp_path: Path) -> None:
    application = script_application(tmp_path, "vague", "#!/bin/bash\n#SBATCH --ntasks=1\nid -un\n", QUESTION)
    deployed = await by_sudo.owned(application, "carol")
    by_sudo.cli(
        "consent", "add", str(deployed.id), "--application", application.digest, "--answers-any", "--max-tasks", "2",
        user="carol",
    )  # fmt: skip
    run_id = await by_sudo.launch(deployed)
    assert "the run does not say how many it takes" in message(await by_sudo.until(run_id, "Needs consent"))
    assert by_sudo.submissions(run_id) == []
    await by_sudo.cancel(run_id)
    assert (await by_sudo.end(run_id, 30)).state_name == "Cancelled"


async def test_an_ordinary_flow_runs_only_where_the_table_says_so_and_then_as_its_owner(by_root: SharedSite) -> None:
    folder = by_root.accounts.folder / "ordinary-flow"
    folder.mkdir(mode=0o755)
    environment = {"PYTHONPATH": by_root.accounts.installation()["PYTHONPATH"], "SETTING": "se'cret"}
    deployment = await deploy_flow(
        by_root, folder, directory="~", env=environment, command="/usr/bin/python3 -m prefect flow-run execute"
    )
    table = ("--account", "bob", "--deployment", str(deployment), "--file", by_root.table)
    by_root.cli("worker", "bind", *table, "--application", f"sha256:{64 * 'a'}")
    ended = await by_root.end(await by_root.start(deployment, how="well"))
    assert ended.state_name == "Failed"
    assert "ordinary flow" in message(ended)

    by_root.cli("worker", "bind", *table, "--flows-any")
    run_id = await by_root.start(deployment, how="well")
    ended = await by_root.end(run_id, 120)
    assert ended.state_name == "Completed", message(ended)
    user, directory = by_root.job(run_id)
    assert (user, directory.owner()) == ("bob", "bob")
    assert await by_root.logged(run_id, "setting se'cret")
    secret = directory / ".environment"
    await await_until(lambda: asyncio.to_thread(lambda: not secret.exists()), 150, "the removal of the secrets")


async def test_by_sudo_a_running_flows_secrets_are_in_its_owners_own_file_and_nowhere_else(
    by_sudo: SharedSite,
) -> None:
    await _look_for_secrets(by_sudo)


async def test_by_root_a_running_flows_secrets_are_in_its_owners_own_file_and_nowhere_else(
    by_root: SharedSite,
) -> None:
    await _look_for_secrets(by_root)


async def _look_for_secrets(site: SharedSite) -> None:
    folder = site.accounts.folder / f"flow-{site.pool}"
    folder.mkdir(mode=0o755)
    environment = {"PYTHONPATH": site.accounts.installation()["PYTHONPATH"], "TOKEN": VALUE}
    deployment = await deploy_flow(
        site, folder, directory="~", env=environment, command="/usr/bin/python3 -m prefect flow-run execute"
    )
    site.cli(
        "worker", "bind", "--account", "carol", "--deployment", str(deployment), "--file", site.table, "--flows-any"
    )
    # Where the site asks its users as well.
    site.cli("consent", "add", str(deployment), "--flows-any", user="carol")
    (folder / "told").mkdir()
    (folder / "told").chmod(0o777)
    marker = folder / "told" / "runs"
    run_id = await site.start(deployment, how="sleep", marker=str(marker))
    await await_until(lambda: asyncio.to_thread(marker.exists), 150, "the flow to run")

    _, directory = site.job(run_id)
    written = (site.folder.parent, site.slurm.folder, Path("/home"))
    assert await asyncio.to_thread(holding_secrets, *written) == [directory / ".environment"]
    status = await asyncio.to_thread((directory / ".environment").stat)
    assert (status.st_uid, status.st_mode & 0o777) == (pwd.getpwnam("carol").pw_uid, 0o600)
    assert await asyncio.to_thread(command_lines_with_secrets) == []

    await site.cancel(run_id)
    assert (await site.settled(run_id, 120)).state_name == "Cancelled"
