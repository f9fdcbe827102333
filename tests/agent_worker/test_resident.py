"""An application's run in the worker: what it is made of, and what it waits for."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any
from uuid import UUID

import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.states import Running
from prefect.variables import Variable

from jobbergate_flows.applications import child
from jobbergate_flows.applications.isolation import Limits
from jobbergate_flows.deployments import DeployedApplication
from jobbergate_flows.slurm import patience
from jobbergate_flows.slurm.accounts import DirectoryDown
from jobbergate_flows.slurm.deputy import Ended
from jobbergate_flows.slurm.deputy_door import DeputyDoor, OwnAccount
from jobbergate_flows.slurm.errors import ClusterUnreachable
from tests.agent_worker.conftest import Workshop
from tests.cluster.site import message, script_application

RENDERER = str(Path(child.__file__).parent / "program.py")
ECHO = "#!/bin/sh\necho {{ word }}\n"
QUESTION = '[Text("word", "Which word?", default="hello")]'


@pytest.fixture
async def deployed(workshop: Workshop, tmp_path: Path) -> DeployedApplication:
    return await workshop.deploy(script_application(tmp_path, "echo", ECHO, QUESTION))


async def test_a_run_that_has_a_job_is_followed_without_its_application_and_whatever_it_asks_for(
    workshop: Workshop, deployed: DeployedApplication
) -> None:
    gone = f"gone@sha256:{'0' * 64}"
    run = await workshop.launch(deployed, Running(), application=gone, answers=5, nonsense=1)
    job = await workshop.submit(run.id, "exit 3")

    await workshop.supervisor.hold(run, "application", recovered=True)

    ended = await workshop.end(run.id)
    assert "exit code 3" in message(ended)
    assert (await workshop.submission(run.id)).job_id == job.job_id


@pytest.mark.parametrize(
    ("parameters", "says"),
    [({"answers": 5}, "answers"), ({"nonsense": 1}, "nonsense"), ({"application": "gone"}, "no application pin")],
)
async def test_a_run_that_asks_for_nonsense_fails_with_words(
    workshop: Workshop, deployed: DeployedApplication, parameters: dict[str, Any], says: str
) -> None:
    run = await workshop.launch(deployed, **parameters)

    await workshop.supervisor.hold(run, "application")

    ended = await workshop.end(run.id)
    assert ended.state_name == "Failed"
    assert says in message(ended)
    assert workshop.ledger.of_flow_run(str(run.id)) == []


REFERENCES: list[dict[str, Any]] = [
    {"$ref": "#/x"},
    {"$ref": {"block_document_slug": "secret/workers-own"}},
    {"__prefect_kind": "json", "value": '"s3cret"'},
    {"__prefect_kind": "workspace_variable", "variable_name": "workers_own"},
    {"__prefect_kind": "jinja", "template": "{{ 's3' }}cret"},
]


@pytest.mark.parametrize("reference", REFERENCES, ids=str)
@pytest.mark.parametrize("inside", [True, False], ids=["an answer", "all answers"])
async def test_an_answer_that_names_something_of_prefects_is_that_text_and_not_what_it_names(
    workshop: Workshop, deployed: DeployedApplication, reference: dict[str, Any], inside: bool
) -> None:
    await Secret(value="s3cret").save("workers-own", overwrite=True)
    await Variable.aset("workers_own", "s3cret", overwrite=True)
    answers = {"word": reference} if inside else reference
    run_id = await as_it_is(deployed, answers)
    async with get_client() as client:
        run = await client.read_flow_run(run_id)
    assert run.parameters["answers"] == answers

    await workshop.supervisor.hold(run, "application")

    ended = await workshop.end(run_id)
    assert ended.state_name == "Failed"
    # A server on PostgreSQL keeps no order.
    assert any(f"answers.{name}:" in message(ended) for name in (["word"] if inside else reference))
    assert "resolve" not in message(ended)


async def as_it_is(deployed: DeployedApplication, answers: object) -> UUID:
    """A run that is not made from its deployment: then the server itself puts nothing in the place of its answers."""
    async with get_client() as client:
        flow_id = (await client.read_deployment(deployed.id)).flow_id
        body = {"flow_id": str(flow_id), "deployment_id": str(deployed.id), "parameters": {"answers": answers}}
        made = await client._client.post("/flow_runs/", json=body)
        return UUID(made.json()["id"])


class FailingAccount:
    """A session's account whose user directory is down at first, and whose deputy loses renderings."""

    def __init__(self, workshop: Workshop, monkeypatch: pytest.MonkeyPatch, *, lost: int) -> None:
        self._door = DeputyDoor(getpass.getuser(), OwnAccount(), renderer=(sys.executable, RENDERER))
        self._lost = lost
        self.renderings = 0
        self.down = 3
        workshop.session.serve = self.serve
        monkeypatch.setattr(workshop.session, "expanded", self.expanded)
        monkeypatch.setattr(patience, "RETRY_SECONDS", (0.01,))

    async def expanded(self, directory: str | PurePath) -> str:
        self.down -= 1
        if self.down > 0:
            raise DirectoryDown("the user directory does not answer")
        return str(directory)

    async def serve(self, request: Mapping[str, Any], files: Mapping[str, bytes], limits: Limits) -> Ended:
        self.renderings += 1
        if self.renderings <= self._lost:
            raise ClusterUnreachable("the deputy has ended")
        # What was down is down again when the job is to be submitted.
        self.down = 3
        return await self._door.render(request, files, limits)

    async def close(self) -> None:
        await self._door.close()


async def test_a_run_waits_for_the_user_directory_and_for_its_deputy(
    workshop: Workshop, deployed: DeployedApplication, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = FailingAccount(workshop, monkeypatch, lost=1)
    run = await workshop.launch(deployed, answers={"word": "patience"}, directory=str(workshop.folder))

    await workshop.supervisor.hold(run, "application")

    ended = await workshop.end(run.id)
    assert ended.state_name == "Completed", message(ended)
    assert account.renderings == 2
    await workshop.supervisor.do(account.close())


async def test_an_application_that_ends_its_deputy_each_time_fails(
    workshop: Workshop, deployed: DeployedApplication, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = FailingAccount(workshop, monkeypatch, lost=100)
    run = await workshop.launch(deployed, directory=str(workshop.folder))

    await workshop.supervisor.hold(run, "application")

    ended = await workshop.end(run.id)
    assert ended.state_name == "Failed"
    assert "the deputy has ended" in message(ended)
    assert account.renderings == 3
