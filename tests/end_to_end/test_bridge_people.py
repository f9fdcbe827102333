"""The bridge for many people: a submission is its owner's in Jobbergate, as the site's own user mapper knows them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest

from jobbergate_flows.jobbergate.links import Links
from jobbergate_flows.jobbergate.models import SubmissionStatus
from jobbergate_flows.slurm.ledger import Ledger
from tests.cluster.accounts import GROUP, Accounts
from tests.cluster.audit import AuditSocket
from tests.cluster.jobbergate_api import JobbergateApi, agent_environment
from tests.cluster.jobbergate_people import Ada
from tests.cluster.prefect_server import PrefectServer
from tests.cluster.site import Site, working
from tests.cluster.slurm import SlurmCluster
from tests.cluster.worker import WorkerProcess
from tests.end_to_end.test_bridge import SETTING

pytestmark = pytest.mark.slurm
POOL = "bridged-people"
HOME = Path("/home/alice")
ABORTED, DONE, REJECTED = SubmissionStatus.ABORTED, SubmissionStatus.DONE, SubmissionStatus.REJECTED
PLUGIN = """
import json
from collections.abc import Mapping
from pathlib import Path

class People(Mapping):
    def __getitem__(self, email):
        return json.loads(Path({table!r}).read_text())[email]

    def __iter__(self):
        return iter(())

    def __len__(self):
        return 0
"""


@dataclass
class People(Site):
    """A site whose worker is root, with the policy `owner` and a mapper of its own."""

    ada: Ada = None  # type: ignore[assignment]
    table: Path = None  # type: ignore[assignment]
    audit: AuditSocket = None  # type: ignore[assignment]

    def run_id(self, submission: int) -> UUID:
        ledger = Ledger.open(self.ledger_path)
        try:
            link = Links(ledger).of_submission("", submission)
        finally:
            ledger.close()
        assert link is not None
        assert link.flow_run_id is not None
        return UUID(link.flow_run_id)


@pytest.fixture(scope="module")
async def people(
    accounts: Accounts,
    slurm_cluster: SlurmCluster,
    prefect_server: PrefectServer,
    jobbergate_api: JobbergateApi,
) -> AsyncIterator[People]:
    accounts.admit(slurm_cluster)
    folder = accounts.folder / "bridge"
    folder.mkdir(mode=0o755)
    own = folder / "worker"
    own.mkdir()
    table = folder / "people.json"
    table.write_text(json.dumps({"ada@example.org": "alice"}))
    plugin = folder / "plugin"
    info = plugin / "site_people-1.dist-info"
    info.mkdir(parents=True)
    (plugin / "site_people.py").write_text(PLUGIN.format(table=str(table)))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: site-people\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[jobbergate_agent.user_mapper]\npeople = site_people:People\n")
    audit = AuditSocket(folder / "log")
    python, _ = accounts.renderer()
    installed = accounts.installation()
    environment = (
        installed
        | agent_environment(jobbergate_api, own)
        | {
            "PYTHONPATH": f"{installed['PYTHONPATH']}:{plugin}",
            "PREFECT_API_URL": prefect_server.api_url,
            "PREFECT_HOME": str(own / "prefect"),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "SLURM_CONF": str(slurm_cluster.conf),
            "HOME": str(own),
            "JOBBERGATE_AGENT_SLURM_USER_MAPPER": "people",
            f"{SETTING}CLUSTER": "slurm",
            f"{SETTING}LEDGER": str(own / "ledger.sqlite3"),
            f"{SETTING}BRIDGE": "service",
            f"{SETTING}ACTING": "root",
            f"{SETTING}POLICY": "owner",
            f"{SETTING}GROUPS": GROUP,
            f"{SETTING}DEPUTY": str(accounts.deputy),
            f"{SETTING}DEPUTY_PYTHON": python,
            f"{SETTING}BINDINGS": str(folder / "bindings.yaml"),
            f"{SETTING}AUDIT": str(audit.path),
        }
    )
    worker = WorkerProcess(POOL, folder, environment, python="/usr/bin/python3")
    worker.environment = environment
    ada = Ada(jobbergate_api, own / "ada")
    made = People(slurm_cluster, own, POOL, worker, environment, ada=ada, table=table, audit=audit)
    with closing(audit):
        async with working(made):
            yield made


async def test_a_submission_is_its_owners_account(people: People) -> None:
    submission = people.ada.submit(HOME, "#!/bin/bash\nid -un > whose\n", {"data": "x"})
    there = await people.ada.until(submission, DONE)
    assert _in_home("whose") == ("alice", "alice\n")
    assert _in_home("data") == ("alice", "x")
    user = people.slurm.run("sacct", "-X", "-n", "-P", "-o", "User", "-j", str(there.slurm_job_id))
    assert user.split() == ["alice"]
    records = people.audit.records(people.run_id(submission))
    assert [(record["decision"], record["account"]) for record in records] == [
        ("allowed", "alice"),
        ("submitted", "alice"),
    ]
    assert records[0]["proof"] == "plugin people: owner_email ada@example.org"


async def test_the_directory_is_looked_at_as_the_owner(people: People) -> None:
    submission = people.ada.submit("/home/bob", "#!/bin/bash\ntrue\n")
    there = await people.ada.until(submission, REJECTED)
    assert (there.report_message or "").startswith("Execution directory is invalid -- DirectoryRefused: /home/bob:")


async def test_an_owner_whom_the_mapper_does_not_know_is_rejected(people: People) -> None:
    before = people.table.read_text()
    people.table.write_text("{}")
    try:
        submission = people.ada.submit(HOME, "#!/bin/bash\ntrue\n")
        there = await people.ada.until(submission, REJECTED)
    finally:
        people.table.write_text(before)
    assert there.report_message == "Username could not be resolved from owner email"
    assert people.ada.progress(submission) == ["REJECTED"]


async def test_somebody_elses_job_is_neither_told_of_nor_cancelled(people: People) -> None:
    # Any user of the API may claim any Slurm id.
    command = ("sbatch", "--parsable", "--uid=bob", "--gid=bob", "-D", "/home/bob", "--wrap", "sleep 600")
    job = people.slurm.run(*command).strip()
    try:
        submission = people.ada.submit(HOME, slurm_job_id=int(job))
        people.ada.cancel(submission)
        there = await people.ada.until(submission, ABORTED)
        assert there.slurm_job_state == "UNKNOWN"
        assert there.report_message == f"Slurm job {job} is not alice's"
        assert "bob" not in (there.slurm_job_info or "")
        assert people.slurm.run("squeue", "-h", "-o", "%T", "-j", job).strip() in ("RUNNING", "PENDING")
    finally:
        people.slurm.run("scancel", job)


def _in_home(name: str) -> tuple[str, str]:
    """Whose a file of alice's is, and what is in it."""
    path = HOME / name
    return path.owner(), path.read_text()
