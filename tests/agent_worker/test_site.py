"""What a site sets in the worker's environment, as the worker then decides and acts."""

from __future__ import annotations

import asyncio
import getpass
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from pydantic import ValidationError

from agent_worker.accounts import AccountSessions
from agent_worker.admission import UNDECIDED, Admission
from agent_worker.identity.bindings import add_binding, make_binding
from agent_worker.identity.mapping import MapperBroken
from agent_worker.settings import WorkerSettings
from agent_worker.site import WorkerRefused, door_opener, rules_of
from jobbergate_flows.slurm.accounts import AccountRefused, known_account
from tests.agent_worker.conftest import Workshop
from tests.cluster.accounts import GROUP, WORKER, Accounts
from tests.cluster.audit import AuditSocket
from tests.cluster.site import message, script_application
from tests.cluster.waiting import await_until

PLUGIN = f"""
import os

class Directory:
    def __getitem__(self, identity):
        if os.path.exists(os.environ["SITE_MAPPER_DOWN"]):
            raise ConnectionError("the directory is down")
        return {{"alice@example.org": "{getpass.getuser()}"}}[identity]
"""
ENTRY_POINTS = "[jobbergate_flows.user_mapper]\nsite = site_directory:Directory\n"
ALICE = {"id": str(uuid4()), "type": "USER", "display_value": "alice@example.org"}
Settings = Callable[..., WorkerSettings]


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The worker's settings with these in its environment."""

    def read(**values: object) -> WorkerSettings:
        for name, value in values.items():
            monkeypatch.setenv(f"PREFECT_INTEGRATIONS_JOBBERGATE_FLOWS_{name}", str(value))
        return WorkerSettings()

    return read


@dataclass(frozen=True)
class Directory:
    """What the mapper `site` asks: it cannot tell while the file is there."""

    is_down: Path

    def fail(self) -> None:
        self.is_down.touch()

    def mend(self) -> None:
        self.is_down.unlink()


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Directory]:
    """The mapper `site`, installed."""
    folder = tmp_path / "plugin"
    metadata = folder / "site_directory-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: site-directory\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    (folder / "site_directory.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("SITE_MAPPER_DOWN", str(tmp_path / "down"))
    yield Directory(tmp_path / "down")
    sys.modules.pop("site_directory", None)


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[AuditSocket]:
    socket = AuditSocket(tmp_path / "log")
    yield socket
    socket.close()


@pytest.fixture
async def run(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FlowRun:
    """A run of Alice's, as Prefect Cloud would tell it: the open-source server has nobody signed in."""
    launched = await workshop.launch(await workshop.deploy(script_application(tmp_path, "mapped", "#!/bin/sh\n")))

    async def read_run(_run_id: UUID) -> FlowRun:
        return FlowRun.model_validate((await current(launched)).model_dump() | {"created_by": ALICE})

    monkeypatch.setattr("agent_worker.admission.read_run", read_run)
    return await read_run(launched.id)


async def current(run: FlowRun) -> FlowRun:
    async with get_client() as client:
        return await client.read_flow_run(run.id)


def owner(tmp_path: Path, **more: object) -> dict[str, Any]:
    """Settings of a worker with the policy `owner`."""
    return {
        "ACTING": "sudo",
        "POLICY": "owner",
        "AUDIT": tmp_path / "log",
        "BINDINGS": tmp_path / "etc" / "bindings.yaml",
        "DECISION_POLL_SECONDS": "0.1",
        **more,
    }


def admission(workshop: Workshop, settings: WorkerSettings) -> Admission:
    """The worker's, with its own account's session in the place of the sudo that is not here."""
    return Admission(AccountSessions(workshop.session), rules_of(settings), workshop.pool)


@pytest.mark.usefixtures("directory")
async def test_a_plugin_maps_an_owner(
    workshop: Workshop, run: FlowRun, settings: Settings, audit: AuditSocket, tmp_path: Path
) -> None:
    chosen = settings(**owner(tmp_path, MAPPER="site", MAPPER_WORD="display_value"))

    admitted = await admission(workshop, chosen).admit(run, "application")

    assert admitted is not None
    (record,) = audit.records(run.id)
    assert (record["decision"], record["account"]) == ("allowed", getpass.getuser())
    assert record["proof"] == "plugin site: created_by display_value alice@example.org"


@pytest.mark.usefixtures("directory")
async def test_a_mapper_that_does_not_know_the_word_maps_nobody(
    workshop: Workshop, run: FlowRun, settings: Settings, audit: AuditSocket, tmp_path: Path
) -> None:
    # By default it gets the id, which the plugin does not know.
    chosen = settings(**owner(tmp_path, MAPPER="site"))

    assert await admission(workshop, chosen).admit(run, "application") is None

    (record,) = audit.records(run.id)
    assert record["decision"] == "denied"
    assert "account" not in record


async def test_a_run_waits_for_a_mapper_that_cannot_tell(
    workshop: Workshop, run: FlowRun, settings: Settings, audit: AuditSocket, tmp_path: Path, directory: Directory
) -> None:
    directory.fail()
    chosen = settings(**owner(tmp_path, MAPPER="site", MAPPER_WORD="display_value"))
    admitting = asyncio.create_task(admission(workshop, chosen).admit(run, "application"))

    async def waits() -> bool:
        return (await current(run)).state_name == UNDECIDED

    await await_until(waits, 30, "the run to say why it waits")
    assert "the directory is down" in message(await current(run))
    assert not admitting.done()
    assert audit.records(run.id) == []
    directory.mend()
    assert await asyncio.wait_for(admitting, 30) is not None
    assert [record["decision"] for record in audit.records(run.id)] == ["allowed"]


# The table must be root's.
@pytest.mark.usefixtures("accounts")
async def test_the_table_maps_an_owner(
    workshop: Workshop, run: FlowRun, settings: Settings, audit: AuditSocket, tmp_path: Path
) -> None:
    chosen = settings(**owner(tmp_path))
    entry = make_binding({"created_by": ALICE["id"], "account": getpass.getuser()})
    add_binding(Path(chosen.bindings), entry)

    admitted = await admission(workshop, chosen).admit(run, "application")

    assert admitted is not None
    (record,) = audit.records(run.id)
    assert (record["decision"], record["account"]) == ("allowed", getpass.getuser())
    assert "created_by" in record["proof"]


def test_the_times_that_are_set_are_the_rules(settings: Settings) -> None:
    rules = rules_of(settings(CONSENT="true", CONSENT_SECONDS="7", DECISION_POLL_SECONDS="0.5"))

    assert (rules.consent_seconds, rules.poll_seconds) == (7.0, 0.5)
    assert rules.policy.name == "single-user+consent"
    assert rules.audit is not None


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"ACTING": "sudo", "POLICY": "owner", "ACCOUNT": "alice"}, "no one account"),
        ({"POLICY": "owner"}, "acts for others"),
        ({"ACTING": "sudo", "POLICY": "owner", "MAPPER": "ldap"}, "no directory to ask"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: Settings, values: dict[str, str], says: str) -> None:
    with pytest.raises(WorkerRefused, match=says) as refused:
        rules_of(settings(**values))

    assert refused.value.hint


def test_a_mapper_that_is_not_there_is_refused(settings: Settings) -> None:
    with pytest.raises(MapperBroken, match="there is no mapper"):
        rules_of(settings(ACTING="sudo", POLICY="owner", MAPPER="no-such-mapper"))


def test_a_worker_that_is_not_root_does_not_act_as_root(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(WorkerRefused, match="not root"):
        door_opener(settings(ACTING="root"))


@pytest.mark.parametrize(
    ("name", "value"), [("UMASK", "000"), ("UMASK", "002"), ("MIN_UID", "0"), ("CONSENT_SECONDS", "0")]
)
def test_settings_that_would_be_a_hole_are_none(settings: Settings, name: str, value: str) -> None:
    with pytest.raises(ValidationError, match=name.lower()):
        settings(**{name: value})


@pytest.mark.parametrize(("floor", "says"), [("1000", "may not log in"), ("70000", "uids from 70000 on")])
async def test_the_floor_holds_for_whom_the_worker_acts(settings: Settings, floor: str, says: str) -> None:
    open_door = door_opener(settings(ACTING="sudo", MIN_UID=floor))
    assert open_door is not None

    with pytest.raises(AccountRefused) as refused:
        await open_door("nobody").home()

    assert says in str(refused.value)


@pytest.mark.parametrize(("umask", "mode"), [(None, 0o600), ("027", 0o640), ("022", 0o644)])
async def test_umask_and_groups_hold_for_whom_the_worker_acts(
    settings: Settings, accounts: Accounts, umask: str | None, mode: int
) -> None:
    values = {"ACTING": "root", "DEPUTY": accounts.deputy, "DEPUTY_PYTHON": "/usr/bin/python3", "MIN_UID": "1",
              "GROUPS": f"daemon, {GROUP}"}  # fmt: skip
    open_door = door_opener(settings(**values, **({} if umask is None else {"UMASK": umask})))
    assert open_door is not None
    door, worker = open_door("alice"), open_door(WORKER)
    run = Path(await door.home()) / f"umask-{umask}"
    try:
        await door.write_files(str(run), {"file": "1"})

        status = os.stat(run / "file")
        assert (status.st_uid, status.st_mode & 0o777) == (known_account("alice").uid, mode)
        with pytest.raises(AccountRefused, match="not among those that are allowed"):
            await worker.home()
    finally:
        await door.remove_files(str(run), ["file"])
        await door.close()
        await worker.close()
        os.rmdir(run)
